"""The whole privacy curve of what was released, and what an attacker gains by it at most.

One pair (epsilon, delta) is a point of a curve; Gomez et al. 2025 ("(epsilon, delta) considered harmful: best practices
for reporting differential privacy") ask for the curve and for the Gaussian-DP number mu with the error of its fit. The
curve is dp-accounting's privacy loss distribution on a coarse grid, which is an upper bound like the fine one.

Guarantees: each pair of a `Profile` is an upper bound in both directions of add-or-remove-one, so every bound that is
drawn from any subset of pairs holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from strategies.errors import AccountingError
from strategies.privacy.accountant import composed, epsilon, round_up
from strategies.privacy.events import Event, Exact, Gaussian, merge

_POINTS = 49
_FINE_BELOW = 1.0  # epsilon below which the coarse grid would be too coarse to draw


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Pairs at which the releases are (epsilon, delta)-differentially private, by growing epsilon from 0."""

    pairs: tuple[tuple[float, float], ...]

    @property
    def guess(self) -> float:
        """The largest chance to guess right whether a unit was used, from a 50:50 belief: (1 + delta(0)) / 2."""
        return min(1.0, round_up((1.0 + self.pairs[0][1]) / 2))

    def power(self, false_positives: float) -> float:
        """Return the largest true-positive rate of any test with this false-positive rate, rounded up.

        Both inequalities of each pair count (Kairouz et al. 2015, "The composition theorem", section 2): for the test
        and for its opposite.
        """
        most = 1.0
        for eps, delta in self.pairs:
            direct = math.exp(min(eps, 700.0)) * false_positives + delta
            most = min(most, direct, 1.0 - math.exp(-eps) * (1.0 - false_positives - delta))
        return min(1.0, round_up(max(most, false_positives)))

    def false_positives(self, power: float) -> float:
        """Return the smallest false-positive rate of any test with this true-positive rate, rounded down.

        The same inequalities, solved for the other rate.
        """
        least = 0.0
        for eps, delta in self.pairs:
            direct = math.exp(-eps) * (power - delta)
            least = max(least, direct, 1.0 - delta - math.exp(min(eps, 700.0)) * (1.0 - power))
        return max(0.0, min(power, math.floor(least * 1e15 - 1.0) / 1e15))


def profile(events: Iterable[Event], delta: float) -> Profile | None:
    """Return the curve from epsilon 0 to half as far again as the epsilon at `delta`; None without a bound or release.

    Args:
        events: everything that was released.
        delta: of the pair that is claimed, which is among the pairs.

    Raises:
        AccountingError: the curve cannot be computed or is not sound.
    """
    merged = merge(events)
    gaussians = tuple(event for event in merged if isinstance(event, Gaussian))
    if not gaussians or any(isinstance(event, Exact) for event in merged):
        return None
    claimed = epsilon(gaussians, delta)
    total = composed(gaussians) if claimed >= _FINE_BELOW else composed(gaussians, interval=1e-4)
    grid = [1.5 * claimed * i / (_POINTS - 1) for i in range(_POINTS)]
    deltas = [float(value) for value in total.get_delta_for_epsilon(grid)]
    if not all(0 <= value <= 1 for value in deltas):
        raise AccountingError(f"the privacy curve of {gaussians} is not sound; no curve is reported")
    pairs = {eps: round_up(value, 15) for eps, value in zip(grid, deltas, strict=True)}
    return Profile(pairs=tuple(sorted((pairs | {claimed: delta}).items())))


@dataclass(frozen=True, kw_only=True)
class GaussianFit:
    """mu of the Gaussian-DP curve that lies on or above the profile, rounded up, and how far above in delta at most."""

    mu: float
    error: float


def gaussian_fit(curve: Profile, delta: float) -> GaussianFit | None:
    """Return the tightest Gaussian-DP curve (Dong, Roth & Su 2022) above the pairs whose delta is at least `delta`.

    None where numbers are too large for the formula.
    """
    pairs = [(eps, value) for eps, value in curve.pairs if value >= delta]
    if not pairs or pairs[-1][0] > 500:
        return None
    mu = round_up(max(mu_of(eps, value) for eps, value in pairs))
    return GaussianFit(mu=mu, error=round_up(max(0.0, *(gaussian_delta(eps, mu) - value for eps, value in pairs))))


def gaussian_delta(eps: float, mu: float) -> float:
    """Return delta at `eps` of mu-Gaussian DP (Balle & Wang 2018, theorem 8, with mu = 1 / sigma)."""
    if mu <= 0:
        return 0.0
    below = 0.5 * math.erfc((eps / mu - mu / 2) / math.sqrt(2))
    return below - math.exp(eps) * 0.5 * math.erfc((eps / mu + mu / 2) / math.sqrt(2))


def mu_of(eps: float, delta: float) -> float:
    """Return mu of the Gaussian-DP curve that has `delta` at `eps`, at most 1000."""
    low, high = 0.0, 1.0
    while gaussian_delta(eps, high) < delta and high < 1e3:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(eps, middle) < delta else (low, middle)
    return high
