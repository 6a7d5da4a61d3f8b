"""How values are written in a report: counts, losses, durations, and text that came from outside."""

from __future__ import annotations

import math
from collections.abc import Iterable

_BIDI_CONTROLS = frozenset((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))


def visible(text: str) -> str:
    """Make text safe to print: control characters become visible, newlines and tabs stay as they are.

    What steers a terminal, cannot stand in HTML or XML, cannot be encoded, or turns the direction of the text
    around it is written as its escape, as in ``\\x1b`` or ``\\u202e``. A carriage return before a newline is dropped.
    """
    return "".join(_visible_character(character) for character in text.replace("\r\n", "\n"))


def _visible_character(character: str) -> str:
    code = ord(character)
    is_control = (code < 0x20 and character not in "\n\t") or 0x7F <= code < 0xA0
    is_no_character = 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE
    if is_control or is_no_character or code in _BIDI_CONTROLS:
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def perplexity(loss: float) -> float:
    """``exp(loss)`` for a loss in nats per token; infinite where that leaves the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def format_count(count: int) -> str:
    """``211453248`` -> ``211,453,248``."""
    return f"{count:,}"


def format_loss(loss: float) -> str:
    """Nats per token to three places: ``2.942``."""
    return f"{loss:.3f}"


def format_difference(difference: float) -> str:
    """A signed difference in nats per token: ``+0.408``, ``−0.205``."""
    return f"{difference:+.3f}".replace("-", "\u2212")


def format_perplexity(value: float) -> str:
    """Two places up to 1,000, none above: ``18.95``, ``32,412``."""
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def format_compact(count: float) -> str:
    """Three figures with a letter for the power of 1000: ``0``, ``8k``, ``1.2M``, ``10.7B``, ``3T``."""
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if float(f"{count:.3g}") >= 10**power:
            return f"{float(f'{count:.3g}') / 10**power:g}{letter}"
    return f"{count:.3g}"


def format_rate(rate: float) -> str:
    """A learning rate: ``0``, ``3e-4``, ``2.5e-5``."""
    if rate == 0:
        return "0"
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_seconds(seconds: float) -> str:
    """A duration: ``0.42 s``, ``12.4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_runs(numbers: Iterable[int]) -> str:
    """Rising whole numbers as inclusive runs: ``8, 9, 10, 20`` -> ``8–10, 20``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}\u2013{last}" if last > first else str(first) for first, last in runs)
