"""The server: who is admitted, which survivors are fixed, what is recovered from bad shares, and restarts at any point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secagg import CONFIG, FIVE, MODEL, SEVEN, SIX, World, answered, drawn, made, refusal
from secagg_attacker import assert_masked, assert_secret

from strategies.secagg.encoding import enc, sha256, take
from strategies.secagg.errors import Code, SecaggError, notice
from strategies.secagg.keys import new_secret, public_of
from strategies.secagg.messages import Ask, Entry, Opening, Record, Shares, Upload, View
from strategies.secagg.rows import RUN, Joined, State, SumRow, sum_key
from strategies.secagg.server import ServerSession
from strategies.secagg.shares import P, from_bytes, to_bytes
from strategies.secagg.sums import Phase, Sum


@pytest.fixture
def world() -> World:
    """Seven silos of which one may collude: tau = Q = u_min = 5."""
    return made(7, colluding=1).joined()


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises(SecaggError) as caught:
        call()
    return caught.value.code


def forged(world: World, of: str, data: bytes, *, vector: bytes | None = None, **changes: Any) -> bytes:
    """An upload with changes, signed again by its silo."""
    size = world.setup.kinds["train"].size_bytes
    words = data[:size] if vector is None else vector
    upload = replace(Upload.read(data[size:]), words=sha256(words), **changes)
    return words + replace(upload, signature=world.silos[of].key.sign(upload.statement())).to_bytes()


def resigned(world: World, reply: Shares | Opening) -> bytes:
    return replace(reply, signature=world.silos[reply.silo].key.sign(reply.statement())).to_bytes()


def asked(world: World, one: Sum, silos: tuple[str, ...] = SEVEN) -> dict[str, bytes]:
    requests = one.requests()
    return {name: world.send(name, requests[name], world.silos[name].unmask) for name in silos if name in requests}


# --- who is admitted ----------------------------------------------------------------------------------------


def test_only_keys_that_hold_are_admitted() -> None:
    """N1, N2 at the server: each wrong key is left out, with the code of why, and the others take part."""
    world = made(12)
    names = list(world.silos)
    digest = world.setup.digest()
    replies = {name: world.silos[name].join(world.server.invitation()) for name in names}

    def entry(silo: str, key: bytes, *, signed: bytes | None = None) -> bytes:
        unsigned = Entry(silo=silo, key=key, signature=b"")
        statement = unsigned.statement(digest) if signed is None else signed
        return replace(unsigned, signature=world.silos[silo].key.sign(statement)).to_bytes()

    key = public_of(new_secret())
    other = Entry(silo=names[0], key=key, signature=b"")
    wrong: dict[str, tuple[bytes, Code]] = {
        names[0]: (entry(names[0], key, signed=other.statement(bytes(32))), Code.ENTRY),
        names[1]: (entry(names[1], key, signed=other.statement(digest)), Code.ENTRY),
        names[2]: (replace(Entry.read(replies[names[2]]), signature=b"").to_bytes(), Code.ENTRY),
        names[3]: (replies[names[4]], Code.ENTRY),
        names[5]: (entry(names[5], Entry.read(replies[names[6]]).key), Code.ENTRY),  # a copied key: both are left out
        names[6]: (replies[names[6]], Code.ENTRY),
        names[7]: (entry(names[7], bytes(32)), Code.LOW_ORDER),
        names[8]: (notice(Code.FLOOR), Code.FLOOR),
        "stranger": (replies[names[4]], Code.ENTRY),
        "another": (b"\1", Code.MALFORMED),
    }
    out = world.server.admit({**replies, **{name: reply for name, (reply, _) in wrong.items()}})
    assert out == {name: code.value for name, (_, code) in wrong.items()}
    assert world.server.seated == (names[4], *names[9:])
    assert code_of(lambda: world.server.admit(replies)) is Code.STATE
    one = world.begin()
    assert world.finished(one) == "done"


def test_too_few_keys_make_no_directory() -> None:
    world = made(4)
    replies = {name: world.silos[name].join(world.server.invitation()) for name in ("silo-000", "silo-001")}
    assert code_of(lambda: world.server.admit(replies)) is Code.ABSENT
    assert world.server.seated == ()
    assert code_of(lambda: world.server.begin("train", SEVEN[:3], model=MODEL, config=CONFIG)) is Code.STATE


def test_a_server_that_no_silo_would_join_does_not_start(world: World) -> None:
    for setup, key, members, code in (
        (world.setup, Ed25519PrivateKey.generate(), world.silos["silo-000"].members, Code.MANIFEST),
        (world.setup, world.coordinator, {}, Code.MANIFEST),
        (replace(world.setup, least=2), world.coordinator, world.silos["silo-000"].members, Code.FLOOR),
    ):
        assert code_of(lambda s=setup, k=key, m=members: ServerSession(s, k, m)) is code


# --- beginning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cohort", "code"),
    [
        ("other", SEVEN, Code.KIND),
        ("train", SEVEN[:2], Code.COHORT),
        ("train", (*SIX, "stranger"), Code.COHORT),
        ("train", (*SIX, SIX[0]), Code.COHORT),
        ("evaluate", SIX, Code.EXACT_COHORT),
    ],
)
def test_what_silos_would_refuse_is_not_asked(world: World, kind: str, cohort: tuple[str, ...], code: Code) -> None:
    assert world.finished(world.begin("evaluate")) == "done"
    assert code_of(lambda: world.begin(kind, cohort)) is code
    assert world.begin("evaluate", SEVEN[::-1]).t == 2, "a refused sum uses no number"


def test_sums_follow_one_another(world: World) -> None:
    one = world.begin()
    assert code_of(world.begin) is Code.STATE
    one.abort()
    assert (one.phase, world.begin().t) == ("aborted", 2)
    world.server._last = 50
    world.server._sum = None
    assert code_of(world.begin) is Code.ORDER


def test_the_directory_is_sent_until_a_silo_has_it(world: World) -> None:
    one = world.begin()
    assert world.finished(one, (SIX, None, None)) == "done"
    two = world.begin()
    assert len(two.request("silo-006")) > len(two.request("silo-000")) + 7 * 100
    assert world.finished(two) == "done"


# --- uploads ------------------------------------------------------------------------------------------------


def other_box(upload: Upload, kind: int, change: Callable[[bytes], bytes]) -> tuple[tuple[bytes, ...], ...]:
    first = list(upload.boxes[0])
    first[kind] = change(first[kind])
    return (tuple(first), *upload.boxes[1:])


def test_an_upload_that_does_not_hold_is_left_out(world: World) -> None:
    """14: every field of it; the rest is summed exactly, and the silo is named."""
    size = world.setup.kinds["train"].size_bytes
    cases: list[Callable[[bytes, Upload], bytes]] = [
        lambda data, _: data[:-1],
        lambda data, _: data + b"\0",
        lambda data, _: data[: size - 1],
        lambda data, _: b"",
        lambda data, _: bytes([data[0] ^ 1]) + data[1:],
        lambda data, upload: data[:size] + replace(upload, signature=b"").to_bytes(),
        lambda data, upload: data[:size] + replace(upload, own=bytes(32)).to_bytes(),
        lambda data, upload: forged(world, "silo-001", data, ctx=bytes(32)),
        lambda data, upload: forged(world, "silo-001", data, silo="silo-002"),
        lambda data, upload: forged(world, "silo-001", data, nonce=b""),
        lambda data, upload: forged(world, "silo-001", data, own=b""),
        lambda data, upload: forged(world, "silo-001", data, pairs=upload.pairs[:-1]),
        lambda data, upload: forged(world, "silo-001", data, pairs=(b"", *upload.pairs[1:])),
        lambda data, upload: forged(world, "silo-001", data, boxes=upload.boxes[:-1]),
        lambda data, upload: forged(world, "silo-001", data, boxes=other_box(upload, 0, lambda b: b[:-1])),
        lambda data, upload: forged(world, "silo-001", data, boxes=other_box(upload, 1, lambda b: b + bytes(32))),
        lambda data, upload: forged(world, "silo-002", data),
    ]
    for change in cases:
        one = world.begin()
        uploads = world.uploads(one)
        data = uploads["silo-001"]
        uploads["silo-001"] = change(data, Upload.read(data[size:]))
        assert one.collect(uploads) == "view" and one.blamed == {"silo-001": Code.UPLOAD}
        world.unmasked(one)
        assert world.unmasked(one) == "done"
        total = one.total()
        assert total.missing == ("silo-001",) and total.blamed == {"silo-001": Code.UPLOAD}
        world.check(total, one.t)


def test_another_sums_upload_does_not_hold(world: World) -> None:
    """A replay of the sum before, and another silo's bytes."""
    before = world.uploads(one := world.begin())
    one.abort()
    two = world.begin()
    uploads = world.uploads(two)
    assert two.collect({**uploads, "silo-000": before["silo-000"]}) == "view"
    assert two.blamed == {"silo-000": Code.UPLOAD}
    two.abort()
    three = world.begin()
    uploads = world.uploads(three)
    assert three.collect({**uploads, "silo-000": uploads["silo-001"]}) == "view"


