"""What a stage asks of the hardware, as one frozen value: the way from stage kinds to estimates leads through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .compute import Trainable
from .shapes import ModelShape

Precision = Literal["auto", "float32", "mixed", "bfloat16"]
Recompute = Literal["none", "selective", "full"]
UNIT_TOKENS = 1_000_000_000  # what a stage is stated for if its data are not counted


@dataclass(frozen=True)
class Workload:
    """A stage's work.

    Attributes:
        stage: Its name in the recipe.
        kind: Its kind.
        shape: The model that it makes, trains or runs; None where there is none.
        trainable: What is trained; None where nothing is.
        row_tokens: Tokens of a row.
        rows_per_step: Rows of a global batch. A preference pair takes a row at most.
        micro_batch_rows: Rows of one forward pass on one device.
        num_steps: Optimizer steps; None if the data's tokens are not counted: then of :data:`UNIT_TOKENS`.
        at_most: Whether rows may be partly empty, so that the tokens are an upper bound.
        forward_tokens: Tokens that only pass forward: held-out losses.
        forward_share: Forward passes more for each trained token: 1 for the log-probabilities of a reference.
        generated_tokens: Tokens written one after the other.
        precision: ``float32``, ``mixed`` (float32 masters, computed in bfloat16), ``bfloat16`` (no masters); ``auto``
            is float32 on a processor and mixed elsewhere.
        moment_bytes: Bytes of both moments of a parameter: 8 in float32, 4 in bfloat16, 2 in 8 bits.
        recompute: Activations that are computed again in the backward pass.
        compiled: Whether each layer is compiled (on GPUs).
        shard_ranks: Devices that share the states; None for all.
        copied_bytes: Read from and written to the disk, together.
        kept_bytes: Left on the disk.
        num_states: Saved states that stand on the disk while the stage trains, besides the one being written.
    """

    stage: str
    kind: str
    shape: ModelShape | None = None
    trainable: Trainable | None = None
    row_tokens: int = 0
    rows_per_step: int = 1
    micro_batch_rows: int = 1
    num_steps: int | None = 0
    at_most: bool = False
    forward_tokens: int = 0
    forward_share: float = 0
    generated_tokens: int = 0
    precision: Precision = "auto"
    moment_bytes: int = 8
    recompute: Recompute = "none"
    compiled: bool = False
    shard_ranks: int | None = None
    copied_bytes: float = 0
    kept_bytes: float = 0
    num_states: int = 1

    @property
    def step_tokens(self) -> int:
        """Tokens of a global batch."""
        return self.rows_per_step * self.row_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens that are trained on."""
        if self.trainable is None:
            return 0
        return UNIT_TOKENS if self.num_steps is None else self.num_steps * self.step_tokens

    @property
    def num_forward_tokens(self) -> float:
        """Tokens that only pass forward, all together."""
        return self.forward_tokens + self.forward_share * self.num_tokens


def copying(stage: str, kind: str, shape: ModelShape, read_bytes: float = 0) -> Workload:
    """Import or surgery: bytes are read, the model is written."""
    return Workload(stage, kind, shape, copied_bytes=read_bytes + shape.num_bytes, kept_bytes=shape.num_bytes)


def running(
    stage: str, kind: str, shape: ModelShape, *, num_tokens: int, row_tokens: int, rows: int, generated_tokens: int = 0
) -> Workload:
    """Held-out loss and continuations: forward passes on one device."""
    return Workload(
        stage, kind, shape, None, row_tokens, rows, rows, forward_tokens=num_tokens, generated_tokens=generated_tokens
    )
