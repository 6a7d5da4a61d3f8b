"""Sources: documents as they are, in a fixed order, split by their own text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from depthup.data.sources import Document, Files, HubDataset, InstalledDocs, select, split_of
from depthup.errors import DataError
from depthup.files import sha256_of

ROWS = [{"text": f"Text number {i}.", "other": i} for i in range(200)]


def write_rows(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(ROWS) if kind == "json" else lines)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_every_kind_of_file_yields_the_same_documents(tmp_path: Path, kind: str) -> None:
    documents = list(Files((str(write_rows(tmp_path, kind)),)).documents())
    assert [document.text for document in documents] == [row["text"] for row in ROWS]
    assert documents[6].name == f"rows.{kind}:7"


def test_a_folder_is_its_files_in_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "notes.pdf"):
        (tmp_path / name).write_text(name)
    assert [document.text for document in Files((str(tmp_path),)).documents()] == ["a.txt", "b.txt"]


def test_a_data_set_is_read_by_name(tmp_path: Path) -> None:
    """By the library's own rule a folder is a name, too; no network is needed."""
    pytest.importorskip("datasets")
    write_rows(tmp_path, "jsonl")
    documents = list(HubDataset(str(tmp_path)).documents())
    assert [document.text for document in documents] == [row["text"] for row in ROWS]
    with pytest.raises(DataError, match="no text in 'txt'"):
        list(HubDataset(str(tmp_path), field="txt").documents())
    with pytest.raises(DataError, match="cannot read the data set no-one/no-such-set"):
        list(HubDataset("no-one/no-such-set").documents())


def test_documentation_is_read_without_importing_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "explosive"
    package.mkdir()
    (package / "__init__.py").write_text(f'"""{"A long docstring. " * 40}"""\nraise SystemExit("was imported")\n')
    (package / "template.py").write_text("{{ no python }}")
    monkeypatch.syspath_prepend(tmp_path)
    (document,) = InstalledDocs(("explosive",)).documents()
    assert document.text.startswith("A long docstring.")
    assert document.name == "explosive/__init__.py:module"


def test_the_language_reference_is_there() -> None:
    documents = list(InstalledDocs(("python",)).documents())
    assert len(documents) > 50
    assert any("list comprehension" in document.text.lower() for document in documents)


def test_the_split_is_a_function_of_the_text_alone() -> None:
    sides = [split_of(row["text"], 0.25) for row in ROWS]
    assert sides == [split_of(row["text"], 0.25) for row in ROWS]
    assert 20 < sides.count("held_out") < 80
    # A larger share keeps what was held out before.
    wider = [split_of(row["text"], 0.5) for row in ROWS]
    assert all(after == "held_out" for before, after in zip(sides, wider, strict=True) if before == "held_out")


def test_no_text_stands_on_both_sides_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS + ROWS))
    train, held_out = (list(select(Files((str(path),)), side, 0.3)) for side in ("train", "held_out"))
    texts = [document.text for document in train + held_out]
    assert sorted(texts) == sorted(row["text"] for row in ROWS)
    assert [document.text for document in select(Files((str(path),)), "train", 0.3, 5)] == [d.text for d in train[:5]]


def test_identity_follows_the_content_not_the_path(tmp_path: Path) -> None:
    paths = [tmp_path / name / "rows.jsonl" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        write_rows(path.parent, "jsonl")
    first, second = (Files((str(path),)).identity(sha256_of) for path in paths)
    assert first == second
    paths[1].write_text('{"text": "changed"}\n')
    assert Files((str(paths[1]),)).identity(sha256_of) != first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "good"}\n{"txt": "misnamed"}\n', "row 2 of .*rows.jsonl has no text in the field 'text'.*'txt'"),
        ('{"text": "good"}\n{"text": 7}\n', "row 2 of"),
        ('{"text": "good"}\nno json\n', "cannot read .*rows.jsonl"),
        ('{"text": "good"}\n{"text": "\\ud800"}\n', "row 2 of .* surrogate"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        list(Files((str(tmp_path / "rows.jsonl"),)).documents())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Files(("no/such/file.jsonl",)), "there is no file no/such/file.jsonl"),
        (InstalledDocs(("no_such_package",)), "no installed package is called 'no_such_package'"),
        (InstalledDocs(("../escape",)), "no installed package"),
    ],
)
def test_a_missing_source_is_named(source: Files | InstalledDocs, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(source.documents())


def test_the_shared_english_text_is_read(shared_data) -> None:
    documents = list(Files((str(shared_data("pretrain/wiki_demo.jsonl.gz")),)).documents())
    assert len(documents) == 30
    assert isinstance(documents[0], Document)
