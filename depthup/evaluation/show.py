"""Items as a person reads them: the question, each choice with its likelihood, or the text that was written."""

from __future__ import annotations

from collections.abc import Sequence

from .scores import Sample

RIGHT, WRONG, DIM, PLAIN = "\033[32m", "\033[31m", "\033[2m", "\033[0m"
_MAX_TEXT = 2000  # characters of a generated text


def chosen_samples(samples: Sequence[Sample], num: int, only: str = "all") -> list[Sample]:
    """The first ``num`` samples: ``all``, or only the ``wrong`` (metric below 0.5) or the ``right`` ones."""
    wanted = {"all": lambda s: True, "wrong": lambda s: s.value < 0.5, "right": lambda s: s.value >= 0.5}[only]
    return [sample for sample in samples if wanted(sample)][:num]


def show_sample(sample: Sample, *, color: bool = False, whole: bool = False) -> str:
    """One item as text.

    Args:
        sample: The item.
        color: Whether to mark right and wrong by colour too.
        whole: The worked examples before the question as well.
    """
    verdict, tint = ("right", RIGHT) if sample.value >= 0.5 else ("wrong", WRONG)
    value = "" if sample.value in (0, 1) else f" ({sample.value:.3f})"
    head = f"{sample.task} · item {sample.item[:12]} · "
    lines = [f"── {head}{_in(tint, verdict, color)}{value} ──"]
    contexts = [prompt[0] for prompt in sample.prompts]
    if len(set(contexts)) == 1:
        lines.append(_question(contexts[0], whole, color))
        lines.extend(_answers(sample, [prompt[-1] if len(prompt) > 1 else "" for prompt in sample.prompts], color))
    else:  # the context itself is what differs, as in WinoGrande
        texts = [_question("".join(prompt), whole, False) for prompt in sample.prompts]
        lines.extend(_answers(sample, texts, color))
    lines.append(f"right answer: {sample.target.strip()}")
    return "\n".join(lines)


def _question(context: str, whole: bool, color: bool) -> str:
    shots, border, question = context.rpartition("\n\n")
    if whole or not border or not question.strip():
        return context
    return _in(DIM, f"[{len(shots):,} characters before this; --whole shows them]", color) + f"\n{question}"


def _answers(sample: Sample, texts: Sequence[str], color: bool) -> list[str]:
    lines = []
    likelihoods = [one[0] for one in sample.responses if isinstance(one, (tuple, list))]
    for text, response in zip(texts, sample.responses, strict=True):
        if isinstance(response, str):
            long = len(response) > _MAX_TEXT
            lines.append(f"it wrote:{response[:_MAX_TEXT]}{' [...]' if long else ''}")
        elif isinstance(response, (tuple, list)):
            mark = ">" if response[0] == max(likelihoods) else " "
            per_character = response[0] / max(len(text.strip()), 1)
            line = f" {mark} {response[0]:9.3f} nats {per_character:7.3f} a character  {text.strip()}"
            lines.append(_in(RIGHT, line, color and text.strip() == sample.target.strip()))
        else:
            lines.append(f"   {response:9.3f} nats  {text.strip()}")
    return lines


def _in(tint: str, text: str, color: bool) -> str:
    return f"{tint}{text}{PLAIN}" if color else text
