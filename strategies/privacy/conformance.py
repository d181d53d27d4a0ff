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
FALSE_ALARM = 1e-5  # of one check
_ROUNDING = 1.0 - 2.0**-19  # a unit is clipped a little below the clip norm
_LEAST = 1000  # observations below which a check says nothing


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
        always_SM: a few steps at a sampling rate of 1, all canaries in the data.
        again_2K: two first steps, each after every seedable generator was set to the same seed.
    """

    untouched_TK: Observed
    touched_TM: Observed
    always_SM: Observed
    again_2K: Observed


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
    return [
        _steps(observed, claim),
        _noise(observed, claim),
        _quietest_step(observed, claim),
        _shape(observed),
        _sensitivity(observed),
        _rate(observed, claim),
        _over_steps(observed),
        _within_steps(observed),
        _fresh(observed),
    ]


def _require(observed: Observations) -> None:
    for values in (observed.untouched_TK, observed.touched_TM, observed.always_SM, observed.again_2K):
        if not np.isfinite(values).all():
            raise AccountingError("the audit saw a value that is not a finite number, so it says nothing")
    count = observed.untouched_TK.size
    if count < _LEAST or not observed.touched_TM.size or not observed.always_SM.size:
        raise AccountingError(f"the audit saw {count} untouched values and needs {_LEAST}; take more canaries")


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
    return _within("sensitivity", question, _mean(observed.always_SM), 1.0)


def _rate(observed: Observations, claim: Claim) -> Check:
    """The mean of what one unit moves: sampling rate times clip norm."""
    question = "Is a unit sampled as often as accounted? (what it moves in the mean over steps, in clip norms)"
    return _within("sampling rate", question, _mean(observed.touched_TM), claim.sampling_rate)


def _over_steps(observed: Observations) -> Check:
    """Correlation of the noise of each step with that of the next."""
    first, second = observed.untouched_TK[:-1], observed.untouched_TK[1:]
    question = "Is the noise of a step independent of the one before? (correlation)"
    return _correlation("next step", question, first, second)


def _within_steps(observed: Observations) -> Check:
    """Correlation of the noise of neighbouring coordinates of one step."""
    first, second = observed.untouched_TK[:, :-1], observed.untouched_TK[:, 1:]
    question = "Is the noise of a coordinate independent of the next one's? (correlation)"
    return _correlation("next coordinate", question, first, second)


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
