"""What an attack that was carried out says about a claimed privacy loss: lower bounds from one run.

Each of m canaries is in the training data with probability 1/2; whoever sees the releases guesses for some of them
which are. Differential privacy bounds how many guesses can be right:

- Steinke, Nasr & Jagielski 2023, "Privacy auditing with one (1) training run" (arXiv 2305.08846), theorem 5.2: whatever
  the mechanism is, with abstentions.
- Mahloujifar, Melis & Chaudhuri 2024, "Auditing f-differential privacy in one run" (arXiv 2410.22235), algorithm 3: the
  same guesses against a whole trade-off curve, which is sharper. Here that curve is the claimed one itself, so nothing
  is assumed of it; an epsilon follows from it for Gaussian curves alone.

Guarantees: under a true claim, a lower bound at confidence c is above it with probability at most 1 - c (the Gaussian
one where the curve is Gaussian), and the claim is contradicted at significance s with probability at most s, if the
guesses follow from what was released alone. An audit never proves a claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from strategies.errors import AccountingError
from strategies.privacy.accountant import DIGITS
from strategies.privacy.profile import Profile, mu_of

CONFIDENCE = 0.95  # of a lower bound that is shown
FALSE_ALARM = 1e-3  # of an attack; its bounds lose little power by it
_LARGEST = 64.0  # epsilon beyond which no bound is looked for
_HALVINGS = 40
_NO_NOISE = 1e-3  # below it a unit is plain to see in any case


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How well an attacker guessed.

    Args:
        canaries: units that were in the data with probability 1/2 each, by coins that the attacker does not see.
        made: for how many of them a guess was made, a number that was fixed before.
        correct: how many guesses were right.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.canaries < 1:
            raise AccountingError(
                f"{self} cannot be: there are at most as many right guesses as guesses, and as guesses as canaries"
            )


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Return how probable so many right guesses are at most under (epsilon, delta)-DP (theorem 5.2)."""
    right = 1.0 / (1.0 + math.exp(-epsilon))
    made, correct = guesses.made, guesses.correct
    beta = float(binom.sf(correct - 1, made, right))
    i = np.arange(1, correct + 1)
    steepest = float(np.max((binom.sf(correct - i - 1, made, right) - beta) / i, initial=0.0))
    return min(1.0, beta + 2 * guesses.canaries * delta * steepest)


def lower_bound(guesses: Guesses, delta: float, confidence: float = CONFIDENCE) -> float:
    """Return the largest epsilon that the guesses rule out at `delta`, rounded down; 0 when they rule out none."""
    return _largest(lambda epsilon: p_value(guesses, epsilon, delta) < 1 - confidence)


def gaussian_lower_bound(guesses: Guesses, delta: float, confidence: float = CONFIDENCE) -> float:
    """Return the same by algorithm 3 of Mahloujifar et al., for mechanisms whose curve is that of Gaussian DP.

    DP-SGD of many steps is nearly one (Dong, Roth & Su 2022, section 5); for others this is an estimate.
    """

    def ruled_out(epsilon: float) -> bool:
        mu = mu_of(epsilon, delta)
        return contradicted(guesses, lambda power: float(ndtr(ndtri(power) - mu)), 1 - confidence)

    return _largest(ruled_out)


def contradicts(guesses: Guesses, claim: Profile, significance: float) -> bool:
    """Return whether the guesses are too good for the claimed curve (Mahloujifar et al., algorithm 3)."""
    return contradicted(guesses, claim.false_positives, significance)


def contradicted(guesses: Guesses, false_positives: Callable[[float], float], significance: float) -> bool:
    """Return whether so many right guesses are less probable than `significance` under a trade-off curve.

    Args:
        guesses: what was observed.
        false_positives: the least false-positive rate of a test with a given true-positive rate.
        significance: probability of a false contradiction, at most.
    """
    made, correct, m = guesses.made, guesses.correct, guesses.canaries
    right, wrong = significance * correct / m, significance * (made - correct) / m
    for i in range(correct - 1, -1, -1):
        least = false_positives(right)
        if least <= wrong:  # then neither changes any more
            break
        right, wrong = min(1.0, right + i / (made - i) * (least - wrong)), least
    return right + wrong > made / m


def _largest(ruled_out: Callable[[float], bool]) -> float:
    """Return the largest epsilon that is ruled out, rounded down; all below it are ruled out too."""
    low, high = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return float(math.floor(low * 10**DIGITS) / 10**DIGITS)


def scores(observed_TC: NDArray[np.floating], *, sampling_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Return how much more probable each canary's sums are with it than without it, as logarithms, (canaries,).

    Each step is a mixture: with probability `sampling_rate` a normal around one clip norm, else around zero.

    Args:
        observed_TC: steps by canaries, sums over the clip norm.
        sampling_rate: of a step.
        noise_multiplier: noise over clip norm, as measured.
    """
    gain = (2.0 * observed_TC.astype(np.float64) - 1.0) / (2.0 * max(noise_multiplier, _NO_NOISE) ** 2)
    if sampling_rate == 1:
        return np.asarray(gain.sum(axis=0))
    return np.asarray(np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + gain).sum(axis=0))


def guess(score_C: NDArray[np.float64], included_C: NDArray[np.bool_], each: int) -> Guesses:
    """Return how many are right of `each` guesses "in" at the top and as many guesses "out" at the bottom."""
    order = np.argsort(score_C, kind="stable")
    correct = int(included_C[order[len(order) - each :]].sum()) + int((~included_C[order[:each]]).sum())
    return Guesses(canaries=len(order), made=2 * each, correct=correct)


def rates(score_C: NDArray[np.float64], included_C: NDArray[np.bool_], points: int = 21) -> list[tuple[float, float]]:
    """Return false- and true-positive rates of "in" above each threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-score_C, kind="stable")
    hits = np.concatenate([[0], np.cumsum(included_C[order])])
    misses = np.concatenate([[0], np.cumsum(~included_C[order])])
    places = np.unique(np.linspace(0, len(order), points).round().astype(int))
    return [(float(misses[p] / max(1, misses[-1])), float(hits[p] / max(1, hits[-1]))) for p in places]
