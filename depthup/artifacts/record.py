"""The record that each artefact carries: what it is, from what it was made, with which settings, what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..files import write_json

RECORD_NAME = "record.json"


class Record(BaseModel):
    """Written last into an artefact's folder; a folder without one is no artefact.

    Attributes:
        stage: Name in the recipe.
        kind: Stage kind.
        fingerprint: Digest of ``identity``.
        identity: Everything that the result depends on: settings, data, fingerprints of the inputs.
        inputs: Fingerprint of each input stage, by its name.
        results: What the stage measured or counted.
        circumstance: What the result does not depend on: seconds, versions, device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    kind: str
    fingerprint: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    results: dict[str, Any]
    circumstance: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the record into ``folder``."""
        write_json(folder / RECORD_NAME, self.model_dump())


def read_record(folder: Path) -> Record | None:
    """The record of a folder; None if there is none that can be read."""
    try:
        return Record.model_validate_json((folder / RECORD_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
