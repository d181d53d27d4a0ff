"""Laws of the messages: what is packed is read back, the bytes are a function of the message, and bytes that are no
message give a `ProtocolError` and nothing else.

Oracles: round trips, hashlib over bytes made here, the safetensors format written by hand, Flower's own serialisation.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import fields
from random import Random
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common import serde
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies import wire
from strategies.errors import ProtocolError
from strategies.report import facts as report

CLASSES = (*wire.INSTRUCTIONS, *wire.REPLIES)
texts = st.text(max_size=10)
counts = st.integers(0, 10**9)
vectors = arrays(np.float32, st.integers(0, 8), elements=st.floats(width=32))
VALUES = {
    "str": texts,
    "int": counts,
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "Vector": vectors,
    "Blob": arrays(np.uint8, st.integers(0, 8)),
    "Mapping[str, Vector]": st.dictionaries(texts, vectors, max_size=3),
}
messages = st.one_of(
    [st.builds(cls, **{field.name: VALUES[str(field.type)] for field in fields(cls)}) for cls in CLASSES]
)
HEADS = '"head": "", "countersigned": ""'
SAMPLES = (
    wire.Train(
        manifest="{}",
        round=3,
        received=2,
        heads="{}",
        receipts="[]",
        weights=np.arange(5, dtype=np.float32),
        broadcast={"c": np.ones(2, np.float32), "a": np.zeros(0, np.float32)},
    ),
    wire.Update(silo="s", round=1, head="{}", countersigned="{}", update=np.float32([1, -2]), counts=np.float32([0.5])),
    wire.Farewell(silo="s", head="{}", countersigned="{}", statement="{}", ledger=""),
    wire.Accept(silo="s", weight=1.5, head="{}"),
    wire.Refused(code="budget"),
)


@pytest.fixture(autouse=True)
def _flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside a task."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def plain(message: Any) -> dict[str, Any]:
    def value(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return (str(item.dtype), item.shape, item.tobytes())
        return {key: value(part) for key, part in item.items()} if isinstance(item, dict) else item

    return {field.name: value(getattr(message, field.name)) for field in fields(message)}


def raw(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file: length of the header, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def crafted(kind: str, values: str, data: bytes = b"", **tensors: Any) -> bytes:
    return raw({"__metadata__": {"message": f'{{"kind": "{kind}", "fields": {values}}}'}} | tensors, data)


def tensor(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


# --- there and back -----------------------------------------------------------------------------------------


@given(messages)
def test_a_message_survives_its_bytes_and_flowers_own(message: Any) -> None:
    payload = wire.pack(message)
    back = wire.unpack(payload, CLASSES)
    assert type(back) is type(message)
    assert plain(back) == plain(message)
    assert wire.pack(back) == payload
    sent = Message(content=wire.to_record(message), dst_node_id=1, message_type="train")
    proto = serde.recorddict_to_proto(sent.content).SerializeToString()
    arrived = serde.recorddict_from_proto(serde.ProtoRecordDict.FromString(proto))
    assert wire.pack(wire.from_record(arrived, CLASSES)) == payload


def test_the_bytes_are_a_function_of_the_values_alone() -> None:
    weights = np.arange(6, dtype=np.float32)
    spread = np.repeat(weights, 2)[::2]
    assert not spread.flags.c_contiguous
    plain_fields: dict[str, Any] = {"manifest": "m", "round": 1, "received": 0, "heads": "", "receipts": ""}
    first = wire.Train(broadcast={"a": weights, "b": weights}, weights=weights, **plain_fields)
    second = wire.Train(broadcast={"b": weights, "a": spread}, weights=spread, **plain_fields)
    assert {wire.pack(message) for message in [first, second] * 20} == {wire.pack(first)}
    assert wire.facts(first) == wire.facts(second)


def test_bytes_written_by_hand_are_read() -> None:
    tensors = {"update": tensor("F32", [2], 0, 8), "counts": tensor("F32", [1], 8, 12)}
    payload = crafted(
        "Update",
        '{"round": 7, "silo": "s", "head": "", "countersigned": ""}',
        struct.pack("<3f", 1.5, -2, 9),
        **tensors,
    )
    message = wire.unpack(payload, (wire.Update,))
    assert (message.silo, message.round) == ("s", 7)
    assert (message.update.tolist(), message.counts.tolist()) == ([1.5, -2.0], [9.0])


# --- what is no message -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 64,
        raw(b"{"),
        raw({}),
        raw([]),
        raw("x"),
        raw({"__metadata__": None}),
        raw({"__metadata__": {}}),
        raw({"__metadata__": {"message": '{"kind": "Refused"}'}}),
        raw({"__metadata__": {"message": "3"}}),
        raw(b'{"__metadata__":' + b"[" * 100_000),
        crafted("Nothing", "{}"),
        crafted("Train", '{"code": "x"}'),
        crafted("Refused", ""),
        crafted("Refused", "[" * 100_000),
        crafted("Refused", "{}"),
        crafted("Refused", "[]"),
        crafted("Refused", "3"),
        crafted("Refused", '{"code": 3}'),
        crafted("Refused", '{"code": null}'),
        crafted("Refused", '{"code": "x", "text": "y"}'),
        crafted("Refused", '{"code": ["x"]}'),
        crafted("Refused", '{"code": "x"}', b"\0" * 4, extra=tensor("F32", [1], 0, 4)),
        crafted("Refused", "{}", b"\0" * 4, code=tensor("F32", [1], 0, 4)),
        *(
            crafted("Accept", f'{{"silo": "s", "head": "", "weight": {weight}}}')
            for weight in ("NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, "true", '"1"', "null", "[1]")
        ),
        *(
            crafted(
                "Update", f'{{{HEADS}, "silo": "s", "round": {number}}}', b"\0" * 4, update=tensor("F32", [1], 0, 4)
            )
            for number in ("1.0", "true", '"1"', "null")
        ),
        *(
            crafted(
                "Update", f'{{{HEADS}, "silo": "s", "round": 1}}', b"\0" * size, update=tensor(dtype, shape, 0, size)
            )
            for dtype, shape, size in (
                ("F64", [1], 8),
                ("F16", [1], 2),
                ("BF16", [1], 2),
                ("F8_E4M3", [1], 1),
                ("I32", [1], 4),
                ("BOOL", [1], 1),
                ("C64", [1], 8),
                ("F32", [1, 1], 4),
                ("F32", [], 4),
                ("F32", [2], 4),
            )
        ),
        crafted("Update", f'{{{HEADS}, "silo": "s", "round": 1, "update": [1.0]}}'),
        crafted("Update", f'{{{HEADS}, "silo": "s", "round": 1}}', b"\0" * 4, update=tensor("F32", [1], 0, 4)),
        crafted("Farewell", f'{{{HEADS}, "silo": "s", "statement": "{{}}", "ledger": ""}}'),
        crafted("Update", f'{{{HEADS}, "silo": "s", "round": 1}}'),
        wire.pack(SAMPLES[0]) + b"\0",
    ],
    ids=lambda payload: repr(payload[8:100]),
)
def test_bytes_that_are_no_reply_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.unpack(payload, wire.REPLIES)


@pytest.mark.parametrize("broadcast", [tensor("F64", [1], 0, 8), tensor("F32", [1, 2], 0, 8)], ids=str)
def test_a_wrong_vector_inside_a_mapping_is_refused(broadcast: dict[str, Any]) -> None:
    values = '{"manifest": "m", "round": 1, "received": 0, "heads": "", "receipts": "", "outcome": "", "used": 0}'
    rest = {"weights": tensor("F32", [1], 8, 12), **dict.fromkeys(("sum", "record"), tensor("U8", [0], 12, 12))}
    with pytest.raises(ProtocolError, match="wrong type"):
        wire.unpack(crafted("Train", values, b"\0" * 12, **{"broadcast/a": broadcast}, **rest), wire.INSTRUCTIONS)


def test_a_message_of_a_class_that_is_not_expected_is_refused() -> None:
    for message in SAMPLES:
        others = tuple(cls for cls in CLASSES if cls is not type(message))
        with pytest.raises(ProtocolError):
            wire.unpack(wire.pack(message), others)


def damaged(random: Random, payload: bytes) -> bytes:
    at, kind = random.randrange(len(payload)), random.randrange(5)
    if kind == 0:
        return payload[:at]
    if kind == 1:
        return payload[:at] + bytes([payload[at] ^ (1 << random.randrange(8))]) + payload[at + 1 :]
    if kind == 2:
        return payload[:at] + random.randbytes(random.randrange(1, 9)) + payload[at:]
    if kind == 3:
        return payload[:at] + payload[at + random.randrange(1, 9) :]
    return random.randbytes(random.randrange(64))


def test_damaged_bytes_are_refused_or_are_another_message(scaled: Callable[..., int]) -> None:
    """No byte string makes the reader raise anything but `ProtocolError`; what it lets through is well formed."""
    random, refused = Random(1), 0
    originals = [wire.pack(message) for message in SAMPLES]
    count = scaled(30_000)
    for _ in range(count):
        payload = damaged(random, random.choice(originals))
        try:
            message = wire.unpack(payload, CLASSES)
        except ProtocolError:
            refused += 1
        else:
            assert plain(wire.unpack(wire.pack(message), CLASSES)) == plain(message)
    assert refused > count / 2


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"other": ArrayRecord({})}),
        RecordDict({"fedsilo": ArrayRecord({})}),
        RecordDict({"fedsilo": ConfigRecord({"payload": b"x"})}),
        RecordDict({"fedsilo": ArrayRecord({"payload": Array(np.zeros(3, np.float32))})}),
        wire.payload_to_record(b""),
        wire.payload_to_record(b"garbage"),
    ],
    ids=range(7),
)
def test_records_of_another_form_are_refused(record: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        wire.from_record(record, CLASSES)


# --- marks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "field"),
    [(cls, field) for cls in CLASSES for field in fields(cls)],
    ids=lambda item: getattr(item, "__name__", None) or item.name,
)
def test_every_field_says_how_it_is_seen_and_what_protects_it(cls: type, field: Any) -> None:
    assert isinstance(field.metadata["seen"], wire.Seen)
    assert isinstance(field.metadata["privacy"], wire.Protection)
    if cls in wire.REPLIES:
        assert report._WHAT_TRAVELS[f"{cls.__name__}.{field.name}"].strip()


def test_the_report_explains_no_field_that_does_not_exist() -> None:
    assert set(report._WHAT_TRAVELS) == {
        f"{cls.__name__}.{field.name}" for cls in wire.REPLIES for field in fields(cls)
    }


def test_what_may_rest_on_records_is_released_or_named_exact() -> None:
    guarded = {
        f"{cls.__name__}.{f.name}": f.metadata["privacy"]
        for cls in CLASSES
        for f in fields(cls)
        if f.metadata["privacy"] != wire.Protection.PUBLIC
    }
    assert guarded == {
        "Update.update": wire.Protection.RELEASED,
        "Update.counts": wire.Protection.RELEASED,
        "MaskedUpdate.upload": wire.Protection.RELEASED,
        "MaskedCounts.upload": wire.Protection.EXACT,
        "Farewell.counts": wire.Protection.RELEASED,
        "Refused.code": wire.Protection.EXACT,
    }


def test_every_instruction_has_a_message_type_of_flowers() -> None:
    assert set(wire.MESSAGE_TYPE) == set(wire.INSTRUCTIONS)
    for kind in wire.MESSAGE_TYPE.values():
        assert Message(content=RecordDict(), dst_node_id=1, message_type=kind).metadata.message_type == kind


def test_egress_facts_are_sizes_and_hashes_of_the_values() -> None:
    expected = [
        ("Update.silo", b'"s"', "public"),
        ("Update.round", b"1", "public"),
        ("Update.head", b'"{}"', "public"),
        ("Update.countersigned", b'"{}"', "public"),
        ("Update.update", struct.pack("<2f", 1, -2), "released"),
        ("Update.counts", struct.pack("<f", 0.5), "released"),
    ]
    assert wire.facts(SAMPLES[1]) == tuple(
        wire.FieldFacts(
            field=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), seen="clear", privacy=privacy
        )
        for name, data, privacy in expected
    )
    empty = wire.facts(SAMPLES[2])[-1]  # no counts were asked for: nothing is there that would need protection
    assert (empty.field, empty.size_bytes, empty.privacy) == ("Farewell.counts", 0, "public")
    (broadcast,) = [row for row in wire.facts(SAMPLES[0]) if row.field == "Train.broadcast"]
    data = b"a\0" + b"c\0" + struct.pack("<2f", 1, 1)
    assert (broadcast.size_bytes, broadcast.sha256) == (len(data), hashlib.sha256(data).hexdigest())
