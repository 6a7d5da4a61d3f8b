"""One tensor of every model -> the bytes of its merge, a piece at a time: read, widened, combined, narrowed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..checkpoint.copy import ended_early
from ..checkpoint.floats import STORED_AS, Array, narrow, widen
from ..checkpoint.reader import Tensor
from .methods import Call, Method, Sums

PIECE = 1 << 17  # elements that are read and computed at a time: the arrays of a piece stay in the processor's cache
Sources = Sequence[tuple[Path, Tensor]]


def merged_bytes(sources: Sources, method: Method, call: Call, has_base: bool, dtype: str) -> Iterator[memoryview]:
    """The bytes of one merged tensor; each piece is valid until the next is asked for.

    Args:
        sources: The tensor in each model, with the model's folder; the base, if there is one, last.
        method: How they are combined. A method that surveys a tensor reads it twice.
        call: What the method is told.
        has_base: Whether the last source is the base.
        dtype: Type that is written: F64, F32, F16 or BF16.

    Raises:
        CheckpointError: A file ended before its tensor did.
    """
    num_elements = sources[0][1].num_elements
    size = max(1, num_elements if method.whole else min(PIECE, num_elements))
    out = np.empty(size, STORED_AS[dtype])
    num_models = len(sources) - has_base
    with np.errstate(all="ignore"):  # infinite weights, and those that are none, give what IEEE 754 says
        if method.survey is not None:
            sums = Sums(num_models)
            for arrays in _pieces(sources, size):
                sums.add(arrays[:num_models], arrays[-1] if has_base else None)
            call = replace(call, coefficients=method.survey(sums, call))
        for arrays in _pieces(sources, size):
            merged = method.combine(arrays[:num_models], arrays[-1] if has_base else None, call)
            yield narrow(merged, dtype, out[: len(merged)]).view(np.uint8).data


def _pieces(sources: Sources, size: int) -> Iterator[list[Array]]:
    """The numbers of each source, flat, ``size`` at a time; valid until the next are asked for.

    They are float32; float64 where a model is stored so.
    """
    wide = np.float64 if any(tensor.dtype == "F64" for _, tensor in sources) else np.float32
    num_elements = sources[0][1].num_elements
    stored = [np.empty(size, STORED_AS[tensor.dtype]) for _, tensor in sources]
    numbers = [one if one.dtype == wide else np.empty(size, wide) for one in stored]
    with ExitStack() as files:
        opened = [files.enter_context(open(folder / tensor.shard, "rb", buffering=0)) for folder, tensor in sources]
        for begin in range(0, num_elements, size):
            count = min(size, num_elements - begin)
            for file, (_, tensor), array in zip(opened, sources, stored, strict=True):
                _read(file.fileno(), tensor, begin * array.itemsize, array[:count].view(np.uint8).data)
            yield [
                widen(array[:count], tensor.dtype, out[:count])
                for array, (_, tensor), out in zip(stored, sources, numbers, strict=True)
            ]


def _read(file: int, tensor: Tensor, begin: int, room: memoryview) -> None:
    """Fill ``room`` with the bytes of a tensor from its byte ``begin`` on."""
    place, rest = tensor.begin + begin, room
    while rest:
        count = os.preadv(file, [rest], place)
        if not count:
            raise ended_early(tensor.shard, len(rest))
        rest, place = rest[count:], place + count
