"""Preference pairs as token ids on disk: one flat memory-mapped array, and where prompts and answers stand in it.

They are written as documents are (:func:`~depthup.data.tokens.write_encoded`), so in parallel and resumably. In the
array each pair has a head of four numbers before its ids: source, whether it was truncated, tokens of prompt and of
chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import write_json
from .conversations import Conversation, Message
from .preferences import Dropped, PreferencePair, Reason
from .tokens import Encoded, Encoder, TokenizedDocuments, write_encoded

Prompt = tuple[Message, ...]
# [(prompt, answer)] -> for each (ids of the prompt up to where the answer begins, ids of the answer with its
# end-of-turn), or the reason why the pair is left out
Encode = Callable[[Sequence[tuple[Prompt, str]]], Sequence[tuple[list[int], list[int]] | str]]
# What happens to a pair longer than max_tokens. "prompt": the prompt loses its beginning, down to half of max_tokens at
# the least (Zephyr, arXiv:2310.16944, keeps 512 of 1024), then answers lose their end; "end": each text loses its end
# (TRL's keep_start); "drop": the pair is left out.
Truncate = Literal["prompt", "end", "drop"]
_TOKENS, _ARRAYS, _ABOUT = "tokens.bin", "pairs.npz", "pairs.json"
_HEAD = 4  # numbers before the ids of a pair


@dataclass(frozen=True)
class TokenizedPairs:
    """Token ids of preference pairs: prompt, chosen, rejected of one pair lie one after another, the prompt once.

    Attributes:
        tokens: int32, memory-mapped; only what ``spans`` point at are ids.
        spans: int64 [num_pairs, 4]; in ``tokens`` the prompt of pair i begins at ``spans[i, 0]``, the chosen answer at
            ``spans[i, 1]``, the rejected one at ``spans[i, 2]``, which ends at ``spans[i, 3]``.
        sources: int32 [num_pairs], index in ``source_names``.
        truncated: bool [num_pairs], whether the pair lost tokens to ``max_tokens``.
        source_names: The collections.
        dropped: Why rows were left out when the pairs were written -> how many.
    """

    tokens: NDArray[np.int32]
    spans: NDArray[np.int64]
    sources: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    source_names: tuple[str, ...]
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
        return replace(
            self, spans=self.spans[indices], sources=self.sources[indices], truncated=self.truncated[indices]
        )

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
    num_workers: int = 1,
    shard_pairs: int = 16384,
) -> TokenizedPairs:
    """Tokenize pairs into ``folder``, or go on where a killed run stopped in it; those that training could not use are
    left out, and counted by reason.

    The files are the same for any number of processes and any number of interruptions. To go on, ``pairs`` must be the
    same: those already done are read again and passed over.

    Args:
        pairs: Read once, in order.
        encode: Makes ids of prompts and answers, as :func:`chat_encode` does; pickled for other processes.
        folder: An existing folder.
        max_tokens: Most tokens of a prompt with one of its answers.
        end_of_turn: Token ids of which one must end each answer.
        begin_of_text: Token id that a truncated prompt keeps at its beginning, if it had it there.
        truncate: What loses tokens where a pair is too long.
        progress: Called with the number of rows done since the last call.
        num_workers: Processes that encode.
        shard_pairs: Rows between two points from which a killed run goes on.

    Raises:
        DataError: No pair is left, an answer lacks its end-of-turn, the two answers' prompts differ in their ids, or
            the pairs are not those that the folder was begun with.
    """
    if max_tokens < 2:
        raise DataError(f"max_tokens is {max_tokens}", allowed="at least 2: one token and the one that follows")
    names: dict[str, int] = {}
    written = write_encoded(
        _numbered(pairs, names),
        _PairEncoder(encode, frozenset(end_of_turn), max_tokens, begin_of_text, truncate),
        folder,
        progress,
        num_workers=num_workers,
        max_left_out=1.0,
        shard_items=shard_pairs,
        noun="preference pair that could be trained on",
    )
    _write_arrays(folder, written, list(names))
    return open_pairs(folder)


def _write_arrays(folder: Path, written: TokenizedDocuments, names: list[str]) -> None:
    """What the heads say of the pairs, and why rows were left out, beside the tokens."""
    begins = written.offsets[:-1]
    sources, truncated, num_prompt, num_chosen = written.tokens[begins[:, None] + np.arange(_HEAD)].T.astype(np.int64)
    begins = begins + _HEAD
    spans = np.stack([begins, begins + num_prompt, begins + num_prompt + num_chosen, written.offsets[1:]], axis=1)
    present, places, numbers = np.unique(sources, return_index=True, return_inverse=True)
    in_order = np.argsort(places)  # sources in the order of their first pairs
    np.savez(
        folder / _ARRAYS,
        spans=spans,
        sources=np.argsort(in_order)[numbers].astype(np.int32),
        truncated=truncated.astype(np.bool_),
    )
    kept = [names[source] for source in present[in_order]]
    write_json(folder / _ABOUT, {"source_names": kept, "dropped": dict(sorted(written.left_out.items()))})


def chat_encode(encoder: Encoder[Conversation]) -> Encode:
    """The ``encode`` of a chat template: an encoder of conversations that trains on the last answer alone.

    Raises:
        DataError: When it is used: the encoder trains on other turns too, or on no token.
    """
    return _ChatEncode(encoder)


@dataclass(frozen=True)
class _ChatEncode:
    """What :func:`chat_encode` makes."""

    encoder: Encoder[Conversation]

    def __call__(self, batch: Sequence[tuple[Prompt, str]]) -> list[tuple[list[int], list[int]] | str]:
        conversations = [Conversation((*prompt, Message("assistant", answer))) for prompt, answer in batch]
        found: list[tuple[list[int], list[int]] | str] = []
        for made in self.encoder(conversations):
            if isinstance(made, str):
                found.append(made)
                continue
            places = np.arange(len(made.ids)) if made.targets is None else np.flatnonzero(made.targets)
            if len(places) == 0 or places[0] == 0 or places[-1] - places[0] + 1 != len(places):
                raise DataError(
                    "the chat encoder does not train on the last answer alone",
                    next_step="make it with turns='last' and train_on_prompt=False",
                )
            ids = made.ids.tolist()
            found.append((ids[: places[0]], ids[places[0] : places[-1] + 1]))
        return found


def open_pairs(folder: Path) -> TokenizedPairs:
    """Open what :func:`write_pairs` wrote, without reading the tokens into memory."""
    about = json.loads((folder / _ABOUT).read_text())
    tokens = np.memmap(folder / _TOKENS, dtype=np.int32, mode="r")
    with np.load(folder / _ARRAYS) as arrays:
        return TokenizedPairs(
            tokens, arrays["spans"], arrays["sources"], arrays["truncated"], tuple(about["source_names"]),
            about["dropped"],
        )  # fmt: skip


def join_pairs(parts: Mapping[str, TokenizedPairs]) -> TokenizedPairs:
    """Pairs of several collections, one after another; each is one source of the whole. One alone stays as it is."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    every = list(parts.values())
    starts = np.cumsum([0, *(len(one.tokens) for one in every[:-1])])
    dropped = Counter[str]()
    for one in every:
        dropped.update(one.dropped)
    return TokenizedPairs(
        np.concatenate([one.tokens for one in every]),
        np.concatenate([one.spans + start for one, start in zip(every, starts, strict=True)]),
        np.repeat(np.arange(len(every), dtype=np.int32), [one.num_pairs for one in every]),
        np.concatenate([one.truncated for one in every]),
        tuple(parts),
        dropped,
    )


