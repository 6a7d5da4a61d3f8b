"""Pickle weights become safetensors that load to the same model; anything but plain tensors is refused, unread."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pico
import pytest
import torch

from depthup.checkpoint.check import check_checkpoint
from depthup.checkpoint.reader import open_checkpoint
from depthup.conversion.pickles import import_pickles
from depthup.errors import CheckpointError, OutputError


def pickled(base: Path, folder: Path, num_files: int) -> Path:
    folder.mkdir()
    state = pico.load(base).state_dict()  # tied tensors share memory in it
    names = sorted(state)
    for number in range(num_files):
        part = {name: state[name] for name in names[number::num_files]}
        file = "pytorch_model.bin" if num_files == 1 else f"pytorch_model-{number + 1:05}-of-{num_files:05}.bin"
        torch.save(part, folder / file)
    if num_files > 1:
        (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "config.json").write_text((base / "config.json").read_text())
    (folder / "LICENSE").write_text("licence")
    return folder


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize("num_files", [1, 3])
def test_the_same_model_comes_back(base, tmp_path: Path, family: str, num_files: int) -> None:
    source = pickled(base(family), tmp_path / "old", num_files)
    assert import_pickles(source, tmp_path / "new") == len(pico.load(base(family)).state_dict())
    assert check_checkpoint(tmp_path / "new") == []
    ids = pico.tokens()
    assert torch.equal(pico.load(tmp_path / "new")(ids).logits, pico.load(base(family))(ids).logits)
    assert (tmp_path / "new" / "LICENSE").exists()
    assert not (tmp_path / "new" / "pytorch_model.bin.index.json").exists()


class Explosive:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_code_in_a_pickle_is_not_run(base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = pickled(base("llama"), tmp_path / "old", 1)
    for content in (pickle.dumps({"weight": Explosive()}), pickle.dumps(["no", "dict"]), b"no pickle"):
        (source / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"does not read as plain weights|holds more than tensors"):
            import_pickles(source, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert not (tmp_path / "exploded").exists()


def test_the_refusal_of_pickles_names_the_way_that_works(base, tmp_path: Path) -> None:
    source = pickled(base("llama"), tmp_path / "old", 1)
    with pytest.raises(CheckpointError, match="depthup import"):
        open_checkpoint(source)
    import_pickles(source, tmp_path / "new")
    assert open_checkpoint(tmp_path / "new").config == json.loads((source / "config.json").read_text())
    with pytest.raises(OutputError, match="exists"):
        import_pickles(source, tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"has no pytorch_model\*.bin"):
        import_pickles(tmp_path / "new", tmp_path / "newer")
