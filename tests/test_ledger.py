"""Laws of the ledger: what is reserved counts for ever, the check and the entry are one, nothing is rewritten, and a
ledger that is not what it was does nothing more.

Oracles: sqlite3 reading the file beside the class; `verify_chain`, which an auditor runs; real processes; the number of
rounds that a budget grants, worked out with the budget's own gate before any process starts.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import COST, GRANTS, ROOT, RUN, WORDS, forget, made, officer_of, opened, place_in, release, reserve, steps

from client import filesystem, fingerprint, ledger_book, ledger_file
from client.filesystem import kind_of, require_durable
from client.keys import read_pin
from client.ledger import Ledger, Place
from client.ledger_file import LedgerFile
from strategies.errors import LedgerError, Refusal, RefusalCode, SettingError, VerificationError
from strategies.privacy.budget import Budget
from strategies.privacy.dataroot import DataRoot, covers
from strategies.privacy.events import Exact, Gaussian, merge
from strategies.proof.entries import public_hex
from strategies.proof.heads import Receipt, SignedHead, countersign, sign_head
from strategies.proof.verdict import verify_chain

STRANGER, COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"s" * 32), Ed25519PrivateKey.from_private_bytes(b"c" * 32)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return made(tmp_path)


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    with opened(place) as ledger:
        yield ledger


# --- a round ------------------------------------------------------------------------------------------------


def test_reserve_release_commit(ledger: Ledger) -> None:
    assert [reserve(ledger, 1), release(ledger, 1)] == [3, 4]
    ledger.commit(run=RUN, round=1)
    assert steps(ledger) == [("reserve", 1), ("release", 1), ("commit", 1)]
    entry = ledger.entry(run=RUN, round=1, kind="release")
    assert entry and entry.body == {"sha256": "ab" * 32} and entry.data_root == "records"
    assert ledger.entry(run=RUN, round=2, kind="reserve") is None
    assert ledger.spent("records") == COST  # a release or a commit costs nothing more
    verdict = verify_chain(ledger.export(), ledger.pins)
    assert verdict.ok and verdict.head.seq == 5 and verdict.roots == ledger.roots()


def test_a_reservation_counts_though_it_is_never_released(ledger: Ledger) -> None:
    for round in range(1, GRANTS + 1):
        reserve(ledger, round)
    assert ledger.spent("records") == COST * GRANTS
    with pytest.raises(Refusal, match="does not fit into the budget of 'records'") as refused:
        reserve(ledger, GRANTS + 1)
    assert refused.value.code is RefusalCode.BUDGET
    assert steps(ledger)[-1] == ("reserve", GRANTS) and len(steps(ledger)) == GRANTS
    assert ledger.balance("records").events == merge(COST * GRANTS) and not ledger.balance("records").fits(COST)
    assert ledger.open_reserves() == tuple((RUN, round) for round in range(1, GRANTS + 1))


def test_giving_up_gives_nothing_back(ledger: Ledger) -> None:
    reserve(ledger, 1)
    ledger.abort(run=RUN, round=1, reason="the node was stopped")
    assert ledger.spent("records") == COST and ledger.open_reserves() == ()
    with pytest.raises(Refusal, match=r"a release of round 1 .* cannot follow its abort"):
        release(ledger, 1)
    with pytest.raises(Refusal, match="never reserved"):
        ledger.abort(run=RUN, round=2, reason="x")


def test_what_was_spent_is_kept_by_data_root_and_can_be_asked_by_run(tmp_path: Path) -> None:
    other = "1" * 32
    with opened(made(tmp_path, roots=[ROOT, replace(ROOT, name="elsewhere")])) as ledger:
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
    assert steps(ledger) == [("reserve", 1), ("release", 1)]
    reserve(ledger, 1, run="1" * 32)  # another run has rounds of its own


def test_release_needs_a_reservation(ledger: Ledger) -> None:
    reserve(ledger, 1)
    with pytest.raises(Refusal, match="never reserved"):
        release(ledger, 2)
    assert steps(ledger) == [("reserve", 1)]


def test_commit_needs_a_release_and_twice_is_once(ledger: Ledger) -> None:
    reserve(ledger, 1)
    ledger.commit(run=RUN, round=1)
    assert steps(ledger) == [("reserve", 1)]
    release(ledger, 1)
    for _ in range(2):
        ledger.commit(run=RUN, round=1)
    assert steps(ledger) == [("reserve", 1), ("release", 1), ("commit", 1)]


def test_an_unprotected_release_fits_into_no_finite_budget(tmp_path: Path) -> None:
    exact = (Exact(what="model update"),)
    infinite = replace(ROOT, name="public", epsilon=float("inf"), order=0.0)
    place = made(tmp_path, roots=[ROOT, infinite])
    with opened(place) as ledger:
        with pytest.raises(Refusal):
            ledger.reserve(data_root="records", run=RUN, round=1, events=exact)
        ledger.reserve(data_root="public", run=RUN, round=1, events=exact)
        assert ledger.balance("public").spent == float("inf")
    with opened(place, limits={"public": Budget(epsilon=8.0, delta=1e-5)}) as ledger, pytest.raises(Refusal):
        reserve(ledger, 2, root="public")  # once released, nothing fits any more under a finite limit


events = st.one_of(
    st.builds(
        Gaussian, noise_multiplier=st.floats(1e-6, 1e6), sampling_rate=st.floats(1e-9, 1), steps=st.integers(0, 10**9)
    ),
    st.builds(Exact, what=st.text()),
)


@given(planned=st.lists(events, min_size=1, max_size=4))
def test_events_round_trip(planned: list[Gaussian | Exact], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = replace(ROOT, name="ä", epsilon=float("inf"), order=0.0)
    place = made(tmp_path_factory.mktemp("ledger"), roots=[root])
    with opened(place) as ledger:
        ledger.reserve(data_root="ä", run=RUN, round=1, events=planned)
    forget()
    with opened(place) as ledger:
        assert ledger.spent("ä") == tuple(planned)


# --- the budget ---------------------------------------------------------------------------------------------


def test_a_policy_may_only_be_stricter(place: Place) -> None:
    with opened(place, limits={"records": Budget(epsilon=4.0, delta=1e-5)}) as ledger:
        strict = Budget(epsilon=4.0, delta=1e-5).rounds_that_fit((), COST, 100)
        assert 0 < strict < GRANTS and ledger.balance("records").epsilon == 4.0
        assert ledger.balance("records").rounds_that_fit(COST, 100) == strict
        for round in range(1, strict + 1):
            reserve(ledger, round)
        with pytest.raises(Refusal, match=r"of epsilon 4\.0"):
            reserve(ledger, strict + 1)
    with opened(place, limits={"records": Budget(epsilon=100.0, delta=1e-5)}) as ledger:
        for round in range(strict + 1, GRANTS + 1):
            reserve(ledger, round)
        with pytest.raises(Refusal, match=r"of epsilon 8\.0"):
            reserve(ledger, GRANTS + 1)
    with opened(place, limits={}) as ledger, pytest.raises(Refusal, match=r"policy\.toml has no \[budget\.records\]"):
        reserve(ledger, 99)


def test_what_is_not_registered_is_not_used(ledger: Ledger) -> None:
    with pytest.raises(Refusal, match="data root 'elsewhere' is not registered") as refused:
        reserve(ledger, 1, root="elsewhere")
    assert refused.value.code is RefusalCode.BUDGET


@settings(max_examples=15)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=40))
def test_the_sums_of_the_running_gate_are_those_of_the_whole_list(costs: list[int]) -> None:
    """The ledger keeps merged sums; what it grants is what the gate grants when asked with the whole list."""
    from strategies.proof.account import Account

    account, granted = Account(root=ROOT), []
    for number, cost in enumerate(costs):
        planned = (Gaussian(noise_multiplier=float(cost), sampling_rate=0.25, steps=3), *COST)
        fits = ROOT.fits(account.merged(), planned)
        assert fits == Budget(epsilon=8.0, delta=1e-5).fits(
            [e for _, events in account.reserved for e in events], planned
        )
        if fits:
            account.add(f"{number:032x}", planned)
            granted.append(planned)
    assert account.merged() == merge(event for planned in granted for event in planned)


def test_a_plan_that_was_registered_is_the_whole_of_what_may_be_released(tmp_path: Path) -> None:
    slot = Gaussian(noise_multiplier=4.0, sampling_rate=0.5, steps=10)
    root = DataRoot(name="records", unit="record", epsilon=8.0, delta=1e-5, gate="preregistered", slots=(slot,))
    with opened(made(tmp_path, roots=[root])) as ledger:
        half = (replace(slot, steps=5),)
        ledger.reserve(data_root="records", run=RUN, round=1, events=half)
        with pytest.raises(Refusal, match="does not fit"):
            reserve(ledger, 2)
        ledger.reserve(data_root="records", run=RUN, round=2, events=half)
        with pytest.raises(Refusal, match="does not fit"):
            ledger.reserve(data_root="records", run=RUN, round=3, events=half)


# --- data roots ---------------------------------------------------------------------------------------------


def test_the_same_units_under_another_name_are_refused(place: Place) -> None:
    officer, patients = officer_of(place), [b"patient %d" % number for number in range(20_000)]
    with opened(place) as ledger:
        first = ledger.register(replace(ROOT, name="cardiology"), officer=officer, units=patients)
        assert len(first.fingerprint) == 64 and ledger.roots()["cardiology"] == first
        for units in (
            patients,
            patients[::-1],
            patients[:2000],
            [*patients, b"one more"],
            patients[5000:] + [b"x"] * 9,
        ):
            with pytest.raises(Refusal, match=r"shares units with 'cardiology' \(at least \d+\)"):
                ledger.register(replace(ROOT, name="heart"), officer=officer, units=units)
        assert set(ledger.roots()) == {"records", "cardiology"}
        ledger.register(replace(ROOT, name="oncology"), officer=officer, units=[b"person %d" % n for n in range(9000)])
        with pytest.raises(Refusal, match="is registered already"):
            ledger.register(replace(ROOT, name="cardiology"), officer=officer, units=[b"y"])
    forget()
    with opened(place) as ledger, pytest.raises(Refusal, match="shares units with 'oncology'"):
        ledger.register(replace(ROOT, name="again"), officer=officer, units=[b"person %d" % n for n in range(9000)])


def test_a_sketch_tells_nothing_without_the_key() -> None:
    units = [b"patient %d" % number for number in range(5000)]
    one, two = (fingerprint.sketch(units, key) for key in (b"a" * 32, b"b" * 32))
    assert fingerprint.common(one, one) == fingerprint.SIZE == len(one) // fingerprint.WIDTH
    assert fingerprint.common(one, two) == 0
    assert fingerprint.sketch([*units, *units], b"a" * 32) == fingerprint.sketch(reversed(units), b"a" * 32) == one
    small = [fingerprint.sketch([b"%d" % n for n in range(low, low + 100)], b"a" * 32) for low in (0, 99, 100)]
    assert [fingerprint.common(small[0], other) for other in small] == [100, 1, 0]  # below the size it is exact


def test_a_sketch_that_was_changed_is_seen(place: Place) -> None:
    with opened(place) as ledger:
        ledger.register(replace(ROOT, name="more"), officer=officer_of(place), units=[b"1", b"2"])
    connection = sqlite3.connect(place.path)
    (trigger,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'sketches_update'").fetchone()
    connection.execute("DROP TRIGGER sketches_update")
    connection.execute("UPDATE sketches SET macs = x'00'")
    connection.execute(trigger)
    connection.commit()
    connection.close()
    forget()
    with pytest.raises(LedgerError, match="sketch of the units of 'more' is not the registered one"), opened(place):
        pass


def test_a_real_silo_registers_units_and_a_small_delta(tmp_path: Path) -> None:
    place = made(tmp_path, "power-loss")
    with opened(place) as ledger:
        with pytest.raises(SettingError, match="needs its units"):
            ledger.register(replace(ROOT, name="more"), officer=officer_of(place))
        with pytest.raises(SettingError, match=r"delta of 'more' = 0\.0001 is not allowed: it must be at most 1e-5"):
            ledger.register(replace(ROOT, name="more", delta=1e-4), officer=officer_of(place), units=[b"1"])


def test_only_the_officer_registers(place: Place) -> None:
    with opened(place) as ledger:
        with pytest.raises(VerificationError, match="officer's key does not hold"):
            ledger.register(replace(ROOT, name="more"), officer=STRANGER)
        assert set(ledger.roots()) == {"records"}
        reserve(ledger, 1)


# --- the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET line = x'7b7d'",
        "DELETE FROM entries",
        "REPLACE INTO entries SELECT seq, x'7b7d' FROM entries",
        "INSERT OR REPLACE INTO entries SELECT 1, line FROM entries WHERE seq = 2",
        "INSERT INTO entries (line) SELECT line FROM entries LIMIT 1; DELETE FROM entries",
        "UPDATE sketches SET macs = x'00'",
        "DELETE FROM sketches",
        "REPLACE INTO sketches SELECT seq, data_root, x'00' FROM sketches",
    ],
)
def test_entries_are_never_rewritten(change: str, ledger: Ledger, place: Place) -> None:
    ledger.register(replace(ROOT, name="more"), officer=officer_of(place), units=[b"1"])
    reserve(ledger, 1)
    before = ledger.export()
    connection = sqlite3.connect(place.path, isolation_level="EXCLUSIVE")
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        for statement in change.split(";"):
            connection.execute(statement)
    connection.close()
    assert ledger.export() == before and ledger.spent("records") == COST


@pytest.mark.parametrize(("durability", "synchronous"), [("power-loss", 2), ("process", 0)])
def test_pragmas(durability: Any, synchronous: int, tmp_path: Path) -> None:
    """FULL is 2 and OFF is 0 in SQLite's documentation of `PRAGMA synchronous`. What EXTRA adds, the sync of the folder
    after the journal, is the ledger's own; WAL would lose acknowledged entries."""
    with opened(made(tmp_path, durability)) as ledger:
        reserve(ledger, 1)
        connection = ledger._book._file._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert verify_chain(ledger.export(), ledger.pins).head.seq == 3
        assert ledger.entries()[0].body["durability"] == durability
    assert {file.name for file in tmp_path.iterdir()} == {"ledger.db", "ledger.lock", "keys"}
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in ("ledger.db", "ledger.lock"))


