"""A looped model: a causal language model of any family whose layers are run several times, in the order of a plan.

Each layer's weights are stored once, under the names that they have in the family's own model; each visit of a layer
has its own place in the cache. Where the order jumps (a seam) a small adapter stands, which changes nothing at first:
the model then computes what the stack with copied layers does. This file needs torch and transformers alone: it lies
beside the weights, so that ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` loads them.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin

_NEEDED = {"position_ids", "logits_to_keep"}  # what the family's model must take
_NUMBERS = {"layer_idx", "layer_id"}  # what a layer's parts call its place in the cache


class LoopedConfig(PreTrainedConfig):
    """What a looped model is made of.

    Attributes:
        text_config: The family's config; in memory that of all visits, on disk that of the stored layers.
        visits: The stored layer of each visit, in order: ``[0, 1, 2, 1, 2, 3]``.
        seams: The visits before which an adapter stands: ``[3]``.
        visited: Fields of ``text_config`` that are otherwise for the visits than for the stored layers: the depth,
            lists with a value a layer.
        adapter: What stands at each seam: a key of :data:`ADAPTERS`.
        adapter_rank: Width inside the adapter.
    """

    model_type = "looped"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    def __init__(self, text_config: Any = None, visits: Any = (), seams: Any = (), visited: Any = None,
                 adapter: str = "none", adapter_rank: int = 16, **options: Any) -> None:  # fmt: skip
        stored = dict(text_config or {"model_type": "llama"})
        self.visits, self.seams, self.visited = list(visits), list(seams), dict(visited or {})
        self.stored = {key: stored.get(key) for key in self.visited}
        self.text_config = AutoConfig.for_model(**_said({**stored, **self.visited}))
        self.adapter, self.adapter_rank = adapter, adapter_rank
        options.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**options)

    def to_dict(self) -> dict[str, Any]:
        """The fields as they stand in ``config.json``."""
        fields: dict[str, Any] = super().to_dict()
        fields["text_config"] = _said({**self.text_config.to_diff_dict(), **fields.pop("stored")})
        return fields

    def stored_config(self) -> PreTrainedConfig:
        """The family's config of the stored layers alone."""
        found: PreTrainedConfig = AutoConfig.for_model(**self.to_dict()["text_config"])
        found._attn_implementation = self.text_config._attn_implementation
        return found


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


class LowRank(nn.Module):
    """``h + B A N(h)``: matrices of low rank, N the RMS norm without weights; B is zero at first."""

    def __init__(self, width: int, rank: int, num_streams: int = 1) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(num_streams * width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def reset(self) -> None:
        """Start anew: the adapter changes nothing."""
        nn.init.normal_(self.down.weight, std=self.down.in_features**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, stream: Tensor, entered: Tensor) -> Tensor:
        """The stream for the upper layer, from that of the lower one and from what entered the upper one at its first
        visit; each [rows, tokens, width]."""
        return stream + self.up(self.down(_normed(stream)))


class Bridge(LowRank):
    """``h + g B A [N(p), N(h)]``: what re-enters may look at what entered before, p; the gate g is zero at first.

    After the re-entry bridge of arXiv:2608.11233, with matrices of low rank.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(width, rank, num_streams=2)
        self.gate = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        super().reset()
        nn.init.normal_(self.up.weight, std=self.up.in_features**-0.5)
        nn.init.zeros_(self.gate)

    def forward(self, stream: Tensor, entered: Tensor) -> Tensor:
        return stream + self.gate * self.up(self.down(torch.cat([_normed(entered), _normed(stream)], dim=-1)))


ADAPTERS: dict[str, type[LowRank | Bridge] | None] = {"none": None, "linear": LowRank, "bridge": Bridge}


def _normed(stream: Tensor) -> Tensor:
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(stream.dtype)


class Visit(nn.Module):
    """One visit of a layer: the adapter first, if it stands at a seam, then the layer with the visit's cache."""

    def __init__(self, owner: LoopedForCausalLM, layer: nn.Module, number: int) -> None:
        super().__init__()
        visits = owner.config.visits
        self.number, self.first, self.run = number, visits.index(visits[number]), (layer,)
        if number == self.first:  # a part once: transformers would record what it puts out once for each time
            self.layer = layer
        self.adapter = dict(owner.seams.items()).get(str(number))
        self.trace = owner.trace
        self.parts = [(part, name) for part in layer.modules() for name in _NUMBERS & vars(part).keys()]
        if not self.parts:
            raise ValueError(f"{type(layer).__name__} cannot be looped: it does not know its place in the cache")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.run[0], name)  # what families ask their layers for

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        entered = self.trace.get(self.first, hidden_states)
        self.trace[self.number] = hidden_states
        if self.adapter is not None:
            hidden_states = self.adapter(hidden_states, entered)
        for part, name in self.parts:
            setattr(part, name, self.number)
        return self.run[0](hidden_states, *args, **options)


