"""A ledger made in memory, line by line, for the tests of chains, heads and verification."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import VerificationError
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event, Gaussian
from strategies.proof.chain import Chain, ChainError, Pins
from strategies.proof.entries import Entry, Signed, events_value, public_hex, read, root_value, sign
from strategies.proof.heads import SignedHead, sign_head

LEDGER, OFFICER, COORDINATOR, PEER, STRANGER = (
    Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 6)
)
ID, RUN = "ab" * 32, "0" * 32
PINS = Pins(ledger_id=ID, ledger_key=public_hex(LEDGER), dpo_key=public_hex(OFFICER))
ROOT = DataRoot(name="records", unit="patient_id", epsilon=8.0, delta=1e-5, units_at_least=1000)
COST: tuple[Event, ...] = (Gaussian(noise_multiplier=2.0, sampling_rate=0.05, steps=5),)
GENESIS = {"silo": "north", "ledger_key": PINS.ledger_key, "dpo_key": PINS.dpo_key, "durability": "process"}
TIME = "2026-01-31T12:00:00.000Z"


class Book:
    """Lines and the chain that they make."""

    def __init__(self, pins: Pins = PINS, key: Ed25519PrivateKey = LEDGER) -> None:
        self.chain, self.lines, self.key = Chain(pins), [], key

    def entry(self, kind: str, body: dict[str, Any], **fields: Any) -> Entry:
        """The next entry, with any field replaced."""
        chain = self.chain
        of_round = (
            {"data_root": "records", "run": RUN, "round": 1}
            if kind in ("reserve", "release", "commit", "abort")
            else {}
        )
        place = {
            "ledger_id": ID,
            "seq": chain.seq + 1,
            "prev": chain.hash,
            "time": TIME,
            "boot": "",
            "policy": chain.policy,
        }
        return Entry(**(place | of_round | {"kind": kind, "body": body} | fields))

    def signed(self, kind: str, body: dict[str, Any], keys: dict[str, Any] | None = None, **fields: Any) -> Signed:
        """The next entry with the signatures that its kind needs."""
        roles = {"genesis": ("ledger", "dpo"), "data_root": ("ledger", "dpo"), "restore": ("ledger", "dpo")}
        own = {"ledger": self.key, "dpo": OFFICER}
        return sign(
            self.entry(kind, body, **fields), keys or {role: own[role] for role in roles.get(kind, ("ledger",))}
        )

    def add(self, kind: str, body: dict[str, Any] | None = None, **fields: Any) -> Signed:
        """Append one entry."""
        signed = self.signed(kind, body or {}, **fields)
        self.chain.extend(signed)
        self.lines.append(signed.line)
        return signed

    def begin(self) -> Book:
        """Genesis and one data root."""
        self.add("genesis", GENESIS)
        self.add("data_root", root_value(ROOT), data_root="records")
        return self

    def reserve(self, round: int = 1, events: tuple[Event, ...] = COST, **fields: Any) -> Signed:
        """Append a reservation."""
        body = {"events": events_value(events), "receipts": fields.pop("receipts", [])}
        return self.add("reserve", body, round=round, **fields)

    def round(self, number: int = 1) -> None:
        """Reserve, release and commit one round."""
        self.reserve(number)
        self.add("release", {"sha256": f"{number:064x}"}, round=number)
        self.add("commit", round=number)

    def head(self) -> SignedHead:
        """The signed head."""
        return sign_head(self.chain.head(), self.key)


def five() -> Book:
    """A ledger of five entries: genesis, data root, and one whole round."""
    book = Book().begin()
    book.round()
    return book


def read_chain(lines: list[bytes], pins: Pins, *, all_signatures: bool = True) -> Chain:
    """The chain of lines; without `all_signatures` as a silo reads its own when it opens it."""
    chain, last = Chain(pins), None
    for line in lines:
        try:
            last = read(line)
        except VerificationError as error:
            raise ChainError(chain.seq + 1, str(error)) from None
        chain.extend(last, all_signatures=all_signatures)
    if last is None:
        raise ChainError(1, "the ledger is empty")
    if not all_signatures:
        chain.check_last(last)
    return chain
