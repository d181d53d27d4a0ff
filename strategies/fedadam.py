"""FedAdam: the server treats the mean update as a gradient and takes an Adam step with it.

Reddi et al. 2021, "Adaptive federated optimization", algorithm 2, with Adam's bias correction (Kingma & Ba 2015,
section 2, the form with a corrected step size). The correction's exponent is the number of the round plus one, as in
Flower's FedAdam, so that both give the same model. The server's step is post-processing: it costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from strategies.base import State, SumStrategy
from strategies.layout import Vector
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class FedAdam(SumStrategy):
    """Adaptive moments at the server.

    Args:
        lr: server learning rate.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        tau: added to the root of the second moment; larger is less adaptive.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "fedadam.lr", self.lr, "a positive number")
        require(0 <= self.beta1 < 1, "fedadam.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "fedadam.beta2", self.beta2, "in [0, 1)")
        require(0 < self.tau < math.inf, "fedadam.tau", self.tau, "a positive number")

    def start(self, weights: Vector) -> State:
        return State(weights=weights, memory={"m": np.zeros_like(weights), "v": np.zeros_like(weights)})

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        mean = total / weight
        m = self.beta1 * state.memory["m"] + (1 - self.beta1) * mean
        v = self.beta2 * state.memory["v"] + (1 - self.beta2) * mean**2
        exponent = state.round + 2
        rate = self.lr * math.sqrt(1 - self.beta2**exponent) / (1 - self.beta1**exponent)
        weights = state.weights + rate * m / (np.sqrt(v) + self.tau)
        return state.next(weights.astype(np.float32), m=m.astype(np.float32), v=v.astype(np.float32))
