"""The report page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..layers import LayerPlan
from . import text
from .figures import layer_map_svg, loss_curve_svg, radar_svg, score_bars_svg
from .probe_figures import probe_figures
from .scores import score_board, score_cells
from .svg import figure_style
from .tables import MODEL_HEADERS, model_cells
from .values import ModelRow, Report


@dataclass(frozen=True)
class _KeyFigure:
    """A model's loss written large."""

    name: str
    loss: str  # nats per token
    perplexity: str
    difference: str  # against the first model, in nats per token; empty for the first
    tone: str  # "better", "worse" or ""


def render_page(report: Report) -> str:
    """The report as one HTML document.

    Every value is escaped, and control characters are made visible (:func:`depthup.report.text.visible`).
    """
    environment = Environment(
        loader=PackageLoader("depthup.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {"seconds": text.format_seconds, "count": text.format_count}
    environment.filters.update(filters)
    return environment.get_template("page.html.j2").render(
        report=report,
        style=Markup(figure_style()),
        layer_map=Markup(layer_map_svg(report.plan)) if report.plan else None,
        plan_facts=_plan_facts(report.plan) if report.plan else (),
        loss_curves=_loss_curves(report),
        scores=_scores(report),
        probes=[(probe.name, _markup(probe_figures(probe.found, width=600))) for probe in report.probes],
        key_figures=_key_figures(report.rows),
        headers=MODEL_HEADERS,
        table=[(row, model_cells(row)) for row in report.rows],
        held_out_tokens=sorted({row.num_held_out_tokens for row in report.rows}),
        stage_numbers={stage.name: number for number, stage in enumerate(report.stages, 1)},
    )


def _finalize(value: object) -> object:
    """Every value on its way into the page: text that is not markup has its control characters made visible."""
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _loss_curves(report: Report) -> tuple[tuple[str, Markup], ...]:
    """The loss curve for wide and for narrow screens (the page shows one), or nothing."""
    widths = (("wide", 760), ("narrow", 370))
    figures = [(name, loss_curve_svg(report.curves, report.reference_losses, width=width)) for name, width in widths]
    return tuple((name, Markup(figure)) for name, figure in figures if figure)


def _markup(figures: Mapping[str, str]) -> list[Markup]:
    return [Markup(figure) for figure in figures.values()]


def _scores(report: Report) -> dict[str, Any] | None:
    """The scores as cells and as figures for wide and for narrow screens; None where nothing was scored."""
    if not report.scores:
        return None
    board = score_board(report.scores)
    headers, rows = score_cells(board)
    widths = {"wide": (760, 560), "narrow": (370, 370)}
    return {
        "board": board,
        "headers": headers,
        "rows": rows,
        "details": ["", *(column.detail.replace(", ", "\n") for column in board.columns)],
        "figures": [
            {name: Markup(figure) for name, both in widths.items() if (figure := draw(report.scores, width=both[i]))}
            for i, draw in enumerate((score_bars_svg, radar_svg))
        ],
    }


def _key_figures(rows: tuple[ModelRow, ...]) -> list[_KeyFigure]:
    """The loss of each model, and how far it is from the first one."""
    figures = []
    for row in rows:
        difference = row.loss - rows[0].loss
        figures.append(
            _KeyFigure(
                row.name,
                text.format_loss(row.loss),
                text.format_perplexity(text.perplexity(row.loss)),
                "" if row is rows[0] else text.format_difference(difference),
                "worse" if difference > 0 else "better" if difference < 0 else "",
            )
        )
    return figures


def _plan_facts(plan: LayerPlan) -> tuple[tuple[str, str], ...]:
    """What the layer map shows, in words and numbers."""
    slices = _shortened(plan.text.split(","))
    seams = _shortened([f"{seam.below}|{seam.above}, layer distance {seam.layer_distance}" for seam in plan.seams])
    duplicated = text.format_runs(plan.duplicated)
    facts = [
        ("Base", f"{plan.num_base_layers} layers"),
        ("Target", f"{plan.num_target_layers} layers"),
        ("Plan", (", " if len(slices) < 4 else "\n").join(slices)),
        ("Seam" if len(plan.seams) == 1 else "Seams", "\n".join(seams) or "none"),
        ("Stand more than once", f"{len(plan.duplicated)} layers: {duplicated}" if duplicated else "none"),
    ]
    if plan.unused:
        facts.append(("Not used", f"{len(plan.unused)} layers: {text.format_runs(plan.unused)}"))
    return tuple(facts)


def _shortened(lines: list[str], most: int = 12) -> list[str]:
    """The first lines, and how many are left out."""
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]
