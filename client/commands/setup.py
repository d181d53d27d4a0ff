"""`init` and `register`: an empty folder becomes a silo, and a data set one that it answers for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.commands.access import (
    OfficerWord,
    SiloFolder,
    SiloWord,
    Words,
    console,
    open_silo,
    read_study,
    simulated,
)
from strategies.command import Json
from strategies.errors import DataError, SettingError

if TYPE_CHECKING:
    from client.silo import DataRoot as Place
    from client.silo import Silo
    from strategies.privacy.dataroot import DataRoot

_SILO = """name = {name}
server = ""                      # host:port of the coordinator, once there is one
device = "auto"                  # auto, cpu, cuda, cuda:1
# memory_fraction = 0.3          # of the GPU's memory, where several nodes share one

[data.{root}]
path = {path}
unit = {unit}                    # "record", or the column that names the patient or account
units_at_least = {least}         # a public lower bound of the number of units, never a count
# rename = {{ own = "study" }}    # this silo's column names to the study's

[ledger]
durability = "power-loss"
allow_volatile = {volatile}      # true: the ledger may lie on a file system that can lose it
"""
_POLICY = """# What this silo allows; a study can only be stricter.
[budget.{root}]
epsilon = 8.0                    # for all that is ever released on this data
delta = {delta:g}                # at most 1 / (10 units_at_least) and 1e-5
period = "lifetime"
gate = "rdp"                     # rdp: studies may be chosen as they come; preregistered: one plan, fixed at register

[require]
mechanism = "dp-sgd"             # or local-gaussian, distributed-gaussian, central-gaussian (trusts the server), none
secagg = false
min_cohort = 3
max_sampling_rate = 0.1
max_steps_per_round = 200
max_clip_norm = 1000.0
allow_metrics = "none"           # none, noisy, masked
approval = "required"            # required: only studies that the officer has approved; automatic
"""
_ROOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new silo's folder.")],
    name: Annotated[str | None, typer.Option(help="The silo's name; the folder's if omitted.")] = None,
    data: Annotated[
        str, typer.Option(metavar="ROOT=PATH", help="Name and place of the records, for silo.toml.")
    ] = "records=data/records.csv",
    unit: Annotated[str, typer.Option(help="'record', or the column that names the patient or account.")] = "record",
    units_at_least: Annotated[int, typer.Option(min=1, help="Public lower bound of the number of units.")] = 1,
    allow_volatile: Annotated[
        bool, typer.Option("--allow-volatile", help="Keep the ledger also where a restart may lose it.")
    ] = False,
    silo_word: SiloWord = None,
    officer_word: OfficerWord = None,
    as_json: Json = False,
) -> None:
    """Make a silo's folder: settings, policy, three keys that are made here, and an empty ledger.

    A silo.toml or policy.toml that is there is kept.
    """
    from client.keys import check_folder

    root, equals, path = data.partition("=")
    if not (equals and path and _ROOT.fullmatch(root)):
        raise SettingError(f"--data {data} is not allowed: it must have the form ROOT=PATH, ROOT of letters and digits")
    if (folder / "keys").exists():
        check_folder(folder / "keys")
        raise SettingError(f"{folder} has keys already, and they are never replaced; use a new folder")
    delta = min(1e-5, 1 / (10 * units_at_least))
    values = {"root": root, "path": _quoted(_absolute(path)), "unit": _quoted(unit), "least": units_at_least}
    values |= {"name": _quoted(name or folder.resolve().name), "volatile": str(allow_volatile).lower(), "delta": delta}
    silo = _opened(folder, values)
    silo.place().require_durable()  # before a key is made
    facts = _made(silo, Words(silo=silo_word, officer=officer_word))
    if as_json:
        print(json.dumps(facts))
        return
    shown = console()
    shown.print(f"silo {silo.name} is made in {folder}", soft_wrap=True)
    for key in ("ledger_id", "ledger_key", "officer_key"):
        shown.print(f"{key.replace('_', ' '):<13}{facts[key]}", soft_wrap=True)
    shown.print(
        f"next: read {folder / 'silo.toml'} and {folder / 'policy.toml'}, take the officer's key and a backup of keys/ "
        f"elsewhere, then fedsilo-silo register {next(iter(silo.settings.data), root)}",
        soft_wrap=True,
    )


def _made(silo: Silo, words: Words) -> dict[str, str]:
    """Make keys and ledger, record the policy, and return what may be shown to anybody."""
    from client.keys import Passphrases, make_keys, officer_key
    from client.ledger import Ledger

    keys, plain, kept = silo.folder / "keys", simulated(silo), Passphrases()
    if not plain:
        kept = Passphrases(silo=words.ask("silo", new=True), officer=words.ask("officer", new=True))
    public = make_keys(keys, kept, simulated=plain)
    silo = replace(silo, passphrase=kept.silo)
    pins = Ledger.create(silo.place(), silo=silo.name, officer=officer_key(keys, kept.officer, simulated=plain))
    with silo.ledger() as ledger:
        ledger.policy(silo.policy.sha256)
    return {
        "silo": silo.name,
        "folder": str(silo.folder),
        "ledger_id": pins.ledger_id,
        "ledger_key": public.ledger,
        "officer_key": public.officer,
        "transport_key": public.transport,
    }


def _opened(folder: Path, values: dict[str, Any]) -> Silo:
    """Write the files that are not there yet, and read all back."""
    from client.silo import Silo

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file, text in (("silo.toml", _SILO), ("policy.toml", _POLICY)):
            if not (folder / file).exists():
                (folder / file).write_text(text.format(**values), encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{folder} cannot be written: {error.strerror}") from None
    return Silo.open(folder)


def _absolute(path: str) -> str:
    """Return the path as the silo's folder will find it: one that is there from here is made absolute."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# --- register -----------------------------------------------------------------------------------------------


def register(
    root: Annotated[str, typer.Argument(help="A [data.ROOT] of silo.toml with a [budget.ROOT] in policy.toml.")],
    silo: SiloFolder = None,
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="With gate = 'preregistered': a study of the plan; may be repeated."),
    ] = None,
    silo_word: SiloWord = None,
    officer_word: OfficerWord = None,
    as_json: Json = False,
) -> None:
    """Register a data set for its whole life: unit of privacy, budget, gate, and a keyed sketch of its units."""
    from client.keys import officer_key
    from strategies.proof.entries import root_value

    words = Words(silo=silo_word, officer=officer_word)
    found = open_silo(silo)
    wanted = _wanted(found, root, plan or [])
    place = found.settings.data[root]
    found = open_silo(silo, words)
    word = None if simulated(found) else words.ask("officer")
    officer = officer_key(found.folder / "keys", word, simulated=simulated(found))
    with console(quiet=as_json).status("reading the units"), found.ledger() as ledger:
        ledger.policy(found.policy.sha256)
        registered = ledger.register(wanted, officer=officer, units=_units(found, root, place))
    facts = {"data_root": root, **root_value(registered)}
    if as_json:
        print(json.dumps(facts))
        return
    gate = f"rdp at order {registered.order:g}" if registered.gate == "rdp" else "preregistered"
    console().print(
        f"data root '{root}' is registered for its whole life: epsilon {registered.epsilon:g} at delta "
        f"{registered.delta:g} a {registered.unit}, gate {gate}",
        soft_wrap=True,
    )


def _wanted(silo: Silo, root: str, plan: list[Path]) -> DataRoot:
    from strategies.privacy.dataroot import DataRoot

    for file, tables, table in (
        ("silo.toml", silo.settings.data, f"[data.{root}]"),
        ("policy.toml", silo.policy.budget, f"[budget.{root}]"),
    ):
        if root not in tables:
            raise SettingError(f"{silo.folder / file} has no {table}; add it, or name one of {', '.join(tables)}")
    budget, place = silo.policy.budget[root], silo.settings.data[root]
    if plan and budget.gate != "preregistered":
        raise SettingError(f"--plan is not allowed with budget.{root}.gate = '{budget.gate}'; it must be preregistered")
    if budget.gate == "preregistered" and not plan:
        raise SettingError(f"budget.{root}.gate = 'preregistered' needs its plan; give --plan STUDY for each study")
    slots = tuple(event for path in plan for event in read_study(path).total_events())
    return DataRoot(
        name=root,
        unit=place.unit,
        epsilon=budget.epsilon,
        delta=budget.delta,
        gate=budget.gate,
        slots=slots,
        units_at_least=place.units_at_least,
    )


def _units(silo: Silo, root: str, place: Place) -> Iterable[bytes]:
    from client.data.units import units_of

    return _counted(
        units_of(silo.folder / place.path, place.unit, place.rename, silo.folder / "cache"), root, place.units_at_least
    )


def _counted(units: Iterator[bytes], root: str, least: int) -> Iterator[bytes]:
    """Pass the units on, and raise when there are fewer than the silo declares: delta would be too large for them."""
    seen: set[int] = set()
    for unit in units:
        if len(seen) < least:
            seen.add(hash(unit))
        yield unit
    if len(seen) < least:
        raise DataError(
            f"data.{root}.units_at_least = {least} is above the number of units that the data hold; lower it in "
            "silo.toml"
        )
