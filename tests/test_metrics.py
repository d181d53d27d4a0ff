"""Laws of the metrics: what scikit-learn's functions give, and absent where the labels do not define them.

Oracle: scikit-learn called on the arrays directly, and values worked by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from strategies.metrics import evaluate
from strategies.study import METRICS

NAMES = METRICS["classification"]


def probabilities(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size=rows)


def some_labels(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 1]).integers(0, classes, size=rows)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_are_scikit_learns_binary_metrics(seed: int) -> None:
    scores, labels = probabilities(40, 2, seed), some_labels(40, 2, seed)
    positive = scores[:, 1]
    assert evaluate(scores, labels, NAMES) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, positive > 0.5),
            "auroc": sk.roc_auc_score(labels, positive),
            "auprc": sk.average_precision_score(labels, positive),
            "brier": sk.brier_score_loss(labels, positive),
            "loss": sk.log_loss(labels, scores),
        }
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [3, 6])
def test_more_classes_are_means_over_classes(classes: int, seed: int) -> None:
    scores = probabilities(90, classes, seed)
    labels = np.r_[np.arange(classes), some_labels(90 - classes, classes, seed)]  # every class is there
    truth = np.eye(classes)[labels]
    assert evaluate(scores, labels, NAMES) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, scores.argmax(1)),
            "auroc": sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro"),
            "auprc": sk.average_precision_score(truth, scores, average="macro"),
            "brier": classes * sk.mean_squared_error(truth, scores),
            "loss": sk.log_loss(labels, scores),
        }
    )


@pytest.mark.parametrize("seed", range(3))
def test_regression_is_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    values, predicted = random.normal(size=30), random.normal(size=(30, 1))
    assert evaluate(predicted, values, METRICS["regression"]) == pytest.approx(
        {
            "rmse": sk.root_mean_squared_error(values, predicted),
            "mae": sk.mean_absolute_error(values, predicted),
            "r2": sk.r2_score(values, predicted),
            "loss": sk.mean_squared_error(values, predicted),
        }
    )


def test_values_worked_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    got = evaluate(scores, np.array([0, 0, 1, 1]), NAMES)
    # of the 4 pairs (0, 1) 3 are in order; precision 1 at recall 1/2, 2/3 at recall 1
    assert got == pytest.approx(
        {
            "accuracy": 0.5,
            "auroc": 0.75,
            "auprc": 0.5 * 1 + 0.5 * 2 / 3,
            "brier": (0.01 + 0.36 + 0.49 + 0.04) / 4,
            "loss": -math.log(0.9 * 0.4 * 0.3 * 0.8) / 4,
        }
    )
    three = evaluate(np.array([[0.5, 0.3, 0.2]]), np.array([2]), ["brier"])
    assert three["brier"] == pytest.approx(0.25 + 0.09 + 0.64)
    assert evaluate(np.array([[1.0], [3.0]]), np.array([2.0, 2.0]), ["rmse", "mae"]) == {"rmse": 1, "mae": 1, "loss": 1}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_ranking(label: int) -> None:
    got = evaluate(probabilities(5, 2, 1), np.full(5, label), NAMES)
    assert got["auroc"] is None
    assert got["auprc"] is None
    assert all(isinstance(got[name], float) for name in ("accuracy", "brier", "loss"))


def test_a_missing_class_is_left_out_of_the_mean() -> None:
    scores, labels = probabilities(60, 3, 2), some_labels(60, 2, 2)  # nobody is of class 2
    expected = [sk.roc_auc_score(labels == c, scores[:, c]) for c in (0, 1)]
    assert evaluate(scores, labels, ["auroc"])["auroc"] == pytest.approx(np.mean(expected))
    assert evaluate(scores, np.full(60, 1), ["auroc"])["auroc"] is None


def test_equal_values_have_no_r2() -> None:
    assert evaluate(np.zeros((3, 1)), np.ones(3), ["r2"]) == {"r2": None, "loss": 1.0}


@pytest.mark.parametrize(("columns", "names"), [(2, NAMES), (4, NAMES), (1, METRICS["regression"])])
def test_no_records_have_no_metrics(columns: int, names: tuple[str, ...]) -> None:
    assert evaluate(np.zeros((0, columns)), np.zeros(0), names) == dict.fromkeys((*names, "loss"))


def test_a_confident_mistake_has_a_finite_loss() -> None:
    assert evaluate(np.array([[1.0, 0.0]]), np.array([1]), [])["loss"] == pytest.approx(-math.log(1e-12))


def test_only_what_was_asked_and_the_loss_is_given() -> None:
    assert list(evaluate(probabilities(4, 2, 0), np.array([0, 1, 0, 1]), ["brier"])) == ["brier", "loss"]
