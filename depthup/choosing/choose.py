"""The whole way to a recommendation: losses before training, short runs in rungs, a verdict, a recipe.

Losses before training say little about those after it, and losses after a few steps much more (Landscape-Aware
Growing, arXiv:2406.02469). So the best of each family is trained a little, the better half of them longer, and so on
(successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943). The base, trained on the same rows for the same
steps, is in every rung, twice: the control, at the candidates' rate and at a third of it; the better one counts. All is
kept in one folder, and a run that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..artifacts.fingerprint import Digests, first_difference
from ..checkpoint.plain_json import read_object
from ..checkpoint.reader import open_checkpoint
from ..costs import base_costs
from ..errors import CheckpointError, OutputError, TrainingError
from ..files import locked_file, write_json, write_text
from .candidates import Candidate, candidates, wanted_depth
from .facts import NEW_ONLY_RATE, PUBLISHED, Fact, Rate, measured_facts, rate_for
from .recipe import recipe_text
from .verdict import CONTROLS, Measurement, Verdict, control_of, decide, difference

RESULT, SETTINGS, RECIPE = "choose.json", "settings.json", "recipe.yaml"


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        model: Folder of the base.
        budget_tokens: That the target may be trained on.
        params: Wanted parameters, or None; one of the three sizes is given.
        target_layers: Wanted depth.
        factor: Wanted depth as a multiple.
        files: Text; empty for the documentation that Python carries.
        field: Of rows in these files.
        probe_steps: Steps of the last rung; a quarter and a half of them are rungs, too.
        keep: Most candidates in the first rung.
        rows_per_step: Rows in a batch.
        row_tokens: Tokens in a row.
        eval_rows: Held-out rows.
        learning_rate: Of the short runs; None for what is known at this size.
        seed: Of everything.
    """

    model: str
    budget_tokens: int
    params: float | None = None
    target_layers: int | None = None
    factor: float | None = None
    files: tuple[str, ...] = ()
    field: str = "text"
    probe_steps: int = 32
    keep: int = 6
    rows_per_step: int = 4
    row_tokens: int = 256
    eval_rows: int = 16
    learning_rate: float | None = None
    seed: int = 0

    @property
    def tokens_per_step(self) -> int:
        return self.rows_per_step * self.row_tokens

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps of each rung: no more than the budget allows; none without a budget."""
        if self.budget_tokens == 0:
            return ()
        steps = max(min(self.probe_steps, self.budget_tokens // self.tokens_per_step), 1)
        if steps < 4:
            return tuple(sorted({1, steps}))
        return steps // 4, 2 * (steps // 4), 4 * (steps // 4)


@dataclass(frozen=True)
class Choice:
    """A recommendation with all of its evidence.

    Attributes:
        request: What was asked.
        tried: Every candidate.
        zero: Before training: the base, named control, then those that were measured.
        trained: Of each rung that all of its runs finished, the measurements.
        left_out: Why something was not measured, in words.
        verdict: The recommendation.
        rate: The learning rate that is recommended, with its evidence.
        facts: What was measured before.
        num_parameters: Of the base and of the target.
    """

    request: Request
    tried: tuple[Candidate, ...]
    zero: tuple[Measurement, ...]
    trained: tuple[tuple[Measurement, ...], ...]
    left_out: tuple[str, ...]
    verdict: Verdict
    rate: Rate
    facts: tuple[Fact, ...]
    num_parameters: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        control = self.zero[0]
        zero = [
            {"name": one.name, "loss": one.loss, "minus_base": asdict(difference(one, control))} for one in self.zero
        ]
        rungs = [[_row(one, control_of(rung)) for one in rung] for rung in self.trained]
        best = self.verdict.best
        return {
            "request": asdict(self.request),
            "verdict": self.verdict.words,
            "decision": self.verdict.decision,
            "plan": best.plan.text if best else None,
            "method": best.name if best else None,
            "trains": "new layers only" if best and best.trains_new_only else "all",
            "learning_rate": {"peak": self.rate.peak, **asdict(self.rate.fact)},
            "not_known": list(self.verdict.unknown),
            "num_parameters": {"base": self.num_parameters[0], "target": self.num_parameters[1]},
            "candidates": [
                {"name": one.name, "family": one.family, "plan": one.plan.text, "why": one.why} for one in self.tried
            ],
            "before_training": zero,
            "tokens_per_step": self.request.tokens_per_step,
            "rungs": rungs,
            "left_out": list(self.left_out),
            "facts": [asdict(fact) for fact in self.facts],
        }


def _row(one: Measurement, control: Measurement) -> dict[str, Any]:
    against = None if one is control else asdict(difference(one, control))
    return {"name": one.name, "step": one.step, "loss": one.loss, "minus_control": against}


def choose(
    request: Request, out: Path, *, minutes: float | None = None, device: str = "auto", progress: bool = True,
    tell: Callable[[str], object] = print,
) -> Choice:  # fmt: skip
    """Find a recommendation; ``out`` gets ``choose.json``, ``recipe.yaml`` and what was measured.

    Args:
        request: What is asked.
        out: A new folder, or one that a stopped run of the same request left.
        minutes: No run begins that would end later; None for no limit.
        device: Where torch computes.
        progress: Whether to show bars.
        tell: Receives a line for each part.

    Raises:
        DepthupError: The base, the size or the text does not allow it, or ``out`` belongs to another request.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    base = open_checkpoint(Path(request.model))
    if base.config.get("quantization_config"):
        raise CheckpointError(
            f"{request.model} holds quantised weights, which cannot be trained",
            next_step="choose for the model they were made from",
        )
    costs = base_costs(base)
    assert costs.layer_parameters is not None
    depth = wanted_depth(costs, params=request.params, target_layers=request.target_layers, factor=request.factor)
    tried = candidates(costs.num_layers, depth, sum(costs.layer_parameters) / costs.num_layers)
    rate = rate_for(base.num_parameters)
    out.mkdir(parents=True, exist_ok=True)
    with locked_file(out / ".lock", shared=False) as is_ours:
        if not is_ours:
            raise OutputError(f"another process writes {out}", next_step="wait for it to end, or choose another --out")
        data = _claim(request, out)
        zero, rungs, left_out = _measure(request, out, base, tried, rate, data[0], deadline, device, progress, tell)
        verdict = decide(
            tried, zero, rungs, budget_tokens=request.budget_tokens, tokens_per_step=request.tokens_per_step
        )  # fmt: skip
        if verdict.best is not None and verdict.best.trains_new_only:
            rate = replace(rate, peak=2e-4, fact=NEW_ONLY_RATE)
        facts = (*measured_facts(request.budget_tokens, base.num_parameters), *PUBLISHED)
        best = verdict.best or tried[0]
        sizes = (base.num_parameters, best.plan.count(costs.layer_parameters, costs.outside_parameters))
        choice = Choice(request, tried, tuple(zero), tuple(map(tuple, rungs)), left_out, verdict, rate, facts, sizes)
        _write(choice, out, data[1])
    return choice


