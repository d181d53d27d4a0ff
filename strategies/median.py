"""Coordinate-wise median: each parameter moves by the middle one of the silos' values.

Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", definition 1; with an even
number of silos the mean of the two middle ones, as in numpy.

Guarantees: while fewer than half of the silos are hostile, each parameter of the median lies between two honest silos'
values. It costs the most where silos differ or add noise: what a mean averages out, a median keeps more of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strategies.base import PerSiloStrategy, State
from strategies.layout import Vector
from strategies.order_statistics import middle_mean, rows_of


@dataclass(frozen=True, kw_only=True)
class Median(PerSiloStrategy):
    """Middle value of each parameter."""

    @property
    def least_silos(self) -> int:
        return 3

    def withstands(self, silos: int) -> int:
        return (silos - 1) // 2

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        rows = rows_of(updates, self.least_silos)
        return state.next(state.weights + middle_mean(rows, self.withstands(len(rows))))
