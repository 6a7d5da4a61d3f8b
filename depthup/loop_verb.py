"""The verbs that make a looped model of a base, and an ordinary model of a looped one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .plan_options import add_plan_options, chosen_plan
from .recipe_verbs import add_verb


def add_loop(verbs: Any) -> None:
    """`depthup loop`."""
    parser = add_verb(verbs, "loop", _loop, "make a model that runs its layers twice and stores them once", """
examples:
  depthup loop smollm2 looped --remove 8                            30 stored layers, 44 visits, one adapter
  depthup loop smollm2 looped --remove 8 --adapter bridge --rank 32
  depthup loop smollm2 looped --layers 0-19,10-19,10-29 --dry-run   the middle three times
The model computes what `depthup upscale` would write, until its adapters are trained. The class that runs it lies in
the folder: transformers loads it with trust_remote_code=True, depthup by itself.
""")  # fmt: skip
    parser.add_argument("base", metavar="BASE", help="checkpoint folder, or a model on the hub")
    parser.add_argument("out", metavar="OUT", help="folder to make; it must not exist")
    parser.add_argument(
        "--adapter", default="linear", metavar="NAME",
        help="what stands at each seam: linear (default), h + B A N(h); bridge, which also sees what entered the loop;"
        " none",
    )  # fmt: skip
    parser.add_argument("--rank", type=int, default=16, metavar="R", help="width inside each adapter (16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the adapters' first matrices (0)")
    parser.add_argument("--link", action="store_true", help="hard-link files of the base that stay, not copy them")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, write nothing")
    add_plan_options(parser)


def _loop(options: argparse.Namespace) -> None:
    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint
    from .checkpoint.remote import local_folder
    from .files import refuse_existing

    refuse_existing(Path(options.out))
    base = open_checkpoint(local_folder(options.base))
    stack = find_stack(base.tensors, base.config)
    plan = chosen_plan(options, stack.num_layers, base.folder, stack.prefix)
    from .growth.looped import plan_loop, publish_loop

    looping = plan_loop(
        base, plan, adapter=options.adapter, rank=options.rank, seed=options.seed, link=options.link
    )  # fmt: skip
    print(looping.describe())
    if options.dry_run:
        print(f"dry run: {options.out} was not written")
        return
    with _bytes_bar(looping.surgery.num_bytes, "loop") as advance:
        publish_loop(looping, Path(options.out), advance)
    print(f"written: {options.out}")


def add_unroll(verbs: Any) -> None:
    """`depthup unroll`."""
    parser = add_verb(verbs, "unroll", _unroll, "make an ordinary model of a looped one: each visit a layer", """
examples:
  depthup unroll looped deeper                    share, train, then untie
  depthup unroll looped deeper --drop-adapters    trained adapters have no place in an ordinary model
""")  # fmt: skip
    parser.add_argument("looped", metavar="LOOPED", help="folder of a looped model")
    parser.add_argument("out", metavar="OUT", help="folder to make; it must not exist")
    parser.add_argument("--drop-adapters", action="store_true", help="leave out adapters that change something")


def _unroll(options: argparse.Namespace) -> None:
    from .checkpoint.reader import open_checkpoint
    from .files import refuse_existing

    refuse_existing(Path(options.out))
    num_bytes = open_checkpoint(options.looped).num_bytes
    from .growth.looped import unroll

    with _bytes_bar(num_bytes, "unroll") as advance:
        surgery = unroll(options.looped, options.out, drop_adapters=options.drop_adapters, progress=advance)
    print(surgery.describe())
    print(f"written: {options.out}")


@contextmanager
def _bytes_bar(total: int, label: str) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        yield bar.update
