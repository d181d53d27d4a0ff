"""What a study's sums are, as both sides derive them: the set-up of a run is a function of its manifest and study.

A silo joins only the set-up that it derives itself, so nothing in it is the server's to choose. The update travels
in 32-bit words, which hold entries up to `REACH` at least; what is beyond is cut, and the silo's log says so. Metric
counts travel in 64-bit words on the very grid that they are counted on, so their sum is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from strategies.counts import GRID, CountLayout
from strategies.layout import Vector
from strategies.manifest import Manifest
from strategies.privacy.distributed import Shares, reach
from strategies.secagg.encoding import enc
from strategies.secagg.ring import Protection, Ring, fitted
from strategies.secagg.setup import MOST_SILOS, Setup
from strategies.study import Study

UPDATE, COUNTS = "update", "counts"
_SPARE = 10  # of so many silos one may be missing from a sum whose noise is made of shares; more give it up
REACH = 16.0  # entries of an update: far beyond what training gives, and fine enough in 32 bits
_MOST_COUNTED = 2.0**26  # units of a silo


def setup_of(study: Study, manifest: Manifest, parameters: int) -> Setup:
    """Return the set-up of a run.

    Args:
        study: the agreed study, with secure aggregation.
        manifest: the agreed run.
        parameters: of the model.
    """
    file, silos = study.file, len(manifest.roster)
    counted = bool(study.count_events())
    kinds = {UPDATE: _update(study, parameters, silos)}
    if counted:
        kinds[COUNTS] = _counts(study, silos)
    return Setup(
        run=manifest.run,
        roster=manifest.digest(),
        silos=silos,
        coordinator=manifest.coordinator,
        least=file.cohort.min_silos,
        max_colluding=file.secagg.max_colluding,
        most_dropped=silos // _SPARE if distributed(study) else silos,
        sums=file.study.rounds * (1 + counted),
        code=manifest.code,
        plan=study.digest,
        kinds=kinds,
    )


def digest_of_model(weights: Vector, broadcast: Mapping[str, Vector] | None = None) -> bytes:
    """Return the SHA-256 of what a sum's update or counts start from: the weights, then the strategy's vectors."""
    digest = hashlib.sha256(enc("fedsilo/model", np.ascontiguousarray(weights, "<f4").data))
    for name, vector in sorted((broadcast or {}).items()):
        digest.update(enc(name, np.ascontiguousarray(vector, "<f4").data))
    return digest.digest()


def digest_of_settings(manifest: Manifest, number: int) -> bytes:
    """Return the SHA-256 of what else a silo was told: the run's agreement and the number of the release."""
    return hashlib.sha256(enc("fedsilo/settings", manifest.digest(), number)).digest()


def members_of(manifest: Manifest) -> dict[str, bytes]:
    """Return the Ed25519 public keys by which silos sign, 32 bytes each."""
    return {member.silo: bytes.fromhex(member.ledger_key) for member in manifest.roster}


def distributed(study: Study) -> bool:
    """Whether what protects a sum is made of shares that each silo adds."""
    return study.file.privacy.mechanism == "distributed-gaussian"


def shares_of(study: Study, setup: Setup, cohort: int) -> Shares | None:
    """Return the noise of a sum of updates over so many silos; None where it has none of shares.

    Raises:
        SettingError: the cohort or the ring is too small for the noise.
    """
    if not distributed(study):
        return None
    (segment,) = setup.kinds[UPDATE].segments
    return Shares(
        noise_multiplier=study.noise_multiplier,
        clip_norm=study.file.privacy.clip_norm,
        scale=segment.scale,
        length=segment.length,
        silos=cohort,
        drops=cohort - setup.least_survivors(cohort),
        colluding=setup.max_colluding,
    )


def _update(study: Study, parameters: int, silos: int) -> Ring:
    protection: Protection = "none" if study.exact_sums else "distributed" if distributed(study) else "local"
    part = (UPDATE, parameters, _reach(study))
    return fitted(UPDATE, [part], silos=min(silos, MOST_SILOS), protection=protection, bits=32)


def _reach(study: Study) -> float:
    """Return how large an entry of an update may be."""
    file = study.file
    noise, clip_norm = study.noise_multiplier, file.privacy.clip_norm
    match file.privacy.mechanism:
        case "central-gaussian":
            return clip_norm
        case "local-gaussian":
            return clip_norm * (1 + 16 * noise)
        case "distributed-gaussian":
            return reach(noise, clip_norm, least=file.cohort.min_silos, colluding=file.secagg.max_colluding)
        case _:
            return REACH


def _counts(study: Study, silos: int) -> Ring:
    protection: Protection = "none" if study.release == "masked" else "local"
    part = (COUNTS, CountLayout.of(study).size, _MOST_COUNTED)
    return fitted(COUNTS, [part], silos=min(silos, MOST_SILOS), protection=protection, bits=64, resolution=GRID)
