"""How the drawings of a report become inline SVG: plain values in, one `Chart` out, drawn or with the reason why not.

Text stays text and takes the page's font and colours: matplotlib draws in placeholder colours, which become the
page's CSS variables, so a chart follows light, dark and paper. No series is told by its colour alone. matplotlib is
imported when something is drawn, through its object interface, and no global setting of it is left changed. Margins are
given and not found by drawing twice, so a chart is drawn once.

Guarantees: the same values give the same bytes; ids of two charts never clash; names are escaped and never read as
formulae.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

WIDTH, HALF = 760, 430  # px, of a chart over the whole page and of one beside another
_MARKED, _NAME = 40, 26  # most points of a curve with markers; letters of a name

INK, MUTED, RULE, TRACK = "#0a0101", "#0a0202", "#0a0303", "#0a0404"
ONE, TWO, THREE, BG = "#0a0505", "#0a0606", "#0a0707", "#0a0808"
_VARIABLE = {INK: "ink", MUTED: "muted", RULE: "rule", TRACK: "track", ONE: "one", TWO: "two", THREE: "three", BG: "bg"}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the page.

    Args:
        key: distinct on the page.
        title: what it shows, with delta and unit where it shows epsilon.
        text: the same in words, with the first and last numbers.
        body: what stands inside the svg element; None when there is nothing to draw.
        reason: why there is nothing to draw.
    """

    key: str
    title: str
    text: str = ""
    body: str | None = None
    width: int = WIDTH
    height: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a chart and of the margins around its axes, in px."""

    width: int = WIDTH
    height: int = 250
    left: int = 62
    right: int = 14
    top: int = 16
    bottom: int = 44


def chart(key: str, title: str, text: str, size: Size, draw: Callable[[Figure], None]) -> Chart:
    """Return a drawn chart.

    Args:
        key: distinct on the page.
        title: with delta and unit where it shows epsilon.
        text: the same in words.
        size: in px.
        draw: puts the axes of `plot` on the figure and draws.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context({**_SETTINGS, "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser's fonts draw the text, not matplotlib's
        figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    body = _inline(stream.getvalue(), key)
    return Chart(key=key, title=title, text=text, body=body, width=size.width, height=size.height)


def plot(figure: Figure, size: Size, x: str = "", y: str = "") -> Axes:
    """Return the axes of a chart; `y` is written above them, where it needs no turning."""
    width, height = size.width, size.height
    inner = (width - size.left - size.right, height - size.top - size.bottom)
    axes = figure.add_axes((size.left / width, size.bottom / height, inner[0] / width, inner[1] / height))
    dress(axes)
    axes.set_xlabel(x)
    if y:
        axes.text(-0.0, 1.0, y, transform=axes.transAxes, color=MUTED, va="bottom", ha="left")
    return axes


def dress(axes: Axes) -> None:
    """Give axes the look of the page: faint lines across, no frame."""
    axes.xaxis.set_major_locator(whole(10))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(visible=True, axis="y", linewidth=0.8)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)


def whole(ticks: int) -> Locator:
    """Return a locator of so many whole numbers at most."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, nbins=ticks, min_n_ticks=1, steps=[1, 2, 5, 10])


def marker(points: Sequence[object]) -> str:
    """Return the marker of a curve: none where there are many points."""
    return "o" if len(points) <= _MARKED else ""


def short(name: str) -> str:
    """Return a name that is not too long for a chart."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


# --- matplotlib to inline SVG ---------------------------------------------------------------------------------

_SETTINGS: Any = {  # the type of its keys differs from release to release of matplotlib
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "hatch.linewidth": 1.6,
    "axes.titlepad": 8,
}


def _inline(svg: str, key: str) -> str:
    """Return the drawing's elements with the page's colours and font and with ids of their own."""
    start, end = svg.index("<svg"), svg.rindex("</svg>")
    body = svg[svg.index(">", start) + 1 : end]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag.group(), key), body)  # inside tags alone: text may look like one
    return re.sub(r"\s*\n\s*", "\n", body).strip()


def _tag(tag: str, key: str) -> str:
    tag = re.sub(r'\bid="', f'id="{key}-', tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{key}-', tag)
    tag = tag.replace("url(#", f"url(#{key}-")
    tag = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;\"]*", _font, tag)
    tag = re.sub(r" ?font-family: [^;\"]*;?", "", tag)
    return re.sub("|".join(_VARIABLE), lambda colour: f"var(--{_VARIABLE[colour.group()]})", tag)


def _font(found: re.Match[str]) -> str:
    return f"font-size: {found[2]}" + (f"; font-weight: {found[1]}" if found[1] else "")
