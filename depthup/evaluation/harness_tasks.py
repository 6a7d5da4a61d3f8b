"""lm-eval's own task objects, driven: its prompts, its draws, its metrics, from templates compiled once.

Needs the package lm-eval. Nothing of its tasks is written again here: requests come from ``fewshot_context`` and
``construct_requests`` of its tasks, numbers from their filters and ``process_results``.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS, DEFAULT_OTHER_SEED
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from ..errors import RecipeError, shown
from .harness_templates import compiled_templates, quiet
from .prepared import STATED, Choice, Item, Metrics, PreparedTask
from .requests import Answer, Completion, Continuation, Request, Whole
from .scores import Weighting
from .sources import Benchmark, item_ids
from .suites import Measure, TaskSpec

NAME = "harness-0.4"
VERSION = version("lm_eval")
FEWSHOT_SEED = DEFAULT_OTHER_SEED  # of lm_eval.simple_evaluate
_STOCK = Path(lm_eval.__file__).parent / "tasks"
Chat = Callable[..., str]


class InMemory(list[dict[str, Any]]):
    """Rows with the two things that lm-eval's tasks ask of a ``datasets.Dataset``: its columns, and ``map``."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0]) if self else {}

    def map(self, function: Callable[[dict[str, Any]], Mapping[str, Any]]) -> InMemory:
        """Each row with the fields that ``function`` gives added or replaced."""
        return InMemory({**row, **function(row)} for row in self)


@dataclass(frozen=True)
class Part:
    """One of lm-eval's tasks.

    Attributes:
        task: Its object, with its examples drawn from the beginning.
        group: The subject that it is, where several make one task of ours.
        ids: Identity of each of its items.
    """

    task: Any
    group: str
    ids: Sequence[str]


def stock_parts(spec: TaskSpec, benchmark: Benchmark, cloze: bool = False) -> list[Part]:
    """lm-eval's task over rows in memory; one for each subject of MMLU.

    Args:
        spec: The task.
        benchmark: Its rows; a split of examples that is not there is not asked for.
        cloze: Whether to take the task that asks for words where the usual one asks for a letter.
    """
    benchmarks = benchmark.by_subject() if spec.name == "mmlu" else {"": benchmark}
    parts = []
    for name, rows in benchmarks.items():
        held = {split: InMemory(listed) for split, listed in rows.splits.items()}
        with quiet(), compiled_templates():
            task = ConfigurableTask(config=stock_config(spec, name, held, cloze))
        task.set_fewshot_seed(FEWSHOT_SEED)
        parts.append(Part(task, name, item_ids(spec.name, rows.splits[rows.scored])))
    return parts


def stock_config(spec: TaskSpec, subject: str, splits: Mapping[str, Any], cloze: bool = False) -> dict[str, Any]:
    """lm-eval's own configuration of a task, with data at hand instead of the hub's.

    Args:
        spec: The task.
        subject: Of MMLU; empty elsewhere.
        splits: What the task finds under the names of its splits; without one to train on, there is none to draw from.
        cloze: As in :func:`stock_parts`.
    """
    file = spec.cloze if cloze and spec.cloze else spec.stock
    config = load_yaml(_STOCK / file.format(subject=subject))
    config.pop("tag", None)
    if config.get("training_split") not in splits:
        config["training_split"] = None
    return {**config, "num_fewshot": spec.num_fewshot, "custom_dataset": lambda **_: splits}


@cache
def _manager() -> TaskManager:
    with quiet():
        return TaskManager()  # reads every task of lm-eval: about twelve seconds


def known_names() -> list[str]:
    """Every task, group and tag of the installed lm-eval."""
    return list(_manager().all_tasks)


@cache
def _written() -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(_STOCK.rglob("*.yaml")))


def may_be_known(name: str) -> bool:
    """Whether a name stands anywhere in lm-eval's files; where it does not, no index need be made to refuse it."""
    return name.encode() in _written()


def written_names() -> list[str]:
    """Nearly every name of lm-eval, read without its index: what follows ``task:`` or ``group:``."""
    found = re.findall(rb"""^["']?(?:task|group)["']?\s*:\s*["']?([\w.-]+)""", _written(), re.MULTILINE)
    return sorted({name.decode() for name in found})


def stock_by_name(name: str, ids: Callable[[str, Sequence[Mapping[str, Any]]], list[str]]) -> tuple[list[Part], str]:
    """A task, group or tag of lm-eval with its own data, and how a group is averaged: empty where it is no group.

    Args:
        name: One of :func:`known_names`.
        ids: Gives the identity of each document.
    """
    with quiet(), compiled_templates():
        loaded = _manager().load([name])
    parts = []
    for task_name, task in loaded["tasks"].items():
        if task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(FEWSHOT_SEED)
        if not hasattr(task, "task_docs"):
            task.task_docs = task.eval_docs
        parts.append(Part(task, task_name if len(loaded["tasks"]) > 1 else "", ids(task_name, list(task.task_docs))))
    group = loaded.get("groups", {}).get(name)
    if group is None or len(parts) == 1:
        return parts, ""
    metrics = group.aggregate_metric_list or []
    return parts, "items" if all(metric.weight_by_size for metric in metrics) else "groups"


