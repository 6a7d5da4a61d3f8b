"""The families of the offline factory: one row a family, with its parameters, wordings and worked solutions.

``derive`` gets the drawn parameters by name and gives what the texts need besides, ``answer`` among it, or None where
the numbers do not fit. All texts are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Family:
    """Word problems of one kind.

    Attributes:
        parameters: Name -> the values it is drawn from.
        derive: Parameters -> all other values, with ``answer``; None where the parameters do not fit.
        wordings: The question, in several tellings.
        solutions: The worked solution, in several tellings, without the line that states the answer.
    """

    parameters: Mapping[str, Sequence[Any]]
    derive: Callable[..., dict[str, Any] | None]
    wordings: tuple[str, ...]
    solutions: tuple[str, ...]


_NAMES = ("Mira", "Jonas", "Aiko", "Tariq", "Lena", "Paulo", "Ines", "Kofi", "Sanna", "Dmitri", "Noor", "Felix")
_THINGS = ("pencils", "stickers", "marbles", "postcards", "buttons", "shells", "stamps", "beads")


def _latex(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _savings(start: int, weekly: int, weeks: int, price: int, **_: Any) -> dict[str, Any] | None:
    saved, total = weekly * weeks, start + weekly * weeks
    return {"saved": saved, "total": total, "answer": total - price} if total > price else None


def _boxes(boxes: int, each: int, gone: int, friends: int, **_: Any) -> dict[str, Any] | None:
    total, rest = boxes * each, boxes * each - gone
    fits = rest > 0 and rest % friends == 0
    return {"total": total, "rest": rest, "answer": rest // friends} if fits else None


def _trip(speed: int, hours: int, second: int, more: int) -> dict[str, Any] | None:
    one, two = speed * hours, second * more
    mean = Fraction(one + two, hours + more)
    time, total = hours + more, one + two
    return {"one": one, "two": two, "time": time, "total": total, "answer": _latex(mean)} if speed != second else None


def _discount(price: int, percent: int, **_: Any) -> dict[str, Any] | None:
    off = Fraction(price * percent, 100)
    return {"off": off, "answer": price - off} if off.denominator == 1 else None


def _heads(chickens: int, rabbits: int) -> dict[str, Any]:
    heads, legs = chickens + rabbits, 2 * chickens + 4 * rabbits
    return {"heads": heads, "legs": legs, "all_two": 2 * heads, "extra": legs - 2 * heads, "answer": rabbits}


def _work(one: int, other: int, **_: Any) -> dict[str, Any] | None:
    together = Fraction(1, one) + Fraction(1, other)
    return {"together": _latex(together), "answer": _latex(1 / together)} if one < other else None


def _progression(first: int, step: int, count: int) -> dict[str, Any]:
    last = first + (count - 1) * step
    return {"gaps": count - 1, "last": last, "both": first + last, "answer": count * (first + last) // 2}


def _linear(left: int, right: int, root: int, shift: int) -> dict[str, Any] | None:
    if left <= right:
        return None
    other, factor = shift + (left - right) * root, left - right
    return {"other": other, "factor": factor, "difference": other - shift, "answer": root}


def _rectangle(width: int, longer: int) -> dict[str, Any]:
    length = width + longer
    return {
        "length": length, "perimeter": 2 * (width + length), "half": width + length, "twice": 2 * width,
        "answer": width * length,
    }  # fmt: skip


def _urn(red: int, blue: int, colours: Sequence[str]) -> dict[str, Any] | None:
    total = red + blue
    chance = Fraction(red * (red - 1), total * (total - 1))
    facts = {"one": colours[0], "two": colours[1], "total": total, "less": total - 1, "red_less": red - 1}
    return {**facts, "answer": _latex(chance)} if red > 1 else None


def _ages(child: int, gap: int, factor: int, **_: Any) -> dict[str, Any] | None:
    years = Fraction(gap, factor - 1) - child  # in so many years the elder is `factor` times as old
    if years.denominator != 1 or years <= 0:
        return None
    return {"elder": child + gap, "less": factor - 1, "then": child + years, "answer": years}


def _mixture(strong: int, weak: int, litres: int, more: int) -> dict[str, Any] | None:
    salt, other = Fraction(strong * litres, 100), Fraction(weak * more, 100)
    percent = 100 * (salt + other) / (litres + more)
    if strong <= weak or percent.denominator != 1 or (4 * salt).denominator != 1 or (4 * other).denominator != 1:
        return None
    texts = {"salt": float(salt), "other": float(other), "sum": float(salt + other)}
    shown = {key: f"{value:g}" for key, value in texts.items()}
    return {**shown, "total": litres + more, "answer": percent}


def _bells(one: int, other: int) -> dict[str, Any] | None:
    common, divisor = math.lcm(one, other), math.gcd(one, other)
    return {"divisor": divisor, "answer": common} if one < other and 1 < divisor < one else None


def _mean(count: int, mean: int, joined: int, new: int) -> dict[str, Any] | None:
    total, after = count * mean, (count + 1) * new
    facts = {"total": total, "number": count + 1, "after": after, "answer": after - total}
    return facts if new != mean and after - total > 0 and joined else None


def _quadratic(one: int, other: int) -> dict[str, Any] | None:
    if not one < other or one + other == 0:
        return None
    linear, constant = -(one + other), one * other
    if linear in (1, -1) or constant == 0:
        return None
    equation = f"x^2 {'+' if linear > 0 else '-'} {abs(linear)}x {'+' if constant > 0 else '-'} {abs(constant)} = 0"
    return {"equation": equation, "sum": one + other, "product": constant, "answer": other}


FAMILIES: dict[str, Family] = {
    "savings": Family(
        {"name": _NAMES, "start": range(12, 90), "weekly": range(3, 25), "weeks": range(3, 16),
         "price": range(20, 150)},
        _savings,
        ("{name} has {start} dollars and saves {weekly} dollars every week. After {weeks} weeks {name} buys a lamp for "
         "{price} dollars. How many dollars are left?",
         "A purse holds {start} dollars. In each of {weeks} weeks {name} puts in {weekly} dollars more, and then takes "
         "out {price} dollars for a lamp. How many dollars does the purse hold now?"),
        ("In {weeks} weeks {name} saves {weekly} × {weeks} = {saved} dollars.\nWith the first {start} dollars this is "
         "{start} + {saved} = {total} dollars.\nThe lamp takes {price}, so {total} - {price} = {answer} dollars are "
         "left.",
         "Start from what comes in: {weekly} dollars, {weeks} times, is {saved}.\nAdd what was there: {saved} + "
         "{start} = {total}.\nTake away what is spent: {total} - {price} = {answer}."),
    ),
    "boxes": Family(
        {"name": _NAMES, "thing": _THINGS, "boxes": range(3, 15), "each": range(6, 40), "gone": range(4, 60),
         "friends": range(2, 9)},
        _boxes,
        ("{name} buys {boxes} boxes with {each} {thing} in each. {gone} {thing} get lost, and the rest are shared "
         "equally among {friends} friends. How many {thing} does each friend get?",
         "There are {boxes} boxes, each with {each} {thing}. {name} gives {gone} of the {thing} to a school and deals "
         "out the others evenly to {friends} friends. How many {thing} does every friend receive?"),
        ("The boxes hold {boxes} × {each} = {total} {thing}.\nWithout the {gone} that are gone, {total} - {gone} = "
         "{rest} remain.\nEach of {friends} friends gets {rest} / {friends} = {answer}.",
         "First count all {thing}: {each} in each of {boxes} boxes makes {total}.\nOf these {gone} are not shared, "
         "which leaves {rest}.\nDivide evenly: {rest} / {friends} = {answer}."),
    ),
    "trip": Family(
        {"speed": range(30, 100, 5), "hours": range(2, 7), "second": range(30, 120, 5), "more": range(2, 7)},
        _trip,
        ("A bus drives {hours} hours at {speed} kilometres per hour and then {more} hours at {second} kilometres per "
         "hour. What is its average speed over the whole trip, in kilometres per hour?",
         "On a trip, a car goes {speed} kilometres per hour for {hours} hours, and {second} kilometres per hour for "
         "the following {more} hours. Find the average speed of the whole trip in kilometres per hour."),
        ("The first part is {speed} × {hours} = {one} kilometres, the second {second} × {more} = {two} kilometres.\n"
         "That is {total} kilometres in {time} hours.\nThe average speed is {total} / {time}, which is {answer}.",
         "Average speed is all the way divided by all the time.\nThe way: {one} + {two} = {total} kilometres.\nThe "
         "time: {hours} + {more} = {time} hours.\nThe quotient {total} / {time} is {answer}."),
    ),
    "discount": Family(
        {"name": _NAMES, "price": range(20, 400, 5), "percent": range(5, 65, 5)},
        _discount,
        ("A coat costs {price} dollars. {name} gets a discount of {percent} percent. How many dollars does {name} pay?",
         "{name} wants a coat whose price of {price} dollars has been lowered by {percent} percent. What does the coat "
         "cost now, in dollars?"),
        ("The discount is {percent} percent of {price}, that is {price} × {percent} / 100 = {off} dollars.\nThe price "
         "falls to {price} - {off} = {answer} dollars.",
         "One percent of {price} is {price} / 100.\n{percent} times that is {off}.\nWhat remains to be paid is {price} "
         "- {off} = {answer}."),
    ),
    "heads and legs": Family(
        {"chickens": range(4, 60), "rabbits": range(3, 60)},
        _heads,
        ("A farm keeps chickens and rabbits. Together they have {heads} heads and {legs} legs. How many rabbits are "
         "there?",
         "In a yard there are only chickens and rabbits, {heads} animals in all, and one counts {legs} legs. Determine "
         "the number of rabbits."),
        ("If all {heads} animals were chickens, there would be 2 × {heads} = {all_two} legs.\nThere are {legs} - "
         "{all_two} = {extra} more.\nEach rabbit adds 2 legs, so there are {extra} / 2 = {answer} rabbits.",
         "Let r be the number of rabbits; then {heads} - r are chickens.\nLegs: 4r + 2({heads} - r) = {legs}, so 2r = "
         "{legs} - {all_two} = {extra}.\nHence r = {answer}."),
    ),
    "work together": Family(
        {"name": _NAMES[:6], "friend": _NAMES[6:], "one": range(2, 20), "other": range(3, 30)},
        _work,
        ("{name} paints a fence in {one} hours, {friend} needs {other} hours for it. How many hours do they need if "
         "they work together?",
         "Working alone, {name} finishes a job in {one} hours and {friend} in {other} hours. In how many hours do both "
         "finish it together?"),
        ("In an hour {name} does 1/{one} of the work and {friend} 1/{other}.\nTogether they do $\\frac{{1}}{{{one}}} + "
         "\\frac{{1}}{{{other}}} = {together}$ in an hour.\nThe whole takes the reciprocal, ${answer}$ hours.",
         "Rates add up: $\\frac{{1}}{{{one}}} + \\frac{{1}}{{{other}}} = {together}$ of the job per hour.\nTime is one "
         "divided by the rate, so ${answer}$ hours."),
    ),
    "progression": Family(
        {"first": range(1, 40), "step": range(2, 15), "count": range(6, 40)},
        _progression,
        ("The first term of an arithmetic sequence is {first} and its common difference is {step}. What is the sum of "
         "its first {count} terms?",
         "A hall has {count} rows. The first row has {first} seats, and every row has {step} seats more than the row "
         "before. How many seats does the hall have?"),
        ("The last of the {count} terms is {first} + {gaps} × {step} = {last}.\nThe sum is {count} × ({first} + "
         "{last}) / 2 = {count} × {both} / 2 = {answer}.",
         "Pair the first with the last: {first} + {last} = {both}, where {last} = {first} + {step} × {gaps}.\nThere "
         "are {count} / 2 such pairs, so the sum is {both} × {count} / 2 = {answer}."),
    ),
    "linear equation": Family(
        {"left": range(3, 15), "right": range(1, 12), "root": range(-12, 20), "shift": range(2, 40)},
        _linear,
        ("Solve for $x$: ${left}x + {shift} = {right}x + ({other})$.",
         "For which number $x$ does ${left}x + {shift}$ equal ${right}x + ({other})$?"),
        ("Take {right}x from both sides: {factor}x + {shift} = {other}.\nTake {shift} from both sides: {factor}x = "
         "{difference}.\nDivide by {factor}: x = {answer}.",
         "Bring x to the left and numbers to the right: ({left} - {right})x = {other} - {shift}.\nThat is {factor}x = "
         "{difference}, so x = {answer}."),
    ),
    "rectangle": Family(
        {"width": range(3, 60), "longer": range(1, 40)},
        _rectangle,
        ("A rectangle is {longer} centimetres longer than wide, and its perimeter is {perimeter} centimetres. What is "
         "its area in square centimetres?",
         "The perimeter of a rectangular garden measures {perimeter} metres; its length exceeds its width by {longer} "
         "metres. Compute its area in square metres."),
        ("Length and width together are {perimeter} / 2 = {half}.\nTwice the width is {half} - {longer} = {twice}, so "
         "the width is {width} and the length {length}.\nThe area is {width} × {length} = {answer}.",
         "Let w be the width. Then 2(w + w + {longer}) = {perimeter}, so 2w + {longer} = {half} and w = {width}.\nThe "
         "length is {length}.\nArea: {length} × {width} = {answer}."),
    ),
    "urn": Family(
        {"red": range(2, 15), "blue": range(2, 15),
         "colours": (("red", "blue"), ("green", "white"), ("black", "yellow"))},
        _urn,
        ("A bag holds {red} {one} balls and {blue} {two} balls. Two balls are drawn without putting any back. What is "
         "the probability that both are {one}? Give a common fraction.",
         "From a box with {red} {one} and {blue} {two} marbles one takes two at random, the second without replacing "
         "the first. As a common fraction, how likely is it that both marbles are {one}?"),
        ("The first is {one} with probability {red}/{total}.\nThen {red_less} of {less} are {one}.\nThe product "
         "$\\frac{{{red}}}{{{total}}} \\cdot \\frac{{{red_less}}}{{{less}}}$ is ${answer}$.",
         "Ordered pairs: {total} × {less} in all, {red} × {red_less} with both {one}.\nTheir quotient in lowest terms "
         "is ${answer}$."),
    ),
    "ages": Family(
        {"name": _NAMES[:6], "friend": _NAMES[6:], "child": range(4, 20), "gap": range(15, 45), "factor": range(3, 7)},
        _ages,
        ("{name} is {child} years old and {friend} is {elder}. In how many years will {friend} be {factor} times as "
         "old as {name}?",
         "Today {friend} is {elder} years old, {name} is {child}. After how many years is the age of {friend} exactly "
         "{factor} times that of {name}?"),
        ("{friend} stays {gap} years older.\nWhen {friend} is {factor} times as old, {gap} is {less} times the age of "
         "{name}, which is then {gap} / {less} = {then}.\nThat is in {then} - {child} = {answer} years.",
         "After t years: {elder} + t = {factor}({child} + t).\nSo {less}t = {elder} - {factor} × {child}, and t = "
         "{answer}."),
    ),
    "mixture": Family(
        {"strong": range(10, 90, 5), "weak": range(5, 60, 5), "litres": range(2, 16), "more": range(2, 16)},
        _mixture,
        ("{litres} litres of a solution with {strong} percent salt are mixed with {more} litres of one with {weak} "
         "percent salt. What percent of the mixture is salt?",
         "A chemist pours {litres} litres of a {strong} percent solution and {more} litres of a {weak} percent "
         "solution into one tank. Find the strength of the mixture in percent."),
        ("The first holds {litres} × {strong} / 100 = {salt} litres of salt, the second {more} × {weak} / 100 = "
         "{other}.\nTogether {sum} litres in {total} litres.\nThat is {sum} / {total} × 100 = {answer} percent.",
         "Weigh the percentages by the litres: ({litres} × {strong} + {more} × {weak}) / ({litres} + {more}).\nThis is "
         "{answer}."),
    ),
    "bells": Family(
        {"one": range(4, 60), "other": range(6, 90)},
        _bells,
        ("One bell rings every {one} minutes and another every {other} minutes. They ring together now. In how many "
         "minutes do they next ring together?",
         "Two lights flash together. The first flashes every {one} seconds, the second every {other} seconds. After "
         "how many seconds do they flash together again?"),
        ("The time must be a multiple of {one} and of {other}.\nTheir greatest common divisor is {divisor}, so the "
         "least common multiple is {one} × {other} / {divisor} = {answer}.",
         "We need the least common multiple of {one} and {other}.\nAs both are divisible by {divisor} and by nothing "
         "larger, it is {one} × ({other} / {divisor}) = {answer}."),
    ),
    "joining mean": Family(
        {"count": range(3, 15), "mean": range(20, 80), "joined": _NAMES, "new": range(20, 80)},
        _mean,
        ("The mean age of {count} people is {mean} years. {joined} joins them, and the mean becomes {new} years. How "
         "old is {joined}?",
         "A club of {count} members has a mean age of {mean}. With {joined} as a further member the mean age is {new}. "
         "What is the age of {joined}?"),
        ("Before, the ages add up to {count} × {mean} = {total}.\nAfterwards to {number} × {new} = {after}.\nThe "
         "difference {after} - {total} = {answer} is the age of {joined}.",
         "Sums tell more than means: {total} before, {after} after, as {number} people have the mean {new}.\n{joined} "
         "is {after} - {total} = {answer}."),
    ),
    "quadratic": Family(
        {"one": range(-12, 12), "other": range(-9, 20)},
        _quadratic,
        ("What is the larger solution of ${equation}$?", "Find the greater of the two roots of ${equation}$."),
        ("The solutions have the sum {sum} and the product {product}.\nThese are {one} and {other}.\nThe larger one is "
         "{answer}.",
         "The left side factors: its roots are {one} and {other}, for {one} + ({other}) = {sum} and {one} × ({other}) "
         "= {product}.\nThe greater root is {answer}."),
    ),
}  # fmt: skip
