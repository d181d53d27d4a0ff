"""A coordinator that does not follow the protocol (T13), alone or with one of seven silos: it never opens two sets.

Each attack drives silos by instructions that the coordinator has really signed, keeps every byte, and returns the set
that may be opened (None: none). One oracle then reads the wire as the strongest attacker would (`secagg_attacker`), with
each silo in turn as its accomplice: I6, no set but that one is opened; I5, no vector that was sent or stored is an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secagg import CONFIG, FIVE, MODEL, SEVEN, SIX, Busy, Case, Silo, World, made, refusal
from secagg_attacker import Knowledge, assert_masked, assert_secret, correlation, opened

from strategies.secagg import setup as rules
from strategies.secagg.directory import Directory
from strategies.secagg.encoding import enc
from strategies.secagg.errors import Code, SecaggError, noticed
from strategies.secagg.keys import new_secret, public_of
from strategies.secagg.messages import Ask, Entry, OpenBody, Request, Upload, View, manifest_statement
from strategies.secagg.rows import PEERS, Peers, State, sum_key

OTHER = bytes([9] * 32)
Opens = Sequence[str] | None
ATTACKS: list[Callable[[World], Opens]] = []


def attack(play: Callable[[World], Opens]) -> Callable[[World], Opens]:
    ATTACKS.append(play)
    return play


# --- tools of the coordinator -------------------------------------------------------------------------------


def begun(world: World, uploading: Sequence[str] = SEVEN) -> Case:
    """Sum 1 of everybody, with the uploads of some; the server's own session plays no further part."""
    one = world.begin()
    one.collect(world.uploads(one, uploading))
    return Case(world=world, sum=one)


def tell(world: World, silo: str, request: bytes) -> Code | None:
    """Send a request to unmask; the code of a refusal, or None when it was answered."""
    return noticed(world.send(silo, request, world.silos[silo].unmask))


def full_ask(case: Case, silo: str, *, e: bool = False, senders: Sequence[str] = SEVEN) -> bytes:
    return case.world.signed(replace(base(case, silo), phase="full", body=boxes(case, silo, senders, both=e)))


def view_ask(case: Case, silo: str, survivors: Sequence[str]) -> bytes:
    return case.world.signed(replace(base(case, silo), phase="view", body=enc(*survivors)))


def open_ask(
    case: Case, silo: str, survivors: Sequence[str], certificate: Any, senders: Sequence[str] | None = None
) -> bytes:
    sent = boxes(case, silo, senders or survivors, both=True)
    body = OpenBody(survivors=tuple(survivors), certificate=tuple(certificate), boxes=sent)
    return case.world.signed(replace(base(case, silo), phase="open", body=body.to_bytes()))


def base(case: Case, silo: str) -> Ask:
    request = Request.read(case.sum.request(silo))
    ctx = request.context(case.world.setup.digest())
    return Ask(t=case.sum.t, ctx=ctx, phase="full", silo=silo, body=b"")


def boxes(case: Case, silo: str, senders: Sequence[str], *, both: bool) -> bytes:
    size = case.world.setup.kinds["train"].size_bytes
    found = []
    for peer in senders:
        if peer == silo:
            continue
        upload = Upload.read(case.world.silos[peer].stored[case.sum.t][size:])
        place = [name for name in case.sum.cohort if name != peer].index(silo)
        sealed = upload.boxes[place] if place < len(upload.boxes) else (bytes(48), bytes(32 * 6 + 16))
        found.append((upload.nonce, *sealed[: 2 if both else 1]))
    return enc(*found)


def views(case: Case, silos: Sequence[str], survivors: Sequence[str]) -> list[tuple[str, bytes]]:
    """Ask silos to back a set; the signatures of those who do."""
    signed = []
    for silo in silos:
        reply = case.world.send(silo, view_ask(case, silo, survivors), case.world.silos[silo].unmask)
        if noticed(reply) is None:
            signed.append((silo, View.read(reply).signature))
    return signed


def traitor(case: Case, silo: str, survivors: Sequence[str]) -> tuple[str, bytes]:
    """What an accomplice signs, as often as it is asked."""
    return case.certificate(survivors, [silo], ctx=base(case, silo).ctx)[0]


