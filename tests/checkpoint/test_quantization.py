"""Quantised checkpoints: every tensor under a layer goes along, what is said of modules by name follows the plan."""

from __future__ import annotations

import json
import random
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

from depthup.checkpoint.check import check_checkpoint
from depthup.checkpoint.reader import DTYPE_BITS
from depthup.errors import CheckpointError
from depthup.growth.proof import prove
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

N = 7
PLAN = LayerPlan.upscale(N, 2)
SOURCES = (0, 1, 2, 3, 4, 2, 3, 4, 5, 6)
COPIES = {3: (3, 6), 4: (4, 7), 5: (8,), 6: (9,), 0: (0,), 1: (1,), 2: (2, 5)}
UP = [f"model.layers.{i}.mlp.up_proj" for i in range(10)]
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")

Leaves = dict[str, tuple[str, tuple[int, ...]]]  # what a quantised linear map is stored as: type and shape by name
PLAIN: Leaves = {"weight": ("F16", (8, 8))}
# format -> (stored, quantization_config, what of it becomes of the plan, by the path of the field).
# Names and fields: of each format's own documentation and of transformers' configuration classes.
FORMATS: dict[str, tuple[Leaves, dict[str, Any], dict[str, Any]]] = {
    "gptq": (
        {"qweight": ("I32", (1, 8)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, 8)), "g_idx": ("I32", (8,))},
        {"bits": 4, "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]], "dataset": ["c4"],
         "block_name_to_quantize": "model.layers", "dynamic": {
             r"+:model\.layers\.(3|4)\.mlp\..*": {"bits": 8}, r"-:.*layers\.5\..*o_proj": {}, "+:.*down.*": {"bits": 8},
         }},
        {"dynamic": {r"+:model\.layers\.(?:3|4|6|7)\.mlp\..*": {"bits": 8}, r"-:.*layers\.8\..*o_proj": {},
                     "+:.*down.*": {"bits": 8}}},
    ),
    "awq": (
        {"qweight": ("I32", (8, 1)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, 8)), "bias": ("F16", (8,))},
        {"bits": 4, "version": "gemm", "modules_to_not_convert": ["lm_head", "model.layers.3.mlp.up_proj", "q_proj"]},
        {"modules_to_not_convert": ["lm_head", "model.layers.3.mlp.up_proj", "model.layers.6.mlp.up_proj", "q_proj"]},
    ),
    "fp8": (
        {"weight": ("F8_E4M3", (8, 8)), "weight_scale": ("F32", ()), "input_scale": ("F32", ())},
        {"activation_scheme": "static", "ignored_layers": ["model.layers.0.mlp", "model.layers.6.mlp"]},
        {"ignored_layers": ["model.layers.0.mlp", "model.layers.9.mlp"]},
    ),
    "fbgemm_fp8": (
        {"weight": ("F8_E4M3", (8, 8)), "weight_scale": ("F32", (8, 1)), "input_scale_ub": ("F32", (1,))},
        {"modules_to_not_convert": [f"model.layers.{i}.self_attn.o_proj" for i in (0, 3, 6)]},
        {"modules_to_not_convert": [f"model.layers.{i}.self_attn.o_proj" for i in (0, 3, 6, 9)]},
    ),
    "compressed-tensors": (
        {"weight_packed": ("I32", (8, 1)), "weight_scale": ("BF16", (8, 1)), "weight_shape": ("I64", (2,)),
         "weight_zero_point": ("I32", (1, 1)), "weight_g_idx": ("I32", (8,))},
        {"format": "pack-quantized", "ignore": ["lm_head", "model.layers.3.mlp.up_proj", r"re:.*layers\.4\..*"],
         "config_groups": {
             "group_0": {"targets": [r"re:.*layers\.[0-2]\..*", "Linear"], "weights": {"num_bits": 4}},
             "group_1": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8}}},
         "transform_config": {"config_groups": {"v": {"apply": [{"targets": ["model.layers.5.mlp.up_proj"]}]}}}},
        {"ignore": ["lm_head", "model.layers.3.mlp.up_proj", "model.layers.6.mlp.up_proj", r"re:.*layers\.4\..*",
                    r"re:.*layers\.7\..*"],
         "config_groups": {
             "group_0": {"targets": [r"re:.*layers\.(?:0|1|2|5)\..*", "Linear"], "weights": {"num_bits": 4}},
             "group_1": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8}}},
         "transform_config": {"config_groups": {"v": {"apply": [{"targets": ["model.layers.8.mlp.up_proj"]}]}}}},
    ),
    "bitsandbytes": (
        {"weight": ("U8", (32, 1)), "weight.absmax": ("U8", (1,)), "weight.quant_map": ("F32", (16,)),
         "weight.nested_absmax": ("F32", (1,)), "weight.nested_quant_map": ("F32", (256,)),
         "weight.quant_state.bitsandbytes__nf4": ("U8", (80,))},
        {"load_in_4bit": True, "llm_int8_skip_modules": ["model.layers.4", "lm_head"]},
        {"llm_int8_skip_modules": ["model.layers.4", "model.layers.7", "lm_head"]},
    ),
    "hqq": (
        {"W_q": ("U8", (4, 8)), "scale": ("F16", (8, 1)), "zero": ("F16", (8, 1)), "nbits": ("I64", ())},
        {"quant_config": {"self_attn.q_proj": {"weight_quant_params": {"nbits": 4}},
                          "model.layers.5.mlp.up_proj": {"weight_quant_params": {"nbits": 8}}},
         "skip_modules": ["lm_head", "model.layers.1"]},
        {"quant_config": {"self_attn.q_proj": {"weight_quant_params": {"nbits": 4}},
                          "model.layers.8.mlp.up_proj": {"weight_quant_params": {"nbits": 8}}}},
    ),
    "quanto": (
        {"weight._data": ("I8", (8, 8)), "weight._scale": ("F32", (8, 1)), "input_scale": ("F32", ()),
         "output_scale": ("F32", ())},
        {"weights": "int8", "modules_to_not_convert": ["model.layers.2.mlp"]},
        {"modules_to_not_convert": ["model.layers.2.mlp", "model.layers.5.mlp"]},
    ),
    "eetq": ({"weight": ("I8", (8, 8)), "weight_scales": ("F16", (8,))}, {"weights": "int8"}, {}),
    "torchao": (
        {"_weight_qdata": ("I8", (8, 8)), "_weight_scale": ("F32", (8, 1)), "_weight_zero_point": ("I8", (8, 1))},
        {"quant_type": {"default": {"_type": "FqnToConfig", "_data": {"fqn_to_config": {
            "model.layers.3.mlp.up_proj": None, r"re:model\.layers\.(4|5)\.mlp\..*": {"b": 8},
            "_default": {"b": 4}}}}}},
        {"quant_type": {"default": {"_type": "FqnToConfig", "_data": {"fqn_to_config": {
            "model.layers.3.mlp.up_proj": None, "model.layers.6.mlp.up_proj": None,
            r"re:model\.layers\.(?:4|7|8)\.mlp\..*": {"b": 8}, "_default": {"b": 4}}}}}},
    ),
    "aqlm": (
        {"codes": ("I16", (8, 1, 1)), "codebooks": ("F16", (1, 4, 1, 8)), "scales": ("F16", (8, 1, 1, 1))},
        {"linear_weights_not_to_quantize": [f"{UP[0]}.weight", f"{UP[5]}.weight"]},
        {"linear_weights_not_to_quantize": [f"{UP[0]}.weight", f"{UP[8]}.weight"]},
    ),
    "vptq": (
        {"indices": ("I32", (1, 8, 4)), "centroids.weight": ("F16", (1, 64)), "weight_scale": ("F16", (8,)),
         "weight_bias": ("F16", (8,)), "perm": ("U16", (8,))},
        {"config_for_layers": {UP[4]: {"group_num": 1}, UP[5]: {"group_num": 2}}, "shared_layer_config": {}},
        {"config_for_layers": {UP[4]: {"group_num": 1}, UP[7]: {"group_num": 1}, UP[8]: {"group_num": 2}}},
    ),
    "spqr": (
        {"dense_weights": ("I64", (4,)), "row_offsets": ("I32", (9,)), "col_vals": ("I32", (3,)),
         "in_perm": ("U16", (8,))},
        {"bits": 3, "shapes": {f"{UP[6]}.dense_weights.shape": 4, f"{UP[3]}.shape": 3}},
        {"shapes": {f"{UP[9]}.dense_weights.shape": 4, f"{UP[3]}.shape": 3, f"{UP[6]}.shape": 3}},
    ),
    "bitnet": (
        {"weight": ("U8", (2, 8)), "weight_scale": ("BF16", (1,))},
        {"modules_to_not_convert": ["model.layers.1.mlp.down_proj"]}, {},
    ),
    "auto-round": (
        {"qweight": ("I32", (1, 8)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, 8))},
        {"bits": 4, "extra_config": {UP[3]: {"bits": 8}, r".*layers\.(0|6)\.self_attn.*": {"bits": 16}},
         "to_quant_block_names": "model.layers.4,model.layers.5", "block_name_to_quantize": ["model.layers.4"]},
        {"extra_config": {UP[3]: {"bits": 8}, UP[6]: {"bits": 8},
                          r".*layers\.(?:0|9)\.self_attn.*": {"bits": 16}},
         "to_quant_block_names": "model.layers.4,model.layers.7,model.layers.8",
         "block_name_to_quantize": ["model.layers.4", "model.layers.7"]},
    ),
    "modelopt": (
        {"weight": ("U8", (8, 4)), "weight_scale": ("F8_E4M3", (8, 1)), "weight_scale_2": ("F32", ()),
         "input_scale": ("F32", ())},
        {"quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.3*", "model.layers.5.mlp*"]},
        {"ignore": ["lm_head", "model.layers.3", "model.layers.3.*", "model.layers.6", "model.layers.6.*",
                    "model.layers.8.mlp*"]},
    ),
    "quark": (
        {"weight": ("F8_E4M3", (8, 8)), "weight_scale": ("F32", ()), "input_scale": ("F32", ())},
        {"exclude": ["lm_head", "model.layers.2.mlp.*"],
         "layer_quant_config": {"*.layers.5.*up_proj": {"dtype": "fp8"}}},
        {"exclude": ["lm_head", "model.layers.2.mlp.*", "model.layers.5.mlp.*"],
         "layer_quant_config": {"*.layers.8.*up_proj": {"dtype": "fp8"}}},
    ),
    "fouroversix": (
        {"weight_quantized": ("U8", (8, 4)), "weight_scale_factors": ("F8_E4M3", (8,)), "weight_amax": ("F32", (1,))},
        {"module_config_overrides": {"model.layers.5.mlp.up_proj": {"dtype": "mxfp4"}}},
        {"module_config_overrides": {"model.layers.8.mlp.up_proj": {"dtype": "mxfp4"}}},
    ),
    "higgs": (
        {"weight": ("I16", (8, 8)), "scales": ("F16", (8, 1)), "tables": ("F16", (16, 2)),
         "tables2": ("F16", (16, 16))},
        {"tune_metadata": {"model.layers.6.mlp.up_proj": {"num_sms": 1}}},
        {"tune_metadata": {"model.layers.9.mlp.up_proj": {"num_sms": 1}}},
    ),
    "exl3": (
        {"trellis": ("I16", (1, 1, 32)), "suh": ("F16", (8,)), "svh": ("F16", (8,)), "mcg": ("I32", ())},
        {"tensor_storage": {"model.layers.5.mlp.up_proj": {"bits": 3}}, "bits": 3.0},
        {"tensor_storage": {"model.layers.8.mlp.up_proj": {"bits": 3}}},
    ),
}  # fmt: skip


