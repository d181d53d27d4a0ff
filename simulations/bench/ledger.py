"""What the silo's ledger costs: appending and gating against bare commits, verification against bare cryptography.

    python -m simulations.bench.ledger [--json] [--commits 200] [--filled 10000] [--verified 100000] [--folder .]

The bare commit is one INSERT of as many bytes into a table of the same form, with `journal_mode = DELETE` and
`synchronous = EXTRA`, in the same run: blocks of both take turns, and the ratio is that of their sums. The bare
verification hashes the same lines and checks the same Ed25519 signatures over the same messages, all of them prepared;
it is timed in seconds of the processor, as nothing in it waits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from client.filesystem import kind_of
from client.keys import Passphrases, make_keys, officer_key
from client.ledger import Ledger, Place
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Gaussian
from strategies.proof.chain import Pins
from strategies.proof.entries import ZERO, Entry, events_value, public_hex, root_value, sign
from strategies.proof.verdict import verify_chain

WORDS = Passphrases(silo=b"silo", officer=b"officer")
ROOT = DataRoot(name="records", unit="record", epsilon=1e9, delta=1e-5)  # finite, so that the gate is asked
EVENTS = (Gaussian(noise_multiplier=1.1504, sampling_rate=0.05, steps=20),)
RUN = "0" * 32
BLOCK = 1  # commits before the other side's turn


def rows(*, commits: int, filled: int, verified: int, folder: Path) -> list[dict[str, Any]]:
    """Return one row a measurement.

    Args:
        commits: entries that are timed, and as many bare commits.
        filled: entries that a filled ledger holds before.
        verified: entries of the ledger that is verified.
        folder: where the files are written; the disk decides what a commit costs.
    """
    found = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-ledger-") as scratch:
        for entries in (10, filled):
            found.append(_append_row(Path(scratch) / str(entries), entries, commits))
    found.append(_verify_row(verified))
    return found


def machine(folder: Path) -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in _lines(info) if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(names),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cryptography": version("cryptography"),
        "dp-accounting": version("dp-accounting"),
        "file system": kind_of(folder),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _append_row(folder: Path, entries: int, commits: int) -> dict[str, Any]:
    place = Place(path=folder / "ledger.db", keys=folder / "keys", passphrase=WORDS.silo, allow_volatile=True)
    make_keys(place.keys, WORDS)
    officer = officer_key(place.keys, WORDS.officer)
    Ledger.create(place, silo="bench", officer=officer)
    with Ledger.open(place) as ledger:
        ledger.register(ROOT, officer=officer, units=[b"1"])
        size = 0
        with _unsynced(ledger):
            for round in range(1, entries - 1):
                ledger.reserve(data_root="records", run=RUN, round=round, events=EVENTS)
        size = len(ledger.export()[-1])
        with _bare(folder / "bare.db", entries, size) as bare:
            numbers = iter(range(entries, entries + commits))
            times = _taking_turns(
                lambda: ledger.reserve(data_root="records", run=RUN, round=next(numbers), events=EVENTS), bare, commits
            )
    own, plain = (statistics.median(part) for part in times)
    return {
        "what": "append and gate",
        "entries_before": entries,
        "entries": commits,
        "seconds_each": own,
        "plain_seconds_each": plain,
        "ratio_to_plain": sum(times[0]) / sum(times[1]),
        "ratio_of_medians": own / plain,
    }


class _unsynced:  # noqa: N801 - reads as a statement
    """Leave the syncs out while a ledger is filled."""

    def __init__(self, ledger: Ledger) -> None:
        self._connection = ledger._book._file._connection

    def __enter__(self) -> None:
        (self._before,) = self._connection.execute("PRAGMA synchronous").fetchone()
        self._connection.execute("PRAGMA synchronous = OFF")

    def __exit__(self, *_: object) -> None:
        self._connection.execute(f"PRAGMA synchronous = {self._before}")


class _bare:  # noqa: N801
    """A table of the same form and size; calling it is one bare commit."""

    def __init__(self, path: Path, entries: int, size: int) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.execute("PRAGMA synchronous = EXTRA")
        self._connection.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, line BLOB NOT NULL) STRICT")
        self._line, self._next = bytes(size), entries
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO entries VALUES (?, ?)", [(n, self._line) for n in range(entries)])
        self._connection.execute("COMMIT")

    def __enter__(self) -> Callable[[], None]:
        return self._commit

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _commit(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO entries VALUES (?, ?)", (self._next, self._line))
        self._connection.execute("COMMIT")
        self._next += 1


def _taking_turns(own: Callable[[], Any], bare: Callable[[], Any], count: int) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for start in range(0, count, BLOCK):
        for act, taken in zip((own, bare), times, strict=True):
            for _ in range(min(BLOCK, count - start)):
                begin = time.perf_counter()
                act()
                taken.append(time.perf_counter() - begin)
    return times


def _verify_row(entries: int) -> dict[str, Any]:
    key, officer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    pins = Pins(ledger_id="ab" * 32, ledger_key=public_hex(key), dpo_key=public_hex(officer))
    lines, checks = _ledger_of(entries, pins, {"ledger": key, "dpo": officer})
    public = {role: Ed25519PublicKey.from_public_bytes(bytes.fromhex(k)) for role, k in _keys(pins)}
    begin = time.process_time()
    for line in lines:
        hashlib.sha256(line).digest()
    for role, signature, message in checks:
        public[role].verify(signature, message)
    plain = time.process_time() - begin
    begin = time.process_time()
    verdict = verify_chain(lines, pins)
    own = time.process_time() - begin
    assert verdict.ok and verdict.entries == entries, verdict.problem
    return {
        "what": "verify",
        "entries": entries,
        "bytes": sum(map(len, lines)),
        "cpu_seconds": own,
        "plain_cpu_seconds": plain,
        "ratio_to_plain": own / plain,
    }


def _keys(pins: Pins) -> tuple[tuple[str, str], ...]:
    return (("ledger", pins.ledger_key), ("dpo", pins.dpo_key))


def _ledger_of(
    entries: int, pins: Pins, keys: dict[str, Ed25519PrivateKey]
) -> tuple[list[bytes], list[tuple[str, bytes, bytes]]]:
    """Return lines of whole rounds, and role, signature and message of each signature in them."""
    genesis = {"silo": "bench", "ledger_key": pins.ledger_key, "dpo_key": pins.dpo_key, "durability": "power-loss"}
    reserve = {"events": events_value(EVENTS), "receipts": []}
    steps: list[tuple[str, dict[str, Any]]] = [("reserve", reserve), ("release", {"sha256": "ab" * 32}), ("commit", {})]
    first: list[tuple[str, dict[str, Any]]] = [("genesis", genesis), ("data_root", root_value(ROOT))]
    lines: list[bytes] = []
    checks: list[tuple[str, bytes, bytes]] = []
    prev = ZERO
    for seq in range(1, entries + 1):
        round, step = divmod(seq - 3, 3)
        kind, body = first[seq - 1] if seq < 3 else steps[step]
        place: dict[str, Any] = {"data_root": "records"} if seq == 2 else {}
        place = {"data_root": "records", "run": RUN, "round": round + 1} if seq > 2 else place
        entry = Entry(
            ledger_id=pins.ledger_id, seq=seq, prev=prev, time="2026-01-31T12:00:00.000Z", boot="0" * 32, kind=kind,
            body=body, **place,
        )  # fmt: skip
        signed = sign(entry, keys if seq < 3 else {"ledger": keys["ledger"]})
        prev = signed.hash
        lines.append(signed.line)
        checks += [(role, bytes.fromhex(text), signed.message) for role, text in signed.signatures.items()]
    return lines, checks


def main() -> None:
    """Print ratios, machine and versions."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.ledger", description=__doc__)
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--filled", type=int, default=10_000)
    parser.add_argument("--verified", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    facts: dict[str, Any] = {
        "machine": machine(folder),
        "rows": rows(commits=chosen.commits, filled=chosen.filled, verified=chosen.verified, folder=folder),
    }
    if chosen.json:
        print(json.dumps(facts))
        return
    print(", ".join(f"{name} {value}" for name, value in facts["machine"].items()))
    for row in facts["rows"]:
        print(
            ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