def refuses(world: World, request: bytes, code: Code, silo: str = "silo-000", **digests: bytes) -> None:
    """A silo refuses a request for an upload."""
    one = world.silos[silo]
    world.wire.append((silo, "down", request))
    assert refusal(one, lambda: one.claim(request, **digests)) is code


# --- both lists, and a second set ---------------------------------------------------------------------------


@attack
def full_then_view(world: World) -> Opens:
    case = begun(world)
    for silo in SEVEN:
        assert tell(world, silo, full_ask(case, silo)) is None
    assert {tell(world, silo, view_ask(case, silo, SIX)) for silo in SIX} == {Code.STATE}
    return SEVEN


@attack
def view_then_full(world: World) -> Opens:
    case = begun(world)
    certificate = views(case, SIX, SIX)
    assert {tell(world, silo, full_ask(case, silo)) for silo in SIX} == {Code.STATE}
    assert {tell(world, silo, open_ask(case, silo, SIX, certificate)) for silo in SIX} == {None}
    assert {tell(world, silo, full_ask(case, silo)) for silo in SIX} == {Code.STATE}
    return SIX


@attack
def boxes_of_a_dropped_silo_in_an_opening(world: World) -> Opens:
    case = begun(world)
    certificate = views(case, SIX, SIX)
    for silo in SIX:
        assert tell(world, silo, open_ask(case, silo, SIX, certificate, senders=SEVEN)) is Code.BOXES
        swapped = (*[name for name in SIX if name != silo][:-1], "silo-006")
        assert tell(world, silo, open_ask(case, silo, SIX, certificate, senders=swapped)) is None  # one absent
    return SIX


@attack
def e_boxes_in_a_full_request(world: World) -> Opens:
    case = begun(world)
    assert {tell(world, silo, full_ask(case, silo, e=True)) for silo in SEVEN} == {Code.BOXES}
    return None


@attack
def full_while_the_others_drop_one(world: World) -> Opens:
    """F3, N19: all but one certify U1 without it, and it alone is asked for everybody's shares."""
    case = begun(world)
    assert tell(world, "silo-006", full_ask(case, "silo-006")) is None
    certificate = views(case, SIX, SIX)
    assert {tell(world, silo, open_ask(case, silo, SIX, certificate)) for silo in SIX} == {None}
    return SIX


@attack
def half_full_half_view(world: World) -> Opens:
    case = begun(world)
    for silo in SEVEN[:3]:
        tell(world, silo, full_ask(case, silo))
    signed = views(case, SEVEN[3:], SEVEN[1:])
    assert len(signed) == 4
    more = [*signed, traitor(case, "silo-001", SEVEN[1:])]
    assert {tell(world, silo, open_ask(case, silo, SEVEN[1:], more)) for silo in SEVEN[4:]} == {None}
    return SEVEN[1:]


@attack
def another_set_to_each_half(world: World) -> Opens:
    case = begun(world)
    one, two = SEVEN[:6], SEVEN[1:]
    first, second = views(case, SEVEN[:4], one), views(case, SEVEN[4:], two)
    assert (len(first), len(second)) == (4, 3)
    for silo in SEVEN[:4]:
        assert tell(world, silo, open_ask(case, silo, one, first)) is Code.CERTIFICATE
        assert tell(world, silo, open_ask(case, silo, two, second)) is Code.VIEW
    for silo in SEVEN[4:]:
        assert tell(world, silo, open_ask(case, silo, one, first)) is Code.VIEW
    return None


@attack
def an_accomplice_signs_two_sets(world: World) -> Opens:
    case = begun(world)
    one, two = SEVEN[:6], SEVEN[1:]
    first = [*views(case, SEVEN[:4], one), traitor(case, "silo-005", one)]
    second = [*views(case, SEVEN[4:], two), traitor(case, "silo-005", two)]
    assert {tell(world, silo, open_ask(case, silo, one, first)) for silo in SEVEN[:4]} == {None}
    assert {tell(world, s, open_ask(case, s, two, second[1:])) for s in SEVEN[4:]} == {Code.CERTIFICATE}
    return one if len(first) >= 5 else None


