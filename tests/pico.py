"""Tiny random checkpoints, built on the spot with transformers' own classes, and a reader that is not depthup's."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)  # tiny models lose more to threads than they gain

NUM_LAYERS = 7  # odd, so that the upper copy falls out of step with any period of 2
VOCAB_SIZE = 320
END = "<|endoftext|>"

_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128,
}  # fmt: skip
_GPT = {"n_embd": 32, "n_head": 4, "n_positions": 128}
_NEOX = {key: _LLAMA[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
_MOE = {**_LLAMA, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_SLIDING = {**_LLAMA, "sliding_window": 16}

# name -> (model type, config fields). The depth is put in under each family's own key.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama_tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "llama_bias": ("llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", _SLIDING),
    "qwen2": ("qwen2", _LLAMA),
    "qwen2_sliding": ("qwen2", {**_SLIDING, "use_sliding_window": True, "max_window_layers": 3}),
    "qwen2_moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0, 3]}),
    "qwen3": ("qwen3", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", _MOE),
    "gemma": ("gemma", _LLAMA),
    "gemma2": ("gemma2", {**_SLIDING, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma3_text", {**_SLIDING, "query_pre_attn_scalar": 8}),
    "gpt2": ("gpt2", _GPT),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "gpt_neo": ("gpt_neo", {
        "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "max_position_embeddings": 128, "window_size": 8,
        "attention_types": [[["global", "local"], 3], [["local"], 1]],
    }),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_oss": ("gpt_oss", {**_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": ("mixtral", {**_LLAMA, "num_local_experts": 4}),
    "phi": ("phi", _NEOX),
    "phi3": ("phi3", {key: value for key, value in _LLAMA.items() if key != "head_dim"}),
    "granite": ("granite", _LLAMA),
    "olmo2": ("olmo2", _LLAMA),
    "olmo3": ("olmo3", _SLIDING),
    "starcoder2": ("starcoder2", _LLAMA),
    "smollm3": ("smollm3", _LLAMA),
    "cohere2": ("cohere2", _SLIDING),
    "stablelm": ("stablelm", _LLAMA),
    "bloom": ("bloom", {"hidden_size": 32, "n_head": 4}),
    "opt": ("opt", {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128}),
    "falcon": ("falcon", {**_NEOX, "ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mamba": ("mamba", {"hidden_size": 32, "state_size": 4}),
}  # fmt: skip
# Families whose layers hold unlike tensors by a number in the config: the first k are dense, every k-th is.
UNLIKE_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2": ("deepseek_v2", {
        **_NEOX, "moe_intermediate_size": 16, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "max_position_embeddings": 128,
    }),
    "ernie4_5_moe": ("ernie4_5_moe", {
        **_LLAMA, "moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1,
    }),
}  # fmt: skip


def model(family: str = "llama", num_layers: int = NUM_LAYERS, seed: int = 0, **fields: Any) -> Any:
    """A model in evaluation mode, each of whose weights is random: no two layers share a tensor, norms included."""
    model_type, defaults = {**FAMILIES, **UNLIKE_FAMILIES}[family]
    torch.manual_seed(seed)
    tokens = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**defaults, **tokens, "num_hidden_layers": num_layers, **fields})
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return built


def checkpoint(
    folder: Path, family: str = "llama", *, num_layers: int = NUM_LAYERS, shard_size: str | None = None, seed: int = 0,
    dtype: torch.dtype = torch.float32, tokenizer: bool = False, **fields: Any,
) -> Path:  # fmt: skip
    """Write a tiny checkpoint, sharded when ``shard_size`` (as in ``"20KB"``) is given, and return its folder."""
    built = model(family, num_layers, seed, **fields).to(dtype)
    built.config.dtype = dtype
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    built.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    if bars:
        transformers.utils.logging.enable_progress_bar()
    if tokenizer:
        tiny_tokenizer(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    """The folder as transformers loads it, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def load_with_info(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of missing, unexpected and mis-shaped keys."""
    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)


def tokens(num_tokens: int = 24, num_rows: int = 2, seed: int = 1) -> torch.Tensor:
    """Random token ids, none of them special, of shape [num_rows, num_tokens]."""
    return torch.randint(1, VOCAB_SIZE, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Write a lossless byte-level BPE tokenizer of ``VOCAB_SIZE`` tokens with a chat template into ``folder``."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()), bos_token=END, eos_token=END, pad_token=END,
        chat_template=(
            "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token + '\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        ),
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return tokenizer


@functools.cache
def _trained_tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    text = "The user asks the assistant a question and the assistant answers. What is the sum of the first and second?"
    tokenizer.train_from_iterator([text, text.lower(), "user: assistant: system: there is another one, is there not?"],
                                  trainer)  # fmt: skip
    return tokenizer.to_str()


class Raw(NamedTuple):
    """One tensor as the safetensors library reads it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def raw(folder: Path) -> dict[str, Raw]:
    """Every tensor of a folder by the safetensors library and its index, not by depthup."""
    index = folder / "model.safetensors.index.json"
    shards = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    found = [item for shard in shards for item in safetensors.deserialize((folder / shard).read_bytes())]
    return {name: Raw(info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in found}


def write_tensors(path: Path, tensors: dict[str, Raw], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file of any types, by hand: the library writes only the types of an array package."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position := position + len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values()))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def edit_config(folder: Path, **fields: Any) -> Path:
    """Change fields of a folder's config.json; a field given as ``...`` is removed."""
    config = {**read_json(folder / "config.json"), **fields}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder
