"""`budget`, `status`, `export` and `restore`: what the ledger says, what left, and going on after a freeze."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from client.commands.access import (
    OfficerWord,
    SiloFolder,
    SiloWord,
    Words,
    console,
    folder_of,
    open_silo,
    read_study,
    simulated,
)
from strategies.command import Json
from strategies.errors import SettingError, VerificationError

if TYPE_CHECKING:
    from client.ledger import Ledger
    from client.silo import Silo
    from strategies.privacy.events import Event
    from strategies.proof.heads import SignedHead
    from strategies.study import Study

_BAR = 40


# --- budget -------------------------------------------------------------------------------------------------


def budget(
    silo: SiloFolder = None,
    study: Annotated[Path | None, typer.Option(help="Also say how many rounds of this study are left.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is committed, reserved and free of each data root.

    The gate's epsilon holds a constant that the first release costs, so the shares are those of what adds up.
    """
    planned = read_study(study) if study else None
    found = open_silo(silo)
    with found.ledger() as ledger:
        rows = [_row(found, ledger, name, planned) for name in ledger.roots()]
        frozen = ledger.frozen
    facts = {"silo": found.name, "frozen": frozen, "data_roots": rows}
    if as_json:
        print(json.dumps(facts))
        return
    shown = console()
    if frozen:
        shown.print(f"[bold red]the ledger is frozen: {frozen}[/]", soft_wrap=True)
    if not rows:
        shown.print("no data root is registered; use fedsilo-silo register")
        return
    names = ("data root", "unit", "gate", "delta", "budget", "spent", "PLD", "committed", "reserved", "free", "")
    table = Table(*names, title=f"privacy budget of silo {found.name} (epsilon, shares)", title_justify="left")
    for row in rows:
        table.add_row(
            row["data_root"],
            row["unit"],
            row["gate"],
            f"{row['delta']:g}",
            *(_number(row[key]) for key in ("budget", "spent", "pld")),
            *(_percent(row["shares"][key]) for key in ("committed", "reserved", "free")),
            _bar(row),
        )
    shown.print(table)
    shown.print("[red]█[/] committed  [yellow]▒[/] reserved, counts as spent  [green]░[/] free")
    for row in rows:
        if planned is not None:
            shown.print(_forecast(row, planned), soft_wrap=True)


def _row(silo: Silo, ledger: Ledger, name: str, planned: Study | None) -> dict[str, Any]:
    from strategies.privacy.accountant import epsilon
    from strategies.privacy.admission import admission, counted, open_part, share
    from strategies.privacy.budget import Budget

    root, table = ledger.roots()[name], silo.policy.budget.get(name)
    spent = ledger.spent(name)
    committed, _ = open_part(spent, _open_events(ledger, name))
    limit = Budget(epsilon=table.epsilon, delta=table.delta) if table is not None else None
    if limit is not None and (limit.epsilon, limit.delta) == (root.epsilon, root.delta):
        limit = None
    whole, done = counted(root, limit, spent), counted(root, limit, committed)
    parts = share(root, limit, committed), share(root, limit, spent)
    most = min(root.epsilon, limit.epsilon if limit else math.inf)
    row: dict[str, Any] = {
        "data_root": name,
        "unit": root.unit,
        "gate": root.gate,
        "order": root.order,
        "delta": root.delta,
        "budget": _finite(most),
        "committed": _finite(done),
        "reserved": _finite(round(whole - done, 4)) if math.isfinite(whole) else None,
        "spent": _finite(whole),
        "free": _finite(max(0.0, round(most - whole, 4))) if math.isfinite(whole) else 0.0,
        "shares": {
            "committed": _finite(parts[0]),
            "reserved": _finite(round(parts[1] - parts[0], 4)) if math.isfinite(parts[1]) else None,
            "free": max(0.0, round(1 - parts[1], 4)),
        },
        "pld": _finite(epsilon(spent, root.delta)),
        "open_rounds": sum(_root_of(ledger, place) == name for place in ledger.open_reserves()),
        "in_policy": table is not None,
    }
    if planned is not None:
        asked = admission(planned, root, spent, limit=limit)
        row["study"] = {
            "name": planned.file.study.name,
            "fits": asked.fits,
            "rounds_left": asked.rounds,
            "largest_epsilon": asked.largest_epsilon,
        }
    return row


def _root_of(ledger: Ledger, place: tuple[str, int]) -> str:
    entry = ledger.entry(run=place[0], round=place[1], kind="reserve")
    return entry.data_root if entry else ""


