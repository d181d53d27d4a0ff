"""What the silos of a run have agreed on; every message cites its digest.

A train request whose manifest is not the one that the silo saw first is refused, so a server cannot change the
study, the code, the model's layout or the roster in the middle of a run.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

from strategies.errors import ProtocolError

CODE_VERSION = "0.1.0"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One silo of the roster.

    Args:
        silo: its name.
        weight: public, in the average.
        ledger_id: identity of its ledger, 64 hex digits; empty where no heads are kept.
        ledger_key: the public key that signs its heads, statements and countersignatures; empty likewise.
    """

    silo: str
    weight: float
    ledger_id: str = ""
    ledger_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A run's agreement.

    Args:
        run: identity of the run, 32 random hex digits.
        study: SHA-256 of the study's text.
        code: version of Fedsilo at the server.
        layout: digest of the model's layout.
        roster: the silos that joined, sorted by name.
        coordinator: the public key that signs lists of heads, receipts and the run folder; empty where there is none.
    """

    run: str
    study: str
    code: str
    layout: str
    roster: tuple[Member, ...]
    coordinator: str = ""

    def to_json(self) -> str:
        """Return the canonical text: sorted keys, no spaces."""
        return self._text

    @cached_property
    def _text(self) -> str:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values["roster"] = [{entry.name: getattr(one, entry.name) for entry in fields(one)} for one in self.roster]
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest.

        Raises:
            ProtocolError: the text is not a canonical manifest.
        """
        return _read(text)

    @classmethod
    def _read(cls, text: str) -> Manifest:
        try:
            values = json.loads(text)
            roster = tuple(
                Member(
                    silo=str(m["silo"]),
                    weight=float(m["weight"]),
                    ledger_id=str(m["ledger_id"]),
                    ledger_key=str(m["ledger_key"]),
                )
                for m in values.pop("roster")
            )
            manifest = cls(**values, roster=roster)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise ProtocolError("the run's manifest cannot be read") from None
        if manifest.to_json() != text:
            raise ProtocolError("the run's manifest is not in its canonical form")
        texts = [manifest.run, manifest.study, manifest.code, manifest.layout, manifest.coordinator]
        names = [member.silo for member in roster]
        if not all(isinstance(text, str) for text in texts) or names != sorted(set(names)):
            raise ProtocolError("the run's manifest holds a value of the wrong type, or a roster that is not sorted")
        for keys in ([member.ledger_id for member in roster], [member.ledger_key for member in roster]):
            if len(set(filter(None, keys))) < len(list(filter(None, keys))):
                raise ProtocolError("the run's manifest gives one ledger or key to two silos")
        if not all(0 < member.weight < math.inf for member in roster):
            raise ProtocolError("the run's manifest gives a silo a weight that is not a positive number")
        return manifest

    def digest(self) -> str:
        """Return the SHA-256 of the canonical text, 64 hex digits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def weight_of(self, silo: str) -> float:
        """Return the silo's weight.

        Raises:
            ProtocolError: the silo is not in the roster.
        """
        for member in self.roster:
            if member.silo == silo:
                return member.weight
        raise ProtocolError(f"silo '{silo}' is not in the run's roster")


@lru_cache(maxsize=16)  # every request of a run brings the same one
def _read(text: str) -> Manifest:
    return Manifest._read(text)
