"""What a depth costs: parameters, bytes and KV cache from a config and a plan, without torch and without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint.names import Stack, depths, find_stack
from .checkpoint.reader import Checkpoint
from .errors import CheckpointError, PlanError, nearest, shown
from .files import human_bytes
from .layers import LayerPlan, require_depth

_MISTRAL = {"model_type": "mistral", "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
SHAPES: dict[str, dict[str, Any]] = {
    "mistral-7b": {**_MISTRAL, "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 32000},
    "llama-3-8b": {**_MISTRAL, "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 128256},
    "smollm2-135m": {
        "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
}  # fmt: skip
_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "n_embd", "n_head", "n_inner", "n_positions",
)  # fmt: skip
_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class BaseCosts:
    """What is known of a base.

    Attributes:
        num_layers: n.
        layer_parameters: Parameters of each layer; None when only the depth is known.
        outside_parameters: Parameters of embeddings, final norm and head.
        bytes_per_parameter: 2 for bfloat16.
        kv_bytes_per_layer: Bytes of keys and values for each token and layer in bfloat16; None when not known.
    """

    num_layers: int
    layer_parameters: tuple[int, ...] | None = None
    outside_parameters: int = 0
    bytes_per_parameter: float = 2
    kv_bytes_per_layer: int | None = None

    def describe(self, plan: LayerPlan) -> str:
        """Base and target side by side, as text."""
        if self.layer_parameters is None:
            ratio = plan.num_target_layers / self.num_layers
            return f"layer parameters x {ratio:.3g} (name a checkpoint or a --shape for counts)"
        before = sum(self.layer_parameters) + self.outside_parameters
        after = plan.count(self.layer_parameters, self.outside_parameters)
        size = self.bytes_per_parameter
        lines = [
            f"parameters  {before:,} -> {after:,}",
            f"bytes       {human_bytes(before * size)} -> {human_bytes(after * size)} ({size:g} a parameter)",
        ]
        if self.kv_bytes_per_layer:
            each = self.kv_bytes_per_layer
            lines.append(
                f"KV cache    {human_bytes(each * self.num_layers)} -> {human_bytes(each * plan.num_target_layers)}"
                " a token in bfloat16"
            )
        return "\n".join(lines)


def base_costs(
    checkpoint: str | Checkpoint | None = None, num_layers: int | None = None, shape: str | None = None
) -> BaseCosts:
    """What is known of a base, from exactly one of a checkpoint, a depth, and a published shape.

    A checkpoint (one that is open, or a name for :func:`~depthup.checkpoint.remote.open_base`) needs no weights, and of
    one on a server none are fetched: ``config.json`` alone is enough for the families of :data:`FAMILIES`.

    Raises:
        PlanError: None or several are given, or no shape has that name.
        CheckpointError: The folder is not whole, or its config alone does not tell the parameters.
    """
    if sum(given is not None for given in (checkpoint, num_layers, shape)) != 1:
        raise PlanError("name the base once", allowed="one of CHECKPOINT, --base-layers N, --shape NAME")
    if num_layers is not None:
        if num_layers < 1:
            raise PlanError(f"--base-layers {shown(num_layers)}", allowed="at least 1")
        require_depth(num_layers)
        return BaseCosts(num_layers)
    if shape is not None:
        if shape not in SHAPES:
            raise PlanError(f"no shape is called '{shape}'{nearest(shape, SHAPES)}", allowed=", ".join(SHAPES))
        return costs_from_config(SHAPES[shape])
    if not isinstance(checkpoint, Checkpoint):
        from .checkpoint.remote import open_base  # slow to import, and `depthup --help` imports this module

        assert checkpoint is not None
        checkpoint = open_base(checkpoint, only_look=True)
    return _costs_from_weights(checkpoint) if checkpoint.tensors else costs_from_config(checkpoint.config)


def _costs_from_weights(checkpoint: Checkpoint) -> BaseCosts:
    stack = find_stack(checkpoint.tensors, checkpoint.config)
    layers = [0] * stack.num_layers
    for tensor in checkpoint.tensors.values():
        place = stack.split(tensor.name)
        if place is not None and place[0] < stack.num_layers:  # behind them stand blocks for multi-token prediction
            layers[place[0]] += tensor.num_elements
    size = checkpoint.num_bytes / max(checkpoint.num_parameters, 1)
    outside = checkpoint.num_parameters - sum(layers)
    return BaseCosts(stack.num_layers, tuple(layers), outside, size, _kv_bytes(checkpoint.config, stack))


def _kv_bytes(config: Mapping[str, Any], stack: Stack) -> int | None:
    scope: Any = config
    for key in stack.scope:
        scope = scope[key]
    heads = scope.get("num_attention_heads") or scope.get("n_head")
    hidden = scope.get("hidden_size") or scope.get("n_embd")
    if not _is_size(heads) or not _is_size(hidden):
        return None
    keys, width = scope.get("num_key_value_heads") or heads, scope.get("head_dim") or hidden // heads
    return 2 * 2 * keys * width if _is_size(keys) and _is_size(width) else None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 32


def costs_from_config(config: Mapping[str, Any]) -> BaseCosts:
    """Costs from a raw config alone, for the families of :data:`FAMILIES`; only the depth is known of others.

    Raises:
        PlanError: The config states no depth, or several.
        CheckpointError: A size in it is no number that a model can have.
    """
    stated = {depth for _, _, depth in depths(config)}
    if len(stated) != 1:
        raise PlanError(f"the config states {len(stated)} depths: {shown(sorted(stated))}", allowed="one depth")
    num_layers = stated.pop()
    require_depth(num_layers)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return BaseCosts(num_layers)
    for key in _SIZES:
        if config.get(key) is not None and not _is_size(config[key]):
            raise CheckpointError(
                f"the config says {key} = {shown(config[key])}", allowed="a whole number above 0, below 2**32"
            )
    try:
        layer, outside = family({key: value for key, value in config.items() if value is not None})
    except KeyError:  # a config that leaves fields, or writes null, to its class's defaults
        return BaseCosts(num_layers)
    size = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    stack = Stack("", num_layers, (), ())
    return BaseCosts(num_layers, (layer,) * num_layers, outside, size, _kv_bytes(config, stack))


def _gated(config: Mapping[str, Any], *, norms: int = 2, head_norms: bool = False, qkv_bias: bool = False,
           tied: bool = False, head_dim: int | None = None) -> tuple[int, int]:  # fmt: skip
    """(parameters of a layer, parameters outside) of the Llama line: grouped attention and a gated MLP."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or head_dim or hidden // heads
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    attention = 2 * hidden * queries + 2 * hidden * keys
    if qkv_bias or config.get("attention_bias"):
        attention += queries + 2 * keys + (0 if qkv_bias else hidden)
    mlp = 3 * hidden * config["intermediate_size"]
    if config.get("mlp_bias"):
        mlp += 2 * config["intermediate_size"] + hidden
    layer = attention + mlp + norms * hidden + (2 * width if head_norms else 0)
    embeddings = config["vocab_size"] * hidden
    is_tied = config.get("tie_word_embeddings")
    return layer, embeddings * (1 if (tied if is_tied is None else is_tied) else 2) + hidden


def _gpt2(config: Mapping[str, Any]) -> tuple[int, int]:
    hidden = config["n_embd"]
    inner = config.get("n_inner") or 4 * hidden
    layer = 4 * hidden * hidden + 4 * hidden + 2 * hidden * inner + inner + hidden + 4 * hidden
    return layer, (config["vocab_size"] + config["n_positions"]) * hidden + 2 * hidden


# Parameters of one layer and of the rest, from a config, by model type.
FAMILIES = {
    "llama": _gated,
    "mistral": _gated,
    "qwen2": lambda config: _gated(config, qkv_bias=True),
    "qwen3": lambda config: _gated(config, head_norms=True, head_dim=128),
    "gemma2": lambda config: _gated(config, norms=4, tied=True, head_dim=256),
    "gemma3_text": lambda config: _gated(config, norms=4, head_norms=True, tied=True, head_dim=256),
    "gpt2": _gpt2,
}
