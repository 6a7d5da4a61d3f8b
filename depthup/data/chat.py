"""Conversations as token ids, and which of them are trained on: completions, each with its end of turn.

Context and answers are tokenised apart, so that the context of a first answer has the very tokens that a prompt has at
inference, and no token lies across the border of the loss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from typing import Any, Literal

import numpy as np

from ..errors import DataError, nearest, shown
from .conversations import Conversation, Message
from .templates import TEMPLATES, Piece, Template
from .tokens import Encoded

OWN = "tokenizer"  # the name of the tokenizer's own chat template
NO_ANSWER, HOLDS_SPECIAL, REFUSED = "no answer", "holds a special token's text", "refused by the chat template"

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_GUARDS = ("a", "1", ".")


@dataclass(frozen=True)
class ChatEncoder:
    """Turns conversations into token ids with a mask; made by :func:`chat_encoder`.

    Attributes:
        tokenizer: A transformers tokenizer.
        template: The named template, or None for the tokenizer's own.
        turns: Whether all answers are trained on, or the last one only.
        train_on_prompt: Whether the context is trained on, too.
        end_of_turn: The token that ends an answer: what generation must stop at.
        prefix: Tokens that the tokenizer puts before every text.
        specials: Texts of the special tokens.
        special_ids: Their ids.
        guard: A text before each later piece, taken off again: some tokenizers put a space before every text.
        guard_ids: Its ids.
        has_marks: Whether the tokenizer's own template marks the answers.
    """

    tokenizer: Any
    template: Template | None
    turns: Literal["all", "last"]
    train_on_prompt: bool
    end_of_turn: int
    prefix: tuple[int, ...]
    specials: tuple[str, ...]
    special_ids: frozenset[int]
    guard: str
    guard_ids: tuple[int, ...]
    has_marks: bool

    def __call__(self, conversations: Sequence[Conversation]) -> list[Encoded | str]:
        """Each conversation up to its last answer, or the reason why it is left out.

        Raises:
            DataError: The template has no end of turn in the loss, or renders a turn differently when others follow.
        """
        made: list[Encoded | str | list[Piece]] = [self._prepare(conversation) for conversation in conversations]
        cut = [(each, conversation.name) for each, conversation in zip(made, conversations, strict=True)
               if isinstance(each, list)]  # fmt: skip
        encoded = iter(self._encode([pieces for pieces, _ in cut], [name for _, name in cut]))
        return [next(encoded) if isinstance(each, list) else each for each in made]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What a model is given at inference: the messages, and what calls for an answer."""
        if self.template is None:
            return self._tokenize([self._render(messages, prompt_only=True)])[0]
        pieces = self.template.pieces(messages, prompt_only=True)
        return self._begun(list(chain.from_iterable(self._tokenize_apart([pieces]))))

    def _prepare(self, conversation: Conversation) -> Encoded | str | list[Piece]:
        messages = conversation.messages
        while messages and messages[-1].role != "assistant":
            messages = messages[:-1]
        if not messages or any(m.role == "assistant" and not m.content.strip() for m in messages):
            return NO_ANSWER
        if any(special in message.content for message in messages for special in self.specials):
            return HOLDS_SPECIAL  # as "</s>" in HTML: it would end the turn in its middle
        try:
            if self.template is not None:
                return self.template.pieces(messages)
            whole = self._render(messages)
        except DataError as error:
            return f"{REFUSED}: {shown(error.problem)}"
        if self.has_marks and (marked := self._marked(messages, conversation.name)):
            return marked
        return self._by_prefixes(messages, whole, conversation.name)

    def _marked(self, messages: Sequence[Message], name: str) -> Encoded | None:
        """By the template's ``{% generation %}`` marks, or None where transformers places them wrongly."""
        made = self.tokenizer.apply_chat_template(
            _as_dicts(messages), return_dict=True, return_assistant_tokens_mask=True
        )
        ids = np.asarray(made["input_ids"], np.int32)
        spans: list[tuple[int, int]] = []
        for inside, group in groupby(range(len(ids)), key=lambda place: bool(made["assistant_masks"][place])):
            places = list(group)
            spans += [(places[0], places[-1] + 1)] if inside else []
        if len(spans) != sum(message.role == "assistant" for message in messages):
            return None  # a mark at white space is lost, and everything after it counts as answer
        return self._with_targets(ids, spans, name)

    def _by_prefixes(self, messages: Sequence[Message], whole: str, name: str) -> list[Piece]:
        """Context and answers, found by rendering the conversation up to each answer and through it."""
        pieces: list[Piece] = []
        cut = 0
        for index, message in enumerate(messages):
            if message.role != "assistant" or (self.turns == "last" and index < len(messages) - 1):
                continue
            before = self._render(messages[:index], prompt_only=True)
            through = whole if index == len(messages) - 1 else self._render(messages[: index + 1])
            if not (whole.startswith(through) and through.startswith(before) and len(before) >= cut):
                raise DataError(
                    f"the tokenizer's chat template renders turn {index + 1} of {name or 'a conversation'} differently"
                    " when it is rendered alone, so the answer cannot be found in the whole",
                    allowed="a template whose text only grows as turns are added",
                    next_step=f"train on the last turn only (turns: last), or name a template: {', '.join(TEMPLATES)}",
                )
            pieces += [Piece(whole[cut : len(before)], False), Piece(whole[len(before) : len(through)], True)]
            cut = len(through)
        return [piece for piece in pieces if piece.text]

    def _encode(self, conversations: list[list[Piece]], names: list[str]) -> list[Encoded]:
        result = []
        flat = iter(self._tokenize_apart(conversations))
        for pieces, name in zip(conversations, names, strict=True):
            parts = [next(flat) for _ in pieces]
            ids = list(chain.from_iterable(parts))
            ids = self._begun(ids) if self.template else ids
            place = len(ids) - sum(map(len, parts))
            spans = []
            for piece, part in zip(pieces, parts, strict=True):
                spans += [(place, place + len(part))] if piece.is_target else []
                place += len(part)
            result.append(self._with_targets(np.asarray(ids, np.int32), spans, name))
        return result

    def _with_targets(self, ids: Any, spans: list[tuple[int, int]], name: str) -> Encoded:
        """Targets are the spans, each up to its end of turn: only white space may follow that."""
        targets = np.full(len(ids), self.train_on_prompt)
        for begin, stop in spans[-1:] if self.turns == "last" else spans:
            end = stop
            while end > begin and int(ids[end - 1]) not in self.special_ids:
                end -= 1
            if end == begin or self.tokenizer.decode(ids[end:stop].tolist()).strip():
                raise _endless(f"the loss of {name}", self.tokenizer.decode(ids[begin:stop].tolist()))
            targets[begin:end] = True
        return Encoded(ids, targets)

    def _begun(self, ids: list[int]) -> list[int]:
        """With what the tokenizer puts before every text, once."""
        return ids if tuple(ids[: len(self.prefix)]) == self.prefix else [*self.prefix, *ids]

    def _tokenize_apart(self, conversations: list[list[Piece]]) -> list[list[int]]:
        """Ids of each piece, conversation after conversation; later pieces as they are inside a text."""
        texts = [
            (self.guard if number else "") + piece.text
            for pieces in conversations for number, piece in enumerate(pieces)
        ]  # fmt: skip
        ids = self._tokenize(texts)
        if not self.guard:
            return ids
        later = [number > 0 for pieces in conversations for number in range(len(pieces))]
        return [
            self._unguarded(text.removeprefix(self.guard), each) if guarded else each
            for text, each, guarded in zip(texts, ids, later, strict=True)
        ]

    def _unguarded(self, text: str, ids: list[int]) -> list[int]:
        if tuple(ids[: len(self.guard_ids)]) == self.guard_ids:
            return ids[len(self.guard_ids) :]
        for guard in _GUARDS:  # the text begins with what joins the usual one
            alone, both = self._tokenize([guard, guard + text])
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        raise DataError(f"the tokenizer joins {shown(text)} with whatever stands before it",
                        next_step="choose a template whose answers begin with a special token or a letter")  # fmt: skip

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        made = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(made["input_ids"])

    def _render(self, messages: Sequence[Message], prompt_only: bool = False) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(
                _as_dicts(messages), tokenize=False, add_generation_prompt=prompt_only
            ))  # fmt: skip
        except Exception as error:  # a template raises what it likes: roles that do not alternate, no place for system
            raise DataError(str(error)) from error


