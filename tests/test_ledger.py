"""Laws of the ledger: what is reserved counts for ever, the check and the entry are one, nothing is rewritten.

Oracles: sqlite3 reading the file beside the class; real processes, one of them killed by SIGKILL; the number of rounds
that a budget grants, worked out with the budget's own gate before any process starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ledger import Ledger
from strategies.errors import Refusal, RefusalCode
from strategies.privacy.budget import Budget
from strategies.privacy.events import Exact, Gaussian, from_json, to_json

RUN = "0" * 32
BUDGET = Budget(epsilon=8.0, delta=1e-5)
COST = (Gaussian(noise_multiplier=2.0, sampling_rate=0.5, steps=5),)
GRANTS = BUDGET.rounds_that_fit((), COST, 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, "process") as opened:
        yield opened


def reserve(ledger: Ledger, round: int, *, run: str = RUN, root: str = "records", budget: Budget = BUDGET) -> int:
    return ledger.reserve(data_root=root, run=run, round=round, events=COST, budget=budget)


def release(ledger: Ledger, round: int, *, run: str = RUN) -> int:
    return ledger.release(data_root="records", run=run, round=round, sha256="ab" * 32)


def kinds(ledger: Ledger) -> list[tuple[str, int]]:
    return [(entry.kind, entry.round) for entry in ledger.entries()]


def test_reserve_release_commit(ledger: Ledger) -> None:
    assert [reserve(ledger, 1), release(ledger, 1)] == [1, 2]
    ledger.commit(run=RUN, round=1)
    assert kinds(ledger) == [("reserve", 1), ("release", 1), ("commit", 1)]
    entry = ledger.entry(run=RUN, round=1, kind="release")
    assert entry and entry.body == {"sha256": "ab" * 32} and entry.data_root == "records"
    assert ledger.entry(run=RUN, round=2, kind="reserve") is None
    assert ledger.spent("records") == COST  # a release or a commit costs nothing more


def test_a_reservation_counts_though_it_is_never_released(ledger: Ledger) -> None:
    for round in range(1, GRANTS + 1):
        reserve(ledger, round)
    assert ledger.spent("records") == COST * GRANTS
    with pytest.raises(Refusal, match="does not fit into the budget of 'records'") as refused:
        reserve(ledger, GRANTS + 1)
    assert refused.value.code is RefusalCode.BUDGET
    assert kinds(ledger)[-1] == ("reserve", GRANTS) and len(ledger.entries()) == GRANTS


def test_what_was_spent_is_kept_by_data_root_and_can_be_asked_by_run(ledger: Ledger) -> None:
    other = "1" * 32
    reserve(ledger, 1)
    reserve(ledger, 1, run=other)
    reserve(ledger, 2, run=other, root="elsewhere")
    assert ledger.spent("records") == COST * 2
    assert ledger.spent("records", run=other) == ledger.spent("elsewhere") == COST
    assert ledger.spent("nowhere") == ()


def test_a_round_is_reserved_and_released_once(ledger: Ledger) -> None:
    reserve(ledger, 1)
    release(ledger, 1)
    for again in (reserve, release):
        with pytest.raises(Refusal, match="already has a") as refused:
            again(ledger, 1)
        assert refused.value.code is RefusalCode.PROTOCOL
    assert kinds(ledger) == [("reserve", 1), ("release", 1)]
    reserve(ledger, 1, run="1" * 32)  # another run has rounds of its own


def test_release_needs_a_reservation(ledger: Ledger) -> None:
    reserve(ledger, 1)
    with pytest.raises(Refusal, match="never reserved"):
        release(ledger, 2)
    assert kinds(ledger) == [("reserve", 1)]


def test_commit_needs_a_release_and_twice_is_once(ledger: Ledger) -> None:
    reserve(ledger, 1)
    ledger.commit(run=RUN, round=1)
    assert kinds(ledger) == [("reserve", 1)]
    release(ledger, 1)
    for _ in range(2):
        ledger.commit(run=RUN, round=1)
    assert kinds(ledger) == [("reserve", 1), ("release", 1), ("commit", 1)]


def test_an_unprotected_release_fits_into_no_finite_budget(ledger: Ledger) -> None:
    exact = (Exact(what="model update"),)
    with pytest.raises(Refusal):
        ledger.reserve(data_root="records", run=RUN, round=1, events=exact, budget=BUDGET)
    ledger.reserve(data_root="records", run=RUN, round=1, events=exact, budget=Budget(epsilon=float("inf"), delta=1e-5))
    with pytest.raises(Refusal):  # and once released, nothing fits any more
        reserve(ledger, 2)


events = st.one_of(
    st.builds(
        Gaussian, noise_multiplier=st.floats(1e-6, 1e6), sampling_rate=st.floats(1e-9, 1), steps=st.integers(0, 10**9)
    ),
    st.builds(Exact, what=st.text()),
)


@given(planned=st.lists(events, min_size=1, max_size=4))
def test_events_round_trip(planned: list[Gaussian | Exact], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("ledger") / "ledger.db"
    with Ledger.open(file, "process") as ledger:
        ledger.reserve(data_root="ä", run=RUN, round=1, events=planned, budget=Budget(epsilon=float("inf"), delta=1e-5))
    with Ledger.open(file, "process") as ledger:
        assert ledger.spent("ä") == tuple(planned)
    assert [from_json(to_json(event)) for event in planned] == planned


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET body = '{}'",
        "DELETE FROM entries",
        "REPLACE INTO entries SELECT seq, time, kind, data_root, run, round, '{}' FROM entries",
        "REPLACE INTO entries SELECT NULL, time, kind, data_root, run, round, '{}' FROM entries",
    ],
)
def test_entries_are_never_rewritten(change: str, ledger: Ledger, path: Path) -> None:
    reserve(ledger, 1)
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        connection.execute(change)
    connection.close()
    assert ledger.spent("records") == COST


@pytest.mark.parametrize(("durability", "synchronous"), [("power-loss", 3), ("process", 0)])
def test_pragmas(durability: str, synchronous: int, path: Path) -> None:
    """EXTRA is 3 and OFF is 0 in SQLite's documentation of `PRAGMA synchronous`; WAL would lose acknowledged entries."""
    with Ledger.open(path, durability) as ledger:  # type: ignore[arg-type]
        reserve(ledger, 1)
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


