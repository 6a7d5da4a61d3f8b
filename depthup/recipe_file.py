"""The YAML of a recipe as plain values: numbers as people write them, no key twice, one recipe that extends another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import RecipeError

RECIPE_NAME = "recipe.yaml"
EXTENDS = "extends"


def read_recipe(path: str | Path) -> tuple[Any, Path]:
    """What a recipe's file says, with the recipe that it extends filled in, and the file itself.

    ``extends: other.yaml`` (beside this file, or a folder with ``recipe.yaml``) takes another recipe and changes it:
    keys are merged at every depth, ``null`` takes a key away, lists and single values are replaced, and so is a stage
    of another ``kind`` or data of another ``source``. Stages keep the other's order; new ones come after.

    Raises:
        RecipeError: No such file, no YAML, or recipes that extend each other in a circle.
    """
    path = _file(Path(path))
    value, seen = _read(path), [path.resolve()]
    above = path
    while isinstance(value, Mapping) and EXTENDS in value:
        name = value[EXTENDS]
        if not isinstance(name, str):
            raise RecipeError(f"{above}: extends: {name!r}", allowed="the path of another recipe, as in recipe.yaml")
        above = _file(above.parent / name)
        if above.resolve() in seen:
            raise RecipeError(f"{above}: extends: the recipes extend each other: {' -> '.join(map(str, seen))}")
        seen.append(above.resolve())
        other = _read(above)
        if not isinstance(other, Mapping):
            raise RecipeError(f"{above}: expected keys and values, got {type(other).__name__}")
        value = merged(other, {key: entry for key, entry in value.items() if key != EXTENDS})
    return value, path


def merged(base: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """A mapping changed by another, as ``extends`` does it; neither is edited."""
    result = dict(base)
    for key, change in changes.items():
        before = result.get(key)
        if change is None:
            result.pop(key, None)
        elif isinstance(before, Mapping) and isinstance(change, Mapping) and not _is_another(before, change):
            result[key] = merged(before, change)
        else:
            result[key] = change
    return result


def _is_another(before: Mapping[Any, Any], change: Mapping[Any, Any]) -> bool:
    """Whether a stage or data of one kind is to be replaced by one of another, whose settings have other names."""
    return any(key in change and change[key] != before.get(key) for key in ("kind", "source"))


def _file(path: Path) -> Path:
    return path / RECIPE_NAME if path.is_dir() else path


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise RecipeError(
            f"cannot read the recipe {path}: {error.strerror}", next_step="name a folder with recipe.yaml, or the file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


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
