"""What a silo answers when a sum is unmasked, and what it never lets out (15 to 19)."""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secagg import FIVE, SEVEN, SIX, Busy, Case, answered, made, refusal
from secagg_attacker import assert_secret

from strategies.secagg import claims
from strategies.secagg.boxes import Label, seal
from strategies.secagg.claims import pair_seed
from strategies.secagg.encoding import enc, take
from strategies.secagg.errors import Code, SecaggError, notice
from strategies.secagg.messages import Ask, OpenBody, Opening, Phase, Shares, View, view_statement
from strategies.secagg.rows import PEERS, Peers, State, SumRow, sum_key
from strategies.secagg.shares import from_bytes, to_bytes


@pytest.fixture
def full() -> Case:
    world = made(7, colluding=1).joined()
    one = world.begin()
    one.collect(world.uploads(one))
    return Case(world=world, sum=one)


@pytest.fixture
def partial() -> Case:
    """silo-006 has uploaded, but the coordinator says that it did not come."""
    world = made(7, colluding=1).joined()
    one = world.begin()
    one.collect({name: upload for name, upload in world.uploads(one).items() if name in SIX})
    return Case(world=world, sum=one)


@pytest.fixture
def certified(partial: Case) -> Case:
    partial.world.unmasked(partial.sum)
    return partial


# --- all of the cohort --------------------------------------------------------------------------------------


def test_a_full_answer_is_one_share_of_each_and_comes_again(full: Case) -> None:
    """15, 16: the same request gets the same bytes, another one nothing."""
    request = full.ask()
    reply = full.silo.unmask(request)
    assert full.state() is State.FULL
    assert full.silo.unmask(request) == reply
    shares = Shares.read(reply, Ask.read(request).ctx)
    assert [len(share) for share in shares.shares] == [32] * 7
    full.silo.key.public_key().verify(shares.signature, shares.statement())
    other = full.ask(body=enc(*take(Ask.read(request).body)[::-1]))
    assert full.refused(other) is Code.STATE