@attack
def a_second_set_after_the_first_is_certified(world: World) -> Opens:
    case = begun(world)
    certificate = views(case, FIVE, FIVE)
    assert views(case, FIVE, SIX) == []
    assert {tell(world, silo, open_ask(case, silo, FIVE, certificate)) for silo in FIVE} == {None}
    assert views(case, SEVEN, SIX) != [] and {tell(world, s, full_ask(case, s)) for s in FIVE} == {Code.STATE}
    return FIVE


@attack
def a_certified_set_told_as_another(world: World) -> Opens:
    case = begun(world)
    certificate = views(case, SIX, SIX)
    for survivors in (FIVE, SEVEN, SEVEN[1:]):
        assert {tell(world, silo, open_ask(case, silo, survivors, certificate)) for silo in FIVE} <= {Code.VIEW}
    return None


@attack
def a_silo_is_told_that_it_is_missing(world: World) -> Opens:
    case = begun(world)
    assert tell(world, "silo-006", view_ask(case, "silo-006", SIX)) is Code.VIEW
    return None


# --- thresholds ---------------------------------------------------------------------------------------------


def joins(world: World, code: Code, **changes: Any) -> Opens:
    """A set-up with changes, at silos that have not joined yet."""
    setup = replace(world.setup, **changes)
    request = enc(setup.to_bytes(), world.coordinator.sign(manifest_statement(setup.digest())))
    for silo in made(7, colluding=1).silos.values():
        fresh = Silo(
            name=silo.name,
            key=world.silos[silo.name].key,
            members=world.silos[silo.name].members,
            expected=world.setup,
            floors=silo.floors,
        )
        assert refusal(fresh, lambda fresh=fresh: fresh.join(request)) is code
    return None


@attack
def a_least_cohort_of_one(world: World) -> Opens:
    return joins(world, Code.FLOOR, least=1)


@attack
def nobody_colludes(world: World) -> Opens:
    return joins(world, Code.MANIFEST, max_colluding=0)


@attack
def more_may_drop_than_the_noise_allows(world: World) -> Opens:
    return joins(world, Code.MANIFEST, most_dropped=2)


@attack
def more_sums_than_agreed(world: World) -> Opens:
    return joins(world, Code.MANIFEST, sums=51)


@attack
def a_ring_without_protection(world: World) -> Opens:
    kinds = {**world.setup.kinds, "train": replace(world.setup.kinds["train"], protection="none")}
    return joins(world, Code.MANIFEST, kinds=kinds)


@attack
def one_signature_is_enough(world: World) -> Opens:
    case = begun(world)
    certificate = views(case, SIX, SIX)
    assert {tell(world, silo, open_ask(case, silo, SIX, certificate[:1])) for silo in SIX} == {Code.CERTIFICATE}
    return None


@attack
def one_signature_counted_often(world: World) -> Opens:
    case = begun(world)
    signed = views(case, SIX[:4], SIX)
    double = [*signed, traitor(case, "silo-003", SIX)]
    assert {tell(world, silo, open_ask(case, silo, SIX, double)) for silo in SIX[:4]} == {Code.CERTIFICATE}
    return None


@attack
def a_signer_from_outside_the_set(world: World) -> Opens:
    case = begun(world)
    signed = [*views(case, FIVE[:4], FIVE), traitor(case, "silo-006", FIVE)]
    assert {tell(world, silo, open_ask(case, silo, FIVE, signed)) for silo in FIVE[:4]} == {Code.CERTIFICATE}
    return None


# --- small cohorts ------------------------------------------------------------------------------------------


@attack
def a_cohort_of_one(world: World) -> Opens:
    refuses(world, world.signed(world.asked(cohort=SEVEN[:1])), Code.COHORT)
    return None


@attack
def a_cohort_of_two(world: World) -> Opens:
    refuses(world, world.signed(world.asked(cohort=SEVEN[:2])), Code.COHORT)
    return None


@attack
def a_cohort_with_ghosts(world: World) -> Opens:
    refuses(world, world.signed(world.asked(cohort=("silo-000", "silo-001", "silo-ghost"))), Code.COHORT)
    return None


