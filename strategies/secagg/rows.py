"""What a silo keeps of a run: rows by key, each changed by compare-and-set, and the states of one sum.

The session reads rows and proposes changes; the silo's client applies all changes of a step durably in one
transaction, or none of them, and only then lets the reply leave. When a compare fails, another process has been faster:
the answer is "busy" and nothing leaves. Rows hold secrets; they lie where the ledger lies, readable by the silo's user
alone.

    run       the set-up that was joined, with the stored reply, or the mark of a closed run (`closed_run`)
    secret    the run's X25519 private key, until the first sum
    peers     the last sum's number, the pinned directory, the keys shared with each peer as of that sum
    exact     the cohort of the run's sums without noise
    sum/<t>   state of sum t:  CLAIMED -> MASKED -> FULL | VIEW -> OPEN;  then CLOSED;  ABORTED from any

Guarantees: `sum/<t>` leaves FULL only for CLOSED or ABORTED, and VIEW only for OPEN, CLOSED or ABORTED, so one silo
backs one set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from strategies.secagg.encoding import enc, names, number, sha256, take
from strategies.secagg.errors import Code, notice

Read = Callable[[str], bytes | None]  # durable rows of one run at this silo, by key

RUN, SECRET, PEERS, EXACT = "run", "secret", "peers", "exact"


def sum_key(t: int) -> str:
    """Return the key of sum t's row."""
    return f"sum/{t}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One compare-and-set; None is an absent row.

    Args:
        key: of the row.
        expected: what stands there now.
        new: what shall stand there.
    """

    key: str
    expected: bytes | None = field(repr=False)
    new: bytes | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Step:
    """An answer, and what must be durable before it leaves.

    Args:
        reply: bytes for the server.
        changes: applied together, before the reply is sent.
        digest: SHA-256 of the reply.
        alarm: set when the silo has aborted the sum: what a person should be told. The reply is the code alone.
        silos: whom the alarm names.
    """

    reply: bytes = field(repr=False)
    changes: tuple[Change, ...]
    digest: bytes
    alarm: Code | None = None
    silos: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UploadStep:
    """A masked vector on its way, and what must be durable before it leaves.

    Args:
        reply: bytes for the server, held once; they may be tens of megabytes.
        changes: applied together with the ledger's release, before the reply is sent.
        digest: SHA-256 of the reply, for the ledger.
    """

    reply: memoryview = field(repr=False)
    changes: tuple[Change, ...]
    digest: bytes


def step(reply: bytes, *changes: Change) -> Step:
    """Return a step without an alarm."""
    return Step(reply=reply, changes=changes, digest=sha256(reply))


def alarm(code: Code, silos: tuple[str, ...], *changes: Change) -> Step:
    """Return the step by which a silo leaves a sum that somebody plays with."""
    reply = notice(code)
    return Step(reply=reply, changes=changes, digest=sha256(reply), alarm=code, silos=silos)


class State(StrEnum):
    """How far a sum is at this silo."""

    CLAIMED = "claimed"
    MASKED = "masked"
    FULL = "full"
    VIEW = "view"
    OPEN = "open"
    CLOSED = "closed"
    ABORTED = "aborted"


@dataclass(frozen=True, kw_only=True)
class SumRow:
    """The row of one sum.

    Args:
        state: how far it is.
        ctx: what it is bound to.
        kind: of the sum.
        cohort: U0.
        upload: SHA-256 of the stored upload; empty before.
        words: SHA-256 of the masked vector in it; empty before.
        share: this silo's share of its own seed, until the sum is over.
        survivors: the set that this silo backs: U0 in FULL, U1 in VIEW and OPEN; empty before.
        request: SHA-256 of the request that was answered with shares; empty before.
    """

    state: State
    ctx: bytes
    kind: str
    cohort: tuple[str, ...]
    upload: bytes = b""
    words: bytes = b""
    share: bytes = field(default=b"", repr=False)
    survivors: tuple[str, ...] = ()
    request: bytes = b""

    @property
    def over(self) -> bool:
        """Whether nothing of it is answered any more."""
        return self.state in (State.CLOSED, State.ABORTED)

    def ended(self, state: State) -> Self:
        """Return the row when the sum is over: without secrets, with what its record is held against."""
        return replace(self, state=state, share=b"")

    def to_bytes(self) -> bytes:
        """Return the row."""
        return enc(
            self.state.value,
            self.ctx,
            self.kind,
            self.cohort,
            self.upload,
            self.words,
            self.share,
            self.survivors,
            self.request,
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a row of this silo's own."""
        state, ctx, kind, cohort, upload, words, share, survivors, request = take(data, 9)
        return cls(
            state=State(state.decode()),
            ctx=ctx,
            kind=kind.decode(),
            cohort=names(cohort),
            upload=upload,
            words=words,
            share=share,
            survivors=names(survivors),
            request=request,
        )


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The row of a run.

    Args:
        digest: H(M).
        reply: to the invitation.
        closed: whether the run is over here, for ever.
        last: number of the last sum of a closed run.
    """

    digest: bytes
    reply: bytes
    closed: bool = False
    last: int = 0

    def to_bytes(self) -> bytes:
        """Return the row."""
        return enc(self.digest, self.reply, int(self.closed), self.last)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a row of this silo's own."""
        digest, reply, closed, last = take(data, 4)
        return cls(digest=digest, reply=reply, closed=bool(number(closed)), last=number(last))


@dataclass(frozen=True, kw_only=True)
class Peers:
    """The row of the pinned directory.

    Args:
        last: number of the last sum; 0 before the first.
        directory: dir_hash.
        keys: K of sum `last` by peer.
    """

    last: int
    directory: bytes
    keys: dict[str, bytes] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the row."""
        return enc(self.last, self.directory, tuple(self.keys.items()))

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a row of this silo's own."""
        last, directory, keys = take(data, 3)
        pairs = [take(pair, 2) for pair in take(keys)]
        return cls(last=number(last), directory=directory, keys={silo.decode(): key for silo, key in pairs})


def closed_run(row: bytes | None) -> bool:
    """Return whether the row `run` says that the run is closed here, and can never be joined again."""
    return row is not None and Joined.read(row).closed
