"""What a round of a deployment takes: `fedsilo-simulate bench deployment`.

Real processes over TLS on the loopback: our coordinator and its silos, with and without secure aggregation, and stock
Flower (`flower.py`), all with one network and as many local steps on the same records. Ours train with DP-SGD and keep
their ledgers; with secure aggregation they also count how well the model does, under masks. Stock Flower trains without
privacy and is not asked to evaluate, which would double its rounds. A round lasts from one model to the next; the
first of a run warms up. Ways run in turn, lap by lap, and only one of them is up at a time.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from client.data import kinds
from client.models.base import Shape, build, weights_of
from simulations.bench import consortium, flower
from simulations.bench.machine import machine, ratio
from simulations.bench.processes import Processes
from simulations.ready import read_study
from simulations.silos import REGISTRIES, complete, make_silos
from simulations.sources import read_dataset
from strategies.errors import FedsiloError
from strategies.study import Study, override

Tell = Callable[[str], None]
Advance = Callable[[float], None]
WAYS = ("fedsilo", "fedsilo-secagg", "flower", "flower-tuned")
_STEPS, _RATE, _LR = 20, 0.1, 0.1
_TUNED_POLL_S = 0.05
_LARGE_MEGABYTES, _LONG_S = 50.0, 3600.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured.

    Args:
        megabytes: of the model's weights.
        silos: that many, all in every round.
        rounds: timed in each lap, after one that warms up.
        steps: of local training.
    """

    megabytes: float = 1.0
    silos: int = 3
    rounds: int = 4
    steps: int = _STEPS


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way's rounds.

    Args:
        way: `fedsilo`, `fedsilo-secagg`, `flower` or `flower-tuned` (its SuperExecs poll 20 times a second).
        parameters: of the model.
        silos: that many.
        seconds_per_round: the median over all rounds.
        seconds: by lap, of each round.
        ratio_to_flower: the median over laps of the ratio of medians; None without `flower`.
        peak_bytes: by role, the most memory of one of its processes.
    """

    way: str
    parameters: int
    silos: int
    seconds_per_round: float
    seconds: tuple[tuple[float, ...], ...]
    ratio_to_flower: float | None
    peak_bytes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Studies, records and settings of all ways.

    Args:
        studies: by way of ours, the study's file.
        records: one table a silo.
        arrays: the same records as `.npy`, numbers alone.
        settings: the stock app's run config.
        parameters: of the model.
    """

    studies: Mapping[str, Path]
    records: tuple[Path, ...]
    arrays: tuple[Path, ...]
    settings: Mapping[str, int | float]
    parameters: int


