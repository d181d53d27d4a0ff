"""A second implementation's word on an epsilon before a silo signs it: Opacus' PRV accountant (Gopi et al. 2021).

Two programs that were written apart from each other and agree are unlikely to share an error. Its estimate is compared,
not its upper bound, which is the estimate and 0.01 more. It speaks of removing a unit; dp-accounting takes the larger
of adding and removing, so a case where the two directions differ is refused, too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache

from strategies.errors import AccountingError
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Event, Exact, Gaussian, merge

_ERROR = 0.01  # of epsilon, asked of the PRV accountant


def require_agreement(events: Iterable[Event], delta: float) -> None:
    """Return when both accountants give the same epsilon within max(0.02, 1 %); what has no bound has none in either.

    Raises:
        AccountingError: they do not agree, or one of them gives no number.
    """
    merged = merge(events)
    gaussians = tuple(event for event in merged if isinstance(event, Gaussian))
    if gaussians and not any(isinstance(event, Exact) for event in merged):
        _compare(gaussians, delta)


@lru_cache(maxsize=256)
def _compare(events: tuple[Gaussian, ...], delta: float) -> None:
    first, second = epsilon(events, delta), estimate(events, delta)
    if not abs(first - second) <= max(0.02, 0.01 * first):  # also when one is no number
        raise AccountingError(
            f"two accountants disagree on {events} at delta {delta}: PLD gives {first}, PRV {second:.6g}; nothing is "
            "signed"
        )


def estimate(events: tuple[Gaussian, ...], delta: float) -> float:
    """Return the PRV accountant's estimate of epsilon.

    Raises:
        AccountingError: it gives none.
    """
    from opacus.accountants import PRVAccountant  # slow to load, and needed once a run

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sampling_rate, event.steps) for event in events]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its search for a safe domain speaks of orders that it does not need
            composed = accountant._get_dprv(eps_error=_ERROR, delta_error=delta / 1000)
            _, value, _ = composed.compute_epsilon(delta, delta / 1000, _ERROR)
    except (ArithmeticError, ValueError, RuntimeError, MemoryError) as error:
        raise AccountingError(f"PRV cannot account for {events} ({error}); nothing is signed") from None
    return float(value) if math.isfinite(value) else math.nan
