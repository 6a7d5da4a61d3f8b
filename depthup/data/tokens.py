"""Documents as token ids on disk: one flat memory-mapped array and the offsets of its documents.

Writing goes by shards: after each, what is on the disk is safe, and a killed run goes on from there. The bytes do not
depend on shards, processes or interruptions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import write_json
from .sources import Document

T = TypeVar("T")
_T = TypeVar("_T", contravariant=True)

_TOKENS, _TARGETS, _OFFSETS, _SUMMARY = "tokens.bin", "targets.bin", "offsets.npy", "tokens.json"
_LENGTHS, _JOURNAL = "lengths.bin", "journal.json"  # there while writing only
_BATCH_ITEMS = 256


@dataclass(frozen=True)
class TokenizedDocuments:
    """Token ids of documents that lie one after another.

    Attributes:
        tokens: int32 [num_tokens], memory-mapped.
        offsets: int64 [num_documents + 1]; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
        targets: bool [num_tokens], which tokens are trained on; None where all are.
        left_out: Reason -> number of items that gave no document.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.bool_] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 [num_documents]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document: ids int32 [num_tokens], and which are trained on, bool [num_tokens]; None where all are."""

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_] | None = None


class Encoder(Protocol[_T]):
    """Turns items into documents, each by itself; a text instead of one is the reason why it is left out.

    It is pickled for other processes.
    """

    def __call__(self, items: Sequence[_T], /) -> Sequence[Encoded | str]: ...


@dataclass(frozen=True)
class TextEncoder:
    """Plain documents; each begins as the tokenizer has it begin, and ends with ``end_of_text``."""

    tokenizer: Any
    end_of_text: int

    def __call__(self, documents: Sequence[Document]) -> list[Encoded | str]:
        made = self.tokenizer([document.text for document in documents], verbose=False)["input_ids"]
        return [
            Encoded(np.asarray(ids if ids and ids[-1] == self.end_of_text else [*ids, self.end_of_text], np.int32))
            for ids in made
        ]


def write_tokens(
    documents: Iterable[Document],
    tokenizer: Any,
    end_of_text: int,
    folder: Path,
    progress: Callable[[int], object] | None = None,
    *,
    num_workers: int = 1,
    max_tokens: int | None = None,
) -> TokenizedDocuments:
    """Tokenize documents into ``folder``; each begins as the tokenizer has it begin, and ends with ``end_of_text``.

    For the arguments see :func:`write_encoded`.

    Raises:
        DataError: There is no document.
    """
    encoder = TextEncoder(tokenizer, end_of_text)
    return write_encoded(documents, encoder, folder, progress, num_workers=num_workers, max_tokens=max_tokens)


def write_encoded(
    items: Iterable[T],
    encoder: Encoder[T],
    folder: Path,
    progress: Callable[[int], object] | None = None,
    *,
    num_workers: int = 1,
    max_tokens: int | None = None,
    max_left_out: float = 0.1,
    shard_items: int = 64 * _BATCH_ITEMS,
    noun: str = "document on this side of the split",
) -> TokenizedDocuments:
    """Write what an encoder makes of items into ``folder``, or go on where a killed run stopped in it.

    The bytes are the same for any number of processes and any number of interruptions. To go on, ``items`` must be
    the same: those already done are read again and passed over.

    Args:
        items: Read once, in order.
        encoder: Makes documents of them; all with targets, or none.
        folder: An existing folder; with another run's files of the same items in it, that run is continued.
        progress: Called with the number of items done since the last call.
        num_workers: Processes that encode; each starts anew and loads the tokenizer's libraries (seconds).
        max_tokens: Stop after the document that reaches so many tokens in all: nothing beyond is read, so a data set
            on the hub is streamed only so far.
        max_left_out: Share of items, from 0 to 1, that may be left out before the data are refused.
        shard_items: Items between two points from which a killed run goes on.
        noun: What the data hold none of, if nothing is left, in the words of the error.

    Raises:
        DataError: There is no document, more than ``max_left_out`` of the items gave none, or the items are not those
            that the folder was begun with.
    """
    if num_workers < 1:
        raise DataError(f"num_workers is {num_workers}", allowed="at least 1")
    iterator = iter(items)
    journal = _Journal.read(folder)
    _pass_over(iterator, journal, folder)
    if max_tokens is not None and journal.num_tokens >= max_tokens:
        iterator = iter(())
    if progress and journal.num_items:
        progress(journal.num_items)
    with _Files(folder, journal) as files, contextlib.closing(
        _encode_all(_batches(iterator), encoder, num_workers)
    ) as encoded:  # fmt: skip
        safe = journal.num_items
        for batch, chunk in encoded:
            kept = chunk if max_tokens is None else chunk.up_to(max_tokens - journal.num_tokens)
            files.append(kept)
            journal = journal.after(batch, kept)
            if progress:
                progress(len(batch))
            if journal.num_items - safe >= shard_items:
                files.sync()
                journal.write(folder)
                safe = journal.num_items
            if max_tokens is not None and journal.num_tokens >= max_tokens:
                break
        files.sync()
    return _finish(folder, journal, max_left_out, noun)


def open_tokens(folder: Path) -> TokenizedDocuments:
    """Open what :func:`write_encoded` wrote, without reading it into memory."""
    tokens = np.asarray(np.memmap(folder / _TOKENS, dtype=np.int32, mode="r"))  # slices of plain arrays cost less
    targets = None
    if (folder / _TARGETS).exists():
        targets = np.asarray(np.memmap(folder / _TARGETS, dtype=np.uint8, mode="r")).view(np.bool_)
    summary = json.loads((folder / _SUMMARY).read_text()) if (folder / _SUMMARY).exists() else {}
    return TokenizedDocuments(tokens, np.load(folder / _OFFSETS), targets, summary.get("left_out", {}))


def sample(documents: TokenizedDocuments, max_tokens: int, seed: int = 0, *, whole: bool = False) -> TokenizedDocuments:
    """A fixed random choice of documents with ``max_tokens`` tokens in all, in memory.

    The last one is cut; if they are to stay ``whole``, it is left out, but for the first, which is never cut: half of a
    conversation may hold no answer. Returns all documents if they hold fewer.
    """
    if documents.num_tokens <= max_tokens:
        return documents
    chosen: list[slice] = []
    left = max_tokens
    for index in np.random.default_rng(seed).permutation(documents.num_documents):
        begin, end = documents.offsets[index], documents.offsets[index + 1]
        if whole and chosen and end - begin > left:
            break
        chosen.append(slice(begin, end if whole else min(end, begin + left)))
        left -= int(end - begin)
        if left <= 0:
            break
    tokens = np.concatenate([documents.tokens[part] for part in chosen])
    targets = None if documents.targets is None else np.concatenate([documents.targets[part] for part in chosen])
    return TokenizedDocuments(tokens, np.cumsum([0, *(part.stop - part.start for part in chosen)]), targets)


# -- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chunk:
    """The documents of one batch, one after another."""

    ids: NDArray[np.int32]
    targets: NDArray[np.uint8] | None
    lengths: NDArray[np.int64]
    left_out: Counter[str]

    def up_to(self, num_tokens: int) -> _Chunk:
        """The documents up to the one that reaches ``num_tokens``."""
        ends = np.cumsum(self.lengths)
        num_documents = int(np.searchsorted(ends, num_tokens)) + 1
        if num_documents >= len(ends):
            return self
        end = int(ends[num_documents - 1])
        targets = None if self.targets is None else self.targets[:end]
        return _Chunk(self.ids[:end], targets, self.lengths[:num_documents], self.left_out)


@dataclass(frozen=True)
class _Journal:
    """What is safe on the disk; ``last`` is a digest of the last item, to know the data again."""

    num_items: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    has_targets: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    last: str = ""

    @classmethod
    def read(cls, folder: Path) -> _Journal:
        path = folder / _JOURNAL
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        write_json(folder / _JOURNAL, asdict(self))

    def after(self, batch: Sequence[Any], chunk: _Chunk) -> _Journal:
        return _Journal(
            self.num_items + len(batch),
            self.num_documents + len(chunk.lengths),
            self.num_tokens + len(chunk.ids),
            self.has_targets or chunk.targets is not None,
            dict(Counter(self.left_out) + chunk.left_out),
            _digest(batch[-1]),
        )


class _Files:
    """The open files of a folder, cut back to what the journal vouches for."""

    def __init__(self, folder: Path, journal: _Journal) -> None:
        sizes = {_TOKENS: 4 * journal.num_tokens, _LENGTHS: 8 * journal.num_documents}
        sizes |= {_TARGETS: journal.num_tokens if journal.has_targets else 0}
        for name, size in sizes.items():
            with open(folder / name, "ab") as file:
                file.truncate(size)
        self._files = {name: open(folder / name, "ab") for name in sizes}  # noqa: SIM115

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, chunk: _Chunk) -> None:
        self._files[_TOKENS].write(chunk.ids.tobytes())
        self._files[_LENGTHS].write(chunk.lengths.tobytes())
        if chunk.targets is not None:
            self._files[_TARGETS].write(chunk.targets.tobytes())

    def sync(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())


def _pass_over(iterator: Iterator[Any], journal: _Journal, folder: Path) -> None:
    done = deque(enumerate(islice(iterator, journal.num_items), 1), maxlen=1)
    num_seen, last = done.pop() if done else (0, None)
    if num_seen < journal.num_items or (journal.num_items and _digest(last) != journal.last):
        raise DataError(
            f"the data are not those that {folder} was begun with", next_step=f"remove {folder} and begin again"
        )


def _finish(folder: Path, journal: _Journal, max_left_out: float, noun: str) -> TokenizedDocuments:
    num_left_out = sum(journal.left_out.values())
    reasons = ", ".join(f"{reason}: {number:,}" for reason, number in journal.left_out.items())
    if journal.num_documents == 0:
        raise DataError(
            f"the data hold no {noun}" + (f" ({reasons})" if reasons else ""),
            next_step="add data, or change held_out (the share that is held out)",
        )
    if num_left_out > max_left_out * journal.num_items:
        raise DataError(
            f"{num_left_out:,} of {journal.num_items:,} rows would be left out ({reasons})",
            allowed=f"at most {max_left_out:.0%} of them",
            next_step="repair the data, or choose another chat template",
        )
    if not journal.has_targets:
        (folder / _TARGETS).unlink()
    lengths = np.fromfile(folder / _LENGTHS, np.int64)
    np.save(folder / _OFFSETS, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    write_json(folder / _SUMMARY, {"num_items": journal.num_items, "left_out": dict(journal.left_out)})
    for name in (_JOURNAL, _LENGTHS):
        (folder / name).unlink(missing_ok=True)
    return open_tokens(folder)


def _encode_all(
    batches: Iterator[list[T]], encoder: Encoder[T], num_workers: int
) -> Generator[tuple[list[T], _Chunk], None, None]:
    """Each batch and its chunk, in order, whichever process made it."""
    if num_workers == 1:
        yield from ((batch, _chunk(encoder, batch)) for batch in batches)
        return
    waiting: deque[tuple[list[T], Future[_Chunk]]] = deque()
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(encoder,)) as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_work, batch)))
                if len(waiting) > 4 * num_workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _chunk(encoder: Encoder[T], batch: Sequence[T]) -> _Chunk:
    made = encoder(batch)
    documents = [each for each in made if isinstance(each, Encoded)]
    masks = [each.targets for each in documents if each.targets is not None]
    assert len(masks) in (0, len(documents)), "all documents of an encoder have targets, or none"
    return _Chunk(
        np.concatenate([each.ids for each in documents] or [np.zeros(0, np.int32)]),
        np.concatenate(masks).astype(np.uint8) if masks else None,
        np.asarray([len(each.ids) for each in documents], np.int64),
        Counter(each for each in made if isinstance(each, str)),
    )


_of_worker: list[Encoder[Any]] = []  # the encoder of a worker process


def _start_worker(encoder: Encoder[Any]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _of_worker.append(encoder)


def _work(batch: Sequence[Any]) -> _Chunk:
    return _chunk(_of_worker[0], batch)


def _digest(item: Any) -> str:
    return hashlib.sha256(repr(item).encode(errors="replace")).hexdigest()[:16]


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(islice(items, _BATCH_ITEMS)):
        yield batch
