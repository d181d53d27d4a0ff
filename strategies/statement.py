"""What a silo says of a run when it ends: its own account, from its own ledger, signed by the ledger's key.

A statement holds the events of the run and those of its data root to date, so that a reader recomputes each epsilon. It
names the line of the ledger up to which it speaks: with the ledger's lines nothing in it has to be believed. Numbers
are decimal texts: settings exact, privacy losses rounded up.

All of it is a function of public settings and of what was released, so it may travel; the server keeps the signed bytes
and believes none of them without a look (`Statement.read` checks form and signature).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import ProtocolError, VerificationError
from strategies.privacy.events import Event, merge, to_json
from strategies.proof.canonical import dump, exact, load, read_exact, rounded_up
from strategies.proof.entries import events_value, is_hex, public_hex, read_events, signed_by

FORMAT = "fedsilo-statement/2"
_DOMAIN = b"fedsilo/statement/2\0"


@dataclass(frozen=True, kw_only=True)
class BudgetStatement:
    """The budget of the data root; None is an infinite epsilon.

    Args:
        epsilon: the smaller of the registered budget and the policy's; the other fields are of that one.
        delta: of the budget.
        gate: rdp or preregistered.
        order: of the gate rdp, else 0.
        spent: of everything to date, as that gate counts it.
    """

    epsilon: float | None
    delta: float
    gate: str
    order: float
    spent: float | None


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One silo's account of one run.

    Args:
        silo: its name.
        run: identity of the run.
        study: digest of the study.
        manifest: digest of what the silos agreed on.
        ledger_id: which ledger speaks.
        seq: position of the last entry that it speaks of.
        hash: SHA-256 of that line.
        first: position of the run's first entry; 0 for none.
        last: position of the run's last entry; 0 for none.
        extract: SHA-256 of the lines that the silo gives with it (strategies/proof/extract.py).
        data_root: name of the data set at the silo.
        unit: unit of privacy.
        neighbouring: relation that epsilon speaks of.
        delta: of this run's epsilon.
        accountant: pld or rdp.
        epsilon: of this run, by the silo's ledger; None is infinite.
        events: of this run, merged.
        to_date: of everything ever reserved on the data root, merged.
        budget: of everything ever released on the data.
        policy: SHA-256 of the silo's policy in force, or "".
        durability: what the ledger survives.
    """

    silo: str
    run: str
    study: str
    manifest: str
    ledger_id: str
    seq: int
    hash: str
    first: int
    last: int
    extract: str
    data_root: str
    unit: str
    neighbouring: str
    delta: float
    accountant: str
    epsilon: float | None
    events: tuple[Event, ...]
    to_date: tuple[Event, ...]
    budget: BudgetStatement
    policy: str
    durability: str

    def facts(self) -> dict[str, Any]:
        """Return it as plain values, as a report shows them."""
        lists = {name: [to_json(event) for event in getattr(self, name)] for name in ("events", "to_date")}
        return asdict(self) | lists

    def value(self) -> dict[str, Any]:
        """Return it as the canonical value that is signed."""
        values: dict[str, Any] = {"format": FORMAT} | asdict(self)
        values |= {"events": events_value(self.events), "to_date": events_value(self.to_date)}
        values |= {"delta": exact(self.delta), "epsilon": _loss(self.epsilon)}
        budget = self.budget
        values["budget"] = {
            "epsilon": "inf" if budget.epsilon is None else exact(budget.epsilon),
            "delta": exact(budget.delta),
            "gate": budget.gate,
            "order": exact(budget.order),
            "spent": _loss(budget.spent),
        }
        return values

    def signed(self, key: Ed25519PrivateKey) -> str:
        """Return the signed canonical text."""
        value = self.value()
        signature = key.sign(_DOMAIN + dump(value)).hex()
        return dump({"statement": value, "key": public_hex(key), "signature": signature}).decode()


@dataclass(frozen=True, kw_only=True)
class SignedStatement:
    """A statement, its bytes, and the key that signed it."""

    statement: Statement
    key: str
    text: str


def read_statement(text: str) -> SignedStatement:
    """Read a signed statement.

    Raises:
        ProtocolError: it is none, its signature does not hold, or it has a number that no privacy loss can be.
    """
    try:
        value = load(text.encode())
        if not (isinstance(value, dict) and value.keys() == {"statement", "key", "signature"}):
            raise VerificationError("other fields")
        fields, key, signature = value["statement"], value["key"], value["signature"]
        if not (is_hex(key) and is_hex(signature, 128) and signed_by(signature, key, _DOMAIN + dump(fields))):
            raise VerificationError("signature")
        statement = _read(fields)
        if statement.value() != fields:
            raise VerificationError("form")
    except (VerificationError, KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise ProtocolError(f"the silo's statement of the run cannot be read ({error})") from None
    return SignedStatement(statement=statement, key=key, text=text)


def _read(fields: Mapping[str, Any]) -> Statement:
    values, budget = dict(fields), dict(fields["budget"])
    if values.pop("format") != FORMAT:
        raise VerificationError("format")
    for name, events in (("events", values["events"]), ("to_date", values["to_date"])):
        values[name] = read_events(events)
        if merge(values[name]) != values[name]:
            raise VerificationError(f"{name} is not merged")
    values |= {"delta": read_exact(values["delta"]), "epsilon": _number(values["epsilon"])}
    budget |= {"delta": read_exact(budget["delta"]), "order": read_exact(budget["order"])}
    budget |= {"epsilon": _number(budget["epsilon"]), "spent": _number(budget["spent"])}
    statement = Statement(**(values | {"budget": BudgetStatement(**budget)}))
    texts = (statement.silo, statement.data_root, statement.unit, statement.neighbouring)
    sound = all(type(text) is str and 0 < len(text) <= 1000 for text in texts) and is_hex(statement.run, 32)
    sound = sound and all(
        map(is_hex, (statement.study, statement.manifest, statement.ledger_id, statement.hash, statement.extract))
    )
    sound = sound and all(type(n) is int and n >= 0 for n in (statement.seq, statement.first, statement.last))
    sound = sound and statement.accountant in ("pld", "rdp") and statement.durability in ("power-loss", "process")
    sound = sound and 0 < statement.delta < 1 and 0 < statement.budget.delta < 1
    sound = sound and (statement.policy == "" or is_hex(statement.policy)) and type(statement.budget.gate) is str
    if not sound:
        raise VerificationError("a field has a value that it cannot have")
    return statement


def _loss(value: float | None) -> str:
    return "inf" if value is None else rounded_up(value)


def _number(text: Any) -> float | None:
    value = read_exact(text, infinite=True)
    return value if math.isfinite(value) else None
