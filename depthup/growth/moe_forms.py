"""Which mixture of experts of transformers computes what a dense family computes, and how names and config say so.

A form is exact when the class of the mixture has the family's attention, norms and rotations, and weighs the experts of
a token by numbers that add up to one: then equal experts compute what the dense feed-forward computes. The tests prove
each row against transformers. What a dense config leaves unsaid is written out, because the two classes fill it in with
different numbers (Llama's epsilon is 1e-6, Mixtral's 1e-5).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..checkpoint.quantization import CONFIG_KEYS
from ..errors import CheckpointError, shown

GATE, UP, DOWN = "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"
Windows: TypeAlias = Callable[[dict[str, Any], int], None]  # edits what a config says of sliding windows


@dataclass(frozen=True)
class Form:
    """A mixture of experts as transformers stores it.

    Attributes:
        model_type: In ``config.json``.
        architecture: The class.
        block: Where router and experts stand within a layer.
        parts: Names within ``block`` -> the dense tensors in it, joined along the rows. A name with ``{}`` stands once
            for each expert, another one holds all experts.
        beside: What a layer may hold beside the feed-forward.
        windows: Says the family's sliding windows in the mixture's config.
        router: Name of the router within ``block``.
        count_key: Field of the number of experts.
        width_key: Field of the width of an expert.
        unsaid: What the dense class takes for fields that its config leaves out, where it is not :data:`_UNSAID`.
        stated: Fields that the mixture's config must state.
        dropped: Fields of the dense config that the mixture's does not know.
        has_dense_layers: Whether single layers may stay dense.
        has_shared: Whether there is an expert for all tokens, too.
    """

    model_type: str
    architecture: str
    block: str
    parts: Mapping[str, tuple[str, ...]]
    beside: frozenset[str]
    windows: Windows
    router: str = "gate.weight"
    count_key: str = "num_experts"
    width_key: str = "intermediate_size"
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset({"pretraining_tp", "mlp_bias"})
    has_dense_layers: bool = False
    has_shared: bool = False

    @property
    def is_fused(self) -> bool:
        """Whether all experts of a layer lie in one tensor."""
        return any("{}" not in name for name in self.parts)


# -- what configs say of sliding windows ------------------------------------------------------------------------------


def _no_windows(fields: dict[str, Any], num_layers: int) -> None:
    """The dense class has none, whatever its config says; Mixtral's would follow the field."""
    for key in ("layer_types", "sliding_window"):
        fields.pop(key, None)


def _one_window(fields: dict[str, Any], num_layers: int) -> None:
    """One for all layers, or none: by ``sliding_window`` alone."""
    kind = "full_attention" if fields.get("sliding_window") is None else "sliding_attention"
    stated = fields.pop("layer_types", None)
    _require_one_kind([str(each) for each in stated] if isinstance(stated, list) and stated else [kind], kind)


def _window_of_each(fields: dict[str, Any], num_layers: int) -> None:
    """By layer; both classes read ``layer_types``, and where it is left out each makes up another one."""
    fields["layer_types"] = _qwen_kinds(fields, num_layers)


def _window_of_all(fields: dict[str, Any], num_layers: int) -> None:
    """By layer in the dense class, for all layers in the mixture's."""
    kinds = _qwen_kinds(fields, num_layers)
    _require_one_kind(kinds, kinds[0])
    for key in ("layer_types", "max_window_layers"):
        fields.pop(key, None)
    fields["use_sliding_window"] = kinds[0] == "sliding_attention"


def _qwen_kinds(fields: Mapping[str, Any], num_layers: int) -> list[str]:
    stated = fields.get("layer_types")
    if isinstance(stated, list) and stated:
        return [str(kind) for kind in stated]
    slides = bool(fields.get("use_sliding_window")) and fields.get("sliding_window") is not None
    first = fields.get("max_window_layers") if slides else num_layers
    if type(first) is not int:
        raise CheckpointError(f"config.json says max_window_layers = {shown(first)}", allowed="a whole number")
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]


