"""Chat templates and masks: what is trained on is each answer with its end of turn, and nothing else.

Oracles: transformers' own masks for templates with generation marks, and the data that TRL trains on.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import chats
import numpy as np
import pico
import pytest
import torch
from chats import CHATML, TALKS, talk
from hypothesis import given, settings
from hypothesis import strategies as st

from depthup.data.chat import HOLDS_SPECIAL, NO_ANSWER, OWN, REFUSED, chat_encoder, encoding_identity
from depthup.data.conversations import Conversation, Message, conversations_of, read_conversations
from depthup.data.packing import pack
from depthup.data.sources import Files, Row
from depthup.data.templates import TEMPLATES
from depthup.data.tokens import Encoded, write_encoded
from depthup.errors import DataError
from depthup.training.objectives import causal_lm

MARKED = CHATML.replace("{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}", (
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}"
))  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return chats.byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def own(tokenizer: Any, template: str, **options: Any) -> Any:
    """An encoder for a tokenizer with this chat template; the fixture's stays as it is."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return chat_encoder(other, OWN, **options)


def encode(encoder: Any, conversation: Conversation) -> Encoded:
    (made,) = encoder([conversation])
    assert isinstance(made, Encoded) and made.targets is not None, made
    return made


def as_dicts(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation.messages]


