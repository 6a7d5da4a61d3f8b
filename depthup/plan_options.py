"""The options that say a plan, for the verbs of the command line that take one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .blending import blend
from .layers import INITS, LayerPlan
from .presets import make_plan, preset_names

_PLAN_EXAMPLES = """
ways to say the plan (n base layers, m removed from each copy, s = 2 (n - m) target layers):
  --remove 8            depth up-scaling with m = 8
  --target-layers 48    depth up-scaling to s = 48
  --layers 0-23,8-31    any stack: layers and inclusive runs, the first layer is 0
  --preset solar        a published plan: {presets}
  --preset 'solar then block(12-27)'    the second plan on what the first one makes
  --drop 20-27          the base without these layers
a layer that does not start as a plain copy: --layers 0-9,9:identity,10-31; it may start as
  {inits}
"""


def add_plan_options(parser: Any, title: str = "the plan, one of") -> None:
    """Add the ways to say a plan, and examples of each, to a verb."""
    group = parser.add_argument_group(title)
    group.add_argument("--remove", type=int, metavar="M", help="layers removed from each copy")
    group.add_argument("--target-layers", type=int, metavar="S", help="depth of the target")
    group.add_argument("--layers", metavar="PLAN", help="the base layer of each target layer, as in 0-23,8-31")
    group.add_argument("--preset", metavar="NAME", help="a published plan, as in solar or 'llama-pro(8)'")
    group.add_argument("--drop", metavar="LAYERS", help="the base without these layers, as in 20-27")
    group.add_argument("--mergekit", metavar="FILE", help="what a passthrough YAML of mergekit says")
    group.add_argument("--undo", action="store_true", help="the base again, from a checkpoint that depthup grew")
    group.add_argument(
        "--blend",
        type=int,
        metavar="WIDTH",
        help="with any of these: overlap slices at each seam by averaged layers",
    )
    parser.epilog += _PLAN_EXAMPLES.format(presets=", ".join(preset_names()), inits=", ".join(INITS))


def names_a_plan(options: argparse.Namespace) -> bool:
    """Whether any of the options of :func:`add_plan_options` is given."""
    ways = (options.remove, options.target_layers, options.layers, options.preset, options.drop, options.mergekit)
    return options.undo or any(way is not None for way in ways)


def chosen_plan(
    options: argparse.Namespace, num_layers: int, folder: Path | None, stack: str | None = None
) -> LayerPlan:
    """The plan that the options of :func:`add_plan_options` say, for a base of ``num_layers`` layers.

    Args:
        options: The parsed command line.
        num_layers: Depth of the base.
        folder: The base, where it is a checkpoint: ``--undo`` reads its manifest, ``--mergekit`` its names.
        stack: The stack of it that the plan is for.

    Raises:
        PlanError: None or several ways are given, or the one given does not fit.
        CheckpointError: The base does not tell what the plan needs.
    """

    def undo() -> LayerPlan:
        from .growth.history import undo_plan

        return undo_plan(folder, num_layers, stack)

    def mergekit() -> LayerPlan:
        from .growth.mergekit import tensor_names
        from .growth.mergekit_import import read_mergekit

        imported = read_mergekit(options.mergekit, tensor_names(num_layers, folder, stack))
        for note in imported.notes:
            print(f"depthup: {options.mergekit}: {note}", file=sys.stderr)
        return imported.plan

    plan = make_plan(
        num_layers,
        remove=options.remove,
        target_layers=options.target_layers,
        layers=options.layers,
        preset=options.preset,
        drop=options.drop,
        undo=undo if options.undo else None,
        mergekit=mergekit if options.mergekit else None,
    )
    return plan if options.blend is None else blend(plan, options.blend)