def _claim(request: Request, out: Path) -> tuple[Any, dict[str, Any]]:
    """The source of text and what a recipe says of it; the folder is marked as this request's.

    Raises:
        OutputError: It is another's.
    """
    from .text import source_of

    source, data = source_of(request.files, request.field)
    digests = Digests(out / "digests.json")
    identity = {
        **asdict(request),
        "files": list(request.files),
        "model": digests.of_checkpoint(Path(request.model)),
        "text": source.identity(digests.of),
    }
    path = out / SETTINGS
    if path.exists():
        if found := first_difference(read_object(path), identity):
            raise OutputError(
                f"{out} holds a choice made with other settings: {found}", next_step="choose another --out"
            )
    elif any(entry.name not in (".lock", "digests.json") for entry in out.iterdir()):
        raise OutputError(f"{out} exists and holds no choice", next_step="choose another --out")
    write_json(path, identity)
    return source, data


def _measure(
    request: Request, out: Path, base: Any, tried: Sequence[Candidate], rate: Rate, source: Any,
    deadline: float | None, device: str, progress: bool, tell: Callable[[str], object],
) -> tuple[list[Measurement], list[list[Measurement]], tuple[str, ...]]:  # fmt: skip
    from tqdm import tqdm

    from ..models import load_tokenizer, resolve_device
    from .probes import Bench, Settings, zero_step
    from .text import read_text

    tokenizer = load_tokenizer(base.folder)
    text = read_text(source, tokenizer, out / "tokens", row_tokens=request.row_tokens,
                     num_held_out_rows=request.eval_rows, seed=request.seed,
                     train_tokens=request.rungs[-1] * request.tokens_per_step if request.rungs else 0)  # fmt: skip
    warmup = max(request.rungs[0] // 2, 1) if request.rungs else 0
    settings = Settings(request.learning_rate or rate.peak, request.rows_per_step, warmup, request.seed)
    bench = Bench(base, text, out, resolve_device(device), settings, deadline, progress)
    plans = len({one.plan for one in tried}) + 1
    tell(f"{len(tried)} candidates on {len(text.held_out)} held-out rows of {request.row_tokens} tokens")
    with tqdm(total=plans, desc="before training", unit="plan", disable=not progress, dynamic_ncols=True) as bar:
        zero, late = zero_step(bench, tried, bar.update)
    if len(zero) < 2:
        raise TrainingError(
            "the time was over before a plan was measured",
            next_step="run the same command again, it goes on; or give it more --minutes",
        )
    left_out = [f"{one.name}: not measured before training, half of the time was over" for one in late]
    if not request.rungs:
        return zero, [], (*left_out, "no short training: the budget is 0 tokens")
    names = {one.name for one in zero}
    finalists = _finalists([one for one in tried if one.name in names], zero, request.keep)
    rungs, cut = _climb(bench, request, finalists, tell)
    return zero, rungs, (*left_out, *cut)


def _finalists(tried: Sequence[Candidate], zero: Sequence[Measurement], keep: int) -> list[Candidate]:
    """The best of each family before training, at most ``keep``, the best first."""
    losses = {one.name: one.loss for one in zero}
    ordered = sorted(tried, key=lambda one: losses[one.name])
    families: dict[str, Candidate] = {}
    for one in ordered:
        families.setdefault(one.family, one)
    return list(families.values())[:keep]


def _climb(
    bench: Any, request: Request, finalists: Sequence[Candidate], tell: Callable[[str], object]
) -> tuple[list[list[Measurement]], list[str]]:
    """Train in rungs, the controls in each; after a rung the better half of the candidates goes on."""
    from .probes import clear, train_to

    rungs: list[list[Measurement]] = []
    every = request.rungs[0]
    alive: list[Candidate] = list(finalists)
    for place, step in enumerate(request.rungs):
        is_last = place + 1 == len(request.rungs)
        tell(f"rung {place + 1} of {len(request.rungs)}: {len(alive)} candidates and two controls, {step} steps")
        found = []
        subjects: tuple[Candidate | str, ...] = (*CONTROLS, *alive)
        for subject in subjects:
            measured = train_to(bench, subject, step, every=every, keep_state=not is_last)
            if measured is None:
                told = f"rung {place + 1} ({step} steps) was not finished: --minutes are over; the same command goes on"
                return rungs, [told]
            found.append(measured)
        rungs.append(found)
        others = found[len(CONTROLS) :]
        ordered = sorted(range(len(others)), key=lambda i: others[i].loss)
        going_on = set() if is_last else set(ordered[: -(-len(others) // 2)])
        for i, candidate in enumerate(alive):
            if i not in going_on:
                clear(bench, candidate.name)
        alive = [alive[i] for i in sorted(going_on)]
    for control in CONTROLS:
        clear(bench, control)
    return rungs, []


def _write(choice: Choice, out: Path, data: dict[str, Any]) -> None:
    request = choice.request
    if choice.verdict.best is not None:
        text = recipe_text(
            choice.verdict, model=str(Path(request.model).resolve()), data=data, budget_tokens=request.budget_tokens,
            learning_rate=choice.rate.peak, row_tokens=request.row_tokens, rows_per_step=request.rows_per_step,
            seed=request.seed,
        )  # fmt: skip
        write_text(out / RECIPE, text)
    write_json(out / RESULT, choice.to_json())