def chat_encoder(
    tokenizer: Any, template: str = OWN, *, turns: Literal["all", "last"] = "all", train_on_prompt: bool = False
) -> ChatEncoder:
    """An encoder that is proved on one short exchange.

    Args:
        tokenizer: A transformers tokenizer.
        template: A name of ``TEMPLATES``, or ``tokenizer`` for its own.
        turns: Whether all answers are trained on, or the last one only.
        train_on_prompt: Whether the context is trained on, too.

    Raises:
        DataError: No such template; the tokenizer has none, or lacks a token of it; no end of turn is in the loss.
    """
    if template != OWN and template not in TEMPLATES:
        raise DataError(
            f"no chat template is called '{template}'{nearest(template, [OWN, *TEMPLATES])}",
            allowed=", ".join([OWN, *TEMPLATES]),
        )
    own = getattr(tokenizer, "chat_template", None)
    if template == OWN and not own:
        raise DataError("the tokenizer has no chat template of its own", allowed=", ".join(TEMPLATES),
                        next_step="name one of them as template")  # fmt: skip
    known = None if template == OWN else _bound(TEMPLATES[template], template, tokenizer)
    added = tokenizer.added_tokens_decoder.items()
    special_ids = frozenset(tokenizer.all_special_ids) | {number for number, token in added if token.special}
    specials = {str(token.content) for _, token in added if token.special} | set(tokenizer.all_special_tokens)
    if known:  # its end of turn may be a token that the tokenizer does not call special
        special_ids |= {tokenizer.convert_tokens_to_ids(known.end_of_turn)}
        specials |= {known.end_of_turn}
    specials = {text for text in specials if text.strip()}
    guard = _guard(tokenizer)
    encoder = ChatEncoder(
        tokenizer, known, turns, train_on_prompt, -1, _prefix(tokenizer), tuple(sorted(specials)), special_ids,
        guard, tuple(tokenizer(guard, add_special_tokens=False)["input_ids"]),
        has_marks=bool(template == OWN and _GENERATION.search(str(own))),
    )  # fmt: skip
    sample = Conversation((Message("user", "Is water wet?"), Message("assistant", "Yes, it is.")), "a sample exchange")
    (proof,) = encoder([sample])
    if isinstance(proof, str) or proof.targets is None:
        raise DataError(f"{sample.name} is {proof}", next_step="name another template")
    end = int(proof.ids[np.flatnonzero(proof.targets)[-1]])
    return replace(encoder, end_of_turn=end)


