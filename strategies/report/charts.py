"""The drawings of a run's report: epsilon and metrics over the rounds, budgets of the silos, who took part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from strategies.report.drawing import (
    BG,
    INK,
    ONE,
    THREE,
    TRACK,
    TWO,
    Chart,
    Size,
    chart,
    dress,
    marker,
    plot,
    short,
    whole,
)
from strategies.report.numbers import metric, percent, privacy, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BARS = 20  # most silos of the chart of budgets


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
    """What one silo states of its budget: the epsilons at its own delta, and the part spent as its gate counts."""

    silo: str
    spent: float
    budget: float
    share: float


def epsilon_chart(title: str, points: Sequence[tuple[int, float]], planned: int, target: float | None) -> Chart:
    """Draw the worst silo's epsilon over the rounds.

    Args:
        title: with delta and unit.
        points: (round, epsilon), at least one.
        planned: rounds of the whole study.
        target: epsilon that the study asks for, if it does.
    """
    some, size = [points[i] for i in thin(len(points))], Size(height=250, top=26)
    (first, low), (last, high) = points[0], points[-1]

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "round", "ε")
        axes.plot([0, some[0][0]], [0.0, some[0][1]], color=ONE, linewidth=2, alpha=0.5)
        axes.plot(*zip(*some, strict=True), color=ONE, linewidth=2, marker=marker(some), markersize=4)
        axes.annotate(
            privacy(high), (last, high), (2, -22), textcoords="offset points", ha="right", color=ONE, fontweight="bold"
        )
        if target is not None:
            axes.axhline(target, color=TWO, linewidth=1.5, linestyle=(0, (6, 3)))
            axes.annotate(f"planned ε = {privacy(target)}", (0, target), (4, 5), textcoords="offset points", color=TWO)
        axes.set_xlim(0, max(planned, last) * 1.02)
        axes.set_ylim(0, max(high, target or 0) * 1.18 or 1)

    aim = f" The study plans for ε = {privacy(target)} in all (dashed line)." if target is not None else ""
    ran = f"from {privacy(low)} after round {first} to {privacy(high)}" if first != last else f"is {privacy(high)}"
    text = f"The worst silo's ε {'grows ' if first != last else ''}{ran} after round {last} of {planned}.{aim}"
    return chart("epsilon", title, text, size, draw)


def metrics_chart(title: str, rounds: Sequence[int], curves: Sequence[Curve]) -> Chart:
    """Draw each metric in a panel of its own, for their scales differ.

    Args:
        title: of the chart.
        rounds: of every curve.
        curves: at least one.
    """
    rows, kept = math.ceil(len(curves) / 2), thin(len(rounds))
    size = Size(height=40 + 185 * rows)

    def draw(figure: Figure) -> None:
        panels = list(figure.subplots(rows, 2, squeeze=False).flat)
        figure.subplots_adjust(
            left=56 / size.width,
            right=1 - 14 / size.width,
            bottom=44 / size.height,
            top=1 - 66 / size.height,
            wspace=0.22,
            hspace=86 / 110,
        )
        for axes, curve in zip(panels, curves, strict=False):
            _panel(axes, [rounds[i] for i in kept], [curve.values[i] for i in kept], curve)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        lines, labels = panels[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="upper left", ncols=len(labels))

    ends = [f"{curve.label} {metric(curve.values[-1])}" for curve in curves if curve.values[-1] is not None]
    text = f"After the last round: {', '.join(ends)}." if ends else "No metric is defined in the last round."
    return chart("metrics", title, text, size, draw)


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
        f"{rest}{worst[0].silo} has spent {percent(worst[0].share)} of ε = {privacy(worst[0].budget)}; "
        f"{over or 'none'} of {_times(len(worst), 'silo')} at 80 % or more{' (hatched)' if over else ''}."
    )
    size = Size(
        height=42 + 30 * len(shown),
        left=24 + 7 * max(len(short(one.silo)) for one in shown),
        right=120,
        top=30,
        bottom=8,
    )
    return chart("budget", title, text, size, lambda figure: _bars(figure, size, shown))


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
    size = Size(height=230, top=48)
    return chart("participation", title, text, size, lambda figure: _attendance(figure, size, some))


# --- parts ----------------------------------------------------------------------------------------------------


def _panel(axes: Axes, x: Sequence[int], values: Sequence[float | None], curve: Curve) -> None:
    dress(axes)
    looks = [(TWO, (0, (6, 3))), (THREE, (0, (1, 1.6)))]
    axes.plot(
        x,
        [math.nan if value is None else value for value in values],
        color=ONE,
        linewidth=2,
        marker=marker(x),
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
    axes.set_title(f"{metric(curve.values[-1])} at the end", loc="right", color=ONE)
    axes.set_xlabel("round")


def _attendance(figure: Figure, size: Size, some: Sequence[Attendance]) -> None:
    axes, x = plot(figure, size, "round", "silos"), [entry.round for entry in some]
    answered = [entry.cohort - entry.dropped for entry in some]
    width = 0.66 * min((b - a for a, b in pairwise(x)), default=1)
    axes.bar(x, answered, width, color=ONE, label="answered")
    if any(entry.dropped for entry in some):
        axes.bar(
            x,
            [entry.dropped for entry in some],
            width,
            bottom=answered,
            color=BG,
            edgecolor=TWO,
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
            color=INK,
            label="too few: model left as it was",
            clip_on=False,
        )
    axes.set_xlim(min(x) - width, max(x) + width)
    axes.set_ylim(0, max(1, *(entry.cohort for entry in some)) * 1.08)
    axes.yaxis.set_major_locator(whole(6))
    figure.legend(loc="upper left", ncols=3)


def _bars(figure: Figure, size: Size, shown: Sequence[Spending]) -> None:
    axes = plot(figure, size)
    most = max(1.0, *(min(entry.share, 2.0) for entry in shown))
    for y, entry in enumerate(shown):
        near, share = entry.share >= 0.8, min(entry.share, most)
        axes.barh(y, 1.0, 0.54, color=TRACK)
        axes.barh(
            y,
            share,
            0.54,
            color=BG if near else ONE,
            edgecolor=TWO if near else ONE,
            hatch="////" if near else None,
            linewidth=1,
        )
        axes.text(most * 1.02, y, f"{percent(entry.share)} spent", va="center", color=INK)
    for line in (0.8, 1.0):
        axes.axvline(line, color=INK, linewidth=1.3, linestyle=(0, (4, 2)) if line < 1 else "-")
    axes.set_yticks(range(len(shown)), [short(entry.silo) for entry in shown], color=INK)
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_xlim(0, most)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], [percent(tick) for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)])
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def _times(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
