"""The stage kinds that make data: synthesis, preference pairs, decontamination. Later stages name them under `data:`.

What a stage made stands in its record: ``files``, relative to its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts.fingerprint import Digests
from .data_stage_settings import AlignmentStage, DecontaminateStage, SynthesizeStage
from .errors import DataError
from .stage_data import DATA_VARIABLE, Job, source_of

if TYPE_CHECKING:
    from .generation.backend import Backend
    from .synthesis.asking import FactoryAsker
    from .synthesis.pipeline import Gate
    from .synthesis.seeds import Refused, Seed
    from .synthesis.settings import Settings

_SEEDS = "seeds.jsonl"
GATE_RULES = ("exact", "ngram")


def run_synthesize(job: Job, folder: Path) -> dict[str, Any]:
    """Seeds -> verified problems and solutions; goes on where a stopped run was, and asks nothing twice."""
    from tqdm import tqdm

    from .synthesis.pipeline import estimate, synthesize
    from .synthesis.verify import Verifier

    stage: SynthesizeStage = job.stage
    seeds, refused = _seeds(job, folder)
    settings = _synthesis_settings(stage, job.recipe.seed)
    gate, gate_name = make_gate(stage.against, _test_sets(stage)) if stage.against else (None, "")
    total = sum(estimate(seeds, settings).num_requests.values())
    with tqdm(total=total, desc=job.name, unit=" requests", disable=not job.progress, dynamic_ncols=True) as bar:
        manifest = synthesize(
            seeds, _backend(job), folder / "math", settings, gate=gate, gate_name=gate_name, refused=refused,
            verifier=Verifier(symbolic=stage.symbolic), progress=bar.update,
        )  # fmt: skip
    figures = manifest["statistics"]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("math/rows-*.jsonl"))
    if not files:
        raise DataError(
            f"stage '{job.name}' made no row of {len(seeds)} seeds: {figures['rejected'] or figures['failed']}",
            next_step="look at rejected.jsonl in its folder, and give more seeds",
        )
    return {
        "files": files, "seeds": _SEEDS, "num_seeds": len(seeds), "num_rows": sum(figures["kept"].values()),
        "kept": figures["kept"], "rejected": figures["rejected"], "failed": figures["failed"],
    }  # fmt: skip


def run_alignment(job: Job, folder: Path) -> dict[str, Any]:
    """Solved problems -> preference pairs."""
    from .alignment import write_alignment

    stage: AlignmentStage = job.stage
    made, where = job.records[stage.rows].results, job.folders[stage.rows]
    report = write_alignment(
        [where / file for file in made["files"]], [str(where / made["seeds"])], folder, stage.variant,
        seed=job.recipe.seed, match_length=stage.match_length, max_pairs=stage.max_pairs,
    )  # fmt: skip
    names = ("num_rows", "num_pairs", "rows_left_out", "correctness", "length", "overlap")
    return {"files": ["pairs.jsonl"], **{name: report[name] for name in names}}


def run_decontaminate(job: Job, folder: Path) -> dict[str, Any]:
    """Data -> the rows of it that hit no test set; goes on where a stopped run was."""
    from tqdm import tqdm

    from .contamination.audit import Audit, run_audit
    from .contamination.benchmarks import parse_benchmarks
    from .contamination.rules import RULES

    stage: DecontaminateStage = job.stage
    out, tests = folder / "audit", _test_sets(stage)
    if (out / "report.json").is_file():
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    else:
        paths = tuple(str(path) for path in _files_of(job, folder))
        audit = Audit(paths, parse_benchmarks(stage.against, tests), tests, stage.rules or RULES, stage.fields)
        with tqdm(desc=job.name, unit="B", unit_scale=True, disable=not job.progress, dynamic_ncols=True) as bar:
            report = run_audit(audit, out, stage.workers, bar.update, bar.reset)
    return {
        "files": ["audit/kept.jsonl"], "num_rows": report["num_rows"], "num_kept": report["num_kept"],
        "num_flagged": report["num_flagged"],
        "flagged": {name: table["rows"]["dirty"] for name, table in report["benchmarks"].items()},
    }  # fmt: skip


def made_identity(stage: SynthesizeStage | DecontaminateStage, digests: Digests) -> dict[str, Any]:
    """What a data stage's result depends on besides its settings and its data: test sets, and which model writes."""
    found: dict[str, Any] = {}
    if stage.against:
        found["test_sets"] = _test_set_identity(stage, digests)
    if isinstance(stage, SynthesizeStage) and stage.backend.startswith(("http://", "https://")):
        url, _, model = stage.backend.partition("#")
        found["backend"] = f"server#{model}" if model else url  # where a named model is served changes no answer
    return found


