"""A silo that is killed at any named point of a round has lost no spend, and its next start sends nothing that the ledger
does not know (T28, I1, I3, I10).

Oracle: SIGKILL of a real process that walks the client app's own path; the files that it leaves behind.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledgers import forget
from test_round import FRAME, RUN, STUDY, ask, invite, kinds, manifest, reply_of, request

from client import round as local_round
from client.ledger import Ledger
from client.silo import RunState, Silo
from simulations.silos import make_silos
from strategies import wire
from strategies.privacy.events import merge
from strategies.proof.verdict import verify_chain

POINTS: dict[str, tuple[Any, str, bool]] = {
    "before the reservation": (Ledger, "reserve", True),
    "after the reservation": (Ledger, "reserve", False),
    "before the records are read": (local_round, "read_records", True),
    "after the records are read": (local_round, "read_records", False),
    "before training": (local_round, "train_locally", True),
    "after training": (local_round, "train_locally", False),
    "before the reply is stored": (RunState, "keep_reply", True),
    "after the reply is stored": (RunState, "keep_reply", False),
    "before the release": (Ledger, "release", True),
    "after the release": (Ledger, "release", False),
    "before the egress log": (Silo, "record_egress", True),
    "after the egress log": (Silo, "record_egress", False),
    "before the commit": (Ledger, "commit", True),
    "after the commit": (Ledger, "commit", False),
}


def _walk(folder: Path, point: str) -> None:
    """Rounds 1 and 2 through the client app, and SIGKILL at the point when it is met in round 2."""
    patch = pytest.MonkeyPatch()
    silo = Silo.open(folder)
    ask(silo, "query.invite", invite(), patch)
    ask(silo, "train", request(1), patch)
    owner, name, before = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)

    def killed(*args: Any, **kwargs: Any) -> Any:
        if not before:
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killed)
    ask(silo, "train", request(2), patch)


@pytest.fixture(scope="module")
def workers() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_round_kills", "dp_accounting.rdp"])
    return context


def test_a_round_that_is_killed_anywhere_over_counts_at_most(
    workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: Callable[..., int]
) -> None:
    """All points at the full tier, of each part of the round one otherwise."""
    for point in list(POINTS)[:: len(POINTS) // scaled(len(POINTS), 4)]:
        _killed_at(point, workers, tmp_path / point, monkeypatch)


def _killed_at(point: str, workers: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_silos(STUDY, FRAME, place)[0]
    process = workers.Process(target=_walk, args=(folder, point))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL, f"{point}: the point was not met"
    forget()
    silo = Silo.open(folder)
    there = kinds(silo)
    sent = [json.loads(line) for line in (folder / "egress.jsonl").read_text().splitlines()]
    left = {line["round"] for line in sent if line["privacy"] == "released"}
    assert {("release", round) for round in left} <= set(there), f"{point}: something left without a release"
    with silo.ledger() as ledger:
        assert ledger.frozen is None and verify_chain(ledger.export(), ledger.pins).ok
        reserved = sum(kind == "reserve" for kind, _ in there)
        assert merge(ledger.spent("records")) == merge(STUDY.round_events() * reserved)

    again = ask(silo, "train", request(2), monkeypatch)  # the server asks once more
    reply = reply_of(again)
    stored = silo.state(RUN).reply(2)
    if ("release", 2) in there:  # the very bytes that were released
        assert isinstance(reply, wire.Update) and stored is not None
        with silo.ledger() as ledger:
            entry = ledger.entry(run=RUN, round=2, kind="release")
        assert entry and entry.body["sha256"] == hashlib.sha256(stored).hexdigest()
        assert wire.pack(reply) == stored
    elif ("reserve", 2) in there:  # spent, and not to be had again
        assert reply == wire.Refused(code="protocol")
    else:
        assert isinstance(reply, wire.Update)
    assert kinds(silo)[: len(there)] == there
    third = reply_of(ask(silo, "train", request(3, received=1), monkeypatch))
    assert isinstance(third, wire.Update) and manifest()
