"""Preference pairs as they come: a prompt, the answer that was chosen and the one that was rejected, of many spellings.

Each row becomes two dialogues, which must be alike up to their last message; that message is the answer. A row of no
known spelling is an error; a row that a preference cannot be read from is passed on as ``Dropped``, with its reason.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, shown
from .sources import Files, Split, _rows, split_of

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
class Message:
    """One turn of a dialogue; ``role`` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt.

    Attributes:
        prompt: The dialogue up to the answer; its last turn is no assistant's.
        chosen: The better answer.
        rejected: The worse one, another text.
        name: Finds the row again, as in ``pairs.jsonl:17``.
        source: The collection that it is from.
        margin: Score of the chosen less that of the rejected answer, where the row tells.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    name: str
    source: str = ""
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was left out, and why."""

    name: str
    reason: Reason


@dataclass(frozen=True)
class PreferenceFiles:
    """Local files of preference rows: ``.jsonl`` and ``.json`` (each also with ``.gz``), ``.parquet``.

    Attributes:
        paths: Files, or folders whose files of these kinds are taken in order of their names. Each is a source.
        min_margin: Rows whose scores differ by less are left out; rows without scores are kept. None keeps all.
    """

    paths: tuple[str, ...]
    min_margin: float | None = None

    def pairs(self) -> Iterator[PreferencePair | Dropped]:
        """Each row as a pair, or as the reason why it is none.

        Raises:
            DataError: A file is missing or unreadable, or a row has no known spelling (file and row are named).
        """
        for path in Files(self.paths)._files():
            source = path.name.partition(".")[0]
            for number, row in _rows(path):
                yield read_pair(row, f"{path.name}:{number}", source, self.min_margin)

    def identity(self, digest: Callable[[Path], str]) -> dict[str, Any]:
        """JSON that changes when the pairs do; ``digest`` gives the SHA-256 of a file."""
        files = [{"name": path.name, "sha256": digest(path)} for path in Files(self.paths)._files()]
        return {"source": "preference-files", "files": files, "min_margin": self.min_margin}


def read_pair(row: Any, name: str, source: str = "", min_margin: float | None = None) -> PreferencePair | Dropped:
    """One row of any known spelling (docs/preferences.md lists them).

    Raises:
        DataError: The row has no known spelling, or a field of it holds no text.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{name} is {shown(row)}, no row with fields", next_step="write one JSON object per row")
    row = {key: value for key, value in row.items() if value is not None}
    chosen, rejected, margin = _answers(row, name)
    given = _prompt(row, name)
    dialogues = (_dialogue(given, chosen, name), _dialogue(given, rejected, name))
    reason = _defect(*dialogues)
    if reason is None and margin is not None and min_margin is not None and margin < min_margin:
        reason = "margin too small"
    if reason is not None:
        return Dropped(name, reason)
    return PreferencePair(dialogues[0][:-1], dialogues[0][-1].content, dialogues[1][-1].content, name, source, margin)


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


_ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}
_PROMPT_FIELDS = ("prompt", "conversations", "question", "instruction", "input", "messages")
_ANSWER_FIELDS = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
_LIST_FIELDS = ("responses", "completions", "candidates")
_SCORE_FIELDS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
                 ("chosen_rating", "rejected_rating"))  # fmt: skip
_TURN = re.compile(r"\n\n(Human|Assistant):")  # as in HH-RLHF (Bai et al. 2022, arXiv:2204.05862)


def _answers(row: Mapping[str, Any], name: str) -> tuple[Any, Any, float | None]:
    """(chosen, rejected, margin), the answers as they stand in the row."""
    for chosen, rejected in _ANSWER_FIELDS:
        if chosen in row and rejected in row:
            for better, worse in _SCORE_FIELDS:
                if better in row and worse in row:
                    return row[chosen], row[rejected], _number(row[better], name) - _number(row[worse], name)
            return row[chosen], row[rejected], None
    for field in _LIST_FIELDS:
        if isinstance(row.get(field), (list, tuple)):
            scored = _scored(row, field, name)
            best, worst = max(scored, key=_score), min(scored, key=_score)
            return best[1], worst[1], best[0] - worst[0]
    raise DataError(
        f"{name} is no preference pair; its fields: {shown(', '.join(map(str, row)), 200)}",
        allowed="chosen and rejected, with prompt, question, instruction or conversations; or responses with scores",
        next_step="rename its fields (docs/preferences.md lists the spellings)",
    )


