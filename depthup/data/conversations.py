"""Conversations out of rows of the usual formats, read as they come.

A row's format is recognised by its keys, or named. ``LISTS`` are formats that hold a list of turns, ``COLUMNS`` formats
that hold prompt and completion side by side; a new one is one row of these tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import DataError, nearest, shown
from .sources import Row, Split, require_text, split_of

ROLES = ("system", "user", "assistant", "tool")

# What data sets call those who speak.
_SPEAKERS = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
    "bot": "assistant", "tool": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
# What some data sets put behind an answer. It is taken off: a template ends each answer with its own token, and to
# another tokenizer than theirs the mark would be text.
_END_MARKS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: a role of ``ROLES`` and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in their order, and a name that finds them again in their source."""

    messages: tuple[Message, ...]
    name: str = ""

    @property
    def has_answer(self) -> bool:
        """Whether an assistant says anything."""
        return any(message.role == "assistant" and message.content.strip() for message in self.messages)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the first of the assistant."""
        roles = [message.role for message in self.messages]
        return self.messages[: roles.index("assistant") if "assistant" in roles else len(roles)]


class RowSource(Protocol):
    """Anything that yields rows in a fixed order: files, hub data sets."""

    def rows(self) -> Iterator[Row]: ...


@dataclass(frozen=True)
class Turns:
    """A format whose rows hold a list of turns, each with a speaker and a text.

    Attributes:
        key: The field that holds the list.
        system: A field with the system message, where the list has none.
    """

    key: str
    system: str | None = None

    def fits(self, fields: Mapping[str, Any]) -> bool:
        return isinstance(fields.get(self.key), list | tuple)


@dataclass(frozen=True)
class Columns:
    """A format whose rows hold one prompt and its completion, each a text or a list of turns.

    Attributes:
        prompt: Field of the prompt.
        completion: Field of the completion.
        context: A field that follows the prompt in the same message, after an empty line, where it is not empty.
        system: A field with the system message.
        history: A field with earlier exchanges, a list of [prompt, completion].
        instances: A field with a list of rows, each of which gives a conversation of its own: ``context`` and
            ``completion`` stand in these rows.
    """

    prompt: str
    completion: str
    context: str | None = None
    system: str | None = None
    history: str | None = None
    instances: str | None = None

    def fits(self, fields: Mapping[str, Any]) -> bool:
        return self.prompt in fields and (self.instances or self.completion) in fields


LISTS: dict[str, Turns] = {
    "messages": Turns("messages"),
    "sharegpt": Turns("conversations", system="system"),
}
COLUMNS: dict[str, Columns] = {
    "alpaca": Columns("instruction", "output", context="input", system="system", history="history"),
    "self-instruct": Columns("instruction", "output", context="input", instances="instances"),
    "dolly": Columns("instruction", "response", context="context"),
    "prompt-completion": Columns("prompt", "completion", system="system"),
    "prompt-response": Columns("prompt", "response", system="system"),
    "question-answer": Columns("question", "answer"),
    "orca": Columns("question", "response", system="system_prompt"),
    "metamath": Columns("query", "response"),
    "problem-solution": Columns("problem", "solution"),
}
FORMATS: dict[str, Turns | Columns] = {**LISTS, **COLUMNS}


def read_conversations(source: RowSource, format: str | None = None) -> Iterator[Conversation]:
    """Every conversation of a source, in order; a row of ``self-instruct`` gives one for each of its instances.

    Args:
        source: Its rows may be of several formats, as the files of a folder are.
        format: A name of ``FORMATS`` that every row must have; None recognises each row by its keys.

    Raises:
        DataError: A row fits no format, or several; a turn is no text, or its speaker unknown. File and row are named.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"no format of conversations is called '{format}'{nearest(format, FORMATS)}",
                        allowed=", ".join(FORMATS))  # fmt: skip
    for row in source.rows():
        yield from conversations_of(row, format)


def conversations_of(row: Row, format: str | None = None) -> Iterator[Conversation]:
    """The conversations of one row; see :func:`read_conversations`."""
    if not isinstance(row.value, Mapping):
        raise DataError(f"{row.place} is no mapping of fields but {shown(row.value)}", allowed=_formats())
    known = FORMATS[format or _recognise(row)]
    if not known.fits(row.value):
        raise DataError(f"{row.place} is not of the format '{format}': its keys are {_keys(row)}", allowed=_formats())
    if isinstance(known, Turns):
        system = _system(row, known.system)
        turns = read_turns(row.value[known.key], row.place)
        if not turns:
            raise DataError(f"{row.place} holds a conversation without a turn", next_step="take the row out")
        yield Conversation((*(() if turns[0].role == "system" else system), *turns), row.name)
    elif known.instances is None:
        yield Conversation(_of_columns(known, row, row.value), row.name)
    else:
        instances = row.value[known.instances]
        if not isinstance(instances, list | tuple) or not all(isinstance(each, Mapping) for each in instances):
            raise DataError(f"{row.place}: '{known.instances}' is no list of rows", allowed="a list of rows")
        for number, instance in enumerate(instances, 1):
            fields = {**row.value, **instance}
            name = row.name if len(instances) == 1 else f"{row.name}.{number}"
            yield Conversation(_of_columns(known, row, fields), name)


