"""Synth. Math-Instruct: seeds in, verified rows out, with the lineage of each (SOLAR, arXiv:2312.15166, section 3).

Group after group of seeds is asked, compared, filtered and written. What is kept is a function of seeds, settings and
replies alone; the order in which replies arrive, and how often the run was stopped, change no byte of the files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, OutputError
from ..generation.backend import Backend
from ..generation.journal import Journal
from . import groups
from .asking import TEMPLATE, Asker, FactoryAsker, ModelAsker
from .filters import NearDuplicates, is_echo, too_like
from .groups import BudgetSpent, Outcome, Used, lineage
from .metamath import KINDS, Kind, prompt_digests
from .seeds import Refused, Seed, known_set
from .settings import Settings
from .store import FAILED, Store
from .verify import Verifier

Gate = Callable[[str], str | None]


class BudgetStop(OutputError):
    """The budget is spent; all that came is kept, and the same command goes on with a larger one."""


@dataclass(frozen=True)
class Estimate:
    """What a run would ask, at most: a rewriting that is refused is not solved.

    Attributes:
        num_requests: By step.
        prompt_tokens: About: four characters a token.
        completion_tokens: If every reply were as long as it may be.
    """

    num_requests: dict[str, int]
    prompt_tokens: int
    completion_tokens: int


def estimate(seeds: Sequence[Seed], settings: Settings) -> Estimate:
    """Requests and tokens of a run, without asking anything."""
    steps: Counter[str] = Counter()
    characters = made = 0
    for seed in seeds:
        asks = [ask for _, ask in groups.rewriting_asks(seed, settings, _kinds(settings))]
        questions = groups.direct_questions(seed, settings, _kinds(settings))
        asks += [ask for question in questions for ask in groups.solving_asks(question, settings)]
        again = Counter({"answer": 0, "backward": 0})
        if "rephrase" in settings.quotas:
            again["answer"] = settings.quotas["rephrase"].asked * settings.num_samples
        if "self-verification" in settings.quotas:
            again["backward"] = len(groups.chosen_maskings(seed, settings, "self-verification")) * settings.num_samples
        steps.update(ask.step for ask in asks)
        steps.update(again)
        characters += sum(len(ask.prompt) for ask in asks) + again.total() * (len(seed.question) + 1500)
        made += sum(ask.sampling.max_new_tokens for ask in asks) + again.total() * settings.max_new_tokens
    return Estimate(dict(steps), characters // 4, made)


def synthesize(
    seeds: Sequence[Seed], backend: Backend | FactoryAsker, out: Path, settings: Settings | None = None, *,
    gate: Gate | None = None, gate_name: str = "", refused: Refused | None = None, verifier: Verifier | None = None,
    progress: Callable[[int], object] | None = None, retry_failed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make rows of seeds.

    Args:
        seeds: In order; their ids are unlike.
        backend: What generates, or the offline factory.
        out: Folder of the run; a run that was stopped goes on.
        settings: What is made, and how strictly.
        gate: Contamination: from a text to the benchmark that it hits, None for a clean one. Test items of MATH and
            GSM8K are held back in any case.
        gate_name: Which gate that is; part of the run's identity.
        refused: Rows that were no seeds, for the manifest.
        verifier: Compares answers; by default one of its own.
        progress: Hears of each request that is done.
        retry_failed: Ask again what failed for good before. All rows are sorted anew, from the journal's replies.

    Returns:
        The manifest.

    Raises:
        BudgetStop: The backend's budget is spent.
        OutputError: ``out`` holds something else, another process works in it, the disk is full.
        DataError: Two seeds have one id.
    """
    settings = settings or Settings()
    if len({seed.id for seed in seeds}) < len(seeds):
        raise DataError("two seeds have one id", next_step="read all of them in one call of read_seeds")
    _make(out)
    with Journal(out / "journal.jsonl") as journal, verifier or Verifier() as compare:
        asker: Asker = backend if isinstance(backend, FactoryAsker) else ModelAsker(backend, journal)
        identity = {
            "task": TEMPLATE, "backend": asker.identity, "seeds": _digest(seeds), "settings": settings.to_json(),
            "prompts": prompt_digests(), "gate": gate_name or None, "answers": compare.identity,
        }  # fmt: skip
        store = Store(out, identity, settings.rows_per_file)
        if retry_failed and FAILED in store.manifest["files"]:
            store.again()
        if store.manifest["complete"]:
            return store.manifest
        selection = _Selection(seeds, settings, gate, asker, store)
        for start in range(store.manifest["groups"] * settings.seeds_per_group, len(seeds), settings.seeds_per_group):
            some = seeds[start : start + settings.seeds_per_group]
            kinds = selection.open_kinds()
            try:
                outcomes, used = groups.work_group(some, asker, compare, settings, kinds, progress)
            except BudgetSpent as spent:
                raise BudgetStop(
                    f"the budget is spent after {start} of {len(seeds)} seeds: {spent}",
                    next_step="run the same command with a larger budget: nothing is asked twice",
                ) from None
            store.commit(*selection.sort(outcomes, used))
        store.finish({"refused_seeds": _refused(refused)})
        return store.manifest


