"""The reference of preference training: log-probabilities of all pairs, computed once by the policy before its first
update, so that one model is in memory; and sDPO's chunks, which they put in order.

sDPO (Kim et al. 2024, arXiv:2403.19270) trains on one chunk of the pairs after another, each with the model that the
chunk before it left as both policy and reference, the chunks that the first reference finds easiest first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ..data.packing import IGNORED, PairBatch
from ..data.pairs import PairRows
from ..errors import DataError, TrainingError
from ..files import made_once, publishing, write_json

_VALUES, _KEY = "log_probs.npy", "key.json"
_CHUNK_TARGETS = 4096  # targets whose logits are in float32 at a time
_BATCHES_PER_FLUSH = 16

LogProbs = Callable[[nn.Module, PairBatch], Tensor]
By = Literal["source", "accuracy", "given", "random"]


def pair_log_probs(model: nn.Module, batch: PairBatch) -> Tensor:
    """Log-probability of each answer in nats, summed over its targets: float64 [num_pairs, 2] on the CPU, no gradient.

    The softmax is taken in float32, whatever the type of the logits, and summed over an answer in float64.
    """
    device = next(model.parameters()).device
    input_ids, position_ids = (torch.from_numpy(a).to(device) for a in (batch.input_ids, batch.position_ids))
    sums = torch.zeros(2 * batch.num_units, dtype=torch.float64)
    targets = np.flatnonzero(batch.labels != IGNORED)
    if len(targets) == 0:
        return sums.view(-1, 2)
    labels, sequences = (torch.from_numpy(a.ravel()[targets]) for a in (batch.labels, batch.sequences))
    with torch.no_grad():
        logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.flatten(0, 1)
        for start in range(0, len(targets), _CHUNK_TARGETS):
            part = slice(start, start + _CHUNK_TARGETS)
            places = torch.from_numpy(targets[part]).to(device)
            losses = F.cross_entropy(logits[places].float(), labels[part].to(device), reduction="none")
            sums.index_add_(0, sequences[part], -losses.cpu().double())
    return sums.view(-1, 2)


def reference_log_probs(
    model: nn.Module,
    rows: PairRows,
    root: Path,
    key: Mapping[str, Any],
    *,
    rows_per_batch: int = 8,
    autocast: bool = False,
    log_probs: LogProbs = pair_log_probs,
    label: str = "reference",
    progress: bool = True,
) -> NDArray[np.float64]:
    """Log-probabilities of every pair under ``model``, from the cache or computed into it.

    They lie in ``root/<first 12 of the fingerprint>/`` once they are whole. A killed computation leaves what it has
    beside that, and the next one with the same key computes the rest. Where torch.distributed runs, every rank calls
    this, takes its share of the batches, and gets all values; ``root`` must be a folder that all of them see.

    Args:
        model: The policy before its first update; its training mode is restored.
        rows: The pairs; ``rows.reference`` is not used.
        root: Folder of all caches, made if need be.
        key: JSON of what the numbers depend on: ``weights``, their digest, which cannot be seen from here; tokenizer,
            chat template, data, max_tokens. The pairs' ids, the type of the weights and ``autocast`` are added here.
        rows_per_batch: Rows in one forward pass; changes memory and speed, not the result.
        autocast: Compute in bfloat16 as training does: the reference must be computed as the policy is.
        log_probs: How; the objective's own, so that policy and reference agree to the last bit at step 0.
        label: Name on the progress bar, shown if ``progress``.

    Returns:
        float64 [num_pairs, 2] for chosen and rejected, memory-mapped, read-only.

    Raises:
        TrainingError: A log-probability is not finite, the key has no ``weights``, or the cache is of another key.
        OutputError: Another process computes the same, or the disk is full.
    """
    if not key.get("weights"):
        raise TrainingError("the key of the reference names no weights", next_step="give their digest as 'weights'")
    types = sorted({str(parameter.dtype) for parameter in model.parameters()})
    identity = {**key, "pairs": rows.pairs.digest(), "types": types, "autocast": autocast}
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:12]

    def compute(values: np.memmap[Any, np.dtype[np.float64]] | None) -> None:
        _compute(values, model, rows, rows_per_batch, autocast, log_probs, label, progress)

    if not _of_first_rank(folder.exists()):
        if _rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            publish = (
                _publish if dist.is_initialized() else made_once
            )  # ranks that compute along cannot wait for another process
            publish(folder, lambda partial: compute(_partial_values(partial, identity, rows.num_rows)))
        else:
            compute(None)
        _of_first_rank(None)  # the others open what it has published
    return _opened(folder, identity, rows.num_rows)


def _publish(folder: Path, make: Callable[[Path], object]) -> None:
    with publishing(folder, keep_partial=True) as partial:
        make(partial)


def require_reference(
    model: nn.Module, rows: PairRows, *, autocast: bool = False, log_probs: LogProbs = pair_log_probs
) -> None:
    """Make sure, before the first update, that ``rows.reference`` is what the policy gives: DPO starts at loss ln 2.

    The shortest pairs that fill one row are computed again.

    Raises:
        TrainingError: There is no reference, or it is another model's.
    """
    if rows.reference is None:
        raise TrainingError("the pairs have no reference log-probabilities", next_step="compute them first")
    by_length = np.argsort(rows.pairs.lengths, kind="stable")
    num_pairs = max(1, int((np.cumsum(rows.pairs.lengths[by_length]) <= rows.row_tokens).sum()))
    batch = rows.batch(by_length[:num_pairs])
    assert batch.reference is not None  # set above
    found = _measured(model, batch, autocast, log_probs)
    tolerance = 0.02 if autocast or next(model.parameters()).dtype != torch.float32 else 1e-4
    worst = np.abs(found - batch.reference).max(axis=1) / np.maximum(1, np.abs(batch.reference).max(axis=1))
    if not worst.max() <= tolerance:
        place = int(worst.argmax())
        raise TrainingError(
            f"the reference is unlike the policy before its first update: log-probabilities {batch.reference[place]} "
            f"in the reference, {found[place]} from the policy",
            allowed=f"a relative difference of {tolerance}",
            next_step="remove the cached reference, and compute it from the model that training starts from",
        )


def _measured(model: nn.Module, batch: PairBatch, autocast: bool, log_probs: LogProbs) -> NDArray[np.float64]:
    """The log-probabilities of a batch, with dropout off and no gradient.

    Not in inference mode: what a sharded model gathers there (FSDP2), it could not train with afterwards.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return log_probs(model, batch).double().cpu().numpy()
    finally:
        model.train(training)


