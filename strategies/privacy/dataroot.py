"""A data root as it was registered: the unit of privacy, the budget and the gate, fixed once for its whole life.

Two gates. `rdp`: a Rényi filter at one order (strategies/privacy/budget.py); later releases may depend on earlier ones.
`preregistered`: the whole plan (noise, rate, steps) is named at registration and its PLD epsilon is within the budget;
releases are then taken from the plan and nothing else, so the tighter accountant may be used although what is trained
is chosen on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from strategies.errors import SettingError
from strategies.privacy.accountant import epsilon, epsilon_at_order
from strategies.privacy.budget import Budget
from strategies.privacy.events import Event, Exact, Gaussian, Summed, merge
from strategies.spec import require

Gate = Literal["rdp", "preregistered"]


@dataclass(frozen=True, kw_only=True)
class DataRoot:
    """One data set that a silo answers for.

    Args:
        name: what silo.toml and policy.toml call it.
        unit: unit of privacy: "record", or the column that names the patient or account.
        epsilon: upper bound at `delta` for everything ever released on it; `inf` for public test data.
        delta: fixed once; at most 1 / (10 `units_at_least`).
        gate: what decides whether a release fits.
        order: Rényi order of the gate `rdp`, from `Budget.order` when omitted; 0 with `preregistered`.
        slots: the plan of the gate `preregistered`.
        units_at_least: a public lower bound of the number of units.
        fingerprint: SHA-256 of the keyed sketch of its units that the silo keeps, or "".

    Raises:
        SettingError: a value is not allowed.
        AccountingError: the plan's epsilon cannot be had.
    """

    name: str
    unit: str
    epsilon: float
    delta: float
    gate: Gate = "rdp"
    order: float = 0.0
    slots: tuple[Event, ...] = ()
    units_at_least: int = 1
    fingerprint: str = ""

    def __post_init__(self) -> None:
        budget = Budget(epsilon=self.epsilon, delta=self.delta)  # refuses what is no budget
        require(
            1 <= len(self.name) <= 200 and self.name.isprintable(), "data root", repr(self.name), "a printable name"
        )
        require(1 <= len(self.unit) <= 200, f"unit of '{self.name}'", repr(self.unit), "'record' or a column's name")
        require(self.units_at_least >= 1, "units_at_least", self.units_at_least, "a whole number of at least 1")
        most = 1 / (10 * self.units_at_least)
        require(
            self.delta <= most, f"delta of '{self.name}'", self.delta, f"at most 1 / (10 units_at_least) = {most:g}"
        )
        require(self.gate in ("rdp", "preregistered"), "gate", self.gate, "rdp or preregistered")
        if self.gate == "rdp":
            if self.slots:
                raise SettingError(f"data root '{self.name}' has slots, which belong to gate = 'preregistered'")
            object.__setattr__(self, "order", self.order or budget.order)
            require(1 < self.order < math.inf, "order", self.order, "a number above 1")
            return
        object.__setattr__(self, "order", 0.0)
        object.__setattr__(self, "slots", merge(self.slots))
        whole = epsilon(self.slots, self.delta)
        if not self.slots or not whole <= self.epsilon:
            raise SettingError(
                f"the slots of '{self.name}' cost epsilon {whole} at delta {self.delta}, the budget is {self.epsilon}; "
                "name a plan that fits"
            )

    def spent(self, events: Iterable[Event]) -> float:
        """Return the epsilon of `events` as the gate counts it, rounded up."""
        if self.gate == "preregistered":
            return epsilon(events, self.delta)
        return epsilon_at_order(events, self.delta, self.order)

    def fits(self, spent: Iterable[Event], planned: Iterable[Event]) -> bool:
        """Return whether all of `planned` may be released after `spent`; anything unknown does not fit.

        Raises:
            AccountingError: the cost cannot be had.
        """
        together = (*spent, *planned)
        if self.gate == "preregistered":
            return covers(self.slots, together)
        if math.isinf(self.epsilon):
            return True
        cost = self.spent(together)
        return math.isfinite(cost) and cost <= self.epsilon

    def rounds_that_fit(self, spent: Iterable[Event], round_events: tuple[Event, ...], limit: int) -> int:
        """Return how many rounds of `round_events`, at most `limit`, may follow `spent`."""
        done = merge(spent)
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(done, repeat(round_events, middle)) else (low, middle - 1)
        return low


def repeat(events: Iterable[Event], times: int) -> tuple[Event, ...]:
    """Return the events of so many equal rounds, without a list as long as the rounds."""
    return tuple(_repeated(event, times) for event in events if times)


def _repeated(event: Event, times: int) -> Event:
    if isinstance(event, Gaussian):
        return replace(event, steps=event.steps * times)
    return replace(event, times=event.times * times) if isinstance(event, Summed) else event


def covers(more: Iterable[Event], less: Iterable[Event]) -> bool:
    """Return whether every release of `less` is among those of `more`, step for step."""
    return not lacking(more, less)


def lacking(have: Iterable[Event], wanted: Iterable[Event]) -> tuple[Event, ...]:
    """Return what must be added to `have` so that it covers `wanted`."""
    own = {(e.noise_multiplier, e.sampling_rate): e.steps for e in merge(have) if isinstance(e, Gaussian)}
    exact = {event for event in have if isinstance(event, Exact)}
    sums = {(e.what, e.silos): e.times for e in merge(have) if isinstance(e, Summed)}
    missing: list[Event] = []
    for event in merge(wanted):
        if isinstance(event, Exact):
            missing += [event] if event not in exact else []
            continue
        if isinstance(event, Summed):
            times = event.times - sums.get((event.what, event.silos), 0)
            missing += [replace(event, times=times)] if times > 0 else []
            continue
        steps = event.steps - own.get((event.noise_multiplier, event.sampling_rate), 0)
        if steps > 0:
            missing.append(
                Gaussian(noise_multiplier=event.noise_multiplier, sampling_rate=event.sampling_rate, steps=steps)
            )
    return tuple(missing)
