"""Geometric median: the point with the least sum of distances to the silos' updates.

Pillutla et al. 2022, "Robust aggregation for federated learning", the smoothed Weiszfeld algorithm: each update's
weight is renewed as one over its distance to the point that all make. These distances follow from the updates' inner
products, so the updates are read three times however many steps it takes. Inner products are seen from the most
central update, so that updates which nearly agree keep their distances.

Guarantees: while fewer than half of the silos are hostile, the result stays within a bound that the honest updates
alone set, however far away the hostile ones are (Lopuhaä & Rousseeuw 1991: its breakdown point is a half).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.base import PerSiloStrategy, State
from strategies.distances import Matrix, inner_products, mean_of, squared_distances
from strategies.layout import Vector
from strategies.order_statistics import Rows, rows_of

_MOST_STEPS = 10_000
_SMOOTHING = 1e-6  # of the median distance to the most central update: no distance counts as less
_DONE = 1e-10  # a step that moves no share by more is the last


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(PerSiloStrategy):
    """Least sum of distances to all updates."""

    @property
    def least_silos(self) -> int:
        return 3

    def withstands(self, silos: int) -> int:
        return (silos - 1) // 2

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        rows = rows_of(updates, self.least_silos)
        return state.next(state.weights + mean_of(rows, shares_of(rows)))


def shares_of(rows: Rows) -> NDArray[np.float64]:
    """Return the share of each update in their geometric median."""
    distances = np.sqrt(squared_distances(rows))
    centre = int(np.argmin(np.median(distances, axis=1)))
    least = _SMOOTHING * float(np.median(distances[centre]))
    if least == 0.0:  # more than half are equal, and that is the median
        shares = np.zeros(len(rows))
        shares[centre] = 1.0
        return shares
    return weiszfeld(inner_products(rows, rows[centre]), least)


def weiszfeld(products: Matrix, least: float) -> NDArray[np.float64]:
    """Return the shares of the updates in their geometric median.

    Args:
        products: inner products of the updates.
        least: what a distance counts at least.
    """
    norms = np.diagonal(products)
    shares = 1 / np.maximum(np.sqrt(norms), least)
    shares /= shares.sum()
    for _ in range(_MOST_STEPS):
        along = products @ shares
        before, shares = shares, 1 / np.maximum(np.sqrt(np.maximum(norms - 2 * along + shares @ along, 0.0)), least)
        shares /= shares.sum()
        if np.abs(shares - before).max() <= _DONE:
            break
    return shares
