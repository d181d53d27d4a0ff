"""One line of a silo's ledger: what it says, its bytes, its signatures.

A line is ``{"entry":{...},"signatures":{...}}`` in canonical JSON. `prev` is the SHA-256 of the whole line before, with
its signatures. Each signature is Ed25519 (RFC 8032) over a domain tag, the ledger's identity, the entry's position and
the SHA-256 of the entry, so that it means nothing in another place, ledger or protocol.

Guarantees: a kind that is not known, a missing or additional field, or a value of another form is refused; nothing may
be concluded from a line that is only partly understood.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from strategies.errors import AccountingError, SettingError, VerificationError
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event, Exact, Gaussian, Summed, merge
from strategies.proof.canonical import dump, exact, load, read_exact

VERSION = 1
ZERO = "0" * 64  # what stands before the first entry
_DOMAIN = b"fedsilo/ledger/1\0"
_HEX = {digits: re.compile(rf"[0-9a-f]{{{digits}}}") for digits in (32, 64, 128)}
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_PREFIX, _MIDDLE = b'{"entry":', b',"signatures":'

# kind -> fields of its body; who must sign beside the silo's own key stands in `signers`.
BODIES: dict[str, frozenset[str]] = {
    "genesis": frozenset({"silo", "ledger_key", "dpo_key", "durability"}),
    "policy": frozenset(),
    "data_root": frozenset(
        {"unit", "epsilon", "delta", "gate", "order", "slots", "units_at_least", "fingerprint", "neighbouring"}
    ),
    "reserve": frozenset({"events", "receipts"}),
    "release": frozenset({"sha256"}),
    "commit": frozenset(),
    "abort": frozenset({"reason"}),
    "witness": frozenset({"receipts"}),
    "freeze": frozenset({"reason", "heads"}),
    "restore": frozenset({"reason", "heads", "adopt"}),
    "key_rotate": frozenset({"which", "key"}),
    "checkpoint": frozenset({"spent"}),
}
OF_A_ROUND = frozenset({"reserve", "release", "commit", "abort"})
OF_THE_OFFICER = frozenset({"genesis", "data_root", "restore"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one line says.

    Args:
        ledger_id: 32 random bytes, 64 hex digits, drawn when the ledger was made.
        seq: position, from 1.
        prev: SHA-256 of the line before; zeros before the first.
        time: UTC, never before the line above; for people, nothing is decided by it.
        boot: identity of the machine's boot, or "".
        kind: one of `BODIES`.
        data_root: the data set that the entry speaks of, or "".
        run: identity of the run, 32 hex digits, or "".
        round: round of the run, or 0.
        manifest: digest of the run's manifest, or "".
        policy: SHA-256 of the silo's policy in force, or "".
        body: by kind.
    """

    ledger_id: str
    seq: int
    prev: str
    time: str
    boot: str
    kind: str
    body: Mapping[str, Any]
    data_root: str = ""
    run: str = ""
    round: int = 0
    manifest: str = ""
    policy: str = ""
    version: int = VERSION

    def payload(self) -> bytes:
        """Return the canonical bytes that are hashed and signed."""
        return dump(dict(self.__dict__))


@dataclass(frozen=True, kw_only=True)
class Signed:
    """An entry, the bytes of its line, and the signatures by role: ledger, dpo, new."""

    entry: Entry
    signatures: Mapping[str, str]
    line: bytes = field(repr=False)
    message: bytes = field(repr=False)

    @property
    def hash(self) -> str:
        """SHA-256 of the line, which the next entry names as `prev`."""
        return hashlib.sha256(self.line).hexdigest()


def sign(entry: Entry, keys: Mapping[str, Ed25519PrivateKey]) -> Signed:
    """Return the signed line of an entry.

    Args:
        entry: checked here as a reader would check it.
        keys: the private keys by role.

    Raises:
        VerificationError: the entry is not well formed, or a signature that its kind needs has no key.
    """
    payload = entry.payload()
    message = _message(entry, payload)
    signatures = {role: key.sign(message).hex() for role, key in keys.items()}
    _check(entry, signatures)
    line = b"".join((_PREFIX, payload, _MIDDLE, dump(signatures), b"}"))
    return Signed(entry=entry, signatures=signatures, line=line, message=message)


def read(line: bytes) -> Signed:
    """Read one line; its signatures are not checked here.

    Raises:
        VerificationError: it is no well-formed entry of a known kind.
    """
    value = load(line)
    if not (isinstance(value, dict) and value.keys() == {"entry", "signatures"}):
        raise VerificationError("the line is no ledger entry with its signatures")
    fields, signatures = value["entry"], value["signatures"]
    if not (isinstance(fields, dict) and fields.keys() == _FIELDS and isinstance(signatures, dict)):
        raise VerificationError("the entry has other fields than a ledger entry")
    entry = Entry(**fields)
    _check(entry, signatures)
    payload = line[len(_PREFIX) : -len(_MIDDLE) - len(dump(signatures)) - 1]  # the line is in its one form
    return Signed(entry=entry, signatures=signatures, line=line, message=_message(entry, payload))


