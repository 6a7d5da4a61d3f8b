"""The shape of a model as far as computing with it goes, from its config and, where there are some, tensor headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint.names import find_stack
from ..checkpoint.reader import Checkpoint
from ..costs import FAMILIES, SHAPES, costs_from_config
from ..errors import PlanError, shown
from ..layers import LayerPlan


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer.

    Attributes:
        parameters: All of them.
        active: Those that one token meets: of routed experts only the share that it is routed to.
        matrices: The part of ``active`` that stands in matrices, so that a token is multiplied by it.
        queries: Query heads times the width of a head (the mean of a key's and a value's, where these differ).
        keys: Key heads times the width of a head.
        inner: Width inside the MLP, all experts of one token together.
        routes: Experts that a token is routed to; 0 in a dense layer.
        window: Tokens that a token sees; None for all before it.
    """

    parameters: int
    active: int
    matrices: int
    queries: int
    keys: int
    inner: int
    routes: int = 0
    window: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """A causal language model.

    Attributes:
        layers: In order.
        hidden: Width of the residual stream.
        vocab: Rows of the head.
        outside: Parameters outside the layers: embeddings, final norm, and the head if it is not tied.
        bytes_per_parameter: On disk.
        gated: Whether the MLP has a gate matrix (three matrices instead of two).
        norms: Norms of a layer on the residual stream's width.
        head_norms: Whether queries and keys have norms of their own.
    """

    layers: tuple[LayerShape, ...]
    hidden: int
    vocab: int
    outside: int
    bytes_per_parameter: float = 2
    gated: bool = True
    norms: int = 2
    head_norms: bool = False

    @property
    def num_parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers) + self.outside

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token meets (the A in Qwen3-30B-A3B); a row of the embeddings counts as all of them."""
        return sum(layer.active for layer in self.layers) + self.outside

    @property
    def head(self) -> int:
        """Parameters of the head as a matrix, tied or not."""
        return self.vocab * self.hidden

    @property
    def num_matrix_parameters(self) -> int:
        """Parameters that a token is multiplied by: matrices of the layers and the head once, embeddings not."""
        return sum(layer.matrices for layer in self.layers) + self.head

    @property
    def num_bytes(self) -> float:
        """Bytes of the weights on disk."""
        return self.num_parameters * self.bytes_per_parameter

    def grown(self, plan: LayerPlan) -> ModelShape:
        """The shape after surgery."""
        return replace(self, layers=tuple(plan.reindex(self.layers)))

    def upcycled(self, num_experts: int, experts_per_token: int, granularity: int = 1, every: int = 1) -> ModelShape:
        """The shape after sparse upcycling: in each ``every``-th layer the MLP stands ``num_experts`` times.

        Args:
            num_experts: Copies of the MLP.
            experts_per_token: Copies that a token goes to.
            granularity: Parts of a copy, each an expert with a row of the router.
            every: Each so many-th layer.
        """

        def sparse(layer: LayerShape) -> LayerShape:
            mlp, router = 3 * self.hidden * layer.inner, self.hidden * num_experts * granularity
            more = router + (experts_per_token - 1) * mlp
            return replace(
                layer,
                parameters=layer.parameters + router + (num_experts - 1) * mlp,
                active=layer.active + more,
                matrices=layer.matrices + more,
                inner=experts_per_token * layer.inner,
                routes=experts_per_token * granularity,
            )

        return replace(self, layers=tuple(
            layer if (index + 1) % every else sparse(layer) for index, layer in enumerate(self.layers)
        ))  # fmt: skip

    def looped(self, visits: Sequence[int], adapters: int = 0) -> ModelShape:
        """The shape of a looped model: a layer that is visited again is computed again, and has no new parameters.

        Args:
            visits: The layer of each visit.
            adapters: Parameters of the adapters at seams.
        """
        layers = (
            replace(self.layers[layer], parameters=0, active=0) if layer in visits[:visit] else self.layers[layer]
            for visit, layer in enumerate(visits)
        )
        return replace(self, layers=tuple(layers), outside=self.outside + adapters)


_ROUTED = re.compile(r"experts\.|block_sparse_moe\.(?:input|output)_linear\.")  # the latter are GraniteMoE's


def shape_of(base: Checkpoint) -> ModelShape:
    """The shape of a checkpoint: of any family from its headers, or from ``config.json`` alone.

    Raises:
        PlanError: There is no config of a known family and no headers to count.
        CheckpointError: The headers do not agree with the config.
    """
    if not base.tensors:
        return shape_from_config(base.config)
    stack = find_stack(base.tensors, base.config)
    fields = stack.fields(base.config)
    num_experts, num_routes = _experts(fields)
    counts = [[0, 0, 0, 0] for _ in range(stack.num_layers)]
    for tensor in base.tensors.values():
        place = stack.split(tensor.name)
        if place is None or place[0] >= stack.num_layers:  # behind the layers stand blocks of multi-token prediction
            continue
        count, suffix = counts[place[0]], place[1]
        is_routed = num_experts > 0 and _ROUTED.search(f"{suffix}.") is not None and "shared" not in suffix
        active = tensor.num_elements * num_routes // num_experts if is_routed else tensor.num_elements
        count[0] += tensor.num_elements
        count[1] += active
        # Biases of stacked experts have two dimensions, and kernels of a convolution over time are no matrices.
        is_matrix = len(tensor.shape) >= 2 and "bias" not in suffix and "conv" not in suffix
        count[2] += active if is_matrix else 0
        count[3] += is_routed
    layers = tuple(
        replace(layer, parameters=count[0], active=count[1], matrices=count[2])
        for layer, count in zip(_layers(fields, [bool(count[3]) for count in counts]), counts, strict=True)
    )
    outside = base.num_parameters - sum(layer.parameters for layer in layers)
    shape = _model(fields, layers, outside, base.num_bytes / max(base.num_parameters, 1))
    return shape.looped(base.config["visits"]) if base.config.get("model_type") == "looped" else shape


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape from a raw config alone.

    Raises:
        PlanError: The family is not known, or the config leaves sizes to its class's defaults.
        CheckpointError: A size in it is no number that a model can have.
    """
    family = str(config.get("model_type"))
    routed = _MIXTURES.get(family)
    if routed is None and family not in FAMILIES:
        raise PlanError(
            f"the sizes of the model type '{shown(family)}' cannot be told from a config alone",
            allowed=f"{', '.join([*FAMILIES, *_MIXTURES])}; any family where the weights' headers can be read",
            next_step="name a folder with weights, or a model on the hub",
        )
    # Of mixtures everything but the experts counts as in a Qwen 3 or Mistral whose MLP has no width.
    dense = {**config, **({"model_type": routed} if routed else {})}
    costs = costs_from_config(dense)
    try:
        sparse = _sparse_layers(config, costs.num_layers) if routed else [False] * costs.num_layers
        if costs.layer_parameters is None:
            raise KeyError
        shapes = _layers(config, sparse)
        layers = tuple(
            _counted(config, layer, total, is_sparse)
            for layer, total, is_sparse in zip(shapes, costs.layer_parameters, sparse, strict=True)
        )
    except KeyError:
        raise PlanError(
            f"the config of this {family} leaves sizes to the defaults of its class",
            next_step="write them into config.json, or name a checkpoint with weights",
        ) from None
    return _model(config, layers, costs.outside_parameters, costs.bytes_per_parameter)


