"""The figures of a report as SVG text. ``python -m depthup.report.figures 32 8 map.svg`` writes a layer map."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import DepthupError
from ..files import write_text
from ..layers import LayerPlan
from .layer_map import layer_map_svg
from .lineage_graph import lineage_svg
from .loss_curve import loss_curve_svg
from .radar import radar_svg
from .score_bars import score_bars_svg

__all__ = ["layer_map_svg", "lineage_svg", "loss_curve_svg", "radar_svg", "score_bars_svg"]


def _main(arguments: list[str]) -> int:
    """Write the layer map of depth up-scaling, or of any plan in the one-line grammar, as a standalone file."""
    match arguments:
        case [n, plan, out] if n.isdecimal():
            try:
                made = LayerPlan.upscale(int(n), int(plan)) if plan.isdecimal() else LayerPlan.parse(plan, int(n))
            except DepthupError as error:
                print(error, file=sys.stderr)
                return 2
            write_text(Path(out), layer_map_svg(made, standalone=True) + "\n")
            return 0
    print("use: python -m depthup.report.figures NUM_BASE_LAYERS NUM_REMOVED|LAYERS OUT.svg\n"
          "     as in 32 8 map.svg, or 32 0-23,8-31 map.svg", file=sys.stderr)  # fmt: skip
    return 2


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
