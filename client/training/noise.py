"""Noise and sampling that nobody can predict: AES-256-CTR keyed by the operating system.

The keystream becomes uniform 64-bit integers, Poisson samples and Gaussian noise in float64 (Box & Muller 1958). No
seed of any file, message or global generator has an influence, so a reader of the study cannot remove the noise.

Guarantees: the sampling threshold is rounded down, so the true rate is at most the accounted one. `add_noise`
rounds the sum to a grid of 2^-20 clip norms, which hides the low bits of floating-point values (Mironov 2012, "On
significance of the least significant bits for differential privacy"); the L2 distance that rounding can add, sqrt(d)
grid steps, is paid for by that much more noise.
"""

from __future__ import annotations

import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

GRID = 2.0**-20  # of the clip norm


class SecretRandom:
    """An unpredictable stream; each instance draws its own key from the operating system."""

    def __init__(self) -> None:
        key = os.urandom(32)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform integers below 2^64."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.intp]:
        """Return the indices, in order, of a sample that holds each of `count` units with probability `rate`."""
        if rate >= 1:
            return np.arange(count)
        return np.flatnonzero(self.uint64(count) < np.uint64(math.floor(rate * 2**64)))

    def permutation_keys(self, count: int) -> NDArray[np.uint64]:
        """Return sort keys; sorting by them is a uniform random order."""
        return self.uint64(count)

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return `count` independent standard normal values."""
        half = (count + 1) // 2
        words = self.uint64(2 * half)
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
        radius = np.sqrt(-2.0 * np.log(uniform[:half]))
        angle = 2.0 * np.pi * uniform[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def add_noise(
    clipped_sum: NDArray[np.float64], *, clip_norm: float, noise_multiplier: float, random: SecretRandom
) -> NDArray[np.float64]:
    """Return the Gaussian mechanism's output for a sum of vectors that are each clipped to `clip_norm`.

    Args:
        clipped_sum: (d,) exact sum.
        clip_norm: L2 sensitivity of the sum before rounding.
        noise_multiplier: standard deviation over sensitivity, as accounted.
        random: where the noise comes from.
    """
    step = GRID * clip_norm
    on_grid = np.rint(clipped_sum / step)
    sensitivity = clip_norm * (1.0 + math.sqrt(len(clipped_sum)) * GRID)
    noise = np.rint(random.normal(len(clipped_sum)) * (noise_multiplier * sensitivity / step))
    return (on_grid + noise) * step
