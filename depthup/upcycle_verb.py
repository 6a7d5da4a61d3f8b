"""The verb that makes a mixture of experts of a dense checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .recipe_verbs import add_verb


def add_upcycle(verbs: Any) -> None:
    """`depthup upcycle`."""
    parser = add_verb(verbs, "upcycle", _upcycle, "make a mixture of experts of a dense checkpoint", """
examples:
  depthup upcycle mistral-7b mixtral-4x --experts 4
  depthup upcycle mistral-7b mixtral-8x --experts 8 --experts-per-token 2 --dry-run
  depthup upcycle qwen3-1.7b fine --experts 8 --granularity 4         32 experts of a quarter's width, 8 a token
  depthup upcycle qwen3-1.7b half-sparse --experts 4 --every 2        each second layer stays dense
  depthup upcycle mistralai/Mistral-7B-v0.1 mixtral-4x --experts 4    streams through, as in `depthup upscale`
  depthup check mixtral-4x --against mistral-7b                       each byte, proved
It computes what the dense model computes until it is trained (docs/growth.md). Families: llama, mistral -> Mixtral;
qwen2, qwen3, olmo2, granite -> Qwen2-MoE, Qwen3-MoE, FlexOlmo, GraniteMoE.
""")  # fmt: skip
    parser.add_argument(
        "base", metavar="BASE", help="checkpoint folder, a model on the hub as owner/name[@revision], or URL"
    )
    parser.add_argument("out", metavar="OUT", help="folder to make; it must not exist")
    parser.add_argument("--experts", type=int, required=True, metavar="E", help="copies of the feed-forward in a layer")
    parser.add_argument("--experts-per-token", type=int, default=2, metavar="K", help="copies that a token goes to (2)")
    parser.add_argument(
        "--granularity", type=int, default=1, metavar="G", help="parts of a copy, each an expert of its own (1)"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th layer becomes sparse (1: all)")
    parser.add_argument(
        "--router-std", type=float, metavar="S", help="deviation of the random routers (the config's, or 0.02)"
    )
    parser.add_argument(
        "--expert-noise", type=float, default=0.0, metavar="X",
        help="noise on all copies but the first, as a share of each matrix's own deviation (0: exact)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of routers and noise (0)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, write nothing")
    parser.add_argument("--max-shard-gb", type=_positive, default=5.0, metavar="GB", help="size of output files (5)")
    parser.add_argument(
        "--resume", action="store_true", help="keep what a stopped run has written, once it is compared with the base"
    )
    parser.add_argument("--digests", action="store_true", help="SHA-256 of all files into depthup.json (slower)")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _upcycle(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .checkpoint.remote import open_base
    from .files import refuse_existing
    from .growth.upcycle import Upcycling, plan_upcycle, publish_upcycle

    out = Path(options.out)
    refuse_existing(out)
    how = Upcycling(
        options.experts,
        options.experts_per_token,
        granularity=options.granularity,
        every=options.every,
        router_std=options.router_std,
        expert_noise=options.expert_noise,
        seed=options.seed,
    )
    upcycle = plan_upcycle(open_base(options.base), how, max_shard_bytes=int(options.max_shard_gb * 1e9))
    remote = upcycle.base.remote
    print(upcycle.describe())
    if remote is not None:
        print(remote.describe())
    if options.dry_run:
        print(f"dry run: {out} was not written")
        return
    num_base_bytes = 0 if remote else upcycle.base.num_bytes  # what streams by is digested in any case
    total = upcycle.num_bytes + (num_base_bytes + upcycle.num_bytes if options.digests else 0)
    with tqdm(total=total, desc="upcycle", unit="B", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        kept = publish_upcycle(upcycle, out, bar.update, resume=options.resume, digests=options.digests)
    if options.resume and remote is None:
        print(f"resumed: {len(kept)} of {len(upcycle.shards)} files were whole and of this base")
    print(f"written: {out}")
