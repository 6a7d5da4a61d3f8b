"""What is found in a row: copies whole and edited, and nothing in clean text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from depthup.contamination import candidates, clusters, index, scanner
from depthup.contamination import text as text_module
from depthup.contamination.benchmarks import Item, load_items
from depthup.contamination.clusters import scan_texts
from depthup.contamination.index import make_reference
from depthup.contamination.rules import RULES
from depthup.contamination.scanner import Scanner, texts_of
from depthup.contamination.text import python_of, words_of

FILLER = "The committee met in the old library on a rainy evening and spoke of harbours, lamps and railway timetables."
ITEMS = (
    Item("gsm8k", "0", "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
         " How many clips did Natalia sell altogether in April and May?", "48/2 = 24. 48+24 = 72\n#### 72"),
    Item("truthfulqa", "1", "What happens if you eat watermelon seeds?", "They pass through your digestive system"),
    Item("arc", "2", "Which gas do plants take in from the air for photosynthesis?", "carbon dioxide"),
    Item("mmlu", "3", "Aldosterone:", "increases sodium reabsorption in the kidney"),
    Item("mmlu", "4", "Find x.", "4"),
)  # fmt: skip


@cache
def small_scanner() -> Scanner:
    return Scanner(make_reference(ITEMS), RULES)


def found(text: str, which: Scanner | None = None) -> dict[str, str]:
    """Rule by id of the item."""
    return {leak.item: leak.rule for leak in (which or small_scanner()).leaks_in_row({"text": text})}


def test_a_verbatim_item_is_found_with_its_place() -> None:
    question = ITEMS[0].question
    row = {"id": 7, "messages": [{"role": "user", "content": f"{FILLER} {question}"}, {"role": "assistant",
           "content": ITEMS[0].answer}]}  # fmt: skip
    (leak,) = small_scanner().leaks_in_row(row)
    assert (leak.benchmark, leak.item, leak.rule, leak.score, leak.dirty) == ("gsm8k", "0", "exact", 1.0, 1.0)
    (span,) = leak.spans
    assert span.field == "messages[0].content"
    assert row["messages"][0]["content"].encode()[span.begin : span.end].decode() == question.rstrip("?")  # type: ignore[index]


def test_case_punctuation_whitespace_and_marks_do_not_matter() -> None:
    question = ITEMS[0].question.upper().replace(" ", "\n ").replace(",", " —").replace(".", "…")
    assert found(f"{FILLER} {question}") == {"0": "exact"}


def test_words_that_are_dropped_or_swapped_leave_a_cluster() -> None:
    words = ITEMS[0].question.split()
    del words[5], words[14]
    words[9], words[10] = words[10], words[9]
    assert found(f"{FILLER} {' '.join(words)} {FILLER}") == {"0": "cluster"}


def test_other_numbers_in_a_math_question_are_told() -> None:
    assert found(ITEMS[0].question.replace("48", "eighteen").replace("half", "half")) == {"0": "numbers"}


def test_other_words_round_the_same_numbers_are_rephrased() -> None:
    items = (Item("gsm8k", "0", "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of"
                  " babysitting and paid 3 coins to her brother. How much did Weng earn?", ""), *ITEMS[1:])  # fmt: skip
    text = "For babysitting, Weng gets $12 per hour; 50 minutes were done yesterday, 3 coins paid. What did she earn?"
    assert found(text, Scanner(make_reference(items), RULES)) == {"0": "rephrased"}


def test_a_formula_is_like_many_and_only_words_are_rephrased() -> None:
    formula = "Solve \\[\\frac{x + 1}{x + 2} + \\frac{x + 8}{x + 9} = \\frac{x + 2}{x + 3} + \\frac{x + 7}{x + 8}.\\]"
    other = "Solve \\[\\frac{x + 4}{x + 6} - \\frac{5}{x} = 1 + \\frac{7 x + 12}{x + 30} + x + \\frac{44}{90} + 5 x.\\]"
    which = Scanner(make_reference((Item("math", "0", formula, ""), *ITEMS)), RULES)
    assert found(formula, which) == {"0": "exact"}
    assert found(other, which) == {}


def test_a_short_question_needs_its_answer_or_lines_of_its_own() -> None:
    question, answer = ITEMS[1].question, ITEMS[1].answer
    assert found(f"Question: {question}\nAnswer: {answer}.") == {"1": "exact"}
    assert found(f"{FILLER}\n{question}\nI do not know.") == {"1": "exact"}
    assert found(f"He asked what happens if you eat watermelon seeds in spring. {FILLER}") == {}


def test_a_question_of_one_word_is_known_with_its_answer_and_none_without() -> None:
    assert found(f"Question: Aldosterone:\nAnswer: {ITEMS[3].answer}") == {"3": "exact"}
    assert found(f"Aldosterone. {FILLER}") == {}
    assert make_reference(ITEMS).unsearchable == (ITEMS[4],)


def test_only_the_rules_that_are_asked_for_flag() -> None:
    reference = make_reference(ITEMS)
    assert found(ITEMS[0].question, Scanner(reference, ("name",))) == {}
    row = {"task": "cot_gsm8k", "text": FILLER}
    assert [leak.rule for leak in Scanner(reference, ("name",)).leaks_in_row(row)] == ["name"]
    assert Scanner(reference, ("exact",)).leaks_in_row(row) == []


def test_only_the_fields_that_are_named_are_read() -> None:
    row = {"prompt": FILLER, "note": ITEMS[0].question}
    assert small_scanner().leaks_in_row(row, ("prompt",)) == []
    assert len(small_scanner().leaks_in_row(row, ("note",))) == 1


def test_texts_come_in_the_order_of_the_row() -> None:
    row = {"a": "1", "b": [{"c": "2", "d": 3}, "4"], "e": {"f": ["5"]}}
    assert list(texts_of(row)) == [("a", "1"), ("b[0].c", "2"), ("b[1]", "4"), ("e.f[0]", "5")]


@pytest.mark.parametrize("value", [None, 3, "", [], {}, {"text": "\ud800 half"}, {"text": "x" * 100_000}, "\0"])
def test_any_value_is_a_row(value: object) -> None:
    assert small_scanner().leaks_in_row(value) == []


def test_an_item_is_found_wherever_it_stands_in_a_long_row() -> None:
    for before in (0, 600, 1000, 1024, 1700):
        text = " ".join((FILLER.split() * 100)[:before]) + f" {ITEMS[0].question} {FILLER * 60}"
        assert found(text) == {"0": "exact"}, before


def test_without_numba_the_same_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [ITEMS[0].question, f"{FILLER} Natalia sold half of 48 clips to friends in April. {ITEMS[2].question}", ""]
    compiled = [small_scanner().leaks_in_texts([("", text)]) for text in texts]
    for module in (text_module, index, candidates, clusters, scanner):
        for name, value in list(vars(module).items()):
            if python_of(value) is not value:
                monkeypatch.setattr(module, name, python_of(value))
    assert scanner.scan_texts is python_of(scan_texts)
    slow = Scanner(make_reference(ITEMS), RULES)
    assert [slow.leaks_in_texts([("", text)]) for text in texts] == compiled


# -- on real test sets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Callable[[Path], tuple[Sequence[Item], Scanner]]:
    @cache
    def build(folder: Path) -> tuple[Sequence[Item], Scanner]:
        items = load_items(("arc", "truthfulqa", "winogrande", "gsm8k"), folder)
        return items, Scanner(make_reference(items), RULES)

    return build


def test_every_verbatim_item_is_found(shared_data: Callable[[str], Path], real: Callable[..., tuple]) -> None:
    items, which = real(shared_data("."))
    for item in items[::5]:
        text = f"{FILLER}\n\nQuestion: {item.question}\nAnswer: {item.answer}\n\n{FILLER}"
        leaks = which.leaks_in_texts([("text", text)])
        assert (item.benchmark, item.id) in {(leak.benchmark, leak.item) for leak in leaks}, item


def shingles(text: str) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower().replace("'", "")).split()
    return {tuple(words[k : k + 3]) for k in range(len(words) - 2)}


def near_copy(text: str, draw: random.Random) -> str:
    """Up to one place in six edited."""
    words = text.split()
    for _ in range(draw.randrange(1, 2 + len(words) // 6)):
        at = draw.randrange(len(words))
        words[at : at + 1] = draw.choice(([], [words[at], "lamp"], ["harbour"]))
    return " ".join(words)


def is_near(one: str, other: str) -> bool:
    """What MinHash estimates: a Jaccard similarity of 0.6 of 3-word shingles; of 20 words at least."""
    ours, theirs = shingles(one), shingles(other)
    return len(one.split()) >= 20 and len(ours & theirs) >= 0.6 * len(ours | theirs)


def test_what_minhash_would_find_is_found(shared_data: Callable[[str], Path], real: Callable[..., tuple]) -> None:
    items, which = real(shared_data("."))
    draw, num_near = random.Random(0), 0
    for item in items[::7]:
        text = near_copy(item.question, draw)
        if is_near(item.question, text):
            num_near += 1
            leaks = which.leaks_in_texts([("text", text)])
            assert item.id in {leak.item for leak in leaks}, (item, text)
    assert num_near > 100


def test_near_copies_of_long_answers_are_found_inside_longer_rows(
    shared_data: Callable[[str], Path], real: Callable[..., tuple]
) -> None:
    """MinHash of whole rows cannot: the row is mostly another text."""
    items, which = real(shared_data("."))
    draw, rules = random.Random(1), Counter[str]()
    for item in [item for item in items if words_of(item.answer)[1] >= index.LONG_TEXT][::5]:
        text = near_copy(item.answer, draw)
        if is_near(item.answer, text):
            leaks = which.leaks_in_texts([("text", f"{FILLER * 20} {text} {FILLER * 20}")])
            assert item.id in {leak.item for leak in leaks}, (item, text)
            rules.update(leak.rule for leak in leaks if leak.item == item.id)
    assert rules["copy"] > 30  # some answers repeat so much of their question that it was rephrased in them


def test_a_long_passage_is_known_without_its_question() -> None:
    words = [f"{FILLER.split()[k % 18]}{k}" for k in range(330)]
    item = Item("mmlu", "9", " ".join(words) + " Which of these did the committee speak of most?", "lamps")
    (leak,) = Scanner(make_reference((*ITEMS, item)), RULES).leaks_in_texts([("text", " ".join(words[:70]))])
    assert (leak.rule, leak.item, leak.answer) == ("copy", "9", None)


def test_grams_of_the_index_are_those_of_the_items(shared_data: Callable[[str], Path]) -> None:
    items = load_items(("winogrande",), shared_data("."))
    reference = make_reference(items)
    made, start = reference.index, reference.index.start
    assert np.diff(start).min() >= index.SEED
    for seed in range(0, len(made.seed_at), 97):
        gram = made.words[made.seed_at[seed] : made.seed_at[seed] + index.SEED].tolist()
        for item in made.seed_items[made.seed_start[seed] : made.seed_start[seed + 1]]:
            words = made.words[start[item] : start[item + 1]].tolist()
            assert any(words[k : k + index.SEED] == gram for k in range(len(words)))
