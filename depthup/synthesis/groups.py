"""What one group of seeds gives: questions rewritten, solutions drawn, answers compared and counted as votes.

Nothing here depends on the order in which replies come, nor on other groups.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import shown
from .answers import extract_answer, normalise, text_form
from .asking import Ask, Asker, Reply, sampling_of
from .filters import changed_numbers, is_echo
from .metamath import (
    KINDS,
    Kind,
    Masked,
    Step,
    finish_solution,
    fobar_question,
    load_prompt,
    maskings,
    read_rewrite,
    self_verification_question,
    split_asking,
    statement_fault,
)  # fmt: skip
from .seeds import Seed
from .settings import Settings
from .verify import Verdict, Verifier

Progress = Callable[[int], object]


@dataclass
class Question:
    """A question to be solved, and where it is from.

    Attributes:
        kind: Which augmentation.
        seed: The seed behind it.
        text: The question itself.
        gold: What its final answer must be.
        step: The prompt that asks for its solution.
        masked: The unknown, of backward questions.
        rewriting: The request that rewrote it, and the step of that; None for a seed's own question.
        asks: What was asked of it.
        replies: What came back.
    """

    kind: Kind
    seed: Seed
    text: str
    gold: str
    step: Step
    masked: Masked | None = None
    rewriting: tuple[Step, str] | None = None
    asks: list[Ask] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """A solved question that may become a row, or why something did not.

    Attributes:
        question: What it is of.
        prompt: The question as a row would have it.
        response: The solution as a row would have it; empty where there is none.
        reason: Why it is no row; empty where nothing speaks against it so far. ``failed``: there is no reply for good.
        detail: In numbers or words.
        reply: The reply it was made of.
        ask: The request of that reply.
        verdict: Of its answer against the gold one.
        votes: ``num_samples``, ``num_agreeing``, ``share``, ``majority``.
    """

    question: Question
    prompt: str
    response: str
    reason: str = ""
    detail: str = ""
    reply: Reply | None = None
    ask: Ask | None = None
    verdict: Verdict | None = None
    votes: dict[str, Any] | None = None


class BudgetSpent(Exception):
    """Some requests were not asked: the budget of the backend does not allow them."""


@dataclass
class Used:
    """What a group took."""

    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def chosen_maskings(seed: Seed, settings: Settings, kind: Kind) -> list[Masked]:
    """The numbers of a seed that are made unknown for a kind, drawn by the run's seed and the seed's id."""
    found = maskings(seed.question)
    number = min(len(found), settings.quotas[kind].asked)
    picked = random.Random(f"{settings.seed}/{kind}/{seed.id}").sample(range(len(found)), number)
    return [found[place] for place in sorted(picked)]


def rewriting_asks(seed: Seed, settings: Settings, kinds: Sequence[Kind]) -> list[tuple[Kind, Ask]]:
    """The requests that rewrite a seed's question."""
    asks: list[tuple[Kind, Ask]] = []
    if "rephrase" in kinds:
        asks += [("rephrase", Ask("rephrase", seed, seed.question, _how(settings, "rephrase", sample)))
                 for sample in range(settings.quotas["rephrase"].asked)]  # fmt: skip
    if "self-verification" in kinds:
        for masked in chosen_maskings(seed, settings, "self-verification"):
            last = split_asking(masked.question)[1]
            how = _how(settings, "statement", 0)
            asks.append(("self-verification", Ask("statement", seed, last, how, seed.answer, masked)))
    return asks


def direct_questions(seed: Seed, settings: Settings, kinds: Sequence[Kind]) -> list[Question]:
    """The questions of a seed that need no model to be written."""
    found = []
    if "answer" in kinds:
        found.append(Question("answer", seed, seed.question, seed.answer, "answer"))
    if "fobar" in kinds:
        found += [
            Question("fobar", seed, fobar_question(masked, seed.answer), masked.value, "backward", masked)
            for masked in chosen_maskings(seed, settings, "fobar")
        ]
    return found


