"""Noise and sampling that nobody can predict: AES-256-CTR keyed by the operating system.

The keystream becomes uniform 64-bit integers, Poisson samples and Gaussian noise in float64 (Box & Muller 1958). No
seed of any file, message or global generator has an influence, so a reader of the study cannot remove the noise. On a
GPU the noise is drawn there, by Philox-4x32-10 (Salmon et al. 2011) with a new 64-bit key from the operating system for
each step: what one key's output tells, if anything, ends with the step.

Guarantees: the sampling threshold is rounded down, so the true rate is at most the accounted one. `add_noise`
rounds the sum to a grid of 2^-20 clip norms, which hides the low bits of floating-point values (Mironov 2012, "On
significance of the least significant bits for differential privacy"); the L2 distance that rounding can add, sqrt(d)
grid steps here and `ROUNDING` in the sum, is paid for by that much more noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_PAIRS_AT_ONCE = 2**15  # what one block works on stays in the cache
GRID = 2.0**-20  # of the clip norm
ROUNDING = 2.0**-10  # of the clip norm; see `client.training.gradients`


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

    def normal(self, count: int, deviation: float = 1.0) -> NDArray[np.float64]:
        """Return `count` independent normal values of mean 0.

        A pair is r cos(w), r sin(w) with r^2 = -2 log u. With t = tan(w / 2) both follow from one division, since
        cos w = 2 / (1 + t^2) - 1 and sin w = 2 t / (1 + t^2); tan is several times faster than cos and sin here. Angles
        have 53 bits like radii: where the noise is many clip norms wide, coarser ones would leave visible rays.
        """
        values = np.empty(count)
        for start in range(0, count, 2 * _PAIRS_AT_ONCE):
            _box_muller(self.uint64, values[start : start + 2 * _PAIRS_AT_ONCE], deviation)
        return values


def _box_muller(uint64: Callable[[int], NDArray[np.uint64]], values: NDArray[np.float64], deviation: float) -> None:
    half = (len(values) + 1) // 2
    words = (uint64(2 * half) >> np.uint64(11)).view(np.int64)  # (k + 1/2) / 2^53 is uniform in (0, 1)
    radius, sine, cosine = words[:half].astype(np.float64), words[half:].astype(np.float64), np.empty(half)
    radius += 0.5
    radius *= 2.0**-53
    np.log(radius, out=radius)
    radius *= -2.0 * deviation**2
    np.sqrt(radius, out=radius)
    sine *= np.pi * 2.0**-53
    sine -= np.pi / 2 * (1.0 - 2.0**-53)  # half the angle, in (-pi/2, pi/2)
    np.tan(sine, out=sine)
    np.multiply(sine, sine, out=cosine)
    cosine += 1.0
    np.divide(radius, cosine, out=cosine)
    cosine *= 2.0
    np.multiply(sine, cosine, out=values[:half])
    np.subtract(cosine, radius, out=sine)
    values[half:] = sine[: len(values) - half]


class DrawnAhead:
    """The noise of a training whose steps all need the same: while one computes, a thread draws that of the next.

    The noise depends on no record, so nothing is told by when it is drawn. numpy and the cipher leave the interpreter
    to others while they work.

    Args:
        random: where it comes from; nobody else may use it.
        draws: how many times `normal` will be called.
    """

    def __init__(self, random: SecretRandom, draws: int) -> None:
        self._random, self._left = random, draws
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")
        self._next: Future[NDArray[np.float64]] | None = None
        self._drawn: tuple[int, float] | None = None

    def __enter__(self) -> DrawnAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def normal(self, count: int, deviation: float) -> NDArray[np.float64]:
        """Return what `SecretRandom.normal` returns; each value once.

        Raises:
            RuntimeError: the noise that was drawn ahead is of another size or deviation.
        """
        if self._next is not None and self._drawn != (count, deviation):
            raise RuntimeError(f"noise was drawn ahead for {self._drawn}, not for {(count, deviation)}")
        self._drawn = count, deviation
        values = self._random.normal(count, deviation) if self._next is None else self._next.result()
        self._left -= 1
        self._next = self._thread.submit(self._random.normal, count, deviation) if self._left > 0 else None
        return values


def add_noise(
    clipped_sum: torch.Tensor, *, clip_norm: float, noise_multiplier: float, random: SecretRandom | DrawnAhead
) -> torch.Tensor:
    """Return the Gaussian mechanism's output for a sum of vectors that are each clipped to `clip_norm`.

    Args:
        clipped_sum: (d,) the sum, exact but for rounding.
        clip_norm: L2 sensitivity of the sum before rounding.
        noise_multiplier: standard deviation over sensitivity, as accounted.
        random: where the noise of a CPU comes from; a GPU draws its own.

    Returns:
        (d,) float64, on the device of the sum.
    """
    step = GRID * clip_norm
    deviation = noise_multiplier * (1.0 + ROUNDING + math.sqrt(len(clipped_sum)) * GRID) / GRID  # in steps
    if clipped_sum.device.type == "cpu":
        noise = torch.from_numpy(random.normal(len(clipped_sum), deviation))
    else:
        noise = _drawn_on(clipped_sum.device, len(clipped_sum)).mul_(deviation)
    return noise.round_().add_((clipped_sum * (1.0 / step)).round_()).mul_(step)


def _drawn_on(device: torch.device, count: int) -> torch.Tensor:
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(os.urandom(8), "big", signed=True))
    return torch.randn(count, generator=generator, device=device, dtype=torch.float64)
