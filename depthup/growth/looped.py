"""Looping: base checkpoint + plan -> a model that visits its layers in the plan's order and stores each of them once.

Up-scaling copies layers and then unties the copies; a looped model shares them and adds an adapter where the plan jumps
(relatives: arXiv:2410.20672, arXiv:2511.07384, arXiv:2608.11233). Weights are the base's bytes under the base's names;
the class that runs them, :mod:`depthup.modeling_looped`, is written beside them. :func:`unroll` makes copies after all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from .. import modeling_looped
from ..checkpoint.config import refuse_family
from ..checkpoint.names import find_stack
from ..checkpoint.plain_json import read_object
from ..checkpoint.reader import Checkpoint, open_checkpoint
from ..checkpoint.writer import Move, Progress, plan_shards
from ..errors import CheckpointError, PlanError, nearest
from ..files import publishing, refuse_existing, require_space, write_json, write_text
from ..layers import COPY, LayerPlan
from ..modeling_looped import ADAPTERS, LoopedConfig, LoopedForCausalLM
from ..models import DTYPES, quiet_transformers
from .freeze import FREEZE_MAP_NAME, FreezeMap
from .manifest import MANIFEST_NAME, all_facts
from .surgery import DEFAULT_SHARD_BYTES, Surgery, plan_surgery, write_surgery

FAMILY = "looped"
SEAMS = "seams."  # what names of adapters begin with
_CODE = Path(modeling_looped.__file__)
_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PLAIN = (bool, int, float, str, tuple, NoneType)


@dataclass(frozen=True)
class Looping:
    """Everything that will be written, known before a weight is opened.

    Attributes:
        surgery: The stored layers, what stands outside of them, the adapters, and the config.
        plan: The base layer of each visit.
        adapter: What stands at each seam.
        num_adapter: Parameters of all adapters.
        num_equal: Parameters of the model with as many layers, each a copy.
    """

    surgery: Surgery
    plan: LayerPlan
    adapter: str
    num_adapter: int
    num_equal: int

    def describe(self) -> str:
        """The plan and what it costs, as text."""
        base, looped, millions = self.surgery.base.num_parameters, self.surgery.num_parameters, 1e-6
        rank = f" of rank {self.surgery.config['adapter_rank']}" if self.num_adapter else ""
        return "\n".join([
            self.plan.render(),
            f"parameters  {base * millions:,.1f} M in the base, {looped * millions:,.1f} M looped"
            f" ({self.num_adapter:,} in adapters), {self.num_equal * millions:,.1f} M with copied layers",
            f"adapter     {self.adapter}{rank}, at {len(self.plan.seams)} seam{'s' * (len(self.plan.seams) != 1)}",
            f"visits      {self.plan.num_target_layers} of {len(set(self.plan.sources))} stored layers",
        ])  # fmt: skip


def plan_loop(
    base: Checkpoint, plan: LayerPlan, *, adapter: str = "linear", rank: int = 16, seed: int = 0,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES, link: bool = False,
) -> Looping:  # fmt: skip
    """Decide on every tensor and config field of a looped model. Reads no weights, writes nothing.

    Args:
        base: An opened causal language model.
        plan: The base layer of each visit; layers that it leaves out are not stored.
        adapter: A key of :data:`~depthup.modeling_looped.ADAPTERS`.
        rank: Width inside each adapter.
        seed: Of the adapters' first matrices.
        max_shard_bytes: Size above which a new file begins.
        link: Use files of the base, as hard links, where all their tensors stay.

    Raises:
        CheckpointError: The family cannot be looped, or its config cannot be carried over.
        PlanError: The plan visits no layer twice, starts one otherwise than as it is, or would visit one as another
            kind of layer; or there is no such adapter.
    """
    _require_plain(base, plan, adapter, rank)
    used = sorted(set(plan.sources))
    options: dict[str, Any] = {"max_shard_bytes": max_shard_bytes, "link": link}
    stored = plan_surgery(base, LayerPlan(plan.num_base_layers, tuple(used)), **options)
    equal = plan_surgery(base, plan)
    looping = {
        "visits": [used.index(source) for source in plan.sources],
        "seams": [seam.target_layer for seam in plan.seams],
        "adapter": adapter,
        "adapter_rank": rank,
    }
    config = _config(stored.config, equal.config) | looping
    looped = _skeleton(config, plan)
    _require_names(looped, [move.name for move in stored.moves])
    first = next(move.source for move in stored.moves if move.source.dtype in _TYPES and len(move.source.shape) == 2)
    adapters = [
        Move(f"{SEAMS}{number}.{name}", first, _maker(value, first.dtype), tuple(value.shape))
        for number, module in looped.seams.items()
        for name, value in _started(module, seed + int(number)).items()
    ]
    metadata = stored.shards[0].metadata
    linkable = base.tensors.values() if link and not metadata else ()
    shards = plan_shards([*stored.moves, *adapters], max_shard_bytes, linkable)
    surgery = replace(stored, shards=tuple(replace(shard, metadata=metadata) for shard in shards), config=config)
    num_adapter = sum(move.num_elements for move in adapters)
    return Looping(surgery, plan, adapter, num_adapter, equal.num_parameters)


def _require_plain(base: Checkpoint, plan: LayerPlan, adapter: str, rank: int) -> None:
    if adapter not in ADAPTERS:
        raise PlanError(f"no adapter is called '{adapter}'{nearest(adapter, ADAPTERS)}", allowed=", ".join(ADAPTERS))
    if not 1 <= rank <= 65536:
        raise PlanError(f"an adapter of rank {rank}", allowed="1 to 65536")
    if plan.inits:
        kinds = sorted({init.kind for init in plan.inits} - {COPY.kind})
        raise PlanError(
            f"the plan starts layers as {', '.join(kinds)}, and a looped model visits each as it is",
            next_step="leave the inits out, or use `depthup upscale`",
        )
    if not plan.duplicated:
        raise PlanError("the plan visits no layer twice", next_step="`depthup upscale` makes such a model")
    refuse_family(base.config)
    if base.config.get("quantization_config"):
        raise CheckpointError(f"{base.folder} holds quantised weights", next_step="loop the model they were made from")
    if find_stack(base.tensors, base.config).scope:
        raise CheckpointError(
            f"{base.folder} is more than a language model: its layers' config stands inside another",
            allowed="a causal language model",
        )


def _config(stored: Mapping[str, Any], equal: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of the family, from the configs of the stored layers and of as many layers as visits."""
    module = _CODE.stem
    text = {key: value for key, value in stored.items() if key != "auto_map"}
    keys = sorted(key for key in {*text, *equal} - {"auto_map"} if text.get(key) != equal.get(key))
    kept = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    return {
        "architectures": ["LoopedForCausalLM"],
        "model_type": FAMILY,
        "auto_map": {"AutoConfig": f"{module}.LoopedConfig", "AutoModelForCausalLM": f"{module}.LoopedForCausalLM"},
        **{key: stored[key] for key in kept if key in stored},
        "text_config": text,
        "visited": {key: equal.get(key) for key in keys},
    }


