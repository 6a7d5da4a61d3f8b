"""Rephrased test items by sentence embeddings: windows of a row that mean nearly what a test question asks.

Words alone find less than half of what a model has rephrased throughout. An encoder of sentences (mean of its last
hidden states, of length 1) puts both nearby. What is near is a candidate; for math, numbers then judge, since problems
of one kind lie as near as rephrasings do. The models are those of sentence-transformers (arXiv:1908.10084); the first
step is that of lm-sys/llm-decontaminator (arXiv:2311.04850), which has GPT-4 judge.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import sha256_of
from .benchmarks import MATH, Item
from .index import MAX_WORDS
from .rules import LONG
from .text import words_of

NEAR, NEAR_MATH = 0.9, 0.8  # least cosine; of a math question with enough of its numbers
_NUMBERS = 0.6  # share of a math question's numbers that must stand in the window
WINDOW, STRIDE = 64, 32  # words of a text that is longer than WHOLE
WHOLE, LEAST = 96, 10  # words: up to the first a text is one window, below the second none
_BATCH = 32  # texts
_MAX_TOKENS = 256  # where the folder does not tell

_TO_TWENTY = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_SPELLED = {name: str(k) for k, name in enumerate(_TO_TWENTY)} | {
    "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
    "twice": "2", "double": "2", "half": "2", "triple": "3",
}  # fmt: skip
_NUMBER = re.compile(rf"\d[\d,]*(?:\.\d+)?|\b(?:{'|'.join(_SPELLED)})\b")


@dataclass(frozen=True, slots=True)
class Near:
    """A window of a text near a test question.

    Attributes:
        row: Number of the row.
        field: Of the row.
        begin, end: Bytes of the field's UTF-8 text, half-open.
        item: Number of the test item.
        cosine: Of the two embeddings.
    """

    row: int
    field: str
    begin: int
    end: int
    item: int
    cosine: float


class Encoder:
    """Embeds texts: the mean of the last hidden states, of length 1.

    Args:
        folder: A checkpoint folder.
        device: ``auto``, ``cpu``, ``cuda``.

    Raises:
        CheckpointError: The folder does not load.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        import torch

        from ..models import load_encoder, resolve_device

        torch.set_num_threads(1)  # workers are processes; and the last bits do not hang on how many there are
        self._torch, self._device = torch, resolve_device(device)
        self._model, self._tokenizer = load_encoder(folder, self._device)
        self._max_tokens = max_tokens_of(folder)

    def embed(self, texts: Sequence[str], progress: Callable[[int], object] = lambda n: None) -> np.ndarray:
        """float32[texts, size]; ``progress`` hears of each batch the number of its characters."""
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))  # of one length together: little padding
        found = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            batch = self._tokenizer(
                [texts[k] for k in chosen], padding=True, truncation=True, max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._device)  # fmt: skip
            with self._torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None].to(hidden.dtype)
                mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
                found[chosen] = self._torch.nn.functional.normalize(mean).cpu().numpy()
            progress(sum(len(texts[k]) for k in chosen))
        return found


class Nearness:
    """Looks for test questions of 20 words and more in rows, by embeddings.

    Args:
        encoder: Of both.
        items: All test items.
        vectors: Of those in :func:`long_enough`, float32[n, size].
    """

    def __init__(self, encoder: Encoder, items: Sequence[Item], vectors: np.ndarray) -> None:
        self._encoder, self._vectors = encoder, vectors
        self._numbers = long_enough(items)
        self._items = [items[k] for k in self._numbers]

    def find(self, rows: Sequence[Sequence[tuple[str, str]]]) -> Iterator[Near]:
        """The nearest test question of each window in the texts of some rows, where it is a rephrasing by ``is_near``.

        Args:
            rows: (field, text) of each text of each row.
        """
        places, texts = [], []
        for number, row in enumerate(rows):
            for field, text in row:
                for begin, end in windows(text):
                    places.append((number, field, text, begin, end))
                    texts.append(text[begin:end])
        if not texts or not self._items:
            return
        likeness = self._encoder.embed(texts) @ self._vectors.T
        for place, own, cosines in zip(places, texts, likeness, strict=True):
            number, field, text, begin, end = place
            for k in np.flatnonzero(cosines >= min(NEAR, NEAR_MATH))[
                np.argsort(-cosines[cosines >= min(NEAR, NEAR_MATH)])
            ]:
                if is_near(self._items[k], own, float(cosines[k])):
                    before = len(text[:begin].encode("utf-8", "surrogatepass"))
                    size = len(own.encode("utf-8", "surrogatepass"))
                    yield Near(number, field, before, before + size, self._numbers[k], float(cosines[k]))
                    break


def is_near(item: Item, text: str, cosine: float) -> bool:
    """Whether a text is a rephrasing of a test question: by its cosine, for math with the question's numbers."""
    if item.benchmark not in MATH:
        return cosine >= NEAR
    return cosine >= NEAR_MATH and share_of_numbers(item.question, text) >= _NUMBERS


def share_of_numbers(question: str, text: str) -> float:
    """Share of a question's numbers, in digits or spelled, that a text holds as well; 0 where it has none."""
    wanted, there = numbers_of(question), numbers_of(text)
    return (wanted & there).total() / max(wanted.total(), 1)


def numbers_of(text: str) -> Counter[str]:
    """The numbers of a text in digits; ``$1,000.00`` is 1000, ``twelve`` is 12, ``half`` and ``twice`` are 2."""
    found = Counter[str]()
    for match in _NUMBER.findall(text.lower()):
        plain = _SPELLED.get(match, match.replace(",", ""))
        found[plain.rstrip("0").rstrip(".") if "." in plain else plain] += 1
    return found


def windows(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) in characters of each window of a text, half overlapping; the last ends where the text ends."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    if len(words) < LEAST:
        return
    if len(words) <= WHOLE:
        yield words[0][0], words[-1][1]
        return
    starts = [*range(0, len(words) - WINDOW, STRIDE), len(words) - WINDOW]
    yield from ((words[k][0], words[k + WINDOW - 1][1]) for k in starts)


def long_enough(items: Sequence[Item]) -> list[int]:
    """Numbers of the items whose questions have 20 to 256 words: shorter ones are near to much that is no copy."""
    return [k for k, item in enumerate(items) if LONG <= words_of(item.question)[1] <= MAX_WORDS]


def max_tokens_of(folder: Path) -> int:
    """Most tokens that the encoder was trained for, as its folder tells it."""
    try:
        return int(json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"])
    except (OSError, ValueError, KeyError, TypeError):
        return _MAX_TOKENS


def identity_of(folder: Path) -> dict[str, object]:
    """JSON that changes when what is found may: digest of the encoder's files, and the limits."""
    names = (".safetensors", ".json", ".txt", ".model")
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name.endswith(names)}
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return {"model": digest, "near": NEAR, "near_math": NEAR_MATH, "numbers": _NUMBERS,
            "words": [WINDOW, STRIDE, WHOLE, LEAST]}  # fmt: skip