def _require_one_kind(kinds: list[str], wanted: str) -> None:
    if set(kinds) != {wanted}:
        raise CheckpointError(
            f"its layers are of several kinds (layer_types has {shown(sorted(set(kinds)))}), and the mixture's class"
            " knows one kind for all",
            allowed=f"{wanted} in all layers",
        )


# -- the table --------------------------------------------------------------------------------------------------------

_PROJECTIONS = frozenset(f"self_attn.{part}_proj.weight" for part in "qkvo")
_BIASES = frozenset(f"self_attn.{part}_proj.bias" for part in "qkvo")
_HEAD_NORMS = frozenset({"self_attn.q_norm.weight", "self_attn.k_norm.weight"})
_BEFORE = frozenset({"input_layernorm.weight", "post_attention_layernorm.weight"})  # norms before each branch
_AFTER = frozenset({"post_attention_layernorm.weight", "post_feedforward_layernorm.weight"})

_MIXTRAL_PARTS = {"experts.{}.w1.weight": (GATE,), "experts.{}.w3.weight": (UP,), "experts.{}.w2.weight": (DOWN,)}
_QWEN_PARTS = {f"experts.{{}}.{name.removeprefix('mlp.')}": (name,) for name in (GATE, UP, DOWN)}
_GRANITE_PARTS = {"input_linear.weight": (GATE, UP), "output_linear.weight": (DOWN,)}

