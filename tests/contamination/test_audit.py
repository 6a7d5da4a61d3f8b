"""Files in, two files out: nothing lost, the same by any number of workers, shards and stops."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from depthup.cli import main
from depthup.contamination import audit as audit_module
from depthup.contamination import rows as rows_module
from depthup.contamination.audit import Audit, files_of_shard, merge_shards, run_audit
from depthup.errors import DataError

LEAK = (
    "A train with 12 wagons leaves the old harbour station at 7 and carries 340 crates of oranges. How many per wagon?"
)
CLEAN = '{"text":  "The committee met on a rainy evening, row %d.",\t"n": 1e3}'


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "tests" / "gsm8k"
    folder.mkdir(parents=True)
    items = [
        {"question": LEAK, "answer": "About 28\n#### 28"},
        {
            "question": "Who sold the most lamps in the village of Ashby during the summer of that year?",
            "answer": "Ann",
        },
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return tmp_path / "tests"


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Three files of 40 rows; each 7th row leaks."""
    folder = tmp_path / "train"
    folder.mkdir()
    for number in range(3):
        lines = [json.dumps({"text": f"Q: {LEAK}"}) if k % 7 == 3 else CLEAN % k for k in range(40)]
        text = "\r\n".join(lines) if number == 1 else "\n".join(lines) + "\n\n"
        path = folder / f"part-{number}.jsonl"
        path.write_bytes(text.encode())
    with gzip.open(folder / "part-2.jsonl.gz", "wb") as file:
        file.write((folder / "part-2.jsonl").read_bytes())
    (folder / "part-2.jsonl").unlink()
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 500)


def audit_of(train: Path, data_dir: Path, **options: object) -> Audit:
    return Audit((str(train),), ("gsm8k",), data_dir, **options)  # type: ignore[arg-type]


def input_rows(train: Path) -> list[bytes]:
    rows = []
    for path in sorted(train.iterdir()):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows += [line for line in content.splitlines() if line.strip()]
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_kept_and_flagged_are_every_row_in_order_byte_for_byte(train: Path, data_dir: Path, tmp_path: Path) -> None:
    report = run_audit(audit_of(train, data_dir), tmp_path / "out")
    rows = input_rows(train)
    assert (tmp_path / "out" / "kept.jsonl").read_bytes().splitlines() == [row for row in rows if b"Q: " not in row]
    flagged = (tmp_path / "out" / "flagged.jsonl").read_bytes().splitlines()
    assert [line.partition(b', "row": ')[2][:-1] for line in flagged] == [row for row in rows if b"Q: " in row]
    first = json.loads(flagged[0])
    assert (first["number"], first["leaks"][0]["rule"], first["row"]) == (4, "exact", {"text": f"Q: {LEAK}"})
    assert sorted(contents(tmp_path / "out")) == ["flagged.jsonl", "items.jsonl", "kept.jsonl", "report.json"]
    assert (report["num_rows"], report["num_kept"], report["num_flagged"]) == (120, 102, 18)
    table = report["benchmarks"]["gsm8k"]
    assert table["rows"] == {"clean": 102, "dirty": 18} and table["items"] == {"clean": 1, "seen": 1}
    seen = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [(item["item"], item["seen"]) for item in seen] == [("0", True), ("1", False)]
    assert seen[0]["num_rows"] == 18


