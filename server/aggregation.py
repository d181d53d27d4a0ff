"""From what silos sent to the next model: the strategy's server half, and the noise where the server makes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from strategies.base import PerSiloStrategy, State, SumStrategy
from strategies.errors import RunError
from strategies.layout import Vector
from strategies.manifest import Manifest
from strategies.privacy.secret import SecretRandom
from strategies.privacy.silo_level import noised, noised_sum
from strategies.study import Study

_CHUNK = 2**15  # coordinates of a sum that stay in the cache


def aggregate(study: Study, manifest: Manifest, state: State, updates: Mapping[str, Vector]) -> State:
    strategy = study.strategy
    if isinstance(strategy, SumStrategy):
        return from_sum(strategy, manifest, state, _total(study, updates), updates)
    if isinstance(strategy, PerSiloStrategy):
        weights = {silo: manifest.weight_of(silo) for silo in updates}
        after = strategy.aggregate_each(state, updates, weights)  # a study of such a rule weighs all silos alike
        return _finite(after)
    raise RunError(f"strategy {study.file.strategy.name} is neither a SumStrategy nor a PerSiloStrategy")


def from_sum(strategy: SumStrategy, manifest: Manifest, state: State, total: Vector, silos: Collection[str]) -> State:
    """Return the next state from the sum over these silos of weight times update."""
    weight = sum(manifest.weight_of(silo) for silo in silos)
    share = weight / sum(member.weight for member in manifest.roster)
    return _finite(strategy.aggregate(replace(state, share=share), total, weight))


def _finite(after: State) -> State:
    if not np.isfinite(after.weights).all():
        raise RunError("the aggregated model holds values that are not finite; lower the learning rates of the study")
    return replace(after, weights=after.weights.astype(np.float32))


def opened(study: Study, total: NDArray[np.float64]) -> Vector:
    """Return a sum that was under masks; where the server makes the privacy, noised before anything else.

    Each part is in its ball by what the silo's own code does: the server cannot look.
    """
    privacy = study.file.privacy
    if privacy.mechanism != "central-gaussian":
        return np.asarray(total, dtype=np.float32)
    return noised(total, clip_norm=privacy.clip_norm, noise_multiplier=study.noise_multiplier, random=SecretRandom())


def _total(study: Study, updates: Mapping[str, Vector]) -> Vector:
    """Return the sum of the updates; where the server makes the privacy, noised before anything else."""
    if study.file.privacy.mechanism == "central-gaussian":
        return noised_sum(updates.values(), study)
    return summed([updates[silo] for silo in sorted(updates)])


def summed(updates: Sequence[Vector]) -> Vector:
    """Return the sum, added up in this order, chunk by chunk so that each update passes through the cache once."""
    total = np.array(updates[0])
    for start in range(0, len(total), _CHUNK):
        part = total[start : start + _CHUNK]
        for update in updates[1:]:
            part += update[start : start + _CHUNK]
    return total
