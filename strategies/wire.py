"""Every message between server and silo, one frozen dataclass each, and their way into Flower's records.

A field bears two marks: how the server sees it (`clear`, or `masked` inside a sum) and what protects it (`public`:
no record has an influence; `released`: a ledger event accounts for it; `exact`: an unprotected quantity that every
report names). A field without marks fails a test.

One message is one safetensors blob (arrays, and a JSON header for the rest), so that the hash in a ledger is the
hash of exactly the bytes that left. This is the only file that names record keys.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from strategies.errors import ProtocolError
from strategies.layout import Vector

Blob = NDArray[np.uint8]  # bytes of another protocol (strategies/secagg), which reads them itself

_RECORD = "fedsilo"
_TYPES: dict[str, type[np.generic]] = {"Vector": np.float32, "Blob": np.uint8}


class Seen(StrEnum):
    """How the server sees a field."""

    CLEAR = "clear"
    MASKED = "masked"


class Protection(StrEnum):
    """What stands between a field and the records behind it."""

    PUBLIC = "public"
    RELEASED = "released"
    EXACT = "exact"


def _marked(seen: Seen, protection: Protection, default_factory: Any = MISSING) -> Any:
    return field(metadata={"seen": seen, "privacy": protection}, default_factory=default_factory)


def _public() -> Any:
    return _marked(Seen.CLEAR, Protection.PUBLIC)


def blob(data: bytes | memoryview) -> Blob:
    """Return bytes as a message holds them."""
    return np.frombuffer(data, np.uint8)


def _no_text() -> Any:
    return _marked(Seen.CLEAR, Protection.PUBLIC, str)


def _no_blob() -> Any:
    return _marked(Seen.CLEAR, Protection.PUBLIC, lambda: np.zeros(0, np.uint8))


def _counts() -> Any:
    """Metric counts of the model that the silo received, as `strategies.counts` lays them out; empty for none."""
    return _marked(Seen.CLEAR, Protection.RELEASED, lambda: np.zeros(0, np.float32))


# --- server to silo -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Invite:
    """Who wants to take part in this run? Answered by `Accept` or `Refused`."""

    run: str = _public()
    study: str = _public()  # digest of the study's text
    code: str = _public()
    layout: str = _public()  # digest


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The rules of the run's secure aggregation, signed. Answered by `Keyed` or `Refused`."""

    manifest: str = _public()
    rules: Blob = _public()


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one round from these weights. Answered by `Update`, under masks by `MaskedUpdate`, or `Refused`."""

    manifest: str = _public()  # canonical JSON
    round: int = _public()  # from 1
    received: int = _public()  # last release that arrived from this silo: a round's, or counts; 0 for none
    heads: str = _public()  # the coordinator's signed list of last heads of all silos
    receipts: str = _public()  # of the asked silo's own head: the coordinator's and one of a peer
    weights: Vector = _public()
    broadcast: Mapping[str, Vector] = _public()
    sum: Blob = _no_blob()  # the sum that the update goes into, signed; empty without secure aggregation
    record: Blob = _no_blob()  # what came of the sum before, signed; empty before the first
    outcome: str = _no_text()  # what came of the round before, signed; empty before the first
    used: int = _marked(Seen.CLEAR, Protection.PUBLIC, int)  # last round whose model holds its update; 0 for none


@dataclass(frozen=True, kw_only=True)
class Count:
    """Count how well this model does, for a sum over silos alone. Answered by `MaskedCounts` or `Refused`."""

    manifest: str = _public()
    number: int = _public()  # of the release: the study's rounds + 1 + the round whose model this is
    received: int = _public()  # last release that arrived from this silo: a round's, or counts; 0 for none
    heads: str = _public()
    receipts: str = _public()
    weights: Vector = _public()
    sum: Blob = _public()
    record: Blob = _no_blob()


@dataclass(frozen=True, kw_only=True)
class Unmask:
    """One step that ends a sum: shares of the masks, or a view of who is in it. Answered by `Share` or `Refused`."""

    manifest: str = _public()
    request: Blob = _public()  # signed


@dataclass(frozen=True, kw_only=True)
class Close:
    """The run is over; here is the final model. Answered by `Farewell` or `Refused`."""

    manifest: str = _public()
    received: int = _public()
    heads: str = _public()
    receipts: str = _public()
    weights: Vector = _public()
    record: Blob = _no_blob()
    outcome: str = _no_text()  # what came of the last round, signed


@dataclass(frozen=True, kw_only=True)
class Attest:
    """Countersign the heads of the others: a peer's receipt is missing. Answered by `Attested` or `Refused`."""

    manifest: str = _public()
    heads: str = _public()


