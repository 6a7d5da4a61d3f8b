"""The offline factory: word problems with known answers and worked solutions, from templates with named parameters.

With it every stage behind synthesis runs with no network and no model. What it makes says so: its seeds carry the
factory's name. ``reasoning-gym`` adds drills of arithmetic; its GSM8K templates are left out on purpose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import DataError, DepthupError
from .families import FAMILIES, Family
from .seeds import Seed

TEMPLATES = "depthup templates"
GYM = "reasoning-gym"
_ATTEMPTS = 5000  # draws of parameters until a family's condition holds


def make_problems(num_problems: int, seed: int = 0) -> list[Seed]:
    """Problems of all families in turn, no two alike.

    Args:
        num_problems: How many.
        seed: Start of the random numbers.

    Raises:
        DataError: So many unlike ones cannot be drawn.
    """
    made: dict[str, Seed] = {}
    names = sorted(FAMILIES)
    for number in range(20 * num_problems + 100):
        if len(made) == num_problems:
            return list(made.values())
        name = names[number % len(names)]
        problem = make_problem(FAMILIES[name], random.Random(f"{seed}/{number}/{name}"), f"{name}-{seed}-{len(made)}")
        made.setdefault(problem.question, problem)
    raise DataError(
        f"the factory has only {len(made)} of {num_problems} unlike problems", next_step="ask for fewer problems"
    )


def make_problem(family: Family, chance: random.Random, name: str) -> Seed:
    """One problem of a family: its parameters drawn until they fit, put into one of its wordings."""
    for _ in range(_ATTEMPTS):
        parameters: dict[str, Any] = {key: chance.choice(values) for key, values in family.parameters.items()}
        derived = family.derive(**parameters)
        if derived is not None:
            break
    else:
        raise AssertionError(f"family {name} has a condition that no parameters meet")
    values = {**parameters, **derived}
    tellings = tuple(telling.format(**values) + f"\nThe answer is: {values['answer']}" for telling in family.solutions)
    question = chance.choice(family.wordings).format(**values)
    return Seed(name, question, tellings[0], str(values["answer"]), TEMPLATES, "Apache-2.0", tellings, TEMPLATES)


def gym_problems(num_problems: int, seed: int = 0) -> list[Seed]:
    """Drills of reasoning-gym (Apache-2.0) with solutions worked here.

    Raises:
        DepthupError: reasoning-gym is not installed.
    """
    if find_spec("reasoning_gym") is None:
        raise DepthupError("problems of reasoning-gym need that package", next_step="pip install 'depthup[problems]'")
    each = -(-num_problems // len(_DRILLS))
    columns = [list(_drills(name, each, seed)) for name in sorted(_DRILLS)]
    return [problem for row in zip(*columns, strict=True) for problem in row][:num_problems]


def _drills(name: str, size: int, seed: int) -> Iterator[Seed]:
    import reasoning_gym

    for number, item in enumerate(reasoning_gym.create_dataset(name, size=size, seed=seed)):
        question = item["question"].split(" Give only")[0].strip()
        answer = str(item["answer"]).strip("$")
        solution = f"{_DRILLS[name](item['metadata'])}\nThe answer is: {answer}"
        yield Seed(f"{name}-{seed}-{number}", question, solution, answer, GYM, "Apache-2.0", (solution,), GYM)


def _chain_sum(facts: Mapping[str, Any]) -> str:
    first, *rest = facts["expression"].split()
    total, lines = int(first), [f"Go from left to right and start with {first}."]
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {after}.")
        total = after
    return "\n".join(lines)


def _products(facts: Mapping[str, Any]) -> str:
    one, other = (int(term) for term in facts["expression"].split(" * "))
    digits = [(int(digit) * 10**place) for place, digit in enumerate(reversed(str(other))) if digit != "0"]
    parts = [one * part for part in reversed(digits)]
    lines = [f"Split {other} into {' + '.join(str(part) for part in reversed(digits))}."]
    lines += [f"{one} × {part} = {one * part}." for part in reversed(digits)]
    return "\n".join([*lines, f"Together: {' + '.join(map(str, parts))} = {one * other}."])


def _euclid(one: int, other: int) -> list[str]:
    large, small = max(one, other), min(one, other)
    lines = []
    while small:
        lines.append(f"{large} = {large // small} × {small} + {large % small}.")
        large, small = small, large % small
    return [*lines, f"The last remainder that is not 0 is {large}, so the greatest common divisor is {large}."]


def _gcd(facts: Mapping[str, Any]) -> str:
    return "\n".join(["Divide with remainder until nothing is left.", *_euclid(*facts["numbers"])])


def _lcm(facts: Mapping[str, Any]) -> str:
    one, other = facts["numbers"]
    common = math.gcd(one, other)
    return "\n".join([
        "The least common multiple is the product divided by the greatest common divisor.", *_euclid(one, other),
        f"{one} × {other} / {common} = {one * other // common}.",
    ])  # fmt: skip


def _fraction(facts: Mapping[str, Any]) -> str:
    above, below = facts["numerator"], facts["denominator"]
    common = math.gcd(above, below)
    return "\n".join([
        "Divide numerator and denominator by their greatest common divisor.", *_euclid(above, below),
        f"{above} / {common} = {above // common} and {below} / {common} = {below // common}.",
    ])  # fmt: skip


# Drill of reasoning-gym -> its solution from the facts that come with each item.
_DRILLS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "chain_sum": _chain_sum,
    "fraction_simplification": _fraction,
    "gcd": _gcd,
    "lcm": _lcm,
    "products": _products,
}


@dataclass(frozen=True)
class _Spec:
    name: str
    count: int


def parse_factory(text: str) -> _Spec | None:
    """``factory:1000`` or ``reasoning-gym:500`` as a source of seeds; None for anything else, such as a file.

    Raises:
        DataError: The number is none.
    """
    name, colon, count = text.partition(":")
    if name not in ("factory", GYM) or not colon:
        return None
    if not count.isascii() or not count.isdigit() or not 0 < int(count[:9]) <= 1_000_000 or len(count) > 7:
        raise DataError(f"'{text}' does not say how many problems to make", allowed="factory:1000, reasoning-gym:500")
    return _Spec(name, int(count))


def problems_of(spec: _Spec, seed: int = 0) -> list[Seed]:
    """The problems that a parsed text asks for."""
    return (make_problems if spec.name == "factory" else gym_problems)(spec.count, seed)
