"""The ledger's benchmark measures what it says: as many entries on both sides, the same bytes, a ledger that holds.

No figure is asserted here: time is for `python -m simulations.bench.ledger`, whose figures stand in RESULTS.md.
"""

from __future__ import annotations

from pathlib import Path

from simulations.bench import ledger as bench


def test_rows_of_the_ledger(tmp_path: Path) -> None:
    first, second, verified = bench.rows(commits=3, filled=12, verified=23, folder=tmp_path)
    assert (first["entries_before"], second["entries_before"], first["entries"]) == (10, 12, 3)
    assert all(row["seconds_each"] > 0 and row["ratio_to_plain"] > 0 for row in (first, second))
    assert verified["entries"] == 23 and verified["ratio_to_plain"] > 0
    assert list(tmp_path.iterdir()) == []
    assert {"processor", "cores", "python", "sqlite", "cryptography"} <= bench.machine(Path(__file__).parent).keys()


def test_both_sides_write_as_much(tmp_path: Path) -> None:
    with bench._bare(tmp_path / "bare.db", 5, 700) as commit:
        commit()
        commit()
    import sqlite3

    connection = sqlite3.connect(tmp_path / "bare.db")
    assert connection.execute("SELECT count(*), min(length(line)) FROM entries").fetchone() == (7, 700)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