# What the dense classes of transformers take where a config says nothing; None: as many as there are heads.
_UNSAID = {
    "vocab_size": 32000, "num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "silu",
    "max_position_embeddings": 2048, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_dropout": 0.0, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_QWEN_UNSAID = {
    "vocab_size": 151936, "num_key_value_heads": 32, "max_position_embeddings": 32768, "bos_token_id": None,
    "eos_token_id": None, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_THETA = 10000.0  # of rotations that a config leaves out

_MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "architecture": "MixtralForCausalLM", "block": "block_sparse_moe",
    "parts": _MIXTRAL_PARTS, "beside": _PROJECTIONS | _BEFORE, "count_key": "num_local_experts",
}  # fmt: skip
# Dense model type -> the mixture of experts that is the same but for the feed-forward.
FORMS: Mapping[str, Form] = {
    "llama": Form(**_MIXTRAL, windows=_no_windows, dropped=frozenset({"pretraining_tp", "mlp_bias", "attention_bias"})),
    "mistral": Form(
        **_MIXTRAL, windows=_one_window, dropped=frozenset({"attention_bias", "mlp_bias"}),
        unsaid={"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "sliding_window": 4096},
    ),
    "qwen2": Form(
        "qwen2_moe", "Qwen2MoeForCausalLM", "mlp", _QWEN_PARTS, _PROJECTIONS | (_BIASES - {"self_attn.o_proj.bias"})
        | _BEFORE, _window_of_each, width_key="moe_intermediate_size", unsaid=_QWEN_UNSAID,
        stated={"norm_topk_prob": True, "qkv_bias": True}, has_dense_layers=True, has_shared=True,
    ),
    "qwen3": Form(
        "qwen3_moe", "Qwen3MoeForCausalLM", "mlp", _QWEN_PARTS, _PROJECTIONS | _BIASES | _HEAD_NORMS | _BEFORE,
        _window_of_all, width_key="moe_intermediate_size",
        unsaid={**_QWEN_UNSAID, "head_dim": 128, "attention_bias": False},
        stated={"norm_topk_prob": True}, has_dense_layers=True,
    ),
    "olmo2": Form(
        "flex_olmo", "FlexOlmoForCausalLM", "mlp", _QWEN_PARTS, _PROJECTIONS | _BIASES | _HEAD_NORMS | _AFTER,
        _no_windows, stated={"norm_topk_prob": True},
        unsaid={"vocab_size": 50304, "rms_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": None,
                "eos_token_id": 50279, "attention_bias": False},
    ),
    "granite": Form(
        "granitemoe", "GraniteMoeForCausalLM", "block_sparse_moe", _GRANITE_PARTS, _PROJECTIONS | _BIASES | _BEFORE,
        _no_windows, router="router.layer.weight", count_key="num_local_experts", unsaid={"attention_bias": False},
    ),
}  # fmt: skip


def find_form(config: Mapping[str, Any]) -> Form:
    """The mixture of experts for a dense model.

    Raises:
        CheckpointError: There is none that computes the same: another family, no causal language model, quantised
            weights, or code that comes with the checkpoint.
    """
    family = str(config.get("model_type"))
    if any(isinstance(config.get(key), dict) for key in CONFIG_KEYS):
        raise CheckpointError(
            "the base is quantised: a new router has no quantised weights, and experts are to be trained",
            next_step="upcycle the model in full width, and quantise the result",
        )
    if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")):
        raise CheckpointError(f"the base ({shown(family)}) is a mixture of experts already", allowed="a dense model")
    if family not in FORMS:
        raise CheckpointError(
            f"transformers has no mixture of experts that computes what a {shown(family)} computes",
            allowed=f"causal language models of {', '.join(FORMS)}",
            next_step="grow it in depth: `depthup upscale` takes every family",
        )
    names = config.get("architectures")
    if isinstance(names, list) and names and not str(names[0]).endswith("ForCausalLM"):
        raise CheckpointError(f"the base is a {shown(names[0])}", allowed="a causal language model, with its head")
    code = config.get("auto_map")
    if isinstance(code, Mapping) and any(str(key).startswith("AutoModel") for key in code):
        raise CheckpointError(
            "the model's code comes with the base and may compute otherwise than transformers' own",
            next_step="if it is a plain model of its family, take auto_map out of config.json",
        )
    return FORMS[family]


def mixture_config(
    config: Mapping[str, Any], form: Form, num_layers: int, hidden: int, inner: int, fields: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config of the mixture, and what was changed, one line each.

    Args:
        config: The dense model's raw ``config.json``.
        form: From :func:`find_form`.
        num_layers: Depth.
        hidden: Width of the residual stream.
        inner: Width of the dense feed-forward.
        fields: Experts, their width and the like, as the form spells them.

    Raises:
        CheckpointError: Layers are of kinds that the mixture's class cannot tell apart.
    """
    base = copy.deepcopy(dict(config))
    result = {**_UNSAID, **form.unsaid, "hidden_size": hidden, "num_hidden_layers": num_layers, **base}
    result["intermediate_size"] = inner
    if result["num_key_value_heads"] is None:
        result["num_key_value_heads"] = result["num_attention_heads"]
    rotations = result.get("rope_parameters")
    if isinstance(rotations, dict):
        rotations.setdefault("rope_theta", result.get("rope_theta", _THETA))
    else:
        result.pop("rope_parameters", None)
        result.setdefault("rope_theta", _THETA)
    form.windows(result, num_layers)
    result |= {"architectures": [form.architecture], "model_type": form.model_type, **form.stated, **fields}
    for key in (*form.dropped, "_name_or_path", "auto_map"):
        result.pop(key, None)
    return result, tuple(_changes(config, result, form))


def _changes(config: Mapping[str, Any], result: Mapping[str, Any], form: Form) -> list[str]:
    kept = {"_name_or_path", "architectures"}
    unlike = [key for key in result if key in config and result[key] != config[key] and key not in kept]
    new = [key for key in result if key not in config and key not in kept]
    silent = {*_UNSAID, *form.unsaid, "rope_theta", "sliding_window", "layer_types"}
    written_out = [key for key in new if key in silent and result[key] is not None]
    gone = [key for key in config if key not in result and key not in kept]
    lines = [f"{key}: {shown(config[key])} -> {shown(result[key])}" for key in unlike]
    lines += [f"{key}: {shown(result[key])}" for key in new if key not in silent]
    if written_out:
        lines.append(f"written out, as the dense class has them: {', '.join(written_out)}")
    return [*lines, *([f"left out: {', '.join(gone)}"] if gone else [])]
