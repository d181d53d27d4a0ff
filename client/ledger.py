"""The silo's durable record of every release, and the gate in front of the next one.

Reserve (before any record is read), release (the hash of the reply's bytes, before they are sent), commit (the
server has them). A reservation counts as spent from the moment it stands, whatever happens after it: a crash may
over-count, never under-count. What was spent is always recomputed from the entries.

SQLite, one file, rollback journal; `synchronous = EXTRA` also syncs the directory when the journal goes, so that an
acknowledged entry survives a power loss. `durability = "process"` (simulated silos) leaves the syncs out.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from strategies.errors import Refusal, RefusalCode
from strategies.privacy.budget import Budget
from strategies.privacy.events import Event, from_json, to_json

Durability = Literal["power-loss", "process"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('reserve', 'release', 'commit')),
    data_root TEXT NOT NULL,
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS once ON entries (run, round, kind);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS no_replace BEFORE INSERT ON entries WHEN EXISTS (
    SELECT 1 FROM entries WHERE seq = NEW.seq OR (run = NEW.run AND round = NEW.round AND kind = NEW.kind)
) BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger.

    Args:
        seq: position, from 1.
        time: UTC, for people; nothing is decided by it.
        kind: reserve, release or commit.
        data_root: the data set that the entry speaks of.
        run: identity of the run.
        round: round of the run.
        body: events of a reservation, hash of a release.
    """

    seq: int
    time: str
    kind: str
    data_root: str
    run: str
    round: int
    body: dict[str, Any]


class Ledger:
    """An open ledger file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, path: Path, durability: Durability = "power-loss") -> Iterator[Ledger]:
        """Open or make the ledger at `path`; closed when the block ends."""
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute(f"PRAGMA synchronous = {'EXTRA' if durability == 'power-loss' else 'OFF'}")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'no_replace'").fetchone():
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            yield cls(connection)
        finally:
            connection.close()

    def reserve(self, *, data_root: str, run: str, round: int, events: Sequence[Event], budget: Budget) -> int:
        """Set aside what one round releases at worst, if it fits; return the entry's position.

        The check and the entry are one transaction, so concurrent runs cannot both take the last of a budget.

        Raises:
            Refusal: it does not fit (`budget`), or this round was reserved before (`protocol`).
        """
        with self._transaction():
            spent = self.spent(data_root)
            if not budget.fits(spent, events):
                raise Refusal(
                    RefusalCode.BUDGET,
                    f"round {round} does not fit into the budget of '{data_root}': {budget.spent(spent)} of "
                    f"epsilon {budget.epsilon} at delta {budget.delta} is spent",
                )
            body = {"events": [to_json(event) for event in events]}
            return self._append("reserve", data_root, run, round, body)

    def release(self, *, data_root: str, run: str, round: int, sha256: str) -> int:
        """Record that bytes with this hash are about to leave for a reserved round."""
        with self._transaction():
            if not self._entries("run = ? AND round = ? AND kind = 'reserve'", (run, round)):
                raise Refusal(RefusalCode.INTERNAL, f"round {round} of run {run} was never reserved")
            return self._append("release", data_root, run, round, {"sha256": sha256})

    def commit(self, *, run: str, round: int) -> None:
        """Record that the server has the release of a round; a second time is the same as once."""
        with self._transaction():
            found = {entry.kind: entry for entry in self._entries("run = ? AND round = ?", (run, round))}
            if "release" in found and "commit" not in found:
                self._append("commit", found["release"].data_root, run, round, {})

    def spent(self, data_root: str, *, run: str | None = None) -> tuple[Event, ...]:
        """Return every event ever reserved on a data root (of one run, if named)."""
        rows = self._entries("kind = 'reserve' AND data_root = ?", (data_root,))
        return tuple(from_json(event) for entry in rows if run in (None, entry.run) for event in entry.body["events"])

    def entry(self, *, run: str, round: int, kind: str) -> Entry | None:
        """Return one entry, if it is there."""
        found = self._entries("run = ? AND round = ? AND kind = ?", (run, round, kind))
        return found[0] if found else None

    def entries(self) -> list[Entry]:
        """Return the whole ledger in order."""
        return self._entries("TRUE", ())

    def _entries(self, where: str, values: tuple[object, ...]) -> list[Entry]:
        query = f"SELECT seq, time, kind, data_root, run, round, body FROM entries WHERE {where} ORDER BY seq"  # noqa: S608
        return [
            Entry(seq=s, time=t, kind=k, data_root=d, run=r, round=n, body=json.loads(b))
            for s, t, k, d, r, n, b in self._connection.execute(query, values)
        ]

    def _append(self, kind: str, data_root: str, run: str, round: int, body: dict[str, Any]) -> int:
        row = (
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            kind,
            data_root,
            run,
            round,
            json.dumps(body, sort_keys=True),
        )
        try:
            cursor = self._connection.execute(
                "INSERT INTO entries (time, kind, data_root, run, round, body) VALUES (?, ?, ?, ?, ?, ?)", row
            )
        except sqlite3.IntegrityError:
            raise Refusal(RefusalCode.PROTOCOL, f"round {round} of run {run} already has a {kind} entry") from None
        return int(cursor.lastrowid or 0)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
