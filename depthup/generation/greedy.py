"""Batched generation: rows leave the batch when they end, and others enter; the texts are those of one at a time.

Greedy texts do not depend on the batch, as long as no two tokens are likeliest to within rounding (some 1e-6 of a
logit in float32, 1e-2 in bfloat16): sums of other shapes round otherwise, and the tie may then fall the other way.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import DepthupError
from ..models import Model, Tokenizer, quiet_transformers
from .backend import Sampling
from .cache import Rows, allowed, fresh_cache, joined, repeated, window
from .rows import Row, draw

_MIN_SHARED = 32  # tokens: a shorter common beginning is not worth a pass of its own
_NO_LIMIT = 10**9  # tokens: tokenizers that know no limit state a number far beyond
NO_PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}  # whatever a model's generation config says


@dataclass(frozen=True)
class _Setting:
    """What suits a kind of device.

    Attributes:
        max_rows: More rows in a batch gain nothing.
        prefill_tokens: Nor do more tokens of prompts in one pass.
        read_every: Steps between two looks at the tokens: a look makes the host wait for an accelerator.
    """

    max_rows: int
    prefill_tokens: int
    read_every: int


_SETTINGS = {"cpu": _Setting(max_rows=16, prefill_tokens=512, read_every=1)}
_ACCELERATOR = _Setting(max_rows=256, prefill_tokens=16384, read_every=8)


def complete(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[tuple[str, ...]],
    max_new_tokens: Sequence[int],
    sampling: Sampling | None = None,
    done: Callable[[int, str], None] | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> list[str]:
    """The text that follows each prompt: what lm-eval's ``generate_until`` says with batches of one.

    A text ends at the tokenizer's end-of-sequence token or one that the model's generation config names, and before
    the first of its stop strings. Penalties of a generation config are not applied. A prompt that leaves too little
    room in the model's context loses its beginning.

    Args:
        model: Any causal language model; of one whose cache is more than keys and values, only prompts of equal
            length share a batch.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        stop: Stop strings of each prompt.
        max_new_tokens: Most tokens to add to each.
        sampling: Temperature, top_p and seed; None takes the likeliest token.
        done: Called with the index and text of each as soon as it has ended.
        batch_tokens: Most tokens in the cache at once, over all rows; by default what memory bears.
        progress: Whether to show a bar.

    Raises:
        DepthupError: A prompt has no token; there is no room for a prompt; memory does not hold a single row.
    """
    room = context_length(model, tokenizer)
    drawing = sampling or Sampling()
    samplings, kept = [], []
    for prompt, stops, most in zip(prompts, stop, max_new_tokens, strict=True):
        if most >= room:
            raise DepthupError(
                f"{most} new tokens leave no room for a prompt: the model's context is {room} tokens",
                allowed=f"fewer than {room} new tokens",
            )
        kept.append(list(prompt[-(room - most) :]))
        samplings.append(replace(drawing, stop=tuple(filter(None, stops)), max_new_tokens=most))
    ends = {end for end in (*generation_ends(model), tokenizer.eos_token_id) if end is not None}
    texts = [""] * len(prompts)
    rows = stream(model, tokenizer, kept, samplings, frozenset(ends), batch_tokens)
    for row in tqdm(rows, total=len(prompts), desc="generate", unit="text", disable=not progress, dynamic_ncols=True):
        texts[row.index] = row.text(tokenizer)
        if done is not None:
            done(row.index, texts[row.index])
    return texts


def stream(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    ends: frozenset[int],
    batch_tokens: int | None = None,
) -> Iterator[Row]:
    """Rows as they end, in any order; arguments as of :func:`complete`, prompts uncut.

    Raises:
        DepthupError: A prompt has no token, or memory does not hold a single row.
    """
    if not all(prompts):
        raise DepthupError("an empty prompt has no token to go on from", next_step="give a prompt of one word or more")
    rows = [
        Row(index, prompt, sampling, ends)
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]
    training = model.training
    model.eval()  # in training, one that recomputes activations keeps no cache
    try:
        yield from _in_batches(model, tokenizer, _longest_first(rows), batch_tokens)
    finally:
        model.train(training)


def _in_batches(model: Model, tokenizer: Tokenizer, waiting: deque[Row], batch_tokens: int | None) -> Iterator[Row]:
    """Rows as they end; when memory runs out, the unfinished ones start again in smaller batches."""
    while waiting:
        trait = allowed(model, forward)
        batch = _Batch(model, tokenizer, waiting, batch_tokens or _fitting(model, trait.bytes_per_token))
        try:
            yield from batch.continuous(trait.gaps) if trait.padding else batch.grouped()
            return
        except torch.OutOfMemoryError as error:
            if len(batch.live) <= 1:
                raise DepthupError(
                    f"a row of {batch.num_tokens} tokens does not fit into memory beside the model",
                    next_step="load the model in bfloat16, or ask for fewer new tokens",
                ) from error
            batch_tokens, waiting = batch.num_tokens // 2, batch.unfinished()
        del batch  # and its cache, before its memory is given back
        torch.cuda.empty_cache()


class _Batch:
    """The rows that are computed together, and those that wait for a place, longest first."""

    def __init__(self, model: Model, tokenizer: Tokenizer, waiting: deque[Row], batch_tokens: int) -> None:
        self.model, self.tokenizer, self.waiting, self.batch_tokens = model, tokenizer, waiting, batch_tokens
        self.live: list[Row] = []
        self.rows: Rows | None = None
        self.tokens = torch.empty(0, dtype=torch.long, device=model.device)  # the newest of each live row
        self.setting = _SETTINGS.get(model.device.type, _ACCELERATOR)

    @property
    def num_tokens(self) -> int:
        """Columns that the live rows may come to need, over all of them."""
        return max((row.num_tokens for row in self.live), default=0) * len(self.live)

    def unfinished(self) -> deque[Row]:
        """All rows without an answer, from their beginning, longest first."""
        for row in self.live:
            row.restart()
        return _longest_first([*self.live, *self.waiting])

    def continuous(self, gaps: bool) -> Iterator[Row]:
        """Rows of any lengths; a row that ends makes place for the next."""
        shared = self._shared() if gaps else None
        while self.live or self.waiting:
            entering = self._entering(len(shared[0]) if shared else 0)
            if entering:
                self._admit(entering, shared)
            else:
                self._advance()
            yield from self._leave()

    def _entering(self, num_shared: int) -> list[Row]:
        """The next rows to read; none while there is no place, or places for too few to be worth a pass."""
        entering: list[Row] = []
        unlike: set[tuple[int, ...]] = set()
        while self.waiting and self._fits(entering):
            row = self.waiting[0]
            unlike.add(tuple(row.prompt))
            if entering and len(unlike) * (len(entering[0].prompt) - num_shared) > self.setting.prefill_tokens:
                break
            entering.append(self.waiting.popleft())
        if self.live and self.waiting and len(entering) < self.setting.max_rows // 16:
            self.waiting.extendleft(reversed(entering))
            return []
        return entering

    def _fits(self, entering: Sequence[Row] = ()) -> bool:
        """Whether one more row has a place beside the live ones and those that enter."""
        together = [*self.live, *entering, self.waiting[0]]
        num_columns = max(row.num_tokens for row in together)
        small = len(together) <= self.setting.max_rows and len(together) * num_columns <= self.batch_tokens
        return small or len(together) == 1

    @torch.inference_mode()
    def _shared(self) -> tuple[list[int], Rows] | None:
        """The beginning that all waiting prompts share, and its keys and values; None where that does not pay."""
        prompts = [row.prompt for row in self.waiting]
        first, last = (
            min(map(tuple, prompts)),
            max(map(tuple, prompts)),
        )  # whatever the two share, all between them share
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        beginning = [token for token, _ in alike][: min(map(len, prompts)) - 1]
        longest = max(row.num_tokens for row in self.waiting)
        if len(prompts) < 2 or len(beginning) < _MIN_SHARED or longest > window(self.model.config):
            return None
        ids = torch.tensor([beginning], device=self.model.device)
        rows = Rows(fresh_cache(self.model), torch.ones_like(ids), False)
        forward(self.model, ids, rows)
        return beginning, rows

    @torch.inference_mode()
    def _admit(self, entering: list[Row], shared: tuple[list[int], Rows] | None) -> None:
        """Read the prompts of rows and let them in; a prompt that several rows have is read once."""
        before, self.live = self.live, [*self.live, *entering]
        start = len(shared[0]) if shared else 0
        unlike = {tuple(row.prompt): None for row in entering}
        place = {prompt: number for number, prompt in enumerate(unlike)}
        longest = max(len(prompt) for prompt in unlike) - start
        ids = torch.zeros(len(unlike), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for prompt, number in place.items():
            ids[number, longest - len(prompt) + start :] = torch.tensor(prompt[start:])
            mask[number, longest - len(prompt) + start :] = 1
        device = self.model.device
        new = (
            repeated(shared[1], len(unlike)) if shared else Rows(fresh_cache(self.model), mask[:, :0].to(device), False)
        )
        new.mask = torch.cat([new.mask, mask.to(device)], 1)
        new.padded = not bool(mask.all())
        logits = forward(self.model, ids.to(device), new)
        taken = [place[tuple(row.prompt)] for row in entering]
        first = draw(logits[taken], entering)
        for row in entering:
            row.columns = start + longest if shared else len(row.prompt)
        old = [] if self.rows is None else [(self.rows, list(range(len(before))), _columns(before))]
        self.rows = joined([*old, (new, taken, start + longest)])
        self.tokens = torch.cat([self.tokens, first])
        for row, token in zip(entering, first.tolist(), strict=True):
            row.take(token, self.tokenizer)

    @torch.inference_mode()
    def _advance(self) -> None:
        """Some tokens more for each row; the host looks at them all at once."""
        assert self.rows is not None
        left = max(row.sampling.max_new_tokens - len(row.tokens) for row in self.live)
        made = []
        for _ in range(min(self.setting.read_every, left)):
            self.rows.mask = torch.nn.functional.pad(self.rows.mask, (0, 1), value=1)
            self.tokens = draw(forward(self.model, self.tokens[:, None], self.rows), self.live)
            made.append(self.tokens)
        for row, tokens in zip(self.live, torch.stack(made, 1).tolist(), strict=True):
            row.columns += len(tokens)
            for token in tokens:
                row.take(token, self.tokenizer)

    @torch.inference_mode()
    def _leave(self) -> list[Row]:
        """Take the rows that have ended out of the batch."""
        ended = [row for row in self.live if row.finish_reason]
        if ended:
            stay = [place for place, row in enumerate(self.live) if not row.finish_reason]
            self.live = [self.live[place] for place in stay]
            self.rows = joined([(self.rows, stay, _columns(self.live))]) if stay and self.rows else None
            self.tokens = self.tokens[stay]
        return ended

    def grouped(self) -> Iterator[Row]:
        """Rows of one length by transformers' own generate, for models that do not bear padding."""
        self.waiting = deque(sorted(self.waiting, key=lambda row: (-len(row.prompt), -row.num_tokens)))
        while self.waiting:
            self.live = [self.waiting.popleft()]
            while self.waiting and len(self.waiting[0].prompt) == len(self.live[0].prompt) and self._fits():
                self.live.append(self.waiting.popleft())
            self._generate()
            ended, self.live = self.live, []
            yield from ended

    def _generate(self) -> None:
        def ended(ids: Tensor, _: object, **__: object) -> Tensor:
            for row, token in zip(self.live, ids[:, -1].tolist(), strict=True):
                row.take(token, self.tokenizer)
            return torch.tensor([bool(row.finish_reason) for row in self.live], device=ids.device)

        def drawn(_: Tensor, scores: Tensor) -> Tensor:
            return torch.full_like(scores, -torch.inf).scatter_(1, draw(scores, self.live)[:, None], 0.0)

        ids = torch.tensor([row.prompt for row in self.live], device=self.model.device)
        with torch.inference_mode(), quiet_transformers():
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max(row.sampling.max_new_tokens for row in self.live),
                do_sample=False,
                stopping_criteria=[ended],
                logits_processor=[drawn],
                **NO_PENALTIES,
                pad_token_id=0,
            )


