"""Requests as tokens, cut as lm-eval 0.4.13 cuts them, each text tokenised once.

Context and continuation are tokenised as one text, since a token may span their border, and the tokens beyond as many
as the context has alone count as the continuation. Few-shot prompts repeat long texts, so a context is cut in two where
that cannot change a token, and its pieces are tokenised apart: between a letter and a space, if no token of the
vocabulary spans such a place. Then no merge of byte-pair encoding and no piece of a unigram model can either. The first
contexts are tokenised both ways; at any difference all texts are tokenised whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, shown
from ..models import Tokenizer, end_of_text
from .requests import Completion, Continuation, Whole

Tokens = NDArray[np.int32]

_SPANNING = re.compile(r"[A-Za-z][ Ġ▁]")  # the space as itself, in byte-level and in SentencePiece vocabularies
_PLACE = re.compile(r"[A-Za-z](?= [A-Za-z])")
_MIN_HEAD = 64  # characters; a shorter beginning is not worth a cut
_NUM_PROVED = 8  # contexts tokenised both ways


@dataclass(frozen=True)
class Path:
    """A text whose end is scored: the model reads ``tokens[:-1]``; the last ``num_scored`` tokens are its targets."""

    tokens: Tokens
    num_scored: int


class Encoder:
    """Makes paths of requests.

    Args:
        tokenizer: Of the model.
        max_length: Tokens that the model reads at once; longer texts lose their beginning.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        bos = tokenizer.bos_token_id
        self._prefix = int(bos) if bos is not None else end_of_text(tokenizer)
        self._prefix_text = tokenizer.decode(self._prefix)
        self._cuts: bool | None = None  # unknown
        self._eats_space = False

    def continuations(self, requests: Sequence[Continuation]) -> list[Path]:
        """One path a request.

        Raises:
            DataError: A continuation has no token of its own, or more than the model reads at once.
        """
        pairs = [_moved_spaces(request) for request in requests]
        heads = [self._head(context) for context, _ in pairs]
        self._prove([context for context, _ in pairs], heads)
        if not self._cuts:
            heads = [0] * len(pairs)
        beginnings = self._encode_all(
            [context[:head] if head else context for (context, _), head in zip(pairs, heads, strict=True) if context]
        )
        plain = [text for context, text in pairs if not context]
        wholes = [context + text for (context, text), head in zip(pairs, heads, strict=True) if context and not head]
        tails = [
            rest
            for (context, text), head in zip(pairs, heads, strict=True)
            if head
            for rest in (self._tail(context, head), self._tail(context + text, head))
        ]
        whole_tokens, inner = self._encode_all(wholes), self._encode_all([*plain, *tails], special=False)
        paths = []
        for request, (context, text), head in zip(requests, pairs, heads, strict=True):
            if not context:
                tokens, num_context = self._without_context(inner[text])
            elif head:
                begin, end = beginnings[context[:head]], inner[self._tail(context + text, head)]
                tokens = np.concatenate([begin, end])
                num_context = len(begin) + len(inner[self._tail(context, head)])
            else:
                tokens, num_context = whole_tokens[context + text], len(beginnings[context])
            paths.append(self._path(tokens, num_context, request))
        return paths

    def wholes(self, requests: Sequence[Whole]) -> list[list[Path]]:
        """The windows of each text: each token is predicted once, in the first from the beginning on.

        Every window after the first begins with one token of context, and the last reaches as far back as it can.
        """
        tokens = self._encode_all([request.text for request in requests])
        return [self._windows(tokens[request.text]) for request in requests]

    def prompts(self, requests: Sequence[Completion]) -> list[list[int]]:
        """The tokens of each context; where new ones would not fit behind them, the first are left out.

        Raises:
            DataError: A request wants as many new tokens as the model reads at once, or its context has no token.
        """
        tokens = self._encode_all([request.context for request in requests])
        found = []
        for request in requests:
            room = self._max_length - request.max_new_tokens
            if room < 1 or not len(tokens[request.context]):
                raise DataError(
                    f"cannot write {request.max_new_tokens} tokens after a context of {len(tokens[request.context])}",
                    allowed=f"a context of 1 token or more, and less than {self._max_length} new ones",
                    next_step="ask for fewer new tokens, or for a model with a longer context",
                )
            found.append(tokens[request.context][-room:].tolist())
        return found

    def _without_context(self, tokens: Tokens) -> tuple[Tokens, int]:
        """Tokens after BOS, or EOS where there is none; a text that begins with it stands as it is."""
        if len(tokens) and tokens[0] == self._prefix:
            return tokens, 1
        return np.concatenate([np.array([self._prefix], np.int32), tokens]), 1

    def _path(self, tokens: Tokens, num_context: int, request: Continuation) -> Path:
        num_scored = len(tokens) - num_context
        if num_context < 1 or not 1 <= num_scored <= self._max_length:
            raise DataError(
                f"the continuation {shown(request.text)!r} of a context of {num_context} tokens"
                f" ({shown(request.context[-60:])!r}) has {max(num_scored, 0)} tokens of its own",
                allowed=f"1 to {self._max_length} tokens, the most that the model reads at once",
            )
        return Path(tokens[-(self._max_length + 1) :], num_scored)

    def _windows(self, tokens: Tokens) -> list[Path]:
        size = self._max_length
        all_tokens = np.concatenate([np.array([self._prefix], np.int32), tokens])
        paths = [Path(all_tokens[: size + 1], min(size, len(tokens)))] if len(tokens) else []
        for begin in range(size, len(tokens), size):
            end = min(begin + size, len(tokens))
            paths.append(Path(all_tokens[end - size : end + 1], end - begin))
        return paths

    def _encode_all(self, texts: Iterable[str], special: bool = True) -> dict[str, Tokens]:
        """The tokens of each distinct text, with the tokenizer's special ones unless told otherwise."""
        found: dict[str, Tokens] = {}
        texts = dict.fromkeys(texts)
        begun = [text for text in texts if not special or text.startswith(self._prefix_text)]
        chosen = set(begun)
        for group, adds in ((begun, False), ([text for text in texts if text not in chosen], True)):
            if group:
                encoded = self._tokenizer(
                    group,
                    add_special_tokens=adds,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                    verbose=False,
                )
                for text, ids in zip(group, encoded["input_ids"], strict=True):
                    found[text] = np.array(ids, np.int32)
        return found

    def _head(self, context: str) -> int:
        """Where to cut a context, in characters: within the last worked example. 0: nowhere."""
        end = context.rfind("\n\n")
        if end < _MIN_HEAD:
            end = len(context)
        places = [match.end() for match in _PLACE.finditer(context, max(end - 400, 0), end)]
        return places[-1] if places and places[-1] >= _MIN_HEAD else 0

    def _tail(self, text: str, head: int) -> str:
        """What stands behind the cut; without its space where the tokenizer itself puts one before every text."""
        return text[head + self._eats_space :]

    def _prove(self, contexts: Sequence[str], heads: Sequence[int]) -> None:
        """Find out, once, whether texts may be cut."""
        cut = dict(pair for pair in zip(contexts, heads, strict=True) if pair[1])
        if self._cuts is not None or not cut:
            return
        self._cuts = False
        if not self._tokenizer.is_fast or _spans(self._tokenizer):
            return
        chosen = list(cut.items())[:: max(len(cut) // _NUM_PROVED, 1)]
        wholes = self._encode_all([context for context, _ in chosen])
        heads_tokens = self._encode_all([context[:head] for context, head in chosen])
        for self._eats_space in (False, True):
            tails = self._encode_all([self._tail(context, head) for context, head in chosen], special=False)
            if all(
                np.array_equal(
                    np.concatenate([heads_tokens[context[:head]], tails[self._tail(context, head)]]), wholes[context]
                )
                for context, head in chosen
            ):
                self._cuts = True
                return


def _spans(tokenizer: Tokenizer) -> bool:
    """Whether a token of the vocabulary spans a letter and the space after it, or a special one could."""
    added = list(tokenizer.get_added_vocab())
    if any(text[:1].isalpha() or text[-1:].isalpha() for text in added):
        return True
    return bool(_SPANNING.search("\n".join(tokenizer.get_vocab())))


def _moved_spaces(request: Continuation) -> tuple[str, str]:
    """Context and continuation; the spaces at the end of the context belong to the continuation's first word."""
    context = request.context.rstrip()
    return context, request.context[len(context) :] + request.text
