"""The model card: what a model is, how it was made, of which data, how it scores, and under which licence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, OutputError
from ..evaluation.scores import ModelScores
from ..files import write_text
from ..layers import LayerPlan
from .card import join_card, model_index, split_card, write_eval_results
from .markdown import escaped, fenced, table_markdown
from .scores import score_board, score_cells
from .tables import MODEL_HEADERS, model_cells
from .text import format_compact
from .values import DataSource, ModelRow, StageCard, Table

CARD_NAME = "README.md"
FEWEST_ITEMS = 100  # of a task whose score goes into model-index; the text of the card has all, with their intervals
_RELATIONS = {"upscale": "merge"}  # of what a last stage made to the base, in the Hub's words; all else is a fine-tune
_TAGS = {"upscale": "depth-up-scaling", "sft": "sft", "dpo": "dpo", "sdpo": "dpo", "merge": "merge"}


@dataclass(frozen=True)
class CardFacts:
    """What a card tells of a model.

    Attributes:
        name: Of the model.
        recipe: The recipe that made it; empty for none.
        fingerprint: Of the stage that made it; empty for none.
        licence: As the Hub calls it; empty where it is not known.
        base_model: Its base's name on the Hub; empty where it is not known.
        plan: How its layers come from the base's; None where they are the base's.
        rows: Held-out losses, the base's first.
        scores: On benchmarks.
        chain: The stages behind it, in order.
        sources: Data that they read.
        notes: What the author says of the results.
        citation: BibTeX.
        num_layers: Depth.
        num_parameters: Of the model.
        repository: Where it is published, as ``owner/name``; empty where it is not known.
    """

    name: str
    recipe: str
    fingerprint: str
    licence: str
    base_model: str
    plan: LayerPlan | None
    rows: tuple[ModelRow, ...]
    scores: tuple[ModelScores, ...]
    chain: tuple[StageCard, ...]
    sources: tuple[DataSource, ...]
    notes: tuple[str, ...]
    citation: str
    num_layers: int
    num_parameters: int
    repository: str = ""


def model_card(facts: CardFacts, title: str = "") -> str:
    """The card as Markdown, with the Hub's front matter and ``model-index``.

    Args:
        facts: What it tells.
        title: Heading; the model's name, where it is not said.
    """
    return join_card(_fields(facts), "\n\n".join(part for part in _parts(facts, title or facts.name) if part) + "\n")


def write_model_card(facts: CardFacts, folder: Path) -> None:
    """Write ``README.md`` and ``.eval_results`` into a folder, which is made if it is not there.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CARD_NAME, model_card(facts))
    except OSError as error:
        raise OutputError(f"{folder} was not written: {error.strerror}", next_step="choose another folder") from error
    for scores in stated_scores(facts.scores):
        write_eval_results(folder, scores)


def licence_of_folder(folder: Path) -> str:
    """The licence that a folder's card states, as the Hub calls it; empty where there is none."""
    try:
        fields, _ = split_card((folder / CARD_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DataError):
        return ""
    return licence_of(fields)


def licence_of(fields: Mapping[str, Any]) -> str:
    """The licence in a card's front matter: one name, or several with commas between; empty for none."""
    value = fields.get("license")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "").strip()


def _fields(facts: CardFacts) -> dict[str, Any]:
    """The front matter; what is not known is left out, never guessed."""
    kinds = [stage.kind for stage in facts.chain]
    fields: dict[str, Any] = {"license": facts.licence} if facts.licence else {}
    if facts.base_model:
        fields |= {"base_model": facts.base_model,
                   "base_model_relation": _RELATIONS.get(kinds[-1] if kinds else "", "finetune")}  # fmt: skip
    fields |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields["tags"] = ["depthup", *dict.fromkeys(_TAGS[kind] for kind in kinds if kind in _TAGS)]
    if hub := [source.hub_name for source in facts.sources if source.hub_name]:
        fields["datasets"] = list(dict.fromkeys(hub))
    if stated := stated_scores(facts.scores):
        fields["model-index"] = [{**one, "name": facts.name} for scores in stated[-1:] for one in model_index(scores)]
    return fields


def stated_scores(scores: Sequence[ModelScores]) -> list[ModelScores]:
    """What may stand in tables of many models, where no interval is shown: tasks with enough items."""
    enough = [replace(one, tasks=tuple(task for task in one.tasks if task.num_items >= FEWEST_ITEMS)) for one in scores]
    return [one for one in enough if one.tasks]


def _parts(facts: CardFacts, title: str) -> Iterator[str]:
    yield f"# {escaped(title)}"
    yield _lead(facts)
    if facts.plan:
        yield "## Layers"
        yield fenced(facts.plan.render(), "text")
    yield "## Use"
    yield fenced(
        f'from transformers import AutoModelForCausalLM, AutoTokenizer\n\nname = "{facts.repository or "FOLDER"}"\n'
        "tokenizer = AutoTokenizer.from_pretrained(name)\nmodel = AutoModelForCausalLM.from_pretrained(name)", "python",
    )  # fmt: skip
    yield "It loads as any model of its architecture: the deeper stack is an ordinary checkpoint."
    if facts.rows or facts.scores:
        yield "## Evaluation"
        yield from _evaluation(facts)
    if facts.notes:
        yield "## Limits"
        yield "\n".join(f"- {escaped(note)}" for note in facts.notes)
    if facts.chain:
        yield "## How it was made"
        yield table_markdown(Table("", ("stage", "kind", "from"), tuple(
            (one.name, one.kind, ", ".join(one.inputs)) for one in facts.chain
        )))  # fmt: skip
    if facts.sources:
        yield "## Training data"
        yield table_markdown(Table("", ("data", "from", "licence"), tuple(
            (one.name, one.where, one.licence or "not stated") for one in facts.sources
        )))  # fmt: skip
    yield "## Licence"
    yield _licence(facts)
    if facts.citation:
        yield "## Citation"
        yield fenced(facts.citation, "bibtex")


def _lead(facts: CardFacts) -> str:
    what = f"A language model of {facts.num_layers} layers and {format_compact(facts.num_parameters)} parameters"
    if facts.plan:
        base = facts.base_model or "its base"
        what += f", made deeper from the {facts.plan.num_base_layers} layers of {base} by depth up-scaling"
    made = f" of the recipe `{facts.recipe}` (fingerprint `{facts.fingerprint}`)" if facts.recipe else ""
    return f"{escaped(what)}. Made by depthup{made}." if made else f"{escaped(what)}."


def _evaluation(facts: CardFacts) -> Iterator[str]:
    if facts.rows:
        tokens = sorted({row.num_held_out_tokens for row in facts.rows})
        yield f"Held-out loss in nats per token, over {' or '.join(f'{one:,}' for one in tokens)} tokens:"
        yield table_markdown(Table("", MODEL_HEADERS, tuple(map(model_cells, facts.rows))))
    if facts.scores:
        board = score_board(facts.scores)
        headers, rows = score_cells(board)
        yield f"Benchmarks in points, ± half of a 95 % interval ({', '.join(board.profiles)}):"
        yield table_markdown(Table("", headers, rows, board.notes))


def _licence(facts: CardFacts) -> str:
    if not facts.licence:
        return "Not stated."
    return (
        f"{escaped(facts.licence)}. Licences of the data it was trained on are in the table above."
        if (facts.sources)
        else f"{escaped(facts.licence)}."
    )
