"""Losses and gradients are TRL's on the same tiny model and the same answers; TRL pads, we pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pico
import pytest
import torch

from depthup.data.packing import IGNORED, Batch, PairBatch
from depthup.training.dpo import Preference, answer_logps, dpo
from depthup.training.heads import Head
from depthup.training.objectives import CausalLM, Objective, choose_attention

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and its dependencies'

HEAD = Head("chunked")
LENGTHS = ((4, 9), (6, 3), (2, 12))  # of prompt and completion


def sequence(rng: np.random.Generator, *lengths: int) -> list[int]:
    return rng.integers(1, pico.VOCAB_SIZE, sum(lengths)).tolist()


def row(sequences: Sequence[tuple[list[int], int]], first_answer: int | None = None) -> dict[str, np.ndarray]:
    """One row that holds sequences, each with the length of its prompt, which is no target."""
    ids, labels, positions, answers = [], [], [], []
    for number, (tokens, num_prompt) in enumerate(sequences):
        ids += tokens
        labels += [IGNORED] * (num_prompt - 1) + tokens[num_prompt:] + [IGNORED]
        positions += range(len(tokens))
        marks = [-1] * len(tokens)
        marks[num_prompt - 1 : -1] = [number + (first_answer or 0)] * (len(tokens) - num_prompt)
        answers += marks
    arrays = {"input_ids": ids, "labels": labels, "position_ids": positions, "sequences": answers}
    return {name: np.asarray([values], np.int64) for name, values in arrays.items()}


def gradient_of(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def agrees(model: Any, ours: Objective, batch: Batch, theirs: Callable[[], torch.Tensor]) -> None:
    oracle = theirs()
    oracle_gradient = gradient_of(model, oracle)
    loss = ours(model, batch).loss / batch.num_units
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient_of(model, loss), oracle_gradient, rtol=1e-3, atol=1e-6)


@pytest.fixture
def sft_trainer(tmp_path: Path) -> Any:
    import datasets

    args = trl.SFTConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, max_length=None
    )
    data = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]]})
    return trl.SFTTrainer(pico.model(), args, train_dataset=data, processing_class=pico.tiny_tokenizer(tmp_path))


@pytest.mark.parametrize("padding_free", [False, True], ids=["padded", "padding_free"])
def test_masked_sft(sft_trainer: Any, padding_free: bool) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rng = np.random.default_rng(0)
    sequences = [(sequence(rng, *lengths), lengths[0]) for lengths in LENGTHS]
    examples = [{"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]} for ids, prompt in sequences]
    collated = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)(examples)
    found = row(sequences)
    del found["sequences"]
    model = sft_trainer.model.eval()
    agrees(model, CausalLM(HEAD), Batch(**found), lambda: sft_trainer.compute_loss(model, dict(collated)))
    assert choose_attention(model) == "depthup_varlen"
    agrees(model, CausalLM(HEAD), Batch(**found), lambda: sft_trainer.compute_loss(model, dict(collated)))


@pytest.fixture(scope="module")
def dpo_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import datasets

    folder = tmp_path_factory.mktemp("dpo")
    args = trl.DPOConfig(
        str(folder), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, max_length=None
    )
    data = datasets.Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    return trl.DPOTrainer(
        pico.model(), pico.model(seed=1), args, train_dataset=data, processing_class=pico.tiny_tokenizer(folder)
    )


def pairs(num_pairs: int) -> tuple[list[dict[str, list[int]]], PairBatch]:
    """The same pairs as TRL's examples and as packed rows, one or two pairs to a row."""
    rng, examples, sequences = np.random.default_rng(1), [], []
    for number in range(num_pairs):
        prompt, chosen, rejected = (sequence(rng, size) for size in (3 + number, 5 + 2 * number, 9 - number))
        examples.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        sequences += [(prompt + chosen, len(prompt)), (prompt + rejected, len(prompt))]
    rows = [row(sequences[:4], 0)] + ([row(sequences[4:], 4)] if num_pairs > 2 else [])
    width = max(one["input_ids"].shape[1] for one in rows)
    fill = {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "sequences": -1}
    arrays = {
        name: np.concatenate(
            [np.pad(one[name], ((0, 0), (0, width - one[name].shape[1])), constant_values=fill[name]) for one in rows]
        )
        for name in fill
    }
    return examples, PairBatch(**arrays, reference=None)


