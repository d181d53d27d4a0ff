"""FedYogi: as FedAdam, but the second moment moves by a bounded amount, so one large update is not soon forgotten.

Reddi et al. 2021, "Adaptive federated optimization", algorithm 2, with the second moment of Zaheer et al. 2018; from
m = v = 0 and without a correction of the bias, as in Flower's FedYogi. Post-processing of the sum: it costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from strategies.base import State, SumStrategy
from strategies.layout import Vector
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class FedYogi(SumStrategy):
    """Adaptive moments that change slowly.

    Args:
        lr: server learning rate.
        beta1: decay of the first moment, in [0, 1).
        beta2: how little of a new square enters the second moment, in [0, 1).
        tau: added to the root of the second moment; larger is less adaptive.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "fedyogi.lr", self.lr, "a positive number")
        require(0 <= self.beta1 < 1, "fedyogi.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "fedyogi.beta2", self.beta2, "in [0, 1)")
        require(0 < self.tau < math.inf, "fedyogi.tau", self.tau, "a positive number")

    def start(self, weights: Vector) -> State:
        return State(weights=weights, memory={"m": np.zeros_like(weights), "v": np.zeros_like(weights)})

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        mean = total / weight
        square, v = mean**2, state.memory["v"]
        m = self.beta1 * state.memory["m"] + (1 - self.beta1) * mean
        v = v - (1 - self.beta2) * square * np.sign(v - square)
        weights = state.weights + self.lr * m / (np.sqrt(v) + self.tau)
        return state.next(weights.astype(np.float32), m=m.astype(np.float32), v=v.astype(np.float32))