def test_no_seed_and_no_pair_is_in_a_full_answer(full: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """N18: the bytes are scanned for every secret of the sum, and the request has no box that holds pairs."""
    drawn_seeds: list[int] = []
    draw = claims.random_element

    def noted() -> int:
        drawn_seeds.append(draw())
        return drawn_seeds[-1]

    monkeypatch.setattr(claims, "random_element", noted)
    world = made(7, colluding=1).joined()
    one = world.begin()
    uploads = world.uploads(one)
    one.collect(uploads)
    case = Case(world=world, sum=one)
    ctx = Ask.read(case.ask()).ctx
    keys = [key for s in world.silos.values() for key in Peers.read(s.store.rows[PEERS]).keys.values()]
    secrets = [*map(to_bytes, drawn_seeds), *keys, *(to_bytes(pair_seed(key, ctx)) for key in keys)]
    assert len(drawn_seeds) == 7 and len(set(secrets)) == 7 + 2 * 21
    for name, request in one.requests().items():
        assert len(request) < 7 * 120 + 300, "b boxes only"
        reply = world.silos[name].unmask(request)
        assert not any(secret in reply for secret in secrets)
        assert not any(secret in upload for secret in secrets for upload in uploads.values())


def test_a_full_request_has_exactly_the_boxes_of_the_others(full: Case) -> None:
    body = take(Ask.read(full.ask()).body)
    e_box = take(full.world.silos["silo-001"].stored[1][full.world.setup.kinds["train"].size_bytes :])[4]
    e = take(take(e_box)[0])[1]
    with_e = [enc(*take(box), e) for box in body]
    for wrong in (body[:-1], [*body, body[0]], with_e, []):
        assert full.refused(full.ask(body=enc(*wrong))) is Code.BOXES
    instead = [enc(take(box)[0], e) for box in body[:1]]
    reply = full.silo.unmask(full.ask(body=enc(*instead, *body[1:])))
    assert Shares.read(reply, b"").shares[1] == b"", "an e box in place of a b box is absent"


@pytest.mark.parametrize("silo", ["silo-000", "silo-003"])
def test_one_altered_box_is_absent_and_the_rest_answered(full: Case, silo: str) -> None:
    """N26: a failing box of one silo, no more than may collude; the sum is had from the others' shares."""
    requests = dict(full.sum.requests())
    ask = Ask.read(requests[silo])
    boxes = [list(take(box)) for box in take(ask.body)]
    boxes[2][1] = boxes[2][1][:-1] + bytes([boxes[2][1][-1] ^ 1])
    requests[silo] = full.world.signed(replace(ask, body=enc(*boxes)))
    replies = {name: full.world.silos[name].unmask(request) for name, request in requests.items()}
    absent = [len(share) for share in Shares.read(replies[silo], ask.ctx).shares].count(0)
    assert absent == 1
    assert full.sum.receive(replies) == "done"
    full.world.check(full.sum.total(), 1)


def test_more_failing_boxes_than_may_collude_abort_the_sum(full: Case) -> None:
    """N27: ABORTED and an alarm that names them; then nothing is answered any more, not even the true request."""
    ask = Ask.read(full.ask())
    boxes = [list(take(box)) for box in take(ask.body)]
    for place in (0, 3):
        boxes[place][1] = bytes(48)
    reply = full.silo.unmask(full.ask(body=enc(*boxes)))
    assert reply == notice(Code.ALARM)
    assert full.state() is State.ABORTED and full.silo.alarms == [("silo-001", "silo-004")]
    assert SumRow.read(full.silo.store.rows[sum_key(1)]).share == b""
    assert full.refused(full.ask()) is Code.OVER
    assert full.refused(full.view(SIX)) is Code.OVER
    assert refusal(full.silo, lambda: full.silo.upload(full.sum.request("silo-000"))) is Code.OVER


def test_a_share_beyond_the_field_counts_as_a_failing_box(full: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """N30: a dealer that seals a number above p is reported absent, not passed on."""
    world = made(7, colluding=1).joined()
    monkeypatch.setattr(claims, "to_bytes", lambda _: b"\xff" * 32)
    one = world.begin()
    world.silos["silo-006"].upload(one.request("silo-006"))
    monkeypatch.undo()
    uploads = {name: world.silos[name].upload(one.request(name)) for name in SEVEN}
    one.collect(uploads)
    reply = world.silos["silo-000"].unmask(one.requests()["silo-000"])
    assert Shares.read(reply, b"").shares[6] == b""


# --- one set of survivors -----------------------------------------------------------------------------------


def test_a_view_is_signed_once_and_comes_again(partial: Case) -> None:
    """17."""
    request = partial.ask()
    reply = View.read(partial.silo.unmask(request))
    ctx = Ask.read(request).ctx
    partial.silo.key.public_key().verify(reply.signature, view_statement(ctx, SIX))
    assert partial.state() is State.VIEW
    assert View.read(partial.silo.unmask(request)) == reply
    assert len(partial.silo.unmask(request)) < 120, "a name and a signature, nothing else"


@pytest.mark.parametrize(
    "survivors",
    [
        SEVEN,  # U1 = U0
        SEVEN[1:],  # without self
        SEVEN[:4],  # u_min - 1
        (*SIX, "stranger"),
        (),
    ],
)
def test_a_set_that_a_silo_cannot_back_is_refused(partial: Case, survivors: tuple[str, ...]) -> None:
    """N23."""
    assert partial.refused(partial.view(survivors)) is Code.VIEW


def test_a_set_in_another_form_is_refused(partial: Case) -> None:
    for wrong in ((*SIX[::-1],), (*SIX, SIX[0])):
        assert partial.refused(partial.view(wrong)) is Code.MALFORMED


def test_a_set_below_the_noise_plan_is_refused() -> None:
    """N23: n - |U1| > D."""
    world = made(7, dropped=1).joined()
    one = world.begin()
    one.collect(world.uploads(one, SIX))
    case = Case(world=world, sum=one)
    assert case.refused(case.view(FIVE)) is Code.VIEW
    assert View.read(case.silo.unmask(case.ask()))


def test_a_sum_without_noise_has_no_survivors_sum() -> None:
    """N24: B1 is refused."""
    world = made(7).joined()
    one = world.begin("evaluate")
    one.collect(world.uploads(one))
    case = Case(world=world, sum=one)
    assert case.refused(case.view(SIX)) is Code.EXACT_VIEW
    assert one.receive({name: world.silos[name].unmask(case.ask(silo=name)) for name in SEVEN}) == "done"


def test_two_sets_are_never_backed(partial: Case) -> None:
    """N16, N15: another set, or all of the cohort, after a view; whatever is asked in whatever order."""
    whole = partial.ask(phase="full", body=Ask.read(partial.ask()).body)
    partial.silo.unmask(partial.ask())
    assert partial.refused(partial.view(FIVE)) is Code.STATE
    assert partial.refused(whole) is Code.STATE
    partial.world.unmasked(partial.sum)
    partial.silo.unmask(partial.open())
    for request in (partial.view(SIX), partial.view(FIVE), whole):
        assert partial.refused(request) is Code.STATE


def test_no_view_after_a_full_answer(full: Case) -> None:
    """N15: B-full then B1; a new session stands for the process after a kill."""
    full.silo.unmask(full.ask())
    assert full.refused(full.view(SIX)) is Code.STATE


def test_full_and_view_at_once_get_one_answer(full: Case) -> None:
    """N14, in memory: 20 pairs of threads that read the same rows; one compare-and-set wins."""
    for silo in SEVEN[:5]:
        for _ in range(4):
            one = full.world.silos[silo]
            row = one.store.rows[sum_key(1)]
            steps = [one.session().unmask(r) for r in (full.ask(silo=silo), full.view(SIX, silo=silo))]
            won = []
            for step in steps if int(silo[-1]) % 2 else steps[::-1]:
                with suppress(Busy):
                    one.store.apply(step.changes)
                    won.append(step)
            assert len(won) == 1
            one.store.rows[sum_key(1)] = row


def test_full_and_view_in_threads_get_one_answer(full: Case) -> None:
    """N14, with threads and a lock around the rows."""
    lock, replies = threading.Lock(), []
    apply = full.silo.store.apply

    def locked(changes: Any) -> None:
        with lock:
            apply(changes)

    full.silo.store.apply = locked  # type: ignore[method-assign]
    requests = [full.ask(), full.view(SIX)] * 10
    gate = threading.Barrier(len(requests))

    def one(request: bytes) -> None:
        gate.wait()
        with suppress(Busy, SecaggError):
            replies.append(full.silo.unmask(request))

    threads = [threading.Thread(target=one, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(replies)) == 1


# --- opening ------------------------------------------------------------------------------------------------


def test_an_opening_is_of_the_survivors_alone(certified: Case) -> None:
    """19: shares of the survivors' own seeds, the own seed with the dropped, shares of the survivors' with it."""
    request = certified.open()
    reply = Opening.read(certified.silo.unmask(request), Ask.read(request).ctx)
    assert certified.state() is State.OPEN
    assert certified.silo.unmask(request) == reply.to_bytes()
    assert [len(share) for share in reply.shares] == [32] * 6
    keys = Peers.read(certified.silo.store.rows[PEERS]).keys
    assert reply.seeds == (to_bytes(pair_seed(keys["silo-006"], reply.ctx)),)
    assert [len(pairs) for pairs in reply.pairs] == [1] * 5
    certified.silo.key.public_key().verify(reply.signature, reply.statement())
    again = certified.open(certificate=OpenBody.read(Ask.read(request).body).certificate[::-1])
    assert certified.refused(again) is Code.STATE


def test_nothing_of_a_dropped_silo_and_no_pair_of_survivors_leaves(certified: Case) -> None:
    """N18 for B2: no share of the dropped silo's own seed, of a pair within either side; its seeds are not told."""
    world, ctx = certified.world, Ask.read(certified.ask()).ctx
    ring = world.setup.kinds["train"]
    forbidden = [SumRow.read(world.silos["silo-006"].store.rows[sum_key(1)]).share]
    for name in SIX:
        keys = Peers.read(world.silos[name].store.rows[PEERS]).keys
        forbidden += [to_bytes(pair_seed(keys[other], ctx)) for other in SIX if other != name]
        forbidden += list(keys.values())
    world.unmasked(certified.sum)
    sent = b"".join(data[-5000:] for _, way, data in world.wire if way == "up" and len(data) < ring.size_bytes + 5000)
    assert not any(secret in sent for secret in forbidden if secret)
    assert_secret(world, 1, SIX)
    assert_secret(world, 1, SIX, ["silo-003"])
    assert_secret(world, 1, SIX, ["silo-006"])


def test_opening_needs_a_view_first(partial: Case, full: Case) -> None:
    """N22: B2 before B1, and B2 at a silo that backs all of its cohort."""
    partial.world.unmasked(partial.sum, SIX[1:])
    assert partial.sum.phase == "open"
    assert partial.refused(partial.open()) is Code.STATE
    body = OpenBody(survivors=SIX, certificate=full.certificate(SIX, FIVE), boxes=b"").to_bytes()
    assert full.refused(full.ask(phase="open", body=body)) is Code.STATE
    full.silo.unmask(full.ask())
    assert full.refused(full.ask(phase="open", body=body)) is Code.STATE


def test_an_opening_is_of_the_stored_set(certified: Case) -> None:
    """N22: B2 whose set is not the one that this silo has signed, even well certified."""
    other = certified.certificate(FIVE, FIVE)
    assert certified.refused(certified.open(survivors=FIVE, certificate=other)) is Code.VIEW
    assert certified.refused(certified.open(survivors=SEVEN)) is Code.VIEW


def test_a_certificate_is_of_enough_survivors_over_this_set(certified: Case) -> None:
    """N21: Q - 1 signatures; Q with one twice; a signer from outside; over another set, sum or context."""
    good = certified.certificate(SIX, FIVE)
    old = certified.certificate(SIX, FIVE, ctx=b"\0" * 32)
    outside = certified.certificate(SIX, (*FIVE[:4], "silo-006"))
    stranger = (*good[:4], ("stranger", good[4][1]))
    for wrong in (
        good[:4],
        (*good[:4], good[0]),
        (*good, good[0]),
        (*good[:4], outside[4]),
        (*good, outside[4]),
        certified.certificate(FIVE, FIVE),
        old,
        (*good[:4], old[4]),
        (*good[:4], (good[4][0], good[3][1])),
        (*good, (SIX[5], b"")),
        stranger,
        (),
    ):
        assert certified.refused(certified.open(certificate=wrong)) is Code.CERTIFICATE
    assert certified.silo.unmask(certified.open(certificate=good))


@pytest.mark.parametrize("domain", ["ledger", "envelope", "key", "up", "full"])
def test_a_signature_for_something_else_is_no_view(certified: Case, domain: str) -> None:
    """N36: what the same key signs elsewhere, over the same words."""
    ctx = Ask.read(certified.ask()).ctx
    messages = {"ledger": b"fedsilo/ledger/1\0" + enc(ctx, SIX), "envelope": b"fedsilo/head/1\0" + enc(ctx, SIX)}
    message = messages.get(domain, enc(f"fsa1/{domain}", ctx, SIX))
    wrong = tuple((name, certified.world.silos[name].key.sign(message)) for name in FIVE)
    assert certified.refused(certified.open(certificate=wrong)) is Code.CERTIFICATE


def test_an_opening_has_exactly_two_boxes_of_each_survivor(certified: Case) -> None:
    boxes = take(OpenBody.read(Ask.read(certified.ask()).body).boxes)
    b_only = [enc(*take(box)[:2]) for box in boxes]
    for wrong in (boxes[:-1], [*boxes, boxes[0]], b_only, []):
        assert certified.refused(certified.open(boxes=enc(*wrong))) is Code.BOXES


def test_failing_boxes_of_an_opening(certified: Case) -> None:
    """N26, N27 for B2: one sender is absent in both boxes if either fails; two are one more than may collude."""
    boxes = [list(take(box)) for box in take(OpenBody.read(Ask.read(certified.ask()).body).boxes)]
    for place, kind in ((0, 2), (0, 1)):
        wrong = [list(box) for box in boxes]
        wrong[place][kind] = bytes(len(wrong[place][kind]))
        row = certified.silo.store.rows[sum_key(1)]
        reply = Opening.read(certified.silo.unmask(certified.open(boxes=enc(*wrong))), b"")
        assert (reply.shares[1], reply.pairs[0]) == (b"", ())
        assert [len(share) for share in reply.shares].count(0) == 1
        certified.silo.store.rows[sum_key(1)] = row
    boxes[0][1], boxes[4][2] = bytes(48), bytes(len(boxes[4][2]))
    assert certified.silo.unmask(certified.open(boxes=enc(*boxes))) == notice(Code.ALARM)
    assert certified.state() is State.ABORTED and certified.silo.alarms == [("silo-001", "silo-005")]


def test_shares_in_the_wrong_box_are_absent(certified: Case) -> None:
    """Two shares in the b box and one less in the e box: as many as there should be, and none in its place."""
    boxes = [list(take(box)) for box in take(OpenBody.read(Ask.read(certified.ask()).body).boxes)]
    key = Peers.read(certified.world.silos["silo-001"].store.rows[PEERS]).keys["silo-000"]
    label = Label(
        type="b", ctx=Ask.read(certified.ask()).ctx, nonce=boxes[0][0], sender="silo-001", receiver="silo-000"
    )
    boxes[0][1:] = [seal(key, label, [bytes(32)] * 2), seal(key, replace(label, type="e"), [bytes(32)] * 5)]
    reply = Opening.read(certified.silo.unmask(certified.open(boxes=enc(*boxes))), b"")
    assert (reply.shares[1], reply.pairs[0]) == (b"", ())


# --- which request ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["full", "view", "open"])
def test_an_instruction_of_another_hand_changes_nothing(phase: Phase, request: pytest.FixtureRequest) -> None:
    """N35 for B-full, B1, B2: another key, no signature, a changed phase, body, receiver or number."""
    case: Case = request.getfixturevalue({"full": "full", "view": "partial", "open": "certified"}[phase])
    good = Ask.read(case.ask())
    assert good.phase == phase
    assert case.refused(case.ask(key=Ed25519PrivateKey.generate())) is Code.SIGNATURE
    assert case.refused(case.ask(key=case.silo.key)) is Code.SIGNATURE
    others: dict[str, Any] = {"phase": "view" if phase != "view" else "full", "body": good.body + b"\0", "t": 2}
    for name, value in (*others.items(), ("silo", "silo-001"), ("ctx", bytes(32)), ("signature", b"")):
        assert case.refused(replace(good, **{name: value}).to_bytes()) is Code.SIGNATURE
    for wrong in (b"", good.to_bytes()[:-1], enc(*take(good.to_bytes()), b""), case.sum.request("silo-000")):
        assert case.refused(wrong) is Code.MALFORMED
    assert case.silo.unmask(case.ask())


def test_a_request_is_for_one_silo_and_one_sum(full: Case) -> None:
    assert full.refused(full.ask(silo="silo-001")) is Code.CONTEXT
    assert full.refused(full.ask(ctx=bytes(32))) is Code.CONTEXT
    assert full.refused(full.ask(t=2)) is Code.STATE
    assert full.refused(full.ask(phase="none")) is Code.MALFORMED


def test_nothing_is_unmasked_that_was_never_masked() -> None:
    """N17: B-full, B1, B2 at a silo that has not claimed, and at one that has claimed and not masked."""
    world = made(7, colluding=1).joined()
    one = world.begin()
    one.collect(world.uploads(one, SIX[1:]))
    ctx = Ask.read(one.requests()["silo-001"]).ctx
    silo = world.silos["silo-000"]
    bodies: dict[Phase, bytes] = {
        "full": b"",
        "view": enc(*SIX),
        "open": OpenBody(survivors=SIX, certificate=(), boxes=b"").to_bytes(),
    }
    asks = [world.signed(Ask(t=1, ctx=ctx, phase=phase, silo=silo.name, body=body)) for phase, body in bodies.items()]
    for request in asks:
        assert refusal(silo, lambda request=request: silo.unmask(request)) is Code.STATE
    silo.claim(one.request("silo-000"))
    for request in asks:
        assert refusal(silo, lambda request=request: silo.unmask(request)) is Code.STATE


def test_a_sum_ends_where_the_next_begins(full: Case) -> None:
    """N40: after t + 1 is claimed, B for t is refused."""
    request = full.ask()
    full.sum.abort()
    two = full.world.begin()
    full.silo.claim(two.request("silo-000"))
    assert full.refused(request) is Code.OVER


def test_refusals_hold_no_secret(certified: Case) -> None:
    """N43: every refused request is answered by a code of the fixed list, whatever it was."""
    secrets = [value for value in certified.silo.store.rows.values() for value in chunks(value)]
    for request in (b"", certified.view(FIVE), certified.open(certificate=()), certified.ask(ctx=bytes(32))):
        reply = answered(lambda request=request: certified.silo.unmask(request))
        assert reply in {notice(code) for code in Code}
        assert not any(secret in reply for secret in secrets)


def chunks(row: bytes) -> list[bytes]:
    return [row[place : place + 8] for place in range(0, len(row) - 8, 8)]


def test_whatever_is_asked_in_whatever_order_one_set_is_served(full: Case) -> None:
    """Every order of four requests out of six to one silo: what it lets out is shares of one set, or one view's."""
    requests = {
        "full": full.ask(),
        "view six": full.view(SIX),
        "view five": full.view(FIVE),
    }
    for name, survivors in (("open six", SIX), ("open five", FIVE)):
        boxes = []
        ring = full.world.setup.kinds["train"]
        for peer in survivors[1:]:
            upload = take(full.world.silos[peer].stored[1][ring.size_bytes :])
            boxes.append(enc(upload[3], *take(take(upload[4])[0])))
        body = OpenBody(survivors=survivors, certificate=full.certificate(survivors, FIVE), boxes=enc(*boxes))
        requests[name] = full.ask(phase="open", body=body.to_bytes())
    start = full.silo.store.rows[sum_key(1)]
    ctx = Ask.read(requests["full"]).ctx
    served = set()
    for order in itertools.product(requests, repeat=4):
        full.silo.store.rows[sum_key(1)] = start
        backed = set()
        for name in order:
            with suppress(SecaggError):
                reply = full.silo.unmask(requests[name])
                backed.add(SEVEN if name == "full" else SIX if "six" in name else FIVE)
                if name.startswith("open"):
                    assert all(from_bytes(share) is not None for share in Opening.read(reply, ctx).shares)
        assert len(backed) <= 1
        served |= backed
    assert served == {SEVEN, SIX, FIVE}
