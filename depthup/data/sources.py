"""Where documents come from: text files, Hugging Face data sets, and the documentation that is installed with Python.

A source is a small frozen value with ``documents()`` and ``identity()``: what its text depends on, for fingerprints.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import DataError, nearest

Split = Literal["train", "held_out"]
_NOT_DOCUMENTATION = frozenset({"test", "tests", "site-packages"})


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and a name that finds it again in its source."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it lies in its source: what its file, or its data set, holds there.

    Attributes:
        name: Finds it again in its source, as in ``rows.jsonl:7``.
        place: The same for messages, as in ``row 7 of data/rows.jsonl``.
        value: As read; a mapping of fields where the file is in order.
    """

    name: str
    place: str
    value: Any


class Source(Protocol):
    """Anything that yields documents in a fixed order."""

    def documents(self) -> Iterator[Document]: ...

    def identity(self, digest: Callable[[Path], str]) -> dict[str, Any]:
        """JSON that changes when the text does; ``digest`` gives the SHA-256 of a file."""
        ...


@dataclass(frozen=True)
class InstalledDocs:
    """Documentation that installed packages carry; nothing is imported or run, sources are read as text.

    Attributes:
        packages: ``python`` stands for the language reference (``pydoc_data.topics``), ``stdlib`` for the docstrings
            of the standard library, any other name for the docstrings of that installed package.
        min_characters: Shorter docstrings are left out.
    """

    packages: tuple[str, ...] = ("python",)
    min_characters: int = 400

    def documents(self) -> Iterator[Document]:
        """Each topic, and each docstring, as one document.

        Raises:
            DataError: A package is not installed.
        """
        for package in self.packages:
            if package == "python":
                yield from _topics()
                continue
            folder = _package_folder(package)
            for path in sorted(folder.rglob("*.py")):
                place = path.relative_to(folder)
                if not _NOT_DOCUMENTATION.intersection(place.parts):
                    yield from self._docstrings(path, f"{package}/{place}")

    def identity(self, digest: Callable[[Path], str]) -> dict[str, Any]:
        versions = {
            package: sys.version.split()[0] if package in ("python", "stdlib") else _installed_version(package)
            for package in self.packages
        }
        return {"source": "installed-docs", "versions": versions, "min_characters": self.min_characters}

    def _docstrings(self, path: Path, name: str) -> Iterator[Document]:
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            return  # templates and files for other Python versions lie among the sources
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, kinds) and len(text := ast.get_docstring(node) or "") >= self.min_characters:
                yield Document(f"{name}:{getattr(node, 'name', 'module')}", inspect.cleandoc(text))


@dataclass(frozen=True)
class Files:
    """Local files: ``.jsonl`` and ``.json`` (rows with a text field), ``.txt``, each also with ``.gz``; ``.parquet``.

    Attributes:
        paths: Files, or folders whose files of these kinds are taken in order of their names.
        field: The row's field that holds the text.
    """

    paths: tuple[str, ...]
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        """Each row, or each text file, as one document; rows with an empty text are passed over.

        Raises:
            DataError: A file is missing or unreadable, or a row has no such field (file and row are named).
        """
        for row in self.rows():
            fields = row.value if isinstance(row.value, Mapping) else {}
            text = fields.get(self.field)
            if not isinstance(text, str):
                raise DataError(
                    f"{row.place} has no text in the field '{self.field}'{nearest(self.field, fields)}",
                    allowed=f"one of its fields: {(', '.join(fields) or type(row.value).__name__)[:200]}",
                    next_step="name the field in the recipe: field: ...",
                )
            require_text(text, row.place)
            if text:
                yield Document(row.name, text)

    def rows(self) -> Iterator[Row]:
        """Each row of each file as it lies there; a text file is one row.

        Raises:
            DataError: A file is missing or unreadable.
        """
        for path in self.files():
            for number, value in _rows(path):
                yield Row(f"{path.name}:{number}", f"row {number} of {path}", value)

    def identity(self, digest: Callable[[Path], str]) -> dict[str, Any]:
        files = [{"kind": _kind(path), "sha256": digest(path)} for path in self.files()]
        return {"source": "files", "files": files, "field": self.field}

    def files(self) -> list[Path]:
        """The files themselves.

        Raises:
            DataError: One is missing, or of no kind that is read.
        """
        found: list[Path] = []
        for path in map(Path, self.paths):
            if path.is_dir():
                found += sorted(child for child in path.iterdir() if _kind(child))
            elif path.is_file() and _kind(path):
                found.append(path)
            else:
                raise DataError(
                    f"cannot read {path}" if path.exists() else f"there is no file {path}",
                    allowed=".jsonl, .json, .txt (each also with .gz), .parquet, or a folder of them",
                    next_step="check the paths in the recipe; they are relative to the working folder",
                )
        if not found:
            raise DataError(f"no text files in {', '.join(self.paths)}", allowed=".jsonl, .json, .txt, .parquet")
        return found


