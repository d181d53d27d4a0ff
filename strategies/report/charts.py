"""The drawings of a report as inline SVG: plain values in, one `Chart` out, drawn or with the reason why not.

Text stays text and takes the page's font and colours: matplotlib draws in placeholder colours, which become the
page's CSS variables, so a chart follows light, dark and paper. No series is told by its colour alone. matplotlib is
imported when something is drawn, through its object interface, and no global setting of it is left changed.

Guarantees: the same values give the same bytes; ids of two charts never clash; names are escaped and never read as
formulae.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from strategies.report.template import floor, metric, percent, privacy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

WIDTH = 760  # px, of every chart
_POINTS, _MARKED, _BARS, _NAME = 150, 40, 20, 26  # most points of a curve; of one with markers; bars; letters of a name

_INK, _MUTED, _RULE, _TRACK = "#0a0101", "#0a0202", "#0a0303", "#0a0404"
_ONE, _TWO, _THREE, _BG = "#0a0505", "#0a0606", "#0a0707", "#0a0808"
_VARIABLE = {
    _INK: "ink",
    _MUTED: "muted",
    _RULE: "rule",
    _TRACK: "track",
    _ONE: "one",
    _TWO: "two",
    _THREE: "three",
    _BG: "bg",
}


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
class Attendance:
    """Who took part in one round: silos asked, silos that did not deliver, and whether the model moved."""

    round: int
    cohort: int
    dropped: int
    aggregated: bool


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric over the rounds, beside what it is compared with: (label, value) pairs."""

    label: str
    values: Sequence[float | None]
    baselines: Sequence[tuple[str, float | None]] = ()


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What one silo states of its budget; both numbers at the silo's own delta."""

    silo: str
    spent: float
    budget: float

    @property
    def share(self) -> float:
        """Spent part of the budget; above 1 when more is spent than there was."""
        return self.spent / self.budget if self.budget else math.inf


def epsilon_chart(title: str, points: Sequence[tuple[int, float]], planned: int, target: float | None) -> Chart:
    """Draw the worst silo's epsilon over the rounds.

    Args:
        title: with delta and unit.
        points: (round, epsilon), at least one.
        planned: rounds of the whole study.
        target: epsilon that the study asks for, if it does.
    """
    some = [points[i] for i in thin(len(points))]
    (first, low), (last, high) = points[0], points[-1]

    def draw(figure: Figure) -> None:
        axes = _axes(figure, "round", "ε")
        axes.plot([0, some[0][0]], [0.0, some[0][1]], color=_ONE, linewidth=2, alpha=0.5)
        axes.plot(*zip(*some, strict=True), color=_ONE, linewidth=2, marker=_marker(some), markersize=4)
        axes.annotate(
            privacy(high), (last, high), (2, -22), textcoords="offset points", ha="right", color=_ONE, fontweight="bold"
        )
        if target is not None:
            axes.axhline(target, color=_TWO, linewidth=1.5, linestyle=(0, (6, 3)))
            axes.annotate(f"planned ε = {privacy(target)}", (0, target), (4, 5), textcoords="offset points", color=_TWO)
        axes.set_xlim(0, max(planned, last) * 1.02)
        axes.set_ylim(0, max(high, target or 0) * 1.18 or 1)

    aim = f" The study plans for ε = {privacy(target)} in all (dashed line)." if target is not None else ""
    ran = f"from {privacy(low)} after round {first} to {privacy(high)}" if first != last else f"is {privacy(high)}"
    text = f"The worst silo's ε {'grows ' if first != last else ''}{ran} after round {last} of {planned}.{aim}"
    return _chart("epsilon", title, text, 270, draw)


