"""Multi-Krum: the mean of the updates that are nearest to their neighbours.

Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4: Krum's score
for each silo (see krum), and the mean of those with the least. By default all but `byzantine` are kept, as in Allouah
et al. 2023 ("Fixing by mixing", arXiv 2302.01772).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from strategies.base import PerSiloStrategy, State
from strategies.distances import mean_of, scores, squared_distances
from strategies.layout import Vector
from strategies.order_statistics import rows_of
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class MultiKrum(PerSiloStrategy):
    """Mean of the most central updates.

    Args:
        byzantine: hostile silos that it withstands, at least 1; it needs 2 byzantine + 3 silos.
        keep: updates that are averaged, at least 1 and at most all but `byzantine`, which 0 stands for.
    """

    byzantine: int = 1
    keep: int = 0

    def __post_init__(self) -> None:
        require(self.byzantine >= 1, "multi_krum.byzantine", self.byzantine, "a whole number of at least 1")
        require(self.keep >= 0, "multi_krum.keep", self.keep, "a whole number of at least 1, or 0 for n - byzantine")

    @property
    def least_silos(self) -> int:
        return max(2 * self.byzantine + 3, self.keep + self.byzantine)

    def withstands(self, silos: int) -> int:
        return self.byzantine

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        rows = rows_of(updates, self.least_silos)
        keep = self.keep or len(rows) - self.byzantine
        best = np.argsort(scores(squared_distances(rows), self.byzantine), kind="stable")[:keep]
        shares = np.zeros(len(rows))
        shares[best] = 1 / keep
        return state.next(state.weights + mean_of(rows, shares))