@dataclass(frozen=True)
class HubDataset:
    """A data set by its name on the Hugging Face Hub, streamed (needs the package ``datasets``).

    Attributes:
        name: As in ``HuggingFaceFW/fineweb-edu``.
        config: The data set's configuration, if it has several.
        split: The data set's split.
        field: The column that holds the text.
        revision: A commit; without it, what the hub serves on the day of the first run is used.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None

    def documents(self) -> Iterator[Document]:
        """Each row as one document.

        Raises:
            DataError: The package is missing, the hub is out of reach, or a row has no such column.
        """
        for row in self.rows():
            if not isinstance(row.value.get(self.field), str):
                raise DataError(f"{row.place} has no text in '{self.field}'", allowed=", ".join(row.value))
            yield Document(row.name, row.value[self.field])

    def rows(self) -> Iterator[Row]:
        """Each row as the hub serves it.

        Raises:
            DataError: The package is missing, or the hub is out of reach.
        """
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise DataError(
                "hub data sets need the package datasets", next_step="pip install 'depthup[data]'"
            ) from error
        try:
            rows = load_dataset(self.name, self.config, split=self.split, revision=self.revision, streaming=True)
            for number, value in enumerate(rows):
                yield Row(f"{self.name}:{number}", f"row {number} of {self.name}", value)
        except Exception as error:  # datasets raises many kinds: no network, no such name, no such config
            raise DataError(
                f"cannot read the data set {self.name}: {error}", next_step="check its name and the network"
            ) from error

    def identity(self, digest: Callable[[Path], str]) -> dict[str, Any]:
        return {"source": "hub", "name": self.name, "config": self.config, "split": self.split, "field": self.field,
                "revision": self.revision}  # fmt: skip


def require_text(text: str, place: str) -> None:
    """Raise :class:`DataError` for a text that no tokenizer takes."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(
            f"{place} holds half of a surrogate pair, which is no text", next_step="write the row again as valid UTF-8"
        )


def split_of(text: str, held_out: float) -> Split:
    """The side of a document: a fixed function of its text, so that equal texts never stand on both sides.

    Args:
        text: The document.
        held_out: Share of documents, from 0 to 1, that is held out.
    """
    digest = hashlib.sha256(text.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < held_out * 2**64 else "train"


def select(source: Source, split: Split, held_out: float, max_documents: int | None = None) -> Iterator[Document]:
    """The documents of one side, exact repetitions left out, at most ``max_documents`` of them."""
    seen: set[bytes] = set()
    for document in source.documents():
        if split_of(document.text, held_out) != split:
            continue
        digest = hashlib.sha256(document.text.encode()).digest()[:16]
        if digest in seen:
            continue
        if max_documents is not None and len(seen) >= max_documents:
            return
        seen.add(digest)
        yield document


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(f"python/topics:{name}", topics[name].strip())


def _package_folder(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"no installed package is called '{package}'",
            allowed="python, stdlib, or the import name of an installed package",
            next_step=f"install it, or take '{package}' out of packages",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _installed_version(package: str) -> str:
    _package_folder(package)
    owners = importlib.metadata.packages_distributions().get(package, [package])
    try:
        return importlib.metadata.version(owners[0])
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    kind = name.rpartition(".")[2]
    return kind if kind in ("jsonl", "json", "txt") or path.name.endswith(".parquet") else None


def _rows(path: Path) -> Iterable[tuple[int, Any]]:
    """(row number from 1, row) of a file of any kind; a text file is one row."""
    kind = _kind(path)
    try:
        if kind == "parquet":
            yield from _parquet_rows(path)
            return
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            if kind == "txt":
                yield 1, {"text": file.read()}
            elif kind == "json":
                yield from enumerate(json.load(file), 1)
            else:
                yield from ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error}", next_step="repair the file, or take it out of paths") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("parquet files need the package pyarrow", next_step="pip install 'depthup[data]'") from error
    number = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield number, row
