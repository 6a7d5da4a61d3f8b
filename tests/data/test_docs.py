"""docs/data.md: its examples run, and its tables name every format and template."""

from __future__ import annotations

import re
from pathlib import Path

import pico
import pytest

from depthup.data.conversations import COLUMNS, FORMATS, Columns
from depthup.data.templates import TEMPLATES

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pico.checkpoint(tmp_path / "base", tokenizer=True)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 5
    exec("\n".join(blocks), {})


def test_the_tables_name_every_format_with_its_keys_and_every_template() -> None:
    formats = {cells[0].strip("`"): cells[1] for cells in rows_of("From rows to conversations")}
    assert list(formats) == list(FORMATS)
    for name, columns in COLUMNS.items():
        assert isinstance(columns, Columns)
        for key in (columns.prompt, columns.completion, *([columns.instances] if columns.instances else [])):
            assert re.search(rf"\b{key}\b", formats[name]), (name, key)
    ends = {cells[0].strip("`"): cells[1].strip("`").replace("\\", "") for cells in rows_of("Chat templates")}
    assert ends == {name: each.end_of_turn.replace("{eos}", "the end of sequence") for name, each in TEMPLATES.items()}
