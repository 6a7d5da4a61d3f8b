"""A plan as the YAML of mergekit (github.com/arcee-ai/mergekit, its documentation and behaviour at 0.1.5).

Its method ``passthrough`` stacks slices with half-open ``layer_range``; a parameter ``scale``, filtered by parts of
tensor names, zeroes or weakens residual outputs. What it cannot say is refused. The way back: ``mergekit_import.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint.names import Stack, find_stack
from ..checkpoint.reader import INDEX_NAME, SINGLE_NAME, Tensor, open_checkpoint, read_config
from ..errors import CheckpointError, PlanError
from ..layers import COPY, Init, LayerPlan
from .residual import find_residual

_LLAMA = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class TensorNames:
    """Names that mergekit's filters are held against.

    Attributes:
        stack: The layers on disk.
        layer: The tensors of a layer, of all layers together where they are unlike, by what stands behind its number.
        outside: All other names.
        config: The raw config, as far as it is known.
    """

    stack: Stack
    layer: Mapping[str, Tensor]
    outside: tuple[str, ...]
    config: Mapping[str, Any]

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The residual outputs among the names in a layer.

        Raises:
            CheckpointError: They are not known for this architecture.
        """
        residual = find_residual(self.config, self.stack, self.layer)
        if residual.gains or any(residual.outputs.values()):
            raise CheckpointError(
                f"a layer of {self.config.get('model_type')} is not silent where its weights are zero, and mergekit can"
                " only scale weights",
                next_step="write the checkpoint with `depthup upscale` instead",
            )
        return frozenset(residual.outputs)


def tensor_names(num_layers: int, folder: Path | None = None, stack: str | None = None) -> TensorNames:
    """The names of a checkpoint with weights; Llama's where only a depth, or a config of its kind, is known.

    Raises:
        CheckpointError: The folder has no weights, and the names of this architecture are not known without.
    """
    if folder is None:
        return _llama_names(num_layers, {"model_type": "llama"})
    if (folder / SINGLE_NAME).exists() or (folder / INDEX_NAME).exists():
        checkpoint = open_checkpoint(folder)
        found = find_stack(checkpoint.tensors, checkpoint.config, stack)
        places = {name: found.split(name) for name in checkpoint.tensors}
        inside = {name: place[1] for name, place in places.items() if place and place[0] < num_layers}
        layer = {suffix: checkpoint.tensors[name] for name, suffix in inside.items()}
        return TensorNames(found, layer, tuple(name for name in places if name not in inside), checkpoint.config)
    config = read_config(folder)
    if config.get("model_type") not in _LLAMA_LIKE:
        raise CheckpointError(
            f"{folder} has no weights, so the names of the tensors of a {config.get('model_type')} are not known",
            next_step="name a folder with weights: their headers have the names",
        )
    return _llama_names(num_layers, config)


def _llama_names(num_layers: int, config: Mapping[str, Any]) -> TensorNames:
    stack = Stack("model.layers", num_layers, (), ("num_hidden_layers",))
    layer = {f"{module}.weight": Tensor(f"{module}.weight", "BF16", (), "", 0, 0) for module in _LLAMA}
    return TensorNames(stack, layer, ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), config)


def to_mergekit(plan: LayerPlan, model: str, names: TensorNames) -> str:
    """The plan as a passthrough YAML of ``model``, which ``mergekit-yaml FILE OUT`` reads.

    Raises:
        PlanError: A layer starts in a way that mergekit cannot say.
    """
    slices: list[dict[str, Any]] = []
    last: tuple[int, Init] | None = None
    for target, source in enumerate(plan.sources):
        init = plan.init(target)
        if last == (source - 1, init):
            slices[-1]["sources"][0]["layer_range"][1] = source + 1
        else:
            entry: dict[str, Any] = {"model": model, "layer_range": [source, source + 1]}
            if init != COPY:
                entry["parameters"] = {"scale": _scale(plan, target, names)}
            slices.append({"sources": [entry]})
        last = (source, init)
    text: str = yaml.dump(
        {"slices": slices, "merge_method": "passthrough"}, Dumper=_Dumper, sort_keys=False, default_flow_style=None
    )
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _scale(plan: LayerPlan, target: int, names: TensorNames) -> list[dict[str, Any]]:
    source, init = plan.sources[target], plan.init(target)
    if init.kind not in ("identity", "attenuated"):
        raise PlanError(
            f"target layer {target} starts as '{source}:{init}', which mergekit cannot say"
            + (": a slice of it takes a model only once" if init.kind in ("average", "slerp") else ""),
            allowed="copies, identity and attenuated layers",
            next_step="write the target with `depthup upscale`",
        )
    value = 0.0
    if init.kind == "attenuated":
        value = init.numbers[0] if init.numbers else len(plan.targets_of(source)) ** -0.5
    filters = _filters(names)
    if any(".experts." in suffix for suffix in names.outputs):
        filters.append("experts.down_proj")  # mergekit 0.1.5 knows experts by their fused names in memory
    return [*({"filter": part, "value": value} for part in dict.fromkeys(filters)), {"value": 1.0}]


def _filters(names: TensorNames) -> list[str]:
    """Parts of names that are in the residual outputs and in no other name: ``o_proj``, else ``self_attn.o_proj``."""
    others = [*(suffix for suffix in names.layer if suffix not in names.outputs), *names.outside]
    filters = []
    for suffix in sorted(names.outputs):
        parts = suffix.split(".")
        tails = (".".join(parts[-length:-1]) for length in range(2, len(parts) + 1))
        filters.append(next((tail for tail in tails if not any(tail in other for other in others)), suffix))
    return list(dict.fromkeys(filters))
