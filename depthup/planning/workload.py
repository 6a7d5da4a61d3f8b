"""What a stage asks of the hardware, as one frozen value: the way from stage kinds to estimates leads through it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .compute import ALL, Trainable, trained_parameters
from .shapes import ModelShape

Precision = Literal["auto", "float32", "mixed", "bfloat16"]
Optimizer = Literal["adamw", "adamw-bf16", "adamw-8bit"]
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
        rows_per_step: Rows of a global batch.
        micro_batch_rows: Rows of one forward pass on one device.
        num_steps: Optimizer steps; None if the data's tokens are not counted: then of :data:`UNIT_TOKENS`.
        at_most: Whether rows may be partly empty, so that the tokens are an upper bound.
        forward_tokens: Tokens that only pass forward: held-out losses, and log-probabilities of a reference.
        generated_tokens: Tokens written one after the other.
        precision: ``float32``, ``mixed`` (float32 masters, computed in bfloat16), ``bfloat16`` (no masters); ``auto``
            is float32 on a processor and mixed elsewhere.
        optimizer: Adam with two moments in float32, bfloat16 or 8 bits.
        recompute: Activations that are computed again in the backward pass.
        copied_bytes: Read from and written to the disk, together.
        kept_bytes: Left on the disk.
        passing_bytes: On the disk beside that while the stage runs.
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
    generated_tokens: int = 0
    precision: Precision = "auto"
    optimizer: Optimizer = "adamw"
    recompute: Recompute = "none"
    copied_bytes: float = 0
    kept_bytes: float = 0
    passing_bytes: float = 0

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


def copying(stage: str, kind: str, shape: ModelShape, read_bytes: float = 0) -> Workload:
    """Import or surgery: bytes are read, the model is written."""
    return Workload(stage, kind, shape, copied_bytes=read_bytes + shape.num_bytes, kept_bytes=shape.num_bytes)


def training(
    stage: str,
    kind: str,
    shape: ModelShape,
    *,
    num_steps: int | None,
    rows_per_step: int,
    row_tokens: int,
    micro_batch_rows: int = 4,
    lora_rank: int = 0,
    forward_tokens: int = 0,
) -> Workload:
    """Continued pretraining or SFT; ``num_steps`` is None where epochs of uncounted data are asked for.

    On the disk stand the saved state (weights and two moments in float32: 12 bytes a parameter) and the export.
    """
    trainable = Trainable(lora_rank=lora_rank) if lora_rank else ALL
    work = Workload(
        stage, kind, shape, trainable, row_tokens, rows_per_step, micro_batch_rows, num_steps,
        forward_tokens=forward_tokens, kept_bytes=shape.num_bytes,
    )  # fmt: skip
    return replace(work, passing_bytes=12.0 * trained_parameters(shape, trainable))


def preferring(
    stage: str,
    kind: str,
    shape: ModelShape,
    *,
    num_steps: int | None,
    pairs_per_step: int,
    row_tokens: int,
    micro_batch_rows: int = 4,
    lora_rank: int = 0,
    has_reference: bool = True,
) -> Workload:
    """DPO, or one step of sDPO: a pair stands whole in a row, so it takes a row at most.

    The reference's log-probabilities are computed once, by the policy before its first update: a forward pass more
    over all pairs (one epoch), and no second model in memory.
    """
    work = training(
        stage, kind, shape, num_steps=num_steps, rows_per_step=pairs_per_step, row_tokens=row_tokens,
        micro_batch_rows=micro_batch_rows, lora_rank=lora_rank,
    )  # fmt: skip
    return replace(work, at_most=True, forward_tokens=work.num_tokens if has_reference else 0)


def running(
    stage: str, kind: str, shape: ModelShape, *, num_tokens: int, row_tokens: int, rows: int, generated_tokens: int = 0
) -> Workload:
    """Held-out loss and continuations: forward passes on one device."""
    return Workload(
        stage, kind, shape, None, row_tokens, rows, rows, forward_tokens=num_tokens, generated_tokens=generated_tokens
    )
