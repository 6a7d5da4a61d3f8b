"""The text decoders: every family of transformers' MODEL_FOR_CAUSAL_LM_MAPPING, and variants that matter to depth."""

from __future__ import annotations

from .shrink import row

SPECIMENS = [
    row("llama"),
    row("llama-tied", "llama", tie_word_embeddings=True),
]