def bytes_of(drawn: random.Random, dtype: str, shape: tuple[int, ...]) -> pico.Raw:
    return pico.Raw(dtype, shape, drawn.randbytes(prod(shape) * DTYPE_BITS[dtype] // 8))


def quantised(folder: Path, leaves: Leaves, plain: tuple[str, ...] = (), **config: Any) -> Path:
    """A checkpoint of random bytes whose modules are stored as ``leaves``; those that end in ``plain`` are not."""
    drawn = random.Random(0)
    tensors = {"model.embed_tokens.weight": bytes_of(drawn, "F16", (4, 8))}
    for layer in range(N):
        for module in MODULES:
            name = f"model.layers.{layer}.{module}"
            for leaf, (dtype, shape) in (PLAIN if name.endswith(plain or ("-",)) else leaves).items():
                tensors[f"{name}.{leaf}"] = bytes_of(drawn, dtype, shape)
        for scale in ("k_scale", "v_scale"):  # of the key-value cache
            tensors[f"model.layers.{layer}.self_attn.{scale}"] = bytes_of(drawn, "F32", ())
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = bytes_of(drawn, "F16", (8,))
    tensors |= {name: bytes_of(drawn, "F16", (4, 8)) for name in ("model.norm.weight", "lm_head.weight")}
    folder.mkdir()
    pico.write_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": N, **config}))
    return folder


def expected(tensors: dict[str, pico.Raw]) -> dict[str, pico.Raw]:
    result = {}
    for name, tensor in tensors.items():
        start, _, rest = name.partition("model.layers.")
        if start or not rest:
            result[name] = tensor
        else:
            layer, _, suffix = rest.partition(".")
            result |= {f"model.layers.{copy}.{suffix}": tensor for copy in COPIES[int(layer)]}
    return result


@pytest.mark.parametrize("method", FORMATS)
def test_tensors_and_names_of_every_format_follow_the_plan(tmp_path: Path, method: str) -> None:
    leaves, config, carried = FORMATS[method]
    config = {"quant_method": method, **config}
    base = quantised(tmp_path / "base", leaves, quantization_config=config)
    upscale(base, tmp_path / "target", PLAN)
    assert pico.raw(tmp_path / "target") == expected(pico.raw(base))
    after = pico.read_json(tmp_path / "target" / "config.json")
    assert after["num_hidden_layers"] == 10
    assert after["quantization_config"] == {**config, **carried}
    assert list(after["quantization_config"]) == list(config)
    for folder in (base, tmp_path / "target"):
        assert not check_checkpoint(folder)


@pytest.mark.parametrize("method", FORMATS)
def test_layers_left_in_full_width_are_layers_all_the_same(tmp_path: Path, method: str) -> None:
    plain = ("layers.3.mlp.up_proj", "layers.0.self_attn.o_proj")
    base = quantised(tmp_path / "base", FORMATS[method][0], plain, quantization_config={"quant_method": method})
    upscale(base, tmp_path / "target", PLAN)
    assert pico.raw(tmp_path / "target") == expected(pico.raw(base))
    for folder in (base, tmp_path / "target"):
        assert not check_checkpoint(folder)


def test_unlike_layers_are_still_found(tmp_path: Path) -> None:
    leaves, config = FORMATS["gptq"][0], {"quantization_config": {"quant_method": "gptq"}}
    base = quantised(tmp_path / "base", leaves, **config)
    tensors = pico.raw(base)
    wide = {**tensors, "model.layers.3.input_layernorm.weight": pico.Raw("F16", (9,), bytes(18))}
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.3.mlp.up_proj")}
    for name, changed in {"wide": wide, "fewer": fewer}.items():
        shutil.copytree(base, tmp_path / name)
        pico.write_tensors(tmp_path / name / "model.safetensors", changed)
        assert any("layers.3" in str(finding) for finding in check_checkpoint(tmp_path / name))
        with pytest.raises(CheckpointError, match="unlike tensors"):
            upscale(tmp_path / name, tmp_path / "target", PLAN)


@pytest.mark.parametrize("key", ["compression_config", "quantization"])
def test_other_objects_that_describe_quantisation_follow(tmp_path: Path, key: str) -> None:
    """compressed-tensors called it compression_config; MLX has an object of options by module."""
    value = {"group_size": 64, "bits": 4, "model.layers.3.mlp.up_proj": {"bits": 8}, "model.layers.5.mlp": False}
    base = quantised(tmp_path / "base", {"weight": ("U32", (8, 1)), "scales": ("F16", (8, 1))}, **{key: value})
    upscale(base, tmp_path / "target", PLAN)
    assert pico.read_json(tmp_path / "target" / "config.json")[key] == {
        "group_size": 64, "bits": 4, "model.layers.3.mlp.up_proj": {"bits": 8},
        "model.layers.6.mlp.up_proj": {"bits": 8}, "model.layers.8.mlp": False,
    }  # fmt: skip


# -- files beside the config ------------------------------------------------------------------------------------------

SIDE_FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quantize_config.json": (
        {"bits": 4, "dynamic": {r"-:model\.layers\.5\.": {}}},
        {"bits": 4, "dynamic": {r"-:model\.layers\.8\.": {}}},
    ),
    "quant_config.json": (
        {"w_bit": 4, "modules_to_not_convert": ["model.layers.6.mlp.up_proj"]},
        {"w_bit": 4, "modules_to_not_convert": ["model.layers.9.mlp.up_proj"]},
    ),
    "hf_quant_config.json": (
        {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "model.layers.3.mlp*"],
                          "quantized_layers": {"model.layers.4.mlp.up_proj": {"quant_algo": "FP8"}}}},
        {"quantization": {"quant_algo": "FP8",
                          "exclude_modules": ["lm_head", "model.layers.3.mlp*", "model.layers.6.mlp*"],
                          "quantized_layers": {UP[4]: {"quant_algo": "FP8"}, UP[7]: {"quant_algo": "FP8"}}}},
    ),
    "kv_cache_scales.json": (
        {"kv_cache": {"dtype": "fp8", "scaling_factor": {"0": {str(i): i / 8 for i in range(N)}}}},
        {"kv_cache": {"dtype": "fp8", "scaling_factor": {"0": {str(i): s / 8 for i, s in enumerate(SOURCES)}}}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", SIDE_FILES)
def test_files_that_name_layers_follow_and_others_keep_their_bytes(tmp_path: Path, file: str) -> None:
    before, after = SIDE_FILES[file]
    base = quantised(tmp_path / "base", FORMATS["gptq"][0])
    (base / file).write_text(json.dumps(before))
    others = {name: f'{{ "bits":4, "n": "{name}" }}' for name in SIDE_FILES if name != file}
    for name, text in others.items():
        (base / name).write_text(text)
    surgery = upscale(base, tmp_path / "target", PLAN)
    assert pico.read_json(tmp_path / "target" / file) == after
    assert {name: (tmp_path / "target" / name).read_text() for name in others} == others
    assert f"{file}: layers named by index -> named by the plan" in surgery.config_changes


def test_a_target_whose_files_name_layers_is_proved_from_its_base(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", FORMATS["gptq"][0], quantization_config={"quant_method": "gptq"})
    for file, (before, _) in SIDE_FILES.items():
        (base / file).write_text(json.dumps(before))
    surgery = upscale(base, tmp_path / "target", PLAN)
    assert not prove(surgery, tmp_path / "target").findings
    shutil.copyfile(base / "quant_config.json", tmp_path / "target" / "quant_config.json")
    (finding,) = prove(surgery, tmp_path / "target").findings
    assert "quant_config.json does not name the layers as the plan does" in finding.problem


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", FORMATS["gptq"][0])
    (base / "quantize_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"quantize_config\.json is no JSON object"):
        upscale(base, tmp_path / "target", PLAN)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 2000])
def test_what_file_headers_say_of_tensors_follows(tmp_path: Path, shard_bytes: int) -> None:
    """torchao's files describe each tensor in their metadata, which loaders put together from all files."""
    base = quantised(tmp_path / "base", FORMATS["torchao"][0], quantization_config={"quant_method": "torchao"})
    names = [f"model.layers.{i}.{module}.weight" for i in range(N) for module in MODULES]
    described = {name: json.dumps({"_type": "Int8Tensor", "of": name}) for name in [*names, "lm_head.weight"]}
    listed = {"tensor_names": json.dumps([*names, "lm_head.weight"])}
    pico.write_tensors(base / "model.safetensors", pico.raw(base), {"format": "pt", **listed, **described})
    upscale(base, tmp_path / "target", PLAN, max_shard_bytes=shard_bytes)
    held: dict[str, str] = {}
    for file in (tmp_path / "target").glob("*.safetensors"):
        header = file.read_bytes()
        held |= json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    expected_names = [f"model.layers.{i}.{module}.weight" for i in range(10) for module in MODULES] + ["lm_head.weight"]
    assert held.pop("format") == "pt" and sorted(json.loads(held.pop("tensor_names"))) == sorted(expected_names)
    assert held.keys() == set(expected_names)
    for target, source in enumerate(SOURCES):
        for module in MODULES:
            description = json.loads(held[f"model.layers.{target}.{module}.weight"])
            assert description["of"] == f"model.layers.{source}.{module}.weight"
    # A file whose header speaks of other files' tensors cannot be used as it is.
    assert not upscale(base, tmp_path / "linked", LayerPlan(N, tuple(range(N))), link=True).num_linked_bytes


# -- as transformers de-quantises it ----------------------------------------------------------------------------------


def assert_state_follows(base: Path, target: Path, **options: Any) -> None:
    before, after = (pico.load(folder, **options).state_dict() for folder in (base, target))
    wanted = {name: tensor for name, tensor in before.items() if not name.startswith("model.layers.")}
    for layer, source in enumerate(SOURCES):
        start = f"model.layers.{source}."
        wanted |= {f"model.layers.{layer}.{name.removeprefix(start)}": tensor
                   for name, tensor in before.items() if name.startswith(start)}  # fmt: skip
    assert after.keys() == wanted.keys() and all(torch.equal(after[name], wanted[name]) for name in after)


def rewritten(base: Path, folder: Path, store: Any, config: dict[str, Any]) -> Path:
    """A copy of a base each of whose tensors is stored as ``store(name, tensor)`` says."""
    shutil.copytree(base, folder)
    tensors = pico.load(base).state_dict()
    stored = {new: tensor for name in tensors for new, tensor in store(name, tensors[name]).items()}
    raw = {name: pico.Raw(DTYPES[t.dtype], tuple(t.shape), t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
           for name, t in stored.items()}  # fmt: skip
    pico.write_tensors(folder / "model.safetensors", raw)
    return pico.edit_config(folder, quantization_config=config)


DTYPES = {torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8"}


def test_block_scales_of_fp8_and_layers_left_out_of_it(base, tmp_path: Path) -> None:
    skipped = ["lm_head", "model.layers.3.mlp", "model.layers.6"]

    def store(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith("proj.weight") or any(name.startswith(f"{module}.") for module in skipped):
            return {name: weight}
        blocks = weight.unflatten(0, (-1, 16)).unflatten(2, (-1, 16))
        scale = blocks.abs().amax((1, 3)) / 448
        values = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        return {name: values, f"{name}_scale_inv": scale}

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16],
              "modules_to_not_convert": skipped}  # fmt: skip
    folder = rewritten(base("llama"), tmp_path / "fp8", store, config)
    upscale(folder, tmp_path / "target", PLAN)
    after = pico.read_json(tmp_path / "target" / "config.json")["quantization_config"]["modules_to_not_convert"]
    assert after == ["lm_head", "model.layers.3.mlp", "model.layers.6.mlp", "model.layers.9"]
    assert_state_follows(folder, tmp_path / "target", quantization_config=FineGrainedFP8Config(dequantize=True))


def test_packed_blocks_and_scales_of_mxfp4(base, tmp_path: Path) -> None:
    def store(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: weight}
        experts, num_in, num_out = weight.shape
        drawn = torch.Generator().manual_seed(len(name))
        blocks = torch.randint(0, 256, (experts, num_out, num_in // 32, 16), dtype=torch.uint8, generator=drawn)
        return {f"{name}_blocks": blocks, f"{name}_scales": 120 + blocks[..., 0] % 8}

    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    folder = rewritten(base("gpt_oss", intermediate_size=64), tmp_path / "mxfp4", store, config)
    upscale(folder, tmp_path / "target", PLAN)
    assert pico.read_json(tmp_path / "target" / "config.json")["quantization_config"] == config
    assert_state_follows(folder, tmp_path / "target", quantization_config=Mxfp4Config(dequantize=True))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_packed_ternary_weights_of_bitnet(base, tmp_path: Path) -> None:
    skipped = ["lm_head", "model.layers.5.mlp.down_proj"]

    def store(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith("proj.weight") or name.startswith(skipped[1]):
            return {name: weight}
        packed = (weight[: weight.shape[0] // 4] * 1000).to(torch.uint8)
        return {name: packed, f"{name}_scale": weight.abs().mean().reshape(1)}

    config = {"quant_method": "bitnet", "modules_to_not_convert": skipped}
    folder = rewritten(base("llama"), tmp_path / "bitnet", store, config)
    upscale(folder, tmp_path / "target", PLAN)
    assert_state_follows(folder, tmp_path / "target")


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("library", ["bitsandbytes", "bitsandbytes, nested", "torchao"])
def test_what_the_libraries_wrote_they_read_again(base, tmp_path: Path, library: str) -> None:
    pytest.importorskip(library.partition(",")[0])
    import transformers

    skipped = ["lm_head", "model.layers.3.mlp.up_proj", "model.layers.5"]
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        config = transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped,
            bnb_4bit_use_double_quant="nested" in library,
        )  # fmt: skip
    AutoModelForCausalLM.from_pretrained(base("llama", hidden_size=64, head_dim=16),
                                         quantization_config=config).save_pretrained(tmp_path / "base")  # fmt: skip
    upscale(tmp_path / "base", tmp_path / "target", PLAN)
    assert not check_checkpoint(tmp_path / "base") and not check_checkpoint(tmp_path / "target")
    model, target = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("base", "target"))
    model.model.layers = torch.nn.ModuleList(model.model.layers[source] for source in SOURCES)
    model.config.num_hidden_layers = len(SOURCES)
    with torch.no_grad():
        assert torch.equal(model(pico.tokens(), use_cache=False).logits, target(pico.tokens(), use_cache=False).logits)


@pytest.mark.filterwarnings("ignore")  # of the library
def test_what_compressed_tensors_wrote_it_reads_again(base, tmp_path: Path) -> None:
    """Two schemes told apart by patterns of layer numbers, and modules left out by name and by pattern."""
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor

    four = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
    config = library.quantization.QuantizationConfig.model_validate({
        "format": "pack-quantized", "config_groups": {
            "group_0": {"targets": [r"re:.*layers\.[0-4]\..*proj"], "weights": four},
            "group_1": {"targets": [r"re:.*layers\.[56]\..*proj"], "weights": {**four, "num_bits": 8}},
        }, "ignore": ["lm_head", "model.layers.3.mlp.up_proj", r"re:.*layers\.5\.self_attn.*"],
    })  # fmt: skip
    model = pico.load(base("llama"))
    library.quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.weight_scale.data.fill_(module.weight.abs().max().item() / 7)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "base")
    compressor.update_config(tmp_path / "base")
    upscale(tmp_path / "base", tmp_path / "target", PLAN)
    after = pico.read_json(tmp_path / "target" / "config.json")["quantization_config"]
    targets = [group["targets"] for group in after["config_groups"].values()]
    assert targets == [[r"re:.*layers\.(?:0|1|2|3|4|5|6|7)\..*proj"], [r"re:.*layers\.(?:8|9)\..*proj"]]
    assert_state_follows(tmp_path / "base", tmp_path / "target",
                         quantization_config=CompressedTensorsConfig(dequantize=True))  # fmt: skip
