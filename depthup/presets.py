"""Published ways to stack layers, each as a function from the base's depth to a :class:`LayerPlan`, with its source.

A preset may take numbers, ``rys(45,52)``, and presets may follow one another, ``solar then solar``: the second is made
for the depth that the first one gives. docs/growth.md tells which to choose.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import chain

from .errors import PlanError, nearest
from .layers import COPY, Init, LayerPlan, require_depth

_PRESET = re.compile(r"\s*(?P<name>[^()\s]{1,40})\s*(?:\((?P<arguments>[0-9,\s-]{0,40})\))?\s*")


@dataclass(frozen=True)
class Preset:
    """A named plan.

    Attributes:
        summary: One line for ``depthup layers --help`` and the docs.
        source: Where it was published.
        build: Base depth, and the numbers of one of ``forms``, to plan; raises :class:`PlanError` for depths that it
            was not made for.
        published: The base depth that the source speaks of; None where it speaks of any.
        forms: What may stand in brackets; ``""`` when the brackets may be left out.
    """

    summary: str
    source: str
    build: Callable[..., LayerPlan]
    published: int | None = None
    forms: tuple[str, ...] = ("",)


def _runs(num_base_layers: int, *runs: tuple[int, int]) -> LayerPlan:
    return LayerPlan(num_base_layers, tuple(chain.from_iterable(range(start, stop) for start, stop in runs)))


def _only_for(depth: int, build: Callable[[int], LayerPlan]) -> Callable[[int], LayerPlan]:
    def checked(num_base_layers: int) -> LayerPlan:
        _require_depth(num_base_layers, depth)
        return build(depth)

    return checked


def _require_depth(num_base_layers: int, depth: int) -> None:
    if num_base_layers != depth:
        raise PlanError(
            f"this preset was published for a base of {depth} layers, and this base has {num_base_layers}",
            next_step="give the layers yourself with --remove, --target-layers or --layers",
        )


def _rys(num_base_layers: int, start: int | None = None, stop: int | None = None) -> LayerPlan:
    """Layers ``[start, stop)`` stand twice in a row: the notation (i, j) of RYS."""
    if start is None or stop is None:
        _require_depth(num_base_layers, 80)
        start, stop = 45, 52
    return _repeat(num_base_layers, start, stop - 1)


def _repeat(num_base_layers: int, first: int, last: int, times: int = 2) -> LayerPlan:
    _require_run(num_base_layers, first, last)
    _require_times(times)
    return _runs(num_base_layers, (0, first), *((first, last + 1),) * times, (last + 1, num_base_layers))


def _stack(num_base_layers: int, times: int = 4) -> LayerPlan:
    _require_times(times)
    return _runs(num_base_layers, *((0, num_base_layers),) * times)


def _interleave(num_base_layers: int, times: int = 2) -> LayerPlan:
    _require_times(times)
    return _runs(num_base_layers, *((layer, layer + 1) for layer in range(num_base_layers) for _ in range(times)))


def _idus(num_base_layers: int, size: int | None = None) -> LayerPlan:
    """The lower and the upper copy of depth up-scaling with m = n/4, cut into blocks, block by block in turn."""
    removed = num_base_layers // 4
    length = num_base_layers - removed
    size = max(removed, 1) if size is None else size
    if size < 1 or length % size:
        fitting = [str(number) for number in range(1, length + 1) if length % number == 0]
        raise PlanError(
            f"the copies of {length} of {num_base_layers} layers are no whole blocks of {size}",
            allowed=f"blocks of {', '.join(fitting)}",
            next_step=f"choose one of these, as in idus({fitting[len(fitting) // 2]})",
        )
    blocks = ((i + shift, i + shift + size) for i in range(0, length, size) for shift in (0, removed))
    return _runs(num_base_layers, *blocks)


def _llama_pro(num_base_layers: int, new: int | None = None) -> LayerPlan:
    """Equal groups, after each group its last layer again as an identity; groups of four by default."""
    new = num_base_layers // 4 if new is None and num_base_layers % 4 == 0 else new
    if not new or num_base_layers % new:
        fitting = [str(number) for number in range(1, num_base_layers + 1) if num_base_layers % number == 0]
        raise PlanError(
            f"{num_base_layers} layers are no {new} equal groups" if new is not None
            else f"{num_base_layers} layers are no groups of four, as published",
            allowed=f"{', '.join(fitting)} new layers",
            next_step=f"choose one of these, as in llama-pro({fitting[len(fitting) // 2]})",
        )  # fmt: skip
    ends = range(num_base_layers // new - 1, num_base_layers, num_base_layers // new)
    return _inserted(num_base_layers, ends, Init("identity"))


def _between(kind: str) -> Callable[..., LayerPlan]:
    """A layer of the kind between each two neighbours of a run, the upper half by default."""

    def build(num_base_layers: int, first: int | None = None, last: int | None = None) -> LayerPlan:
        if first is None or last is None:
            first, last = num_base_layers // 2 - 1, num_base_layers - 1
        if first == last or num_base_layers == 1:
            raise PlanError(
                f"there is nothing between layers {max(first, 0)}-{last} of {num_base_layers}",
                next_step="name a run of at least two layers, as in lesa(15-31)",
            )
        _require_run(num_base_layers, first, last)
        return _inserted(num_base_layers, range(first, last), Init(kind))

    return build


def _inserted(num_base_layers: int, after: range, init: Init) -> LayerPlan:
    """The base, with a layer that starts by ``init`` after each layer of ``after``."""
    entries = [
        entry for layer in range(num_base_layers)
        for entry in ((layer, COPY), *(((layer, init),) if layer in after else ()))
    ]  # fmt: skip
    sources, inits = zip(*entries, strict=True)
    return LayerPlan(num_base_layers, sources, inits)


def _boreas(num_base_layers: int) -> LayerPlan:
    """Between the lower and the upper half sixteen means of layers sixteen apart."""
    layers = [*range(16), *range(16, 32), *range(16, 32)]
    inits = [*[COPY] * 16, *(Init("slerp", (float(layer),)) for layer in range(16)), *[COPY] * 16]
    return LayerPlan(num_base_layers, tuple(layers), tuple(inits))


def _require_run(num_base_layers: int, first: int, last: int) -> None:
    if not 0 <= first <= last < num_base_layers:
        raise PlanError(
            f"there are no layers {first}-{last} in a base of {num_base_layers}",
            allowed=f"a rising run of 0 to {num_base_layers - 1}",
            next_step="the first layer is 0",
        )


def _require_times(times: int) -> None:
    if not 2 <= times <= 64:
        raise PlanError(f"layers that stand {times} times", allowed="2 to 64 times")


_SOLAR = "SOLAR 10.7B, arXiv:2312.15166, section 2"
PRESETS: dict[str, Preset] = {
    "solar": Preset(
        "depth up-scaling with m = n/4", _SOLAR, lambda n: LayerPlan.upscale(n, n // 4), 32
    ),
    "naive": Preset(
        "the whole base twice, m = 0: what the paper argues against", _SOLAR, lambda n: LayerPlan.upscale(n, 0), 32
    ),
    "solar-pro": Preset(
        "m = 8, by s = 2 (n - m); its block skip connections are another architecture, which no stack of layers says",
        "config of upstage/solar-pro-preview-instruct: 64 layers, from Phi-3-medium with 40",
        _only_for(40, lambda n: LayerPlan.to_depth(n, 64)), 40,
    ),
    "granite-34b": Preset(
        "m = 8", "Granite Code Models, arXiv:2405.04324", _only_for(52, lambda n: LayerPlan.upscale(n, 8)), 52
    ),
    "yi-9b": Preset(
        "layers 12-27 stand twice: the most alike at input and output",
        "Yi, arXiv:2403.04652, section 7.3", _only_for(32, lambda n: _runs(n, (0, 28), (12, 32))), 32,
    ),
    "falcon3": Preset(
        "the depths are published, the layers are not: m = 8 by s = 2 (n - m) is our choice",
        "Falcon3-10B, model card and blog: \"duplicating the redundant layers\"",
        _only_for(28, lambda n: LayerPlan.to_depth(n, 40)), 28,
    ),
    "bielik-11b": Preset(
        "m = 7, by s = 2 (n - m)", "Bielik 11B v2 technical report: layers duplicated, some of the first and last cut",
        _only_for(32, lambda n: LayerPlan.to_depth(n, 50)), 32,
    ),
    "bielik-4.5b": Preset(
        "m = 6, by s = 2 (n - m)", "Bielik v3 Small, arXiv:2505.02550",
        _only_for(36, lambda n: LayerPlan.to_depth(n, 60)), 36,
    ),
    "boreas-10.7b": Preset(
        "the halves joined by 16 layers, each the slerp of two layers 16 apart (shares of one half: ours)",
        "model card of yhavinga/Boreas-10.7B-step1", _only_for(32, _boreas), 32,
    ),
    "llama-pro": Preset(
        "NEW identity layers, one after each of equal groups (of four by default)",
        "LLaMA Pro, arXiv:2401.02415, section 3.2", _llama_pro, 32, ("", "NEW"),
    ),
    "lesa": Preset(
        "a predicted layer between each two of the run (the upper half by default)",
        "LESA, arXiv:2502.13794", _between("learned"), 32, ("", "FIRST-LAST"),
    ),
    "opt-deus": Preset(
        "a layer fused by optimal transport between each two of the run (the upper half by default)",
        "OpT-DeUS, arXiv:2508.08011", _between("transport"), 32, ("", "FIRST-LAST"),
    ),
    "avg-deus": Preset(
        "the mean of both between each two of the run (the upper half by default)",
        "baseline of OpT-DeUS, arXiv:2508.08011", _between("average"), 32, ("", "FIRST-LAST"),
    ),
    "g-stack": Preset(
        "the whole base TIMES times (4): for growth early in pretraining",
        "Stacking Your Transformers, arXiv:2405.15319", _stack, 6, ("", "TIMES"),
    ),
    "interleave": Preset(
        "each layer TIMES times in a row (2)", "orthogonal growth of MoE, arXiv:2510.08008", _interleave, None,
        ("", "TIMES"),
    ),
    "idus": Preset(
        "lower and upper copy of depth up-scaling in turn, in blocks of SIZE (n/4; 1 falls to chance)",
        "repository gauss5930/iDUS", _idus, 32, ("", "SIZE"),
    ),
    "block": Preset(
        "layers FIRST to LAST stand TIMES times (2)", "the general form of yi-9b and rys", _repeat, None,
        ("FIRST-LAST", "FIRST-LAST,TIMES"),
    ),
    "rys": Preset(
        "layers I to J - 1 stand twice: made to be used without training",
        "model card of dnhkng/RYS-XLarge: (45,52) of 80", _rys, 80, ("", "I,J"),
    ),
    "llama-3-120b": Preset(
        "seven overlapping windows of 20, untrained",
        "model card of mlabonne/Meta-Llama-3-120B-Instruct",
        _only_for(80, lambda n: _runs(n, *((i, i + 20) for i in range(0, 61, 10)))), 80,
    ),
}  # fmt: skip


def preset_names() -> list[str]:
    """Every preset in the form in which it is written, as in ``rys(I,J)``, most numbers first."""
    return [f"{name}({preset.forms[-1]})" if preset.forms[-1] else name for name, preset in PRESETS.items()]


def preset_plan(text: str, num_base_layers: int) -> LayerPlan:
    """The plan of a preset, or of several with `` then `` between, for a base of ``num_base_layers`` layers.

    Raises:
        PlanError: No preset has that name or takes these numbers, it was published for another depth, or the inits of
            two plans cannot be said as one.
    """
    first, *others = re.split(r"\s+then\s+", text)
    plan = _one_preset(first, num_base_layers)
    return reduce(lambda below, name: below.then(_one_preset(name, below.num_target_layers)), others, plan)


def _one_preset(text: str, num_base_layers: int) -> LayerPlan:
    require_depth(num_base_layers)
    match = _PRESET.fullmatch(text)
    name, given = (match["name"], match["arguments"]) if match else (text.strip()[:80], None)
    if name not in PRESETS:
        raise PlanError(f"no preset is called '{name}'{nearest(name, PRESETS)}", allowed=", ".join(preset_names()))
    preset = PRESETS[name]
    given = "".join((given or "").split())
    if re.sub(r"\d+", "#", given) not in {re.sub(r"[A-Z]+", "#", form) for form in preset.forms}:
        forms = [f"{name}({form})" if form else name for form in preset.forms]
        raise PlanError(
            f"'{text.strip()[:80]}' for a base of {num_base_layers} layers: {name} takes other numbers",
            allowed=" or ".join(forms),
            next_step=f"{name}: {preset.summary}",
        )
    return preset.build(num_base_layers, *(int(number) for number in re.findall(r"\d+", given)))


def make_plan(
    num_base_layers: int,
    *,
    remove: int | None = None,
    target_layers: int | None = None,
    layers: str | None = None,
    preset: str | None = None,
    drop: str | None = None,
    undo: Callable[[], LayerPlan] | None = None,
    mergekit: Callable[[], LayerPlan] | None = None,
) -> LayerPlan:
    """The plan of exactly one of the ways to say it: m, s, the one-line grammar, a preset, layers to drop.

    The last two, which need more than the depth, are plans to be read from a grown checkpoint or from a file.

    Args:
        num_base_layers: Depth of the base.
        remove: m.
        target_layers: s.
        layers: The one-line grammar.
        preset: A preset, as :func:`preset_plan` reads it.
        drop: Layers to leave out, in the one-line grammar.
        undo: Reads the plan that gives back the base.
        mergekit: Reads the plan of a mergekit file.

    Raises:
        PlanError: None or several are given, or the one given does not fit the base.
    """
    given = [way for way in (remove, target_layers, layers, preset, drop, undo, mergekit) if way is not None]
    if len(given) != 1:
        raise PlanError(
            f"{len(given)} plans are given",
            allowed="exactly one of --remove M, --target-layers S, --layers 0-23,8-31, --preset NAME, --drop 20-27,"
            " --mergekit FILE, --undo",
        )
    if remove is not None:
        return LayerPlan.upscale(num_base_layers, remove)
    if target_layers is not None:
        return LayerPlan.to_depth(num_base_layers, target_layers)
    if layers is not None:
        return LayerPlan.parse(layers, num_base_layers)
    if drop is not None:
        return LayerPlan.drop(num_base_layers, LayerPlan.parse(drop, num_base_layers).sources)
    if read := undo or mergekit:
        return read()
    assert preset is not None
    return preset_plan(preset, num_base_layers)
