"""check: whole checkpoints of every family give no finding, and each fault made on purpose gives its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pico
import pytest

from depthup.checkpoint.check import check_checkpoint
from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.models import prove_loading

SHARDED = {"shard_size": "60KB"}


def messages(folder: Path) -> list[str]:
    return [str(finding) for finding in check_checkpoint(folder)]


def rewrite(folder: Path, change: Callable[[dict[str, pico.Raw]], object]) -> Path:
    """Change the tensors of an unsharded folder."""
    tensors = pico.raw(folder)
    change(tensors)
    pico.write_tensors(folder / SINGLE_NAME, tensors)
    return folder


def drop(*parts: str) -> Callable[[Path], object]:
    """Lose every tensor whose name holds one of the parts."""
    return lambda folder: rewrite(folder, lambda t: [t.pop(n) for n in list(t) if any(part in n for part in parts)])


def reindex(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        index = pico.read_json(folder / INDEX_NAME)
        change(index["weight_map"])
        (folder / INDEX_NAME).write_text(json.dumps(index))

    return edit


def config(**fields: object) -> Callable[[Path], object]:
    return lambda folder: pico.edit_config(folder, **fields)


def misshape(name: str) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder, lambda t: t.update({name: pico.Raw("F32", (4, 5), bytes(80))}))


def stale_shard(folder: Path) -> None:
    shutil.copyfile(min(folder.glob("*.safetensors")), folder / "model-00001-of-00099.safetensors")


def truncate(folder: Path) -> None:
    path = folder / SINGLE_NAME
    path.write_bytes(path.read_bytes()[:-1])


def swap_in_index(weight_map: dict[str, str]) -> None:
    first, last = min(weight_map.values()), max(weight_map.values())
    weight_map["model.norm.weight"] = first if weight_map["model.norm.weight"] != first else last


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_whole_checkpoints_give_no_finding(base, family: str, tmp_path: Path) -> None:
    folder = base(family)
    assert messages(folder) == [] and prove_loading(folder).whole
    upscale(folder, tmp_path / "target", LayerPlan.upscale(pico.NUM_LAYERS, 2))
    assert messages(tmp_path / "target") == [] and prove_loading(tmp_path / "target").whole


@pytest.mark.parametrize("shard_size", [None, "60KB"])
def test_sharded_and_cached_checkpoints_give_no_finding(base, shard_size: str | None, tmp_path: Path) -> None:
    folder = base("llama", shard_size=shard_size)
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert messages(folder) == messages(tmp_path) == []


# fault -> family, options, what breaks the folder, what the finding says, whether transformers sees it as well
# (None: the fault is not one of loading, or transformers raises).
FAULTS = {
    "depth too small, as mergekit may leave it":
        ("llama", {}, config(num_hidden_layers=5), "= 5, the weights: model.layers has layers 0-6", True),
    "depth too large":
        ("llama", {}, config(num_hidden_layers=9), "= 9, the weights: model.layers has layers 0-6", True),
    "no depth": ("llama", {}, config(num_hidden_layers=...), "the config states no depth", None),
    "layer_types of the base's length":
        ("qwen3", {}, config(layer_types=["full_attention"] * 5), "lists 5 layer_types for 7 layers", None),
    "an index list beyond the last layer":
        ("qwen3_moe", {}, config(mlp_only_layers=[7]), "names layer 7 in mlp_only_layers, the last layer is 6", None),
    "one lost layer": ("llama", {}, drop("layers.3."), "model.layers has layers 0-6 with 1 missing", True),
    "the lost last layer": ("llama", {}, drop("layers.6."), "the weights: model.layers has layers 0-5", True),
    "one lost tensor": ("llama", {}, drop("layers.3.mlp.up_proj"), "layers.3.mlp.up_proj.weight is missing", True),
    "one lost norm of the queries (config without lists)":
        ("olmo2", {}, drop("layers.2.self_attn.q_norm"), "model.layers.2.self_attn.q_norm.weight is missing", True),
    "one lost norm of the queries (config with layer_types)":
        ("qwen3", {}, drop("layers.2.self_attn.q_norm"), "model.layers.2.self_attn.q_norm.weight is missing", True),
    "one lost tensor among two kinds of attention":
        ("gemma2", {}, drop("layers.2.mlp.up_proj"), "model.layers.2.mlp.up_proj.weight is missing", True),
    "a tensor that only one layer has":
        ("llama", {}, lambda f: rewrite(f, lambda t: t.update({"model.layers.1.extra": pico.Raw("U8", (1,), b"x")})),
         "model.layers.1.extra exists, most other layers have no such tensor", True),
    "a tensor of another shape":
        ("llama", {}, misshape("model.layers.4.mlp.up_proj.weight"), "(4, 5), most other layers (48, 32)", True),
    "a tensor of another shape (config with layer_types)":
        ("qwen3", {}, misshape("model.layers.4.mlp.up_proj.weight"), "has the shape (4, 5)", True),
    "no head": ("llama", {}, lambda f: drop("lm_head")(config(tie_word_embeddings=False)(f)), "there is no head", True),
    "a stale shard": ("llama", SHARDED, stale_shard, "model-00001-of-00099.safetensors is not named by", None),
    "a tensor that the index forgot":
        ("llama", SHARDED, reindex(lambda m: m.pop("model.norm.weight")), "it will not be loaded", None),
    "an index naming an absent tensor":
        ("llama", SHARDED, reindex(lambda m: m.update({"model.gone": min(m.values())})), "puts 'model.gone'", None),
    "an index naming the wrong shard":
        ("llama", SHARDED, reindex(swap_in_index), "the index puts 'model.norm.weight'", None),
    "a missing shard": ("llama", SHARDED, lambda f: max(f.glob("*.safetensors")).unlink(), "shards are missing", None),
    "a truncated file": ("llama", {}, truncate, "it is truncated", None),
    "an escaping index": ("llama", SHARDED, reindex(lambda m: m.update({"a": "../b"})), "not in its folder", None),
    "pickle weights":
        ("llama", {}, lambda f: (f / SINGLE_NAME).rename(f / "pytorch_model.bin"), "holds pickle weights", None),
    "no config": ("llama", {}, lambda f: (f / "config.json").unlink(), "there is no", None),
    "a single file beside shards":
        ("llama", SHARDED, lambda f: pico.write_tensors(f / SINGLE_NAME, {"a": pico.Raw("U8", (1,), b"x")}),
         "model.safetensors", None),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_made_on_purpose_is_found(base, tmp_path: Path, fault: str) -> None:
    family, options, break_it, expected, seen_by_transformers = FAULTS[fault]
    folder = shutil.copytree(base(family, **options), tmp_path / "faulty")
    break_it(folder)
    found = messages(folder)
    assert any(expected in message for message in found), found
    assert len(found) == 1, found
    assert all("; " in message for message in found)
    if seen_by_transformers:
        assert not prove_loading(folder).whole


def test_all_faults_of_shards_are_found_at_once(base, tmp_path: Path) -> None:
    folder = shutil.copytree(base("llama", **SHARDED), tmp_path / "faulty")
    shards = sorted(folder.glob("*.safetensors"))
    shards[0].write_bytes(b"")
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    found = messages(folder)
    assert len(found) == 2 and shards[0].name in found[0] and shards[2].name in found[1]


@pytest.mark.parametrize(
    ("family", "options"),
    [("qwen2_moe", {"mlp_only_layers": [], "decoder_sparse_step": 2}), ("qwen2_moe", {"mlp_only_layers": [0, 3]}),
     *((family, {}) for family in pico.UNLIKE_FAMILIES)],
)  # fmt: skip
def test_layers_that_differ_because_the_config_says_so_are_whole(base, family: str, options: dict[str, object]) -> None:
    """By a period, by a list, and by a threshold."""
    folder = base(family, **options)
    assert messages(folder) == [] and prove_loading(folder).whole


def test_it_is_a_finding_and_no_error_when_nothing_is_there(tmp_path: Path) -> None:
    assert len(messages(tmp_path / "gone")) == len(messages(tmp_path)) == 1