def read_turns(turns: Any, place: str) -> tuple[Message, ...]:
    """A list of ``{role, content}`` or ``{from, value}``; a content may be a list of parts, if all are text.

    Raises:
        DataError: A turn is neither, its speaker unknown, or its content no text.
    """
    if not isinstance(turns, list | tuple):
        raise DataError(f"{place} has no list of turns but {shown(turns)}", allowed="[{role, content}, ...]")
    return tuple(_message(turn, f"turn {number} of {place}") for number, turn in enumerate(turns, 1))


def select_conversations(
    conversations: Iterable[Conversation], split: Split, held_out: float, max_conversations: int | None = None
) -> Iterator[Conversation]:
    """Those of one side, exact repetitions left out; equal prompts stand on the same side, whatever the answers.

    Args:
        conversations: In a fixed order.
        split: The side.
        held_out: Share of prompts, from 0 to 1, that is held out.
        max_conversations: At most so many.
    """
    seen: set[bytes] = set()
    for conversation in conversations:
        if split_of(_plain(conversation.prompt), held_out) != split:
            continue
        digest = hashlib.sha256(_plain(conversation.messages).encode()).digest()[:16]
        if digest in seen:
            continue
        if max_conversations is not None and len(seen) >= max_conversations:
            return
        seen.add(digest)
        yield conversation


def _recognise(row: Row) -> str:
    for name, turns in LISTS.items():  # a list of turns says more than the columns that repeat its first prompt
        if turns.fits(row.value):
            return name
    found = [name for name, columns in COLUMNS.items() if columns.fits(row.value)]
    if len(found) == 1:
        return found[0]
    problem = f"fits several formats ({', '.join(found)})" if found else "is of no known format"
    raise DataError(
        f"{row.place} {problem}: its keys are {_keys(row)}",
        allowed=_formats(),
        next_step="name the format" if found else "rename the fields, or take the row out",
    )


def _of_columns(known: Columns, row: Row, fields: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = (_either(fields, key, role, row) for key, role in
                          ((known.prompt, "user"), (known.completion, "assistant")))  # fmt: skip
    context = fields.get(known.context) if known.context else None
    if context:
        if not isinstance(context, str) or len(prompt) != 1:
            raise DataError(f"{row.place} has no text in '{known.context}'", allowed="a text, or an empty one")
        require_text(context, row.place)
        prompt = (Message("user", f"{prompt[0].content}\n\n{context}"),)
    history: list[Message] = []
    for exchange in (fields.get(known.history) if known.history else None) or ():
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise DataError(f"{row.place} has no exchanges in '{known.history}'", allowed="[[prompt, completion], ...]")
        history += (_text(said, role, row.place) for said, role in zip(exchange, ("user", "assistant"), strict=True))
    system = () if prompt and prompt[0].role == "system" else _system(row, known.system)
    return (*system, *history, *prompt, *completion)


def _either(fields: Mapping[str, Any], key: str, role: str, row: Row) -> tuple[Message, ...]:
    value = fields.get(key)
    if isinstance(value, list | tuple):
        return read_turns(value, f"'{key}' in {row.place}")
    return (_text(value, role, f"'{key}' in {row.place}"),)


def _message(turn: Any, place: str) -> Message:
    for speaker, content in (("role", "content"), ("from", "value")):
        if isinstance(turn, Mapping) and speaker in turn and content in turn:
            role = _SPEAKERS.get(turn[speaker]) if isinstance(turn[speaker], str) else None
            if role is None:
                raise DataError(f"{place} is spoken by {shown(turn[speaker])}", allowed=", ".join(_SPEAKERS))
            if turn.get("tool_calls"):
                raise DataError(f"{place} calls tools, for which templates have no common form",
                                next_step="write the call into its content as the model shall write it")  # fmt: skip
            return _text(turn[content], role, place)
    keys = ", ".join(map(str, turn)) if isinstance(turn, Mapping) else shown(turn)
    raise DataError(f"{place} is no turn: {keys}", allowed="{role, content} or {from, value}")


def _text(value: Any, role: str, place: str) -> Message:
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise DataError(f"{place} is no text but {shown(value)}", allowed="a text", next_step="take the row out")
    require_text(value, place)
    mark = next((mark for mark in _END_MARKS if role == "assistant" and value.endswith(mark)), "")
    return Message(role, value.removesuffix(mark))


def _system(row: Row, key: str | None) -> tuple[Message, ...]:
    value = row.value.get(key) if key else None
    return (_text(value, "system", f"'{key}' in {row.place}"),) if value else ()


def _plain(messages: Iterable[Message]) -> str:
    return "\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)


def _keys(row: Row) -> str:
    return shown(", ".join(map(str, row.value)), 200) or "none"


def _formats() -> str:
    lists = [f"{name} {{{turns.key}}}" for name, turns in LISTS.items()]
    columns = [f"{name} {{{each.prompt}, {each.instances or each.completion}}}" for name, each in COLUMNS.items()]
    return ", ".join(lists + columns)
