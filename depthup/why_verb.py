"""The verb that tells why a stage would be made again, or not."""

from __future__ import annotations

import argparse
from typing import Any

from .recipe_verbs import add_stage_options, add_verb, open_recipe


def add_why(verbs: Any) -> None:
    """`depthup why`."""
    parser = add_verb(verbs, "why", _why, "tell what made a stage stale, down to the first cause", """
examples:
  depthup why recipes/smol report
  depthup why my.yaml dpo --store /data/runs/my
A stage that is cached, missing or partial is explained, too. Nothing is written.
""")  # fmt: skip
    add_stage_options(parser)


def _why(options: argparse.Namespace) -> None:
    from .pipeline import require_stage, survey
    from .why import explain

    recipe, store = open_recipe(options)
    require_stage(recipe, options.stage)
    print(explain(survey(recipe, store), store, options.stage))
