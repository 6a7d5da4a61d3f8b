"""Broken checkpoints for the fuzz tests: small whole ones, edits of their JSON and bytes, and values seldom right."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

from depthup.checkpoint import fields
from depthup.checkpoint.names import DEPTH_KEYS
from depthup.checkpoint.reader import DTYPE_BITS, INDEX_NAME, SINGLE_NAME

N = 5  # layers of each base


class Text(str):
    """JSON text that stands in the file as it is: numbers of any length, any depth, no JSON at all."""


class Pairs(list[list[Any]]):
    """A JSON object as a list of [key, value], so that a key can stand twice."""


def to_tree(value: Any) -> Any:
    """A JSON value with its objects as :class:`Pairs`, all of it new."""
    if isinstance(value, dict):
        return Pairs([key, to_tree(item)] for key, item in value.items())
    return [to_tree(item) for item in value] if isinstance(value, list) else value


def to_text(tree: Any) -> str:
    if isinstance(tree, Text):
        return tree
    if isinstance(tree, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{to_text(value)}" for key, value in tree) + "}"
    return "[" + ",".join(map(to_text, tree)) + "]" if isinstance(tree, list) else json.dumps(tree)


# -- whole checkpoints -----------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """A checkpoint in pieces: JSON trees, and the bytes behind each header."""

    config: Any
    headers: dict[str, Any]
    data: dict[str, bytes]
    index: Any = None
    plain: bool = True  # whether every tensor of the target is one of the base
    config_name: str = "config.json"
    others: dict[str, Any] = field(default_factory=dict)  # JSON files beside them

    def files(self) -> dict[str, bytes]:
        """The files of the checkpoint by name."""
        files = {name: to_text(tree).encode() for name, tree in {self.config_name: self.config, **self.others}.items()}
        if self.index is not None:
            files[INDEX_NAME] = to_text(self.index).encode()
        for name, header in self.headers.items():
            text = to_text(header).encode()
            files[name] = len(text).to_bytes(8, "little") + text + self.data[name]
        return files


def shard(tensors: dict[str, tuple[str, list[int]]]) -> tuple[Any, bytes]:
    """A header, and data in which no two tensors of up to 59 are alike."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for number, (name, (dtype, shape)) in enumerate(tensors.items()):
        size = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes((number * 37 + place) % 59 for place in range(size))  # as floats below 1
    return to_tree(header), data


def parts(
    config: dict[str, Any],
    layers: str = "model.layers",
    num_shards: int = 1,
    also: str | None = None,
    more: dict[str, tuple[str, list[int]]] | None = None,
) -> Parts:
    names: dict[str, tuple[str, list[int]]] = {"model.embed_tokens.weight": ("F32", [3, 2]), **(more or {})}
    for prefix in filter(None, (layers, also)):
        for layer in range(N):
            names[f"{prefix}.{layer}.self_attn.o_proj.weight"] = ("BF16", [2, 2])
            names[f"{prefix}.{layer}.mlp.up_proj.weight"] = ("BF16", [3, 2])
            names[f"{prefix}.{layer}.mlp.down_proj.weight"] = ("BF16", [2, 3])
            names[f"{prefix}.{layer}.norm.weight"] = ("F32", [2])
    names |= {"model.norm.weight": ("F32", [2]), "lm_head.weight": ("F32", [3, 2])}
    if num_shards == 1:
        files = {SINGLE_NAME: names}
    else:
        files = {f"model-{i + 1:05}-of-{num_shards:05}.safetensors": dict(list(names.items())[i::num_shards])
                 for i in range(num_shards)}  # fmt: skip
    built = {file: shard(held) for file, held in files.items()}
    weight_map = {name: file for file, held in files.items() for name in held}
    return Parts(
        to_tree(config),
        {file: header for file, (header, _) in built.items()},
        {file: data for file, (_, data) in built.items()},
        to_tree({"metadata": {"total_size": 1}, "weight_map": weight_map}) if num_shards > 1 else None,
    )


