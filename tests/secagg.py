"""Silos and a server of secure aggregation in memory, for its tests: every message is kept, and any may be lost.

A silo's rows lie in a `Store` with compare-and-set, and each message is answered by a new session, as in a process that
was started for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.secagg.claims import Claim
from strategies.secagg.directory import Directory
from strategies.secagg.encoding import enc
from strategies.secagg.errors import Code, SecaggError, notice
from strategies.secagg.messages import Ask, Entry, OpenBody, Record, Request, view_statement
from strategies.secagg.ring import Protection, Ring, fitted
from strategies.secagg.rows import RUN, Change, Joined, State, Step, SumRow, sum_key
from strategies.secagg.server import ServerSession
from strategies.secagg.setup import Floors, Setup
from strategies.secagg.silo import SiloSession
from strategies.secagg.sums import Phase, Sum, Total

MODEL, CONFIG = bytes([1] * 32), bytes([2] * 32)
SIZE = 8
SEVEN = tuple(f"silo-{number:03}" for number in range(7))
SIX, FIVE = SEVEN[:6], SEVEN[:5]
PAIR = Floors(least=2, pair_with_local_dp=True)


class Busy(Exception):
    """A compare failed: another process was faster."""


class Store:
    """Durable rows; `seen` holds every value that was ever written, as a thief of backups would find them."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.seen: list[tuple[str, bytes]] = []

    def read(self, key: str) -> bytes | None:
        return self.rows.get(key)

    def apply(self, changes: Iterable[Change]) -> None:
        changes = tuple(changes)
        if any(self.rows.get(change.key) != change.expected for change in changes):
            raise Busy
        for change in changes:
            if change.new is None:
                del self.rows[change.key]
            else:
                self.rows[change.key] = change.new
                self.seen.append((change.key, change.new))


@dataclass(kw_only=True)
class Silo:
    """A silo with its rows, its stored uploads, and what it has really summed."""

    name: str
    key: Ed25519PrivateKey
    members: Mapping[str, bytes]
    expected: Setup
    floors: Floors
    store: Store = field(default_factory=Store)
    stored: dict[int, bytes] = field(default_factory=dict)
    updates: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)
    charged: list[int] = field(default_factory=list)
    trained: int = 0
    alarms: list[tuple[str, ...]] = field(default_factory=list)

    def session(self) -> SiloSession:
        return SiloSession(
            name=self.name,
            sign=self.key.sign,
            members=self.members,
            expected=self.expected,
            floors=self.floors,
            read=self.store.read,
        )

    def done(self, step: Step) -> bytes:
        """Make a step durable, then send its reply."""
        self.store.apply(step.changes)
        if step.alarm is not None:
            self.alarms.append(step.silos)
        return step.reply

    def join(self, request: bytes) -> bytes:
        return self.done(self.session().join(request))

    def claim(self, request: bytes, *, model: bytes = MODEL, config: bytes = CONFIG) -> Claim:
        claim = self.session().claim(request, model=model, config=config)
        if not claim.resend:
            self.store.apply(claim.changes)
            self.charged.append(claim.t)
        return claim

    def upload(self, request: bytes, vectors: Sequence[np.ndarray] | None = None, *, model: bytes = MODEL) -> bytes:
        """Everything that a request for an upload does."""
        claim = self.claim(request, model=model)
        if claim.resend:
            return self.stored[claim.t]
        return self.masked(claim, vectors)

    def masked(self, claim: Claim, vectors: Sequence[np.ndarray] | None = None) -> bytes:
        ring = self.expected.kinds[claim.kind]
        self.trained += 1
        update = tuple(vectors) if vectors is not None else drawn(ring)
        step = self.session().mask(claim, update)
        self.store.apply(step.changes)
        self.stored[claim.t], self.updates[claim.t] = bytes(step.reply), update
        return self.stored[claim.t]

    def unmask(self, request: bytes) -> bytes:
        return self.done(self.session().unmask(request))

    def close(self, request: bytes) -> bytes:
        return self.done(self.session().close(request))


