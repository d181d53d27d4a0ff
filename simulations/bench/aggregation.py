"""What it costs the coordinator to make one update of many: `fedsilo-simulate bench aggregation`.

Each rule of ours and Flower's own are given the same updates in turn, in memory as one array a silo; only the rule is
timed, no message is decoded on either side. Where Flower ships no such rule there is no figure. The mean stands beside
one pass of memory copies over all updates, which nothing that reads them all can be much faster than.

Peak memory is that of a process of its own which holds the updates already: what the rule needs beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum

from server.aggregation import summed
from simulations.bench.machine import in_turn, machine, ratio
from simulations.bench.memory import of_process
from strategies.base import PerSiloStrategy, State
from strategies.layout import Vector
from strategies.spec import STRATEGIES

Tell = Callable[[str], None]
Advance = Callable[[float], None]
Way = Callable[[], object]

RULES = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "nnm", "geometric_median")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rules, lengths of updates, and numbers of silos."""

    rules: tuple[str, ...]
    parameters: tuple[int, ...]
    silos: tuple[int, ...]

    def cells(self) -> Iterator[tuple[str, int, int]]:
        """Yield rule, length and silos of each row; those that the rule has too few silos for are left out."""
        for size in self.parameters:
            for silos in self.silos:
                yield from ((rule, size, silos) for rule in self.rules if silos >= least_silos(rule))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one rule costs; medians over laps.

    Args:
        rule: its name, with what it withstands.
        silos: updates that it is given.
        parameters: length of each.
        seconds: ours.
        flower_seconds: Flower's; None where it has no such rule.
        flower_ratio: the median over laps of Flower's seconds over ours.
        copy_ratio: the median over laps of our seconds over those of a pass of copies.
        peak_bytes: that ours adds to a process which holds the updates; None where nobody tells.
        flower_peak_bytes: likewise, Flower's.
    """

    rule: str
    silos: int
    parameters: int
    seconds: float
    flower_seconds: float | None
    flower_ratio: float | None
    copy_ratio: float
    peak_bytes: int | None
    flower_peak_bytes: int | None


def least_silos(rule: str) -> int:
    """Return how few silos the rule can be measured with."""
    return 2 if rule == "mean" else int(STRATEGIES.resolve(rule).least_silos)


def withstood(rule: str, silos: int) -> int:
    """Return how many hostile silos a rule is set to: a fifth of them, as far as it can."""
    most = {
        "krum": (silos - 3) // 2,
        "multi_krum": (silos - 3) // 2,
        "bulyan": (silos - 3) // 4,
        "nnm": (silos - 1) // 4,
    }
    return max(1, min(silos // 5, most.get(rule, silos)))


def bench(grid: Grid, *, laps: int, tell: Tell, advance: Advance) -> dict[str, Any]:
    """Return `machine` and `rows`.

    Args:
        grid: what to measure.
        laps: turns of each rule.
        tell: is told what comes.
        advance: is told of each row that is done.
    """
    rows = []
    for rule, size, silos in grid.cells():
        tell(f"{rule}, {silos} silos, {size:,} parameters")
        rows.append(asdict(_measured(rule, size, silos, laps)))
        advance(1)
    return {"machine": machine(), "rows": rows}


def _measured(rule: str, size: int, silos: int, laps: int) -> Row:
    bad = withstood(rule, silos)
    updates = drawn(size, silos)
    ways = {"ours": ours(rule, updates, bad), "copy": _copies(updates)}
    theirs = flowers(rule, updates, bad)
    if theirs is not None:
        ways["flower"] = theirs
    seconds = in_turn(ways, laps=laps, steps=1)
    peaks = {name: of_process(partial(_on, way), size) for name, way in ways.items() if name != "copy"}
    flower = seconds.get("flower")
    return Row(
        rule=rule,
        silos=silos,
        parameters=size,
        seconds=float(np.median(seconds["ours"])),
        flower_seconds=float(np.median(flower)) if flower else None,
        flower_ratio=ratio(flower, seconds["ours"]) if flower else None,
        copy_ratio=ratio(seconds["ours"], seconds["copy"]),
        peak_bytes=peaks["ours"],
        flower_peak_bytes=peaks.get("flower"),
    )


def _on(way: Way, rows: int) -> Way:
    """Return the way itself on all updates; a first step on few rows has nothing to load here."""
    return way if rows > 2 else lambda: None


def drawn(size: int, silos: int) -> dict[str, Vector]:
    """Return updates of silos that have something in common."""
    random = np.random.default_rng(7)
    common = random.standard_normal(size, np.float32)
    return {f"silo-{k:03}": common + random.standard_normal(size, np.float32) for k in range(silos)}


def _copies(updates: dict[str, Vector]) -> Way:
    into = np.empty_like(next(iter(updates.values())))

    def run() -> None:
        for update in updates.values():
            np.copyto(into, update)

    return run


# --- the rules ----------------------------------------------------------------------------------------------


def ours(rule: str, updates: dict[str, Vector], bad: int) -> Callable[[], Vector]:
    """Return what the coordinator does with these updates after they have arrived."""
    zero = np.zeros_like(next(iter(updates.values())))
    state, weights = State(weights=zero), dict.fromkeys(updates, 1.0)
    if rule == "mean":
        fedavg = STRATEGIES.resolve("fedavg")
        return lambda: fedavg.aggregate(state, summed(list(updates.values())), float(len(updates))).weights
    arguments = {"trimmed_mean": f"trim={(bad + 0.5) / len(updates)}", "median": "", "geometric_median": ""}
    strategy: PerSiloStrategy = STRATEGIES.resolve(f"{rule}({arguments.get(rule, f'byzantine={bad}')})")
    return lambda: strategy.aggregate_each(state, updates, weights).weights


class _Record:
    """What Flower's rules take an update from: an array record that is decoded already, alone in its message."""

    array_records: ClassVar = {"arrays": None}  # no way back to itself: what is kept alive would hide a peak

    def __init__(self, update: Vector) -> None:
        self.update = update

    def __getitem__(self, _: str) -> _Record:
        return self

    def to_numpy_ndarrays(self) -> list[Vector]:
        return [self.update]


