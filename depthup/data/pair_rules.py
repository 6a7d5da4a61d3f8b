"""What can be wrong with one preference pair, or with two of them: each rule by its name, and how it is found.

A new rule is one row of ``RULES`` and one line where it is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import shown
from .conversations import Message
from .likeness import words_of
from .preferences import defect

Dialogue = tuple[Message, ...]


class Finding(NamedTuple):
    """That a row breaks a rule of ``RULES``, and where."""

    rule: str
    detail: str


# rule -> what it means. The order is that of weight: a row that breaks several is filed under the first.
RULES: dict[str, str] = {
    "answers equal": "chosen and rejected are one text",
    "answers alike": "chosen and rejected differ in case, spaces and punctuation only",
    "scores equal": "both answers have the same score, or the row says that it is a tie",
    "scores contradict": "the chosen answer has the lower score, by one of the row's own scores",
    "other way round": "another row prefers the rejected answer to the chosen one, for the same prompt",
    "repeated": "an earlier row has the same prompt and answers",
    "nearly repeated": "an earlier row shares most word n-grams of prompt and answers",
    "benchmark prompt": "a turn of the prompt is a question of a benchmark, or nearly so",
    "turns": "the dialogues are no prompt with two answers: they part early, do not alternate, or end with no answer",
    "empty turn": "a turn or an answer holds no text",
    "marker in a text": "a role's name or a special token stands inside a text, where a template puts its own",
    "prompt in the answer": "an answer repeats the last turn of the prompt",
    "difference truncated": "within the token limit both answers are alike",
}

# Where a model's template puts a mark of its own; each is looked for in every text.
_MARKS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>",
)  # fmt: skip
# Names of roles at the beginning of a line, as plain templates write them.
_ROLE = re.compile(
    r"^(?:(?:### ?(?:Instruction|Response|Input|User|Assistant|System|Human):)|(?:Human|Assistant|USER|ASSISTANT):)",
    re.M,
)
_MIN_REPEATED = 8  # words of a turn from which its repetition in an answer says something
_SCORED_LISTS = ("completions", "responses")


def own_findings(row: Mapping[str, Any], chosen: Dialogue, rejected: Dialogue, margin: float | None,
                 special_tokens: Iterable[str] = ()) -> Iterator[Finding]:  # fmt: skip
    """What one row breaks by itself.

    Args:
        row: The row as it lies in its file.
        chosen: Its dialogue with the chosen answer, :func:`depthup.data.preferences.dialogues_of`.
        rejected: The other one.
        margin: The chosen answer's score less the other's.
        special_tokens: Texts besides the known marks that no text may hold.
    """
    better, worse = (dialogue[-1].content for dialogue in (chosen, rejected))
    if better.strip() == worse.strip():
        yield Finding("answers equal", shown(better, 60))
    elif words_of(better) == words_of(worse) != []:
        yield Finding("answers alike", shown(better, 60))
    yield from _scores(row, margin)
    reason = defect(chosen, rejected)
    if reason in ("no answer of the assistant", "dialogues part before the answer", "no prompt",
                  "turns do not alternate"):  # fmt: skip
        yield Finding("turns", reason)
    for side, dialogue in (("chosen", chosen), ("rejected", rejected)):
        for number, message in enumerate(dialogue, 1):
            if not message.content.strip() and (side == "chosen" or number == len(dialogue)):
                where = f"the {side} answer" if number == len(dialogue) else f"turn {number}"
                yield Finding("empty turn", f"{where}, of the {message.role}")
    yield from _marked(chosen, rejected, tuple(dict.fromkeys((*_MARKS, *special_tokens))))
    yield from _echoed(chosen, better, worse)


def _scores(row: Mapping[str, Any], margin: float | None) -> Iterator[Finding]:
    if margin == 0 or row.get("status") == "tie":  # the field of Argilla's Orca pairs
        yield Finding("scores equal", "status: tie" if margin != 0 else "margin 0")
    if margin is not None and margin < 0:
        yield Finding("scores contradict", f"margin {margin:g}")
    for field in _SCORED_LISTS:
        answers = row.get(field)
        if isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers):
            yield from _two_scores(answers)


def _two_scores(answers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Answers that two scores order differently, as in UltraFeedback where a rating of 1 was read as 10."""
    scored = [(answer.get("fine-grained_score"), answer.get("overall_score")) for answer in answers]
    both = [(float(fine), float(overall)) for fine, overall in scored
            if isinstance(fine, int | float) and isinstance(overall, int | float)]  # fmt: skip
    if len(both) == len(answers) > 1:
        best, worst = max(both), min(both)
        if best[0] > worst[0] and best[1] < worst[1]:
            yield Finding("scores contradict", f"overall_score {best[1]:g} against {worst[1]:g}, "
                          f"fine-grained_score {best[0]:g} against {worst[0]:g}")  # fmt: skip


def _marked(chosen: Dialogue, rejected: Dialogue, marks: Sequence[str]) -> Iterator[Finding]:
    places = [(f"turn {number}", message.content) for number, message in enumerate(chosen[:-1], 1)]
    places += [("the chosen answer", chosen[-1].content), ("the rejected answer", rejected[-1].content)]
    for where, text in places:
        mark = next((mark for mark in marks if mark in text), None)
        if mark is None and (role := _ROLE.search(text)):
            mark = role.group()
        if mark is not None:
            yield Finding("marker in a text", f"{mark} in {where}")


def _echoed(chosen: Dialogue, better: str, worse: str) -> Iterator[Finding]:
    asked = next((message.content for message in reversed(chosen[:-1]) if message.role == "user"), "")
    words = words_of(asked)
    if len(words) < _MIN_REPEATED:
        return
    wanted = f" {' '.join(words)} "
    for side, answer in (("chosen", better), ("rejected", worse)):
        if len(answer) >= len(words) and wanted in f" {' '.join(words_of(answer))} ":
            yield Finding("prompt in the answer", f"{side}: {shown(asked, 60)}")
