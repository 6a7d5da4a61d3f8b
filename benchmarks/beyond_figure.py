"""Recovery curves of beyond.py: python benchmarks/beyond_figure.py docs/beyond.svg docs/results/beyond-*.json"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyond import LAYERS_ANEW, SAME_FLOPS, interval
from measuring import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from depthup.report import svg

TITLES = {"beyond-vision": "ViT, digits", "beyond-encoder": "MiniLM, subjects", "beyond-speech": "Whisper, prompts"}
SERIES = {
    "depth up-scaling": 0, SAME_FLOPS: 1, "copies beside their source": 2, "identity": 3, "silenced outputs": 3,
    "upper copy at random": 4, LAYERS_ANEW: 5,
}  # fmt: skip
LEGEND = ("depth up-scaling", "base trained on", "copies beside their source", "identity (BERT: silenced outputs)",
          "upper copy at random", "all layers at random")  # fmt: skip
WIDTH, TOP, HEIGHT, BOTTOM, LEFT, GAP = 760.0, 84.0, 230.0, 42.0, 38.0, 44.0


@dataclass(frozen=True)
class Line:
    """One arm: FLOPs in steps of the base, mean held-out loss, and its 95 % interval over seeds."""

    series: int
    name: str
    points: tuple[tuple[float, float, float, float], ...]  # x, mean, low, high


def lines_of(result: dict[str, Any]) -> list[Line]:
    """The arms that are drawn, in the order of their series."""
    unit = next(arm for arm in result["seeds"][0]["arms"] if arm["arm"] == SAME_FLOPS)["flops_per_step"]
    lines = []
    for i, arm in enumerate(result["seeds"][0]["arms"]):
        name = "depth up-scaling" if arm["arm"] == result["main"] else arm["arm"]
        if name in SERIES:
            curves = [seed["arms"][i]["curve"] for seed in result["seeds"]]
            points = []
            for at in zip(*curves, strict=True):
                loss = interval([point["loss"] for point in at])
                mean, low, high = (
                    loss[key] if loss[key] is not None else loss["mean"] for key in ("mean", "low", "high")
                )
                assert mean is not None and low is not None and high is not None
                points.append((at[0]["step"] * arm["flops_per_step"] / unit, mean, low, high))
            lines.append(Line(SERIES[name], name, tuple(points)))
    return sorted(lines, key=lambda line: line.series)


def ticks(low: float, high: float) -> list[float]:
    """At least three round values of a logarithmic scale, where there are so many."""
    found: list[float] = []
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8)):
        found = [factor * 10.0**power for power in range(-3, 2) for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) > 2:
            break
    return found


def panel(result: dict[str, Any], left: float, right: float) -> Iterator[str]:
    """One task: loss, on a logarithmic scale, against FLOPs."""
    lines = lines_of(result)
    most = max(point[0] for line in lines for point in line.points)
    losses = [point[1] for line in lines for point in line.points]
    low, high = math.log(min(losses) * 0.85), math.log(max(losses) * 1.1)
    bottom = TOP + HEIGHT

    def x(flops: float) -> float:
        return left + (right - left) * flops / most

    def y(loss: float) -> float:
        return bottom - HEIGHT * (min(max(math.log(max(loss, 1e-9)), low), high) - low) / (high - low)

    yield svg.text(
        left,
        TOP - 12,
        TITLES[result["benchmark"]] + f", {len(result['seeds'])} seed" + "s" * (len(result["seeds"]) > 1),
        12,
        class_="head",
    )
    for loss in ticks(math.exp(low), math.exp(high)):
        yield svg.element("path", d=f"M{left:.1f} {y(loss):.1f}H{right:.1f}", class_="rule")
        yield svg.text(left - 5, y(loss) + 4, f"{loss:g}", 11, text_anchor="end")
    for tick in svg.nice_ticks(0, most, 4):
        yield svg.text(x(tick), bottom + 16, f"{tick:g}", 11, text_anchor="middle")
    for line in lines:
        marks = []
        for flops, mean, under, over in line.points:
            marks.append(svg.element("path", d=f"M{x(flops):.1f} {y(under):.1f}V{y(over):.1f}", class_="whisker",
                                     style="stroke-width:1.2;stroke-opacity:.6"))  # fmt: skip
            said = svg.tooltip(f"{line.name}: {mean:.3f} ({under:.3f} to {over:.3f}) nats after {flops:.0f} base steps")
            marks.append(svg.mark(line.series, x(flops), y(mean), 3.4, said))
        yield svg.element("g", svg.polyline([(x(p[0]), y(p[1])) for p in line.points], "held-out"), *marks,
                          class_=f"s{line.series}")  # fmt: skip


def figure(results: list[dict[str, Any]]) -> str:
    """The panels side by side, the legend above."""
    content, width = [], (WIDTH - LEFT - GAP * (len(results) - 1)) / len(results)
    for i, name in enumerate(LEGEND):
        x, y = 2.0 + 250 * (i % 3), 14.0 + 18 * (i // 3)
        mark = svg.mark(i, x + 6, y - 4, 4.2)
        content.append(svg.element("g", mark, svg.text(x + 17, y, name, 11.5, class_="series"), class_=f"s{i}"))
    for i, result in enumerate(results):
        left = LEFT + i * (width + GAP)
        content += panel(result, left, left + width - 4)
    content.append(svg.text(WIDTH / 2, TOP + HEIGHT + 34, "training FLOPs, in steps of the base; held-out loss in nats,"
                            " mean and 95 % interval over seeds", 11, text_anchor="middle"))  # fmt: skip
    said = []
    for result in results:
        ends = ", ".join(
            f"{line.name} {line.points[0][1]:.2f} to {line.points[-1][1]:.2f}" for line in lines_of(result)
        )
        said.append(f"{TITLES[result['benchmark']]}: {ends}")
    return svg.document(WIDTH, TOP + HEIGHT + BOTTOM, *content, title="Recovery beyond language models",
                        description=". ".join(said) + ".", standalone=True)  # fmt: skip


def main() -> None:
    """Draw what the files hold."""
    out, *files = map(Path, sys.argv[1:])
    results = {result["benchmark"]: result for result in (json.loads(file.read_text()) for file in files)}
    out.write_text(figure([results[name] for name in TITLES if name in results]) + "\n")


if __name__ == "__main__":
    main()
