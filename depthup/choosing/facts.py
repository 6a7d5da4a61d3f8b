"""What was measured before, here and elsewhere, as literal tables with their sources. Nothing here is a guess.

Losses come from :mod:`depthup.fitting.measured`; a published run counts as evidence that growth and training gave a
better model than the base was, and never that it gave a better one than training the base: none had that control.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..fitting.measured import BASE_PARAMETERS, SOURCE, measured

MEASURED_TOKENS = 11.5e6
PUBLISHED_TOKENS = 100e9  # from here on published runs of plain depth up-scaling report gains over their base
_LARGE = 10.0  # sizes further apart than this are called another size


@dataclass(frozen=True)
class Fact:
    """One piece of evidence.

    Attributes:
        said: In words.
        source: Where it was measured or published.
    """

    said: str
    source: str


@dataclass(frozen=True)
class Rate:
    """A learning rate that worked.

    Attributes:
        most_parameters: For bases up to this size.
        peak: The rate.
        fact: Its evidence.
    """

    most_parameters: float
    peak: float
    fact: Fact


_MEASURED_RATE = Fact(
    "peak 3e-4, cosine: of 3e-4, 1e-3 and 2e-3 the best at the end, for the base and for depth up-scaling; the higher"
    " rates repair a seam faster in the first 0.1 M tokens and hurt after that",
    f"measured here: {SOURCE}",
)
_YI_RATE = Fact(
    "constant 3e-5, with a growing batch, for a growth from 6 to 9 B parameters", "Yi-9B, arXiv:2403.04652, section 7.3"
)
RATES = (Rate(1e9, 3e-4, _MEASURED_RATE), Rate(1e15, 3e-5, _YI_RATE))
NEW_ONLY_RATE = Fact("2e-4, cosine, where only new layers are trained", "LLaMA Pro, arXiv:2401.02415 (7B)")
PUBLISHED = (
    Fact("800 B tokens after growth from 6 to 9 B parameters", "Yi-9B, arXiv:2403.04652"),
    Fact("200 B tokens after growth from 8 to 9.8 B: mean score 57.4 to 60.1", "Kanana, arXiv:2502.18934"),
    Fact("198 B tokens after growth from 7 to 11 B", "Bielik 11B v2"),
    Fact("at 3,000 to 6,000 steps SOLAR's stack is far behind LLaMA Pro's identity layers", "LESA, arXiv:2502.13794"),
    Fact("1.5 M Wikipedia samples on a stack of phi-2: scores at chance", "card of phi-2-upscaled-4B-instruct-v0.1"),
)


def rate_for(num_parameters: float) -> Rate:
    """The rate for a base of this size."""
    return next(rate for rate in RATES if num_parameters <= rate.most_parameters)


def measured_facts(budget_tokens: float, num_parameters: float) -> list[Fact]:
    """What the project measured that bears on a budget and a size, and how far both are from it."""
    control, solar, identity = (measured(name).losses[-1] for name in ("control", "solar", "identity"))
    facts = [
        Fact(
            f"after {MEASURED_TOKENS / 1e6:g} M tokens: base continued {control:.3f}, depth up-scaling (30 to 44"
            f" layers) {solar:.3f}, identity layers (44) {identity:.3f}: plain stacking had not passed its control,"
            f" identity was ahead by {control - identity:.3f}, which one seed cannot tell from noise",
            f"measured here: {SOURCE}",
        )
    ]
    ratio = num_parameters / BASE_PARAMETERS
    if not 1 / _LARGE < ratio < _LARGE:
        facts.append(Fact(f"your base is {ratio:.3g} times that size: what holds there is not known", "arithmetic"))
    if budget_tokens > 2 * MEASURED_TOKENS:
        facts.append(
            Fact(
                f"your budget is {budget_tokens / MEASURED_TOKENS:,.3g} times those tokens: not measured", "arithmetic"
            )
        )
    return facts
