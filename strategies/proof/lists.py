"""The coordinator's signed list of the last heads of a run's silos, which travels with every request to train.

Each silo finds its own ledger's head in it, compares the others with those that it saw before, and countersigns them
with its next reply: so a coordinator alone cannot make a silo's lost lines forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.entries import is_hex, public_hex, signed_by
from strategies.proof.heads import Receipt, SignedHead

_DOMAIN = b"fedsilo/heads/1\0"


@dataclass(frozen=True, kw_only=True)
class HeadList:
    """The last head of each silo, as the coordinator had them before a round.

    Args:
        run: identity of the run.
        round: the round that they were sent with.
        heads: by silo.
        key: the coordinator's public key.
    """

    run: str
    round: int
    heads: Mapping[str, SignedHead]
    key: str


def sign_list(run: str, round: int, heads: Mapping[str, SignedHead], key: Ed25519PrivateKey) -> str:
    """Return the signed canonical text of a list."""
    value = {"run": run, "round": round, "heads": {silo: head.value() for silo, head in heads.items()}}
    return dump({"list": value, "key": public_hex(key), "signature": key.sign(_DOMAIN + dump(value)).hex()}).decode()


@lru_cache(maxsize=64)  # a simulation reads one list once for all its silos
def read_list(text: str) -> HeadList:
    """Read a list and check its signature and those of its heads.

    Raises:
        VerificationError: it is none, or a signature does not hold.
    """
    value = load(text.encode())
    if not (
        isinstance(value, dict) and value.keys() == {"list", "key", "signature"} and isinstance(value["list"], dict)
    ):
        raise VerificationError("the text is no list of heads")
    fields, key, signature = value["list"], value["key"], value["signature"]
    sound = fields.keys() == {"run", "round", "heads"} and isinstance(fields["heads"], dict)
    if not (sound and is_hex(fields["run"], 32) and type(fields["round"]) is int and fields["round"] >= 0):
        raise VerificationError("the list of heads has a value that it cannot have")
    if not (is_hex(key) and is_hex(signature, 128) and signed_by(signature, key, _DOMAIN + dump(fields))):
        raise VerificationError("the list of heads is not signed by the key that it names")
    heads = {silo: SignedHead.from_value(head) for silo, head in fields["heads"].items()}
    return HeadList(run=fields["run"], round=fields["round"], heads=heads, key=key)


def receipts_text(receipts: tuple[Receipt, ...]) -> str:
    """Return receipts as canonical text."""
    return dump([receipt.value() for receipt in receipts]).decode()


def read_receipts(text: str) -> tuple[Receipt, ...]:
    """Read what `receipts_text` wrote, and check both signatures of each.

    Raises:
        VerificationError: it is no list of receipts, or a signature does not hold.
    """
    values = load(text.encode())
    if not isinstance(values, list):
        raise VerificationError("the text is no list of receipts")
    return tuple(Receipt.from_value(value) for value in values)
