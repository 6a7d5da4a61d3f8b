"""A recipe: the YAML file that says what to make, as frozen, validated types. Unknown keys are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from .data_settings import DATA_KINDS, DataSettings, JoinedData, MixtureData, StageData, parts_of
from .data_stage_settings import DecontaminateStage, SynthesizeStage
from .errors import RecipeError, nearest
from .recipe_file import read_recipe
from .settings import Settings
from .stage_settings import STAGE_KINDS, CompareStage, PreferenceStage, Stage

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_RECIPE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # a dot as in solar-10.7b


class Recipe(Settings):
    """A whole recipe.

    Attributes:
        name: Of the run; its store is ``runs/<name>``.
        seed: Start of all random numbers.
        data: Data by name.
        stages: Stages by name, in the order in which they run.
    """

    name: str
    seed: int = Field(0, ge=0)
    data: dict[str, DataSettings] = Field({})
    stages: dict[str, Stage]


# -- reading ----------------------------------------------------------------------------------------------------------


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or from ``recipe.yaml`` in a folder; it may extend another.

    Raises:
        RecipeError: No such file, no YAML, or a key or value that is not allowed (named by its path).
    """
    value, path = read_recipe(path)
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
    if not isinstance(name, str) or not _RECIPE_NAME.fullmatch(name):
        raise RecipeError(f"{where}: name: {name!r}", allowed="lower-case letters, digits, -, _ and ., as in my-run")
    data = {
        key: _parse(_kind(entry, "source", DATA_KINDS, f"{where}: data.{key}"), entry, f"{where}: data.{key}")
        for key, entry in _mapping(value.get("data") or {}, f"{where}: data").items()
    }
    _check_parts(data, where)
    stages: dict[str, Any] = {}
    for key, entry in _mapping(value["stages"], f"{where}: stages").items():
        place = f"{where}: stages.{key}"
        if not _NAME.fullmatch(str(key)) or key == "tokens":
            raise RecipeError(f"{place}: a stage cannot have this name", allowed="lower-case letters, digits, - and _")
        stage = _parse(_kind(entry, "kind", STAGE_KINDS, place), entry, place)
        _check_references(stage, place, stages)
        stages[key] = stage.reading(_made_data(stage, place, data, stages))
    if not stages:
        raise RecipeError(f"{where}: stages is empty", next_step="begin with recipes/quickstart/recipe.yaml")
    return _parse(Recipe, {"name": name, "seed": value.get("seed", 0), "data": data, "stages": stages}, where)


def _check_parts(data: Mapping[str, Any], where: str) -> None:
    plain = [name for name, entry in data.items() if not isinstance(entry, MixtureData | JoinedData)]
    for key, entry in data.items():
        for part in entry.parts if isinstance(entry, MixtureData | JoinedData) else ():
            if part not in plain:
                raise RecipeError(
                    f"{where}: data.{key}.parts: no data are called '{part}'{nearest(part, plain)}",
                    allowed=", ".join(plain) or "none: add entries under data:",
                )


_NAMED = {
    "checkpoint": "a stage that makes a checkpoint", "scores": "an evaluate stage", "comparison": "a compare stage",
    "data": "a synthesize stage", "probe": "a probe stage", "page": "a report",
}  # fmt: skip


def _check_references(stage: Stage, place: str, above: Mapping[str, Stage]) -> None:
    """Every stage that a setting names stands above, and makes what is asked."""
    for setting, name in stage.named():
        wanted = stage.INPUTS[setting]
        is_folder = ("/" in name or Path(name).is_dir()) and wanted == "checkpoint"
        if name not in above and not is_folder:
            raise RecipeError(
                f"{place}.{setting}: '{name}' is no stage above this one{nearest(name, above)}",
                allowed=(", ".join(above) or "none yet") + (", or a folder" if wanted == "checkpoint" else ""),
            )
        if wanted == "any":
            continue
        if name in above and (wanted != above[name].MAKES or (wanted == "data" and above[name].kind != "synthesize")):
            raise RecipeError(
                f"{place}.{setting}: stage '{name}' is of kind {above[name].kind}", allowed=_NAMED[wanted]
            )
        if isinstance(stage, CompareStage) and not getattr(above[name], "asked", ()):
            raise RecipeError(
                f"{place}.{setting}: stage '{name}' scores no benchmarks", next_step=f"give '{name}' a suite or tasks"
            )


def _made_data(stage: Stage, place: str, data: Mapping[str, Any], above: Mapping[str, Stage]) -> tuple[str, ...]:
    """The stages that make the data of a stage, all of which stand above it."""
    wanted = getattr(stage, "data", None)
    if wanted is None:
        return ()
    if wanted not in data:
        raise RecipeError(
            f"{place}.data: no data are called '{wanted}'{nearest(wanted, data)}",
            allowed=", ".join(data) or "none: add an entry under data:",
        )
    entry = data[wanted]
    if isinstance(entry, MixtureData) and isinstance(stage, PreferenceStage | SynthesizeStage | DecontaminateStage):
        raise RecipeError(
            f"{place}.data: the data '{wanted}' are a mixture, and "
            + (
                "preference pairs are not mixed by rows"
                if isinstance(stage, PreferenceStage)
                else f"{stage.kind} reads one source"
            ),
            allowed="source: joined for preference pairs, else one source; its files may be several",
        )
    if isinstance(entry, JoinedData) and not isinstance(stage, PreferenceStage):
        raise RecipeError(
            f"{place}.data: the data '{wanted}' are joined, which is for preference pairs",
            allowed="source: mixture for training on text or conversations, else one source",
        )
    found = []
    for part in parts_of(data, wanted):
        if isinstance(data[part], StageData):
            name = data[part].stage
            if name not in above:
                raise RecipeError(
                    f"{place}.data: the data '{part}' are made by '{name}', which is no stage above this one"
                    f"{nearest(name, above)}",
                    allowed=", ".join(key for key, one in above.items() if one.MAKES == "data") or "none yet",
                )
            if above[name].MAKES != "data":
                raise RecipeError(
                    f"{place}.data: the data '{part}' are those of '{name}', which is of kind {above[name].kind}",
                    allowed="a synthesize, alignment or decontaminate stage",
                )
            found.append(name)
    return tuple(found)


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
