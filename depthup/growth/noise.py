"""Layers that start at random, as in a model that is not trained yet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from math import sqrt

import numpy as np

from ..checkpoint.reader import Tensor
from ..errors import CheckpointError
from .arrays import FLOATS, encode
from .inits import Bench, Maker
from .residual import adds_to_stream

_STANDARD_DEVIATION = 0.02  # the default of transformers' configs, for those that say nothing
_CHUNK_ELEMENTS = 1 << 21
# Weights of linear maps, of single experts or all of them in one tensor; not convolutions, decays and the like.
_DRAWN = re.compile(r"^(?!.*conv)(?:.*\.weight|.*experts\.(?:mlp\.)?(?:gate_up_proj|up_proj|down_proj|[vw][123]))$")


def random(bench: Bench, target: int) -> dict[str, Maker]:
    """Normal noise for the weights of linear maps; norms, biases and other vectors as in the source.

    Its width is the config's ``initializer_range`` (or ``init_std``), 0.02 where the config has neither; for residual
    outputs that over sqrt(2 s), with s target layers, as GPT-2 starts them (Radford et al. 2019, section 2.3). Where
    layers are not proven to add to a stream (BERT's, which are post-norm), all maps have the one width, as BERT starts
    them (Devlin et al. 2018, arXiv:1810.04805). Each tensor has a stream of its own, from the seed and its name, so
    that no tensor depends on the order of the others.

    Raises:
        CheckpointError: The weights are quantised.
    """
    held = bench.source(target)
    outputs = bench.residual(target).outputs if adds_to_stream(bench.base.config, bench.stack) else {}
    numbers = bench.plan.init(target).numbers
    seed = int(numbers[0]) if numbers else 0
    width = _standard_deviation(bench)
    makers = {}
    for suffix, tensor in held.items():
        if len(tensor.shape) < 2 or not _DRAWN.search(suffix):
            continue
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{tensor.name} is stored as {tensor.dtype}: a random layer has no quantised weights",
                allowed=", ".join(FLOATS),
                next_step="start the layer as a copy or as identity",
            )
        name = bench.stack.name(target, suffix)
        scale = width / sqrt(2 * bench.plan.num_target_layers) if suffix in outputs else width
        makers[suffix] = _noise(tensor, f"{seed} {name}", scale)
    return makers


def _standard_deviation(bench: Bench) -> float:
    fields = bench.stack.fields(bench.base.config)
    given = fields.get("initializer_range") or fields.get("init_std")
    return float(given) if isinstance(given, (int, float)) else _STANDARD_DEVIATION


def _noise(tensor: Tensor, key: str, width: float) -> Maker:
    def make() -> Iterator[bytes]:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        generator = np.random.Generator(np.random.PCG64(seed))
        for begin in range(0, tensor.num_elements, _CHUNK_ELEMENTS):
            count = min(_CHUNK_ELEMENTS, tensor.num_elements - begin)
            yield encode(width * generator.standard_normal(count, np.float32), tensor.dtype)

    return make
