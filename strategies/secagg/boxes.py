"""Boxes: shares on their way from one silo to another through the server (ChaCha20-Poly1305, RFC 8439).

A box has a key of its own, bound to the sum, the direction, what it carries and 32 random bytes of the upload; so its
nonce is zero and no key is used twice, even after a silo's state was set back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from strategies.secagg.encoding import KEY_BYTES, enc, expand

OVERHEAD = 16
_NONCE = bytes(12)


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a box is bound to.

    Args:
        type: `b` carries a share of the sender's own seed, `e` shares of the seeds of its pairs.
        ctx: of the sum.
        nonce: 32 random bytes of the sender's upload.
        sender: name of a silo.
        receiver: name of a silo.
    """

    type: Literal["b", "e"]
    ctx: bytes
    nonce: bytes
    sender: str
    receiver: str

    @property
    def items(self) -> tuple[str | bytes, ...]:
        """All of it, for key and associated data."""
        return "fsa1/box", self.type, self.ctx, self.nonce, self.sender, self.receiver


def seal(pair: bytes, label: Label, shares: list[bytes]) -> bytes:
    """Return the box of shares of 32 bytes each, under the key that sender and receiver share in this sum."""
    return ChaCha20Poly1305(expand(pair, *label.items)).encrypt(_NONCE, b"".join(shares), enc(*label.items))


def unseal(pair: bytes, label: Label, box: bytes) -> list[bytes] | None:
    """Return the shares in a box, or None when it is not the one that the label names."""
    try:
        data = ChaCha20Poly1305(expand(pair, *label.items)).decrypt(_NONCE, box, enc(*label.items))
    except InvalidTag:
        return None
    return [data[place : place + KEY_BYTES] for place in range(0, len(data), KEY_BYTES)]


def size(shares: int) -> int:
    """Return the bytes of a box with so many shares."""
    return KEY_BYTES * shares + OVERHEAD