@attack
def a_directory_with_silos_that_the_roster_lacks(world: World) -> Opens:
    ghost = Ed25519PrivateKey.generate()
    entry = Entry(silo="silo-ghost", key=public_of(new_secret()), signature=b"")
    entry = replace(entry, signature=ghost.sign(entry.statement(world.setup.digest())))
    keys = Directory.of([*world.entries[:2], entry]).entries
    refuses(world, world.signed(world.asked(keys=keys)), Code.ENTRY)
    return None


@attack
def survivors_of_one(world: World) -> Opens:
    case = begun(world)
    assert tell(world, "silo-000", view_ask(case, "silo-000", SEVEN[:1])) is Code.VIEW
    return None


@attack
def survivors_below_the_least(world: World) -> Opens:
    case = begun(world)
    assert views(case, SEVEN, SEVEN[:4]) == []
    return None


# --- keys ---------------------------------------------------------------------------------------------------


@attack
def two_keys_swapped(world: World) -> Opens:
    one, two, *rest = world.entries
    swapped = [one, replace(two, key=rest[0].key), replace(rest[0], key=two.key), *rest[1:]]
    refuses(world, world.signed(world.asked(keys=swapped)), Code.ENTRY)
    return None


@attack
def the_coordinators_key_for_a_silo(world: World) -> Opens:
    """A man in the middle of one pair, signed with what the coordinator has."""
    entry = Entry(silo="silo-003", key=public_of(new_secret()), signature=b"")
    entry = replace(entry, signature=world.coordinator.sign(entry.statement(world.setup.digest())))
    keys = [entry if one.silo == "silo-003" else one for one in world.entries]
    refuses(world, world.signed(world.asked(keys=keys)), Code.ENTRY)
    return None


@attack
def a_key_of_an_earlier_run(world: World) -> Opens:
    earlier = replace(world.setup, run="f" * 32).digest()
    entry = Entry(silo="silo-003", key=public_of(new_secret()), signature=b"")
    entry = replace(entry, signature=world.silos["silo-003"].key.sign(entry.statement(earlier)))
    keys = [entry if one.silo == "silo-003" else one for one in world.entries]
    refuses(world, world.signed(world.asked(keys=keys)), Code.ENTRY)
    return None


@attack
def one_key_for_two_silos(world: World) -> Opens:
    twin = Entry(silo="silo-003", key=world.entries[4].key, signature=b"")
    twin = replace(twin, signature=world.silos["silo-003"].key.sign(twin.statement(world.setup.digest())))
    keys = [twin if one.silo == "silo-003" else one for one in world.entries]
    refuses(world, world.signed(world.asked(keys=keys)), Code.ENTRY)
    return None


@attack
def a_key_of_low_order(world: World) -> Opens:
    entry = Entry(silo="silo-003", key=bytes(32), signature=b"")
    entry = replace(entry, signature=world.silos["silo-003"].key.sign(entry.statement(world.setup.digest())))
    keys = [entry if one.silo == "silo-003" else one for one in world.entries]
    refuses(world, world.signed(world.asked(keys=keys)), Code.LOW_ORDER)
    return None


@attack
def another_directory_to_each_half(world: World) -> Opens:
    """Half of the silos get a directory without the other half; nobody's masks cancel, and boxes do not open."""
    whole, part = world.asked(), world.asked(keys=world.entries[:5])
    uploads = {}
    for silo in SEVEN:
        request = world.signed(part if silo in SEVEN[:3] else whole)
        uploads[silo] = world.send(silo, request, world.silos[silo].upload)
    assert all(noticed(upload) is None for upload in uploads.values())
    one = world.begin()
    assert one.collect(uploads) == "aborted"
    assert {name for name, code in one.blamed.items() if code is Code.UPLOAD} == set(SEVEN[:3])
    return None


@attack
def the_directory_changes(world: World) -> Opens:
    begun(world)
    refuses(world, world.signed(world.asked(keys=world.entries[:5], t=2)), Code.DIRECTORY)
    return None


# --- stale and replayed -------------------------------------------------------------------------------------