def metrics_chart(title: str, rounds: Sequence[int], curves: Sequence[Curve]) -> Chart:
    """Draw each metric in a panel of its own, for their scales differ.

    Args:
        title: of the chart.
        rounds: of every curve.
        curves: at least one.
    """
    rows, kept = math.ceil(len(curves) / 2), thin(len(rounds))

    def draw(figure: Figure) -> None:
        panels = list(figure.subplots(rows, 2, squeeze=False).flat)
        for axes, curve in zip(panels, curves, strict=False):
            _panel(axes, [rounds[i] for i in kept], [curve.values[i] for i in kept], curve)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        lines, labels = panels[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper left", ncols=len(labels))

    ends = [f"{curve.label} {metric(curve.values[-1])}" for curve in curves if curve.values[-1] is not None]
    text = f"After the last round: {', '.join(ends)}." if ends else "No metric is defined in the last round."
    return _chart("metrics", title, text, 40 + 185 * rows, draw)


def budget_chart(title: str, spending: Sequence[Spending]) -> Chart:
    """Draw how much of its budget each silo has spent, the 20 worst at most.

    Args:
        title: with unit.
        spending: at least one.
    """
    worst = sorted(spending, key=lambda entry: (-entry.share, entry.silo))
    shown = worst[:_BARS]
    over = sum(entry.share >= 0.8 for entry in spending)
    rest = f"The {len(shown)} silos that have spent most are shown, of {len(worst)}. " if len(worst) > _BARS else ""
    text = (
        f"{rest}{worst[0].silo} has spent {privacy(worst[0].spent)} of ε = {privacy(worst[0].budget)}; "
        f"{over or 'none'} of {_times(len(worst), 'silo')} at 80 % or more{' (hatched)' if over else ''}."
    )
    return _chart("budget", title, text, 62 + 30 * len(shown), lambda figure: _bars(figure, shown))


def participation_chart(title: str, rounds: Sequence[Attendance]) -> Chart:
    """Draw how many silos were asked in each round and how many of them dropped out.

    Args:
        title: of the chart.
        rounds: at least one.
    """
    ends = [-1, *thin(len(rounds))]
    some = [max(rounds[a + 1 : b + 1], key=lambda one: (not one.aggregated, one.dropped)) for a, b in pairwise(ends)]

    lost, idle = sum(entry.dropped for entry in rounds), sum(not entry.aggregated for entry in rounds)
    text = (
        f"{_times(sum(entry.cohort for entry in rounds), 'request')} in {_times(len(rounds), 'round')}; "
        f"{lost or 'none'} brought no update; {_times(idle, 'round')} left the model as it was."
    )
    if len(some) < len(rounds):
        text += f" Drawn are {len(some)} rounds, the worst of each stretch."
    return _chart("participation", title, text, 230, lambda figure: _attendance(figure, some))


def thin(count: int, most: int = _POINTS) -> list[int]:
    """Return the indices to show of `count` points: evenly spread, the last among them, `most` at most."""
    return sorted({math.ceil((i + 1) * count / min(count, most)) - 1 for i in range(min(count, most))})


# --- parts ----------------------------------------------------------------------------------------------------


def _panel(axes: Axes, x: Sequence[int], values: Sequence[float | None], curve: Curve) -> None:
    _dress(axes)
    looks = [(_TWO, (0, (6, 3))), (_THREE, (0, (1, 1.6)))]
    axes.plot(
        x,
        [math.nan if value is None else value for value in values],
        color=_ONE,
        linewidth=2,
        marker=_marker(x),
        markersize=3.5,
        label="this run",
    )
    for (label, value), (colour, style) in zip(curve.baselines, looks, strict=False):
        if value is not None:
            axes.axhline(value, color=colour, linewidth=1.7, linestyle=style, label=label)
    axes.margins(y=0.12)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.locator_params(axis="y", nbins=5)
    axes.set_title(curve.label, loc="left", fontweight="bold")
    axes.set_title(f"{metric(curve.values[-1])} at the end", loc="right", color=_ONE)
    axes.set_xlabel("round")


def _attendance(figure: Figure, some: Sequence[Attendance]) -> None:
    axes, x = _axes(figure, "round", "silos"), [entry.round for entry in some]
    answered = [entry.cohort - entry.dropped for entry in some]
    width = 0.66 * min((b - a for a, b in pairwise(x)), default=1)
    axes.bar(x, answered, width, color=_ONE, label="answered")
    if any(entry.dropped for entry in some):
        axes.bar(
            x,
            [entry.dropped for entry in some],
            width,
            bottom=answered,
            color=_BG,
            edgecolor=_TWO,
            hatch="////",
            linewidth=1,
            label="dropped out",
        )
    stopped = [entry for entry in some if not entry.aggregated]
    if stopped:
        axes.plot(
            [entry.round for entry in stopped],
            [entry.cohort for entry in stopped],
            linestyle="",
            marker="x",
            markersize=7,
            markeredgewidth=2,
            color=_INK,
            label="too few: model left as it was",
            clip_on=False,
        )
    axes.set_xlim(min(x) - width, max(x) + width)
    axes.set_ylim(0, max(1, *(entry.cohort for entry in some)) * 1.08)
    axes.yaxis.set_major_locator(_whole(6))
    figure.legend(loc="outside upper left", ncols=3)


def _bars(figure: Figure, shown: Sequence[Spending]) -> None:
    axes = _axes(figure, "", "")
    most = max(1.0, *(min(entry.share, 2.0) for entry in shown))
    for y, entry in enumerate(shown):
        near, share = entry.share >= 0.8, min(entry.share, most)
        axes.barh(y, 1.0, 0.54, color=_TRACK)
        axes.barh(
            y,
            share,
            0.54,
            color=_BG if near else _ONE,
            edgecolor=_TWO if near else _ONE,
            hatch="////" if near else None,
            linewidth=1,
        )
        left = floor(max(0.0, entry.budget - entry.spent))
        axes.text(most * 1.02, y, f"{privacy(entry.spent)} spent, {left} left", va="center", color=_INK)
    for line in (0.8, 1.0):
        axes.axvline(line, color=_INK, linewidth=1.3, linestyle=(0, (4, 2)) if line < 1 else "-")
    axes.set_yticks(range(len(shown)), [_short(entry.silo) for entry in shown], color=_INK)
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_xlim(0, most)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], [percent(tick) for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)])
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def _axes(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    _dress(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y, rotation=0, ha="right", va="center")
    return axes


def _dress(axes: Axes) -> None:
    axes.xaxis.set_major_locator(_whole(10))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(visible=True, axis="y", linewidth=0.8)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)


def _whole(ticks: int) -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, nbins=ticks, min_n_ticks=1, steps=[1, 2, 5, 10])


def _marker(points: Sequence[object]) -> str:
    return "o" if len(points) <= _MARKED else ""


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _times(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


# --- matplotlib to inline SVG ---------------------------------------------------------------------------------


def _chart(key: str, title: str, text: str, height: int, draw: Callable[[Figure], None]) -> Chart:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context({**_SETTINGS, "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser's fonts draw the text, not matplotlib's
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Chart(key=key, title=title, text=text, body=_inline(stream.getvalue(), key), height=height)


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
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.06,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _RULE,
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