@dataclass(frozen=True)
class Spread:
    """Of some counts: mean, median, 95th percentile and largest."""

    mean: float
    median: float
    p95: float
    largest: int


@dataclass(frozen=True)
class PairStatistics:
    """What to look at before training on pairs; shares are from 0 to 1.

    Attributes:
        num_pairs: Pairs.
        num_tokens: Tokens of one forward pass over all of them, each pair as two documents.
        prompt, chosen, rejected: Tokens of each.
        chosen_longer: Share of pairs whose chosen answer has more tokens. Far from one half, length gives the answer
            away, and the policy may learn length alone.
        shared_start: Mean share of the shorter answer with which both answers begin.
        overlap: Mean share of the longer answer's tokens that stand in the other one too, in any order.
        truncated: Share of pairs that lost tokens to ``max_tokens``.
        sources: Name of the source -> its pairs.
        dropped: Why rows were left out -> how many.
    """

    num_pairs: int
    num_tokens: int
    prompt: Spread
    chosen: Spread
    rejected: Spread
    chosen_longer: float
    shared_start: float
    overlap: float
    truncated: float
    sources: Mapping[str, int]
    dropped: Mapping[str, int]


def describe(pairs: TokenizedPairs) -> PairStatistics:
    """Lengths, overlap and losses of pairs."""
    answers = pairs.answer_lengths
    starts, overlaps = [], []
    for index in range(pairs.num_pairs):
        _, chosen, rejected = pairs.pair(index)
        shorter = min(len(chosen), len(rejected))
        unlike = np.flatnonzero(chosen[:shorter] != rejected[:shorter])
        starts.append((int(unlike[0]) if len(unlike) else shorter) / shorter)
        shared = Counter(chosen.tolist()) & Counter(rejected.tolist())
        overlaps.append(shared.total() / max(len(chosen), len(rejected)))
    counts = np.bincount(pairs.sources, minlength=len(pairs.source_names)).tolist()
    return PairStatistics(
        num_pairs=pairs.num_pairs,
        num_tokens=int(pairs.lengths.sum()),
        prompt=_spread(pairs.prompt_lengths),
        chosen=_spread(answers[:, 0]),
        rejected=_spread(answers[:, 1]),
        chosen_longer=float((answers[:, 0] > answers[:, 1]).mean()),
        shared_start=float(np.mean(starts)),
        overlap=float(np.mean(overlaps)),
        truncated=float(pairs.truncated.mean()),
        sources={name: count for name, count in zip(pairs.source_names, counts, strict=True) if count},
        dropped=dict(pairs.dropped),
    )