def answers(tokenizer: Any, made: Encoded) -> list[str]:
    """The texts of the runs of targets."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], made.targets, [0]]).astype(int)))
    return [tokenizer.decode(made.ids[begin:end].tolist()) for begin, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_trained_on_are_the_answers_with_their_end(tokenizer: Any, name: str) -> None:
    encoder = chat_encoder(tokenizer, name)
    end = tokenizer.decode([encoder.end_of_turn])
    assert end == TEMPLATES[name].with_eos(pico.END).end_of_turn
    for conversation in TALKS:
        said = [message.content for message in conversation.messages if message.role == "assistant"]
        lead = TEMPLATES[name].lead
        assert answers(tokenizer, encode(encoder, conversation)) == [lead + text + end for text in said]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])  # there, words would join
def test_named_templates_give_what_transformers_gives_for_their_jinja_form(tokenizer: Any, name: str) -> None:
    for conversation in TALKS[:2]:
        oracle = tokenizer.apply_chat_template(
            as_dicts(conversation), chat_template=TEMPLATES[name].jinja(), return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        made = encode(chat_encoder(tokenizer, name), conversation)
        assert made.ids.tolist() == oracle["input_ids"]
        assert made.targets.tolist() == [bool(inside) for inside in oracle["assistant_masks"]]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("marks", [True, False])
def test_the_jinja_form_trained_as_the_tokenizers_own_is_the_named_template(
    tokenizer: Any, name: str, marks: bool
) -> None:
    if name == "plain" and marks:
        return
    encoder = own(tokenizer, TEMPLATES[name].jinja(generation_markers=marks))
    for conversation in TALKS[:2]:
        named, mine = encode(chat_encoder(tokenizer, name), conversation), encode(encoder, conversation)
        assert answers(tokenizer, named) == answers(tokenizer, mine)
        assert tokenizer.decode(named.ids) == tokenizer.decode(mine.ids)


@pytest.mark.parametrize("template", [None, CHATML])
def test_answers_are_found_in_templates_without_marks(tokenizer: Any, template: str | None) -> None:
    """pico's own template, and SmolLM2's: each turn ends with a line break that no loss is on."""
    encoder = own(tokenizer, template or tokenizer.chat_template)
    end = tokenizer.decode([encoder.end_of_turn])
    for conversation in TALKS:
        made = encode(encoder, conversation)
        text = encoder.tokenizer.apply_chat_template(as_dicts(conversation), tokenize=False)
        assert tokenizer.decode(made.ids) == text
        said = [message.content + end for message in conversation.messages if message.role == "assistant"]
        assert answers(tokenizer, made) == said


def test_marks_and_prefixes_find_the_same(tokenizer: Any) -> None:
    for conversation in TALKS[:2]:
        by_marks, by_prefixes = (encode(own(tokenizer, template), conversation) for template in (MARKED, CHATML))
        assert by_marks.ids.tolist() == by_prefixes.ids.tolist()
        assert by_marks.targets.tolist() == by_prefixes.targets.tolist()


def test_marks_that_transformers_loses_are_made_good_by_prefixes(tokenizer: Any) -> None:
    """A mark that ends at white space has no token of its own: transformers then takes all that follows as answer."""
    template = MARKED.replace(
        "<|im_end|>' }}{% endgeneration %}{% else %}", "<|im_end|>\n' }}{% endgeneration %}{% else %}"
    )
    template = template.replace("+ '<|im_end|>' }}{% endif %}{{ '\n' }}", "+ '<|im_end|>\n' }}{% endif %}")
    oracle = own(tokenizer, template).tokenizer.apply_chat_template(
        as_dicts(TALKS[1]), return_dict=True, return_assistant_tokens_mask=True
    )
    made = encode(own(tokenizer, template), TALKS[1])
    assert made.ids.tolist() == oracle["input_ids"]
    assert answers(tokenizer, made) == ["Hello 🙂 — naïve<|im_end|>", "Größe.\n\nThe end<|im_end|>"]


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


@given(TEXT, TEXT)
@settings(max_examples=60, deadline=None)
def test_the_context_has_the_tokens_of_a_prompt_at_inference(tokenizer: Any, prompt: str, completion: str) -> None:
    for template in ("solar", "chatml", "llama-3", "user-assistant", "plain", OWN):
        encoder = chat_encoder(tokenizer, template)
        (made,) = encoder([talk(prompt, completion)])
        if isinstance(made, str):
            assert made == NO_ANSWER and not completion.strip()
            continue
        given = encoder.prompt_ids([Message("user", prompt)])
        first = int(np.flatnonzero(made.targets)[0])
        assert made.ids[:first].tolist() == given
        if template != OWN:
            assert made.targets[first:].all() and made.ids[-1] == encoder.end_of_turn


def test_the_last_answer_only_and_the_prompt_too(tokenizer: Any) -> None:
    for template in ("solar", OWN):
        everything, last, prompt = (
            encode(chat_encoder(tokenizer, template, **options), TALKS[1])
            for options in ({}, {"turns": "last"}, {"train_on_prompt": True})
        )
        assert everything.ids.tolist() == prompt.ids.tolist()
        assert prompt.targets.all()
        assert tokenizer.decode(everything.ids) == tokenizer.decode(last.ids)
        assert answers(tokenizer, last) == answers(tokenizer, everything)[1:]


def test_what_follows_the_last_answer_is_left_off(tokenizer: Any) -> None:
    encoder = chat_encoder(tokenizer, "solar")
    longer = talk("Is water wet?", "Yes, it is.", "Why?")
    assert encode(encoder, longer).ids.tolist() == encode(encoder, TALKS[0]).ids.tolist()


def test_what_cannot_be_trained_on_is_left_out_with_a_reason(tokenizer: Any) -> None:
    refusing = CHATML.replace("{% for", "{% if messages|length > 3 %}{{ raise_exception('long') }}{% endif %}{% for", 1)
    reasons = chat_encoder(tokenizer, "solar")([
        talk("Only a question"), talk("Hi", " \n"), talk("Strike <|endoftext|> through", "Done."), TALKS[0],
    ])  # fmt: skip
    assert reasons[:3] == [NO_ANSWER, NO_ANSWER, HOLDS_SPECIAL] and isinstance(reasons[3], Encoded)
    assert own(tokenizer, refusing)([TALKS[1]]) == [f"{REFUSED}: long"]


@pytest.mark.parametrize("template", ["solar", "zephyr", "alpaca", "user-assistant"])
def test_tokenizers_that_put_a_space_before_every_text_put_it_there_once(template: str) -> None:
    """The parts have the tokens of the whole, and the text begins with one begin-of-sequence token."""
    tokenizer = chats.spaced_tokenizer()
    encoder = chat_encoder(tokenizer, template)
    for conversation in TALKS[:2]:
        made = encode(encoder, conversation)
        whole = TEMPLATES[template].with_eos("</s>").pieces(conversation.messages)
        assert made.ids.tolist() == tokenizer("".join(piece.text for piece in whole))["input_ids"]
        assert (made.ids == tokenizer.bos_token_id).sum() == 1


def test_the_same_holds_for_their_own_templates() -> None:
    """Llama 2's: no generation prompt is needed, and an answer begins with the space behind its bracket."""
    llama_2 = (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] +"
        " ' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    encoder = own(chats.spaced_tokenizer(), llama_2)
    for conversation in TALKS[:2]:
        made = encode(encoder, conversation)
        text = encoder.tokenizer.apply_chat_template(as_dicts(conversation), tokenize=False)
        assert made.ids.tolist() == encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        said = [message.content for message in conversation.messages if message.role == "assistant"]
        assert [text.strip() for text in answers(encoder.tokenizer, made)] == [f"{text} </s>" for text in said]


