"""The newest position of a ledger as others keep it, and the proof that somebody keeps two ledgers.

A silo signs its head (`SignedHead`) with every reply; a witness (the coordinator, another silo) countersigns and keeps
it (`Receipt`). A ledger that was rolled back or cloned later shows a lower head, or another one at the same position.
Two heads of one ledger with the same position and different hashes, both signed by its key, prove it to anybody
(`Equivocation`): an honest silo signs at most one line at a position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import VerificationError
from strategies.privacy.events import Event
from strategies.proof.canonical import dump, load
from strategies.proof.entries import is_hex, public_hex, read_spent, signed_by, spent_value

_HEAD, _RECEIPT = b"fedsilo/head/1\0", b"fedsilo/receipt/1\0"


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a ledger stands.

    Args:
        ledger_id: 64 hex digits.
        seq: position of the last entry.
        hash: SHA-256 of its line.
        spent: merged events by data root up to there, so that a lost ledger can be restored to no less.
    """

    ledger_id: str
    seq: int
    hash: str
    spent: Mapping[str, tuple[Event, ...]]

    def value(self) -> dict[str, Any]:
        """Return it as a canonical value."""
        return {"ledger_id": self.ledger_id, "seq": self.seq, "hash": self.hash, "spent": spent_value(self.spent)}


@dataclass(frozen=True, kw_only=True)
class SignedHead:
    """A head and the signature of the ledger's key (hex)."""

    head: Head
    key: str
    signature: str

    def value(self) -> dict[str, Any]:
        """Return it as a canonical value."""
        return {"head": self.head.value(), "key": self.key, "signature": self.signature}

    def to_bytes(self) -> bytes:
        """Return its canonical bytes, which may travel."""
        return dump(self.value())

    @cached_property
    def countersigned(self) -> bytes:
        """What a witness of this head signs."""
        return _RECEIPT + hashlib.sha256(self.to_bytes()).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedHead:
        """Read and check one.

        Raises:
            VerificationError: it is no head, or its signature does not hold.
        """
        return cls.from_value(load(data))

    @classmethod
    def from_value(cls, value: Any, *, checked: bool = True) -> SignedHead:
        """Read a canonical value and check its signature, unless that was done before and the value is covered since.

        Raises:
            VerificationError: it is no head, or its signature does not hold.
        """
        if not (isinstance(value, dict) and value.keys() == {"head", "key", "signature"}):
            raise VerificationError("the value is no signed head of a ledger")
        fields = value["head"]
        if not (isinstance(fields, dict) and fields.keys() == {"ledger_id", "seq", "hash", "spent"}):
            raise VerificationError("the value is no head of a ledger")
        sound = is_hex(fields["ledger_id"]) and is_hex(fields["hash"]) and type(fields["seq"]) is int
        sound = sound and 1 <= fields["seq"] < 2**62 and is_hex(value["key"]) and is_hex(value["signature"], 128)
        if not sound:
            raise VerificationError("a head of a ledger has a value that it cannot have")
        head = Head(**(fields | {"spent": read_spent(fields["spent"])}))
        if checked and not signed_by(value["signature"], value["key"], _HEAD + dump(fields)):
            raise VerificationError(f"the head at position {head.seq} is not signed by the key that it names")
        return cls(head=head, key=value["key"], signature=value["signature"])


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A head as a witness keeps it: the witness' key and its signature (hex) over the silo's signed head."""

    head: SignedHead
    witness: str
    signature: str

    def value(self) -> dict[str, Any]:
        """Return it as a canonical value."""
        return {"head": self.head.value(), "witness": self.witness, "signature": self.signature}

    def to_bytes(self) -> bytes:
        """Return its canonical bytes, which may travel."""
        return dump(self.value())

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Read and check one.

        Raises:
            VerificationError: it is no receipt, or one of its two signatures does not hold.
        """
        return cls.from_value(load(data))

    @classmethod
    def from_value(cls, value: Any, *, checked: bool = True) -> Receipt:
        """Read a canonical value and check its signatures, unless that was done before and the value is covered since.

        Raises:
            VerificationError: it is no receipt, or one of its two signatures does not hold.
        """
        if not (isinstance(value, dict) and value.keys() == {"head", "witness", "signature"}):
            raise VerificationError("the value is no receipt of a head")
        head = SignedHead.from_value(value["head"], checked=checked)
        if not (is_hex(value["witness"]) and is_hex(value["signature"], 128)):
            raise VerificationError("a receipt has a value that it cannot have")
        if checked and not signed_by(value["signature"], value["witness"], head.countersigned):
            raise VerificationError(f"the receipt of position {head.head.seq} is not signed by the witness it names")
        return cls(head=head, witness=value["witness"], signature=value["signature"])


@dataclass(frozen=True, kw_only=True)
class Equivocation:
    """Two heads of one ledger that cannot both be honest."""

    first: SignedHead
    second: SignedHead

    def to_bytes(self) -> bytes:
        """Return its canonical bytes, a proof that anybody can check."""
        return dump({"equivocation": [self.first.value(), self.second.value()]})

    @classmethod
    def from_bytes(cls, data: bytes, *, keys: Iterable[str]) -> Equivocation:
        """Read and check a proof.

        Args:
            data: the canonical bytes.
            keys: the public keys that the accused ledger has had, by its roster or its chain.

        Raises:
            VerificationError: it proves nothing.
        """
        value = load(data)
        pair = value.get("equivocation") if isinstance(value, dict) and len(value) == 1 else None
        if not (isinstance(pair, list) and len(pair) == 2):
            raise VerificationError("the value is no pair of heads")
        first, second = (SignedHead.from_value(one) for one in pair)
        found = equivocation(first, second)
        if found is None:
            raise VerificationError("the two heads do not contradict each other")
        if not {first.key, second.key} <= set(keys):
            raise VerificationError("the two heads are not signed by a key of the accused ledger")
        return found


def sign_head(head: Head, key: Ed25519PrivateKey) -> SignedHead:
    """Sign a head with the ledger's key."""
    return SignedHead(head=head, key=public_hex(key), signature=key.sign(_HEAD + dump(head.value())).hex())


def countersign(head: SignedHead, key: Ed25519PrivateKey) -> Receipt:
    """Return the receipt that a witness with this key keeps and hands on."""
    return Receipt(head=head, witness=public_hex(key), signature=receipt_signature(head, key))


def receipt_signature(head: SignedHead, key: Ed25519PrivateKey) -> str:
    """Return a witness' signature on a head (hex), which is what of its receipt travels to who knows the head."""
    return key.sign(head.countersigned).hex()


def equivocation(first: SignedHead, second: SignedHead) -> Equivocation | None:
    """Return the proof that two checked heads are, or None when they can both be honest."""
    a, b = first.head, second.head
    return (
        Equivocation(first=first, second=second)
        if a.ledger_id == b.ledger_id and a.seq == b.seq and a.hash != b.hash
        else None
    )
