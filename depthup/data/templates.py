"""Chat templates by name: how the turns of a conversation become one text, and which part of it is trained on.

A new template is one row of ``TEMPLATES``. Each is also there as a Jinja template for the tokenizer of the trained
model, so that what answers later sees the turns as they were trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import DataError
from .conversations import Message

_EOS = "{eos}"  # stands for the tokenizer's end-of-sequence token


class Piece(NamedTuple):
    """A part of a conversation's text that is tokenised by itself, so that no token lies across its borders."""

    text: str
    is_target: bool


@dataclass(frozen=True)
class Template:
    """How turns become text.

    Attributes:
        turns: Role -> what stands before and after its content. An answer has nothing after but ``end_of_turn``.
        end_of_turn: The token that ends an answer, always inside the loss.
        lead: What begins an answer inside the loss: a space, where words begin with theirs.
        gap: What stands between an answer and the next turn.
        preamble: The system message of a conversation that has none.
    """

    turns: Mapping[str, tuple[str, str]]
    end_of_turn: str = _EOS
    lead: str = ""
    gap: str = ""
    preamble: str = ""

    def with_eos(self, eos: str) -> Template:
        """The template for a tokenizer whose end-of-sequence token is ``eos``."""
        turns = {role: (before, after.replace(_EOS, eos)) for role, (before, after) in self.turns.items()}
        return replace(self, turns=turns, end_of_turn=self.end_of_turn.replace(_EOS, eos))

    def pieces(self, messages: Sequence[Message], *, prompt_only: bool = False) -> list[Piece]:
        """Context and answers by turns, context first; its text is what a model sees before it answers.

        Args:
            messages: Ends with an answer, or with ``prompt_only`` before one.
            prompt_only: End with what calls for the next answer.

        Raises:
            DataError: A role has no place in the template.
        """
        result: list[Piece] = []
        context = "" if messages and messages[0].role == "system" else self._preamble()
        for message in messages:
            if message.role not in self.turns:
                raise DataError(f"no place for the role '{message.role}'",
                                allowed=", ".join(self.turns),
                                next_step="choose another template, or leave these conversations out")  # fmt: skip
            before, after = self.turns[message.role]
            if message.role != "assistant":
                context += before + message.content + after
                continue
            result.append(Piece(context + before, False))
            result.append(Piece(self.lead + message.content + self.end_of_turn, True))
            context = self.gap
        if prompt_only:
            result.append(Piece(context + self.turns["assistant"][0], False))
        return [piece for piece in result if piece.text]

    def jinja(self, bos: str = "", *, generation_markers: bool = True) -> str:
        """The same template for ``tokenizer.chat_template``.

        Args:
            bos: The token that begins a text, where the tokenizer adds one by itself.
            generation_markers: Put answers between ``{% generation %}`` marks, which transformers reads; some servers
                do not.
        """
        begin, end = ("{% generation %}", "{% endgeneration %}") if generation_markers else ("", "")
        text = _literal(bos)
        if self.preamble:
            text += "{% if messages[0]['role'] != 'system' %}" + _literal(self._preamble()) + "{% endif %}"
        text += "{% for message in messages %}"
        for number, (role, (before, after)) in enumerate(self.turns.items()):
            text += f"{{% {'elif' if number else 'if'} message['role'] == '{role}' %}}{_literal(before)}"
            if role == "assistant":
                text += begin + _literal(self.lead) + "{{ message['content'] }}" + _literal(self.end_of_turn) + end
                text += "{% if not loop.last %}" + _literal(self.gap) + "{% endif %}" if self.gap else ""
            else:
                text += "{{ message['content'] }}" + _literal(after)
        text += "{% else %}{{ raise_exception('no place for the role ' + message['role']) }}{% endif %}{% endfor %}"
        return text + "{% if add_generation_prompt %}" + _literal(self.turns["assistant"][0]) + "{% endif %}"

    def _preamble(self) -> str:
        before, after = self.turns.get("system", ("", ""))
        return before + self.preamble + after if self.preamble else ""


def _literal(text: str) -> str:
    parts = [json.dumps(part) for part in text.split(_EOS)]
    joined = " + eos_token + ".join(parts).replace('"" + ', "").replace(' + ""', "")
    return "{{ " + joined + " }}" if text else ""


def _marked(begin: str, middle: str, end: str, roles: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {role: (begin + name + middle, end) for role, name in roles.items()}


_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}

# name -> template; what each is known from stands above it.
TEMPLATES: dict[str, Template] = {
    # SOLAR 10.7B Instruct (arXiv:2312.15166; its card). There answers end with nothing, hence its single turn; here
    # with the end of sequence.
    "solar": Template(
        {"system": ("### System:\n", "\n\n"), "user": ("### User:\n", "\n\n"), "assistant": ("### Assistant:\n", "")},
        gap="\n\n",
    ),
    # Stanford Alpaca (2023); instruction and input stand in one message.
    "alpaca": Template(
        {"system": ("", "\n\n"), "user": ("### Instruction:\n", "\n\n"), "assistant": ("### Response:\n", "")},
        gap="\n\n",
        preamble="Below is an instruction that describes a task. Write a response that appropriately completes the"
        " request.",
    ),
    # OpenAI's markup, of Qwen, SmolLM and many more.
    "chatml": Template(_marked("<|im_start|>", "\n", "<|im_end|>\n", _ROLES), end_of_turn="<|im_end|>", gap="\n"),
    # Zephyr 7B (arXiv:2310.16944).
    "zephyr": Template(
        _marked("<|", "|>\n", _EOS + "\n", {role: role for role in ("system", "user", "assistant")}), gap="\n"
    ),
    # Llama 3 (arXiv:2407.21783); the tokenizer itself adds <|begin_of_text|>.
    "llama-3": Template(
        _marked("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", {**_ROLES, "tool": "ipython"}),
        end_of_turn="<|eot_id|>",
    ),
    # No special token but the end of sequence; an answer's first word brings its own space.
    "user-assistant": Template(
        {"system": ("", "\n\n"), "user": ("User: ", "\n\n"), "assistant": ("Assistant:", "")}, lead=" ", gap="\n\n"
    ),
    # Prompt and completion as they stand, nothing between.
    "plain": Template({"system": ("", "\n\n"), "user": ("", ""), "assistant": ("", "")}),
}  # fmt: skip
