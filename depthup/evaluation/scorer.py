"""Answers requests with a model in this process: exact, with all that requests share computed once.

Log-likelihoods equal those of lm-eval 0.4.13's HF backend within the rounding of float32. A model whose attention
cannot be computed over trees of sequences is found out and scored row by row: still batched, sorted by length, and with
logits only where they count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import CheckpointError
from ..models import Model, Tokenizer, load_model, load_tokenizer, resolve_device
from .encoding import Encoder, Path
from .memory import require_room
from .requests import Answer, Completion, Continuation, Request, Scorer, Whole
from .walks import Scored, Tally, Walker, proves_sharing

_DEFAULT_LENGTH = 2048  # where neither config nor tokenizer states one, as in lm-eval
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_UNSET = int(1e29)  # a tokenizer that states no length states 1e30


class LocalScorer:
    """Scores with a loaded model, and completes by greedy generation.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        max_length: Tokens read at once; by default what config or tokenizer state.
        batch_tokens: Tokens of a pass; by default fitted to the memory that is free.
        progress: Show a bar of tokens done and time left.

    Raises:
        CheckpointError: The model is an encoder-decoder.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, max_length: int | None = None, batch_tokens: int | None = None,
        progress: bool = False,
    ) -> None:  # fmt: skip
        if model.config.is_encoder_decoder:
            raise CheckpointError(
                f"{type(model).__name__} is an encoder-decoder", allowed="a causal language model, which reads one text"
            )
        self._model, self._tokenizer, self._progress = model, tokenizer, progress
        self.encoder = Encoder(tokenizer, max_length or context_length(model.config, tokenizer))
        self._walker = Walker(model, batch_tokens)
        self._shares: bool | None = None

    @property
    def shares(self) -> bool | None:
        """Whether shared beginnings are computed once; None before the first request."""
        return self._shares

    def answer(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """One answer a request, in their order; see :class:`~depthup.evaluation.requests.Scorer`.

        Raises:
            DataError: A request has nothing to score, or more than the model reads at once.
        """
        desk = Desk(requests, done)
        self.score(desk.encode(self.encoder), desk.scored)
        completions = desk.completions
        if completions:
            self.complete([requests[index] for index in completions], lambda at, text: desk.tell(completions[at], text))
        return desk.answers

    def score(self, paths: Sequence[Path], scored: Scored) -> None:
        """Score paths; ``scored`` hears of each as soon as it is known."""
        if not paths:
            return
        training = self._model.training
        self._model.eval()
        tally = Tally(paths, scored)
        try:
            with torch.inference_mode():
                if self._shares is None:
                    self._shares = proves_sharing(self._model, paths)
                walk = self._walker.by_trees if self._shares else self._walker.by_rows
                walk(paths, tally, progress=self._progress)
                tally.close()
        finally:
            self._model.train(training)

    def complete(self, requests: Sequence[Any], done: Callable[[int, str], None]) -> list[str]:
        """The text that follows each :class:`~depthup.evaluation.requests.Completion`'s context."""
        from ..generation.greedy import complete

        return complete(
            self._model,
            self._tokenizer,
            self.encoder.prompts(requests),
            stop=[request.stop for request in requests],
            max_new_tokens=[request.max_new_tokens for request in requests],
            done=done,
        )


class Desk:
    """Requests as paths, and paths' scores as answers.

    Args:
        requests: Of any kinds.
        done: Hears of each answer.
    """

    def __init__(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> None:
        self._requests, self._done = requests, done
        self.answers: list[Answer] = [None] * len(requests)
        self.completions = [index for index, request in enumerate(requests) if isinstance(request, Completion)]
        self._owners: list[int] = []
        self._sums: dict[int, float] = {}
        self._left: dict[int, int] = {}

    def tell(self, index: int, answer: Answer) -> None:
        """Write down an answer."""
        self.answers[index] = answer
        if self._done is not None:
            self._done(index, answer)

    def encode(self, encoder: Encoder) -> list[Path]:
        """The paths of all requests but completions; a text without tokens is answered at once."""
        paths, requests = [], self._requests
        ends = [(index, one) for index, one in enumerate(requests) if isinstance(one, Continuation)]
        for (index, _), path in zip(ends, encoder.continuations([one for _, one in ends]), strict=True):
            self._owners.append(index)
            paths.append(path)
        texts = [(index, one) for index, one in enumerate(requests) if isinstance(one, Whole)]
        for (index, _), windows in zip(texts, encoder.wholes([one for _, one in texts]), strict=True):
            self._owners += [index] * len(windows)
            self._sums[index], self._left[index] = 0.0, len(windows)
            paths += windows
            if not windows:
                self.tell(index, 0.0)
        return paths

    def scored(self, path: int, score: float, likeliest: bool) -> None:
        """A path's score."""
        index = self._owners[path]
        if index not in self._left:
            self.tell(index, (score, likeliest))
            return
        self._sums[index] += score
        self._left[index] -= 1
        if not self._left[index]:
            self.tell(index, self._sums[index])


def load_scorer(
    source: str | os.PathLike[str], *, device: str = "auto", dtype: str = "float32",
    devices: Sequence[str] | None = None, max_length: int | None = None, batch_tokens: int | None = None,
    progress: bool = False,
) -> Scorer:  # fmt: skip
    """A scorer of a checkpoint folder, on one device or on several at once.

    Args:
        source: Folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        dtype: Of the weights there.
        devices: Two or more: a process each, which share the requests; ``device`` is then not looked at.
        max_length: As in :class:`LocalScorer`,
        batch_tokens: and so is this,
        progress: and this.

    Raises:
        CheckpointError: The folder is not whole, or the model does not fit: the message says what would.
        DepthupError: torch cannot compute on a device.
    """
    options: dict[str, Any] = {"max_length": max_length, "batch_tokens": batch_tokens, "progress": progress}
    if devices and len(devices) > 1:
        from .replicas import ReplicaScorer

        return ReplicaScorer(source, devices, dtype=dtype, **options)
    return load_local(source, resolve_device(devices[0] if devices else device), dtype, **options)


def load_local(source: str | os.PathLike[str], device: str, dtype: str = "float32", **options: Any) -> LocalScorer:
    """A scorer of a checkpoint folder on one device; ``options`` are those of :class:`LocalScorer`.

    Raises:
        CheckpointError: The folder is not whole, or the model does not fit.
    """
    require_room(source, device, dtype)
    return LocalScorer(load_model(source, device, dtype), load_tokenizer(source), **options)


def context_length(config: Any, tokenizer: Tokenizer) -> int:
    """Tokens that a model reads at once, found where lm-eval looks: in the text model's config, then the tokenizer."""
    text = config.get_text_config()
    for name in _LENGTHS:
        value = getattr(text, name, None)
        if value is not None:
            return int(value)
    stated = tokenizer.model_max_length
    return int(stated) if stated is not None and stated < _UNSET else _DEFAULT_LENGTH
