"""What a recipe's stages may say: one class for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from .data_stage_settings import AlignmentStage, DecontaminateStage, ProbeStage, SynthesizeStage
from .settings import Made, Settings, StageSettings, circumstance, free


class RandomModel(Settings):
    """A random tiny model of the Llama architecture, one token a byte: to try a recipe in seconds."""

    num_layers: int = Field(8, gt=0, description="Depth.")
    hidden_size: int = Field(64, ge=16, multiple_of=16, description="Width.")


class ImportStage(StageSettings):
    """A GGUF file, or a random tiny model, becomes a checkpoint folder. Give `gguf` or `random`."""

    kind: Literal["import"]
    gguf: str | None = Field(
        None, description="Path of the file; `package:NAME/FILE` is a file inside an installed package."
    )
    random: RandomModel | None = Field(None, description="`num_layers` and `hidden_size` of a random model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights; `auto` is the narrowest that holds every value exactly."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ImportStage:
        if (self.gguf is None) == (self.random is None):
            raise ValueError("give exactly one of gguf, random")
        if self.random is not None and self.dtype != "auto":
            raise ValueError("dtype goes with gguf; a random model is float32")
        return self


class UpscaleStage(StageSettings):
    """Surgery: base checkpoint + plan -> target checkpoint. Give one of the last four settings."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"base": "checkpoint"}
    kind: Literal["upscale"]
    base: str = Field(description="Stage or checkpoint folder.")
    remove: int | None = Field(None, ge=0, description="m: layers removed from each copy (SOLAR: 8 of 32).")
    target_layers: int | None = Field(None, gt=0, description="s = 2 (n - m).")
    layers: str | None = Field(None, description="The plan itself, as in `0-23,8-31`.")
    preset: str | None = Field(None, description="A published plan: see `depthup layers --help`.")
    config: dict[str, Any] = Field(
        {}, description="Keys of the target's `config.json` that are set to other values; null takes one out."
    )

    @model_validator(mode="after")
    def _one_plan(self) -> UpscaleStage:
        given = [key for key in ("remove", "target_layers", "layers", "preset") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of remove, target_layers, layers, preset (given: {given or 'none'})")
        return self


class Rate(Settings):
    """How a group of parameters is trained."""

    factor: float = Field(1.0, ge=0, description="On the learning rate; 0 freezes the group.")
    from_step: int = Field(0, ge=0, description="First step in which the group is trained.")


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), trained instead of the weights and merged on export."""

    rank: int = Field(16, gt=0, description="Rank of the two factors.")
    alpha: float = Field(32.0, gt=0, description="Scale: the product is multiplied by alpha / rank.")
    targets: tuple[str, ...] = Field(("all-linear",), description="Ends of module names; `all-linear` is all but head.")


class Launch(Settings):
    """Several ranks that make a stage together, started by torchrun on this machine, or by Slurm's srun."""

    ranks: int = Field(gt=0, description="Ranks on each node, one a GPU.")
    nodes: int = Field(1, gt=0, description="Nodes; several with `by: srun`.")
    by: Literal["torchrun", "srun"] = Field("torchrun", description="What starts them.")
    options: tuple[str, ...] = Field((), description="Further options of that, as in `--partition=gpu`.")

    @model_validator(mode="after")
    def _one_machine(self) -> Launch:
        if self.by == "torchrun" and self.nodes > 1:
            raise ValueError(f"torchrun starts ranks on this machine alone, and nodes = {self.nodes}: say by: srun")
        return self


Group = Literal["new", "seam", "original", "outside"]