def _open_events(ledger: Ledger, name: str) -> Iterable[Event]:
    from strategies.proof.entries import read_events

    for run, number in ledger.open_reserves():
        entry = ledger.entry(run=run, round=number, kind="reserve")
        if entry is not None and entry.data_root == name:
            yield from read_events(entry.body["events"])


def _bar(row: dict[str, Any]) -> Text:
    shares = row["shares"]
    if row["budget"] is None or shares["reserved"] is None:
        return Text("no limit" if row["budget"] is None else "unprotected")
    first = min(_BAR, math.ceil(_BAR * shares["committed"]))
    second = min(_BAR - first, math.ceil(_BAR * shares["reserved"]))
    parts = [("█", first, "red"), ("▒", second, "yellow"), ("░", _BAR - first - second, "green")]
    return Text.assemble(*((sign * count, colour) for sign, count, colour in parts))


def _forecast(row: dict[str, Any], planned: Study) -> str:
    found, rounds = row["study"], planned.file.study.rounds
    answer = f"fits with its {rounds} rounds" if found["fits"] else f"does not fit with its {rounds} rounds"
    left = f"{found['rounds_left']} rounds left with this noise"
    largest = f", largest privacy.epsilon for {rounds} rounds: {found['largest_epsilon']:g}"
    name = planned.file.study.name
    return f"study {name} on '{row['data_root']}': {answer}; {left}{largest if found['largest_epsilon'] else ''}"


# --- status -------------------------------------------------------------------------------------------------


def status(silo: SiloFolder = None, as_json: Json = False) -> None:
    """Show the node, the runs, their last replies, and all that left this silo."""
    from client.running import state_of

    found = open_silo(silo)
    left = _left(found.folder / "egress.jsonl")
    with found.ledger() as ledger:
        facts = {
            "silo": found.name,
            "node": state_of(found.folder),
            "frozen": ledger.frozen,
            "runs": _runs(ledger),
            "left": left["fields"],
            "replies": left["last"],
            "without_release": _unreleased(ledger, left["released"]),
            "approved": sorted(path.stem for path in (found.folder / "approved").glob("*.json")),
        }
    if as_json:
        print(json.dumps(facts))
        return
    shown = console()
    node = facts["node"]
    shown.print(f"node {node['state']}" + (f" since {node['since']}" if "since" in node else ""), soft_wrap=True)
    if "why" in node.get("facts", {}):
        shown.print(f"[yellow]{node['facts']['why']}[/]", soft_wrap=True)
    if facts["frozen"]:
        shown.print(f"[bold red]the ledger is frozen: {facts['frozen']}[/]", soft_wrap=True)
    if not facts["runs"]:
        shown.print("no run has reserved anything yet")
        return
    runs = Table("run", "data root", "reserved", "released", "acknowledged", "last entry", title_justify="left")
    runs.title = f"runs of silo {found.name}"
    for row in facts["runs"]:
        runs.add_row(row["run"][:12], row["data_root"], *(str(row[k]) for k in _STEPS.values()), row["time"])
    shown.print(runs)
    fields = Table("field", "seen as", "privacy", "times", "bytes", "last", title="what left", title_justify="left")
    for row in facts["left"]:
        fields.add_row(*(str(row[key]) for key in ("field", "seen", "privacy", "times", "bytes", "last")))
    shown.print(fields)
    for line in facts["without_release"]:
        shown.print(f"[bold red]round {line['round']} of run {line['run'][:12]} left without a release[/]")
    shown.print(f"{len(facts['approved'])} approved studies")


_STEPS = {"reserve": "reserved", "release": "released", "commit": "acknowledged"}


def _runs(ledger: Ledger) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for entry in ledger.entries():
        if not entry.run:
            continue
        first = {"run": entry.run, "data_root": entry.data_root, **dict.fromkeys(_STEPS.values(), 0), "aborted": 0}
        row = rows.setdefault(entry.run, first)
        row[_STEPS.get(entry.kind, "aborted")] += 1
        row["time"] = entry.time
    return list(rows.values())


