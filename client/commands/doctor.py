"""`check`: is everything here as a round needs it? One line a question, and how to repair what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from client.commands.access import (
    OfficerWord,
    SiloFolder,
    SiloWord,
    Words,
    console,
    folder_of,
    read_study,
    simulated,
)
from strategies.command import Json
from strategies.errors import FedsiloError

if TYPE_CHECKING:
    from client.ledger import Ledger
    from client.silo import Silo
    from strategies.study import Study

_PORT, _TIMEOUT_S = 9092, 5.0
_KEYS = ("ledger.pem", "transport.pem", "officer.pem", "fingerprint.key", "pin.json")


@dataclass(frozen=True, kw_only=True)
class Line:
    """The answer to one question: `ok`, `problem`, or `note` where nothing can be said or need be done."""

    what: str
    state: str
    detail: str


def check(
    silo: SiloFolder = None,
    study: Annotated[
        Path | None, typer.Option(help="Also check the data against this study, its approval and its budget.")
    ] = None,
    silo_word: SiloWord = None,
    officer_word: OfficerWord = None,
    as_json: Json = False,
) -> None:
    """Examine settings, keys, ledger, budget, data, clock, disk and connection; exit with 1 when something is wrong.

    Passphrases are used where they are given and never asked for.
    """
    folder = folder_of(silo)
    planned = read_study(study) if study else None
    lines = list(_lines(folder, planned, Words(silo=silo_word, officer=officer_word)))
    sound = all(line.state != "problem" for line in lines)
    if as_json:
        print(json.dumps({"sound": sound, "lines": [line.__dict__ for line in lines]}))
    else:
        _show(lines, folder)
    if not sound:
        raise typer.Exit(1)


def _show(lines: list[Line], folder: Path) -> None:
    colours = {"ok": "[green]ok[/]", "problem": "[bold red]problem[/]", "note": "note"}
    table = Table("what", "", "", title=f"silo folder {folder}", title_justify="left")
    for line in lines:
        table.add_row(line.what, colours[line.state], line.detail)
    console().print(table)


def _lines(folder: Path, planned: Study | None, words: Words) -> Iterator[Line]:
    from client.silo import Silo

    try:
        silo = Silo.open(folder)
    except FedsiloError as error:
        yield Line(what="settings", state="problem", detail=str(error))
        return
    yield Line(what="settings", state="ok", detail=f"silo.toml and policy.toml of silo {silo.name}")
    for name in _KEYS:
        if name != "officer.pem" or (folder / "keys" / name).exists() or (folder / "keys" / name).is_symlink():
            yield _asked(f"keys/{name}", partial(_key_file, folder / "keys" / name))
        else:
            yield Line(what="keys/officer.pem", state="note", detail="not here; registrations and approvals need it")
    yield from _opened_keys(silo, words)
    yield _asked("file system", lambda: _file_system(silo))
    yield _asked("disk", lambda: _disk(silo))
    yield _sandbox(silo.folder / "logs" / "worker.log")
    try:
        with silo.ledger() as ledger:
            yield from _of_ledger(silo, ledger, planned)
    except FedsiloError as error:
        yield Line(what="ledger", state="problem", detail=str(error))
    yield from _data(silo, planned)
    yield from _connection(silo)


def _asked(what: str, question: Callable[[], str]) -> Line:
    """Return the answer of a question that raises when something is wrong."""
    try:
        return Line(what=what, state="ok", detail=question())
    except (FedsiloError, OSError) as error:
        return Line(what=what, state="problem", detail=str(error))


class _WrongError(FedsiloError):
    """Something is not as it must be."""


def _key_file(path: Path) -> str:
    from client.keys import read_private

    read_private(path)
    return "mode 0600, of this user, no link"


def _opened_keys(silo: Silo, words: Words) -> Iterator[Line]:
    from client.keys import ledger_key, officer_key, transport_key
    from client.ledger import Ledger
    from strategies.proof.entries import public_hex

    keys, plain = silo.folder / "keys", simulated(silo)

    def silos(word: bytes | None) -> str:
        transport_key(keys, word, simulated=plain)
        with Ledger.open(silo.place()) as ledger:
            if public_hex(ledger_key(keys, word, simulated=plain)) != ledger.key_in_force:
                raise _WrongError(f"{keys / 'ledger.pem'} is not the key of this ledger; put the silo's own file back")
        return "opens the keys of ledger and transport; the ledger's key is the pinned one"

    def officers(word: bytes | None) -> str:
        with Ledger.open(silo.place()) as ledger:
            if public_hex(officer_key(keys, word, simulated=plain)) != ledger.officer:
                raise _WrongError(f"{keys / 'officer.pem'} is not the officer's key; put the officer's own file back")
        return "opens the officer's key, which is the pinned one"

    for what, role, question in (("silo's passphrase", "silo", silos), ("officer's passphrase", "officer", officers)):
        try:
            word = None if plain else words.given("silo" if role == "silo" else "officer")
        except FedsiloError as error:
            yield Line(what=what, state="problem", detail=str(error))
            continue
        if word is None and not plain:
            yield Line(what=what, state="note", detail="not given, so the keys were not opened")
        else:
            yield _asked(what, partial(question, word))


def _file_system(silo: Silo) -> str:
    from client.filesystem import kind_of

    place = silo.place()
    if not place.durable:
        return "durability 'process': a simulated silo, whose ledger a loss of power may cut short"
    place.require_durable()
    allowed = "; allow_volatile = true: losing the budget is accepted" if place.allow_volatile else ""
    return f"{kind_of(silo.folder)}{allowed}"


def _disk(silo: Silo) -> str:
    from client.filesystem import HEAD_ROOM_BYTES

    disk = os.statvfs(silo.folder)
    free = disk.f_bavail * disk.f_frsize
    if free < HEAD_ROOM_BYTES:
        raise _WrongError(f"{free // 2**20} MiB are free in {silo.folder}, a round needs 64; make room")
    return f"{free // 2**20} MiB free"


def _sandbox(log: Path) -> Line:
    """Say what the last process that trained had, or what one would have that this command started."""
    from client.worker import ALONE, SAYS

    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    told = [line.removeprefix(SAYS) for line in lines if line.startswith(SAYS)]
    if told:
        state = "ok" if told[-1] == ALONE else "note"
        return Line(what="training process", state=state, detail=f"the last one had {told[-1]}")
    asked = subprocess.run([sys.executable, "-m", "client.sandbox"], capture_output=True, text=True, check=False)
    why_not = asked.stdout.strip() if asked.returncode == 0 else "it could not be asked"
    detail = f"one started as this command is would have {f'the network: {why_not}' if why_not else ALONE}"
    return Line(what="training process", state="note", detail=detail)


def _of_ledger(silo: Silo, ledger: Ledger, planned: Study | None) -> Iterator[Line]:
    entries = ledger.entries()

    def usable() -> str:
        ledger.require_usable()
        still = ledger.open_reserves()
        return f"{len(entries)} entries hold" + (
            f"; {len(still)} rounds are reserved and not released" if still else ""
        )

    yield _asked("ledger", usable)
    yield _asked("clock", lambda: _clock(entries[-1].time))
    if ledger.policy_in_force == silo.policy.sha256:
        yield Line(what="policy", state="ok", detail=f"SHA-256 {silo.policy.sha256[:12]}, as the ledger has it")
    else:
        detail = (
            f"SHA-256 {silo.policy.sha256[:12]} is new to the ledger, which the next command that signs records; "
            "approvals under the policy of before do not hold any more"
        )
        yield Line(what="policy", state="note", detail=detail)
    for root in silo.settings.data:
        yield _asked(f"budget of {root}", partial(_budget, silo, ledger, root))
    if planned is not None:
        yield _asked("study", lambda: _study(silo, ledger, planned))


def _clock(last: str) -> str:
    now = datetime.now(UTC)
    behind = (datetime.fromisoformat(last.replace("Z", "+00:00")) - now).total_seconds()
    if behind > 1:
        raise _WrongError(f"the clock is {behind:.0f} s before the ledger's last entry ({last}); set the clock right")
    return f"{now.isoformat(timespec='seconds').replace('+00:00', 'Z')}, after the ledger's last entry"


def _budget(silo: Silo, ledger: Ledger, root: str) -> str:
    balance = ledger.balance(root)
    gate = silo.policy.budget[root].gate
    if gate != balance.root.gate:
        raise _WrongError(
            f"policy.toml has budget.{root}.gate = '{gate}', registered is '{balance.root.gate}'; write that"
        )
    if balance.used >= balance.epsilon:
        raise _WrongError(
            f"epsilon {balance.used} of {balance.epsilon} is spent; nothing more is released on this data"
        )
    return f"epsilon {balance.used:.4f} of {balance.epsilon:g} at delta {balance.root.delta:g} is spent"


def _study(silo: Silo, ledger: Ledger, planned: Study) -> str:
    from client.approval import admit

    admit(silo, planned)
    whole = ledger.balance(silo.root()[0]).admission(planned)
    if not whole.fits:
        raise _WrongError(whole.sentence(f"at silo {silo.name}"))
    return f"{planned.file.study.name} keeps the policy, is approved where that is asked for, and fits to its end"


def _data(silo: Silo, planned: Study | None) -> Iterator[Line]:
    for root, place in silo.settings.data.items():
        path = silo.folder / place.path
        if not path.exists():
            detail = f"there is nothing at {path}; correct data.{root}.path in silo.toml"
            yield Line(what=f"data of {root}", state="problem", detail=detail)
        elif planned is None:
            yield Line(what=f"data of {root}", state="ok", detail=f"{path} is there; --study also checks its schema")
        else:
            yield _asked(f"data of {root}", partial(_schema, silo, path, place.rename, planned))


def _schema(silo: Silo, path: Path, rename: dict[str, str], planned: Study) -> str:
    from client.data.kinds import load

    records = load(path, planned, rename, silo.folder / "cache")
    notes = f"; {'; '.join(records.notes)}" if records.notes else ""
    return f"{records.train.units} training and {records.held_out.units} held-out units fit the study{notes}"


def _connection(silo: Silo) -> Iterator[Line]:
    server = silo.settings.server
    if not server:
        yield Line(what="server", state="note", detail="silo.toml names none")
        return

    from client.enrolment import FOLDER, enrolment
    from client.trust import trust_of

    def reach() -> str:
        host, _, port = server.split("//")[-1].rstrip("/").rpartition(":")
        host, port = (host, port) if host and port.isdigit() else (server.split("//")[-1].rstrip("/"), str(_PORT))
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S) as plain:
                if (silo.folder / FOLDER / "answer.json").exists():
                    trust = trust_of(enrolment(silo.folder).answer.authority)
                    trust.wrap_socket(plain, server_hostname=host.strip("[]")).close()
                    return f"{server} answers, with a certificate of the pinned authority"
        except (OSError, OverflowError) as error:
            raise _WrongError(
                f"server = '{server}' does not answer ({error}); check the address and that the firewall lets this "
                "silo out"
            ) from None
        return f"{server} answers"

    yield _asked("server", reach)