def encoding_identity(template: str, turns: str, train_on_prompt: bool) -> dict[str, Any]:
    """JSON that changes when the same conversations would get other tokens; the tokenizer's files are the caller's."""
    known = asdict(TEMPLATES[template]) if template in TEMPLATES else template
    return {"template": known, "turns": turns, "train_on_prompt": train_on_prompt}


def _bound(template: Template, name: str, tokenizer: Any) -> Template:
    """The template with the tokenizer's own end of sequence; its end of turn must be one token."""
    if tokenizer.eos_token is None:
        raise _endless(f"the template '{name}'", "the tokenizer has no end-of-sequence token")
    bound = template.with_eos(tokenizer.eos_token)
    end = tokenizer(bound.end_of_turn, add_special_tokens=False)["input_ids"]
    if len(end) != 1:
        raise _endless(f"the template '{name}'", f"{bound.end_of_turn} is no token of this tokenizer")
    return bound


def _endless(where: str, found: str) -> DataError:
    return DataError(
        f"no end of turn is in {where}, so the model would never learn to stop: {shown(found)}",
        allowed="a special token at the end of each answer",
        next_step="add it to the chat template, inside its generation marks, or name a template whose tokens are there",
    )


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text: most often its begin-of-sequence token, or nothing."""
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    places = [place for place in range(len(whole)) if whole[place : place + len(bare)] == bare]
    return tuple(whole[: places[0]]) if places else ()


def _guard(tokenizer: Any) -> str:
    """Empty where a text has the same tokens alone and after a line break."""
    alone, line, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "\n", "\na"))
    return "" if both == [*line, *alone] else "\n"


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