# --- silo to server -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Accept:
    """The silo takes part."""

    silo: str = _public()
    weight: float = _public()  # from the silo's own settings, never a count of records
    head: str = _public()  # where the silo's ledger stands, signed: positions, hashes and what was released


@dataclass(frozen=True, kw_only=True)
class Update:
    """The weighted update of one round and the counts of its first model, both released by the silo's ledger."""

    silo: str = _public()
    round: int = _public()
    head: str = _public()
    countersigned: str = _public()  # signatures on the heads of the others, by silo
    update: Vector = _marked(Seen.CLEAR, Protection.RELEASED)
    counts: Vector = _counts()


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """The silo's key for the masks of this run, signed; drawn at random, nothing of a record goes into it."""

    silo: str = _public()
    key: Blob = _public()


@dataclass(frozen=True, kw_only=True)
class MaskedUpdate:
    """The weighted update of one round under masks: random to whoever lacks the sum of all of them."""

    silo: str = _public()
    round: int = _public()
    head: str = _public()
    countersigned: str = _public()
    upload: Blob = _marked(Seen.MASKED, Protection.RELEASED)


@dataclass(frozen=True, kw_only=True)
class MaskedCounts:
    """The metric counts of one model under masks; their sum is exact or noisy, as the study says."""

    silo: str = _public()
    number: int = _public()
    head: str = _public()
    countersigned: str = _public()
    upload: Blob = _marked(Seen.MASKED, Protection.EXACT)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Shares of masks, or a signature on who is in a sum; random numbers, nothing of a record goes into them."""

    silo: str = _public()
    reply: Blob = _public()


@dataclass(frozen=True, kw_only=True)
class Farewell:
    """The silo's own account of the run, a function of public settings, and the counts of the final model."""

    silo: str = _public()
    head: str = _public()
    countersigned: str = _public()
    statement: str = _public()  # canonical JSON, signed by the ledger's key; empty when nothing could be signed
    ledger: str = _public()  # lines of the ledger up to there that concern the run; of all others one hash a stretch
    counts: Vector = _counts()


