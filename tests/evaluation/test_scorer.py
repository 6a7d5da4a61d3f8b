"""The scorer against lm-eval's own HF backend, which is the oracle: equal on every architecture, whatever is shared."""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from depthup.errors import CheckpointError, DataError, DepthupError
from depthup.evaluation import memory, replicas
from depthup.evaluation.encoding import Encoder
from depthup.evaluation.encoding import Path as TokenPath
from depthup.evaluation.prefixes import Stem, plan, sort_sequences
from depthup.evaluation.replicas import ReplicaScorer, split_paths
from depthup.evaluation.requests import Completion, Continuation, Request, Whole
from depthup.evaluation.scorer import LocalScorer, load_scorer
from depthup.evaluation.walks import Tally, Walker

TEXT = "the user asks assistant question answers what is sum of first and second another one there"
WORDS = TEXT.split()
PER_TOKEN = 3e-6  # absolute, of float32; lm-eval itself sums in float32
# family -> whether it shares beginnings
SHARING = {
    "llama": True, "mistral": True, "qwen3": True, "gemma2": True, "gemma3_text": True, "gpt2": True, "gpt_neox": True,
    "opt": True, "gpt_oss": True, "mixtral": True, "cohere2": True, "deepseek_v2": True,
    "bloom": False, "mamba": False, "gptj": False,
}  # fmt: skip
# One of each kind of attention: rotary, windows of two sizes, learnt places, sinks, latent, biased, recurrent.
USUAL = ("llama", "gemma3_text", "gpt2", "gpt_oss", "deepseek_v2", "bloom", "mamba")
FAMILIES = [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in SHARING]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pico.tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def items(seed: int = 0) -> list[Continuation]:
    """Few-shot items with several choices; lettered choices; an empty context; a space at the border; a long text."""
    drawn = random.Random(seed)

    def text(num_words: int) -> str:
        return " ".join(drawn.choice(WORDS) for _ in range(num_words))

    header = text(30) + "\n\n"
    found = []
    for _ in range(4):
        context = header + text(drawn.randint(2, 5)) + ":"
        found += [Continuation(context, " " + text(drawn.randint(1, 3))) for _ in range(3)]
    found += [Continuation(header + "Answer:", f" {letter}") for letter in "ABCD"]
    found += [
        Continuation("", text(2)), Continuation("Who is it? ", "it"), Continuation("Who is\n\n", " it"),
        Continuation(header + "What", " is"), Continuation(header + "What", " is it"),
        Continuation(text(80), " " + text(2)), found[0],
    ]  # fmt: skip
    return found


