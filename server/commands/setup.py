"""`init` and `enrol`: a folder becomes a coordinator, and silos come and go."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.shared import ServerFolder, console
from strategies.command import Json
from strategies.errors import SettingError

if TYPE_CHECKING:
    from server.home import Home
    from strategies.roster import Roster


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new coordinator's folder.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which silos reach this machine; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The coordinator's name; the folder's if omitted.")] = None,
    listen: Annotated[str, typer.Option(help="Address on which the gateway listens.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(min=1, max=65532, help="The gateway's; the next three are loopback.")] = 9092,
    as_json: Json = False,
) -> None:
    """Make a coordinator: key, certificate authority, server certificate, settings and an empty roster."""
    from pydantic import ValidationError

    from server.home import Home, Settings, first_problem
    from strategies.enrolment import fingerprint
    from strategies.proof.entries import public_hex

    try:
        settings = Settings(
            name=name or folder.resolve().name,
            hosts=host or ["localhost"],
            listen=listen,
            port=port,
            superlink_port=port + 1,
            status_port=port + 2,
            health_port=port + 3,
        )
    except ValidationError as error:
        raise SettingError(first_problem(error)) from None
    home = Home.create(folder, settings)
    facts = {
        "folder": str(home.folder),
        "address": settings.address,
        "coordinator": public_hex(home.key()),
        "authority": fingerprint((home.folder / "ca.crt").read_bytes()),
    }
    if as_json:
        print(json.dumps(facts))
        return
    shown = console()
    shown.print(f"coordinator {settings.name} is made in {folder}; silos reach it at {settings.address}")
    shown.print(f"key          {facts['coordinator']}")
    shown.print(f"authority    {facts['authority']}")
    shown.print(f"next: fedsilo-server enrol REQUEST --server {folder} for each silo, then fedsilo-server up")


def enrol(
    request: Annotated[
        Path | None, typer.Argument(metavar="REQUEST", help="The file that fedsilo-silo enrol has written.")
    ] = None,
    server: ServerFolder = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the silo reads by telephone; asked for if omitted.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the answer goes; beside the request if omitted.")] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="The request is for new keys of a silo that is enrolled.")
    ] = False,
    remove: Annotated[str | None, typer.Option(metavar="SILO", help="Take this silo off the roster instead.")] = None,
    reason: Annotated[str, typer.Option(help="Why a silo is removed; everybody can read it.")] = "left",
    as_json: Json = False,
) -> None:
    """Add a silo to the roster and write the answer that it installs; or change its keys; or remove it.

    A running coordinator admits or refuses the silo's node at once.
    """
    from server.home import Home, now

    home = Home.open(server)
    if (request is None) == (remove is None) or (rotate and remove is not None):
        raise SettingError("give the REQUEST of one silo, with --rotate if it is for new keys, or --remove SILO")
    if remove is not None:
        with home.changing_roster() as roster:
            home.keep_roster(roster.remove(remove, reason, home.key(), now()))
        _say({"removed": remove, "roster": home.roster().hash}, as_json, f"silo {remove} is off the roster")
        return
    assert request is not None
    data = _read(request)
    silo, changed = _rotating(data) if rotate else _adding(data)
    known = _compared(silo, data, fingerprint, quiet=as_json)
    with home.changing_roster() as roster:
        longer = changed(roster, home)
        if longer is not roster:
            home.keep_roster(longer)
    answer, path = _answer(home), out or request.with_name(f"{silo}.answer.json")
    try:
        path.write_bytes(answer)
    except OSError as error:
        raise SettingError(f"--out {path} cannot be written: {error.strerror}") from None
    from strategies.enrolment import fingerprint as of

    facts = {"silo": silo, "request": known, "answer": str(path), "fingerprint": of(answer)}
    _say(facts, as_json, f"silo {silo} is enrolled; send it {path} and read to it: {facts['fingerprint']}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"the request {path} cannot be read: {error.strerror}") from None


_Change = Callable[["Roster", "Home"], "Roster"]  # an answer may be asked for again: then it returns what it was given


def _adding(data: bytes) -> tuple[str, _Change]:
    """Return the name of the silo that asks to be let in, and what letting it in does to the roster."""
    from server.home import now
    from strategies.enrolment import read_request

    member = read_request(data)

    def add(roster: Roster, home: Home) -> Roster:
        same = roster.members.get(member.silo) == member
        return roster if same else roster.add(member, home.key(), now())

    return member.silo, add


def _rotating(data: bytes) -> tuple[str, _Change]:
    """Return the name of the silo that asks for new keys, and what they do to the roster."""
    from server.home import now
    from strategies.enrolment import read_handover

    handover = read_handover(data)

    def rotate(roster: Roster, home: Home) -> Roster:
        found, wanted = roster.members.get(handover.silo), (handover.ledger_id, handover.ledger_key)
        same = found is not None and (found.ledger_id, found.ledger_key) == wanted
        return roster if same else roster.rotate(handover, home.key(), now())

    return handover.silo, rotate


def _compared(silo: str, data: bytes, given: str | None, *, quiet: bool) -> str:
    """Return the request's fingerprint once a person has compared it.

    Raises:
        SettingError: it is another one, or nobody is there to say so.
    """
    from strategies.enrolment import fingerprint

    known = fingerprint(data)
    shown = console(quiet=quiet)
    shown.print(f"request of silo {silo}: {known}")
    if given is None:
        if not sys.stdin.isatty():
            raise SettingError("--fingerprint is missing and this is no terminal to ask at; call the silo and compare")
        given = typer.prompt("call the silo and type what it reads")
    if "".join(given.split()).lower() != known.replace(" ", ""):
        raise SettingError(f"--fingerprint {given} is not the request's, {known}; the file was changed on its way")
    return known


def _answer(home: Home) -> bytes:
    from strategies.bundle import digest
    from strategies.enrolment import Answer, write_answer

    roster = home.roster()
    answer = Answer(
        address=home.settings.address,
        coordinator=roster.key,
        authority=(home.folder / "ca.crt").read_text(),
        roster=roster.text.decode(),
        bundle=digest(),
    )
    return write_answer(answer, home.key())


def _say(facts: dict[str, str], as_json: bool, sentence: str) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        console().print(sentence)
