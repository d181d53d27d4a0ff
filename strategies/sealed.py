"""Envelopes on Flower's messages: put beside the content, and compared with it.

The content's hash covers every array of every record, by name, dtype, shape and bytes; a record of another kind than
arrays and the envelope itself is refused, so nothing unsigned travels with a signed message.
"""

from __future__ import annotations

import hashlib

from flwr.app import ConfigRecord, RecordDict

from strategies.errors import ProtocolError

_RECORD, _SEALED, _ROSTER = "envelope", "sealed", "roster"


def payload_hash(content: RecordDict) -> str:
    """Return the SHA-256 of what a content carries beside its envelope.

    Raises:
        ProtocolError: it carries something else than arrays.
    """
    if set(content) - set(content.array_records) - {_RECORD}:
        raise ProtocolError("a message carries records that its envelope does not cover")
    found = hashlib.sha256()
    for name in sorted(content.array_records):
        arrays = content.array_records[name]
        for key in sorted(arrays):
            array = arrays[key]
            head = f"{name}\0{key}\0{array.dtype}\0{array.stype}\0{tuple(array.shape)}\0{len(array.data)}\0"
            found.update(head.encode())
            found.update(array.data)
    return found.hexdigest()


def attach(content: RecordDict, sealed: bytes, roster: bytes = b"") -> None:
    """Put an envelope, and with an instruction the roster where a silo may not know it, beside the content."""
    content[_RECORD] = ConfigRecord({_SEALED: sealed, _ROSTER: roster})


def envelope_of(content: RecordDict) -> tuple[bytes, bytes]:
    """Return the envelope of a content and the roster that came with it.

    Raises:
        ProtocolError: there is none.
    """
    record = content.config_records.get(_RECORD)
    sealed, roster = (record.get(_SEALED), record.get(_ROSTER, b"")) if record is not None else (None, b"")
    if not isinstance(sealed, bytes) or not isinstance(roster, bytes):
        raise ProtocolError("a message has no envelope")
    return sealed, roster
