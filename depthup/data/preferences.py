"""Preference pairs as they come: a prompt, the answer that was chosen and the one that was rejected, of many spellings.

Each row becomes two dialogues, which must be alike up to their last message; that message is the answer. A row of no
known spelling is an error; a row that a preference cannot be read from is passed on as ``Dropped``, with its reason.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import DataError, shown
from .conversations import Message, RowSource, read_turns
from .sources import Row, Split, require_text, split_of

Reason = Literal[
    "chosen equals rejected",
    "empty answer",
    "no prompt",
    "no answer of the assistant",
    "dialogues part before the answer",
    "turns do not alternate",
    "margin too small",
    "repeated",
    "longer than max_tokens",
    "truncated to nothing",
    "difference truncated",
]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt.

    Attributes:
        prompt: The dialogue up to the answer; its last turn is no assistant's.
        chosen: The better answer.
        rejected: The worse one, another text.
        name: Finds the row again, as in ``pairs.jsonl:17``.
        source: The file or data set that it is from.
        margin: Score of the chosen less that of the rejected answer, where the row tells.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    name: str
    source: str = ""
    margin: float | None = None


class PairError(DataError):
    """A row that is no preference pair of a known spelling.

    Attributes:
        field: The field at fault; empty where the row is no object.
    """

    def __init__(
        self, problem: str, *, field: str = "", allowed: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(problem, allowed=allowed, next_step=next_step)
        self.field = field


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was left out, and why."""

    name: str
    reason: Reason


def read_pairs(source: RowSource, min_margin: float | None = None) -> Iterator[PreferencePair | Dropped]:
    """Each row of a source as a pair, or as the reason why it is none.

    Args:
        source: Files, or a data set of the hub; its rows may be of several spellings.
        min_margin: Rows whose scores differ by less are dropped; rows without scores are kept. None keeps all.

    Raises:
        DataError: A row has no known spelling, or a field of it holds no text; file and row are named.
    """
    for row in source.rows():
        yield pair_of(row, min_margin)


def pair_of(row: Row, min_margin: float | None = None) -> PreferencePair | Dropped:
    """The pair of one row of any known spelling (docs/preferences.md lists them); see :func:`read_pairs`."""
    *dialogues, margin = dialogues_of(row)
    reason = defect(*dialogues)
    if reason is None and margin is not None and min_margin is not None and margin < min_margin:
        reason = "margin too small"
    if reason is not None:
        return Dropped(row.name, reason)
    source = row.name.rpartition(":")[0]
    return PreferencePair(
        dialogues[0][:-1], dialogues[0][-1].content, dialogues[1][-1].content, row.name, source, margin
    )


def dialogues_of(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...], float | None]:
    """(dialogue with the chosen answer, dialogue with the rejected one, margin of their scores) of one row.

    The dialogues are as they stand, whether or not a preference can be read from them.

    Raises:
        PairError: The row has no known spelling, or a field of it holds no text.
    """
    if not isinstance(row.value, Mapping):
        raise PairError(
            f"{row.place} is {shown(row.value)}", allowed="an object with fields, as in {prompt, chosen, rejected}"
        )
    fields = {key: value for key, value in row.value.items() if value is not None}
    answers, margin = _answers(fields, row.place)
    given = _prompt(fields, row.place)
    chosen, rejected = (_dialogue(given, answer, row.place, field) for field, answer in answers)
    return chosen, rejected, margin


def select_pairs(
    pairs: Iterable[PreferencePair | Dropped], split: Split, held_out: float, max_pairs: int | None = None
) -> Iterator[PreferencePair | Dropped]:
    """The pairs of one side, at most ``max_pairs`` of them; exact repetitions are dropped.

    The side is a fixed function of the prompt, so that no prompt stands on both sides.

    Args:
        pairs: Of one or several sources.
        split: The side; what was dropped before counts on the training side.
        held_out: Share of prompts, from 0 to 1, that is held out.
        max_pairs: None for all.
    """
    seen: set[bytes] = set()
    for pair in pairs:
        if isinstance(pair, Dropped):
            if split == "train":
                yield pair
            continue
        prompt = "\0".join(f"{message.role}\1{message.content}" for message in pair.prompt)
        if split_of(prompt, held_out) != split:
            continue
        digest = hashlib.sha256(f"{prompt}\0{pair.chosen}\0{pair.rejected}".encode()).digest()[:16]
        if digest in seen:
            yield Dropped(pair.name, "repeated")
            continue
        if max_pairs is not None and len(seen) >= max_pairs:
            return
        seen.add(digest)
        yield pair