def prepare_parts(
    name: str, parts: Sequence[Part], metric: str, choice: Choice, *, measure: Measure = "score",
    chat: Chat | None = None, multiturn: bool = True, weighting: Weighting = "items", notes: Sequence[str] = (),
    identity: Mapping[str, Any] | None = None,
) -> PreparedTask:  # fmt: skip
    """Requests of lm-eval's tasks, and their scores, as one task.

    Args:
        name: What it is called.
        parts: lm-eval's tasks; used up, for their draws go on.
        metric: The one to report; empty for the first that is a number an item.
        choice: Which items.
        measure: The task's metric, or the bits per byte of the gold answer.
        chat: A chat template, as lm-eval calls it: messages, ``add_generation_prompt``.
        multiturn: Whether examples become turns of the chat of their own.
        weighting: How parts are averaged.
        notes: Said beside the score.
        identity: Of the rows.

    Raises:
        RecipeError: The task draws text at random, or has no metric that is a number an item.
    """
    chosen = choice.drawn(name, [part.group for part in parts for _ in part.ids])
    num_available = sum(len(part.ids) for part in parts)
    built: list[tuple[Item, Part, list[Instance]]] = []
    first = 0
    with quiet(), compiled_templates(remember=all(isinstance(part.task.task_docs, InMemory) for part in parts)):
        for part in parts:
            wanted = range(len(part.ids))[: choice.limit]
            for number, instances in _instances(part, [n for n in wanted if first + n in chosen], chat, multiturn):
                requests = [_request(name, instance) for instance in instances]
                if measure == "bits_per_byte":
                    requests = [_gold_request(part.task, instances, requests)]
                document = instances[0].doc
                target = _target(part.task, document, requests)
                built.append((Item(part.ids[number], document, tuple(requests), target, part.group), part, instances))
            first += len(part.ids)
    items = tuple(item for item, _, _ in built)
    if measure == "bits_per_byte":
        metric, grade = measure, lambda answered: [_bits(*pair) for pair in zip(items, answered, strict=True)]
    else:
        grade = _grader(name, [(part, instances) for _, part, instances in built])
        metric = metric or _first_number(name, parts[0].task)
    order = "as they lie, of each subject" if len(parts) > 1 else "as they lie"
    task_version = next(iter({str(part.task.VERSION) for part in parts}))
    return PreparedTask(
        name, NAME, metric, parts[0].task.config.num_fewshot or 0, items, grade, num_available, weighting,
        f"{NAME}: lm-eval {VERSION}, {STATED}{task_version}",
        (*notes, *choice.notes(name, len(items), num_available, order)), identity or {},
    )  # fmt: skip


def _instances(
    part: Part, numbers: Sequence[int], chat: Chat | None, multiturn: bool
) -> Iterator[tuple[int, list[Instance]]]:
    """lm-eval's requests for some items of a part; the draws of the others before them are made all the same."""
    task, wanted = part.task, set(numbers)
    if not wanted:
        return
    num_fewshot = task.config.num_fewshot or 0
    for number, document in enumerate(task.task_docs):
        if number not in wanted:
            _skip(task, document, num_fewshot)
            continue
        context = task.fewshot_context(
            document, num_fewshot=num_fewshot, system_instruction=None, apply_chat_template=chat is not None,
            fewshot_as_multiturn=multiturn and chat is not None, chat_template=chat,
            gen_prefix=task.doc_to_prefix(document),
        )  # fmt: skip
        made = task.construct_requests(
            doc=document, ctx=context, metadata=(task.config["task"], number, task.config.repeats),
            apply_chat_template=chat is not None, chat_template=chat,
        )  # fmt: skip
        yield number, made if isinstance(made, list) else [made]
        if number == numbers[-1]:
            return


def _skip(task: Any, document: Mapping[str, Any], num_fewshot: int) -> None:
    """Make the draw of an item that is not asked, so that those after it have their own examples."""
    if num_fewshot:
        same = task.fewshot_cfg.split == task.config.test_split
        task.sampler.sample(n=num_fewshot, eval_doc=document if same else None)


def _request(name: str, instance: Instance) -> Request:
    if instance.request_type == "loglikelihood":
        return Continuation(*instance.args)
    if instance.request_type == "loglikelihood_rolling":
        return Whole(*instance.args)
    return completion(name, *instance.args)


