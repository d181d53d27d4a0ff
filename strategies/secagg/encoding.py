"""Bytes that mean one thing: what is hashed, signed, derived from and sent.

`enc` puts the length before each item (4 bytes, little-endian), so no two lists of items have the same bytes. `expand`
derives a 32-byte secret for one purpose from another by HKDF-Expand (RFC 5869, 2.3), the purpose and all it is bound to
being its info.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

Bytes = bytes | memoryview
Item = bytes | bytearray | memoryview | str | int | Sequence["Item"]

KEY_BYTES = 32


def enc(*items: Item) -> bytes:
    """Return items one after another, each with its length before it.

    Args:
        items: bytes; texts (UTF-8); whole numbers from 0 to 2^64 - 1 (8 bytes, little-endian); lists of items, each of
            which is the `enc` of what it holds.
    """
    parts: list[bytes | bytearray | memoryview] = []
    for item in items:
        part = item if type(item) is bytes else _part(item)
        parts += (len(part).to_bytes(4, "little"), part)
    return b"".join(parts)


def _part(item: Item) -> bytes | bytearray | memoryview:
    if isinstance(item, bytes | bytearray):
        return item
    if isinstance(item, memoryview):
        return item.cast("B")
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, int):
        return item.to_bytes(8, "little")
    return enc(*item)


def take(data: Bytes, count: int | None = None) -> tuple[bytes, ...]:
    """Return the items that `enc` wrote.

    Args:
        data: all of it is read.
        count: how many there must be; None takes any number.

    Raises:
        ValueError: the bytes are no such list, or one of another length.
    """
    found: list[bytes] = []
    place = 0
    while place < len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "little")
        if end > len(data):
            raise ValueError("an item ends beyond the data")
        found.append(bytes(data[place + 4 : end]))
        place = end
    if count is not None and len(found) != count:
        raise ValueError("another number of items")
    return tuple(found)


def number(item: bytes) -> int:
    """Read a whole number.

    Raises:
        ValueError: it is not written in 8 bytes.
    """
    if len(item) != 8:
        raise ValueError("a number has 8 bytes")
    return int.from_bytes(item, "little")


def names(item: bytes) -> tuple[str, ...]:
    """Read a list of names.

    Raises:
        ValueError: it is none, or not sorted bytewise, or has a name twice.
    """
    parts = take(item)
    if list(parts) != sorted(set(parts)):
        raise ValueError("names are sorted and unique")
    return tuple(part.decode() for part in parts)


def ordered(silos: Sequence[str]) -> tuple[str, ...]:
    """Return names in the order in which they are signed: sorted bytewise, each once."""
    return tuple(sorted(set(silos), key=str.encode))


def sha256(*parts: Bytes) -> bytes:
    """Return the hash of the parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def expand(key: bytes, *info: Item) -> bytes:
    """Return 32 bytes derived from a secret of 32 uniform bytes, for the purpose that `info` states: X(k, ...)."""
    return hkdf_expand(key, enc(*info))


def hkdf_expand(key: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-Expand with SHA-256."""
    return HKDFExpand(SHA256(), KEY_BYTES, info).derive(key)
