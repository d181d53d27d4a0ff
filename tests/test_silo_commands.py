"""`fedsilo-silo` as a site engineer and a data-protection officer type it, with the mistakes that they make.

Real processes where a process is the point (file descriptors, no terminal, exit codes); the command's own entry in this
process elsewhere. Oracles: openssl's PEM header and the modes that the operating system shows, `verify_chain` over the
export, the ledger itself.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sites import (
    OFFICER_WORD,
    RUN,
    SILO_WORD,
    STUDY,
    TEXT,
    changed,
    credentials,
    opened,
    prepare,
    records,
    request,
    rewrite,
    run_to_its_end,
)

import client.cli
from client.data.units import units_of
from client.filesystem import VOLATILE, kind_of
from client.ledger import Ledger
from client.round import finish, train
from client.silo import Silo
from strategies.command import guarded
from strategies.errors import DataError
from strategies.proof.chain import Pins
from strategies.proof.heads import countersign
from strategies.proof.verdict import lines_of, verify_chain

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ["--data", "ward=records.csv", "--unit", "patient_id", "--allow-volatile"]
Done = subprocess.CompletedProcess[str]
Type = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with records, a study and the credentials of both people, to work in."""
    records(tmp_path / "records.csv")
    (tmp_path / "study.toml").write_text(TEXT)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials(tmp_path / "credentials")))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def type_(folder: Path, capsys: pytest.CaptureFixture[str]) -> Type:
    """Type a command in this process."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = guarded(client.cli.app, arguments=list(arguments))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


@pytest.fixture
def site(folder: Path, type_: Type) -> Path:
    """A silo with a registered data root."""
    done = type_("init", "north", *SOURCE)
    assert done.returncode == 0, done.stderr
    assert type_("register", "ward", "--silo", "north").returncode == 0
    return folder / "north"


def process(*arguments: str, **more: object) -> Done:
    """Type a command as a process of its own, without a terminal."""
    code = "import client.cli; client.cli.main()"
    environment = {key: value for key, value in os.environ.items() if key != "CREDENTIALS_DIRECTORY"}
    environment |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, timeout=120, env=environment, check=False, **more
    )


def one_sentence(done: Done, code: int, says: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    assert says in done.stderr


# --- the whole way ------------------------------------------------------------------------------------------


def test_from_an_empty_folder_to_a_study_that_ran(site: Path, type_: Type) -> None:
    assert type_("check", "--silo", "north").returncode == 0
    shown = type_("approve", "study.toml", "--silo", "north", "--yes")
    assert shown.returncode == 0, shown.stderr
    for word in ("age, crp, outcome, patient_id", "logistic()", "fedavg()", "yes, to its end", STUDY.digest):
        assert word in shown.stdout
    run_to_its_end(opened(site), STUDY)
    facts = json.loads(type_("budget", "--silo", "north", "--study", "study.toml", "--json").stdout)
    (row,) = facts["data_roots"]
    with opened(site).ledger() as ledger:
        balance = ledger.balance("ward")
    assert row["committed"] == balance.spent > 0 == row["reserved"]
    assert row["free"] == pytest.approx(8 - balance.spent, abs=1e-4)
    assert row["study"]["rounds_left"] == balance.admission(STUDY).rounds
    table = type_("budget", "--silo", "north", "--study", "study.toml").stdout
    assert "█" in table and "░" in table and "rounds left with this noise" in table
    (run,) = json.loads(type_("status", "--silo", "north", "--json").stdout)["runs"]
    assert (run["run"], run["reserved"], run["released"], run["acknowledged"]) == (RUN, 3, 3, 3)
    assert RUN[:12] in type_("status", "--silo", "north").stdout


def test_three_keys_are_made_here_and_nobody_else_reads_them(site: Path) -> None:
    names = {path.name: path for path in (site / "keys").iterdir()}
    assert names.keys() == {"ledger.pem", "officer.pem", "transport.pem", "fingerprint.key", "pin.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in names.values()} == {0o600}
    assert stat.S_IMODE((site / "keys").stat().st_mode) == 0o700
    for name in ("ledger.pem", "officer.pem", "transport.pem"):
        assert names[name].read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    everything = b"".join(path.read_bytes() for path in site.rglob("*") if path.is_file())
    assert SILO_WORD not in everything and OFFICER_WORD not in everything


def test_passphrases_come_from_file_descriptors_and_stand_nowhere_else(folder: Path) -> None:
    words = folder / "words"
    words.write_bytes(SILO_WORD + b"\n" + OFFICER_WORD + b"\n")

    def with_words(*arguments: str) -> Done:
        with words.open("rb") as file:
            number = str(file.fileno())
            fds = ["--passphrase-fd", number, "--officer-passphrase-fd", number]
            return process(*arguments, *fds, pass_fds=(file.fileno(),), cwd=folder, stdin=subprocess.DEVNULL)

    for arguments in (
        ["init", "north", *SOURCE],
        ["register", "ward", "--silo", "north"],
        ["check", "--silo", "north"],
    ):
        done = with_words(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "opens the officer's key" in done.stdout
    one_sentence(
        process("register", "ward", "--silo", "north", cwd=folder, stdin=subprocess.DEVNULL),
        2,
        "the silo's passphrase is missing and this is no terminal to ask at; give --passphrase-fd N",
    )
    one_sentence(
        process("init", "south", *SOURCE, "--passphrase-fd", "77", cwd=folder, stdin=subprocess.DEVNULL),
        2,
        "--passphrase-fd 77 cannot be read (Bad file descriptor)",
    )
    assert not (folder / "south" / "keys").exists()


def test_a_prompt_asks_twice_for_a_new_passphrase(folder: Path, type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers: Iterator[str] = iter(["first", "frist"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    one_sentence(type_("init", "north", *SOURCE), 2, "the two entries of the silo's passphrase differ")
    answers = iter(["first", "first", "second", "second"])
    assert type_("init", "north", *SOURCE).returncode == 0
    answers = iter(["first", "second"])
    assert type_("register", "ward", "--silo", "north").returncode == 0
    answers = iter(["", ""])
    one_sentence(type_("init", "south", *SOURCE), 2, "passphrase is empty")


@pytest.mark.parametrize("command", ["init", "register", "check", "approve", "budget", "status", "export", "restore"])
def test_every_command_has_help_with_an_example(command: str, type_: Type) -> None:
    done = type_(command, "--help")
    assert done.returncode == 0 and f"Example: fedsilo-silo {command}" in " ".join(done.stdout.split())
    assert "--json" in done.stdout


def test_every_command_prints_one_object(site: Path, type_: Type) -> None:
    commands = [
        ["init", "south", *SOURCE],
        ["check", "--silo", "north"],
        ["approve", "study.toml", "--silo", "north", "--yes"],
        ["budget", "--silo", "north"],
        ["status", "--silo", "north"],
        ["export", "--silo", "north"],
        ["export", "--silo", "north", "--out", "ledger.jsonl"],
        ["restore", "--silo", "north", "--reason", "a test"],
    ]
    for arguments in commands:
        done = type_(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict) and done.stderr == ""


def test_the_environment_may_name_the_folder(site: Path, type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    one_sentence(type_("budget"), 2, "no silo folder is named; give --silo DIR or set FEDSILO_SILO")
    monkeypatch.setenv("FEDSILO_SILO", str(site))
    assert "ward" in type_("budget").stdout


def test_the_commands_that_only_show_load_no_torch(site: Path) -> None:
    for arguments in (["budget"], ["status"], ["export"], ["check"]):
        code = (
            f"import sys; from strategies.command import guarded; import client.cli; "
            f"c = guarded(client.cli.app, arguments={[*arguments, '--silo', str(site)]}); assert c == 0, c; "
            "assert 'torch' not in sys.modules and 'opacus' not in sys.modules"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr


# --- mistakes -----------------------------------------------------------------------------------------------


def test_a_ledger_is_not_put_where_a_restart_loses_it(folder: Path, type_: Type) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or kind_of(memory) not in VOLATILE:
        memory = folder  # on a system without it the sentence is tested by tests/test_ledger.py
        if kind_of(memory) not in VOLATILE:
            return
    place = memory / f"fedsilo-{os.getpid()}"
    try:
        one_sentence(type_("init", str(place), "--data", "ward=records.csv"), 2, "put the silo on a local disk")
        assert not (place / "keys").exists(), "no key is made for a ledger that cannot be kept"
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("role", ["silo", "officer"])
def test_a_wrong_passphrase_changes_nothing(role: str, site: Path, folder: Path, type_: Type) -> None:
    credentials(folder / "credentials", **{role: b"wrong"})
    rewrite(site / "silo.toml", "[data.ward]", "[data.other]")
    rewrite(site / "policy.toml", "[budget.ward]", "[budget.other]")
    before = (site / "ledger.db").read_bytes()
    key = "ledger" if role == "silo" else "officer"
    one_sentence(
        type_("register", "other", "--silo", "north"), 2, f"{key}.pem cannot be opened: the passphrase is wrong"
    )
    assert role == "officer" or (site / "ledger.db").read_bytes() == before
    with Silo.open(site).ledger() as ledger:
        assert list(ledger.roots()) == ["ward"]


def test_mistakes_get_one_sentence(site: Path, folder: Path, type_: Type) -> None:
    for arguments, code, says in (
        (["init", "north"], 2, "has keys already, and they are never replaced"),
        (["init", "south", "--data", "records.csv"], 2, "it must have the form ROOT=PATH"),
        (["register", "ward", "--silo", "north"], 3, "is registered already, for its whole life"),
        (["register", "wrad", "--silo", "north"], 2, "has no [data.wrad]; add it, or name one of ward"),
        (["register", "ward", "--silo", "nroth"], 2, "is no silo folder"),
        (["register", "ward", "--silo", "north", "--plan", "study.toml"], 2, "it must be preregistered"),
        (["approve", "no.toml", "--silo", "north", "--yes"], 2, "the study no.toml cannot be read"),
        (["approve", "records.csv", "--silo", "north", "--yes"], 2, "records.csv"),
        (["restore", "--silo", "north"], 2, "--reason"),
        (["restore", "--silo", "north", "--reason", ""], 2, "--reason has 0 characters"),
        (["restore", "--silo", "north", "--reason", "x", "--heads", "no.jsonl"], 2, "--heads no.jsonl cannot be read"),
        (["restore", "--silo", "north", "--reason", "x", "--heads", "study.toml"], 4, "line 1 of study.toml"),
        (["export", "--silo", "north", "--out", "study.toml"], 2, "--out study.toml cannot be written: File exists"),
        (["budget", "--silo", "north", "--study", "no.toml"], 2, "cannot be read"),
        (["approve"], 2, "STUDY"),
        (["check", "--passphrase-fd", "-1"], 2, "-1"),
    ):
        one_sentence(type_(*arguments), code, says)


def test_the_same_patients_under_a_second_name_are_refused(site: Path, folder: Path, type_: Type) -> None:
    rewrite(site / "silo.toml", "[data.ward]", "[data.again]")
    rewrite(site / "policy.toml", "[budget.ward]", "[budget.again]")
    one_sentence(type_("register", "again", "--silo", "north"), 3, "shares units with 'ward' (at least 80)")
    records(folder / "records.csv", first=79)  # one patient of before
    one_sentence(type_("register", "again", "--silo", "north"), 3, "shares units with 'ward' (at least 1)")
    records(folder / "records.csv", first=80)
    assert type_("register", "again", "--silo", "north").returncode == 0


def test_too_few_units_for_the_declared_bound(folder: Path, type_: Type) -> None:
    done = type_("init", "north", *SOURCE, "--units-at-least", "81")
    assert done.returncode == 0, done.stderr
    one_sentence(type_("register", "ward", "--silo", "north"), 2, "units_at_least = 81 is above the number of units")
    rewrite(folder / "north" / "silo.toml", "units_at_least = 81", "units_at_least = 80")
    assert type_("register", "ward", "--silo", "north").returncode == 0


# --- approve ------------------------------------------------------------------------------------------------


def test_a_study_that_does_not_fit_is_refused_with_what_would(site: Path, folder: Path, type_: Type) -> None:
    large = changed(privacy__epsilon=20.0)
    (folder / "large.toml").write_text(large.text)
    done = type_("approve", "large.toml", "--silo", "north", "--yes")
    one_sentence(done, 3, "of its 3 rounds would fit; ask for ")
    assert not (site / "approved").exists()
    facts = json.loads(type_("budget", "--silo", "north", "--study", "large.toml", "--json").stdout)
    largest = facts["data_roots"][0]["study"]["largest_epsilon"]
    assert f"privacy.epsilon = {largest:g} for all 3 rounds" in done.stderr
    (folder / "large.toml").write_text(changed(privacy__epsilon=largest).text)
    assert type_("approve", "large.toml", "--silo", "north", "--yes").returncode == 0


def test_no_is_no(site: Path, type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    done = type_("approve", "study.toml", "--silo", "north")
    assert done.returncode == 1 and "nothing was signed" in done.stdout and not (site / "approved").exists()
    facts = json.loads(type_("approve", "study.toml", "--silo", "north", "--json").stdout)
    assert facts["fits"] and facts["approved"] is None and not (site / "approved").exists()


def test_a_policy_that_was_changed_is_told_and_recorded(site: Path, type_: Type) -> None:
    assert type_("approve", "study.toml", "--silo", "north", "--yes").returncode == 0
    rewrite(site / "policy.toml", "min_cohort = 3", "min_cohort = 2")
    done = type_("check", "--silo", "north", "--study", "study.toml", "--json")
    details = " ".join(line["detail"] for line in json.loads(done.stdout)["lines"])
    assert done.returncode == 1 and "a changed policy asks for a new approval" in details
    assert "is new to the ledger" in details
    assert type_("approve", "study.toml", "--silo", "north", "--yes").returncode == 0
    assert type_("check", "--silo", "north", "--study", "study.toml").returncode == 0
    with Silo.open(site).ledger() as ledger:
        assert ledger.policy_in_force == Silo.open(site).policy.sha256


# --- check --------------------------------------------------------------------------------------------------


def clock(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client.commands import doctor

    class Early(doctor.datetime):  # type: ignore[name-defined, misc]
        @classmethod
        def now(cls, zone: object = None) -> object:
            return cls(2020, 1, 1, tzinfo=zone)  # type: ignore[call-arg]

    monkeypatch.setattr(doctor, "datetime", Early)


WRONG: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], str]] = {
    "a key for all": (lambda site, _: (site / "keys/ledger.pem").chmod(0o644), "run chmod 0600"),
    "the keys for all": (lambda site, _: (site / "keys").chmod(0o777), "run chmod 0700"),
    "a key that is a link": (
        lambda site, _: ((site / "keys/officer.pem").unlink(), (site / "keys/officer.pem").symlink_to("/etc/hostname")),
        "it is a link, which is not followed",
    ),
    "no ledger": (lambda site, _: (site / "ledger.db").unlink(), "ledger.db"),
    "no pin": (lambda site, _: (site / "keys/pin.json").unlink(), "pin.json cannot be read"),
    "no data": (lambda site, _: (site.parent / "records.csv").unlink(), "there is nothing at"),
    "no policy": (lambda site, _: (site / "policy.toml").unlink(), "policy.toml is missing"),
    "no settings": (lambda site, _: (site / "silo.toml").unlink(), "it has no silo.toml"),
    "another column": (
        lambda site, _: rewrite(site.parent / "records.csv", "crp", "leucocytes"),
        "column 'crp' is missing",
    ),
    "a value": (lambda site, _: rewrite(site.parent / "records.csv", "0,20,1,", "0,old,1,"), "row"),
    "a server": (
        lambda site, _: rewrite(site / "silo.toml", 'server = ""', 'server = "127.0.0.1:1"'),
        "does not answer",
    ),
    "a wrong passphrase": (
        lambda site, _: credentials(site.parent / "credentials", silo=b"wrong"),
        "the passphrase is wrong",
    ),
    "the gate": (lambda site, _: rewrite(site / "policy.toml", '"rdp"', '"preregistered"'), "registered is 'rdp'"),
    "no budget": (lambda site, _: rewrite(site / "policy.toml", "[budget.ward]", "[budget.x]"), "no [budget.ward]"),
    "the clock": (clock, "s before the ledger's last entry"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line_with_its_repair(
    what: str, site: Path, type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type_("approve", "study.toml", "--silo", "north", "--yes").returncode == 0
    sound = json.loads(type_("check", "--silo", "north", "--study", "study.toml", "--json").stdout)
    assert sound["sound"] and not [line for line in sound["lines"] if line["state"] == "problem"]
    spoil, says = WRONG[what]
    spoil(site, monkeypatch)
    done = type_("check", "--silo", "north", "--study", "study.toml", "--json")
    assert done.returncode == 1 and done.stderr == ""
    problems = [line["detail"] for line in json.loads(done.stdout)["lines"] if line["state"] == "problem"]
    assert any(says in detail for detail in problems), problems
    assert "problem" in type_("check", "--silo", "north", "--study", "study.toml").stdout


def test_a_listening_server_is_reached(site: Path, type_: Type) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        rewrite(site / "silo.toml", 'server = ""', f'server = "127.0.0.1:{port}"')
        facts = json.loads(type_("check", "--silo", "north", "--json").stdout)
    assert {"what": "server", "state": "ok", "detail": f"127.0.0.1:{port} answers"} in facts["lines"]


def test_check_without_passphrases_opens_no_key_and_asks_nothing(site: Path, folder: Path) -> None:
    done = process("check", "--silo", str(site), "--json", cwd=folder, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout
    notes = {line["what"]: line["detail"] for line in json.loads(done.stdout)["lines"] if line["state"] == "note"}
    assert notes["silo's passphrase"] == notes["officer's passphrase"] == "not given, so the keys were not opened"


# --- budget, status, export, restore ------------------------------------------------------------------------


def test_an_open_reservation_is_shown_as_reserved(site: Path, type_: Type) -> None:
    assert type_("approve", "study.toml", "--silo", "north", "--yes").returncode == 0
    silo = opened(site)
    job = prepare(request(STUDY, 1), STUDY, silo)
    finish(job, train([job])[0])  # type: ignore[arg-type, list-item]
    prepare(request(STUDY, 2), STUDY, silo)  # and then the machine stops
    (row,) = json.loads(type_("budget", "--silo", "north", "--json").stdout)["data_roots"]
    with silo.ledger() as ledger:
        root = ledger.roots()["ward"]
    assert row["committed"] == root.spent(STUDY.round_events())
    assert row["spent"] == root.spent(STUDY.round_events() * 2) and row["open_rounds"] == 1
    assert row["reserved"] == pytest.approx(row["spent"] - row["committed"], abs=1e-4)
    assert "▒" in type_("budget", "--silo", "north").stdout.split("committed  ")[0].rpartition("│\n")[0]


def test_status_says_what_left_and_what_has_no_release(site: Path, type_: Type) -> None:
    assert type_("approve", "study.toml", "--silo", "north", "--yes").returncode == 0
    silo = opened(site)
    job = prepare(request(STUDY, 1), STUDY, silo)
    reply = finish(job, train([job])[0])  # type: ignore[arg-type, list-item]
    silo.record_egress(RUN, 1, reply)
    facts = json.loads(type_("status", "--silo", "north", "--json").stdout)
    (update,) = [row for row in facts["left"] if row["field"] == "Update.update"]
    assert (update["times"], update["bytes"], update["privacy"]) == (1, reply.update.nbytes, "released")
    assert facts["without_release"] == [] and facts["approved"] == [STUDY.digest]
    silo.record_egress(RUN, 2, reply)  # what the ledger knows nothing of
    facts = json.loads(type_("status", "--silo", "north", "--json").stdout)
    assert facts["without_release"] == [{"run": RUN, "round": 2}]
    assert "left without a release" in type_("status", "--silo", "north").stdout
    (site / "egress.jsonl").write_text("{")
    one_sentence(type_("status", "--silo", "north"), 2, "egress.jsonl cannot be read")


def test_the_export_verifies_offline(site: Path, folder: Path, type_: Type) -> None:
    facts = json.loads(type_("export", "--silo", "north", "--out", "ledger.jsonl", "--json").stdout)
    pins = Pins(ledger_id=facts["ledger_id"], ledger_key=facts["ledger_key"], dpo_key=facts["officer_key"])
    data = (folder / "ledger.jsonl").read_bytes()
    verdict = verify_chain(lines_of(data), pins)
    assert verdict.ok and verdict.entries == facts["entries"] == 3 and list(verdict.roots) == ["ward"]
    assert type_("export", "--silo", "north").stdout.encode() == data
    assert not verify_chain(lines_of(data.replace(b"ward", b"word")), pins).ok


def test_a_rolled_back_ledger_is_restored_with_what_a_witness_has_seen(site: Path, folder: Path, type_: Type) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from ledgers import forget

    assert type_("approve", "study.toml", "--silo", "north", "--yes").returncode == 0
    silo, old = opened(site), (site / "ledger.db").read_bytes()
    prepare(request(STUDY, 1), STUDY, silo)
    with silo.ledger() as ledger:
        receipt, spent = countersign(ledger.head(), Ed25519PrivateKey.generate()), ledger.balance("ward").spent
    (site / "ledger.db").write_bytes(old)  # a backup is put back
    forget()
    with silo.ledger() as ledger:
        assert ledger.balance("ward").spent == 0
    (folder / "heads.jsonl").write_bytes(receipt.to_bytes() + b"\n" + receipt.head.to_bytes() + b"\n")
    credentials(folder / "credentials", officer=b"wrong")
    arguments = ["restore", "--silo", "north", "--reason", "disk replaced", "--heads", "heads.jsonl"]
    one_sentence(type_(*arguments), 2, "officer.pem cannot be opened")
    credentials(folder / "credentials")
    done = type_(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spent"]["ward"] == spent > 0
    with Ledger.open(opened(site).place()) as ledger:
        assert [entry.kind for entry in ledger.entries()][-1] == "restore"


def test_a_frozen_ledger_approves_nothing(site: Path, type_: Type) -> None:
    with opened(site).ledger() as ledger:
        ledger.freeze("a witness has seen another line")
    one_sentence(type_("approve", "study.toml", "--silo", "north", "--yes"), 1, "is frozen: a witness has seen")
    assert "frozen" in type_("budget", "--silo", "north").stdout
    assert type_("check", "--silo", "north").returncode == 1
    assert type_("restore", "--silo", "north", "--reason", "found out why").returncode == 0
    assert type_("approve", "study.toml", "--silo", "north", "--yes").returncode == 0


# --- units --------------------------------------------------------------------------------------------------


def test_units_of_every_kind_of_file(tmp_path: Path) -> None:
    def units(path: Path, unit: str = "record", **rename: str) -> list[bytes]:
        return list(units_of(path, unit, rename, tmp_path / "scratch"))

    (tmp_path / "a.csv").write_text("id,x\n7,1\n7,2\n8,2\n")
    (tmp_path / "b.csv").write_text("y,id\n1,7\n2,7\n2,8\n")  # other order and other name of a column
    assert units(tmp_path / "a.csv", "id") == [b"7", b"7", b"8"] == units(tmp_path / "a.csv", "pid", id="pid")
    assert len(set(units(tmp_path / "a.csv"))) == 3
    assert units(tmp_path / "a.csv") == units(tmp_path / "b.csv", y="x")
    with pytest.raises(DataError, match="column 'patient' is missing"):
        units(tmp_path / "a.csv", "patient")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "c.npz", X=x, y=np.zeros(3), unit=np.array(["p", "p", "q"]))
    assert units(tmp_path / "c.npz", "unit") == [b"p", b"p", b"q"] and len(set(units(tmp_path / "c.npz"))) == 3
    (tmp_path / "images" / "ill").mkdir(parents=True)
    for name, content in (("1.png", b"1"), ("2.png", b"2"), ("copy.png", b"1")):
        (tmp_path / "images" / "ill" / name).write_bytes(content)
    assert len(set(units(tmp_path / "images"))) == 2
    (tmp_path / "list.csv").write_text("path,label\nimages/ill/1.png,ill\nimages/ill/copy.png,ill\n")
    assert len(set(units(tmp_path / "list.csv"))) == 1
    with pytest.raises(DataError, match="nothing names 'patient'"):
        units(tmp_path / "images", "patient")
