"""Published ways to stack layers, each as a function from the base's depth to a :class:`LayerPlan`, with its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from .blending import blend as blend_seams
from .errors import PlanError, nearest
from .layers import LayerPlan, require_depth


@dataclass(frozen=True)
class Preset:
    """A named plan.

    Attributes:
        summary: One line for ``depthup layers --help`` and the docs.
        source: Where it was published.
        build: Base depth to plan; raises :class:`PlanError` for depths that it was not made for.
    """

    summary: str
    source: str
    build: Callable[[int], LayerPlan]


def _quarter(num_base_layers: int) -> LayerPlan:
    return LayerPlan.upscale(num_base_layers, num_base_layers // 4)


def _runs(num_base_layers: int, *runs: tuple[int, int]) -> LayerPlan:
    return LayerPlan(num_base_layers, tuple(chain.from_iterable(range(start, stop) for start, stop in runs)))


def _only_for(depth: int, build: Callable[[int], LayerPlan]) -> Callable[[int], LayerPlan]:
    def checked(num_base_layers: int) -> LayerPlan:
        if num_base_layers != depth:
            raise PlanError(
                f"this preset was published for a base of {depth} layers, and this base has {num_base_layers}",
                next_step="give the layers yourself with --remove, --target-layers or --layers",
            )
        return build(depth)

    return checked


def _blocks(num_base_layers: int, size: int) -> LayerPlan:
    """The middle half in blocks of ``size``, each block standing twice in a row (iDUS); the outer quarters once."""
    quarter = num_base_layers // 4
    if (num_base_layers - 2 * quarter) % size:
        raise PlanError(
            f"the middle {num_base_layers - 2 * quarter} of {num_base_layers} layers are no whole blocks of {size}",
            next_step="give the layers yourself with --layers",
        )
    middle: Iterable[tuple[int, int]] = ((i, i + size) for i in range(quarter, num_base_layers - quarter, size))
    doubled = chain.from_iterable((run, run) for run in middle)
    return _runs(num_base_layers, (0, quarter), *doubled, (num_base_layers - quarter, num_base_layers))


PRESETS: dict[str, Preset] = {
    "solar": Preset("depth up-scaling with m = n/4 (32 -> 48)", "SOLAR 10.7B, arXiv:2312.15166, section 2", _quarter),
    "naive": Preset(
        "the whole base twice, m = 0: the case that SOLAR's section 2 argues against",
        "SOLAR 10.7B, arXiv:2312.15166, section 2",
        lambda n: LayerPlan.upscale(n, 0),
    ),
    "granite-34b": Preset(
        "52 -> 88, m = 8",
        "Granite Code Models, arXiv:2405.04324",
        _only_for(52, lambda n: LayerPlan.upscale(n, 8)),
    ),
    "yi-9b": Preset(
        "32 -> 48, layers 12-27 stand twice",
        "Yi, arXiv:2403.04652, section 7.3",
        _only_for(32, lambda n: _runs(n, (0, 28), (12, 32))),
    ),
    "bielik-11b": Preset(
        "32 -> 50, m = 7", "Bielik 11B v2 technical report", _only_for(32, lambda n: LayerPlan.upscale(n, 7))
    ),
    "llama-3-120b": Preset(
        "80 -> 140, seven overlapping windows of 20",
        "model card of mlabonne/Meta-Llama-3-120B-Instruct",
        _only_for(80, lambda n: _runs(n, *((i, i + 20) for i in range(0, 61, 10)))),
    ),
    "rys-xl": Preset(
        "80 -> 87, layers 45-51 stand twice: made to be used without training",
        "model card of dnhkng/RYS-XLarge",
        _only_for(80, lambda n: _runs(n, (0, 52), (45, 80))),
    ),
    "g-stack": Preset(
        "the whole base four times: for growth early in pretraining",
        "Stacking Your Transformers, arXiv:2405.15319",
        lambda n: _runs(n, *((0, n),) * 4),
    ),
    "idus": Preset(
        "the middle half in blocks of n/4, each twice in a row (32 -> 48, blocks of 8)",
        "repository gauss5930/iDUS",
        lambda n: _blocks(n, max(n // 4, 1)),
    ),
}


def preset_plan(name: str, num_base_layers: int) -> LayerPlan:
    """The plan of a preset for a base of ``num_base_layers`` layers.

    Raises:
        PlanError: No preset has that name, or it was published for another depth.
    """
    if name not in PRESETS:
        raise PlanError(f"no preset is called '{name}'{nearest(name, PRESETS)}", allowed=", ".join(PRESETS))
    require_depth(num_base_layers)
    return PRESETS[name].build(num_base_layers)


def make_plan(
    num_base_layers: int,
    *,
    remove: int | None = None,
    target_layers: int | None = None,
    layers: str | None = None,
    preset: str | None = None,
    blend: int | None = None,
) -> LayerPlan:
    """The plan of exactly one of the four ways to say it: m, s, the one-line grammar, a preset.

    Args:
        num_base_layers: Depth of the base.
        remove: m.
        target_layers: s.
        layers: The one-line grammar.
        preset: A key of :data:`PRESETS`.
        blend: Width over which the seams of any of these are blended.

    Raises:
        PlanError: None or several of the four are given, or the one given does not fit the base, or the width it.
    """
    if blend is not None:
        plain = make_plan(num_base_layers, remove=remove, target_layers=target_layers, layers=layers, preset=preset)
        return blend_seams(plain, blend)
    given = [way for way in (remove, target_layers, layers, preset) if way is not None]
    if len(given) != 1:
        raise PlanError(
            f"{len(given)} plans are given",
            allowed="exactly one of --remove M, --target-layers S, --layers 0-23,8-31, --preset NAME",
        )
    if remove is not None:
        return LayerPlan.upscale(num_base_layers, remove)
    if target_layers is not None:
        return LayerPlan.to_depth(num_base_layers, target_layers)
    if layers is not None:
        return LayerPlan.parse(layers, num_base_layers)
    assert preset is not None
    return preset_plan(preset, num_base_layers)
