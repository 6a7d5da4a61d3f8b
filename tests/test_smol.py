"""recipes/smol in small: its stages and tables on a random tiny model, so that its run on a GPU can be trusted."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import items
import pytest

from depthup.artifacts.store import Store
from depthup.pipeline import run, survey
from depthup.recipe import load_recipe, parse_recipe

pytest.importorskip("lm_eval")
REPOSITORY = Path(__file__).parents[1]
PICO = REPOSITORY / "recipes" / "pico"
SMALL = {
    "pretrain": {"steps": 1, "warmup_steps": 0, "rows_per_step": 2, "row_tokens": 128, "eval_tokens": 128,
                 "eval_every": 0, "micro_batch_rows": 2},
    "sft": {"steps": 1, "warmup_steps": 0, "rows_per_step": 1, "row_tokens": 1024, "eval_tokens": 512},
    "dpo": {"steps": 1, "warmup_steps": 0, "pairs_per_step": 2, "max_tokens": 1024, "eval_pairs": 2},
    "sdpo": {"steps": 1, "warmup_steps": 0, "pairs_per_step": 2, "max_tokens": 1024, "eval_pairs": 2},
    "synthesize": {"factory": 24},
    "decontaminate": {"workers": 1, "against": "gsm8k"},
    "evaluate": {"tokens": 128, "row_tokens": 128, "suite": None, "tasks": ["winogrande", "arc_challenge"],
                 "sample": 4},
}  # fmt: skip


def small() -> Any:
    """The recipe with every number cut down; what its stages are and read is left as it is."""
    value = load_recipe(REPOSITORY / "recipes" / "smol").model_dump(mode="json", exclude_none=True)
    for name, stage in value["stages"].items():
        stage.update(SMALL.get(stage["kind"], {}))
        value["stages"][name] = {key: setting for key, setting in stage.items() if setting is not None}
    value["stages"]["base"] = {"kind": "import", "random": {"num_layers": 4, "hidden_size": 16}}
    value["stages"]["dus"]["remove"] = 1
    for entry in value["data"].values():
        if "held_out" in entry:
            entry["held_out"] = 0.3
    return parse_recipe(value)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as DEPTHUP_DATA, with benchmarks of no sense and the rows of the pico recipe."""
    folder = items.write(tmp_path / "data")
    text = "".join(json.dumps({"text": f"Text number {n} is about {n * n} things. " * 3}) + "\n" for n in range(40))
    for name, content in (
        ("pretrain/texts.jsonl", text),
        ("instruct/alpaca_en_demo.json", json.dumps([_alpaca(n) for n in range(30)])),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    rows = [json.loads(line) for line in (PICO / "pairs.jsonl").read_text().splitlines()]
    items.write_rows(folder / "flan/flan_cot.jsonl.gz", [_alpaca(n) for n in range(100, 140)])
    items.write_rows(folder / "preference/hh_helpful-base_test.jsonl.gz", rows[:30])
    (folder / "preference/dpo_en_demo.json").write_text(json.dumps(rows[30:45]))
    items.write_rows(folder / "preference/orca_dpo_pairs_sample.jsonl", rows[45:])
    monkeypatch.setenv("DEPTHUP_DATA", str(folder))
    return folder


def _alpaca(number: int) -> dict[str, str]:
    return {"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."}


def test_every_model_of_the_papers_tables_is_made_scored_and_judged(tmp_path: Path, data: Path) -> None:
    recipe, store = small(), Store(tmp_path / "store")
    nodes = run(recipe, store, device="cpu", progress=False, tell=lambda line: None)
    page = (nodes["page"].folder / "index.html").read_text()
    for name in ("table-2", "table-3", "table-4", "table-5", "table-6", "table-7"):
        table = nodes[name].record.results
        assert [row["name"] for row in table["rows"]] == [
            evaluation.removesuffix("-scores") for evaluation in recipe.stages[name].evaluations
        ]
        assert table["rows"][0]["verdict"] == "baseline"
        assert all(row["verdict"] for row in table["rows"])
        assert f"paper: {table['rows'][0]['paper']}" in page
    assert "66.04" not in page  # SOLAR's mean stands beside a mean of the same six tasks alone
    assert nodes["table-6"].record.results["rows"][0]["paper_cells"][-2:] == ["81.53", "70.48"]
    strengths = nodes["strengths"].record.results
    assert strengths["headers"] == ["cand-1", "cand-2", "merge-v1", "merge-v2", "merge-v3", "merge-v4"]
    assert len(strengths["notes"]) >= 6 and strengths["notes"][0] in html.unescape(page)
    chunks = nodes["sdpo"].record.results["chunks"]
    assert sum(chunk["num_steps"] for chunk in chunks) == 2
    assert {node.state for node in survey(recipe, Store(store.root)).values()} == {"cached"}
    shutil.rmtree(store.root / "merge-v4")
    again = {name: node.state for name, node in survey(recipe, Store(store.root)).items()}
    assert [name for name, state in again.items() if state != "cached"] == ["merge-v4"]
