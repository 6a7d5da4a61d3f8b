"""The paper's tables as they are kept, what its conclusions are worth, and the page that says so."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from depthup.evaluation import paper_tables
from depthup.evaluation.paper_merges import paper_merges
from depthup.evaluation.paper_tables import CLAIMS, SCORES, TASKS, Claim, difference_and_error, findings
from depthup.report.noise_page import noise_figure, noise_page

DOCS = Path(__file__).parents[2] / "docs"
MEANS = {
    "SOLAR-Instruct": 74.20, "Qwen 72B": 73.60, "Mixtral-Instruct": 72.62, "Yi 34B": 69.42, "SOLAR": 66.04,
    "Qwen 14B": 65.86, "Mistral 7B": 60.97, "SFT v1": 69.15, "SFT v2": 69.21, "SFT v3": 70.03, "SFT v4": 70.88,
    "SFT v3+v4": 71.11, "DPO v1": 73.06, "DPO v2": 73.42, "DPO v1+v2": 73.21, "DPO v3": 73.58, "Cand. 1": 73.73,
    "Cand. 2": 73.28, "Merge v1": 74.00, "Merge v2": 73.93, "Merge v3": 74.05, "Merge v4": 73.96,
}  # fmt: skip


def test_scores_have_the_means_that_the_paper_prints() -> None:
    assert MEANS.keys() == SCORES.keys()
    for model, mean in MEANS.items():
        assert paper_tables.mean_score(model) == pytest.approx(mean, abs=0.012), model


def test_errors_are_those_that_the_harness_logged() -> None:
    """Of SOLAR-Instruct, in Upstage's Evalverse repository (reference/paper.md 4.1)."""
    logged = dict(zip(TASKS, (1.32, 0.32, 0.38, 1.50, 1.05, 1.29), strict=True))
    for (task, error), points in zip(logged.items(), SCORES["SOLAR-Instruct"], strict=True):
        assert paper_tables.standard_error(task, points) == pytest.approx(error, abs=0.035)
    same = Claim(0, "", "SOLAR-Instruct", "SOLAR-Instruct")
    assert difference_and_error(same, 0.5) == pytest.approx((0, 0.44), abs=0.005)
    assert difference_and_error(same, 0.0)[1] == pytest.approx(0.62, abs=0.01)


def test_no_pairing_brings_the_error_below_its_floor() -> None:
    """Items that all change one way: the smallest error that a difference of this size can have."""
    claim = Claim(3, "", "SFT v1", "SFT v4", "GSM8K")
    difference, error = difference_and_error(claim, 1.0)
    moved = np.zeros(1319)
    moved[: round(13.19 * difference)] = 1
    assert error == pytest.approx(100 * moved.std() / math.sqrt(1319), rel=0.01)
    assert difference_and_error(claim, 0.3)[1] > error


def test_what_the_page_says_on_top_is_what_was_found() -> None:
    by_verdict: dict[str, list[str]] = {}
    for one in findings():
        by_verdict.setdefault(one.verdict, []).append(f"{one.claim.before} > {one.claim.after} {one.claim.task}")
    assert by_verdict == {
        "stands": [
            "Mistral 7B > SOLAR H6", "Mistral 7B > SOLAR GSM8K", "SOLAR > SOLAR-Instruct H6", "SFT v1 > SFT v4 GSM8K",
            "SFT v2 > SFT v3 GSM8K", "SFT v3 > DPO v1 H6", "SFT v3 > DPO v1 TruthfulQA", "Cand. 2 > Cand. 1 GSM8K",
        ],
        "likely": [
            "Mixtral-Instruct > SOLAR-Instruct H6", "SFT v1 > SFT v2 GSM8K", "SFT v1 > SFT v4 H6",
            "SFT v3 > DPO v1 ARC", "SFT v3 > DPO v1 GSM8K",
        ],
        "open": [
            "SFT v1 > SFT v2 ARC", "SFT v2 > SFT v3 H6", "SFT v3 > SFT v4 H6", "SFT v3 > SFT v3+v4 H6",
            "DPO v2 > DPO v3 GSM8K", "Cand. 2 > Merge v1 H6",
        ],
        "noise": [
            "Qwen 72B > SOLAR-Instruct H6", "SFT v4 > SFT v3+v4 H6", "DPO v1 > DPO v2 H6", "DPO v1 > DPO v2 GSM8K",
            "Cand. 2 > Cand. 1 H6", "Cand. 2 > Cand. 1 TruthfulQA", "Cand. 1 > Merge v1 H6",
        ],
        "not contradicted": [
            "Qwen 14B > SOLAR H6", "SFT v1 > SFT v2 H6", "DPO v2 > DPO v1+v2 H6", "DPO v2 > DPO v3 H6",
            "Merge v2 > Merge v3 H6", "Merge v1 > Merge v4 H6",
        ],
    }  # fmt: skip


def test_more_correlation_makes_a_finding_clearer() -> None:
    for one in findings((0.0, 0.3, 0.6, 0.9)):
        assert list(one.margins) == sorted(one.margins, reverse=True)
        assert all(high >= low - 1e-12 for high, low in zip(one.adjusted_p, one.adjusted_p[1:], strict=False))


def test_page_and_figure_in_the_docs_are_current() -> None:
    page = noise_page()
    assert (DOCS / "noise.md").read_text(encoding="utf-8") == page
    assert (DOCS / "noise-h6.svg").read_text(encoding="utf-8") == noise_figure()
    assert len(re.findall(r"^\| .* \| \*\*[a-z ]+\*\* \|$", page, re.MULTILINE)) == len(CLAIMS)
    root = ElementTree.fromstring(noise_figure())
    assert len([node for node in root.iter() if node.tag.endswith("}title")]) == 1 + sum(c.task == "H6" for c in CLAIMS)


def test_merges_of_the_paper_by_the_strengths_of_their_candidates() -> None:
    """What the page says below its table of merges; leads and means by the paper's own rows (Tables 3, 4, 6, 7)."""
    sft, dpo, *candidates = paper_merges()
    assert all(lead < 0 for lead in sft.leads) and sft.room == pytest.approx(0) and sft.p_values == (1, 1, 1)
    assert sft.over_better == pytest.approx(MEANS["SFT v3+v4"] - MEANS["SFT v4"], abs=0.02)
    assert 0 < dpo.room < 0.15 and min(dpo.p_values) > 0.25 and dpo.over_better < 0 > dpo.over_mean
    for one in candidates:
        assert [lead > 0 for lead in one.leads] == [False] * 5 + [True]
        best = (71.59 + 88.39 + 66.14 + 72.50 + 81.99 + 66.57) / 6
        assert one.room == pytest.approx(best - MEANS["Cand. 1"], abs=0.01)
        assert one.p_values[0] > 0.05 > one.p_values[1] > one.p_values[2]
        assert 0 < one.over_better < 0.35 and 0.4 < one.kept < 0.6
    assert sorted(one.num_over_mean for one in candidates) == [4, 6, 6, 6]
    v1 = candidates[0]
    mean = (MEANS["Cand. 1"] + MEANS["Cand. 2"]) / 2
    assert v1.over_mean == pytest.approx(MEANS["Merge v1"] - mean, abs=0.02)
    assert v1.kept == pytest.approx((MEANS["Merge v1"] - mean) / (best - mean), abs=0.02)