@pytest.mark.parametrize("alive", range(8))
def test_too_few_survivors_abort(world: World, alive: int) -> None:
    """14: below u_min = 5 nothing is asked, no share has left."""
    one = world.begin()
    phase = one.collect(world.uploads(one, SEVEN[:alive]))
    assert phase == ("aborted" if alive < 5 else "view" if alive < 7 else "full")
    if alive < 5:
        assert one.reason is Code.ABSENT and one.requests() == {}
        assert_secret(world, 1, None)
        assert code_of(one.total) is Code.STATE and code_of(one.record) is Code.STATE


def test_a_sum_without_noise_needs_everybody(world: World) -> None:
    """14, N24."""
    one = world.begin("evaluate")
    assert one.collect(world.uploads(one, SIX)) == "aborted" and one.reason is Code.EXACT_VIEW


def test_refusals_are_kept_by_code(world: World) -> None:
    one = world.begin()
    uploads = world.uploads(one, SIX)
    assert one.collect({**uploads, "silo-006": notice(Code.BURNT), "stranger": uploads["silo-000"]}) == "view"
    assert one.refused == {"silo-006": Code.BURNT} and one.blamed == {}


def test_a_late_upload_is_not_looked_at(world: World) -> None:
    """N34: after the survivors are fixed nothing of it is in the server, its snapshots, or the sum."""
    one = world.begin()
    uploads = world.uploads(one)
    late = uploads.pop("silo-006")
    assert one.collect(uploads) == "view"

    class Unread(dict[str, bytes]):
        def __getitem__(self, key: str) -> bytes:
            raise AssertionError(f"{key} was looked at")

    assert one.collect(Unread(uploads)) == "view"
    assert one.collect({"silo-006": late}) == "view"
    parts = [late[:64], *take(late[world.setup.kinds["train"].size_bytes :])[3:4]]
    assert not any(part in one.snapshot() for part in parts)
    world.unmasked(one)
    assert world.unmasked(one) == "done" and one.total().survivors == SIX
    world.check(one.total(), 1)
    assert not any(part in one.snapshot() for part in parts)


