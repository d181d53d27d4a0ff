"""Whole sums under secure aggregation in one process, with the processor's time of each side: for `bench secagg`.

The sessions are those of silos and server, and every silo encodes, masks and signs its own vector. Rows lie in memory,
and an upload is made when the server looks at it, so that one is held at a time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import RunError
from strategies.layout import Vector
from strategies.secagg.claims import Claim
from strategies.secagg.encoding import Bytes
from strategies.secagg.ring import fitted
from strategies.secagg.rows import Step, UploadStep
from strategies.secagg.server import ServerSession
from strategies.secagg.setup import Floors, Setup
from strategies.secagg.silo import SiloSession
from strategies.secagg.sums import Phase, Sum

Advance = Callable[[float], None]

Changing = TypeVar("Changing", Claim, Step, UploadStep)

_CLOCK = time.process_time
_MODEL, _CONFIG = bytes(32), bytes(32)
_VECTORS = 3  # different ones; silos take them in turn
_FLOORS = 3  # last uploads of a sum beside which the floor is taken


@dataclass(kw_only=True)
class Part:
    """What one sum costs one silo, and beside its upload the bare floor; None where that was not taken."""

    upload_s: float = 0.0
    answers_s: float = 0.0
    floor_s: float | None = None
    upload_bytes: int = 0
    answer_bytes: int = 0


@dataclass(kw_only=True)
class Costs:
    """What one sum costs."""

    silos: list[Part]
    server_s: float = 0.0
    open_s: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(kw_only=True)
class Silo:
    """A silo with its rows in memory; each message is answered by a session of its own, as in a process of its own."""

    session: Callable[[Silo], SiloSession]
    rows: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0  # since it was last asked

    def join(self, request: bytes) -> bytes:
        return self._timed(lambda session: session.join(request)).reply

    def unmask(self, request: bytes) -> bytes:
        return self._timed(lambda session: session.unmask(request)).reply

    def close(self, request: bytes) -> bytes:
        return self._timed(lambda session: session.close(request)).reply

    def upload(self, request: bytes, vector: Vector) -> Bytes:
        """Return a masked vector."""
        claim = self._timed(lambda session: session.claim(request, model=_MODEL, config=_CONFIG))
        return self._timed(lambda session: session.mask(claim, [vector])).reply

    def _timed(self, act: Callable[[SiloSession], Changing]) -> Changing:
        """Return what a session gives, its changes made."""
        began = _CLOCK()
        found = act(self.session(self))
        self.seconds += _CLOCK() - began
        for change in found.changes:
            if change.new is None:
                del self.rows[change.key]
            else:
                self.rows[change.key] = change.new
        return found

    def spent(self) -> float:
        """Return the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Cohort:
    """A run that is set up: a third of the silos may collude, all have pinned the directory of keys.

    Args:
        size: length of the vectors.
        silos: how many.
        floor: what is timed beside the last uploads of a sum.
    """

    def __init__(self, size: int, silos: int, floor: Callable[[], None]) -> None:
        self._floor = floor
        names = [f"silo-{number:03}" for number in range(silos)]
        keys = {name: Ed25519PrivateKey.generate() for name in names}
        members = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        coordinator = Ed25519PrivateKey.generate()
        self._setup = _setup(size, silos, coordinator)
        floors = Floors(least=2, pair_with_local_dp=True) if silos == 2 else Floors()
        self._server = ServerSession(self._setup, coordinator, members)

        def session_of(name: str) -> Callable[[Silo], SiloSession]:
            return lambda silo: SiloSession(
                name=name,
                sign=keys[name].sign,
                members=members,
                expected=self._setup,
                floors=floors,
                read=silo.rows.get,
            )

        self._silos = {name: Silo(session=session_of(name)) for name in names}
        generator = np.random.default_rng(1)
        self._vectors = {
            "train": [generator.normal(0, 0.1, size).astype(np.float32) for _ in range(min(_VECTORS, silos))],
            "first": [np.ones(1, np.float32)],
        }
        invitation = self._server.invitation()
        self._server.admit({name: silo.join(invitation) for name, silo in self._silos.items()})
        joined = [silo.spent() for silo in self._silos.values()]
        first = self.run("first", 0, lambda _: None)
        self.setup_s = statistics.median(
            join + part.upload_s + part.answers_s for join, part in zip(joined, first.silos, strict=True)
        )

    def run(self, kind: str, dropped: int, advance: Advance) -> Costs:
        """Run one sum and return what it cost.

        Raises:
            RunError: the total is not the sum of what the silos encoded.
        """
        alive = list(self._silos)[dropped:]
        costs = Costs(silos=[])
        parts = {name: Part() for name in alive}
        began = _CLOCK()
        one = self._server.begin(kind, list(self._silos), model=_MODEL, config=_CONFIG)
        requests = {name: one.request(name) for name in self._silos}
        uploads = _Uploads(alive, lambda name: self._upload(kind, name, requests[name], parts[name], advance))
        one.collect(uploads)
        costs.server_s = _CLOCK() - began - uploads.seconds
        costs.sent_bytes = sum(map(len, requests.values()))
        while one.phase in (Phase.FULL, Phase.VIEW, Phase.OPEN):
            self._exchange(one, parts, costs)
        if one.phase is not Phase.DONE:
            raise RunError(f"the benchmark's sum was aborted: {one.reason}")
        record = one.record()
        for name in alive:
            self._silos[name].close(record)
            parts[name].answers_s += self._silos[name].spent()
            costs.sent_bytes += len(record)
        costs.silos = list(parts.values())
        costs.received_bytes += sum(part.upload_bytes + part.answer_bytes for part in costs.silos)
        self._check(kind, one, alive)
        return costs

    def _upload(self, kind: str, name: str, request: bytes, part: Part, advance: Advance) -> Bytes:
        silo, vectors = self._silos[name], self._vectors[kind]
        reply = silo.upload(request, vectors[self._number(name) % len(vectors)])
        part.upload_s, part.upload_bytes = silo.spent(), len(reply)
        if kind == "train" and self._number(name) >= len(self._silos) - _FLOORS:
            began = _CLOCK()
            self._floor()
            part.floor_s = _CLOCK() - began
        advance(float(len(vectors[0]) * len(self._silos)))
        return reply

    def _exchange(self, one: Sum, parts: Mapping[str, Part], costs: Costs) -> None:
        """Send the requests of a phase, and take the replies."""
        began = _CLOCK()
        requests = one.requests()
        costs.server_s += _CLOCK() - began
        replies = {}
        for name, request in requests.items():
            replies[name] = self._silos[name].unmask(request)
            parts[name].answers_s += self._silos[name].spent()
            parts[name].answer_bytes += len(replies[name])
            costs.sent_bytes += len(request)
        began = _CLOCK()
        one.receive(replies)
        costs.open_s = _CLOCK() - began
        costs.server_s += costs.open_s

    def _number(self, name: str) -> int:
        return int(name.removeprefix("silo-"))

    def _check(self, kind: str, one: Sum, alive: Sequence[str]) -> None:
        ring, vectors = self._setup.kinds[kind], self._vectors[kind]
        exact = np.zeros(ring.size, np.int64)
        for number, vector in enumerate(vectors):
            times = sum(self._number(name) % len(vectors) == number for name in alive)
            exact += times * ring.encode([vector]).view("<i4")[: ring.size].astype(np.int64)
        (total,) = one.total().vectors
        if not np.array_equal(total * ring.segments[0].scale, exact):
            raise RunError("the benchmark's total is not the sum of what its silos encoded")


class _Uploads(Mapping[str, Bytes]):
    """Uploads that are made when they are looked at; `seconds` of that are the silos'."""

    def __init__(self, silos: Sequence[str], make: Callable[[str], Bytes]) -> None:
        self._names, self._make, self.seconds = silos, make, 0.0

    def __getitem__(self, silo: str) -> Bytes:
        began = _CLOCK()
        upload = self._make(silo)
        self.seconds += _CLOCK() - began
        return upload

    def __contains__(self, silo: object) -> bool:
        return silo in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _setup(size: int, silos: int, coordinator: Ed25519PrivateKey) -> Setup:
    kinds = {
        kind: fitted(kind, [("update", length, 1.0)], silos=silos, protection="local")
        for kind, length in (("first", 1), ("train", size))
    }
    colluding = silos // 3
    return Setup(
        run=os.urandom(16).hex(),
        roster="0" * 64,
        silos=silos,
        coordinator=coordinator.public_key().public_bytes_raw().hex(),
        least=max(min(silos, 3), colluding + 2),
        max_colluding=colluding,
        most_dropped=silos,
        sums=1000,
        code="benchmark",
        plan="",
        kinds=kinds,
    )
