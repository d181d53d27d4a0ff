"""What a coordinator knows of its runs and silos, as plain values: for `status`, the page and the probes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.home import Home
from server.lock import running
from server.superlink import Control
from strategies.errors import RunError

_CURVE = ("auroc", "accuracy", "loss")


def overview(home: Home) -> dict[str, Any]:
    """Return the state of everything.

    Raises:
        SettingError, VerificationError: the roster cannot be read.
    """
    roster, pid = home.roster(), running(home)
    nodes, live, problem = {}, {}, None
    if pid is not None:
        try:
            control = Control(home)
            nodes = {node.key: node for node in control.nodes()}
            live = {run.run: run.status for run in control.runs()}
        except RunError as error:
            problem = str(error)
    silos = []
    for name, member in sorted(roster.members.items()):
        node = nodes.get(member.transport_key)
        state = "unknown" if node is None else "online" if node.online else "offline"
        silos.append({"silo": name, "state": state, "last_seen": node.seen if node and node.seen else None})
    return {
        "coordinator": home.settings.name,
        "address": home.settings.address,
        "up": pid is not None,
        "pid": pid,
        "problem": problem,
        "roster": {"hash": roster.hash, "lines": roster.seq},
        "silos": silos,
        "runs": [run_facts(path, live) for path in sorted(home.logs.glob("run-*.jsonl"), key=_changed)],
    }


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def run_facts(path: Path, live: Mapping[int, str]) -> dict[str, Any]:
    """Return what a run's journal says.

    Args:
        path: of the journal.
        live: status by run, as Flower has it.
    """
    number = int(path.stem.removeprefix("run-"))
    events = read_events(path)
    first, rounds = events[0] if events else {}, [line for line in events if line["event"] == "round"]
    folder = next((line["folder"] for line in events if line["event"] == "folder"), None)
    ended = next((line["event"] for line in events if line["event"] in ("complete", "failed")), None)
    found = {
        "id": str(number),
        "study": first.get("study"),
        "rounds": first.get("rounds"),
        "planned": first.get("epsilon"),
        "folder": folder,
        "started": first.get("time"),
        "status": live.get(number) or ended or "interrupted",
        "rounds_done": rounds[-1]["round"] if rounds else 0,
        "dropped": sum(line["dropped"] for line in rounds),
        "epsilon": rounds[-1].get("epsilon") if rounds else None,
        "sentence": next((line["sentence"] for line in events if line["event"] == "failed"), None),
    }
    return {**found, **(_curve(Path(folder)) if folder else {"metric": None, "curve": []})}


def _curve(folder: Path) -> dict[str, Any]:
    """Return a metric by round, of the run's own lines: counts of silos complete a line after it was written."""
    lines = read_events(folder / "metrics.jsonl")
    for name in _CURVE:
        values = [(line["round"], line["metrics"].get(name, line.get(name))) for line in lines]
        points = [[number, value] for number, value in values if value is not None]
        if points:
            return {"metric": name, "curve": points}
    return {"metric": None, "curve": []}


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the finished lines of a journal."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
