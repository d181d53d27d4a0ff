"""Signed envelopes (Ed25519, RFC 8032): what the coordinator asks of one silo, and what the silo answers to just that.

An instruction names the run, the silo, the group (round or phase), the kind, the roster in force and the hash of what
it carries, with 16 random bytes that make it this one. An answer names the hash of the instruction's envelope and of
what it carries itself. Whoever stands between (network, gateway, SuperLink, another silo) can drop either and change
neither, and an answer fits one instruction alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import ProtocolError, VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.entries import is_hex, signed_by

VERSION = 1
_LARGEST_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What a coordinator signs.

    Args:
        run: Flower's number of the run.
        silo: who is asked.
        group: the round, or a phase's name.
        kind: Flower's type of the message.
        roster: hash of the roster in force, 64 hex digits.
        payload: SHA-256 of the content, 64 hex digits.
        nonce: 32 random hex digits.
    """

    run: str
    silo: str
    group: str
    kind: str
    roster: str
    payload: str
    nonce: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a silo signs.

    Args:
        silo: who answers.
        instruction: SHA-256 of the instruction's envelope, 64 hex digits.
        payload: SHA-256 of the content, 64 hex digits.
    """

    silo: str
    instruction: str
    payload: str


E = TypeVar("E", Instruction, Answer)


def seal(value: Instruction | Answer, key: Ed25519PrivateKey) -> bytes:
    """Return the envelope's bytes."""
    body = {"version": VERSION, "kind": type(value).__name__, "fields": asdict(value)}
    return dump({"body": body, "signature": key.sign(_domain(type(value)) + dump(body)).hex()})


def open_envelope(data: bytes, expected: type[E], key: str) -> E:
    """Read an envelope that a public key (64 hex digits) has signed.

    Raises:
        ProtocolError: it is none, of another kind, or signed by another key.
    """
    try:
        if len(data) > _LARGEST_BYTES:
            raise VerificationError("it is too long")
        whole = load(data)
        body, signature = _form(whole, expected)
    except VerificationError as error:
        raise ProtocolError(f"a message's envelope cannot be read: {error}") from None
    if not signed_by(signature, key, _domain(expected) + dump(body)):
        raise ProtocolError("a message's envelope is not signed by the key that it must be signed by")
    return expected(**body["fields"])


def digest(envelope: bytes) -> str:
    """Return the SHA-256 of an envelope, by which an answer names its instruction."""
    return hashlib.sha256(envelope).hexdigest()


def _domain(kind: type[Instruction] | type[Answer]) -> bytes:
    return f"fedsilo/envelope/{VERSION}/{kind.__name__}\0".encode()


def _form(whole: Any, expected: type[Instruction] | type[Answer]) -> tuple[dict[str, Any], str]:
    if not (isinstance(whole, dict) and whole.keys() == {"body", "signature"} and is_hex(whole["signature"], 128)):
        raise VerificationError("it is no signed envelope")
    body = whole["body"]
    if not (isinstance(body, dict) and body.keys() == {"version", "kind", "fields"}):
        raise VerificationError("it has other parts")
    if body["version"] != VERSION or body["kind"] != expected.__name__ or not isinstance(body["fields"], dict):
        raise VerificationError(f"it is no {expected.__name__} of a known version")
    known = {entry.name for entry in fields(expected)}
    if body["fields"].keys() != known or not all(type(value) is str for value in body["fields"].values()):
        raise VerificationError("it has other fields")
    return body, whole["signature"]
