"""Generation with a local checkpoint through transformers."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CheckpointError
from ..models import Model, Tokenizer
from .backend import Done, Generated, Prompt, Sampling, each_sampling
from .greedy import generation_ends, stream


class LocalBackend:
    """Continues prompts with a loaded model, many at a time; the texts are those of one at a time.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        chat: Put each plain prompt into the tokenizer's chat template as the user's message.
        batch_tokens: Most tokens in the cache at once; by default what memory bears.
        identity: Which model this is; by default the folder that it was loaded from.

    Raises:
        CheckpointError: ``chat`` is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        chat: bool = False,
        *,
        batch_tokens: int | None = None,
        identity: str | None = None,
    ) -> None:
        self._model, self._tokenizer, self._chat, self._batch_tokens = model, tokenizer, chat, batch_tokens
        self.identity = identity or f"local:{model.config.name_or_path}"
        if chat:
            self._require_template("leave --chat out: this is a model for plain text")

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling], done: Done | None = None
    ) -> list[str]:
        """The continuation of each prompt, special tokens removed; see :class:`.backend.Backend`.

        Raises:
            CheckpointError: A prompt is a chat, and the tokenizer has no chat template.
            DepthupError: A prompt has no token, or memory does not hold a single row.
        """
        texts = [""] * len(prompts)
        rows = stream(
            self._model,
            self._tokenizer,
            [self._encoded(prompt) for prompt in prompts],
            each_sampling(sampling, len(prompts)),
            frozenset(generation_ends(self._model)),
            self._batch_tokens,
        )
        for row in rows:
            texts[row.index] = row.text(self._tokenizer)
            if done is not None:
                num_prompt, num_new = len(row.prompt), len(row.tokens)
                done(row.index, Generated(texts[row.index], row.finish_reason, num_prompt, num_new, self.identity))
        return texts

    def _encoded(self, prompt: Prompt) -> list[int]:
        text = prompt if isinstance(prompt, str) else self._rendered(prompt)
        if isinstance(prompt, str) and self._chat:
            text = self._rendered([{"role": "user", "content": prompt}])
        in_template = self._chat or not isinstance(prompt, str)
        return list(self._tokenizer(text, add_special_tokens=not in_template)["input_ids"])

    def _rendered(self, messages: Prompt) -> str:
        self._require_template("give plain text: this is a model without chats")
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _require_template(self, next_step: str) -> None:
        if not self._tokenizer.chat_template:
            raise CheckpointError("the tokenizer has no chat template", next_step=next_step)
