"""The verb that removes from a store what nothing needs."""

from __future__ import annotations

import argparse
from typing import Any

from .recipe_verbs import add_verb


def add_gc(verbs: Any) -> None:
    """`depthup gc`."""
    parser = add_verb(verbs, "gc", _gc, "remove from a recipe's store what no stage needs any more", """
examples:
  depthup gc recipes/smol --dry-run                              what would go, and how much it takes
  depthup gc recipes/smol --keep-days 7
  depthup gc a.yaml b.yaml --store /data/runs/shared             results of both stay
Removed are results of settings that no recipe named has, leftovers of stopped runs of such settings, and tokens and
answers that were not used for 30 days. While a run uses the store nothing is removed.
""")  # fmt: skip
    parser.add_argument(
        "recipes", metavar="RECIPE", nargs="+", help="recipe.yaml, or its folder; several share a store"
    )
    parser.add_argument("--store", metavar="DIR", help="where results are kept (runs/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be removed, remove nothing")
    parser.add_argument(
        "--keep-days", type=_days, metavar="N",
        help="keep what was written or used within N days (not said: 0 for results and leftovers, 30 for tokens and"
        " answers)",
    )  # fmt: skip


def _gc(options: argparse.Namespace) -> None:
    from pathlib import Path

    from .artifacts.garbage import find_garbage, remove
    from .artifacts.store import Store
    from .errors import RecipeError
    from .files import human_bytes
    from .pipeline import needed_folders
    from .recipe import load_recipe

    recipes = [load_recipe(path) for path in options.recipes]
    if len(recipes) > 1 and options.store is None:
        raise RecipeError("several recipes, and no store that they share", next_step="name it with --store DIR")
    store = Store(Path(options.store) if options.store else Path("runs") / recipes[0].name)
    total = 0
    with store.cleaning(options.dry_run):
        needed = {folder for recipe in recipes for folder in needed_folders(recipe, store)}
        garbage = find_garbage(store, needed, options.keep_days)
        for each in garbage if options.dry_run else remove(garbage):
            total += each.num_bytes
            print(f"{each.what:<9}{human_bytes(each.num_bytes):>10}  {each.days:5.1f} days  {each.path}")
    verb = "would be freed" if options.dry_run else "freed"
    print(f"{human_bytes(total)} {verb}; {len(garbage)} of the store's folders and files")


def _days(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of days")
    return value
