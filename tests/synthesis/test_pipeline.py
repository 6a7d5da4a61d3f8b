"""The whole way from seeds to rows: what is planted is what is found, and no stop changes a byte."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from generation.faulty import Faulty, serving
from synthesis.planted import Planted, Stop, files, lines, run

from depthup.cli import main
from depthup.data.conversations import read_conversations
from depthup.data.sources import Files
from depthup.errors import DataError, OutputError
from depthup.generation.backend import Failure, Generated, Sampling, Unanswered
from depthup.generation.limits import Budget, Limits
from depthup.generation.mock import MockBackend
from depthup.generation.server import ServerBackend
from depthup.synthesis import store as store_module
from depthup.synthesis.asking import FactoryAsker
from depthup.synthesis.pipeline import BudgetStop, estimate, read_rows, synthesize
from depthup.synthesis.problems import make_problems
from depthup.synthesis.seeds import Seed
from depthup.synthesis.settings import Quota, Settings
from depthup.synthesis.verify import Verifier

SETTINGS = Settings(
    {"answer": Quota(3, 3), "rephrase": Quota(1, 1), "self-verification": Quota(1, 1), "fobar": Quota(1, 1)},
    num_samples=3, seeds_per_group=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    """Seeds of which the offline factory makes rows without a single fault, save that quotas are full."""
    made = make_problems(45, seed=7)
    out = tmp_path_factory.mktemp("clean")
    run(made, FactoryAsker(), out, SETTINGS)
    faulty = {row["lineage"]["seed"] for row in lines(out / "rejected.jsonl") if row["reason"] != "quota"}
    kinds: dict[str, set[str]] = {}
    for row in read_rows(out):
        kinds.setdefault(row["lineage"]["seed"], set()).add(row["lineage"]["kind"])
    found = [seed for seed in made if seed.id not in faulty and len(kinds.get(seed.id, ())) == 4]
    assert len(found) >= 14
    return found[:14]


def wrong(text: str) -> str:
    return re.sub(r"is: (\S+)$", "is: 987654321", text)


def one_digit_more(text: str) -> str:
    return re.sub(r"(\d+)", r"\g<1>7", text, count=1)


def test_exactly_what_is_planted_is_rejected_and_for_its_reason(seeds: list[Seed], tmp_path: Path) -> None:
    names = [seed.id for seed in seeds]
    questions = {seed.id: seed.question for seed in seeds}
    plan = {
        (names[0], "answer", 0): (wrong, "answer", "wrong answer"),
        (names[1], "answer", 1): (lambda text: "That is hard. It may be 5 or 6", "answer", "no answer"),
        (names[2], "answer", 2): (lambda text: text.splitlines()[0], "answer", "no answer"),
        (names[3], "rephrase", 0): (lambda text: questions[names[3]].upper(), "rephrase", "echo"),
        (names[4], "rephrase", 0): (one_digit_more, "rephrase", "numbers changed"),
        (names[5], "rephrase", 0): (lambda text: f"{text} The code word is LEAK.", "rephrase", "contaminated"),
        (names[6], "rephrase", 0): (lambda text: f"{questions[names[6]]} Think!", "rephrase", "near-duplicate"),
        (names[7], "rephrase", 0): (lambda text: " ", "rephrase", "empty"),
        (names[8], "answer*", 0): (wrong, "rephrase", "wrong answer"),
        (names[9], "statement", 0): (lambda text: "How many are there?", "self-verification", "statement unfaithful"),
        (names[10], "backward", 1): (wrong, None, "wrong answer"),  # in both kinds of backward questions
        (names[11], "answer*", 0): (wrong, "rephrase", "wrong answer"),
        (names[11], "answer*", 1): (wrong, "rephrase", "wrong answer"),
    }
    asker = Planted({place: fault for place, (fault, _, _) in plan.items()})

    def gate(text: str) -> str | None:
        return "some benchmark" if "LEAK" in text else None

    run(seeds, asker, tmp_path / "planted", SETTINGS, gate=gate, gate_name="code word")
    assert {place[:2] for place in asker.planted} == {place[:2] for place in plan}
    rejected = [row for row in lines(tmp_path / "planted" / "rejected.jsonl") if row["reason"] != "quota"]
    found = {(row["lineage"]["seed"], row["lineage"]["kind"], row["reason"]) for row in rejected}
    expected = {(seed, kind, reason) for (seed, _, _), (_, kind, reason) in plan.items() if kind}
    expected |= {(names[10], kind, "wrong answer") for kind in ("self-verification", "fobar")}
    expected.add((names[11], "rephrase", "low agreement"))  # its one right solution is outvoted by two that agree
    assert found == expected
    assert all(
        row["lineage"]["verdict"]["answer"] == "987654321" for row in rejected if row["reason"] == "wrong answer"
    )

    run(seeds, FactoryAsker(), tmp_path / "clean", SETTINGS, gate=gate, gate_name="code word")
    clean = {row["id"]: row for row in read_rows(tmp_path / "clean")}
    kept = {row["id"]: row for row in read_rows(tmp_path / "planted")}
    lost = {(clean[name]["lineage"]["seed"], clean[name]["lineage"]["kind"]) for name in clean.keys() - kept.keys()}
    harmed = {(seed, kind) for seed, kind, _ in expected}
    assert lost <= harmed and {key for key in harmed if key[1] == "answer"} <= lost
    assert all("LEAK" not in row["prompt"] + row["response"] for row in kept.values())
    assert (names[8], "rephrase") in {(row["lineage"]["seed"], row["lineage"]["kind"]) for row in kept.values()}


def test_every_row_is_right_readable_and_tells_where_it_is_from(seeds: list[Seed], tmp_path: Path) -> None:
    run(seeds, FactoryAsker(), tmp_path / "out", SETTINGS)
    rows = list(read_rows(tmp_path / "out"))
    gold = {seed.id: seed.answer for seed in seeds}
    assert len({row["id"] for row in rows}) == len(rows) >= 5 * len(seeds)
    for row in rows:
        facts = row["lineage"]
        assert facts["verdict"]["equal"] and facts["verdict"]["method"] == "exact"
        assert facts["made_by"] == "factory" and facts["seed_factory"] and facts["licence"] == "Apache-2.0"
        assert set(facts["prompts"]) and all(len(digest) == 16 for digest in facts["prompts"].values())
        assert len(facts["requests"]) == len(facts["prompts"]) and facts["votes"]["num_samples"] == 3
        if facts["kind"] in ("answer", "rephrase"):
            assert row["response"].splitlines()[-1] == f"The answer is: {gold[facts['seed']]}"
        else:
            assert row["response"].splitlines()[-1].startswith(f"The value of {facts['unknown']['letter']} is: ")
    read = list(read_conversations(Files((str(tmp_path / "out" / "rows-00000.jsonl"),))))
    assert [tuple(message.content for message in one.messages) for one in read] == [
        (row["prompt"], row["response"]) for row in rows
    ]


def test_quotas_hold_for_a_seed_and_in_all(seeds: list[Seed], tmp_path: Path) -> None:
    quotas = Settings(
        {"answer": Quota(3, 1), "rephrase": Quota(3, 2, total=5), "fobar": Quota(2, 1)}, seeds_per_group=4
    )
    manifest = run(seeds, FactoryAsker(), tmp_path / "out", quotas)
    kept = manifest["statistics"]["kept"]
    assert kept["answer"] <= len(seeds) and kept["rephrase"] == 5 and "self-verification" not in kept
    counts: dict[tuple[str, str], int] = {}
    for row in read_rows(tmp_path / "out"):
        key = (row["lineage"]["seed"], row["lineage"]["kind"])
        counts[key] = counts.get(key, 0) + 1
    assert all(count <= quotas.quotas[kind].kept for (_, kind), count in counts.items())  # type: ignore[index]


def test_stopped_at_any_write_it_goes_on_to_the_same_bytes(
    seeds: list[Seed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Planted({(seeds[1].id, "answer", 0): wrong})
    run(seeds, planted, tmp_path / "record", SETTINGS)
    backend = planted.backend()
    small = Settings(SETTINGS.quotas, num_samples=3, seeds_per_group=4, rows_per_file=25)
    run(seeds, backend, tmp_path / "whole", small)
    expected = files(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("rows-")]) > 2
    steps = 0
    real = os.fsync

    def stopping(descriptor: int) -> None:
        nonlocal steps
        steps += 1
        if steps == limit:
            raise Stop
        real(descriptor)

    for limit in range(1, 12):
        out, steps = tmp_path / f"stopped-{limit}", 0
        with monkeypatch.context() as patch:
            patch.setattr(store_module.os, "fsync", stopping)
            with pytest.raises(Stop):
                run(seeds, backend, out, small)
        with open(out / "rows-00000.jsonl", "ab") as file:  # what a killed writer may have left
            file.write(b'{"id": "half a row')
        run(seeds, backend, out, small)
        assert files(out) == expected, limit


def test_stopped_while_asking_it_asks_nothing_twice(seeds: list[Seed], tmp_path: Path) -> None:
    planted = Planted()
    run(seeds, planted, tmp_path / "record", SETTINGS)
    whole, backend = planted.backend(), planted.backend()
    run(seeds, whole, tmp_path / "whole", SETTINGS)
    for backend.limit in (3, 40, 90):
        with pytest.raises(Stop):
            run(seeds, backend, tmp_path / "out", SETTINGS)
    backend.limit = 0
    run(seeds, backend, tmp_path / "out", SETTINGS)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert sorted(backend.asked) == sorted(set(whole.asked)) == sorted(whole.asked)
    before = (tmp_path / "out" / "journal.jsonl").read_bytes()
    run(seeds, backend, tmp_path / "out", SETTINGS)  # a complete run does nothing
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == before


def test_killed_for_good_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def command(out: Path) -> list[str]:
        made = ["synthesize", "math", "--seeds", "factory:80", "--backend", "factory", "--out", str(out)]
        return [sys.executable, "-m", "depthup", *made, "--group", "3", "--no-symbolic"]

    process = subprocess.Popen(command(tmp_path / "killed"), env=environment, stdout=-3, stderr=-3)
    manifest, limit = tmp_path / "killed" / "manifest.json", time.monotonic() + 60
    while not manifest.exists() and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not json.loads(manifest.read_text())["complete"]
    for out in ("killed", "whole"):
        subprocess.run(command(tmp_path / out), env=environment, check=True, capture_output=True)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as faulty:
        yield faulty


QUICK = Limits(concurrency=8, first_wait_s=0.005, max_wait_s=0.02, timeout_s=1.0)


def tell_truth(server: Faulty, planted: Planted) -> None:
    def reply(path: str, prompt: str, body: dict[str, object]) -> dict[str, object]:
        text = planted.table[prompt, int(str(body["seed"]))]
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        return {"model": "tiny", "choices": [{"text": text, "finish_reason": "stop"}], "usage": usage}

    server.answer = reply  # type: ignore[method-assign, assignment]


def test_a_server_that_errs_loses_nothing_and_doubles_nothing(
    seeds: list[Seed], tmp_path: Path, server: Faulty
) -> None:
    seeds = seeds[:6]
    planted = Planted()
    run(seeds, planted, tmp_path / "record", SETTINGS)
    tell_truth(server, planted)
    prompts = sorted({prompt for prompt, _ in planted.table})
    for number, fault in enumerate(("429", "500", "cut", "reset", "no json", "no choices", "no text", "429 after")):
        server.faults[prompts[2 * number]] = [fault]
        server.faults[prompts[2 * number + 1]] = [fault, "500"]
    run(seeds, ServerBackend(server.url, "tiny", limits=QUICK), tmp_path / "erring", SETTINGS)
    run(seeds, planted.backend(), tmp_path / "mock", SETTINGS)

    def texts(folder: str) -> list[tuple[str, str]]:
        return [(row["prompt"], row["response"]) for row in read_rows(tmp_path / folder)]

    assert texts("erring") == texts("mock") == texts("record")
    assert server.answered.total() == len(planted.table)  # each request was answered once, and not lost
    assert not (tmp_path / "erring" / "failed.jsonl").exists()


def test_dead_letters_are_kept_and_the_rest_goes_on(seeds: list[Seed], tmp_path: Path, server: Faulty) -> None:
    seeds = seeds[:6]
    planted = Planted()
    run(seeds, planted, tmp_path / "record", SETTINGS)
    tell_truth(server, planted)
    dead = next(prompt for prompt, _ in planted.table if prompt.rstrip().endswith(f"{seeds[2].question}\nSolution:"))
    server.faults[dead] = ["400"] * 20
    manifest = run(seeds, ServerBackend(server.url, "tiny", limits=QUICK), tmp_path / "out", SETTINGS)
    failed = lines(tmp_path / "out" / "failed.jsonl")
    assert {(row["lineage"]["seed"], row["step"]) for row in failed} == {(seeds[2].id, "answer")} and len(failed) == 3
    assert all("too long" in row["reason"] and row["attempts"] == 1 for row in failed)
    assert manifest["statistics"]["failed"] == {"answer": 3}
    recorded = [row["prompt"] for row in read_rows(tmp_path / "record")]
    assert [row["prompt"] for row in read_rows(tmp_path / "out")] == [
        prompt for prompt in recorded if prompt != seeds[2].question
    ]


def test_a_budget_stops_the_run_and_a_larger_one_ends_it(seeds: list[Seed], tmp_path: Path, server: Faulty) -> None:
    seeds = seeds[:6]
    planted = Planted()
    run(seeds, planted, tmp_path / "record", SETTINGS)
    tell_truth(server, planted)
    whole = ServerBackend(server.url, "tiny", limits=QUICK)
    run(seeds, whole, tmp_path / "whole", SETTINGS)
    most = int(0.8 * whole.spent.tokens)  # the first group takes two thirds
    backend = ServerBackend(server.url, "tiny", limits=QUICK, budget=Budget(max_tokens=most))
    with pytest.raises(BudgetStop, match="larger budget"):
        run(seeds, backend, tmp_path / "out", SETTINGS)
    assert backend.spent.tokens <= most
    done = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert done["groups"] == 1 and not done["complete"]
    run(seeds, ServerBackend(server.url, "tiny", limits=QUICK), tmp_path / "out", SETTINGS)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert server.answered.total() == 2 * len(planted.table)


def test_replies_in_any_order_give_the_same_bytes(seeds: list[Seed], tmp_path: Path) -> None:
    planted = Planted()
    run(seeds, planted, tmp_path / "record", SETTINGS)

    class Backwards:
        identity = "table"

        def generate(self, prompts, sampling, done=None):  # type: ignore[no-untyped-def]
            heard: list[tuple[int, Generated]] = []
            texts = planted.backend().generate(prompts, sampling, lambda *each: heard.append(each))
            for index, answer in reversed(heard):
                done(index, answer)
            return texts

    run(seeds, Backwards(), tmp_path / "backwards", SETTINGS)
    run(seeds, planted.backend(), tmp_path / "forwards", SETTINGS)
    assert files(tmp_path / "backwards") == files(tmp_path / "forwards")


def test_a_folder_of_other_settings_or_other_files_is_left_alone(seeds: list[Seed], tmp_path: Path) -> None:
    run(seeds[:4], FactoryAsker(), tmp_path / "out", SETTINGS)
    with pytest.raises(OutputError, match="seeds"):
        run(seeds[:5], FactoryAsker(), tmp_path / "out", SETTINGS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        run(seeds[:4], FactoryAsker(), tmp_path / "full", SETTINGS)
    with pytest.raises(DataError, match="one id"):
        run([seeds[0], seeds[0]], FactoryAsker(), tmp_path / "twice", SETTINGS)


def test_the_estimate_is_an_upper_bound_that_clean_seeds_reach(seeds: list[Seed], tmp_path: Path) -> None:
    planned = estimate(seeds, SETTINGS)
    manifest = run(seeds, FactoryAsker(), tmp_path / "out", SETTINGS)
    assert sum(planned.num_requests.values()) == manifest["statistics"]["requests"]


def test_what_failed_is_asked_again_on_request_and_nothing_else(seeds: list[Seed], tmp_path: Path) -> None:
    seeds = seeds[:6]
    planted = Planted()
    run(seeds, planted, tmp_path / "record", SETTINGS)

    class Moody:
        identity, moody, asked = "table", True, 0

        def generate(self, prompts, sampling, done=None):  # type: ignore[no-untyped-def]
            heard, failures = planted.backend(), []
            for index, (prompt, how) in enumerate(zip(prompts, sampling, strict=True)):
                self.asked += 1
                if self.moody and index % 5 == 0:
                    failures.append(Failure(index, "the server is down", 3))
                else:
                    heard.generate([prompt], how, lambda _, answer, place=index: done(place, answer))
            if failures:
                raise Unanswered(failures, len(prompts), "")
            return [""] * len(prompts)

    backend = Moody()
    run(seeds, planted.backend(), tmp_path / "whole", SETTINGS)
    manifest = run(seeds, backend, tmp_path / "out", SETTINGS)
    num_answers = len(lines(tmp_path / "out" / "journal.jsonl"))
    assert manifest["complete"] and sum(manifest["statistics"]["failed"].values())
    backend.moody, backend.asked = False, 0
    assert run(seeds, backend, tmp_path / "out", SETTINGS) == manifest and not backend.asked
    run(seeds, backend, tmp_path / "out", SETTINGS, retry_failed=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert backend.asked == len(planted.table) - num_answers  # what had an answer was not asked
    assert not (tmp_path / "out" / "failed.jsonl").exists()


def test_answers_compared_in_another_way_are_another_run(seeds: list[Seed], tmp_path: Path) -> None:
    run(seeds[:4], FactoryAsker(), tmp_path / "out", SETTINGS)
    with Verifier(seconds=3.0) as symbolic, pytest.raises(OutputError, match="another 'answers'"):
        synthesize(seeds[:4], FactoryAsker(), tmp_path / "out", SETTINGS, verifier=symbolic)


def test_the_named_mock_is_cut_off_only_by_its_limit() -> None:
    heard: list[Generated] = []
    mock = MockBackend(lambda prompt, how: "one two three")
    mock.generate(["a", "b"], [Sampling(3), Sampling(2)], lambda _, answer: heard.append(answer))
    assert [(each.text, each.finish_reason) for each in heard] == [("one two three", "stop"), ("one two", "length")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-seeds", "x"), "'x' is no whole number"),
        (("--ask", "answer=0", "--keep", "answer=0"), "0 would be asked"),
        (("--out", "/dev/null"), "cannot be made"),
    ],
)
def test_bad_options_are_told(
    options: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["synthesize", "math", "--seeds", "factory:4", "--backend", "factory", "--out", str(tmp_path / "out")]
    try:
        code = main([*command, "--no-symbolic", *options])
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    assert code == 2 and said in capsys.readouterr().err
