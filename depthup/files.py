"""Folders that exist only when they are whole: written beside their place, published by one rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two writers of one folder are then not told apart
    fcntl = None  # type: ignore[assignment]


def partial_path(out: Path) -> Path:
    """The folder in which ``out`` is prepared: hidden, beside it, hence on the same file system."""
    return out.parent / f".{out.name}.partial"


def refuse_existing(out: Path) -> None:
    """Raise :class:`OutputError` if ``out`` exists: depthup never writes over a folder."""
    if os.path.lexists(out):
        raise OutputError(
            f"the output {out} exists",
            allowed="a folder that does not exist yet",
            next_step="choose another name, or remove it",
        )


@contextlib.contextmanager
def publishing(out: Path, *, keep_partial: bool = False) -> Iterator[Path]:
    """Yield a partial folder that becomes ``out`` when the block ends without an error.

    On an error the partial folder is removed, unless ``keep_partial`` (resumable work finds its own files
    there again). What a killed process left behind is cleared, or kept, by the next one in the same way.

    Args:
        out: The folder to publish. It must not exist.
        keep_partial: Keep the contents of a partial folder across attempts.

    Raises:
        OutputError: ``out`` exists, its parent cannot be written, or another process is writing it.
    """
    refuse_existing(out)
    partial = partial_path(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write in {out.parent}: {error.strerror}", next_step="choose another folder"
        ) from error
    with _locked(partial, out):
        if not keep_partial:
            _clear(partial)
        try:
            yield partial
            refuse_existing(out)
            sync_folder(partial)
            os.rename(partial, out)
            sync_folder(out.parent)
        except BaseException:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    busy = OutputError(f"another process is writing {out}", next_step="wait for it to end, or choose another output")
    try:
        descriptor = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:  # published by the other process a moment ago
        raise busy from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        except OSError:
            pass  # a file system without locks: two writers of one folder are then not told apart
        # Between our open and our lock the other process may have published the folder: then it is not ours.
        if not partial.exists() or os.fstat(descriptor).st_ino != partial.stat().st_ino:
            raise busy
        yield
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def sync_folder(folder: Path) -> None:
    """Ask the operating system to put the folder's entries on the disk (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise :class:`OutputError` unless the disk of ``folder``, or of its nearest parent, has ``num_bytes`` free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutputError(
            f"not enough disk at {folder}: {human_bytes(num_bytes)} needed, {human_bytes(free)} free",
            next_step=f"free {human_bytes(num_bytes - free)}, or choose an output on another disk",
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (temporary file, fsync, rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human_bytes(num_bytes: float) -> str:
    """``1234567890`` -> ``1.23 GB`` (powers of 1000, as disks and hubs count)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")
