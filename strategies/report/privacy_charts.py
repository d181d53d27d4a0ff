"""The drawings of what was spent and what it allows an attacker: shared by the run report and the budget report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from strategies.report.drawing import BG, HALF, INK, MUTED, ONE, TRACK, TWO, Chart, Size, chart, marker, plot, short
from strategies.report.numbers import delta_text, percent, percent_left, privacy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

Pairs = Sequence[tuple[float, float]]
_MOST_STEPS = 14  # bars of the waterfall


def budget_bar(key: str, title: str, parts: tuple[float, float, float], text: str) -> Chart:
    """Draw the three parts of one budget with lines at 80 % and 100 %.

    Args:
        key: distinct on the page.
        title: with delta and unit.
        parts: committed, reserved and free, as shares of the budget.
        text: the same in words.
    """
    size = Size(height=96, left=12, right=28, top=46, bottom=26)
    committed, reserved, free = parts

    def draw(figure: Figure) -> None:
        axes = plot(figure, size)
        axes.barh(0, committed, 0.6, color=ONE, label=f"committed {percent(committed)}")
        axes.barh(
            0,
            reserved,
            0.6,
            left=committed,
            label=f"reserved {percent(reserved)}",
            color=BG,
            edgecolor=TWO,
            hatch="////",
            linewidth=1,
        )
        left = committed + reserved
        axes.barh(0, free, 0.6, left=left, color=TRACK, label=f"free {percent_left(free)}")
        for line in (0.8, 1.0):
            axes.axvline(line, color=INK, linewidth=1.3, linestyle=(0, (4, 2)) if line < 1 else "-")
        axes.set_xlim(0, max(1.0, left))
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], [f"{n} %" for n in (0, 20, 40, 60, 80, 100)])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        figure.legend(loc="upper left", ncols=3)

    return chart(key, title, text, size, draw)


def growth_chart(key: str, title: str, points: Sequence[tuple[int, float, float]], limit: float | None) -> Chart:
    """Draw the total after each reservation: by PLD, and as the gate counts it.

    Args:
        key: distinct on the page.
        title: with delta and unit.
        points: (number of the reservation, PLD, gate), at least one.
        limit: the budget, if there is one.
    """
    size = Size(height=250, top=52)
    x = [point[0] for point in points]

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "reservation (a round, or the counts at the end of a run)", "ε")
        axes.plot(x, [p[1] for p in points], color=ONE, linewidth=2, marker=marker(points), markersize=4, label="PLD")
        axes.plot(
            x,
            [p[2] for p in points],
            color=TWO,
            linewidth=2,
            linestyle=(0, (6, 3)),
            marker="s" if marker(points) else "",
            markersize=4,
            label="as the gate counts",
        )
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=1.4, label="budget")
        axes.set_xlim(0, x[-1] * 1.02)
        axes.set_ylim(0, max(limit or 0, *(max(p[1:]) for p in points)) * 1.1)
        figure.legend(loc="upper left", ncols=3)

    last = points[-1]
    text = (
        f"After {last[0]} reservation{'' if last[0] == 1 else 's'}: ε = {privacy(last[1])} by PLD, "
        f"{privacy(last[2])} as "
        "the gate counts. The gate has a fixed part that the first release pays and no later one."
        + ("" if limit is None else f" The line is the budget, {privacy(limit)}.")
    )
    return chart(key, title, text, size, draw)


def profile_chart(key: str, title: str, pairs: Pairs, chosen: tuple[float, float]) -> Chart:
    """Draw delta over epsilon with the pair that is claimed.

    Args:
        key: distinct on the page.
        title: with unit.
        pairs: of a profile.
        chosen: epsilon and delta of the claim.
    """
    size = Size(width=HALF, height=250, top=26)
    shown = [(eps, delta) for eps, delta in pairs if delta > 0]

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "ε", "δ")
        axes.plot(*zip(*shown, strict=True), color=ONE, linewidth=2)
        axes.plot(*chosen, marker="o", markersize=8, color=TWO, linestyle="")
        axes.annotate(
            f"ε = {privacy(chosen[0])}\nδ = {delta_text(chosen[1])}",
            chosen,
            (-10, -8),
            textcoords="offset points",
            ha="right",
            va="top",
            color=TWO,
        )
        axes.set_yscale("log")
        powers = range(math.floor(math.log10(shown[-1][1])), 1)
        ticks = [10.0**power for power in powers if power % 2 == 0 or len(powers) < 8]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0, shown[-1][0])
        axes.xaxis.set_major_locator(_spread())

    text = (
        f"At ε = 0, δ is {delta_text(pairs[0][1]) if pairs[0][1] < 1e-3 else privacy(pairs[0][1])}; the pair that is "
        f"claimed is ε = {privacy(chosen[0])} at δ = {delta_text(chosen[1])}. Every pair on the line holds."
    )
    return chart(key, title, text, size, draw)


def roc_chart(key: str, title: str, pairs: Pairs, stated: tuple[float, float], tried: Pairs = ()) -> Chart:
    """Draw the largest true-positive rate of any attack over its false-positive rate.

    Args:
        key: distinct on the page.
        title: with unit.
        pairs: false-positive and true-positive rates.
        stated: the pair that is written out.
        tried: what an audit's own attack reached.
    """
    size = Size(width=HALF, height=250, top=52)

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "false-positive rate", "true-positive rate, at most")
        axes.plot(*zip(*pairs, strict=True), color=ONE, linewidth=2, label="bound")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.3, linestyle=(0, (2, 2)), label="blind guess")
        axes.plot(*stated, marker="o", markersize=8, color=TWO, linestyle="", clip_on=False)
        if tried:
            axes.plot(*zip(*tried, strict=True), color=TWO, linewidth=1.4, marker="x", markersize=4, label="audit")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        figure.legend(loc="upper left", ncols=3)

    under = (
        "The crosses are what the audit's attack reached on canaries of one silo; chance can move each of them."
        if tried
        else "No audit has put a point under the line."
    )
    text = (
        f"An attack that accuses {percent(stated[0])} of the units that were not used finds at most "
        f"{percent(stated[1])} "
        f"of those that were (dot). {under}"
    )
    return chart(key, title, text, size, draw)


def steps_chart(key: str, title: str, steps: Sequence[tuple[str, float, float]]) -> Chart:
    """Draw how the total is built up, one bar a part: the waterfall.

    Args:
        key: distinct on the page.
        title: with delta and unit.
        steps: label, total before and after; at least two. Of many the last are drawn.
    """
    shown = steps[-_MOST_STEPS:]
    size = Size(
        width=HALF,
        height=66 + 26 * (len(shown) + 1),
        left=24 + 7 * max(len(short(label)) for label, _, _ in (*shown, ("in all", 0, 0))),
        right=64,
        top=12,
    )

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "ε")
        for y, (_, before, after) in enumerate(shown):
            axes.barh(y, after - before, 0.56, left=before, color=ONE)
            _beside(axes, after, y, f"+{privacy(max(0.0, round(after - before, 4)))}")
        axes.barh(len(shown), shown[-1][2], 0.56, color=BG, edgecolor=TWO, hatch="////", linewidth=1)
        _beside(axes, shown[-1][2], len(shown), privacy(shown[-1][2]), bold=True)
        labels = [*(short(label) for label, _, _ in shown), "in all"]
        axes.set_yticks(range(len(labels)), labels, color=INK)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(0, shown[-1][2] or 1)
        axes.xaxis.set_major_locator(_spread())
        axes.grid(visible=False)

    parts = ", ".join(f"{label} +{privacy(max(0.0, round(after - before, 4)))}" for label, before, after in shown)
    some = f"The last {len(shown)} of {len(steps)} parts: " if len(shown) < len(steps) else ""
    text = (
        f"{some}{parts}; in all {privacy(shown[-1][2])}. Losses do not add up: the total grows about like the square "
        "root of the number of releases, so an early part looks larger."
    )
    return chart(key, title, text, size, draw)


def ways_chart(key: str, title: str, ways: Sequence[tuple[str, float]]) -> Chart:
    """Draw one epsilon a bar: the same releases, counted in several ways.

    Args:
        key: distinct on the page.
        title: with delta and unit.
        ways: label and epsilon, at least one.
    """
    size = Size(width=HALF, height=56 + 30 * len(ways), left=164, right=70, top=12)

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "ε")
        most = max(value for _, value in ways) or 1
        for y, (_, value) in enumerate(ways):
            first = y == 0
            axes.barh(y, value, 0.56, color=ONE if first else BG, edgecolor=ONE, hatch=None if first else "////")
            _beside(axes, value, y, privacy(value), bold=first)
        axes.set_yticks(range(len(ways)), [label for label, _ in ways], color=INK)
        axes.set_ylim(len(ways) - 0.5, -0.5)
        axes.set_xlim(0, most)
        axes.xaxis.set_major_locator(_spread())
        axes.grid(visible=False)

    text = "The same releases: " + ", ".join(f"{label} {privacy(value)}" for label, value in ways) + "."
    return chart(key, title, text, size, draw)


def _spread() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, steps=[1, 2, 5, 10])


def _beside(axes: Axes, x: float, y: float, text: str, *, bold: bool = False) -> None:
    """Write a number right of the end of a bar."""
    weight = "bold" if bold else "normal"
    axes.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", color=INK, fontweight=weight)
