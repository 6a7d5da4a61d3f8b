"""From a recipe to workloads: one function for each stage kind, in one table. Nothing is downloaded but configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .planning.shapes import ModelShape
from .planning.workload import Workload, copying, preferring, running, training
from .recipe import Recipe
from .stage_settings import (
    DpoStage,
    EvaluateStage,
    ImportStage,
    PretrainStage,
    ReportStage,
    SdpoStage,
    SftStage,
    UpscaleStage,
)


@dataclass(frozen=True)
class Walk:
    """Where a walk over a recipe's stages stands: the shape that each stage above makes, by its name."""

    shapes: dict[str, ModelShape] = field(default_factory=dict)

    def shape(self, name: str) -> ModelShape:
        """The shape of a stage above, or of a checkpoint folder or hub model: its config and headers are read.

        Raises:
            CheckpointError: There is no such checkpoint, or it is not whole.
            PlanError: Its sizes cannot be told.
        """
        if name not in self.shapes:
            from .checkpoint.remote import open_base
            from .planning.shapes import shape_of

            self.shapes[name] = shape_of(open_base(name, only_look=True))
        return self.shapes[name]


def workloads(recipe: Recipe) -> list[Workload]:
    """The work of every stage, in order.

    Raises:
        CheckpointError: A checkpoint or file that the recipe names is not there.
        PlanError: The sizes of a model cannot be told, or a plan does not fit it.
    """
    walk, found = Walk(), []
    for name, stage in recipe.stages.items():
        made = _KINDS[stage.kind](walk, name, stage)
        found += made
        if made[-1].shape is not None:
            walk.shapes[name] = made[-1].shape
    return found


def _import(walk: Walk, name: str, stage: ImportStage) -> list[Workload]:
    if stage.gguf is not None:
        from .conversion.gguf_header import read_config_of
        from .stages import package_file

        file = package_file(stage.gguf)
        config: dict[str, Any] = read_config_of(file)
        config["dtype"] = "float32" if stage.dtype == "auto" else stage.dtype
        read_bytes = file.stat().st_size
    else:
        assert stage.random is not None
        hidden = stage.random.hidden_size
        config = {
            "model_type": "llama", "vocab_size": 257, "hidden_size": hidden, "intermediate_size": 2 * hidden,
            "num_hidden_layers": stage.random.num_layers, "num_attention_heads": hidden // 16, "head_dim": 16,
            "tie_word_embeddings": True, "dtype": "float32",
        }  # fmt: skip
        read_bytes = 0
    from .planning.shapes import shape_from_config

    return [copying(name, stage.kind, shape_from_config(config), read_bytes)]


def _upscale(walk: Walk, name: str, stage: UpscaleStage) -> list[Workload]:
    from .presets import make_plan

    base = walk.shape(stage.base)
    plan = make_plan(
        len(base.layers), remove=stage.remove, target_layers=stage.target_layers, layers=stage.layers,
        preset=stage.preset,
    )  # fmt: skip
    return [copying(name, stage.kind, base.grown(plan), base.num_bytes)]


def _pretrain(walk: Walk, name: str, stage: PretrainStage) -> list[Workload]:
    num_evaluations = 2 + (stage.steps - 1) // stage.eval_every if stage.eval_every else 2
    work = training(
        name, stage.kind, walk.shape(stage.model),
        num_steps=stage.steps,
        rows_per_step=stage.rows_per_step,
        row_tokens=stage.row_tokens,
        micro_batch_rows=stage.micro_batch_rows,
        forward_tokens=num_evaluations * stage.eval_tokens,
    )  # fmt: skip
    return [work]


def _sft(walk: Walk, name: str, stage: SftStage) -> list[Workload]:
    work = training(
        name, stage.kind, walk.shape(stage.model),
        num_steps=stage.steps,
        rows_per_step=stage.rows_per_step,
        row_tokens=stage.row_tokens,
        micro_batch_rows=stage.micro_batch_rows,
        lora_rank=stage.lora.rank if stage.lora else 0,
    )  # fmt: skip
    return [work]


def _dpo(walk: Walk, name: str, stage: DpoStage | SdpoStage) -> list[Workload]:
    work = preferring(
        name, stage.kind, walk.shape(stage.model),
        num_steps=stage.steps,
        pairs_per_step=stage.pairs_per_step,
        row_tokens=stage.row_tokens or 2 * stage.max_tokens,
        micro_batch_rows=stage.micro_batch_rows,
        lora_rank=stage.lora.rank if stage.lora else 0,
        has_reference=stage.variant != "simpo",
    )  # fmt: skip
    return [work] * (stage.chunks if isinstance(stage, SdpoStage) else 1)


def _evaluate(walk: Walk, name: str, stage: EvaluateStage) -> list[Workload]:
    work = running(
        name, stage.kind, walk.shape(stage.model),
        num_tokens=stage.tokens,
        row_tokens=stage.row_tokens,
        rows=stage.micro_batch_rows,
        generated_tokens=len(stage.prompts) * stage.max_new_tokens,
    )  # fmt: skip
    return [work]


def _report(walk: Walk, name: str, stage: ReportStage) -> list[Workload]:
    return [Workload(name, stage.kind)]


# Stage kind -> its work; a stage of several runs in a row (sDPO) gives several.
_KINDS: Mapping[str, Callable[[Walk, str, Any], list[Workload]]] = {
    "import": _import,
    "upscale": _upscale,
    "pretrain": _pretrain,
    "sft": _sft,
    "dpo": _dpo,
    "sdpo": _dpo,
    "evaluate": _evaluate,
    "report": _report,
}
