"""Scores and labels to the metrics that a study names (scikit-learn does the arithmetic where it has it).

A metric that the labels do not define (AUROC of one class) is None: absent, never zero. Balanced accuracy is the mean
recall of the classes that occur, the calibration error (ECE: Naeini et al. 2015; Guo et al. 2017) has 15 equal bins of
the second class's probability (two classes, or one label) or of the largest one (more classes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Labels = NDArray[np.generic]
Codes = NDArray[np.int64]
CALIBRATION_BINS = 15


def evaluate(scores: Scores, labels: Labels, names: Iterable[str]) -> dict[str, float | None]:
    """Return each metric by name, and always `loss`.

    Args:
        scores: (n, k) class probabilities that sum to 1, (n, 1) predicted values (regression), or (n, k) probabilities
            of labels.
        labels: (n,) class indices below k, (n,) values, or (n, k) zeros and ones (multilabel).
        names: metrics of the task.
    """
    of_one = _REGRESSION if scores.shape[1] == 1 else _CLASSIFICATION
    metrics = _MULTILABEL if labels.ndim == 2 else of_one
    wanted = {name: metrics[name] for name in (*names, "loss")}
    if len(labels) == 0:
        return dict.fromkeys(wanted)
    return {name: _number(metric(scores, labels)) for name, metric in wanted.items()}


def evaluate_groups(
    scores: Scores, labels: Labels, names: Sequence[str], groups: Mapping[str, tuple[Sequence[str], Codes]]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the metrics of the records with each value of each group column: by column, value and name.

    Args:
        scores: as in `evaluate`.
        labels: as in `evaluate`.
        names: metrics of the task.
        groups: by column, its values and (n,) position of each record's value among them, -1 for none of them.
    """
    return {
        column: {
            value: {name: found[name] for name in names}
            for code, value in enumerate(values)
            for found in [evaluate(scores[codes == code], labels[codes == code], names)]
        }
        for column, (values, codes) in groups.items()
    }


def columns(scores: Scores, labels: Labels) -> tuple[Scores, Scores]:
    """Return scores and truth (0 or 1) of each yes-or-no question: the second of two classes, else each class or label.

    Returns:
        (n, questions) twice.
    """
    if labels.ndim == 2:
        return scores, labels.astype(np.float64)
    truth = _indicator(scores, labels)
    return (scores[:, 1:], truth[:, 1:]) if scores.shape[1] == 2 else (scores, truth)


def decisions(scores: Scores, labels: Labels) -> Scores:
    """Return the answers (0 or 1) to the questions of `columns`: the likeliest class; for labels, above one half."""
    if labels.ndim == 2:
        return (scores > 0.5).astype(np.float64)
    chosen = _indicator(scores, scores.argmax(1))
    return chosen[:, 1:] if scores.shape[1] == 2 else chosen


def confidences(scores: Scores, labels: Labels) -> tuple[Scores, Scores]:
    """Return what a calibration error compares: confidences and whether each came true, (n, 1) or (n, labels)."""
    if labels.ndim == 2 or scores.shape[1] == 2:
        return columns(scores, labels)
    right = scores.argmax(1) == labels
    return scores.max(1, keepdims=True), right[:, None].astype(np.float64)


def calibration_bins(confidence: Scores) -> Codes:
    """Return the bin of each confidence: 15 of equal width, each with its upper end."""
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are defined."""
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else math.nan


def _indicator(scores: Scores, labels: Labels) -> Scores:
    truth: Scores = np.eye(scores.shape[1])[labels.astype(int)]
    return truth


def _over_columns(metric: Callable[[Scores, Scores], float], scores: Scores, labels: Labels) -> float:
    """The mean over the questions whose truth has both answers."""
    asked, truth = columns(scores, labels)
    both = [c for c in range(truth.shape[1]) if 0 < truth[:, c].sum() < len(truth)]
    return _mean([metric(truth[:, c], asked[:, c]) for c in both])


def _auroc(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import roc_auc_score

    return _over_columns(roc_auc_score, scores, labels)


def _auprc(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import average_precision_score

    return _over_columns(average_precision_score, scores, labels)


def _f1(scores: Scores, labels: Labels) -> float:
    """The second class's F1 (two classes), else the mean over classes or labels that occur or were answered."""
    from sklearn.metrics import f1_score

    truth, answers = columns(scores, labels)[1], decisions(scores, labels)
    return _mean([f1_score(truth[:, c], answers[:, c], zero_division=np.nan) for c in range(truth.shape[1])])


def _ece(scores: Scores, labels: Labels) -> float:
    confidence, truth = confidences(scores, labels)
    bins = calibration_bins(confidence)
    gaps = [
        np.abs(np.bincount(bins[:, c], truth[:, c] - confidence[:, c])).sum() / len(truth)
        for c in range(truth.shape[1])
    ]
    return float(np.mean(gaps))


def _accuracy(scores: Scores, labels: Labels) -> float:
    return float((scores.argmax(1) == labels).mean())


def _balanced_accuracy(scores: Scores, labels: Labels) -> float:
    right = scores.argmax(1) == labels
    return _mean([float(right[labels == label].mean()) for label in np.unique(labels)])


def _brier(scores: Scores, labels: Labels) -> float:
    """Mean squared error of the second class's probability (two classes), or of all (Brier 1950) for more."""
    squares = (scores - _indicator(scores, labels)) ** 2
    return float(squares[:, 1].mean() if scores.shape[1] == 2 else squares.sum(1).mean())


def _log_loss(scores: Scores, labels: Labels) -> float:
    chosen = np.take_along_axis(scores, labels.astype(int)[:, None], axis=1)
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean())


def _label_loss(scores: Scores, labels: Labels) -> float:
    chosen = np.where(labels.astype(bool), scores, 1 - scores)
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean())


def _squared_error(scores: Scores, labels: Labels) -> float:
    return float(((scores[:, 0] - labels.astype(float)) ** 2).mean())


def _r2(scores: Scores, labels: Labels) -> float:
    variance = float(np.var(labels.astype(float)))
    return 1 - _squared_error(scores, labels) / variance if variance > 0 else math.nan


Metric = Callable[[Scores, Labels], float]
_RANKING: dict[str, Metric] = {"auroc": _auroc, "auprc": _auprc, "f1": _f1, "ece": _ece}
_CLASSIFICATION: dict[str, Metric] = {
    **_RANKING,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "brier": _brier,
    "loss": _log_loss,
}
_MULTILABEL: dict[str, Metric] = {
    **_RANKING,
    "accuracy": lambda scores, labels: float(((scores > 0.5) == labels.astype(bool)).mean()),
    "brier": lambda scores, labels: float(((scores - labels.astype(float)) ** 2).mean()),
    "loss": _label_loss,
}
_REGRESSION: dict[str, Metric] = {
    "rmse": lambda scores, labels: math.sqrt(_squared_error(scores, labels)),
    "mae": lambda scores, labels: float(np.abs(scores[:, 0] - labels.astype(float)).mean()),
    "r2": _r2,
    "loss": _squared_error,
}
