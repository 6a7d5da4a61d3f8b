"""What remains of a preference pair within a token limit, by the very steps that training takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import DataError
from .chat import HOLDS_SPECIAL, chat_encoder
from .conversations import Message
from .pair_rules import Finding
from .pair_tokens import Truncate, chat_encode, truncated_ids

Limit = Callable[[tuple[Message, ...], str, str], Finding | None]


def token_limit(tokenizer: Any, max_tokens: int, template: str, truncate: Truncate) -> tuple[Limit, tuple[str, ...]]:
    """(what a limit takes of a prompt with its two answers, texts of the tokenizer's special tokens).

    Args:
        tokenizer: A transformers tokenizer.
        max_tokens: Most tokens of a prompt with one of its answers.
        template: As in :func:`depthup.data.chat.chat_encoder`.
        truncate: What loses tokens where a pair is too long; "drop" takes nothing of the rest.

    Raises:
        DataError: The limit is no limit, or the tokenizer has no such template.
    """
    if max_tokens < 2:
        raise DataError(f"max_tokens is {max_tokens}", allowed="at least 2: one token and the one that follows")
    encoder = chat_encoder(tokenizer, template, turns="last")
    encode = chat_encode(encoder)

    def found(prompt: tuple[Message, ...], chosen: str, rejected: str) -> Finding | None:
        better, worse = encode([(prompt, chosen), (prompt, rejected)])
        for side in (better, worse):
            if isinstance(side, str):
                return None if side == HOLDS_SPECIAL else Finding("turns", side)  # special tokens have their rule
        ids = (better[0], better[1], worse[1])
        kept = truncated_ids(ids, max_tokens, tokenizer.bos_token_id, truncate)  # type: ignore[arg-type]
        lengths = f"prompt {len(ids[0]):,}, chosen {len(ids[1]):,}, rejected {len(ids[2]):,} tokens"
        return Finding("difference truncated", f"{kept}: {lengths}") if isinstance(kept, str) else None

    return found, encoder.specials