_generator = np.random.default_rng(20260101)


def drawn(ring: Ring) -> tuple[np.ndarray, ...]:
    """Values on the ring's grid."""
    return tuple(
        _generator.integers(-1000, 1001, segment.length).astype(np.float64) / segment.scale for segment in ring.segments
    )


def refusal(silo: Silo, call: Callable[[], object]) -> Code:
    """The code of a refusal that has changed nothing at the silo."""
    before = dict(silo.store.rows)
    with pytest.raises(SecaggError) as caught:
        call()
    assert silo.store.rows == before
    return caught.value.code


def answered(call: Callable[[], bytes]) -> bytes:
    """The reply, or the notice of a refusal, as a silo's client sends it."""
    try:
        return call()
    except SecaggError as error:
        return notice(error.code)


@dataclass(kw_only=True)
class World:
    """A run: its set-up, the server and the silos; `wire` holds every message (silo, direction, bytes)."""

    setup: Setup
    coordinator: Ed25519PrivateKey
    silos: dict[str, Silo]
    server: ServerSession
    wire: list[tuple[str, str, bytes]] = field(default_factory=list)

    def send(self, silo: str, request: bytes, answer: Callable[[bytes], bytes]) -> bytes:
        """Deliver a request, and keep both ways."""
        self.wire.append((silo, "down", request))
        reply = answered(lambda: answer(request))
        self.wire.append((silo, "up", reply))
        return reply

    def joined(self, names: Iterable[str] | None = None) -> World:
        """Have silos join and the directory made."""
        chosen = self.silos if names is None else names
        invitation = self.server.invitation()
        self.server.admit({name: self.send(name, invitation, self.silos[name].join) for name in chosen})
        return self

    def begin(self, kind: str = "train", cohort: Sequence[str] | None = None) -> Sum:
        return self.server.begin(kind, cohort or self.server.seated, model=MODEL, config=CONFIG)

    def uploads(self, one: Sum, silos: Iterable[str] | None = None) -> dict[str, bytes]:
        chosen = one.cohort if silos is None else silos
        return {name: self.send(name, one.request(name), self.silos[name].upload) for name in chosen}

    def unmasked(self, one: Sum, silos: Iterable[str] | None = None) -> Phase:
        """Send the requests of a phase to silos that are there, and take their replies."""
        requests = one.requests()
        chosen = [name for name in requests if silos is None or name in silos]
        return one.receive({name: self.send(name, requests[name], self.silos[name].unmask) for name in chosen})

    def finished(self, one: Sum, alive: Sequence[Iterable[str] | None] = (None, None, None)) -> Phase:
        """Run a sum to its end; `alive` are the silos that upload, that answer first, and that answer last."""
        one.collect(self.uploads(one, alive[0]))
        for silos in alive[1:]:
            self.unmasked(one, silos)
        return one.phase

    def summed(self, t: int, survivors: Iterable[str]) -> tuple[np.ndarray, ...]:
        """The true sum of some silos."""
        every = [self.silos[name].updates[t] for name in survivors]
        return tuple(np.sum(parts, axis=0) for parts in zip(*every, strict=True))

    def check(self, total: Total, t: int) -> None:
        """Compare a total with the true sum, bit by bit."""
        for got, true in zip(total.vectors, self.summed(t, total.survivors), strict=True):
            assert np.array_equal(got, true)

    # --- what a dishonest coordinator does --------------------------------------------------------------------

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The keys that all silos have joined with, by their own rows."""
        joined = [Joined.read(silo.store.rows[RUN]).reply for silo in self.silos.values() if RUN in silo.store.rows]
        return tuple(Entry.read(reply) for reply in joined)

    def asked(self, keys: Sequence[Entry] | None = None, **changes: Any) -> Request:
        """An unsigned request for sum 1 of everybody, with a directory of these keys."""
        directory = Directory(entries=tuple(self.entries if keys is None else keys))
        values = {
            "directory": directory.hash(self.setup.digest()),
            "t": 1,
            "kind": "train",
            "cohort": directory.silos,
            "model": MODEL,
            "config": CONFIG,
            "entries": directory.to_bytes(),
        }
        return Request(**(values | changes))

    def signed(self, request: Request | Ask | Record, key: Ed25519PrivateKey | None = None) -> bytes:
        """The bytes of an instruction, signed by the coordinator or by another key."""
        statement = request.statement(self.setup.digest()) if isinstance(request, Request) else request.statement()
        return replace(request, signature=(key or self.coordinator).sign(statement)).to_bytes()


def made(
    silos: int,
    *,
    colluding: int = 0,
    least: int | None = None,
    dropped: int | None = None,
    protection: Protection = "local",
    size: int = SIZE,
    floors: Floors | None = None,
    rings: Mapping[str, Ring] | None = None,
    sums: int = 50,
) -> World:
    """A world of silos a, b, ... with the kinds `train`, and `evaluate` without noise unless silos are two."""
    names = tuple(f"silo-{number:03}" for number in range(silos))
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    members = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    coordinator = Ed25519PrivateKey.generate()
    pair = silos == 2
    usual = {
        "train": fitted("train", [("update", size, 1.0), ("loss", 1, 64.0)], silos=silos, protection=protection),
        "evaluate": fitted(
            "evaluate", [("counts", 4, 2.0**20)], silos=silos, protection="local" if pair else "none", resolution=1.0
        ),
    }
    setup = Setup(
        run="0" * 31 + "1",
        roster="a" * 64,
        silos=silos,
        coordinator=coordinator.public_key().public_bytes_raw().hex(),
        least=least or max(2 if pair else 3, colluding + 2),
        max_colluding=colluding,
        most_dropped=silos if dropped is None else dropped,
        sums=sums,
        code="0.1.0",
        plan="none",
        kinds=rings or usual,
    )
    held = floors or (PAIR if pair else Floors())
    every = {name: Silo(name=name, key=keys[name], members=members, expected=setup, floors=held) for name in names}
    return World(setup=setup, coordinator=coordinator, silos=every, server=ServerSession(setup, coordinator, members))


@dataclass(kw_only=True)
class Case:
    """A sum of seven silos of which one may collude (tau = Q = u_min = 5), as far as uploads have come."""

    world: World
    sum: Sum

    @property
    def silo(self) -> Silo:
        return self.world.silos["silo-000"]

    def ask(self, *, key: Ed25519PrivateKey | None = None, silo: str = "silo-000", **changes: Any) -> bytes:
        """The coordinator's next request to a silo, with changes, signed anew."""
        return self.world.signed(replace(Ask.read(self.sum.requests()[silo]), **changes), key)

    def view(self, survivors: Sequence[str], **changes: Any) -> bytes:
        return self.ask(phase="view", body=enc(*survivors), **changes)

    def refused(self, request: bytes, silo: str = "silo-000") -> Code:
        one = self.world.silos[silo]
        return refusal(one, lambda: one.unmask(request))

    def state(self, silo: str = "silo-000") -> State:
        return SumRow.read(self.world.silos[silo].store.rows[sum_key(1)]).state

    def certificate(self, survivors: Sequence[str], signers: Sequence[str], ctx: bytes = b"") -> Any:
        statement = view_statement(ctx or Ask.read(self.ask()).ctx, tuple(survivors))
        return tuple((name, self.world.silos[name].key.sign(statement)) for name in signers)

    def open(self, **changes: Any) -> bytes:
        """The coordinator's request to open, with changes to its body."""
        ask = Ask.read(self.sum.requests()["silo-000"])
        return self.world.signed(replace(ask, body=replace(OpenBody.read(ask.body), **changes).to_bytes()))