def _spread(counts: NDArray[np.int64]) -> Spread:
    median, p95 = np.percentile(counts, [50, 95]).tolist()
    return Spread(float(counts.mean()), median, p95, int(counts.max()))


_Ids = tuple[list[int], list[int], list[int]]  # prompt, chosen, rejected


_Numbered = tuple[int, PreferencePair | Dropped]  # number of the source, and what was read


def _numbered(pairs: Iterable[PreferencePair | Dropped], names: dict[str, int]) -> Iterator[_Numbered]:
    """What was read, each with the number of its source; ``names`` learns the numbers."""
    for each in pairs:
        yield (names.setdefault(each.source, len(names)) if isinstance(each, PreferencePair) else -1), each


@dataclass(frozen=True)
class _PairEncoder:
    """Pairs as documents with a head; the reason instead of one that is left out. Arguments of :func:`write_pairs`."""

    encode: Encode
    end_of_turn: frozenset[int]
    max_tokens: int
    begin_of_text: int | None
    truncate: Truncate

    def __call__(self, items: Sequence[_Numbered]) -> list[Encoded | str]:
        whole = [each for _, each in items if isinstance(each, PreferencePair)]
        encoded = iter(_encoded(whole, self.encode, self.end_of_turn))
        return [
            each.reason if isinstance(each, Dropped) else self._document(number, next(encoded))
            for number, each in items
        ]

    def _document(self, source: int, ids: _Ids | str) -> Encoded | str:
        kept = ids if isinstance(ids, str) else truncated_ids(ids, self.max_tokens, self.begin_of_text, self.truncate)
        if isinstance(kept, str):
            return kept
        prompt, chosen, rejected = kept
        head = [source, int(kept != ids), len(prompt), len(chosen)]
        return Encoded(np.asarray([*head, *prompt, *chosen, *rejected], np.int32))


def _encoded(pairs: list[PreferencePair], encode: Encode, end_of_turn: frozenset[int]) -> list[_Ids | str]:
    """The ids of each pair, or the reason why it is left out."""
    sides = encode([(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)])
    return [
        _joined(pair, better, worse, end_of_turn)
        for pair, better, worse in zip(pairs, sides[::2], sides[1::2], strict=True)
    ]


def _joined(
    pair: PreferencePair, better: tuple[list[int], list[int]] | str, worse: tuple[list[int], list[int]] | str,
    end_of_turn: frozenset[int],
) -> _Ids | str:  # fmt: skip
    if isinstance(better, str) or isinstance(worse, str):
        return better if isinstance(better, str) else str(worse)
    if better[0] != worse[0]:
        raise DataError(
            f"the prompt of {pair.name} has other ids before the chosen than before the rejected answer",
            next_step="choose a chat template that renders the prompt alone",
        )
    for _, answer in (better, worse):
        if not answer or answer[-1] not in end_of_turn:
            raise DataError(
                f"an answer of {pair.name} ends with token {answer[-1] if answer else 'none'}: a model trained on it "
                "would not learn to stop",
                allowed=f"an end-of-turn: {', '.join(map(str, sorted(end_of_turn)))}",
                next_step="choose a chat template that ends each answer with its end-of-turn",
            )
    return list(better[0]), list(better[1]), list(worse[1])


def truncated_ids(
    ids: tuple[list[int], list[int], list[int]], max_tokens: int, begin_of_text: int | None, truncate: Truncate
) -> tuple[list[int], list[int], list[int]] | Reason:
    """(prompt, chosen, rejected) within ``max_tokens``, or the reason why nothing could be learnt from what is left."""
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