def make_gate(against: str, folder: Path, rules: Sequence[str] = GATE_RULES) -> tuple[Gate, str]:
    """From a text to the test set that it hits; None for a clean one.

    Args:
        against: Test sets: ``h6``, or names with commas between.
        folder: Where they lie.
        rules: Which rules hold a row back; those for likeness take too much of problems of one kind.

    Returns:
        The gate; its name, which changes with the test items, the rules and what these find.

    Raises:
        DataError: There is no such rule.
    """
    from .contamination.audit import VERSION, digest_of
    from .contamination.benchmarks import load_items, parse_benchmarks
    from .contamination.index import make_reference
    from .contamination.rules import RULES
    from .contamination.scanner import Scanner

    if unknown := [rule for rule in rules if rule not in RULES]:
        raise DataError(f"there is no rule '{unknown[0]}'", allowed=", ".join(RULES))
    known = tuple(rule for rule in RULES if rule in rules)
    items = load_items(parse_benchmarks(against, folder), folder)
    scanner = Scanner(make_reference(items), known)

    def hit(text: str) -> str | None:
        found = scanner.leaks_in_texts([("text", text)])
        return f"{found[0].benchmark} {found[0].item}, rule {found[0].rule}" if found else None

    return hit, f"{against}: {','.join(known)}; items {digest_of(items)}, version {VERSION}"


# -- test sets --------------------------------------------------------------------------------------------------------


def _test_sets(stage: SynthesizeStage | DecontaminateStage) -> Path:
    folder = stage.benchmarks or os.environ.get(DATA_VARIABLE)
    if folder is None:
        raise DataError(
            f"no folder of test sets is given, and the stage takes out what hits {stage.against}",
            next_step=f"benchmarks: FOLDER in the recipe, or {DATA_VARIABLE}=FOLDER (docs/benchmark-data.md)",
        )
    return Path(folder)


def _test_set_identity(stage: SynthesizeStage | DecontaminateStage, digests: Digests) -> Any:
    from .contamination.benchmarks import item_files, parse_benchmarks

    if stage.benchmarks is None and DATA_VARIABLE not in os.environ:
        return "not here yet"  # the recipe can be looked at; a run asks for them
    folder = _test_sets(stage)
    files = item_files(parse_benchmarks(stage.against or "", folder), folder)
    return {path.relative_to(folder).as_posix(): digests.of(path) for path in files}


# -- seeds and rows ---------------------------------------------------------------------------------------------------


def _rows(job: Job) -> Iterator[Any]:
    """The rows of the stage's data as they lie there, those held out too, at most ``max_documents``."""
    data = job.recipe.data[job.stage.data]
    for number, row in enumerate(source_of(job, job.stage.data).rows()):
        if number == getattr(data, "max_documents", None):
            return
        yield row.value


def _files_of(job: Job, folder: Path) -> Sequence[Path]:
    """The files of the stage's data; of what lies in none, or is taken in part, a file in ``folder``."""
    from .data.sources import Files, InstalledDocs

    source = source_of(job, job.stage.data)
    if isinstance(source, InstalledDocs):
        raise DataError(
            f"the data '{job.stage.data}' of stage '{job.name}' are documentation, which has no rows",
            allowed="source: files, hub, or stage",
        )
    if isinstance(source, Files) and getattr(job.recipe.data[job.stage.data], "max_documents", None) is None:
        return source.files()
    path = folder / "source.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for row in _rows(job):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return [path]


def _seeds(job: Job, folder: Path) -> tuple[list[Seed], Refused]:
    """The seeds, which also are put into ``seeds.jsonl``: pairs need the original solutions."""
    from .synthesis.problems import make_problems
    from .synthesis.seeds import Refused, read_seeds

    stage: SynthesizeStage = job.stage
    seeds, refused = list[Any](), Refused()
    if stage.data is not None:
        seeds, refused = read_seeds(_files_of(job, folder), allow_gsm8k=stage.allow_gsm8k, licence=stage.licence)
    else:
        seeds = make_problems(stage.factory or 0, job.recipe.seed)
    seeds = seeds[: stage.max_seeds]
    with open(folder / _SEEDS, "w", encoding="utf-8") as file:
        for seed in seeds:
            file.write(json.dumps({"id": seed.id, "problem": seed.question, "solution": seed.solution}) + "\n")
    return seeds, refused


def _synthesis_settings(stage: SynthesizeStage, seed: int) -> Settings:
    from .synthesis.settings import Quota, Settings

    quotas = {name: Quota(quota.asked, quota.kept, quota.total) for name, quota in stage.quotas.items()}
    return Settings(
        quotas or Settings().quotas, stage.samples, stage.min_agreement, stage.temperature, stage.top_p,
        stage.max_new_tokens, stage.near_duplicate, seed,
    )  # fmt: skip


def _backend(job: Job) -> Backend | FactoryAsker:
    from .generation.backend import open_backend

    stage: SynthesizeStage = job.stage
    if stage.model is not None:
        from .generation.local import LocalBackend
        from .models import load_model, load_tokenizer

        folder = job.folders[stage.model]
        identity = f"local:{job.store.digests.of_checkpoint(folder)[:16]}"
        return LocalBackend(load_model(folder, job.device), load_tokenizer(folder), stage.chat, identity=identity)
    if stage.backend == "factory":
        from .synthesis.asking import FactoryAsker

        return FactoryAsker()
    if stage.backend.startswith(("http://", "https://")):
        from .generation.limits import Limits
        from .generation.server import ServerBackend

        url, _, model = stage.backend.partition("#")
        return ServerBackend(url, model or None, chat=stage.chat, limits=Limits(stage.concurrency))
    return open_backend(stage.backend, device=job.device, chat=stage.chat)
