"""Generation with a local checkpoint through transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import CheckpointError, DepthupError
from ..models import Model, Tokenizer, quiet_transformers
from .backend import Sampling


class LocalBackend:
    """Continues prompts with a loaded model, one prompt at a time (exact: no padding touches the result).

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        chat: Put each prompt into the tokenizer's chat template as the user's message.

    Raises:
        CheckpointError: ``chat`` is asked for and the tokenizer has no chat template.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, chat: bool = False) -> None:
        if chat and not tokenizer.chat_template:
            raise CheckpointError(
                "the tokenizer has no chat template", next_step="leave --chat out: this is a model for plain text"
            )
        self._model, self._tokenizer, self._chat = model, tokenizer, chat

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """The continuation of each prompt, special tokens removed.

        Raises:
            DepthupError: A prompt has no token.
        """
        return [self._continue(prompt, sampling) for prompt in prompts]

    def _continue(self, prompt: str, sampling: Sampling) -> str:
        if self._chat:
            messages = [{"role": "user", "content": prompt}]
            prompt = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        encoded = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=not self._chat).to(self._model.device)
        padding = self._tokenizer.pad_token_id
        if encoded["input_ids"].shape[1] == 0:
            raise DepthupError(
                "an empty prompt has no token to go on from", next_step="give a prompt of one word or more"
            )
        drawing = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        torch.manual_seed(sampling.seed)
        with torch.inference_mode(), quiet_transformers():
            output = self._model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=sampling.max_new_tokens,
                repetition_penalty=1.0,  # a model's own generation config may say otherwise
                no_repeat_ngram_size=0,
                pad_token_id=self._tokenizer.eos_token_id if padding is None else padding,
                **(drawing if sampling.temperature > 0 else {"do_sample": False}),
            )
        return self._tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
