"""The report as Markdown, for a repository or a hub: the same values as the page, figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import write_text
from .figures import layer_map_svg, lineage_svg, loss_curve_svg, score_bars_svg
from .scores import score_board, score_cells
from .tables import MODEL_HEADERS, model_cells, number_columns
from .text import format_seconds, visible
from .values import ComparedTable, Report, Table


def write_markdown(report: Report, folder: Path) -> None:
    """Write ``report.md`` and ``figures/*.svg`` into a folder."""
    figures = report_figures(report)
    for name, (_, figure) in figures.items():
        (folder / "figures").mkdir(exist_ok=True)
        write_text(folder / "figures" / f"{name}.svg", figure + "\n")
    write_text(folder / "report.md", report_markdown(report))


def report_figures(report: Report) -> dict[str, tuple[str, str]]:
    """Title and standalone SVG of each figure that the report has, by the name of its file."""
    scores = score_bars_svg(report.scores, standalone=True) if report.scores else ""
    drawn = {
        "layers": ("Layer map", layer_map_svg(report.plan, standalone=True) if report.plan else ""),
        "loss": ("Loss against tokens seen", loss_curve_svg(report.curves, report.reference_losses, standalone=True)),
        "scores": ("Scores with their intervals", scores),
        "lineage": ("Lineage", lineage_svg(report.stages, standalone=True)),
    }
    return {name: (title, figure) for name, (title, figure) in drawn.items() if figure}


def report_markdown(report: Report) -> str:
    """The whole report; text from outside is escaped, what models wrote stands in code blocks."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterator[str]:
    figures = report_figures(report)

    def figure(name: str) -> str:
        return f"![{figures[name][0]}](figures/{name}.svg)" if name in figures else ""

    yield f"# {escaped(report.title)}"
    yield escaped(report.summary)
    if report.summary_of:
        yield from _minute(report)
    if report.plan:
        yield "## Which layer comes from where"
        yield figure("layers")
        yield f"Plan: `{report.plan.text}` of {report.plan.num_base_layers} base layers."
    if report.seams:
        yield "## Seams"
        yield table_markdown(report.seams)
    if "loss" in figures or report.recovery:
        yield "## Recovery: loss in continued pretraining"
        yield figure("loss")
        yield "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in report.recovery)
    if report.rows:
        yield "## Models"
        yield table_markdown(Table("", MODEL_HEADERS, tuple(model_cells(row) for row in report.rows)))
    if report.scores:
        board = score_board(report.scores)
        headers, rows = score_cells(board)
        yield "## Scores"
        yield f"In points, ± half of a 95 % interval; {', '.join(board.profiles)}."
        yield table_markdown(Table("", ("model", *headers[1:]), tuple(map(tuple, rows)), board.notes))
        yield figure("scores")
    if report.comparisons:
        yield "## What differs, and what is noise"
        yield from (_compared(table) for table in report.comparisons)
    yield from _section("Merging", (*report.merges, *report.strengths))
    yield from _generations(report)
    if report.notes:
        yield "## What this shows, and what it does not"
        yield "\n".join(f"- {escaped(note)}" for note in report.notes)
    yield from _section("Data", report.data)
    yield from _section("Contamination", report.contamination)
    yield from _section("Cost", (report.cost,) if report.cost else ())
    if report.stages:
        yield "## Lineage"
        yield figure("lineage")
        rows = tuple(
            (one.name, one.kind, ", ".join(one.inputs), format_seconds(one.seconds), one.fingerprint)
            for one in report.stages
        )
        yield table_markdown(Table("", ("stage", "kind", "from", "time", "fingerprint"), rows))
    if report.environment:
        yield "## Environment"
        yield "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in report.environment)
    if report.citation:
        yield "## Citation"
        yield fenced(report.citation, "bibtex")


def _minute(report: Report) -> Iterator[str]:
    assert report.summary_of is not None
    told = report.summary_of
    yield "## In a minute"
    yield f"**Problem.** {escaped(told.problem)}"
    yield f"**Method.** {escaped(' '.join(told.method))}"
    key, *others = told.result or ("Nothing was measured.",)
    yield f"**Result. {escaped(key)}** {escaped(' '.join(others))}".rstrip()
    yield "**Limits.**\n\n" + "\n".join(f"- {escaped(limit)}" for limit in told.limits)


def _section(title: str, tables: Sequence[Table]) -> Iterator[str]:
    if tables:
        yield f"## {title}"
        for table in tables:
            yield f"### {escaped(table.title)}" if table.title else ""
            yield table_markdown(table)


def _compared(table: ComparedTable) -> str:
    rows: list[tuple[str, ...]] = []
    for row in table.rows:
        rows.append((row.name, *row.cells, row.verdict))
        if row.paper:
            rows.append((f"paper: {row.paper}", *row.paper_cells, ""))
    shown = Table("", ("model", *table.headers, "verdict"), tuple(rows), table.notes)
    return f"### {escaped(table.title)}\n\n{table_markdown(shown)}"


def _generations(report: Report) -> Iterator[str]:
    if report.generations:
        yield "## The same prompts, continued"
    for generation in report.generations:
        yield fenced(generation.prompt)
        for name, text in generation.continuations:
            yield f"{escaped(name)}:"
            yield fenced(text) if text else "nothing"


def table_markdown(table: Table) -> str:
    """A table with pipes, its notes below."""
    numbers = number_columns(table.rows)
    lines = [
        f"| {' | '.join(escaped(cell) or ' ' for cell in table.headers)} |",
        f"|{'|'.join('---:' if right and i else '---' for i, right in enumerate(numbers))}|",
        *(f"| {' | '.join(escaped(cell) or ' ' for cell in row)} |" for row in table.rows),
    ]
    notes = [f"- {escaped(note)}" for note in table.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes]) if table.rows else "\n".join(notes)


def escaped(text: str) -> str:
    """Text in which nothing is Markdown or HTML, on one line; control characters are made visible."""
    one_line = visible(text).replace("\n", " ").replace("\t", " ")
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", one_line)


def fenced(text: str, language: str = "") -> str:
    """Text as a code block, whose fence is longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text)}\n{fence}"
