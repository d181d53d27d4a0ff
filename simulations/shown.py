"""What a terminal shows of a finished run and of an audit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from simulations.run import Outcome


def print_outcome(console: Console, outcome: Outcome) -> None:
    facts = outcome.facts
    privacy = facts["privacy"]
    names = list(facts["metrics"]) or []
    table = Table(
        "round", *names, "worst epsilon", title="the global model on the pooled test data", title_justify="left"
    )
    for line in _some(facts["rounds"]):
        worst = [value for value in line["epsilon"].values() if value is not None]
        table.add_row(
            str(line["round"]),
            *(_number(line["metrics"][name]) for name in names),
            f"{max(worst):.4f}" if worst else "[red]none[/]",
        )
    baselines = facts.get("baselines")
    if baselines:
        table.add_section()
        for label, key in (
            ("pooled, not private", "pooled"),
            (f"best lone silo ({baselines['best_silo']}), not private", "best_local"),
        ):
            table.add_row(label, *(_number(baselines[key][name]) for name in names), "")
    console.print(table)
    _print_silos(console, facts, privacy)
    for note in facts["simulation"]["read_off_the_data"]:
        console.print(f"[dim]not private: {note}[/]")
    if facts["audit"]["status"] != "not run":
        console.print(f"audit: {facts['audit']['reason']}", soft_wrap=True)
    console.print(f"{len(facts['rounds'])} rounds in {outcome.seconds:.1f} s")
    for label, path in (
        ("run", outcome.folder),
        ("report", outcome.folder / "report.html"),
        ("silos", outcome.silos[0].parent),
    ):
        console.print(f"{label:<7}{shown(path)}", soft_wrap=True)


def print_audit(console: Console, facts: dict[str, Any]) -> None:
    table = Table("check", "measured", "interval", "claimed", "holds", title="conformance", title_justify="left")
    for check in facts["conformance"]:
        interval = f"{check['low']:.4f} to {check['high']:.4f}"
        holds = "yes" if check["holds"] else "[bold red]NO[/]"
        table.add_row(check["name"], f"{check['measured']:.4f}", interval, f"{check['claimed']:.4f}", holds)
    console.print(table)
    claim = facts["claim"]
    title = f"attacks: epsilon at delta = {claim['delta']:g}, of which {claim['epsilon']:.4f} is claimed"
    columns = ("attack on", "in the data", "guesses right", "at least", "at least, Gaussian")
    table = Table(*columns, title=title, title_justify="left")
    for key in ("canaries", "records"):
        layer = facts[key]
        table.add_row(
            key,
            f"{layer['included']} of {layer['canaries']}",
            f"{layer['correct']} of {layer['made']}",
            f"{layer['epsilon_lower_bound']:.4f}",
            f"{layer['epsilon_lower_bound_gaussian']:.4f}",
        )
    console.print(table)


def _print_silos(console: Console, facts: dict[str, Any], privacy: dict[str, Any]) -> None:
    if privacy["mechanism"] == "none":
        console.print("[bold red]NO differential privacy: the updates of this run are unprotected[/]")
        return
    table = Table(
        "silo",
        "rounds",
        "epsilon",
        "budget spent",
        "budget",
        title_justify="left",
        title=f"privacy: epsilon at delta = {privacy['delta']:g} a {privacy['unit']}, add-or-remove-one, "
        f"{privacy['accountant'].upper()}",
    )
    for silo in facts["silos"]:
        budget = (silo["statement"] or {}).get("budget", {})
        table.add_row(
            silo["name"],
            str(silo["rounds"]),
            f"{silo['epsilon']:.4f}",
            _number(budget.get("spent")),
            _number(budget.get("epsilon")),
        )
    console.print(table)


def _some(lines: list[dict[str, Any]], most: int = 12) -> list[dict[str, Any]]:
    """Return at most `most` lines, spread evenly, the last always among them."""
    if len(lines) <= most:
        return lines
    step = -(-len(lines) // most)
    return [line for line in lines if line["round"] % step == 0 or line is lines[-1]]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def shown(path: Path) -> str:
    try:
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    except ValueError:
        return str(path)
