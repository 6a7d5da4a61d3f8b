"""Folders that exist only when they are whole: written beside their place, published by one rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import BusyError, DepthupError, OutputError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two writers of one folder are then not told apart
    fcntl = None  # type: ignore[assignment]


_POLL_SECONDS = 0.2


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
    there again), and so are the parents of ``out`` that were made for it. What a killed process left behind is
    cleared, or kept, by the next one in the same way.

    Args:
        out: The folder to publish. It must not exist.
        keep_partial: Keep the contents of a partial folder across attempts.

    Raises:
        OutputError: ``out`` exists, it or its parent cannot be written, or another process is writing it; also for
            an ``OSError`` in the block, such as that of a full disk.
    """
    refuse_existing(out)
    partial = partial_path(out)
    new_parents = [folder for folder in partial.parents if not os.path.lexists(folder)]
    try:
        _make(partial, out)
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
    except BaseException as error:
        for folder in new_parents:
            with contextlib.suppress(OSError, ValueError):  # another process may have put something there
                folder.rmdir()
        if isinstance(error, OSError):
            raise _unwritten(out, error) from error
        raise


def is_being_written(out: Path) -> bool:
    """Whether a process is writing ``out`` now (never told where there are no locks)."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(partial_path(out), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def made_once(out: Path, make: Callable[[Path], object]) -> None:
    """Publish ``out`` unless it is there; while another process makes the same, wait for it.

    Args:
        out: Named by what its content depends on, so that whoever made it, it is the same.
        make: Fills the partial folder, in which it may find what a stopped process left.

    Raises:
        OutputError: It cannot be written.
    """
    while not out.is_dir():
        try:
            with publishing(out, keep_partial=True) as partial:
                make(partial)
        except BusyError:
            time.sleep(_POLL_SECONDS)
        except OutputError:
            if not out.is_dir():  # else the other one was quicker
                raise


def _make(partial: Path, out: Path) -> None:
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or half a surrogate pair
        reason = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) else str(error)
        raise OutputError(f"cannot write in {out.parent}: {reason}", next_step="choose another folder") from error
    if partial.is_symlink():  # what it leads to would be cleared
        raise OutputError(f"{partial}, where {out} would be prepared, is a link", next_step="remove it")


def _unwritten(out: Path, error: OSError) -> DepthupError:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk of {out.parent} is full{where}", next_step="free space and run it again")
    if error.errno == errno.EFBIG:
        return OutputError(
            f"{out} was not written: a file is larger than the disk or `ulimit -f` allows{where}",
            next_step="choose another disk, raise the limit, or write smaller files (--max-shard-gb)",
        )
    return OutputError(
        f"{out} was not written: {error.strerror or error}{where}", next_step="put that right and run it again"
    )


@contextlib.contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    busy = BusyError(f"another process is writing {out}", next_step="wait for it to end, or choose another output")
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:  # published by the other process a moment ago
        raise busy from None
    except OSError:
        with contextlib.suppress(OSError):
            partial.rmdir()  # only if it is empty
        raise
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


@contextlib.contextmanager
def locked_file(path: Path, *, shared: bool) -> Iterator[bool]:
    """Hold a lock on a file (made if it is not there) while the block runs; yields whether it was to be had at once.

    Any number of processes hold it ``shared``, or one alone. It holds between machines wherever the file system's
    locks do: NFS from version 4 (the file is opened for writing, as NFS asks), Lustre mounted with ``flock``, GPFS,
    CephFS. A file system without locks gives it to everybody.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
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
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutputError(
            f"not enough disk at {folder}: {human_bytes(num_bytes)} needed, {human_bytes(free)} free",
            next_step=f"free {human_bytes(num_bytes - free)}, or choose an output on another disk",
        )


def allocated_bytes(folder: Path) -> int:
    """Bytes of the disk that the files of a folder take; 0 where there is no folder, or the system does not tell."""
    if not folder.is_dir():
        return 0
    return sum(getattr(path.lstat(), "st_blocks", 0) * 512 for path in folder.iterdir())


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (temporary file, fsync, rename)."""
    content = text.encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as in the name of a file that is no UTF-8: written as an escape
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


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