_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": N, "hidden_size": 2,
    "intermediate_size": 3, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 3,
    "torch_dtype": "float32", "tie_word_embeddings": False, "rope_scaling": {"factor": 8.0}, "eos_token_id": [0, 2],
}  # fmt: skip
_KINDS = {"layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"], "mlp_only_layers": [1, 3]}
_QUANTISED = {"quant_method": "x", "ignore": ["lm_head", "model.layers.0.mlp"], "layers.1": {"bits": 4}}
BASES = {
    "one file": parts(_LLAMA),
    "sharded": parts(_LLAMA, num_shards=3),
    "kinds": parts({**_LLAMA, **_KINDS, "sliding_window_pattern": 2}),
    "implied": parts({**_LLAMA, "model_type": "gemma3_text", "sliding_window_pattern": 2}),
    "thresholds": parts({**_LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4,
                         "max_window_layers": 2, "first_k_dense_replace": 1}),
    "quantised": parts({**_LLAMA, "quantization_config": _QUANTISED}, num_shards=2),
    "nested": parts({"model_type": "vlm", "num_hidden_layers": N, "text_config": _LLAMA,
                     "vision_config": {"depth": N}}, also="visual.blocks"),
    "gpt2": parts({"model_type": "gpt2", "n_layer": N, "n_embd": 2, "n_head": 1, "vocab_size": 3, "n_positions": 4,
                   "architectures": ["GPT2LMHeadModel"]}, layers="transformer.h"),
}  # fmt: skip

BASES["encoder and decoder"] = parts(
    {"model_type": "mt5", "num_layers": N, "num_decoder_layers": N, "d_model": 2}, "encoder.block", also="decoder.block"
)
BASES["sparse"] = parts({**_LLAMA, "model_type": "qwen2_moe", "decoder_sparse_step": 1, "mlp_only_layers": [1]})
BASES["special"] = parts(
    {**_LLAMA, "model_type": "gemma3n_text", "hidden_size_per_layer_input": 2, "num_nextn_predict_layers": 1,
     "out_indices": [1, -1], "num_kv_shared_layers": 1},
    more={"model.embed_tokens_per_layer.weight": ("F32", [3, 2 * N]), "layer_weights": ("F32", [N + 1]),
          **{f"model.layers.{N}.{suffix}": ("BF16", [2, 2]) for suffix in ("a", "b", "c", "d")}},
)  # fmt: skip
BASES["special"].plain = False
BASES["grown"] = parts(_LLAMA)
BASES["grown"].others["depthup.json"] = to_tree({
    "depthup": "0.1", "stack": "model.layers", "config_lists": {}, "base": {"name": "x", "files": {}},
    "plan": {"num_base_layers": 3, "layers": "0-2,1-2"},
    "history": [{"base": "y", "stack": "model.layers", "plan": {"num_base_layers": 2, "layers": "0-1,1:identity"}}],
})  # fmt: skip
_PATTERNS = {
    "quant_method": "gptq", "dynamic": {"+:.*\\.(?:[0-9]|1[0-9])\\..*": {}}, "ignore": ["re:.*layers\\.(1|2)\\..*"],
    "modules_to_not_convert": ["model.layers.3.mlp", "layers.1", "*.4.mlp*"],
}  # fmt: skip
BASES["patterns"] = parts({**_LLAMA, "quantization_config": _PATTERNS})
BASES["patterns"].others |= {
    "quantize_config.json": to_tree(_PATTERNS),
    "kv_cache_scales.json": to_tree({"kv_cache": {"scaling_factor": {"0": {str(i): i for i in range(N)}}}}),
}


def adapter(config: dict[str, Any], tensors: dict[str, tuple[str, list[int]]]) -> Parts:
    header, data = shard(tensors)
    file = "adapter_model.safetensors"
    return Parts(to_tree(config), {file: header}, {file: data}, config_name="adapter_config.json")


_LORA = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "base", "bias": "none"}
_ON = {f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": ("F32", [2, 2])
       for layer in range(N) for side in "AB"}  # fmt: skip
ADAPTERS = {
    "plain": adapter({**_LORA, "target_modules": ["q_proj"]}, _ON),
    "chosen": adapter(
        {**_LORA, "target_modules": ".*\\.layers\\.[0-4]\\.self_attn\\.q_proj", "modules_to_save": ["lm_head"],
         "rank_pattern": {"layers.1.self_attn.q_proj": 4}, "exclude_modules": ["v_proj"], "layers_pattern": "layers"},
        _ON),
    "numbered": adapter(
        {**_LORA, "target_modules": ["q_proj"], "layers_to_transform": [1, 2], "layers_pattern": ["layers"]},
        {name: form for name, form in _ON.items() if ".1." in name or ".2." in name}),
    "prefix": adapter({"peft_type": "PREFIX_TUNING", "num_layers": N, "token_dim": 2, "num_transformer_submodules": 1},
                      {"prompt_embeddings": ("F32", [3, 4 * N])}),
}  # fmt: skip

# -- values ----------------------------------------------------------------------------------------------------------

