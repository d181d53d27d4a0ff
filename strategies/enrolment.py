"""The files of an enrolment: what a silo asks with, and what the coordinator answers.

A request holds the silo's public keys, signed by its ledger key; for a change of keys the new ones, signed by the
ledger's old and new key. An answer holds the coordinator's address, key, certificate authority and roster, signed by
its key. All are public and may travel by mail: what makes them true is that two people compare `fingerprint` by
telephone, which covers every byte.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.entries import is_hex, signed_by
from strategies.roster import Handover, Member, Roster, read_roster

VERSION = 1
_REQUEST, _ANSWER = b"fedsilo/request/1\0", b"fedsilo/answer/1\0"
_GROUPS = 10  # of four hex digits: 160 bits


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a silo pins.

    Args:
        address: host:port of the coordinator's public listener.
        coordinator: its Ed25519 public key, 64 hex digits.
        authority: certificate of its certificate authority, PEM.
        roster: the roster's text.
        bundle: SHA-256 of the bundle that the coordinator submits.
    """

    address: str
    coordinator: str
    authority: str
    roster: str
    bundle: str

    def members(self) -> Roster:
        """Return the checked roster.

        Raises:
            VerificationError: it does not hold under the coordinator's key.
        """
        return read_roster(self.roster.encode(), coordinator=self.coordinator)


def fingerprint(data: bytes) -> str:
    """Return what two people read to each other: ten groups of four hex digits of the file's SHA-256."""
    digits = hashlib.sha256(data).hexdigest()
    return " ".join(digits[4 * group : 4 * group + 4] for group in range(_GROUPS))


def write_request(member: Member, key: Ed25519PrivateKey) -> bytes:
    """Return a request's bytes.

    Args:
        member: the silo with its public keys.
        key: its ledger key.
    """
    value = {"version": VERSION, "member": asdict(member)}
    return dump({"request": value, "signature": key.sign(_REQUEST + dump(value)).hex()})


def read_request(data: bytes) -> Member:
    """Read a request; its values are checked when they enter a roster.

    Raises:
        VerificationError: it is none, or is not signed by the ledger key that it names.
    """
    value, signature = _signed(data, "request")
    known = {entry.name for entry in fields(Member)}
    member = value.get("member")
    if not (isinstance(member, dict) and member.keys() == known and all(type(text) is str for text in member.values())):
        raise VerificationError("the request does not name a silo with its keys")
    if not (is_hex(member["ledger_key"]) and signed_by(signature, member["ledger_key"], _REQUEST + dump(value))):
        raise VerificationError("the request is not signed by the ledger key that it names")
    return Member(**member)


def write_handover(handover: Handover) -> bytes:
    """Return the bytes of a request to change a silo's keys."""
    return dump({"version": VERSION, "handover": asdict(handover)})


def read_handover(data: bytes) -> Handover:
    """Read a request to change a silo's keys.

    Raises:
        VerificationError: it is none, or one of its two signatures does not hold.
    """
    whole = load(data)
    found = whole.get("handover") if isinstance(whole, dict) and whole.keys() == {"version", "handover"} else None
    known = {entry.name for entry in fields(Handover)}
    if not (isinstance(found, dict) and found.keys() == known and all(type(text) is str for text in found.values())):
        raise VerificationError("the file is no request to change keys; fedsilo-silo enrol --rotate writes one")
    if whole["version"] != VERSION:
        raise VerificationError("the request to change keys has a form that is not known here")
    handover = Handover(**found)
    handover.check()
    return handover


def write_answer(answer: Answer, key: Ed25519PrivateKey) -> bytes:
    """Return an answer's bytes, signed by the coordinator's key."""
    value = {"version": VERSION, "answer": asdict(answer)}
    return dump({"answer": value, "signature": key.sign(_ANSWER + dump(value)).hex()})


def read_answer(data: bytes) -> Answer:
    """Read an answer and check it in itself: signature, and roster under the same key.

    Raises:
        VerificationError: it is none, or something of it does not hold.
    """
    value, signature = _signed(data, "answer")
    found = value.get("answer")
    known = {entry.name for entry in fields(Answer)}
    if not (isinstance(found, dict) and found.keys() == known and all(type(text) is str for text in found.values())):
        raise VerificationError("the answer does not name address, key, authority, roster and bundle")
    answer = Answer(**found)
    if not (is_hex(answer.coordinator) and is_hex(answer.bundle)):
        raise VerificationError("the answer has a key or a bundle that is none")
    if not signed_by(signature, answer.coordinator, _ANSWER + dump(value)):
        raise VerificationError("the answer is not signed by the coordinator's key that it names")
    answer.members()
    return answer


def _signed(data: bytes, kind: str) -> tuple[dict[str, Any], str]:
    whole = load(data)
    if not (isinstance(whole, dict) and whole.keys() == {kind, "signature"}):
        raise VerificationError(f"the file is no {kind} of an enrolment")
    value, signature = whole[kind], whole["signature"]
    if not (isinstance(value, dict) and value.get("version") == VERSION and is_hex(signature, 128)):
        raise VerificationError(f"the {kind} of an enrolment has a form that is not known here")
    return value, signature