@attack
def the_number_again_with_another_model(world: World) -> Opens:
    begun(world)
    refuses(world, world.signed(world.asked(model=OTHER)), Code.OTHER_SUM, model=OTHER)
    return None


@attack
def the_number_again_for_the_other_kind(world: World) -> Opens:
    begun(world)
    refuses(world, world.signed(world.asked(kind="evaluate")), Code.OTHER_SUM)
    return None


@attack
def an_earlier_number(world: World) -> Opens:
    begun(world)
    for silo in SEVEN:
        world.send(
            silo, world.signed(world.asked(t=3, model=OTHER)), lambda r, s=silo: world.silos[s].upload(r, model=OTHER)
        )
    refuses(world, world.signed(world.asked(t=2)), Code.ORDER)
    refuses(world, world.signed(world.asked()), Code.OVER)
    return None


@attack
def boxes_of_the_sum_before(world: World) -> Opens:
    """Two contexts, the boxes of one in the other: more fail than may collude, and all abort."""
    before = begun(world)
    stale = {silo: boxes(before, silo, SEVEN, both=False) for silo in SEVEN}
    before.sum.abort()
    case = begun(world)
    for silo in SEVEN:
        request = world.signed(replace(base(case, silo), body=stale[silo]))
        assert tell(world, silo, request) is Code.ALARM
        assert world.silos[silo].alarms == [tuple(name for name in SEVEN if name != silo)]
        assert tell(world, silo, full_ask(case, silo)) is Code.OVER
    return None


@attack
def a_certificate_of_the_sum_before(world: World) -> Opens:
    before = begun(world)
    old = views(before, SIX, SIX)
    before.sum.abort()
    case = begun(world)
    views(case, SIX[:4], SIX)
    assert {tell(world, silo, open_ask(case, silo, SIX, old)) for silo in SIX[:4]} == {Code.CERTIFICATE}
    return None


@attack
def a_request_of_another_run(world: World) -> Opens:
    other = replace(world.setup, run="f" * 32)
    asked = world.asked()
    signature = world.coordinator.sign(asked.statement(other.digest()))
    refuses(world, replace(asked, signature=signature).to_bytes(), Code.SIGNATURE)
    return None


@attack
def a_request_to_another_silo(world: World) -> Opens:
    case = begun(world)
    assert tell(world, "silo-001", full_ask(case, "silo-000")) is Code.CONTEXT
    return None


@attack
def the_same_upload_asked_again_under_a_new_number(world: World) -> Opens:
    """F4 without noise: another cohort is refused, so the second sum is not the first less one silo."""
    one = world.begin("evaluate")
    one.collect(world.uploads(one))
    world.unmasked(one)
    for cohort in (SIX, SEVEN[1:]):
        request = world.signed(world.asked(kind="evaluate", t=2, cohort=cohort))
        refuses(world, request, Code.EXACT_COHORT, silo="silo-002")
    return None


# --- another model, settings or cohort for some -------------------------------------------------------------


def two_contexts(world: World, odd: Sequence[str], **changes: Any) -> Opens:
    """Some silos are asked for another sum under the same number (N28)."""
    for silo in SEVEN:
        request = world.signed(world.asked(**(changes if silo in odd else {})))
        model = changes.get("model", MODEL) if silo in odd else MODEL
        config = changes.get("config", CONFIG) if silo in odd else CONFIG
        one = world.silos[silo]

        def upload(data: bytes, one: Silo = one, model: bytes = model, config: bytes = config) -> bytes:
            return one.masked(one.claim(data, model=model, config=config))

        assert noticed(world.send(silo, request, upload)) is None
    case = Case(world=world, sum=world.begin())
    rest = [silo for silo in SEVEN if silo not in odd]
    for silo in rest:
        code = tell(world, silo, full_ask(case, silo))
        assert code is (Code.ALARM if len(odd) > 1 else None)
        assert world.silos[silo].alarms == ([tuple(odd)] if len(odd) > 1 else [])
    for silo in odd:
        assert tell(world, silo, full_ask(case, silo)) is Code.CONTEXT
    assert case.sum.collect({silo: world.silos[silo].stored[1] for silo in SEVEN}) == "view"
    assert set(case.sum.blamed) == set(odd)
    return SEVEN if len(odd) == 1 else None  # opened only where the odd silo itself is the accomplice


