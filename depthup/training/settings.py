"""What a training run does, and what comes of it, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .optimizers import GroupRate, Precision
from .parallel import Recompute
from .schedule import Schedule


@dataclass(frozen=True)
class TrainSettings:
    """What a run does.

    Attributes:
        schedule: Number of steps and the learning rate's shape.
        learning_rate: Peak rate.
        rows_per_step: Rows in a global batch (pairs, for preferences), over all micro-batches and ranks.
        weight_decay: Decoupled decay of matrices (AdamW, arXiv:1711.05101); vectors, norms and biases have none.
        betas: AdamW's.
        clip_norm: Largest norm of the gradient over all parameters.
        seed: Order of rows, and of random numbers in each step.
        rates: How groups of parameters are trained; all in full where nothing is said.
        precision: See :mod:`depthup.training.optimizers`.
        guard_sigmas: Standard deviations above the mean from which loss or gradient norm is a spike, whose step is
            skipped.
        max_skips: Steps skipped in a row after which the run goes back to its last saved state, and past those rows.
        eval_every: Steps between held-out losses; 0 for start and end only.
        micro_batch_rows: Rows in one forward pass; changes memory and speed, not the result.
        checkpoint_every: Steps between saved states, the last step included; 0 for interruptions only.
        num_states: Newest saved states that are kept.
        recompute: Activations that the backward pass makes again, to save memory.
        compile: Compile each layer.
        flops_per_token: Of forward and backward pass. With it and ``peak_flops`` the run's MFU is logged.
        peak_flops: Of all devices together, in FLOP/s.
    """

    schedule: Schedule
    learning_rate: float
    rows_per_step: int
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    seed: int = 0
    rates: Mapping[str, GroupRate] = field(default_factory=dict)
    precision: Precision = "float32"
    guard_sigmas: float = 6.0
    max_skips: int = 3
    eval_every: int = 0
    micro_batch_rows: int = 4
    checkpoint_every: int = 0
    num_states: int = 1
    recompute: Recompute = "none"
    compile: bool = False
    flops_per_token: float | None = None
    peak_flops: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """Totals of a finished run.

    Attributes:
        num_steps: Optimiser updates, skipped ones included.
        num_tokens_seen: Target tokens.
        held_out_loss: The last that was measured.
        num_skipped: Steps whose update the guard left out.
    """

    num_steps: int
    num_tokens_seen: int
    held_out_loss: float | None
    num_skipped: int = 0