# --- pairs that contradict each other -----------------------------------------------------------------------


def test_the_silo_that_contradicts_most_is_dropped(world: World) -> None:
    """N32: before the survivors are fixed; the sum of the others is exact."""
    one = world.begin()
    uploads = world.uploads(one)
    size = world.setup.kinds["train"].size_bytes
    pairs = list(Upload.read(uploads["silo-003"][size:]).pairs)
    pairs[0] = pairs[5] = bytes(32)
    uploads["silo-003"] = forged(world, "silo-003", uploads["silo-003"], pairs=tuple(pairs))
    assert one.collect(uploads) == "view" and one.blamed == {"silo-003": Code.COMMITMENT}
    world.unmasked(one)
    assert world.unmasked(one) == "done"
    world.check(one.total(), 1)
    assert_secret(world, 1, [name for name in SEVEN if name != "silo-003"])


def test_both_of_two_that_contradict_each_other_are_dropped(world: World) -> None:
    """N32, at a tie."""
    one = world.begin()
    uploads = world.uploads(one)
    pairs = list(Upload.read(uploads["silo-003"][world.setup.kinds["train"].size_bytes :]).pairs)
    pairs[0] = bytes(32)
    uploads["silo-003"] = forged(world, "silo-003", uploads["silo-003"], pairs=tuple(pairs))
    assert one.collect(uploads) == "view"
    assert one.blamed == {"silo-000": Code.COMMITMENT, "silo-003": Code.COMMITMENT}
    world.unmasked(one)
    assert world.unmasked(one) == "done"
    world.check(one.total(), 1)


# --- shares that do not hold --------------------------------------------------------------------------------


