"""`describe`, `run`, `status` and `report`: what a study asks of the silos, and what came of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from server.commands.shared import ServerFolder, console
from strategies.command import Json
from strategies.errors import FedsiloError, RunError, SettingError

if TYPE_CHECKING:
    from server.home import Home
    from strategies.study import Study

StudyFile = Annotated[Path, typer.Argument(help="The study file; its bytes are what silos approve.")]
_POLL_S, _ASK_S = 0.2, 2.0


def describe(study: StudyFile, server: ServerFolder = None, as_json: Json = False) -> None:
    """Say what a study would do: what leaves a silo each round, what it costs in privacy, who would be asked."""
    from server.home import Home

    parsed = read_study(study)
    enrolled = sorted(Home.open(server).roster().members) if server is not None else None
    facts = _described(parsed, enrolled)
    if as_json:
        print(json.dumps(facts))
        return
    shown, table = console(), Table(title=f"study {facts['study']}", title_justify="left", show_header=False)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)
        table.add_row(name.replace("_", " "), text)
    shown.print(table)
    if not parsed.private:
        shown.print("[bold red]mechanism = 'none': this study has NO differential privacy[/]")


def _described(study: Study, enrolled: list[str] | None) -> dict[str, Any]:
    from strategies.privacy.accountant import epsilon

    file = study.file
    spent = epsilon(study.total_events(), file.privacy.delta, accountant=file.privacy.accountant)
    return {
        "study": file.study.name,
        "digest": study.digest,
        "task": file.study.task,
        "data": file.data.kind,
        "model": file.model.name,
        "strategy": file.strategy.name,
        "rounds": file.study.rounds,
        "unit": study.unit,
        "mechanism": file.privacy.mechanism,
        "noise_multiplier": study.noise_multiplier,
        "epsilon": spent if math.isfinite(spent) else None,
        "delta": file.privacy.delta,
        "secure_aggregation": file.secagg.enabled,
        "metrics": list(study.metrics),
        "metrics_released": file.evaluation.release or "none",
        "least_silos": file.cohort.min_silos,
        "round_timeout_s": file.cohort.round_timeout_s,
        "enrolled": enrolled,
    }


def read_study(path: Path) -> Study:
    """Return a complete study.

    Raises:
        StudyError, SettingError: it cannot be read or is not valid.
    """
    from client.models.base import MODELS
    from strategies.spec import Registries
    from strategies.study import Study

    try:
        text = path.read_bytes().decode()  # byte for byte: its hash is its identity
    except (OSError, UnicodeDecodeError):
        raise SettingError(f"the study {path} cannot be read; give the path of a study file") from None
    return Study.parse(text, Registries(models=MODELS), source=path.name)


# --- run ----------------------------------------------------------------------------------------------------


def run(
    study: StudyFile,
    server: ServerFolder = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and do not follow it.")] = False,
    as_json: Json = False,
) -> None:
    """Run a study over the enrolled silos; Ctrl-C stops following, not the run."""
    from server.home import Home

    home, parsed = Home.open(server), read_study(study)
    parsed.total_events()  # an epsilon that cannot be kept is told here
    start_and_follow(home, parsed, {}, detach=detach, as_json=as_json)


def start_and_follow(
    home: Home, study: Study, config: Mapping[str, str | bool], *, detach: bool, as_json: bool
) -> None:
    """Submit a study and show its rounds until it ends.

    Raises:
        RunError, Refusal: as the server's app ended.
    """
    from server.deployed import journal_of
    from server.journal import Journal
    from server.superlink import Control
    from strategies.bundle import bundle

    shown, began = console(quiet=as_json), time.monotonic()
    number = Control(home).start(bundle(), {"study": study.text, "out": str(home.runs), **config})
    planned = study.file.study.rounds
    worst = _described(study, None)["epsilon"]
    Journal(journal_of(home, number)).write("started", study=study.file.study.name, rounds=planned, epsilon=worst)
    if detach:
        print(json.dumps({"id": str(number)})) if as_json else shown.print(f"run {number} is started")
        return
    shown.print(f"run {number}: inviting the silos")
    folder: Path | None = None
    try:
        for line in _events(home, number):
            if line["event"] == "folder":
                folder = Path(line["folder"])
                shown.print(f"run folder {folder}")
            elif line["event"] == "round":
                shown.print(_round(line, planned))
            elif line["event"] == "warning":
                shown.print(f"[yellow]{line['sentence']}[/]")
            elif line["event"] == "failed":
                raise _Ended(line["sentence"], line["exit"])
    except KeyboardInterrupt:
        shown.print(f"run {number} goes on; fedsilo-server status shows it, fedsilo-server stop {number} ends it")
        raise typer.Exit(1) from None
    assert folder is not None
    facts = read_report(folder)
    if as_json:
        print(json.dumps(machine_readable(folder, facts, time.monotonic() - began)))
        return
    show_report(folder, facts)


class _Ended(FedsiloError):
    """The run ended as the server's app says; with the exit code of the error there."""

    def __init__(self, sentence: str, code: int) -> None:
        self.exit_code = code
        super().__init__(sentence)


