"""`enrol`: ask a coordinator to be let in, and pin what it answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.access import SiloFolder, SiloWord, Words, console, open_silo, simulated
from strategies.command import Json
from strategies.errors import SettingError

if TYPE_CHECKING:
    from client.silo import Silo


def enrol(
    silo: SiloFolder = None,
    out: Annotated[Path | None, typer.Option(help="Where the request goes; NAME.request.json if omitted.")] = None,
    install: Annotated[
        Path | None, typer.Option(metavar="ANSWER", help="Pin this answer of the coordinator instead.")
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make new keys and ask to change to them; the ledger and its budget stay.")
    ] = False,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the coordinator reads by telephone; asked for if omitted.")
    ] = None,
    silo_word: SiloWord = None,
    as_json: Json = False,
) -> None:
    """Write the request that a coordinator enrols; with --install, pin its answer: key, authority and roster."""
    from client.handover import ask, own
    from client.keys import ledger_key
    from strategies.enrolment import fingerprint as of
    from strategies.enrolment import write_handover, write_request

    if rotate and install is not None:
        raise SettingError("--rotate asks for new keys and --install ends it with the answer; give one of them")
    found = open_silo(silo, Words(silo=silo_word))
    if install is not None:
        _install(found, install, fingerprint, as_json)
        return
    member = own(found)
    if rotate:
        data = write_handover(ask(found))
    else:
        data = write_request(member, ledger_key(found.folder / "keys", found.passphrase, simulated=simulated(found)))
    path = out or Path(f"{member.silo}.{'rotate' if rotate else 'request'}.json")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SettingError(f"--out {path} cannot be written: {error.strerror}") from None
    facts = {"silo": member.silo, "request": str(path), "fingerprint": of(data)}
    _say(facts, as_json, f"send {path} to the coordinator and read to it by telephone: {facts['fingerprint']}")


def _install(silo: Silo, path: Path, given: str | None, as_json: bool) -> None:
    from client.enrolment import install
    from client.handover import own, pending, take_over
    from client.running import only_one
    from strategies.enrolment import fingerprint, read_answer

    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingError(f"--install {path} cannot be read: {error.strerror}") from None
    answer, known = read_answer(data), fingerprint(data)
    console(quiet=as_json).print(f"answer of the coordinator at {answer.address}: {known}", soft_wrap=True)
    if given is None:
        if not sys.stdin.isatty():
            raise SettingError(
                "--fingerprint is missing and this is no terminal to ask at; call the coordinator and compare"
            )
        given = typer.prompt("call the coordinator and type what it reads")
    if "".join(given.split()).lower() != known.replace(" ", ""):
        raise SettingError(f"--fingerprint {given} is not the answer's, {known}; the file was changed on its way")
    member, changed = own(silo), pending(silo)
    if changed is not None and answer.members().members.get(member.silo) == changed:
        with only_one(silo.folder):
            kept = install(silo, answer, data, changed)  # raises for another coordinator's, before a key is touched
            take_over(silo)
    else:
        kept = install(silo, answer, data, member)
    _remember_server(silo, answer.address)
    facts = {
        "silo": member.silo,
        "server": answer.address,
        "coordinator": answer.coordinator,
        "silos": sorted(kept.roster.members),
        "fingerprint": known,
    }
    _say(facts, as_json, f"silo {member.silo} belongs to the coordinator at {answer.address}; next: fedsilo-silo up")


def _remember_server(silo: Silo, address: str) -> None:
    """Write the address into silo.toml, comments kept; `up` reads it there."""
    import tomlkit

    path = silo.folder / "silo.toml"
    settings = tomlkit.parse(path.read_text(encoding="utf-8"))
    if settings.get("server") != address:
        settings["server"] = address
        path.write_text(tomlkit.dumps(settings), encoding="utf-8")


def _say(facts: Mapping[str, object], as_json: bool, sentence: str) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        console().print(sentence, soft_wrap=True)
