"""Scores and labels to the metrics that a study names (scikit-learn does the arithmetic).

A metric that the labels do not define (AUROC of one class) is None: absent, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Labels = NDArray[np.generic]


def evaluate(scores: Scores, labels: Labels, names: Iterable[str]) -> dict[str, float | None]:
    """Return each metric by name, and always `loss`.

    Args:
        scores: (n, k) class probabilities that sum to 1, or (n, 1) predicted values (regression).
        labels: (n,) class indices below k, or (n,) values.
        names: metrics of the task.
    """
    metrics = _REGRESSION if scores.shape[1] == 1 else _CLASSIFICATION
    wanted = {name: metrics[name] for name in (*names, "loss")}
    if len(labels) == 0:
        return dict.fromkeys(wanted)
    return {name: _number(metric(scores, labels)) for name, metric in wanted.items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _indicator(scores: Scores, labels: Labels) -> Scores:
    truth: Scores = np.eye(scores.shape[1])[labels.astype(int)]
    return truth


def _over_classes(metric: Callable[[Scores, Scores], float], scores: Scores, labels: Labels) -> float:
    """The second class's value for two classes, else the mean over classes that have both kinds of label."""
    truth = _indicator(scores, labels)
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    values = [metric(truth[:, c], scores[:, c]) for c in columns if 0 < truth[:, c].sum() < len(truth)]
    return float(np.mean(values)) if values else math.nan


def _auroc(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import roc_auc_score

    return _over_classes(roc_auc_score, scores, labels)


def _auprc(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import average_precision_score

    return _over_classes(average_precision_score, scores, labels)


def _accuracy(scores: Scores, labels: Labels) -> float:
    return float((scores.argmax(1) == labels).mean())


def _brier(scores: Scores, labels: Labels) -> float:
    """Mean squared error of the second class's probability (two classes), or of all (Brier 1950) for more."""
    squares = (scores - _indicator(scores, labels)) ** 2
    return float(squares[:, 1].mean() if scores.shape[1] == 2 else squares.sum(1).mean())


def _log_loss(scores: Scores, labels: Labels) -> float:
    chosen = np.take_along_axis(scores, labels.astype(int)[:, None], axis=1)
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean())


def _squared_error(scores: Scores, labels: Labels) -> float:
    return float(((scores[:, 0] - labels.astype(float)) ** 2).mean())


def _r2(scores: Scores, labels: Labels) -> float:
    variance = float(np.var(labels.astype(float)))
    return 1 - _squared_error(scores, labels) / variance if variance > 0 else math.nan


_CLASSIFICATION: dict[str, Callable[[Scores, Labels], float]] = {
    "accuracy": _accuracy,
    "auroc": _auroc,
    "auprc": _auprc,
    "brier": _brier,
    "loss": _log_loss,
}
_REGRESSION: dict[str, Callable[[Scores, Labels], float]] = {
    "rmse": lambda scores, labels: math.sqrt(_squared_error(scores, labels)),
    "mae": lambda scores, labels: float(np.abs(scores[:, 0] - labels.astype(float)).mean()),
    "r2": _r2,
    "loss": _squared_error,
}
