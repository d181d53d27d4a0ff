"""What a silo keeps of a run between two requests, as rows that move by compare-and-set.

The protocol reads rows and says which changes must be durable before its reply leaves; whoever calls it applies them,
all or none (client/ledger_file.py does it in the ledger's own transaction).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Read = Callable[[str], bytes | None]  # rows of one run at this silo, by key


@dataclass(frozen=True, kw_only=True)
class Change:
    """Set a row, if it is as expected.

    Args:
        key: of the row.
        expected: its value now; None for no row.
        new: its value then; None takes it away.
    """

    key: str
    expected: bytes | None = field(repr=False)
    new: bytes | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A reply, and what must be durable before it leaves."""

    reply: bytes = field(repr=False)
    changes: tuple[Change, ...] = ()
