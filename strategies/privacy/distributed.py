"""Distributed noise: each silo of a masked sum adds a share, and what is left in the worst sum that opens is enough.

Kairouz et al. 2021, "The distributed discrete Gaussian mechanism for federated learning with secure aggregation". Of n
silos in the sum, d may be missing when it opens and c may tell the server their own shares. At least m = n - d - c are
left, so each share has the variance s^2 / m with s = sigma (S C + sqrt(length) / 2): S C is the clip norm in steps of
the ring, sqrt(length) / 2 what rounding to the ring adds to the L2 norm of one silo's vector. Accounted is that worst
case, never what happened; if all stay and none colludes, the noise is sqrt(n / m) times as wide.

Two neighbours, as in strategies/privacy/silo_level.py: one silo's vector zero (L2 distance S C + sqrt(length) / 2), and
one unit inside the silo (twice that, since both vectors are rounded and in the ball).

Why discrete Gaussians and not Skellam noise (Agarwal, Kairouz & Liu 2021), whose sums are Skellam again: they can be
sampled exactly at any width (strategies/privacy/discrete.py), and their bound at each Rényi order is the Gaussian's, so
that one event in a ledger says what was released. Sums of n of them deviate from a discrete Gaussian by at most
tau = 10 sum over k < n of exp(-2 pi^2 v k / (k + 1)) in each parameter's log-probability, v a share's variance in
squared steps of the ring (theorem 1 there; 0 in float64 for any useful ring). What that costs at most, tau length at
every order (proposition 14), must be less than what widening the noise by 2^-20 gains, or the noise is refused.

Rényi bounds are the claim, so a study with this mechanism is calibrated by them. A number by privacy loss distributions
is that of the continuous Gaussian: rounded to whole numbers, it and the discrete one differ in the logarithm of their
probabilities by (y^2 / V - 1) / 24 V in each parameter, V the variance of the sum; together by less than
(sqrt(200 length) + 100) / 24 V but for a chance of 2 exp(-50) (Laurent & Massart 2000, lemma 1), which is 2e-9 for 10^7
parameters and noise of 2^20 steps.

Guarantees: noise is added to whole numbers after rounding, and only to a vector that is in the ball, else nothing is
returned; it wraps with the ring, and is never clamped, so the sum is that of the exact mechanism modulo 2^bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.errors import ProtocolError, SettingError
from strategies.privacy.discrete import LARGEST_VARIANCE, discrete_gaussian
from strategies.privacy.secret import SecretRandom

Words = NDArray[np.unsignedinteger[Any]]

_WIDENED = 1 + Fraction(1, 2**20)
_AT_ONCE = 2**18  # parameters: their noise as 64-bit numbers takes 2 MiB
_DEVIATIONS = 16  # of a sum's noise that the ring has room for beside the updates


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The noise of one sum.

    Args:
        noise_multiplier: sigma, in clip norms, of all that must be left.
        clip_norm: C, the largest L2 norm of a silo's update.
        scale: S, steps of the ring's grid in 1.
        length: parameters of the update.
        silos: n, in the sum when they are asked.
        drops: d, that may be missing when it opens.
        colluding: c, that may tell the server their shares.

    Raises:
        SettingError: nobody is sure to be left, or the ring is too coarse or too fine for the noise.
    """

    noise_multiplier: float
    clip_norm: float
    scale: float
    length: int
    silos: int
    drops: int
    colluding: int

    def __post_init__(self) -> None:
        if min(self.drops, self.colluding) < 0 or self.holders < 1:
            raise SettingError(
                f"{self.silos} silos of which {self.drops} may be missing and {self.colluding} may collude leave "
                "nobody to hold the noise; ask for more silos, or lower secagg.max_colluding"
            )
        if self.variance > LARGEST_VARIANCE:
            raise SettingError(f"noise of variance {self.variance} on the ring is too wide; lower the ring's scale")
        gained = 0.5 / self.noise_multiplier**2 * float(1 - 1 / _WIDENED**2)  # one silo, order 1; else more
        if not self.tau * self.length <= gained:
            raise SettingError(
                f"the ring's scale {self.scale:g} is too coarse for noise of {math.sqrt(self.variance):.3g} steps a "
                "share: sums of so narrow discrete Gaussians are not accounted; raise the scale"
            )

    @property
    def holders(self) -> int:
        """m: the fewest silos whose shares are in an opened sum and unknown to the server."""
        return self.silos - self.drops - self.colluding

    @property
    def sensitivity(self) -> Fraction:
        """The largest L2 norm of a silo's words, rounded up."""
        root = math.isqrt(self.length - 1) + 1 if self.length else 0
        exact = Fraction(self.scale) * Fraction(self.clip_norm)
        return exact + Fraction(root, 2)

    @property
    def variance(self) -> int:
        """Of one silo's share, in squared steps of the ring, rounded up."""
        deviation = Fraction(self.noise_multiplier) * self.sensitivity * _WIDENED
        return max(1, math.ceil(deviation**2 / self.holders))

    @property
    def tau(self) -> float:
        """How far the log-probability of a sum of all shares can be from a discrete Gaussian's, in each parameter."""
        terms = (math.exp(-2 * math.pi**2 * self.variance * k / (k + 1)) for k in range(1, self.silos))
        return 10 * math.fsum(terms)


def reach(noise_multiplier: float, clip_norm: float, *, least: int, colluding: int) -> float:
    """Return the largest absolute value that a ring should have room for in each silo's vector, so that no sum wraps.

    The noise of a sum of u silos is at most sqrt(u / h) sigma C wide, h those left of the smallest cohort when some
    collude, and u is at least `least`. A silo's own words may wrap: only their sum counts.

    Args:
        noise_multiplier: sigma.
        clip_norm: C.
        least: the fewest silos of a sum.
        colluding: c, less than `least`.
    """
    return clip_norm * (1 + 1.01 * _DEVIATIONS * noise_multiplier / math.sqrt((least - colluding) * least))


def add_share(words: Words, shares: Shares) -> None:
    """Add a silo's share of the noise to the words of its clipped update, in place: then they may be masked and sent.

    Args:
        words: (length,) as the ring encodes them, the update's part of the vector alone.
        shares: the noise of the sum.

    Raises:
        ProtocolError: the words are of another length, or of a vector that is longer than the clip norm allows.
    """
    if words.shape != (shares.length,):
        raise ProtocolError(f"the update has shape {words.shape} on the ring, its noise is for ({shares.length},)")
    signed = words.view(np.dtype(f"i{words.itemsize}"))
    norm = math.sqrt(math.fsum(_square(signed[start : start + _AT_ONCE]) for start in range(0, len(words), _AT_ONCE)))
    if not norm <= float(shares.sensitivity) * (1 + 2.0**-30):
        raise ProtocolError("the update on the ring is longer than its clip norm; its noise would not protect it")
    random = SecretRandom()
    for start in range(0, shares.length, _AT_ONCE):
        part = words[start : start + _AT_ONCE]
        part += discrete_gaussian(len(part), shares.variance, random).astype(part.dtype)


def _square(words: NDArray[np.signedinteger[Any]]) -> float:
    return float(np.sum(np.square(words, dtype=np.float64)))