def with_reference(batch: PairBatch, model: torch.nn.Module) -> PairBatch:
    with torch.no_grad():
        reference = answer_logps(HEAD, model, batch).numpy()
    return PairBatch(batch.input_ids, batch.labels, batch.position_ids, batch.sequences, reference)


VARIANTS: list[tuple[list[str], dict[str, Any]]] = [
    (["sigmoid"], {"beta": 0.1}),
    (["sigmoid_norm"], {"variant": "sigmoid_norm", "beta": 5.0}),
    (["ipo"], {"variant": "ipo", "beta": 0.1}),
    (["robust"], {"variant": "robust", "beta": 0.1, "label_smoothing": 0.2}),
    (["apo_zero"], {"variant": "apo_zero", "beta": 0.1}),
    (["apo_zero", "sft"], {"variant": "apo_zero", "beta": 0.1, "nll_weight": 0.5}),
]


@pytest.mark.parametrize(("loss_types", "options"), VARIANTS, ids=["+".join(names) for names, _ in VARIANTS])
def test_preference_losses(dpo_trainer: Any, loss_types: list[str], options: dict[str, Any]) -> None:
    """With TRL's NLL term a pair at a time: TRL's is a mean over the tokens of all pairs, ours of each pair."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    trainer = dpo_trainer
    trainer.loss_types, trainer.loss_weights = loss_types, [1.0, 0.5][: len(loss_types)]
    trainer.beta, trainer.label_smoothing = options["beta"], options.get("label_smoothing", 0.0)
    model = trainer.model.eval()
    examples, batch = pairs(1 if "sft" in loss_types else 3)
    collated = DataCollatorForPreference(pad_token_id=0)(examples)
    batch = with_reference(batch, trainer.ref_model)
    agrees(model, dpo(**options, head=HEAD), batch, lambda: trainer._compute_loss(model, dict(collated), False))


def test_figures_of_pairs(dpo_trainer: Any) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    trainer, names = dpo_trainer, ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
                                   "logps/chosen", "logps/rejected")  # fmt: skip
    trainer.loss_types, trainer.loss_weights, trainer.beta = ["sigmoid"], [1.0], 0.1
    examples, batch = pairs(3)
    trainer._metrics["eval"].clear()
    trainer._compute_loss(trainer.model.eval(), dict(DataCollatorForPreference(pad_token_id=0)(examples)), False)
    measured = dpo(head=HEAD)(trainer.model, with_reference(batch, trainer.ref_model))
    for name in names:
        assert measured.sums[name].item() / 3 == pytest.approx(trainer._metrics["eval"][name][-1], rel=1e-4), name
    assert measured.sums["lengths/chosen"].item() == 5 + 7 + 9


@pytest.mark.parametrize("loss_type", ["simpo", "sigmoid"])
def test_simpo_and_smoothed_sigmoid(loss_type: str) -> None:
    """TRL has both in its CPO trainer, as a function of two columns of scores."""
    from trl.experimental.cpo import CPOTrainer

    options = {"beta": 2.0, **({"gamma": 0.8} if loss_type == "simpo" else {"label_smoothing": 0.2})}
    trainer = SimpleNamespace(
        alpha=0.0, accelerator=SimpleNamespace(device="cpu"), loss_type=loss_type, beta=2.0, simpo_gamma=0.8,
        label_smoothing=options.get("label_smoothing", 0.0),
    )  # fmt: skip
    scores = torch.randn(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    oracle, *_ = CPOTrainer.cpo_loss(trainer, *scores)
    torch.testing.assert_close(Preference(loss_type, **options).pair_losses(*scores), oracle)
