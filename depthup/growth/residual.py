"""Which tensors of a layer write into the residual stream: zero them, and the layer changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError

# The last linear map of a residual branch, by the end of its module's name.
_OUTPUTS = re.compile(
    r"(?:^|\.)(?:"
    r"(?:self_attn|attn|attention|linear_attn|mixer|mamba)\.(?:o_proj|out_proj|c_proj|dense)"
    r"|(?:mlp|feed_forward|experts\.\d+|shared_experts?)\.(?:down_proj|c_proj|dense_4h_to_h|w2|fc2)"
    r")\.(?:weight|bias)$"
)


def residual_outputs(config: Mapping[str, Any], suffixes: Iterable[str]) -> frozenset[str]:
    """The suffixes, weights and biases, of all last linear maps of a layer's residual branches.

    Raises:
        CheckpointError: None is known for this architecture.
    """
    found = frozenset(suffix for suffix in suffixes if _OUTPUTS.search(suffix))
    if not found:
        raise CheckpointError(
            f"depthup does not know which tensors of a {config.get('model_type')} layer write into the residual stream",
            next_step="start the new layers as copies",
        )
    return found
