"""`fedsilo-simulate bench`: one command a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from strategies.command import Json
from strategies.errors import SettingError, nearest

app = typer.Typer(help="Measure what privacy costs on this machine.", no_args_is_help=True)
Laps = Annotated[int, typer.Option(min=1, help="How often each way takes its turn.")]
Out = Annotated[Path, typer.Option(help="Folder for figures and picture.")]
Lines = tuple[Sequence[str], Iterable[Sequence[str]]]  # of a table: its columns and rows
_OUT = Path("runs/bench")
_WIDTH = 240  # where nobody looks, nothing needs to be folded


@app.command("training", epilog="Example: fedsilo-simulate bench training --network lstm --batch 64")
def training_command(
    names: Annotated[list[str] | None, typer.Option("--network", help="One of them; may be repeated.")] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Rows of a step; may be repeated.")
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda; may be repeated. Default: what is here.")
    ] = None,
    laps: Laps = 9,
    out: Out = _OUT,
    as_json: Json = False,
) -> None:
    """Measure what a private training step costs beside an ordinary one, and beside other engines."""
    from client.training.device import device_of
    from simulations.bench import training
    from simulations.bench.networks import networks

    wrong = [name for name in names or () if name not in networks()]
    if wrong:
        raise SettingError(f"--network {wrong[0]} is not allowed; {nearest(wrong[0], networks())}")
    here = dict.fromkeys(device_of(name).type for name in devices or ("cpu", "auto"))
    console = Console(stderr=True, highlight=False, quiet=as_json)
    result = training.bench(
        names=names or tuple(networks()),
        batches=batches or (64, 256),
        devices=tuple(here),
        laps=laps,
        tell=lambda text: console.print(text, style="dim"),
    )
    training.write(result, out)
    facts = f"one thread, torch {_version(result, 'torch')}: {out}"
    table = (training.COLUMNS, training.table_rows(result))
    _show(result, as_json, "time and memory of a training step", table, facts)


@app.command("secagg", epilog="Example: fedsilo-simulate bench secagg --parameters 1000000 --silos 10")
def secagg_command(
    parameters: Annotated[
        list[int] | None, typer.Option(min=1, help="Length of the vector; may be repeated. Default: 1e5, 1e6, 1e7.")
    ] = None,
    silos: Annotated[
        list[int] | None, typer.Option(min=2, max=128, help="Of the cohort; may be repeated. Default: 2, 10, 50, 100.")
    ] = None,
    laps: Laps = 5,
    out: Out = _OUT,
    as_json: Json = False,
) -> None:
    """Measure what secure aggregation costs silo and server, beside bare AES and Flower's SecAgg+ arithmetic."""
    from simulations.bench import secagg

    grid = secagg.Grid(
        parameters=tuple(parameters or (100_000, 1_000_000, 10_000_000)), silos=tuple(silos or (2, 10, 50, 100))
    )
    console = Console(stderr=True, highlight=False, quiet=as_json)
    with _bar(console, secagg.work(grid, laps)) as (tell, advance):
        result = secagg.bench(grid, laps=laps, tell=tell, advance=advance)
    secagg.write(result, out)
    facts = f"seconds of the processor, flwr {_version(result, 'flwr')}: {out}"
    table = (secagg.COLUMNS, secagg.table_rows(result))
    _show(result, as_json, "a sum under secure aggregation", table, facts)


@app.command("deployment", epilog="Example: fedsilo-simulate bench deployment --way fedsilo --way flower --laps 1")
def deployment_command(
    ways: Annotated[
        list[str] | None,
        typer.Option("--way", help="fedsilo, fedsilo-secagg, flower or flower-tuned; may be repeated."),
    ] = None,
    megabytes: Annotated[float, typer.Option(min=0.01, max=2000, help="Of the model's weights.")] = 1.0,
    silos: Annotated[int, typer.Option(min=1, max=16, help="Real processes, all in every round.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Timed in a lap, after one that warms up.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Of local training.")] = 20,
    laps: Laps = 3,
    out: Out = _OUT,
    as_json: Json = False,
) -> None:
    """Measure a round of real processes over TLS, beside stock Flower with the same network and local steps."""
    from simulations.bench import deployment

    given = tuple(dict.fromkeys(ways or (deployment.WAYS if silos >= 3 else ("fedsilo", "flower", "flower-tuned"))))
    if wrong := [way for way in given if way not in deployment.WAYS]:
        raise SettingError(f"--way {wrong[0]} is not allowed; {nearest(wrong[0], deployment.WAYS)}")
    if "fedsilo-secagg" in given and silos < 3:
        raise SettingError(
            f"--silos {silos} is not allowed with --way fedsilo-secagg: a sum hides a silo among 3; take 3"
        )
    size = deployment.Size(megabytes=megabytes, silos=silos, rounds=rounds, steps=steps)
    console = Console(stderr=True, highlight=False, quiet=as_json)
    with _bar(console, laps * len(given)) as (tell, advance):
        result = deployment.bench(size, given, laps=laps, tell=tell, advance=advance)
    deployment.write(result, out)
    load = result["machine"]["load"]
    facts = f"load before {load}, flwr {_version(result, 'flwr')}: {out}"
    _show(result, as_json, "a round of a deployment", (deployment.COLUMNS, deployment.table_rows(result)), facts)