def by_harness(model: Any, tokenizer: Any, requests: Sequence[Request], **options: Any) -> list[Any]:
    """What lm-eval's HF backend answers."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, **options)
    ends = [
        Instance("loglikelihood", {}, (one.context, one.text), index)
        for index, one in enumerate(requests)
        if isinstance(one, Continuation)
    ]
    texts = [
        Instance("loglikelihood_rolling", {}, (one.text,), index)
        for index, one in enumerate(requests)
        if isinstance(one, Whole)
    ]
    found = dict(zip([one.idx for one in ends], lm.loglikelihood(ends, disable_tqdm=True), strict=True))
    if texts:
        found |= dict(zip([one.idx for one in texts], lm.loglikelihood_rolling(texts, disable_tqdm=True), strict=True))
    return [found[index] for index in range(len(requests))]


def require_equal(found: Sequence[Any], wanted: Sequence[Any], num_tokens: int = 128) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        if isinstance(theirs, tuple):
            assert abs(ours[0] - theirs[0]) < 1e-5 and ours[1] == theirs[1]
        else:
            assert abs(ours - theirs) < PER_TOKEN * num_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_those_of_the_harness(family: str, tokenizer: Any) -> None:
    model = pico.model(family)
    requests = [*items(), Whole(""), Whole("the sum of one"), Whole(" ".join(WORDS * 5))]
    scorer = LocalScorer(model, tokenizer)
    require_equal(scorer.answer(requests), by_harness(model, tokenizer, requests), 400)
    assert scorer.shares is SHARING[family]


def test_a_model_sure_of_its_tokens_is_greedy_where_the_harness_says_so(tokenizer: Any) -> None:
    """Untrained models never are; one that says each token again always expects the last."""
    model = pico.model("llama_tied", num_layers=1)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(30)
    requests = [Continuation("a", text) for text in ("a", "aaa", "aab", "b")]
    wanted = by_harness(model, tokenizer, requests)
    assert LocalScorer(model, tokenizer).answer(requests) == [
        (pytest.approx(score, abs=1e-4), likeliest) for score, likeliest in wanted
    ]
    assert {likeliest for _, likeliest in wanted} == {True, False}


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
def test_neither_batches_nor_order_nor_company_change_a_score(family: str, tokenizer: Any) -> None:
    model, requests = pico.model(family, num_layers=2), items(1)
    wanted = LocalScorer(model, tokenizer).answer(requests)
    order = random.Random(2).sample(range(len(requests)), len(requests))
    for batch_tokens in (1, 150):
        scorer = LocalScorer(model, tokenizer, batch_tokens=batch_tokens)
        found = dict(zip(order, scorer.answer([requests[index] for index in order]), strict=True))
        require_equal([found[index] for index in range(len(requests))], wanted)
    require_equal([LocalScorer(model, tokenizer).answer([one])[0] for one in requests[:4]], wanted[:4])


@pytest.mark.parametrize("max_branch_tokens", [0, 3, 20, 1000])
def test_stems_and_branches_of_any_size_give_the_same_scores(max_branch_tokens: int, tokenizer: Any) -> None:
    model = pico.model("gemma3_text")  # windows shorter than the texts
    paths = Encoder(tokenizer, 128).continuations(items(3))
    found = {}
    for size in (max_branch_tokens, None):
        tally = Tally(paths, lambda index, score, likeliest: found.__setitem__((size, index), (score, likeliest)))  # noqa: B023
        with torch.inference_mode():
            walker = Walker(model)
            if size is None:
                walker.by_rows(paths, tally)
            else:
                walker.by_trees(paths, tally, max_branch_tokens=size)
        tally.close()
    require_equal(*([found[size, index] for index in range(len(paths))] for size in (max_branch_tokens, None)))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("max_length", [7, 24])
def test_texts_beyond_the_context_are_cut_as_the_harness_cuts_them(max_length: int, tokenizer: Any) -> None:
    model = pico.model("llama")
    short = [one for one in items() if len(tokenizer(one.text)["input_ids"]) < 7]
    requests = [*short, Whole(" ".join(WORDS * 2)), Whole(" ".join(WORDS))]
    wanted = by_harness(model, tokenizer, requests, max_length=max_length)
    require_equal(LocalScorer(model, tokenizer, max_length=max_length).answer(requests), wanted)


def test_the_plan_computes_each_shared_token_once() -> None:
    def path(*tokens: int) -> TokenPath:
        return TokenPath(np.array([*tokens, 9], np.int32), 1)

    header = tuple(range(100, 130))
    paths = [path(*header, item, item, choice) for item, choice in itertools.product(range(20), range(3))]
    root = plan(sort_sequences(paths), max_branch_tokens=50)
    assert (len(root.stems), root.stems[0].fork) == (1, 30)
    assert root.num_tokens == 30 + 20 * (2 + 3)
    assert plan(sort_sequences(paths[:6])).num_tokens == 30 + 2 * (2 + 3)
    apart = plan(sort_sequences([path(1, *range(100 + 900 * number, 800 + 900 * number)) for number in range(3)]))
    assert not apart.stems and len(apart.trees) == 3  # one token in common is worth no stem


def test_the_plan_covers_every_token_of_any_sequences() -> None:
    drawn = random.Random(5)
    for _ in range(30):
        paths = [
            TokenPath(np.array([drawn.randint(0, 2) for _ in range(drawn.randint(2, 14))], np.int32), 1)
            for _ in range(drawn.randint(1, 40))
        ]
        sequences = sort_sequences(paths)
        for size in (0, 4, 1000):
            seen = set()
            for stem in plan(sequences, size).walk():
                for part in [stem, *stem.trees]:
                    for index in range(part.first, part.last):
                        tokens = sequences.tokens[index]
                        end = part.fork if isinstance(part, Stem) else len(tokens)
                        seen |= {tuple(tokens[: place + 1]) for place in range(part.depth, min(end, len(tokens)))}
            assert seen == {tuple(path.tokens[: end + 1]) for path in paths for end in range(len(path.tokens) - 1)}
            parts = split_paths(paths, 3)
            assert split_paths([], 3) == []
            assert sorted(index for part in parts for index in part) == list(range(len(paths)))


def sentence_tokenizer(scheme: str) -> PreTrainedTokenizerFast:
    """As those of Llama 2 and Mistral: spaces as a letter of their own, one put before a text, BOS before all."""
    words = [
        "<s>",
        "</s>",
        "<unk>",
        "▁",
        *"abcdefghijklmnopqrstuvwxyz?:.\nABCD",
        "th",
        "the",
        "▁the",
        "▁s",
        "um",
        "▁sum",
    ]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "s"), ("u", "m"), ("▁s", "um")]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges, unk_token="<unk>"))
    if scheme == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["byte level", "first", "always", "never", "normalizer"])
def test_cut_texts_have_the_tokens_of_whole_ones(kind: str, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    chosen = tokenizer if kind == "byte level" else sentence_tokenizer(kind)
    model = pico.model("llama", num_layers=1)
    lm = HFLM(pretrained=model, tokenizer=chosen)
    encoder = Encoder(chosen, 4000)
    requests = [one for one in items(4) if one.context]
    requests.append(Continuation(chosen.bos_token + requests[0].context, " the sum"))
    for request, path in zip(requests, encoder.continuations(requests), strict=True):
        context, continuation = lm._encode_pair(request.context, request.text)
        assert path.tokens.tolist() == context + continuation and path.num_scored == len(continuation)
    assert encoder._cuts


def test_a_vocabulary_of_phrases_is_never_cut() -> None:
    words = {"a": 0, "b": 1, " ": 2, "a ": 3, "a b": 4, "</s>": 5}
    made = Tokenizer(models.BPE(words, [("a", " "), ("a ", "b")]))
    made.decoder = decoders.Fuse()
    chosen = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    context = "b a b " * 30 + "b"
    encoder = Encoder(chosen, 4000)
    (path,) = encoder.continuations([Continuation(context, " a b")])
    assert path.tokens.tolist() == chosen(context + " a b")["input_ids"] and not encoder._cuts


def test_answers_are_told_one_by_one_in_any_order(tokenizer: Any) -> None:
    told: dict[int, Any] = {}
    requests = [*items(), Whole("the sum"), Whole("")]
    answers = LocalScorer(pico.model("llama", num_layers=2), tokenizer, batch_tokens=64).answer(
        requests, lambda index, answer: told.__setitem__(index, answer)
    )
    assert [told[index] for index in range(len(requests))] == answers


def test_requests_without_a_token_to_score_are_refused_by_their_text(tokenizer: Any) -> None:
    scorer = LocalScorer(pico.model("llama", num_layers=1), tokenizer, max_length=8)
    for request in (Continuation("What is", ""), Continuation("What", " ".join(WORDS))):
        with pytest.raises(DataError, match="What"):
            scorer.answer([request])


def test_an_encoder_decoder_is_refused(tokenizer: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16))
    with pytest.raises(CheckpointError, match="encoder-decoder"):
        LocalScorer(model, tokenizer)


def test_a_batch_that_does_not_fit_is_halved(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, requests = pico.model("llama", num_layers=2), items(6)
    wanted = LocalScorer(model, tokenizer).answer(requests)
    sizes: list[int] = []
    call = type(model).forward

    def forward(self: Any, input_ids: Any, **options: Any) -> Any:
        sizes.append(input_ids.numel())
        if input_ids.numel() > limit:
            raise torch.OutOfMemoryError("no memory")
        return call(self, input_ids=input_ids, **options)

    limit = 10_000
    scorer = LocalScorer(model, tokenizer)
    monkeypatch.setattr(type(model), "forward", forward)
    scorer.score(scorer.encoder.continuations(requests[:2]), lambda *found: None)  # finds out that the model shares
    limit = 220
    require_equal(scorer.answer(requests), wanted)
    assert max(sizes) > limit
    limit = 20
    with pytest.raises(DepthupError, match=r"no memory for one text of \d+ tokens"):
        scorer.answer(requests)


def test_a_model_that_does_not_fit_is_refused_with_what_would(
    base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base("llama", tokenizer=True)
    num_bytes = memory.stored_parameters(folder) * 4
    monkeypatch.setattr(memory, "free_bytes", lambda device: num_bytes - 1000)
    with pytest.raises(CheckpointError, match=r"1,000 bytes\) are missing\n  next: load it in bfloat16"):
        load_scorer(folder, device="cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    with pytest.raises(CheckpointError, match="a device with more memory"):
        load_scorer(folder, device="cpu", dtype="bfloat16")


def test_two_workers_answer_as_one(base: Callable[..., Path]) -> None:
    folder = base("llama", tokenizer=True)
    requests = [*items(7), Whole("the sum of one"), Whole("")]
    told: set[int] = set()
    wanted = load_scorer(folder, device="cpu").answer(requests)
    with ReplicaScorer(folder, ["cpu", "cpu"]) as scorer:
        require_equal(scorer.answer(requests, lambda index, answer: told.add(index)), wanted)
        assert told == set(range(len(requests)))
        require_equal(scorer.answer(requests[:3]), wanted[:3])  # the same workers, asked again
        texts = [Completion("the sum of", ("?",), 3), Completion("What is it", (), 4)]
        assert scorer.answer(texts) == load_scorer(folder, device="cpu").answer(texts)  # and nothing to score


def test_a_worker_that_fails_gives_its_reason(base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(threading.Thread):  # in place of a process, which takes seconds to start
        def __init__(self, target: Any, args: Any, daemon: bool) -> None:
            super().__init__(target=target, args=("no-such-device", *args[1:]), daemon=daemon)

        def terminate(self) -> None:
            pass

    context = types.SimpleNamespace(Process=Here, Queue=queue.Queue)
    monkeypatch.setattr(replicas.multiprocessing, "get_context", lambda method: context)
    scorer = ReplicaScorer(base("llama", tokenizer=True), ["cpu", "cpu"])
    with pytest.raises(DepthupError, match=r"the worker on no-such-device failed: .*no-such-device"):
        scorer.answer(items()[:2])
