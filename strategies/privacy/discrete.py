"""Discrete Gaussian noise, sampled exactly: P[Y = y] proportional to exp(-y^2 / 2 v) on the integers.

The sampler is that of Canonne, Kamath & Steinke 2020 ("The discrete Gaussian for differential privacy", algorithms 1
to 3) with its two rejections in one. With t = floor(sqrt v) + 1 a proposal is a sign, U uniform on 0 .. t - 1 and V
geometric with P[V >= k] = exp(-k); y = U + t V is kept with probability exp(-h), h = y^2 / 2 v - V + v / 2 t^2 >= 0,
unless it is a negative zero. The product is the density above.

Guarantees: no float decides what it cannot. U comes from integers; V and the choice compare a uniform real with
exp(-k) or exp(-h), in float64 where they are further apart than any rounding here can move them, and else (once in some
10^12 proposals) in rational bounds, with as many more random bits as it takes. So the distribution is exact, given
uniform words. Those are AES-256-CTR of a key from the operating system.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from strategies.errors import SettingError
from strategies.privacy.secret import SecretRandom

LARGEST_VARIANCE = 2**100  # t is then at most 2^50, and no proposal leaves 64 bits
_UNSURE = 2.0**-44  # the float64 of exp(-h), of exp(-k) and of a uniform are nearer than 2^-47 to the true values
_AT_ONCE = 2**15  # proposals: what is worked on stays in the cache

Whole = NDArray[np.int64]


def discrete_gaussian(count: int, variance: int, random: SecretRandom) -> Whole:
    """Return `count` independent discrete Gaussian values.

    Args:
        count: how many.
        variance: v, the square of the parameter sigma; a whole number, so that every bound is rational.
        random: where the bits come from.

    Raises:
        SettingError: the variance is not a whole number from 1 to 2^100.
    """
    if not (type(variance) is int and 1 <= variance <= LARGEST_VARIANCE):
        raise SettingError(f"variance = {variance} is not allowed: it must be a whole number from 1 to 2^100")
    values = np.empty(count, np.int64)
    done = 0
    while done < count:
        kept = _proposals(min(_AT_ONCE, 16 + 5 * (count - done) // 2), variance, random)[: count - done]
        values[done : done + len(kept)] = kept
        done += len(kept)
    return values


def _proposals(count: int, variance: int, random: SecretRandom) -> Whole:
    """Return those of `count` proposals that are kept."""
    scale = math.isqrt(variance) + 1
    below = _uniform_below(scale, count, random)
    times = _geometric(count, random)
    size = below + scale * times
    negative = (random.uint64(count) & np.uint64(1)).astype(bool)
    exact = size.astype(np.float64)
    exponent = exact * (exact / (2.0 * variance)) - times + variance / (2.0 * scale**2)
    keep = _below_exp(exponent, lambda at: _exponent(int(size[at]), int(times[at]), variance, scale), random)
    keep &= ~(negative & (size == 0))
    return np.where(negative, -size, size)[keep]


def _exponent(size: int, times: int, variance: int, scale: int) -> Fraction:
    return Fraction(size**2, 2 * variance) - times + Fraction(variance, 2 * scale**2)


# --- exact choices ------------------------------------------------------------------------------------------


def _uniform_below(limit: int, count: int, random: SecretRandom) -> Whole:
    """Return whole numbers that are uniform from 0 to `limit` - 1."""
    largest = np.uint64(2**64 // limit * limit - 1)
    words = random.uint64(count)
    while (over := np.flatnonzero(words > largest)).size:
        words[over] = random.uint64(over.size)
    return (words % np.uint64(limit)).astype(np.int64)


def _geometric(count: int, random: SecretRandom) -> Whole:
    """Return whole numbers V >= 0 with P[V >= k] = exp(-k): how many of exp(-1), exp(-2), ... a uniform is below."""
    words = random.uint64(count)
    uniform = _real(words)
    logarithm = -np.log(uniform)
    times = np.floor(logarithm).astype(np.int64)
    for at in np.flatnonzero(np.abs(logarithm - np.rint(logarithm)) * uniform < _UNSURE):
        exact, times[at] = _Uniform(int(words[at]), random), 0
        while exact.below_exp(Fraction(int(times[at]) + 1)):
            times[at] += 1
    return times


def _below_exp(
    exponent: NDArray[np.float64], exact: Callable[[int], Fraction], random: SecretRandom
) -> NDArray[np.bool_]:
    """Return whether fresh uniforms are below exp(-exponent); `exact` gives the exponent at an index, unrounded."""
    words = random.uint64(len(exponent))
    uniform, bound = _real(words), np.exp(-exponent)
    found = uniform < bound
    for at in np.flatnonzero(np.abs(uniform - bound) < _UNSURE):
        found[at] = _Uniform(int(words[at]), random).below_exp(exact(int(at)))
    return found


def _real(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the middle of the values in (0, 1) that begin with the first 53 bits of each word."""
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class _Uniform:
    """A uniform real in [0, 1) of which as many bits are drawn as a comparison needs.

    Args:
        word: its first 64 bits.
        random: where the others come from.
    """

    def __init__(self, word: int, random: SecretRandom) -> None:
        self._value, self._bits, self._random = word, 64, random

    def below_exp(self, exponent: Fraction) -> bool:
        """Return whether it is below exp(-exponent), exactly; the exponent is not negative."""
        while True:
            low, high = _exp_bounds(exponent, self._bits)
            if Fraction(self._value + 1, 2**self._bits) <= low:
                return True
            if Fraction(self._value, 2**self._bits) >= high:
                return False
            self._value = self._value << 64 | int(self._random.uint64(1)[0])
            self._bits += 64


def _exp_bounds(exponent: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Return rational numbers below and above exp(-exponent), nearer to each other than 2^-bits."""
    digits = bits // 3 + 10
    context = decimal.Context(prec=digits + 5)
    quotient = context.divide(decimal.Decimal(-exponent.numerator), decimal.Decimal(exponent.denominator))
    middle = Fraction(context.exp(quotient))
    slack = Fraction(1, 10**digits)  # quotient and exp are off by a unit in the last of 5 more digits, x exp(-x) < 1
    return middle - slack, middle + slack