def flowers(rule: str, updates: dict[str, Vector], bad: int) -> Callable[[], Vector] | None:
    """Return the rule of Flower's strategy on the same arrays; None where it has none."""
    arrays = list(updates.values())
    records: Any = [_Record(update) for update in arrays]
    count = len(arrays)

    def chosen(keep: int) -> list[Vector]:
        found: Any = select_multikrum(records, bad, keep)
        return [record.update for record in found]

    def bulyan() -> Vector:
        selected = [[update] for update in chosen(count - 2 * bad)]
        middle = [np.median(layer, axis=0) for layer in zip(*selected, strict=True)]
        return aggregate_n_closest_weights(middle, selected, count - 4 * bad)[0]

    ways: dict[str, Callable[[], Vector]] = {
        "mean": lambda: _mean(arrays),
        "median": lambda: np.median(np.stack(arrays), axis=0),
        "trimmed_mean": lambda: trim_mean(np.stack(arrays), (bad + 0.5) / count),
        "krum": lambda: _mean(chosen(1)),
        "multi_krum": lambda: _mean(chosen(count - bad)),
        "bulyan": bulyan,
    }
    return ways.get(rule)


def _mean(arrays: list[Vector]) -> Vector:
    """Return the mean as Flower's FedAvg makes it, one update after another times its share."""
    share = 1.0 / len(arrays)
    total = arrays[0] * share
    for array in arrays[1:]:
        total += array * share
    return total


# --- what is shown ------------------------------------------------------------------------------------------

COLUMNS = (
    "rule", "silos", "parameters", "s", "Flower, s", "faster than Flower", "of a pass of copies", "memory, MB",
    "Flower, MB",
)  # fmt: skip


def table_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a table."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    for row in result["rows"]:
        yield (
            row["rule"],
            str(row["silos"]),
            f"{row['parameters']:,}",
            f"{row['seconds']:.3f}",
            shown(row["flower_seconds"], ".3f"),
            shown(row["flower_ratio"], ".1f"),
            f"{row['copy_ratio']:.1f}",
            *(shown(row[name] and row[name] / 1e6, ".0f") for name in ("peak_bytes", "flower_peak_bytes")),
        )


def write(result: dict[str, Any], folder: Path) -> None:
    """Write `aggregation.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "aggregation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
