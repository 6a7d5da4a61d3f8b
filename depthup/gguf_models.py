"""Models of GGUF files, by transformers' own reader."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from .errors import CheckpointError
from .models import Model, Tokenizer, quiet_transformers


def read_gguf(file: Path) -> tuple[Model, Tokenizer]:
    """The model of a GGUF file, de-quantised to float32, and its tokenizer.

    Raises:
        CheckpointError: The package gguf is missing, or transformers does not know the file's architecture.
    """
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError("reading GGUF files needs the package gguf", next_step="pip install 'depthup[gguf]'")
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with quiet_transformers(), _parsed_once():
        try:
            loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**place)
        except Exception as error:  # transformers raises many kinds; each means that this file is not read
            raise CheckpointError(
                f"transformers {transformers.__version__} does not read {file}: {error}",
                next_step="get the model's safetensors folder instead, where there is one",
            ) from error
    # The loaded model counts as quantised and would refuse to be saved; a plain one takes over its weights.
    config = copy.deepcopy(loaded.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model, tokenizer


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses a GGUF file once for each of config, weights and tokenizer, seconds each: keep the first."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader
