"""Surgery: every tensor and every per-layer field follows the plan, and the target exists only when it is whole."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pico
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from depthup import files
from depthup.checkpoint.names import find_stack
from depthup.checkpoint.reader import INDEX_NAME, SINGLE_NAME, open_checkpoint, read_header
from depthup.errors import CheckpointError, DepthupError, OutputError, PlanError
from depthup.growth.freeze import FREEZE_MAP_NAME
from depthup.growth.manifest import MANIFEST_NAME
from depthup.growth.surgery import plan_surgery, publish_surgery, upscale
from depthup.layers import LayerPlan
from depthup.models import prove_loading

N = pico.NUM_LAYERS
REMOVED = (1, 2, 3)
SOURCES = {m: [*range(N - m), *range(m, N)] for m in REMOVED}  # spelt out: not read off the code under test
EVERY_FAMILY = pytest.mark.parametrize("family", pico.FAMILIES)


@pytest.fixture(scope="module")
def target(base, tmp_path_factory: pytest.TempPathFactory):
    """``target("llama", 2)``: the family's base up-scaled with m = 2; made once."""
    root, made = tmp_path_factory.mktemp("targets"), {}

    def build(family: str = "llama", m: int = 2, **options: object) -> Path:
        key = (family, m, repr(options))
        if key not in made:
            made[key] = root / f"{family}-{len(made)}"
            upscale(base(family, **options), made[key], LayerPlan.upscale(N, m))
        return made[key]

    return build


def expected_tensors(folder: Path, sources: list[int]) -> dict[str, pico.Raw]:
    """What the target must hold, from what the safetensors library reads: the first number of a name is its layer."""
    result = {}
    for name, tensor in pico.raw(folder).items():
        match = re.fullmatch(r"([a-z_.]+?\.)(\d+)(\..+)", name)
        targets = [i for i, source in enumerate(sources) if match and source == int(match[2])]
        result |= {f"{match[1]}{i}{match[3]}": tensor for i in targets} if match else {name: tensor}
    return result


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -- what the target is ----------------------------------------------------------------------------------------------


@EVERY_FAMILY
@pytest.mark.parametrize("m", REMOVED)
def test_each_target_tensor_equals_its_source_byte_for_byte(base, target, family: str, m: int) -> None:
    assert pico.raw(target(family, m)) == expected_tensors(base(family), SOURCES[m])


@EVERY_FAMILY
@pytest.mark.parametrize("m", REMOVED)
def test_depth_and_every_per_layer_field_follow_the_plan_and_the_rest_stays(base, target, family: str, m: int) -> None:
    before, after = (AutoConfig.from_pretrained(folder).to_dict() for folder in (base(family), target(family, m)))
    depth_keys = {"num_hidden_layers", "n_layer", "num_layers"} & before.keys()
    others = {
        "_name_or_path",
        "max_window_layers",
        "_sliding_window_pattern",
        "no_rope_layer_interval",
        "sliding_window_pattern",
    }
    for key in before.keys() - others:
        value = before[key]
        if key in depth_keys:
            assert (value, after[key]) == (N, 2 * (N - m))
        elif key == "mlp_only_layers":
            assert after[key] == [i for i, source in enumerate(SOURCES[m]) if source in value]
        elif key == "attention_types":  # runs of kinds, each with how many times it is repeated
            assert [kind for kinds, times in after[key] for kind in kinds * times] == after["attention_layers"]
        elif isinstance(value, list) and len(value) == N:
            assert after[key] == [value[source] for source in SOURCES[m]], key
        else:
            assert after[key] == value, key
    assert depth_keys


@EVERY_FAMILY
@pytest.mark.parametrize("m", [1, 3])
def test_transformers_finds_a_place_for_each_tensor_and_a_tensor_for_each_place(target, family: str, m: int) -> None:
    model, info = pico.load_with_info(target(family, m))
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.num_hidden_layers == 2 * (N - m)


@EVERY_FAMILY
def test_hidden_states_through_the_lower_copy_equal_the_bases(base, target, family: str) -> None:
    tokens = pico.tokens()
    with torch.no_grad():
        before, after = (
            pico.load(folder)(tokens, output_hidden_states=True).hidden_states
            for folder in (base(family), target(family))
        )
    num_lower = N - 2
    # The embeddings come first, then what each layer puts out; Mamba leaves the embeddings out.
    num_states = num_lower + (family != "mamba")
    for layer, (one, other) in enumerate(zip(before[:num_states], after[:num_states], strict=True)):
        assert torch.equal(one, other), layer
    assert len(after) == 2 * num_lower + 1 and not torch.equal(before[num_states], after[num_states])