_PROMPT_FIELDS = ("prompt", "conversations", "question", "instruction", "input", "messages")
_ANSWER_FIELDS = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
_LIST_FIELDS = ("responses", "completions", "candidates")
_SCORE_FIELDS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
                 ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"))  # fmt: skip
_TURN = re.compile(r"\n\n(Human|Assistant):")  # as in HH-RLHF (Bai et al. 2022, arXiv:2204.05862)


def _answers(row: Mapping[str, Any], place: str) -> tuple[list[tuple[str, Any]], float | None]:
    """([(field, chosen answer), (field, rejected answer)], margin), the answers as they stand in the row."""
    for chosen, rejected in _ANSWER_FIELDS:
        if chosen in row and rejected in row:
            answers = [(chosen, row[chosen]), (rejected, row[rejected])]
            for better, worse in _SCORE_FIELDS:
                if better in row and worse in row:
                    return answers, _number(row[better], place, better) - _number(row[worse], place, worse)
            return answers, None
    for field in _LIST_FIELDS:
        if isinstance(row.get(field), (list, tuple)):
            scored = _scored(row, field, place)
            best, worst = max(scored, key=_score), min(scored, key=_score)
            return [(field, best[1]), (field, worst[1])], best[0] - worst[0]
    if "output_1" in row and "output_2" in row:
        return _compared(row, place)
    raise PairError(
        f"{place} is no preference pair; its fields: {shown(', '.join(map(str, row)), 200)}",
        field="rejected" if "chosen" in row else "chosen",
        allowed="chosen and rejected, with prompt, question, instruction or conversations; or responses with scores",
        next_step="rename its fields (docs/preferences.md lists the spellings)",
    )


def _compared(row: Mapping[str, Any], place: str) -> tuple[list[tuple[str, Any]], float]:
    """Of a row of AlpacaFarm (arXiv:2305.14387): preference 1 is for output_1, 2 for output_2, 0 or 1.5 for neither."""
    preference = _number(row.get("preference"), place, "preference")
    if preference != 0 and not 1 <= preference <= 2:
        raise PairError(f"{place} has the preference {preference:g}", field="preference", allowed="0, or from 1 to 2")
    margin = 0.0 if preference == 0 else 2 * preference - 3
    answers = [("output_1", row["output_1"]), ("output_2", row["output_2"])]
    return answers[::-1] if margin > 0 else answers, abs(margin)


def _score(scored: tuple[float, Any]) -> float:
    return scored[0]


def _scored(row: Mapping[str, Any], field: str, place: str) -> list[tuple[float, Any]]:
    """(score, answer) of a list of answers: scores stand beside it, or in each of its members."""
    answers = row[field]
    scores = next((row[key] for key in ("scores", "ratings") if key in row), None)
    if scores is None and all(isinstance(answer, Mapping) for answer in answers):
        # fine-grained first: UltraFeedback's overall_score turned a rating of 1 into 10 in some 2,000 rows
        keys = ("fine-grained_score", "score", "rating", "overall_score")
        scores = [next((answer[key] for key in keys if answer.get(key) is not None), None) for answer in answers]
    if not isinstance(scores, (list, tuple)) or len(scores) != len(answers) or len(answers) < 2:
        raise PairError(
            f"{place} has no score for each of at least two {field}",
            field="scores" if scores is not None else field,
            allowed="a list of numbers in 'scores'",
        )
    texts = (answer.get("response", answer) if isinstance(answer, Mapping) else answer for answer in answers)
    return [(_number(score, place, "scores"), text) for score, text in zip(scores, texts, strict=True)]


