"""Whether two checkpoints may be averaged: they compute alike, and an id means the same token in both.

Weights of models that turn positions by other angles, or give one id to two tokens, are averaged without complaint and
give a model that is worse than each; nothing in the tensors shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..checkpoint.reader import Checkpoint
from ..errors import CheckpointError, shown

# Fields of a config that do not change what a model computes from its weights, within the length it was trained for.
_IDLE = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "auto_map", "bos_token_id", "dtype",
    "embd_pdrop", "eos_token_id", "hidden_dropout", "initializer_range", "max_position_embeddings", "model_max_length",
    "pad_token_id", "resid_pdrop", "torch_dtype", "transformers_version", "unk_token_id", "use_cache",
})  # fmt: skip


def require_kin(one: Checkpoint, other: Checkpoint) -> None:
    """Both compute alike by their configs, and no id is another token in one than in the other.

    A field that only one of them states counts unless it says nothing (null, false, an empty list): defaults differ
    from version to version.

    Raises:
        CheckpointError: They do not; it names the field, or the id.
    """
    mine, theirs = _computing(one.config), _computing(other.config)
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise CheckpointError(
                f"the configs of {one.folder} and {other.folder} differ in {key}:"
                f" {shown(mine.get(key, 'not stated'))} and {shown(theirs.get(key, 'not stated'))}",
                next_step="merge models trained from one; where both mean the same, state it alike in both config.json",
            )
    tokens, others = _tokens(one), _tokens(other)
    for number in sorted(tokens.keys() & others.keys()):
        if tokens[number] != others[number]:
            raise CheckpointError(
                f"id {number} is the token {shown(tokens[number])} in {one.folder} and {shown(others[number])} in"
                f" {other.folder}",
                next_step="merge models with one tokenizer",
            )


def _computing(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields that change what is computed, those of inner configs under dotted names; rope in one spelling."""
    fields = dict(config)
    ropes = [fields.pop(name, None) or {} for name in ("rope_parameters", "rope_scaling")]
    if all(isinstance(rope, Mapping) for rope in ropes):
        rope = {"rope_type" if key == "type" else key: value for each in ropes for key, value in each.items()}
        if fields.get("rope_theta") is not None:
            rope.setdefault("rope_theta", fields["rope_theta"])
        fields.pop("rope_theta", None)
        if rope.get("rope_type") == "default":
            rope.pop("rope_type")
        fields["rope"] = rope
    found: dict[str, Any] = {}
    for key, value in fields.items():
        if key in _IDLE or value is None or value is False or value == [] or key.startswith("_"):
            continue
        if isinstance(value, Mapping):
            found.update(_computing(value, f"{prefix}{key}.") if key != "rope" else
                         {f"{prefix}rope.{name}": each for name, each in value.items()})  # fmt: skip
        else:
            found[prefix + key] = value
    return found


def _tokens(checkpoint: Checkpoint) -> dict[int, str]:
    """Id -> token, of ``tokenizer.json``; empty where there is none, or it lists its tokens in another way."""
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary, added = content["model"]["vocab"], content.get("added_tokens") or []
        if isinstance(vocabulary, Mapping):
            found = {int(number): str(token) for token, number in vocabulary.items()}
        else:  # of a unigram model: pairs of token and score
            found = {number: str(token) for number, (token, _) in enumerate(vocabulary)}
        return found | {int(each["id"]): str(each["content"]) for each in added}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a tokenizer: {error}", next_step="get this file again, or take it out"
        ) from error