def _compute(
    values: np.memmap[Any, np.dtype[np.float64]] | None, model: nn.Module, rows: PairRows, rows_per_batch: int,
    autocast: bool, log_probs: LogProbs, label: str, progress: bool,
) -> None:  # fmt: skip
    """Fill the pairs of ``values``, which the first rank holds, that are still NaN; all ranks take turns at batches."""
    missing: Any = None if values is None else np.flatnonzero(np.isnan(values).any(axis=1))
    missing = _of_first_rank(missing)
    bar = tqdm(
        total=rows.num_rows, initial=rows.num_rows - len(missing), desc=label, unit="pair", dynamic_ncols=True,
        disable=not progress or values is None, leave=False,
    )  # fmt: skip
    with bar:
        for number, mine in enumerate(_turns(rows.in_order_with_indices(missing, rows_per_batch)), 1):
            indices, batch = mine
            for places, found in _gathered((indices, _measured(model, batch, autocast, log_probs))):
                if not np.isfinite(found).all():
                    wrong = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
                    raise TrainingError(
                        f"the reference gives pair {places[wrong]} the log-probabilities {found[wrong]}",
                        next_step="compute in bfloat16 or float32 (float16 overflows), or look at the weights",
                    )
                if values is not None:
                    values[places] = found
                bar.update(len(places))
            if values is not None and number % _BATCHES_PER_FLUSH == 0:
                values.flush()
    if values is not None:
        values.flush()


_T = TypeVar("_T")


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _of_first_rank(value: _T) -> _T:
    """The first rank's value, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _gathered(value: _T) -> list[_T]:
    """The values of all ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _turns(items: Iterator[_T]) -> Iterator[_T]:
    """This rank's share of items; ranks without one in the last round repeat an item, for a sharded model needs all."""
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    while together := list(itertools.islice(items, num_ranks)):
        yield together[min(_rank(), len(together) - 1)]


def _partial_values(partial: Path, identity: Mapping[str, Any], num_pairs: int) -> np.memmap[Any, np.dtype[np.float64]]:
    """What a stopped computation left, or a new array of NaN: float64 [num_pairs, 2], memory-mapped."""
    path = partial / _VALUES
    if not (partial / _KEY).exists():
        values = open_memmap(path, mode="w+", dtype=np.float64, shape=(num_pairs, 2))
        values[:] = np.nan
        values.flush()
        write_json(partial / _KEY, identity)  # last: with it the array is known to be whole
        return values
    _require_key(partial, identity)
    return open_memmap(path, mode="r+")