def _left(path: Path) -> dict[str, Any]:
    """Return what `egress.jsonl` holds: sums by field, the last reply of each run, and rounds with a release."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    last: dict[str, dict[str, Any]] = {}
    released: set[tuple[str, int, str]] = set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in map(json.loads, lines):
            key = line["field"], line["seen"], line["privacy"]
            new = {"field": key[0], "seen": key[1], "privacy": key[2], "times": 0, "bytes": 0}
            row = rows.setdefault(key, new)
            row["times"], row["bytes"], row["last"] = row["times"] + 1, row["bytes"] + line["size_bytes"], line["time"]
            kind = line["field"].split(".")[0]
            last[line["run"]] = {"run": line["run"], "round": line["round"], "message": kind, "time": line["time"]}
            if line["privacy"] != "public" and kind != "Refused":
                released.add((line["run"], line["round"], kind))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path} cannot be read ({type(error).__name__}); it is damaged, keep it as it is") from None
    return {"fields": list(rows.values()), "last": list(last.values()), "released": sorted(released)}


def _unreleased(ledger: Ledger, left: list[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """Return what left of records and has no release in the ledger."""
    known: dict[str, set[int]] = {}
    for entry in ledger.entries():
        if entry.kind == "release":
            known.setdefault(entry.run, set()).add(entry.round)
    return [{"run": run, "round": number} for run, number, _ in left if number not in known.get(run, set())]


# --- export and restore -------------------------------------------------------------------------------------


def export(
    silo: SiloFolder = None,
    out: Annotated[Path | None, typer.Option(help="A new file for the lines; stdout if omitted.")] = None,
    as_json: Json = False,
) -> None:
    """Export the ledger: its signed lines as JSONL, which anybody can verify offline."""
    found = open_silo(silo)
    with found.ledger() as ledger:
        lines, pins = ledger.export(), ledger.pins
    text = b"".join(line + b"\n" for line in lines).decode()
    facts: dict[str, Any] = {
        "ledger_id": pins.ledger_id,
        "ledger_key": pins.ledger_key,
        "officer_key": pins.dpo_key,
        "entries": len(lines),
    }
    if out is not None:
        try:
            with out.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except OSError as error:
            raise SettingError(f"--out {out} cannot be written: {error.strerror}") from None
        facts["out"] = str(out)
    else:
        facts["lines"] = [json.loads(line) for line in lines]
    if as_json:
        print(json.dumps(facts))
    elif out is not None:
        console().print(f"{len(lines)} entries of ledger {pins.ledger_id[:12]} are in {out}", soft_wrap=True)
    else:
        print(text, end="")


def restore(
    reason: Annotated[
        str, typer.Option(help="A sentence that stays in the ledger and goes to coordinators with it: no private fact.")
    ],
    silo: SiloFolder = None,
    heads: Annotated[
        Path | None, typer.Option(help="Receipts that others have kept of this ledger, one canonical line each.")
    ] = None,
    silo_word: SiloWord = None,
    officer_word: OfficerWord = None,
    as_json: Json = False,
) -> None:
    """Go on after a freeze or from a backup, with the officer's key; all that is known to be spent is adopted."""
    from client.keys import officer_key

    if not 1 <= len(reason) <= 1000:
        raise SettingError(f"--reason has {len(reason)} characters, which is not allowed; write 1 to 1000")
    known = _heads(heads) if heads else []
    words = Words(silo=silo_word, officer=officer_word)
    found = open_silo(folder_of(silo), words)
    word = None if simulated(found) else words.ask("officer")
    officer = officer_key(found.folder / "keys", word, simulated=simulated(found))
    with found.ledger() as ledger:
        ledger.restore(officer=officer, reason=reason, heads=known)
        ledger.policy(found.policy.sha256)
        spent = {name: _finite(root.spent(ledger.spent(name))) for name, root in ledger.roots().items()}
        facts = {"silo": found.name, "entries": len(ledger.entries()), "spent": spent, "heads": len(known)}
    if as_json:
        print(json.dumps(facts))
        return
    shown = ", ".join(f"'{name}' {_number(value)}" for name, value in spent.items()) or "nothing"
    console().print(f"the ledger goes on; spent as the gate counts it: {shown}", soft_wrap=True)


def _heads(path: Path) -> list[SignedHead]:
    from strategies.proof.heads import Receipt, SignedHead

    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
    except OSError as error:
        raise SettingError(f"--heads {path} cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Receipt.from_bytes(line).head if b'"witness"' in line else SignedHead.from_bytes(line))
        except VerificationError as error:
            raise VerificationError(f"line {number} of {path} does not hold: {error}") from None
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "all" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "no limit" if value is None else f"{value:.4f}"