class _Training(StageSettings):
    """What every kind of training may say."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"model": "checkpoint"}
    model: str = Field(description="Stage or checkpoint folder.")
    data: str = Field(description="Name of an entry under `data:`.")
    learning_rate: float = Field(gt=0, description="Peak rate.")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field("cosine", description="Shape after the warmup.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warmup.")
    decay_share: float = Field(0.2, gt=0, le=1, description="Share of the steps in which `wsd` decays.")
    final_factor: float = Field(0.0, ge=0, le=1, description="The last rate as a share of the peak.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's, on matrices only.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="AdamW's."
    )
    clip_norm: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    rates: dict[Group, Rate] = Field(
        {},
        description="How groups of parameters are trained, for models that a surgery made: `new` layers, those near a"
        " `seam`, the `original` ones, and what is `outside` of layers. All in full where nothing is said.",
    )
    seam_width: int = Field(1, gt=0, description="Layers on each side of a seam that count as near it.")
    lora: Lora | None = Field(None, description="Train low-rank adapters instead of the weights.")
    precision: Literal["auto", "float32", "mixed", "bfloat16"] = Field(
        "auto",
        description="`float32`; `mixed`: bfloat16 computes, float32 keeps; `bfloat16`: weights in bfloat16, rounded"
        " stochastically. `auto` is mixed on a GPU, float32 on CPU.",
    )
    guard_sigmas: float = Field(
        6.0, gt=0, description="A loss or gradient so many deviations above the mean of 128 steps is skipped."
    )
    eval_every: int = Field(0, ge=0, description="Steps between held-out measurements; 0: at start and end only.")
    micro_batch_rows: int = circumstance(4, 1, "Rows in one forward pass: memory and speed, not the result.")
    checkpoint_every: int = circumstance(
        0, 0, "Steps between saved states, the last step included; 0: when interrupted only."
    )
    num_states: int = circumstance(1, 1, "Newest saved states that are kept.")
    recompute: Literal["none", "selective", "full"] = free("none", "Activations that the backward pass makes again.")
    compile: bool = free(False, "Compile each layer (GPUs).")
    shard_ranks: int | None = free(None, "Ranks that share one copy of the model (HSDP); all, where it is not said.")
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = free((), "Where metrics go besides metrics.jsonl.")
    sample_prompts: tuple[str, ...] = free((), "Texts that are continued at each measurement, to be looked at.")
    tokenize_workers: int = circumstance(1, 1, "Processes that tokenize.")
    launch: Launch | None = free(None, "Ranks that make this stage; this process alone, where it is not said.")


class PretrainStage(_Training):
    """Continued pretraining on the next token of plain text."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"model": "checkpoint", "optimizer_from": "checkpoint"}
    kind: Literal["pretrain"]
    steps: int = Field(gt=0, description="Optimiser updates.")
    rows_per_step: int = Field(gt=0, description="Rows in a global batch.")
    row_tokens: int = Field(2048, ge=2, description="Tokens in a row.")
    document_mask: bool = Field(True, description="Keep documents in a row from seeing one another.")
    eval_tokens: int = Field(8192, gt=0, description="Held-out tokens that are measured.")
    router_loss: float | None = Field(
        None,
        ge=0,
        description="Weight of a mixture of experts' load-balancing loss (arXiv:2101.03961); not said: what"
        " `config.json` asks for, `router_aux_loss_coef` where `output_router_logits` is true, else 0.",
    )
    keep_optimizer: bool = Field(False, description="Keep the optimizer's moments beside the weights.")
    optimizer_from: str | None = Field(
        None,
        description="Stage or folder that kept its moments, to start with; for a model that a surgery made of it,"
        " they follow the plan.",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> PretrainStage:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} leaves none of steps = {self.steps}")
        return self


class _Epochs(_Training):
    steps: int | None = Field(None, gt=0, description="Optimiser updates; or say `epochs`.")
    epochs: float | None = Field(None, gt=0, description="Times that all rows are seen; or say `steps`.")
    template: str = Field(
        "tokenizer", description="Chat template: the tokenizer's own, or one of depthup's (docs/data.md): `solar` ..."
    )

    @model_validator(mode="after")
    def _one_length(self) -> _Epochs:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps, epochs")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} leaves none of steps = {self.steps}")
        return self


class SftStage(_Epochs):
    """Supervised fine-tuning on conversations: the loss is on the answers, their end of turn included."""

    kind: Literal["sft"]
    rows_per_step: int = Field(gt=0, description="Rows in a global batch; a row holds several conversations.")
    row_tokens: int = Field(2048, ge=2, description="Tokens in a row; longer conversations are truncated.")
    format: str | None = Field(
        None,
        description="`messages`, `sharegpt`, `alpaca`, `prompt-completion`; told by the rows if not said.",
    )
    turns: Literal["all", "last"] = Field("all", description="Answers that are trained on.")
    train_on_prompt: bool = Field(False, description="Whether the context is trained on, too.")
    eval_tokens: int = Field(8192, gt=0, description="Held-out tokens that are measured.")
    router_loss: float | None = Field(
        None,
        ge=0,
        description="Weight of a mixture of experts' load-balancing loss (arXiv:2101.03961); not said: what"
        " `config.json` asks for, `router_aux_loss_coef` where `output_router_logits` is true, else 0.",
    )


