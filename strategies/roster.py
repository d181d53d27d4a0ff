"""Who belongs to a consortium: an append-only file of JSON lines, each signed by the coordinator's key.

The first line names the coordinator's key, `add` a silo with its keys and its ledger's identity, `remove` a silo that
has left, `rotate` a silo's new keys. Each line names the SHA-256 of the line before it, so a copy can only be behind,
never different; readers compare `hash`. The file is public: keys and names, nothing of any record.

Guarantees: a ledger's identity and a silo's signing key belong to one silo for ever, so no silo can enter twice with
one ledger, nor take another's place. New keys are signed by the silo's old ledger key, so a coordinator cannot put keys
of its own in a silo's place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.chain import ChainError, Pins
from strategies.proof.entries import ZERO, is_hex, public_hex, signed_by
from strategies.proof.verdict import lines_of

VERSION = 1
_DOMAIN, _HANDOVER = b"fedsilo/roster/1\0", b"fedsilo/handover/1\0"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TRANSPORT = re.compile(r"[0-9a-f]{194}")
_BODIES = {
    "coordinator": {"name", "key"},
    "add": {"silo", "ledger_key", "dpo_key", "ledger_id", "transport_key", "first_key"},
    "remove": {"silo", "reason"},
    "rotate": {"silo", "ledger_id", "before", "ledger_key", "transport_key", "by_old", "by_new"},
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One silo.

    Args:
        silo: its name.
        ledger_key: Ed25519 public key by which it signs ledger, heads and messages now, 64 hex digits.
        dpo_key: Ed25519 public key of its data-protection officer when the ledger began.
        ledger_id: identity of its ledger, 64 hex digits.
        transport_key: P-384 public key of its node, an uncompressed point (SEC 1, 2.3.3), 194 hex digits.
        first_key: the ledger's key when it began; from there the ledger itself leads to the key of now.
    """

    silo: str
    ledger_key: str
    dpo_key: str
    ledger_id: str
    transport_key: str
    first_key: str

    def pins(self, witnesses: frozenset[str] | None = None) -> Pins:
        """Return what a reader of this silo's ledger knows beforehand."""
        return Pins(ledger_id=self.ledger_id, ledger_key=self.first_key, dpo_key=self.dpo_key, witnesses=witnesses)


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A silo's change of keys, signed by its ledger key of before and by the new one.

    Args:
        silo: its name.
        ledger_id: identity of its ledger, which stays.
        before: the ledger key that hands over.
        ledger_key: the new one.
        transport_key: the new key of its node.
        by_old: signature of the key of before, 128 hex digits.
        by_new: signature of the new key.
    """

    silo: str
    ledger_id: str
    before: str
    ledger_key: str
    transport_key: str
    by_old: str = ""
    by_new: str = ""

    def signed(self, old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> Handover:
        """Return it with both signatures."""
        message = self._message()
        return replace(self, by_old=old.sign(message).hex(), by_new=new.sign(message).hex())

    def check(self) -> None:
        """Return when both signatures hold.

        Raises:
            VerificationError: one does not.
        """
        message = self._message()
        for signature, key, whose in ((self.by_old, self.before, "before"), (self.by_new, self.ledger_key, "now")):
            if not (is_hex(key) and is_hex(signature, 128) and signed_by(signature, key, message)):
                raise VerificationError(
                    f"the change of keys of '{self.silo}' is not signed by its ledger key of {whose}"
                )

    def _message(self) -> bytes:
        return _HANDOVER + dump({**asdict(self), "by_old": "", "by_new": ""})


@dataclass(frozen=True, kw_only=True)
class Roster:
    """A checked roster.

    Args:
        text: the whole file.
        coordinator: name of the coordinator.
        key: its Ed25519 public key, 64 hex digits.
        seq: number of lines.
        hash: SHA-256 of the last line, which says how new the file is.
        members: the silos of now, by name.
        past: silos as they were before they left or changed their keys, the oldest first.
    """

    text: bytes
    coordinator: str
    key: str
    seq: int
    hash: str
    members: Mapping[str, Member] = field(default_factory=dict)
    past: tuple[Member, ...] = ()

    def witnesses(self, *, ever: bool = False) -> frozenset[str]:
        """Return the keys whose receipts count: the coordinator's and those of all silos.

        Args:
            ever: with those of the past, whose receipts stand in older entries.
        """
        silos = (*self.members.values(), *(self.past if ever else ()))
        return frozenset({self.key, *(member.ledger_key for member in silos)})

    def add(self, member: Member, key: Ed25519PrivateKey, time: str) -> Roster:
        """Return the roster with one more silo.

        Args:
            member: the silo.
            key: the coordinator's private key.
            time: UTC, ``2026-01-31T12:00:00.000Z``; for people.

        Raises:
            VerificationError: a value of it is not allowed, or belongs to another silo.
        """
        return self._append("add", asdict(member), key, time)

    def remove(self, silo: str, reason: str, key: Ed25519PrivateKey, time: str) -> Roster:
        """Return the roster without a silo, which cannot come back with the same ledger.

        Raises:
            VerificationError: there is no such silo, or the key is not the coordinator's.
        """
        return self._append("remove", {"silo": silo, "reason": reason}, key, time)

    def rotate(self, handover: Handover, key: Ed25519PrivateKey, time: str) -> Roster:
        """Return the roster with a silo's new keys; those of before count no more.

        Raises:
            VerificationError: the silo's ledger key of before has not signed it, or a new key is or was somebody's.
        """
        return self._append("rotate", asdict(handover), key, time)

    def _append(self, kind: str, body: dict[str, Any], key: Ed25519PrivateKey, time: str) -> Roster:
        line = _line(self.seq + 1, self.hash, kind, body, key, time)
        return _next(self, line)


def new_roster(name: str, key: Ed25519PrivateKey, time: str) -> Roster:
    """Return a roster without silos.

    Args:
        name: the coordinator's.
        key: its private key.
        time: UTC, ``2026-01-31T12:00:00.000Z``.
    """
    return _next(None, _line(1, ZERO, "coordinator", {"name": name, "key": public_hex(key)}, key, time))


def read_roster(text: bytes, *, coordinator: str | None = None, at_least: str | None = None) -> Roster:
    """Read and check a roster file.

    Args:
        text: its bytes.
        coordinator: the pinned public key of the coordinator; None believes the file's own.
        at_least: hash of a line that must be in it: a reader refuses a copy older than the one that he knows.

    Raises:
        ChainError: with the first line that does not hold.
        VerificationError: it is another coordinator's, or older than what is known.
    """
    roster, seen = None, set()
    for line in lines_of(text):
        roster = _next(roster, line)
        seen.add(roster.hash)
    if roster is None:
        raise ChainError(1, "the roster is empty")
    if coordinator not in (None, roster.key):
        raise VerificationError("the roster is signed by another coordinator than the pinned one")
    if at_least is not None and at_least not in seen:
        raise VerificationError("the roster is not a continuation of the one that is known here")
    return roster


def roster_until(roster: Roster, hash: str) -> Roster | None:
    """Return a roster as it was when the line with this hash was its last; None where it never had such a line."""
    text = b""
    for line in lines_of(roster.text):
        text += line + b"\n"
        if hashlib.sha256(line).hexdigest() == hash:
            return read_roster(text, coordinator=roster.key)
    return None


def _line(seq: int, prev: str, kind: str, body: dict[str, Any], key: Ed25519PrivateKey, time: str) -> bytes:
    entry = {"version": VERSION, "seq": seq, "prev": prev, "time": time, "kind": kind, "body": body}
    return dump({"entry": entry, "signature": key.sign(_DOMAIN + dump(entry)).hex()})


def _next(roster: Roster | None, line: bytes) -> Roster:
    """Return the roster after one more line."""
    seq = roster.seq + 1 if roster else 1
    try:
        entry, signature = _form(load(line))
        body, kind = entry["body"], entry["kind"]
        if (entry["seq"], entry["prev"]) != (seq, roster.hash if roster else ZERO):
            raise VerificationError("it does not follow the line before it")
        if (kind == "coordinator") != (roster is None):
            raise VerificationError("the first line and no other names the coordinator")
        if not signed_by(signature, roster.key if roster else body["key"], _DOMAIN + dump(entry)):
            raise VerificationError("it is not signed by the coordinator's key")
        if roster is None:
            roster = Roster(text=b"", coordinator=body["name"], key=body["key"], seq=0, hash=ZERO)
        roster = _EFFECTS[kind](roster, body)
    except VerificationError as error:
        raise ChainError(seq, str(error)) from None
    return replace(roster, text=roster.text + line + b"\n", seq=seq, hash=hashlib.sha256(line).hexdigest())


def _form(value: Any) -> tuple[dict[str, Any], str]:
    if not (isinstance(value, dict) and value.keys() == {"entry", "signature"} and is_hex(value["signature"], 128)):
        raise VerificationError("it is no signed line of a roster")
    entry = value["entry"]
    if not (isinstance(entry, dict) and entry.keys() == {"version", "seq", "prev", "time", "kind", "body"}):
        raise VerificationError("it has other fields than a line of a roster")
    body, kind = entry["body"], entry["kind"]
    if type(kind) is not str or kind not in _BODIES or type(entry["version"]) is not int or entry["version"] != VERSION:
        raise VerificationError(f"kind {kind!r} of version {entry['version']!r} is not known here")
    if not isinstance(body, dict) or body.keys() != _BODIES[kind] or not all(type(v) is str for v in body.values()):
        raise VerificationError(f"a line of kind {kind} has other fields")
    sound = type(entry["seq"]) is int and is_hex(entry["prev"]) and type(entry["time"]) is str
    names = [body[key] for key in ("silo", "name") if key in body]
    keys = [body[key] for key in ("key", "ledger_key", "dpo_key", "ledger_id", "first_key", "before") if key in body]
    sound = sound and all(_NAME.fullmatch(name) for name in names) and all(map(is_hex, keys))
    if not sound or not _TRANSPORT.fullmatch(body.get("transport_key", "0" * 194)):
        raise VerificationError(f"a line of kind {kind} has a value that it cannot have")
    return entry, value["signature"]


def _added(roster: Roster, body: dict[str, str]) -> Roster:
    member = Member(**body)
    if member.silo in roster.members:
        raise VerificationError(f"silo '{member.silo}' is in the roster already")
    _require_new(roster, member, ("ledger_id", "ledger_key", "transport_key"))
    return replace(roster, members={**roster.members, member.silo: member})


def _require_new(roster: Roster, member: Member, fields: tuple[str, ...]) -> None:
    """Raise where one of these is or was another's, or one key has two roles."""
    for other in (*roster.members.values(), *roster.past):
        for what in fields:
            if getattr(other, what) == getattr(member, what):
                raise VerificationError(f"the {what} of '{member.silo}' has been that of '{other.silo}'")
    if roster.key in (member.ledger_key, member.dpo_key) or member.ledger_key == member.dpo_key:
        raise VerificationError(f"'{member.silo}' uses one key in two places; each role has a key of its own")


def _removed(roster: Roster, body: dict[str, str]) -> Roster:
    members = dict(roster.members)
    gone = members.pop(body["silo"], None)
    if gone is None:
        raise VerificationError(f"silo '{body['silo']}' is not in the roster")
    return replace(roster, members=members, past=(*roster.past, gone))


def _rotated(roster: Roster, body: dict[str, str]) -> Roster:
    handover = Handover(**body)
    old = roster.members.get(handover.silo)
    if old is None or (old.ledger_id, old.ledger_key) != (handover.ledger_id, handover.before):
        raise VerificationError(f"silo '{handover.silo}' is not in the roster with the ledger and key that hand over")
    handover.check()
    new = replace(old, ledger_key=handover.ledger_key, transport_key=handover.transport_key)
    _require_new(roster, new, ("ledger_key", "transport_key"))
    return replace(roster, members={**roster.members, new.silo: new}, past=(*roster.past, old))


_EFFECTS: dict[str, Callable[[Roster, dict[str, str]], Roster]] = {
    "coordinator": lambda roster, _: roster,
    "add": _added,
    "remove": _removed,
    "rotate": _rotated,
}
