"""The final answer of a solution, its number, and the form in which two answers are compared as text.

Where answers stand: ``The answer is`` and ``The value of x is`` (MetaMath, arXiv:2309.12284), ``\\boxed{}`` (MATH,
arXiv:2103.03874), ``####`` (GSM8K, arXiv:2110.14168), at last the last number. What two spellings of one answer have in
common (fraction commands, units, degrees, per cent) follows the facts of MATH's own evaluation; the code is ours.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_DIGITS = 400  # longer numbers are text: Python refuses to read integers of thousands of digits

_STATED = re.compile(
    r"(?:the\s+(?:final\s+)?answer\s+is|the\s+value\s+of\s+(?:the\s+unknown\s+)?(?:variable\s+)?\$?[A-Za-z]\$?\s+is)"
    r"\s*:?\s*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-−]?\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?")
_PLAIN = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d+|)(\.\d*)?")
_FRACTION = re.compile(r"([-+]?)(\d*)\\frac(?:\{([-+]?\d+)\}|(\d))(?:\{([-+]?\d+)\}|(\d))")
_SLASHED = re.compile(r"([-+]?\d+)/(\d+)")
_UNIT_WORDS = re.compile(r"(\S+) ((?:[a-z]+\.?)(?: [a-z]+\.?){0,3})")
# Words behind a number that are part of it: "5 million" is not 5.
_NO_UNITS = frozenset({
    "and", "or", "to", "times", "percent", "plus", "minus", "over", "hundred", "thousand", "million", "billion",
    "trillion", "half", "halves", "third", "thirds", "quarter", "quarters", "fourths", "fifths", "sixths", "tenths",
    "hundredths", "pi", "squared", "cubed", "factorial", "choose", "mod", "dozen", "per",
})  # fmt: skip
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
WORDS = {word: number for number, word in enumerate(_SMALL)} | _TENS
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
NUMBER_WORDS = frozenset(WORDS) | frozenset(_LARGE)


def boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{...}`` or ``\\fbox{...}`` of a text, or behind a brace-less ``\\boxed``."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("ed" if text.startswith("\\boxed", start) else "box")[2].lstrip()
    if not rest.startswith("{"):
        return rest.split("$")[0].split()[0] if rest.split("$")[0].split() else None
    depth = 0
    for index, char in enumerate(rest):
        depth += (char == "{" and rest[index - 1 : index] != "\\") - (char == "}" and rest[index - 1] != "\\")
        if depth == 0:
            return rest[1:index].strip()
    return None  # cut off


def extract_answer(text: str) -> tuple[str, str] | None:
    """The final answer of a solution, and where it stood: ``stated``, ``boxed``, ``marked`` (####), ``last number``.

    None where there is no answer at all, or where it was announced and the text ends.
    """
    stated = list(_STATED.finditer(text))
    if stated:
        said = text[stated[-1].end() :].lstrip()
        line = said.split("\n\n")[0] if said.startswith(("$$", "\\[")) else said.split("\n")[0]
        inside = boxed(line)
        answer = _tidy(inside if inside is not None else _sentence(line))
        return (answer, "stated") if answer else None
    inside = boxed(text)
    if inside is not None or "\\boxed" in text:
        inside = _tidy(inside or "")
        return (inside, "boxed") if inside else None
    _, mark, marked = text.rpartition("####")
    if mark:
        answer = _tidy(marked.strip().split("\n")[0])
        return (answer, "marked") if answer else None
    numbers = [found.group() for found in _NUMBER.finditer(text) if any(char.isdigit() for char in found.group())]
    return (_tidy(numbers[-1]), "last number") if numbers else None


def normalise(text: str) -> str:
    """An answer without what says nothing: dollar signs, boxes, ``\\text``, sizes of brackets, degrees, per cent."""
    text = text.strip().replace("−", "-").replace("\\$", "").replace("\\!", "").replace("\n", " ")
    text = re.sub(r"^\\\[(.*)\\\]$|^\\\((.*)\\\)$", lambda found: found[1] or found[2] or "", text)
    inside = boxed(text)
    text = (inside if inside is not None and text.startswith(("\\boxed", "$\\boxed", "\\fbox")) else text).strip()
    text = text.replace("$", "").replace("\\left", "").replace("\\right", "")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = re.sub(r"\\[ ,;:~]|~|\\q?quad\b", " ", text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degrees?\b", "", text)
    text = re.sub(r"\\?%", "", text)
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm|mathbf|textit)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text[:-1].strip() if text.endswith(".") and not text.endswith("..") else text


def exact_number(text: str) -> Fraction | None:
    """The number that a normalised answer is, exactly; None if it is anything else.

    Integers (with commas in thousands), decimals, ``a/b``, ``\\frac{a}{b}``, mixed numbers, numbers in words, and a
    number with a unit in words behind it (``5 apples``).
    """
    if len(text) > _MAX_DIGITS:
        return None
    united = _UNIT_WORDS.fullmatch(text.lower())
    if united and not (set(united[2].replace(".", "").split()) & (_NO_UNITS | NUMBER_WORDS)):
        text = united[1]
    squeezed = text.replace(" ", "")
    if re.search(r"[\d.]\s+[\d.]", text):  # two numbers, save where they are a mixed one
        mixed = re.fullmatch(r"([-+]?)(\d+) (\d+)/(\d+)", text)
        return _fraction((mixed[1], mixed[2], mixed[3], None, mixed[4], None)) if mixed else None
    plain = _PLAIN.fullmatch(squeezed)
    if plain and (plain[2] or len(plain[3] or "") > 1):
        return Fraction(f"{plain[1]}{plain[2].replace(',', '') or 0}{(plain[3] or '').rstrip('.')}")
    for pattern in (_SLASHED, _FRACTION):
        found = pattern.fullmatch(squeezed)
        if found:
            return _fraction(found.groups())
    return in_words(text)


def in_words(text: str) -> Fraction | None:
    """``twenty-five`` -> 25, ``two hundred and six`` -> 206; None if it is no number in words."""
    words = [word for word in re.split(r"[\s-]+", text.lower().strip()) if word and word != "and"]
    if not words or not all(word in NUMBER_WORDS for word in words):
        return None
    total = current = 0
    for word in words:
        if word in WORDS:
            current += WORDS[word]
        elif word == "hundred":
            current = max(current, 1) * 100
        else:
            total, current = total + max(current, 1) * _LARGE[word], 0
    return Fraction(total + current)


def text_form(text: str) -> str:
    """The form in which two answers are compared letter by letter, from a normalised one.

    Blanks go; ``\\frac12`` becomes ``\\frac{1}{2}``, ``a/b`` of integers too; ``\\sqrt3`` becomes ``\\sqrt{3}``; a
    leading ``x =`` goes; ``.5`` becomes ``0.5``; commas in thousands go.
    """
    text = re.sub(r"\\(frac|sqrt)\s+", r"\\\1", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\d)\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    if not re.search(r"[()\[\]{}]", text):
        text = re.sub(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda found: found.group().replace(",", ""), text)
    text = re.sub(r"\s+", "", re.sub(r"(\d)\s+(?=[\d.])", r"\1_", text))  # "1 2" is not 12
    text = re.sub(r"^[A-Za-z](?:\([a-z]\))?(?:=|\\in)(?=.)", "", text)
    text = re.sub(r"(?<![\d])\.(\d)", r"0.\1", text)
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", text)
    text = re.sub(r"^([-+]?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    return text.replace("\\le", "\\leq").replace("\\leqq", "\\leq").replace("\\ge", "\\geq").replace("\\geqq", "\\geq")


def _fraction(parts: tuple[str | None, ...]) -> Fraction | None:
    if len(parts) == 2:
        return Fraction(int(parts[0] or 0), int(parts[1] or 1)) if int(parts[1] or 1) else None
    sign, whole = parts[0], parts[1]
    above, below = int(parts[2] or parts[3] or 0), int(parts[4] or parts[5] or 0)
    if below == 0 or (whole and (above < 0 or below < 0)):
        return None
    value = Fraction(int(whole or 0)) + Fraction(above, below)
    return -value if sign == "-" else value


def _sentence(line: str) -> str:
    """A stated answer up to the end of its sentence: a full stop with a blank behind it, outside of dollar signs."""
    if line.startswith("$$"):
        return line.split("$$")[1] if line.count("$$") > 1 else line
    if line.startswith("\\["):
        return line.partition("\\]")[0][2:]
    ended = re.match(r"((?:\$[^$]*\$|[^$])*?)\.(?=\s+[A-Z]|\s*$)", line)
    return ended[1] if ended else line


def _tidy(answer: str) -> str:
    answer = answer.strip().strip("*").strip()
    while answer and answer[-1] in ".,;:":
        answer = answer[:-1].rstrip()
    return answer