@attack
def one_silo_gets_another_model(world: World) -> Opens:
    return two_contexts(world, ["silo-002"], model=OTHER)


@attack
def two_silos_get_another_model(world: World) -> Opens:
    return two_contexts(world, ["silo-002", "silo-005"], model=OTHER)


@attack
def two_silos_get_other_settings(world: World) -> Opens:
    return two_contexts(world, ["silo-000", "silo-006"], config=OTHER)


@attack
def one_silo_gets_another_cohort(world: World) -> Opens:
    return two_contexts(world, ["silo-003"], cohort=SIX)


# --- after a restart ----------------------------------------------------------------------------------------


@attack
def other_boxes_after_a_full_answer(world: World) -> Opens:
    case = begun(world)
    for silo in SEVEN:
        assert tell(world, silo, full_ask(case, silo)) is None
        other = world.signed(replace(base(case, silo), body=boxes(case, silo, SEVEN[::-1], both=False)))
        assert tell(world, silo, other) is Code.STATE
        assert tell(world, silo, full_ask(case, silo)) is None
    return SEVEN


@attack
def unmasking_after_the_record(world: World) -> Opens:
    case = begun(world)
    world.unmasked(case.sum)
    for silo in SEVEN:
        world.silos[silo].close(case.sum.record())
        assert tell(world, silo, full_ask(case, silo)) is Code.OVER
        assert tell(world, silo, view_ask(case, silo, SIX if silo in SIX else SEVEN[1:])) is Code.OVER
    return SEVEN


@attack
def a_silo_whose_state_was_set_back(world: World) -> Opens:
    """F16: it answers twice, and counts among those that may collude; the others do not."""
    case = begun(world)
    before = dict(world.silos["silo-004"].store.rows)
    for silo in SEVEN:
        assert tell(world, silo, full_ask(case, silo)) is None
    world.silos["silo-004"].store.rows = before
    assert len(views(case, SIX, SIX)) == 1
    return SEVEN


@attack
def an_upload_again_after_its_state_was_set_back(world: World) -> Opens:
    """N29: the second upload has another seed, nonce and boxes; it opens nothing by itself."""
    one = world.begin()
    silo = world.silos["silo-004"]
    request = one.request("silo-004")
    before = dict(silo.store.rows)
    first = world.send("silo-004", request, silo.upload)
    silo.store.rows = before
    second = world.send("silo-004", request, silo.upload)
    size = world.setup.kinds["train"].size_bytes
    a, b = Upload.read(first[size:]), Upload.read(second[size:])
    assert a.nonce != b.nonce and a.own != b.own and a.words != b.words and a.pairs == b.pairs
    assert not {box for pair in a.boxes for box in pair} & {box for pair in b.boxes for box in pair}
    return None


