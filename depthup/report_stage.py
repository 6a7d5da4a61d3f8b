"""The report stage: the page, the same as Markdown with its figures, the model card, data cards, all of the records.

What it writes: ``index.html``, ``report.md`` with ``figures/``, ``model/README.md`` with ``model/.eval_results/``,
``data/STAGE.md`` for each stage that made data, ``CITATION.bib``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data_settings import FilesData, HubData, InstalledDocsData, StageData, parts_of
from .stage_data import Job
from .stage_settings import ReportStage

if TYPE_CHECKING:
    from .artifacts.record import Record
    from .artifacts.store import Store
    from .data.card import Card
    from .recipe import Recipe
    from .report.model_card import CardFacts
    from .report.values import DataSource


def run_report(job: Job, folder: Path) -> dict[str, Any]:
    """Page, Markdown and cards from the records; measures nothing itself."""
    from .data.card import render_card
    from .files import sha256_of, write_text
    from .report.collect import collect_report, final_model
    from .report.lineage import lineage
    from .report.markdown import write_markdown
    from .report.model_card import write_model_card
    from .report.page import render_page

    stage: ReportStage = job.stage
    # Only what the page comes from, which its fingerprint holds: another stage of the recipe changes nothing here.
    records = {one.stage: one for one in lineage(stage.inputs(), job.records)}
    cards = {one.stage: (paths, card_of_files(paths)) for one, paths in made_data(records, job.store)}
    sources = sources_of(job.recipe, {name: card for name, (_, card) in cards.items()})
    report = collect_report(
        stage.title, stage.summary, stage.notes, stage.evaluations, records, job.store.to_read, stage.comparisons,
        (*stage.probes, *stage.others), stage.model, sources, flops_of(records, job.store),
    )  # fmt: skip
    write_text(folder / "index.html", render_page(report))
    write_markdown(report, folder)
    write_text(folder / "CITATION.bib", report.citation + "\n")
    for name, (paths, card) in cards.items():
        (folder / "data").mkdir(exist_ok=True)
        digests = {f"{name}/{path.name}": sha256_of(path) for path in paths}
        write_text(folder / "data" / f"{name}.md", render_card(card, digests))
    model = stage.model or final_model(stage.evaluations, records)
    if model in records:
        facts = card_facts(model, job.recipe, records, job.store, sources, stage)
        write_model_card(facts, folder / "model")
    return {"page": "index.html", "model": model}


def card_facts(
    model: str,
    recipe: Recipe,
    records: Mapping[str, Record],
    store: Store,
    sources: Mapping[str, Sequence[DataSource]],
    stage: ReportStage | None = None,
) -> CardFacts:
    """What a model card tells of the model that a stage made.

    Args:
        model: Name of the stage.
        recipe: Its recipe.
        records: Of all stages that are made, by name.
        store: Where they lie.
        sources: Data of each stage that reads some.
        stage: A report stage, which may state licence and base.
    """
    from .report.collect import collect_model
    from .report.model_card import CardFacts

    licence, base = found_of_base(model, records, store)
    page = stage or next((one for one in reversed(recipe.stages.values()) if isinstance(one, ReportStage)), None)
    outside = [name for one in recipe.stages.values() for _, name in one.named() if name not in recipe.stages]
    hub = next((name for name in outside if "/" in name and not Path(name).exists()), "")
    rows, scores, plan, chain, citation = collect_model(model, records, store.to_read)
    return CardFacts(
        name=model,
        recipe=recipe.name,
        fingerprint=records[model].fingerprint[:12],
        licence=(page.licence if page else None) or licence,
        base_model=(page.base_model if page else None) or base or hub,
        plan=plan,
        rows=rows,
        scores=scores,
        chain=chain,
        sources=tuple({one.name: one for step in chain for one in sources.get(step.name, ())}.values()),
        notes=page.notes if page else (),
        citation=citation,
        num_layers=int(records[model].results["num_layers"]),
        num_parameters=int(records[model].results["num_parameters"]),
    )


def found_of_base(model: str, records: Mapping[str, Record], store: Store) -> tuple[str, str]:
    """(licence, name on the Hub) of what a model was made from, as cards and manifests beside the weights tell them."""
    from .growth.manifest import read_manifest
    from .report.lineage import models_behind
    from .report.model_card import licence_of_folder

    licence = base = ""
    for record in models_behind(model, records):
        place = store.to_read(record.stage, record.fingerprint)
        licence = licence or licence_of_folder(place)
        manifest = read_manifest(place) or {}
        base = base or str(manifest.get("base", {}).get("source") or "")
    return licence, base


# -- data -------------------------------------------------------------------------------------------------------------


def made_data(records: Mapping[str, Record], store: Store) -> Iterator[tuple[Record, list[Path]]]:
    """The stages that made data, and the files that they made."""
    for record in records.values():
        if "files" in record.results:
            place = store.to_read(record.stage, record.fingerprint)
            yield record, [place / name for name in record.results["files"]]


def card_of_files(paths: Sequence[Path]) -> Card:
    """The data card of rows, counted by what each tells of its origin."""
    from .data.card import card_of, lineage_of
    from .data.raw_rows import raw_rows

    return card_of(lineage_of(raw.value) for path in paths for raw in raw_rows(path) if not raw.problem)


def sources_of(recipe: Recipe, cards: Mapping[str, Card]) -> dict[str, list[DataSource]]:
    """The data that each stage of a recipe reads, by the stage's name.

    Args:
        recipe: The recipe.
        cards: Of the stages that made data: their rows tell their licences.
    """
    found = {}
    for name, stage in recipe.stages.items():
        if (entry := getattr(stage, "data", None)) is not None:
            found[name] = [_source(part, recipe.data[part], cards) for part in parts_of(recipe.data, entry)]
    return found


def _source(name: str, data: Any, cards: Mapping[str, Card]) -> DataSource:
    from .report.values import DataSource

    stated = [data.licence] if data.licence else []
    match data:
        case InstalledDocsData():
            return DataSource(name, f"documentation installed with {', '.join(data.packages)}", _told(stated))
        case HubData():
            return DataSource(name, f"Hub: {data.name}", _told(stated), hub_name=data.name)
        case FilesData():  # names alone: where they lie on this machine is nobody's business
            files = ", ".join(path if path.startswith("$") else Path(path).name for path in data.paths)
            return DataSource(name, f"files: {files}", _told(stated))
        case StageData():
            rows = cards[data.stage].by_licence() if data.stage in cards else {}
            known = [licence for licence in rows if licence != "unknown"]
            unknown = f", {rows['unknown']:,} rows unknown" if known and "unknown" in rows else ""
            return DataSource(
                name, f"made by the stage {data.stage}", _told(stated or known) + unknown, stage=data.stage
            )
    raise AssertionError(data)


def _told(licences: Sequence[str]) -> str:
    """Licences with what they forbid."""
    from .data.card import commercial_use

    return ", ".join(f"{one} (no commercial use)" if commercial_use(one)[0] is False else one for one in licences)


# -- cost -------------------------------------------------------------------------------------------------------------


def flops_of(records: Mapping[str, Record], store: Store) -> dict[str, float]:
    """Model FLOPs of each stage that trained: tokens seen times what a token costs; of DPO the reference's pass too.

    Of stages that train a part of the weights, by ``rates`` or ``lora``, this is what all of them would cost.
    """
    from .checkpoint.reader import open_checkpoint
    from .errors import CheckpointError
    from .planning.compute import forward_flops, training_flops
    from .planning.shapes import shape_of
    from .report.lineage import TRAINING, tokens_trained

    found = {}
    for name, record in records.items():
        if record.kind in TRAINING and "adopted" not in record.identity and tokens_trained(record):
            try:
                shape = shape_of(open_checkpoint(store.to_read(name, record.fingerprint)))
            except CheckpointError:
                continue  # its weights lie in the mirror, and are not fetched for this
            row_tokens = record.identity.get("row_tokens") or 2 * record.identity.get("max_tokens", 1024)
            each = training_flops(shape, row_tokens)
            if record.kind in ("dpo", "sdpo") and record.identity.get("variant") != "simpo":
                each += forward_flops(shape, row_tokens)
            found[name] = each * tokens_trained(record)
    return found


def report_identity(recipe: Recipe) -> dict[str, Any]:
    """What a page shows of a recipe that is no part of any other fingerprint: names, and licences of data."""
    licences = {name: stated for name, data in recipe.data.items() if (stated := getattr(data, "licence", None))}
    return {"stages": list(recipe.stages), **({"licences": licences} if licences else {})}