def test_what_tokens_depend_on_is_told_apart() -> None:
    told = [encoding_identity(name, "all", False) for name in (OWN, *TEMPLATES)]
    told += [encoding_identity(OWN, "last", False), encoding_identity(OWN, "all", True)]
    assert len({json.dumps(each) for each in told}) == len(told)


def test_a_template_that_writes_the_begin_of_sequence_token_gets_no_second_one() -> None:
    tokenizer = chats.spaced_tokenizer()
    tokenizer.chat_template = TEMPLATES["zephyr"].jinja(tokenizer.bos_token)
    made = encode(chat_encoder(tokenizer), TALKS[1])
    assert made.ids[0] == tokenizer.bos_token_id and (made.ids == tokenizer.bos_token_id).sum() == 1


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML.replace("+ '<|im_end|>'", ""), "no end of turn is in the loss of a sample exchange"),
        (MARKED.replace("message['content'] + '<|im_end|>' }}{% endgeneration %}",
                        "message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}"), "no end of turn is in the loss"),
        ("{{ raise_exception('never') }}", "a sample exchange is refused by the chat template: never"),
        ("", "has no chat template of its own\n  allowed: solar, alpaca"),
    ],
)  # fmt: skip
def test_templates_that_would_never_end_are_refused(tokenizer: Any, template: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        own(tokenizer, template)


def test_named_templates_need_their_tokens(tmp_path: Path) -> None:
    plain = pico.tiny_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"no end of turn .* <\|im_end\|> is no token of this tokenizer"):
        chat_encoder(plain, "chatml")
    with pytest.raises(DataError, match=r"'solr' \(did you mean 'solar'"):
        chat_encoder(plain, "solr")
    tool = Conversation((Message("tool", "4"), Message("assistant", "Four.")))
    assert chat_encoder(plain, "solar")([tool]) == [f"{REFUSED}: no place for the role 'tool'"]


def test_a_template_that_renders_earlier_turns_otherwise_is_refused_or_trained_on_its_last(tokenizer: Any) -> None:
    """As those that leave the thinking of earlier turns out."""
    fickle = CHATML.replace("+ message['content'] +", "+ ('<think></think>' if loop.last and message['role'] =="
                            " 'assistant' else '') + message['content'] +")  # fmt: skip
    with pytest.raises(DataError, match="renders turn 2 of talk differently"):
        own(tokenizer, fickle)([TALKS[1]])
    made = encode(own(tokenizer, fickle, turns="last"), TALKS[1])
    assert answers(tokenizer, made) == ["<think></think>Größe.\n\nThe end<|im_end|>"]


# -- TRL --------------------------------------------------------------------------------------------------------------


