"""Whose keys count: what a reader knows before he opens a file, from a roster, a pins file or a silo's `pin.json`.

A pins file is ``{"coordinator": KEY or null, "silos": [{"ledger_id": ..., "ledger_key": ..., "dpo_key": ...}, ...]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from strategies.errors import VerificationError
from strategies.proof.chain import Pins
from strategies.proof.entries import is_hex
from strategies.roster import read_roster


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The keys that count.

    Args:
        pinned: False when nothing is known beforehand, and any key counts.
        coordinators: their public keys.
        ledgers: what is known of each ledger, by its identity.
    """

    pinned: bool = False
    coordinators: frozenset[str] = frozenset()
    ledgers: Mapping[str, Pins] = field(default_factory=dict)

    def and_of(self, other: Trust) -> Trust:
        """Return what both know together."""
        return Trust(
            pinned=self.pinned or other.pinned,
            coordinators=self.coordinators | other.coordinators,
            ledgers={**self.ledgers, **other.ledgers},
        )


def read_trust(data: bytes) -> Trust:
    """Read a roster, a pins file or a silo's `pin.json`.

    Raises:
        VerificationError: it is none of them.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if value is None or (isinstance(value, dict) and value.keys() == {"entry", "signature"}):
        roster = read_roster(data)
        members = (*roster.past, *roster.members.values())
        ledgers = {member.ledger_id: member.pins(roster.witnesses(ever=True)) for member in members}
        return Trust(pinned=True, coordinators=frozenset({roster.key}), ledgers=ledgers)
    if not isinstance(value, dict):
        raise VerificationError("the file holds no pins")
    if value.keys() == {"ledger_id", "ledger_key", "dpo_key"}:
        value = {"coordinator": None, "silos": [value]}
    if value.keys() != {"coordinator", "silos"} or not isinstance(value["silos"], list):
        raise VerificationError("the file holds no pins; write coordinator and silos, or give the roster")
    coordinator = value["coordinator"]
    if coordinator is not None and not is_hex(coordinator):
        raise VerificationError("the coordinator's key is not 64 hex digits")
    pins = [_pins(silo) for silo in value["silos"]]
    keys = frozenset() if coordinator is None else frozenset({coordinator})
    return Trust(pinned=True, coordinators=keys, ledgers={pin.ledger_id: pin for pin in pins})


def _pins(value: object) -> Pins:
    if not (isinstance(value, dict) and value.keys() == {"ledger_id", "ledger_key", "dpo_key"}):
        raise VerificationError("a silo's pin is ledger_id, ledger_key and dpo_key")
    if not all(map(is_hex, value.values())):
        raise VerificationError("a silo's pin has a value that is not 64 hex digits")
    return Pins(**value)
