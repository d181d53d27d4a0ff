"""Laws of what can be proved offline: one text for one value, one chain for one ledger, and no change unseen.

Oracles: the standard library's json and hashlib, cryptography's own verification, exact fractions for decimals; every
single bit of a ledger flipped, every line deleted, doubled, swapped, re-signed.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from books import (
    COORDINATOR,
    COST,
    GENESIS,
    ID,
    LEDGER,
    OFFICER,
    PEER,
    PINS,
    ROOT,
    RUN,
    STRANGER,
    TIME,
    Book,
    five,
    read_chain,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from strategies.errors import SettingError, VerificationError
from strategies.privacy.dataroot import DataRoot, covers, lacking, repeat
from strategies.privacy.events import Exact, Gaussian, merge
from strategies.proof.canonical import dump, exact, load, read_exact, rounded_up
from strategies.proof.chain import ChainError, Pins
from strategies.proof.entries import events_value, public_hex, read, read_events, root_value, sign, spent_value
from strategies.proof.heads import Equivocation, Receipt, SignedHead, countersign, equivocation, sign_head
from strategies.proof.verdict import lines_of, verify_chain

# --- canonical JSON -----------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_a_value_has_one_text_and_comes_back(value: Any) -> None:
    text = dump(value)
    assert load(text) == value
    assert text == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1.0}',
        b"1e3",
        b"-0",
        b"NaN",
        b"-Infinity",
        b"9223372036854775808",
        b"1" * 5000,
        b'"\\u00e9"',
        b'"\xff"',
        b'"\\ud800"',
        b"[1]\n",
        b"\xef\xbb\xbf[1]",
        b"[" * 100_000,
        b"",
        b'{"a":1}x',
    ],
    ids=lambda text: text[:24].decode("latin-1"),
)
def test_every_other_text_is_refused(text: bytes) -> None:
    with pytest.raises(VerificationError):
        load(text)


@pytest.mark.parametrize("value", [1.0, {1: 2}, {"a": {3}}, b"x", 2**63, "\ud800", math.nan], ids=repr)
def test_what_is_no_canonical_value_is_not_written(value: Any) -> None:
    with pytest.raises(VerificationError):
        dump(value)


@given(st.floats(0, allow_infinity=False))
def test_an_exact_decimal_is_that_float_and_no_other(value: float) -> None:
    text = exact(value)
    assert read_exact(text) == value and "e" not in text.lower()
    below, above = math.nextafter(value, 0), math.nextafter(value, math.inf)
    away, neighbour = Fraction(text) - Fraction(value), below if Fraction(text) < Fraction(value) else above
    assert away == 0 or abs(away) <= abs(Fraction(neighbour) - Fraction(value)) / 2
    assert value == 0 or exact(below) != text
    assert above == math.inf or exact(above) != text


@pytest.mark.parametrize(
    "text", ["1.0", "01", "+1", "1e3", ".5", "5.", "-1", "0.10", "inf", "nan", "", " 1", "٣", 1, None]
)
def test_a_decimal_has_one_form(text: Any) -> None:
    with pytest.raises(VerificationError):
        read_exact(text)


def test_infinity_stands_where_it_is_allowed() -> None:
    assert exact(math.inf) == "inf" and read_exact("inf", infinite=True) == math.inf
    assert exact(-0.0) == "0"
    for wrong in (math.nan, -1.0):
        with pytest.raises(VerificationError):
            exact(wrong)


@given(st.floats(0, 1e6))
def test_a_privacy_loss_is_written_rounded_up(value: float) -> None:
    text = rounded_up(value)
    assert Fraction(value) <= Fraction(float(text)) <= Fraction(value) + Fraction(1, 10_000) + Fraction(1, 10**9)
    assert len(text.partition(".")[2]) <= 4


# --- entries ------------------------------------------------------------------------------------------------

events = st.lists(
    st.builds(
        Gaussian,
        noise_multiplier=st.floats(1e-300, 1e300),
        sampling_rate=st.floats(1e-300, 1),
        steps=st.integers(0, 10**15),
    )
    | st.builds(Exact, what=st.text()),
    max_size=4,
)


@given(events)
def test_events_come_back_bit_by_bit(planned: list[Any]) -> None:
    back = read_events(load(dump(events_value(planned))))
    assert back == tuple(planned)
    bits = [
        [struct.pack("<dd", e.noise_multiplier, e.sampling_rate) for e in es if isinstance(e, Gaussian)]
        for es in (back, planned)
    ]
    assert bits[0] == bits[1]


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "laplace", "scale": "1"},
        {"kind": "gaussian", "noise_multiplier": "1", "sampling_rate": "1"},
        {"kind": "gaussian", "noise_multiplier": "1", "sampling_rate": "1", "steps": 1, "more": 1},
        {"kind": "gaussian", "noise_multiplier": "0", "sampling_rate": "1", "steps": 1},
        {"kind": "gaussian", "noise_multiplier": "1", "sampling_rate": "1.5", "steps": 1},
        {"kind": "gaussian", "noise_multiplier": "1", "sampling_rate": "1", "steps": True},
        {"kind": "gaussian", "noise_multiplier": "1", "sampling_rate": "1", "steps": -1},
        {"kind": "gaussian", "noise_multiplier": 1, "sampling_rate": "1", "steps": 1},
        {"kind": "gaussian", "noise_multiplier": ["1"], "sampling_rate": "1", "steps": 1},
        {"kind": "exact", "what": 1},
        {"kind": "exact"},
        "gaussian",
    ],
    ids=repr,
)
def test_what_is_no_event_is_refused(value: Any) -> None:
    with pytest.raises(VerificationError):
        read_events([value])


def test_the_signature_covers_place_and_content() -> None:
    """The signed bytes as the module says them, put together here by hand and checked by cryptography."""
    book = five()
    line = book.lines[2]
    value = json.loads(line)
    body = json.dumps(value["entry"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    message = b"fedsilo/ledger/1\0" + bytes.fromhex(ID) + (3).to_bytes(8, "big") + hashlib.sha256(body).digest()
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(PINS.ledger_key))
    public.verify(bytes.fromhex(value["signatures"]["ledger"]), message)
    assert value["entry"]["prev"] == hashlib.sha256(book.lines[1]).hexdigest()
    assert read(line).entry.payload() == body and read(line).message == message


def respelt(line: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    value = json.loads(line)
    change(value["entry"])
    return dump(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "audit"},
        {"kind": "reserve", "version": 2},
        {"kind": "reserve", "version": True},
        {"kind": "reserve", "run": ""},
        {"kind": "reserve", "run": "0" * 31},
        {"kind": "reserve", "round": 0},
        {"kind": "reserve", "data_root": ""},
        {"kind": "reserve", "seq": 0},
        {"kind": "reserve", "seq": True},
        {"kind": "reserve", "prev": "AB" * 32},
        {"kind": "reserve", "time": "2026-01-31T12:00:00Z"},
        {"kind": "reserve", "time": "٢٠٢٦-01-31T12:00:00.000Z"},
        {"kind": "reserve", "boot": "x"},
        {"kind": "reserve", "manifest": "x"},
        {"kind": "reserve", "policy": "x"},
        {"kind": "reserve", "body": {"events": [], "receipts": []}},
        {"kind": "reserve", "body": {"events": events_value(COST)}},
        {"kind": "reserve", "body": {"events": events_value(COST), "receipts": [], "refund": 1}},
        {"kind": "release", "body": {"sha256": "ab"}},
        {"kind": "commit", "body": {"ok": True}},
        {"kind": "abort", "body": {"reason": ""}},
        {"kind": "policy", "body": {}, "policy": ""},
        {"kind": "witness", "body": {"receipts": []}},
        {"kind": "key_rotate", "body": {"which": "dpo", "key": "x"}},
        {"kind": "checkpoint", "body": {"spent": []}},
        {"kind": "checkpoint", "body": {"spent": {"records": events_value(COST * 2)}}},
        {"kind": "freeze", "body": {"reason": "x", "heads": {}}},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_an_entry_of_another_form_is_neither_written_nor_read(fields: dict[str, Any]) -> None:
    book = Book().begin()
    kind = fields.pop("kind")
    body = fields.pop("body", {"events": events_value(COST), "receipts": []})
    entry = book.entry("reserve", body, **fields)
    entry = (
        replace(entry, kind=kind)
        if kind in ("release", "commit", "abort", "reserve")
        else replace(entry, **({"kind": kind, "run": "", "round": 0, "data_root": ""} | fields))
    )
    keys = {"ledger": LEDGER, "dpo": OFFICER, "new": STRANGER} if kind == "key_rotate" else {"ledger": LEDGER}
    with pytest.raises(VerificationError):
        sign(entry, keys)
    fine = book.signed("reserve", {"events": events_value(COST), "receipts": []}).line
    with pytest.raises(VerificationError):
        read(respelt(fine, lambda value: value.update(json.loads(json.dumps(dict(entry.__dict__))))))


def test_a_missing_signature_is_refused_when_writing() -> None:
    book = Book()
    with pytest.raises(VerificationError, match="not signed by dpo, ledger"):
        book.signed("genesis", GENESIS, keys={"ledger": LEDGER})


# --- the chain ----------------------------------------------------------------------------------------------


def test_a_sound_ledger_is_understood() -> None:
    book = five()
    book.reserve(2)
    book.reserve(3)
    book.add("abort", {"reason": "crash"}, round=3)
    book.reserve(4)
    book.add("release", {"sha256": "0" * 64}, round=4)
    verdict = verify_chain(book.lines, PINS)
    assert verdict.ok and verdict.bad_seq is None and verdict.entries == 10 and verdict.frozen is None
    assert verdict.head.hash == hashlib.sha256(book.lines[-1]).hexdigest() and verdict.head.seq == 10
    assert verdict.roots == {"records": ROOT}
    assert verdict.events == {"records": tuple((RUN, COST) for _ in range(4))}  # an abort gives nothing back
    assert verdict.head.spent == {"records": merge(COST * 4)}
    assert verdict.open_reserves == ((RUN, 2),) and verdict.unacknowledged == ((RUN, 4),)
    assert read_chain(book.lines, PINS, all_signatures=False).head() == verdict.head
    assert lines_of(b"".join(line + b"\n" for line in book.lines)) == book.lines


def bad(lines: list[bytes], pins: Pins = PINS, **more: Any) -> int | None:
    """The first bad position by the auditor's way, which the silo's way at opening must see as well."""
    verdict = verify_chain(lines, pins, **more)
    if not more:
        try:
            read_chain(lines, pins, all_signatures=False)
            quick = None
        except ChainError as error:
            quick = error.seq
        assert (quick is None) == verdict.ok, "opening a ledger sees less than verifying it"
    return verdict.bad_seq


def test_every_single_bit_of_five_entries(scaled: Callable[..., int]) -> None:
    export = b"".join(line + b"\n" for line in five().lines)
    bits, ends = len(export) * 8, [i for i, byte in enumerate(export) if byte == 10]
    chosen = random.Random(5).sample(range(bits), scaled(bits))
    for bit in chosen:
        spoilt = bytearray(export)
        spoilt[bit // 8] ^= 1 << bit % 8
        entry = 1 + sum(end < bit // 8 for end in ends)
        try:
            found = bad(lines_of(bytes(spoilt)))
        except VerificationError:
            assert bit // 8 == len(export) - 1  # the last line end
            continue
        assert found is not None and found in (entry, entry + 1), f"bit {bit}"  # a signature is seen at its own entry


def test_random_bits_of_a_thousand_entries(scaled: Callable[..., int]) -> None:
    book = Book().begin()
    for number in range(1, 334):
        book.round(number)
    lines = book.lines[:1000]
    assert verify_chain(lines, PINS).ok
    draw = random.Random(17)
    for _ in range(scaled(500)):
        entry = draw.randrange(1000)
        spoilt = bytearray(lines[entry])
        spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
        changed = [*lines[:entry], bytes(spoilt), *lines[entry + 1 :]]
        with pytest.raises(ChainError) as found:
            read_chain(changed, PINS, all_signatures=False)
        assert found.value.seq in (entry + 1, entry + 2)
        if entry % 3 == 0:  # checks every signature on the way
            assert verify_chain(changed, PINS).bad_seq == entry + 1


def test_lines_deleted_doubled_swapped_inserted_cut() -> None:
    book = five()
    lines, receipt = book.lines, countersign(book.head(), COORDINATOR)
    other = Book(replace(PINS, ledger_key=public_hex(STRANGER)), STRANGER)
    other.add("genesis", GENESIS | {"ledger_key": public_hex(STRANGER)})
    other.add("data_root", root_value(ROOT), data_root="records")
    other.round()
    for i in range(5):
        assert bad([*lines[:i], *lines[i + 1 :]], receipts=[receipt]) is not None
        assert bad([*lines[: i + 1], *lines[i:]]) == i + 2
        assert bad([*lines[:i], lines[i][:-1], *lines[i + 1 :]]) == i + 1
        assert bad([*lines[:i], other.lines[i], *lines[i + 1 :]]) == i + 1
        assert bad(lines[:i], receipts=[receipt]) == (1 if i == 0 else 5)  # cut off: the receipt tells
        for j in range(i + 1, 5):
            swapped = list(lines)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            assert bad(swapped) == i + 1
        inserted = [*lines[:i], lines[4], *lines[i:]]
        assert bad(inserted) == (6 if i == 4 else i + 1)
    assert bad(other.lines) == 1
    assert bad(lines, receipts=[receipt]) is None


def test_a_ledger_that_is_signed_anew_fails_at_the_first_entry_that_a_pin_covers() -> None:
    lines = five().lines

    def signed_anew(key: Any, from_entry: int) -> list[bytes]:
        out, prev = [], "0" * 64
        for number, line in enumerate(lines, 1):
            signed = read(line)
            if number >= from_entry:
                entry = replace(signed.entry, prev=prev)
                signed = sign(entry, {role: {"ledger": key, "dpo": OFFICER}[role] for role in signed.signatures})
            out.append(signed.line)
            prev = signed.hash
        return out

    assert signed_anew(LEDGER, 1) == lines
    for entry in range(1, 6):
        assert bad(signed_anew(STRANGER, entry)) in (entry, 5)


def test_numbers_and_identity_are_part_of_what_is_signed() -> None:
    lines = five().lines
    for change in ({"seq": 9}, {"ledger_id": "cd" * 32}, {"round": 2}, {"time": "2027-01-31T12:00:00.000Z"}):
        assert bad([*lines[:2], respelt(lines[2], lambda entry, c=change: entry.update(c)), *lines[3:]]) == 3


@pytest.mark.parametrize("pin", ["ledger_id", "ledger_key", "dpo_key"])
def test_every_pin_holds(pin: str) -> None:
    assert bad(five().lines, replace(PINS, **{pin: public_hex(STRANGER)})) == 1


RESERVE = {"events": events_value(COST), "receipts": []}
GRAMMAR: dict[str, tuple[Callable[[Book], Any], str]] = {
    "no genesis": (
        lambda b: b.__init__() or b.add("policy", policy="0" * 64),
        "first entry of a ledger is its genesis",
    ),
    "two": (lambda b: b.add("genesis", GENESIS), "first entry of a ledger is its genesis"),
    "other keys": (
        lambda b: b.__init__() or b.add("genesis", GENESIS | {"dpo_key": PINS.ledger_key}),
        "not the pinned ones",
    ),
    "reserve twice": (lambda b: b.reserve(1), "already has a reserve entry"),
    "unknown root": (lambda b: b.reserve(2, data_root="elsewhere"), "'elsewhere' is not registered"),
    "release without reserve": (lambda b: b.add("release", {"sha256": "0" * 64}, round=2), "was never reserved"),
    "release on another root": (
        lambda b: (
            b.add("data_root", root_value(ROOT), data_root="more"),
            b.add("release", {"sha256": "0" * 64}, data_root="more"),
        ),
        "was never reserved on 'more'",
    ),
    "release twice": (
        lambda b: (b.add("release", {"sha256": "0" * 64}), b.add("release", {"sha256": "1" * 64})),
        "already has a release",
    ),
    "commit without release": (lambda b: b.add("commit"), "cannot follow its reserve"),
    "abort after release": (
        lambda b: (b.add("release", {"sha256": "0" * 64}), b.add("abort", {"reason": "x"})),
        "cannot follow its release",
    ),
    "release after abort": (
        lambda b: (b.add("abort", {"reason": "x"}), b.add("release", {"sha256": "0" * 64})),
        "cannot follow its abort",
    ),
    "root twice": (lambda b: b.add("data_root", root_value(ROOT), data_root="records"), "registered already"),
    "time back": (lambda b: b.add("commit", time="2025-01-31T12:00:00.000Z"), "time is before"),
    "policy in passing": (lambda b: b.add("commit", policy="0" * 64), "another policy"),
    "after a freeze": (
        lambda b: (b.add("freeze", {"reason": "x", "heads": []}), b.add("commit")),
        "nothing follows a freeze",
    ),
    "a gap": (lambda b: b.add("commit", seq=9), "its position is 9"),
    "a gap without evidence": (lambda b: b.add("freeze", {"reason": "x", "heads": []}, seq=9), "its position is 9"),
    "own head as evidence": (
        lambda b: b.add("freeze", {"reason": "x", "heads": [b.head().value()]}),
        "no evidence of a lost line",
    ),
    "false sums": (lambda b: b.add("checkpoint", {"spent": {}}), "states other sums"),
    "restore by the silo": (
        lambda b: b.add("restore", {"reason": "x", "heads": [], "adopt": {}}, keys={"ledger": LEDGER, "dpo": STRANGER}),
        "signature of the officer's key does not hold",
    ),
    "registered by the silo": (
        lambda b: b.add("data_root", root_value(ROOT), data_root="more", keys={"ledger": LEDGER, "dpo": LEDGER}),
        "signature of the officer's key does not hold",
    ),
    "rotation without the new key": (
        lambda b: b.add(
            "key_rotate", {"which": "ledger", "key": public_hex(STRANGER)}, keys={"ledger": LEDGER, "new": PEER}
        ),
        "signature of the new key does not hold",
    ),
}


@pytest.mark.parametrize("what", GRAMMAR)
def test_what_may_not_follow_is_refused(what: str) -> None:
    step, sentence = GRAMMAR[what]
    book = Book().begin()
    book.reserve()
    with pytest.raises(ChainError, match=sentence):
        step(book)
    if book.chain.seq:
        before = book.chain.head()
        assert before == read_chain(book.lines, PINS).head(), "a refused entry left something behind"


def test_keys_hand_over() -> None:
    book = five()
    book.add("key_rotate", {"which": "ledger", "key": public_hex(PEER)}, keys={"ledger": LEDGER, "new": PEER})
    with pytest.raises(ChainError, match="signature of the ledger's key"):
        book.reserve(2)
    book.key = PEER
    book.reserve(2)
    rotate = {"which": "dpo", "key": public_hex(STRANGER)}
    book.add("key_rotate", rotate, keys={"ledger": PEER, "dpo": OFFICER, "new": STRANGER})
    assert bad(book.lines) is None  # also with the rotation as the last entry
    with pytest.raises(ChainError, match="officer's key"):
        book.add("restore", {"reason": "x", "heads": [], "adopt": {}})
    book.add("restore", {"reason": "x", "heads": [], "adopt": {}}, keys={"ledger": PEER, "dpo": STRANGER})
    assert verify_chain(book.lines, PINS).ok


def test_policy_and_checkpoint() -> None:
    book = five()
    book.add("policy", policy="ab" * 32)
    book.reserve(2)
    assert json.loads(book.lines[-1])["entry"]["policy"] == "ab" * 32
    book.add("checkpoint", {"spent": spent_value(book.chain.spent())})
    assert verify_chain(book.lines, PINS).ok


# --- heads, receipts, equivocation --------------------------------------------------------------------------


def test_a_receipt_is_checked_twice_over() -> None:
    receipt = countersign(five().head(), COORDINATOR)
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    data = receipt.to_bytes()
    for bit in random.Random(3).sample(range(len(data) * 8), 400):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            Receipt.from_bytes(bytes(spoilt))


def test_receipts_belong_to_the_ledger_and_to_its_witnesses() -> None:
    book = five()
    mine, foreign = book.head(), sign_head(replace(book.chain.head(), ledger_id="cd" * 32), LEDGER)
    forged = sign_head(replace(book.chain.head(), seq=99), STRANGER)
    pins = replace(PINS, witnesses=frozenset({public_hex(COORDINATOR)}))
    assert bad(book.lines, pins, receipts=[countersign(mine, COORDINATOR)]) is None
    assert "no witness" in str(verify_chain(book.lines, pins, receipts=[countersign(mine, PEER)]).problem)
    assert "another ledger" in str(verify_chain(book.lines, pins, receipts=[countersign(foreign, COORDINATOR)]).problem)
    assert "not signed by a key of this" in str(
        verify_chain(book.lines, pins, receipts=[countersign(forged, COORDINATOR)]).problem
    )
    with pytest.raises(ChainError, match="another ledger"):
        book.reserve(2, receipts=[countersign(foreign, COORDINATOR).value()])
    book.reserve(2, receipts=[countersign(mine, COORDINATOR).value()])
    assert bad(book.lines, pins) is None
    assert bad(book.lines, replace(PINS, witnesses=frozenset())) == 6


def clone_of(book: Book) -> Book:
    return replayed(book.lines)


def replayed(lines: list[bytes]) -> Book:
    book = Book()
    for line in lines:
        book.chain.extend(read(line))
        book.lines.append(line)
    return book


def test_two_heads_at_one_position_prove_a_clone() -> None:
    book = five()
    clone = clone_of(book)
    assert equivocation(book.head(), clone.head()) is None
    book.reserve(2)
    clone.reserve(3)
    first, second = book.head(), clone.head()
    proof = equivocation(first, second)
    assert proof is not None
    assert Equivocation.from_bytes(proof.to_bytes(), keys=[PINS.ledger_key]) == proof
    with pytest.raises(VerificationError, match="not signed by a key of the accused"):
        Equivocation.from_bytes(proof.to_bytes(), keys=[public_hex(STRANGER)])
    for pair in ((first, first), (first, five().head())):
        with pytest.raises(VerificationError, match="do not contradict"):
            Equivocation.from_bytes(Equivocation(first=pair[0], second=pair[1]).to_bytes(), keys=[PINS.ledger_key])
    with pytest.raises(VerificationError, match="not signed by the key"):
        false = replace(second, head=replace(second.head, hash="0" * 64))
        Equivocation.from_bytes(Equivocation(first=first, second=false).to_bytes(), keys=[PINS.ledger_key])
    receipts = [countersign(first, COORDINATOR), countersign(second, PEER)]
    verdict = verify_chain(book.lines, PINS, receipts=receipts)
    assert verdict.bad_seq == 6 and verdict.equivocations == (proof,)


def test_a_restore_adopts_what_was_lost_and_leaves_the_gap_in_sight() -> None:
    book = five()
    old = list(book.lines)
    for number in (2, 3):
        book.round(number)
    witnessed = book.head()
    back = replayed(old)
    receipt = countersign(witnessed, COORDINATOR)
    assert bad(back.lines, receipts=[receipt]) == 11
    back.add("freeze", {"reason": "rolled back", "heads": [witnessed.value()]}, seq=12)
    assert verify_chain(back.lines, PINS, receipts=[receipt]).frozen == "rolled back"
    less = spent_value({"records": COST})
    with pytest.raises(ChainError, match="adopts less of 'records' than position 11 had spent"):
        back.add("restore", {"reason": "backup", "heads": [], "adopt": less})
    adopt = spent_value({"records": lacking(back.chain.spent()["records"], witnessed.head.spent["records"])})
    back.add("restore", {"reason": "backup", "heads": [], "adopt": adopt})
    assert back.chain.spent() == book.chain.spent() and back.chain.frozen is None
    back.reserve(4, receipts=[receipt.value()])  # the old head is known now
    verdict = verify_chain(back.lines, PINS, receipts=[receipt])
    assert verdict.ok and verdict.gaps == ((6, 11),) and verdict.head.seq == 14
    assert verdict.events["records"][1] == ("", COST_TWICE)
    another = replayed(old)
    another.round(7)
    assert bad(back.lines, receipts=[countersign(another.head(), COORDINATOR)]) == 8  # a second lost branch is not


COST_TWICE = merge(COST * 2)


def test_a_restore_adopts_a_root_that_the_backup_does_not_know() -> None:
    book = five()
    old = list(book.lines)
    book.add("data_root", root_value(replace(ROOT, name="more")), data_root="more")
    book.reserve(2, data_root="more")
    back = replayed(old)
    adopt = spent_value({"more": COST})
    with pytest.raises(ChainError, match="adopts less of 'more'"):
        back.add("restore", {"reason": "backup", "heads": [book.head().value()], "adopt": {}}, seq=8)
    back.add("restore", {"reason": "backup", "heads": [book.head().value()], "adopt": adopt}, seq=8)
    with pytest.raises(ChainError, match="'more' is not registered"):
        back.reserve(2, data_root="more")
    back.add("data_root", root_value(replace(ROOT, name="more")), data_root="more")
    assert back.chain.spent()["more"] == COST


@given(events, events)
def test_what_is_lacking_covers(have: list[Any], wanted: list[Any]) -> None:
    missing = lacking(have, wanted)
    assert covers([*have, *missing], wanted)
    assert not missing or not covers([*have, *missing[1:]], wanted)


# --- data roots ---------------------------------------------------------------------------------------------


def test_a_registration_comes_back_and_its_order_never_moves() -> None:
    book = Book().begin()
    assert book.chain.accounts["records"].root == ROOT and ROOT.order == 3.0
    kept = replace(ROOT, order=7.0)
    book.add("data_root", root_value(replace(kept, name="more")), data_root="more")
    root = read_chain(book.lines, PINS).accounts["more"].root
    assert root is not None and root.order == 7.0  # whatever a later version would choose


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": "0"},
        {"epsilon": 8},
        {"delta": "1"},
        {"delta": "0.0002"},
        {"gate": "none"},
        {"order": "1"},
        {"order": "inf"},
        {"units_at_least": 0},
        {"units_at_least": True},
        {"fingerprint": "x"},
        {"slots": events_value(COST)},
        {"neighbouring": "replace-one"},
        {"unit": ""},
    ],
    ids=str,
)
def test_a_registration_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(VerificationError):
        Book().begin().signed("data_root", root_value(ROOT) | change, data_root="more")


def test_a_preregistered_plan_is_taken_and_nothing_else() -> None:
    """Oracle: PRIVACY vectors, row 21: (1, 0.05, 400) at 1e-5 is epsilon 6.7; the gate at a fixed order would stop it."""
    slot = Gaussian(noise_multiplier=1.0, sampling_rate=0.05, steps=400)
    root = DataRoot(name="records", unit="record", epsilon=6.8, delta=1e-5, gate="preregistered", slots=(slot,))
    part = (replace(slot, steps=20),)
    assert root.fits((), repeat(part, 20)) and root.rounds_that_fit((), part, 100) == 20
    assert not root.fits(repeat(part, 20), part)
    assert not root.fits((), (replace(slot, noise_multiplier=2.0),)), "less loss, but not in the plan"
    assert root.spent((slot,)) == pytest.approx(6.7, rel=2e-3)
    assert not DataRoot(name="records", unit="record", epsilon=6.8, delta=1e-5).fits((), (slot,))
    with pytest.raises(SettingError, match="the slots of 'records' cost epsilon"):
        replace(root, epsilon=6.6)
    with pytest.raises(SettingError, match="cost epsilon 0"):
        replace(root, slots=())
    book = Book()
    book.add("genesis", GENESIS)
    book.add("data_root", root_value(root), data_root="records")
    assert read_chain(book.lines, PINS).accounts["records"].root == root


def test_the_head_of_a_ledger_is_read_as_written() -> None:
    head = five().head()
    assert SignedHead.from_bytes(head.to_bytes()) == head and head.head.spent == {"records": COST}
    assert TIME in five().lines[0].decode()
