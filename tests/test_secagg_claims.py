"""Joining a run and asking for an upload: every check of a silo from E0.2 to A.9, and that one vector is masked once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secagg import CONFIG, MODEL, Busy, Silo, World, drawn, made, refusal

from strategies.errors import ProtocolError
from strategies.secagg.encoding import enc, take
from strategies.secagg.errors import Code, SecaggError
from strategies.secagg.keys import new_secret, public_of
from strategies.secagg.messages import Entry, Upload, manifest_statement
from strategies.secagg.ring import Segment
from strategies.secagg.rows import EXACT, PEERS, RUN, SECRET, Peers, State, SumRow, closed_run, sum_key
from strategies.secagg.setup import Floors
from strategies.secagg.silo import SiloSession


@pytest.fixture
def world() -> World:
    return made(5, colluding=1).joined()


def first(world: World) -> Silo:
    return world.silos["silo-000"]


def claims(world: World, *, silo: str = "silo-000", key: Ed25519PrivateKey | None = None, **changes: Any) -> Code:
    """The code with which a silo refuses a request for sum 1 with these changes."""
    request = world.signed(world.asked(**changes), key)
    return refusal(world.silos[silo], lambda: world.silos[silo].claim(request))


# --- joining ------------------------------------------------------------------------------------------------


def invitation(world: World, key: Ed25519PrivateKey | None = None, **changes: Any) -> bytes:
    setup = replace(world.setup, **changes)
    return enc(setup.to_bytes(), (key or world.coordinator).sign(manifest_statement(setup.digest())))


def test_a_silo_joins_and_answers_the_same_again() -> None:
    """F18: the same set-up gets the stored reply; the key is drawn once."""
    world = made(3)
    silo = first(world)
    reply = silo.join(world.server.invitation())
    rows = dict(silo.store.rows)
    assert set(rows) == {RUN, SECRET}
    assert silo.join(world.server.invitation()) == reply and silo.store.rows == rows
    entry = Entry.read(reply)
    assert entry.key == public_of(rows[SECRET]) and entry.silo == silo.name
    silo.key.public_key().verify(entry.signature, entry.statement(world.setup.digest()))


def test_an_invitation_of_another_hand_is_refused() -> None:
    """N35, as to E0."""
    world = made(3)
    silo = first(world)
    text, signature = take(world.server.invitation())
    for wrong in (invitation(world, Ed25519PrivateKey.generate()), enc(text, b""), enc(text, silo.key.sign(signature))):
        assert refusal(silo, lambda wrong=wrong: silo.join(wrong)) is Code.SIGNATURE
    for wrong in (b"", enc(text), enc(text, signature, b"")):
        assert refusal(silo, lambda wrong=wrong: silo.join(wrong)) is Code.MALFORMED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"max_colluding": 0}, Code.FLOOR),
        ({"least": 3}, Code.FLOOR),
        ({"sums": 100}, Code.FLOOR),
        ({"max_colluding": 2}, Code.MANIFEST),
        ({"least": 5}, Code.MANIFEST),
        ({"sums": 49}, Code.MANIFEST),
        ({"most_dropped": 1}, Code.MANIFEST),
        ({"code": "0.2.0"}, Code.MANIFEST),
        ({"plan": "another"}, Code.MANIFEST),
        ({"roster": "b" * 64}, Code.MANIFEST),
        ({"coordinator": "0" * 64}, Code.MANIFEST),
        ({"silos": 129}, Code.SIZE),
    ],
)
def test_a_set_up_that_is_not_the_agreed_one_is_refused(changes: dict[str, Any], code: Code) -> None:
    """N6: below the silo's floors, and anything else than what it derives itself."""
    world = made(5, colluding=1, least=4, floors=Floors(least=4, max_colluding=1, most_sums=60))
    silo = first(world)
    assert refusal(silo, lambda: silo.join(invitation(world, **changes))) is code