_NAMES = (
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "\ud800", "\udcff", "é", "\x1b[2J", "a\nb", "x" * 300,
    "x" * 5000, SINGLE_NAME, INDEX_NAME, "config.json", "/dev/zero", "C:\\x", "model-00001-of-00003.safetensors",
    "__metadata__", "model.layers", "model.layers.", "model.layers.0", "model.layers.5.norm.weight",
    "model.layers.007.norm.weight", "model.layers.04.norm.weight", "model.layers.-1.norm.weight",
    "model.layers.\u0663.norm.weight", "model.layers.9999999.w", "model.layers.999999.w", "model.layers.1.",
    "model.layers..1", "0.1.2", "layers.0",
    "h.3", ".0", "0", "lm_head.weight", "model.layers.1.norm.weight", "other.0.w", "model.layers." + "9" * 5000,
    "layers.٣", "layers.001.q", "re:(", "re:a{99999999999}", "+:[[a]", "layers.*", ".*\\.layers\\.(1|3)\\..*",
    "re:" + "(" * 3000, "re:.*layers.1", "0-4", "0-2,2:identity", "0-99999", "LORA", "PREFIX_TUNING",
    "full_attention", "sliding_attention", "NaN", "5", "5.0",
)  # fmt: skip
_LITERALS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "0.1e-400", "9" * 40, "9" * 5000, "-" + "9" * 4300, "9" * 4300,
    "1." + "0" * 5000, "[" * 90 + "]" * 90, "[" * 600 + "]" * 600, "[" * 10_000 + "]" * 10_000,
    '{"text_config":' * 90 + "1" + "}" * 90, '{"text_config":' * 300 + '{"num_hidden_layers":5}' + "}" * 300,
    '{"a":' * 10_000 + "1" + "}" * 10_000, '{"a":1,"a":2}', '{"num_hidden_layers":5,"num_hidden_layers":5}',
    "[0,1,2,3,99]", '[99,"a"]', '[[],{},null,1,"a"]', '"\\ud800"', '["\\udc00"]', '"\\u0000"', "nonsense", "",
    "{", "'a'",
)  # fmt: skip
_TABLES = [table for name, table in vars(fields).items() if name.isupper() and isinstance(table, dict | frozenset)]
_MODEL_TYPES = sorted({*fields.IMPLIED, *fields.UNSTATED, *fields.INDEX_DEPENDENT, *fields.SPECIAL_ENDS, "mistral"})
_KEYS = sorted({
    *DEPTH_KEYS, *(key for table in _TABLES for key in table), "model_type", "text_config", "vision_config",
    "audio_config", "quantization_config", "architectures", "tie_word_embeddings", "hidden_size", "dtype",
    "torch_dtype", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "intermediate_size",
    "use_sliding_window", "sliding_window", "n_embd", "n_head", "n_inner", "n_positions", "attention_bias", "mlp_bias",
    "peft_type", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "layer_replication", "rank_pattern", "alpha_pattern", "target_parameters", "adapter_layers", "token_dim", "plan",
    "history", "stack", "base", "config_lists", "num_base_layers", "layers", "ignore", "dynamic", "extra_config",
    "num_kv_shared_layers", "num_nextn_predict_layers", "hidden_size_per_layer_input", "scale_depth", "encoder",
    "decoder", "weight_map", "metadata", "shape", "data_offsets",
})  # fmt: skip
_NUMBERS = (0, -1, 1, 2, 3, 4, N, N + 1, 10, 99, 10**5, 10**6, 10**9, 2**31, 2**48, 2**53, 2**63, 2**64, -(2**63),
            10**30, 0.0, 5.0, -1.5, 1e308, 1e-5)  # fmt: skip

_WORDS = (None, True, False, *_NUMBERS, *_NAMES, *_MODEL_TYPES, *DTYPE_BITS)
_EMPTY = ([], Pairs(), [[]], [Pairs()], [None] * N, [[["global", "local"], 3]], Pairs([["0", 1]]))


def odd_key(random: Random) -> str:
    return random.choice(_KEYS if random.random() < 0.7 else _NAMES)


def odd_scalar(random: Random) -> Any:
    draw = random.random()
    if draw < 0.55:
        return random.choice(_WORDS)
    if draw < 0.65:
        return Text(random.choice(_LITERALS))
    return random.randint(-3, 12) if draw < 0.9 else "".join(map(chr, random.choices(range(0x300), k=3)))


def odd_value(random: Random) -> Any:
    draw = random.random()
    if draw < 0.5:
        return odd_scalar(random)
    if draw < 0.65:
        return [odd_scalar(random) for _ in range(random.randint(0, N + 1))]
    if draw < 0.75:
        return [odd_scalar(random)] * N
    if draw < 0.9:
        return Pairs([odd_key(random), odd_scalar(random)] for _ in range(random.randint(0, 3)))
    return copy.deepcopy(random.choice(_EMPTY))