def published_shape(name: str) -> ModelShape:
    """A shape of :data:`~depthup.costs.SHAPES` by its name."""
    return shape_from_config(SHAPES[name])


# The family that a mixture's attention, norms and embeddings are counted as.
_MIXTURES = {"mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}


def _counted(config: Mapping[str, Any], layer: LayerShape, total: int, is_sparse: bool) -> LayerShape:
    """The layer with its counts; ``total`` is that of a dense layer of ``intermediate_size``."""
    hidden, inner = _first(config, "hidden_size", "n_embd"), _size(config, "intermediate_size") or layer.inner
    mlp = (3 if _is_gated(config) else 2) * hidden * inner
    attention = 2 * hidden * (layer.queries + layer.keys)
    if not is_sparse:
        return replace(layer, parameters=total, active=total, matrices=attention + mlp)
    num_experts, num_routes = _experts(config)
    expert = 3 * hidden * _first(config, "moe_intermediate_size", "intermediate_size")
    shared = _size(config, "shared_expert_intermediate_size") or 0
    beside = hidden * num_experts + (
        3 * hidden * shared + hidden if shared else 0
    )  # router, shared expert and its gate
    rest = total - mlp + beside
    return replace(
        layer,
        parameters=rest + num_experts * expert,
        active=rest + num_routes * expert,
        matrices=attention + beside + num_routes * expert,
    )


def _layers(fields: Mapping[str, Any], sparse: Iterable[bool]) -> list[LayerShape]:
    """Widths of each layer, without counts."""
    hidden = _first(fields, "hidden_size", "n_embd", "d_model")
    heads = _first(fields, "num_attention_heads", "n_head", "num_heads", "n_heads")
    default = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}
    width = _size(fields, "head_dim") or default.get(str(fields.get("model_type"))) or hidden // heads
    queries, keys = heads * width, (_size(fields, "num_key_value_heads", "num_kv_heads") or heads) * width
    if value := _size(fields, "v_head_dim"):  # latent attention (DeepSeek): keys are wider than values
        wide = _first(fields, "qk_nope_head_dim") + _first(fields, "qk_rope_head_dim")
        queries = keys = heads * (wide + value) // 2
    inner = _size(fields, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    _, num_routes = _experts(fields)
    routed = num_routes * (_size(fields, "moe_intermediate_size") or inner)
    routed += _size(fields, "shared_expert_intermediate_size") or 0
    sparse = list(sparse)
    return [
        LayerShape(0, 0, 0, queries, keys, routed if is_sparse else inner, num_routes if is_sparse else 0, window)
        for is_sparse, window in zip(sparse, _windows(fields, len(sparse)), strict=True)
    ]


def _model(fields: Mapping[str, Any], layers: tuple[LayerShape, ...], outside: int, size: float) -> ModelShape:
    family = str(fields.get("model_type"))
    return ModelShape(
        layers, _first(fields, "hidden_size", "n_embd", "d_model"), _size(fields, "vocab_size") or 0, outside, size,
        gated=_is_gated(fields),
        norms=4 if family in ("gemma2", "gemma3_text") else 2,
        head_norms=family in ("qwen3", "qwen3_moe", "gemma3_text", "olmo2", "olmo3"),
    )  # fmt: skip


def _is_gated(fields: Mapping[str, Any]) -> bool:
    return str(fields.get("model_type")) not in _UNGATED


_UNGATED = frozenset(
    {"gpt2", "gptj", "gpt_neo", "gpt_neox", "gpt_bigcode", "phi", "bloom", "opt", "falcon", "starcoder2"}
)


def _experts(fields: Mapping[str, Any]) -> tuple[int, int]:
    """(routed experts of a layer, experts that a token is routed to); (0, 0) for dense models."""
    num_experts = _size(fields, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts") or 0
    num_routes = _size(fields, "num_experts_per_tok", "moe_k", "num_experts_per_token", "moe_topk") or 2
    return num_experts, min(num_routes, num_experts)


def _sparse_layers(config: Mapping[str, Any], num_layers: int) -> list[bool]:
    dense, step = config.get("mlp_only_layers"), _size(config, "decoder_sparse_step") or 1
    dense = dense if isinstance(dense, list) else []
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)]


def _windows(fields: Mapping[str, Any], num_layers: int) -> list[int | None]:
    """Each layer's window of attention, as far as the config says one."""
    window, family = _size(fields, "sliding_window"), str(fields.get("model_type"))
    if fields.get("use_sliding_window") is False:
        window = None
    kinds = fields.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == num_layers:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    if family in ("mistral", "mixtral", "starcoder2", "phi3"):
        return [window] * num_layers
    if family == "gemma2":  # every second layer, beginning with the first
        return [None if layer % 2 else window for layer in range(num_layers)]
    if family == "gemma3_text":  # five of six
        every = _size(fields, "sliding_window_pattern") or 6
        return [None if (layer + 1) % every == 0 else window for layer in range(num_layers)]
    return [None] * num_layers


def _size(fields: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these fields that holds a number which a size can be; what else a file may say is passed over."""
    return next((fields[key] for key in keys if type(fields.get(key)) is int and 0 < fields[key] < 1 << 32), None)


def _first(fields: Mapping[str, Any], *keys: str) -> int:
    found = _size(fields, *keys)
    if found is None:
        raise PlanError(f"the config states no {', '.join(keys)}", next_step="write it into config.json")
    return found
