"""`fedsilo-verify`: what an auditor needs, without torch and without Flower.

`epsilon` is the calculator: releases in, privacy loss out, with both accountants and without the help of sampling.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from strategies.command import guarded
from strategies.errors import NotBuiltError, SettingError, nearest
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Gaussian, to_json

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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one machine-readable object and nothing else.")
    ] = False,
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


@app.command("check", epilog="Example: fedsilo-verify check runs/breast-cancer-20260101-120000/report.json")
def check_command(
    files: Annotated[list[str], typer.Argument(help="Reports, run folders, statements, exports.")],
) -> None:
    """Check reports, statements and ledger exports against their signatures and events."""
    raise NotBuiltError("fedsilo-verify check is not part of this version: reports are not signed yet")


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
