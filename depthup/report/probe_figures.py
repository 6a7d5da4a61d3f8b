"""The figures of a probe, from what ``probe.json`` holds. docs/probe.md tells how to read each.

``python -m depthup.report.probe_figures probe.json FOLDER`` draws them again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from .depth_chart import Line, depth_chart_svg
from .heat_map import HeatMap, Pair, heat_map_svg
from .text import format_difference

_STRONGEST = 3.0  # nats above the base at which a map's colour is full
_STEPS = (0.0, 0.1, 0.5, 1.0, 2.0, 3.0)


def probe_figures(found: Mapping[str, Any], *, width: int = 760, standalone: bool = False) -> dict[str, str]:
    """Every figure of a probe by its name; those without data are left out.

    Args:
        found: The content of ``probe.json``.
        width: Of the coordinate system.
        standalone: Make each a file of its own.
    """
    makers: dict[str, Callable[..., str]] = {
        "upscale": _upscale,
        "without-layer": _without_layer,
        "influence": _influence,
        "rms": _rms,
        "lens": _lens,
        "angular-distance": _angular,
        "cka": _cka,
        "drop": _map("drop"),
        "duplicate": _map("duplicate"),
        "trained-without-layer": _trained_without,
        "trained-change": _trained_change,
        "trained-rms": _trained_rms,
    }
    drawn = {name: make(found, width=width, standalone=standalone) for name, make in makers.items()}
    return {name: figure for name, figure in drawn.items() if figure}


def _numbered(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(place), value) for place, value in enumerate(values))


# -- by layer ---------------------------------------------------------------------------------------------------------


def _upscale(found: Mapping[str, Any], **how: Any) -> str:
    plans = found["upscale"]
    points = tuple((float(one["num_removed"]), one["difference"]) for one in plans)
    margins = tuple(one["difference_error"] for one in plans)
    said = ", ".join(f"m = {one['num_removed']} {format_difference(one['difference'])}" for one in plans)
    return depth_chart_svg(
        "Depth up-scaling before training: nats above the base", [Line("depth up-scaling", points, margins)],
        description=f"Next-token loss of the untrained target less that of the base, by layers removed: {said}.",
        x_name="m, layers removed from each copy", zero=True, **how,
    )  # fmt: skip


def _without_layer(found: Mapping[str, Any], **how: Any) -> str:
    return depth_chart_svg(
        "What a layer is worth: nats above the base without it", [_worth("without the layer", found["without_layer"])],
        description="Loss of the base without one layer, less the base's: " + _said(found["without_layer"]),
        x_name="layer", zero=True, **how,
    )  # fmt: skip


def _worth(name: str, values: Sequence[Sequence[float] | None]) -> Line:
    known = [(float(place), one) for place, one in enumerate(values) if one is not None]
    return Line(name, tuple((place, one[0]) for place, one in known), tuple(one[1] for _, one in known))


def _said(values: Sequence[Sequence[float] | None]) -> str:
    known = {place: one[0] for place, one in enumerate(values) if one is not None}
    if not known:
        return "none can be left out."
    least, most = min(known, key=lambda place: known[place]), max(known, key=lambda place: known[place])
    return (
        f"least for layer {least} ({format_difference(known[least])}), most for layer {most}"
        f" ({format_difference(known[most])})."
    )


def _influence(found: Mapping[str, Any], **how: Any) -> str:
    values = found["similarity"]["influence"]
    least = min(range(len(values)), key=lambda layer: values[layer])
    return depth_chart_svg(
        "Block influence: 1 less the cosine across the layer", [Line("block influence", _numbered(values))],
        description=f"How far each layer turns the stream; least for layer {least} ({values[least]:.4f}).",
        x_name="layer", zero=True, **how,
    )  # fmt: skip


def _rms(found: Mapping[str, Any], **how: Any) -> str:
    values = found["similarity"]["rms"]
    return depth_chart_svg(
        "Strength of the stream: RMS in front of each layer", [Line("RMS", _numbered(values))],
        description=f"From {values[0]:.3g} behind the embedding to {values[-1]:.3g} behind the last layer; median over"
        " tokens, logarithmic axis.",
        x_name="layers passed", logarithmic=min(values) > 0, **how,
    )  # fmt: skip


def _lens(found: Mapping[str, Any], **how: Any) -> str:
    lens = found["lens"]
    lines = [
        Line("loss if the model ended here", _numbered(lens["loss"])),
        Line("KL divergence from its last word", _numbered(lens["divergence"])),
    ]
    half = next((depth for depth, value in enumerate(lens["agreement"]) if value >= 0.5), len(lens["loss"]) - 1)
    return depth_chart_svg(
        "Logit lens: nats a token, after so many layers", lines,
        description=f"Loss falls from {lens['loss'][0]:.2f} to {lens['loss'][-1]:.2f}; after {half} layers the"
        " likeliest next token is the final one for half of the tokens.",
        x_name="layers passed", zero=True, **how,
    )  # fmt: skip


# -- by pairs ---------------------------------------------------------------------------------------------------------


def _angular(found: Mapping[str, Any], **how: Any) -> str:
    matrix = found["similarity"]["angular_distance"]
    values = {(i, j): matrix[i][j] for i in range(len(matrix)) for j in range(i + 1, len(matrix))}
    most = max(max(values.values()), 1e-9)
    least = [min((pair for pair in values if pair[1] - pair[0] == k), key=lambda pair: values[pair])
             for k in range(1, min(5, len(matrix)))]  # fmt: skip
    said = ", ".join(f"{j - i} layers from {i} on {values[i, j]:.3f}" for i, j in least)
    return heat_map_svg(HeatMap(
        "Angular distance between what reaches layer i and what reaches layer j", f"The least turned runs: {said}.",
        range(len(matrix)), values, {pair: value / most for pair, value in values.items()},
        {(i, j): f"layers {i}-{j - 1}: {value:.3f} of half a turn" for (i, j), value in values.items()},
        [(f"{most * share:.2f}", share, 0) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        x_name="layer i", y_name="layer j",
    ), **how)  # fmt: skip


def _cka(found: Mapping[str, Any], **how: Any) -> str:
    matrix = found["similarity"]["cka"]
    values = {(i, j): matrix[i][j] for i in range(len(matrix)) for j in range(i, len(matrix))}
    low = min(values.values())
    span = max(1 - low, 1e-9)
    return heat_map_svg(HeatMap(
        "Linear CKA between the streams after i and j layers",
        f"1 means alike but for a turn and a scale; the least is {low:.2f}.",
        range(len(matrix)), values, {pair: (value - low) / span for pair, value in values.items()},
        {(i, j): f"after {i} and {j} layers: {value:.3f}" for (i, j), value in values.items()},
        [(f"{low + span * share:.2f}", share, 0) for share in (1.0, 0.75, 0.5, 0.25, 0.0)],
        x_name="layers passed, i", y_name="layers passed, j",
    ), **how)  # fmt: skip


def _map(kind: str) -> Callable[..., str]:
    """Nats above the base for each run [i, j) left out, or doubled."""
    what = {"drop": "without layers i to j - 1", "duplicate": "with layers i to j - 1 twice"}[kind]

    def make(found: Mapping[str, Any], **how: Any) -> str:
        given = found["maps"].get(kind)
        if not given or not given["cells"]:
            return ""
        values: dict[Pair, float] = {(cell[0], cell[1]): cell[3] for cell in given["cells"]}
        errors: dict[Pair, float] = {(cell[0], cell[1]): cell[4] for cell in given["cells"]}
        best = min(values, key=lambda pair: values[pair])
        return heat_map_svg(HeatMap(
            f"Loss {what}: nats above the base",
            f"Least for layers {best[0]}-{best[1] - 1}: {format_difference(values[best])}, standard error"
            f" {errors[best]:.3f}. No training in between.",
            given["positions"], values, {pair: _strength(value) for pair, value in values.items()},
            {(i, j): f"layers {i}-{j - 1}: {format_difference(value)} ± {errors[i, j]:.3f}"
             for (i, j), value in values.items()},
            [*((f"+{step:g}" + " or more" * (step == _STRONGEST), _strength(step), 0) for step in _STEPS),
             ("below the base", 0.5, 2)],
            frozenset(pair for pair, value in values.items() if value < 0), best, "first layer, i", "end, j",
        ), **how)  # fmt: skip

    return make


def _strength(difference: float) -> float:
    """Colour for nats above (or below) the base: the square root, so that small costs can be told apart."""
    return float(min(abs(difference) / _STRONGEST, 1.0) ** 0.5)


# -- before and after training ----------------------------------------------------------------------------------------


def _seam_marks(trained: Mapping[str, Any]) -> list[tuple[float, str]]:
    return [(seam["target_layer"] - 0.5, f"{seam['below']}|{seam['above']}") for seam in trained["after"]["seams"]]


def _trained_without(found: Mapping[str, Any], **how: Any) -> str:
    if not (trained := found.get("trained")):
        return ""
    before, after = trained["before"]["without_layer"], trained["after"]["without_layer"]
    return depth_chart_svg(
        "What a target layer is worth: nats above the target without it",
        [_worth("before training", before), _worth("after training", after)], marked=_seam_marks(trained),
        description=f"Before training {_said(before)} After training {_said(after)}",
        x_name="target layer", zero=True, **how,
    )  # fmt: skip


def _trained_change(found: Mapping[str, Any], **how: Any) -> str:
    if not (trained := found.get("trained")):
        return ""
    values = trained["change"]["from_source"]
    most = max(range(len(values)), key=lambda layer: values[layer])
    return depth_chart_svg(
        "How far training moved each target layer: share of its weights' norm",
        [Line("change", _numbered(values))], marked=_seam_marks(trained),
        description=f"Most moved is layer {most}, by {values[most]:.2%} of its norm.",
        x_name="target layer", zero=True, **how,
    )  # fmt: skip


def _trained_rms(found: Mapping[str, Any], **how: Any) -> str:
    if not (trained := found.get("trained")):
        return ""
    before, after = trained["before"]["rms"], trained["after"]["rms"]
    return depth_chart_svg(
        "Strength of the target's stream: RMS in front of each layer",
        [Line("before training", _numbered(before)), Line("after training", _numbered(after))],
        marked=_seam_marks(trained), logarithmic=min(*before, *after) > 0,
        description=f"It ends at {before[-1]:.3g} before training and at {after[-1]:.3g} after it.",
        x_name="layers passed", **how,
    )  # fmt: skip


def _main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("use: python -m depthup.report.probe_figures probe.json FOLDER", file=sys.stderr)
        return 2
    found = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    for name, figure in probe_figures(found, standalone=True).items():
        write_text(Path(arguments[1]) / f"{name}.svg", figure + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
