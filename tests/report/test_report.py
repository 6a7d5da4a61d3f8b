"""The report: every number is on the page, generated text is never markup, the figures say what the plan says."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from depthup.layers import LayerPlan
from depthup.report import svg, text
from depthup.report.figures import layer_map_svg, loss_curve_svg
from depthup.report.page import render_page
from depthup.report.tables import model_table, render_table
from depthup.report.values import Curve, Generation, ModelRow, Report, StageCard

PLANS = {
    "solar": LayerPlan.upscale(32, 8),
    "smol": LayerPlan.upscale(30, 8),
    "pico": LayerPlan.upscale(4, 1),
    "nothing removed": LayerPlan.upscale(5, 0),
    "one layer": LayerPlan(1, (0,)),
    "one layer, often": LayerPlan(1, (0,) * 5),
    "seven slices": LayerPlan.parse("0-19,10-29,20-39,30-49,40-59,50-69,60-79", 80),
    "blocks": LayerPlan.parse("0-3,3-7,7-11,11-15,15-19,19-23,23-27,27-31,31", 32),
    "any order": LayerPlan.parse("5-9,0-4,4,4,4,9", 10),
    "scattered": LayerPlan(100, tuple(i * 37 % 100 for i in range(60))),
    "shrunk": LayerPlan.parse("0-9,100-139", 140),
}
HELD_OUT = ((0, 3.350), (8192, 2.998), (16384, 2.827), (24576, 2.737))
CURVE = Curve(
    "cpt",
    training=tuple((1024 * step, 2.7 + 0.65 * math.exp(-step / 9)) for step in range(1, 25)),
    held_out=HELD_OUT,
    learning_rate=tuple((1024 * step, 5e-4 * min(step / 4, 1)) for step in range(1, 25)),
)
NASTY = "</script><script>alert(1)</script> <b>&amp; \"'\x00\x1b[31m\x85\u202e\ud800\uffff \U0001f642\n\n  two\t."
REPORT = Report(
    title="SmolLM2-135M, from 30 to 44 layers",
    summary="The target loses 0.41 nats per token, and more than wins them back.",
    notes=("One seed.", "No control."),
    plan=LayerPlan.upscale(30, 8),
    rows=(
        ModelRow("base", "as published", 30, 134_515_008, 0, 2.942, 16_384),
        ModelRow("untrained target", "44 layers, before any training", 44, 184_072_896, 0, 3.350, 16_384),
        ModelRow("trained target", "44 layers, after continued pretraining", 44, 184_072_896, 24_576, 2.737, 16_384),
    ),
    reference_losses=(("base", 2.942), ("untrained target", 3.350)),
    curves=(CURVE,),
    generations=(Generation("The capital of <France>\n is", (("base", NASTY), ("trained target", ""))),),
    stages=(
        StageCard("base", "import", "3f9a1c7de2b84410", 0.31, (), (("revision", "main"),)),
        StageCard("target", "upscale", "b51c00fe12ab98cd", 1.84, ("base",), (("num_removed", "8"), ("dtype", "bf16"))),
        StageCard("cpt", "pretrain", "9d0e77aa01cc42de", 412.6, ("target", "elsewhere"), ()),
    ),
    environment=(("torch", "2.11.0"), ("device", "CPU, 2 cores")),
)
EMPTY = Report("Nothing yet", "", (), None, (), (), (), (), (), ())
VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class Page(HTMLParser):
    """Checks that tags close in order, and keeps what the tests ask about."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # enclosing class, text
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append((self.tags[-1][1].get("class") or "", data))

    @property
    def text(self) -> str:
        return " ".join(" ".join(data for _, data in self.texts).split())

    def of_class(self, name: str) -> list[str]:
        return [data for class_, data in self.texts if class_ == name and data.strip()]


def parsed(figure: str) -> ElementTree.Element:
    """The figure as XML, tags without their name space."""
    root = ElementTree.fromstring(figure)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return root


def words(root: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in root.iter("text")]


# -- the page -----------------------------------------------------------------------------------------------------


def test_page_is_well_formed_and_every_number_is_on_it() -> None:
    page = Page(render_page(REPORT))
    for row in REPORT.rows:
        for value in (row.name, row.description, str(row.num_layers), f"{row.num_parameters:,}", f"{row.tokens_seen:,}",
                      f"{row.loss:.3f}", f"{math.exp(row.loss):.2f}", f"{row.num_held_out_tokens:,}"):  # fmt: skip
            assert value in page.text
    for stage in REPORT.stages:
        for value in (stage.name, stage.kind, stage.fingerprint, *stage.inputs, *sum(stage.settings, ())):
            assert value in page.text
    for value in ("+0.408 against base", "−0.205 against base", "21|8, layer distance 13", "14 layers: 8–21", "0.31 s",
                  "6 min 53 s", *REPORT.notes, *sum(REPORT.environment, ()), REPORT.title, REPORT.summary):  # fmt: skip
        assert value in page.text


