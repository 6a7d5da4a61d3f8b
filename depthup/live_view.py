"""A run in the terminal while it goes on: a line for each stage, drawn again in place; plain ANSI, nothing else."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from .files import partial_path
from .pipeline import Node, duration

_SECONDS = 0.25  # between two drawings
_BAR = 16  # columns of a full bar
_TAIL_BYTES = 8192  # of metrics.jsonl; holds the last lines
_COLORS = {"cached": "32", "running": "36", "failed": "31", "partial": "33", "stale": "33"}


class Screen:
    """The table of stages at the bottom of a terminal; lines that stay scroll by above it.

    Args:
        out: The terminal.
    """

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self.out, self.num_drawn, self.drawn_at = out, 0, 0.0

    def line(self, text: str) -> None:
        """A line above the table."""
        self._clear()
        self.out.write(f"{text}\n")
        self.out.flush()
        self.drawn_at = 0.0

    def update(self, nodes: dict[str, Node], running: dict[str, float], failed: dict[str, str]) -> None:
        """Draw the table, a few times a second at most."""
        if time.monotonic() - self.drawn_at < _SECONDS:
            return
        width, height = shutil.get_terminal_size()
        lines = table(nodes, running, failed, color=True, width=width - 1)
        hidden = len(lines) - max(1, height - 2)
        if hidden > 0:  # what is made says least
            lines = [f"{hidden + 1} stages above", *lines[hidden + 1 :]]
        self._clear()
        self.out.write("".join(f"{line}\n" for line in lines))
        self.out.flush()
        self.num_drawn, self.drawn_at = len(lines), time.monotonic()

    def close(self) -> None:
        """Take the table away; the lines above it stay."""
        self._clear()
        self.out.flush()

    def _clear(self) -> None:
        if self.num_drawn:
            self.out.write(f"\x1b[{self.num_drawn}A\x1b[J")
        self.num_drawn = 0


def table(
    nodes: Mapping[str, Node], running: Mapping[str, float], failed: Mapping[str, str], *, color: bool = False,
    width: int = 120,
) -> list[str]:  # fmt: skip
    """A line for each stage: name, kind, state, progress, time, loss.

    Args:
        nodes: All stages.
        running: Since when each that runs does, in seconds since 1970.
        failed: Why each failed one did.
        color: Mark states with ANSI colours.
        width: Columns that a line may take.
    """
    lines = []
    for name, node in nodes.items():
        state = "running" if name in running else "failed" if name in failed else node.state
        notes = [failed.get(name, "")]
        if node.record is not None:
            notes = [duration(node.record.circumstance["seconds"]), _loss(node.record.results)]
        elif name in running:
            notes = [_progress(node), duration(time.time() - running[name])]
        elif state == "stale":
            notes = [node.reason]
        text = f"{name:<18.18} {node.stage.kind:<9} {state:<8} {'  '.join(note for note in notes if note)}"
        text = text[:width].rstrip()
        if color and state in _COLORS:
            text = text.replace(f" {state}", f" \x1b[{_COLORS[state]}m{state}\x1b[0m", 1)
        lines.append(text)
    return lines


def _progress(node: Node) -> str:
    """How far a training stage is, with its last loss, from what it has written; empty for other stages."""
    found = last_metrics(partial_path(node.folder) / "metrics.jsonl")
    if not found:
        return ""
    step, total = int(found["step"]), getattr(node.stage, "steps", None)
    if not total or getattr(node.stage, "chunks", 1) > 1:
        return f"step {step}  {_loss(found)}"
    full = round(_BAR * min(1.0, step / total))
    return f"{'█' * full}{'░' * (_BAR - full)} {step}/{total}  {_loss(found)}"


def _loss(values: Mapping[str, Any]) -> str:
    for key in ("loss", "held_out_loss"):
        if isinstance(values.get(key), float):
            return f"{key.replace('_', '-')} {values[key]:.3f}"
    return ""


def last_metrics(path: Path) -> dict[str, Any] | None:
    """The last line of a metrics file that tells a loss; None where there is none yet."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # cut by our seek, or being written
            continue
        if isinstance(found, dict) and "loss" in found:
            return found
    return None