def solving_asks(question: Question, settings: Settings) -> list[Ask]:
    """The requests that solve a question."""
    number = settings.quotas["answer"].asked if question.kind == "answer" else settings.num_samples
    return [
        Ask(question.step, question.seed, question.text, _how(settings, question.step, sample), masked=question.masked)
        for sample in range(number)
    ]


def work_group(
    seeds: Sequence[Seed], asker: Asker, verifier: Verifier, settings: Settings, kinds: Sequence[Kind],
    progress: Progress | None = None,
) -> tuple[list[Outcome], Used]:  # fmt: skip
    """All that comes of some seeds, in the order of seeds, kinds, rewritings and samples.

    Raises:
        BudgetSpent: Some requests were not asked; the answers that came are kept by the asker's journal.
    """
    used = Used()
    rewriting = [(kind, ask) for seed in seeds for kind, ask in rewriting_asks(seed, settings, kinds)]
    questions = [question for seed in seeds for question in direct_questions(seed, settings, kinds)]
    _give(questions, settings)
    asks = [ask for _, ask in rewriting] + [ask for question in questions for ask in question.asks]
    replies = _asked(asks, asker, used, progress)
    _take(questions, replies[len(rewriting) :])
    outcomes, rewritten = [], []
    for (kind, ask), reply in zip(rewriting, replies, strict=False):
        made = _rewritten(kind, ask, reply)
        if isinstance(made, Question):
            rewritten.append(made)
        else:
            outcomes.append(made)
    _give(rewritten, settings)
    _take(rewritten, _asked([ask for question in rewritten for ask in question.asks], asker, used, progress))
    outcomes += _solved([*questions, *rewritten], verifier, settings)
    order = {seed.id: place for place, seed in enumerate(seeds)}
    outcomes.sort(key=lambda one: (order[one.question.seed.id], KINDS.index(one.question.kind)))  # stable
    return outcomes, used


def _how(settings: Settings, step: Step, sample: int) -> Any:
    return sampling_of(
        step, sample, temperature=settings.temperature, top_p=settings.top_p, max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )  # fmt: skip


def _give(questions: Sequence[Question], settings: Settings) -> None:
    for question in questions:
        question.asks = solving_asks(question, settings)


def _take(questions: Sequence[Question], replies: Sequence[Reply]) -> None:
    start = 0
    for question in questions:
        question.replies = list(replies[start : start + len(question.asks)])
        start += len(question.asks)


def _asked(asks: Sequence[Ask], asker: Asker, used: Used, progress: Progress | None) -> list[Reply]:
    replies = asker.ask(asks, progress) if asks else []
    unasked = [reply for reply in replies if reply.text is None and reply.attempts == 0]
    if unasked:
        raise BudgetSpent(unasked[0].reason)
    used.num_requests += len(replies)
    used.prompt_tokens += sum(reply.prompt_tokens for reply in replies)
    used.completion_tokens += sum(reply.completion_tokens for reply in replies)
    return replies


def _rewritten(kind: Kind, ask: Ask, reply: Reply) -> Question | Outcome:
    """The question that a reply makes of a seed's, or why it makes none."""
    seed, source = ask.seed, (ask.step, reply.request)
    text = "" if reply.text is None else read_rewrite(reply.text)
    fault, detail = "", ""
    if kind == "rephrase":
        question = Question("rephrase", seed, text, seed.answer, "answer", rewriting=source)
        if is_echo(seed.question, text):
            fault = "echo"
        else:
            lost, gained = changed_numbers(seed.question, text)
            if lost or gained:
                fault = "numbers changed"
                detail = "; ".join(
                    f"{name} {', '.join(str(number) for number in sorted(numbers)[:5])}"
                    for name, numbers in (("lost", lost), ("gained", gained)) if numbers
                )  # fmt: skip
    else:
        assert ask.masked is not None
        whole = self_verification_question(ask.masked, text)
        question = Question(kind, seed, whole, ask.masked.value, "backward", ask.masked, source)
        detail = statement_fault(ask.masked, seed.answer, text)
        fault = "statement unfaithful" if detail else ""
    if reply.text is None:
        return Outcome(question, "", "", "failed", reply.reason, reply, ask)
    if reply.cut or not text:
        fault, detail = ("cut off", "") if reply.cut else ("empty", "")
    return Outcome(question, question.text, "", fault, detail, reply, ask) if fault else question


