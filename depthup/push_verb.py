"""The verb that publishes a model with its card and its report."""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from .recipe_verbs import add_verb

TOKEN = "HF_TOKEN"


def add_push(verbs: Any) -> None:
    """`depthup push`."""
    parser = add_verb(verbs, "push", _push, "publish a model with its card and report on the Hugging Face Hub", """
examples:
  depthup push merged me/smollm2-deep --recipe recipes/quickstart --dry-run      which files would go; no network
  HF_TOKEN=... depthup push merged me/smollm2-deep --recipe recipes/quickstart --private
  HF_TOKEN=... depthup push path/to/checkpoint me/my-model --licence apache-2.0
The card is made of the recipe's records; a folder's own README.md stays as it is. What `depthup check` faults, holds a
secret or a path of this machine, or has no licence is not sent. Stopped, the same command goes on: no file goes twice.
""")  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="stage of the recipe, or a checkpoint folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the Hub; made if it is not there")
    parser.add_argument("--recipe", metavar="RECIPE", help="recipe.yaml, or its folder: MODEL is one of its stages")
    parser.add_argument("--store", metavar="DIR", help="where the recipe's results are kept (runs/NAME)")
    parser.add_argument("--private", action="store_true", help="for its owner alone")
    parser.add_argument("--dry-run", action="store_true", help="print which files would go, and send nothing")
    parser.add_argument("--licence", metavar="ID", help="of the model, as the Hub calls it (that of the card)")
    parser.add_argument("--no-report", action="store_true", help="leave the report page out")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="TEXT",
        help="what holds this text is no secret and no path of this machine; may be given several times",
    )  # fmt: skip


def _push(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .checkpoint.upload import find_leaks, plan_upload, send
    from .errors import CheckpointError

    with tempfile.TemporaryDirectory(prefix="depthup-") as temporary:
        folder, extra = _gather(options, Path(temporary))
        _require_whole(folder)
        upload = plan_upload(folder, options.repository, private=options.private, extra=extra)
        if leaks := find_leaks(upload.files, options.allow):
            raise CheckpointError(
                "what would be sent holds what should not leave this machine:\n  " + "\n  ".join(leaks),
                next_step="take it out, or say --allow TEXT where it may stand",
            )
        print(upload.describe())
        if options.dry_run:
            print("dry run: nothing was sent")
            return
        token = os.environ.get(TOKEN)
        if not token:
            raise CheckpointError(
                f"{TOKEN} is not set", next_step=f"{TOKEN}=... depthup push ..., with a token that may write"
            )
        with tqdm(
            total=upload.num_bytes, desc="push", unit="B", unit_scale=True, disable=None, dynamic_ncols=True
        ) as bar:
            address = send(upload, token, "Model, card and report, by depthup", tell=tqdm.write, advance=bar.update)
    print(f"published: {address}")


def _gather(options: argparse.Namespace, temporary: Path) -> tuple[Path, dict[str, Path]]:
    """The checkpoint's folder, and what goes with it from elsewhere: a card that states a licence, and the report."""
    from .errors import CheckpointError
    from .report.card import join_card, split_card
    from .report.model_card import CARD_NAME, licence_of, write_model_card

    extra: dict[str, Path] = {}
    if options.recipe is None:
        from .checkpoint.remote import local_folder

        if not os.path.isdir(options.model):
            raise CheckpointError(
                f"there is no folder {options.model}", next_step="for a stage of a recipe add --recipe RECIPE"
            )
        folder = local_folder(options.model)
        facts = None if (folder / CARD_NAME).is_file() else _facts_of_folder(folder)
    else:
        folder, facts, extra = _stage(options)
    if facts is not None:
        write_model_card(replace(facts, repository=options.repository), temporary)
        made = (path for path in temporary.rglob("*") if path.is_file())
        extra |= {path.relative_to(temporary).as_posix(): path for path in made}
    fields, body = split_card((extra.get(CARD_NAME) or folder / CARD_NAME).read_text(encoding="utf-8"))
    if options.licence:
        (temporary / CARD_NAME).write_text(join_card({**fields, "license": options.licence}, body), encoding="utf-8")
        extra[CARD_NAME] = temporary / CARD_NAME
    elif not licence_of(fields):
        raise CheckpointError(
            f"the card of {options.model} states no licence, so nobody may use the model",
            next_step="--licence ID, or `licence:` in the recipe's report stage, or `license:` in README.md;"
            " the licence of the base and of the data must allow it",
        )
    return folder, extra


def _stage(options: argparse.Namespace) -> tuple[Path, Any, dict[str, Path]]:
    """Folder and card of a stage, and the files of the recipe's report."""
    from .errors import RecipeError
    from .pipeline import require_stage, survey
    from .recipe_verbs import open_recipe
    from .report_stage import card_facts, card_of_files, made_data, sources_of

    recipe, store = open_recipe(options)
    require_stage(recipe, options.model)
    nodes = survey(recipe, store)
    node = nodes[options.model]
    if node.record is None:
        raise RecipeError(f"stage '{options.model}' is {node.state}", next_step="make it with `depthup run`")
    if node.stage.MAKES != "checkpoint":
        raise RecipeError(
            f"stage '{options.model}' is of kind {node.stage.kind}, which makes no model", next_step="name a model"
        )
    records = {name: one.record for name, one in nodes.items() if one.record is not None}
    cards = {record.stage: card_of_files(paths) for record, paths in made_data(records, store)}
    facts = card_facts(options.model, recipe, records, store, sources_of(recipe, cards))
    pages = [one.folder for one in nodes.values() if one.stage.kind == "report" and one.record is not None]
    page = [] if options.no_report or not pages else sorted(path for path in pages[-1].rglob("*") if path.is_file())
    names = {path.relative_to(pages[-1]).as_posix(): path for path in page}
    sent = {f"report/{name}": path for name, path in names.items() if not name.startswith(("record.json", "model/"))}
    return node.folder, facts, sent


def _facts_of_folder(folder: Path) -> Any:
    """A card of what a folder itself tells."""
    from . import __version__
    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint
    from .growth.manifest import read_manifest
    from .layers import LayerPlan
    from .report.citation import bibtex
    from .report.model_card import CardFacts

    checkpoint, manifest = open_checkpoint(folder), read_manifest(folder) or {}
    base = manifest.get("base", {})
    return CardFacts(
        name=folder.resolve().name, recipe="", fingerprint="", licence="", base_model=str(base.get("source") or ""),
        plan=LayerPlan.from_json(manifest["plan"]) if "plan" in manifest else None, rows=(), scores=(), chain=(),
        sources=(), notes=(), citation=bibtex((), __version__),
        num_layers=find_stack(checkpoint.tensors, checkpoint.config).num_layers,
        num_parameters=checkpoint.num_parameters,
    )  # fmt: skip


def _require_whole(folder: Path) -> None:
    """Refuse what `depthup check` faults; a model that transformers does not know is checked by names and shapes."""
    from .checkpoint.check import check_checkpoint
    from .errors import CheckpointError

    findings = check_checkpoint(folder)
    if all(finding.guessed for finding in findings):
        from .models import UnknownModel, findings_on_loading

        try:
            on_loading = findings_on_loading(folder)
            findings = (findings or on_loading) if on_loading else []
        except UnknownModel:
            findings = []
    if findings:
        raise CheckpointError(
            f"{folder} is not whole: {findings[0]}", next_step=f"`depthup check {folder}` tells all; put that right"
        )