@dataclass(frozen=True, kw_only=True)
class Attested:
    """The silo's signatures on the heads of the others; nothing of its own records goes into them."""

    silo: str = _public()
    head: str = _public()
    countersigned: str = _public()


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The silo says no; the code is all it says. Whether it says so can depend on its records (code `data`)."""

    code: str = _marked(Seen.CLEAR, Protection.EXACT)


Instruction = Invite | Setup | Train | Count | Unmask | Close | Attest
Reply = Accept | Keyed | Update | MaskedUpdate | MaskedCounts | Share | Farewell | Attested | Refused
INSTRUCTIONS: tuple[type[Instruction], ...] = (Invite, Setup, Train, Count, Unmask, Close, Attest)
REPLIES: tuple[type[Reply], ...] = (
    Accept,
    Keyed,
    Update,
    MaskedUpdate,
    MaskedCounts,
    Share,
    Farewell,
    Attested,
    Refused,
)
MESSAGE_TYPE = {
    Invite: "query.invite",
    Setup: "query.setup",
    Train: "train",
    Count: "evaluate.count",
    Unmask: "query.unmask",
    Close: "evaluate",
    Attest: "query.attest",
}

M = TypeVar("M", bound=Instruction | Reply)


@dataclass(frozen=True, kw_only=True)
class FieldFacts:
    """What an egress log says of one field of one message."""

    field: str
    size_bytes: int
    sha256: str
    seen: str
    privacy: str


def facts(message: Instruction | Reply, *, exact: bool = False) -> tuple[FieldFacts, ...]:
    """Return size, hash and marks of every field of `message`; an empty vector holds nothing that needs protection.

    Args:
        message: any.
        exact: whether its update bears no noise of the silo's own, whatever the class's mark says.
    """
    rows = []
    for entry in fields(message):
        value = getattr(message, entry.name)
        data, empty = _bytes_of(value), isinstance(value, np.ndarray) and value.size == 0
        noiseless = exact and (type(message), entry.name) in ((Update, "update"), (MaskedUpdate, "upload"))
        rows.append(
            FieldFacts(
                field=f"{type(message).__name__}.{entry.name}",
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                seen=str(entry.metadata["seen"]),
                privacy=str(
                    Protection.PUBLIC if empty else Protection.EXACT if noiseless else entry.metadata["privacy"]
                ),
            )
        )
    return tuple(rows)


def pack(message: Instruction | Reply) -> bytes:
    """Return the message as the bytes that travel."""
    plain: dict[str, Any] = {}
    arrays: dict[str, Vector] = {}
    for entry in fields(message):
        value = getattr(message, entry.name)
        if isinstance(value, np.ndarray):
            arrays[entry.name] = np.ascontiguousarray(value, dtype=_TYPES[str(entry.type)])
        elif isinstance(value, Mapping):
            arrays |= {f"{entry.name}/{key}": np.ascontiguousarray(v, np.float32) for key, v in value.items()}
        else:
            plain[entry.name] = value
    header = json.dumps({"kind": type(message).__name__, "fields": plain}, sort_keys=True)
    return safetensors.numpy.save(arrays, metadata={"message": header})  # one entry: safetensors shuffles several


def unpack(payload: bytes, allowed: tuple[type[M], ...]) -> M:
    """Read a message of one of the allowed classes.

    Raises:
        ProtocolError: the bytes are no such message, or a field is missing, unknown or of another type.
    """
    try:
        length = int.from_bytes(payload[:8], "little")
        header = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["message"])
        arrays = safetensors.numpy.load(payload)
        values: dict[str, Any] = header["fields"]
        (kind,) = [cls for cls in allowed if cls.__name__ == header["kind"]]
        types = {entry.name: str(entry.type) for entry in fields(kind)}
        for name in types:
            if types[name].startswith("Mapping"):
                prefix = f"{name}/"
                values[name] = {k.removeprefix(prefix): arrays.pop(k) for k in list(arrays) if k.startswith(prefix)}
        values |= arrays
        if set(values) != set(types):  # also of a field that has a default: bytes are read as they are
            raise KeyError
        message = kind(**values)
        sound = all(_fits(getattr(message, name), types[name]) for name in types)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, safetensors.SafetensorError):
        raise ProtocolError(f"a message is none of {', '.join(cls.__name__ for cls in allowed)}") from None
    if not sound:
        raise ProtocolError(f"a field of a {kind.__name__} message has the wrong type")
    return message


def to_record(message: Instruction | Reply) -> RecordDict:
    """Return Flower's form of a message."""
    return payload_to_record(pack(message))


def payload_to_record(payload: bytes) -> RecordDict:
    """Return Flower's form of packed bytes."""
    array = Array(dtype="uint8", shape=(len(payload),), stype="safetensors", data=payload)
    return RecordDict({_RECORD: ArrayRecord({"payload": array})})


def from_record(record: RecordDict, allowed: tuple[type[M], ...]) -> M:
    """Read a message from Flower's form.

    Raises:
        ProtocolError: as in `unpack`, or the record has another form.
    """
    payload = record_to_payload(record)
    if payload is None:
        raise ProtocolError("a message has no payload")
    return unpack(payload, allowed)


def record_to_payload(record: RecordDict) -> bytes | None:
    """Return the packed bytes within Flower's form of a message, or None where there are none."""
    arrays = record.array_records.get(_RECORD)
    return arrays["payload"].data if arrays is not None and "payload" in arrays else None


def digest(record: RecordDict) -> str:
    """Return the SHA-256 of the bytes that travelled, as the ledger of the silo that sent them has it; "" for none."""
    payload = record_to_payload(record)
    return hashlib.sha256(payload).hexdigest() if payload is not None else ""


def _bytes_of(value: object) -> bytes:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype="u1" if value.dtype == np.uint8 else "<f4").tobytes()
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + b"\0" + _bytes_of(value[key]) for key in sorted(value))
    return json.dumps(value).encode()


def _fits(value: object, hint: str) -> bool:
    if hint in _TYPES:
        return isinstance(value, np.ndarray) and value.dtype == _TYPES[hint] and value.ndim == 1
    if hint.startswith("Mapping"):
        return isinstance(value, dict) and all(_fits(item, "Vector") for item in value.values())
    if hint == "float":
        return isinstance(value, float | int) and type(value) is not bool and abs(value) <= sys.float_info.max
    return type(value) is {"str": str, "int": int}[hint]