def _events(home: Home, number: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's journal as they come, the last one `complete` or `failed`."""
    from server.deployed import journal_of
    from server.overview import read_events
    from server.superlink import Control

    told, asked_at, over = 0, time.monotonic(), False
    while True:
        lines = read_events(journal_of(home, number))
        yield from lines[told:]
        if any(line["event"] in ("complete", "failed") for line in lines[told:]):
            return
        told = len(lines)
        if over:
            raise RunError(f"run {number} ended before its end; fedsilo-server resume takes it up from its last round")
        time.sleep(_POLL_S)
        if time.monotonic() - asked_at > _ASK_S:
            asked_at = time.monotonic()
            try:
                over = not any(each.live for each in Control(home).runs() if each.run == number)
            except RunError:
                continue  # the SuperLink is being started again


def _round(line: Mapping[str, Any], planned: int) -> str:
    text = f"round {line['round']} of {planned}   {line['cohort'] - line['dropped']} of {line['cohort']} silos"
    for name in ("accuracy", "auroc", "loss"):
        if name in line:
            text += f"   {name} {line[name]:.4f}"
    if "epsilon" in line:
        text += f"   worst epsilon {line['epsilon']:.4f}"
    return f"{text}   {line['seconds']:.1f} s"


# --- what came of it ----------------------------------------------------------------------------------------


def read_report(folder: Path) -> dict[str, Any]:
    """Return report.json of a run folder.

    Raises:
        SettingError: there is none.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SettingError(f"{folder} is no run folder with a report; give one of runs/") from None
    return facts


def machine_readable(folder: Path, facts: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    """Return what `run --json` and `report --json` print."""
    rounds = facts["rounds"]
    per_round = sum(line["seconds"]["total"] for line in rounds) / len(rounds) if rounds else None
    return {
        "run": str(folder),
        "status": facts["run"]["status"],
        "metrics": facts["metrics"],
        "epsilon": {silo["name"]: {key: silo[key] for key in ("epsilon", "delta", "unit")} for silo in facts["silos"]},
        "rounds": len(rounds),
        "seconds": {"total": round(seconds, 3) if seconds is not None else None, "per_round": per_round},
        "mechanism": facts["privacy"]["mechanism"],
    }


def show_report(folder: Path, facts: Mapping[str, Any]) -> None:
    """Show the end of a run to a person."""
    shown = console()
    table = Table("silo", "rounds", "epsilon", "delta", "unit", title_justify="left")
    table.title = f"{facts['run']['study']}: {facts['run']['rounds_done']} rounds, {facts['run']['status']}"
    for silo in facts["silos"]:
        value = "[red]none[/]" if silo["epsilon"] is None else f"{silo['epsilon']:.4f}"
        table.add_row(silo["name"], str(silo["rounds"]), value, f"{silo['delta']:g}", silo["unit"])
    shown.print(table)
    known = {name: value for name, value in facts["metrics"].items() if value is not None}
    if known:
        shown.print("metrics " + "  ".join(f"{name} {value:.4f}" for name, value in known.items()))
    shown.print(f"run    {folder}")
    shown.print(f"report {folder / 'report.html'}")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name in runs/.")],
    server: ServerFolder = None,
    as_json: Json = False,
) -> None:
    """Show a run's report; the pages are report.html and report.json in its folder."""
    folder = folder_of(run, server)
    facts = read_report(folder)
    if as_json:
        print(json.dumps(machine_readable(folder, facts, None)))
    else:
        show_report(folder, facts)


def folder_of(run: Path, server: Path | None) -> Path:
    """Return the folder of a run that is named by path, or by name within the coordinator's runs."""
    from server.home import Home

    return run if run.exists() else Home.open(server).runs / run


def status(server: ServerFolder = None, as_json: Json = False) -> None:
    """Show the coordinator, its silos and its runs; exit with 1 where it is not up."""
    from server.home import Home
    from server.overview import overview

    facts = overview(Home.open(server))
    if as_json:
        print(json.dumps(facts))
    else:
        _show_status(facts)
    if not facts["up"] or facts["problem"]:
        raise typer.Exit(1)


def _show_status(facts: Mapping[str, Any]) -> None:
    shown = console()
    state = f"[green]up[/], process {facts['pid']}" if facts["up"] else "[bold red]not up[/]"
    shown.print(f"coordinator {facts['coordinator']} at {facts['address']}: {state}")
    if facts["problem"]:
        shown.print(f"[bold red]{facts['problem']}[/]")
    silos = Table("silo", "state", "last seen", title=f"{len(facts['silos'])} silos enrolled", title_justify="left")
    for row in facts["silos"]:
        seen = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["last_seen"])) if row["last_seen"] else "-"
        silos.add_row(row["silo"], row["state"], seen)
    shown.print(silos)
    runs = Table("run", "study", "status", "rounds", "worst epsilon", "folder", title="runs", title_justify="left")
    for row in facts["runs"]:
        epsilon = f"{row['epsilon']:.4f}" if row["epsilon"] is not None else "-"
        rounds = f"{row['rounds_done']} of {row['rounds']}"
        runs.add_row(row["id"], row["study"], row["status"], rounds, epsilon, row["folder"] or "-")
    shown.print(runs)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name in runs/.")],
    server: ServerFolder = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and do not follow it.")] = False,
    as_json: Json = False,
) -> None:
    """Take up a run that broke off from its last finished round; nothing is counted or charged twice."""
    from server.home import Home
    from server.superlink import Control

    home, folder = Home.open(server), folder_of(run, server).absolute()
    parsed = read_study(folder / "study.toml")
    if (folder / "report.json").exists() and read_report(folder)["run"]["status"] == "complete":
        raise RunError(f"the run of {folder} is complete; nothing is left to take up")
    control = Control(home)
    for each in control.runs():
        if each.live and _folder_of(home, each.run) == folder:
            control.stop(each.run)  # its process has gone, or is about to: two must not write one folder
    start_and_follow(home, parsed, {"resume": str(folder)}, detach=detach, as_json=as_json)


def _folder_of(home: Home, number: int) -> Path | None:
    """Return the folder of a run of Flower's list, as its journal names it."""
    from server.deployed import journal_of
    from server.overview import read_events

    for line in read_events(journal_of(home, number)):
        if line["event"] == "folder":
            return Path(line["folder"])
    return None
