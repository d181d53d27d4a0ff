"""`fedsilo-simulate`: what a researcher types. Without an argument it runs the default study."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from simulations.bench.commands import app as bench
from simulations.shown import print_audit, print_outcome, shown
from strategies.command import Json, guarded
from strategies.errors import SettingError, nearest
from strategies.privacy.mechanisms import TRUSTED
from strategies.report.declared import CONTRADICTED
from strategies.sections import Mechanism
from strategies.study import parse_override

if TYPE_CHECKING:
    from simulations.run import Outcome
    from strategies.study import Study

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Simulate a federated study on this machine. Without a command: run the default study.",
    epilog="Example: fedsilo-simulate run breast-cancer --set privacy.epsilon=1",
)
_LIST_WIDTH = 240


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Run the default study when no command is given."""
    if context.invoked_subcommand is None:
        run_command()


@app.command("run", epilog="Example: fedsilo-simulate run my-study.toml --set privacy.epsilon=1 --seed 3 --json")
def run_command(
    study: Annotated[str, typer.Argument(help="A ready study's name or the path of a study file.")] = "breast-cancer",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Override study.seed.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that holds the run folders.")] = Path("runs"),
    engine: Annotated[str | None, typer.Option(help="Override simulation.engine: inline, pool or ray.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make new silo folders, with untouched budgets.")] = False,
    audited: Annotated[bool, typer.Option("--audit", help="Attack the training too; the report tells.")] = False,
    as_json: Json = False,
) -> None:
    """Run a study across simulated silos and write its run folder."""
    from simulations.ready import read_study
    from strategies.privacy.silo_level import silos_a_round, warning

    values = dict(parse_override(text) for text in overrides or [])
    values |= {key: value for key, value in (("study.seed", seed), ("simulation.engine", engine)) if value is not None}
    parsed, base = read_study(study, values)
    from simulations.audit import require_auditable
    from simulations.run import simulate  # loads torch, so a mistake in the study is told before it

    if audited:
        require_auditable(parsed)

    console = Console(stderr=as_json, highlight=False, quiet=as_json)
    if not parsed.private:
        console.print("[bold red]mechanism = 'none': this run has NO differential privacy[/]")
    if few := warning(parsed, silos_a_round(parsed, parsed.file.simulation.silos)):
        console.print(f"[yellow]{few}[/]")
    with _progress(console, parsed) as seen:
        try:
            outcome = simulate(parsed, base, out=out, fresh=fresh, audited=audited)
        except KeyboardInterrupt:
            _interrupted(seen.folder)
            raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(machine_readable(outcome)))
    else:
        print_outcome(console, outcome)
    if outcome.facts["audit"]["status"] == CONTRADICTED:
        raise typer.Exit(4)


@app.command("list", epilog="Example: fedsilo-simulate list models")
def list_command(
    what: Annotated[str, typer.Argument(help="models, strategies, data or studies; all of them if omitted.")] = "all",
    as_json: Json = False,
) -> None:
    """List what a study may name."""
    from simulations.listing import KINDS, rows

    if what not in (*KINDS, "all"):
        raise SettingError(f"list {what} is not allowed; {nearest(what, KINDS)}")
    listed = {kind: rows(kind, counted=as_json) for kind in (KINDS if what == "all" else (what,))}
    if as_json:
        print(json.dumps(listed if what == "all" else listed[what]))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_LIST_WIDTH)  # where nobody looks, nothing needs to be folded
    for kind, entries in listed.items():
        first, *more = entries[0]
        table = Table(Column(first, overflow="fold"), *more, title=kind, title_justify="left")
        for entry in entries:
            table.add_row(*("" if value is None else str(value) for value in entry.values()))
        console.print(table)


