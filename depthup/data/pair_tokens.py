"""Preference pairs as token ids on disk: one flat memory-mapped array, and where each prompt and answer stands in it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import write_json
from .preferences import Dropped, Message, PreferencePair, Reason

# (prompt, answer) -> (ids of the prompt up to where the answer begins, ids of the answer with its end-of-turn)
Encode = Callable[[Sequence[Message], str], tuple[list[int], list[int]]]
# What happens to a pair longer than max_tokens. "prompt": the prompt loses its beginning, down to half of max_tokens at
# the least (Zephyr, arXiv:2310.16944, keeps 512 of 1024), then answers lose their end; "end": each text loses its end
# (TRL's keep_start); "drop": the pair is left out.
Truncate = Literal["prompt", "end", "drop"]
_TOKENS, _SPANS, _SOURCES, _ABOUT = "tokens.bin", "spans.npy", "sources.npy", "pairs.json"


@dataclass(frozen=True)
class TokenizedPairs:
    """Token ids of preference pairs: prompt, chosen, rejected of one pair lie one after another, the prompt once.

    Attributes:
        tokens: int32 [num_tokens], memory-mapped.
        spans: int64 [num_pairs, 4]; in ``tokens`` the prompt of pair i begins at ``spans[i, 0]``, the chosen answer at
            ``spans[i, 1]``, the rejected one at ``spans[i, 2]``, which ends at ``spans[i, 3]``.
        sources: int32 [num_pairs], index in ``source_names``.
        source_names: The collections.
        num_truncated: Of all pairs that were written, those that lost tokens to ``max_tokens``.
        dropped: Why rows were left out -> how many.
    """

    tokens: NDArray[np.int32]
    spans: NDArray[np.int64]
    sources: NDArray[np.int32]
    source_names: tuple[str, ...]
    num_truncated: int
    dropped: Mapping[str, int]

    @property
    def num_pairs(self) -> int:
        return len(self.spans)

    @property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt, int64 [num_pairs]."""
        return self.spans[:, 1] - self.spans[:, 0]

    @property
    def answer_lengths(self) -> NDArray[np.int64]:
        """Tokens of the chosen and of the rejected answer, end-of-turn included, int64 [num_pairs, 2]."""
        return np.diff(self.spans[:, 1:], axis=1)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each pair as two documents: twice the prompt and both answers, int64 [num_pairs]."""
        return 2 * self.prompt_lengths + self.answer_lengths.sum(axis=1)

    def pair(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Ids of prompt, chosen and rejected."""
        first, second, third, end = self.spans[index].tolist()
        return self.tokens[first:second], self.tokens[second:third], self.tokens[third:end]

    def subset(self, indices: NDArray[np.int64]) -> TokenizedPairs:
        """These pairs, in this order; the tokens stay where they are. A chunk of sDPO is one."""
        return replace(self, spans=self.spans[indices], sources=self.sources[indices])

    def digest(self) -> str:
        """Hex SHA-256 of the ids, pair by pair: what log-probabilities of the pairs depend on besides the model."""
        digest = hashlib.sha256(np.diff(self.spans, axis=1).tobytes())
        for begin, *_, end in self.spans.tolist():
            digest.update(self.tokens[begin:end].tobytes())
        return digest.hexdigest()