def _skeleton(config: Mapping[str, Any], plan: LayerPlan) -> Any:
    """The looped model on the meta device, where it takes no memory."""
    with quiet_transformers(), torch.device("meta"):
        try:
            looped: Any = LoopedForCausalLM(LoopedConfig(**config))
            ordinary = type(looped.stack)(LoopedConfig(**config).text_config)
        except Exception as error:  # code of hundreds of families: whatever it raises, the model cannot be made
            raise CheckpointError(
                f"no looped model can be made of this base: {str(error).strip().partition(chr(10))[0]}",
                next_step="`depthup upscale` copies the layers",
            ) from error
    _require_alike(looped, ordinary, plan)
    return looped


def _require_alike(looped: Any, ordinary: Any, plan: LayerPlan) -> None:
    """Each visit must be made as the layer that it visits: same window, same scales."""
    stored = looped.get_submodule(looped.layers_name)
    layers = ordinary.get_submodule(looped.layers_name)
    for visit, (source, number) in enumerate(zip(plan.sources, looped.config.visits, strict=True)):
        one, other = dict(_facts(stored[number])), dict(_facts(layers[visit]))
        if unlike := next((name for name in one if one[name] != other.get(name, one)), None):
            raise PlanError(
                f"base layer {source} would be visited as layer {visit}, and the family makes these unlike:"
                f" {unlike} is {one[unlike]} and {other.get(unlike)}",
                next_step="`depthup upscale` copies it",
            )


def _require_names(looped: Any, names: list[str]) -> None:
    """Outside of layers the weights must have the names on disk that they have in memory: a few families rename them
    on loading, and transformers does that for classes of its own alone."""
    known = {*names, *(f"{looped.base_model_prefix}.{name}" for name in names), *looped.all_tied_weights_keys}
    outside = (name for name in looped.state_dict() if not name.startswith((f"{looped.layers_name}.", SEAMS)))
    if renamed := sorted(set(outside) - known):
        raise CheckpointError(
            f"{type(looped.stack).__name__} cannot be looped: its {renamed[0]} has another name on disk",
            next_step="`depthup upscale` copies the layers",
        )


def _facts(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, part in layer.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, _PLAIN) and not key.startswith("_") and key not in ("layer_idx", "layer_id"):
                yield f"{name}.{key}".strip("."), value


