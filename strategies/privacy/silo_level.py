"""Privacy of a silo's whole update: silos train plainly, each clips its update of the round, and noise is added once.

Three places for the noise and one accountant, after Kairouz et al. 2021 ("The distributed discrete Gaussian mechanism
for federated learning with secure aggregation", section 1):
- `local-gaussian`: each silo noises its own update before it leaves; nobody is trusted.
- `distributed-gaussian`: each silo adds a share, and what is left in any sum that opens is enough
  (strategies/privacy/distributed.py); secure aggregation is trusted to hide the parts, and no more than `max_colluding`
  silos to help the server.
- `central-gaussian`: the server noises the sum; it is trusted with each clipped update, or with the exact sum.

Noise has the standard deviation sigma C, with sigma the study's noise multiplier and C its clip norm. Two neighbours:
- one silo's update replaced by zero (zero-out): the sum moves by at most C, so sigma is the multiplier.
- one unit inside the silo added or removed. Training is not clipped by unit, so this can move the clipped update from
  anywhere in the ball to anywhere: by at most 2 C, so sigma / 2 is the multiplier. A ledger is charged that, once a
  round and without amplification: neither the cohort's choice nor the samples of steps count. The same number bounds
  the exchange of all of a silo's records at once.

Guarantees: `clipped` returns a vector within the ball whatever it is given. `noised` puts the sum on a grid of 2^-20 C
before the noise meets it, which hides the low bits (Mironov 2012), and rounds the noise to the same grid, which is the
Gaussian mechanism, rounded; the L2 distance that rounding can add (here, and on a ring at least as fine) is paid for
with that much more noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from strategies.layout import Vector
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Gaussian
from strategies.privacy.secret import GRID, SecretRandom, gaussian_mechanism
from strategies.study import Study

_ENOUGH_SILOS = 100  # with central noise, below which the noise of a mean usually buries what was learnt
_WITHIN = 1.0 - 2.0**-20  # of the clip norm: so that the float32 of a clipped vector is in the ball too


def clipped(update: Vector, clip_norm: float) -> Vector:
    """Return the update, scaled down where its L2 norm is above `clip_norm`; zeros for one that is not finite."""
    values = np.asarray(update, dtype=np.float64)
    largest = float(np.max(np.abs(values), initial=0.0))
    if not math.isfinite(largest):  # to refuse would tell of the records
        return np.zeros(values.shape, dtype=np.float32)
    norm = largest * math.sqrt(float(np.sum(np.square(values / largest)))) if largest else 0.0
    if norm > clip_norm * _WITHIN:
        values = values * (clip_norm * _WITHIN / norm)
    return values.astype(np.float32)


def noised(
    total: Vector | NDArray[np.float64], *, clip_norm: float, noise_multiplier: float, random: SecretRandom
) -> Vector:
    """Return the Gaussian mechanism's output for a sum of vectors that are each clipped to `clip_norm`.

    Args:
        total: (d,) the sum, in float64 where it has several parts; one clipped update is a sum too.
        clip_norm: how far one silo can move the sum, in L2.
        noise_multiplier: standard deviation over clip norm.
        random: where the noise comes from.
    """
    step = GRID * clip_norm
    deviation = noise_multiplier * (1.0 + 2.0 * math.sqrt(len(total)) * GRID) / GRID  # in steps of the grid
    released = np.empty(len(total), np.float32)
    gaussian_mechanism(np.asarray(total), step=step, deviation=deviation, random=random, into=released)
    return released


def noised_sum(updates: Iterable[Vector], study: Study) -> Vector:
    """Return the noised sum of the silos' updates, as a trusted server makes it.

    Each is clipped again, so that what is claimed of the sum holds whatever a silo sent.
    """
    privacy = study.file.privacy
    first, *rest = (clipped(update, privacy.clip_norm) for update in updates)
    total = first.astype(np.float64)
    for update in rest:
        total += update
    return noised(total, clip_norm=privacy.clip_norm, noise_multiplier=study.noise_multiplier, random=SecretRandom())


def released(update: Vector, study: Study) -> Vector:
    """Return what leaves a silo of its update in a study with silo-level privacy, before any mask.

    Distributed noise is no part of it: shares are added to the words of the ring.
    """
    privacy = study.file.privacy
    vector = clipped(update, privacy.clip_norm)
    if privacy.mechanism != "local-gaussian":
        return vector
    return noised(vector, clip_norm=privacy.clip_norm, noise_multiplier=study.noise_multiplier, random=SecretRandom())


def silos_a_round(study: Study, members: int) -> int:
    """Return how many of a run's silos train in each round."""
    cohort = study.file.cohort
    return min(members, max(cohort.min_silos, math.ceil(cohort.fraction * members)))


def noise_on_mean(study: Study, silos: int) -> float:
    """Return the standard deviation of the noise on each parameter of the mean of so many silos' updates."""
    deviation = study.noise_multiplier * study.file.privacy.clip_norm
    return deviation / (math.sqrt(silos) if study.file.privacy.mechanism == "local-gaussian" else silos)


def warning(study: Study, silos: int, parameters: int | None = None) -> str | None:
    """Return what has to be said where so few silos average that the noise may bury what they learn; else None.

    Args:
        study: any.
        silos: of a round.
        parameters: length of the model's vector, where it is known.
    """
    enough = _ENOUGH_SILOS**2 if study.file.privacy.mechanism == "local-gaussian" else _ENOUGH_SILOS
    if not study.silo_level or silos >= enough:
        return None
    each, clip_norm = noise_on_mean(study, silos), study.file.privacy.clip_norm
    whole = f", L2 norm {each * math.sqrt(parameters):.3g} over {parameters} parameters" if parameters else ""
    return (
        f"privacy.mechanism = '{study.file.privacy.mechanism}' with {silos} silos puts noise of standard deviation "
        f"{each:.3g} on each parameter of a round's mean update{whole}, and that update has an L2 norm of at most "
        f"{clip_norm:g}: below about {enough} silos such noise buries what most models learn; 'dp-sgd' protects the "
        "same units with less"
    )


def silo_epsilon(study: Study) -> float:
    """Return the epsilon of a whole run's updates, where neighbours differ by one silo's updates being zero."""
    privacy = study.file.privacy
    release = Gaussian(noise_multiplier=study.noise_multiplier, steps=study.file.study.rounds)
    return epsilon((release,), privacy.delta, accountant=privacy.accountant)
