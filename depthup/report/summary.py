"""The summary of a run in a minute: problem, method, result, limits. Each number is one of the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..artifacts.record import Record
from ..evaluation.scores import ModelScores
from ..layers import LayerPlan
from .layer_map import is_upscale
from .lineage import Records, control_of, lineage, surgery_of, tokens_trained, trained_target
from .text import format_compact, format_count, format_difference, format_loss, format_runs
from .values import ComparedTable, Curve, ModelRow, Summary


@dataclass(frozen=True)
class Story:
    """What a summary is made of.

    Attributes:
        shown: The records of the page, in the order of the recipe.
        records: Those and all others of the recipe, by name.
        rows: Models with their held-out losses.
        tables: Comparisons.
        scores: Benchmarks.
        final: Name of the model that the story ends with.
    """

    shown: Sequence[Record]
    records: Records
    rows: Sequence[ModelRow]
    tables: Sequence[ComparedTable]
    scores: Sequence[ModelScores]
    final: str

    def loss(self, name: str) -> float | None:
        """Held-out loss of a model, in nats per token; None where it was not measured."""
        return next((row.loss for row in self.rows if row.name == name), None)

    @property
    def surgery(self) -> Record | None:
        """The surgery behind the final model, or the first one."""
        own = surgery_of(self.final, self.records)
        return own or next((one for one in self.shown if "plan" in one.results), None)

    @property
    def base(self) -> str:
        """Name of what was grown, be it a stage or a model from elsewhere that was measured; empty where it is not."""
        if self.surgery is None:
            return ""
        own = self.surgery.identity.get("base", "")
        measured = (one for one in self.shown if one.kind == "evaluate" and one.identity.get("model") == own)
        return next(iter(self.surgery.inputs), "") or next((str(one.results["model"]) for one in measured), "")


def summarize(story: Story) -> Summary:
    """Compose the summary of a run that grew a model."""
    return Summary(_problem(story), tuple(_method(story)), tuple(_result(story)), tuple(_limits(story)))


def recovery_facts(story: Story, curves: Sequence[Curve]) -> tuple[tuple[str, str], ...]:
    """What growing cost, when training had won it back, and where the control stands, as far as it was measured."""
    trained, surgery = trained_target(story.shown, story.records), story.surgery
    base, grown = story.loss(story.base), story.loss(surgery.stage) if surgery else None
    facts = []
    if base is not None and grown is not None:
        facts.append(("Cost of surgery", _against(grown, base, story.base)))
    if trained is None:
        return tuple(facts)
    curve = next((one for one in curves if one.name == trained.stage), None)
    end, control = story.loss(trained.stage), control_of(story.shown, story.records)
    if base is not None and curve is not None:
        facts.append(("Level of the base", _passing(curve.held_out, base)))
    if base is not None and end is not None:
        facts.append(("After training", _against(end, base, story.base)))
    other = story.loss(control.stage) if control else None
    if control and end is not None and other is not None:
        facts.append(("Against the control", _against(end, other, control.stage)))
    return tuple(facts)


def _against(loss: float, other: float, name: str) -> str:
    return f"{format_difference(loss - other)} nats per token against {name} ({format_loss(loss)})"


def _passing(points: Sequence[tuple[int, float]], level: float) -> str:
    """When a held-out loss falls to a level, on the straight line between two measurements."""
    before: tuple[int, float] | None = None
    for tokens, loss in points:
        if loss <= level:
            if before is None:
                return f"reached at {format_count(tokens)} tokens"
            share = (before[1] - level) / (before[1] - loss)
            return f"reached after about {format_compact(before[0] + share * (tokens - before[0]))} tokens"
        before = (tokens, loss)
    return f"not reached in {format_count(points[-1][0])} tokens" if points else "not measured"


# -- the parts --------------------------------------------------------------------------------------------------------


def _problem(story: Story) -> str:
    base = story.records.get(story.base)
    assert story.surgery is not None
    num_layers = LayerPlan.from_json(story.surgery.results["plan"]).num_base_layers
    size = f"{story.base}, a trained model of {num_layers} layers," if story.base else f"a model of {num_layers} layers"
    if base is not None:
        parameters = format_compact(base.results["num_parameters"])
        size = f"{story.base}, a trained model of {base.results['num_layers']} layers and {parameters} parameters,"
    return f"Make {size} deeper without training from the start, and tell what the depth is worth."


def _method(story: Story) -> Iterator[str]:
    surgery = story.surgery
    assert surgery is not None
    plan = LayerPlan.from_json(surgery.results["plan"])
    slices = ", then ".join(f"{one.start}–{one.stop - 1}" for one in plan.slices)
    slices = f"base layers {slices}" if len(plan.slices) <= 4 else f"{len(plan.slices)} slices of the base"
    seams = [f"seam {one.below}|{one.above}, layer distance {one.layer_distance}" for one in plan.seams]
    where = seams[0] if len(seams) == 1 else f"{len(seams)} seams"
    often = f"; layers {format_runs(plan.duplicated)} stand more than once" if plan.duplicated else ""
    parameters = format_compact(surgery.results["num_parameters"])
    name = "Depth up-scaling (arXiv:2312.15166)" if is_upscale(plan) else "Surgery"
    yield (
        f"{name}: {plan.num_base_layers} layers become {plan.num_target_layers}, as {slices} ({where}"
        f"{often}), {parameters} parameters."
    )
    behind = lineage([story.final], story.records) if story.final in story.records else list(story.shown)
    for kind, tell in _STEPS.items():
        if told := [f"{one.stage} {tell(one)}".strip() for one in behind if one.kind == kind]:
            yield f"{_NAMES[kind]}: {_shortened(told)}."


def _result(story: Story) -> Iterator[str]:
    if key := _key_sentence(story):
        yield key
    surgery, trained = story.surgery, trained_target(story.shown, story.records)
    assert surgery is not None
    base, grown = story.loss(story.base), story.loss(surgery.stage)
    if base is not None and grown is not None:
        yield f"Surgery alone takes the held-out loss from {format_loss(base)} to {format_loss(grown)} nats per token."
    end = story.loss(trained.stage) if trained else None
    if trained and end is not None:
        sentence = (
            f"After {format_count(tokens_trained(trained))} tokens of continued pretraining it is {format_loss(end)}"
        )
        yield sentence + (f", {_side(end, base)} the base." if base is not None else ".")
    control = control_of(story.shown, story.records)
    other = story.loss(control.stage) if control else None
    if control and end is not None and other is not None:
        yield (
            f"The control, the base trained on {format_count(tokens_trained(control))} tokens without growing, ends at"
            f" {format_loss(other)}: the grown model is {_side(end, other)} it."
        )
    last = story.loss(story.final)
    if last is not None and story.final not in (trained and trained.stage, surgery.stage, story.base):
        yield f"The last model, {story.final}, has a held-out loss of {format_loss(last)}."


def _side(loss: float, other: float) -> str:
    gap = format_loss(abs(loss - other))
    return f"{gap} {'below' if loss < other else 'above'}" if gap != "0.000" else "level with"


def _key_sentence(story: Story) -> str:
    """The verdict on the final model where a table has it, else on the last model of the first table."""
    tables = [table for table in story.tables if table.rows and table.rows[0].verdict == "baseline"]
    for table in tables:
        for row in table.rows[1:]:
            if row.name == story.final:
                return _verdict(table, row.name, row.verdict)
    return _verdict(tables[0], tables[0].rows[-1].name, tables[0].rows[-1].verdict) if tables else ""


def _verdict(table: ComparedTable, name: str, verdict: str) -> str:
    return f"{name} against {table.rows[0].name}, by {table.headers[0]}: {verdict}."


def _limits(story: Story) -> Iterator[str]:
    trained, control = trained_target(story.shown, story.records), control_of(story.shown, story.records)
    if trained and control is None:
        yield "No control: nothing was trained on the same tokens without growing, so depth is not told from data."
    elif trained and control and tokens_trained(trained) != tokens_trained(control):
        yield (
            f"The control saw {format_count(tokens_trained(control))} tokens, the grown model"
            f" {format_count(tokens_trained(trained))}."
        )
    seeds = sorted({one.identity["seed"] for one in story.shown if "seed" in one.identity})
    if seeds:
        yield f"One run with seed {', '.join(map(str, seeds))}: what another seed would give is not known."
    counts = sorted({row.num_held_out_tokens for row in story.rows})
    if counts:
        yield f"The loss is over {' or '.join(map(format_count, counts))} held-out tokens of one kind of text."
    yield from _limits_of_scores(story)


def _limits_of_scores(story: Story) -> Iterator[str]:
    if not story.scores:
        yield "No benchmark was scored."
        return
    items = [(task.num_items, task.num_available) for task in story.scores[0].tasks]
    asked, there = sum(one for one, _ in items), sum(all_ for _, all_ in items)
    if asked < there:
        yield f"Scores are of samples: {asked:,} of {there:,} items."
    behind = {one.kind for one in lineage([story.final], story.records)} if story.final in story.records else set()
    if "decontaminate" not in behind:
        yield "What the models were trained on was not checked against the test sets."
    if surgery_of(story.final, story.records) and "import" in {one.kind for one in story.shown}:
        yield (
            "Nor is it known what the base saw before."
            if "decontaminate" not in behind
            else ("What the base saw before is not known.")
        )


# -- the steps of a method --------------------------------------------------------------------------------------------


def _on_tokens(record: Record) -> str:
    return f"({format_count(tokens_trained(record))} tokens)"


def _on_pairs(record: Record) -> str:
    chunks = record.results.get("chunks")
    return f"({format_count(record.results['num_pairs'])} pairs{f' in {len(chunks)} chunks' if chunks else ''})"


def _merged(record: Record) -> str:
    return f"({record.results['method']}, {' : '.join(f'{one:g}' for one in record.results['weights'])})"


def _kept(record: Record) -> str:
    return f"({record.results['num_kept']:,} of {record.results['num_rows']:,} rows kept)"


def _shortened(told: Sequence[str], most: int = 6) -> str:
    return ", ".join(told) if len(told) <= most else f"{', '.join(told[:most])} and {len(told) - most} more"


_NAMES = {
    "pretrain": "Continued pretraining", "synthesize": "Synthetic data", "decontaminate": "Decontamination",
    "sft": "Instruction tuning (SFT)", "alignment": "Preference pairs", "dpo": "Preference training (DPO)",
    "sdpo": "Stepwise DPO", "merge": "Merging",
}  # fmt: skip
_STEPS: Mapping[str, Callable[[Record], str]] = {
    "pretrain": _on_tokens, "synthesize": lambda one: f"({one.results['num_rows']:,} rows)", "decontaminate": _kept,
    "sft": _on_tokens, "alignment": _on_pairs, "dpo": _on_pairs, "sdpo": _on_pairs, "merge": _merged,
}  # fmt: skip
