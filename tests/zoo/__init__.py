"""A zoo of tiny models: one specimen of every architecture that transformers knows, built on the spot and seeded.

``specimens()`` gives them all. A family is one row of a literal table (``decoders.py``, and a module for each other
kind of model); :func:`zoo.shrink.row` makes the specimen, and needs no field where the shrinker guesses right.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

# The modules of this package that hold a table ``SPECIMENS``.
TABLES = ("decoders", "encoders", "seq2seq", "speech", "vision", "multimodal", "wide", "talkers", "detectors", "others")


@dataclass(frozen=True)
class Specimen:
    """One family, and how to make a tiny model of it.

    Attributes:
        family: The row's name, unique in the zoo: ``"llama"``, ``"llama-tied"``, ``"whisper/decoder"``.
        model_type: transformers' name of the configuration class.
        stack: Which stack grows: None for the only one; a word (``"encoder"``, ``"decoder"``, ``"vision"``, ``"text"``,
            ``"audio"``) that the prefix on disk holds; or the whole prefix, as in ``"model.visual.blocks"``.
        build: A new model in evaluation mode. Every parameter and every stored float buffer is random.
        inputs: What ``forward`` takes.
        generates: Whether ``generate`` with a cache makes sense.
        edit: What is done to the saved folder before it is taken for a base, as in a config of an older spelling.
    """

    family: str
    model_type: str
    stack: str | None
    build: Callable[[], PreTrainedModel]
    inputs: Callable[[PreTrainedModel], dict[str, Tensor]]
    generates: bool
    edit: Callable[[Path], object] | None = None


def specimens(pattern: str = "") -> list[Specimen]:
    """Every specimen whose family has a match of ``pattern``, in the order of the tables."""
    found: list[Any] = [s for table in TABLES for s in importlib.import_module(f"zoo.{table}").SPECIMENS]
    names = [specimen.family for specimen in found]
    assert len(set(names)) == len(names), f"rows of one name: {sorted({n for n in names if names.count(n) > 1})}"
    return [specimen for specimen in found if re.search(pattern, specimen.family)]
