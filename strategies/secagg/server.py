"""The server's side of secure aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.secagg.ring import Floats
from strategies.secagg.setup import Setup


class Phase(StrEnum):
    """Where a sum stands at the server."""

    COLLECT = "collect"  # requests for uploads are out
    FULL = "full"  # every silo has sent: shares are asked for
    VIEW = "view"  # some have not: signatures of the survivors are asked for
    OPEN = "open"  # the set of survivors is certified: shares are asked for
    DONE = "done"
    ABORTED = "aborted"


@dataclass(frozen=True, kw_only=True)
class Total:
    """A sum.

    Args:
        vectors: one a segment, float64.
        survivors: U1, whose vectors are in it.
        missing: silos of the cohort whose vectors are not.
        blamed: silos that should not be asked again in this run: what they sent did not hold.
    """

    vectors: tuple[Floats, ...]
    survivors: tuple[str, ...]
    missing: tuple[str, ...]
    blamed: tuple[str, ...]


class ServerSession:
    """The server in one run.

    Args:
        setup: the run's.
        key: the coordinator's private key.
        members: Ed25519 public keys of the roster, 32 bytes each, by silo.
    """

    def __init__(self, setup: Setup, key: Ed25519PrivateKey, members: Mapping[str, bytes]) -> None:
        raise NotImplementedError

    def invitation(self) -> bytes:
        """Return the request that every silo of the roster gets; answered by `SiloSession.join`."""
        raise NotImplementedError

    def admit(self, replies: Mapping[str, bytes]) -> Mapping[str, str]:
        """Make the directory of keys, once; return who is left out and the code of why.

        Raises:
            SecaggError: ABSENT; too few are left.
        """
        raise NotImplementedError

    @property
    def seated(self) -> tuple[str, ...]:
        """Silos of the directory."""
        raise NotImplementedError

    def begin(self, kind: str, cohort: Sequence[str], *, model: bytes, config: bytes) -> Sum:
        """Begin the next sum. Persist `snapshot` of session and sum before anything is sent.

        Args:
            kind: of the sum.
            cohort: silos of the directory.
            model: SHA-256 of the model as it is sent.
            config: SHA-256 of the settings as they are sent.

        Raises:
            SecaggError: KIND, COHORT, THRESHOLD, EXACT_COHORT, ORDER.
        """
        raise NotImplementedError

    def farewell(self) -> bytes:
        """Return the message that ends the run at a silo; answered by `SiloSession.close`."""
        raise NotImplementedError

    def snapshot(self) -> bytes:
        """Return what a restarted server needs."""
        raise NotImplementedError

    @classmethod
    def restore(cls, setup: Setup, key: Ed25519PrivateKey, members: Mapping[str, bytes], data: bytes) -> Self:
        """Go on from a snapshot."""
        raise NotImplementedError

    def resume(self, data: bytes) -> Sum:
        """Go on with a sum from its snapshot."""
        raise NotImplementedError


class Sum:
    """One sum at the server. Made by `ServerSession.begin`."""

    @property
    def t(self) -> int:
        """Number of the sum."""
        raise NotImplementedError

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        raise NotImplementedError

    @property
    def reason(self) -> str:
        """Code of why it was aborted, or empty."""
        raise NotImplementedError

    def request(self, silo: str) -> bytes:
        """Return the request for an upload; answered by `SiloSession.claim` and `mask`."""
        raise NotImplementedError

    def collect(self, uploads: Mapping[str, bytes]) -> Phase:
        """Take the uploads at the deadline and fix the set of survivors, once; later uploads are not looked at.

        Persist `snapshot` before `requests` leave.
        """
        raise NotImplementedError

    def requests(self) -> Mapping[str, bytes]:
        """Return the requests of the phase by silo; answered by `SiloSession.unmask`."""
        raise NotImplementedError

    def receive(self, replies: Mapping[str, bytes]) -> Phase:
        """Take replies to `requests`. The phase stays when too few have come yet: the same requests may be sent again."""
        raise NotImplementedError

    def abort(self) -> None:
        """Give the sum up: seeds and vectors are erased."""
        raise NotImplementedError

    def total(self) -> Total:
        """Return the sum.

        Raises:
            SecaggError: STATE; it is not done.
        """
        raise NotImplementedError

    def record(self) -> bytes:
        """Return the signed record for every silo of the cohort; answered by `SiloSession.close`."""
        raise NotImplementedError

    def snapshot(self) -> bytes:
        """Return what a restarted server needs; holds masked vectors, shares and commitments, as the server saw them."""
        raise NotImplementedError