def completion(name: str, context: str, options: Mapping[str, Any]) -> Completion:
    """lm-eval's options of generation as a request.

    Raises:
        RecipeError: They ask for more than the likeliest text.
    """
    if options.get("do_sample") or options.get("temperature") or options.get("num_beams", 1) != 1:
        raise RecipeError(
            f"{name} draws its text at random: {shown(dict(options), 200)}",
            allowed="greedy generation: do_sample false, temperature 0, one beam",
            next_step="run this task with lm-eval's own models",
        )
    known = {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "num_beams", "top_p", "top_k"}
    if unknown := options.keys() - known:
        raise RecipeError(
            f"{name} asks for generation with {', '.join(sorted(unknown))}",
            allowed=", ".join(sorted(known)),
            next_step="run this task with lm-eval's own models",
        )
    until = options.get("until") or ()
    num_tokens = options.get("max_gen_toks", options.get("max_new_tokens", DEFAULT_MAX_GEN_TOKS))
    return Completion(context, (until,) if isinstance(until, str) else tuple(until), int(num_tokens))


def _gold_request(task: Any, instances: Sequence[Instance], requests: Sequence[Request]) -> Request:
    """The request whose continuation is the right answer."""
    document = instances[0].doc
    if task.OUTPUT_TYPE == "multiple_choice":
        gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        if "mc2_targets" in document:
            gold = document["mc2_targets"]["labels"].index(1)
        return requests[gold if isinstance(gold, int) else task.doc_to_choice(document).index(gold)]
    if task.OUTPUT_TYPE == "generate_until":
        return Continuation(instances[0].args[0], f"{task.config.target_delimiter}{task.doc_to_target(document)}")
    if task.OUTPUT_TYPE == "loglikelihood":
        return requests[0]
    raise RecipeError(f"{task.config.task} has no gold answer whose bits could be counted")


def _bits(item: Item, answers: Sequence[Answer]) -> Metrics:
    """Bits of the gold answer per byte of it, its leading space included; less is better."""
    (request,) = item.requests
    assert isinstance(request, Continuation)
    return {"bits_per_byte": -answers[0][0] / math.log(2) / len(request.text.encode())}


def _target(task: Any, document: Mapping[str, Any], requests: Sequence[Request]) -> str:
    """The right answer to be read: its words where lm-eval has only its number."""
    target = task.doc_to_target(document)
    if isinstance(target, int) and task.config.doc_to_choice is not None and not task.multiple_input:
        return str(task.doc_to_choice(document)[target])
    if task.OUTPUT_TYPE == "multiple_choice" and task.multiple_input:
        return str(task.doc_to_choice(document)[task.doc_to_text(document)])
    return str(target)


def _grader(
    name: str, built: Sequence[tuple[Part, list[Instance]]]
) -> Callable[[Sequence[Sequence[Answer]]], list[Metrics]]:
    """lm-eval's filters and metrics; what they are given is made anew each time, so that answers never mix."""

    def grade(answered: Sequence[Sequence[Answer]]) -> list[Metrics]:
        metrics: list[dict[str, float]] = [{} for _ in built]
        by_task: dict[int, list[int]] = {}
        for index, (part, _) in enumerate(built):
            by_task.setdefault(id(part), []).append(index)
        for indices in by_task.values():
            task = built[indices[0]][0].task
            filled = {index: _filled(built[index][1], answered[index]) for index in indices}
            task._instances = [instance for instances in filled.values() for instance in instances]
            task.apply_filters()
            for index, instances in filled.items():
                for key in instances[0].filtered_resps:
                    found = task.process_results(instances[0].doc, [one.filtered_resps[key] for one in instances])
                    metrics[index].update(_numbers(found, key))
            task._instances = None
        return list(metrics)

    return grade


def _filled(instances: Sequence[Instance], answers: Sequence[Answer]) -> list[Instance]:
    filled = []
    for instance, answer in zip(instances, answers, strict=True):
        one = copy.copy(instance)
        given = tuple(answer) if instance.request_type == "loglikelihood" else answer
        one.resps, one.filtered_resps = [given] * (instance.repeats or 1), {}
        filled.append(one)
    return filled


def _numbers(found: Mapping[str, Any], key: str) -> dict[str, float]:
    """Those metrics that are one number an item, under lm-eval's names: the metric, then the filter if it has one."""
    plain = {name: float(value) for name, value in found.items() if _is_number(value)}
    return {name if key == "none" else f"{name},{key}": value for name, value in plain.items()}


def _is_number(value: object) -> bool:
    return not isinstance(value, str) and (isinstance(value, int | float) or getattr(value, "shape", None) == ())


# Metrics of which lm-eval keeps a pair an item, and only the whole a number.
_PAIRS = frozenset({"f1", "mcc", "brier_score", "likelihood", "word_perplexity", "byte_perplexity", "bits_per_byte",
                    "bleu", "chrf", "ter"})  # fmt: skip


def _first_number(name: str, task: Any) -> str:
    for metric in task.aggregation():
        if metric not in _PAIRS:
            key = task._filters[0].name
            return metric if key == "none" else f"{metric},{key}"
    raise RecipeError(
        f"{name} has no metric that is a number an item: {', '.join(task.aggregation())}",
        allowed="tasks with accuracy or exact match",
        next_step="run it with lm_eval.evaluate over depthup's scorer: depthup.evaluation.harness_lm.as_lm",
    )
