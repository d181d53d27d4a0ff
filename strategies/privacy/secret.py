"""Noise and sampling that nobody can predict: AES-256-CTR keyed by the operating system.

The keystream becomes uniform 64-bit integers, Poisson samples and Gaussian noise in float64 (Box & Muller 1958). No
seed of any file, message or global generator has an influence, so a reader of the study cannot remove the noise.

Guarantees: the sampling threshold is rounded down, so the true rate is at most the accounted one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

GRID = 2.0**-20  # of the clip norm: the grid on which sums meet their noise
_AT_ONCE = 2**16  # values: what is worked on stays in the cache
_SIGN_AND_EXPONENT_BITS, _ONE = np.uint64(12), np.uint64(0x3FF << 52)  # of a float64, and 1.0


class SecretRandom:
    """An unpredictable stream; each instance draws its own key from the operating system."""

    def __init__(self) -> None:
        key = os.urandom(32)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._zeros = bytes(0)

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform integers below 2^64."""
        if len(self._zeros) < 8 * count:
            self._zeros = bytes(8 * count)
        words = np.empty(count + 2, dtype=np.uint64)  # a cipher asks for a block more than it writes
        self._stream.update_into(memoryview(self._zeros)[: 8 * count], words.view(np.uint8).data)
        return words[:count]

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.intp]:
        """Return the indices, in order, of a sample that holds each of `count` units with probability `rate`."""
        if rate >= 1:
            return np.arange(count)
        threshold = np.uint64(math.floor(rate * 2**64))
        return sample(count, lambda some: self.uint64(some) < threshold)

    def permutation_keys(self, count: int) -> NDArray[np.uint64]:
        """Return sort keys; sorting by them is a uniform random order."""
        return self.uint64(count)

    def normal(self, count: int, deviation: float = 1.0) -> NDArray[np.float64]:
        """Return `count` independent normal values of mean 0.

        A pair is r cos(w), r sin(w) with r^2 = -2 log u. With t = tan(w / 2) both follow from one division, since
        cos w = 2 / (1 + t^2) - 1 and sin w = 2 t / (1 + t^2); tan is several times faster than cos and sin here. Radii
        have 52 bits and angles 51: where the noise is many clip norms wide, coarser ones would leave visible rays.
        """
        half = (count + 1) // 2
        words = self.uint64(2 * half)
        words >>= _SIGN_AND_EXPONENT_BITS
        words |= _ONE  # the bits of a float64 in [1, 2), and uniform there
        values = words.view(np.float64)
        radius, sine = values[:half], values[half:]
        radius -= 1.0 - 2.0**-53  # (k + 1/2) / 2^52 is in (0, 1)
        np.log(radius, out=radius)
        radius *= -2.0 * deviation**2
        np.sqrt(radius, out=radius)
        sine *= np.pi  # half the angle, over one period of tan
        np.tan(sine, out=sine)
        cosine = sine * sine
        cosine += 1.0
        np.divide(radius, cosine, out=cosine)
        cosine *= 2.0
        sine *= cosine
        np.subtract(cosine, radius, out=radius)
        return values[:count]


def sample(count: int, drawn: Callable[[int], NDArray[np.bool_]]) -> NDArray[np.intp]:
    """Return which of `count` are drawn, in order.

    Args:
        count: how many there are; of millions, no list is made.
        drawn: answers for the next so many of them.
    """
    starts = range(0, count, _AT_ONCE)
    found = [np.flatnonzero(drawn(min(_AT_ONCE, count - start))) + start for start in starts]
    return np.concatenate(found) if found else np.zeros(0, np.intp)


def gaussian_mechanism(
    total: NDArray[np.floating], *, step: float, deviation: float, random: SecretRandom, into: NDArray[np.floating]
) -> None:
    """Write the sum with normal noise of mean 0, both rounded to whole steps of a grid.

    So it is the Gaussian mechanism, rounded: rint(z + noise) = z + rint(noise) for whole z. Quotient and sum are taken
    in float64: in float32 sums of many clip norms would be rounded once more, which nothing pays for.

    Args:
        total: (d,) the sum, in float32 or float64.
        step: of the grid.
        deviation: of the noise, in steps.
        random: where the noise comes from.
        into: (d,) where the result goes, in its type.
    """
    for start in range(0, len(total), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        values = np.divide(total[some], step, dtype=np.float64)
        np.rint(values, out=values)
        drawn = random.normal(len(values), deviation)
        values += np.rint(drawn, out=drawn)
        values *= step
        into[some] = values
