"""What breaks the ledger never lets more be spent: a kill, a failing call of the system, a bit that turned (T17, T26,
T28).

Oracles: SIGKILL of real processes; a preloaded library, compiled here, that makes any one system call fail; the entries
as they were before a bit was flipped. After every fault the same invariants: what was acknowledged is there, the chain
holds, and nothing was acknowledged after an error.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ledgers import COST, ROOT, RUN, forget, made, opened, place_in, release, reserve, steps

from client.ledger import Ledger, Place
from strategies.errors import LedgerError
from strategies.proof.verdict import verify_chain

LARGE = replace(ROOT, epsilon=1e6, order=0.0)


def assert_sound(place: Place, acknowledged: list[tuple[str, int]], in_flight: int = 1) -> None:
    """The invariants I1, I3 and I10, with the eyes of a new process: nothing acknowledged is lost, the chain holds, and
    at most what was on its way when the fault came is there beside it."""
    forget()
    with opened(place) as ledger:
        assert ledger.frozen is None and verify_chain(ledger.export(), ledger.pins).ok
        there = steps(ledger)
        assert there[: len(acknowledged)] == acknowledged and len(there) <= len(acknowledged) + in_flight
        assert ledger.spent("records") == COST * sum(kind == "reserve" for kind, _ in there)


# --- kill ---------------------------------------------------------------------------------------------------


def _write(folder: Path, durability: Any, first: int, pipe: Any) -> None:
    """Rounds without end; each step is told after it was acknowledged."""
    with opened(place_in(folder, durability)) as ledger:
        os.write(pipe.fileno(), b"ready 0\n")
        for round in range(first, first + 10_000):
            reserve(ledger, round)
            os.write(pipe.fileno(), b"reserve %d\n" % round)
            release(ledger, round)
            os.write(pipe.fileno(), b"release %d\n" % round)
            ledger.commit(run=RUN, round=round)
            os.write(pipe.fileno(), b"commit %d\n" % round)


def test_killed_writers_lose_nothing(tmp_path: Path, scaled: Callable[..., int]) -> None:
    fresh, draw = multiprocessing.get_context("forkserver"), random.Random(28)
    fresh.set_forkserver_preload(["test_ledger_faults", "dp_accounting.rdp"])
    for durability, writers, longest in (("process", scaled(200), 0.03), ("power-loss", scaled(100), 0.3)):
        written = 0
        for number in range(writers):
            if number % 20 == 0:  # a new ledger now and then, so that looking at it stays quick
                folder = tmp_path / f"{durability}-{number}"
                place, acknowledged = made(folder, durability, roots=[LARGE]), []  # type: ignore[arg-type]
            first = 1 + max((round for _, round in acknowledged), default=0)
            reader, writer = fresh.Pipe(duplex=False)
            process = fresh.Process(target=_write, args=(folder, durability, first, writer))
            process.start()
            writer.close()
            told = os.read(reader.fileno(), 8)
            time.sleep(draw.uniform(0, longest))
            os.kill(process.pid, signal.SIGKILL)
            while more := os.read(reader.fileno(), 65536):
                told += more
            process.join()
            assert process.exitcode == -signal.SIGKILL
            reader.close()
            words = [line.split() for line in told.decode().splitlines()[1:]]
            acknowledged += [(kind, int(round)) for kind, round in words]
            assert_sound(place, acknowledged)
            with opened(place) as ledger:
                there = steps(ledger)
            written += len(words)
            acknowledged = there  # what came to stand without being told is spent as well
        assert written > writers, "the writers were killed before they wrote"


# --- system calls that fail ---------------------------------------------------------------------------------

# errno (or -1: a write that is cut in half), and whether the call fails from there on or once
FAULTS = {
    "EIO once": (errno.EIO, 0),
    "EIO from there on": (errno.EIO, 1),
    "ENOSPC from there on": (errno.ENOSPC, 1),
    "EDQUOT once": (errno.EDQUOT, 0),
    "EINTR once": (errno.EINTR, 0),
    "short write once": (-1, 0),
}

_FAULTY = """
import ctypes, json, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from ledgers import RUN, forget, opened, place_in, release, reserve
from strategies.errors import FedsiloError
shim = ctypes.CDLL(None)
base, work = Path(sys.argv[1]), Path(sys.argv[2])

def steps(ledger):
    yield "reserve 2", lambda: reserve(ledger, 2)
    yield "release 2", lambda: release(ledger, 2)
    yield "commit 2", lambda: ledger.commit(run=RUN, round=2)
    yield "reserve 3", lambda: reserve(ledger, 3)

def case(name, kind, lasting, at):
    folder = work / ("%s %d" % (name, at))
    shutil.copytree(base, folder)
    forget()
    told, after, errors = [], [], []
    shim.fault_arm(str(folder).encode(), at, kind, lasting)
    try:
        with opened(place_in(folder, "power-loss")) as ledger:
            for step, act in steps(ledger):
                if step == "commit 2" and "release 2" not in told:
                    continue
                try:
                    act()
                    (after if "LedgerError" in errors else told).append(step)
                except FedsiloError as problem:
                    errors.append(type(problem).__name__)
    except FedsiloError as problem:
        errors.append(type(problem).__name__)
    hit = shim.fault_hits()
    shim.fault_disarm()
    return dict(fault=name, at=at, told=told, after=after, errors=errors, folder=str(folder)) if hit else None

