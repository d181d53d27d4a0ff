"""FedProx: local training is held near the model that it started from.

Li et al. 2020, "Federated optimization in heterogeneous networks", equation 2. The proximal term
(mu / 2) ||w - w_global||^2 depends on no record, so its gradient is added after clipping and noise; in the loss
it would be lost, as clipped gradients are rebuilt from per-sample ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from strategies.base import Array, Aux, State, SumStrategy
from strategies.layout import Vector
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class FedProx(SumStrategy):
    """Federated averaging with a proximal term.

    Args:
        mu: strength of the pull, at least 0; 0 is federated averaging.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        require(0 <= self.mu < float("inf"), "fedprox.mu", self.mu, "a number of at least 0")

    def correct(self, grad: Array, weight: Array, anchor: Array, aux: Aux) -> Array:
        return grad + self.mu * (weight - anchor)

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        return state.next(state.weights + total / weight)
