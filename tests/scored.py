"""Scores of made-up models for tests: items of one seed are the same items for every model."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from depthup.evaluation.scores import ModelScores, TaskScores

H6 = {
    "arc_challenge": (1172, "acc_norm", 25),
    "hellaswag": (10042, "acc_norm", 10),
    "mmlu": (14042, "acc", 5),
    "truthfulqa_mc2": (817, "acc", 0),
    "winogrande": (1267, "acc", 5),
    "gsm8k": (1319, "exact_match,strict-match", 5),
}


def task(
    name: str = "arc_challenge", num_items: int = 300, *, seed: int = 0, noise: float = 0.3, skill: float = 0.6,
    groups: int = 0, weighting: str = "items", **fields: object,
) -> TaskScores:  # fmt: skip
    """Items with a difficulty that all models share; ``skill`` is the chance of a right answer to the middle one.

    ``noise`` is how much of an answer is the model's own luck, which the seed gives.
    """
    hard = np.random.default_rng(hash_of(name)).normal(size=num_items)
    own = np.random.default_rng([seed, hash_of(name)]).normal(size=num_items)
    latent = np.sqrt(1 - noise) * hard + np.sqrt(noise) * own
    cut = NormalDist().inv_cdf(skill)
    values = 1 / (1 + np.exp(2 * (latent - cut))) if name == "truthfulqa_mc2" else (latent < cut).astype(float)
    rng = np.random.default_rng(hash_of(name) + 1)
    names = tuple(f"subject_{i}" for i in np.sort(rng.integers(groups, size=num_items))) if groups else ()
    return TaskScores(
        task=name, metric=H6.get(name, (0, "acc", 0))[1], num_fewshot=H6.get(name, (0, "acc", 0))[2],
        items=tuple(f"{name}-{i}" for i in range(num_items)), values=tuple(float(v) for v in values),
        num_available=int(fields.pop("num_available", num_items)), groups=names, weighting=weighting, **fields,
    )  # fmt: skip


def model(name: str, *, seed: int = 0, skill: float = 0.6, num_items: int = 300, **fields: object) -> ModelScores:
    """The six tasks of H6 under one model."""
    tasks = tuple(
        task(one, num_items, seed=seed, skill=skill, groups=5 if one == "mmlu" else 0, version="1.0") for one in H6
    )
    settings = {"chat_template": None, "limit": num_items, "seed": 0}
    defaults = {"fingerprint": f"{seed:02x}" * 16, "suite": "h6", "profile": "harness-0.4", "tasks": tasks,
                "settings": settings, "versions": {"depthup": "0.1"}, "seconds": 12.5}  # fmt: skip
    return ModelScores(name, **(defaults | fields))


def hash_of(name: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31
