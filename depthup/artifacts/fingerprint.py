"""Fingerprints: what identifies a result. Identity is hashed, circumstance (paths, devices) is not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import sha256_of, write_json


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hex digest (64 characters) of a JSON value; the order of keys does not matter."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The settings that differ, as ``learning_rate: 0.0006 -> 0.001``, in the order of ``now``."""
    old, new = dict(flatten(before)), dict(flatten(now))
    for key in [*new, *(key for key in old if key not in new)]:
        if old.get(key) != new.get(key):
            yield f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}"


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting that differs; None if nothing does."""
    return next(differences(before, now), None)


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a JSON value with their paths, as in ``data.packages[0]``."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from flatten(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from flatten(child, f"{path}[{index}]")
    else:
        yield path, value


_NO_PART_OF_A_MODEL = frozenset({"record.json", "metrics.jsonl", "depthup.json", "merge.json", "trainer_state.json"})


class Digests:
    """SHA-256 of files, remembered in one JSON file by path, size and time, so that nothing large is read twice."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known = self._remembered()

    def _remembered(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads(self._memory.read_text())
        except (OSError, ValueError):
            return {}
        return known

    def of_checkpoint(self, folder: Path) -> str:
        """Digest of a checkpoint folder: config, weights, tokenizer, code; the model card and records are left out."""
        suffixes = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
        files = [path for path in sorted(folder.iterdir()) if path.name.endswith(suffixes) and path.is_file()]
        return fingerprint({path.name: self.of(path) for path in files if path.name not in _NO_PART_OF_A_MODEL})

    def of(self, path: Path) -> str:
        """Digest of a file."""
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns]
        key = str(path.resolve())
        if self._known.get(key, {}).get("stamp") != stamp:
            found = {"stamp": stamp, "sha256": sha256_of(path)}
            self._known = self._remembered() | self._known | {key: found}  # other stages may run beside this one
            if self._memory.parent.is_dir():
                write_json(self._memory, self._known)
        return str(self._known[key]["sha256"])


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text
