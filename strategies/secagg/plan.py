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
from strategies.secagg.encoding import enc
from strategies.secagg.ring import Protection, Ring, fitted
from strategies.secagg.setup import MOST_SILOS, Setup
from strategies.study import Study

UPDATE, COUNTS = "update", "counts"
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
        most_dropped=silos,  # each silo's noise stands by itself
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


def _update(study: Study, parameters: int, silos: int) -> Ring:
    protection: Protection = "local" if study.private else "none"
    part = (UPDATE, parameters, REACH)
    return fitted(UPDATE, [part], silos=min(silos, MOST_SILOS), protection=protection, bits=32)


def _counts(study: Study, silos: int) -> Ring:
    protection: Protection = "none" if study.release == "masked" else "local"
    part = (COUNTS, CountLayout.of(study).size, _MOST_COUNTED)
    return fitted(COUNTS, [part], silos=min(silos, MOST_SILOS), protection=protection, bits=64, resolution=GRID)
