"""Merging: exact where it can be, equal to mergekit where it offers the method, refused where models are unlike."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
import yaml

from depthup.checkpoint.reader import open_checkpoint
from depthup.cli import main
from depthup.errors import CheckpointError, DepthupError, OutputError
from depthup.merging import streaming
from depthup.merging.merge import MERGE_NAME, merge, plan_merge, write_merge
from depthup.merging.methods import METHODS, Call, Sums

NEEDS_BASE = [name for name, method in METHODS.items() if method.needs_base]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Three models and their base, of one architecture."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str = "llama", dtype: torch.dtype = torch.float32, **fields):
        folders = [root / f"{name}-{dtype}-{len(fields)}-{seed}" for seed in range(4)]
        for seed, folder in enumerate(folders):
            if not folder.exists():
                pico.checkpoint(folder, name, seed=seed, dtype=dtype, tokenizer=True, **fields)
        return folders[0], folders[1:]

    return make


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return pico.load(folder, dtype="auto").state_dict()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_merged_with_itself_is_given_back(family, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    base, (one, *_) = family(dtype=dtype)
    method = METHODS[name]
    how = {"base": base} if method.needs_base else {}
    options = {"density": 1.0} if "density" in method.options else {}
    weights = (0.3, 0.7) if method.weighted else None
    merge([one, one], tmp_path / "out", method=name, weights=weights, options=options, **how)
    ours, theirs = _weights(tmp_path / "out"), _weights(one)
    for key in theirs:
        # base + (model - base) is the model up to one rounding
        assert torch.allclose(ours[key].float(), theirs[key].float(), atol=1e-6 if dtype is torch.float32 else 2e-3)
        if not method.needs_base:
            assert torch.equal(ours[key], theirs[key])


def test_linear_is_the_average_and_the_rest_is_the_first_models(family, tmp_path: Path) -> None:
    _, models = family()
    merge(models, tmp_path / "out", weights=(1, 2, 1))
    parts = [_weights(model) for model in models]
    for key, merged in _weights(tmp_path / "out").items():
        wanted = 0.25 * parts[0][key] + 0.5 * parts[1][key] + 0.25 * parts[2][key]
        assert torch.allclose(merged, wanted, atol=1e-6)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in models[0].iterdir() if "token" in path.name} <= names
    assert pico.read_json(tmp_path / "out" / MERGE_NAME)["weights"] == [1, 2, 1]


def test_bfloat16_is_rounded_once_to_nearest(family, tmp_path: Path) -> None:
    _, (one, two, _) = family(dtype=torch.bfloat16)
    merge([one, two], tmp_path / "out", weights=(0.6, 0.4))
    a, b = _weights(one), _weights(two)
    for key, merged in _weights(tmp_path / "out").items():
        exact = 0.6 * a[key].double() + 0.4 * b[key].double()
        assert merged.dtype is torch.bfloat16
        assert ((merged.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-7).all()


def test_layers_have_weights_of_their_own(family, tmp_path: Path) -> None:
    _, (one, two, _) = family()
    how = {"0-2": (1.0, 0.0), "4": (0.0, 1.0)}
    merge([one, two], tmp_path / "out", layer_weights=how)
    a, b = _weights(one), _weights(two)
    for key, merged in _weights(tmp_path / "out").items():
        layer = int(key.split(".")[2]) if ".layers." in key else None
        share = 1.0 if layer in (0, 1) else 0.0 if layer == 4 else 0.5
        assert torch.allclose(merged, share * a[key] + (1 - share) * b[key], atol=1e-6)


def test_slerp_stays_on_the_sphere(family, tmp_path: Path) -> None:
    _, (one, two, _) = family()
    merge([one, two], tmp_path / "out", method="slerp")
    a, b, merged = (_weights(folder) for folder in (one, two, tmp_path / "out"))
    for key in merged:
        if a[key].norm() and abs(torch.cosine_similarity(a[key].flatten(), b[key].flatten(), dim=0)) < 0.99:
            angle = torch.acos(torch.cosine_similarity(a[key].double().flatten(), b[key].double().flatten(), dim=0))
            wanted = (a[key] + b[key]).double() * torch.sin(angle / 2) / torch.sin(angle)
            assert torch.allclose(merged[key].double(), wanted, atol=1e-6)


def test_task_arithmetic_adds_offsets(family, tmp_path: Path) -> None:
    base, (one, two, _) = family()
    merge([one, two], tmp_path / "out", method="task-arithmetic", weights=(1, 0.5), base=base)
    ground, a, b = (_weights(folder) for folder in (base, one, two))
    for key, merged in _weights(tmp_path / "out").items():
        assert torch.allclose(merged, ground[key] + (a[key] - ground[key]) + 0.5 * (b[key] - ground[key]), atol=1e-6)


def test_ties_by_hand() -> None:
    base = np.zeros(4)
    tensors = [np.array([3.0, -1.0, 0.1, 2.0]), np.array([1.0, 4.0, 0.2, -2.0])]
    call = Call((1.0, 1.0), {"density": 0.75, "scale": 1.0})
    # trimmed: [3, -1, 0, 2] and [1, 4, 0, -2]; elected signs: +, +, (none), + at a tie
    assert METHODS["ties"].combine(tensors, base, call).tolist() == [2.0, 4.0, 0.0, 2.0]


def test_random_dropping_is_seeded_and_unbiased(family, tmp_path: Path) -> None:
    base, (one, two, _) = family()
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        merge([one, two], tmp_path / out, method="dare-linear", base=base, options={"seed": seed, "density": 0.5})
    assert pico.raw(tmp_path / "a") == pico.raw(tmp_path / "b") != pico.raw(tmp_path / "c")
    tensor, ground = np.random.default_rng(0).random(200_000, np.float32), np.zeros(200_000, np.float32)
    call = Call((1.0,), {"density": 0.25, "scale": 1.0, "seed": 0}, name="x")
    assert METHODS["dare-linear"].combine([tensor], ground, call).mean() == pytest.approx(0.5, abs=0.01)


def test_memory_does_not_hold_a_tensor(family, tmp_path: Path) -> None:
    """Pieces of 64 thousand elements; results do not depend on where they are cut."""
    _, (one, two, _) = family(hidden_size=320, intermediate_size=960)
    merge([one, two], tmp_path / "out", method="slerp", weights=(0.9, 0.1))
    a, b = _weights(one), _weights(two)
    for key, merged in _weights(tmp_path / "out").items():
        x, y = a[key].double().flatten(), b[key].double().flatten()
        cosine = torch.dot(x, y) / (x.norm() * y.norm()) if x.norm() and y.norm() else torch.tensor(1.0)
        if cosine.abs() < 0.999:
            angle = torch.acos(cosine)
            wanted = (x * torch.sin(0.9 * angle) + y * torch.sin(0.1 * angle)) / torch.sin(angle)
            assert torch.allclose(merged.double().flatten(), wanted, atol=1e-6)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.4, 0.6), (0.6, 0.4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_the_paper_are_the_exact_ones_rounded_once(
    family, tmp_path: Path, weights: tuple, dtype: torch.dtype
) -> None:
    _, (one, two, _) = family(dtype=dtype)
    merge([one, two], tmp_path / "out", weights=weights)
    a, b = _weights(one), _weights(two)
    for key, merged in _weights(tmp_path / "out").items():
        exact = a[key].double() + weights[1] * (b[key].double() - a[key].double())
        assert (merged != exact.to(dtype)).float().mean() <= (0 if dtype is torch.bfloat16 else 1e-3), key
        assert torch.allclose(merged.double(), exact, rtol=2**-8 if dtype is torch.bfloat16 else 2**-10, atol=1e-7)
        if weights[0] == 0.5:
            assert torch.equal(merged, torch.lerp(a[key], b[key], 0.5))


@pytest.mark.parametrize("name", METHODS)
def test_pieces_files_and_threads_change_nothing(
    family, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, (one, two, _) = family(dtype=torch.bfloat16)
    how = {"method": name, **({"base": base} if METHODS[name].needs_base else {})}
    merge([one, two], tmp_path / "whole", **how)
    if METHODS[name].survey is None:  # sums of other pieces may differ in their last place
        monkeypatch.setattr(streaming, "PIECE", 100)
    merge([one, two], tmp_path / "parts", max_shard_bytes=20_000, **how)
    whole, parts = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


def test_what_is_no_number_stays_none(family, tmp_path: Path) -> None:
    _, (one, two, _) = family(dtype=torch.bfloat16)
    spoiled = tmp_path / "spoiled"
    shutil.copytree(two, spoiled)
    tensor = open_checkpoint(spoiled).tensors["model.norm.weight"]
    with open(spoiled / tensor.shard, "r+b") as file:
        file.seek(tensor.begin)
        file.write(np.array([0x7FFF, 0x7F80, 0xFF80], np.uint16).tobytes())  # none, and both infinities
    merge([one, spoiled], tmp_path / "out")
    found = _weights(tmp_path / "out")["model.norm.weight"]
    assert not found[:3].isfinite().any() and found[3:].isfinite().all()


def test_merging_needs_no_torch(family, tmp_path: Path) -> None:
    base, (one, two, _) = family(dtype=torch.bfloat16)
    code = "import sys; from depthup.cli import main; "
    for how in (["--method", "slerp"], ["--method", "dare-ties", "--base", str(base)]):
        code += f"assert not main({['merge', str(one), str(two), *how, '--out', str(tmp_path / how[1])]}); "
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True, capture_output=True)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_unlike_models_are_refused_before_a_byte_is_written(family, tmp_path: Path) -> None:
    _, (one, two, _) = family()
    for name, fields, said in (
        ("deep", {"num_layers": 8}, "hold unlike tensors"),
        ("wide", {"vocab_size": 160}, "vocab"),
    ):
        pico.checkpoint(tmp_path / name, "llama", **fields)
        with pytest.raises(CheckpointError, match=said):
            merge([one, tmp_path / name], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    merge([one, two], tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        merge([one, two], tmp_path / "out")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "linera"}, "did you mean 'linear'"),
        ({"weights": (1,)}, "do not fit 2 models"),
        ({"weights": (1, -1)}, "sum is not zero"),
        ({"method": "ties"}, "needs the base"),
        ({"base": "somewhere"}, "has no base"),
        ({"options": {"density": 0.5}}, "no option 'density'"),
        ({"layer_weights": {"5-2": (1, 1)}}, "no range of layers"),
        ({"method": "model-stock"}, "needs the base"),
    ],
)
def test_bad_requests_are_told(family, how: dict, said: str) -> None:
    _, (one, two, _) = family()
    with pytest.raises(DepthupError, match=said):
        plan_merge([one, two], **how)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"weights": (float("inf"), 1)}, "do not fit 2 models"),
        ({"layer_weights": {"4-99": (1, 0)}}, "not all there"),
        ({"layer_weights": {"0-3": (1, 0), "2-4": (0, 1)}}, "in two ranges"),
        ({"method": "task-arithmetic", "options": {"scale": float("nan")}}, "finite"),
        ({"method": "dare-ties", "options": {"seed": 1.5}}, "whole number"),
        ({"method": "model-stock", "weights": (1, 2)}, "change nothing"),
    ],
)
def test_numbers_that_would_spoil_a_merge_are_refused(family, how: dict, said: str) -> None:
    base, (one, two, _) = family()
    ground = {"base": base} if METHODS[how.get("method", "linear")].needs_base else {}
    with pytest.raises(DepthupError, match=said):
        plan_merge([one, two], **how, **ground)


def test_offsets_may_be_subtracted(family, tmp_path: Path) -> None:
    """A task is forgotten by a negative weight; what sums to zero is no average, but a task vector it is."""
    base, (one, two, _) = family()
    merge([one, two], tmp_path / "out", method="task-arithmetic", weights=(1, -1), base=base)
    ground, a, b = (_weights(folder) for folder in (base, one, two))
    for key, merged in _weights(tmp_path / "out").items():
        assert torch.allclose(merged, ground[key] + a[key] - b[key], atol=1e-6)


def test_offsets_that_point_apart_leave_the_base() -> None:
    sums = Sums(2)
    sums.add([np.array([1.0, 2.0]), np.array([-1.0, -2.0])], np.zeros(2))
    assert METHODS["model-stock"].survey(sums, Call((1.0, 1.0), {})) == (0.0,)


def test_trimming_leaves_an_entry_of_a_small_tensor() -> None:
    base, tensor = np.zeros(3), np.array([1.0, -3.0, 2.0])
    merged = METHODS["ties"].combine([tensor, tensor], base, Call((1.0, 1.0), {"density": 0.2, "scale": 1.0}))
    assert merged.tolist() == [0.0, -3.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope.rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope.factor"),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"sliding_window": 16}, "sliding_window"),
    ],
)
def test_models_that_compute_otherwise_are_refused(family, tmp_path: Path, fields: dict, said: str) -> None:
    _, (one, two, _) = family()
    other = tmp_path / "other"
    shutil.copytree(two, other)
    pico.edit_config(other, **fields)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        plan_merge([one, other])


def test_one_rope_in_two_spellings_is_one(family, tmp_path: Path) -> None:
    _, (one, two, _) = family()
    other = tmp_path / "other"
    shutil.copytree(two, other)
    config = pico.read_json(other / "config.json")
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (other / "config.json").write_text(json.dumps({**config, "rope_scaling": None, "use_cache": False}))
    plan_merge([one, other])


def test_tokenizers_that_give_one_id_to_two_tokens_are_refused(family, tmp_path: Path) -> None:
    _, (one, two, _) = family()
    other = tmp_path / "other"
    shutil.copytree(two, other)
    content = pico.read_json(other / "tokenizer.json")
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="one tokenizer"):
        plan_merge([one, other])
    (other / "tokenizer.json").unlink()
    plan_merge([one, other])  # nothing to compare with


def test_models_that_change_meanwhile_are_told(family, tmp_path: Path) -> None:
    _, (one, two, _) = family()
    other = tmp_path / "other"
    shutil.copytree(two, other)
    weights = next(other.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match="was written to while it was read"):
        merge([one, other], tmp_path / "out", progress=lambda num_bytes: os.utime(weights, ns=(1, 1)))
    plan = plan_merge([one, other], method="slerp")
    os.truncate(weights, weights.stat().st_size - 100)
    (tmp_path / "short").mkdir()
    with pytest.raises(CheckpointError, match=r"ended \d+ bytes early"):
        write_merge(plan, tmp_path / "short")
    assert not (tmp_path / "out").exists()


def test_slerp_takes_two(family) -> None:
    _, models = family()
    with pytest.raises(DepthupError, match="allowed: 2 models"):
        plan_merge(models, method="slerp")


def test_the_command_line(family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, (one, two, three) = family()
    out = str(tmp_path / "out")
    assert main(["merge", str(one), str(two), "--weights", "0.4,0.6", "--out", out]) == 0
    assert "linear" in capsys.readouterr().out
    assert main(["check", out]) == 0
    how = ["--method", "ties", "--base", str(base), "--set", "density=0.3"]
    assert main(["merge", str(one), str(two), str(three), *how, "--out", str(tmp_path / "ties")]) == 0
    assert main(["merge", str(one), str(two), "--weights", "0.4;0.6", "--out", str(tmp_path / "x")]) == 2
    assert "allowed" in capsys.readouterr().err
    assert main(["merge", str(one), str(two), "--dtype", "bfloat16", "--out", str(tmp_path / "narrow")]) == 0
    assert pico.read_json(tmp_path / "narrow" / "config.json")["dtype"] == "bfloat16"
    assert all(tensor.dtype is torch.bfloat16 for tensor in _weights(tmp_path / "narrow").values())
    assert main(["merge", str(one), str(two), "--dry-run", "--out", str(tmp_path / "dry")]) == 0
    assert not (tmp_path / "dry").exists()


# -- mergekit itself --------------------------------------------------------------------------------------------------

THEIRS = {
    "linear": ({"weights": (0.3, 0.7)}, {"merge_method": "linear"}, [{"weight": 0.3}, {"weight": 0.7}]),
    "slerp": ({"weights": (0.6, 0.4)}, {"merge_method": "slerp", "parameters": {"t": 0.4}}, [{}, {}]),
    "task-arithmetic": (
        {"weights": (0.5, 0.8)},
        {"merge_method": "task_arithmetic"},
        [{"weight": 0.5}, {"weight": 0.8}],
    ),
    "ties": (
        {"weights": (0.5, 0.8), "options": {"density": 0.4}},
        {"merge_method": "ties"},
        [{"weight": 0.5, "density": 0.4}, {"weight": 0.8, "density": 0.4}],
    ),
    "model-stock": ({}, {"merge_method": "model_stock"}, [{}, {}]),
}


@pytest.mark.skipif("DEPTHUP_MERGEKIT" not in os.environ, reason="DEPTHUP_MERGEKIT names no mergekit-yaml")
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_mergekit_computes_the_same(family, tmp_path: Path, name: str, kind: str) -> None:
    base, (one, two, _) = family(kind)
    ours, theirs, parameters = THEIRS[name]
    models = [{"model": str(model), "parameters": given} for model, given in zip((one, two), parameters, strict=True)]
    text = {**theirs, "models": models, "dtype": "float32"}
    if METHODS[name].needs_base:
        text["base_model"] = str(base)
        ours = {**ours, "base": base}
    if name == "slerp":
        text["base_model"] = str(one)
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(text))
    command = [os.environ["DEPTHUP_MERGEKIT"], str(tmp_path / "merge.yaml"), str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    merge([one, two], tmp_path / "ours", method=name, **ours)
    mine, their = _weights(tmp_path / "ours"), _weights(tmp_path / "theirs")
    assert mine.keys() == their.keys()
    for key in mine:
        assert torch.allclose(mine[key], their[key], rtol=1e-5, atol=1e-6), key
