"""The set-up of a run (M): who may sum what, how many may collude, and the thresholds that follow.

Thresholds follow from the cohort and from c, the number of silos that may collude with an active server (SECAGG-FLOW 2):
tau = Q = floor((n + c) / 2) + 1. Two sets of Q signers, or of Q signers and tau holders of shares, then have an honest
silo in common, and each honest silo backs one set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from strategies.secagg.ring import Ring

MOST_SILOS = 128


def threshold(silos: int, colluding: int) -> int:
    """Return tau = Q: shares that open a secret, and signatures that certify a set of survivors."""
    return (silos + colluding) // 2 + 1


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What one silo insists on, whatever the study says.

    Args:
        least: silos that must be in every sum.
        max_colluding: silos that must be taken to collude with the server, at least.
        most_sums: sums of one run, at most.
        pair_with_local_dp: allow two silos where every kind of sum has noise of each silo's own; each learns the other's
            noisy vector.
    """

    least: int = 3
    max_colluding: int = 0
    most_sums: int = 100_000
    pair_with_local_dp: bool = False


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What silos and server agree on before a run.

    Args:
        run: identity of the run, 32 hex digits; never used twice.
        roster: hash of the roster.
        silos: N, silos of the roster.
        coordinator: the Ed25519 public key that signs instructions, 64 hex digits.
        least: n_min, the fewest silos of a sum.
        max_colluding: c, silos that may collude with an active server; an absolute number.
        most_dropped: D, silos that may be missing from a sum before its noise is too little.
        sums: T, the highest number of a sum.
        code: version of the program.
        plan: text or digest of the plan of noise.
        kinds: rings of the kinds of sums, by name.
    """

    run: str
    roster: str
    silos: int
    coordinator: str
    least: int
    max_colluding: int
    most_dropped: int
    sums: int
    code: str
    plan: str
    kinds: Mapping[str, Ring]

    def to_bytes(self) -> bytes:
        """Return the canonical text."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a set-up.

        Raises:
            SecaggError: it is none, or not canonical.
        """
        raise NotImplementedError

    def digest(self) -> bytes:
        """Return H(M)."""
        raise NotImplementedError

    def check(self, floors: Floors) -> None:
        """Check the bounds that no policy may lower, and the silo's own.

        Raises:
            SecaggError: SIZE, FLOOR or ROOM.
        """
        raise NotImplementedError

    def threshold(self, cohort: int) -> int:
        """Return tau = Q of a cohort of that many silos."""
        return threshold(cohort, self.max_colluding)

    def least_survivors(self, cohort: int) -> int:
        """Return u_min: the fewest survivors of a cohort whose sum may be opened."""
        return max(self.least, self.threshold(cohort), cohort - self.most_dropped)