def wrong_shares(values: tuple[bytes, ...], value: Callable[[bytes], bytes]) -> tuple[bytes, ...]:
    return tuple(value(share) for share in values)


LIES: Mapping[str, Callable[[bytes], bytes]] = {
    "beyond the field": lambda share: P.to_bytes(32, "big"),
    "wrong value": lambda share: to_bytes((from_bytes(share) or 1) * 2 % P),
    "nothing": lambda share: b"",
    "too short": lambda share: share[:-1],
}


@pytest.mark.parametrize("lie", LIES)
def test_wrong_shares_of_those_who_may_collude_do_no_harm(world: World, lie: str) -> None:
    """N30, all of the cohort: one liar of seven; of six and of five survivors in B2."""
    one = world.begin()
    one.collect(world.uploads(one))
    replies = asked(world, one)
    ctx = Ask.read(one.requests()["silo-000"]).ctx
    true = Shares.read(replies["silo-000"], ctx)
    replies["silo-000"] = resigned(world, replace(true, shares=wrong_shares(true.shares, LIES[lie])))
    assert one.receive(replies) == "done"
    world.check(one.total(), 1)
    assert one.total().blamed == ({"silo-000": Code.SHARE} if lie == "wrong value" else {})


@pytest.mark.parametrize("lie", LIES)
def test_wrong_shares_in_an_opening_do_no_harm(world: World, lie: str) -> None:
    """N30, N31: shares and the told seeds of one of six survivors are wrong; the seeds come from the others' shares."""
    one = world.begin()
    one.collect(world.uploads(one, SIX))
    world.unmasked(one)
    replies = asked(world, one)
    ctx = Ask.read(one.requests()["silo-000"]).ctx
    true = Opening.read(replies["silo-000"], ctx)
    change = LIES[lie]
    pairs = tuple(wrong_shares(pair, change) for pair in true.pairs)
    lied = replace(true, shares=wrong_shares(true.shares, change), seeds=wrong_shares(true.seeds, change), pairs=pairs)
    replies["silo-000"] = resigned(world, lied)
    assert one.receive(replies) == "done"
    world.check(one.total(), 1)
    assert one.total().blamed == {"silo-000": Code.SHARE}


@pytest.mark.parametrize("point", [0, 3])
def test_shares_of_the_wrong_point_do_no_harm(world: World, point: int) -> None:
    """N30: a holder answers with what another one holds."""
    one = world.begin()
    one.collect(world.uploads(one))
    replies = asked(world, one)
    ctx = Ask.read(one.requests()["silo-000"]).ctx
    other = Shares.read(replies["silo-001"], ctx).shares
    replies[SEVEN[point]] = resigned(world, replace(Shares.read(replies[SEVEN[point]], ctx), shares=other))
    assert one.receive(replies) == "done"
    world.check(one.total(), 1)


def test_too_many_wrong_shares_give_no_output(world: World) -> None:
    """N30: three of seven lie about one seed: no five agree with its commitment."""
    one = world.begin()
    one.collect(world.uploads(one))
    replies = asked(world, one)
    ctx = Ask.read(one.requests()["silo-000"]).ctx
    for name in SEVEN[:3]:
        true = Shares.read(replies[name], ctx)
        replies[name] = resigned(world, replace(true, shares=(LIES["wrong value"](true.shares[0]), *true.shares[1:])))
    assert one.receive({name: replies[name] for name in SIX}) == "full", "the seventh may bring what is missing"
    assert one.receive({"silo-006": replies["silo-006"]}) == "aborted"
    assert one.reason is Code.SHARE and code_of(one.total) is Code.STATE
    assert one.requests() == {}, "no fallback to a view"


def test_a_dealer_of_wrong_shares_stops_the_sum_and_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """F20: shares that do not match their commitment; absent boxes of one silo, told by more than may collude."""
    one = world.begin()
    uploads = world.uploads(one)
    size = world.setup.kinds["train"].size_bytes
    upload = Upload.read(uploads["silo-006"][size:])
    broken = tuple((bytes(48), e) if place < 2 else (b, e) for place, (b, e) in enumerate(upload.boxes))
    uploads["silo-006"] = forged(world, "silo-006", uploads["silo-006"], boxes=broken)
    one.collect(uploads)
    assert world.unmasked(one) == "done"
    assert one.total().blamed == {"silo-006": Code.BOX}
    two = world.begin()
    uploads = world.uploads(two)
    uploads["silo-006"] = forged(world, "silo-006", uploads["silo-006"], own=bytes(32))
    two.collect(uploads)
    assert world.unmasked(two) == "aborted" and two.reason is Code.SHARE


