"""What was released: the only facts that privacy accounting rests on.

A ledger stores events, never epsilons; every epsilon is recomputed from the whole list (PRIVACY accounting by
composition of events, as in dp-accounting's event algebra). An event that cannot be understood is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from strategies.errors import AccountingError


@dataclass(frozen=True, kw_only=True, order=True)
class Gaussian:
    """`steps` Gaussian releases of what one unit moves by a bounded L2 norm, each over a Poisson sample of the units.

    Args:
        noise_multiplier: standard deviation of the noise divided by that norm: the clip norm, or where a silo's whole
            update is clipped, twice the clip norm.
        sampling_rate: probability of each unit to be in one step's sample; 1 means no sampling.
        steps: number of releases.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        sound = (
            0 < self.noise_multiplier < math.inf  # false for NaN
            and 0 < self.sampling_rate <= 1
            and type(self.steps) is int
            and self.steps >= 0
        )
        if not sound:
            raise AccountingError(
                f"{self} is no release that can be accounted: noise_multiplier must be a positive number, "
                "sampling_rate in (0, 1] and steps a whole number of at least 0"
            )


@dataclass(frozen=True, kw_only=True, order=True)
class Exact:
    """A release without any protection: its epsilon is infinite.

    Args:
        what: the quantity, for the report.
    """

    what: str


@dataclass(frozen=True, kw_only=True, order=True)
class Summed:
    """An exact sum over silos that nobody sees a part of (secure aggregation): no noise, so no epsilon speaks of it.

    It has no place in an epsilon and is named wherever one is shown: the claim about the other releases is what it
    would be without it, and about this one there is no claim but that the sum alone is seen.

    Args:
        what: the quantity, for the report.
        silos: the sum is over at least so many.
        times: number of releases.
    """

    what: str
    silos: int
    times: int = 1

    def __post_init__(self) -> None:
        whole = type(self.silos) is int and type(self.times) is int
        if not (whole and self.silos >= 2 and self.times >= 1):
            raise AccountingError(
                f"{self} is no sum that hides a silo: silos must be a whole number of at least 2, times of at least 1"
            )


Event = Gaussian | Exact | Summed


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return equal releases added up, in a fixed order: the same list gives the same key everywhere.

    Raises:
        AccountingError: something in the list is no event.
    """
    steps: dict[tuple[float, float], int] = {}
    exact: set[Exact] = set()
    summed: dict[tuple[str, int], int] = {}
    for event in events:
        if isinstance(event, Exact):
            exact.add(event)
        elif isinstance(event, Summed):
            summed[event.what, event.silos] = summed.get((event.what, event.silos), 0) + event.times
        elif not isinstance(event, Gaussian):
            raise AccountingError(f"{event!r} is no event that can be accounted")
        else:
            key = (event.noise_multiplier, event.sampling_rate)
            steps[key] = steps.get(key, 0) + event.steps
    gaussian = [Gaussian(noise_multiplier=s, sampling_rate=q, steps=t) for (s, q), t in sorted(steps.items()) if t]
    sums = [Summed(what=what, silos=silos, times=t) for (what, silos), t in sorted(summed.items())]
    return (*gaussian, *sorted(exact), *sums)


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as plain values, with its kind."""
    return {"kind": type(event).__name__.lower(), **asdict(event)}


def from_json(values: Mapping[str, Any]) -> Event:
    """Read one event.

    Raises:
        AccountingError: the kind is unknown or a value is missing, so nothing may be concluded from the list.
    """
    kinds: dict[str, type[Gaussian | Exact | Summed]] = {"gaussian": Gaussian, "exact": Exact, "summed": Summed}
    try:
        rest = {key: value for key, value in values.items() if key != "kind"}
        return kinds[values["kind"]](**rest)
    except (KeyError, TypeError, AttributeError) as error:
        raise AccountingError(f"an event of the ledger cannot be read ({error}); no privacy loss is computed") from None
