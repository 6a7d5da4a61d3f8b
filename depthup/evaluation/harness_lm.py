"""lm-eval's models and depthup's scorers, each in the clothes of the other. Needs the package lm-eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from ..errors import RecipeError
from .harness import ChatTemplate
from .harness_tasks import completion
from .requests import Answer, Completion, Continuation, Request, Scorer, Whole


def as_lm(scorer: Scorer, chat_template: ChatTemplate | None = None) -> LM:
    """A scorer as a model of lm-eval: ``lm_eval.evaluate(as_lm(scorer), ...)`` runs any of its tasks.

    Args:
        scorer: Answers the requests.
        chat_template: For ``apply_chat_template=True``.
    """
    return _ScorerLM(scorer, chat_template)


class _ScorerLM(LM):
    def __init__(self, scorer: Scorer, chat_template: ChatTemplate | None) -> None:
        super().__init__()
        self._scorer = scorer
        self._chat = chat_template

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        answers = self._answers("loglikelihood", requests, [Continuation(*request.args) for request in requests])
        return [(float(total), bool(likeliest)) for total, likeliest in answers]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self._answers("loglikelihood_rolling", requests, [Whole(*request.args) for request in requests])

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Raises :class:`RecipeError` for a request that is not greedy."""
        asked = [completion(request.task_name or "the task", *request.args) for request in requests]
        return self._answers("generate_until", requests, asked)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._template()(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._template().name if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        return self._chat.name if self._chat else ""

    def _template(self) -> ChatTemplate:
        if self._chat is None:
            raise RecipeError("a chat template is asked for, and this scorer has none",
                              next_step="as_lm(scorer, chat_template=...)")  # fmt: skip
        return self._chat

    def _answers(self, kind: str, instances: Sequence[Instance], requests: Sequence[Request]) -> list[Any]:
        answers = self._scorer.answer(requests)
        for instance, answer in zip(instances, answers, strict=True):
            self.cache_hook.add_partial(kind, instance.args, answer)
        return answers


class LMScorer:
    """A model of lm-eval as a scorer: the peer that depthup's own is measured against.

    Args:
        lm: Any of its models, such as ``HFLM``.
    """

    def __init__(self, lm: LM) -> None:
        self._lm = lm

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """See :class:`~depthup.evaluation.requests.Scorer`; each kind of request is asked in one call."""
        answers: list[Answer] = [None] * len(requests)
        for kind, method in (
            (Continuation, self._lm.loglikelihood),
            (Whole, self._lm.loglikelihood_rolling),
            (Completion, self._lm.generate_until),
        ):
            indices = [index for index, request in enumerate(requests) if isinstance(request, kind)]
            if not indices:
                continue
            for index, answer in zip(indices, method([_instance(requests[index]) for index in indices]), strict=True):
                answers[index] = answer
                if done is not None:
                    done(index, answer)
        return answers


def _instance(request: Request) -> Instance:
    if isinstance(request, Continuation):
        return Instance("loglikelihood", {}, (request.context, request.text), 0, metadata=("", 0, 1))
    if isinstance(request, Whole):
        return Instance("loglikelihood_rolling", {}, (request.text,), 0, metadata=("", 0, 1))
    options = {"until": list(request.stop), "max_gen_toks": request.max_new_tokens, "do_sample": False}
    return Instance("generate_until", {}, (request.context, options), 0, metadata=("", 0, 1))
