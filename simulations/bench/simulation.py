"""What the engines of simulations cost beside the plainest loop: `fedsilo-simulate bench simulation`.

Each lap of each way is a process of its own (`lap.py`), in turns; a ratio is the median over laps. All ways train the
same network on as many synthetic records, with the same cohort, local steps and optimiser. The yardstick `loop` does
nothing else; beside that, an engine of ours keeps every silo's ledger, checks and makes signatures, logs what leaves,
samples by Poisson's rule, and evaluates each silo's held-out records, as a run does.

`startup_s` is from the start of the process to the end of the first round, without what a round takes: imports, worker
processes, invitations of all silos. `peak_bytes` adds up the most that each process of a way has held; pages that they
share count in each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from simulations.bench.lap import TASKS, study_of
from simulations.bench.machine import machine, ratio
from simulations.bench.processes import family, peak_bytes
from simulations.run import ENGINES
from strategies.errors import RunError

Tell = Callable[[str], None]
Advance = Callable[[float], None]

LOOP = "loop"
_LOOK_S = 0.1
_BESIDE = "ledger, signatures, egress log, Poisson samples, evaluation at each silo"


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is simulated.

    Args:
        silos: of the simulation.
        cohort: silos of a round.
        rounds: timed in a lap, after one that warms up.
        private: whether the engines train with DP-SGD; the yardstick never does.
    """

    silos: int
    cohort: int
    rounds: int
    private: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to simulate one network.

    Args:
        network: its name.
        engine: the way.
        parameters: of the network.
        silos: of the simulation.
        cohort: silos of a round.
        private: whether it trained with DP-SGD.
        seconds_per_round: the median over laps.
        seconds: of each lap, the median over its rounds.
        startup_s: the median over laps.
        speed_vs_loop: the loop's seconds over this way's; the median over laps of their ratio.
        peak_bytes: the most of all laps.
        threads: of torch, in each process.
        beside: what it does beside training.
    """

    network: str
    engine: str
    parameters: int
    silos: int
    cohort: int
    private: bool
    seconds_per_round: float
    seconds: tuple[float, ...]
    startup_s: float
    speed_vs_loop: float
    peak_bytes: int
    threads: int
    beside: str


@dataclass(kw_only=True)
class _Laps:
    seconds: list[float] = field(default_factory=list)
    startups: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    peak: int = 0


def engines() -> tuple[str, ...]:
    """Return the engines that can be measured here."""
    return tuple(name for name in ENGINES if name != "ray" or importlib.util.find_spec("ray") is not None)


def bench(
    names: Sequence[str], ways: Sequence[str], size: Size, *, laps: int, tell: Tell, advance: Advance
) -> dict[str, Any]:
    """Return `machine` and `rows`.

    Args:
        names: networks.
        ways: engines; the loop is always measured.
        size: of the simulation.
        laps: turns of each way.
        tell: is told what comes.
        advance: is told how many laps of a way are done.

    Raises:
        RunError: a lap fails.
    """
    facts, rows = machine(), []
    for name in names:
        found = {way: _Laps() for way in (LOOP, *ways)}
        for lap in range(1, laps + 1):
            for way, so_far in found.items():
                tell(f"{name}, {way}, lap {lap}")
                _measure(way, name, size, so_far)
                advance(1)
        parameters = _parameters(name, size)
        rows += [asdict(_row(name, way, parameters, size, one, found[LOOP])) for way, one in found.items()]
    return {"machine": facts, "rows": rows}


def _row(name: str, way: str, parameters: int, size: Size, laps: _Laps, loop: _Laps) -> Row:
    return Row(
        network=name,
        engine=way,
        parameters=parameters,
        silos=size.silos,
        cohort=size.cohort,
        private=size.private and way != LOOP,
        seconds_per_round=statistics.median(laps.seconds),
        seconds=tuple(laps.seconds),
        startup_s=statistics.median(laps.startups),
        speed_vs_loop=ratio(loop.seconds, laps.seconds),
        peak_bytes=laps.peak,
        threads=statistics.mode(laps.threads),
        beside="" if way == LOOP else _BESIDE,
    )


def _parameters(name: str, size: Size) -> int:
    from client.round import model_layout

    return model_layout(study_of(name, silos=size.silos, cohort=size.cohort, rounds=1, private=False)).size


def _measure(way: str, name: str, size: Size, into: _Laps) -> None:
    """Run one lap and add what it shows."""
    given = {
        "way": way,
        "network": name,
        "silos": size.silos,
        "cohort": size.cohort,
        "rounds": size.rounds + 1,
        "private": size.private,
    }
    began = time.time()
    printed, peak = _run([sys.executable, "-P", "-m", "simulations.bench.lap", json.dumps(given)])
    found = json.loads(printed.splitlines()[-1])
    by_threads = {}
    for threads, ended in found["ended"].items():
        rounds = [after - before for before, after in pairwise(ended)]
        timed = rounds[-size.rounds :]
        by_threads[int(threads)] = statistics.median(timed)
    best = min(by_threads, key=by_threads.__getitem__)
    first = found["ended"][str(best)][1 if way == LOOP else 0]
    into.seconds.append(by_threads[best])
    into.threads.append(best)
    into.startups.append(max(0.0, first - began - found["made_s"] - by_threads[best]))
    into.peak = max(into.peak, peak)


def _run(command: Sequence[str]) -> tuple[str, int]:
    """Return what a command prints, and the most memory that it and all that it starts have held, added up.

    Raises:
        RunError: it fails.
    """
    path = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
    stdin, alive = os.pipe()  # closed with this process, however it ends, and a lap ends with it
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(stdin)
    peaks: dict[int, int] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_S):
            for pid in family(iter((process.pid,))):
                with suppress(OSError, StopIteration, ValueError):
                    peaks[pid] = max(peaks.get(pid, 0), peak_bytes(pid))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        printed, said = process.communicate()
    finally:
        done.set()
        thread.join()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(alive)
    if process.returncode:
        raise RunError(f"a lap ended with {process.returncode}: {said[-500:]}")
    return printed, sum(peaks.values())


# --- what is shown ------------------------------------------------------------------------------------------

COLUMNS = (
    "network", "engine", "parameters", "cohort", "s a round", "of the loop's speed", "laps", "start-up, s",
    "peak memory, MB", "note",
)  # fmt: skip


def table_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a table."""
    for row in result["rows"]:
        yield (
            row["network"],
            row["engine"],
            f"{row['parameters']:,}",
            f"{row['cohort']} of {row['silos']}",
            f"{row['seconds_per_round']:.3f}",
            f"{row['speed_vs_loop']:.3g}",
            "; ".join(f"{lap:.3f}" for lap in row["seconds"]),
            f"{row['startup_s']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['threads']} torch thread{'s' if row['threads'] > 1 else ''}"
            + (", DP-SGD" if row["private"] else "")
            + (f"; beside: {row['beside']}" if row["beside"] else ""),
        )


def write(result: dict[str, Any], folder: Path) -> None:
    """Write `simulation.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "simulation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def networks() -> tuple[str, ...]:
    """Return the networks that can be measured."""
    return tuple(TASKS)
