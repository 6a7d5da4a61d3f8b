"""A recipe: the YAML file that says what to make, as frozen, validated types. Unknown keys are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import RecipeError, nearest

RECIPE_NAME = "recipe.yaml"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _circumstance(default: int, minimum: int, description: str) -> Any:
    """A setting that changes speed or memory but not the result: it is not part of the fingerprint."""
    return Field(default, ge=minimum, description=description, json_schema_extra={"circumstance": True})


# -- data -------------------------------------------------------------------------------------------------------------


class _Data(_Settings):
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of documents that is held out, chosen by hash.")
    max_documents: int | None = Field(None, gt=0, description="Use at most so many documents of each side.")


class InstalledDocsData(_Data):
    """Documentation that Python and installed packages carry: real text on every machine, without a network."""

    source: Literal["installed-docs"]
    packages: tuple[str, ...] = Field(
        ("python",),
        min_length=1,
        description="`python` is the language reference, `stdlib` the standard library's docstrings, any other name"
        " the docstrings of that package.",
    )
    min_characters: int = Field(400, ge=0, description="Shorter docstrings are left out.")


class FilesData(_Data):
    """Local files: .jsonl, .json, .txt (each also with .gz), .parquet, or folders of them."""

    source: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1, description="Files or folders, relative to the working folder.")
    field: str = Field("text", description="The row's field that holds the text.")


class HubData(_Data):
    """A data set by its name on the Hugging Face Hub, streamed."""

    source: Literal["hub"]
    name: str = Field(description="As in `HuggingFaceFW/fineweb-edu`.")
    config: str | None = Field(None, description="The data set's configuration.")
    split: str = Field("train", description="The data set's split.")
    field: str = Field("text", description="The column that holds the text.")
    revision: str | None = Field(None, description="A commit, so that the text cannot change.")


DataSettings = Annotated[Union[InstalledDocsData, FilesData, HubData], Field(discriminator="source")]  # noqa: UP007
DATA_KINDS: dict[str, type[_Data]] = {"installed-docs": InstalledDocsData, "files": FilesData, "hub": HubData}


# -- stages -----------------------------------------------------------------------------------------------------------


class _Stage(_Settings):
    kind: str
    INPUTS: ClassVar[tuple[str, ...]] = ()  # the settings that name other stages, or checkpoint folders

    @classmethod
    def circumstances(cls) -> set[str]:
        """Names of the settings that are no part of the result's identity."""
        return {
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("circumstance")
        }

    def inputs(self) -> tuple[str, ...]:
        """Every stage or folder that this stage reads."""
        named: list[str] = []
        for key in self.INPUTS:
            value = getattr(self, key)
            named += [value] if isinstance(value, str) else list(value or ())
        return tuple(named)


class RandomModel(_Settings):
    """A random tiny model of the Llama architecture, one token a byte: to try a recipe in seconds."""

    num_layers: int = Field(8, gt=0, description="Depth.")
    hidden_size: int = Field(64, ge=16, multiple_of=16, description="Width.")


class ImportStage(_Stage):
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


