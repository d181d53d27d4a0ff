"""FedAvgM: federated averaging with momentum at the server.

Hsu et al. 2019, "Measuring the effects of non-identical data distribution for federated visual classification", section
4.3: v becomes momentum v + mean update, and the model moves by lr v. Post-processing of the sum: it costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from strategies.base import State, SumStrategy
from strategies.layout import Vector
from strategies.spec import require


@dataclass(frozen=True, kw_only=True)
class FedAvgM(SumStrategy):
    """Momentum over rounds.

    Args:
        lr: server learning rate.
        momentum: share of the last movement that is kept, in [0, 1); 0 with lr = 1 is federated averaging.
    """

    lr: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "fedavgm.lr", self.lr, "a positive number")
        require(0 <= self.momentum < 1, "fedavgm.momentum", self.momentum, "in [0, 1)")

    def start(self, weights: Vector) -> State:
        return State(weights=weights, memory={"v": np.zeros_like(weights)})

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        v = self.momentum * state.memory["v"] + total / weight
        return state.next((state.weights + self.lr * v).astype(np.float32), v=v.astype(np.float32))