class Deployment(Protocol):
    """Processes that can be brought up, and the roles that they play."""

    processes: Processes

    def up(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one way's rounds are run, and what they took."""

    deployment: Deployment
    roles: Mapping[str, str]
    run: Callable[[], list[float]]
    laps: list[list[float]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)

    def lap(self) -> None:
        """Bring it up, run it once, and take it down."""
        with self.deployment.up(), self.deployment.processes.watched(self.roles) as peaks:
            self.laps.append(self.run())
        for role, found in peaks.items():
            self.peaks[role] = max(self.peaks.get(role, 0), found)


def bench(
    size: Size, ways: Sequence[str], *, laps: int, tell: Tell, advance: Callable[[float], None]
) -> dict[str, Any]:
    """Return `machine` and `rows`.

    Args:
        size: what to measure.
        ways: of `WAYS`.
        laps: how often each way takes its turn.
        tell: is told what comes.
        advance: is told of each lap that is done.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fedsilo-bench-"))
    before_us = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started ends too
    try:
        tell("enrolling the silos")
        work = prepare(size, scratch)
        made = _made(ways, work, size, scratch)
        before = machine()
        for lap in range(laps):
            for name, way in made.items():
                tell(f"lap {lap + 1} of {laps}: {name}")
                way.lap()
                advance(1)
    except FedsiloError:
        tell(f"folders and logs are kept in {scratch}")
        raise
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before_us)
    shutil.rmtree(scratch, ignore_errors=True)
    return {"machine": before, "rows": [asdict(row) for row in _rows(made, work, size)]}


def _made(ways: Sequence[str], work: Work, size: Size, scratch: Path) -> dict[str, Way]:
    found: dict[str, Way] = {}
    ours = consortium.Consortium(scratch / "ours", work.records) if set(ways) & set(work.studies) else None
    for name in ways:
        if ours is not None and name in work.studies:
            run = _run_of(ours, work.studies[name])
            found[name] = Way(deployment=ours, roles=consortium.ROLES, run=run)
        else:
            poll_s = _TUNED_POLL_S if name == "flower-tuned" else None
            stock = flower.Stock(scratch / name, work.arrays, work.settings, poll_s)
            found[name] = Way(deployment=stock, roles=flower.ROLES, run=_stock_run_of(stock, size.rounds + 1))
    return found


def _run_of(ours: consortium.Consortium, study: Path) -> Callable[[], list[float]]:
    return lambda: ours.run(study)


def _stock_run_of(stock: flower.Stock, rounds: int) -> Callable[[], list[float]]:
    return lambda: stock.run(rounds)


def _rows(made: Mapping[str, Way], work: Work, size: Size) -> Iterator[Row]:
    medians = {name: [statistics.median(lap) for lap in way.laps] for name, way in made.items()}
    for name, way in made.items():
        yield Row(
            way=name,
            parameters=work.parameters,
            silos=size.silos,
            seconds_per_round=statistics.median(second for lap in way.laps for second in lap),
            seconds=tuple(tuple(lap) for lap in way.laps),
            ratio_to_flower=ratio(medians[name], medians["flower"]) if "flower" in medians else None,
            peak_bytes=way.peaks,
        )


# --- the same work for all ----------------------------------------------------------------------------------


def prepare(size: Size, scratch: Path) -> Work:
    """Write the studies and the records of all ways into a folder."""
    written, base = read_study("breast-cancer", {})
    shape = Shape.of_study(written)
    (inputs,) = shape.inputs
    width = width_of(size.megabytes, inputs, shape.outputs)
    values: dict[str, object] = {
        "study.name": "bench",
        "study.rounds": size.rounds + 1,
        "model.name": f"mlp(hidden=[{width}, {width}])",
        "training.steps": size.steps,
        "training.sampling_rate": _RATE,
        "training.optimizer": f"sgd(lr={_LR})",
        "cohort.min_silos": size.silos,
        "cohort.round_timeout_s": _LONG_S if size.megabytes > _LARGE_MEGABYTES else written.file.cohort.round_timeout_s,
        "simulation.silos": size.silos,
        "simulation.partition": "iid",
    }
    study = Study.parse(override(written.text, values), REGISTRIES)
    source = read_dataset(study, base)
    study, _ = complete(study, source, base)
    masked = override(study.text, {"secagg.enabled": True}) if size.silos >= 3 else ""
    studies = {}
    for name, text in (("fedsilo", study.text), ("fedsilo-secagg", masked)):
        if text:
            studies[name] = scratch / f"{name}.toml"
            studies[name].write_text(Study.parse(text, REGISTRIES).text, encoding="utf-8")
    records = [next((silo / "data").iterdir()) for silo in make_silos(study, source, scratch / "simulated")]
    arrays = [_as_array(file, study, scratch / f"records-{number}.npy") for number, file in enumerate(records)]
    batch = max(1, round(study.file.training.expected_batch_size or 1))
    return Work(
        studies=studies,
        records=tuple(records),
        arrays=tuple(arrays),
        settings={
            "inputs": inputs,
            "width": width,
            "steps": size.steps,
            "batch": batch,
            "lr": _LR,
        },
        parameters=len(weights_of(build(study.model, shape, 0))),
    )


def width_of(megabytes: float, inputs: int, outputs: int) -> int:
    """Return the least width of two equal hidden layers whose float32 weights take that many million bytes."""
    linear = inputs + outputs + 2
    return math.ceil((-linear + math.sqrt(linear**2 + 4 * (megabytes * 1e6 / 4 - outputs))) / 2)


def _as_array(table: Path, study: Study, path: Path) -> Path:
    """Write the records that a silo trains on as it reads them itself: inputs, and the class in the last column."""
    part = kinds.load(table, study, {}, path.parent / "cache").train
    assert isinstance(part.x, torch.Tensor)
    np.save(path, torch.column_stack([part.x, part.y]).numpy().astype(np.float32), allow_pickle=False)
    return path


# --- what is shown ------------------------------------------------------------------------------------------

COLUMNS = ("way", "parameters", "silos", "seconds a round", "of Flower's", "laps", "peak memory, MB")


def table_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a table."""
    for row in result["rows"]:
        peaks = ", ".join(f"{role} {peak / 1e6:.0f}" for role, peak in sorted(row["peak_bytes"].items()))
        yield (
            row["way"],
            f"{row['parameters']:,}",
            str(row["silos"]),
            f"{row['seconds_per_round']:.2f}",
            "-" if row["ratio_to_flower"] is None else f"{row['ratio_to_flower']:.3f}",
            "; ".join(f"{statistics.median(lap):.2f}" for lap in row["seconds"]),
            peaks,
        )


def write(result: dict[str, Any], folder: Path) -> None:
    """Write `deployment.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "deployment.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
