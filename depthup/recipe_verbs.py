"""The verbs that run recipes, and how a verb is declared."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MIRROR = "DEPTHUP_MIRROR"
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def add_verb(verbs: Any, name: str, function: Callable[..., int | None], summary: str, examples: str) -> Any:
    """A verb of the command line: its parser, which calls ``function`` with the options."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    return parser


def _add_recipe_options(parser: Any) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="recipe.yaml, or the folder that it lies in")
    parser.add_argument("--store", metavar="DIR", help="where results are kept (runs/NAME)")
    parser.add_argument(
        "--mirror", metavar="URL",
        help="an object store or folder (s3://bucket/run) where results are found, and put as well;"
        f" ${_MIRROR} if not given",
    )  # fmt: skip


def add_stage_options(parser: Any) -> None:
    """A recipe and one of its stages, for verbs that look at a single one."""
    parser.add_argument("recipe", metavar="RECIPE", help="recipe.yaml, or the folder that it lies in")
    parser.add_argument("stage", metavar="STAGE", help="name of the stage in the recipe")
    parser.add_argument("--store", metavar="DIR", help="where results are kept (runs/NAME)")


def add_run(verbs: Any) -> None:
    """`depthup run`."""
    parser = add_verb(verbs, "run", _run, "make every stage of a recipe that is not made yet", """
examples:
  depthup run recipes/quickstart
  depthup run recipes/quickstart --store /data/runs/quickstart --device cuda
  depthup run recipes/smol --jobs 4 --retries 2                  stages beside one another (docs/pipeline.md)
  torchrun --nproc-per-node 8 -m depthup run my.yaml             docs/cluster.md has more
Stopped with Ctrl-C, or by a launcher's SIGTERM or SIGUSR1, it goes on where it was when run again.
exit status: 0 done, 2 bad input, 69 what it needs did not answer and may later (a network), 75 stopped by a launcher
with the state saved, 130 stopped by Ctrl-C
""")  # fmt: skip
    _add_recipe_options(parser)
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1; with --jobs"
        " several, as in cuda:0,cuda:1 (auto: all GPUs)",
    )  # fmt: skip
    parser.add_argument("--only", metavar="STAGE", help="make this stage alone; what it comes from must be made")
    parser.add_argument(
        "--jobs", type=_at_least(1), default=1, metavar="N",
        help="most stages at a time, each in a process of its own; computing ones one at a time on a device (1)",
    )  # fmt: skip
    parser.add_argument(
        "--retries", type=_at_least(0), default=0, metavar="N",
        help="try a stage again so often after a crash or a failure of the network, never after bad input (0)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="the same as `depthup status`")


def _run(options: argparse.Namespace) -> int:
    if options.dry_run:
        _status(options)
        return 0
    from .errors import DepthupError, Stopped, may_pass
    from .jobs import UNAVAILABLE, hold_leash, run_jobs
    from .launching import WORKER, tell_problem
    from .pipeline import outcome, run

    recipe, store = open_recipe(options)
    is_worker = hold_leash() or WORKER in os.environ
    try:
        if options.jobs > 1 or options.retries:
            from .live_view import Screen

            view = Screen() if options.jobs > 1 and sys.stderr.isatty() else None
            nodes = run_jobs(recipe, store, jobs=options.jobs, retries=options.retries, devices=options.device,
                             only=options.only, view=view)  # fmt: skip
        else:
            nodes = run(recipe, store, only=options.only, device=options.device, progress=sys.stderr.isatty(),
                        tell=(lambda line: None) if is_worker else print)  # fmt: skip
    except Stopped as stopped:
        print(f"stopped by {stopped} with the state saved; run again, it goes on", file=sys.stderr)
        return STOPPED
    except DepthupError as error:
        if not may_pass(error):
            tell_problem(error)
            raise
        print(f"depthup: {error}", file=sys.stderr)
        return UNAVAILABLE
    if os.environ.get("RANK", "0") == "0" and options.only is None:
        print(outcome(nodes))
    return 0


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not minimum <= value <= 1000:
            raise argparse.ArgumentTypeError(f"{text} is not between {minimum} and 1000")
        return value

    return number


def add_status(verbs: Any) -> None:
    """`depthup status`."""
    parser = add_verb(verbs, "status", _status, "tell what a run would do, and why", """
examples:
  depthup status recipes/quickstart
  depthup status my.yaml --watch                       drawn again each second, while a run goes on elsewhere
states: cached (nothing to do), partial (a stopped run goes on), stale (made with other settings), missing
""")  # fmt: skip
    _add_recipe_options(parser)
    parser.add_argument("--watch", action="store_true", help="draw it again each second until all is made, or Ctrl-C")


def _watch(recipe: Any, store: Any) -> None:
    """Draw the stages until Ctrl-C, or until all are made."""
    import time

    from .files import is_being_written, partial_path
    from .live_view import Screen
    from .pipeline import survey

    screen = Screen(sys.stdout)
    while True:
        nodes = survey(recipe, store)
        running = {}
        for name, node in nodes.items():
            if node.record is None and is_being_written(node.folder):
                with contextlib.suppress(OSError):  # published meanwhile
                    running[name] = partial_path(node.folder).stat().st_ctime
        screen.update(nodes, running, {})
        if all(node.record is not None for node in nodes.values()):
            return
        time.sleep(1)


def _status(options: argparse.Namespace) -> None:
    from .files import partial_path
    from .pipeline import survey

    if getattr(options, "watch", False):
        _watch(*open_recipe(options))
        return
    recipe, store = open_recipe(options)
    nodes = survey(recipe, store)
    for name, node in nodes.items():
        note = (
            f"  {node.reason}"
            if node.reason
            else f"  {store.place(name, node.fingerprint)}"
            if node.state == "cached"
            else ""
        )
        print(f"{name:<20}{node.stage.kind:<14}{node.state:<8}{note}")
    known = {partial_path(node.folder) for node in nodes.values()}
    for folder in store.leftovers():
        if folder not in known:
            print(f"left over by a stopped run of other settings, may be removed: {folder}")


def add_report(verbs: Any) -> None:
    """`depthup report`."""
    parser = add_verb(verbs, "report", _report, "write the report page of a recipe whose stages are made", """
examples:
  depthup report recipes/quickstart
  depthup report recipes/quickstart --out site       index.html, report.md, model card, data cards, citation
With several report stages each has a folder of its name in DIR (docs/report.md).
""")  # fmt: skip
    _add_recipe_options(parser)
    parser.add_argument("--out", metavar="DIR", help="also copy page, Markdown and cards there; it must not exist")


def _report(options: argparse.Namespace) -> None:
    from .errors import RecipeError
    from .files import refuse_existing
    from .pipeline import outcome, run

    if options.out:
        refuse_existing(Path(options.out))
    recipe, store = open_recipe(options)
    pages = [name for name, stage in recipe.stages.items() if stage.kind == "report"]
    if not pages:
        raise RecipeError(
            f"the recipe {recipe.name} has no stage of kind report", next_step="add one as its last stage"
        )
    for page in pages:
        nodes = run(recipe, store, only=page, tell=lambda line: None)
    print(outcome(nodes))
    if options.out:
        _copy_reports({page: nodes[page].folder for page in pages}, Path(options.out))
        print(f"written: {options.out}")


def _copy_reports(folders: dict[str, Path], out: Path) -> None:
    """Copy what report stages wrote, without their records, into a folder that is there only when whole."""
    import shutil

    from .files import publishing

    with publishing(out) as partial:
        for name, folder in folders.items():
            place = partial / name if len(folders) > 1 else partial
            shutil.copytree(folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("record.json"))


def open_recipe(options: argparse.Namespace) -> tuple[Any, Any]:
    """The recipe that the options name, and its store."""
    from .artifacts.mirror import Mirror
    from .artifacts.store import Store
    from .recipe import load_recipe

    recipe = load_recipe(options.recipe)
    address = getattr(options, "mirror", None) or os.environ.get(_MIRROR)
    if address:
        os.environ[_MIRROR] = address  # for the processes that make stages
    root = Path(options.store) if options.store else Path("runs") / recipe.name
    return recipe, Store(root, Mirror(address) if address else None)
