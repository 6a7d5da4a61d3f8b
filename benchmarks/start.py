"""How long a user waits for the command line itself: ``depthup --help`` beside an empty Python and mergekit's help.

python benchmarks/start.py [--mergekit BIN/mergekit-yaml] [--rounds 11] [--json docs/results/start.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from measuring import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="the program mergekit-yaml, of an environment of its own")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "depthup --help": [sys.executable, "-m", "depthup", "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    if options.mergekit:
        commands["mergekit-yaml --help"] = [options.mergekit, "--help"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.rounds + 1):  # the first compiles and fills the page cache
            for name, command in commands.items():
                seconds[name].append(measure(command, Path(scratch) / "log").seconds)
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    ours = medians["depthup --help"]
    for name, median in medians.items():
        print(f"{name:22} {median:7.3f} s  {median / ours:6.2f} x")
    if options.json:
        of_ours = {name: round(median / ours, 2) for name, median in medians.items()}
        record = {
            "command": "python benchmarks/start.py",
            "rounds": options.rounds,
            "seconds": medians,
            "ratios": of_ours,
        }
        options.json.write_text(json.dumps(record | {"ratios": of_ours}, indent=2) + "\n")


if __name__ == "__main__":
    main()
