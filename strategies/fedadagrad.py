"""FedAdagrad: the server adapts each parameter's step to the squares of all mean updates so far.

Reddi et al. 2021, "Adaptive federated optimization", algorithm 2, without momentum and from v = 0, as in Flower's
FedAdagrad. Post-processing of the sum: it costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from strategies.base import State, SumStrategy
from strategies.layout import Vector
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(SumStrategy):
    """Sum of squares at the server.

    Args:
        lr: server learning rate.
        tau: added to the root of the sum of squares; larger is less adaptive.
    """

    lr: float = 0.1
    tau: float = 1e-3

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "fedadagrad.lr", self.lr, "a positive number")
        require(0 < self.tau < math.inf, "fedadagrad.tau", self.tau, "a positive number")

    def start(self, weights: Vector) -> State:
        return State(weights=weights, memory={"v": np.zeros_like(weights)})

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        mean = total / weight
        v = state.memory["v"] + mean**2
        weights = state.weights + self.lr * mean / (np.sqrt(v) + self.tau)
        return state.next(weights.astype(np.float32), v=v.astype(np.float32))