def test_two_workers_and_three_shards_give_what_one_gives(train: Path, data_dir: Path, tmp_path: Path) -> None:
    run_audit(audit_of(train, data_dir), tmp_path / "one")
    run_audit(audit_of(train, data_dir), tmp_path / "two", workers=2)
    for number in (1, 2, 3):
        run_audit(audit_of(train, data_dir, shard=(number, 3)), tmp_path / "three")
    merge_shards(tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    train: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_audit(audit_of(train, data_dir), tmp_path / "whole")
    monkeypatch.setattr(audit_module, "_SECONDS", 0.0)
    original, stop_after = audit_module._scanned, iter([0, 1, 4, 2, 0, 3, 10**9])

    def stopping(*arguments: object) -> Iterator[object]:
        last = next(stop_after)
        for scanned, result in enumerate(original(*arguments)):  # type: ignore[arg-type]
            if scanned == last:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(audit_module, "_scanned", stopping)
    for _ in range(6):
        with pytest.raises(KeyboardInterrupt):
            run_audit(audit_of(train, data_dir), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with open(tmp_path / ".out.partial" / "kept.jsonl", "ab") as file:
            file.write(b'{"half')  # what a kill may leave behind the last state
    run_audit(audit_of(train, data_dir), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_inputs_start_anew(train: Path, data_dir: Path, tmp_path: Path) -> None:
    (train / "part-1.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match=r"line 1 of .*part-1\.jsonl is no JSON"):
        run_audit(audit_of(train, data_dir), tmp_path / "out")
    (train / "part-1.jsonl").write_text(CLEAN % 1)
    assert run_audit(audit_of(train, data_dir, rules=("name",)), tmp_path / "out")["num_rows"] == 81


def test_the_error_of_a_worker_names_file_and_line(train: Path, data_dir: Path, tmp_path: Path) -> None:
    with open(train / "part-1.jsonl", "a") as file:
        file.write("\n\n{oops\n")
    with pytest.raises(DataError, match=r"line 42 of .*part-1\.jsonl is no JSON"):
        run_audit(audit_of(train, data_dir), tmp_path / "out", workers=2)


def test_every_kind_of_file_is_read(data_dir: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "kinds"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps([{"prompt": "x"}, {"chosen": [{"role": "user", "content": LEAK}]}]))
    (folder / "b.txt").write_text(f"Plain text.\n{LEAK}\n")
    parquet.write_table(pyarrow.table({"q": ["x", LEAK], "n": [1, 2]}), folder / "c.parquet")
    (folder / "left-out.csv").write_text("x")
    report = run_audit(audit_of(folder, data_dir), tmp_path / "out")
    assert [tuple(counts.values()) for counts in report["files"].values()] == [(2, 1), (1, 1), (2, 1)]
    spans = [
        json.loads(line)["leaks"][0]["spans"] for line in (tmp_path / "out" / "flagged.jsonl").read_text().splitlines()
    ]
    assert [span[0]["field"] for span in spans] == ["chosen[0].content", "text", "q"]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 10, 13])
def test_shards_are_the_list_cut_in_pieces(number: int) -> None:
    files = [Path(str(k)) for k in range(10)]
    assert [f for k in range(number) for f in files_of_shard(files, (k + 1, number))] == files


def test_shards_that_are_missing_or_of_another_audit_are_refused(train: Path, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="there are no shards"):
        merge_shards(out)
    run_audit(audit_of(train, data_dir, shard=(1, 2)), out)
    with pytest.raises(DataError, match=r"shard-2-of-2 is missing"):
        merge_shards(out)
    run_audit(audit_of(train, data_dir, shard=(2, 2), rules=("name",)), out)
    with pytest.raises(DataError, match="not of the same files, test sets and rules"):
        merge_shards(out)


def test_the_verb_writes_and_tells(
    train: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["decontaminate", str(train), "--against", "gsm8k", "--data-dir", str(data_dir), "--workers", "1"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "120 rows: 102 kept, 18 flagged" in said and "exact 18" in said
    assert main([*line, "--out", str(tmp_path / "out")]) == 2  # exists
    assert main(["decontaminate", "--out", str(tmp_path / "b")]) == 2
    assert main([*line, "--against", "nothing", "--out", str(tmp_path / "c")]) == 2
    for number in (1, 2):
        main([*line, "--out", str(tmp_path / "d"), "--shard", f"{number}/2"])
    assert main(["decontaminate", "--merge", "--out", str(tmp_path / "d")]) == 1
    assert contents(tmp_path / "d") == contents(tmp_path / "out")
    for wrong in (["--shard", "3/2"], ["--rules", "exact,guess"], ["--workers", "0"]):
        with pytest.raises(SystemExit):
            main([*line, "--out", str(tmp_path / "e"), *wrong])


def test_help_loads_no_numpy() -> None:
    code = "import sys, depthup.cli; depthup.cli.make_parser(); print('numpy' in sys.modules, 'numba' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_a_benchmark_may_be_known_by_its_task_names_alone(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "flan.jsonl"
    path.write_text('{"task": "drop:2.0.0", "text": "x"}\n{"task": "cot_gsm8k", "text": "y"}\n')
    report = run_audit(Audit((str(path),), ("drop",), data_dir), tmp_path / "drop")
    assert report["benchmarks"]["drop"]["rows"] == {"clean": 1, "dirty": 1} and report["num_flagged"] == 1
    report = run_audit(Audit((str(path),), ("drop", "gsm8k"), data_dir), tmp_path / "both")
    assert report["num_flagged"] == 2 and report["benchmarks"]["gsm8k"]["rows_by_rule"] == {"name": 1}
