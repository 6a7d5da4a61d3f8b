"""What a server has of a model: the files of a hub repository at one commit, or of any folder behind a URL.

The hub's addresses are those that huggingface_hub uses: ``/api/models/NAME/revision/REVISION`` tells the commit,
``/api/models/NAME/tree/COMMIT`` sizes and checksums, ``/NAME/resolve/COMMIT/FILE`` redirects to the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, TypeVar
from urllib.parse import quote

from ..errors import CheckpointError
from .answers import Checksum, RemoteFile
from .carry import goes_along
from .parallel import run_all
from .plain_json import MAX_JSON_BYTES, object_of
from .reader import INDEX_NAME, SINGLE_NAME, index_map
from .remote import UNWANTED, WANTED
from .web import Web

# A server that is no hub lists no files: these are asked for, and the modules that the config names.
_ASKED_FOR = (
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "adapter_config.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "depthup.json", "generation_config.json", "hf_quant_config.json", "kv_cache_scales.json",
    "merges.txt", "modules.json", "preprocessor_config.json", "processor_config.json", "quant_config.json",
    "quantization_config.json", "quantize_config.json", "special_tokens_map.json", "spiece.model", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
_NUM_CONNECTIONS = 8  # for small files; most of the time is waiting

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteModel:
    """A model on a server, pinned to one version.

    Attributes:
        name: ``owner/name`` on the hub, or the URL of a folder.
        revision: The commit, on the hub.
        files: Weights and all that goes along, by name.
        web: The client to read them with.
        headers: The first bytes of each shard, to the end of its header.
    """

    name: str
    revision: str | None
    files: Mapping[str, RemoteFile]
    web: Web = field(repr=False, compare=False)
    headers: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def carried(self) -> tuple[RemoteFile, ...]:
        """The files that go along with the weights."""
        return tuple(file for name, file in sorted(self.files.items()) if goes_along(name))

    def describe(self) -> str:
        """Where the bytes come from, and how many, as text."""
        num_bytes = sum(self.files[shard].num_bytes for shard in self.headers)
        at = f" at commit {self.revision[:12]}" if self.revision else ""
        sums = "checksums of the hub" if self.revision else "no checksums declared"
        return f"streamed    {self.name}{at}: {num_bytes:,} bytes in {len(self.headers)} files, {sums}"


def list_hub_model(repository: str, revision: str) -> RemoteModel:
    """A model on the Hugging Face Hub (``HF_ENDPOINT``), with the user's token.

    Raises:
        CheckpointError: There is no such model or revision, no access to it, or no way to the hub.
    """
    from huggingface_hub import constants, get_token

    endpoint = constants.ENDPOINT
    web = Web(None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token(), endpoint)
    try:
        found, _ = _json(web, f"{endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}")
    except CheckpointError as error:
        raise CheckpointError(
            f"there is no folder {repository}, and the hub model could not be had: {error.problem}",
            next_step=error.next_step,
        ) from error
    commit = found.get("sha") if isinstance(found, dict) else None
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
        raise _no_hub(endpoint)
    files: dict[str, RemoteFile] = {}
    for entry in _pages(web, f"{endpoint}/api/models/{repository}/tree/{commit}"):
        match entry:
            case {"type": "file", "path": str(path), "size": int(size), "oid": str(oid), **rest}:
                if _is_wanted(path):
                    match rest.get("lfs"):
                        case {"oid": str(sha256)}:
                            sums = {"sha256": sha256}
                        case _:
                            sums = {"git_sha1": oid}
                    link = f"{endpoint}/{repository}/resolve/{commit}/{quote(path)}"
                    files[path] = RemoteFile(path, link, size, **sums)
            case {"type": "directory"}:
                pass
            case _:
                raise _no_hub(endpoint)
    return RemoteModel(repository, commit, files, web)


def list_server_model(url: str) -> RemoteModel:
    """A model in a folder behind a URL: of the files that models have, those that are there.

    Raises:
        CheckpointError: There is no ``config.json``, or the server cannot be used.
    """
    web = Web()

    def look(names: Iterable[str]) -> dict[str, RemoteFile]:
        found = for_each(web, names, lambda name: web.look(name, f"{url}/{quote(name)}"))
        return {name: file for name, file in found.items() if file is not None}

    files = look(["config.json"])
    if not files:
        raise CheckpointError(f"there is no {url}/config.json", next_step="give the URL of a checkpoint folder")
    config = object_of(f"{url}/config.json", read_document(web, files["config.json"]))
    # "auto_map": {"AutoModel": "modeling_x.XModel"}: code that comes with the model
    modules = {f"{name}.py" for name in re.findall(r'"(\w+)\.\w+"', json.dumps(config.get("auto_map")))}
    files |= look([INDEX_NAME, SINGLE_NAME, *_ASKED_FOR, *sorted(modules)])
    if INDEX_NAME in files:
        path = f"{url}/{INDEX_NAME}"
        files |= look(sorted(set(index_map(path, object_of(path, read_document(web, files[INDEX_NAME]))).values())))
    return RemoteModel(url, None, files, web)


def for_each(web: Web, names: Iterable[str], fetch: Callable[[str], T]) -> dict[str, T]:
    """``fetch`` of each name, several at a time."""
    names = list(names)
    jobs = [lambda report, name=name: fetch(name) for name in names]
    found = run_all(jobs, num_threads=_NUM_CONNECTIONS, wake=web.stop)
    web.start()
    return dict(zip(names, found, strict=True))


def read_document(web: Web, file: RemoteFile) -> bytes:
    """A small file, whole and as its server declares it.

    Raises:
        CheckpointError: It cannot be had, is something else, or large.
    """
    if file.num_bytes > MAX_JSON_BYTES:
        raise CheckpointError(f"{file.url} has {file.num_bytes:,} bytes", allowed=f"at most {MAX_JSON_BYTES:,}")
    data, checksum = web.read(file, 0, file.num_bytes), Checksum(file)
    checksum.update(data)
    checksum.require_declared()
    return data


def _json(web: Web, url: str) -> tuple[Any, str | None]:
    """A page of the hub's interface, and the address of the next (RFC 8288)."""
    data, headers = web.document(url)
    following = re.search(r'<([^<>]+)>\s*;\s*rel="?next"?', headers.get("Link", ""))
    try:
        return json.loads(data), following and following[1]
    except (ValueError, RecursionError) as error:
        raise _no_hub(url) from error


def _pages(web: Web, url: str | None) -> Iterator[Any]:
    """The entries of a list of the hub's interface."""
    while url:
        entries, following = _json(web, url)
        if not isinstance(entries, list) or (following and not entries):
            raise _no_hub(url)
        yield from entries
        url = following


def _no_hub(url: str) -> CheckpointError:
    return CheckpointError(f"{url} does not answer as the Hugging Face Hub does", next_step="check HF_ENDPOINT")


def _is_wanted(name: str) -> bool:
    wanted, unwanted = (any(fnmatch(name, like) for like in likes) for likes in (WANTED, UNWANTED))
    return wanted and not unwanted and "\\" not in name
