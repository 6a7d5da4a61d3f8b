"""What all settings of a recipe have in common: frozen, validated types that forbid unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

Made = Literal["checkpoint", "scores", "data", "comparison", "probe", "page"]  # what a stage leaves


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def circumstance(default: int, minimum: int, description: str) -> Any:
    """A setting that changes speed or memory but not the result: it is not part of the fingerprint."""
    return Field(default, ge=minimum, description=description, json_schema_extra={"circumstance": True})


def free(default: Any, description: str) -> Any:
    """A circumstance that is no count."""
    return Field(default, description=description, json_schema_extra={"circumstance": True})


class StageSettings(Settings):
    """One stage.

    Attributes:
        INPUTS: The settings that name other stages, or folders -> what such a stage must make.
        MAKES: What this kind leaves.
    """

    kind: str
    INPUTS: ClassVar[Mapping[str, Made]] = {}
    MAKES: ClassVar[Made] = "checkpoint"
    _made_data: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def circumstances(cls) -> set[str]:
        """Names of the settings that are no part of the result's identity."""
        return {
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("circumstance")
        }

    def named(self) -> tuple[tuple[str, str], ...]:
        """(setting, name) of every stage or folder that a setting names."""
        found: list[tuple[str, str]] = []
        for key in self.INPUTS:
            value = getattr(self, key)
            found += [(key, name) for name in ([value] if isinstance(value, str) else value or ())]
        return tuple(found)

    def inputs(self) -> tuple[str, ...]:
        """Every stage or folder that this stage reads, those that make its data included, each once."""
        return tuple(dict.fromkeys([*(name for _, name in self.named()), *self._made_data]))

    def reading(self, made_data: tuple[str, ...]) -> StageSettings:
        """The same stage, which reads data that these stages make: a recipe's entries under ``data:`` tell."""
        copy = self.model_copy()
        copy._made_data = made_data
        return copy