class UpscaleStage(_Stage):
    """Surgery: base checkpoint + plan -> target checkpoint. Give one of the last four settings."""

    INPUTS: ClassVar[tuple[str, ...]] = ("base",)
    kind: Literal["upscale"]
    base: str = Field(description="Stage or checkpoint folder.")
    remove: int | None = Field(None, ge=0, description="m: layers removed from each copy (SOLAR: 8 of 32).")
    target_layers: int | None = Field(None, gt=0, description="s = 2 (n - m).")
    layers: str | None = Field(None, description="The plan itself, as in `0-23,8-31`.")
    preset: str | None = Field(None, description="A published plan: see `depthup layers --help`.")

    @model_validator(mode="after")
    def _one_plan(self) -> UpscaleStage:
        given = [key for key in ("remove", "target_layers", "layers", "preset") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of remove, target_layers, layers, preset (given: {given or 'none'})")
        return self


class PretrainStage(_Stage):
    """Continued pretraining: every weight is trained on the next token of plain text."""

    INPUTS: ClassVar[tuple[str, ...]] = ("model",)
    kind: Literal["pretrain"]
    model: str = Field(description="Stage or checkpoint folder.")
    data: str = Field(description="Name of an entry under `data:`.")
    steps: int = Field(gt=0, description="Optimiser updates.")
    rows_per_step: int = Field(gt=0, description="Rows in a global batch.")
    row_tokens: int = Field(2048, ge=2, description="Tokens in a row.")
    document_mask: bool = Field(True, description="Keep documents in a row from seeing one another.")
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
    eval_every: int = Field(0, ge=0, description="Steps between held-out losses; 0: at start and end only.")
    eval_tokens: int = Field(8192, gt=0, description="Held-out tokens that are measured.")
    micro_batch_rows: int = _circumstance(4, 1, "Rows in one forward pass: memory and speed, not the result.")
    checkpoint_every: int = _circumstance(
        0, 0, "Steps between saved states, the last step included; 0: when interrupted only."
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> PretrainStage:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} leaves none of steps = {self.steps}")
        return self


class EvaluateStage(_Stage):
    """Held-out loss of a checkpoint, and what it writes to some prompts."""

    INPUTS: ClassVar[tuple[str, ...]] = ("model",)
    kind: Literal["evaluate"]
    model: str = Field(description="Stage or checkpoint folder.")
    data: str = Field(description="Name of an entry under `data:`.")
    tokens: int = Field(8192, gt=0, description="Held-out tokens that are measured.")
    row_tokens: int = Field(2048, ge=2, description="Tokens in a row.")
    document_mask: bool = Field(True, description="Keep documents in a row from seeing one another.")
    prompts: tuple[str, ...] = Field((), description="Texts to continue, the likeliest token each time.")
    max_new_tokens: int = Field(48, gt=0, description="Length of each continuation.")
    micro_batch_rows: int = _circumstance(4, 1, "Rows in one forward pass: memory and speed, not the result.")


class ReportStage(_Stage):
    """One self-contained HTML page: layer map, loss curve, table, generations, lineage."""

    INPUTS: ClassVar[tuple[str, ...]] = ("evaluations",)
    kind: Literal["report"]
    title: str = Field(description="Heading of the page.")
    evaluations: tuple[str, ...] = Field(min_length=1, description="Evaluate stages, one a row of the table.")
    summary: str = Field("", description="One sentence below the heading.")
    notes: tuple[str, ...] = Field((), description="What the result shows, and what it does not.")


Stage = ImportStage | UpscaleStage | PretrainStage | EvaluateStage | ReportStage
STAGE_KINDS: dict[str, type[Stage]] = {
    get_args(stage.model_fields["kind"].annotation)[0]: stage for stage in get_args(Stage)
}


class Recipe(_Settings):
    """A whole recipe.

    Attributes:
        name: Of the run; its store is ``runs/<name>``.
        seed: Start of all random numbers.
        data: Data by name.
        stages: Stages by name, in the order in which they run.
    """

    name: str
    seed: int = Field(0, ge=0)
    data: dict[str, DataSettings] = {}
    stages: dict[str, Stage]


# -- reading ----------------------------------------------------------------------------------------------------------


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or from ``recipe.yaml`` in a folder.

    Raises:
        RecipeError: No such file, no YAML, or a key or value that is not allowed (named by its path).
    """
    path = Path(path)
    if path.is_dir():
        path = path / RECIPE_NAME
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise RecipeError(
            f"cannot read the recipe {path}: {error.strerror}", next_step="name a folder with recipe.yaml, or the file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return parse_recipe(value, str(path))


def parse_recipe(value: Any, where: str = "recipe") -> Recipe:
    """Validate a recipe that was read from YAML or built in Python.

    Raises:
        RecipeError: A key or value is not allowed; its path, what is allowed, and the nearest valid key are named.
    """
    value = _mapping(value, where)
    _no_unknown(value, Recipe.model_fields, where)
    for key in ("name", "stages"):
        if key not in value:
            raise RecipeError(f"{where}: '{key}' is missing", allowed=", ".join(Recipe.model_fields))
    name = value["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(f"{where}: name: {name!r}", allowed="lower-case letters, digits, - and _, as in my-run")
    data = {
        key: _parse(_kind(entry, "source", DATA_KINDS, f"{where}: data.{key}"), entry, f"{where}: data.{key}")
        for key, entry in _mapping(value.get("data") or {}, f"{where}: data").items()
    }
    stages: dict[str, Any] = {}
    for key, entry in _mapping(value["stages"], f"{where}: stages").items():
        place = f"{where}: stages.{key}"
        if not _NAME.fullmatch(str(key)) or key == "tokens":
            raise RecipeError(f"{place}: a stage cannot have this name", allowed="lower-case letters, digits, - and _")
        stage = _parse(_kind(entry, "kind", STAGE_KINDS, place), entry, place)
        _check_references(stage, place, data, stages)
        stages[key] = stage
    if not stages:
        raise RecipeError(f"{where}: stages is empty", next_step="begin with recipes/quickstart/recipe.yaml")
    return _parse(Recipe, {"name": name, "seed": value.get("seed", 0), "data": data, "stages": stages}, where)


def _check_references(stage: Stage, place: str, data: Mapping[str, Any], above: Mapping[str, Stage]) -> None:
    for setting in stage.INPUTS:
        value = getattr(stage, setting)
        for name in [value] if isinstance(value, str) else value:
            is_folder = ("/" in name or Path(name).is_dir()) and setting != "evaluations"
            if name not in above and not is_folder:
                raise RecipeError(
                    f"{place}.{setting}: '{name}' is no stage above this one{nearest(name, above)}",
                    allowed=(", ".join(above) or "none yet") + ("" if setting == "evaluations" else ", or a folder"),
                )
            kind = above[name].kind if name in above else None
            if kind and (kind == "evaluate") != (setting == "evaluations"):
                raise RecipeError(
                    f"{place}.{setting}: stage '{name}' is of kind {kind}",
                    allowed="an evaluate stage" if setting == "evaluations" else "a stage that makes a checkpoint",
                )
            if kind == "report":
                raise RecipeError(f"{place}.{setting}: stage '{name}' is a report, it makes no checkpoint")
    wanted = getattr(stage, "data", None)
    if wanted is not None and wanted not in data:
        raise RecipeError(
            f"{place}.data: no data are called '{wanted}'{nearest(wanted, data)}",
            allowed=", ".join(data) or "none: add an entry under data:",
        )


def _parse(model: type[Any], value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        _no_unknown(value, model.model_fields, where)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f" (given: {first['input']!r})"
        raise RecipeError(f"{where}{'.' if path else ''}{path}: {message}{given}") from None


def _kind(value: Any, key: str, kinds: Mapping[str, Any], where: str) -> Any:
    kind = _mapping(value, where).get(key)
    if not isinstance(kind, str) or kind not in kinds:
        problem = f"'{key}' is missing" if kind is None else f"{key}: '{kind}'{nearest(str(kind), kinds)}"
        raise RecipeError(f"{where}: {problem}", allowed=", ".join(kinds))
    return kinds[kind]


def _no_unknown(value: Mapping[Any, Any], fields: Mapping[str, Any], where: str) -> None:
    for key in value:
        if key not in fields:
            raise RecipeError(f"{where}.{key}: unknown key{nearest(str(key), fields)}", allowed=", ".join(fields))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected keys and values, got {type(value).__name__}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-5`` is a number and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