def _opened(folder: Path, identity: Mapping[str, Any], num_pairs: int) -> NDArray[np.float64]:
    _require_key(folder, identity)
    try:
        values: NDArray[np.float64] = np.load(folder / _VALUES, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read {folder / _VALUES}: {error}", next_step=f"remove {folder}") from error
    if values.shape != (num_pairs, 2) or not np.isfinite(values).all():
        raise TrainingError(f"{folder} does not hold {num_pairs} pairs of log-probabilities", next_step="remove it")
    return values


def _require_key(folder: Path, identity: Mapping[str, Any]) -> None:
    try:
        key = json.loads((folder / _KEY).read_text())
    except (OSError, ValueError):
        key = None
    if key != json.loads(json.dumps(identity)):
        raise TrainingError(f"{folder} holds log-probabilities of another model or other pairs", next_step="remove it")


def reward_accuracy(log_probs: NDArray[np.float64], lengths: NDArray[np.int64] | None = None) -> float:
    """Share of pairs whose chosen answer is the more probable one, from 0 to 1; a tie counts one half.

    Args:
        log_probs: [num_pairs, 2], chosen and rejected.
        lengths: Targets of each answer, [num_pairs, 2]: compare means over targets instead of sums, which favour the
            shorter answer.
    """
    if len(log_probs) == 0:
        raise DataError("there is no pair to measure the reward accuracy of")
    margins = _margins(log_probs, lengths)
    return float((margins > 0).mean() + (margins == 0).mean() / 2)


def split_into_chunks(
    num_pairs: int,
    num_chunks: int,
    seed: int = 0,
    by: By = "source",
    *,
    sources: NDArray[np.int32] | None = None,
    log_probs: NDArray[np.float64] | None = None,
) -> list[NDArray[np.int64]]:
    """Indices of the pairs of each chunk; every pair is in one chunk.

    Args:
        num_pairs: Pairs in all.
        num_chunks: Chunks; by ``source`` the number of sources.
        seed: Of the split by ``random``.
        by: ``source``: one chunk for each source, as in the paper, in the order of the sources (:func:`order_chunks`
            puts them from easy to hard). ``accuracy``: equal chunks by falling margin of the reference, hence already
            from easy to hard. ``given``: equal chunks in the order of the pairs. ``random``: equal chunks of a
            permutation, the paper's control.
        sources: int [num_pairs], for ``source``.
        log_probs: [num_pairs, 2] of the first reference, for ``accuracy``.

    Raises:
        DataError: More chunks than pairs, another number than there are sources, or what ``by`` needs is missing.
    """
    if not 1 <= num_chunks <= num_pairs:
        raise DataError(f"{num_chunks} chunks of {num_pairs} pairs", allowed=f"1 to {num_pairs} chunks")
    if by == "source":
        present = [] if sources is None else np.unique(sources).tolist()
        if len(present) != num_chunks:
            raise DataError(
                f"{num_chunks} chunks by source, and the pairs have {len(present)} sources",
                allowed=f"{len(present)} chunks, or a split by accuracy, given or random",
            )
        return [np.flatnonzero(sources == source) for source in present]
    if by == "accuracy":
        if log_probs is None or len(log_probs) != num_pairs:
            raise DataError(
                "a split by accuracy needs the reference log-probabilities of all pairs", next_step="compute them first"
            )
        order = np.argsort(-_margins(log_probs), kind="stable")
    elif by == "random":
        order = np.random.default_rng(seed).permutation(num_pairs)
    else:
        order = np.arange(num_pairs)
    return np.array_split(order, num_chunks)


def order_chunks(chunks: Sequence[NDArray[np.int64]], accuracies: Sequence[float]) -> list[NDArray[np.int64]]:
    """Chunks from easy to hard: falling reward accuracy of the first reference; equals stay in their order."""
    ranked = sorted(zip(accuracies, range(len(chunks)), strict=True), key=lambda each: (-each[0], each[1]))
    return [chunks[chunk] for _, chunk in ranked]


def _margins(log_probs: NDArray[np.float64], lengths: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    values = log_probs if lengths is None else log_probs / lengths
    return values[:, 0] - values[:, 1]
