"""What the stages say that make data: synthesis, preference pairs, decontamination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from .settings import Made, Settings, StageSettings, circumstance, free

Augmentation = Literal["answer", "rephrase", "self-verification", "fobar"]


class Quota(Settings):
    """How many rows of an augmentation are made."""

    asked: int = Field(gt=0, le=1000, description="Rewritten questions for a seed; of `answer` the solutions.")
    kept: int = Field(gt=0, le=1000, description="Rows kept for a seed.")
    total: int | None = Field(None, gt=0, description="Rows kept in all.")


class SynthesizeStage(StageSettings):
    """Verified math problems and solutions as MetaMath makes them (arXiv:2309.12284), of `data` or `factory`."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"model": "checkpoint"}
    MAKES: ClassVar[Made] = "data"
    kind: Literal["synthesize"]
    data: str | None = Field(
        None, description="Entry under `data:` whose rows, with problem and solution, are the seeds: all of them."
    )
    factory: int | None = Field(None, gt=0, description="So many problems of the offline factory are the seeds.")
    max_seeds: int | None = Field(None, gt=0, description="Take the first so many.")
    backend: str = Field(
        "factory",
        description="What writes: `factory` (rules alone, no model), `http://HOST/v1#MODEL`, or a name that a package"
        " adds.",
    )
    model: str | None = Field(None, description="Stage or checkpoint folder that writes, in place of `backend`.")
    chat: bool = Field(False, description="Ask through the model's chat template.")
    quotas: dict[Augmentation, Quota] = Field(
        {}, description="Rows of each augmentation; one that is not named is not made. Where none is, all four are."
    )
    samples: int = Field(2, gt=0, description="Solutions that vote on a rewriting.")
    min_agreement: float = Field(0.5, ge=0, le=1, description="Share of them that must reach the gold answer.")
    near_duplicate: float = Field(0.8, gt=0, le=1, description="Overlap of questions at which the later one goes.")
    temperature: float = Field(0.7, ge=0, description="MetaMath's.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of probability to draw from.")
    max_new_tokens: int = Field(512, gt=0, description="Longest reply.")
    allow_gsm8k: bool = Field(False, description="Take GSM8K's training rows as seeds; SOLAR kept clear of them.")
    licence: str | None = Field(None, description="Of seeds that do not state theirs.")
    against: str | None = Field(None, description="Hold back rows that hit these test sets: h6, or gsm8k,math ...")
    symbolic: bool = Field(True, description="Compare answers with math-verify, where plain comparison does not do.")
    benchmarks: str | None = free(None, "Folder of the test sets (DEPTHUP_DATA).")
    concurrency: int = circumstance(16, 1, "Requests at a server at once.")

    @model_validator(mode="after")
    def _one_source(self) -> SynthesizeStage:
        if (self.data is None) == (self.factory is None):
            raise ValueError("give exactly one of data, factory")
        if self.model is not None and self.backend != "factory":
            raise ValueError("give one of backend, model")
        return self

    def most_replies(self) -> int:
        """Replies that are asked for one seed, at most."""
        asked = {name: quota.asked for name, quota in self.quotas.items()} or {
            "answer": 4, "rephrase": 2, "self-verification": 1, "fobar": 1,
        }  # fmt: skip
        return sum(number * (1 if name == "answer" else 1 + self.samples) for name, number in asked.items())


class AlignmentStage(StageSettings):
    """Preference pairs of solved problems: SOLAR's Synth. Math-Alignment (arXiv:2312.15166, 3; docs/pairs.md)."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"rows": "data"}
    MAKES: ClassVar[Made] = "data"
    kind: Literal["alignment"]
    rows: str = Field(description="A synthesize stage.")
    variant: Literal["paper", "checked", "same", "swapped", "random"] = Field(
        "paper",
        description="`paper`: a rephrased question, its answer chosen, the seed's own solution rejected; the others are"
        " its controls.",
    )
    match_length: bool = Field(False, description="Only pairs among which length does not tell the chosen answer.")
    max_pairs: int | None = Field(None, gt=0, description="Keep the first so many.")


class DecontaminateStage(StageSettings):
    """The rows of some data without those that hit test sets, byte for byte (docs/contamination.md)."""

    MAKES: ClassVar[Made] = "data"
    kind: Literal["decontaminate"]
    data: str = Field(description="Name of an entry under `data:`; all of its rows are read.")
    against: str = Field("h6", description="Test sets: h6, or gsm8k,math ...")
    rules: tuple[Literal["name", "exact", "cluster", "ngram", "numbers", "rephrased", "copy"], ...] = Field(
        (), description="Rules by which rows go; all, where none is named."
    )
    fields: tuple[str, ...] = Field((), description="Only the texts of these fields; all, where none is named.")
    benchmarks: str | None = free(None, "Folder of the test sets (DEPTHUP_DATA).")
    workers: int = circumstance(1, 1, "Processes.")


class ProbeStage(StageSettings):
    """Which layers of a checkpoint are alike, and what plans cost before and after training (docs/probe.md)."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"model": "checkpoint", "trained": "checkpoint"}
    MAKES: ClassVar[Made] = "probe"
    kind: Literal["probe"]
    model: str = Field(description="Stage or checkpoint folder: the base.")
    data: str = Field(description="Name of an entry under `data:`; its held-out text is read.")
    trained: str | None = Field(None, description="A target of the base after training, seen before and after.")
    trained_plan: str | None = Field(None, description="The plan that made it, where no stage and no file tells.")
    plans: tuple[str, ...] = Field((), description="Plans beside depth up-scaling: `0-23,8-31`, or a preset.")
    tokens: int = Field(2048, gt=0, description="Tokens of text.")
    row_tokens: int = Field(256, ge=2, description="Tokens in a row.")
    map_tokens: int = Field(1024, gt=0, description="Tokens of them for the maps.")
    maps: bool = Field(True, description="Whether to map what every run of layers costs, left out and doubled.")
    stride: int | None = Field(None, gt=0, description="Runs begin and end at each so many layers (n/16, rounded up).")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the weights.")

    @model_validator(mode="after")
    def _two_rows(self) -> ProbeStage:
        if min(self.tokens, self.map_tokens) < 2 * self.row_tokens:
            raise ValueError("tokens and map_tokens must each be at least two rows of row_tokens")
        return self
