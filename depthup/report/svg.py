"""Small parts of an SVG figure: elements, the house colours of a figure, the colour scale of layers, axis ticks."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from .text import visible

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Noto Sans',sans-serif"
NUM_SERIES = 6
_LIGHT = {
    "ink": "#1c2128", "muted": "#5b6470", "line": "#d5d9df", "accent": "#c2264b",
    "s0": "#2f5fd0", "s1": "#b4560b", "s2": "#14806b", "s3": "#8a3fc0", "s4": "#a3283f", "s5": "#5d6b1a",
}  # fmt: skip
_DARK = {
    "ink": "#e7eaee", "muted": "#9aa4b1", "line": "#363c45", "accent": "#ff7d97",
    "s0": "#86aaff", "s1": "#f2a15c", "s2": "#4fc9ae", "s3": "#c79bf2", "s4": "#ff8f9f", "s5": "#b9c765",
}  # fmt: skip
_RULES = f"""\
svg.fig text{{font-family:{FONT};fill:var(--muted);font-variant-numeric:tabular-nums}}
svg.fig .head{{fill:var(--ink);font-weight:600}}
svg.fig .ghost{{fill:none;stroke:var(--muted);stroke-opacity:.45;stroke-dasharray:2 1.6;stroke-width:.7}}
svg.fig .faint{{fill-opacity:.75}}
svg.fig .band{{fill:#7d8998;fill-opacity:.14}}
svg.fig .rule{{stroke:var(--line);stroke-width:1;fill:none}}
svg.fig .bracket{{stroke:var(--muted);stroke-width:1;fill:none}}
svg.fig .seam{{stroke:var(--accent);stroke-width:1.4;stroke-dasharray:4 3;fill:none}}
svg.fig text.seam-name{{fill:var(--accent);font-weight:600;stroke:none}}
svg.fig .leader{{stroke:currentColor;stroke-opacity:.5;stroke-width:1;fill:none}}
svg.fig .reference{{stroke:var(--muted);stroke-width:1.2;stroke-dasharray:5 4;fill:none}}
svg.fig .training{{stroke:currentColor;stroke-opacity:.5;stroke-width:1.1;fill:none;stroke-linejoin:round}}
svg.fig .held-out{{stroke:currentColor;stroke-width:2.4;fill:none;stroke-linejoin:round;stroke-linecap:round}}
svg.fig .marker{{fill:currentColor;stroke:var(--paper,transparent);stroke-width:1.5}}
svg.fig .whisker{{stroke:currentColor;stroke-width:2;stroke-linecap:round;fill:none}}
svg.fig .area{{fill:currentColor;fill-opacity:.07;stroke:currentColor;stroke-width:2;stroke-linejoin:round}}
svg.fig text.series{{fill:currentColor;font-weight:600}}
svg.fig .cell{{fill:currentColor}}
svg.fig .best{{fill:none;stroke:var(--accent);stroke-width:2.2}}
svg.fig .m{{color:var(--muted)}}
""" + "".join(f"svg.fig .s{i}{{color:var(--s{i})}}\n" for i in range(NUM_SERIES))


def figure_style() -> str:
    """The style sheet of every figure: colours for light and dark as custom properties of the root, then rules."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in colours.items()) for colours in (_LIGHT, _DARK))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{_RULES}"


def element(tag: str, *content: str, **attributes: object) -> str:
    """One element around ``content`` (markup, not escaped).

    An underscore in an attribute's name stands for a hyphen, a final one is dropped (``class_``); values are
    escaped, numbers that are not whole are rounded to two places, and None leaves the attribute out.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is not None:
            shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{html.escape(visible(shown))}"')
    inside = "".join(content)
    return f"<{' '.join(parts)}>{inside}</{tag}>" if inside else f"<{' '.join(parts)}/>"


def text(x: float, y: float, content: str, size: float, **attributes: object) -> str:
    """Escaped text with its baseline at ``(x, y)``."""
    return element("text", html.escape(visible(content)), x=float(x), y=float(y), font_size=float(size), **attributes)


def tooltip(content: str) -> str:
    """The title of the element it is put in."""
    return element("title", html.escape(visible(content)))


def polyline(points: Sequence[tuple[float, float]], class_: str) -> str:
    """An open line through pixel coordinates."""
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=class_)


def mark(series: int, x: float, y: float, size: float, *content: str) -> str:
    """A marker at ``(x, y)``: each series has a shape of its own, so that colour is not needed to tell them apart.

    Args:
        series: Number of the series; shapes repeat after :data:`NUM_SERIES`.
        x: Centre.
        y: Centre.
        size: About half of its width.
        content: Such as a tooltip.
    """
    if series % NUM_SERIES == 0:
        return element("circle", *content, cx=x, cy=y, r=size, class_="marker")
    corners, turn = ((4, 45), (4, 0), (3, 0), (3, 180), (6, 30))[series % NUM_SERIES - 1]
    radius = size * {3: 1.3, 4: 1.2, 6: 1.1}[corners]
    angles = [math.radians(turn + 360 * i / corners - 90) for i in range(corners)]
    points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points) + "Z"
    return element("path", *content, d=path, class_="marker")


def document(
    width: float, height: float, *content: str, title: str, description: str, standalone: bool, scale: float = 1.0
) -> str:
    """A whole figure with its text alternatives.

    Args:
        width: Width of the coordinate system, in its own units.
        height: Height of the coordinate system.
        title: A few words; with the description the accessible name.
        description: What the figure shows, in sentences.
        standalone: Make it a file of its own: name space, own style for light and dark.
        scale: CSS pixels for each unit where a standalone file is shown at its own size.
    """
    style = element("style", figure_style()) if standalone else ""
    return element(
        "svg", tooltip(title), element("desc", html.escape(visible(description))), style, *content,
        xmlns="http://www.w3.org/2000/svg" if standalone else None,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width * scale) if standalone else None,
        height=round(height * scale) if standalone else None,
        class_="fig", role="img", aria_label=f"{title}. {description}",
    )  # fmt: skip


def layer_colours(index: int, count: int) -> tuple[str, str]:
    """Fill of base layer ``index`` of ``count``, and a colour for text on it, as hex.

    Lightness and hue grow in equal steps at one chroma in Oklch, so neighbours differ equally all along the scale,
    from a dark violet to a light yellow green; the order also reads in grey.
    """
    position = index / (count - 1) if count > 1 else 0.35
    lightness, chroma, hue = 0.43 + 0.43 * position, 0.105, math.radians(292 - 180 * position)
    return _hex(lightness, chroma * math.cos(hue), chroma * math.sin(hue)), "#fff" if lightness < 0.563 else "#05080d"


def _hex(lightness: float, a: float, b: float) -> str:
    """Oklab to sRGB (the inverse of Ottosson's two matrices), clipped to the gamut."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    encoded = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in linear)
    return "#" + "".join(f"{round(255 * min(max(c, 0.0), 1.0)):02x}" for c in encoded)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values within ``[low, high]``, about ``most`` at most, in steps of 1, 2 or 5 times a power of 10."""
    if not high > low:
        return [low]
    rough = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours in order are ``gap`` apart, within ``[low, high]`` where all fit there.

    The order is kept; the result stands in the order of the argument.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(positions[i], placed[-1] + gap if placed else low))
    limit = max(high, low + gap * (len(placed) - 1))
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], limit)
        limit = placed[k] - gap
    result = [0.0] * len(placed)
    for i, y in zip(order, placed, strict=True):
        result[i] = y
    return result
