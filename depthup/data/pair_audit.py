"""The audit of preference pairs: every row is read, judged by the rules, and filed; nothing is dropped in silence.

:func:`audit` reads the files once and judges; :func:`write_audit` reads them again and files each row under ``kept``,
``flagged`` or ``bad``, so that memory holds no texts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, DepthupError, shown
from ..files import write_json
from .benchmark_prompts import BenchmarkPrompts
from .conversations import Message
from .length_bias import LengthBias, length_bias
from .likeness import Shingles, alike, shingles, words_of
from .pair_limit import Limit
from .pair_rules import RULES, Dialogue, Finding, own_findings
from .preferences import PairError, defect, dialogues_of
from .raw_rows import RawRow, raw_rows


@dataclass(frozen=True)
class Bad:
    """A row that no pair can be read from.

    Attributes:
        file: Its file.
        row: Its number from 1; of a line in ``.jsonl``.
        field: The field at fault; empty where the row is no JSON object.
        problem: What is wrong.
    """

    file: str
    row: int
    field: str
    problem: str


@dataclass
class FileAudit:
    """What one file holds.

    Attributes:
        name: The file's path.
        num_rows: Rows, good and bad.
        bad: Rows that no pair can be read from.
        rules: Rule -> rows that break it; a row counts under each rule that it breaks.
        num_flagged: Rows that break a rule.
        num_prompts: Distinct prompts of the pairs.
        bias: Of the lengths of answers in characters, over rows that hold a preference.
    """

    name: str
    num_rows: int = 0
    bad: list[Bad] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    num_flagged: int = 0
    num_prompts: int = 0
    bias: LengthBias | None = None

    @property
    def num_kept(self) -> int:
        return self.num_rows - self.num_flagged - len(self.bad)


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found.

    Attributes:
        files: File by file, in their order.
        bias: Of all files together.
        findings: (index of the file, number of the row) -> what it breaks, by the order of ``RULES``.
    """

    files: tuple[FileAudit, ...]
    bias: LengthBias | None
    findings: Mapping[tuple[int, int], Sequence[Finding]]


def audit(
    paths: Sequence[Path],
    *,
    benchmarks: BenchmarkPrompts | None = None,
    limit: Limit | None = None,
    special_tokens: Collection[str] = (),
    near: float = 0.8,
    near_words: int = 3,
    progress: Callable[[int], object] | None = None,
) -> Audit:
    """Judge every row of the files by ``RULES``.

    Args:
        paths: ``.jsonl``, ``.json``, ``.parquet``; rows of any spelling of docs/preferences.md.
        benchmarks: Questions that no prompt may hold.
        limit: What a token limit takes of a pair, :func:`depthup.data.pair_limit.token_limit`.
        special_tokens: Texts besides the known ones that no turn may hold.
        near: Share of word n-grams (Jaccard) from which two rows are one.
        near_words: Words of such an n-gram.
        progress: Called with the number of rows done since the last call.

    Raises:
        DataError: A file is missing or unreadable as a whole.
    """
    judged = _Judged()
    for index, path in enumerate(paths):
        judged.files.append(FileAudit(str(path)))
        prompts: set[bytes] = set()
        first = len(judged.places)
        for raw in raw_rows(path):
            judged.files[-1].num_rows += 1
            pair = _read(raw)
            if isinstance(pair, Bad):
                judged.files[-1].bad.append(pair)
            else:
                found = list(own_findings(raw.value, *pair, special_tokens))
                found += _leaks(pair[0][:-1], benchmarks)
                if limit and defect(*pair[:2]) is None and (finding := limit(*_parts(*pair[:2]))):
                    found.append(finding)
                judged.add(index, raw.number, pair[0], pair[1], found, near_words)
                prompts.add(judged.prompts[-1])
            if progress:
                progress(1)
        judged.files[-1].num_prompts = len(prompts)
        judged.files[-1].bias = judged.bias(first)
    judged.compare(near)
    return judged.result()


def write_audit(result: Audit, folder: Path, about: Mapping[str, Any]) -> None:
    """File every row: ``kept.jsonl``, ``flagged.jsonl``, ``bad.jsonl``, and ``report.json`` beside them.

    A kept row is the line that it was. A flagged one stands whole in ``row``, with its ``file`` and ``number``, the
    ``rule`` and ``detail`` of the heaviest finding, and the others in ``also``. A bad one stands as ``text``.

    Args:
        result: Of :func:`audit`, over files that have not changed since.
        folder: An existing folder.
        about: What else the report tells: settings, versions.

    Raises:
        DataError: A file changed while it was audited.
    """
    names = ("kept", "flagged", "bad")
    streams = {name: open(folder / f"{name}.jsonl", "w", encoding="utf-8") for name in names}  # noqa: SIM115
    try:
        for index, file in enumerate(result.files):
            bad = {each.row: each for each in file.bad}
            seen = 0
            for raw in raw_rows(Path(file.name)):
                seen += 1
                name, text = _filed(raw, bad.get(raw.number), result.findings.get((index, raw.number), ()))
                streams[name].write(text + "\n")
            if seen != file.num_rows:
                raise DataError(f"{file.name} changed while it was audited", next_step="run the audit again")
    finally:
        for stream in streams.values():
            stream.close()
    write_json(folder / "report.json", {**about, **report(result)})


