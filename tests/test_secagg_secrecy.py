"""Canaries: no seed, key or share in a log, a repr, an exception or a traceback; and what is erased is gone."""

from __future__ import annotations

import logging
import pprint
import traceback
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from secagg import CONFIG, MODEL, World, made

from strategies.secagg import claims, keys, recovery, shares, silo, unmasking
from strategies.secagg.errors import SecaggError
from strategies.secagg.messages import Ask, Opening, Shares
from strategies.secagg.rows import PEERS, SECRET, Change, Peers, SumRow, sum_key


class Canaries:
    """Every secret that is drawn or derived while it watches, in each form in which it could be printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: set[int] = set()
        for module, name in (
            (claims, "random_element"),
            (claims, "pair_seed"),
            (unmasking, "pair_seed"),
            (claims, "mask_key"),
            (recovery, "mask_key"),
            (shares, "random_element"),
            (silo, "new_secret"),
            (silo, "pair_key"),
            (silo, "stepped"),
            (keys, "agreed"),
        ):
            monkeypatch.setattr(module, name, self.watched(getattr(module, name)))

    def watched(self, call: Any) -> Any:
        def noted(*args: Any) -> Any:
            value = call(*args)
            self.found.add(int.from_bytes(value, "big") if isinstance(value, bytes) else value)
            return value

        return noted

    def forms(self) -> list[str]:
        every = []
        for value in self.found:
            data = value.to_bytes(32, "big")
            every += [data.hex(), str(value), repr(data)[2:-1][:24], hex(value)[2:]]
        return every

    def absent_from(self, text: str) -> None:
        assert not any(form in text for form in self.forms())


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Canaries:
    return Canaries(monkeypatch)


def shown(thing: Any, depth: int = 4) -> str:
    """A thing and all that hangs on it, as logs and debuggers print it."""
    text = f"{thing!r} {thing} {pprint.pformat(thing)}"
    if depth and is_dataclass(thing) and not isinstance(thing, type):
        text += " ".join(repr(getattr(thing, field.name)) for field in fields(thing) if field.repr)
    return text


def test_no_secret_is_printed(canaries: Canaries, caplog: pytest.LogCaptureFixture) -> None:
    """A sum that loses a silo; every object of it is shown, and nothing is logged at any level."""
    caplog.set_level(logging.DEBUG)
    world = made(5, colluding=1).joined()
    things: list[Any] = []
    one = world.begin()
    four = list(world.silos)[:4]
    uploads = {}
    for name, held in world.silos.items():
        claim = held.session().claim(one.request(name), model=MODEL, config=CONFIG)
        held.store.apply(claim.changes)
        things += [claim, held.session(), *claim.changes]
        masked = held.session().mask(claim, tuple(make_update(world)))
        held.store.apply(masked.changes)
        uploads[name] = bytes(masked.reply)
        things += [masked, *masked.changes]
    one.collect({name: uploads[name] for name in four})
    for _ in range(2):
        replies = {}
        for name, request in one.requests().items():
            step = world.silos[name].session().unmask(request)
            world.silos[name].store.apply(step.changes)
            replies[name] = step.reply
            things += [step, *step.changes, SumRow.read(world.silos[name].store.rows[sum_key(1)])]
            things += [Peers.read(world.silos[name].store.rows[PEERS])]
        opening = one.phase == "open"
        if opening:
            ctx = Ask.read(one.requests()[four[0]]).ctx
            things += [Opening.read(reply, ctx) for reply in replies.values()]
        one.receive(replies)
        things += [one, one._run, world.server]
    assert one.phase == "done" and len(canaries.found) > 100
    for thing in things:
        canaries.absent_from(shown(thing))
    canaries.absent_from(caplog.text)
    assert not [record for record in caplog.records if record.name.startswith("strategies")]


def make_update(world: World) -> list[Any]:
    return [np.zeros(segment.length) for segment in world.setup.kinds["train"].segments]


def test_no_secret_is_in_an_error(canaries: Canaries) -> None:
    """Errors at every stage, with their tracebacks' locals as a debugger's report would not show them: text only."""
    world = made(5, colluding=1).joined()
    one = world.begin()
    silo_0 = world.silos["silo-000"]
    claim = silo_0.claim(one.request("silo-000"))
    calls: list[Any] = [
        lambda: silo_0.session().mask(claim, []),
        lambda: silo_0.session().mask(claim, make_update(world)),
        lambda: silo_0.claim(one.request("silo-000")),
        lambda: silo_0.join(b""),
        lambda: silo_0.unmask(b"\0" * 50),
        lambda: silo_0.close(b""),
        lambda: silo_0.claim(world.signed(replace(world.asked(t=2), cohort=("a",)))),
    ]
    seen = 0
    for call in calls:
        try:
            call()
        except Exception as error:
            seen += 1
            text = "".join(traceback.format_exception(error))
            canaries.absent_from(text)
            if isinstance(error, SecaggError):
                assert str(error) == str(SecaggError(error.code, error.silos))
            assert error.__cause__ is None
    assert seen == len(calls)


def test_the_canaries_would_be_seen(canaries: Canaries) -> None:
    """The control: a row's bytes, a claim's keys and a share in plain sight are found."""
    world = made(3).joined()
    held = world.silos["silo-000"]
    one = world.begin()
    claim = held.session().claim(one.request("silo-000"), model=MODEL, config=CONFIG)
    for leak in (held.store.rows[SECRET].hex(), repr(bytes(next(iter(claim.keys.values())))), str(max(canaries.found))):
        with pytest.raises(AssertionError):
            canaries.absent_from(f"an error: {leak}")
    assert "expected" not in repr(Change(key="run", expected=b"secret", new=b"secret"))
    assert "secret" not in repr(Shares(ctx=b"", silo="a", shares=(b"secret",)))


def test_keys_of_a_claim_are_overwritten(canaries: Canaries) -> None:
    """After masking the very buffers are zero."""
    world = made(4).joined()
    held = world.silos["silo-000"]
    claim = held.claim(world.begin().request("silo-000"))
    buffers = list(claim.keys.values())
    before = [bytes(buffer) for buffer in buffers]
    assert all(any(buffer) for buffer in buffers)
    held.masked(claim)
    assert all(not any(buffer) for buffer in buffers) and claim.keys == {}
    assert len(set(before)) == 3