def write_pairs(
    pairs: Iterable[PreferencePair | Dropped],
    encode: Encode,
    folder: Path,
    *,
    max_tokens: int,
    end_of_turn: Collection[int],
    begin_of_text: int | None = None,
    truncate: Truncate = "prompt",
    progress: Callable[[int], object] | None = None,
) -> TokenizedPairs:
    """Tokenize pairs into ``folder``; those that training could not use are left out, and counted by reason.

    Args:
        pairs: Read once, in order.
        encode: Makes ids of a prompt and an answer, as a chat template does.
        folder: An existing folder.
        max_tokens: Most tokens of a prompt with one of its answers.
        end_of_turn: Token ids of which one must end each answer.
        begin_of_text: Token id that a truncated prompt keeps at its beginning, if it had it there.
        truncate: What loses tokens where a pair is too long.
        progress: Called with 1 for each row.

    Raises:
        DataError: No pair is left, an answer lacks its end-of-turn, or the prompt has other ids beside the other answer.
    """
    if max_tokens < 2:
        raise DataError(f"max_tokens is {max_tokens}", allowed="at least 2: one token and the one that follows")
    spans, sources, dropped = [], [], Counter[str]()
    names: dict[str, int] = {}
    position, num_truncated = 0, 0
    with open(folder / _TOKENS, "wb") as file:
        for pair in pairs:
            if progress:
                progress(1)
            if isinstance(pair, Dropped):
                dropped[pair.reason] += 1
                continue
            ids = _encoded(pair, encode, frozenset(end_of_turn))
            kept = _truncated(ids, max_tokens, begin_of_text, truncate)
            if isinstance(kept, str):
                dropped[kept] += 1
                continue
            num_truncated += kept != ids
            file.write(np.concatenate([np.asarray(part, np.int32) for part in kept]).tobytes())
            spans.append(position + np.cumsum([0, *map(len, kept)]))
            position = int(spans[-1][-1])
            sources.append(names.setdefault(pair.source, len(names)))
    if not spans:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.most_common()) or "there is no row"
        raise DataError(f"no preference pair is left ({reasons})", next_step="add pairs, or raise max_tokens")
    np.save(folder / _SPANS, np.asarray(spans, np.int64))
    np.save(folder / _SOURCES, np.asarray(sources, np.int32))
    write_json(
        folder / _ABOUT,
        {"source_names": list(names), "num_truncated": num_truncated, "dropped": dict(sorted(dropped.items()))},
    )
    return open_pairs(folder)


def open_pairs(folder: Path) -> TokenizedPairs:
    """Open what :func:`write_pairs` wrote, without reading the tokens into memory."""
    about = json.loads((folder / _ABOUT).read_text())
    return TokenizedPairs(
        np.memmap(folder / _TOKENS, dtype=np.int32, mode="r"),
        np.load(folder / _SPANS),
        np.load(folder / _SOURCES),
        tuple(about["source_names"]),
        about["num_truncated"],
        about["dropped"],
    )


_Ids = tuple[list[int], list[int], list[int]]  # prompt, chosen, rejected


def _encoded(pair: PreferencePair, encode: Encode, end_of_turn: frozenset[int]) -> _Ids:
    prompt, chosen = encode(pair.prompt, pair.chosen)
    other_prompt, rejected = encode(pair.prompt, pair.rejected)
    if prompt != other_prompt:
        raise DataError(
            f"the prompt of {pair.name} has other ids before the chosen than before the rejected answer",
            next_step="choose a chat template that renders the prompt alone",
        )
    for answer in (chosen, rejected):
        if not answer or answer[-1] not in end_of_turn:
            raise DataError(
                f"an answer of {pair.name} ends with token {answer[-1] if answer else 'none'}: a model trained on it "
                "would not learn to stop",
                allowed=f"an end-of-turn: {', '.join(map(str, sorted(end_of_turn)))}",
                next_step="choose a chat template that ends each answer with its end-of-turn",
            )
    return list(prompt), list(chosen), list(rejected)


def _truncated(ids: _Ids, max_tokens: int, begin_of_text: int | None, truncate: Truncate) -> _Ids | Reason:
    """The ids within ``max_tokens``, or the reason why nothing could be learnt from what is left."""
    prompt, chosen, rejected = ids
    if not prompt:
        return "no prompt"  # the answer's first token would be predicted from nothing
    excess = len(prompt) + max(len(chosen), len(rejected)) - max_tokens
    if excess > 0 and truncate == "drop":
        return "longer than max_tokens"
    if excess > 0 and truncate == "prompt":
        keep = max(len(prompt) - excess, min(len(prompt), max_tokens // 2))
        start = prompt[:1] if prompt[0] == begin_of_text and keep > 1 else []
        prompt = [*start, *prompt[len(prompt) - keep + len(start) :]]
    room = max_tokens - len(prompt)
    if room < 1:
        return "truncated to nothing"
    if chosen[:room] == rejected[:room]:
        return "chosen equals rejected" if chosen == rejected else "difference truncated"
    return prompt, chosen[:room], rejected[:room]
