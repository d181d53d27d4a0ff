"""Nearest neighbour mixing, then the trimmed mean: the rule for silos that differ from each other.

Allouah et al. 2023, "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity" (arXiv 2302.01772):
each update is replaced by the mean of its n - byzantine nearest, itself among them, which brings honest
ones together and drowns a hostile one; the trimmed mean of the mixtures cuts `byzantine` at each end.

Guarantees: with at most `byzantine` hostile silos of at least 4 byzantine + 1, each parameter of the result lies
between two honest silos' mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from strategies.base import PerSiloStrategy, State
from strategies.distances import squared_distances
from strategies.layout import Vector
from strategies.order_statistics import middle_mean, rows_of
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class Nnm(PerSiloStrategy):
    """Trimmed mean of the means of neighbours.

    Args:
        byzantine: hostile silos that it withstands, at least 1; it needs 4 byzantine + 1 silos.
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        require(self.byzantine >= 1, "nnm.byzantine", self.byzantine, "a whole number of at least 1")

    @property
    def least_silos(self) -> int:
        return 4 * self.byzantine + 1

    def withstands(self, silos: int) -> int:
        return self.byzantine

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        rows = rows_of(updates, self.least_silos)
        count = len(rows) - self.byzantine
        nearest = np.argsort(squared_distances(rows), axis=1, kind="stable")[:, :count]
        shares = np.zeros((len(rows), len(rows)))
        np.put_along_axis(shares, nearest, 1 / count, axis=1)
        return state.next(state.weights + middle_mean(rows, self.byzantine, shares))