def test_a_mask_that_is_left_in_the_total_is_seen() -> None:
    """N33: the check words are not zero; also a vector beyond the bound; nothing is published."""
    ring = replace(made(7).setup.kinds["train"], bound=1000)
    world = made(7, colluding=1, rings={"train": ring}).joined()
    for place, change in ((-1, 1), (0, 20_000)):
        one = world.begin()
        uploads = world.uploads(one)
        words = ring.read(uploads["silo-002"][: ring.size_bytes]).copy()
        words[place] += np.uint32(change)
        uploads["silo-002"] = forged(world, "silo-002", uploads["silo-002"], vector=words.tobytes())
        one.collect(uploads)
        assert world.unmasked(one) == "aborted" and one.reason is Code.TOTAL
        assert code_of(one.total) is Code.STATE and code_of(one.record) is Code.STATE


# --- replies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", [0, 3, 4, 5, 6])
def test_threshold_many_answers_do(world: World, alive: int) -> None:
    """A silo that is lost after its upload costs nothing while tau answer; with fewer the sum waits, and can be asked again."""
    for survivors in (SEVEN, SIX):
        one = world.begin()
        one.collect(world.uploads(one, survivors))
        if survivors == SIX:
            assert world.unmasked(one, SIX[:alive]) == ("open" if alive >= 5 else "view")
            world.unmasked(one, SIX)
        phase = one.phase
        assert world.unmasked(one, SEVEN[:alive]) == ("done" if alive >= 5 else phase)
        assert world.unmasked(one, SEVEN) == "done"
        world.check(one.total(), one.t)


def test_replies_that_do_not_hold_are_not_counted(world: World) -> None:
    """Of another sum or silo, unsigned, with a share more or less; refusals are kept by code."""
    one = world.begin()
    one.collect(world.uploads(one))
    replies = asked(world, one)
    ctx = Ask.read(one.requests()["silo-000"]).ctx
    true = Shares.read(replies["silo-000"], ctx)
    for wrong in (
        b"",
        replies["silo-000"][:-1],
        replies["silo-001"],
        replace(true, signature=b"").to_bytes(),
        replace(true, shares=true.shares[::-1]).to_bytes(),
        resigned(world, replace(true, shares=true.shares[:-1])),
        resigned(world, replace(true, shares=(*true.shares, true.shares[0]))),
        resigned(world, replace(true, ctx=bytes(32))),
    ):
        assert one.receive({"silo-000": wrong}) == "full"
        assert one.blamed == {"silo-000": Code.REPLY}
        one.blamed.clear()
    assert one.receive({"silo-000": notice(Code.ALARM)}) == "full" and one.refused == {"silo-000": Code.ALARM}
    assert one._replies == {}
    assert one.receive(replies) == "done"


def test_views_and_openings_that_do_not_hold_are_not_counted(world: World) -> None:
    one = world.begin()
    one.collect(world.uploads(one, SIX))
    views = asked(world, one)
    good = View.read(views["silo-000"])
    renamed, unsigned = replace(good, silo="silo-001"), replace(good, signature=bytes(64))
    for wrong in (b"", views["silo-001"], renamed.to_bytes(), unsigned.to_bytes(), views["silo-000"] + b"\0"):
        assert one.receive({"silo-000": wrong}) == "view" and one._views == {}
    assert one.receive(views) == "open"
    replies = asked(world, one)
    true = Opening.read(replies["silo-000"], Ask.read(one.requests()["silo-000"]).ctx)
    for wrong in (
        replace(true, signature=b"").to_bytes(),
        replies["silo-001"],
        resigned(world, replace(true, shares=true.shares[1:])),
        resigned(world, replace(true, seeds=())),
        resigned(world, replace(true, pairs=true.pairs[1:])),
        resigned(world, replace(true, pairs=((true.pairs[0][0],) * 2, *true.pairs[1:]))),
        resigned(world, replace(true, ctx=bytes(32))),
    ):
        assert one.receive({"silo-000": wrong}) == "open" and one._replies == {}
    assert one.receive({"silo-006": replies["silo-000"]}) == "open", "only survivors answer"
    assert one.receive(replies) == "done"