# --- the judge ----------------------------------------------------------------------------------------------


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 40 and len({play.__name__ for play in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("play", ATTACKS, ids=lambda play: play.__name__)
def test_a_malicious_coordinator_opens_one_set_at_most(play: Callable[[World], Opens]) -> None:
    """T13, I5, I6."""
    world = made(7, colluding=1, size=10_000).joined()
    allowed = play(world)
    last = max((t for silo in world.silos.values() for t in silo.updates), default=0)
    if last and "evaluate" not in {kind_of(world, t) for t in range(1, last + 1)}:
        for accomplice in ([], *[[silo] for silo in SEVEN]):
            assert_secret(world, last, allowed, accomplice, exactly=False)
        for t in range(1, last):
            assert opened(world, t) == []
        for _, way, data in world.wire:
            if way == "up":
                assert_masked(world, last, data)
        if world.server._sum is not None and world.server._sum.phase != "done":
            assert_masked(world, last, world.server._sum.snapshot())


def kind_of(world: World, t: int) -> str:
    for silo in world.silos.values():
        if t in silo.updates:
            return "train" if len(silo.updates[t]) == 2 else "evaluate"
    return "train"


# --- the judge is judged ------------------------------------------------------------------------------------


def test_the_judge_finds_the_attack_that_a_lower_threshold_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same silos with tau and Q one lower: two certified sets, and their difference is one silo's update."""
    monkeypatch.setattr(rules, "threshold", lambda silos, colluding: (silos + colluding) // 2)
    world = made(6, colluding=1, least=3).joined()
    case = begun(world, SEVEN[:6])
    names = SEVEN[:6]
    one, two = names[:5], names[1:]
    first = [*views(case, names[:2], one), traitor(case, "silo-004", one)]
    second = [*views(case, names[2:4], two), *views(case, names[5:], two)]
    assert world.setup.threshold(6) == 3
    assert {tell(world, silo, open_ask(case, silo, one, first)) for silo in names[:2]} == {None}
    for silo in (*names[2:4], names[5]):
        assert tell(world, silo, open_ask(case, silo, two, second)) is None
    found = opened(world, 1, colluding=["silo-004"])
    assert len(found) > 1 or found != [frozenset(one) - {"silo-004"}]


def test_the_judge_sees_a_seed_that_a_silo_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """F3: if a silo told its own seed beside a full answer, the judge would open the set without it and it alone."""
    world = made(7, colluding=1).joined()
    assert full_while_the_others_drop_one(world) == SIX
    assert_secret(world, 1, SIX)
    true = Knowledge.seed

    def told(self: Knowledge, silo: str) -> int | None:
        return 1 if silo == "silo-006" else true(self, silo)

    monkeypatch.setattr(Knowledge, "seed", told)
    with pytest.raises(AssertionError):
        assert_secret(world, 1, SIX)


def test_the_judge_of_vectors_sees_an_update_and_half_of_one() -> None:
    """I5's oracle must reject: an update in the clear, one that is masked in half, one with a mask that repeats."""
    world = made(3, size=10_000).joined()
    one = world.begin()
    uploads = world.uploads(one)
    ring = world.setup.kinds["train"]
    clear = ring.encode(world.silos["silo-000"].updates[1])
    masked = ring.read(uploads["silo-000"][: ring.size_bytes])
    assert_masked(world, 1, uploads["silo-000"])
    assert correlation(masked[: ring.size], clear[: ring.size]) < 0.05
    half = masked.copy()
    half[: ring.size // 2] = clear[: ring.size // 2]
    for leak in (clear, half, clear + np.uint32(12345)):
        with pytest.raises(AssertionError):
            assert_masked(world, 1, leak.tobytes())
        with pytest.raises(AssertionError):
            assert_masked(world, 1, b"prefix" + enc(leak.tobytes()))


def test_a_thief_of_a_later_state_opens_nothing_of_earlier_sums() -> None:
    """F15: rows of all silos after sum 2 was claimed, with all of the wire; the keys of sum 1 are not in them."""
    world = made(4).joined()
    one = world.begin()
    uploads = world.uploads(one)
    one.collect(uploads)
    one.abort()
    two = world.begin()
    for name, silo in world.silos.items():
        silo.claim(two.request(name))
    size = world.setup.kinds["train"].size_bytes
    for silo in world.silos.values():
        late = Peers.read(silo.store.rows[PEERS]).keys
        early = next(Peers.read(value).keys for key, value in silo.store.seen if key == PEERS)
        stolen = b"".join(silo.store.rows.values())
        for peer in late:
            assert early[peer] != late[peer] and early[peer] not in stolen
            assert uploads[peer][:size] not in stolen
        assert State.CLOSED.value.encode() in silo.store.rows[sum_key(1)]


def test_concurrent_instances_of_a_silo_back_one_set() -> None:
    """F2: 20 copies of a process read the same rows, are asked for different sets, and one transaction wins."""
    world = made(7, colluding=1).joined()
    case = begun(world)
    for silo in SIX:
        asks = [full_ask(case, silo), view_ask(case, silo, SIX), view_ask(case, silo, FIVE)]
        steps = []
        for request in asks * 7:
            with suppress(SecaggError):
                steps.append(world.silos[silo].session().unmask(request))
        won = 0
        for step in steps[:: 1 if silo in FIVE else -1]:
            with suppress(Busy):
                world.silos[silo].store.apply(step.changes)
                won += 1
        assert won == 1
