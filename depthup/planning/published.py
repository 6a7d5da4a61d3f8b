"""Configs of models that recipes of this repository name on the hub: with them a plan needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What decides sizes in their config.json, as published.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
        "tie_word_embeddings": False, "dtype": "bfloat16",
    },
}  # fmt: skip
