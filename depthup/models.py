"""The one door to transformers: load a checkpoint folder as a model or a tokenizer, prove that it loads, export it."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from . import modeling_looped
from .checkpoint.check import Finding
from .checkpoint.names import find_stacks
from .checkpoint.reader import Checkpoint, open_checkpoint, read_config
from .errors import CheckpointError, DepthupError
from .files import write_json
from .modeling_looped import LoopedConfig, LoopedForCausalLM

Model: TypeAlias = "transformers.PreTrainedModel"
Tokenizer: TypeAlias = "transformers.PreTrainedTokenizerBase"

CacheLayer: Any = DynamicLayer  # what a cache is made of: a base for layers of one's own
AutoConfig.register(LoopedConfig.model_type, LoopedConfig)
AutoModelForCausalLM.register(LoopedConfig, LoopedForCausalLM)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UnknownModel(CheckpointError):
    """The installed transformers has no class for the model, so what it would make of the folder cannot be told."""


@dataclass(frozen=True)
class LoadReport:
    """What transformers says of a folder's tensors; all empty when each finds its place."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)


def prove_loading(folder: str | os.PathLike[str]) -> LoadReport:
    """Load a folder with its own model class on the meta device, where no tensor takes memory.

    Raises:
        UnknownModel: transformers has no class for it, or its code comes with the checkpoint.
        CheckpointError: transformers refuses the config or the weights.
    """
    folder = Path(folder)
    model_class = _model_class(read_config(folder), folder)
    with quiet_transformers():
        try:
            _, info = model_class.from_pretrained(
                folder,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        except Exception as error:  # transformers raises many kinds; each means that the folder does not load
            raise CheckpointError(
                f"transformers {transformers.__version__} does not load {folder}: {_first_line(error)}",
                next_step="run `depthup check --quick` for what names and config show",
            ) from error
    return _load_report(info)


def findings_on_loading(folder: str | os.PathLike[str]) -> list[Finding]:
    """:func:`prove_loading` as findings; an empty list means that every tensor finds its place.

    Blocks of multi-token prediction are no finding: transformers leaves them out on purpose, for every model.

    Raises:
        UnknownModel: transformers has no class for it, or its code comes with the checkpoint.
    """
    try:
        report = prove_loading(folder)
    except UnknownModel:
        raise
    except CheckpointError as error:
        return [Finding(error.problem, error.next_step or "")]
    dropped = report.unexpected and tuple(_beyond_prediction(report.unexpected, open_checkpoint(folder)))
    remedy = "transformers would make up or drop this tensor: make the checkpoint again"
    kinds = {"missing": report.missing, "unexpected": dropped, "mis-shaped": report.mismatched}
    findings = [Finding(f"{kind} on loading: {name}", remedy) for kind, names in kinds.items() for name in names]
    return findings + ([other] if (other := _other_code(Path(folder))) else [])


def _beyond_prediction(names: Iterable[str], checkpoint: Checkpoint) -> Iterator[str]:
    """The names that are no part of a block of multi-token prediction, which stands after the last layer."""
    stacks = [stack for stack in find_stacks(checkpoint.tensors, checkpoint.config) if stack.num_extra]
    for name in names:
        places = ((stack, stack.split(name)) for stack in stacks)
        if not any(place and place[0] >= stack.num_layers for stack, place in places):
            yield name


def load_model(folder: str | os.PathLike[str], device: str = "cpu", dtype: str = "float32") -> Model:
    """A causal language model from a checkpoint folder, in evaluation mode.

    Raises:
        CheckpointError: A tensor is missing, unexpected or mis-shaped: a random layer is never trained on by mistake.
    """
    _refuse_custom_code(read_config(Path(folder)), Path(folder))
    if other := _other_code(Path(folder)):
        warnings.warn(other.problem, stacklevel=2)
    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        except Exception as error:  # transformers raises many kinds; each means that the folder does not load
            raise CheckpointError(
                f"transformers {transformers.__version__} does not load {folder}: {_first_line(error)}",
                next_step="run `depthup check` on it",
            ) from error
    report = _load_report(info)
    if not report.whole:
        raise CheckpointError(
            f"{folder} does not load whole: missing {list(report.missing)[:3]}, unexpected"
            f" {list(report.unexpected)[:3]}, mis-shaped {list(report.mismatched)[:3]}",
            next_step="run `depthup check` on it",
        )
    return model.to(device).eval()


def load_encoder(folder: str | os.PathLike[str], device: str = "cpu") -> tuple[Model, Tokenizer]:
    """A model that gives hidden states and no words, in evaluation mode and float32, and its tokenizer.

    A head is left out, and a pooler may be missing: hidden states need neither.

    Raises:
        CheckpointError: The folder is no such model, or another tensor is missing or mis-shaped.
    """
    _refuse_custom_code(read_config(Path(folder)), Path(folder))
    with quiet_transformers():
        try:
            model, info = AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )  # fmt: skip
        except Exception as error:  # transformers raises many kinds; each means that the folder does not load
            raise CheckpointError(
                f"transformers {transformers.__version__} does not load {folder}: {_first_line(error)}",
                next_step="give a folder with config.json, safetensors and a tokenizer",
            ) from error
    report = _load_report(info)
    absent = [name for name in (*report.missing, *report.mismatched) if "pooler" not in name]
    if absent:
        raise CheckpointError(f"{folder} does not load whole: {absent[:3]} are missing or mis-shaped")
    return model.to(device).eval(), load_tokenizer(folder)


