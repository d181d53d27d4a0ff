"""Evaluation by counts that add up: what each silo computes on its own records, and the metrics of the sum.

A record becomes a vector of bounded length: which cell of the confusion table it falls in, which bin of its score's
histogram, how far its confidence was from the truth, its squared error. Vectors add up over records and silos; the sum
gives the metrics of the pooled records without anybody seeing a silo's own. The layout is a public function of the
study: only what the named metrics need is counted, once for all records and once for each value of a group column.

Guarantees: a unit with several records contributes their mean, so adding or removing a unit moves the sum by at most
`CountLayout.sensitivity` in L2; entries are whole multiples of 2^-28, so a sum does not depend on its order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.metrics import CALIBRATION_BINS, calibration_bins, columns, confidences, decisions
from strategies.sections import CategoricalFeature
from strategies.study import Study

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

FINE_BINS = 100  # of a score, where counts stay exact
COARSE_BINS = 25  # with noise: a fourth of the bins has half the noise in a sum over them, and less bias
GRID = 2.0**-28  # sums of up to 2^25 units are exact in float64
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some entries of a block: their name and shape, and the largest squared norm of one record's share of them."""

    name: str
    shape: tuple[int, ...]
    squared_norm: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class CountLayout:
    """What stands where in the vector: one block for all records, then one for each value of each group column.

    Args:
        task: of the study.
        outputs: number of classes or labels; 1 in regression.
        metrics: what the counts must give.
        groups: group columns with their values.
        bounds: of the value to predict, in regression.
        bins: of a score: equal steps of arcsin sqrt(score), finer near 0 and 1, so that a rare class is resolved too.
    """

    task: str
    outputs: int
    metrics: tuple[str, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bounds: tuple[float, float] | None = None
    bins: int = FINE_BINS

    @classmethod
    def of(cls, study: Study) -> CountLayout:
        """Return the layout that a study fixes."""
        data = study.file.data
        return cls(
            task=study.file.study.task,
            outputs=len(data.classes or (0,)),
            metrics=study.metrics,
            groups=tuple(group_values(study).items()),
            bounds=(data.target_range[0], data.target_range[1]) if data.target_range else None,
            bins=COARSE_BINS if study.file.evaluation.release == "noisy" else FINE_BINS,
        )

    @property
    def one_of_many(self) -> bool:
        """Whether each record is of exactly one of more than two classes."""
        return self.task == "classification" and self.outputs > 2

    @property
    def questions(self) -> int:
        """Yes-or-no questions that a record answers: two classes are one, more are one each, and so are labels."""
        return 1 if self.task == "classification" and self.outputs == 2 else self.outputs

    @cached_property
    def parts(self) -> tuple[Piece, ...]:
        """The parts of a block.

        The squared norms: one entry of 1 a question in `cells` and `scores` (in `cells`, one of many classes has a true
        positive, or a false positive and a false negative); values of at most 1 elsewhere.
        """
        wanted = set(self.metrics)
        if self.task == "regression":
            return (
                Piece(name="number", shape=(1,), squared_norm=1),
                Piece(name="squares", shape=(1,), squared_norm=1),
                *([Piece(name="absolute", shape=(1,), squared_norm=1)] if "mae" in wanted else []),
                *([Piece(name="targets", shape=(2,), squared_norm=2)] if "r2" in wanted else []),
            )
        asked, confident = self.questions, self.questions if self.task == "multilabel" else 1
        cells = Piece(name="cells", shape=(asked, 4), squared_norm=asked)
        if self.one_of_many:
            cells = Piece(name="cells", shape=(asked, 3), squared_norm=2)
        scores = Piece(name="scores", shape=(asked, 2, self.bins), squared_norm=asked)
        calibration = Piece(name="calibration", shape=(confident, CALIBRATION_BINS), squared_norm=confident)
        return (
            cells,
            *([scores] if wanted & {"auroc", "auprc"} else []),
            *([calibration] if "ece" in wanted else []),
            *([Piece(name="brier", shape=(1,), squared_norm=1)] if "brier" in wanted else []),
        )

    @property
    def block(self) -> int:
        """Length of one block."""
        return sum(part.size for part in self.parts)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.block * (1 + sum(len(values) for _, values in self.groups))

    @property
    def sensitivity(self) -> float:
        """The most that one unit moves the vector, in L2, rounded up to the grid.

        A record has a share in the first block and in at most one block of each group column, and the mean of vectors
        is no longer than the longest of them.
        """
        square = sum(part.squared_norm for part in self.parts) * (1 + len(self.groups))
        return math.ceil(math.sqrt(square) / GRID) * GRID

    def split(self, block: Floats) -> dict[str, Floats]:
        """Return the parts of one block by name."""
        starts = np.cumsum([0, *(part.size for part in self.parts)])
        pairs = zip(self.parts, starts, strict=False)
        return {part.name: block[at : at + part.size].reshape(part.shape) for part, at in pairs}


def group_values(study: Study) -> dict[str, tuple[str, ...]]:
    """Return the group columns of a study, each with the texts of its values in order."""
    found = {}
    for name in study.file.evaluation.groups:
        feature = study.file.data.features[name]
        assert isinstance(feature, CategoricalFeature)
        found[name] = tuple(_text(value) for value in feature.values)
    return found


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# --- records to counts --------------------------------------------------------------------------------------


def count(
    layout: CountLayout,
    scores: Floats,
    labels: NDArray[np.generic],
    *,
    unit_of_row: NDArray[np.integer[Any]] | None,
    groups: Mapping[str, NDArray[np.integer[Any]]],
    usable: NDArray[np.bool_] | None = None,
) -> Floats:
    """Return the sum over units of the mean vector of each unit's records.

    Args:
        layout: of the vector.
        scores: as in `metrics.evaluate`; every value is finite.
        labels: as in `metrics.evaluate`.
        unit_of_row: (n,) unit of each record, from 0; None where each is a unit of its own.
        groups: by column, (n,) position of each record's value, -1 for none of them.
        usable: (n,) False for a record that contributes nothing (its score was no number); all if None.
    """
    weights = np.ones(len(labels))
    if unit_of_row is not None and len(labels):
        weights /= np.bincount(unit_of_row)[unit_of_row]
    if usable is not None:
        weights = np.where(usable, weights, 0.0)
    total = np.zeros(layout.size)
    for start in range(0, len(weights), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        places, values = _shares(layout, scores[rows], labels[rows])
        # towards zero on the grid: no vector grows, and sums of whole numbers are exact in any order
        ticks = np.trunc(values * weights[rows, None] / GRID)
        here = {name: codes[rows].astype(np.int64) for name, codes in groups.items()}
        for base, chosen in _blocks(layout, here, len(values)):
            where = (places + base[:, None])[chosen]
            total += np.bincount(where.ravel(), ticks[chosen].ravel(), minlength=layout.size)
    return total * GRID


def _blocks(layout: CountLayout, groups: Mapping[str, Codes], rows: int) -> Iterable[tuple[Codes, NDArray[np.bool_]]]:
    """Yield the start of the block that each record has a share in, and which records have one."""
    yield np.zeros(rows, np.int64), np.ones(rows, bool)
    first = 1
    for name, values in layout.groups:
        codes = groups[name]
        yield (first + codes) * layout.block, codes >= 0
        first += len(values)


def _shares(layout: CountLayout, scores: Floats, labels: NDArray[np.generic]) -> tuple[Codes, Floats]:
    """Return places within a block and the values there, (rows, m) each; a place may come up twice."""
    make = _errors if layout.task == "regression" else _answers
    shares = make(layout, scores, labels)
    places, values, start = [], [], 0
    for part in layout.parts:
        where, what = shares[part.name]
        places.append(where + start)
        values.append(what)
        start += part.size
    return np.concatenate(places, axis=1), np.concatenate(values, axis=1)


def _answers(layout: CountLayout, scores: Floats, labels: NDArray[np.generic]) -> dict[str, tuple[Codes, Floats]]:
    asked, truth = columns(scores, labels)
    question = np.arange(layout.questions)
    steps = np.arcsin(np.sqrt(np.clip(asked, 0, 1))) * (2 / np.pi * layout.bins)
    bins = np.minimum(steps.astype(np.int64), layout.bins - 1)
    confidence, right = confidences(scores, labels)
    conf_at = np.arange(confidence.shape[1]) * CALIBRATION_BINS + calibration_bins(confidence)
    squares = ((asked - truth) ** 2).sum(1, keepdims=True)
    return {
        "cells": _cells(layout, truth, decisions(scores, labels)),
        "scores": ((question * 2 + truth.astype(int)) * layout.bins + bins, np.ones_like(truth)),
        "calibration": (conf_at, np.clip(right - confidence, -1, 1)),
        "brier": (np.zeros((len(scores), 1), np.int64), np.clip(squares / _most(layout), 0, 1)),
    }


def _most(layout: CountLayout) -> int:
    """The largest sum of one record's squared errors: all of them, but of probabilities that sum to 1 only two."""
    return 2 if layout.one_of_many else layout.questions


def _cells(layout: CountLayout, truth: Floats, answers: Floats) -> tuple[Codes, Floats]:
    """True positive, false positive, false negative and, unless the class is one of many, true negative."""
    if layout.one_of_many:
        actual, chosen = truth.argmax(1), answers.argmax(1)
        right = actual == chosen
        places = np.stack([np.where(right, 3 * actual, 3 * chosen + 1), 3 * actual + 2], axis=1)
        return places, np.stack([np.ones(len(right)), ~right], axis=1)
    cell = np.where(truth > 0, np.where(answers > 0, 0, 2), np.where(answers > 0, 1, 3))
    return 4 * np.arange(layout.questions) + cell, np.ones_like(truth)


def _errors(layout: CountLayout, scores: Floats, labels: NDArray[np.generic]) -> dict[str, tuple[Codes, Floats]]:
    """Errors over the public range of the value, and the value itself as a number from -1 to 1."""
    assert layout.bounds is not None  # the study is refused without
    low, high = layout.bounds
    truth = np.clip(labels.astype(np.float64), low, high)
    error = np.clip((scores[:, 0] - truth) / (high - low), -1, 1)
    place = 2 * (truth - low) / (high - low) - 1
    first = np.zeros((len(truth), 1), np.int64)
    return {
        "number": (first, np.ones((len(truth), 1))),
        "squares": (first, error[:, None] ** 2),
        "absolute": (first, np.abs(error)[:, None]),
        "targets": (first + np.arange(2), np.stack([place, place**2], axis=1)),
    }