# --- restarts -----------------------------------------------------------------------------------------------


def restarted(world: World, one: Sum) -> Sum:
    """The sum in a server that knows nothing but two snapshots."""
    session, data = world.server.snapshot(), one.snapshot()
    world.server = ServerSession.restore(world.setup, world.coordinator, world.silos["silo-000"].members, session)
    again = world.server.resume(data)
    assert again.snapshot() == data and world.server.snapshot() == session
    return again


@pytest.mark.parametrize("survivors", [SEVEN, SIX], ids=["full", "view"])
def test_a_server_goes_on_after_a_restart_at_any_point(world: World, survivors: tuple[str, ...]) -> None:
    """Snapshots before and after each exchange; the requests are the same bytes, so silos answer again."""
    assert world.finished(world.begin("evaluate")) == "done"
    one = world.begin()
    requests = {name: one.request(name) for name in SEVEN}
    one = restarted(world, one)
    assert {name: one.request(name) for name in SEVEN} == requests
    one.collect(world.uploads(one, survivors))
    while one.phase not in ("done", "aborted"):
        before = one.requests()
        one = restarted(world, one)
        assert one.requests() == before
        world.unmasked(one, survivors[:3])  # too few, then a restart, then the rest
        one = restarted(world, one)
        world.unmasked(one, survivors[2:])
    total = one.total()
    one = restarted(world, one)
    assert one.phase == "done" and one.record()
    for got, true in zip(one.total().vectors, total.vectors, strict=True):
        assert np.array_equal(got, true)
    world.check(total, one.t)
    assert world.begin("evaluate").t == 3
    assert (
        code_of(
            lambda: ServerSession.resume(
                ServerSession(world.setup, world.coordinator, world.silos["silo-000"].members), b""
            )
        )
        is Code.STATE
    )


def test_an_aborted_sum_stays_aborted(world: World) -> None:
    one = world.begin()
    one.collect(world.uploads(one, SEVEN[:3]))
    again = restarted(world, one)
    assert (again.phase, again.reason) == (Phase.ABORTED, Code.ABSENT)
    assert again.collect({}) == "aborted" and again.receive({}) == "aborted"
    again.abort()
    assert again.reason is Code.ABSENT


def test_what_a_server_keeps_is_masked_and_then_gone() -> None:
    """21, I5: snapshots in each phase hold no update; after the end no boxes, shares, commitments or seeds."""
    world = made(7, colluding=1, size=20_000).joined()
    one = world.begin()
    uploads = world.uploads(one, SIX)
    held = [one.snapshot()]
    one.collect(uploads)
    held.append(one.snapshot())
    world.unmasked(one)
    held.append(one.snapshot())
    for data in (*held, *uploads.values()):
        assert_masked(world, 1, data)
    world.unmasked(one, SIX[:5])
    assert one.phase == "done"
    assert one._uploads == {} and one._replies == {} and one._views == {}
    size = world.setup.kinds["train"].size_bytes
    assert len(one.snapshot()) < size + 3000
    box = Upload.read(uploads["silo-000"][size:]).boxes[0][0]
    assert box in held[1] and box not in one.snapshot()


# --- the record ---------------------------------------------------------------------------------------------


def test_silos_check_the_record_of_a_sum(world: World) -> None:
    """21: own entry and set; then the sum is over, its secrets are gone, and the record may come again."""
    for survivors in (SEVEN, SIX):
        one = world.begin()
        world.finished(one, (survivors, None, None))
        record = one.record()
        for name in SEVEN:
            silo = world.silos[name]
            if name == "silo-006" and survivors == SIX:
                assert refusal(silo, lambda s=silo, r=record: s.close(r)) is Code.CONTEXT, "it knows nothing of the sum"
                continue
            assert silo.close(record) == b"" and silo.close(record) == b""
            row = SumRow.read(silo.store.rows[sum_key(one.t)])
            assert (row.state, row.share) == (State.CLOSED, b"")


