"""Trimmed mean: for each parameter the lowest and highest values are left out, and the others averaged.

Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", definition 2. The number
cut at each end is `trim` times the silos, rounded down as Flower does, but at least one: a trim that cuts nobody would
be a plain mean under another name.

Guarantees: while no more silos are hostile than are cut at one end, each parameter of the mean update lies between two
honest silos' values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strategies.base import PerSiloStrategy, State
from strategies.layout import Vector
from strategies.order_statistics import middle_mean, rows_of
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(PerSiloStrategy):
    """Mean of each parameter's middle values.

    Args:
        trim: share of the silos that is cut at each end, above 0 and below 0.5.
    """

    trim: float = 0.2

    def __post_init__(self) -> None:
        require(0 < self.trim < 0.5, "trimmed_mean.trim", self.trim, "above 0 and below 0.5; fedavg() cuts nobody")

    @property
    def least_silos(self) -> int:
        return 3

    def withstands(self, silos: int) -> int:
        return max(1, int(self.trim * silos))

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        rows = rows_of(updates, self.least_silos)
        return state.next(state.weights + middle_mean(rows, self.withstands(len(rows))))
