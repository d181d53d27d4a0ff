"""Laws of the metrics: what scikit-learn's functions give, and absent where the labels do not define them.

Oracle: scikit-learn called on the arrays directly, and values worked by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from strategies.metrics import calibration_bins, evaluate, evaluate_groups
from strategies.sections import METRICS

NAMES = METRICS["classification"]


def probabilities(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size=rows)


def some_labels(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 1]).integers(0, classes, size=rows)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The definition of Guo et al. 2017, equation 3, bin by bin."""
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


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
            "balanced_accuracy": sk.balanced_accuracy_score(labels, positive > 0.5),
            "f1": sk.f1_score(labels, positive > 0.5),
            "ece": calibration_error(positive, labels),
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
            "balanced_accuracy": sk.balanced_accuracy_score(labels, scores.argmax(1)),
            "f1": sk.f1_score(labels, scores.argmax(1), average="macro"),
            "ece": calibration_error(scores.max(1), labels == scores.argmax(1)),
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
            "balanced_accuracy": 0.5,
            "f1": 0.5,  # one true positive, one false positive, one false negative
            "ece": (0.1 + 0.6 + 0.7 + 0.2) / 4,  # each score in a bin by itself
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


LABEL_NAMES = METRICS["multilabel"]


def some_flags(rows: int, labels: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 2]).integers(0, 2, (rows, labels)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labels", [1, 4])
def test_labels_are_means_over_labels(labels: int, seed: int) -> None:
    scores, truth = np.random.default_rng(seed).random((80, labels)), some_flags(80, labels, seed)
    per_label = range(labels)
    assert evaluate(scores, truth, LABEL_NAMES) == pytest.approx(
        {
            "accuracy": np.mean([sk.accuracy_score(truth[:, c], scores[:, c] > 0.5) for c in per_label]),
            "auroc": sk.roc_auc_score(truth, scores, average="macro"),
            "auprc": sk.average_precision_score(truth, scores, average="macro"),
            "brier": np.mean([sk.brier_score_loss(truth[:, c], scores[:, c]) for c in per_label]),
            "f1": np.mean([sk.f1_score(truth[:, c], scores[:, c] > 0.5) for c in per_label]),
            "ece": np.mean([calibration_error(scores[:, c], truth[:, c]) for c in per_label]),
            "loss": np.mean([sk.log_loss(truth[:, c], scores[:, c]) for c in per_label]),
        }
    )


def test_a_label_that_all_or_none_have_is_left_out_of_the_ranking() -> None:
    scores, truth = np.random.default_rng(0).random((50, 3)), some_flags(50, 3, 0)
    truth[:, 1] = 0
    got = evaluate(scores, truth, LABEL_NAMES)
    assert got["auroc"] == pytest.approx(np.mean([sk.roc_auc_score(truth[:, c], scores[:, c]) for c in (0, 2)]))
    scores[:, 1] = 0.1  # nobody has it and nobody is said to: its F1 is 0 / 0
    expected = np.mean([sk.f1_score(truth[:, c], scores[:, c] > 0.5) for c in (0, 2)])
    assert evaluate(scores, truth, ["f1"])["f1"] == pytest.approx(expected)
    assert evaluate(scores, np.zeros((50, 3)), ["auroc", "auprc"])["auroc"] is None
    assert evaluate(np.zeros((0, 3)), np.zeros((0, 3)), LABEL_NAMES) == dict.fromkeys((*LABEL_NAMES, "loss"))


def test_f1_without_any_positive_is_absent_and_without_a_hit_zero() -> None:
    sure = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert evaluate(sure, np.array([0, 0]), ["f1"])["f1"] is None
    assert evaluate(sure, np.array([0, 1]), ["f1"])["f1"] == 0


def test_calibration_bins_have_their_upper_end() -> None:
    assert calibration_bins(np.array([0.0, 1e-9, 1 / 15, 1 / 15 + 1e-9, 1.0])).tolist() == [0, 0, 0, 1, 14]


def test_groups_are_evaluated_each_by_itself() -> None:
    scores, labels = probabilities(40, 2, 3), some_labels(40, 2, 3)
    codes = np.random.default_rng(3).integers(-1, 2, 40)  # -1 has a value that the study does not name
    got = evaluate_groups(scores, labels, ["auroc", "f1"], {"sex": (["F", "M", "X"], codes)})
    assert list(got) == ["sex"] and list(got["sex"]) == ["F", "M", "X"]
    for code, value in enumerate("FM"):
        expected = evaluate(scores[codes == code], labels[codes == code], ["auroc", "f1"])
        del expected["loss"]
        assert got["sex"][value] == expected and None not in expected.values()
    assert got["sex"]["X"] == {"auroc": None, "f1": None}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", [slice(None), slice(3, 4)])
def test_scores_that_are_no_numbers_have_no_metric(value: float, where: slice) -> None:
    scores, labels = probabilities(10, 2, 0), some_labels(10, 2, 0)
    scores[where] = value
    assert set(evaluate(scores, labels, ("accuracy", "auroc", "auprc")).values()) == {None}