results = []
for name, (kind, lasting) in json.loads(sys.argv[3]).items():
    at = 1
    while found := case(name, kind, lasting, at):
        results.append(found)
        at += 1
print(json.dumps(results))
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc: is not installed")
def test_a_system_call_that_fails_stops_the_ledger(tmp_path: Path) -> None:
    library, source = tmp_path / "faulty.so", Path(__file__).parent / "faulty.c"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    base = made(tmp_path / "base", "power-loss", roots=[LARGE])
    with opened(base) as ledger:
        reserve(ledger, 1)
    (tmp_path / "work").mkdir()
    script = _FAULTY.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(tmp_path / "base"), str(tmp_path / "work"), json.dumps(FAULTS)]
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=600)
    cases = json.loads(done.stdout)
    for case in cases:
        where = f"{case['fault']}, call {case['at']}"
        told = [("reserve", 1), *((step.split()[0], int(step.split()[1])) for step in case["told"])]
        assert case["after"] == [], f"{where}: acknowledged after an error"
        assert case["errors"] or len(told) == 5, f"{where}: nothing was said and something is missing"
        place = place_in(Path(case["folder"]), "power-loss")
        assert_sound(place, told)
        with opened(place) as ledger:  # and it goes on
            reserve(ledger, 9)
        assert not place.marker.exists()
    for name, (kind, _) in FAULTS.items():
        own = [case for case in cases if case["fault"] == name]
        assert len(own) > 20, "the library saw too few calls of the system"
        if kind not in (errno.EINTR, -1):  # after which SQLite itself may go on
            assert sum(bool(case["errors"]) for case in own) > 0.8 * len(own)


def test_a_disk_that_stays_full_keeps_it_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    from client.ledger_file import LedgerFile

    place = made(tmp_path, roots=[LARGE])

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with opened(place) as ledger:
        reserve(ledger, 1)
        with monkeypatch.context() as patch:
            patch.setattr(LedgerFile, "append", full)
            with pytest.raises(LedgerError, match=r"could not be written .*full.*; nothing was acknowledged"):
                release(ledger, 1)
        assert place.marker.exists() and "could not be written" in str(ledger.frozen)
        for again in (lambda: release(ledger, 1), lambda: reserve(ledger, 2), ledger.head):
            with pytest.raises(LedgerError, match="frozen"):
                again()
    with opened(place) as ledger:  # verified on opening
        assert ledger.frozen is None and not place.marker.exists()
        release(ledger, 1)


def test_a_mark_of_another_process_stops_this_one(tmp_path: Path) -> None:
    place = made(tmp_path, roots=[LARGE])
    with opened(place) as ledger:
        reserve(ledger, 1)
        place.marker.write_bytes(b"torn")
        with pytest.raises(LedgerError, match="another process has frozen"):
            reserve(ledger, 2)
    with opened(place) as ledger:
        assert not place.marker.exists()
        reserve(ledger, 2)


def test_acknowledged_entries_that_are_gone_after_an_error_stay_missed(tmp_path: Path) -> None:
    """A failed sync may take with it what came before; then only the officer goes on, and what was spent is adopted."""
    place = made(tmp_path, roots=[LARGE])
    with opened(place) as ledger:
        reserve(ledger, 1)
        older = place.path.read_bytes()
        reserve(ledger, 2)
        ledger._book._freeze("written by a test", ledger.head().head)
    place.path.write_bytes(older)
    forget()
    for _ in range(2):
        with opened(place) as ledger:
            assert ledger.frozen == "written by a test"
            with pytest.raises(LedgerError, match="is frozen"):
                reserve(ledger, 3)
        forget()
    from ledgers import officer_of

    with opened(place) as ledger:
        ledger.restore(officer=officer_of(place), reason="the disk lost a page")
        assert ledger.balance("records").spent == LARGE.spent(COST * 2)
        reserve(ledger, 3)
        assert verify_chain(ledger.export(), ledger.pins).ok


# --- bits ---------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_the_file_never_makes_less_of_what_was_spent(
    tmp_path: Path, scaled: Callable[..., int]
) -> None:
    """Found: one bit in the header of a page hid the last four of five entries."""
    place = made(tmp_path, roots=[LARGE])
    with opened(place) as ledger:
        reserve(ledger, 1)
        release(ledger, 1)
        ledger.commit(run=RUN, round=1)
        before = ledger.export()
    whole = place.path.read_bytes()
    bits = len(whole) * 8
    chosen = set(random.Random(17).sample(range(bits), bits if scaled(10) == 10 else bits // 80))
    chosen |= {page * 8 + bit for page in range(0, len(whole), 4096) for bit in range(30 * 8)}  # headers of pages
    seen = 0
    for bit in chosen:
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        place.path.write_bytes(spoilt)
        forget()
        try:
            with Ledger.open(place) as ledger:
                assert ledger.export() == before, f"bit {bit}: another ledger was accepted"
                assert ledger.spent("records") == COST
        except LedgerError:
            seen += 1
    assert seen > len(chosen) * 0.1, "bits of the entries themselves were not seen"