class LoopedForCausalLM(PreTrainedModel, GenerationMixin):
    """The family's own model, whose parts are this model's parts, with its layers run in the order of the visits."""

    config_class = LoopedConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__(config)
        stored, self.trace = config.stored_config(), dict[int, Tensor]()
        stack = AutoModelForCausalLM.from_config(stored)
        if getattr(stack, "_is_stateful", False) or _NEEDED - set(inspect.signature(stack.forward).parameters):
            raise ValueError(f"{type(stack).__name__} cannot be looped: it keeps more than keys and values, or does not"
                             f" take {', '.join(sorted(_NEEDED))}")  # fmt: skip
        object.__setattr__(self, "stack", stack)  # no part itself: names of weights stay as the family has them
        self._modules, self._parameters, self._buffers = stack._modules, stack._parameters, stack._buffers
        self.base_model_prefix, self._tied_weights_keys = stack.base_model_prefix, stack._tied_weights_keys
        self.generation_config = copy.deepcopy(stack.generation_config)
        self.layers_name, layers = _layers_of(stack, stored.num_hidden_layers)
        # The layers are made. From here on their config speaks of the visits: masks and caches follow it.
        vars(stored).update({k: v for k, v in vars(config.text_config).items() if not k.endswith("_internal")})
        config.text_config, config._attn_implementation_internal = stored, stored._attn_implementation
        form, width = ADAPTERS[config.adapter], stack.get_input_embeddings().weight.shape[1]
        adapters = {str(seam): form(width, config.adapter_rank) for seam in config.seams} if form else {}
        self.seams, visits = nn.ModuleDict(adapters), enumerate(config.visits)
        self.visits = (nn.ModuleList(Visit(self, layers[layer], number) for number, layer in visits),)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        module.reset() if isinstance(module, LowRank) else self.stack._init_weights(module)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Any = None, position_ids: Tensor | None = None,
        past_key_values: Any = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None,
        use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, **options: Any,
    ) -> Any:  # fmt: skip
        """As the family's model, which runs over the visits in place of the stored layers."""
        holder, _, name = self.layers_name.rpartition(".")
        parts = self.get_submodule(holder)._modules
        layers, parts[name] = parts[name], self.visits[0]
        self.trace.clear()
        try:
            found = self.stack(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, labels=labels,
                past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
                logits_to_keep=logits_to_keep, **options,
            )  # fmt: skip
            if list(self.trace) != list(range(len(self.visits[0]))):
                raise RuntimeError(f"{type(self.stack).__name__} does not run its layers one after another")
            return found
        finally:
            parts[name] = layers
            self.trace.clear()

    def train(self, mode: bool = True) -> LoopedForCausalLM:
        self.stack.training = mode
        return super().train(mode)

    def get_input_embeddings(self) -> Any:
        return self.stack.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.stack.get_output_embeddings()

    def set_attn_implementation(self, attn_implementation: Any, **options: Any) -> None:
        self.stack.set_attn_implementation(attn_implementation, **options)
        self.config._attn_implementation_internal = self.stack.config._attn_implementation


def _layers_of(stack: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    """The layers, and their name."""
    kinds = set(getattr(stack, "_no_split_modules", None) or ())
    found = [
        (name, module)
        for name, module in stack.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and type(module[0]).__name__ in kinds
    ]
    if len(found) != 1:
        raise ValueError(f"{type(stack).__name__} cannot be looped: it has {len(found)} lists of {depth} layers")
    return found[0]


LoopedConfig.register_for_auto_class()
LoopedForCausalLM.register_for_auto_class("AutoModelForCausalLM")
