"""A keyed sketch of a data set's units, to know the same patients again under another name.

HMAC-SHA-256 (RFC 2104) of each unit's identifier, of which the smallest are kept (bottom-k sketch: Cohen & Kaplan 2007,
"Summarizing data using bottom-k sketches"). Without the silo's key nothing can be told from it, and it stays in the
silo. Two data sets with a unit in common share it in both sketches when it is small enough for both: below 4096 units
always, above that a common share of s of the smaller set is missed with probability (1 - s)^4096.
"""

from __future__ import annotations

import heapq
import hmac
from collections.abc import Iterable

SIZE = 4096  # units kept
WIDTH = 16  # bytes of each


def sketch(units: Iterable[bytes], key: bytes) -> bytes:
    """Return the sketch of units, at most 64 KiB.

    Args:
        units: one identifier a unit, in any order, also repeated; where a record is its own unit, the record's content.
        key: the silo's 32 secret bytes.
    """
    macs = {hmac.digest(key, unit, "sha256")[:WIDTH] for unit in units}
    return b"".join(heapq.nsmallest(SIZE, macs))


def common(first: bytes, second: bytes) -> int:
    """Return how many units two sketches under one key share."""
    one, two = ({data[i : i + WIDTH] for i in range(0, len(data), WIDTH)} for data in (first, second))
    return len(one & two)