class PreferenceStage(_Epochs):
    """What both kinds of preference training may say."""

    pairs_per_step: int = Field(gt=0, description="Preference pairs in a global batch.")
    max_tokens: int = Field(1024, ge=2, description="Most tokens of a prompt with one of its answers.")
    row_tokens: int | None = free(None, "Tokens in a row, which holds whole pairs; twice max_tokens if not said.")
    truncate: Literal["prompt", "end", "drop"] = Field("prompt", description="What longer pairs lose.")
    variant: Literal["sigmoid", "sigmoid_norm", "ipo", "robust", "apo_zero", "simpo"] = Field(
        "sigmoid", description="The loss (docs/preferences.md)."
    )
    beta: float = Field(0.1, gt=0, description="0.01 to 0.5 for sums of log-probabilities, 2 to 10 for means a token.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of pairs taken to be labelled wrongly.")
    nll_weight: float = Field(0.0, ge=0, description="Weight of the chosen answer's negative log-likelihood.")
    gamma: float = Field(0.0, ge=0, description="Margin that `simpo` asks for.")
    min_margin: float | None = Field(None, description="Scored rows whose best and worst lie nearer are left out.")
    eval_pairs: int = Field(64, gt=0, description="Held-out pairs that are measured.")


class DpoStage(PreferenceStage):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and kin; its start is the reference."""

    kind: Literal["dpo"]


class SdpoStage(PreferenceStage):
    """Stepwise DPO (Kim et al. 2024, arXiv:2403.19270): chunks from easy to hard; each one's start is its reference."""

    kind: Literal["sdpo"]
    chunks: int = Field(ge=1, description="Number of chunks; `steps` and `epochs` are those of each.")
    chunk_by: Literal["accuracy", "source", "given", "random"] = Field(
        "accuracy", description="`accuracy`: by the first reference's margins; `source`: a chunk for each data file."
    )


