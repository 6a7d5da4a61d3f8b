"""The verb that makes one checkpoint of several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .errors import DepthupError
from .recipe_verbs import add_verb


def add_merge(verbs: Any) -> None:
    """`depthup merge`."""
    parser = add_verb(verbs, "merge", _merge, "make one checkpoint of several of the same architecture", """
examples:
  depthup merge dpo-v1 dpo-v2 --out merged                                       the plain average
  depthup merge dpo-v1 dpo-v2 --weights 0.4,0.6 --out merged
  depthup merge dpo-v1 dpo-v2 --method slerp --weights 0.7,0.3 --out merged      three tenths of the way
  depthup merge math chat --method ties --base sft --set density=0.3 --out merged
  depthup merge old new --layer-weights 0-24=0.8,0.2 --layer-weights 24-48=0.2,0.8 --out merged
methods: linear, slerp, task-arithmetic, ties, dare-linear, dare-ties, model-stock (docs/merging.md)
""")  # fmt: skip
    parser.add_argument("models", metavar="MODEL", nargs="+", help="checkpoint folder, or a model on the hub; the first"
                        " gives config and tokenizer")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make; it must not exist")
    parser.add_argument("--method", default="linear", metavar="NAME", help="how they are merged (linear)")
    parser.add_argument("--weights", metavar="A,B,...", help="one number a model (all alike)")
    parser.add_argument("--base", metavar="MODEL", help="what the models were trained from, where the method needs it")
    parser.add_argument(
        "--layer-weights", action="append", default=[], metavar="FIRST-LAST=A,B", help="other weights for layers FIRST"
        " to LAST - 1; may be given several times",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=NUMBER", help="a number of the method")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the merge (each tensor as the first has it)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, write nothing")


def _merge(options: argparse.Namespace) -> None:
    from .checkpoint.remote import local_folder
    from .files import refuse_existing

    refuse_existing(Path(options.out))
    how: dict[str, Any] = {
        "method": options.method,
        "weights": _numbers(options.weights) if options.weights else None,
        "base": local_folder(options.base) if options.base else None,
        "layer_weights": {key: _numbers(value) for key, value in _pairs(options.layer_weights, "--layer-weights")},
        "options": {key: _numbers(value)[0] for key, value in _pairs(options.set, "--set")},
        "dtype": options.dtype,
    }
    models = [local_folder(model) for model in options.models]
    from tqdm import tqdm

    from .merging.merge import plan_merge, publish_merge

    plan = plan_merge(models, **how)
    if not options.dry_run:
        with tqdm(
            total=plan.num_bytes, desc="merge", unit="B", unit_scale=True, disable=None, dynamic_ncols=True
        ) as bar:
            publish_merge(plan, Path(options.out), bar.update)
    shares = ", ".join(f"{weight:g} {name}" for weight, name in zip(plan.weights, options.models, strict=True))
    size = f"{plan.num_bytes / 1e9:,.2f} GB in {len(plan.shards)} file{'s' * (len(plan.shards) > 1)}"
    print(f"{options.out}: {options.method} of {shares}; {size}{' (not written)' * options.dry_run}")


def _pairs(given: list[str], option: str) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in given]
    for key, sign, value in pairs:
        if not (key and sign and value):
            raise DepthupError(f"{option} {key}{sign}{value} is not understood", allowed=f"{option} NAME=VALUE")
    return [(key, value) for key, _, value in pairs]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise DepthupError(f"'{text}' is no list of numbers", allowed="0.4,0.6") from error
