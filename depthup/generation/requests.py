"""The identity of a request: what its answer depends on, as one hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from .backend import Prompt, Sampling


def identity(model: str, prompt: Prompt, sampling: Sampling, template: str = "") -> str:
    """Key of a cache of answers, and of servers that know a request again: 64 hexadecimal digits.

    Args:
        model: Which model is asked: a backend's ``identity``.
        prompt: As the model gets it.
        sampling: Seed and sample index are part of it.
        template: Version of what made the prompt: a new version asks again, even for equal prompts.
    """
    whole = {
        "model": model,
        "template": template,
        "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
        "sampling": asdict(sampling),
    }
    text = json.dumps(whole, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
