"""The page in a real browser: no error, nothing asked of the network, nothing cut off on a phone, all text readable.

Needs playwright and a Chromium (``pip install depthup[browser]``; ``CHROMIUM`` names its program); skips without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reports

from depthup.report.page import render_page

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
SCHEMES, WIDTHS = ("light", "dark"), (360, 1200)

# The colours behind and of each visible text, as (text, size, weight, ink, ground), both as [r, g, b, a].
_COLOURS = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || element.closest('style,title,desc')) continue;
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const style = getComputedStyle(element);
    const own = element.closest('svg') && element.tagName === 'text' ? style.fill : style.color;
    // Text on a cell of the layer map is tested with the colours of layers.
    if (element.closest('svg') && (element.hasAttribute('style') || element.hasAttribute('fill'))) continue;
    let ground = null;
    for (let at = element; at && !ground; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) ground = colour;
    }
    const text = node.textContent.trim().slice(0, 40);
    found.push([text, parseFloat(style.fontSize), style.fontWeight, parse(own), ground]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render_page(reports.full_report()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module", params=[(scheme, width) for scheme in SCHEMES for width in WIDTHS], ids=str)
def opened(request: pytest.FixtureRequest, browser: Any, page_file: Path) -> Iterator[Any]:
    """The page in light and dark, on a phone and on a desk, with what it said and asked for."""
    scheme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.told, page.asked = [], []
    page.on("console", lambda message: page.told.append(message.text))
    page.on("pageerror", lambda error: page.told.append(str(error)))
    page.on("request", lambda one: page.asked.append(one.url))
    page.goto(page_file.as_uri())
    yield page
    context.close()


def test_the_page_says_and_asks_nothing(opened: Any, page_file: Path) -> None:
    assert opened.told == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [page_file.as_uri()]


def test_nothing_is_wider_than_the_screen(opened: Any) -> None:
    inside = opened.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inside[0] <= inside[1]
    wide = opened.evaluate("""() => [...document.querySelectorAll('main *')].filter(one => {
      if (one.closest('.scroll') || one.closest('svg')) return false;
      const box = one.getBoundingClientRect();
      return box.width && (box.right > innerWidth + 1 || box.left < -1);
    }).map(one => one.outerHTML.slice(0, 80))""")
    wide = [one for one in wide if "<thead" not in one and "<th" not in one and "<tr" not in one]  # hidden on a phone
    assert wide == []


def test_what_scrolls_can_be_reached_and_is_named(opened: Any) -> None:
    unnamed = opened.evaluate("""() => [...document.querySelectorAll('*')].filter(one =>
      one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX === 'auto'
      && !(one.tabIndex === 0 && one.getAttribute('aria-label'))).map(one => one.outerHTML.slice(0, 80))""")
    assert unnamed == []


def test_all_text_stands_out_from_what_is_behind_it(opened: Any) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1; 3 to 1 where it is large."""
    colours = opened.evaluate(_COLOURS)
    assert len(colours) > 150
    faint = []
    for text, size, weight, ink, ground in colours:
        mixed = [ink[3] * ink[i] + (1 - ink[3]) * ground[i] for i in range(3)]
        is_large = size >= 24 or (size >= 18.66 and int(weight) >= 700)
        ratio = contrast(mixed, ground[:3])
        if ratio < (3 if is_large else 4.5):
            faint.append((text, round(ratio, 2)))
    assert faint == []


def test_every_figure_has_a_text_alternative(opened: Any) -> None:
    figures = opened.evaluate("""() => [...document.querySelectorAll('svg')].map(one => [
      one.getAttribute('role'), (one.getAttribute('aria-label') || '').length,
      !!one.querySelector(':scope > title'), !!one.querySelector(':scope > desc')])""")
    assert len(figures) >= 8
    assert all(role == "img" and length > 40 and title and desc for role, length, title, desc in figures)
    seen = opened.evaluate(
        "[...document.querySelectorAll('svg')].filter(one => one.getBoundingClientRect().width).length"
    )
    assert seen == 5  # layers, loss, scores, radar, lineage: of two widths one is shown


def test_text_is_large_enough_to_read(opened: Any) -> None:
    """In CSS pixels after scaling; what is written in the layer map stands beside it in words."""
    small = opened.evaluate("""() => [...document.querySelectorAll('main *')].filter(one => {
      if (![...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) return false;
      const svg = one.closest('svg');
      if (svg && (svg.closest('.map') || one.tagName !== 'text')) return false;
      const box = one.getBoundingClientRect();
      if (!box.width || !box.height) return false;
      const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
      return parseFloat(getComputedStyle(one).fontSize) * scale < 8;
    }).map(one => one.textContent.slice(0, 40))""")
    assert small == []


def test_links_of_the_page_lead_somewhere(opened: Any) -> None:
    lost = opened.evaluate("""() => [...document.querySelectorAll('a[href]')]
      .filter(one => !document.querySelector(one.getAttribute('href'))).map(one => one.href)""")
    assert lost == []
    opened.evaluate("document.querySelector('details.all').open = true")
    opened.click("ol.lineage a >> nth=0")
    assert opened.evaluate("location.hash").startswith("#stage-")


def test_the_page_prints(browser: Any, page_file: Path, tmp_path: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert ink == "rgb(28, 33, 40)" and ground == "rgba(0, 0, 0, 0)"  # dark on paper, whatever the screen was
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
    assert page.evaluate("document.querySelector('nav').getBoundingClientRect().height") == 0
    context.close()


def contrast(one: list[float], other: list[float]) -> float:
    """The ratio of WCAG 2.2 of two colours in sRGB, 0 to 255."""

    def luminance(colour: list[float]) -> float:
        parts = [value / 255 for value in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
