"""AdamW over groups of parameters, in three precisions, skipped on the device when the guard says so.

- ``float32``: weights and moments in float32, torch's fused AdamW (Loshchilov & Hutter, arXiv:1711.05101).
- ``mixed``: the model holds bfloat16 copies to compute with; float32 masters and moments stand in the optimizer. Over
  several ranks FSDP2 does the same with float32 shards.
- ``bfloat16``: bfloat16 weights alone, each update rounded stochastically (Zamirai et al. 2020, arXiv:2010.06192), so
  that what is smaller than half a unit in the last place is not lost; moments in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from ..errors import TrainingError

_PORTION = 1 << 25  # parameters that are updated together: 128 MB in float32

Precision = Literal["float32", "mixed", "bfloat16"]


@dataclass(frozen=True)
class GroupRate:
    """How a group of parameters is trained.

    Attributes:
        factor: On the learning rate; 0 freezes the group, and no gradient is computed for it.
        from_step: First step in which it is trained; before it, its rate is 0.
    """

    factor: float = 1.0
    from_step: int = 0


def make_optimizer(
    model: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    precision: Precision = "float32",
    groups: Mapping[str, Sequence[str]] | None = None,
    rates: Mapping[str, GroupRate] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a model; frozen groups lose ``requires_grad``, and weights get the type of the precision.

    Only parameters of two dimensions and more decay. Each group of the optimizer carries the
    numbers of its :class:`GroupRate`.

    Args:
        model: Its parameters in float32 (sharded or not).
        weight_decay: Decoupled decay.
        betas: AdamW's.
        precision: See the module; ``mixed`` is for one device, sharded models compute in bfloat16 by themselves.
        groups: Names of parameters, by group (those of a surgery: ``new``, ``seam``, ``original``, ``outside``).
        rates: How each group is trained; all in full where nothing is said.

    Raises:
        TrainingError: A group is not known, or no parameter is left to train.
    """
    place = {name: group for group, names in (groups or {}).items() for name in names}
    rates = dict(rates or {})
    if unknown := sorted(rates.keys() - {*(groups or {})}):
        raise TrainingError(
            f"no group of parameters is called '{unknown[0]}'",
            allowed=", ".join(groups or {}) or "none: the model's folder has no freeze_map.json",
        )
    collected: dict[tuple[GroupRate, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = rates.get(place.get(name, ""), GroupRate())
        if rate.factor == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            collected.setdefault((rate, parameter.dim() >= 2), []).append(parameter)
    if not collected:
        raise TrainingError("every parameter is frozen", next_step="give one group a rate above 0")
    options = [
        {
            "params": params,
            "weight_decay": weight_decay if decays else 0.0,
            "rate_factor": rate.factor,
            "from_step": rate.from_step,
        }
        for (rate, decays), params in sorted(collected.items(), key=lambda item: (not item[0][1], repr(item[0][0])))
    ]
    if precision == "float32":
        return torch.optim.AdamW(options, lr=0.0, betas=betas, fused=True)
    return LowPrecisionAdamW(options, model, betas, masters=precision == "mixed")


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, step: int) -> None:
    """Give each group its rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * (group["rate_factor"] if step >= group["from_step"] else 0.0)


class LowPrecisionAdamW(torch.optim.Optimizer):
    """AdamW for bfloat16 weights, with float32 masters or with stochastic rounding. Casts the model when it is made.

    Args:
        groups: As torch's optimizers take them, of float32 parameters.
        model: Its floating-point parameters become bfloat16; buffers stay.
        betas: AdamW's.
        masters: Keep float32 masters; without them updates are rounded stochastically.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], model: nn.Module, betas: tuple[float, float], masters: bool):
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": 1e-8, "weight_decay": 0.0})
        self.found_inf: Tensor | None = None
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            state = self.state[parameter]
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter, dtype=torch.float32) for _ in "12")
            if masters:
                state["master"] = parameter.detach().float().clone()
        narrow(model)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but moments and masters stay float32: torch would cast them to the type of the weights."""
        super().load_state_dict(state_dict)
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for name, parameter in zip(names, parameters, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                self.state[parameter][key] = value.to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group, params in self._portions():
            states = [self.state[parameter] for parameter in params]
            masters = [state.get("master", parameter) for state, parameter in zip(states, params, strict=True)]
            weights = [master.float() for master in masters]  # the master itself, or a float32 copy of the weight
            adamw(
                weights,
                [parameter.grad.float() for parameter in params if parameter.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=self.found_inf,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for parameter, weight, state in zip(params, weights, states, strict=True):
                if "master" in state:
                    parameter.copy_(weight)
                else:
                    _local(parameter).copy_(round_stochastically(_local(weight)))

    def _portions(self) -> Iterator[tuple[dict[str, Any], list[nn.Parameter]]]:
        """Parameters with gradients, some at a time: what an update casts to float32 must not be a whole model."""
        for group in self.param_groups:
            portion: list[nn.Parameter] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                portion.append(parameter)
                if sum(each.numel() for each in portion) >= _PORTION:
                    yield group, portion
                    portion = []
            if portion:
                yield group, portion


def narrow(model: nn.Module) -> None:
    """Cast a model's parameters to bfloat16; buffers stay. Before it is sharded: shards cannot be cast in place."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.bfloat16:
            parameter.data = parameter.data.bfloat16()


def _local(values: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor; any other tensor itself."""
    return values.to_local() if isinstance(values, DTensor) else values


def round_stochastically(values: Tensor) -> Tensor:
    """float32 to bfloat16, up or down with probabilities that make the rounded value right on average.

    A bfloat16 is the upper half of a float32: noise of 16 bits is added below it, then the lower half is cut off. What
    is a bfloat16 already stays itself; infinities and NaN too.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device)
    rounded = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()


def take_masters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a model its float32 masters back, to be exported or trained on; nothing happens where there are none."""
    for parameter in model.parameters():
        state = optimizer.state.get(parameter, {})
        if "master" in state:
            parameter.data = state["master"]
