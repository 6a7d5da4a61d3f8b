"""The verb that lets checkpoints write."""

from __future__ import annotations

import argparse
from typing import Any

from .recipe_verbs import add_verb


def add_generate(verbs: Any) -> None:
    """`depthup generate`."""
    parser = add_verb(verbs, "generate", _generate, "continue a prompt, side by side over several checkpoints", """
examples:
  depthup generate solar-base --prompt "The capital of France is"
  depthup generate base target trained --prompt "Explain list comprehensions." --chat
""")  # fmt: skip
    parser.add_argument("models", metavar="MODEL", nargs="+", help="checkpoint folder, or a model on the hub")
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="length (64)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="share of probability to draw from (1)")
    parser.add_argument("--seed", type=int, default=0, help="for --temperature above 0 (0)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1")


def _generate(options: argparse.Namespace) -> None:
    from .checkpoint.remote import local_folder
    from .generation.backend import Sampling

    folders = [local_folder(model) for model in options.models]
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    # torch is loaded only now, so that the mistakes above are told at once
    from .generation.local import LocalBackend
    from .models import load_model, load_tokenizer, resolve_device

    device = resolve_device(options.device)
    for name, folder in zip(options.models, folders, strict=True):
        backend = LocalBackend(load_model(folder, device), load_tokenizer(folder), options.chat)
        for prompt, text in zip(options.prompt, backend.generate(options.prompt, sampling), strict=True):
            print(f"── {name} ── {prompt}\n{text.strip()}\n", flush=True)