def forward(model: Model, ids: Tensor, rows: Rows) -> Tensor:
    """Logits after the last column: [rows, vocabulary]; the cache grows by the columns of ``ids``.

    Args:
        model: A causal language model.
        ids: The new tokens: [rows, columns].
        rows: The batch, whose mask has the new columns already.
    """
    takes = _parameters(model.__class__)
    positions = (rows.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = model(
        input_ids=ids,
        attention_mask=rows.mask if rows.padded else None,
        past_key_values=rows.cache,
        use_cache=True,
        **({"position_ids": positions} if "position_ids" in takes else {}),
        **({"logits_to_keep": 1} if "logits_to_keep" in takes else {}),
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def generation_ends(model: Model) -> tuple[int, ...]:
    """Tokens at which a model's own generation config says that a text ends."""
    ends = model.generation_config.eos_token_id
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


def context_length(model: Model, tokenizer: Tokenizer) -> int:
    """Most tokens of a prompt and its continuation, as lm-eval finds it: config, then tokenizer, else 2048."""
    text = getattr(model.config, "text_config", None) or model.config
    named = (getattr(text, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    limit = next((value for value in named if value is not None), None) or tokenizer.model_max_length
    return int(limit) if limit and limit < _NO_LIMIT else 2048


@functools.cache
def _parameters(model_class: type) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]


def _columns(rows: Sequence[Row]) -> int:
    return max(row.columns for row in rows)


def _longest_first(rows: Sequence[Row]) -> deque[Row]:
    return deque(sorted(rows, key=lambda row: (-row.num_tokens, row.prompt)))


def _fitting(model: Model, bytes_per_token: int) -> int:
    """Tokens whose keys and values fill half of the memory that is left on an accelerator, an eighth of a host's."""
    if not bytes_per_token:
        text = model.config.get_text_config()
        bytes_per_token = 2 * text.num_hidden_layers * text.hidden_size * model.dtype.itemsize
    if model.device.type == "cuda":
        kept = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)  # free within torch
        num_bytes = (torch.cuda.mem_get_info(model.device)[0] + kept) // 2
    else:
        num_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
    return num_bytes // bytes_per_token