@pytest.mark.parametrize(
    ("family", "path"), [("llama", "model.layers"), ("mistral", "model.layers"), ("mixtral", "model.layers"),
                         ("olmo2", "model.layers"), ("gpt2", "transformer.h"), ("gpt_neox", "gpt_neox.layers")]
)  # fmt: skip
def test_logits_equal_those_of_surgery_on_the_modules_in_memory(base, target, family: str, path: str) -> None:
    model = pico.load(base(family))
    layers = model.get_submodule(path)
    parent = model.get_submodule(path.rpartition(".")[0])
    stacked = [copy.deepcopy(layers[source]) for source in SOURCES[2]]
    setattr(parent, path.rpartition(".")[2], torch.nn.ModuleList(stacked))
    for index, layer in enumerate(stacked):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
    model.config.num_hidden_layers = len(stacked)
    with torch.no_grad():
        assert torch.equal(
            model(pico.tokens(), use_cache=False).logits, pico.load(target(family))(pico.tokens()).logits
        )


@EVERY_FAMILY
def test_generation_with_a_cache_equals_generation_without(target, family: str) -> None:
    model = pico.load(target(family))
    prompt = pico.tokens(20, num_rows=1)
    how = GenerationConfig(max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=0)
    cached, plain = (
        model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=how, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(cached, plain) and cached.shape == (1, 24)


@pytest.mark.parametrize(("family", "tied"), [("llama_tied", True), ("qwen3", True), ("gemma2", True), ("gpt2", True),
                                              ("llama", False), ("gpt_neox", False)])  # fmt: skip
def test_tied_stays_tied_and_untied_untied(base, target, family: str, tied: bool) -> None:
    model = pico.load(target(family))
    same = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    stored = {name for name in pico.raw(target(family)) if name.startswith(("lm_head", "embed_out"))}
    assert same == tied and bool(stored) != tied
    assert stored == {name for name in pico.raw(base(family)) if name.startswith(("lm_head", "embed_out"))}


@pytest.mark.parametrize("family", pico.UNLIKE_FAMILIES)
def test_layers_that_differ_by_a_threshold_that_the_plan_keeps_are_up_scaled(base, target, family: str) -> None:
    """DeepSeek-V2 and Ernie 4.5: the first layer is dense; with m >= 1 it stands first, and only there."""
    assert pico.raw(target(family)) == expected_tensors(base(family), SOURCES[2])
    assert prove_loading(target(family)).whole


def test_a_threshold_that_the_plan_breaks_is_refused(base, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"first_k_dense_replace = 1[\s\S]*m in \[1, 2, 3\]"):
        upscale(base("deepseek_v2"), tmp_path / "out", LayerPlan.upscale(N, 0))


@pytest.mark.parametrize("text", ["0-6", "0-2,2,1-6,6", "6,5,4,3,2,1,0", "3"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_any_plan_is_followed_and_the_identity_is_the_base(base, tmp_path: Path, family: str, text: str) -> None:
    plan = LayerPlan.parse(text, N)
    upscale(base(family), tmp_path / "out", plan)
    assert pico.raw(tmp_path / "out") == expected_tensors(base(family), list(plan.sources))
    assert prove_loading(tmp_path / "out").whole
    if text == "0-6":
        assert pico.raw(tmp_path / "out") == pico.raw(base(family))
        assert pico.read_json(tmp_path / "out" / "config.json") == pico.read_json(base(family) / "config.json")


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sharded_and_unsharded_bases_and_targets_all_hold_the_same(base, tmp_path: Path, family: str) -> None:
    results = []
    for shard_size in (None, "60KB"):
        for max_shard_bytes in (50_000, 1 << 40):
            out = tmp_path / str(len(results))
            upscale(base(family, shard_size=shard_size), out, LayerPlan.upscale(N, 2), max_shard_bytes=max_shard_bytes)
            assert (out / INDEX_NAME).exists() == (max_shard_bytes == 50_000)
            pico.load(out)
            results.append(pico.raw(out))
    assert all(result == results[0] for result in results)


def test_two_runs_write_the_same_files_and_leave_the_base_alone(base, tmp_path: Path) -> None:
    before = digest(base())
    for name in "ab":
        upscale(base(), tmp_path / name, LayerPlan.upscale(N, 1), max_shard_bytes=90_000)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") and digest(base()) == before


def test_no_file_tells_where_it_was_made(base, tmp_path: Path) -> None:
    out = tmp_path / "out"
    upscale(pico.edit_config(shutil.copytree(base(), tmp_path / "base"), _name_or_path=str(tmp_path)), out,
            LayerPlan.upscale(N, 1))  # fmt: skip
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in out.iterdir())


def test_the_manifest_and_the_description_say_what_was_done(base, tmp_path: Path) -> None:
    surgery = upscale(base(), tmp_path / "out", LayerPlan.upscale(N, 2))
    manifest = pico.read_json(tmp_path / "out" / MANIFEST_NAME)
    assert LayerPlan.from_json(manifest["plan"]) == surgery.plan
    assert manifest["num_parameters"] == surgery.num_parameters == pico.load(tmp_path / "out").num_parameters()
    assert manifest["base"]["num_parameters"] == pico.load(base()).num_parameters()
    assert surgery.num_bytes == sum(len(tensor.data) for tensor in pico.raw(tmp_path / "out").values())
    assert surgery.plan.render() in surgery.describe() and "num_hidden_layers: 7 -> 10" in surgery.describe()


GO_ALONG = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json",
    "chat_template.jinja", "generation_config.json", "preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE",
    "USE_POLICY.md", "modeling_custom.py", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip
STAY_BEHIND = (
    "README.md", ".gitattributes", "pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "tf_model.h5",
    "flax_model.msgpack", "model.onnx", "consolidated.00.pth", "rng_state.pth", "training_args.bin", "optimizer.pt",
    "scheduler.pt", "trainer_state.json", "extra.safetensors", "freeze_map.json", "record.json", "metrics.jsonl",
    "original/params.json", "global_step10/zero.pt", ".cache/x", "runs/events",
)  # fmt: skip


def test_tokenizer_template_licence_and_code_go_along_and_the_rest_stays(base, tmp_path: Path) -> None:
    folder = shutil.copytree(base(), tmp_path / "base")
    for number, name in enumerate((*GO_ALONG, *STAY_BEHIND)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}" + bytes([number]))
    upscale(folder, tmp_path / "out", LayerPlan.upscale(N, 2))
    written = digest(tmp_path / "out")
    assert written.keys() == {*GO_ALONG, SINGLE_NAME, "config.json", MANIFEST_NAME, FREEZE_MAP_NAME}
    assert {name: written[name] for name in GO_ALONG} == {name: digest(folder)[name] for name in GO_ALONG}


def test_the_modules_of_a_sentence_encoder_go_along_with_what_they_hold(base, tmp_path: Path) -> None:
    folder = shutil.copytree(base(), tmp_path / "base")
    modules = ["", "1_Pooling", "2_Dense", "3_Normalize", "../base", "/etc", ".cache", 7]
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": path} for path in modules]))
    whole = ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    for name in (*whole, "9_other/config.json", ".cache/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    upscale(folder, tmp_path / "out", LayerPlan.upscale(N, 2))
    written = digest(tmp_path / "out")
    assert {name for name in written if "/" in name} == set(whole)
    assert all(written[name] == digest(folder)[name] for name in whole)
    for text in ("[" * 100_000, "7", "{}", "no"):  # what it names cannot be told: it is carried as it is
        (folder / "modules.json").write_text(text)
        upscale(folder, tmp_path / text[:2], LayerPlan.upscale(N, 2))
        assert (tmp_path / text[:2] / "modules.json").read_text() == text


def test_the_target_talks_with_the_tokenizer_and_generation_config_of_the_base(base, tmp_path: Path) -> None:
    folder = base("llama", tokenizer=True)
    upscale(folder, tmp_path / "out", LayerPlan.upscale(N, 2))
    one, other = (AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out"))
    chat = [{"role": "user", "content": "Hé, what is 2 + 2?"}]
    ids, same = (t.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for t in (one, other))
    assert ids == same and other.decode(ids) == f"user: {chat[0]['content']}{pico.END}\nassistant: "
    assert (
        GenerationConfig.from_pretrained(tmp_path / "out").to_dict()
        == GenerationConfig.from_pretrained(folder).to_dict()
    )


def test_a_cache_of_links_becomes_a_folder_of_files(base, target, tmp_path: Path) -> None:
    folder, snapshot, blobs = base("llama", shard_size="60KB"), tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blobs / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    upscale(snapshot, tmp_path / "out", LayerPlan.upscale(N, 2))
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert pico.raw(tmp_path / "out") == pico.raw(target("llama", 2))


def test_mixed_types_of_odd_lengths_stay_aligned_and_readable(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    tensors = {"model.embed_tokens.weight": pico.Raw("BF16", (3,), b"embeds")}
    for i in range(5):
        tensors[f"model.layers.{i}.q.weight"] = pico.Raw("I8", (3,), bytes([i, 1, 2]))
        tensors[f"model.layers.{i}.q.scale"] = pico.Raw("F32", (1,), bytes([i, 0, 0, 0]))
        tensors[f"model.layers.{i}.lora"] = pico.Raw("BF16", (1,), bytes([i, 9]))
        tensors[f"model.layers.{i}.q.packed"] = pico.Raw("U8", (1,), bytes([i]))
    pico.write_tensors(folder / SINGLE_NAME, tensors)
    (folder / "config.json").write_text('{"num_hidden_layers": 5}')
    for name, max_bytes in (("one", 1 << 40), ("many", 10)):
        upscale(folder, tmp_path / name, LayerPlan.upscale(5, 1), max_shard_bytes=max_bytes)
        assert pico.raw(tmp_path / name) == expected_tensors(folder, [0, 1, 2, 3, 1, 2, 3, 4])
        for path in (tmp_path / name).glob("*.safetensors"):
            for tensor in read_header(path.parent, path.name)[0].values():
                assert tensor.begin % {"F32": 4, "BF16": 2}.get(tensor.dtype, 1) == 0


def test_of_a_vision_model_only_the_chosen_stack_grows(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    prefixes = ("vision_tower.encoder.layers", "language_model.model.layers")
    # One byte a layer: its number.
    numbered = {f"{p}.{i}.w": pico.Raw("U8", (1,), bytes([i])) for p in prefixes for i in range(4)}
    pico.write_tensors(folder / SINGLE_NAME, numbered)
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    base, plan = open_checkpoint(folder), LayerPlan.upscale(4, 1)
    with pytest.raises(CheckpointError, match=r"several stacks[\s\S]*--stack"):
        plan_surgery(base, plan)
    surgery = plan_surgery(base, plan, stack=find_stack(base.tensors, base.config, prefixes[1]))
    publish_surgery(surgery, tmp_path / "out")
    values = {name: tensor.data[0] for name, tensor in pico.raw(tmp_path / "out").items()}
    assert values == {f"{prefixes[0]}.{i}.w": i for i in range(4)} | {
        f"{prefixes[1]}.{i}.w": source for i, source in enumerate([0, 1, 2, 1, 2, 3])
    }
    assert surgery.config == {"text_config": {"num_hidden_layers": 6}, "vision_config": {"num_hidden_layers": 4}}


# -- bad input: one clear error, and nothing is written --------------------------------------------------------------


def lose_a_norm(folder: Path) -> None:
    tensors = pico.raw(folder)
    del tensors["model.layers.2.input_layernorm.weight"]
    pico.write_tensors(folder / SINGLE_NAME, tensors)


def truncate(folder: Path) -> None:
    os.truncate(folder / SINGLE_NAME, 5000)


BAD_BASES = {
    "truncated": (truncate, CheckpointError, r"model\.safetensors is not a whole.*[\s\S]*next: download"),
    "corrupt": (lambda f: (f / SINGLE_NAME).write_bytes(b"\1"), CheckpointError, r"model\.safetensors is not a whole"),
    "pickle": (lambda f: (f / SINGLE_NAME).rename(f / "pytorch_model.bin"), CheckpointError, "depthup import"),
    "gone": (shutil.rmtree, CheckpointError, "there is no folder"),
    "config of another depth": (lambda f: pico.edit_config(f, num_hidden_layers=5), CheckpointError, "layers = 5"),
    "unlike layers": (lose_a_norm, CheckpointError, r"layers 0 and 2 of model\.layers hold unlike tensors"),
    "list of another length": (lambda f: pico.edit_config(f, layer_types=["a"]), CheckpointError, "1 layer_types"),
    "unknown list": (lambda f: pico.edit_config(f, scales=[1] * N), CheckpointError, r"list 'scales' of 7 values"),
    "by index": (lambda f: pico.edit_config(f, scale_attn_by_inverse_layer_idx=True), CheckpointError, "idx = True"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_BASES)
def test_a_bad_base_is_one_clear_error_and_nothing_is_written(base, tmp_path: Path, kind: str) -> None:
    break_it, error, message = BAD_BASES[kind]
    folder = shutil.copytree(base(), tmp_path / "base")
    break_it(folder)
    before = digest(tmp_path)
    with pytest.raises(error, match=message) as caught:
        upscale(folder, tmp_path / "new" / "out", LayerPlan.upscale(N, 2))
    assert caught.value.next_step
    assert digest(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_lost_tensor_is_refused_even_if_the_config_lists_the_kinds_of_layers(base, tmp_path: Path) -> None:
    folder = shutil.copytree(base("qwen3"), tmp_path / "base")
    lose_a_norm(folder)
    with pytest.raises(CheckpointError, match="hold unlike tensors"):
        upscale(folder, tmp_path / "out", LayerPlan.upscale(N, 2))
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_depth_is_refused(base, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=rf"for a base of 32 layers, model.layers has {N}[\s\S]*for {N} layers"):
        upscale(base(), tmp_path / "out", LayerPlan.upscale(32, 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda out: out.symlink_to("nowhere")])
def test_an_existing_output_is_refused_and_kept(base, tmp_path: Path, make: Any) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputError, match=r"out exists[\s\S]*another name"):
        upscale(base(), tmp_path / "out", LayerPlan.upscale(N, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (tmp_path / "out" / "config.json").exists()


def test_an_output_inside_the_base_leaves_the_base_whole(base, tmp_path: Path) -> None:
    folder = shutil.copytree(base(), tmp_path / "base")
    before = digest(folder)
    upscale(folder, folder / "out", LayerPlan.upscale(N, 2))
    assert {name: value for name, value in digest(folder).items() if not name.startswith("out/")} == before


def test_too_small_a_disk_is_found_before_the_first_byte(base, tmp_path: Path, monkeypatch) -> None:
    needed = []

    def usage(folder: Path) -> SimpleNamespace:
        needed.append(folder)
        return SimpleNamespace(free=400_000)

    monkeypatch.setattr(files.shutil, "disk_usage", usage)
    with pytest.raises(OutputError, match=r"not enough disk at .* kB needed, 400\.00 kB free[\s\S]*next: free"):
        upscale(base(), tmp_path / "new" / "out", LayerPlan.upscale(N, 2))
    assert needed == [tmp_path] and list(tmp_path.iterdir()) == []


def test_the_space_asked_for_is_the_space_used(base, tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("depthup.growth.surgery.require_space", lambda folder, num_bytes: asked.append(num_bytes))
    upscale(base("llama", tokenizer=True), tmp_path / "out", LayerPlan.upscale(N, 2))
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert 0 <= written - asked[0] < 10_000  # config and manifest are not counted


def test_progress_adds_up_to_all_bytes(base, tmp_path: Path) -> None:
    reported: list[int] = []
    surgery = upscale(base(), tmp_path / "out", LayerPlan.upscale(N, 2), progress=reported.append)
    assert sum(reported) == surgery.num_bytes


MEASURED = """
import sys
{body}
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak[0].split()[1], *sorted({{"torch", "numpy", "safetensors"}} & set(sys.modules)))
"""
BIG = """
import os
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
if sys.argv[3] == "plain": del os.copy_file_range, os.sendfile
upscale(sys.argv[1], sys.argv[2], LayerPlan.upscale(8, 3))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("way", ["kernel", "plain"])
def test_memory_does_not_grow_with_the_model_and_torch_is_not_loaded(tmp_path: Path, way: str) -> None:
    """A base of 300 MB (one tensor of 30 MB a layer); the peak is counted from a bare interpreter's."""
    num_bytes = 30_000_000
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.w" for i in range(8)), "lm_head.weight"]
    (tmp_path / "base").mkdir()
    write_sparse(tmp_path / "base" / SINGLE_NAME, names, num_bytes)
    (tmp_path / "base" / "config.json").write_text('{"num_hidden_layers": 8}')
    bare, _ = peak_kib(MEASURED.format(body=""))
    peak, loaded = peak_kib(MEASURED.format(body=BIG), str(tmp_path / "base"), str(tmp_path / "out"), way)
    assert (tmp_path / "out" / SINGLE_NAME).stat().st_size > 12 * num_bytes
    shutil.rmtree(tmp_path / "out")
    assert peak - bare < 60_000 and loaded == []


def write_sparse(path: Path, names: list[str], num_bytes: int) -> None:
    """Tensors of zeros that take no disk."""
    offsets = [(i * num_bytes, (i + 1) * num_bytes) for i in range(len(names))]
    entries = [f'"{n}":{{"dtype":"U8","shape":[{num_bytes}],"data_offsets":[{a},{b}]}}'
               for n, (a, b) in zip(names, offsets, strict=True)]  # fmt: skip
    header = ("{" + ",".join(entries) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + len(names) * num_bytes)


def peak_kib(code: str, *args: str) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    peak, *loaded = done.stdout.split()
    return int(peak), loaded


def test_every_refusal_is_a_depthup_error(base, tmp_path: Path) -> None:
    """What the command line prints: problem, allowed, next step, each on its line."""
    with pytest.raises(DepthupError) as caught:
        upscale(base(), tmp_path / "out", LayerPlan.upscale(N, 4))
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["allowed", "next"]
