"""Tokenizers and conversations for the tests of chat data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pico
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from depthup.data.conversations import Conversation, Message

MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

# ChatML as SmolLM2 has it: a system message of its own, and a line break behind each turn.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(folder: Path, chat_template: str | None = None) -> Any:
    """pico's byte-level tokenizer with the special tokens of all named templates."""
    tokenizer = pico.tiny_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    if chat_template:
        tokenizer.chat_template = chat_template
    return tokenizer


def spaced_tokenizer() -> Any:
    """As of Llama 2: a space before every text, bytes for what is unknown, and ``<s>`` before it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(["The user asks User and Assistant answers yes it is water wet"] * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def talk(*turns: str, system: str | None = None, name: str = "talk") -> Conversation:
    """A conversation in which user and assistant take turns."""
    said = [Message(("user", "assistant")[number % 2], text) for number, text in enumerate(turns)]
    return Conversation((*([Message("system", system)] if system else []), *said), name)


TALKS = (
    talk("Is water wet?", "Yes, it is."),
    talk("Hi", "Hello 🙂 — naïve", "And then?\n", "Größe.\n\nThe end"),
    talk("Who are you?", "The assistant.", "Sure?", "Yes", "Really?", "  Yes!  ", system="Answer the user."),
)
