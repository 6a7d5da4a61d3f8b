"""Lists of layers that a config leaves out and its class fills in, where depthup has no rule of its own: ask the class.

Some families are saved in a spelling of their own (``hybrid_override_pattern``, ``compress_ratios``, an empty
``no_rope_layers``), which transformers' class turns into lists when it reads them. The class is the authority, and is
asked for these families alone: it takes seconds to import. Beside ``models`` the one place that imports transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from json import dumps, loads
from typing import Any

from ..errors import CheckpointError


def filled_in(fields: Mapping[str, Any], lists: Sequence[str]) -> dict[str, Any]:
    """A config, or a part of one, as its class saves it, with ``lists`` in it.

    Raises:
        CheckpointError: The installed transformers has no such class, does not take the config, or leaves them out too.
    """
    family = str(fields.get("model_type"))
    try:
        filled: dict[str, Any] = loads(_saved(dumps(fields)))
        absent = [key for key in lists if not filled.get(key)]
        why = f"transformers' class leaves out {absent[0]}" if absent else ""
    except Exception as error:  # each means that the class does not read this config, or that there is none
        why = f"transformers cannot tell ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if why:
        unsaid = next(key for key in lists if not fields.get(key))
        raise CheckpointError(
            f"the layers of {family} are of several kinds, and the config does not say which is which: {unsaid} is left"
            f" out, and {why}",
            next_step="install a transformers that knows the family",
        )
    kept = ("architectures", "transformers_version", "dtype", "torch_dtype")
    return {key: value for key, value in filled.items() if key not in kept or key in fields} | {
        key: fields[key] for key in kept if key in fields
    }


@lru_cache(maxsize=4)
def _saved(config: str) -> str:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging

    fields = _decoded(loads(config))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        made = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
        return str(made.to_json_string(use_diff=False))
    finally:
        logging.set_verbosity(verbosity)


def _decoded(value: Any) -> Any:
    """JSON with numbers that are not finite, which transformers spells ``{"__float__": "Infinity"}``."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _decoded(entry) for key, entry in value.items()}
    return [_decoded(entry) for entry in value] if isinstance(value, list) else value
