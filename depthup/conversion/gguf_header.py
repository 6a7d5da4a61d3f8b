"""The config that the header of a GGUF file states, in the standard library alone: no weights are read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3: magic, version, counts of tensors and
of metadata, then the metadata as typed key-value pairs).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, shown

# Type number -> its form for struct; 8 is text, 9 a list.
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MOST = 1 << 26  # bytes of a text, members of a list: a damaged file must not fill the memory
# Name in the header -> name in config.json.
_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}


def read_config_of(file: Path) -> dict[str, Any]:
    """The sizes of a model as ``config.json`` would state them; its head counts as tied if the file holds none.

    Raises:
        CheckpointError: The file is missing, no GGUF file, or damaged.
    """
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            fields, names = _Header(data).read()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}", next_step="check the path") from error
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file} is not a whole GGUF file of version 2 or 3: {shown(str(error))}", next_step="download it again"
        ) from error
    family = str(fields.get("general.architecture"))
    config = {key: fields[f"{family}.{name}"] for name, key in _SIZES.items() if f"{family}.{name}" in fields}
    vocab = fields.get(f"{family}.vocab_size") or fields.get("tokenizer.ggml.tokens")
    is_mixture = family == "llama" and bool(config.get("num_local_experts"))
    return {
        "model_type": "mixtral" if is_mixture else _FAMILIES.get(family, family), "vocab_size": vocab,
        "tie_word_embeddings": "output.weight" not in names, **config,
    }  # fmt: skip


_FAMILIES = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe", "qwen2moe": "qwen2_moe"}


class _Header:
    """Reads a header from front to back."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def read(self) -> tuple[dict[str, Any], set[str]]:
        """Metadata (of a list its length alone) and the names of the tensors."""
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.position = 4
        version, num_tensors, num_fields = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3) or max(num_tensors, num_fields) > _MOST:
            raise ValueError(f"version {version} with {num_tensors} tensors and {num_fields} fields")
        fields = {}
        for _ in range(num_fields):
            key = self.text()
            fields[key] = self.value(self.number("I"))
        names = set()
        for _ in range(num_tensors):
            names.add(self.text())
            num_dimensions = self.number("I")
            self.position += 8 * num_dimensions + 12  # its shape, type and offset
        return fields, names

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            return self.number(_FORMS[kind])
        inner, length = self.number("I"), self.number("Q")
        if length > _MOST:
            raise ValueError(f"a list of {length} members")
        if inner == _TEXT:
            unpack, data, position = struct.Struct("<Q").unpack_from, self.data, self.position
            for _ in range(length):  # the tokens: 50,000 and more
                position += 8 + unpack(data, position)[0]
            self.position = position
        else:
            self.position += length * struct.calcsize(f"<{_FORMS[inner]}")
        return length

    def number(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self.data, self.position)[0]
        self.position += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        start, self.position = self.position, self.position + length
        if length > _MOST or self.position > len(self.data):
            raise ValueError(f"a text of {length} bytes")
        return self.data[start : self.position].decode()
