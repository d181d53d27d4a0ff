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
    from strategies.roster import Member


def enrol(
    silo: SiloFolder = None,
    out: Annotated[Path | None, typer.Option(help="Where the request goes; NAME.request.json if omitted.")] = None,
    install: Annotated[
        Path | None, typer.Option(metavar="ANSWER", help="Pin this answer of the coordinator instead.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the coordinator reads by telephone; asked for if omitted.")
    ] = None,
    silo_word: SiloWord = None,
    as_json: Json = False,
) -> None:
    """Write the request that a coordinator enrols; with --install, pin its answer: key, authority and roster."""
    from client.keys import ledger_key
    from strategies.enrolment import fingerprint as of
    from strategies.enrolment import write_request

    found = open_silo(silo, Words(silo=silo_word))
    member = _own(found)
    if install is not None:
        _install(found, member, install, fingerprint, as_json)
        return
    data = write_request(member, ledger_key(found.folder / "keys", found.passphrase, simulated=simulated(found)))
    path = out or Path(f"{member.silo}.request.json")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SettingError(f"--out {path} cannot be written: {error.strerror}") from None
    facts = {"silo": member.silo, "request": str(path), "fingerprint": of(data)}
    _say(facts, as_json, f"send {path} to the coordinator and read to it by telephone: {facts['fingerprint']}")


def _own(silo: Silo) -> Member:
    """Return this silo as a roster names it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from client.keys import read_pin, transport_key
    from strategies.roster import Member

    keys = silo.folder / "keys"
    pin = read_pin(keys)
    point = transport_key(keys, silo.passphrase, simulated=simulated(silo)).public_key()
    return Member(
        silo=silo.name,
        ledger_key=pin.ledger_key,
        dpo_key=pin.dpo_key,
        ledger_id=pin.ledger_id,
        transport_key=point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint).hex(),
    )


def _install(silo: Silo, member: Member, path: Path, given: str | None, as_json: bool) -> None:
    from client.enrolment import install
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
