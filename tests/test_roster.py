"""Laws of the roster file: it only grows, one key signs it, and nobody takes another's place.

Oracle: cryptography's own verification of each signature, and every single-bit flip of a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from strategies.errors import VerificationError
from strategies.proof.chain import ChainError
from strategies.proof.entries import public_hex
from strategies.roster import Member, Roster, new_roster, read_roster

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
TIME = "2026-01-31T12:00:00.000Z"


def member(name: str, number: int) -> Member:
    digits = f"{number:064x}"
    return Member(
        silo=name,
        ledger_key="a" + digits[1:],
        dpo_key="b" + digits[1:],
        ledger_id="c" + digits[1:],
        transport_key="04" + f"{number:0192x}",
        first_key="a" + digits[1:],
    )


NORTH, SOUTH = member("north", 1), member("south", 2)


@pytest.fixture
def roster() -> Roster:
    empty = new_roster("consortium", KEY, TIME)
    return empty.add(NORTH, KEY, TIME).add(SOUTH, KEY, TIME).remove("north", "left", KEY, TIME)


def test_a_roster_is_read_as_it_was_written(roster: Roster) -> None:
    again = read_roster(roster.text, coordinator=public_hex(KEY))
    assert again == roster and again.seq == 4
    assert again.members == {"south": SOUTH} and again.past == (NORTH,)
    assert again.witnesses() == {public_hex(KEY), SOUTH.ledger_key}
    assert again.witnesses(ever=True) == {public_hex(KEY), SOUTH.ledger_key, NORTH.ledger_key}
    assert SOUTH.pins().ledger_id == SOUTH.ledger_id


def test_every_line_is_signed_and_names_the_line_before(roster: Roster) -> None:
    public, prev = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex(KEY))), "0" * 64
    for line in roster.text.splitlines():
        value = json.loads(line)
        body = json.dumps(value["entry"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        public.verify(bytes.fromhex(value["signature"]), b"fedsilo/roster/1\0" + body)
        assert value["entry"]["prev"] == prev
        prev = hashlib.sha256(line).hexdigest()
    assert prev == roster.hash


def test_every_single_bit_counts(roster: Roster, scaled: Callable[..., int]) -> None:
    bits = len(roster.text) * 8
    step = max(1, bits // scaled(bits))
    for bit in range(0, bits, step):
        spoilt = bytearray(roster.text)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            read_roster(bytes(spoilt), coordinator=public_hex(KEY))


def test_a_line_that_is_missing_or_moved_is_named(roster: Roster) -> None:
    lines = roster.text.splitlines(keepends=True)
    for changed, bad in (
        (lines[:1] + lines[2:], 2),
        (lines[:2] + lines[1:], 3),
        ([lines[0], lines[2], lines[1], lines[3]], 2),
        (lines[1:], 1),
        ([], 1),
    ):
        with pytest.raises(ChainError) as found:
            read_roster(b"".join(changed))
        assert found.value.seq == bad
    with pytest.raises(VerificationError, match="not complete"):
        read_roster(roster.text[:-1])


def test_an_old_copy_and_a_fork_are_refused(roster: Roster) -> None:
    older = read_roster(b"".join(roster.text.splitlines(keepends=True)[:3]))
    with pytest.raises(VerificationError, match="not a continuation"):
        read_roster(older.text, at_least=roster.hash)
    fork = older.remove("south", "left", KEY, TIME)
    with pytest.raises(VerificationError, match="not a continuation"):
        read_roster(fork.text, at_least=roster.hash)
    assert read_roster(roster.text, at_least=older.hash) == roster


def test_only_the_coordinator_signs(roster: Roster) -> None:
    with pytest.raises(ChainError, match="not signed by the coordinator"):
        roster.add(NORTH, OTHER, TIME)
    forged = new_roster("consortium", OTHER, TIME)
    with pytest.raises(VerificationError, match="another coordinator"):
        read_roster(forged.text, coordinator=public_hex(KEY))


@pytest.mark.parametrize(
    ("newcomer", "sentence"),
    [
        (SOUTH, "is in the roster already"),
        (NORTH, "the ledger_id of 'north' has been that of 'north'"),
        (replace(member("east", 3), ledger_id=SOUTH.ledger_id), "has been that of 'south'"),
        (replace(member("east", 3), ledger_key=NORTH.ledger_key), "has been that of 'north'"),
        (replace(member("east", 3), transport_key=SOUTH.transport_key), "has been that of 'south'"),
        (replace(member("east", 3), dpo_key=member("east", 3).ledger_key), "one key in two places"),
        (replace(member("east", 3), ledger_key=public_hex(KEY)), "one key in two places"),
        (member("ea st", 3), "a value that it cannot have"),
        (replace(member("east", 3), transport_key="04"), "a value that it cannot have"),
        (replace(member("east", 3), dpo_key="AB" * 32), "a value that it cannot have"),
    ],
)
def test_nobody_takes_anothers_place(newcomer: Member, sentence: str, roster: Roster) -> None:
    with pytest.raises(ChainError, match=sentence):
        roster.add(newcomer, KEY, TIME)


def test_who_is_not_there_cannot_leave(roster: Roster) -> None:
    with pytest.raises(ChainError, match="'west' is not in the roster"):
        roster.remove("west", "left", KEY, TIME)
    assert "north" not in roster.members


def test_an_unknown_kind_is_refused(roster: Roster) -> None:
    with pytest.raises(ChainError, match="'promote' of version 1 is not known"):
        roster._append("promote", {"silo": "south"}, KEY, TIME)
