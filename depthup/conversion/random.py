"""A random tiny model as a checkpoint folder: Llama architecture, one token a byte. To try a recipe, not to be good."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..files import write_json

_END = "<|endoftext|>"
_HEAD_DIM = 16


def write_random(folder: Path, num_layers: int, hidden_size: int, seed: int = 0) -> None:
    """Write config, weights and tokenizer into an existing folder.

    Args:
        folder: Where.
        num_layers: Depth.
        hidden_size: Width, a multiple of 16 (the size of a head).
        seed: Of the weights.
    """
    tokenizer = _byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END, "bos_token": _END, "pad_token": _END,
        "model_max_length": 1024, "clean_up_tokenization_spaces": False,
    })  # fmt: skip
    vocab, inner, heads = tokenizer.get_vocab_size(), 2 * hidden_size, hidden_size // _HEAD_DIM
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden_size,
        "intermediate_size": inner, "num_hidden_layers": num_layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "head_dim": _HEAD_DIM, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "dtype": "float32", "eos_token_id": vocab - 1, "bos_token_id": vocab - 1,
    })  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return 0.02 * torch.randn(rows, columns, generator=generator)

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden_size), "model.norm.weight": torch.ones(hidden_size)}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = matrix(hidden_size, hidden_size)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = matrix(inner, hidden_size)
        tensors[f"{prefix}.mlp.up_proj.weight"] = matrix(inner, hidden_size)
        tensors[f"{prefix}.mlp.down_proj.weight"] = matrix(hidden_size, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = torch.ones(hidden_size)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, special=True)])
    return tokenizer