@app.command("simulation", epilog="Example: fedsilo-simulate bench simulation --network mlp --engine pool --laps 2")
def simulation_command(
    names: Annotated[
        list[str] | None,
        typer.Option("--network", help="mlp, cnn, gru, lstm, transformer; may be repeated. Default: mlp, cnn, gru."),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", help="inline, pool or ray; may be repeated. Default: all that are installed."),
    ] = None,
    silos: Annotated[int, typer.Option(min=3, help="Of the simulation, 40 records each.")] = 50,
    cohort: Annotated[int | None, typer.Option(min=3, help="Silos of a round. Default: all, at most 50.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed in a lap, after one that warms up.")] = 4,
    private: Annotated[
        bool, typer.Option("--private", help="Train with DP-SGD in the engines; the yardstick never does.")
    ] = False,
    laps: Laps = 2,
    out: Out = _OUT,
    as_json: Json = False,
) -> None:
    """Measure the engines of simulations beside the plainest loop that trains the same network."""
    from simulations.bench import simulation

    given = tuple(dict.fromkeys(engines or simulation.engines()))
    for option, asked, allowed in (
        ("--network", names or (), simulation.networks()),
        ("--engine", given, simulation.engines()),
    ):
        if wrong := [name for name in asked if name not in allowed]:
            raise SettingError(f"{option} {wrong[0]} is not allowed; {nearest(wrong[0], allowed)}")
    if cohort is None:
        cohort = min(silos, 50)
    if cohort > silos:
        raise SettingError(
            f"--cohort {cohort} is not allowed with --silos {silos}: a round has no more silos than that"
        )
    size = simulation.Size(silos=silos, cohort=cohort, rounds=rounds, private=private)
    chosen = tuple(dict.fromkeys(names or ("mlp", "cnn", "gru")))
    console = Console(stderr=True, highlight=False, quiet=as_json)
    with _bar(console, laps * len(chosen) * (1 + len(given))) as (tell, advance):
        result = simulation.bench(chosen, given, size, laps=laps, tell=tell, advance=advance)
    simulation.write(result, out)
    facts = f"load before {result['machine']['load']}, torch {_version(result, 'torch')}: {out}"
    _show(result, as_json, "a round of a simulation", (simulation.COLUMNS, simulation.table_rows(result)), facts)


@app.command("aggregation", epilog="Example: fedsilo-simulate bench aggregation --rule nnm --silos 11 --laps 3")
def aggregation_command(
    rules: Annotated[list[str] | None, typer.Option("--rule", help="One of them; may be repeated.")] = None,
    parameters: Annotated[
        list[int] | None, typer.Option(min=1, help="Length of an update; may be repeated. Default: 1e6.")
    ] = None,
    silos: Annotated[
        list[int] | None, typer.Option(min=2, max=1000, help="Updates; may be repeated. Default: 20.")
    ] = None,
    laps: Laps = 5,
    out: Out = _OUT,
    as_json: Json = False,
) -> None:
    """Measure the mean and the robust rules, beside Flower's own and a pass of memory copies."""
    from simulations.bench import aggregation

    given = tuple(dict.fromkeys(rules or aggregation.RULES))
    if wrong := [rule for rule in given if rule not in aggregation.RULES]:
        raise SettingError(f"--rule {wrong[0]} is not allowed; {nearest(wrong[0], aggregation.RULES)}")
    grid = aggregation.Grid(rules=given, parameters=tuple(parameters or (1_000_000,)), silos=tuple(silos or (20,)))
    cells = len(list(grid.cells()))
    if not cells:
        least = min(aggregation.least_silos(rule) for rule in given)
        raise SettingError(f"--silos {max(grid.silos)} is too few for --rule {', '.join(given)}; take {least}")
    console = Console(stderr=True, highlight=False, quiet=as_json)
    with _bar(console, cells) as (tell, advance):
        result = aggregation.bench(grid, laps=laps, tell=tell, advance=advance)
    aggregation.write(result, out)
    load = result["machine"]["load"]
    facts = f"load {load}, numpy {_version(result, 'numpy')}, flwr {_version(result, 'flwr')}: {out}"
    _show(result, as_json, "one update of many", (aggregation.COLUMNS, aggregation.table_rows(result)), facts)


# --- what is shown ------------------------------------------------------------------------------------------


@contextmanager
def _bar(console: Console, total: float) -> Iterator[tuple[Callable[[str], None], Callable[[float], None]]]:
    """Give what is told the next thing, and how much of `total` is done: a bar, or a line for each thing."""
    if not console.is_terminal:
        yield lambda text: console.print(text, style="dim"), lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, description=text), lambda done: bar.advance(task, done)


def _show(result: dict[str, Any], as_json: bool, title: str, table: Lines, facts: str) -> None:
    """Print the object, or the table and what it was measured on."""
    if as_json:
        print(json.dumps(result))
        return
    columns, rows = table
    drawn = Table(*columns, title=title, title_justify="left")
    for row in rows:
        drawn.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    console.print(drawn)
    console.print(f"{result['machine']['processor']}, {facts}", soft_wrap=True)


def _version(result: dict[str, Any], package: str) -> str:
    return str(result["machine"]["versions"][package])
