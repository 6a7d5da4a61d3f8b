"""LayerPlan: which base layer each target layer starts from, and how. Everything about surgery is read off it.

Depth up-scaling (Kim et al. 2023, arXiv:2312.15166, section 2) copies a base of n layers, drops the last m of one
copy and the first m of the other, and joins them: s = 2 (n - m) layers with one seam. A plan says that, and any other
stack of whole layers, as one ordered list of base layers. Where a layer is not to start as a plain copy, an
:class:`Init` says how it starts instead. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

from .composition import composed_inits, originals
from .drawing import draw
from .errors import PlanError, nearest, shown
from .grammar import read_runs

MAX_LAYERS = 10_000  # far above any model: a wrong number must not fill the memory
# How a target layer may start, and what the numbers in brackets mean. growth/inits.py computes each of them.
INITS = {
    "copy": "the bytes of the base layer",
    "identity": "a copy whose residual outputs are zero: at first the layer changes nothing",
    "attenuated": "a copy with residual outputs times a factor (1/sqrt(k) for a base layer that stands k times)",
    "norm-matched": "a copy with residual outputs times the measured growth of the stream's RMS at its new place",
    "average": "weights between the base layer and the one after it, or (layer, share of that layer = 0.5)",
    "slerp": "the same on the arc between the two (layer, share of that layer = 0.5)",
    "random": "normal noise of the width of the model's own start (seed = 0)",
    "learned": "weights that a small network predicts from the neighbours (LESA)",
    "transport": "the mean with the next layer, neurons matched by optimal transport, residual outputs zero (OpT-DeUS)",
}


@dataclass(frozen=True, slots=True)
class Init:
    """How a target layer starts: a key of :data:`INITS`, and the numbers that stand in brackets behind it.

    Raises:
        PlanError: No such kind, or numbers that it does not take.
    """

    kind: str = "copy"
    numbers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in INITS:
            raise PlanError(f"no layer can start as '{self.kind}'{nearest(self.kind, INITS)}", allowed=", ".join(INITS))
        most = {"average": 2, "slerp": 2, "attenuated": 1, "norm-matched": 1, "random": 1}.get(self.kind, 0)
        if len(self.numbers) > most or not all(isfinite(number) for number in self.numbers):
            raise PlanError(
                f"'{self}' has {len(self.numbers)} numbers",
                allowed=f"at most {most} for {self.kind}: {INITS[self.kind]}",
            )

    def __str__(self) -> str:
        return self.kind + (f"({','.join(map(_shortest, self.numbers))})" if self.numbers else "")


def _shortest(number: float) -> str:
    """The shortest text that reads back as the same number."""
    short = f"{number:.12g}"
    return short if float(short) == number else repr(number)


COPY = Init()


def require_depth(num_layers: int) -> None:
    """Raise :class:`PlanError` unless ``num_layers`` is a depth that a model can have."""
    if type(num_layers) is not int or not 1 <= num_layers <= MAX_LAYERS:
        raise PlanError(f"a depth of {shown(num_layers)} layers", allowed=f"a whole number from 1 to {MAX_LAYERS:,}")


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of consecutive base layers ``[start, stop)`` that begins at target layer ``target_start``."""

    start: int
    stop: int
    target_start: int

    @property
    def num_layers(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Seam:
    """Two neighbours in the target that are no neighbours in the base.

    ``target_layer`` is the upper one's index; ``below`` and ``above`` are their base layers.
    """

    target_layer: int
    below: int
    above: int

    @property
    def layer_distance(self) -> int:
        """Jump in base-layer index, 1 inside a slice (paper section 2); s - n - 1 for depth up-scaling."""
        return abs(self.above - self.below)


@dataclass(frozen=True)
class LayerPlan:
    """The base layer (``0 <= source < num_base_layers``) from which each target layer starts, in order.

    Attributes:
        num_base_layers: Depth of the base, n.
        sources: One base layer for each target layer.
        inits: How each target layer starts; left out (or all plain copies, which is the same) it is empty.

    Raises:
        PlanError: The plan is empty, or names a layer that the base does not have.
    """

    num_base_layers: int
    sources: tuple[int, ...]
    inits: tuple[Init, ...] = ()

    def __post_init__(self) -> None:
        require_depth(self.num_base_layers)
        if not self.sources:
            raise PlanError("the plan is empty", allowed="at least one layer, as in 0-23,8-31")
        require_depth(len(self.sources))
        wrong = [source for source in self.sources if not 0 <= source < self.num_base_layers]
        if wrong:
            raise PlanError(
                f"the plan names base layer {wrong[0]}, but the base has {self.num_base_layers} layers",
                allowed=f"0 to {self.num_base_layers - 1} (the first layer is 0)",
            )
        if self.inits and len(self.inits) != len(self.sources):
            raise PlanError(f"{len(self.inits)} inits for {len(self.sources)} layers", allowed="one for each layer")
        if self.inits and all(init == COPY for init in self.inits):
            object.__setattr__(self, "inits", ())  # one way to say "all copied", so that equal plans compare equal
        for source, init in zip(self.sources, self.inits, strict=False):
            _require_partner(source, init, self.num_base_layers)

    # -- ways to make a plan ---------------------------------------------------------------------------------------

    @classmethod
    def upscale(cls, num_base_layers: int, num_removed: int) -> LayerPlan:
        """Depth up-scaling: layers ``[0, n - m)`` then ``[m, n)``, for ``0 <= m < n / 2``.

        Raises:
            PlanError: m is negative, or so large that depth would not grow.
        """
        require_depth(num_base_layers)
        n, m = num_base_layers, num_removed
        if not 0 <= 2 * m < n:
            raise PlanError(
                f"removing m = {shown(m)} layers from each copy of a base of n = {n} layers gives"
                f" {shown(2 * (n - m))} layers, so depth would not grow"
                if m > 0
                else f"cannot remove {shown(m)} layers from a base of {n} layers",
                allowed=f"0 <= m < n/2, here 0 to {max((n - 1) // 2, 0)}",
                next_step="n/4 is the published choice (SOLAR: 8 of 32)",
            )
        return cls(n, (*range(n - m), *range(m, n)))

    @classmethod
    def to_depth(cls, num_base_layers: int, num_target_layers: int) -> LayerPlan:
        """Depth up-scaling to ``s`` layers: m = n - s / 2 (the paper chose s = 48 first, and m followed).

        Raises:
            PlanError: s is odd, not above n, or above 2 n.
        """
        require_depth(num_base_layers)
        n, s = num_base_layers, num_target_layers
        if s % 2 or not n < s <= 2 * n:
            low = n + 2 - n % 2
            raise PlanError(
                f"a base of {n} layers cannot be up-scaled to {shown(s)} layers",
                allowed=f"an even number from {low} to {2 * n}, since s = 2 (n - m)",
                next_step="name the layers yourself for any other depth, as in --layers 0-23,8-31",
            )
        return cls.upscale(n, n - s // 2)

    @classmethod
    def drop(cls, num_base_layers: int, layers: Iterable[int]) -> LayerPlan:
        """The base without some of its layers, in order: ``drop(32, range(20, 28))``.

        Raises:
            PlanError: No layer is named, one is not there, or none would be left.
        """
        dropped = set(cls(num_base_layers, tuple(layers)).sources)
        return cls(num_base_layers, tuple(layer for layer in range(num_base_layers) if layer not in dropped))

    @classmethod
    def parse(cls, text: str, num_base_layers: int) -> LayerPlan:
        """Read the one-line grammar: comma-separated layers and inclusive runs, each with an init if it has one.

        ``0-23,8-31`` is SOLAR; ``0-9,9:identity,10-12:average(13,0.25)`` shows the rest.

        Raises:
            PlanError: A part is not of that form, or names a layer or an init that is not there.
        """
        require_depth(num_base_layers)
        sources: list[int] = []
        inits: list[Init] = []
        for run in read_runs(text, num_base_layers):
            length = run.last + 1 - run.first
            require_depth(len(sources) + length)
            sources.extend(range(run.first, run.last + 1))
            inits.extend([Init(run.kind or "copy", run.numbers)] * length)
        return cls(num_base_layers, tuple(sources), tuple(inits))

    @classmethod
    def from_json(cls, value: Any) -> LayerPlan:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: The value is of another form.
        """
        match value:
            case {"num_base_layers": int(n), "layers": str(text), **rest} if not rest:
                return cls.parse(text, n)
        raise PlanError(
            f"this is no layer plan: {shown(value)}", allowed='{"num_base_layers": 32, "layers": "0-23,8-31"}'
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back to an equal plan."""
        return {"num_base_layers": self.num_base_layers, "layers": self.text}

    # -- plans from plans ------------------------------------------------------------------------------------------

    def then(self, other: LayerPlan) -> LayerPlan:
        """This plan, and ``other`` on its target, as one plan on the base: the same bytes as surgery twice.

        Raises:
            PlanError: ``other`` is for another depth, or starts a layer in a way that cannot be said of the base.
        """
        if other.num_base_layers != self.num_target_layers:
            raise PlanError(
                f"a plan for {other.num_base_layers} layers cannot follow one that makes {self.num_target_layers}",
                next_step=f"make the second plan for {self.num_target_layers} layers",
            )
        sources = tuple(self.sources[layer] for layer in other.sources)
        return LayerPlan(self.num_base_layers, sources, composed_inits(self, other))

    def undo(self) -> LayerPlan:
        """The plan on the target that gives back the base: the first plain copy of each base layer.

        Raises:
            PlanError: A base layer has no plain copy in the target.
        """
        return LayerPlan(self.num_target_layers, originals(self))

    # -- what a plan says ------------------------------------------------------------------------------------------

    @property
    def num_target_layers(self) -> int:
        return len(self.sources)

    @property
    def text(self) -> str:
        """The plan in the one-line grammar, each slice as one run if all of it starts in one way."""
        runs: list[tuple[int, int, Init]] = []
        for target, source in enumerate(self.sources):
            init = self.init(target)
            if runs and runs[-1][1:] == (source - 1, init):
                runs[-1] = (runs[-1][0], source, init)
            else:
                runs.append((source, source, init))
        return ",".join(
            (f"{first}-{last}" if last > first else f"{first}") + (f":{init}" if init != COPY else "")
            for first, last, init in runs
        )

    def init(self, target: int) -> Init:
        """How a target layer starts."""
        return self.inits[target] if self.inits else COPY

    @property
    def new(self) -> tuple[int, ...]:
        """Target layers that are no original: those that start otherwise, and further copies of a base layer.

        The first plain copy of a base layer counts as the original one. Trainers freeze the others' complement.
        """
        seen: set[int] = set()
        new = []
        for target, source in enumerate(self.sources):
            if self.init(target) != COPY or source in seen:
                new.append(target)
            else:
                seen.add(source)
        return tuple(new)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The plan as runs of consecutive base layers, in target order."""
        slices: list[Slice] = []
        for target, source in enumerate(self.sources):
            if slices and slices[-1].stop == source:
                slices[-1] = Slice(slices[-1].start, source + 1, slices[-1].target_start)
            else:
                slices.append(Slice(source, source + 1, target))
        return tuple(slices)

    @property
    def seams(self) -> tuple[Seam, ...]:
        """Where one slice meets the next."""
        pairs = zip(self.slices, self.slices[1:], strict=False)
        return tuple(Seam(upper.target_start, lower.stop - 1, upper.start) for lower, upper in pairs)

    @property
    def duplicated(self) -> tuple[int, ...]:
        """Base layers that stand more than once in the target; n - 2m of them for depth up-scaling."""
        counts = Counter(self.sources)
        return tuple(layer for layer in range(self.num_base_layers) if counts[layer] > 1)

    @property
    def unused(self) -> tuple[int, ...]:
        """Base layers that do not stand in the target."""
        return tuple(sorted(set(range(self.num_base_layers)) - set(self.sources)))

    def targets_of(self, source: int) -> tuple[int, ...]:
        """The target layers that start from base layer ``source``."""
        return self._targets.get(source, ())

    @cached_property
    def _targets(self) -> dict[int, tuple[int, ...]]:
        targets: dict[int, list[int]] = {}
        for target, source in enumerate(self.sources):
            targets.setdefault(source, []).append(target)
        return {source: tuple(found) for source, found in targets.items()}

    def reindex(self, per_layer: Iterable[Any]) -> list[Any]:
        """Carry a list with one value for each base layer over to the target layers."""
        values = list(per_layer)
        if len(values) != self.num_base_layers:
            raise PlanError(f"{len(values)} values for {self.num_base_layers} base layers", allowed="one value a layer")
        return [values[source] for source in self.sources]

    def count(self, per_layer: Iterable[int], outside: int = 0) -> int:
        """Parameters (or bytes) of the target, from those of each base layer and of everything outside the layers."""
        return sum(self.reindex(per_layer)) + outside

    def render(self, width: int = 64) -> str:
        """The plan as text: a head line, then each slice as a bar under the base it was cut from, seams between."""
        return draw(self, width)


def _require_partner(source: int, init: Init, num_base_layers: int) -> None:
    """Inits that mix two layers need the second, which is the next one unless it is named."""
    if init.kind not in ("average", "slerp", "learned", "transport"):
        return
    partner = init.numbers[0] if init.numbers else source + 1
    if partner != int(partner) or not 0 <= partner < num_base_layers:
        raise PlanError(
            f"'{source}:{init}' needs base layer {partner:g}, but the base has {num_base_layers} layers",
            allowed=f"a second layer from 0 to {num_base_layers - 1}",
            next_step=f"name it, as in {source}:average({max(source - 1, 0)})"
            if init.kind in ("average", "slerp")
            else f"put the new layer between {source - 1} and {source}, as in {source - 1}:{init.kind}",
        )
    if not all(0 <= share <= 1 for share in init.numbers[1:]):
        raise PlanError(f"'{source}:{init}' takes {init.numbers[1]:g} of a layer", allowed="a share from 0 to 1")