def _score(scored: tuple[float, Any]) -> float:
    return scored[0]


def _scored(row: Mapping[str, Any], field: str, name: str) -> list[tuple[float, Any]]:
    """(score, answer) of a list of answers: scores stand beside it, or in each of its members."""
    answers = row[field]
    scores = next((row[key] for key in ("scores", "ratings") if key in row), None)
    if scores is None and all(isinstance(answer, Mapping) for answer in answers):
        # fine-grained first: UltraFeedback's overall_score turned a rating of 1 into 10 in some 2,000 rows
        keys = ("fine-grained_score", "score", "rating", "overall_score")
        scores = [next((answer[key] for key in keys if answer.get(key) is not None), None) for answer in answers]
    if not isinstance(scores, (list, tuple)) or len(scores) != len(answers) or len(answers) < 2:
        raise DataError(
            f"{name} has no score for each of at least two {field}", allowed="a list of numbers in 'scores'"
        )
    texts = (answer.get("response", answer) if isinstance(answer, Mapping) else answer for answer in answers)
    return [(_number(score, name), text) for score, text in zip(scores, texts, strict=True)]


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number:
        raise DataError(f"{name} has the score {shown(value)}", allowed="a number")
    return number


def _prompt(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    """What the row says of the prompt; empty where the dialogues hold it."""
    field = next((key for key in _PROMPT_FIELDS if row.get(key)), None)
    if field is None:
        return ()
    value = row[field]
    if isinstance(value, str):
        if field == "instruction" and row.get("input"):
            value = f"{value}\n\n{_text(row['input'], name)}"
        messages = _turns(value) or (Message("user", _text(value, name)),)
        if messages[-1] == Message("assistant", ""):  # the text ends where the answer begins
            messages = messages[:-1]
    else:
        messages = _messages(value, name)
        if field == "messages" and messages[-1].role == "assistant":  # the chosen dialogue once more
            messages = messages[:-1]
    system = row.get("system") or row.get("system_prompt")
    if system and messages and messages[0].role != "system":
        messages = (Message("system", _text(system, name)), *messages)
    return messages


def _dialogue(given: tuple[Message, ...], answer: Any, name: str) -> tuple[Message, ...]:
    """The dialogue that ends with the answer: a text, a message, some messages, or the whole dialogue."""
    if isinstance(answer, str):
        turns = _turns(answer)
        if given and not (turns and turns[: len(given)] == given):
            return (*given, Message("assistant", _text(answer, name)))
        if not turns:
            raise DataError(
                f"{name} has no prompt: two texts that begin alike do not tell where the prompt ends",
                allowed="a field prompt, dialogues in messages, or texts with \\n\\nHuman: and \\n\\nAssistant:",
                next_step="write the prompt into a field of its own",
            )
        return turns
    messages = _messages([answer] if isinstance(answer, Mapping) else answer, name)
    if messages[0].role == "assistant":
        return (*given, *messages)
    if given and given[-1] not in messages:
        raise DataError(
            f"{name} has a prompt that its dialogues do not hold: {shown(given[-1].content)}",
            next_step="correct the prompt, or take it out: the dialogues are enough",
        )
    return (given[0], *messages) if given and given[0].role == "system" != messages[0].role else messages


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    """A list of messages, spelt role/content or from/value."""
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(each, Mapping) for each in value):
        raise DataError(f"{name} holds {shown(value)}", allowed="a text, or a list of messages")
    result = []
    for each in value:
        role, content = each.get("role", each.get("from")), each.get("content", each.get("value"))
        if role not in _ROLES:
            raise DataError(f"{name} has a message of the role {shown(role)}", allowed=", ".join(_ROLES))
        result.append(Message(_ROLES[role], _text(content, name)))
    return tuple(result)


def _turns(text: str) -> tuple[Message, ...]:
    """The turns of a text with ``\\n\\nHuman:`` and ``\\n\\nAssistant:``; empty where it does not begin with one."""
    parts = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if parts[0].strip() or parts[1:2] != ["Human"]:
        return ()
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} holds {shown(value)} where a text belongs")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(
            f"{name} holds half of a surrogate pair, which is no text", next_step="write the row again as valid UTF-8"
        )
    return value


def _defect(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Reason | None:
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
