"""The coordinator's signed record of what came of a round, which every silo is shown with the next request.

It names the model that the round began with, the one that it ended with, the SHA-256 of every answer that arrived (the
hash that the silo's ledger has of its release) and whose answers are in the new model; their weights are those of the
agreement that it cites. Each names the record before, so two records of one round, both signed, prove to anybody that
the coordinator has told two stories (`fork`).

Limit: a record says whose answers were used, not that they were added up rightly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import VerificationError
from strategies.layout import Vector
from strategies.proof.canonical import dump, load
from strategies.proof.entries import ZERO, is_hex, public_hex, signed_by

_DOMAIN = b"fedsilo/outcome/1\0"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one round.

    Args:
        run: identity of the run.
        manifest: digest of what the silos agreed on, their weights among it.
        round: from 1.
        prev: SHA-256 of the record of the round before; zeros for the first round.
        before: SHA-256 of the model that the silos were asked to train.
        after: SHA-256 of the model after the round.
        arrived: SHA-256 of each answer that arrived, by silo.
        used: silos whose answers are in the new model; none where the round came to nothing.
    """

    run: str
    manifest: str
    round: int
    prev: str
    before: str
    after: str
    arrived: Mapping[str, str] = field(default_factory=dict)
    used: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SignedOutcome:
    """A record with the public key that signed it and its text."""

    outcome: Outcome
    key: str
    text: str

    @property
    def hash(self) -> str:
        """SHA-256 of the text, which the next record names as `prev`."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def model_hash(weights: Vector) -> str:
    """Return the SHA-256 of a model's values, little-endian float32 in the order of its layout."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").data).hexdigest()


def sign_outcome(outcome: Outcome, key: Ed25519PrivateKey) -> str:
    """Return the signed canonical text of a record."""
    value = asdict(outcome)
    return dump({"outcome": value, "key": public_hex(key), "signature": key.sign(_DOMAIN + dump(value)).hex()}).decode()


@lru_cache(maxsize=64)  # a simulation reads one record once for all its silos
def read_outcome(text: str) -> SignedOutcome:
    """Read a record and check its signature, and what of it contradicts itself.

    Raises:
        VerificationError: it is none, or does not hold.
    """
    value = load(text.encode())
    if not (isinstance(value, dict) and value.keys() == {"outcome", "key", "signature"}):
        raise VerificationError("the text is no record of a round")
    fields, key, signature = value["outcome"], value["key"], value["signature"]
    if not (isinstance(fields, dict) and fields.keys() == Outcome.__dataclass_fields__.keys() and _sound(fields)):
        raise VerificationError("the record of a round has a value that it cannot have")
    if not (is_hex(key) and is_hex(signature, 128) and signed_by(signature, key, _DOMAIN + dump(fields))):
        raise VerificationError("the record of a round is not signed by the key that it names")
    outcome = Outcome(**(fields | {"used": tuple(fields["used"])}))
    if not set(outcome.used) <= outcome.arrived.keys():
        raise VerificationError(f"the record of round {outcome.round} uses an answer that it does not name")
    if not outcome.used and outcome.before != outcome.after:
        raise VerificationError(f"the record of round {outcome.round} changes the model by no answer")
    return SignedOutcome(outcome=outcome, key=key, text=text)


def follows(before: SignedOutcome, after: SignedOutcome) -> str | None:
    """Return why a record cannot follow the one of the round before, or None where it can."""
    if (before.key, before.outcome.run) != (after.key, after.outcome.run):
        return "it is of another run or coordinator"
    if after.outcome.prev != before.hash:
        return "it names another record of the round before"
    if after.outcome.before != before.outcome.after:
        return "it begins with another model than the round before ended with"
    return None


def fork(records: Iterable[SignedOutcome]) -> tuple[SignedOutcome, SignedOutcome] | None:
    """Return two different records of one round under one key, the proof that its owner has told two stories."""
    first: dict[tuple[str, str, int], SignedOutcome] = {}
    for record in records:
        known = first.setdefault((record.key, record.outcome.run, record.outcome.round), record)
        if known.text != record.text:
            return known, record
    return None


def _sound(fields: Mapping[str, Any]) -> bool:
    round, used, arrived = fields["round"], fields["used"], fields["arrived"]
    sound = is_hex(fields["run"], 32) and type(round) is int and round >= 1 and isinstance(arrived, dict)
    sound = sound and all(map(is_hex, (fields["manifest"], fields["prev"], fields["before"], fields["after"])))
    sound = sound and (round == 1) == (fields["prev"] == ZERO) and all(map(is_hex, arrived.values()))
    return bool(sound and isinstance(used, list) and used == sorted({s for s in used if type(s) is str}))