def stored_parameters(folder: str | os.PathLike[str]) -> int:
    """Weights that a checkpoint folder stores, counted from the headers of its files.

    Raises:
        CheckpointError: The folder is not whole.
    """
    return open_checkpoint(folder).num_parameters


def model_config(folder: str | os.PathLike[str]) -> Any:
    """A checkpoint folder's config as transformers understands it, with the defaults of its family.

    Raises:
        CheckpointError: transformers refuses it.
    """
    _refuse_custom_code(read_config(Path(folder)), Path(folder))
    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds; each means that the folder does not load
            raise CheckpointError(
                f"transformers {transformers.__version__} does not read {folder}/config.json: {_first_line(error)}",
                next_step="run `depthup check` on it",
            ) from error


def resolve_device(wanted: str) -> str:
    """``auto`` as the device that there is; any other name if torch can use it.

    Raises:
        DepthupError: torch cannot compute there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and torch.cuda.is_available():
        return wanted  # not tried: of several ranks each would take memory of the first GPU
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise DepthupError(
            f"torch cannot compute on '{wanted}': {_first_line(error)}", allowed="auto, cpu, cuda, cuda:1 ..."
        ) from error
    return wanted


def count_gpus() -> int:
    """GPUs that torch sees; none of them is touched."""
    return torch.cuda.device_count()


def attention_interfaces() -> tuple[Any, Any]:
    """transformers' tables of attention functions and of the masks for them, by name; new names may be registered."""
    return ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS


def num_cache_layers(model: Model) -> int | None:
    """Layers whose keys and values a causal model keeps; None where it keeps anything else (a recurrent state)."""
    if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return None
    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return len(layers) if layers and plain else None


def cache_of(layers: Sequence[Any]) -> Any:
    """transformers' cache made of layers of one's own."""
    cache = DynamicCache()
    cache.layers = list(layers)
    return cache


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: The folder has none.
    """
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} has no tokenizer that transformers reads: {_first_line(error)}",
                next_step="copy the base's tokenizer files into the folder",
            ) from error


def export_model(model: Model, like: Path, folder: Path) -> None:
    """Write a model's weights into ``folder``, in the type and with the raw config of the checkpoint ``like``.

    The model is cast in place. Tokenizer and other files are the caller's; no field of ``config.json`` changes.

    Raises:
        OSError: The folder cannot be written.
    """
    config = read_config(like)
    text = config.get("text_config") or {}
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32"
    model.to(DTYPES.get(dtype, torch.float32))
    with quiet_transformers():
        model.save_pretrained(folder)
    write_json(folder / "config.json", config)


def save_chat_template(folder: Path, template: str) -> None:
    """Give the tokenizer of a checkpoint folder a chat template (Jinja)."""
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)


def stop_at(folder: Path, token: int) -> None:
    """Add a token to those at which generation from a checkpoint folder ends."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ends = config.get("eos_token_id")
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if token not in known:
        write_json(path, {**config, "eos_token_id": [*known, token] if known else token})


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token that ends a document.

    Raises:
        CheckpointError: The tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            "the tokenizer has no end-of-sequence token, so documents could not be told apart",
            next_step="set eos_token in tokenizer_config.json",
        )
    return int(tokenizer.eos_token_id)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and notes off the terminal; errors are raised all the same."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _load_report(info: dict[str, Any]) -> LoadReport:
    mismatched = (
        f"{name} ({list(disk)} on disk, {list(built)} in the model)" for name, disk, built in info["mismatched_keys"]
    )
    return LoadReport(
        tuple(sorted(info["missing_keys"])), tuple(sorted(info["unexpected_keys"])), tuple(sorted(mismatched))
    )


def _model_class(config: dict[str, Any], folder: Path) -> Any:
    names = config.get("architectures") or []
    if config.get("model_type") == LoopedConfig.model_type:
        return LoopedForCausalLM
    if names and hasattr(transformers, names[0]):
        return getattr(transformers, names[0])
    _refuse_custom_code(config, folder)
    if names:
        raise UnknownModel(
            f"transformers {transformers.__version__} has no class {names[0]}, which {folder / 'config.json'} names",
            next_step="install a transformers that knows it; code that comes with a checkpoint is not run",
        )
    return AutoModelForCausalLM


def _refuse_custom_code(config: dict[str, Any], folder: Path) -> None:
    """Raise :class:`UnknownModel` for a model whose classes come with the checkpoint: their code is never run."""
    known = (*CONFIG_MAPPING_NAMES, LoopedConfig.model_type)
    if config.get("auto_map") and config.get("model_type") not in known:
        raise UnknownModel(
            f"{folder} is a {config.get('model_type')}, a model whose code comes with the checkpoint and is not in"
            f" transformers {transformers.__version__}; that code is not run",
            next_step="surgery and `depthup check` work from names alone; load it with tools of your own, which may"
            " trust its code",
        )


def _other_code(folder: Path) -> Finding | None:
    """A finding if the class that comes with a looped model is another than depthup's, which depthup runs."""
    own = Path(modeling_looped.__file__)
    theirs = folder / own.name
    if read_config(folder).get("model_type") != LoopedConfig.model_type or not theirs.is_file():
        return None
    if theirs.read_bytes() == own.read_bytes():
        return None
    return Finding(
        f"{theirs} is not the {own.name} of this depthup, which runs its own; other tools run the folder's",
        f"put {own} in its place if they should compute the same",
    )
