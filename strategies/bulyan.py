"""Bulyan: the most central updates by Krum's score, then for each parameter the mean of the values nearest the median.

El Mhamdi et al. 2018, "The hidden vulnerability of distributed learning in Byzantium", section 4: n - 2 byzantine
updates are selected, and of each parameter's values the n - 4 byzantine nearest to their median are averaged. Scores
are taken once, as Flower does; the paper takes them anew after each pick. What is promised holds for any selection.

Guarantees: with at most `byzantine` hostile silos, each parameter of the result is no farther from honest silos'
values than these are from each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from strategies.base import PerSiloStrategy, State
from strategies.distances import scores, squared_distances
from strategies.layout import Vector
from strategies.order_statistics import nearest_the_median, rows_of
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class Bulyan(PerSiloStrategy):
    """Krum's selection, then a mean around the median.

    Args:
        byzantine: hostile silos that it withstands, at least 1; it needs 4 byzantine + 3 silos.
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        require(self.byzantine >= 1, "bulyan.byzantine", self.byzantine, "a whole number of at least 1")

    @property
    def least_silos(self) -> int:
        return 4 * self.byzantine + 3

    def withstands(self, silos: int) -> int:
        return self.byzantine

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        rows = rows_of(updates, self.least_silos)
        order = np.argsort(scores(squared_distances(rows), self.byzantine), kind="stable")
        selected = [rows[place] for place in order[: len(rows) - 2 * self.byzantine]]
        return state.next(state.weights + nearest_the_median(selected, len(rows) - 4 * self.byzantine))
