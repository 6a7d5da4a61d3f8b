"""From the data that a recipe names to rows: read, split, tokenized once into the store, packed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts.fingerprint import Digests, fingerprint
from .artifacts.record import Record
from .artifacts.store import Store
from .data_settings import FilesData, HubData, InstalledDocsData, PlainData, StageData, parts_of
from .errors import DataError
from .files import made_once
from .recipe import Recipe
from .stage_settings import EvaluateStage, PreferenceStage, PretrainStage, SftStage

if TYPE_CHECKING:  # torch and numpy are loaded when a stage runs, so that looking at a recipe takes no time
    from .data.packing import PackedRows, Rows
    from .data.pair_tokens import TokenizedPairs
    from .data.sources import Split
    from .models import Tokenizer
    from .training.parallel import World

DATA_VARIABLE = "DEPTHUP_DATA"  # names the folder of real data and benchmarks
_DATA_FOLDER = f"${DATA_VARIABLE}"
_TOKENS_VERSION = 2  # raised when the same text gives other tokens than before
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "*.model", "*.jinja")


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
        world: The ranks that work on it together; None for a process alone.
    """

    name: str
    stage: Any
    recipe: Recipe
    folders: Mapping[str, Path]
    records: Mapping[str, Record]
    store: Store
    device: str
    progress: bool
    world: World | None = None

    @contextlib.contextmanager
    def first_rank_first(self) -> Iterator[None]:
        """What the first rank makes in the block, the others find made."""
        if self.world is not None and not self.world.is_first:
            self.world.wait()
        yield
        if self.world is not None and self.world.is_first:
            self.world.wait()


def source_of(job: Job, name: str) -> Any:
    """The source that an entry of a job's recipe describes (neither mixed nor joined)."""
    from .data.sources import Files

    data = job.recipe.data[name]
    if isinstance(data, StageData):
        files = job.records[data.stage].results["files"]
        return Files(tuple(str(job.folders[data.stage] / file) for file in files), data.field)
    return _outside_source(data)


def _outside_source(data: Any) -> Any:
    from .data.sources import Files, HubDataset, InstalledDocs

    match data:
        case InstalledDocsData():
            return InstalledDocs(data.packages, data.min_characters)
        case FilesData():
            return Files(tuple(_placed(path) for path in data.paths), data.field)
        case HubData():
            return HubDataset(data.name, data.config, data.split, data.field, data.revision)
    raise AssertionError(data)


def _placed(path: str) -> str:
    """A path whose first part may be ``$DEPTHUP_DATA``.

    Raises:
        DataError: The variable is not set.
    """
    if not path.startswith(_DATA_FOLDER):
        return path
    if not os.environ.get(DATA_VARIABLE):
        raise DataError(f"the recipe reads {path}, and {DATA_VARIABLE} is not set",
                        next_step=f"{DATA_VARIABLE}=FOLDER depthup run ...")  # fmt: skip
    return os.environ[DATA_VARIABLE] + path.removeprefix(_DATA_FOLDER)


def _waits_for_folder(data: Any) -> bool:
    """Whether files lie in a folder that no variable names yet: the recipe can be looked at, and not be run."""
    if not isinstance(data, FilesData) or os.environ.get(DATA_VARIABLE):
        return False
    return any(path.startswith(_DATA_FOLDER) for path in data.paths)


def data_identity(recipe: Recipe, name: str, digests: Digests, made: Mapping[str, str]) -> dict[str, Any]:
    """What an entry's text depends on.

    Args:
        recipe: Where it stands.
        name: Its name.
        digests: Remembers digests of files.
        made: Fingerprint of each stage that makes data, by its name.
    """
    data = recipe.data[name]
    if not isinstance(data, PlainData):
        parts = [
            {**data_identity(recipe, part, digests, made), "weight": weight}
            for part, weight in parts_of(recipe.data, name).items()
        ]
        return {"source": data.source, "parts": parts}
    own: dict[str, Any]
    if isinstance(data, StageData):
        own = {"source": "stage", "stage": made[data.stage], "field": data.field}
    elif _waits_for_folder(data):
        own = {"source": "files", "files": f"{_DATA_FOLDER} is not set yet"}
    else:
        own = _outside_source(data).identity(digests.of)
    return {
        **own,
        "held_out": data.held_out,
        "max_documents": data.max_documents,
        **({"max_tokens": data.max_tokens} if data.max_tokens else {}),
    }


# -- text and conversations -------------------------------------------------------------------------------------------


def training_rows(job: Job, checkpoint: Path, tokenizer: Tokenizer) -> Rows:
    """The rows of a pretrain or sft stage, mixed if its data are."""
    from .data.mixture import Mixture

    parts = parts_of(job.recipe.data, job.stage.data)
    rows = {part: _packed(job, checkpoint, tokenizer, part, "train") for part in parts}
    if len(rows) == 1:
        return next(iter(rows.values()))
    return Mixture(dict(rows), tuple(parts.values()))


def held_out_rows(job: Job, checkpoint: Path, tokenizer: Tokenizer, num_tokens: int) -> dict[str, PackedRows]:
    """Held-out rows of each part of the stage's data, of ``num_tokens`` tokens each."""
    parts = parts_of(job.recipe.data, job.stage.data)
    return {part: _packed(job, checkpoint, tokenizer, part, "held_out", num_tokens) for part in parts}


