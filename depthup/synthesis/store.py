"""The folder of a run: append-only files, whole after every group, and the manifest that says how far they go.

A killed run may leave bytes behind what the manifest counts; they are cut off when it goes on, and their group is
made again from the journal. So the files of a run that was killed and run again equal those of one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError, shown
from ..files import sha256_of, sync_folder, write_json

MANIFEST = "manifest.json"
REJECTED, FAILED = "rejected.jsonl", "failed.jsonl"


def shard_name(number: int) -> str:
    """Name of a shard of rows."""
    return f"rows-{number:05d}.jsonl"


class Store:
    """Rows, rejected rows and failures of one run.

    Args:
        folder: It is made; what a run of other settings left is not touched.
        identity: What the rows depend on.
        rows_per_file: Rows of a shard at which the next begins.

    Attributes:
        manifest: ``identity``, ``groups`` done, ``files`` (name -> rows and bytes), ``statistics``, ``complete``.

    Raises:
        OutputError: The folder holds other files, or a run of other settings.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], rows_per_file: int) -> None:
        self.folder, self._rows_per_file = folder, rows_per_file
        path = folder / MANIFEST
        mine: dict[str, Any] = json.loads(json.dumps(identity))
        if path.exists():
            self.manifest = self._read(path, mine)
        else:
            known = [entry.name for entry in folder.iterdir() if not entry.name.startswith((".", "journal"))]
            if any(name not in (REJECTED, FAILED, shard_name(0)) for name in known):
                raise OutputError(f"{folder} holds other files: {shown(', '.join(sorted(known)))}",
                                  next_step="choose another folder")  # fmt: skip
            self.manifest = {"identity": mine, "groups": 0, "files": {}, "statistics": {}, "complete": False}
        self._trim()

    def commit(self, kept: Sequence[Any], rejected: Sequence[Any], failed: Sequence[Any], statistics: Any) -> None:
        """Add what a group gave; afterwards the manifest counts it.

        Raises:
            OutputError: The disk is full, or the folder cannot be written.
        """
        files = {name: dict(facts) for name, facts in self.manifest["files"].items()}
        try:
            number = max((int(name[5:10]) for name in files if name.startswith("rows-")), default=0)
            start = 0
            while start < len(kept):
                room = self._rows_per_file - files.get(shard_name(number), {"rows": 0})["rows"]
                self._append(files, shard_name(number), kept[start : start + room])
                start, number = start + room, number + 1
            self._append(files, REJECTED, rejected)
            self._append(files, FAILED, failed)
            done = self.manifest["groups"] + 1
            self.manifest = {**self.manifest, "groups": done, "files": files, "statistics": statistics}
            write_json(self.folder / MANIFEST, self.manifest)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written: {error.strerror}", next_step="put that right and run it again"
            ) from error

    def again(self) -> None:
        """Begin anew, with the folder and its journal: what was written is cut off, replies stay."""
        self.manifest = {
            "identity": self.manifest["identity"], "groups": 0, "files": {}, "statistics": {}, "complete": False,
        }  # fmt: skip
        write_json(self.folder / MANIFEST, self.manifest)
        self._trim()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run as complete, with the digests of its files."""
        files = {
            name: {**known, "sha256": sha256_of(self.folder / name)} for name, known in self.manifest["files"].items()
        }
        self.manifest = {**self.manifest, **facts, "files": files, "complete": True}
        write_json(self.folder / MANIFEST, self.manifest)

    def rows(self) -> list[dict[str, Any]]:
        """All rows that are kept so far."""
        found = []
        for name in sorted(self.manifest["files"]):
            if name.startswith("rows-"):
                with open(self.folder / name, encoding="utf-8") as file:
                    found += [json.loads(line) for line in file]
        return found

    def _read(self, path: Path, identity: dict[str, Any]) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            theirs = manifest["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is no manifest of a synthesis", next_step="choose another folder") from error
        differing = sorted(key for key in identity.keys() | theirs.keys() if identity.get(key) != theirs.get(key))
        if differing:
            key = differing[0]
            raise OutputError(
                f"{path.parent} has another '{key}': {shown(theirs.get(key))}; now {shown(identity.get(key))}",
                next_step="choose another folder, or give the settings that it was made with",
            )
        return manifest

    def _trim(self) -> None:
        """Cut off what no manifest counts."""
        files = self.manifest["files"]
        for path in [*self.folder.glob("rows-*.jsonl"), self.folder / REJECTED, self.folder / FAILED]:
            if not path.exists():
                continue
            counted = files.get(path.name, {"bytes": 0})["bytes"]
            if path.stat().st_size < counted:
                raise OutputError(f"{path} is shorter than its manifest says", next_step="choose another folder")
            if path.name not in files:
                path.unlink()
            elif path.stat().st_size > counted:
                os.truncate(path, counted)
        missing = [name for name in files if not (self.folder / name).exists()]
        if missing:
            raise OutputError(f"{self.folder} has lost {missing[0]}", next_step="choose another folder")

    def _append(self, files: dict[str, Any], name: str, values: Sequence[Any]) -> None:
        if not values:
            return
        facts = files.setdefault(name, {"rows": 0, "bytes": 0})
        lines = b"".join(map(_line, values))
        with open(self.folder / name, "ab") as file:
            if file.tell() != facts["bytes"]:
                raise OutputError(f"{file.name} was changed by another process", next_step="run it again")
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)
        facts["rows"] += len(values)
        facts["bytes"] += len(lines)


def _line(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: written as an escape
        return json.dumps(value).encode() + b"\n"
