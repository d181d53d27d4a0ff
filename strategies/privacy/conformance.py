"""Whether the mechanism that ran is the one that is accounted: statistics of what it released.

Canaries own one coordinate each: a unit whose whole gradient is one clip norm along an axis that no other unit touches.
So in every noisy sum, over the clip norm, an untouched coordinate must be noise alone and a canary's must be noise plus
one whenever the canary was sampled. That is the per-step view of Nasr et al. 2023, "Tight auditing of differentially
private machine learning", section 4, with known answers instead of an attack.

Nothing here is told what the noise should be until the measurement is made: each `Measured` is an interval from the
observations alone, and `Claim` is compared with it afterwards.

Guarantees: where the mechanism is as claimed, each check fails with probability at most `FALSE_ALARM`, but for the
normal approximation of means of thousands of values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from strategies.errors import AccountingError

Observed = NDArray[np.floating]
Sampled = NDArray[np.bool_]
FALSE_ALARM = 1e-5  # of one check
_ROUNDING = 1.0 - 2.0**-19  # a unit is clipped a little below the clip norm
LEAST_VALUES = 1000  # observations below which a check says nothing
_COMMON = 25  # units that two samples are expected to have in common over all steps, for a normal law
_ALIKE = 1e-3  # of two sums in float32
_PAIRED, _PAIRED_STEPS = 400, 2000  # rows whose pairs are looked at, and their length


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the accountant was told.

    Args:
        noise_multiplier: noise over clip norm.
        sampling_rate: of each unit in each step.
        steps: of the whole study.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Noisy sums over the clip norm, at the coordinates that canaries could touch.

    Args:
        untouched_TK: steps by coordinates whose canary was not in the data.
        touched_TM: steps by coordinates whose canary was.
        sampled_SM: steps with next to no noise and every canary in the data, so that each sample is plain to see.
        always_AM: the same at a sampling rate of 1.
        again_2K: two first steps, each after every seedable generator was set to the same seed.
        difference: of the clipped sum of some records with canaries beside the model and without, relative in L2.
    """

    untouched_TK: Observed
    touched_TM: Observed
    sampled_SM: Observed
    always_AM: Observed
    again_2K: Observed
    difference: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to the mechanism.

    Args:
        name: of the check.
        question: in words.
        measured: what came out.
        low: of its interval.
        high: of its interval.
        claimed: what it should be.
        holds: whether what was claimed is possible.
    """

    name: str
    question: str
    measured: float
    low: float
    high: float
    claimed: float
    holds: bool


def noise_of(observed: Observations) -> float:
    """Return the standard deviation of the untouched coordinates around zero."""
    return float(np.sqrt(np.mean(np.square(observed.untouched_TK, dtype=np.float64))))


def conformance(observed: Observations, claim: Claim) -> list[Check]:
    """Return every check.

    Raises:
        AccountingError: there are too few observations, or one is not a finite number.
    """
    _require(observed)
    samples = observed.sampled_SM > 0.5
    return [
        _steps(observed, claim),
        _noise(observed, claim),
        _quietest_step(observed, claim),
        _shape(observed),
        _sensitivity(observed),
        _same_code(observed),
        _rate(observed, claim),
        _samples(samples, claim),
        _counts("samples a step", "one step: are units sampled independently of each other?", samples, 1, claim),
        _counts("samples a unit", "one unit: is it sampled afresh in each step?", samples, 0, claim),
        *_sampled_again(samples, claim),
        _next("next step", "the step before", observed.untouched_TK[:-1], observed.untouched_TK[1:]),
        _next("next coordinate", "the next coordinate's", observed.untouched_TK[:, :-1], observed.untouched_TK[:, 1:]),
        _pairs("two steps", observed.untouched_TK[:_PAIRED]),
        _pairs("two coordinates", observed.untouched_TK[:_PAIRED_STEPS, :_PAIRED].T),
        _fresh(observed),
    ]


def _require(observed: Observations) -> None:
    arrays = (
        observed.untouched_TK,
        observed.touched_TM,
        observed.sampled_SM,
        observed.always_AM,
        observed.again_2K,
        np.array(observed.difference),
    )
    if not all(np.isfinite(values).all() for values in arrays):
        raise AccountingError("the audit saw a value that is not a finite number, so it says nothing")
    if observed.untouched_TK.size < LEAST_VALUES or not all(values.size for values in arrays):
        raise AccountingError(
            f"the audit saw {observed.untouched_TK.size} untouched values and needs {LEAST_VALUES}; take more canaries"
        )


def _steps(observed: Observations, claim: Claim) -> Check:
    taken = float(len(observed.untouched_TK))
    question = "Was noise released in as many steps as are charged?"
    return _check("steps", question, (taken, taken, taken), claim.steps, holds=taken == claim.steps)


def _noise(observed: Observations, claim: Claim) -> Check:
    """Chi-square interval of a variance whose mean is known to be zero."""
    count, found = observed.untouched_TK.size, noise_of(observed)
    low, high = (found * math.sqrt(count / stats.chi2.ppf(p, count)) for p in (1 - FALSE_ALARM / 2, FALSE_ALARM / 2))
    question = "Is the noise at least as wide as accounted (noise multiplier)?"
    interval = (found, float(low), float(high))
    return _check("noise", question, interval, claim.noise_multiplier, holds=high >= claim.noise_multiplier)


def _quietest_step(observed: Observations, claim: Claim) -> Check:
    """The step of least noise: one without any, for example on an empty sample, would be lost in the mean."""
    steps, coordinates = observed.untouched_TK.shape
    each = np.sqrt(np.mean(np.square(observed.untouched_TK, dtype=np.float64), axis=1))
    least = float(each.min())
    bound = claim.noise_multiplier * math.sqrt(stats.chi2.ppf(FALSE_ALARM / steps, coordinates) / coordinates)
    question = "Does every single step have its noise? (the quietest one, and the least that chance allows)"
    return _check("quietest step", question, (least, least, float(each.max())), float(bound), holds=least >= bound)


def _shape(observed: Observations) -> Check:
    """Kolmogorov-Smirnov against a normal of the measured width (a fitted width makes the test milder)."""
    flat = observed.untouched_TK.ravel()
    some = flat[:: max(1, flat.size // 100_000)].astype(np.float64)
    reach = float(stats.kstwo.ppf(1 - FALSE_ALARM, len(some)))
    width = noise_of(observed)
    distance, p = stats.kstest(some / width, "norm") if width else (1.0, 0.0)
    question = "Is the noise Gaussian? (largest distance of the distribution functions, and what chance allows)"
    return _check("shape", question, (float(distance), 0.0, reach), 0.0, holds=bool(p >= FALSE_ALARM))


def _sensitivity(observed: Observations) -> Check:
    """The mean of what one unit moves when it is in every sample: the clip norm, so 1; less, and the audit is blind."""
    question = "Does one unit move a sum by the clip norm? (in clip norms, at a sampling rate of 1)"
    return _within("sensitivity", question, _mean(observed.always_AM), 1.0)


def _same_code(observed: Observations) -> Check:
    """Canaries stand beside the model, so its layers may be gone through in another way than without them."""
    question = "Are records clipped alike with canaries beside the model and without? (relative difference of a sum)"
    found = observed.difference
    return _check("same sum", question, (found, 0.0, _ALIKE), 0.0, holds=found <= _ALIKE)


def _rate(observed: Observations, claim: Claim) -> Check:
    """The mean of what one unit moves: sampling rate times clip norm."""
    question = "Is a unit used as often as accounted? (what it moves in the mean over steps, in clip norms)"
    return _within("rate under noise", question, _mean(observed.touched_TM), claim.sampling_rate)


def _samples(samples: Sampled, claim: Claim) -> Check:
    """How many units all samples held: binomial."""
    count, rate = samples.size, claim.sampling_rate
    found = samples.mean()
    reach = _deviations() * math.sqrt(rate * (1 - rate) / count) + 1 / count
    question = "Is a unit sampled with the probability that is accounted? (share of units in a sample)"
    return _within("sampling rate", question, (float(found), found - reach, found + reach), rate)


def _counts(name: str, asked: str, samples: Sampled, axis: int, claim: Claim) -> Check:
    """Spread of how many units a step has, or steps a unit, over that of independent coins.

    The square of a binomial count's deviation has the variance 2 + (1 - 6 q (1 - q)) / (n q (1 - q)) in its own units.
    """
    number, rate = samples.shape[axis], claim.sampling_rate
    spread = number * rate * (1 - rate)
    question = f"Of {asked} (variance of counts, over that of independent coins)"
    if not spread:
        return _check(name, question, (1.0, 1.0, 1.0), 1.0, holds=True)
    each = np.square(samples.sum(axis=axis, dtype=np.float64) - number * rate) / spread
    variance = 2 + (1 - 6 * rate * (1 - rate)) / spread
    law = stats.gamma(len(each) / variance, scale=variance / len(each))  # chi-square where counts are normal
    low, high = float(law.ppf(FALSE_ALARM / 2)), float(law.isf(FALSE_ALARM / 2))
    found = float(each.mean())
    return _check(name, question, (found, found / high, found / low), 1.0, holds=low <= found <= high)


def _sampled_again(samples: Sampled, claim: Claim) -> list[Check]:
    """The lag at which units that were in a sample are in another one most unlike independent coins.

    Lags of which too few common units are expected for a normal law are left out; of a tiny rate these are all.
    """
    (steps, units), rate = samples.shape, claim.sampling_rate
    least = _COMMON / (units * min(rate, 1 - rate) ** 2) if rate < 1 else math.inf
    lags = range(1, math.floor(max(0.0, steps - least)) + 1) if least < steps else range(0)
    if not lags:
        return []
    deviation = samples.astype(np.float32) - np.float32(rate)
    product = deviation @ deviation.T
    scores = [
        float(np.trace(product, offset=lag, dtype=np.float64)) / (math.sqrt((steps - lag) * units) * rate * (1 - rate))
        for lag in lags
    ]
    worst = max(scores, key=abs)
    reach = float(stats.norm.isf(FALSE_ALARM / 2 / len(scores)))
    question = "Does a sample say nothing of any later one? (largest correlation at any distance, in deviations)"
    interval = (worst, worst - reach, worst + reach)
    return [_check("samples again", question, interval, 0.0, holds=abs(worst) <= reach)]


def _next(name: str, other: str, first: Observed, second: Observed) -> Check:
    return _correlation(name, f"Is noise independent of {other}? (correlation)", first, second)


def _pairs(name: str, rows: Observed) -> Check:
    """The largest correlation of any two rows; that of two rows of n independent normal values has Student's law."""
    count, length = rows.shape
    question = f"Is noise used once? (largest correlation of any {name})"
    if count < 2 or length < 3:
        return _check(name, question, (0.0, -1.0, 1.0), 0.0, holds=True)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    product = unit @ unit.T
    np.fill_diagonal(product, 0.0)
    found = float(product.flat[np.abs(product).argmax()])
    t = float(stats.t.isf(FALSE_ALARM / (count * (count - 1)), length - 1))
    reach = t / math.sqrt(length - 1 + t * t) + _ALIKE  # and what float32 rounds
    return _check(name, question, (found, found - reach, found + reach), 0.0, holds=abs(found) <= reach)


