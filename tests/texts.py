"""Texts and an encoder for them that load nothing heavy: for tests that start processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from depthup.data.tokens import Encoded

TEXTS = ["" if number % 50 == 7 else f"Text {number} " * (1 + number % 9) for number in range(3000)]


class ByteEncoder:
    """Bytes as tokens, with the odd ones as targets; an empty text is left out."""

    def __call__(self, texts: Sequence[str]) -> list[Encoded | str]:
        made: list[Encoded | str] = []
        for text in texts:
            ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
            made.append(Encoded(ids, ids % 2 == 1) if len(ids) else "empty")
        return made
