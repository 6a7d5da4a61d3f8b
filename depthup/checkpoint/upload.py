"""A folder to the Hugging Face Hub: which files go, what must not go, and sending each of them once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OutputError
from ..files import human_bytes, sha256_of
from .remote import WANTED

BESIDE = ("README.md", ".eval_results/*.yaml")  # what a model's folder has beside its checkpoint, and the Hub reads
NOT_SENT = ("record.json", "done.json", "metrics.jsonl")  # of a store: they tell of the machine that they lie on
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LARGEST_TEXT = 64 << 20
_VOCABULARIES = ("tokenizer.json", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.tiktoken")
# Kind of a secret -> what it looks like. To add one, add its row.
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an OpenAI or Anthropic key": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{24,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a password in an address": r"\bhttps?://[^\s/:@\"']+:[^\s/@\"']+@",
}
_ROOTS = "home|root|Users|mnt|media|tmp|data|work|workspace|scratch|opt|srv|gpfs|lustre|private|var/tmp|nfs"
_PATH = re.compile(
    rf"(?<![\w.:/~-])/(?:{_ROOTS})/[\w.@-][^\s\"'<>,;)\]}}]*|(?<!\w)[A-Za-z]:\\{{1,2}}[A-Za-z][\w\\.@ -]+"
)
_SECRET = re.compile("|".join(f"({pattern})" for pattern in SECRETS.values()))


@dataclass(frozen=True)
class File:
    """One file that goes: where it lies, its name in the repository, its bytes."""

    path: Path
    name: str
    num_bytes: int


@dataclass(frozen=True)
class Upload:
    """What would be sent.

    Attributes:
        repository: ``owner/name``.
        private: Whether only its owner may see it.
        files: What goes, by name.
        left_out: Names in the folder that do not go.
    """

    repository: str
    private: bool
    files: tuple[File, ...]
    left_out: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)

    def describe(self) -> str:
        """Every file with its size, and what stays."""
        width = max((len(file.name) for file in self.files), default=0)
        lines = [f"  {file.name:<{width}}  {human_bytes(file.num_bytes):>10}" for file in self.files]
        kind = "private" if self.private else "public"
        head = f"{self.repository} ({kind}): {len(self.files)} files, {human_bytes(self.num_bytes)}"
        stays = [f"not sent: {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join([head, *lines, *stays])


def plan_upload(
    folder: Path, repository: str, *, private: bool = False, extra: Mapping[str, Path] | None = None
) -> Upload:
    """The files of a checkpoint folder that go to a repository; nothing is read but names and sizes.

    Args:
        folder: A checkpoint.
        repository: ``owner/name``.
        private: Whether only its owner may see it.
        extra: Files from elsewhere by their name there; they take the place of files of the same name.

    Raises:
        CheckpointError: The name is none of the Hub.
    """
    if not _NAME.fullmatch(repository) or ".." in repository or "--" in repository:
        raise CheckpointError(f"'{repository}' is no name on the Hub", allowed="owner/name, as in upstage/SOLAR-10.7B")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    wanted = {name: path for name, path in found.items() if _goes(name)} | dict(extra or {})
    files = tuple(File(path, name, path.stat().st_size) for name, path in sorted(wanted.items()))
    return Upload(repository, private, files, tuple(sorted(found.keys() - wanted.keys())))


def _goes(name: str) -> bool:
    if name in NOT_SENT:
        return False
    return any(fnmatch(name, pattern) for pattern in BESIDE) or (
        "/" not in name and not name.startswith(".") and any(fnmatch(name, pattern) for pattern in WANTED)
    )


# -- what must not go -------------------------------------------------------------------------------------------------


def find_leaks(files: Sequence[File], allowed: Sequence[str] = ()) -> list[str]:
    """Secrets, and paths of this machine, in what would be sent; a line for each first of a kind in a file.

    Of weights the header is read. Of vocabularies no path is told: their words may look like some.

    Args:
        files: What would be sent.
        allowed: Texts that may stand there; a finding that contains one is none.
    """
    return [line for file in files for line in _leaks_of(file, allowed)]


def _leaks_of(file: File, allowed: Sequence[str]) -> Iterator[str]:
    text = _text_of(file)
    for number, kind in enumerate(SECRETS, 1):
        found = next((one[0] for one in _SECRET.finditer(text) if one.lastindex == number), None)
        if found and not any(part in found for part in allowed):
            yield f"{file.name}: {kind}, {found[:6]}..."
    if not any(fnmatch(Path(file.name).name, pattern) for pattern in _VOCABULARIES):
        paths = [one[0] for one in _PATH.finditer(text) if not any(part in one[0] for part in allowed)]
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            yield f"{file.name}: a path of this machine, {paths[0][:120]}{more}"


def _text_of(file: File) -> str:
    with open(file.path, "rb") as source:
        if file.name.endswith(".safetensors"):
            size = min(int.from_bytes(source.read(8), "little"), _LARGEST_TEXT)
            return source.read(size).decode("utf-8", "replace")
        return source.read(_LARGEST_TEXT).decode("utf-8", "replace")


# -- sending ----------------------------------------------------------------------------------------------------------


def send(
    upload: Upload, token: str, message: str, *, tell: Callable[[str], object] = print, advance: Any = None
) -> str:
    """Send what the repository does not have yet, in one commit; a stopped run sends no whole file again.

    Large files go first, one by one: the Hub keeps each that came whole, and asks for none that it has.

    Args:
        upload: What goes.
        token: Of the Hub, with the right to write.
        message: Of the commit.
        tell: Receives a line for each file that is sent or there already.
        advance: Receives the bytes of each file that is done.

    Returns:
        The repository's address.

    Raises:
        OutputError: The Hub refuses, is out of reach, or the repository is public and should be private.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    try:
        address = str(api.create_repo(upload.repository, private=upload.private or None, exist_ok=True))
        if upload.private and not api.model_info(upload.repository).private:
            raise OutputError(
                f"{upload.repository} is public, and --private is asked for",
                next_step="make it private on the Hub, or choose another name",
            )
        there = {one.path: one for one in api.list_repo_tree(upload.repository, recursive=True)}
        operations = []
        for file in upload.files:
            if _is_there(file, there.get(file.name)):
                tell(f"there already: {file.name}")
            else:
                operations.append(CommitOperationAdd(file.name, str(file.path)))
                api.preupload_lfs_files(upload.repository, operations[-1:])  # small files wait for the commit
            if advance is not None:
                advance(file.num_bytes)
        if operations:
            api.create_commit(upload.repository, operations, commit_message=message)
    except OutputError:
        raise
    except Exception as error:  # the hub library raises many kinds: no network, no rights, an upload cut off
        raise _refused(upload.repository, error) from error
    for operation in operations:
        tell(f"sent: {operation.path_in_repo}")
    return address


def _is_there(file: File, known: Any) -> bool:
    """Whether the repository has these bytes under this name, by the digest that it states."""
    if known is None or getattr(known, "size", None) != file.num_bytes:
        return False
    if known.lfs is not None:
        return bool(known.lfs.sha256 == sha256_of(file.path))
    data = file.path.read_bytes()
    return bool(known.blob_id == hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest())


def _refused(repository: str, error: BaseException) -> OutputError:
    chain, cause = [error], error.__cause__ or error.__context__
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    status = next((one for each in chain if (one := _status_of(each))), 0)
    steps = {
        401: "the token in HF_TOKEN is not valid: make one with the right to write",
        403: "the token may not write there: choose another owner, or a token with the right to write",
        404: "check the owner's name",
    }
    reason = " ".join((str(each) or type(each).__name__).splitlines()[0] for each in chain[:2])
    next_step = steps.get(status, "run it again: what was sent is not sent again")
    return OutputError(f"the Hub does not take {repository}: {reason}", next_step=next_step)


def _status_of(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