def report(result: Audit) -> dict[str, Any]:
    """The audit as JSON, without the rows."""
    return {
        "rules": RULES,
        "files": {Path(file.name).name: _file_report(file) for file in result.files},
        "length_bias": asdict(result.bias) if result.bias else None,
    }


def _file_report(file: FileAudit) -> dict[str, Any]:
    return {
        "num_rows": file.num_rows,
        "num_kept": file.num_kept,
        "num_flagged": file.num_flagged,
        "num_bad": len(file.bad),
        "num_prompts": file.num_prompts,
        "flagged_by_rule": {rule: file.rules[rule] for rule in RULES if file.rules[rule]},
        "bad_by_field": dict(Counter(each.field for each in file.bad).most_common()),
        "length_bias": asdict(file.bias) if file.bias else None,
    }


@dataclass
class _Judged:
    """What is kept of the rows while they are read: findings, digests, lengths and n-grams, no text."""

    files: list[FileAudit] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # (file, row) of each pair, as all lists below
    findings: list[list[Finding]] = field(default_factory=list)
    prompts: list[bytes] = field(default_factory=list)
    answers: list[tuple[bytes, bytes]] = field(default_factory=list)
    grams: list[Shingles] = field(default_factory=list)
    lengths: list[tuple[int, int] | None] = field(default_factory=list)  # characters; None: no preference to count

    def add(self, file: int, row: int, chosen: Dialogue, rejected: Dialogue, found: list[Finding], size: int) -> None:
        prompt, better, worse = _parts(chosen, rejected)
        texts = [*(message.content for message in prompt), better, worse]
        self.places.append((file, row))
        self.findings.append(found)
        self.prompts.append(_digest("\0".join(f"{message.role}\1{message.content}" for message in prompt)))
        self.answers.append((_digest(better), _digest(worse)))
        self.grams.append(shingles([word for text in texts for word in words_of(text)], size))
        self.lengths.append((len(better), len(worse)) if defect(chosen, rejected) is None else None)

    def compare(self, near: float) -> None:
        """The rules that look at two rows: the earlier one of equals stays, of opposites neither does."""
        seen: dict[tuple[bytes, bytes, bytes], int] = {}
        for index, (prompt, (better, worse)) in enumerate(zip(self.prompts, self.answers, strict=True)):
            other = seen.get((prompt, worse, better))
            if other is not None and better != worse:
                self._find(index, "other way round", other)
                self._find(other, "other way round", index)
            first = seen.setdefault((prompt, better, worse), index)
            if first != index:
                self._find(index, "repeated", first)
        settled = {"repeated", "other way round"}
        for index, (other, likeness) in alike(self.grams, near).items():
            if not any(finding.rule in settled for finding in self.findings[index]):
                self._find(index, "nearly repeated", other, f", likeness {likeness:.2f}")

    def _find(self, index: int, rule: str, other: int, more: str = "") -> None:
        file, row = self.places[other]
        self.findings[index].append(Finding(rule, f"{Path(self.files[file].name).name}:{row}{more}"))

    def bias(self, first: int = 0) -> LengthBias | None:
        lengths = [each for each in self.lengths[first:] if each]
        return length_bias([better for better, _ in lengths], [worse for _, worse in lengths])

    def result(self) -> Audit:
        order = list(RULES)
        findings = {}
        for place, found in zip(self.places, self.findings, strict=True):
            if found:
                findings[place] = tuple(sorted(found, key=lambda each: order.index(each.rule)))
                self.files[place[0]].num_flagged += 1
                self.files[place[0]].rules.update({each.rule for each in found})
        return Audit(tuple(self.files), self.bias(), findings)


def _read(raw: RawRow) -> tuple[Dialogue, Dialogue, float | None] | Bad:
    if raw.problem:
        return Bad(str(raw.file), raw.number, "", raw.problem)
    try:
        return dialogues_of(raw.row)
    except PairError as error:
        return Bad(str(raw.file), raw.number, error.field, error.problem)
    except DepthupError as error:
        return Bad(str(raw.file), raw.number, "", error.problem)


def _parts(chosen: Dialogue, rejected: Dialogue) -> tuple[tuple[Message, ...], str, str]:
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def _leaks(prompt: Dialogue, benchmarks: BenchmarkPrompts | None) -> Iterator[Finding]:
    for number, message in enumerate(prompt if benchmarks else (), 1):
        leak = benchmarks.leak(message.content) if benchmarks and message.role == "user" else None
        if leak:
            question = leak.question
            yield Finding("benchmark prompt", f"{question.benchmark} item {question.item}, {leak.how},"
                          f" share {leak.share:.2f}, in turn {number}: {shown(question.text, 60)}")  # fmt: skip


def _filed(raw: RawRow, bad: Bad | None, findings: Sequence[Finding]) -> tuple[str, str]:
    """(which file, the line) of a row."""
    if bad is not None:
        return "bad", json.dumps({**asdict(bad), "text": raw.text})
    if not findings:
        return "kept", raw.text
    head, *others = findings
    about = {"file": str(raw.file), "number": raw.number, **head._asdict()}
    if others:
        about["also"] = [each._asdict() for each in others]
    return "flagged", f'{{"row": {raw.text.strip()}, {json.dumps(about)[1:]}'


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.strip().encode(errors="surrogatepass"), digest_size=16).digest()