def test_a_ring_that_is_not_the_agreed_one_is_refused() -> None:
    """N6 and N7: another scale or bound; a bound at which the sum of all could wrap."""
    world = made(5)
    silo = first(world)
    ring = world.setup.kinds["train"]
    coarse = replace(ring, segments=(Segment(name="update", length=8, scale=1.0), ring.segments[1]))
    for wrong, code in (
        (coarse, Code.MANIFEST),
        (replace(ring, bound=ring.bound - 1), Code.MANIFEST),
        (replace(ring, protection="none"), Code.MANIFEST),
        (replace(ring, bound=2**31 // 4), Code.ROOM),
    ):
        changed = invitation(world, kinds={**world.setup.kinds, "train": wrong})
        assert refusal(silo, lambda changed=changed: silo.join(changed)) is code


def test_a_silo_outside_the_pinned_roster_does_not_join() -> None:
    world = made(3)
    silo = first(world)
    for members in (
        {name: key for name, key in silo.members.items() if name != silo.name},
        {name: key for name, key in silo.members.items() if name != "silo-002"},
        {**silo.members, "stranger": bytes(32)},
        {("stranger" if name == silo.name else name): key for name, key in silo.members.items()},
    ):
        other = Silo(name=silo.name, key=silo.key, members=members, expected=silo.expected, floors=silo.floors)
        assert refusal(other, lambda other=other: other.join(world.server.invitation())) is Code.MANIFEST


def test_a_run_is_used_once(world: World) -> None:
    """N5: another set-up under a known run, and any set-up once the run is closed."""
    silo = first(world)
    silo.store.apply(silo.session().leave())
    assert closed_run(silo.store.read(RUN)) and not closed_run(None)
    assert set(silo.store.rows) == {RUN}
    assert refusal(silo, lambda: silo.join(world.server.invitation())) is Code.RUN_USED
    assert silo.session().leave() == ()

    other = made(5, colluding=1)
    known = other.silos["silo-001"]
    known.join(other.server.invitation())
    known.expected = replace(other.setup, sums=49)
    assert refusal(known, lambda: known.join(invitation(other, sums=49))) is Code.RUN_USED


# --- the directory of keys ----------------------------------------------------------------------------------


def altered(world: World, silo: str, **changes: Any) -> list[Entry]:
    return [replace(entry, **changes) if entry.silo == silo else entry for entry in world.entries]


def signed_entry(world: World, silo: str, key: bytes, *, digest: bytes | None = None, of: str | None = None) -> Entry:
    entry = Entry(silo=of or silo, key=key, signature=b"")
    signature = world.silos[silo].key.sign(entry.statement(digest or world.setup.digest()))
    return Entry(silo=silo, key=key, signature=signature)


def test_a_key_that_is_not_signed_for_this_run_and_silo_is_refused(world: World) -> None:
    """N1, N2: signed for another set-up or name, unsigned, not of the roster."""
    key = public_of(new_secret())
    stranger = Ed25519PrivateKey.generate()
    unknown = Entry(silo="zzz", key=key, signature=b"")
    wrong = [
        signed_entry(world, "silo-001", key, digest=b"\0" * 32),
        signed_entry(world, "silo-001", key, of="silo-002"),
        Entry(silo="silo-001", key=key, signature=b""),
        replace(signed_entry(world, "silo-001", key), key=public_of(new_secret())),
    ]
    for entry in wrong:
        entries = [entry if one.silo == entry.silo else one for one in world.entries]
        assert claims(world, keys=entries) is Code.ENTRY
    unknown = replace(unknown, signature=stranger.sign(unknown.statement(world.setup.digest())))
    assert claims(world, keys=[*world.entries, unknown]) is Code.ENTRY


def test_a_directory_has_each_silo_and_each_key_once(world: World) -> None:
    """N2: duplicates of a silo or of a key, another order, too few."""
    entries = list(world.entries)
    assert claims(world, keys=[*entries, entries[-1]], cohort=world.server.seated) is Code.DIRECTORY
    assert claims(world, keys=entries[::-1], cohort=world.server.seated) is Code.DIRECTORY
    twin = signed_entry(world, "silo-001", entries[2].key)
    assert claims(world, keys=[twin if one.silo == "silo-001" else one for one in entries]) is Code.ENTRY
    assert claims(world, keys=entries[:2]) is Code.COHORT


def test_a_key_of_low_order_is_named(world: World) -> None:
    """N41."""
    entries = [signed_entry(world, "silo-003", bytes(32)) if e.silo == "silo-003" else e for e in world.entries]
    silo = first(world)
    with pytest.raises(SecaggError) as caught:
        silo.claim(world.signed(world.asked(entries)))
    assert (caught.value.code, caught.value.silos) == (Code.LOW_ORDER, ("silo-003",))


def test_the_own_key_must_be_the_own_key(world: World) -> None:
    """N4: another key under the own name, even with an own signature, and no entry at all."""
    other = signed_entry(world, "silo-000", public_of(new_secret()))
    assert claims(world, keys=[other, *world.entries[1:]]) is Code.OWN_KEY
    assert claims(world, keys=world.entries[1:]) is Code.OWN_KEY


def test_a_directory_that_is_missing_or_not_the_cited_one_is_refused(world: World) -> None:
    assert claims(world, entries=b"") is Code.DIRECTORY
    assert claims(world, directory=b"\0" * 32) is Code.DIRECTORY
    assert claims(world, entries=b"\1") is Code.MALFORMED
    assert claims(world, entries=enc(b"\1")) is Code.MALFORMED


def test_the_directory_is_pinned_by_the_first_sum(world: World) -> None:
    """N3: a directory changed at t = 2 is refused, even one that all have signed; the pinned one need not come again."""
    silo = first(world)
    silo.upload(world.signed(world.asked()))
    for entries in (world.entries[:4], altered(world, "silo-004", key=public_of(new_secret()))):
        assert claims(world, keys=entries, t=2) is Code.DIRECTORY
    silo.upload(world.signed(world.asked(t=2, entries=b"")))


def test_a_silo_that_has_not_joined_has_no_key() -> None:
    world = made(3).joined()
    request = world.signed(world.asked())
    fresh = Silo(
        name="silo-000",
        key=first(world).key,
        members=first(world).members,
        expected=world.setup,
        floors=Floors(),
    )
    assert refusal(fresh, lambda: fresh.claim(request)) is Code.NOT_JOINED
    first(world).store.apply(first(world).session().leave())
    assert refusal(first(world), lambda: first(world).claim(request)) is Code.NOT_JOINED


# --- the request --------------------------------------------------------------------------------------------


def test_an_instruction_of_another_hand_is_refused(world: World) -> None:
    """N35, as to A: another key, no signature, one bit of any field."""
    silo = first(world)
    assert claims(world, key=silo.key) is Code.SIGNATURE
    good = world.asked()
    signed = world.signed(good)
    for wrong in (
        good.to_bytes(),
        world.signed(good).replace(b"train", b"trbin"),
        signed.replace(MODEL, CONFIG),
        signed.replace(good.directory, bytes(32), 1),
    ):
        assert refusal(silo, lambda wrong=wrong: silo.claim(wrong)) is Code.SIGNATURE
    for wrong in (b"", signed[:-1], signed + b"\0"):
        assert refusal(silo, lambda wrong=wrong: silo.claim(wrong)) is Code.MALFORMED


def test_a_request_for_another_run_is_refused() -> None:
    """The signature covers H(M): a request of one run is nothing in the other."""
    one, other = made(3).joined(), made(3).joined()
    other.coordinator = one.coordinator
    assert refusal(first(one), lambda: first(one).claim(other.signed(other.asked()))) is Code.SIGNATURE


def test_the_model_that_came_is_the_one_that_was_signed(world: World) -> None:
    silo, request = first(world), world.signed(world.asked())
    assert refusal(silo, lambda: silo.claim(request, model=CONFIG)) is Code.MODEL
    assert refusal(silo, lambda: silo.claim(request, config=MODEL)) is Code.CONFIG
    assert claims(world, model=b"\1") is Code.MALFORMED


@pytest.mark.parametrize(
    ("cohort", "code"),
    [
        (("silo-000", "silo-001"), Code.COHORT),  # n_min - 1
        (("silo-000",), Code.COHORT),
        ((), Code.COHORT),
        (("silo-001", "silo-000", "silo-002"), Code.MALFORMED),  # unsorted
        (("silo-000", "silo-000", "silo-001", "silo-002"), Code.MALFORMED),  # a duplicate
        (("silo-001", "silo-002", "silo-003"), Code.COHORT),  # without self
        (("silo-000", "silo-001", "stranger"), Code.COHORT),
    ],
)
def test_a_cohort_that_is_none_is_refused(world: World, cohort: tuple[str, ...], code: Code) -> None:
    """N8."""
    assert claims(world, cohort=cohort) is code


def test_a_cohort_must_be_beyond_what_may_collude() -> None:
    """tau <= n, at a silo whose set-up would let n_min be too low."""
    world = made(5, colluding=1).joined()
    setup = replace(world.setup, least=3, max_colluding=3)
    first(world).expected = world.setup = setup
    entries = [signed_entry(world, entry.silo, entry.key) for entry in world.entries]
    assert claims(world, keys=entries, cohort=("silo-000", "silo-001", "silo-002")) is Code.THRESHOLD


def test_a_kind_must_be_in_the_set_up(world: World) -> None:
    assert claims(world, kind="other") is Code.KIND


@pytest.mark.parametrize(
    "changes",
    [
        {"model": CONFIG},
        {"config": MODEL},
        {"cohort": ("silo-000", "silo-001", "silo-002", "silo-003")},
        {"kind": "evaluate"},
    ],
)
def test_a_number_stands_for_one_sum(world: World, changes: dict[str, Any]) -> None:
    """N9, N42: t again with another model, config, cohort or kind, before and after masking."""
    silo = first(world)
    claim = silo.claim(world.signed(world.asked()))
    changed = world.signed(world.asked(**changes))
    digests = {"model": changes.get("model", MODEL), "config": changes.get("config", CONFIG)}
    assert refusal(silo, lambda: silo.claim(changed, **digests)) is Code.OTHER_SUM
    silo.masked(claim)
    assert refusal(silo, lambda: silo.claim(changed, **digests)) is Code.OTHER_SUM
    assert silo.trained == 1 and silo.charged == [1]


@pytest.mark.parametrize("t", [0, 1, 2, 51, 2**63, 2**64 - 1])
def test_numbers_only_rise_within_the_plan(world: World, t: int) -> None:
    """N10: below the last one, T + 1, 2^64 - 1."""
    silo = first(world)
    silo.upload(world.signed(world.asked(t=3)))
    assert claims(world, t=t) is Code.ORDER
    silo.upload(world.signed(world.asked(t=50)))


def test_a_lost_reply_is_sent_again(world: World) -> None:
    """N11: byte-equal, trained and charged once; in every later state of the sum, until it is over."""
    silo, request = first(world), world.signed(world.asked())
    sent = silo.upload(request)
    rows = dict(silo.store.rows)
    assert silo.upload(request) == sent and silo.store.rows == rows
    assert (silo.trained, silo.charged) == (1, [1])
    claim = silo.session().claim(request, model=MODEL, config=CONFIG)
    assert claim.resend and claim.changes == () and claim.keys == {}
    assert claim.upload == hashlib.sha256(sent).digest()
    silo.upload(world.signed(world.asked(t=2)))
    assert refusal(silo, lambda: silo.claim(request)) is Code.OVER


def test_a_sum_that_was_begun_and_lost_is_burnt(world: World) -> None:
    """N12, in memory: a kill between CLAIM and MASKED; the charge stays, nothing is masked, the next number works."""
    silo, request = first(world), world.signed(world.asked())
    silo.claim(request)
    assert refusal(silo, lambda: silo.claim(request)) is Code.BURNT
    assert (silo.trained, silo.charged) == (0, [1])
    silo.upload(world.signed(world.asked(t=2)))
    assert silo.charged == [1, 2]


def test_twenty_copies_of_a_request_give_one_upload(world: World) -> None:
    """N13, in memory: all read the rows before any writes them."""
    silo, request = first(world), world.signed(world.asked())
    claimed = [silo.session().claim(request, model=MODEL, config=CONFIG) for _ in range(20)]
    applied = 0
    for claim in claimed:
        try:
            silo.store.apply(claim.changes)
            applied += 1
        except Busy:
            continue
        silo.masked(claim)
    assert applied == 1 and silo.trained == 1
    assert silo.upload(request) == silo.stored[1]


def test_twenty_threads_give_one_upload(world: World) -> None:
    """N13, with threads and a lock around the rows, as a ledger has."""
    silo, request = first(world), world.signed(world.asked())
    lock, sent, gate = threading.Lock(), [], threading.Barrier(20)
    apply = silo.store.apply

    def locked(changes: Any) -> None:
        with lock:
            apply(changes)

    silo.store.apply = locked  # type: ignore[method-assign]

    def one() -> None:
        gate.wait()
        with suppress(Busy, SecaggError, KeyError):
            sent.append(silo.upload(request))

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert silo.trained == 1 and set(sent) == {silo.stored[1]}


# --- sums without noise -------------------------------------------------------------------------------------


def test_sums_without_noise_keep_their_cohort(world: World) -> None:
    """N24: the second sum without noise over another set is refused, of whichever kind; sums with noise are free."""
    silo = first(world)
    silo.upload(world.signed(world.asked(kind="evaluate")))
    assert silo.store.rows[EXACT] == enc(*world.server.seated)
    four = world.server.seated[:4]
    assert claims(world, kind="evaluate", t=2, cohort=four) is Code.EXACT_COHORT
    silo.upload(world.signed(world.asked(t=2, cohort=four)))
    silo.upload(world.signed(world.asked(t=3, kind="evaluate")))


def test_only_a_sum_without_noise_fixes_the_cohort(world: World) -> None:
    silo = first(world)
    silo.upload(world.signed(world.asked(cohort=world.server.seated[:4])))
    assert EXACT not in silo.store.rows
    silo.upload(world.signed(world.asked(t=2, kind="evaluate")))


# --- what is kept, and what is erased -----------------------------------------------------------------------


def test_a_claim_moves_all_rows_together(world: World) -> None:
    """9: the number, the directory, the stepped keys and the row; the private key is gone."""
    silo = first(world)
    claim = silo.session().claim(world.signed(world.asked(t=2)), model=MODEL, config=CONFIG)
    assert {change.key for change in claim.changes} == {SECRET, PEERS, sum_key(2)}
    silo.store.apply(claim.changes)
    assert SECRET not in silo.store.rows
    assert Peers.read(silo.store.rows[PEERS]).last == 2
    assert SumRow.read(silo.store.rows[sum_key(2)]).state is State.CLAIMED


def test_keys_of_earlier_sums_are_erased(world: World) -> None:
    """N40, in memory: after t + 1 is claimed no key and no share of t stands in any row."""
    silo = first(world)
    silo.upload(world.signed(world.asked()))
    old = Peers.read(silo.store.rows[PEERS]).keys
    share = SumRow.read(silo.store.rows[sum_key(1)]).share
    assert len(share) == 32
    silo.claim(world.signed(world.asked(t=2)))
    held = b"".join(silo.store.rows.values())
    assert share not in held and not any(key in held for key in old.values())
    assert SumRow.read(silo.store.rows[sum_key(1)]).state is State.CLOSED


def test_a_claim_is_used_once(world: World) -> None:
    """10: never masked twice; not before its rows are durable; not after they have changed."""
    silo = first(world)
    vectors = drawn(world.setup.kinds["train"])
    request = world.signed(world.asked())
    early = silo.session().claim(request, model=MODEL, config=CONFIG)
    assert refusal(silo, lambda: silo.session().mask(early, vectors)) is Code.CLAIM
    claim = silo.claim(request)
    silo.session().mask(claim, vectors)  # the upload is lost before it is stored
    assert claim.keys == {}
    assert refusal(silo, lambda: silo.session().mask(claim, vectors)) is Code.CLAIM
    second = silo.claim(world.signed(world.asked(t=2)))
    silo.masked(second, vectors)
    assert refusal(silo, lambda: silo.session().mask(second, vectors)) is Code.CLAIM
    resent = silo.claim(world.signed(world.asked(t=2)))
    assert refusal(silo, lambda: silo.session().mask(resent, vectors)) is Code.CLAIM


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_burns_the_claim(world: World, bad: float) -> None:
    """N37, as to refusal: nothing is sent and the keys are gone."""
    silo = first(world)
    update, loss = drawn(world.setup.kinds["train"])
    update[3] = bad
    claim = silo.claim(world.signed(world.asked()))
    keys = list(claim.keys.values())
    with pytest.raises(ProtocolError):
        silo.session().mask(claim, (update, loss))
    assert claim.keys == {} and all(not any(key) for key in keys)
    assert refusal(silo, lambda: silo.claim(world.signed(world.asked()))) is Code.BURNT


@pytest.mark.parametrize("change", [lambda v: v[:1], lambda v: (*v, v[0]), lambda v: (v[0][1:], v[1])])
def test_vectors_of_another_form_are_refused(world: World, change: Callable[[Any], Any]) -> None:
    silo = first(world)
    claim = silo.claim(world.signed(world.asked()))
    with pytest.raises(ProtocolError):
        silo.session().mask(claim, change(drawn(world.setup.kinds["train"])))


def test_what_was_clamped_is_told_to_the_silo_alone(world: World) -> None:
    silo, told = first(world), []
    update, loss = drawn(world.setup.kinds["train"])
    update[:3] = 1e6
    claim = silo.claim(world.signed(world.asked()))
    silo.session().mask(claim, (update, loss), on_clamp=lambda name, count: told.append((name, count)))
    assert told == [("update", 3)]


def test_an_upload_is_its_vector_and_what_is_signed(world: World) -> None:
    """13: the vector's words first, then names, hashes, boxes of constant length, commitments and the signature."""
    silo = first(world)
    sent = silo.upload(world.signed(world.asked()))
    ring = world.setup.kinds["train"]
    upload = Upload.read(sent[ring.size_bytes :])
    silo.key.public_key().verify(upload.signature, upload.statement())
    assert [(len(b), len(e)) for b, e in upload.boxes] == [(48, 4 * 32 + 16)] * 4
    assert len({upload.own, *upload.pairs}) == 5
    assert len(sent) - ring.size_bytes < 200 * 5 + 400


def test_sessions_need_no_memory(world: World) -> None:
    """Every call of this file has made a new session; one session over all of it gives the same rows."""
    silo = first(world)
    session: SiloSession = silo.session()
    silo.session = lambda: session  # type: ignore[method-assign]
    silo.upload(world.signed(world.asked()))
    silo.upload(world.signed(world.asked(t=2)))
    assert silo.trained == 2