def _number(value: Any, place: str, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number:
        raise PairError(f"{place} has the score {shown(value)}", field=field, allowed="a number")
    return number


def _prompt(row: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    """What the row says of the prompt; empty where the dialogues hold it."""
    field = next((key for key in _PROMPT_FIELDS if row.get(key)), None)
    if field is None:
        return ()
    value = row[field]
    if isinstance(value, str):
        if field == "instruction" and row.get("input"):
            value = f"{value}\n\n{_text(row['input'], place, 'input')}"
        messages = _turns(value) or (Message("user", _text(value, place, field)),)
        if messages[-1] == Message("assistant", ""):  # the text ends where the answer begins
            messages = messages[:-1]
    else:
        messages = _messages(value, place, field)
        if field == "messages" and messages[-1].role == "assistant":  # the chosen dialogue once more
            messages = messages[:-1]
    system = row.get("system") or row.get("system_prompt")
    if system and messages and messages[0].role != "system":
        messages = (Message("system", _text(system, place, "system")), *messages)
    return messages


def _dialogue(given: tuple[Message, ...], answer: Any, place: str, field: str) -> tuple[Message, ...]:
    """The dialogue that ends with the answer: a text, a message, some messages, or the whole dialogue."""
    if isinstance(answer, str):
        turns = _turns(answer)
        if given and not (turns and turns[: len(given)] == given):
            return (*given, Message("assistant", _text(answer, place, field)))
        if not turns:
            raise PairError(
                f"{place} has no prompt: two texts that begin alike do not tell where the prompt ends",
                field="prompt",
                allowed="a field prompt, dialogues in messages, or texts with \\n\\nHuman: and \\n\\nAssistant:",
                next_step="write the prompt into a field of its own",
            )
        return turns
    messages = _messages([answer] if isinstance(answer, Mapping) else answer, place, field)
    if messages[0].role == "assistant":
        return (*given, *messages)
    if given and given[-1] not in messages:
        raise PairError(
            f"{place} has a prompt that its dialogues do not hold: {shown(given[-1].content)}",
            field=field,
            next_step="correct the prompt, or take it out: the dialogues are enough",
        )
    return (given[0], *messages) if given and given[0].role == "system" != messages[0].role else messages


def _messages(value: Any, place: str, field: str) -> tuple[Message, ...]:
    try:
        messages = read_turns(value, place)
    except DataError as error:
        raise PairError(error.problem, field=field, allowed=error.allowed, next_step=error.next_step) from error
    if not messages:
        raise PairError(f"{place} holds an empty list of messages", field=field, next_step="take the row out")
    return messages


def _turns(text: str) -> tuple[Message, ...]:
    """The turns of a text with ``\\n\\nHuman:`` and ``\\n\\nAssistant:``; empty where it does not begin with one."""
    parts = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if parts[0].strip() or parts[1:2] != ["Human"]:
        return ()
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True))


def _text(value: Any, place: str, field: str) -> str:
    if not isinstance(value, str):
        problem = f"{place} holds {shown(value)} where a text belongs"
        raise PairError(problem, field=field, next_step="take the row out")
    try:
        require_text(value, place)
    except DataError as error:
        raise PairError(error.problem, field=field, next_step=error.next_step) from error
    return value


def defect(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Reason | None:
    """Why two dialogues are no preference pair; None if they are one."""
    prompt = chosen[:-1]
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        return "no answer of the assistant"
    if prompt != rejected[:-1]:
        return "dialogues part before the answer"
    if not any(message.role == "user" and message.content.strip() for message in prompt):
        return "no prompt"
    if any(a.role == b.role != "tool" for a, b in itertools.pairwise(chosen)):
        return "turns do not alternate"
    if not chosen[-1].content.strip() or not rejected[-1].content.strip():
        return "empty answer"
    if chosen[-1].content.strip() == rejected[-1].content.strip():
        return "chosen equals rejected"
    return None
