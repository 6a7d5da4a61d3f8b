"""Suites and tasks made ready: names, a profile and a source of items in, requests and their scoring out.

lm-eval is loaded only for the profile ``harness-0.4``; ``leaderboard-v1`` needs nothing but the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DataError, RecipeError, nearest
from . import leaderboard
from .prepared import Choice, PreparedTask
from .sources import Benchmark, HubItems, ItemSource, digest, item_ids
from .suites import SUITES, TASKS, Measure, Suite, TaskSpec, find_profile, suite_of_tasks


@dataclass(frozen=True)
class ChatTemplate:
    """How messages become the text that a chat model reads.

    Attributes:
        name: What is stated with a score: a fingerprint of the template.
        render: Gives the text of messages (``role``, ``content``); its second argument says whether the start of the
            assistant's turn is added, or the last message is left open.
    """

    name: str
    render: Callable[[list[dict[str, str]], bool], str]

    def __call__(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.render(messages, add_generation_prompt)


def template_of(tokenizer: Any) -> ChatTemplate:
    """A tokenizer's own chat template, used as lm-eval uses it.

    A template that takes no system turn gets the messages without it. Only MMLU has one: a sentence on the subject.

    Args:
        tokenizer: Of transformers.

    Raises:
        RecipeError: It has none.
    """
    text = getattr(tokenizer, "chat_template", None)
    if not text:
        raise RecipeError("the model's tokenizer has no chat template", next_step="evaluate it without one")

    def render(messages: list[dict[str, str]], start: bool) -> str:
        options = {"tokenize": False, "add_generation_prompt": start, "continue_final_message": not start}
        try:
            return tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # what the template itself raises, in its own words
            kept = [message for message in messages if message["role"] != "system"]
            if len(kept) == len(messages):
                raise RecipeError(f"the chat template cannot write an item: {error}") from error
            return tokenizer.apply_chat_template(kept, **options)

    return ChatTemplate(digest(text)[:12], render)


def prepare(
    asked: str | Suite | Sequence[str], profile: str = "harness-0.4", source: ItemSource | None = None, *,
    limit: int | None = None, seed: int = 0, sample: int | None = None, chat_template: ChatTemplate | None = None,
    fewshot_as_multiturn: bool = True,
) -> list[PreparedTask]:  # fmt: skip
    """The tasks of a suite, ready to be asked.

    Args:
        asked: A suite, its name, or names of tasks: depthup's six, or any task or group of lm-eval.
        profile: ``harness-0.4`` or ``leaderboard-v1``.
        source: Where the items of the six come from; the hub by default. Other tasks of lm-eval read their own.
        limit: The first so many items of each task (of each subject of MMLU) in the profile's own order: under
            ``harness-0.4`` as lm-eval's ``--limit``, under ``leaderboard-v1`` after its shuffle.
        seed: Of the draw, where a suite or ``sample`` draws.
        sample: Items of each task that are drawn; by default what the suite says. The profiles draw the same items,
            and each has the prompt that it has in the whole benchmark.
        chat_template: Put the prompts into this; none for plain text.
        fewshot_as_multiturn: Whether examples become turns of their own under a chat template.

    Raises:
        RecipeError: An unknown suite, task or profile, or a combination that no score can have.
        DataError: Rows that are missing or wrong.
    """
    suite = _suite(asked)
    find_profile(profile)
    _check(suite, profile, limit, sample, chat_template)
    source = source or HubItems()
    prepared: list[PreparedTask] = []
    for name in suite.tasks:
        choice = Choice(limit, sample if sample is not None or limit is not None else suite.sample.get(name), seed)
        if name in TASKS and profile == leaderboard.NAME:
            prepared.append(leaderboard.prepare_task(TASKS[name], _loaded(TASKS[name], source), choice))
        elif name in TASKS:
            prepared.append(_ours(TASKS[name], source, choice, suite.measure, chat_template, fewshot_as_multiturn))
        else:
            prepared += _stock(name, source, choice, chat_template, fewshot_as_multiturn)
    return prepared


def _suite(asked: str | Suite | Sequence[str]) -> Suite:
    if isinstance(asked, Suite):
        return asked
    if isinstance(asked, str) and asked in SUITES:
        return SUITES[asked]
    return suite_of_tasks(asked if isinstance(asked, str) else list(asked))


def _check(suite: Suite, profile: str, limit: int | None, sample: int | None, chat: ChatTemplate | None) -> None:
    for name, value in (("limit", limit), ("sample", sample)):
        if value is not None and value < 1:
            raise RecipeError(f"{name} is {value}", allowed="1 or more, or nothing for all items")
    if limit is not None and sample is not None:
        raise RecipeError(f"limit {limit} and sample {sample} are both given", allowed="one of them")
    if profile != leaderboard.NAME:
        return
    if chat is not None:
        raise RecipeError(
            f"{profile} with a chat template is a score that the leaderboard never gave",
            next_step="leave the template out, or take the profile harness-0.4",
        )
    if suite.measure != "score":
        raise RecipeError(f"{profile} knows no bits per byte", next_step="take the profile harness-0.4")
    if others := [name for name in suite.tasks if name not in TASKS]:
        raise RecipeError(
            f"{profile} has no task '{others[0]}'{nearest(others[0], TASKS)}",
            allowed=", ".join(TASKS),
            next_step="take the profile harness-0.4 for other tasks of lm-eval",
        )


def _engine() -> Any:
    try:
        from . import harness_tasks
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("depthup"):
            raise
        raise RecipeError(
            f"the profile harness-0.4 needs the package lm-eval, and {error.name} is not installed",
            next_step="pip install 'depthup[eval]'",
        ) from error
    return harness_tasks


def _loaded(spec: TaskSpec, source: ItemSource) -> Benchmark:
    """The rows of a task, with notes on what they lack; too few rows for the examples are refused."""
    benchmark = source.load(spec.name)
    notes = list(benchmark.notes)
    num_rows = len(benchmark.splits[benchmark.scored])
    if num_rows != spec.num_items:
        notes.append(f"{spec.name}: {num_rows} items here, {spec.num_items} in the benchmark")
    own = spec.shots not in benchmark.splits
    if spec.shots and own:
        notes.append(
            f"{spec.name}: no split '{spec.shots}' here, the examples are other items of the split that is scored"
        )
    for name, part in (benchmark.by_subject() if spec.name == "mmlu" else {spec.name: benchmark}).items():
        shots, needed = part.splits[part.scored if own else spec.shots], spec.num_fewshot + own
        if (spec.shots and len(shots) < needed) or not part.splits[part.scored]:
            raise DataError(
                f"{name} has {len(shots)} rows to draw examples from and {len(part.splits[part.scored])} to score",
                allowed=f"{needed} or more for {spec.num_fewshot} examples, and 1 or more to score",
                next_step="add the missing rows (docs/benchmark-data.md)",
            )
    return replace(benchmark, notes=tuple(notes))


def _ours(
    spec: TaskSpec, source: ItemSource, choice: Choice, measure: Measure, chat: ChatTemplate | None, multiturn: bool
) -> PreparedTask:
    engine, benchmark = _engine(), _loaded(spec, source)
    notes = [*benchmark.notes]
    if measure == "bits_per_byte":
        words = ", asked for its words instead of its letter" if spec.cloze else ""
        notes.append(f"{spec.name}: bits per byte of the gold answer{words}; less is better")
    parts = engine.stock_parts(spec, benchmark, cloze=measure == "bits_per_byte")
    if chat is not None:
        notes.append(f"{spec.name}: chat template {chat.name}")
    return engine.prepare_parts(
        spec.name, parts, spec.metric, choice, measure=measure, chat=chat, multiturn=multiturn, notes=notes,
        identity=benchmark.identity,
    )  # fmt: skip


def _stock(
    name: str, source: ItemSource, choice: Choice, chat: ChatTemplate | None, multiturn: bool
) -> list[PreparedTask]:
    """A task, group or tag of lm-eval by its name, with lm-eval's own data."""
    engine = _engine()
    if not engine.may_be_known(name) or name not in engine.known_names():
        raise RecipeError(
            f"there is no task '{name}'{nearest(name, [*TASKS, *SUITES, *engine.written_names()])}",
            allowed=f"{', '.join(TASKS)}, or any task or group of lm-eval",
            next_step="lm-eval ls tasks prints them",
        )
    if not isinstance(source, HubItems):
        source.load(name)  # says that a folder has no layout for it
    try:
        parts, weighting = engine.stock_by_name(name, item_ids)
    except DataError:
        raise
    except Exception as error:  # lm-eval and datasets raise many kinds: no network, a package that a task needs
        raise DataError(
            f"lm-eval cannot load the task '{name}': {error}",
            next_step="it reads its data from the Hugging Face Hub: check the network, and what the message names",
        ) from error
    notes = [f"{name}: chat template {chat.name}"] if chat is not None else []
    asked = [parts] if weighting else [[part] for part in parts]
    return [
        engine.prepare_parts(
            name if weighting else group[0].group or name, group, "", choice, chat=chat, multiturn=multiturn,
            weighting=weighting or "items", notes=notes,
        )
        for group in asked
    ]  # fmt: skip
