"""The four augmentations of MetaMath (Yu et al., arXiv:2309.12284): what is asked, and what is taken from a reply.

- ``answer``: further solutions of the seed's question (answer augmentation).
- ``rephrase``: the question in other words, solved anew.
- ``self-verification``: a number becomes unknown, the last question becomes a statement with its answer, and the
  unknown is asked for (Weng et al., arXiv:2212.09561).
- ``fobar``: the same with the answer given behind the question (Jiang et al., arXiv:2308.07758).

The prompts are ours; each is a file of ``prompts/`` whose version and hash stand in every row made with it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from .answers import NUMBER_WORDS, extract_answer, in_words
from .filters import changed_numbers

Kind = Literal["answer", "rephrase", "self-verification", "fobar"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Step = Literal["answer", "rephrase", "statement", "backward"]
VERSION = 1  # of all prompts and of the rules here; a change of either is a new version

# What ends a reply: the next example that a base model would go on to write.
STOPS: dict[str, tuple[str, ...]] = {
    "answer": ("\nProblem:",), "rephrase": ("\nProblem:", "\n\n"), "statement": ("\nQuestion:", "\n"),
    "backward": ("\nProblem:",),
}  # fmt: skip
_UNKNOWNS = ("x", "X", "u", "W", "k", "Q")
_MASKABLE = re.compile(
    r"(?P<before>(?:[\"'(]|\\?\$)*)(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?|\.\d+|[A-Za-z]+)"
    r"(?P<after>(?:\\?%|\$|[.,?!;)\"'])*)"
)
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z$\\\"(0-9])")
_COMMAND_BEFORE = re.compile(r"\\[A-Za-z]+\s*$")  # of \frac 13, 13 is two numbers


@dataclass(frozen=True)
class Prompt:
    """A prompt as it lies in the package, with ``{question}`` and, in one, ``{answer}`` to fill."""

    name: Step
    text: str

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def render(self, question: str, answer: str = "") -> str:
        """The prompt with its last example open."""
        head, _, tail = self.text.rpartition("{question}")
        return (head + question.strip() + tail.replace("{answer}", answer)).rstrip()


@cache
def load_prompt(step: Step) -> Prompt:
    """The prompt of a step."""
    return Prompt(step, (Path(__file__).with_name("prompts") / f"{step}.txt").read_text(encoding="utf-8"))


def prompt_digests() -> dict[str, str]:
    """Step -> digest of its prompt, for identities."""
    return {step: load_prompt(step).digest for step in get_args(Step)}


@dataclass(frozen=True)
class Masked:
    """A question one of whose numbers is unknown.

    Attributes:
        question: With the letter in place of the number.
        unknown: The letter.
        value: The number, exactly as it stood, the gold answer of the backward question.
        place: Which of the numbers that can be masked, from 0.
    """

    question: str
    unknown: str
    value: str
    place: int


def maskings(question: str) -> list[Masked]:
    """Every question that arises by masking one number.

    A number is masked where it stands alone between blanks, with currency, per cent, dollar signs of LaTeX and
    punctuation around it at most: ``$24$``, ``\\$3.50``, ``1,200,``, ``seven``, but not ``10-minute``, ``x^2``,
    ``(3,4)``. A question with a drawing ([asy]) has none: the drawing would give it away. ``one`` and ``zero`` in words
    are left, they are seldom numbers. The letter is the first of x, X, u, W, k, Q that the question does not use.
    """
    unknown = next((letter for letter in _UNKNOWNS if not _uses(question, letter)), None)
    if unknown is None or "[asy]" in question:
        return []
    found: list[Masked] = []
    for token in re.finditer(r"\S+", question):
        match = _MASKABLE.fullmatch(token.group())
        if match is None or _COMMAND_BEFORE.search(question[: token.start()]):
            continue
        if match["before"].replace("\\$", "").count("$") != match["after"].count("$"):
            continue  # one of several words of a formula
        value = _masked_value(match["number"])
        if value is not None:
            start, end = (token.start() + edge for edge in match.span("number"))
            found.append(Masked(question[:start] + unknown + question[end:], unknown, value, len(found)))
    return found


def split_asking(question: str) -> tuple[str, str, str]:
    """What comes before the sentence that asks, that sentence, what comes behind it.

    It is the last sentence with a question mark, or else the last one.
    """
    sentences = [part.strip() for part in _SENTENCE_END.split(question.strip())]
    asking = max((place for place, part in enumerate(sentences) if part.endswith("?")), default=len(sentences) - 1)
    return " ".join(sentences[:asking]), sentences[asking], " ".join(sentences[asking + 1 :])


def self_verification_question(masked: Masked, statement: str) -> str:
    """The masked question with its last sentence as a statement, and the unknown asked for."""
    before, _, behind = split_asking(masked.question)
    parts = (before, behind, statement, f"What is the value of the unknown {masked.unknown}?")
    return " ".join(part for part in parts if part)


def fobar_question(masked: Masked, answer: str) -> str:
    """The masked question, its answer behind it, and the unknown asked for."""
    return (
        f"{masked.question.strip()} If the answer to this question is {answer}, what is the value of the unknown"
        f" {masked.unknown}?"
    )


def read_rewrite(reply: str) -> str:
    """A rewritten question, or a statement, out of a reply: its first paragraph without a label or quotes."""
    text = reply.strip().split("\n\n")[0].strip()
    text = re.sub(r"^(?:in other words|rephrased (?:problem|question)|problem|question|statement)\s*:\s*", "", text,
                  flags=re.IGNORECASE)  # fmt: skip
    if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2:
        text = text[1:-1].strip()
    return text


def statement_fault(masked: Masked, answer: str, statement: str) -> str:
    """Why a statement does not say what the last sentence and its answer say; empty if it does."""
    last = split_asking(masked.question)[1]
    if not statement:
        return "empty"
    if statement.endswith("?"):
        return "still a question"
    if _uses(last, masked.unknown) != _uses(statement, masked.unknown):
        return f"the unknown {masked.unknown} is {'lost' if _uses(last, masked.unknown) else 'new'}"
    lost, gained = changed_numbers(f"{last} {answer}", statement)
    if lost or gained:
        return f"numbers lost: {_listed(lost)}; gained: {_listed(gained)}"
    return ""


def finish_solution(text: str, unknown: str = "") -> str:
    """A solution as it is kept: no blanks at line ends, its answer once in the last line (``The answer is: ...``)."""
    lines = [line.rstrip() for line in text.strip().split("\n")]
    body = "\n".join(lines).strip()
    found = extract_answer(body)
    if found is None:
        return body
    said = f"The value of {unknown} is: {found[0]}" if unknown else f"The answer is: {found[0]}"
    if found[1] == "stated":
        lines = body.split("\n")
        if re.match(r"(?i)\W*(?:so |therefore,? |thus,? |hence,? )?the (?:final )?(?:answer|value)", lines[-1]):
            body = "\n".join(lines[:-1]).strip()
    elif found[1] == "marked":
        body = body.rpartition("####")[0].strip()
    return f"{body}\n{said}".strip()


def _listed(numbers: frozenset[Fraction]) -> str:
    return ", ".join(str(number) for number in sorted(numbers)[:5]) or "none"


def _uses(text: str, letter: str) -> bool:
    """Whether the letter stands in a text as a name of its own; commands of LaTeX are none."""
    return re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])", re.sub(r"\\[A-Za-z]+", " ", text)) is not None


def _masked_value(number: str) -> str | None:
    if number[0].isdigit() or number[0] == ".":
        return number
    if number.lower() in NUMBER_WORDS and number.lower() not in ("one", "zero", "hundred", "thousand", "million"):
        value = in_words(number)
        return None if value is None else str(value)
    return None
