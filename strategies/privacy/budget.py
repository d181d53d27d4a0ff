"""Would the next release still fit? The gate in front of every reservation.

The gate is a Rényi filter at one order, fixed when the budget is made: releases may be chosen after seeing
earlier ones, also by concurrent runs, and "stop before the sum exceeds the budget" stays sound (Feldman & Zrnic
2021; Haney et al. 2023). PLD is tighter but is no filter for adaptive use, so reports show it beside the gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from strategies.privacy.accountant import epsilon_at_order
from strategies.privacy.events import Event
from strategies.spec import require

# The order that lets most DP-SGD steps through, by epsilon (found for delta = 1e-5; it depends on little else).
_ORDER_BY_EPSILON = ((0.5, 28.0), (1.0, 16.0), (2.0, 8.0), (4.0, 5.0), (8.0, 3.0), (10.0, 2.5))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one data set may lose in its lifetime.

    Args:
        epsilon: upper bound at `delta`, for everything ever released on the data set; `inf` for test data.
        delta: fixed once; all releases are composed at this delta.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "budget.epsilon", self.epsilon, "a positive number")
        require(0 < self.delta < 1, "budget.delta", self.delta, "a number between 0 and 1")

    @property
    def order(self) -> float:
        """The Rényi order of the filter, a function of epsilon alone, so that it never moves."""
        target = math.log(min(max(self.epsilon, 0.5), 10.0))
        return min(_ORDER_BY_EPSILON, key=lambda pair: abs(math.log(pair[0]) - target))[1]

    def spent(self, events: Iterable[Event]) -> float:
        """Return the epsilon of `events` as the gate counts it, rounded up."""
        return epsilon_at_order(events, self.delta, self.order)

    def fits(self, spent: Iterable[Event], planned: Iterable[Event]) -> bool:
        """Return whether all of `planned` may be released after `spent`; anything unknown does not fit."""
        if math.isinf(self.epsilon):
            return True
        cost = self.spent((*spent, *planned))
        return math.isfinite(cost) and cost <= self.epsilon

    def rounds_that_fit(self, spent: Iterable[Event], round_events: tuple[Event, ...], limit: int) -> int:
        """Return how many rounds of `round_events`, at most `limit`, may follow `spent`."""
        done = tuple(spent)
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(done, round_events * middle) else (low, middle - 1)
        return low
