"""SCAFFOLD: control variates take the drift of unlike silos out of their local steps.

Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning", algorithm 1 with option II
and a server step of 1. A silo steps along g - c_i + c; after K steps of rate lr its c_i becomes c_i - c - update/(K lr)
and the server's c moves by the changes of the silos that took part, over all N of the run. The mean of these changes
is -c - mean update/(K lr), so the server needs one sum, which may be masked.

Control variates are kept as displacements h = -K lr c, what they make of a round: then a silo's own becomes
h_i - h + update, the server's moves by the share of silos that took part times (mean update - h), and only the local
step needs K lr, which is public (`Aux.lr_sum`). What a silo keeps at home follows from updates that it has sent, so it
is post-processing of releases; of an update that did not get into the model nothing is kept (`Train.used`).

Assumes: plain SGD without momentum, of one rate and number of steps at all silos, and updates that are sent as training
made them; a study with another optimiser, or whose whole updates are clipped and noised, is refused. A silo that leaves
the run for good stays in c with what it last had. Where silos have weights, means are weighted, and shares of weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from strategies.base import Array, Arrays, Aux, Contribution, State, SumStrategy
from strategies.layout import Vector


@dataclass(frozen=True, kw_only=True)
class Scaffold(SumStrategy):
    """Federated averaging with control variates."""

    plain_sgd: ClassVar[bool] = True
    keeps_home: ClassVar[bool] = True

    def start(self, weights: Vector) -> State:
        return State(weights=weights, memory={"h": np.zeros_like(weights)})

    def down(self, state: State) -> Arrays:
        return {"h": state.memory["h"]}

    def correct(self, grad: Array, weight: Array, anchor: Array, aux: Aux) -> Array:
        return grad + (aux.home.get("h", 0.0) - aux.broadcast.get("h", 0.0)) / aux.lr_sum

    def update(self, before: Array, after: Array, aux: Aux) -> Contribution:
        moved = after - before
        own = aux.home.get("h", 0.0) - aux.broadcast.get("h", 0.0) + moved
        return Contribution(update=moved, home={"h": own})

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        mean, h = total / weight, state.memory["h"]
        h = h + state.share * (mean - h)
        return state.next((state.weights + mean).astype(np.float32), h=h.astype(np.float32))
