"""Metrics of summed counts (the vector of `strategies.counts`).

Resolution: AUROC and AUPRC are those of scores rounded to the layout's bins. `resolution_of` bounds the error, and
where the bound is above 0.1 (all scores in a few bins) the metric is None. All else is exact up to 2^-28 a record. A
unit with several records weighs as much as one with a single record.

Guarantees: a metric that the counts do not define, or that their noise drowns, is None and never a wrong number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from strategies.counts import CountLayout, Floats

Metrics = dict[str, float | None]
Histograms = list[tuple[Floats, Floats]]
_DEVIATIONS = 20.0  # of its noise that a denominator must have: shares of it are then good to about a twentieth
_COARSEST = 0.1  # resolution beyond which a ranking metric says nothing
_LEAST_SPREAD = 2.0**-20  # squared, a record: below it, the grid of the counts would show in R²


def metrics_of(layout: CountLayout, total: Floats, *, deviation: float = 0.0) -> Metrics:
    """Return each metric of the layout and `loss` (regression: mean squared error; else None, for it has no bound).

    Args:
        layout: of the vector.
        total: (layout.size,) sum over silos.
        deviation: standard deviation of the noise in each entry of `total`; 0 for exact counts.
    """
    return _metrics(layout, total[: layout.block].astype(np.float64), deviation)


def groups_of(layout: CountLayout, total: Floats, *, deviation: float = 0.0) -> dict[str, dict[str, Metrics]]:
    """Return the metrics of each value of each group column: by column, value and name, without `loss`."""
    found: dict[str, dict[str, Metrics]] = {}
    number = 1
    for column, values in layout.groups:
        found[column] = {}
        for value in values:
            block = total[number * layout.block : (number + 1) * layout.block].astype(np.float64)
            seen = _metrics(layout, block, deviation)
            found[column][value] = {name: seen[name] for name in layout.metrics}
            number += 1
    return found


def resolution_of(layout: CountLayout, total: Floats, *, deviation: float = 0.0) -> dict[str, float]:
    """Return how far AUROC and AUPRC can be from those of the scores themselves, through the bins alone.

    Within a bin the order of scores is lost. For AUROC that is half of the pairs (positive, negative) that share a bin;
    for AUPRC, each positive's precision lies between those of a bin with its negatives first and with none of them.
    """
    parts = layout.split(total[: layout.block].astype(np.float64))
    found = _resolution(_histograms(layout, parts, deviation)) if "scores" in parts else {}
    return {name: value for name, value in found.items() if value is not None and name in layout.metrics}


def _metrics(layout: CountLayout, block: Floats, deviation: float) -> Metrics:
    parts = layout.split(block)
    seen = (_of_errors if layout.task == "regression" else _of_answers)(layout, parts, deviation)
    return {name: _sound(seen.get(name)) for name in (*layout.metrics, "loss")}


def _sound(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _there(number: float, deviation: float, entries: float) -> bool:
    """Whether a sum of `entries` counts is above zero, and large beside its noise."""
    return bool(number > _DEVIATIONS * deviation * math.sqrt(entries))


def _of_answers(layout: CountLayout, parts: Mapping[str, Floats], deviation: float) -> Metrics:
    cells, asked = parts["cells"], layout.questions
    # each record is counted once a question, or, one of many classes, once among all true positives and false negatives
    number = float(cells[:, [0, 2]].sum() if layout.one_of_many else cells.sum() / asked)
    if not _there(number, deviation, 2 * asked if layout.one_of_many else 4 / asked):
        return {}
    true_pos, false_pos, false_neg, true_neg = _table(layout, cells, number)
    right = true_pos.sum() if layout.one_of_many else (true_pos + true_neg).sum() / asked
    histograms = _histograms(layout, parts, deviation)
    found: Metrics = {
        "accuracy": right / number,
        "balanced_accuracy": _recall(layout, (true_pos, false_pos, false_neg, true_neg), deviation),
        "f1": _mean(
            [
                2 * t / (2 * t + p + n)
                for t, p, n in zip(true_pos, false_pos, false_neg, strict=True)
                if _there(t + p + n, deviation, 3)
            ]
        ),
        **_rankings(histograms),
    }
    if "calibration" in parts:
        gap = np.abs(parts["calibration"]).sum() / (len(parts["calibration"]) * number)
        found["ece"] = gap if gap <= 1 else None
    if "brier" in parts:
        share = parts["brier"][0] / number
        found["brier"] = share * (2 if layout.one_of_many else 1) if 0 <= share <= 1 else None
    return found


def _table(layout: CountLayout, cells: Floats, number: float) -> tuple[Floats, ...]:
    """Return the four cells of each question, none of them negative."""
    if not layout.one_of_many:
        sound = np.stack([_nearest(row, number) for row in cells])  # every record answers every question
        return sound[:, 0], sound[:, 1], sound[:, 2], sound[:, 3]
    actual = _nearest(cells[:, [0, 2]].ravel(), number).reshape(-1, 2)
    false_pos = _nearest(cells[:, 1], float(actual[:, 1].sum()))
    return actual[:, 0], false_pos, actual[:, 1], number - actual.sum(1) - false_pos


def _recall(layout: CountLayout, table: tuple[Floats, ...], deviation: float) -> float | None:
    """The mean recall of the classes that occur; two classes are the yes and the no of one question."""
    true_pos, false_pos, false_neg, true_neg = table
    pairs = [*zip(true_pos, false_neg, strict=True)]
    if layout.questions == 1:
        pairs += [*zip(true_neg, false_pos, strict=True)]
    return _mean([hit / (hit + miss) for hit, miss in pairs if _there(hit + miss, deviation, 2)])


def _histograms(layout: CountLayout, parts: Mapping[str, Floats], deviation: float) -> Histograms:
    """Return the score histograms (of positives, of negatives) of each question whose truth has both answers.

    Their totals come from the confusion table, whose few entries carry less noise than the sum of all bins.
    """
    if "scores" not in parts:
        return []
    cells = parts["cells"]
    positive = cells[:, 0] + cells[:, 2]
    negative = positive.sum() - positive if layout.one_of_many else cells[:, 1] + cells[:, 3]
    of_negative = 2 * (len(cells) - 1) if layout.one_of_many else 2
    return [
        (_nearest(bins[1], p), _nearest(bins[0], n))
        for bins, p, n in zip(parts["scores"], positive, negative, strict=True)
        if _there(p, deviation, 2) and _there(n, deviation, of_negative)
    ]


def _nearest(values: Floats, total: float) -> Floats:
    """Return the nearest counts (least squares) that are not negative and have this total; exact counts stay.

    The projection onto a simplex (Duchi et al. 2008, figure 1). For a histogram with Gaussian noise it is the most
    likely one; unlike clipping at zero it has no bias towards empty bins ("Norm-Sub" in Wang et al. 2020).
    """
    if (values >= 0).all() and math.isclose(values.sum(), total, rel_tol=1e-12):
        return values
    ordered = np.sort(values)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(values) + 1)
    kept = np.flatnonzero(ordered > excess)
    projected: Floats = np.maximum(values - (excess[kept[-1]] if len(kept) else ordered[0]), 0.0)
    return projected


def _rankings(histograms: Histograms) -> Metrics:
    limits = _resolution(histograms)
    found: Metrics = {
        "auroc": _mean([_auroc(pos, neg) for pos, neg in histograms]),
        "auprc": _mean([_auprc(pos, neg) for pos, neg in histograms]),
    }
    return {name: value if (limits[name] or 0) <= _COARSEST else None for name, value in found.items()}


def _resolution(histograms: Histograms) -> Metrics:
    return {
        "auroc": _mean([float((pos * neg).sum() / (2 * pos.sum() * neg.sum())) for pos, neg in histograms]),
        "auprc": _mean([_precision_gap(pos, neg) for pos, neg in histograms]),
    }


def _auroc(pos: Floats, neg: Floats) -> float:
    """The share of pairs in order, a pair in one bin counting half: the trapezoids under the curve."""
    below = np.cumsum(neg) - neg
    return float((pos * (below + neg / 2)).sum() / (pos.sum() * neg.sum()))


def _precisions(pos: Floats, neg: Floats) -> tuple[Floats, Floats, Floats]:
    """Return, from the highest bin down, positives of each bin and all positives and negatives down to its end."""
    return pos[::-1], np.cumsum(pos[::-1]), np.cumsum(neg[::-1])


def _auprc(pos: Floats, neg: Floats) -> float:
    """Average precision, the scores of a bin taken as equal."""
    here, true, false = _precisions(pos, neg)
    return float((here * true / np.maximum(true + false, 1e-300)).sum() / pos.sum())


def _precision_gap(pos: Floats, neg: Floats) -> float:
    here, true, false = _precisions(pos, neg)
    some = here > 0
    here, true, false, last = here[some], true[some], false[some], neg[::-1][some]
    middle, above = true / (true + false), true - here
    high = true / (true + false - last)
    low = np.where(false > 0, above / np.maximum(above + false, 1e-300), 1.0)
    return float((here * np.maximum(high - middle, middle - low)).sum() / pos.sum())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _of_errors(layout: CountLayout, parts: Mapping[str, Floats], deviation: float) -> Metrics:
    assert layout.bounds is not None
    width, number = layout.bounds[1] - layout.bounds[0], float(parts["number"][0])
    if not _there(number, deviation, 1):
        return {}
    square = float(parts["squares"][0]) / number
    found: Metrics = {}
    if 0 <= square <= 1:
        found = {"rmse": width * math.sqrt(square), "loss": width**2 * square}
    if "absolute" in parts and 0 <= parts["absolute"][0] <= number:
        found["mae"] = width * float(parts["absolute"][0]) / number
    if "targets" in parts and "rmse" in found:
        first, second = (float(value) for value in parts["targets"])
        spread = second - first**2 / number  # of the value as a number from -1 to 1, whose width is 2
        surely = _there(spread, deviation, 2) and spread > _LEAST_SPREAD * number
        found["r2"] = 1 - 4 * square * number / spread if surely else None
    return found
