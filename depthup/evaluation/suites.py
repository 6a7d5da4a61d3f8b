"""What is asked: the tasks of each suite and what each profile does, as literal tables. No torch, no harness.

The six tasks are those of the Open LLM Leaderboard, version 1; H6 is their plain mean (SOLAR 10.7B, section 4.1,
arXiv:2312.15166). A profile says in whose words they are asked; scores of two profiles are never compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import RecipeError, nearest

Measure = Literal["score", "bits_per_byte"]


@dataclass(frozen=True)
class TaskSpec:
    """One of the tasks that depthup knows by name; any other name is looked up among lm-eval's own.

    Attributes:
        name: Its name in lm-eval.
        stock: The file of lm-eval that defines it, inside ``lm_eval/tasks``; ``{subject}`` stands for each subject.
        num_fewshot: Worked examples before each question.
        shots: The split that they are drawn from; empty where there are none.
        metric: What is reported under ``harness-0.4``, as lm-eval names it: metric, then its filter if it has one.
        metric_v1: What is reported under ``leaderboard-v1``.
        num_items: Items of the whole benchmark.
        cloze: The file that asks for the answer's own words, where the task itself asks for a letter: what is measured
            in bits per byte.
    """

    name: str
    stock: str
    num_fewshot: int
    shots: str
    metric: str
    metric_v1: str
    num_items: int
    cloze: str = ""


@dataclass(frozen=True)
class Suite:
    """Tasks that are asked together.

    Attributes:
        name: Its name on the command line.
        tasks: Names of tasks, in the order of the table of scores.
        about: One line for help and reports.
        sample: Items of each task that are drawn; empty for all.
        measure: What each item leaves: the metric of its task, or the bits per byte of its gold answer.
    """

    name: str
    tasks: tuple[str, ...]
    about: str
    sample: Mapping[str, int] = field(default_factory=dict)
    measure: Measure = "score"


@dataclass(frozen=True)
class Profile:
    """Whose prompts, examples and metrics: ``version`` is stated with every score."""

    name: str
    version: str
    about: str


TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in (
    TaskSpec("arc_challenge", "arc/arc_challenge.yaml", 25, "train", "acc_norm", "acc_norm", 1_172),
    TaskSpec("hellaswag", "hellaswag/hellaswag.yaml", 10, "train", "acc_norm", "acc_norm", 10_042),
    TaskSpec("mmlu", "mmlu/default/mmlu_{subject}.yaml", 5, "dev", "acc", "acc", 14_042,
             cloze="mmlu/continuation/mmlu_{subject}.yaml"),
    TaskSpec("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", 0, "", "acc", "mc2", 817),
    TaskSpec("winogrande", "winogrande/default.yaml", 5, "train", "acc", "acc", 1_267),
    TaskSpec("gsm8k", "gsm8k/gsm8k.yaml", 5, "train", "exact_match,strict-match", "acc", 1_319),
)}  # fmt: skip
H6 = tuple(TASKS)

SUITES: dict[str, Suite] = {suite.name: suite for suite in (
    Suite("h6", H6, "the six tasks of the Open LLM Leaderboard v1, all items; their mean is H6"),
    Suite("quick", H6, "a seeded sample of the six: 100 items each, but two of each subject of MMLU and 50 of GSM8K",
          sample={"arc_challenge": 100, "hellaswag": 100, "mmlu": 114, "truthfulqa_mc2": 100, "winogrande": 100,
                  "gsm8k": 50}),
    Suite("bpb", H6, "bits per byte of the gold answers of the same items, for models too small for accuracy",
          measure="bits_per_byte"),
)}  # fmt: skip

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (
    Profile("harness-0.4", "lm-eval 0.4.13", "lm-eval's tasks as they are now: its prompts, draws and metrics"),
    Profile("leaderboard-v1", "lm-eval b281b09 (June 2023)", "the Open LLM Leaderboard v1: what the paper reports"),
)}  # fmt: skip

MMLU_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip


def find_suite(name: str) -> Suite:
    """The suite of this name.

    Raises:
        RecipeError: There is none.
    """
    if name not in SUITES:
        raise RecipeError(
            f"unknown suite '{name}'{nearest(name, SUITES)}",
            allowed=", ".join(SUITES),
            next_step="name single tasks with --tasks",
        )
    return SUITES[name]


def find_profile(name: str) -> Profile:
    """The profile of this name.

    Raises:
        RecipeError: There is none.
    """
    if name not in PROFILES:
        raise RecipeError(f"unknown profile '{name}'{nearest(name, PROFILES)}", allowed=", ".join(PROFILES))
    return PROFILES[name]


def suite_of_tasks(names: str | tuple[str, ...] | list[str]) -> Suite:
    """Tasks by name, as ``--tasks arc_challenge,gsm8k`` gives them, in a suite of their own."""
    listed = names.split(",") if isinstance(names, str) else names
    tasks = tuple(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not tasks:
        raise RecipeError("no task is named", allowed=f"{', '.join(TASKS)}, or any task of lm-eval")
    return Suite("tasks", tasks, "tasks by name")
