"""An honest coordinator and a peer, as far as a silo sees them in a request: who has seen which head of its ledger."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.silo import Silo
from strategies import wire
from strategies.errors import ProtocolError
from strategies.manifest import Manifest
from strategies.proof.entries import public_hex
from strategies.proof.heads import countersign
from strategies.proof.lists import receipts_text, sign_list
from strategies.proof.outcomes import Outcome, model_hash, read_outcome, sign_outcome


def _key(letter: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(letter.encode() * 32)


COORDINATOR, PEER = _key("c"), _key("f")  # the first of the others is the peer that signs
Sent = TypeVar("Sent", wire.Train, wire.Close)


def outcome_of(message: Sent, agreed: Manifest, silo: Silo, round: int) -> str:
    """What an honest coordinator says of the round before a request: every silo's answer arrived and was used."""
    folder = silo.state(agreed.run).folder
    kept = folder / "outcome.json"
    last = kept.read_text() if kept.exists() else ""
    if last and read_outcome(last).outcome.round == round:
        return last
    given = json.loads((folder / "given.json").read_text()) if (folder / "given.json").exists() else {}
    with silo.ledger() as ledger:
        own = ledger.entry(run=agreed.run, round=round, kind="release")
    arrived = {member.silo: "a" * 64 for member in agreed.roster}
    if own is None:
        del arrived[silo.name]
    else:
        arrived[silo.name] = own.body["sha256"]
    after = model_hash(message.weights)
    before = read_outcome(last).outcome.after if last else given.get("model", after)
    prev = hashlib.sha256(last.encode()).hexdigest() if last else "0" * 64 if round == 1 else "b" * 64
    used = tuple(sorted(arrived)) if len(arrived) > 2 else ()
    said = Outcome(
        run=agreed.run,
        manifest=agreed.digest(),
        round=round,
        prev=prev,
        before=before if used else after,
        after=after,
        arrived=arrived,
        used=used,
    )
    return sign_outcome(said, COORDINATOR)


def witnessed(message: Sent, silo: Silo, *, peer: bool = True) -> Sent:
    """The request as an honest coordinator sends it: with the silo's own last head, and receipts of it."""
    try:
        agreed = Manifest.from_json(message.manifest)
    except ProtocolError:
        return message
    with silo.ledger() as ledger:
        pins, head = ledger.pins, ledger.head()
        there = ledger.entry(run=agreed.run, round=message.received, kind="release") is not None
    others = [member.silo for member in agreed.roster if member.silo != silo.name]
    known = {name: (digit * 64, public_hex(_key(digit))) for name, digit in zip(others, "fedba", strict=False)}
    known[silo.name] = pins.ledger_id, head.key
    roster = tuple(replace(m, ledger_id=known[m.silo][0], ledger_key=known[m.silo][1]) for m in agreed.roster)
    agreed = replace(agreed, roster=roster, coordinator=public_hex(COORDINATOR))
    round = message.round if isinstance(message, wire.Train) else 4
    if round > 1 and not message.outcome:
        message = replace(message, outcome=outcome_of(message, agreed, silo, round - 1))
    receipts = (countersign(head, COORDINATOR), countersign(head, PEER))[: 1 + peer]
    return replace(
        message,
        manifest=agreed.to_json(),
        received=message.received if there else 0,
        heads=sign_list(agreed.run, round, {silo.name: head}, COORDINATOR),
        receipts=receipts_text(receipts),
    )
