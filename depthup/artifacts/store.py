"""The store: one folder for each result, named by its fingerprint, so that going back to old settings costs nothing.

Layout: ``store/<stage>/<first 12 of fingerprint>/`` holds the result and ``record.json``; ``store/<stage>/latest`` is
a link to the result used last; ``store/tokens/`` keeps tokenized text. Runs hold ``store/.lock`` together, whoever
removes something holds it alone. With a mirror, results that lie there count as made, and are copied here when needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import BusyError, OutputError
from ..files import locked_file, partial_path, publishing, write_json
from .fingerprint import Digests
from .mirror import Mirror
from .record import Record, read_record

LATEST = "latest"
_LOCK = ".lock"
_DIGESTS = "digests.json"
_ADOPTED = "adopted.json"
_LIGHT = ".light"
_POLL_SECONDS = 0.5


class Store:
    """Results below ``root``, which is made when the first one is written, and in a mirror if there is one."""

    def __init__(self, root: Path, mirror: Mirror | None = None) -> None:
        self.root = root
        self.mirror = mirror
        self.digests = Digests(root / _DIGESTS)

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Where the result with this fingerprint lies, or will."""
        return self.root / stage / fingerprint[:12]

    def find(self, stage: str, fingerprint: str) -> Record | None:
        """The record of a whole result that lies here, or None."""
        record = read_record(self.folder(stage, fingerprint))
        return record if record is not None and record.fingerprint == fingerprint else None

    def known(self, stage: str, fingerprint: str) -> Record | None:
        """The record of a whole result, here or in the mirror, or None."""
        record = self.find(stage, fingerprint)
        return record if record is not None or self.mirror is None else self.mirror.find(stage, fingerprint)

    def place(self, stage: str, fingerprint: str) -> str:
        """Where a known result lies, to tell people."""
        folder = self.folder(stage, fingerprint)
        return str(folder) if self.mirror is None or folder.exists() else f"{self.mirror.address} ({folder.name})"

    def bring(self, stage: str, fingerprint: str, *, progress: bool = False) -> None:
        """Copy a result that is known from the mirror, unless it lies here."""
        while self.find(stage, fingerprint) is None:
            assert self.mirror is not None, "what is known and not here is in the mirror"
            try:
                with self.making(stage, fingerprint, keep_partial=False) as folder:
                    self.mirror.fetch(stage, fingerprint, folder, progress=progress)
            except BusyError:  # another process brings it
                time.sleep(_POLL_SECONDS)

    def to_read(self, stage: str, fingerprint: str) -> Path:
        """A folder with the small files of a result that is known: enough to tell about it."""
        here, light = self.folder(stage, fingerprint), self.root / _LIGHT / stage / fingerprint[:12]
        if self.mirror is None or here.exists():
            return here
        if not light.exists():
            light.parent.mkdir(parents=True, exist_ok=True)
            with publishing(light) as partial:
                self.mirror.fetch(stage, fingerprint, partial, light=True)
        return light

    def share(self, stage: str, fingerprint: str, *, progress: bool = False) -> None:
        """Copy a result that lies here to the mirror, if there is one and it has none."""
        if self.mirror is not None and self.find(stage, fingerprint) is not None:
            self.mirror.put(stage, fingerprint, self.folder(stage, fingerprint), progress=progress)
            self.mirror.forget_state(stage, fingerprint)

    def bring_state(self, stage: str, fingerprint: str) -> None:
        """Copy the saved state of a stopped run from the mirror, if there is one there and none here."""
        partial = partial_path(self.folder(stage, fingerprint))
        if self.mirror is None or partial.exists():
            return
        fetched = partial.with_suffix(".fetched")
        shutil.rmtree(fetched, ignore_errors=True)
        if self.mirror.fetch_state(stage, fingerprint, fetched):
            os.rename(fetched, partial)

    def keeping_state(self, stage: str, fingerprint: str) -> contextlib.AbstractContextManager[None]:
        """While the block runs, saved states of the stage go to the mirror, if there is one."""
        if self.mirror is None:
            return contextlib.nullcontext()
        return self.mirror.keeping(stage, fingerprint, partial_path(self.folder(stage, fingerprint)))

    def adopted(self, stage: str, fingerprint: str) -> Record | None:
        """The record of the checkpoint that stands for the result with this fingerprint, or None."""
        taken = self._adopted(stage).get(fingerprint)
        return self.known(stage, taken) if taken else None

    def stand_for(self, stage: str, fingerprint: str, adopted: str) -> None:
        """Note that a result of the stage, adopted from elsewhere, stands for the one with this fingerprint."""
        write_json(self.root / stage / _ADOPTED, self._adopted(stage) | {fingerprint: adopted})

    def _adopted(self, stage: str) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self.root / stage / _ADOPTED).read_text())
        except (OSError, ValueError):
            return {}
        return found

    def is_partial(self, stage: str, fingerprint: str) -> bool:
        """Whether a stopped run left a saved state for this result, here or in the mirror."""
        partial = partial_path(self.folder(stage, fingerprint))
        if partial.exists() or self.mirror is None:
            return any(partial.glob("state/step-*/committed.json"))
        return self.mirror.has_state(stage, fingerprint)

    def leftovers(self) -> list[Path]:
        """Partial folders of stopped runs, those of settings that no recipe has any more included."""
        return sorted(path for path in self.root.glob("*/.*.partial") if any(path.iterdir()))

    def newest(self, stage: str) -> Record | None:
        """The record of the result of this stage that was made last, whatever its settings were."""
        folders = [path for path in (self.root / stage).glob("*") if not path.is_symlink() and path.is_dir()]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
            if record := read_record(folder):
                return record
        return None

    @contextlib.contextmanager
    def making(self, stage: str, fingerprint: str, *, keep_partial: bool) -> Iterator[Path]:
        """A partial folder that becomes the result when the block ends without an error."""
        final = self.folder(stage, fingerprint)
        final.parent.mkdir(parents=True, exist_ok=True)
        with publishing(final, keep_partial=keep_partial) as partial:
            yield partial

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While the block runs, nothing is removed from the store; made if it is not there, and gone again if nothing
        came into it.

        Raises:
            OutputError: Something is being removed from it now.
        """
        is_new = not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with locked_file(self.root / _LOCK, shared=True) as is_ours:
                if not is_ours:
                    raise OutputError(f"`depthup gc` is cleaning {self.root}", next_step="wait for it to end")
                yield
        finally:
            own = {_LOCK, _DIGESTS}
            if is_new and own.issuperset(path.name for path in self.root.iterdir()):
                with contextlib.suppress(OSError):  # another run has begun to fill it
                    for name in own:
                        (self.root / name).unlink(missing_ok=True)
                    self.root.rmdir()

    @contextlib.contextmanager
    def cleaning(self, only_look: bool = False) -> Iterator[None]:
        """While the block runs, no run uses the store, so that what none needs can be removed.

        Raises:
            OutputError: There is no such store, or a run uses it (told only if something will be removed).
        """
        if not self.root.is_dir():
            raise OutputError(f"there is no store {self.root}", next_step="name it with --store DIR")
        if only_look:
            yield
            return
        with locked_file(self.root / _LOCK, shared=False) as is_ours:
            if not is_ours:
                raise OutputError(f"a run uses the store {self.root}", next_step="wait for it to end, or --dry-run")
            yield

    def point_to(self, stage: str, fingerprint: str) -> None:
        """Let ``<stage>/latest`` lead to this result (left out where the system has no links)."""
        link = self.root / stage / LATEST
        if not self.folder(stage, fingerprint).exists():
            return
        if os.path.islink(link) and os.readlink(link) == fingerprint[:12]:
            return
        temporary = link.with_name(f".{LATEST}.tmp")
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(fingerprint[:12], target_is_directory=True)
            os.replace(temporary, link)
