"""What a federated algorithm is: a frozen value with a silo half and a server half.

Arrays are anything with arithmetic (a silo passes torch tensors, the server numpy arrays), so a strategy file
imports neither. `correct` runs on the gradient *after* clipping and noise: post-processing of a private value,
so no strategy can touch the private path.

A new algorithm is a new file in this folder with one subclass of `SumStrategy` or `PerSiloStrategy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from strategies.layout import Vector

Array = Any  # duck-typed: numpy or torch, one flat vector in the order of the layout
Arrays = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class State:
    """What the server keeps between rounds.

    Args:
        weights: the global model.
        round: number of aggregations so far.
        memory: vectors of the model's length that the algorithm keeps at the server.
        share: of all silos of the run, by weight, who took part in the round that is aggregated; the server says it.
    """

    weights: Vector
    round: int = 0
    memory: Mapping[str, Vector] = field(default_factory=dict)
    share: float = 1.0

    def next(self, weights: Vector, **memory: Vector) -> State:
        """Return the state after one more aggregation."""
        return replace(self, weights=weights, round=self.round + 1, memory=memory or self.memory)


@dataclass(frozen=True, kw_only=True)
class Aux:
    """What a silo's half may use beside gradient and weights.

    Args:
        broadcast: what `down` sent this round.
        home: what `update` left at this silo in its last round whose model holds its update; empty at first.
        lr_sum: sum of the learning rates of the round's local steps; public.
    """

    broadcast: Arrays = field(default_factory=dict)
    home: Arrays = field(default_factory=dict)
    lr_sum: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What a silo's half makes of a round.

    Args:
        update: what is sent, one flat vector (before weighting and masking).
        home: what stays in the silo for its next round, if this update gets into the model; None leaves it as it is.
    """

    update: Array
    home: Arrays | None = None


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Both halves of an algorithm; the defaults are federated averaging's.

    `plain_sgd` says that the algorithm reckons with local steps of plain SGD, and with updates sent as they are,
    `keeps_home` that every update leaves something at its silo.
    """

    plain_sgd: ClassVar[bool] = False
    keeps_home: ClassVar[bool] = False

    def start(self, weights: Vector) -> State:
        """Return the server's state before the first round."""
        return State(weights=weights)

    def down(self, state: State) -> Arrays:
        """Return what every silo of the round receives beside the weights."""
        return {}

    def correct(self, grad: Array, weight: Array, anchor: Array, aux: Aux) -> Array:
        """Return the gradient that the local optimiser sees.

        Args:
            grad: after clipping and noise.
            weight: the local weights now.
            anchor: the weights that the server sent.
            aux: what the strategy broadcast and what it keeps here.
        """
        return grad

    def update(self, before: Array, after: Array, aux: Aux) -> Contribution:
        """Return this silo's contribution: by default the difference that local training made."""
        return Contribution(update=after - before)


@dataclass(frozen=True, kw_only=True)
class SumStrategy(Strategy):
    """The server needs only the weighted sum of the updates, so it works under secure aggregation."""

    def aggregate(self, state: State, total: Vector, weight: float) -> State:
        """Return the next state.

        Args:
            state: the state that the round started from.
            total: sum over the surviving silos of weight times update.
            weight: sum of their weights, positive.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PerSiloStrategy(Strategy):
    """The server needs each silo's update by itself (median, Krum): never under secure aggregation.

    Silos count alike: a weight would be a share of the say.
    """

    @property
    def least_silos(self) -> int:
        """The silos without which the rule does not hold what it promises."""
        return 1

    def withstands(self, silos: int) -> int:
        """Return how many hostile ones among so many silos the rule withstands."""
        return 0

    def aggregate_each(self, state: State, updates: Mapping[str, Vector], weights: Mapping[str, float]) -> State:
        """Return the next state from the updates by silo name."""
        raise NotImplementedError
