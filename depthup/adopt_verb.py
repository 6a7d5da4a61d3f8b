"""The verb that takes a checkpoint made elsewhere as the result of a stage."""

from __future__ import annotations

import argparse
from typing import Any

from .recipe_verbs import add_stage_options, add_verb, open_recipe


def add_adopt(verbs: Any) -> None:
    """`depthup adopt`."""
    parser = add_verb(verbs, "adopt", _adopt, "let an existing checkpoint stand for a stage of a recipe", """
examples:
  depthup adopt my.yaml cpt /data/checkpoints/solar-cpt-final
  depthup adopt my.yaml base mistralai/Mistral-7B-v0.1 --copy
It is checked as `depthup check` does. What comes from the stage is made from this model, and its fingerprint is that of
its files: another model gives other results. With other settings the stage is stale again.
""")  # fmt: skip
    add_stage_options(parser)
    parser.add_argument("folder", metavar="FOLDER", help="checkpoint folder, or a model on the hub")
    parser.add_argument("--copy", action="store_true", help="copy the files; else they are hard-linked where possible,"
                        " and to edit one in place in one folder edits the other")  # fmt: skip


def _adopt(options: argparse.Namespace) -> None:
    from .adoption import adopt

    recipe, store = open_recipe(options)
    record = adopt(recipe, store, options.stage, options.folder, link=not options.copy)
    folder = store.folder(options.stage, record.fingerprint)
    print(f"{options.stage} is now {record.circumstance['adopted_from']}: {folder}")