def test_a_record_that_is_not_true_is_refused(world: World) -> None:
    """T29 as to masking: another vector under the own name, another set than was backed, another hand."""
    one = world.begin()
    world.finished(one, (SIX, None, None))
    true = Record.read(one.record())
    silo = world.silos["silo-000"]
    other = (bytes(32), *true.words[1:])
    cases: list[tuple[Record, Code]] = [
        (replace(true, words=other), Code.RECORD),
        (replace(true, survivors=FIVE, words=true.words[:5]), Code.RECORD),
        (replace(true, words=true.words[:-1]), Code.RECORD),
        (replace(true, words=(*true.words, bytes(32))), Code.RECORD),
        (replace(true, survivors=(*SIX, "stranger"), words=(*true.words, bytes(32))), Code.RECORD),
        (replace(true, survivors=SIX[1:], words=true.words[1:]), Code.RECORD),
        (replace(true, ctx=bytes(32)), Code.CONTEXT),
        (replace(true, t=9), Code.CONTEXT),
    ]
    for record, code in cases:
        assert refusal(silo, lambda record=record: silo.close(world.signed(record))) is code
    forged_record = world.signed(true, silo.key)
    assert refusal(silo, lambda: silo.close(forged_record)) is Code.SIGNATURE
    assert refusal(silo, lambda: silo.close(one.record()[:-1])) is Code.MALFORMED
    assert refusal(silo, lambda: silo.close(b"")) is Code.MALFORMED


def test_a_record_with_a_silo_that_sent_nothing_is_refused(world: World) -> None:
    """A silo that has only claimed finds itself in no sum."""
    one = world.begin()
    world.silos["silo-006"].claim(one.request("silo-006"))
    one.collect(world.uploads(one, SIX))
    ctx = Ask.read(one.requests()["silo-000"]).ctx
    record = Record(t=1, ctx=ctx, survivors=SEVEN, words=(b"",) * 7, total=bytes(32))
    silo = world.silos["silo-006"]
    assert refusal(silo, lambda: silo.close(world.signed(record))) is Code.RECORD
    honest = replace(record, survivors=SIX, words=(bytes(32),) * 6)
    assert silo.close(world.signed(honest)) == b""
    strange = world.signed(replace(honest, survivors=(*SIX[1:], "stranger")))
    other = world.silos["silo-000"]  # has uploaded and backs nothing yet
    assert refusal(other, lambda: other.close(strange)) is Code.RECORD


def test_a_record_states_the_hash_of_the_total(world: World) -> None:
    one = world.begin()
    world.finished(one)
    ring = world.setup.kinds["train"]
    words = ring.zeros()
    for silo in world.silos.values():
        words += ring.encode(silo.updates[1])
    assert Record.read(one.record()).total == sha256(words.tobytes())


def test_a_run_ends_for_ever(world: World) -> None:
    """21: keys are erased, the identity of the run and the number of its last sum stay; N5 afterwards."""
    world.finished(world.begin())
    for silo in world.silos.values():
        assert silo.close(world.server.farewell()) == b""
        assert set(silo.store.rows) == {RUN, sum_key(1)}
        assert SumRow.read(silo.store.rows[sum_key(1)]).share == b""
        joined = Joined.read(silo.store.rows[RUN])
        assert joined.closed and joined.last == 1
        assert refusal(silo, lambda silo=silo: silo.join(world.server.invitation())) is Code.RUN_USED
        assert silo.close(world.server.farewell()) == b""
    silo = world.silos["silo-000"]
    request = world.begin().request("silo-000")
    assert refusal(silo, lambda: silo.claim(request)) is Code.NOT_JOINED


def test_a_run_ends_by_the_coordinators_word_only(world: World) -> None:
    silo = world.silos["silo-000"]
    for wrong in (enc("end", b""), enc("end", silo.key.sign(enc("fsa1/end", world.setup.digest())))):
        assert refusal(silo, lambda wrong=wrong: silo.close(wrong)) is Code.SIGNATURE
    assert refusal(silo, lambda: silo.close(enc("end"))) is Code.MALFORMED


def test_errors_of_a_whole_sum_are_codes(world: World) -> None:
    """N43, at the driver: a refused request is answered by a notice, which the server keeps as a code."""
    one = world.begin()
    silo = world.silos["silo-006"]
    silo.claim(one.request("silo-006"))
    reply = answered(lambda: silo.upload(one.request("silo-006")))
    assert reply == notice(Code.BURNT)
    one.collect({**world.uploads(one, SIX), "silo-006": reply})
    assert one.refused == {"silo-006": Code.BURNT}
    assert drawn(world.setup.kinds["train"])[0].shape == (8,)