def _solved(questions: Sequence[Question], verifier: Verifier, settings: Settings) -> Iterator[Outcome]:
    answers = [[_final(reply) for reply in question.replies] for question in questions]
    pairs = [
        (question.gold, answer) for question, found in zip(questions, answers, strict=True) for answer in found
        if answer is not None
    ]  # fmt: skip
    verdicts = iter(verifier.verify_all(pairs))
    for question, found in zip(questions, answers, strict=True):
        each = [None if answer is None else next(verdicts) for answer in found]
        yield from _voted(question, found, each, settings)


def _voted(
    question: Question, answers: Sequence[str | None], verdicts: Sequence[Verdict | None], settings: Settings
) -> Iterator[Outcome]:
    num_samples = sum(reply.text is not None for reply in question.replies)
    num_agreeing = sum(verdict is not None and verdict.equal for verdict in verdicts)
    others = Counter(
        text_form(normalise(answer)) for answer, verdict in zip(answers, verdicts, strict=True)
        if answer is not None and verdict is not None and not verdict.equal
    )  # fmt: skip
    share = num_agreeing / num_samples if num_samples else 0.0
    votes = {
        "num_samples": num_samples, "num_agreeing": num_agreeing, "share": round(share, 4),
        "majority": num_agreeing > max(others.values(), default=0),
    }  # fmt: skip
    for ask, reply, answer, verdict in zip(question.asks, question.replies, answers, verdicts, strict=True):
        if reply.text is None:
            yield Outcome(question, question.text, "", "failed", reply.reason, reply, ask)
            continue
        unknown = question.masked.unknown if question.masked else ""
        response = finish_solution(reply.text, unknown) if answer is not None else reply.text.strip()
        reason, detail = "", ""
        if answer is None or verdict is None:
            reason = "cut off" if reply.cut else "no answer"
        elif not verdict.equal:
            reason = "wrong answer"
            detail = f"{shown(verdict.answer)} instead of {shown(verdict.gold)} ({verdict.method})"
        elif question.kind != "answer" and (share < settings.min_agreement or not votes["majority"]):
            reason, detail = "low agreement", f"{num_agreeing} of {num_samples} solutions reach {question.gold}"
        yield Outcome(question, question.text, response, reason, detail, reply, ask, verdict, votes)


def _final(reply: Reply) -> str | None:
    """The answer that a solution announces; a number that happens to stand last is none."""
    found = extract_answer(reply.text) if reply.text else None
    return found[0] if found and found[1] != "last number" else None


def lineage(outcome: Outcome, asker: Asker) -> dict[str, Any]:
    """Where a row is from: all that its making depended on, nothing of when."""
    question, verdict = outcome.question, outcome.verdict
    seed, asked = question.seed, outcome.ask
    prompts = [question.step] if question.rewriting is None else [question.rewriting[0], question.step]
    requests = [question.rewriting[1]] if question.rewriting else []
    if outcome.reply and outcome.reply.request not in requests:
        requests.append(outcome.reply.request)
    found: dict[str, Any] = {
        "seed": seed.id, "source": seed.source, "licence": seed.licence, "seed_factory": seed.factory or None,
        "seed_generator": " and ".join(seed.generators) or None,
        "kind": question.kind, "made_by": asker.made_by, "backend": asker.identity,
        "prompts": {step: load_prompt(step).digest for step in prompts}, "requests": requests,
        "gold": question.gold,
    }  # fmt: skip
    if asked is not None:
        how = asked.sampling
        found["sampling"] = {
            "temperature": how.temperature, "top_p": how.top_p, "max_new_tokens": how.max_new_tokens, "seed": how.seed,
            "sample": how.sample,
        }  # fmt: skip
    if question.masked is not None:
        found["unknown"] = {"letter": question.masked.unknown, "place": question.masked.place}
    if verdict is not None:
        found["verdict"] = {
            "equal": verdict.equal, "method": verdict.method, "gold": verdict.gold, "answer": verdict.answer,
        }  # fmt: skip
        found["votes"] = outcome.votes
    return found