_FIELDS = Entry.__dataclass_fields__.keys()


def _message(entry: Entry, payload: bytes) -> bytes:
    place = bytes.fromhex(entry.ledger_id) + entry.seq.to_bytes(8, "big")
    return _DOMAIN + place + hashlib.sha256(payload).digest()


def signed_by(signature: str, key: str, message: bytes) -> bool:
    """Return whether an Ed25519 signature (128 hex digits) by a key (64 hex digits) holds."""
    try:
        _public(key).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=256)
def _public(key: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return a key's public half, 64 hex digits."""
    return key.public_key().public_bytes_raw().hex()


# --- form ---------------------------------------------------------------------------------------------------


def is_hex(value: Any, digits: int = 64) -> bool:
    """Return whether `value` is a text of 32, 64 or 128 lower-case hex digits."""
    return type(value) is str and _HEX[digits].fullmatch(value) is not None


def _check(entry: Entry, signatures: Mapping[str, Any]) -> None:
    if type(entry.version) is not int or entry.version != VERSION:
        raise VerificationError(f"version {entry.version!r} of the ledger is not known here")
    known = BODIES.get(entry.kind) if type(entry.kind) is str else None
    if known is None:
        raise VerificationError(f"kind {entry.kind!r} is not known here; nothing is concluded from it")
    if not isinstance(entry.body, Mapping) or entry.body.keys() != known:
        raise VerificationError(f"a {entry.kind} entry has other fields than {', '.join(sorted(known)) or 'none'}")
    form = (
        is_hex(entry.ledger_id)
        and type(entry.seq) is int
        and entry.seq >= 1
        and is_hex(entry.prev)
        and type(entry.time) is str
        and _TIME.fullmatch(entry.time) is not None
        and (entry.boot == "" or is_hex(entry.boot, 32))
        and type(entry.data_root) is str
        and (entry.manifest == "" or is_hex(entry.manifest))
        and (entry.policy == "" or is_hex(entry.policy))
        and type(entry.round) is int
    )
    if entry.kind in OF_A_ROUND:
        form = form and is_hex(entry.run, 32) and 1 <= entry.round < 2**31 and entry.data_root != ""
    else:
        form = form and entry.run == "" and entry.round == 0 and entry.manifest == ""
        form = form and (entry.data_root != "") == (entry.kind == "data_root")
    if not form:
        raise VerificationError(f"a field of the {entry.kind} entry has a value that it cannot have")
    roles = signers(entry)
    if signatures.keys() != roles or not all(is_hex(value, 128) for value in signatures.values()):
        raise VerificationError(f"the {entry.kind} entry is not signed by {', '.join(sorted(roles))}")
    _check_body(entry)


def signers(entry: Entry) -> set[str]:
    """Return the roles whose signatures an entry must have: ledger, dpo, and new for a key that takes over."""
    if entry.kind == "key_rotate":
        return {"ledger", "new"} if entry.body["which"] == "ledger" else {"ledger", "dpo", "new"}
    return {"ledger", "dpo"} if entry.kind in OF_THE_OFFICER else {"ledger"}


def _check_body(entry: Entry) -> None:
    body, kind = entry.body, entry.kind
    holds = True
    if kind == "genesis":
        holds = is_hex(body["ledger_key"]) and is_hex(body["dpo_key"]) and _text(body["silo"])
        holds = holds and body["durability"] in ("power-loss", "process")
    elif kind == "policy":
        holds = entry.policy != ""
    elif kind == "data_root":
        read_root(entry)
    elif kind == "release":
        holds = is_hex(body["sha256"])
    elif kind == "reserve":
        holds = bool(read_events(body["events"])) and isinstance(body["receipts"], list | tuple)
    elif kind == "witness":
        holds = isinstance(body["receipts"], list | tuple) and len(body["receipts"]) > 0
    elif kind == "key_rotate":
        holds = body["which"] in ("ledger", "dpo") and is_hex(body["key"])
    elif kind in ("abort", "freeze", "restore"):
        holds = _text(body["reason"]) and isinstance(body.get("heads", []), list | tuple)
    if kind in ("restore", "checkpoint"):
        read_spent(body["adopt" if kind == "restore" else "spent"])
    if not holds:
        raise VerificationError(f"the body of the {kind} entry has a value that it cannot have")


def _text(value: Any) -> bool:
    return type(value) is str and 1 <= len(value) <= 1000


# --- events -------------------------------------------------------------------------------------------------


def events_value(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return events as canonical values: numbers are exact decimal texts."""
    return [_event_value(event) for event in events]


def _event_value(event: Event) -> dict[str, Any]:
    if isinstance(event, Exact):
        return {"kind": "exact", "what": event.what}
    if isinstance(event, Summed):
        return {"kind": "summed", "what": event.what, "silos": event.silos, "times": event.times}
    return {
        "kind": "gaussian",
        "noise_multiplier": exact(event.noise_multiplier),
        "sampling_rate": exact(event.sampling_rate),
        "steps": event.steps,
    }


def read_events(values: Any) -> tuple[Event, ...]:
    """Read a list of events.

    Raises:
        VerificationError: something in it is no event that can be accounted.
    """
    if not isinstance(values, list | tuple):
        raise VerificationError("the events are no list")
    return tuple(_event(value) for value in values)


def _event(value: Any) -> Event:
    fields = value if isinstance(value, dict) else {}
    if fields.keys() == {"kind", "what"} and fields["kind"] == "exact" and type(fields["what"]) is str:
        return Exact(what=fields["what"])
    summed = fields.keys() == {"kind", "what", "silos", "times"} and fields["kind"] == "summed"
    if summed and type(fields["what"]) is str:
        return _summed(fields["what"], fields["silos"], fields["times"])
    numbers = fields.keys() == {"kind", "noise_multiplier", "sampling_rate", "steps"}
    if numbers and fields["kind"] == "gaussian" and type(fields["steps"]) is int:
        texts = fields["noise_multiplier"], fields["sampling_rate"]
        if all(type(text) is str for text in texts):
            return _gaussian(*texts, fields["steps"])
    raise VerificationError(f"{value!r:.80} is no event of a known kind")


def _summed(what: str, silos: int, times: int) -> Summed:
    try:
        return Summed(what=what, silos=silos, times=times)
    except AccountingError as error:
        raise VerificationError(str(error)) from None


@lru_cache(maxsize=4096)
def _gaussian(noise_multiplier: str, sampling_rate: str, steps: int) -> Gaussian:
    try:
        return Gaussian(
            noise_multiplier=read_exact(noise_multiplier), sampling_rate=read_exact(sampling_rate), steps=steps
        )
    except AccountingError as error:
        raise VerificationError(str(error)) from None


def spent_value(spent: Mapping[str, Iterable[Event]]) -> dict[str, Any]:
    """Return what was spent by data root as a canonical value: equal releases added up, roots without any left out."""
    merged = {name: merge(events) for name, events in spent.items()}
    return {name: events_value(events) for name, events in merged.items() if events}


def read_spent(value: Any) -> dict[str, tuple[Event, ...]]:
    """Read what `spent_value` wrote.

    Raises:
        VerificationError: it is not in that form.
    """
    if not isinstance(value, dict):
        raise VerificationError("what was spent is no object by data root")
    found = {name: read_events(events) for name, events in value.items()}
    if any(not events or merge(events) != events for events in found.values()):
        raise VerificationError("what was spent is not in its merged form")
    return found


# --- data roots ---------------------------------------------------------------------------------------------


def root_value(root: DataRoot) -> dict[str, Any]:
    """Return the body of a data root's registration."""
    values = asdict(root) | {"neighbouring": "add-or-remove-one", "slots": events_value(root.slots)}
    del values["name"]
    return values | {key: exact(values[key]) for key in ("epsilon", "delta", "order")}


def read_root(entry: Entry) -> DataRoot:
    """Read a registration.

    Raises:
        VerificationError: a value is not allowed.
    """
    body = entry.body
    try:
        sound = body["neighbouring"] == "add-or-remove-one" and type(body["units_at_least"]) is int
        sound = sound and _text(body["unit"]) and (body["fingerprint"] == "" or is_hex(body["fingerprint"]))
        root = DataRoot(
            name=entry.data_root,
            unit=body["unit"],
            epsilon=read_exact(body["epsilon"], infinite=True),
            delta=read_exact(body["delta"]),
            gate=body["gate"],
            order=read_exact(body["order"]),
            slots=read_events(body["slots"]),
            units_at_least=body["units_at_least"],
            fingerprint=body["fingerprint"],
        )
    except (SettingError, AccountingError, TypeError) as error:
        raise VerificationError(f"the registration of '{entry.data_root}' is not valid: {error}") from None
    if not sound or root_value(root) != body:
        raise VerificationError(f"the registration of '{entry.data_root}' is not valid: it is not in its one form")
    return root
