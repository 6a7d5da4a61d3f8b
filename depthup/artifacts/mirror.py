"""A mirror of a store on an object store (s3://, gs://, abfs://) or on a shared folder, through fsspec.

An object store has no rename, so what lies there counts by a file that is written last. Below the mirror's address:

    <stage>/<12 of fingerprint>/whole.json        a result: its record, the upload that holds it, bytes of each file
    <stage>/<12 of fingerprint>/<upload>/...      the files of one upload
    <stage>/.<12 of fingerprint>/whole.json       the newest saved state of a stage that was stopped, in the same form
    <stage>/.<12 of fingerprint>/<upload>/...

Each upload has a folder of its own: two machines that make the same result never mix their files, and it does not
matter which of them the last ``whole.json`` names.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from ..errors import DepthupError, OutputError
from ..files import require_space
from .record import RECORD_NAME, Record

LIGHT_BYTES = 16 << 20  # what reports read is smaller than this, weights are not
_WHOLE = "whole.json"
_COMMIT = "committed.json"
_TRANSFERS = 8
_STATE_SECONDS = 20.0


@dataclass(frozen=True)
class _Upload:
    """What a ``whole.json`` says."""

    folder: str
    files: Mapping[str, int]
    record: dict[str, Any] | None


class Mirror:
    """Results and saved states below an address.

    Args:
        address: As fsspec reads it: ``s3://bucket/folder``, ``gs://...``, ``/mnt/shared/folder``. Keys and endpoints
            come from where the protocol's own library looks for them (environment, configuration files).

    Raises:
        OutputError: fsspec, or the package of this protocol, is not installed, or there is no such protocol.
    """

    def __init__(self, address: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise OutputError("a mirror needs fsspec", next_step="pip install 'depthup[mirror]'") from error
        try:
            self._files, root = url_to_fs(address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise OutputError(
                f"the mirror {address} cannot be opened: {error}",
                next_step="install the package that it names, or give a folder",
            ) from error
        self.address, self._root = address, root.rstrip("/")
        self._found: dict[tuple[str, str], _Upload] = {}

    def find(self, stage: str, fingerprint: str) -> Record | None:
        """The record of a whole result, or None."""
        upload = self._whole(f"{stage}/{fingerprint[:12]}", fingerprint)
        try:
            record = None if upload is None or upload.record is None else Record.model_validate(upload.record)
        except ValidationError:
            return None
        return record if record is not None and record.fingerprint == fingerprint else None

    def put(self, stage: str, fingerprint: str, folder: Path, *, progress: bool = False) -> bool:
        """Copy a whole result there, unless it is there already; whether it was copied.

        Args:
            stage: Name in the recipe.
            fingerprint: Of the result.
            folder: Where it lies here, its record with it.
            progress: Whether to show a bar.
        """
        if self.find(stage, fingerprint) is not None:
            return False
        record = json.loads((folder / RECORD_NAME).read_text())
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self._upload(f"{stage}/{fingerprint[:12]}", files, record, f"{stage} to the mirror" if progress else None)
        return True

    def fetch(self, stage: str, fingerprint: str, folder: Path, *, light: bool = False, progress: bool = False) -> None:
        """Copy a result from there into an existing folder, the record last.

        Args:
            stage: Name in the recipe.
            fingerprint: Of the result; :meth:`find` has found it.
            folder: Where it shall lie.
            light: Only files below ``LIGHT_BYTES``, and no record: enough to tell about the result, not to use it.
            progress: Whether to show a bar.

        Raises:
            OutputError: A file there is not what ``whole.json`` says, or the disk is too small.
        """
        base = f"{stage}/{fingerprint[:12]}"
        upload = self._whole(base, fingerprint)
        assert upload is not None, "find comes first"
        chosen = {name: size for name, size in upload.files.items() if name != RECORD_NAME}
        if light:
            chosen = {name: size for name, size in chosen.items() if size < LIGHT_BYTES}
        self._download(base, upload.folder, chosen, folder, f"{stage} from the mirror" if progress else None)
        if not light:
            Record.model_validate(upload.record).write(folder)

    def put_state(self, stage: str, fingerprint: str, partial: Path) -> bool:
        """Copy what an unfinished stage needs to go on: its newest saved state, and its small files; whether it did."""
        states = sorted(partial.glob(f"state/step-*/{_COMMIT}"), key=lambda path: int(path.parent.name[5:]))
        if not states:
            return False
        newest = states[-1].parent
        files = {
            path.relative_to(partial).as_posix(): path
            for path in partial.rglob("*")
            if path.is_file() and (newest in path.parents or partial / "state" not in path.parents)
        }
        base = f"{stage}/.{fingerprint[:12]}"
        before = self._whole(base, fingerprint)
        self._upload(base, files, {"fingerprint": fingerprint, "state": newest.name}, None)
        if before is not None:
            with suppress(OSError):
                self._files.rm(f"{self._root}/{base}/{before.folder}", recursive=True)
        return True

    def has_state(self, stage: str, fingerprint: str) -> bool:
        """Whether a saved state lies there."""
        return self._whole(f"{stage}/.{fingerprint[:12]}", fingerprint) is not None

    def fetch_state(self, stage: str, fingerprint: str, partial: Path) -> bool:
        """Copy the saved state from there, its commit mark last; whether there was one."""
        base = f"{stage}/.{fingerprint[:12]}"
        upload = self._whole(base, fingerprint)
        if upload is None:
            return False
        marks = {name: size for name, size in upload.files.items() if PurePosixPath(name).name == _COMMIT}
        rest = {name: size for name, size in upload.files.items() if name not in marks}
        for files in (rest, marks):
            self._download(base, upload.folder, files, partial, None)
        return True

    @contextmanager
    def keeping(self, stage: str, fingerprint: str, partial: Path) -> Iterator[None]:
        """While the block runs, copy each newly saved state of the stage there; once more when it is stopped.

        A copy that fails is left to the next one: training goes on without the mirror.
        """
        ended, done = threading.Event(), ""

        def look() -> None:
            nonlocal done
            newest = max((path.parent.name for path in partial.glob(f"state/step-*/{_COMMIT}")), default="")
            if newest and newest != done:
                with suppress(OSError, DepthupError):  # rotated away meanwhile, or the network: the next one counts
                    if self.put_state(stage, fingerprint, partial):
                        done = newest

        def watch() -> None:
            while not ended.wait(_STATE_SECONDS):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            thread.join()
            look()
            raise
        finally:
            ended.set()
            thread.join()

    def forget_state(self, stage: str, fingerprint: str) -> None:
        """Remove the saved state of a stage that is made."""
        with suppress(OSError):
            self._files.rm(f"{self._root}/{stage}/.{fingerprint[:12]}", recursive=True)

    def _whole(self, base: str, fingerprint: str) -> _Upload | None:
        """What ``whole.json`` below ``base`` says; results are remembered, states change."""
        key = (base, fingerprint)
        if key in self._found:
            return self._found[key]
        try:
            text = self._files.cat_file(f"{self._root}/{base}/{_WHOLE}")
        except FileNotFoundError:
            return None
        except Exception as error:  # each protocol's package raises kinds of its own
            raise self._unreachable(error) from error
        try:
            said = json.loads(text)
            upload = _Upload(str(said["upload"]), {str(k): int(v) for k, v in said["files"].items()}, said["record"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if not isinstance(upload.record, dict) or upload.record.get("fingerprint") != fingerprint:
            return None
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in upload.files):
            raise OutputError(
                f"{self.address}/{base}/{_WHOLE} names files outside its folder",
                next_step="remove it: it is not depthup's",
            )
        if "state" not in upload.record:
            self._found[key] = upload
        return upload

    def _upload(self, base: str, files: Mapping[str, Path], record: dict[str, Any], label: str | None) -> None:
        upload = uuid.uuid4().hex[:12]
        target = f"{self._root}/{base}/{upload}"
        sizes = {name: path.stat().st_size for name, path in files.items()}

        def send(name: str) -> int:
            self._files.put_file(str(files[name]), f"{target}/{name}")
            return sizes[name]

        try:
            for folder in sorted({str(PurePosixPath(f"{target}/{name}").parent) for name in files}):
                self._files.makedirs(folder, exist_ok=True)
            _transfer(send, sizes, label)
            for name, size in sizes.items():
                if self._files.size(f"{target}/{name}") != size:
                    raise OSError(f"{name} did not arrive whole")
            said = json.dumps({"upload": upload, "files": sizes, "record": record}, indent=1)
            self._files.pipe_file(f"{self._root}/{base}/{_WHOLE}", said.encode())
        except Exception as error:
            raise self._unreachable(error) from error

    def _download(self, base: str, upload: str, sizes: Mapping[str, int], folder: Path, label: str | None) -> None:
        require_space(folder, sum(sizes.values()))

        def receive(name: str) -> int:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{self._root}/{base}/{upload}/{name}", str(path))
            if path.stat().st_size != sizes[name]:
                raise OutputError(
                    f"{self.address}/{base}/{upload}/{name} has {path.stat().st_size:,} bytes, not {sizes[name]:,}",
                    next_step=f"remove {self.address}/{base} and run again where the result was made",
                )
            return sizes[name]

        try:
            _transfer(receive, sizes, label)
        except DepthupError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> OutputError:
        return OutputError(
            f"the mirror {self.address} did not do it: {error}",
            next_step="what is made is kept here; run again when it answers, or without --mirror",
        )


def _transfer(one: Any, sizes: Mapping[str, int], label: str | None) -> None:
    """Move files several at a time, the largest first, with a bar of bytes if it has a label."""
    from tqdm import tqdm

    names = sorted(sizes, key=lambda name: -sizes[name])
    bar = tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc=label, leave=False, disable=label is None)
    with bar, ThreadPoolExecutor(_TRANSFERS) as pool:
        for moved in pool.map(one, names):
            bar.update(moved)