def test_page_asks_nobody_for_anything() -> None:
    source = render_page(REPORT)
    addresses = re.findall(r"""(?:src|href|srcset|action|xlink:href)\s*=\s*["']?([^"'\s>]*)""", source)
    addresses += re.findall(r"url\(([^)]*)\)", source)
    assert all(address.startswith(("#", "data:")) for address in addresses), addresses
    assert "@import" not in source and "http://" not in source and "https://" not in source
    assert not [tag for tag, _ in Page(source).tags if tag in ("script", "iframe", "object", "embed", "img")]


def test_links_and_labels_of_the_page_lead_to_one_element_each() -> None:
    tags = Page(render_page(REPORT)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes]
    targets += [href[1:] for tag, attributes in tags if tag == "a" and (href := attributes["href"])]
    assert targets and set(targets) <= set(ids)


def test_generated_text_is_text() -> None:
    source = render_page(REPORT)
    page = Page(source)
    expected = NASTY
    for character, sign in {"\x00": r"\x00", "\x1b": r"\x1b", "\x85": r"\x85", "\u202e": r"\u202e", "\ud800": r"\ud800",
                            "\uffff": r"\uffff"}.items():  # fmt: skip
        expected = expected.replace(character, sign)
    assert page.of_class("text") == [expected]
    assert page.of_class("prompt") == [REPORT.generations[0].prompt]
    assert page.of_class("nothing") == ["nothing"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", source)
    source.encode("utf-8")


def test_every_field_is_escaped() -> None:
    bad = '<i x="1">&\x07'
    report = replace(
        REPORT,
        title=bad,
        summary=bad,
        notes=(bad,),
        rows=(replace(REPORT.rows[0], name=bad, description=bad),),
        reference_losses=((bad, 3.0),),
        curves=(replace(CURVE, name=bad),),
        generations=(Generation(bad, ((bad, bad),)),),
        stages=(StageCard(bad, bad, bad, 1.0, (bad,), ((bad, bad),)),),
        environment=((bad, bad),),
    )
    source = render_page(report)
    Page(source)
    assert "<i x" not in source and "\x07" not in source
    assert 'x="1">' not in source.replace("&#34;", "!").replace("&quot;", "!")


def test_empty_parts_leave_their_section_out() -> None:
    full = [attributes["id"] for tag, attributes in Page(render_page(REPORT)).tags if tag == "h2"]
    assert full == ["layers", "loss", "models", "generations", "notes", "lineage", "environment"]
    page = Page(render_page(EMPTY))
    assert page.text == EMPTY.title
    assert not [tag for tag, _ in page.tags if tag in ("section", "svg", "table", "ul", "ol")]
    no_curve = Page(render_page(replace(REPORT, curves=(replace(CURVE, training=(), held_out=((0, math.nan),)),))))
    assert "loss" not in [attributes.get("id") for _, attributes in no_curve.tags]


def test_losses_that_are_not_finite_still_make_a_page() -> None:
    rows = (replace(REPORT.rows[0], loss=math.nan), replace(REPORT.rows[1], loss=1000.0))
    curve = replace(CURVE, training=((1, math.nan), (2, 3.0), (3, math.inf)))
    page = Page(render_page(replace(REPORT, rows=rows, curves=(curve,), reference_losses=(("base", math.nan),))))
    assert "nan" in page.text and "inf" in page.text


def test_different_held_out_sets_get_a_column() -> None:
    page = Page(render_page(replace(REPORT, rows=(*REPORT.rows, replace(REPORT.rows[0], num_held_out_tokens=99_000)))))
    assert "16,384" in page.text and "99,000" in page.text


# -- the layer map ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_cells_of_the_layer_map_are_the_plan(name: str) -> None:
    plan = PLANS[name]
    root = parsed(layer_map_svg(plan))
    cells = {int(node.get("data-target", "")): node for node in root.iter("rect") if node.get("data-target")}
    assert [int(cells[i].get("data-source", "")) for i in range(len(cells))] == list(plan.sources)
    assert [cells[i].get("fill") for i in range(len(cells))] == [
        svg.layer_colours(source, plan.num_base_layers)[0] for source in plan.sources
    ]
    tops = [float(cells[i].get("y", "")) for i in range(len(cells))]
    assert tops == sorted(tops, reverse=True) and len(set(tops)) == len(tops)
    num_rects = sum(1 for node in root.iter("rect") if node.get("rx"))
    assert num_rects == plan.num_base_layers + 2 * plan.num_target_layers
    assert len([node for node in root.iter("path") if node.get("class") == "seam"]) == len(plan.seams)


@pytest.mark.parametrize("name", PLANS)
def test_layer_map_stays_within_its_frame(name: str) -> None:
    root = parsed(layer_map_svg(PLANS[name]))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert width <= 560 and height <= 900
    for node in root.iter("rect"):
        x, y, w, h = (float(node.get(key, "")) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height + 0.01
    for node in root.iter("text"):
        assert 0 < float(node.get("x", "")) < width and 6 < float(node.get("y", "")) < height


def test_layer_map_of_solar_says_what_the_paper_says() -> None:
    root = parsed(layer_map_svg(PLANS["solar"]))
    labels = words(root)
    for label in ("base", "32 layers", "lower copy", "first 24 of 32", "upper copy", "last 24 of 32", "target",
                  "48 layers", "seam 23|8", "layer distance 15", "8–23 stand twice", "dropped"):  # fmt: skip
        assert label in labels
    assert labels.count("31") == 4 + 1  # base, dropped from the lower copy, upper copy, target; and the scale
    assert labels.count("8") == 1 + 2 + 2


@pytest.mark.parametrize("name", PLANS)
def test_figures_have_text_alternatives(name: str) -> None:
    plan = PLANS[name]
    root = parsed(layer_map_svg(plan))
    assert root.get("role") == "img"
    description = root.findtext("desc") or ""
    assert root.findtext("title") and description in (root.get("aria-label") or "")
    assert f"target of {plan.num_target_layers} layers" in description
    assert (f"{len(plan.seams)} seam" in description) == bool(plan.seams)


def test_standalone_map_is_a_file_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "map.svg"
    command = [sys.executable, "-m", "depthup.report.figures", "32", "8", str(out)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    figure = out.read_text(encoding="utf-8")
    assert figure == layer_map_svg(LayerPlan.upscale(32, 8), standalone=True) + "\n"
    assert ElementTree.fromstring(figure).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in figure and "xmlns" not in layer_map_svg(LayerPlan.upscale(32, 8))


def test_map_in_the_docs_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs/layer-map.svg").read_text(encoding="utf-8")
    assert written == layer_map_svg(LayerPlan.upscale(32, 8), standalone=True) + "\n"


def test_colours_of_the_layers_get_lighter_in_even_steps() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    fills = [svg.layer_colours(i, 48) for i in range(48)]
    lights = [luminance(fill) for fill, _ in fills]
    assert lights == sorted(lights) and len({fill for fill, _ in fills}) == 48
    steps = [high ** (1 / 3) - low ** (1 / 3) for low, high in itertools.pairwise(lights)]
    assert max(steps) < 3 * min(steps)
    for fill, ink in fills:
        ratio = (luminance(fill) + 0.05) / ((1.0 if ink == "#fff" else luminance(ink)) + 0.05)
        assert max(ratio, 1 / ratio) >= 4.5  # WCAG AA


# -- the loss curve -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [370, 760])
def test_loss_curve_shows_each_measurement(width: int) -> None:
    root = parsed(loss_curve_svg([CURVE], REPORT.reference_losses, width=width))
    markers = [node for node in root.iter("circle") if node.find("title") is not None]
    assert [node.findtext("title") for node in markers] == [
        f"cpt: {loss:.3f} nats per token at {tokens:,} tokens seen" for tokens, loss in HELD_OUT
    ]
    xs, ys = ([float(node.get(key, "")) for node in markers] for key in ("cx", "cy"))
    assert xs == sorted(xs) and ys == sorted(ys)  # y grows downwards: the loss falls
    assert (xs[2] - xs[0]) == pytest.approx(2 * (xs[1] - xs[0]), abs=0.02)
    assert (ys[3] - ys[0]) / (ys[1] - ys[0]) == pytest.approx((3.350 - 2.737) / (3.350 - 2.998), abs=0.01)
    labels = words(root)
    for label in ("cpt", "base", "2.942", "3.350", "2.737", "0", "10k", "20k", "tokens seen",
                  "loss, nats per token", "5e-4"):  # fmt: skip
        assert label in labels
    assert len([node for node in root.iter("path") if node.get("class") == "reference"]) == 2


def test_loss_curve_has_a_text_alternative() -> None:
    root = parsed(loss_curve_svg([CURVE], REPORT.reference_losses))
    assert root.get("role") == "img" and root.findtext("title")
    for value in ("cpt", "3.350", "24,576", "2.737", "untrained target", "2.942"):
        assert value in (root.findtext("desc") or "") and value in (root.get("aria-label") or "")


@pytest.mark.parametrize("width", [370, 760])
@pytest.mark.parametrize("num_names", [2, 9])
def test_names_at_the_right_never_overlap(width: int, num_names: int) -> None:
    references = [(f"a rather long name of a reference, number {i}", 2.737 + 0.001 * i) for i in range(num_names)]
    root = parsed(loss_curve_svg([CURVE, replace(CURVE, name="other")], references, width=width))
    ends = [node for node in root.iter("text") if node.get("x") == max(
        (n.get("x", "") for n in root.iter("text")), key=float)]  # fmt: skip
    ys = sorted(float(node.get("y", "")) for node in ends)
    assert len(ys) >= 2 * (num_names + 2)
    assert min(high - low for low, high in itertools.pairwise(ys)) >= 12.9
    _, _, total, height = map(float, root.get("viewBox", "").split())
    assert ys[-1] < height
    assert all(float(n.get("x", "")) + 7.2 * len(n.text or "") <= total + 8 for n in ends)


@pytest.mark.parametrize(
    "curve",
    [
        Curve("one point", ((0, 2.0),), (), ()),
        Curve("flat", ((0, 2.0), (10, 2.0)), ((0, 2.0),), ((0, 0.0), (10, 0.0))),
        Curve("training only", CURVE.training, (), ()),
        Curve("held-out only", (), HELD_OUT, ()),
        Curve("large", tuple((10**9 * i, 1e4 / (i + 1)) for i in range(2000)), (), ()),
    ],
    ids=lambda curve: curve.name,
)
def test_any_curve_can_be_drawn(curve: Curve) -> None:
    figure = loss_curve_svg([curve], ())
    root = parsed(figure)
    assert curve.name in words(root) and "nan" not in figure
    assert len(figure) < 40_000


def test_long_training_curves_are_means_and_say_so() -> None:
    curve = Curve("long", tuple((i, 3.0 + (-1) ** i) for i in range(1200)), (), ())
    root = parsed(loss_curve_svg([curve]))
    assert "training, mean of 4 steps" in words(root)
    assert loss_curve_svg([]) == loss_curve_svg([Curve("none", (), (), ((0, 1.0),))]) == ""


# -- tables and numbers -------------------------------------------------------------------------------------------


def test_table_for_the_terminal() -> None:
    assert model_table(REPORT.rows) == "\n".join([
        "model             layers   parameters  tokens seen  held-out loss  perplexity",
        "────────────────  ──────  ───────────  ───────────  ─────────────  ──────────",
        "base                  30  134,515,008            0          2.942       18.95",
        "untrained target      44  184,072,896            0          3.350       28.50",
        "trained target        44  184,072,896       24,576          2.737       15.44",
    ])  # fmt: skip


def test_table_aligns_wide_characters_and_disarms_control_characters() -> None:
    lines = render_table(["name", "n"], [["\U0001f642 日本", 1], ["\x1b[2J\nx", 22], ["e\u0301", ""]]).splitlines()
    assert lines[2:] == ["\U0001f642 日本     1", r"\x1b[2J x  22", "e\u0301"]
    assert render_table(["a", "b"], []).splitlines() == ["a  b", "─  ─"]
    with pytest.raises(ValueError):
        render_table(["a"], [["1", "2"]])


def test_numbers_read_as_people_write_them() -> None:
    assert [text.format_compact(n) for n in (0, 5, 999, 8000, 8192, 999_999, 1_200_000, 10_731_524_096, 3e12)] == [
        "0", "5", "999", "8k", "8.19k", "1M", "1.2M", "10.7B", "3T"]  # fmt: skip
    assert [text.format_seconds(s) for s in (0.42, 12.44, 59.97, 200, 3599.7, 7500)] == [
        "0.42 s", "12.4 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min"]  # fmt: skip
    assert [text.format_rate(r) for r in (0, 5e-4, 2.5e-5, 1e-3)] == ["0", "5e-4", "2.5e-5", "1e-3"]
    assert text.format_runs([8, 9, 10, 20, 22, 23]) == "8–10, 20, 22–23"
    assert text.perplexity(1000) == math.inf and text.format_perplexity(math.exp(10.4)) == "32,860"


def test_ticks_and_labels_are_well_placed() -> None:
    assert svg.nice_ticks(0, 24576, 6) == [0, 5000, 10000, 15000, 20000]
    assert svg.nice_ticks(2.70, 3.40, 6) == [2.8, 3.0, 3.2, 3.4] and svg.nice_ticks(3, 3, 5) == [3]
    assert svg.spread([5, 4, 90], 10, 0, 100) == [14, 4, 90]
    assert svg.spread([99, 98, 97], 10, 0, 100) == [100, 90, 80]
