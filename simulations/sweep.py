"""What privacy and federation cost: one study at several epsilons and seeds, beside the same model without both.

The rows are those that a results table of this field has: pooled without privacy, the best lone silo, federated without
privacy, and federated at each epsilon. Without privacy the better of two optimisers counts, the pooled row's and the
study's own, since the latter is chosen for clipped gradients: the better on the test records of the seed, which
flatters that row. Several mechanisms are compared at equal epsilon for the same unit, with who is trusted beside each.
Every run has silo folders of its own, so no budget is shared.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from server.identity import FOLDER, coordinator_key
from simulations.baselines import goodness, plain_optimizer
from simulations.ready import read_study
from simulations.run import simulate
from simulations.silos import complete
from simulations.sources import read_dataset
from strategies.errors import RunError
from strategies.privacy.mechanisms import TRUSTED
from strategies.sections import Mechanism
from strategies.study import Study

_COLOURS = ("#0b5d8a", "#8a0b5d", "#5d8a0b", "#8a5d0b")
_PANELS_A_LINE = 3
Metrics = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting over all seeds.

    Args:
        setting: `pooled`, `best lone silo`, `federated, no privacy` or `federated, epsilon E`, with the mechanism where
            there are several.
        mechanism: of the privacy, `none` without.
        epsilon: None without privacy.
        mean: by metric; None where a seed does not define it.
        sd: sample standard deviation by metric; None with one seed.
        values: by metric, one value a seed.
    """

    setting: str
    mechanism: Mechanism = "none"
    epsilon: float | None
    mean: Mapping[str, float | None]
    sd: Mapping[str, float | None]
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one study.

    Args:
        study: its name.
        model: its model.
        delta: of its epsilons.
        unit: of privacy.
        metrics: the columns.
        seeds: of the runs.
        rows: in the order pooled, lone, federated, and falling epsilon.
    """

    study: str
    model: str
    delta: float
    unit: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]


def sweep(
    studies: Sequence[str],
    *,
    epsilons: Sequence[float],
    mechanisms: Sequence[Mechanism] = ("dp-sgd",),
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    out: Path,
    tell: Callable[[str], None],
    workers: int = 1,
) -> list[Table]:
    """Run studies at every setting and seed.

    Args:
        studies: ready studies or the paths of some.
        epsilons: of the private rows.
        mechanisms: of the private rows, each at every epsilon.
        seeds: one run of each setting a seed.
        overrides: values of the studies by `section.key`.
        out: folder for run and silo folders.
        tell: is told after each run what came of it.
        workers: processes that runs are shared out to; with one, they are made in this process.

    Returns:
        A table a study, in the order of `studies`.

    Raises:
        FedsiloError: as a run does.
    """
    private = [
        _Setting(_label(mechanism, epsilon, several=len(mechanisms) > 1), mechanism, epsilon)
        for epsilon in sorted(set(epsilons), reverse=True)
        for mechanism in mechanisms
    ]
    runs = [
        _Run(name, {**overrides, "study.seed": seed, **_privacy(setting)}, setting, seed, out)
        for seed in seeds
        for name in studies
        for setting in (_FEDERATED, *private)
    ]
    # Mistakes are told before the first run.
    asked = {run.study: read_study(run.study, run.overrides)[0] for run in runs}
    found: dict[str, dict[_Setting, dict[int, Metrics]]] = {name: {} for name in studies}
    for number, (run, own, baselines) in enumerate(_done(runs, min(workers, len(runs))), start=1):
        found[run.study].setdefault(run.setting, {})[run.seed] = own
        for setting, name in ((_POOLED, "pooled"), (_LONE, "best_local")):
            if name in baselines:
                found[run.study].setdefault(setting, {})[run.seed] = baselines[name]
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in own.items() if value is not None)
        tell(f"{number} of {len(runs)}: {run.study}, seed {run.seed}, {run.setting.name}: {metrics}")
    order = (_POOLED, _LONE, _FEDERATED, *private)
    return [_table(asked[name], [(s, found[name][s]) for s in order if s in found[name]], seeds) for name in studies]


class _Run(NamedTuple):
    study: str
    overrides: Mapping[str, Any]
    setting: _Setting
    seed: int
    out: Path


_Result = tuple[_Run, Metrics, Mapping[str, Metrics]]


def _done(runs: Sequence[_Run], workers: int) -> Iterator[_Result]:
    """Make the runs and yield each as it ends."""
    if workers == 1:
        yield from map(_make, runs)
        return
    coordinator_key(runs[0].out / FOLDER)  # one for all of them
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_make, run) for run in runs]):
            yield future.result()
    except BaseException:  # what still runs is of no use any more
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _make(run: _Run) -> _Result:
    study, base = read_study(run.study, run.overrides)
    if run.setting != _FEDERATED:
        return run, _simulated(run, study, base)["metrics"], {}
    whole, _ = complete(study, read_dataset(study, base), base)
    found: list[dict[str, Any]] = []
    optimizers = _optimizers(run, whole)
    for optimizer in optimizers:
        study, base = read_study(run.study, {**run.overrides, "training.optimizer": optimizer})
        try:
            found.append(_simulated(run, study, base, with_baselines=not found))
        except RunError:  # steps for clipped gradients may leave the range of numbers without clipping
            if optimizer == optimizers[-1] and not found:
                raise
    best = max(found, key=lambda facts: goodness(facts["metrics"], study.metrics[0]))
    return run, best["metrics"], found[0]["baselines"] or {}


def _optimizers(run: _Run, study: Study) -> list[str]:
    own = study.file.training.optimizer
    return [own] if "training.optimizer" in run.overrides else list(dict.fromkeys((plain_optimizer(study), own)))


def _simulated(run: _Run, study: Study, base: Path, *, with_baselines: bool = False) -> dict[str, Any]:
    return simulate(study, base, out=run.out, fresh=True, with_baselines=with_baselines).facts


class _Setting(NamedTuple):
    name: str
    mechanism: Mechanism = "none"
    epsilon: float | None = None


_POOLED, _LONE, _FEDERATED = (_Setting(f"{name}, no privacy") for name in ("pooled", "best lone silo", "federated"))


def _label(mechanism: Mechanism, epsilon: float, *, several: bool) -> str:
    return f"federated, {f'{mechanism} (trusts {TRUSTED[mechanism]}), ' if several else ''}epsilon {epsilon:g}"


def _privacy(setting: _Setting) -> dict[str, Any]:
    values: dict[str, Any] = {"privacy.mechanism": setting.mechanism, "privacy.epsilon": setting.epsilon}
    if setting.mechanism == "distributed-gaussian":
        values |= {"privacy.accountant": "rdp", "secagg.enabled": True}
    return values | {"privacy.noise_multiplier": None}


def _table(study: Study, found: Sequence[tuple[_Setting, Mapping[int, Metrics]]], seeds: Sequence[int]) -> Table:
    return Table(
        study=study.file.study.name,
        model=study.file.model.name,
        delta=study.file.privacy.delta,
        unit=study.unit,
        metrics=study.metrics,
        seeds=tuple(seeds),
        rows=tuple(_row(setting, [runs[seed] for seed in seeds], study.metrics) for setting, runs in found),
    )


def _row(setting: _Setting, runs: Sequence[Metrics], metrics: Sequence[str]) -> Row:
    values = {name: [run.get(name) for run in runs] for name in metrics}
    sound = {name: [value for value in some if value is not None] for name, some in values.items()}
    whole = {name: some for name, some in sound.items() if len(some) == len(runs)}
    return Row(
        setting=setting.name,
        mechanism=setting.mechanism,
        epsilon=setting.epsilon,
        mean={name: statistics.fmean(whole[name]) if name in whole else None for name in metrics},
        sd={name: statistics.stdev(whole[name]) if name in whole and len(runs) > 1 else None for name in metrics},
        values=values,
    )


def write(tables: Sequence[Table], out: Path) -> Path:
    """Write table.json, table.md and utility.png into a new folder and return it."""
    folder = out / f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    (folder / "table.json").write_text(json.dumps([asdict(table) for table in tables], indent=2), encoding="utf-8")
    (folder / "table.md").write_text("\n".join(markdown(table) for table in tables), encoding="utf-8")
    _draw(tables, folder / "utility.png")
    return folder


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    seeds = ", ".join(map(str, table.seeds))
    unit = f"epsilon a silo at delta = {table.delta:g} a {table.unit}"
    lines = [
        f"### {table.study}: {table.model}",
        "",
        f"Mean and standard deviation over the seeds {seeds}; {unit}.",
        "",
        f"| | {' | '.join(table.metrics)} |",
        f"|---|{'---|' * len(table.metrics)}",
    ]
    lines += [f"| {row.setting} | {' | '.join(shown(row, name) for name in table.metrics)} |" for row in table.rows]
    return "\n".join(lines) + "\n"


def shown(row: Row, metric: str) -> str:
    """Return mean and standard deviation as a cell shows them."""
    mean, sd = row.mean[metric], row.sd[metric]
    if mean is None:
        return "-"
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def _draw(tables: Sequence[Table], path: Path) -> None:
    """Draw the first metric over epsilon, one panel a study; lines for what is not private."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(_PANELS_A_LINE, len(tables))
    lines = -(-len(tables) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(5.2 * columns, 3.8 * lines), squeeze=False)
    for panel in panels.flat[len(tables) :]:
        panel.set_visible(False)
    for panel, table in zip(panels.flat, tables, strict=False):
        metric = table.metrics[0]
        private = sorted((row for row in table.rows if row.epsilon is not None), key=lambda row: row.epsilon or 0)
        for mechanism, colour in zip(dict.fromkeys(row.mechanism for row in private), _COLOURS, strict=False):
            points = [
                (row.epsilon, row.mean[metric], row.sd[metric] or 0)
                for row in private
                if row.mean[metric] is not None and row.mechanism == mechanism
            ]
            if not points:
                continue
            x, y, sd = zip(*points, strict=True)
            panel.errorbar(x, y, yerr=sd, marker="o", capsize=3, color=colour, label=f"federated, {mechanism}")
            panel.set_xscale("log")
            panel.set_xticks(x, [f"{value:g}" for value in x])
            panel.minorticks_off()
        styles = (("#444444", "-"), ("#b35900", ":"), ("#2a7f3f", "--"))
        rest = [row for row in table.rows if row.epsilon is None and row.mean[metric] is not None]
        for row, (colour, line) in zip(rest, styles, strict=False):
            panel.axhline(row.mean[metric], color=colour, linestyle=line, label=row.setting)
        panel.set_xlabel(f"epsilon at delta = {table.delta:g} a {table.unit}")
        panel.set_ylabel(metric)
        panel.set_title(f"{table.study}: {table.model}", fontsize=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="best")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
