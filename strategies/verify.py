"""`fedsilo-verify`: what an auditor needs, without torch and without Flower.

`check` reads signed evidence and recomputes every epsilon. `epsilon` is the calculator: releases in,
privacy loss out, with both accountants and without the help of sampling.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from strategies.command import Json, guarded
from strategies.errors import SettingError, VerificationError, nearest
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Gaussian, to_json
from strategies.proof.check import check
from strategies.proof.findings import TOLERANCE, Findings
from strategies.proof.seal import NAME
from strategies.proof.trust import Trust, read_trust

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Check reports and compute privacy losses, offline.",
)
_KEYS: dict[str, type] = {"noise_multiplier": float, "sampling_rate": float, "steps": int}


@app.command(
    "epsilon",
    epilog="Example: fedsilo-verify epsilon --release noise_multiplier=1,sampling_rate=0.01,steps=1000 --delta 1e-5",
)
def epsilon_command(
    release: Annotated[
        list[str],
        typer.Option(
            help="noise_multiplier=S[,sampling_rate=Q][,steps=T]; may be repeated, all releases are composed."
        ),
    ],
    delta: Annotated[float, typer.Option(help="The delta at which epsilon is given, between 0 and 1.")],
    as_json: Json = False,
) -> None:
    """Compute the epsilon of Gaussian releases on one data set (add-or-remove-one)."""
    events = tuple(_parse_release(text) for text in release)
    if not 0 < delta < 1:
        raise SettingError(f"--delta {delta} is not allowed: it must be between 0 and 1, for example 1e-5")
    values = {
        name: {
            "pld": epsilon(events, delta, amplification=amplified),
            "rdp": epsilon(events, delta, accountant="rdp", amplification=amplified),
        }
        for name, amplified in (("epsilon", True), ("epsilon_without_amplification", False))
    }
    facts: dict[str, Any] = {
        "delta": delta,
        "neighbouring": "add-or-remove-one",
        "releases": [to_json(event) for event in events],
        **values,
    }
    if as_json:
        print(json.dumps(facts))
    else:
        _print(events, delta, values)


@app.command(
    "check",
    epilog="Example: fedsilo-verify check runs/breast-cancer-20260101-120000 --pin pins.json",
)
def check_command(
    files: Annotated[list[Path], typer.Argument(help="Run folders, statements, ledger exports, receipts, reports.")],
    pin: Annotated[
        list[Path] | None,
        typer.Option(help="Whose keys count: a roster, a pins file, or a silo's pin.json; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check run folders, statements and ledger exports: every link, signature, key and epsilon. Exit 0 or 4."""
    trust = Trust()
    for path in pin or ():
        trust = trust.and_of(read_trust(_bytes(path)))
    found = check({str(path): content for path, content in map(_given, files)}, trust)
    if as_json:
        print(json.dumps(_facts(found, trust)))
    else:
        _print_findings(found)
    return VerificationError.exit_code if found.problems else 0


def _given(path: Path) -> tuple[Path, bytes | dict[str, bytes]]:
    """Return the bytes of a file, or of a folder's files; a report stands for the folder that it is in."""
    if path.name == "report.json" and (path.parent / NAME).exists():
        path = path.parent
    if not path.is_dir():
        return path, _bytes(path)
    files = sorted(inner for inner in path.rglob("*") if inner.is_file() or inner.is_symlink())
    return path, {inner.relative_to(path).as_posix(): _bytes(inner) for inner in files}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}); give a file or a run folder") from None


def _facts(found: Findings, trust: Trust) -> dict[str, Any]:
    first = found.problems[0] if found.problems else None
    return {
        "result": "FAIL" if first else "PASS",
        "pinned": trust.pinned,
        "first_bad": asdict(first) if first else None,
        "problems": [asdict(problem) for problem in found.problems],
        "checked": found.checked,
        "data_roots": found.roots,
        "open_reserves": found.open_reserves,
        "equivocations": found.equivocations,
        "notes": found.notes,
        "tolerance": TOLERANCE,
    }


def _print_findings(found: Findings) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for sentence in found.checked:
        console.print(sentence)
    if found.roots:
        console.print(
            f"epsilon recomputed from the events; what is stated agrees within {TOLERANCE}, or is named below"
        )
    for row in found.roots:
        loss = "no bound" if row["epsilon"] is None else f"epsilon {row['epsilon']}"
        console.print(
            f"  {row['silo']}, data root '{row['data_root']}': {loss} at delta {row['delta']:g} a {row['unit']}, "
            f"{row['neighbouring']}; the gate ({row['gate']}) counts {row['spent']} of {row['budget']}"
            + ("" if row["rests_on"] == "ledger" else "; to date, as the silo has signed")
        )
    for row in found.open_reserves:
        console.print(f"  {row['silo']}: round {row['round']} of run {row['run']} is reserved and not released; spent")
    for row in found.equivocations:
        console.print(f"  equivocation: ledger {row['ledger_id']} has two lines at position {row['seq']}")
    for sentence in found.notes:
        console.print(f"note: {sentence}")
    for problem in found.problems:
        where = f", entry {problem.seq}" if problem.seq is not None else ""
        console.print(f"FAIL {problem.file}{where}: {problem.sentence}")
    if not found.problems:
        console.print("PASS")


def _parse_release(text: str) -> Gaussian:
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in _KEYS:
            raise SettingError(f"--release {text}: unknown key '{key}'; {nearest(key, _KEYS)}")
        try:
            values[key] = _KEYS[key](value)
        except ValueError:
            kind = "a whole number" if _KEYS[key] is int else "a number"
            raise SettingError(f"--release {text}: {key}{equals}{value} is not allowed: it must be {kind}") from None
    if "noise_multiplier" not in values:
        raise SettingError(
            f"--release {text}: noise_multiplier is missing; write noise_multiplier=1,sampling_rate=0.01,steps=1000"
        )
    if (
        values.get("steps", 1) < 1
        or not 0 < values.get("sampling_rate", 1) <= 1
        or not (0 < values["noise_multiplier"] < math.inf)
    ):
        raise SettingError(
            f"--release {text} is not allowed: noise_multiplier must be a positive number, sampling_rate "
            "in (0, 1] and steps at least 1"
        )
    return Gaussian(**values)


def _print(events: tuple[Gaussian, ...], delta: float, values: dict[str, dict[str, float]]) -> None:
    console = Console(highlight=False)
    for event in events:
        console.print(
            f"{event.steps} releases, noise multiplier {event.noise_multiplier:g}, sampling rate "
            f"{event.sampling_rate:g}"
        )
    table = Table(
        "accountant",
        "epsilon",
        "epsilon without amplification",
        title=f"epsilon at delta = {delta:g}, add-or-remove-one",
    )
    for name, label in (("pld", "PLD (tight)"), ("rdp", "RDP")):
        table.add_row(label, *(f"{values[kind][name]:.4f}" for kind in values))
    console.print(table)


def main() -> None:
    """Entry point of `fedsilo-verify`."""
    raise SystemExit(guarded(app))