def trl_rows(tokenizer: Any, rows: list[dict[str, Any]], folder: Path, **options: Any) -> list[dict[str, Any]]:
    """What TRL's trainer would train on: input_ids and labels (the same place, not the next)."""
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset, disable_progress_bars
        from trl import SFTConfig, SFTTrainer

        disable_progress_bars()
        config = SFTConfig(str(folder), report_to="none", use_cpu=True, bf16=False, max_length=None, **options)
        trainer = SFTTrainer(pico.model(), config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        return list(trainer.train_dataset)


def labels_of(made: Encoded) -> list[int]:
    return np.where(made.targets, made.ids, -100).tolist()


def conversation_of(row: dict[str, Any]) -> Conversation:
    (conversation,) = conversations_of(Row("row", "row", row))
    return conversation


def test_prompts_and_completions_are_trained_on_as_by_trl(tmp_path: Path, shared_data) -> None:
    tokenizer = pico.tiny_tokenizer(tmp_path)
    talks = list(read_conversations(Files((str(shared_data("instruct/t0_sample.jsonl.gz")),))))[::40]
    rows = [{"prompt": t.messages[0].content, "completion": t.messages[1].content} for t in talks if t.has_answer]
    encoder = chat_encoder(tokenizer, "plain")
    oracle = trl_rows(tokenizer, rows, tmp_path)
    assert len(oracle) == len(rows) > 60
    for row, theirs in zip(rows, oracle, strict=True):
        made = encode(encoder, conversation_of(row))
        assert made.ids.tolist() == theirs["input_ids"]
        assert labels_of(made) == theirs["labels"]


@pytest.mark.parametrize("name", ["solar", "chatml", "llama-3"])
def test_conversations_are_trained_on_as_by_trl(tokenizer: Any, tmp_path: Path, name: str) -> None:
    theirs = copy.deepcopy(tokenizer)
    theirs.chat_template = TEMPLATES[name].jinja()
    rows = [{"messages": as_dicts(conversation)} for conversation in TALKS[:2]]
    oracle = trl_rows(theirs, rows, tmp_path, assistant_only_loss=True)
    for row, other in zip(rows, oracle, strict=True):
        made = encode(chat_encoder(tokenizer, name), conversation_of(row))
        assert made.ids.tolist() == other["input_ids"]
        assert labels_of(made) == other["labels"]


def test_conversational_prompts_and_completions_are_trained_on_as_by_trl(tokenizer: Any, tmp_path: Path) -> None:
    """TRL counts the line break behind an answer's end of turn as completion; here the loss ends with the turn."""
    theirs = copy.deepcopy(tokenizer)
    theirs.chat_template = CHATML
    rows = [{"prompt": as_dicts(c)[:-1], "completion": as_dicts(c)[-1:]} for c in TALKS[:2]]
    for row, other in zip(rows, trl_rows(theirs, rows, tmp_path), strict=True):
        made = encode(own(tokenizer, CHATML, turns="last"), conversation_of(row))
        assert made.ids.tolist() == other["input_ids"]
        assert labels_of(made)[:-1] == other["labels"][:-1]
        assert labels_of(made)[-1] == -100 and tokenizer.decode([other["labels"][-1]]) == "\n"


def test_packed_conversations_cost_what_trls_cost_alone(tokenizer: Any, tmp_path: Path, shared_data) -> None:
    """From a file to the loss: rows read, encoded, written, packed and masked; a sum over the same targets."""
    path = shared_data("instruct/instruction-data.json")
    talks = list(read_conversations(Files((str(path),))))[:40]
    theirs = copy.deepcopy(tokenizer)
    theirs.chat_template = TEMPLATES["solar"].jinja()
    oracle = trl_rows(theirs, [{"messages": as_dicts(each)} for each in talks], tmp_path, assistant_only_loss=True)
    rows = pack(write_encoded(talks, chat_encoder(tokenizer, "solar"), tmp_path), 512, whole=True)
    model = pico.model(max_position_embeddings=512, vocab_size=len(tokenizer))
    packed = sum(causal_lm(model, batch).loss.item() for batch in rows.in_order(4))
    alone = 0.0
    for row in oracle:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        alone += model(input_ids=ids, labels=labels).loss.item() * int((labels[:, 1:] != -100).sum())
    assert rows.num_dropped == rows.num_truncated == 0
    assert packed == pytest.approx(alone, rel=1e-5)
