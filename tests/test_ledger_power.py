"""No acknowledged entry is lost when power goes, at whatever system call that happens (T16).

Oracle: the trace of a real process, replayed on a disk that keeps only what was synced, with torn sectors and names that
were not synced; the same replay on two other settings of SQLite, which must lose entries, or it proves nothing.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from disk import states, traced
from ledgers import RUN, forget

from client.ledger import Ledger, Place
from strategies.errors import FedsiloError

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace: is not installed")
ROUNDS = 6

WRITER = """
import os, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from ledgers import ROOT, RUN, made, opened, release, reserve
folder = Path(sys.argv[1])
{before}
place = made(folder, "power-loss", roots=[replace(ROOT, epsilon=1000.0, order=0.0)])
os.write(1, b"ack 2\\n")
for round in range(1, {rounds} + 1):
    with opened(place) as ledger:
        os.write(1, b"ack %d\\n" % reserve(ledger, round))
    with opened(place) as ledger:
        os.write(1, b"ack %d\\n" % release(ledger, round))
        ledger.commit(run=RUN, round=round)
        os.write(1, b"ack %d\\n" % (2 + 3 * round))
"""

CONTROL = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1] + "/ledger.db", isolation_level=None)
connection.execute("PRAGMA journal_mode = {journal}")
connection.execute("PRAGMA synchronous = {synchronous}")
connection.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, line BLOB NOT NULL)")
for number in range(1, {rounds} * 3 + 3):
    connection.execute("INSERT INTO entries VALUES (?, ?)", (number, bytes([number]) * 700))
    os.write(1, b"ack %d\\n" % number)
"""


def put(files: dict[str, bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)


def found_in_ledger(folder: Path) -> int:
    """The number of entries of a ledger that opens and holds; 0 when none had been made yet."""
    if not (folder / "keys" / "pin.json").exists():
        return 0
    forget()
    with Ledger.open(Place(path=folder / "ledger.db", keys=folder / "keys", durability="process")) as ledger:
        assert ledger.frozen is None
        return len(ledger.export())


def found_by_sqlite(folder: Path) -> int:
    connection = sqlite3.connect(folder / "ledger.db")
    try:
        connection.execute("PRAGMA synchronous = OFF")  # nothing is lost while looking
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0
    finally:
        connection.close()


def losses(script: str, tmp_path: Path, number: int, found: Callable[[Path], int]) -> tuple[int, int, list[str]]:
    """States looked at, states that lost something, and what the first of them lost."""
    folder, state = tmp_path / "silo", tmp_path / "state"
    folder.mkdir()
    lines = traced(script, folder, trace=tmp_path / "trace")
    looked, lost = 0, []
    for files, acknowledged in states(lines, folder, number, seed=16):
        put(files, state)
        looked += 1
        try:
            there = found(state)
            if there < acknowledged:
                lost.append(f"state {looked}: {there} of {acknowledged} entries")
        except FedsiloError as error:
            lost.append(f"state {looked}: {error}")
    return looked, len(lost), lost[:3]


@needs_strace
def test_no_acknowledged_entry_is_lost_with_the_power(tmp_path: Path, scaled: Callable[..., int]) -> None:
    number = scaled(10_000)
    script = WRITER.format(tests=str(Path(__file__).parent), rounds=ROUNDS, before="")
    looked, lost, first = losses(script, tmp_path, number, found_in_ledger)
    assert looked >= number and (lost, first) == (0, [])
    assert RUN


@needs_strace
def test_without_its_own_sync_of_the_folder_the_ledger_would_lose_entries(
    tmp_path: Path, scaled: Callable[..., int]
) -> None:
    spoilt = "from client.ledger_file import LedgerFile; LedgerFile._sync_folder = lambda self: None"
    script = WRITER.format(tests=str(Path(__file__).parent), rounds=ROUNDS, before=spoilt)
    looked, lost, _ = losses(script, tmp_path, scaled(2000), found_in_ledger)
    assert lost > looked / 20, f"{lost} of {looked}"


@needs_strace
@pytest.mark.parametrize(("journal", "synchronous"), [("WAL", "NORMAL"), ("DELETE", "FULL")])
def test_the_replay_would_have_seen_it(
    journal: str, synchronous: str, tmp_path: Path, scaled: Callable[..., int]
) -> None:
    script = CONTROL.format(journal=journal, synchronous=synchronous, rounds=ROUNDS)
    looked, lost, _ = losses(script, tmp_path, scaled(2000), found_by_sqlite)
    assert lost > looked / 20, f"{lost} of {looked}"


@needs_strace
def test_the_setting_itself_loses_nothing(tmp_path: Path, scaled: Callable[..., int]) -> None:
    script = CONTROL.format(journal="DELETE", synchronous="EXTRA", rounds=ROUNDS)
    looked, lost, first = losses(script, tmp_path, scaled(2000), found_by_sqlite)
    assert looked >= scaled(2000) and (lost, first) == (0, [])