def test_the_default_survives_power_loss() -> None:
    assert Place(path=Path("x"), keys=Path("y")).durable


def test_a_failed_transaction_leaves_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise KeyboardInterrupt

    for owner, name in ((DataRoot, "fits"), (LedgerFile, "append")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(KeyboardInterrupt):
                reserve(ledger, 1)
        assert steps(ledger) == [] and ledger.spent("records") == () and ledger.frozen is None
    reserve(ledger, 1)  # and the lock is free


def test_a_ledger_is_made_once(place: Place) -> None:
    with pytest.raises(SettingError, match=r"pin\.json names a ledger already"):
        Ledger.create(place, silo="north", officer=officer_of(place))
    (place.keys / "pin.json").unlink()
    with pytest.raises(
        SettingError, match=r"ledger\.db is there and .*pin\.json is not: an init that was not finished"
    ):
        Ledger.create(place, silo="north", officer=officer_of(place))
    with pytest.raises(LedgerError, match="is there already and is never replaced"):
        LedgerFile(place.path, durable=False, new=True)
    with pytest.raises(SettingError, match=r"pin\.json cannot be read"), opened(place):
        pass


def remove(place: Place) -> None:
    place.path.unlink()


def empty(place: Place) -> None:
    place.path.write_bytes(b"")


def no_database(place: Place) -> None:
    place.path.write_bytes(b"no database" * 100)


def other_tables(place: Place) -> None:
    with sqlite3.connect(place.path) as connection:
        connection.execute("DROP TRIGGER entries_update")
    connection.close()


def one_more_table(place: Place) -> None:
    with sqlite3.connect(place.path) as connection:
        connection.execute("CREATE TABLE more (x)")
    connection.close()


def another_ledger(place: Place) -> None:
    other = made(place.path.parent / "other")
    shutil.copy(other.path, place.path)


def other_key(place: Place) -> None:
    other = made(place.path.parent / "other")
    shutil.copy(other.keys / "ledger.pem", place.keys / "ledger.pem")


def foreign_line(place: Place) -> None:
    with sqlite3.connect(place.path) as connection:
        connection.execute("INSERT INTO entries SELECT 3, line FROM entries WHERE seq = 2")
    connection.close()


def text_line(place: Place) -> None:
    with sqlite3.connect(place.path) as connection:
        connection.execute("INSERT INTO entries VALUES (3, cast('{}' AS BLOB))")
    connection.close()


@pytest.mark.parametrize(
    "spoil", [remove, empty, no_database, other_tables, one_more_table, another_ledger, foreign_line, text_line]
)
@pytest.mark.parametrize("known", [True, False])
def test_what_is_not_this_silos_ledger_is_not_opened(spoil: Callable[[Place], None], known: bool, place: Place) -> None:
    spoil(place)
    if not known:
        forget()
    with pytest.raises(LedgerError), opened(place):
        pass


def test_another_key_signs_nothing(place: Place) -> None:
    other_key(place)
    with opened(place) as ledger:
        for use in (lambda: reserve(ledger, 1), ledger.head):
            with pytest.raises(SettingError, match=r"ledger\.pem is not the key of this ledger"):
                use()
        assert ledger.spent("records") == ()


def test_reading_needs_no_passphrase(tmp_path: Path) -> None:
    place = made(tmp_path, "power-loss")
    with opened(place, passphrase=None) as ledger:
        assert ledger.balance("records").spent == 0.0 and len(ledger.export()) == 2
        with pytest.raises(SettingError, match="needs its passphrase"):
            reserve(ledger, 1)
        assert ledger.frozen is None
    assert b"silo" not in repr(replace(place)).encode().replace(bytes(tmp_path), b"").replace(b"ledger", b"")


def test_time_never_goes_back(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    class Clock(datetime):
        at = datetime(2100, 1, 1, tzinfo=UTC)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return cls.at

    monkeypatch.setattr(ledger_book, "datetime", Clock)
    reserve(ledger, 1)
    Clock.at = datetime(2020, 1, 1, tzinfo=UTC)
    reserve(ledger, 2)
    times = [entry.time for entry in ledger.entries()]
    assert times == sorted(times) and times[-1] == times[-2] == "2100-01-01T00:00:00.000Z"
    assert verify_chain(ledger.export(), ledger.pins).ok


# --- file systems -------------------------------------------------------------------------------------------

MOUNTS = """24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 24 0:25 / /tmp rw - tmpfs tmpfs rw
31 24 0:26 / /mnt/with\\040space rw - nfs4 server:/x rw
32 24 0:27 / /mnt/cloud rw shared:1 master:2 - fuse.sshfs x rw
33 24 0:28 / /mnt/top rw - tmpfs tmpfs rw
34 24 254:1 / /mnt/top rw - xfs /dev/vdb rw
35 24 0:29 / /mnt/image rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("folder", "kind", "kept"),
    [
        ("/srv/silo", "ext4", True),
        ("/tmp/silo", "tmpfs", False),
        ("/tmpfile", "ext4", True),
        ("/mnt/with space/silo", "nfs4", False),
        ("/mnt/cloud", "fuse.sshfs", False),
        ("/mnt/top/silo", "xfs", True),
        ("/mnt/image/silo", "overlay", False),
    ],
)
def test_a_file_system_that_forgets_is_refused(folder: str, kind: str, kept: bool) -> None:
    assert kind_of(Path(folder), MOUNTS) == kind
    if kept:
        require_durable(Path(folder), MOUNTS)
    else:
        with pytest.raises(SettingError, match=rf"is on {kind}, which may lose .* set ledger\.allow_volatile = true"):
            require_durable(Path(folder), MOUNTS)


def test_the_ledger_asks_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("24 1 0:25 / / rw - tmpfs tmpfs rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    place = made(tmp_path, "power-loss")
    with opened(place, allow_volatile=True) as ledger:
        reserve(ledger, 1)
    strict = replace(place, allow_volatile=False)
    with pytest.raises(SettingError, match="is on tmpfs"), opened(strict):
        pass
    with pytest.raises(SettingError, match="is on tmpfs"):
        Ledger.create(strict, silo="north", officer=officer_of(place))
    mounts.unlink()
    with pytest.raises(SettingError, match="is not known"), opened(strict):
        pass
    with opened(made(tmp_path / "simulated"), allow_volatile=False):  # durability process may lie anywhere
        pass


def test_a_full_disk_is_seen_before_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client import ledger_book as module

    place = made(tmp_path, "power-loss")
    monkeypatch.setattr(module, "HEAD_ROOM_BYTES", 2**80)
    with opened(place) as ledger:
        with pytest.raises(LedgerError, match="less than 64 MiB are free"):
            reserve(ledger, 1)
        assert steps(ledger) == [] and ledger.frozen is None


# --- heads, witnesses, restoring ----------------------------------------------------------------------------


def test_a_head_says_where_the_ledger_stands(ledger: Ledger) -> None:
    reserve(ledger, 1)
    head = ledger.head()
    assert SignedHead.from_bytes(head.to_bytes()) == head and head.key == ledger.pins.ledger_key
    assert head.head.seq == 3 and head.head.hash == hashlib.sha256(ledger.export()[-1]).hexdigest()
    assert head.head.spent == {"records": COST}


def receipt_of(ledger: Ledger) -> Receipt:
    return countersign(ledger.head(), COORDINATOR)


def test_receipts_are_kept_with_the_reservation(ledger: Ledger) -> None:
    reserve(ledger, 1)
    receipt = receipt_of(ledger)
    seq = reserve(ledger, 2, receipts=[receipt])
    assert seq == 4 and ledger.entries()[-1].body["receipts"] == [receipt.value()]
    assert ledger.witness([receipt_of(ledger)]) == 5 and ledger.entries()[-1].kind == "witness"
    assert ledger.witness([]) == 5
    reserve(ledger, 3, receipts=[receipt])  # an old one is true as well
    assert verify_chain(ledger.export(), ledger.pins, receipts=[receipt]).ok


def test_a_forged_receipt_freezes_nothing(ledger: Ledger) -> None:
    ahead = replace(ledger.head().head, seq=99)
    forged = countersign(sign_head(ahead, COORDINATOR), COORDINATOR)  # the coordinator cannot sign for the silo
    foreign = countersign(sign_head(replace(ahead, ledger_id="cd" * 32), STRANGER), COORDINATOR)
    unsigned = replace(countersign(ledger.head(), COORDINATOR), signature="0" * 128)
    for wrong, sentence in (
        (forged, "not signed by a key of this ledger"),
        (foreign, "of another ledger"),
        (unsigned, "not signed by the witness"),
        (replace(unsigned, head=replace(unsigned.head, head=ahead)), "not signed by the key that it names"),
    ):
        for use in (lambda r: reserve(ledger, 1, receipts=[r]), lambda r: ledger.witness([r])):
            with pytest.raises(VerificationError, match=sentence):
                use(wrong)
    assert ledger.frozen is None
    reserve(ledger, 1)


def test_freezing_stops_everything_but_reading_and_the_officer(place: Place) -> None:
    with opened(place) as ledger:
        reserve(ledger, 1)
        ledger.freeze("the disk is being moved")
    for _ in range(2):
        with opened(place) as ledger:
            assert ledger.frozen == "the disk is being moved" and ledger.spent("records") == COST
            for forbidden in (
                lambda: reserve(ledger, 2),
                lambda: release(ledger, 1),
                lambda: ledger.commit(run=RUN, round=1),
                lambda: ledger.freeze("again"),
                ledger.head,
                ledger.checkpoint,
                lambda: ledger.policy("0" * 64),
            ):
                with pytest.raises(LedgerError, match=r"is frozen: the disk is being moved; .* fedsilo-silo restore"):
                    forbidden()
        forget()
    with opened(place) as ledger:
        with pytest.raises(VerificationError, match="officer's key does not hold"):
            ledger.restore(officer=STRANGER, reason="moved")
        ledger.restore(officer=officer_of(place), reason="moved")
        assert ledger.frozen is None
        release(ledger, 1)
        assert verify_chain(ledger.export(), ledger.pins).ok


def test_keys_policy_and_checkpoints_are_entries(place: Place) -> None:
    new, officer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    with opened(place) as ledger:
        ledger.policy("ab" * 32)
        ledger.policy("ab" * 32)
        reserve(ledger, 1)
        ledger.checkpoint()
        ledger.rotate(officer, officer=officer_of(place))
        ledger.rotate(new)
        assert ledger.head().key == public_hex(new)
        reserve(ledger, 2)
        kinds = [entry.kind for entry in ledger.entries()]
        assert kinds == [
            "genesis",
            "data_root",
            "policy",
            "reserve",
            "checkpoint",
            "key_rotate",
            "key_rotate",
            "reserve",
        ]
        assert verify_chain(ledger.export(), ledger.pins).ok
        with pytest.raises(VerificationError):
            ledger.restore(officer=officer_of(place), reason="with the old key")
        ledger.restore(officer=officer, reason="with the new key")


def copies(place: Place, rounds: int) -> list[bytes]:
    """Work through some rounds and return the file as it was after each step."""
    files = [place.path.read_bytes()]
    with opened(place) as ledger:
        for round in range(1, rounds + 1):
            for step in (reserve, release):
                step(ledger, round)
                files.append(place.path.read_bytes())
    return files


def test_thirty_rollbacks_and_clones_are_frozen_before_data_is_touched(tmp_path: Path) -> None:
    """Ten earlier states put back, in the same and in a new process, and ten copies that went on for themselves; the
    coordinator or a peer brings the newest receipt to the next reservation, which comes before any record is read."""
    large = replace(ROOT, epsilon=100.0, order=0.0)
    place = made(tmp_path, roots=[large])
    files = copies(place, 10)
    with opened(place) as ledger:
        newest = receipt_of(ledger)
        spent = ledger.spent("records")
    cases = [(index, how) for index in range(0, 20, 2) for how in ("same process", "new process", "clone")]
    assert len(cases) == 30
    for index, how in cases:
        place.path.write_bytes(files[index])
        place.marker.unlink(missing_ok=True)
        forget()
        if how == "same process":
            place.path.write_bytes(files[-1])
            with opened(place) as ledger:
                ledger.spent("records")
                place.path.write_bytes(files[index])
                with pytest.raises(LedgerError):
                    reserve(ledger, 99)
            with opened(place) as ledger:
                assert "lines that were there are there no more" in str(ledger.frozen)
        else:
            with opened(place) as ledger:
                if how == "clone":
                    for round in range(100, 100 + index // 2):
                        reserve(ledger, round)
                with pytest.raises(LedgerError, match="was rolled back or copied"):
                    reserve(ledger, 99, receipts=[newest])
                assert ("reserve", 99) not in steps(ledger)
                assert ledger.entries()[-1].kind == "freeze" and ledger.entries()[-1].seq > newest.head.head.seq
        forget()
        with opened(place) as ledger:
            for _ in range(2):
                with pytest.raises(LedgerError, match="is frozen"):
                    reserve(ledger, 99)
            ledger.restore(officer=officer_of(place), reason="backup of last night", heads=[newest.head])
            assert ledger.balance("records").spent >= large.spent(spent)
            assert covers(ledger.spent("records"), spent)
            verdict = verify_chain(ledger.export(), ledger.pins, receipts=[newest])
            assert verdict.ok and (verdict.gaps or how == "clone")  # a clone may have gone on for longer
        assert not place.marker.exists()


def test_a_clone_that_goes_on_proves_itself(tmp_path: Path) -> None:
    place, other = made(tmp_path / "a"), place_in(tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    heads = []
    for copy, run in ((place, "1" * 32), (other, "2" * 32)):
        with opened(copy) as ledger:
            reserve(ledger, 1, run=run)
            heads.append(ledger.head())
            lines = ledger.export()
    verdict = verify_chain(lines, read_pin(place.keys), receipts=[countersign(head, COORDINATOR) for head in heads])
    assert not verdict.ok and verdict.bad_seq == 3 and len(verdict.equivocations) == 1


def test_a_backup_is_used_with_the_officer_alone(place: Place) -> None:
    files = copies(place, 3)
    with opened(place) as ledger:
        newest, spent = ledger.head(), ledger.balance("records").events
    place.path.write_bytes(files[2])
    forget()
    with opened(place) as ledger:
        ledger.restore(officer=officer_of(place), reason="disk was lost", heads=[newest])
        assert ledger.balance("records").events == spent
        reserve(ledger, 4, receipts=[countersign(newest, COORDINATOR)])
        assert ledger.entries()[-2].seq == newest.head.seq + 1


# --- real processes -----------------------------------------------------------------------------------------


def _reserve_all(folder: Path, worker: int, attempts: int, barrier: Any, granted: Any) -> None:
    ROOT.fits((), COST)  # loads the accountant before the race
    for attempt in range(attempts):
        barrier.wait(timeout=120)
        count = 0
        with opened(place_in(folder / str(attempt))) as ledger, pytest.raises(Refusal) as refused:
            while True:
                reserve(ledger, count + 1, run=f"{worker:032x}")
                count += 1
        assert refused.value.code is RefusalCode.BUDGET
        granted.put((attempt, count))


def test_concurrent_processes_are_granted_the_budget_and_no_more(tmp_path: Path, scaled: Callable[..., int]) -> None:
    fresh, processes, attempts = multiprocessing.get_context("forkserver"), 8, scaled(200)
    fresh.set_forkserver_preload(["test_ledger", "dp_accounting.rdp"])  # what they import takes longer than the race
    for attempt in range(attempts):
        made(tmp_path / str(attempt))
    barrier, granted = fresh.Barrier(processes), fresh.Queue()
    workers = [
        fresh.Process(target=_reserve_all, args=(tmp_path, number, attempts, barrier, granted), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    results = [granted.get(timeout=120) for _ in range(processes * attempts)]
    for worker in workers:
        worker.join()
    for attempt in range(attempts):
        with opened(place_in(tmp_path / str(attempt))) as ledger:
            assert ledger.spent("records") == COST * GRANTS
            assert verify_chain(ledger.export(), ledger.pins).ok
        assert sum(count for number, count in results if number == attempt) == GRANTS


def test_two_open_ledgers_of_one_process_see_each_other(place: Place) -> None:
    with opened(place) as one, opened(place) as two:
        reserve(one, 1)
        assert two.spent("records") == COST
        reserve(two, 2)
        assert one.spent("records") == COST * 2
        assert steps(one) == [("reserve", 1), ("reserve", 2)]


def test_a_file_that_is_exchanged_while_open_takes_no_entry(place: Place) -> None:
    with opened(place) as ledger:
        shutil.copy(place.path, place.path.with_suffix(".new"))
        place.path.with_suffix(".new").replace(place.path)
        with pytest.raises(LedgerError, match="was replaced by another file"):
            reserve(ledger, 1)
    with opened(place) as ledger:
        reserve(ledger, 1)
    assert WORDS.silo


def test_a_lock_that_is_never_given_back_is_an_error_and_no_frost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_WAIT_S", 0.05)
    with opened(place) as ledger:
        foreign = sqlite3.connect(place.path, isolation_level=None)
        foreign.execute("BEGIN EXCLUSIVE")  # a program that knows nothing of the lock file
        with pytest.raises(LedgerError, match="database is locked"):
            reserve(ledger, 1)
        foreign.execute("ROLLBACK")
        foreign.close()
        sentence = r"another process holds .* for more than 0\.05 s"
        with ledger._book._file._locked(), pytest.raises(LedgerError, match=sentence), opened(place):
            pass
        assert ledger.frozen is None
        reserve(ledger, 1)


def test_a_folder_that_cannot_be_written_is_said_by_name(tmp_path: Path) -> None:
    place = made(tmp_path)
    (tmp_path / "ledger.lock").unlink()
    (tmp_path / "ledger.lock").mkdir()
    with (
        pytest.raises(LedgerError, match=r"the lock beside .*ledger\.db cannot be opened: Is a directory"),
        opened(place),
    ):
        pass