def _packed(job: Job, checkpoint: Path, tokenizer: Tokenizer, part: str, split: Split, limit: int = 0) -> PackedRows:
    from .data.packing import pack
    from .data.tokens import sample

    stage: PretrainStage | SftStage | EvaluateStage = job.stage
    documents = _tokens(job, checkpoint, tokenizer, part, split)
    documents = sample(documents, limit, whole=isinstance(stage, SftStage)) if limit else documents
    if isinstance(stage, SftStage):
        return pack(documents, stage.row_tokens, whole=True)
    return pack(documents, stage.row_tokens, stage.document_mask)


def _tokens(job: Job, checkpoint: Path, tokenizer: Tokenizer, part: str, split: Split) -> Any:
    """Tokenized text of one side, made once for each pair of data and tokenizer and kept in the store."""
    from .data.chat import chat_encoder, encoding_identity
    from .data.conversations import read_conversations, select_conversations
    from .data.sources import select
    from .data.tokens import TextEncoder, open_tokens, write_encoded
    from .models import end_of_text

    stage, data, source = job.stage, job.recipe.data[part], source_of(job, part)
    assert isinstance(data, PlainData)
    chat = isinstance(stage, SftStage)
    settings: dict[str, Any] = {}
    if chat:
        settings = {"format": stage.format, **encoding_identity(stage.template, stage.turns, stage.train_on_prompt)}
    workers = getattr(stage, "tokenize_workers", 1)

    def make(folder: Path, advance: Callable[[int], object]) -> None:
        items: Any
        encoder: Any
        if chat:
            conversations = read_conversations(source, stage.format)
            items = select_conversations(conversations, split, data.held_out, data.max_documents)
            encoder = chat_encoder(tokenizer, stage.template, turns=stage.turns, train_on_prompt=stage.train_on_prompt)
        else:
            items = select(source, split, data.held_out, data.max_documents)
            encoder = TextEncoder(tokenizer, end_of_text(tokenizer))
        write_encoded(items, encoder, folder, advance, num_workers=workers, max_tokens=data.max_tokens)

    return open_tokens(_made_once(job, checkpoint, part, split, settings, make))


def _made_once(
    job: Job, checkpoint: Path, part: str, split: Split, settings: Mapping[str, Any],
    make: Callable[[Path, Callable[[int], object]], None],
) -> Path:  # fmt: skip
    """The folder of tokens of some data, tokenizer, side and settings: found in the store, or made and put there."""
    from tqdm import tqdm

    fingerprints = {name: record.fingerprint for name, record in job.records.items()}
    files = sorted({path for pattern in _TOKENIZER_FILES for path in checkpoint.glob(pattern)})
    key = fingerprint({
        "version": _TOKENS_VERSION,
        "data": data_identity(job.recipe, part, job.store.digests, fingerprints),
        "tokenizer": {path.name: job.store.digests.of(path) for path in files},
        "split": split,
        **settings,
    })  # fmt: skip
    folder = job.store.root / "tokens" / key[:12]

    def fill(partial: Path) -> None:
        with tqdm(
            desc=f"{job.name}: tokenize {part} ({split})", unit="doc", disable=not job.progress, dynamic_ncols=True,
            leave=False,
        ) as bar:  # fmt: skip
            make(partial, bar.update)

    with job.first_rank_first():
        made_once(folder, fill)
        with contextlib.suppress(OSError):  # `depthup gc` keeps what was used of late
            os.utime(folder)
    return folder


# -- preference pairs -------------------------------------------------------------------------------------------------


def training_pairs(job: Job, checkpoint: Path, tokenizer: Tokenizer) -> TokenizedPairs:
    """The pairs of a dpo or sdpo stage, of all parts of its data one after another."""
    from .data.pair_tokens import join_pairs

    parts = parts_of(job.recipe.data, job.stage.data)
    return join_pairs({part: _pairs(job, checkpoint, tokenizer, part, "train") for part in parts})


def held_out_pairs(job: Job, checkpoint: Path, tokenizer: Tokenizer, num_pairs: int) -> TokenizedPairs:
    """The first ``num_pairs`` held-out pairs, an equal number of each part."""
    import numpy as np

    from .data.pair_tokens import join_pairs

    parts = parts_of(job.recipe.data, job.stage.data)
    each = -(-num_pairs // len(parts))
    found = {part: _pairs(job, checkpoint, tokenizer, part, "held_out") for part in parts}
    return join_pairs({part: pairs.subset(np.arange(min(each, pairs.num_pairs))) for part, pairs in found.items()})


def _pairs(job: Job, checkpoint: Path, tokenizer: Tokenizer, part: str, split: Split) -> TokenizedPairs:
    from .data.chat import chat_encoder, encoding_identity
    from .data.pair_tokens import chat_encode, open_pairs, write_pairs
    from .data.preferences import read_pairs, select_pairs

    stage: PreferenceStage = job.stage
    data, source = job.recipe.data[part], source_of(job, part)
    assert isinstance(data, PlainData)
    keys = ("max_tokens", "truncate", "min_margin")

    def make(folder: Path, advance: Callable[[int], object]) -> None:
        encoder = chat_encoder(tokenizer, stage.template, turns="last")
        pairs = select_pairs(read_pairs(source, stage.min_margin), split, data.held_out, data.max_documents)
        write_pairs(
            pairs,
            chat_encode(encoder),
            folder,
            max_tokens=stage.max_tokens,
            end_of_turn={encoder.end_of_turn},
            begin_of_text=tokenizer.bos_token_id,
            truncate=stage.truncate,
            progress=advance,
            num_workers=stage.tokenize_workers,
        )

    settings = {key: getattr(stage, key) for key in keys} | {"pairs": encoding_identity(stage.template, "last", False)}
    return open_pairs(_made_once(job, checkpoint, part, split, settings, make))