def _started(adapter: nn.Module, seed: int) -> dict[str, Tensor]:
    """An adapter's weights as they start; ``adapter`` itself is on the meta device."""
    made = adapter.to_empty(device="cpu").float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made.reset()  # type: ignore[operator]
    return dict(made.state_dict())


def _maker(value: Tensor, dtype: str) -> Any:
    stored = value.to(DTYPES[_TYPES[dtype]]).contiguous()
    return lambda: [stored.flatten().view(torch.uint8).numpy().tobytes()]


def publish_loop(looping: Looping, out: Path, progress: Progress | None = None) -> None:
    """Write a planned looped model to the new folder ``out``, which appears only when it is whole.

    Raises:
        OutputError: ``out`` exists, or the disk is full.
    """
    refuse_existing(out)
    require_space(out.parent, looping.surgery.num_output_bytes)
    with publishing(out) as partial:
        write_loop(looping, partial, progress)


def write_loop(looping: Looping, folder: Path, progress: Progress | None = None) -> None:
    """Write a looped model into an existing folder, which the caller publishes."""
    surgery = looping.surgery
    write_surgery(surgery, folder, progress)
    freeze_map = FreezeMap(surgery.stack.prefix, LayerPlan(*_identity(surgery.plan)), adapters=SEAMS)
    write_text(folder / FREEZE_MAP_NAME, freeze_map.text([move.name for move in surgery.moves]))
    (folder / _CODE.name).write_bytes(_CODE.read_bytes())
    manifest = read_object(folder / MANIFEST_NAME)
    manifest |= {"made_by": "looping", "visits": looping.plan.to_json(), "adapter": looping.adapter}
    manifest["files"] |= all_facts(folder, [FREEZE_MAP_NAME, _CODE.name], digests=False)
    write_json(folder / MANIFEST_NAME, manifest)


def _identity(plan: LayerPlan) -> tuple[int, tuple[int, ...]]:
    return plan.num_target_layers, tuple(range(plan.num_target_layers))


def loop(
    base: str | os.PathLike[str], out: str | os.PathLike[str], plan: LayerPlan, *, adapter: str = "linear",
    rank: int = 16, seed: int = 0, progress: Progress | None = None,
) -> Looping:  # fmt: skip
    """Write the looped model of ``plan`` as a new checkpoint folder; see :func:`plan_loop` and :func:`publish_loop`."""
    looping = plan_loop(open_checkpoint(base), plan, adapter=adapter, rank=rank, seed=seed)
    publish_loop(looping, Path(out), progress)
    return looping


def unroll(
    looped: str | os.PathLike[str], out: str | os.PathLike[str], *, drop_adapters: bool = False,
    progress: Progress | None = None,
) -> Surgery:  # fmt: skip
    """Write the ordinary model of a looped one: each visit becomes a layer of its own, a copy (share, then untie).

    Args:
        looped: A looped model's folder.
        out: The folder to make; it must not exist.
        drop_adapters: Leave adapters out that were trained: the result then computes something else.
        progress: Called with the number of bytes done since the last call.

    Raises:
        CheckpointError: The folder holds no looped model, or its adapters change something and are not to be dropped.
        OutputError: ``out`` exists, or the disk is full.
    """
    found = open_checkpoint(looped)
    if found.config.get("model_type") != FAMILY:
        raise CheckpointError(f"{looped} is no looped model", next_step="name a folder that `depthup loop` wrote")
    if not drop_adapters and (changing := _changing(found)):
        raise CheckpointError(
            f"the adapter at visit {changing} changes the stream, and an ordinary model has no place for it",
            next_step="drop the adapters with --drop-adapters, and train the result; or unroll before training",
        )
    visits = found.config["visits"]
    tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(SEAMS)}
    base = replace(found, config=found.config["text_config"], tensors=tensors)
    surgery = plan_surgery(base, LayerPlan(max(visits) + 1, tuple(visits)))
    refuse_existing(Path(out))
    require_space(Path(out).parent, surgery.num_output_bytes)
    with publishing(Path(out)) as partial:
        write_surgery(surgery, partial, progress)
        (partial / _CODE.name).unlink(missing_ok=True)
        manifest = read_object(partial / MANIFEST_NAME)
        manifest["files"].pop(_CODE.name, None)
        write_json(partial / MANIFEST_NAME, manifest)
    return surgery


def _changing(found: Checkpoint) -> str | None:
    """The first visit whose adapter is not as it started: without a change of the stream."""
    from ..models import load_model

    for number, adapter in load_model(found.folder).seams.items():
        width = adapter.up.weight.shape[0]
        stream = torch.randn(1, 8, width, generator=torch.Generator().manual_seed(0))
        if not torch.equal(adapter(stream, stream.flip(1)), stream):
            return str(number)
    return None