@dataclass
class _Sorted:
    kept: list[Any] = field(default_factory=list)
    rejected: list[Any] = field(default_factory=list)
    failed: list[Any] = field(default_factory=list)


class _Selection:
    """The filters that look at more than one group: near-duplicates, quotas; and the gate before a row is written."""

    def __init__(
        self, seeds: Sequence[Seed], settings: Settings, gate: Gate | None, asker: Asker, store: Store
    ) -> None:
        self._settings, self._gate, self._asker = settings, gate, asker
        self._near, self._hits = NearDuplicates(settings.near_duplicate), dict[str, str]()
        for seed in seeds:
            self._near.add(f"seed {seed.id}", seed.question)
        self._statistics: dict[str, Any] = json.loads(json.dumps(store.manifest["statistics"])) or {
            "kept": {}, "rejected": {}, "failed": {}, "methods": {}, "agreement": {}, "requests": 0,
            "prompt_tokens": 0, "completion_tokens": 0,
        }  # fmt: skip
        for row in store.rows():
            if row["lineage"]["kind"] != "answer":
                self._near.add(row["id"], row["prompt"])

    def open_kinds(self) -> list[Kind]:
        """Kinds whose total is not reached."""
        quotas, kept = self._settings.quotas, self._statistics["kept"]
        return [kind for kind in _kinds(self._settings)
                if quotas[kind].total is None or kept.get(kind, 0) < (quotas[kind].total or 0)]  # fmt: skip

    def sort(self, outcomes: Sequence[Outcome], used: Used) -> tuple[list[Any], list[Any], list[Any], dict[str, Any]]:
        """Rows, rejected, failed of a group, and the statistics up to it."""
        found, of_seed = _Sorted(), dict[tuple[str, Kind], list[str]]()
        solved: set[int] = set()  # questions with a row
        for outcome in outcomes:
            kind = outcome.question.kind
            if outcome.reason == "failed":
                found.failed.append(self._failure(outcome))
                self._count("failed", kind)
                continue
            mine = of_seed.setdefault((outcome.question.seed.id, kind), [])
            reason, detail = outcome.reason, outcome.detail
            if not reason:
                reason, detail = self._fault(outcome, mine, id(outcome.question) in solved)
            row = _row(outcome, self._asker)
            if reason:
                found.rejected.append({"reason": reason, "detail": detail, **row})
                self._statistics["rejected"].setdefault(kind, {})
                self._count("rejected", kind, reason)
                continue
            found.kept.append(row)
            mine.append(outcome.response)
            solved.add(id(outcome.question))
            if kind != "answer":
                self._near.add(row["id"], outcome.prompt)
            self._tally(outcome)
        self._statistics["requests"] += used.num_requests
        self._statistics["prompt_tokens"] += used.prompt_tokens
        self._statistics["completion_tokens"] += used.completion_tokens
        return found.kept, found.rejected, found.failed, json.loads(json.dumps(self._statistics))

    def _fault(self, outcome: Outcome, mine: Sequence[str], solved: bool) -> tuple[str, str]:
        """Why a verified outcome is no row, and in words; two empty texts where it is one."""
        question, quota = outcome.question, self._settings.quotas[outcome.question.kind]
        if question.kind == "answer":
            if is_echo(question.seed.solution, outcome.response) or too_like(
                outcome.response, [question.seed.solution, *mine]
            ):
                return "repeated solution", ""
        elif not solved:
            twin = self._near.find(outcome.prompt)
            if twin is not None:
                return "near-duplicate", f"{twin[0]}, similarity {twin[1]:.2f}"
        hit = self._hit(outcome)
        if hit:
            return "contaminated", hit
        if len(mine) >= quota.kept or (solved and question.kind != "answer"):
            return "quota", f"{quota.kept} a seed" if len(mine) >= quota.kept else "one solution a rewritten question"
        if quota.total is not None and self._statistics["kept"].get(question.kind, 0) >= quota.total:
            return "quota", f"{quota.total} in all"
        return "", ""

    def _hit(self, outcome: Outcome) -> str:
        known = known_set(outcome.prompt) if outcome.question.kind != "answer" else ""
        if known.endswith("test"):
            return known
        if self._gate is None:
            return ""
        seed = outcome.question.seed
        if seed.id not in self._hits:  # what is made of a test item is one, however it is masked
            self._hits[seed.id] = self._gate(seed.question) or ""
        return self._hits[seed.id] or self._gate(outcome.prompt) or self._gate(outcome.response) or ""

    def _tally(self, outcome: Outcome) -> None:
        kind, verdict, votes = outcome.question.kind, outcome.verdict, outcome.votes
        assert verdict is not None and votes is not None
        self._count("kept", kind)
        self._count("methods", verdict.method)
        tenth = f"{int(votes['share'] * 10) / 10:.1f}"
        self._statistics["agreement"].setdefault(kind, {})
        self._count("agreement", kind, tenth)

    def _count(self, *path: str) -> None:
        place = self._statistics
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = place.get(path[-1], 0) + 1

    def _failure(self, outcome: Outcome) -> dict[str, Any]:
        reply, ask = outcome.reply, outcome.ask
        assert reply is not None and ask is not None
        return {
            "request": reply.request, "reason": reply.reason, "attempts": reply.attempts, "step": ask.step,
            "question": ask.question, "lineage": lineage(outcome, self._asker),
        }  # fmt: skip


def _row(outcome: Outcome, asker: Asker) -> dict[str, Any]:
    """A row: ``prompt`` and ``response`` are what SFT reads, ``lineage`` is all else."""
    text = f"{outcome.question.kind}\x1f{outcome.prompt}\x1f{outcome.response}"
    name = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    return {"id": name, "prompt": outcome.prompt, "response": outcome.response, "lineage": lineage(outcome, asker)}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}",
                          next_step="name another folder with --out") from error  # fmt: skip


def _kinds(settings: Settings) -> list[Kind]:
    return [kind for kind in KINDS if kind in settings.quotas]


def _digest(seeds: Sequence[Seed]) -> str:
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(json.dumps([seed.id, seed.question, seed.solution, seed.answer, seed.source, seed.licence,
                                  seed.tellings, seed.factory, seed.generators]).encode())  # fmt: skip
    return digest.hexdigest()


def _refused(refused: Refused | None) -> dict[str, Any]:
    if refused is None:
        return {}
    return {reason: {"rows": count, "first": refused.first[reason]} for reason, count in refused.counts.items()}


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run, in order."""
    for path in sorted(folder.glob("rows-*.jsonl")):
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)
