"""Federated averaging: the new model is the old one plus the mean update.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", algorithm 1,
written with updates (differences) in the place of weights: the two are equal when the weights sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass

from strategies.base import State, SumStrategy
from strategies.layout import Vector


@dataclass(frozen=True, kw_only=True)
class FedAvg(SumStrategy):
    """Weighted mean of the silos' updates."""

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        return state.next(state.weights + total / weight)