def _fresh(observed: Observations) -> Check:
    """Correlation of the noise of two runs that were given the same seeds."""
    question = "Is the noise fresh when every seed is the same? (correlation of two first steps)"
    return _correlation("fresh noise", question, observed.again_2K[0], observed.again_2K[1])


def _correlation(name: str, question: str, first: Observed, second: Observed) -> Check:
    x, y = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    if not len(x):
        return _check(name, question, (0.0, -1.0, 1.0), 0.0, holds=True)
    found = float(x @ y / math.sqrt((x @ x) * (y @ y))) if x.any() and y.any() else 1.0
    reach = _deviations() / math.sqrt(len(x))
    return _check(name, question, (found, found - reach, found + reach), 0.0, holds=abs(found) <= reach)


def _within(name: str, question: str, interval: tuple[float, float, float], claimed: float) -> Check:
    _, low, high = interval
    return _check(name, question, interval, claimed, holds=low <= claimed and high >= _ROUNDING * claimed)


def _mean(values: Observed) -> tuple[float, float, float]:
    flat = values.ravel().astype(np.float64)
    found, error = float(flat.mean()), float(flat.std(ddof=1) / math.sqrt(len(flat)))
    return found, found - _deviations() * error, found + _deviations() * error


def _deviations() -> float:
    return float(stats.norm.ppf(1 - FALSE_ALARM / 2))


def _check(name: str, question: str, interval: Sequence[float], claimed: float, *, holds: bool) -> Check:
    measured, low, high = interval
    return Check(
        name=name, question=question, measured=measured, low=low, high=high, claimed=float(claimed), holds=bool(holds)
    )