# -- edits -----------------------------------------------------------------------------------------------------------


def edit_tree(tree: Any, random: Random) -> Any:
    """The tree after one edit at a random place, of its top with a small chance."""
    what = random.choice(("replace", "delete", "twice", "insert", "insert", "rename", "wrap", "swap", "tweak", "tweak"))
    slots = _slots(tree)
    if not slots or random.random() < 0.02:
        return [tree] if what == "wrap" else odd_value(random)
    container, at = random.choice(slots)
    item, pairs = container[at], isinstance(container, Pairs)
    if what == "delete":
        del container[at]
    elif what == "twice":
        other = odd_value(random) if random.random() < 0.5 else copy.deepcopy(item[1] if pairs else item)
        container.insert(random.randint(0, len(container)), [item[0], other] if pairs else other)
    elif what == "insert":
        container.insert(at, [odd_key(random), odd_value(random)] if pairs else odd_value(random))
    elif what == "rename" and pairs:
        item[0] = odd_key(random) if random.random() < 0.5 else str(tweak(item[0], random))
    elif what == "tweak" and pairs:
        item[1] = tweak(item[1], random)
    elif what == "tweak":
        container[at] = tweak(item, random)
    elif what == "swap":
        other, there = random.choice(slots)
        if isinstance(other, Pairs) == pairs and not _within(other, item) and not _within(container, other[there]):
            container[at], other[there] = other[there], container[at]
    elif pairs:
        item[1] = Pairs([[odd_key(random), item[1]]]) if what == "wrap" else odd_value(random)
    else:
        container[at] = [item] if what == "wrap" else odd_value(random)
    return tree


def tweak(value: Any, random: Random) -> Any:
    """A value a little beside the one that was right: the next number, another type, one letter or part of a name."""
    if isinstance(value, bool) or value is None:
        return random.choice((not value, str(value).lower(), int(bool(value)), None))
    if isinstance(value, int | float):
        beside = (value + 1, value - 1, -value, value * 10**9)
        return random.choice((*beside, float(value), str(value), bool(value), [value]))
    if isinstance(value, str) and value:
        at = random.randrange(len(value))
        letter = random.choice("0123456789.-_ ٣é\x00\n\ud800/\\*")
        parts = value.split(".")
        place = random.randrange(len(parts))
        parts[place] = random.choice(("", "0" + parts[place], "1", "4", "5", "layers", "*", parts[place] * 2))
        cut = value[:at] + value[at + 1 :]
        return random.choice((value[:at] + letter + value[at + 1 :], cut, value + letter, value + ".", ".".join(parts)))
    return odd_value(random)


def _slots(tree: Any) -> list[tuple[list[Any], int]]:
    """Every place of a value in the tree: its container and the index there."""
    found: list[tuple[list[Any], int]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            found += [(node, at) for at in range(len(node))]
            waiting += [item[1] for item in node] if isinstance(node, Pairs) else node
    return found


def _within(node: Any, tree: Any) -> bool:
    return node is tree or (isinstance(tree, list) and any(_within(node, item) for item in tree))


def edit_bytes(data: bytes, random: Random) -> bytes:
    """The bytes with some set, cut out or put in, at one random place."""
    place, more = random.randint(0, len(data)), random.randbytes(random.randint(1, 4))
    end = place + random.choice((0, len(more), 9 * len(more), len(data)))
    return data[:place] + random.choice((more, b"")) + data[end:]


def broken(random: Random, bases: dict[str, Parts] = BASES) -> Parts:
    """One of the bases after one to three edits of the config, of a header, of the index or of other JSON."""
    result = copy.deepcopy(bases[random.choice(sorted(bases))])
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        part = random.choice(("config", "config", "config", "header", "index", "others"))
        if part == "index" and result.index is not None:
            result.index = edit_tree(result.index, random)
        elif part == "others" and result.others:
            name = random.choice(sorted(result.others))
            result.others[name] = edit_tree(result.others[name], random)
        elif part == "header":
            name = random.choice(sorted(result.headers))
            result.headers[name] = edit_tree(result.headers[name], random)
        else:
            result.config = edit_tree(result.config, random)
    return result


def random_file(random: Random) -> bytes:
    """Bytes that have nothing to do with a checkpoint: noise, noise behind its length, JSON, JSON behind its length."""
    noise = random.randbytes(random.randint(0, 200))
    content = noise if random.random() < 0.5 else to_text(odd_value(random)).encode()
    return content if random.random() < 0.5 else len(content).to_bytes(8, "little") + content
