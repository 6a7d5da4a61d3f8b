"""How fast answers are compared: the rungs without sympy against math-verify, on the answers of MATH.

The pairs are gold answers with a spelling of themselves and with one digit changed. The peer is math-verify alone, in
this process, without its alarms. All by the processor's time, as other work on the machine lengthens the clock's; the
whole ladder's is that of its processes too, less what they take to start. Also told: how many pairs the quick rungs
settle, and where the two disagree.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, machine

sys.path.insert(0, str(REPOSITORY))

from depthup.synthesis.answers import extract_answer
from depthup.synthesis.verify import Verifier, quick_verdict

EXAMPLES = """example:
  python benchmarks/verify.py data/math/test.jsonl.gz
"""


def pairs_of(path: Path, number: int) -> list[tuple[str, str]]:
    """Gold answers, each with itself in another spelling, and with a digit changed where it has one."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        solutions = [json.loads(line)["solution"] for line in file]
    chance, pairs = random.Random(0), list[tuple[str, str]]()
    for solution in chance.sample(solutions, number):
        found = extract_answer(solution)
        if found is None:
            continue
        gold = found[0]
        pairs.append((gold, f"${gold}$".replace("\\frac", "\\dfrac").replace(", ", ",")))
        digits = [place for place, char in enumerate(gold) if char.isdigit()]
        if digits:
            place = chance.choice(digits)
            pairs.append((gold, f"{gold[:place]}{(int(gold[place]) + 3) % 10}{gold[place + 1 :]}"))
    return pairs


def ladder(pairs: list[tuple[str, str]]) -> tuple[float, list[Any]]:
    """(seconds of processors, verdicts) of the whole ladder with two processes, their start included."""
    before = sum(os.times()[:4])
    with Verifier(num_workers=2) as verifier:
        verifier.verify_all([(r"\sqrt{8}", r"2\sqrt{2}"), (r"\sqrt{12}", r"2\sqrt{3}")])  # both begin
        verdicts = list(verifier.verify_all(pairs))
    return sum(os.times()[:4]) - before, verdicts


def measure(path: Path, number: int) -> dict[str, Any]:
    from math_verify import parse
    from math_verify import verify as peer

    logging.disable(logging.CRITICAL)
    pairs = pairs_of(path, number)
    begin, repeats = time.process_time(), 0
    while time.process_time() - begin < 2:
        quick = [quick_verdict(*pair) for pair in pairs]
        repeats += 1
    quick_seconds = (time.process_time() - begin) / repeats
    peer(parse("$1$", parsing_timeout=None), parse("$1$", parsing_timeout=None), timeout_seconds=None)
    begin = time.process_time()
    theirs = [
        peer(*(parse(f"${text.strip('$')}$", parsing_timeout=None) for text in pair), timeout_seconds=None)
        for pair in pairs
    ]
    peer_seconds = time.process_time() - begin
    start_seconds, _ = ladder([])
    whole_seconds, whole = ladder(pairs)
    whole_seconds -= start_seconds
    settled = sum(verdict is not None for verdict in quick)
    unlike = [
        [*pair, verdict.equal, other]
        for pair, verdict, other in zip(pairs, quick, theirs, strict=True)
        if verdict is not None and verdict.equal != other
    ]
    return {
        "pairs": len(pairs),
        "settled_without_sympy": settled / len(pairs),
        "quick_pairs_per_core_second": len(pairs) / quick_seconds,
        "math_verify_pairs_per_core_second": len(pairs) / peer_seconds,
        "ratio": peer_seconds / quick_seconds,
        "ladder_pairs_per_core_second": len(pairs) / whole_seconds,
        "ladder_ratio": peer_seconds / whole_seconds,
        "equal": sum(verdict.equal for verdict in whole),
        "equal_by_math_verify": sum(theirs),
        "disagreements": unlike[:20],
        "num_disagreements": len(unlike),
    }


def command() -> str:
    """The arguments of the run, without the paths of this machine."""
    return " ".join(Path(text).name if text.startswith("/") else text for text in sys.argv)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="MATH rows, math/test.jsonl.gz")
    parser.add_argument("--number", type=int, default=200, help="golds to draw (200)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    figures = measure(arguments.file, arguments.number)
    text = json.dumps({"machine": machine(Path.cwd()), "command": command(), **figures}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
