"""Curves that this project measured, with what they were measured on: evidence for a choice, and data to try a fit on.

One literal table. Losses are held-out, in nats per token, on mixed English text that was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

_TOKENS = (0.0, 0.10e6, 0.56e6, 2.3e6, 5.7e6, 11.5e6)


@dataclass(frozen=True)
class MeasuredRun:
    """One run: loss after so many tokens.

    Attributes:
        name: Of the method.
        num_layers: After growth; the base has 30.
        learning_rate: Peak of a cosine over the whole run.
        losses: Held-out, at :attr:`tokens`.
        tokens: Seen.
    """

    name: str
    num_layers: int
    learning_rate: float
    losses: tuple[float, ...]
    tokens: tuple[float, ...] = _TOKENS


SOURCE = (
    "SmolLM2-135M-Instruct (30 layers, 135 M parameters), one pass over 11.5 M tokens of mixed English text, cosine,"
    " batches of 32,768 tokens, one H100, one seed"
)
BASE_LAYERS = 30
BASE_PARAMETERS = 134_515_008
RUNS = (
    MeasuredRun("control", 30, 3e-4, (3.170, 3.124, 3.031, 2.959, 2.918, 2.890)),
    MeasuredRun("solar", 44, 3e-4, (3.561, 3.424, 3.137, 2.997, 2.941, 2.907)),
    MeasuredRun("solar-random", 44, 3e-4, (3.184, 3.121, 3.036, 2.963, 2.919, 2.890)),
    MeasuredRun("identity", 44, 3e-4, (3.170, 3.117, 3.029, 2.960, 2.918, 2.887)),
    MeasuredRun("control", 30, 1e-3, (3.170, 3.092, 3.079, 3.058, 2.995, 2.910)),
    MeasuredRun("solar", 44, 1e-3, (3.561, 3.315, 3.155, 3.091, 3.027, 2.920)),
    MeasuredRun("solar, m = 12", 36, 1e-3, (3.355, 3.199, 3.108, 3.073, 3.008, 2.917)),
    MeasuredRun("blocks of 7", 44, 1e-3, (3.550, 3.305, 3.155, 3.094, 3.014, 2.924)),
    MeasuredRun("solar", 44, 2e-3, (3.561, 3.277, 3.283, 3.379, 3.187, 3.003)),
)


def measured(name: str, learning_rate: float = 3e-4) -> MeasuredRun:
    """The run of this name and rate."""
    return next(run for run in RUNS if (run.name, run.learning_rate) == (name, learning_rate))