class MergeStage(StageSettings):
    """One checkpoint of several of the same architecture (docs/merging.md)."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"models": "checkpoint", "base": "checkpoint"}
    kind: Literal["merge"]
    models: tuple[str, ...] = Field(
        min_length=2, description="Stages or checkpoint folders; the first gives config and tokenizer."
    )
    method: Literal["linear", "slerp", "task-arithmetic", "ties", "dare-linear", "dare-ties", "model-stock"] = Field(
        "linear", description="How they are merged; `linear` is the weighted average."
    )
    weights: tuple[float, ...] | None = Field(None, description="One a model; all alike, where it is not said.")
    layer_weights: dict[str, tuple[float, ...]] = Field(
        {}, description="Other weights for some layers, by half-open ranges, as in `0-24`."
    )
    options: dict[str, float] = Field({}, description="Numbers of the method, others than their defaults.")
    base: str | None = Field(None, description="What the models were trained from, where the method needs it.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Type of the weights; each tensor's as the first model has it, where it is not said."
    )

    @model_validator(mode="after")
    def _fits_the_method(self) -> MergeStage:
        if self.method == "slerp" and len(self.models) != 2:
            raise ValueError(f"slerp merges 2 models, and {len(self.models)} are named")
        if (self.base is None) == (self.method in NEED_BASE):
            raise ValueError(f"{self.method} {'needs the' if self.base is None else 'has no'} base")
        for weights in (self.weights, *self.layer_weights.values()):
            if weights is not None and (len(weights) != len(self.models) or abs(sum(weights)) < 1e-9):
                raise ValueError(f"the weights {list(weights)} do not fit {len(self.models)} models")
        return self


NEED_BASE = frozenset({"task-arithmetic", "ties", "dare-linear", "dare-ties", "model-stock"})


class EvaluateStage(StageSettings):
    """Held-out loss of a checkpoint and what it writes to some prompts, scores on benchmarks, or both."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"model": "checkpoint"}
    MAKES: ClassVar[Made] = "scores"
    kind: Literal["evaluate"]
    model: str = Field(description="Stage or checkpoint folder.")
    data: str | None = Field(None, description="Name of an entry under `data:`, for the held-out loss.")
    tokens: int = Field(8192, gt=0, description="Held-out tokens that are measured.")
    row_tokens: int = Field(2048, ge=2, description="Tokens in a row.")
    document_mask: bool = Field(True, description="Keep documents in a row from seeing one another.")
    prompts: tuple[str, ...] = Field((), description="Texts to continue, the likeliest token each time.")
    max_new_tokens: int = Field(48, gt=0, description="Length of each continuation.")
    suite: str | None = Field(None, description="Benchmarks that are scored: h6, quick or bpb.")
    tasks: tuple[str, ...] = Field((), description="Single tasks of lm-eval by name, in place of a suite.")
    profile: Literal["harness-0.4", "leaderboard-v1"] = Field("harness-0.4", description="Whose prompts and metrics.")
    sample: int | None = Field(None, gt=0, description="So many items of each task, drawn with the recipe's seed.")
    limit: int | None = Field(None, gt=0, description="The first so many items of each task.")
    chat_template: bool = Field(False, description="Put prompts into the model's chat template.")
    benchmarks: str | None = free(None, "Folder of benchmarks (DEPTHUP_DATA, else from the hub).")
    optional: bool = Field(False, description="Leave the scores out where there are neither a folder nor a network.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights for the scores; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    micro_batch_rows: int = circumstance(4, 1, "Rows in one forward pass: memory and speed, not the result.")
    batch_tokens: int | None = free(None, "Tokens in one pass of the scores; fitted to memory.")

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvaluateStage:
        if self.suite is not None and self.tasks:
            raise ValueError("give one of suite, tasks")
        if self.data is None and self.suite is None and not self.tasks and not self.prompts:
            raise ValueError("give data (held-out loss), suite or tasks (scores), or prompts")
        if self.sample is not None and self.limit is not None:
            raise ValueError("give one of sample, limit")
        return self

    @property
    def asked(self) -> str | tuple[str, ...]:
        """The suite or the tasks; empty where no benchmark is asked."""
        return self.suite or self.tasks


class CompareStage(StageSettings):
    """Which of several models differ from the first one, and what is noise: a table with verdicts (docs/noise.md)."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"evaluations": "scores"}
    MAKES: ClassVar[Made] = "comparison"
    kind: Literal["compare"]
    title: str = Field(description="Heading of the table.")
    evaluations: tuple[str, ...] = Field(
        min_length=2, description="Evaluate stages that score benchmarks; the first is the baseline."
    )
    paper: tuple[str | None, ...] = Field(
        (), description="For each of them the row of the SOLAR paper's Tables 2 to 7 that stands beside it, or null."
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Level of the tests, all of the table together.")

    @model_validator(mode="after")
    def _a_row_each(self) -> CompareStage:
        if self.paper and len(self.paper) != len(self.evaluations):
            raise ValueError(f"{len(self.paper)} rows of the paper for {len(self.evaluations)} evaluations")
        for row in self.paper:
            if row is not None and row not in PAPER_ROWS:
                raise ValueError(f"the paper has no row '{row}'; allowed: {', '.join(PAPER_ROWS)}")
        return self


# Rows of the paper's Tables 2 to 7, as evaluation/paper_tables.py has them.
PAPER_ROWS = (
    "SOLAR-Instruct", "Qwen 72B", "Mixtral-Instruct", "Yi 34B", "SOLAR", "Qwen 14B", "Mistral 7B", "SFT v1", "SFT v2",
    "SFT v3", "SFT v4", "SFT v3+v4", "DPO v1", "DPO v2", "DPO v1+v2", "DPO v3", "Cand. 1", "Cand. 2", "Merge v1",
    "Merge v2", "Merge v3", "Merge v4",
)  # fmt: skip


class ReportStage(StageSettings):
    """One self-contained HTML page: layer map, loss curve, table, generations, lineage."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"evaluations": "scores", "comparisons": "comparison", "probes": "probe"}
    MAKES: ClassVar[Made] = "page"
    kind: Literal["report"]
    title: str = Field(description="Heading of the page.")
    evaluations: tuple[str, ...] = Field(min_length=1, description="Evaluate stages, one a row of the table.")
    comparisons: tuple[str, ...] = Field((), description="Compare stages, one a table with verdicts.")
    probes: tuple[str, ...] = Field((), description="Probe stages, whose figures are shown.")
    summary: str = Field("", description="One sentence below the heading.")
    notes: tuple[str, ...] = Field((), description="What the result shows, and what it does not.")


TrainingStage = PretrainStage | SftStage | DpoStage | SdpoStage
Stage = (
    ImportStage | UpscaleStage | PretrainStage | SftStage | DpoStage | SdpoStage | MergeStage | SynthesizeStage
    | AlignmentStage | DecontaminateStage | EvaluateStage | CompareStage | ProbeStage | ReportStage
)  # fmt: skip
STAGE_KINDS: dict[str, type[Stage]] = {
    get_args(stage.model_fields["kind"].annotation)[0]: stage for stage in get_args(Stage)
}
