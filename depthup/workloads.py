"""From a recipe to workloads: one function for each stage kind, in one table. Nothing is downloaded but configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .layers import LayerPlan
from .planning.compute import ALL, Trainable
from .planning.shapes import ModelShape, shape_from_config, shape_of
from .planning.workload import Workload, copying, running
from .recipe import Recipe


@dataclass(frozen=True)
class Walk:
    """Where a walk over a recipe's stages stands.

    Attributes:
        shapes: The shape that each stage above makes, by its name.
        plans: The plan that its layers come from, if a surgery of this recipe made them.
    """

    shapes: dict[str, ModelShape] = field(default_factory=dict)
    plans: dict[str, LayerPlan] = field(default_factory=dict)

    def shape(self, name: str) -> ModelShape:
        """The shape of a stage above, or of a checkpoint folder or hub model: its config and headers are read.

        Raises:
            CheckpointError: There is no such checkpoint, or it is not whole.
            PlanError: Its sizes cannot be told.
        """
        if name not in self.shapes:
            from .checkpoint.remote import open_base
            from .planning.published import PUBLISHED

            known = PUBLISHED.get(name)
            self.shapes[name] = shape_from_config(known) if known else shape_of(open_base(name, only_look=True))
        return self.shapes[name]


def workloads(recipe: Recipe) -> list[Workload]:
    """The work of every stage, in order.

    Raises:
        CheckpointError: A checkpoint or file that the recipe names is not there.
        PlanError: The sizes of a model cannot be told, or a plan does not fit it.
    """
    walk, found = Walk(), []
    for name, stage in recipe.stages.items():
        made = WORK[stage.kind](walk, name, stage)
        found += made
        if made[-1].shape is not None and stage.MAKES == "checkpoint":
            walk.shapes[name] = made[-1].shape
    return found


def _import(walk: Walk, name: str, stage: Any) -> list[Workload]:
    if stage.gguf is not None:
        from .conversion.gguf_header import read_config_of
        from .stages import package_file

        file = package_file(stage.gguf)
        dtype = "float32" if stage.dtype == "auto" else stage.dtype
        shape = shape_from_config(read_config_of(file) | {"dtype": dtype})
        return [copying(name, stage.kind, shape, file.stat().st_size)]
    hidden = stage.random.hidden_size
    config = {
        "model_type": "llama", "vocab_size": 257, "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": stage.random.num_layers, "num_attention_heads": hidden // 16, "head_dim": 16,
        "tie_word_embeddings": True, "dtype": "float32",
    }  # fmt: skip
    return [copying(name, stage.kind, shape_from_config(config))]


def _upscale(walk: Walk, name: str, stage: Any) -> list[Workload]:
    from .presets import make_plan

    base = walk.shape(stage.base)
    plan = make_plan(
        len(base.layers), remove=stage.remove, target_layers=stage.target_layers, layers=stage.layers,
        preset=stage.preset,
    )  # fmt: skip
    walk.plans[name] = plan
    return [copying(name, stage.kind, base.grown(plan), base.num_bytes)]


def _training(walk: Walk, name: str, stage: Any) -> Workload:
    """What all kinds of training have in common."""
    shape = walk.shape(stage.model)
    if stage.model in walk.plans:
        walk.plans[name] = walk.plans[stage.model]
    return Workload(
        name, stage.kind, shape, _trainable(walk, stage),
        num_steps=stage.steps,
        micro_batch_rows=stage.micro_batch_rows,
        precision=stage.precision,
        recompute=stage.recompute,
        compiled=stage.compile,
        shard_ranks=stage.shard_ranks,
        num_states=stage.num_states,
        kept_bytes=shape.num_bytes,
    )  # fmt: skip


def _trainable(walk: Walk, stage: Any) -> Trainable:
    """What is trained: all, adapters, or the groups of a surgery whose rate is above 0."""
    if stage.lora is not None:
        return Trainable(lora_rank=stage.lora.rank)
    frozen = {group for group, rate in stage.rates.items() if rate.factor == 0}
    if not frozen or stage.model not in walk.plans:
        return ALL
    from .growth.freeze import FreezeMap

    parts = FreezeMap("", walk.plans[stage.model])
    kinds = dict.fromkeys(parts.original, "original") | dict.fromkeys(parts.near_seam(stage.seam_width), "seam")
    kinds |= dict.fromkeys(parts.new, "new")
    trained = frozenset(layer for layer, kind in kinds.items() if kind not in frozen)
    return Trainable(trained, outside="outside" not in frozen)


def _evaluations(stage: Any) -> int:
    """Held-out measurements: at start and end, and every so many steps between."""
    return 2 + (stage.steps - 1) // stage.eval_every if stage.eval_every and stage.steps else 2


def _on_text(walk: Walk, name: str, stage: Any) -> list[Workload]:
    work = _training(walk, name, stage)
    measured = _evaluations(stage) * stage.eval_tokens
    work = replace(work, rows_per_step=stage.rows_per_step, row_tokens=stage.row_tokens, forward_tokens=measured)
    return [work]


def _on_pairs(walk: Walk, name: str, stage: Any) -> list[Workload]:
    """DPO: both answers of a pair, each with its prompt, are ``2 max_tokens`` at most.

    The reference is the policy before its first update: no second model, but a forward pass over every pair.
    """
    row_tokens = 2 * stage.max_tokens
    work = _training(walk, name, stage)
    # A row of another length changes what a micro-batch holds, not how much there is to compute.
    rows = -(-work.micro_batch_rows * (stage.row_tokens or row_tokens) // row_tokens)
    work = replace(
        work,
        rows_per_step=stage.pairs_per_step,
        row_tokens=row_tokens,
        micro_batch_rows=rows,
        at_most=True,
        forward_tokens=_evaluations(stage) * stage.eval_pairs * row_tokens,
        forward_share=0 if stage.variant == "simpo" else 1,
    )
    return [work]


def _on_chunks(walk: Walk, name: str, stage: Any) -> list[Workload]:
    """sDPO: a run on each chunk, one after the other; of epochs all chunks together are the data once more."""
    work = _on_pairs(walk, name, stage)[0]
    if work.num_steps is None:
        return [work]
    return [replace(work, stage=f"{name} {chunk}/{stage.chunks}") for chunk in range(1, stage.chunks + 1)]


def _merge(walk: Walk, name: str, stage: Any) -> list[Workload]:
    """Every model is read, and the base where there is one; one is written."""
    shape = walk.shape(stage.models[0])
    if stage.models[0] in walk.plans:
        walk.plans[name] = walk.plans[stage.models[0]]
    num_read = len(stage.models) + (stage.base is not None)
    return [copying(name, stage.kind, shape, num_read * shape.num_bytes)]


# About, by SmolLM2: tokens of one item of a task that are computed, its worked examples included, and what is
# shared by all items of a subject. GSM8K writes up to 256 tokens.
_ITEM_TOKENS = {
    "arc_challenge": 980, "hellaswag": 850, "mmlu": 130, "truthfulqa_mc2": 110, "winogrande": 140, "gsm8k": 1300,
}  # fmt: skip
_SUBJECT_TOKENS = 600  # of MMLU's 57
_OTHER_TOKENS = 300  # of an item of any other task


def _scored_tokens(stage: Any) -> int:
    """Tokens that scoring benchmarks takes, about."""
    from .evaluation.suites import MMLU_SUBJECTS, TASKS, find_suite

    if not stage.asked:
        return 0
    suite = find_suite(stage.suite) if stage.suite else None
    total = 0
    for task in suite.tasks if suite else stage.tasks:
        known = TASKS.get(task)
        there = known.num_items if known else 1000
        wanted = stage.sample or stage.limit or (suite.sample.get(task, there) if suite else there)
        number = min(wanted, there)
        total += number * _ITEM_TOKENS.get(task, _OTHER_TOKENS)
        total += min(number, len(MMLU_SUBJECTS)) * _SUBJECT_TOKENS if task == "mmlu" else 0
    return total


def _evaluate(walk: Walk, name: str, stage: Any) -> list[Workload]:
    measured = stage.tokens if stage.data is not None else 0
    work = running(
        name, stage.kind, walk.shape(stage.model),
        num_tokens=measured + _scored_tokens(stage),
        row_tokens=stage.row_tokens,
        rows=stage.micro_batch_rows,
        generated_tokens=len(stage.prompts) * stage.max_new_tokens,
    )  # fmt: skip
    return [work]


def _probe(walk: Walk, name: str, stage: Any) -> list[Workload]:
    """Whole passes, about: m of depth up-scaling from 0 to n/2 take 12, the lens 8, each layer left out n/2, the maps
    a third of a pass for each run."""
    n = len(walk.shape(stage.model).layers)
    places = -(-n // (stage.stride or -(-n // 16)))
    maps = n / 2 + (places * (places + 1) / 3 if stage.maps else 0)
    tokens = int(stage.tokens * (20 + 4 * len(stage.plans)) + stage.map_tokens * maps)
    return [
        running(name, stage.kind, walk.shape(stage.model), num_tokens=tokens, row_tokens=stage.row_tokens, rows=8,
                generated_tokens=0)
    ]  # fmt: skip


_ROW_BYTES = 1_500  # of a synthetic row with its lineage, about
_PROMPT_TOKENS = 900  # of a request of synthesis: worked examples, then the question


def _synthesize(walk: Walk, name: str, stage: Any) -> list[Workload]:
    """What a model of this machine reads and writes; nothing is counted for a server or the factory, which is quick."""
    num_seeds = min(stage.factory or 7_500, stage.max_seeds or 10**9)  # MATH's training rows, where data are named
    num_replies = num_seeds * stage.most_replies()
    work = Workload(name, stage.kind, kept_bytes=num_replies * _ROW_BYTES, copied_bytes=num_replies * _ROW_BYTES)
    if stage.model is None:
        return [work]
    return [replace(
        work, shape=walk.shape(stage.model), row_tokens=_PROMPT_TOKENS + stage.max_new_tokens,
        forward_tokens=num_replies * (_PROMPT_TOKENS + stage.max_new_tokens),
    )]  # fmt: skip


def _of_files(walk: Walk, name: str, stage: Any) -> list[Workload]:
    """Rows and records are read and written; how many is not known before they are made."""
    return [Workload(name, stage.kind)]


# Stage kind -> its work; a stage of several runs in a row (sDPO) gives several.
WORK: Mapping[str, Callable[[Walk, str, Any], list[Workload]]] = {
    "import": _import,
    "upscale": _upscale,
    "pretrain": _on_text,
    "sft": _on_text,
    "dpo": _on_pairs,
    "sdpo": _on_chunks,
    "merge": _merge,
    "synthesize": _synthesize,
    "alignment": _of_files,
    "decontaminate": _of_files,
    "evaluate": _evaluate,
    "compare": _of_files,
    "probe": _probe,
    "report": _of_files,
}