@app.command("sweep", epilog="Example: fedsilo-simulate sweep breast-cancer --epsilon 8 --epsilon 1 --seeds 3")
def sweep_command(
    studies: Annotated[
        list[str] | None, typer.Argument(help="Ready studies or study files; breast-cancer if omitted.")
    ] = None,
    epsilons: Annotated[
        list[float] | None, typer.Option("--epsilon", help="Of a private row; may be repeated. Default: 8, 3 and 1.")
    ] = None,
    mechanisms: Annotated[
        list[str] | None,
        typer.Option("--mechanism", help="privacy.mechanism of the private rows; may be repeated. Default: dp-sgd."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 1.")] = 3,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the studies; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that runs are shared out to, one thread each.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder that holds the results.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Measure what privacy and federation cost: pooled, lone silo, federated, and federated at each epsilon."""
    from simulations.sweep import markdown, sweep, write

    console = Console(stderr=True, highlight=False, quiet=as_json)
    values = dict(parse_override(text) for text in overrides or [])
    tables = sweep(
        list(dict.fromkeys(studies or ["breast-cancer"])),
        epsilons=epsilons or (8.0, 3.0, 1.0),
        mechanisms=[_mechanism(text) for text in mechanisms or ["dp-sgd"]],
        seeds=range(1, seeds + 1),
        overrides=values,
        out=out,
        tell=lambda text: console.print(text, style="dim"),
        workers=workers,
    )
    folder = write(tables, out)
    if as_json:
        print(json.dumps({"folder": str(folder), "tables": [asdict(table) for table in tables]}))
        return
    for table in tables:
        print(markdown(table))
    print(f"tables and picture: {folder}")


def _mechanism(text: str) -> Mechanism:
    found = [name for name in TRUSTED if name == text]
    if not found:
        raise SettingError(f"--mechanism {text} is not allowed; {nearest(text, TRUSTED)}")
    return found[0]


@app.command("audit", epilog="Example: fedsilo-simulate audit breast-cancer --canaries 1000")
def audit_command(
    study: Annotated[str, typer.Argument(help="A ready study's name or the path of a study file.")] = "breast-cancer",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study; may be repeated."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=100, max=100_000, help="Units of the audit's own; half of them, by coins, are in.")
    ] = 1000,
    out: Annotated[Path, typer.Option(help="Folder that holds the folders of audits.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Attack a study's private training and compare what it shows with what is claimed; exit code 4 if it is more."""
    from simulations.ready import read_study

    parsed, base = read_study(study, dict(parse_override(text) for text in overrides or []))
    from simulations.audit import audit
    from strategies.report.audit_page import summary

    console = Console(stderr=as_json, highlight=False, quiet=as_json)
    with _steps(console) as advance:
        done = audit(parsed, base, out=out, canaries=canaries, advance=advance)
    if as_json:
        print(json.dumps({"audit": str(done.folder), **done.facts}))
    else:
        print_audit(console, done.facts)
        console.print(f"{summary(done.facts)}.", style="bold red" if done.contradicted else None, soft_wrap=True)
        console.print(f"page   {shown(done.folder / 'audit.html')}", soft_wrap=True)
    if done.contradicted:
        raise typer.Exit(4)


app.add_typer(bench, name="bench")


def machine_readable(outcome: Outcome) -> dict[str, Any]:
    """Return what ``run --json`` prints."""
    facts = outcome.facts
    baselines = facts.get("baselines") or {}
    rounds = facts["rounds"]
    per_round = sum(line["seconds"]["total"] for line in rounds) / len(rounds) if rounds else None
    return {
        "run": str(outcome.folder),
        "metrics": facts["metrics"],
        "baselines": {name: baselines.get(name) for name in ("pooled", "best_local")},
        "epsilon": {silo["name"]: {key: silo[key] for key in ("epsilon", "delta", "unit")} for silo in facts["silos"]},
        "rounds": len(rounds),
        "seconds": {"total": round(outcome.seconds, 3), "per_round": per_round},
        "audit": {key: facts["audit"][key] for key in ("status", "reason")},
        "mechanism": facts["privacy"]["mechanism"],
        "warning": (facts["privacy"]["silo_level"] or {}).get("warning"),
    }


# --- progress -----------------------------------------------------------------------------------------------


class _Seen(logging.Handler):
    """Follows the server's log: the run folder, and each finished round."""

    def __init__(self, console: Console, study: Study, progress: Progress | None) -> None:
        super().__init__()
        self.folder: Path | None = None
        self._console, self._study, self._progress = console, study, progress
        self._metric = study.metrics[0]
        total = study.file.study.rounds
        self._task = progress.add_task("silos and noise", total=total, seen="") if progress else None

    def emit(self, record: logging.LogRecord) -> None:
        if folder := getattr(record, "folder", None):
            self.folder = folder
        elif line := getattr(record, "line", None):
            self._show(line)
        elif record.levelno >= logging.WARNING:
            self._console.print(f"[yellow]{record.getMessage()}[/]")
        elif self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=record.getMessage())

    def _show(self, line: dict[str, Any]) -> None:
        value = line["metrics"].get(self._metric)
        epsilons = [value for value in line["epsilon"].values() if value is not None]
        text = f"{self._metric} {value:.4f}" if value is not None else f"{self._metric} -"
        if epsilons:
            text += f"   worst epsilon {max(epsilons):.4f}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, description="round", seen=text)
        elif line["round"] % max(1, self._study.file.study.rounds // 10) == 0:
            self._console.print(f"round {line['round']} of {self._study.file.study.rounds}   {text}")


@contextmanager
def _progress(console: Console, study: Study) -> Iterator[_Seen]:
    """Show a bar on a terminal and a line now and then elsewhere."""
    bar = (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[seen]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        if console.is_terminal
        else None
    )
    handler = _Seen(console, study, bar)
    logger = logging.getLogger("fedsilo")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        if bar is None:
            yield handler
        else:
            with bar:
                yield handler
    finally:
        logger.removeHandler(handler)


@contextmanager
def _steps(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, and elsewhere each tenth of the steps."""
    if console.is_terminal:
        columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda steps, total: bar.update(task, advance=steps, total=total)
        return
    taken = 0

    def advance(steps: int, total: int) -> None:
        nonlocal taken
        before, taken = taken, taken + steps
        if 10 * taken // total > 10 * before // total:
            console.print(f"step {taken} of {total}")

    yield advance


def _interrupted(folder: Path | None) -> None:
    if folder is None:
        print("stopped before the first round; nothing was trained", file=sys.stderr)
    else:
        print(
            f"stopped: the finished rounds, their metrics and the report are in {folder}; their privacy is spent. A "
            "simulation is not taken up again, as fedsilo-server resume does with a deployment: run the study again",
            file=sys.stderr,
        )


def main() -> None:
    """Entry point of `fedsilo-simulate`."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    raise SystemExit(guarded(app))
