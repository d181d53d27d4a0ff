"""A silo's side of secure aggregation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from strategies.secagg.rows import Change, Read, Step
from strategies.secagg.setup import Floors, Setup


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A request for a sum that has passed all checks.

    Args:
        t: number of the sum.
        kind: of the sum.
        ctx: H of all that the sum is bound to.
        cohort: U0, sorted.
        changes: to be made durable with the ledger's reservation, before any record is read. Empty when `resend`.
        resend: the upload was made before: send its stored bytes again, and nothing else.
        upload: SHA-256 of those bytes; empty otherwise.
    """

    t: int
    kind: str
    ctx: bytes
    cohort: tuple[str, ...]
    changes: tuple[Change, ...]
    resend: bool
    upload: bytes
    _secret: object = field(repr=False)


class SiloSession:
    """One silo in one run. Holds no state of its own: everything is in the rows, so a session may be made anew for every
    message and in every process.

    Args:
        name: this silo.
        sign: Ed25519 signature by this silo's key of the roster.
        members: Ed25519 public keys of the roster, 32 bytes each, by silo.
        expected: the set-up as this silo derives it from the agreed study and manifest.
        floors: what this silo insists on besides.
        read: durable rows of this run.
    """

    def __init__(
        self,
        *,
        name: str,
        sign: Callable[[bytes], bytes],
        members: Mapping[str, bytes],
        expected: Setup,
        floors: Floors,
        read: Read,
    ) -> None:
        raise NotImplementedError

    def join(self, request: bytes) -> Step:
        """Answer an invitation with a signed key of this run; the same answer every time.

        Raises:
            SecaggError: SIGNATURE, MANIFEST, SIZE, FLOOR, ROOM, RUN_USED.
        """
        raise NotImplementedError

    def claim(self, request: bytes, *, model: bytes, config: bytes) -> Claim:
        """Check a request for a sum (6 to 9).

        Args:
            request: as it came.
            model: SHA-256 of the model that came with it.
            config: SHA-256 of the settings that came with it.

        Raises:
            SecaggError: one code a check; nothing changes.
        """
        raise NotImplementedError

    def mask(self, claim: Claim, vectors: Sequence[NDArray[Any]]) -> Step:
        """Mask this silo's vectors (10 to 13). The claim is used up, whatever happens.

        Args:
            claim: whose changes are durable.
            vectors: one a segment of the kind's ring.

        Returns:
            The upload; its changes go with the ledger's release of `digest`.

        Raises:
            SecaggError: CLAIM.
            ProtocolError: a vector does not fit its segment, or is not finite.
        """
        raise NotImplementedError

    def unmask(self, request: bytes) -> Step:
        """Answer a request to unmask (15 to 19): shares for all, a signed view, or shares for the survivors.

        A step with an `alarm` is made durable like any other; its reply is a code.

        Raises:
            SecaggError: one code a check; nothing changes.
        """
        raise NotImplementedError

    def close(self, request: bytes) -> Step:
        """Check the record of a sum (21), or end the run: secrets are erased. The reply is empty.

        Raises:
            SecaggError: SIGNATURE, CONTEXT, RECORD.
        """
        raise NotImplementedError

    def leave(self) -> tuple[Change, ...]:
        """Return the changes that end the run here without the server's word: secrets are erased for ever."""
        raise NotImplementedError


def closed_run(row: bytes | None) -> bool:
    """Return whether the row `run` says that the run is closed here, and can never be joined again."""
    raise NotImplementedError
