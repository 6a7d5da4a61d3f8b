"""The report and the card as Markdown: nothing from outside is markup, and the Hub's own parser reads the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import reports
import scored
import yaml
from huggingface_hub import ModelCard

from depthup.errors import OutputError
from depthup.layers import LayerPlan
from depthup.report.card import join_card, split_card
from depthup.report.markdown import escaped, fenced, report_markdown, table_markdown, write_markdown
from depthup.report.model_card import CardFacts, licence_of, licence_of_folder, model_card, write_model_card
from depthup.report.values import DataSource, Generation, ModelRow, StageCard, Table

NASTY = "<script>alert(1)</script> ![x](http://a) [y](b) `z` *s* _u_ | # & ~~d~~ \\ \x1b[31m"
FACTS = CardFacts(
    name="merged", recipe="quickstart", fingerprint="8b85006ee96e", licence="apache-2.0", base_model="owner/base",
    plan=LayerPlan.upscale(30, 8), rows=(ModelRow("merged", "", 44, 184_072_896, 21_010, 2.778, 4086),),
    scores=(scored.model("merged", num_items=120),),
    chain=(StageCard("base", "import", "f", 1.0, (), ()), StageCard("dus", "upscale", "f", 1.0, ("base",), ()),
           StageCard("tuned", "sft", "f", 1.0, ("dus",), ()), StageCard("merged", "merge", "f", 1.0, ("tuned",), ())),
    sources=(DataSource("docs", "Hub: owner/docs", "MIT", hub_name="owner/docs"), DataSource("math", "made", "")),
    notes=("One seed.",), citation="@software{depthup}", num_layers=44, num_parameters=184_072_896,
)  # fmt: skip


def html_of(text: str) -> str:
    """As GitHub's flavour renders it, raw HTML allowed: what got through would show."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    return str(parser.enable(["table", "strikethrough"]).render(text))


def test_every_section_of_the_page_stands_in_the_markdown(tmp_path: Path) -> None:
    report = reports.full_report()
    write_markdown(report, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    html = html_of(text)
    for title in ("In a minute", "Which layer comes from where", "Seams", "Recovery: loss in continued pretraining",
                  "Models", "Scores", "What differs, and what is noise", "Merging", "The same prompts, continued",
                  "What this shows, and what it does not", "Data", "Contamination", "Cost", "Lineage", "Environment",
                  "Citation"):  # fmt: skip
        assert f"<h2>{title}</h2>" in html, title
    verdict = "within noise (+0.4 ± 2.1, would need about 9,800 items)"
    for value in ("2.737", "66.04", verdict, "21|8", "reached after about"):
        assert value in html
    for name in ("layers", "loss", "scores", "lineage"):
        assert f"figures/{name}.svg" in text
        root = ElementTree.parse(tmp_path / "figures" / f"{name}.svg").getroot()
        assert root.get("role") == "img" and root.get("aria-label")


def in_table(text: str) -> str:
    return table_markdown(Table("", (text, "b"), ((text, text),)))


@pytest.mark.parametrize("wrap", [escaped, fenced, in_table])
def test_text_from_outside_is_no_markup(wrap) -> None:
    html = html_of(wrap(NASTY))
    assert not [tag for tag in ("<script", "<img", "<a ", "<em", "<s>", "<h1", "<strong") if tag in html]
    assert "\x1b" not in html and "alert(1)" in html


def test_code_blocks_hold_whatever_a_model_wrote() -> None:
    text = "```\n# not a heading\n````\n<b>"
    html = html_of(fenced(text))
    assert html.count("<pre>") == 1 and "<h1>" not in html and "<b>" not in html
    report = replace(reports.full_report(), generations=(Generation(NASTY, (("m", NASTY), ("n", text))),))
    assert "<script>" not in html_of(report_markdown(report))


def test_tables_have_as_many_cells_in_each_row_and_numbers_at_the_right() -> None:
    table = Table("", ("a|b", "n", "t"), (("x", "1,200", "y|z"), ("w", "", "")), ("note",))
    html = html_of(table_markdown(table))
    assert html.count("<td") == 6 and html.count("<th") - html.count("<thead") == 3
    assert html.count("text-align:right") == 3  # of the numbers, and of their heading
    assert "y|z" in html and "<li>note</li>" in html


def test_the_hubs_parser_reads_the_card() -> None:
    card = ModelCard(model_card(FACTS))
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and data["base_model"] == "owner/base"
    assert data["base_model_relation"] == "finetune"
    untrained = replace(FACTS, chain=FACTS.chain[:2])
    assert ModelCard(model_card(untrained)).data.to_dict()["base_model_relation"] == "merge"
    assert data["datasets"] == ["owner/docs"] and data["library_name"] == "transformers"
    assert {"depthup", "depth-up-scaling", "sft", "merge"} <= set(data["tags"])
    assert len(card.data.eval_results) == 6 and {result.metric_value for result in card.data.eval_results}
    for words in ("44 layers and 184M parameters", "30 layers of owner/base", "2.778", "## Limits", "Hub: owner/docs",
                  "8b85006ee96e", "21|8, layer distance 13", "@software{depthup}"):  # fmt: skip
        assert words in card.text, words


def test_what_is_not_known_is_left_out_of_the_card() -> None:
    bare = replace(FACTS, licence="", base_model="", plan=None, rows=(), scores=(), chain=(), sources=(), notes=())
    fields, body = split_card(model_card(bare))
    assert fields.keys() == {"library_name", "pipeline_tag", "tags"} and "Not stated." in body
    few = replace(FACTS, scores=(scored.model("merged", num_items=2),))
    fields, body = split_card(model_card(few))
    assert "model-index" not in fields and "±" in body  # two items are no score for a table of many models


def test_card_and_results_are_written(tmp_path: Path) -> None:
    write_model_card(FACTS, tmp_path / "model")
    assert licence_of_folder(tmp_path / "model") == "apache-2.0" and licence_of_folder(tmp_path) == ""
    results = sorted((tmp_path / "model" / ".eval_results").glob("*.yaml"))
    assert len(results) == 6 and all(yaml.safe_load(path.read_text()) for path in results)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="was not written"):
        write_model_card(FACTS, tmp_path / "file" / "model")


def test_front_matter_goes_there_and_back() -> None:
    fields = {"license": ["mit", "apache-2.0"], "tags": ["a: b", "é"]}
    assert split_card(join_card(fields, "# x\n")) == (fields, "# x\n")
    assert licence_of(fields) == "mit, apache-2.0" and licence_of({}) == licence_of({"license": None}) == ""
