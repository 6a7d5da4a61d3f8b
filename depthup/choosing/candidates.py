"""Plans that reach a wanted size, each of a family: what is tried before anything is recommended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..costs import BaseCosts
from ..errors import PlanError, shown
from ..layers import COPY, Init, LayerPlan

Family = Literal["stack", "spread", "identity", "identity, new layers only", "random", "blend"]
MOST_FACTOR = 2  # growing by more at once is the less reliable way: arXiv:2605.13405
_CHEAP_LAYER = 10_000_000  # parameters of a layer up to which weights are predicted or transported in seconds
_NUM_BLOCKS = 4


@dataclass(frozen=True)
class Candidate:
    """One way to grow.

    Attributes:
        name: For tables and folders.
        family: Of its kind; the best of each family is trained.
        plan: The plan.
        why: Where it was published, or what it stands for.
    """

    name: str
    family: Family
    plan: LayerPlan
    why: str

    @property
    def trains_new_only(self) -> bool:
        return self.family == "identity, new layers only"


def wanted_depth(
    costs: BaseCosts, *, params: float | None = None, target_layers: int | None = None, factor: float | None = None
) -> int:
    """The depth of the target, from exactly one of the ways to say its size.

    Args:
        costs: Of the base.
        params: Parameters; the depth that comes nearest is taken.
        target_layers: The depth itself.
        factor: Depth as a multiple of the base's.

    Raises:
        PlanError: None or several are given, or depth would not grow, or by more than twice.
    """
    given = [value for value in (params, target_layers, factor) if value is not None]
    if len(given) != 1:
        raise PlanError("say the wanted size once", allowed="one of --params, --target-layers, --factor")
    n = costs.num_layers
    depth = round(n * factor) if factor is not None else target_layers
    if params is not None:
        if costs.layer_parameters is None:
            raise PlanError("parameters of this base cannot be counted", next_step="use --target-layers")
        each = sum(costs.layer_parameters) / n
        depth = round((params - costs.outside_parameters) / each)
    assert depth is not None
    if not n < depth <= MOST_FACTOR * n:
        base = "" if costs.layer_parameters is None else f", {sum(costs.layer_parameters) + costs.outside_parameters:,}"
        raise PlanError(
            f"a target of {shown(depth)} layers for a base of {n}{base and base + ' parameters'}",
            allowed=f"{n + 1} to {MOST_FACTOR * n} layers",
            next_step="more than twice the depth is best grown in two steps, with training between"
            if depth > n else "name a larger size",
        )  # fmt: skip
    return depth


def candidates(num_base_layers: int, num_target_layers: int, layer_parameters: float = 0) -> tuple[Candidate, ...]:
    """Every plan that is tried, the paper's first; plans that are the same stand once.

    Args:
        num_base_layers: n.
        num_target_layers: s, above n and at most 2 n.
        layer_parameters: Of one layer; of large layers no weights are predicted.
    """
    made: dict[tuple[LayerPlan, bool], Candidate] = {}
    for one in _all(num_base_layers, num_target_layers, layer_parameters):
        assert one.plan.num_target_layers == num_target_layers, one
        made.setdefault((one.plan, one.trains_new_only), one)
    return tuple(made.values())


def _all(n: int, s: int, layer_parameters: float) -> Iterator[Candidate]:
    new = s - n
    middle = (n + new + 1) // 2  # where the lower copy ends: as many layers are left out above it as below the upper
    solar = _one_seam(n, new, middle)
    yield Candidate("solar", "stack", solar, "SOLAR, arXiv:2312.15166: one seam, the middle twice")
    yield Candidate("solar-attenuated", "stack", _attenuated(solar), "residual outputs of doubled layers times 0.71")
    for start in _evenly(1, n - new - 1, _NUM_BLOCKS):
        name = f"block({start}-{start + new - 1})" if new > 1 else f"block({start})"
        yield Candidate(
            name, "stack", _one_seam(n, new, start + new), "Yi, arXiv:2403.04652, and RYS: another block twice"
        )
    if new >= 4:
        yield Candidate("two-blocks", "stack", _two_blocks(n, new), "iDUS: two blocks, each twice")
    places = _evenly(0, n - 1, new)
    spread = _inserted(n, places, COPY)
    yield Candidate("spread", "spread", spread, "arXiv:2510.08008: each copy beside its source")
    yield Candidate("spread-attenuated", "spread", _attenuated(spread), "the same, residual outputs times 0.71")
    identity = _inserted(n, places, Init("identity"))
    yield Candidate("identity", "identity", identity, "LLaMA Pro, arXiv:2401.02415, all weights trained")
    yield Candidate("identity-new", "identity, new layers only", identity, "LLaMA Pro: only new layers trained")
    random = tuple(
        Init("random", (0.0,)) if target >= middle and target < middle + new else COPY for target in range(s)
    )
    yield Candidate(
        "solar-random", "random", LayerPlan(n, solar.sources, random), "the second run of the middle at random"
    )
    top = range(n - 1 - new, n - 1)
    if top.start >= 0:
        yield Candidate("average", "blend", _inserted(n, top, Init("average")), "means of neighbours, near the top")
        if layer_parameters <= _CHEAP_LAYER:
            yield Candidate("lesa", "blend", _inserted(n, top, Init("learned")), "LESA, arXiv:2502.13794: predicted")


def _one_seam(n: int, new: int, end: int) -> LayerPlan:
    """The lower copy ends before layer ``end``, the upper begins ``new`` layers below."""
    return LayerPlan(n, (*range(end), *range(end - new, n)))


def _two_blocks(n: int, new: int) -> LayerPlan:
    sizes = (new // 2, new - new // 2)
    rest = n - new
    first = rest // 3
    second = first + sizes[0] + rest // 3
    ends = (first + sizes[0], second + sizes[1])
    return LayerPlan(n, (*range(ends[0]), *range(first, ends[1]), *range(second, n)))


def _inserted(n: int, after: Iterable[int], init: Init) -> LayerPlan:
    """The base, with a layer of its own kind behind each layer of ``after``."""
    wanted = set(after)
    entries = [entry for i in range(n) for entry in ((i, COPY), *(((i, init),) if i in wanted else ()))]
    sources, inits = zip(*entries, strict=True)
    return LayerPlan(n, sources, inits)


def _attenuated(plan: LayerPlan) -> LayerPlan:
    """The plan with the residual outputs of every layer that stands twice divided by the root of 2."""
    twice = set(plan.duplicated)
    inits = tuple(Init("attenuated") if source in twice else COPY for source in plan.sources)
    return LayerPlan(plan.num_base_layers, plan.sources, inits)


def _evenly(first: int, last: int, count: int) -> list[int]:
    """At most ``count`` whole numbers from ``first`` to ``last``, spread evenly; none where last is below first."""
    if last < first:
        return []
    count = min(count, last - first + 1)
    return [first + ((2 * i + 1) * (last - first + 1)) // (2 * count) for i in range(count)]