def test_the_default_survives_power_loss(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (3,)


def test_a_failed_transaction_leaves_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "fits", broken)
        with pytest.raises(KeyboardInterrupt):
            reserve(ledger, 1)
    assert ledger.entries() == []
    reserve(ledger, 1)  # and the lock is free


# --- real processes -----------------------------------------------------------------------------------------


def _reserve_all(folder: Path, worker: int, attempts: int, barrier: Any, granted: Any) -> None:
    BUDGET.fits((), COST)  # loads the accountant before the race
    for attempt in range(attempts):
        barrier.wait(timeout=120)
        count = 0
        with Ledger.open(folder / f"{attempt}.db", "process") as ledger, pytest.raises(Refusal) as refused:
            while True:
                reserve(ledger, count + 1, run=f"{worker:032x}")
                count += 1
        assert refused.value.code is RefusalCode.BUDGET
        granted.put((attempt, count))


def test_concurrent_processes_are_granted_the_budget_and_no_more(tmp_path: Path, scaled: Callable[..., int]) -> None:
    spawn, processes, attempts = multiprocessing.get_context("spawn"), 8, scaled(30)
    barrier, granted = spawn.Barrier(processes), spawn.Queue()
    workers = [
        spawn.Process(target=_reserve_all, args=(tmp_path, number, attempts, barrier, granted), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    results = [granted.get(timeout=120) for _ in range(processes * attempts)]
    for worker in workers:
        worker.join()
    for attempt in range(attempts):
        with Ledger.open(tmp_path / f"{attempt}.db", "process") as ledger:
            assert ledger.spent("records") == COST * GRANTS
        assert sum(count for number, count in results if number == attempt) == GRANTS


_CRASH = """
import sys, time
from pathlib import Path
from client.ledger import Ledger
from strategies.privacy.budget import Budget
from strategies.privacy.events import Gaussian
with Ledger.open(Path(sys.argv[1])) as ledger:
    ledger.reserve(data_root="records", run="0" * 32, round=1, events=(Gaussian(noise_multiplier=2.0, sampling_rate=0.5,
                   steps=5),), budget=Budget(epsilon=8.0, delta=1e-5))
    print("reserved", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_has_spent_what_it_reserved(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _CRASH, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "reserved\n"
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    with Ledger.open(path) as ledger:
        assert kinds(ledger) == [("reserve", 1)] and ledger.spent("records") == COST
        with pytest.raises(Refusal, match="already has a reserve entry"):
            reserve(ledger, 1)
        reserve(ledger, 2)
