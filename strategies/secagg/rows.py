"""What a silo keeps of a run: rows by key, each changed by compare-and-set, and the states of one sum.

The session reads rows and proposes changes; the silo's client applies all changes of a step durably in one transaction,
or none of them, and only then lets the reply leave. When a compare fails, another process has been faster: the answer is
"busy" and nothing leaves. Rows hold secrets; they lie where the ledger lies, readable by the silo's user alone.

    run       the set-up that was joined, with the stored reply, or the mark of a closed run (`closed_run`)
    secret    the run's X25519 private key, until the first sum
    peers     the last sum's number, the pinned directory, the keys shared with each peer as of that sum
    exact     the cohort of the run's sums without noise
    sum/<t>   state of sum t:  CLAIMED -> MASKED -> FULL | VIEW -> OPEN;  then CLOSED;  ABORTED from any

Guarantees: `sum/<t>` leaves FULL and VIEW in no direction but OPEN, CLOSED or ABORTED, so one silo backs one set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from strategies.secagg.errors import Code

Read = Callable[[str], bytes | None]  # durable rows of one run at this silo, by key

RUN, SECRET, PEERS, EXACT = "run", "secret", "peers", "exact"


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


class State(StrEnum):
    """How far a sum is at this silo."""

    CLAIMED = "claimed"
    MASKED = "masked"
    FULL = "full"
    VIEW = "view"
    OPEN = "open"
    CLOSED = "closed"
    ABORTED = "aborted"
