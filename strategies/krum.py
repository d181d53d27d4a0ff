"""Krum: the one update that is nearest to its neighbours.

Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4. A silo's
score is the sum of the squared distances to its n - byzantine - 2 nearest; the least score wins, and of equal ones the
first name. Distances are of updates, not of models, which are nearly equal.

One silo's update is all that a round uses: with few silos, or with noise, that costs much. See multi_krum and nnm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from strategies.base import PerSiloStrategy, State
from strategies.distances import scores, squared_distances
from strategies.layout import Vector
from strategies.order_statistics import rows_of
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class Krum(PerSiloStrategy):
    """The single most central update.

    Args:
        byzantine: hostile silos that it withstands, at least 1; it needs 2 byzantine + 3 silos.
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        require(self.byzantine >= 1, "krum.byzantine", self.byzantine, "a whole number of at least 1")

    @property
    def least_silos(self) -> int:
        return 2 * self.byzantine + 3

    def withstands(self, silos: int) -> int:
        return self.byzantine

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        rows = rows_of(updates, self.least_silos)
        best = int(np.argmin(scores(squared_distances(rows), self.byzantine)))
        return state.next(state.weights + rows[best])
