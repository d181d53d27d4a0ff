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
        cos w = 2 / (1 + t^2) - 1 and sin w = 2 t / (1 + t^2); tan is several times faster than cos and sin here. Angles
        have 53 bits like radii: where the noise is many clip norms wide, coarser ones would leave visible rays.
        """
        half = (count + 1) // 2
        words = (self.uint64(2 * half) >> np.uint64(11)).view(np.int64)  # (k + 1/2) / 2^53 is uniform in (0, 1)
        values = words.astype(np.float64)
        radius, sine = values[:half], values[half:]
        radius += 0.5
        radius *= 2.0**-53
        np.log(radius, out=radius)
        radius *= -2.0 * deviation**2
        np.sqrt(radius, out=radius)
        sine *= np.pi * 2.0**-53
        sine -= np.pi / 2 * (1.0 - 2.0**-53)  # half the angle, in (-pi/2, pi/2)
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


def rounded_normal(count: int, deviation: float, random: SecretRandom) -> NDArray[np.float64]:
    """Return `count` independent normal values of mean 0, each rounded to a whole number.

    Added to whole numbers they are the Gaussian mechanism, rounded: rint(z + noise) = z + rint(noise).
    """
    values = np.empty(count)
    for start in range(0, count, _AT_ONCE):
        some = values[start : start + _AT_ONCE]
        np.rint(random.normal(len(some), deviation), out=some)
    return values
