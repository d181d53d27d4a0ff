"""The set-up of a run (M): who may sum what, how many may collude, and the thresholds that follow.

Thresholds follow from the cohort's size n and from c, the number of silos that may collude with an active server:
tau = Q = floor((n + c) / 2) + 1 (SECAGG-FLOW 2). Two sets of Q signers, or of Q signers and tau holders of shares, then
have an honest silo in common, and each honest silo backs one set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from strategies.errors import ProtocolError, VerificationError
from strategies.proof.canonical import dump, load
from strategies.secagg.encoding import sha256
from strategies.secagg.errors import Code, SecaggError
from strategies.secagg.ring import Ring

PROTOCOL = "fsa1"
MOST_SILOS = 128
MOST_SUMS = 100_000
_NUMBERS = ("silos", "least", "max_colluding", "most_dropped", "sums")
_TEXTS = {"run": "[0-9a-f]{32}", "roster": "[0-9a-f]{64}", "coordinator": "[0-9a-f]{64}", "code": ".+", "plan": ".*"}


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
        pair_with_local_dp: allow two silos, if every kind of sum has noise of each silo's own: each learns the other's
            noisy vector.
    """

    least: int = 3
    max_colluding: int = 0
    most_sums: int = MOST_SUMS
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
        value = {name: getattr(self, name) for name in (*_NUMBERS, *_TEXTS)}
        kinds = {name: ring.to_value() for name, ring in self.kinds.items()}
        return dump({"protocol": PROTOCOL, "kinds": kinds, **value})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a set-up.

        Raises:
            SecaggError: it is none, or not in its canonical form.
        """
        try:
            return cls(**_fields(load(data)))
        except (VerificationError, ProtocolError):
            raise SecaggError(Code.MALFORMED) from None

    def digest(self) -> bytes:
        """Return H(M)."""
        return sha256(self.to_bytes())

    def check(self, floors: Floors) -> None:
        """Check the bounds that no policy may lower, and the silo's own.

        Raises:
            SecaggError: SIZE, FLOOR or ROOM.
        """
        if self.silos > MOST_SILOS:
            raise SecaggError(Code.SIZE)
        local = all(ring.protection == "local" for ring in self.kinds.values())
        pair = 2 if floors.pair_with_local_dp and local else 3
        sound = (
            max(pair, self.max_colluding + 2, floors.least) <= self.least <= self.silos
            and max(0, floors.max_colluding) <= self.max_colluding
            and 0 <= self.most_dropped <= self.silos
            and 1 <= self.sums <= floors.most_sums
        )
        if not sound:
            raise SecaggError(Code.FLOOR)
        try:
            for ring in self.kinds.values():
                ring.require_room(self.silos)
        except ProtocolError:
            raise SecaggError(Code.ROOM) from None

    def threshold(self, cohort: int) -> int:
        """Return tau = Q of a cohort of that many silos."""
        return threshold(cohort, self.max_colluding)

    def least_survivors(self, cohort: int) -> int:
        """Return u_min: the fewest survivors of a cohort whose sum may be opened."""
        return max(self.least, self.threshold(cohort), cohort - self.most_dropped)

    def check_cohort(self, cohort: int) -> None:
        """Check the size of a cohort.

        Raises:
            SecaggError: COHORT or THRESHOLD.
        """
        if not self.least <= cohort <= self.silos:
            raise SecaggError(Code.COHORT)
        if self.threshold(cohort) > cohort:
            raise SecaggError(Code.THRESHOLD)


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a set-up, each of its type."""
    sound = isinstance(value, dict) and value.keys() == {"protocol", "kinds", *_NUMBERS, *_TEXTS}
    sound = sound and value.pop("protocol") == PROTOCOL and isinstance(value["kinds"], dict) and len(value["kinds"]) > 0
    sound = sound and all(type(value[name]) is int for name in _NUMBERS)
    if not sound or not all(
        type(value[name]) is str and re.fullmatch(pattern, value[name], re.DOTALL) for name, pattern in _TEXTS.items()
    ):
        raise SecaggError(Code.MALFORMED)
    kinds = {name: Ring.from_value(ring) for name, ring in value["kinds"].items()}
    if any(name != ring.name for name, ring in kinds.items()):
        raise SecaggError(Code.MALFORMED)
    return {**value, "kinds": kinds}
