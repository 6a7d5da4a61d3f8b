"""The table of laboratory.py, drawn: python benchmarks/laboratory_figure.py docs/results/laboratory.json OUT.svg"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from depthup.report import svg

COLUMNS = {"against_control_same_bytes": "same bytes", "against_control_same_flops": "same FLOPs"}
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 95 %, two-sided, by the number of seeds
WIDTH, LEFT, TOP, ROW = 760.0, 230.0, 52.0, 19.0


def drawn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is compared with a control, the best first."""
    found = [row for row in rows if row["against_control_same_bytes"] and not row["method"].startswith("control")]
    return sorted(found, key=lambda row: row["against_control_same_bytes"][0])


def reach(value: list[float | None], num_seeds: int) -> tuple[float, float, float]:
    """Mean and the ends of its interval; a single seed has none."""
    mean, error = value
    assert mean is not None
    half = 0.0 if error is None else STUDENT[num_seeds] * error
    return mean, mean - half, mean + half


def marks(rows: list[dict[str, Any]]) -> Iterator[str]:
    values = [reach(row[column], row["seeds"]) for row in rows for column in COLUMNS if row[column]]
    low, high = min(value[0] for value in values), max(value[0] for value in values)
    low, high = min(low - 0.3 * (high - low), -0.001), max(high + 0.3 * (high - low), 0.001)
    bottom = TOP + ROW * len(rows)

    def x(loss: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * (min(max(loss, low), high) - low) / (high - low)

    for tick in svg.nice_ticks(low, high, 6):
        yield svg.element("path", d=f"M{x(tick):.1f} {TOP - 6:.1f}V{bottom:.1f}", class_="rule")
        yield svg.text(x(tick), bottom + 16, f"{tick:+.3g}" if tick else "control", 11, text_anchor="middle")
    for number, row in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        seeds = f"{row['seeds']} seed" + "s" * (row["seeds"] > 1)
        yield svg.text(LEFT - 10, y + 4, row["method"], 11.5, text_anchor="end")
        for series, (column, name) in enumerate(COLUMNS.items()):
            if row[column]:
                mean, under, over = reach(row[column], row["seeds"])
                said = svg.tooltip(f"{row['method']}, {name}: {mean:+.4f} ({under:+.4f} to {over:+.4f}), {seeds}")
                at = y - 3 + 6 * series
                whisker = svg.element("path", d=f"M{x(under):.1f} {at:.1f}H{x(over):.1f}", class_="whisker",
                                      style="stroke-width:1.2;stroke-opacity:.6")  # fmt: skip
                yield svg.element("g", whisker, svg.mark(series, x(mean), at, 3.4, said), class_=f"s{series}")


def figure(rows: list[dict[str, Any]]) -> str:
    """One line for each method, a mark for equal bytes and one for equal FLOPs."""
    rows, content = drawn(rows), []
    for series, name in enumerate(COLUMNS.values()):
        left = 2.0 + 150 * series
        mark = svg.mark(series, left + 6, 10, 4.2)
        content.append(
            svg.element("g", mark, svg.text(left + 17, 14, name, 11.5, class_="series"), class_=f"s{series}")
        )
    content += marks(rows)
    height = TOP + ROW * len(rows) + 44
    content.append(svg.text(WIDTH / 2, height - 8, "held-out loss less that of the base trained on at the same rate,"
                            " nats a byte: mean and 95 % interval over seeds", 11, text_anchor="middle"))  # fmt: skip
    said = "; ".join(f"{row['method']} {row['against_control_same_bytes'][0]:+.4f}" for row in rows)
    return svg.document(WIDTH, height, *content, title="Ways to grow, against the base trained on",
                        description=f"At equal bytes: {said}.", standalone=True)  # fmt: skip


def main() -> None:
    """Draw what the file holds."""
    source, out = map(Path, sys.argv[1:])
    out.write_text(figure(json.loads(source.read_text())["rows"]) + "\n")


if __name__ == "__main__":
    main()
