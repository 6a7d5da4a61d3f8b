"""A report with every section, made of invented figures, and the graph of a large recipe: for tests of the page."""

from __future__ import annotations

import math
from pathlib import Path

import scored

from depthup.layers import LayerPlan
from depthup.recipe import load_recipe
from depthup.report.values import (
    ComparedModel,
    ComparedTable,
    Curve,
    Generation,
    ModelRow,
    Report,
    StageCard,
    Summary,
    Table,
)

RECIPES = Path(__file__).parents[1] / "recipes"
TASKS = ("H6", "ARC", "HellaSwag", "MMLU", "TruthfulQA", "WinoGrande", "GSM8K")


def curve(name: str, start: float, end: float, *, is_control: bool = False) -> Curve:
    """A run of 30 steps that falls from one loss to the other."""

    def at(step: int) -> float:
        return end + (start - end) * math.exp(-step / 7)

    return Curve(
        name,
        tuple((32_768 * step, at(step) + 0.03 * math.sin(7 * step)) for step in range(1, 31)),
        tuple((32_768 * step, at(step)) for step in range(0, 31, 10)),
        tuple((32_768 * step, 3e-4 * min(step / 4, 1)) for step in range(1, 31)),
        is_control,
    )


def stages_of(recipe: str) -> tuple[StageCard, ...]:
    """The stages of a recipe as if they had been made."""
    roles = {"checkpoint": "model", "data": "data"}
    return tuple(
        StageCard(
            name, stage.kind, f"{abs(hash(name)):012x}"[:12], 12.5, stage.inputs(), (("seed", "0"), ("steps", "300")),
            roles.get(stage.MAKES, "measure"),
        )
        for name, stage in load_recipe(RECIPES / recipe).stages.items()
        if stage.kind != "report"
    )  # fmt: skip


def compared() -> ComparedTable:
    """A table of the paper's, with a verdict of each sort."""
    cells = tuple(f"{60 + i}.{i} ± 1.2" for i in range(7))
    paper = ("66.04", "61.95", "84.60", "65.48", "45.04", "83.66", "55.50")
    rows = (
        ComparedModel("control", cells, "", (), "baseline"),
        ComparedModel("dus-cpt", cells, "SOLAR", paper, "within noise (+0.4 ± 2.1, would need about 9,800 items)"),
        ComparedModel("sft-v3-v4", cells, "SFT v3+v4", paper, "better by 3.1 ± 1.4"),
        ComparedModel("dpo", cells, "", (), "open: −2.1 ± 1.9 by itself, not among so many comparisons"),
    )
    return ComparedTable("Table 3: instruction data", TASKS, rows, ("7 differences, corrected together (Holm)",))


def full_report() -> Report:
    """Every section of the page has something in it."""
    return Report(
        title="The ablations of SOLAR 10.7B on SmolLM2-135M",
        summary="Every model of the paper's tables at a hundredth of its size, with the control that the paper lacks.",
        notes=("Most tasks are near chance for a model of this size.", "One seed."),
        plan=LayerPlan.upscale(30, 8),
        rows=(
            ModelRow("base", "as published", 30, 134_515_008, 0, 2.942, 65_536),
            ModelRow("dus", "up-scaled, not trained", 44, 184_072_896, 0, 3.350, 65_536),
            ModelRow("dus-cpt", "after continued pretraining", 44, 184_072_896, 983_040, 2.737, 65_536),
            ModelRow("control", "after continued pretraining", 30, 134_515_008, 983_040, 2.701, 65_536),
        ),
        reference_losses=(("base", 2.942), ("dus", 3.350)),
        curves=(curve("dus-cpt", 3.35, 2.737), curve("control", 2.942, 2.701, is_control=True)),
        generations=(Generation("The capital is", (("base", " Paris."), ("dus", ""), ("dus-cpt", " L\n y"))),),
        stages=stages_of("smol"),
        environment=(("device", "cuda"), ("torch", "2.11.0")),
        scores=tuple(scored.model(f"model-{i}", seed=i, skill=0.5 + 0.05 * i, num_items=100) for i in range(3)),
        comparisons=(compared(),),
        summary_of=Summary(
            "Make base, a trained model of 30 layers, deeper without training from the start.",
            ("Depth up-scaling: 30 layers become 44.", "Continued pretraining: dus-cpt (983,040 tokens)."),
            ("dus-cpt against control, by H6: within noise.", "Surgery alone takes the loss from 2.942 to 3.350."),
            ("One run with seed 0.", "Scores are of samples: 600 of 28,659 items."),
        ),
        seams=Table("", ("seam", "target layers", "layer distance", "cosine"), (("21|8", "21|22", "13", "0.412"),)),
        recovery=(("Cost of surgery", "+0.408 nats per token"), ("Level of the base", "reached after about 310k")),
        merges=(Table("", ("merge", "method", "weights"), (("merge-v1", "linear", "0.5 cand-1, 0.5 cand-2"),)),),
        strengths=(Table("cand-1 and cand-2", ("task", "difference", "verdict"), (("GSM8K", "+7.4", "cand-1"),)),),
        data=(Table("Data that stages read", ("data", "from", "licence", "read by"),
                    (("text", "files: $DEPTHUP_DATA/pretrain", "not stated", "dus-cpt, control"),)),),
        contamination=(Table("flan-clean", ("test set", "rows clean", "rows dirty", "items not seen", "items seen",
                                            "found by"), (("gsm8k", "9,993", "7", "1,312", "7", "ngram 7"),)),),
        cost=Table("", ("stage", "kind", "time", "device", "tokens", "FLOPs"),
                   (("dus-cpt", "pretrain", "3 min 20 s", "cuda", "983,040", "1.12e15"),
                    ("all", "", "3 min 20 s", "", "983,040", "1.12e15"))),
        citation="@software{depthup,\n  title = {depthup}\n}",
    )  # fmt: skip
