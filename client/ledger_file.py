"""Lines in SQLite that only ever become more: the file beneath the ledger.

One file, rollback journal, and the syncs of `synchronous = EXTRA`: those of FULL, and one of the folder when the
journal has gone, without which an acknowledged line may be lost with the power (tests/test_ledger_power.py). That one
is made here, on the folder as this object holds it open: SQLite says nothing where it cannot open it. A transaction
holds an flock on a file beside the ledger, for one writer at a time among processes. The line is the truth; there is
no other column that could say something else.

Beside the lines lies what secure aggregation keeps of each run, in rows that do change, each by compare-and-set: they
stand here so that one transaction moves a sum and reserves its cost, and so that a ledger that was rolled back or
copied has not two states of one sum. What a change takes away is overwritten in the file.

Guarantees: a line that was appended is never changed, replaced or taken away by this program, nor by SQL that leaves
the triggers in place. After an error while writing, this object writes nothing more.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from client.keys import sync_folder
from strategies.errors import LedgerError
from strategies.secagg.rows import Change

Durability = Literal["power-loss", "process"]

SCHEMA = {
    "sums": "CREATE TABLE sums (run TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (run, key)) "
    "STRICT, WITHOUT ROWID",
    "entries": "CREATE TABLE entries (seq INTEGER PRIMARY KEY, line BLOB NOT NULL) STRICT",
    "sketches": "CREATE TABLE sketches (seq INTEGER PRIMARY KEY, data_root TEXT NOT NULL, macs BLOB NOT NULL) STRICT",
    **{
        f"{table}_{change}": f"CREATE TRIGGER {table}_{change} BEFORE {change.upper()} ON {table} {when}"
        "BEGIN SELECT RAISE(ABORT, 'append only'); END"
        for table in ("entries", "sketches")
        for change, when in (
            ("update", ""),
            ("delete", ""),
            ("insert", f"WHEN NEW.seq <= (SELECT max(seq) FROM {table}) "),  # noqa: S608 - `replace` is no way around
        )
    },
}
COUNTED = 2**31  # the header holds that many positions
_WAIT_S = 30.0


class LedgerFile:
    """An open ledger file.

    Args:
        path: of the SQLite file.
        durable: whether each transaction is synced.
        new: make the file; it must not be there.

    Raises:
        LedgerError: the file is missing, damaged, locked, or has another form than a ledger's.
    """

    def __init__(self, path: Path, *, durable: bool, new: bool = False) -> None:
        self.path, self.durable = path, durable
        self._broken, self._folder = False, -1
        try:
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(f"the lock beside {path} cannot be opened: {error.strerror}") from None
        try:
            with self._locked():
                self._connection = self._connect(new)
                self._inode = path.stat().st_ino
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise LedgerError(f"{path.parent} cannot be opened: {error.strerror}") from None

    def close(self) -> None:
        """Close the file; an unfinished transaction is rolled back by whoever opens it next."""
        self._connection.close()
        for descriptor in (self._folder, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._folder = self._lock = -1

    def free_bytes(self) -> int:
        """Return how much room the file system has beside the ledger."""
        disk = os.fstatvfs(self._folder)
        return disk.f_bavail * disk.f_frsize

    # --- reading and writing --------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One view of the file until the block ends.

        Raises:
            LedgerError: the file cannot be read.
        """
        with self._errors():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):
                self._connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the ledger alone; what was appended is durable when the block has ended, or not there at all.

        Raises:
            LedgerError: it cannot be had alone, or writing failed; then nothing was acknowledged.
        """
        if self._broken:
            raise LedgerError(f"{self.path} is frozen after an error while writing; open it again to verify it")
        with self._locked():
            if self._replaced():
                raise LedgerError(f"{self.path} was replaced by another file while it was open; open it again")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
                self._sync_folder()
            except sqlite3.Error as error:
                # Another program may hold the file; all else has failed while writing, or while undoing a crash.
                self._broken = getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY
                self._roll_back()
                raise LedgerError(f"{self.path} could not be written ({error}); nothing was acknowledged") from None
            except BaseException:
                self._roll_back()
                raise

    @property
    def broken(self) -> bool:
        """Whether an error while writing has stopped this object."""
        return self._broken

    def lines(self, since: int = 1) -> Generator[tuple[int, bytes]]:
        """Return positions and lines in order, inside `reading` or `writing`.

        Raises:
            LedgerError: the file cannot be read.
        """
        with self._errors():
            yield from self._connection.execute("SELECT seq, line FROM entries WHERE seq >= ? ORDER BY seq", (since,))

    def line(self, seq: int) -> bytes | None:
        """Return the line at a position.

        Raises:
            LedgerError: the file cannot be read.
        """
        with self._errors():
            found = self._connection.execute("SELECT line FROM entries WHERE seq = ?", (seq,)).fetchone()
        return found[0] if found else None

    def append(self, seq: int, line: bytes) -> None:
        """Add a line, inside `writing`."""
        self._connection.execute("INSERT INTO entries (seq, line) VALUES (?, ?)", (seq, line))
        self._connection.execute(f"PRAGMA user_version = {seq % COUNTED}")

    def last(self) -> int:
        """Return the position of the last line as the file's header has it, on a page that each commit writes anyway.

        A damaged page may hide the last lines, which no hash link would miss.

        Raises:
            LedgerError: the file cannot be read.
        """
        try:  # without `_errors`, whose frame would be felt in every entry
            return int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path} cannot be read: {error}") from None

    def sketches(self) -> dict[str, bytes]:
        """Return the sketch of units by data root.

        Raises:
            LedgerError: the file cannot be read.
        """
        with self._errors():
            return dict(self._connection.execute("SELECT data_root, macs FROM sketches ORDER BY seq"))

    def keep_sketch(self, data_root: str, macs: bytes) -> None:
        """Add the sketch of a data root's units, inside `writing`."""
        self._connection.execute(
            "INSERT INTO sketches SELECT coalesce(max(seq), 0) + 1, ?, ? FROM sketches", (data_root, macs)
        )

    def row(self, run: str, key: str) -> bytes | None:
        """Return what secure aggregation keeps of a run under a key.

        Raises:
            LedgerError: the file cannot be read.
        """
        with self._errors():
            found = self._connection.execute("SELECT value FROM sums WHERE run = ? AND key = ?", (run, key)).fetchone()
        return bytes(found[0]) if found else None

    def change(self, run: str, changes: Iterable[Change]) -> bool:
        """Compare and set rows of a run, inside `writing`; at False, the block must end with an error."""
        for change in changes:
            if self.row(run, change.key) != change.expected:
                return False
            if change.new is None:
                self._connection.execute("DELETE FROM sums WHERE run = ? AND key = ?", (run, change.key))
            else:
                self._connection.execute("REPLACE INTO sums VALUES (?, ?, ?)", (run, change.key, change.new))
        return True

    def rewritten(self) -> None:
        """Put a copy of the file, synced as a whole, in its place; this object is closed.

        After a failed sync the kernel may hold pages that it takes for written and the disk does not have; a new file
        rests on none of them.

        Raises:
            LedgerError: the copy cannot be made.
        """
        part = self.path.with_suffix(".part")
        try:
            with self._locked():
                self._connection.close()
                if self.path.with_name(f"{self.path.name}-journal").exists():
                    raise LedgerError(f"{self.path} has an unfinished transaction; open it again")
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self.path.read_bytes())
                    file.flush()
                    os.fsync(descriptor)
                part.replace(self.path)
                sync_folder(self.path.parent)
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be written anew ({error.strerror}); it stays frozen") from None
        finally:
            self.close()

    # --- within ---------------------------------------------------------------------------------------------

    def _connect(self, new: bool) -> sqlite3.Connection:
        mode, connection = ("rwc" if new else "rw"), None
        if new and self.path.exists():
            raise LedgerError(f"{self.path} is there already and is never replaced")
        try:
            if new:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            uri = f"file:{quote(str(self.path.absolute()))}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None)
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.durable else 'OFF'}")  # EXTRA's is _sync_folder
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            connection.execute("PRAGMA secure_delete = ON").fetchone()
            if new:
                connection.executescript(";".join(["BEGIN IMMEDIATE", *SCHEMA.values(), "COMMIT"]))
            found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
            if found != SCHEMA:
                raise LedgerError(f"{self.path} is damaged or no ledger of this version: it has other tables")
        except (sqlite3.Error, OSError, UnicodeError) as error:
            if connection is not None:
                connection.close()
            raise LedgerError(f"{self.path} is no ledger that can be opened: {error}") from None
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _replaced(self) -> bool:
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def _sync_folder(self) -> None:
        """Sync the end of the journal, as `synchronous = EXTRA` would; from here on the transaction cannot be lost."""
        try:
            if self.durable:
                os.fsync(self._folder)
        except OSError as error:
            self._broken = True
            raise LedgerError(
                f"{self.path.parent} could not be synced ({error.strerror}); nothing was acknowledged"
            ) from None

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, MemoryError) as error:  # a damaged length may ask for any amount of memory
            raise LedgerError(f"{self.path} cannot be read: {error}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LedgerError(f"another process holds {self.path} for more than {_WAIT_S:g} s") from None
                time.sleep(0.001)
            except OSError as error:
                raise LedgerError(f"{self.path} cannot be locked: {error.strerror}") from None
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
