"""What a measurement was made on, and how figures of competing ways are taken in turn."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "numpy", "opacus", "flwr", "cryptography", "dp-accounting")


def machine() -> dict[str, object]:
    """Return date, processor, cores, load and versions."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def in_turn(
    ways: Mapping[str, Callable[[], object]],
    *,
    laps: int,
    steps: int | Mapping[str, int],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each way `steps` times a lap, lap by lap, so that a busy moment falls on all of them.

    Args:
        ways: what to time, by name.
        laps: that count.
        steps: of each way in a lap, or by way.
        clock: of seconds; `time.process_time` for what waits for nothing, on a machine that others use.

    Returns:
        By way, the median seconds of each lap. A first lap warms up and is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for lap in range(laps + 1):
        for name, step in ways.items():
            count = steps if isinstance(steps, int) else steps[name]
            seconds = [_timed(step, clock) for _ in range(count)]
            if lap:
                found[name].append(statistics.median(seconds))
    return found


def _timed(step: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    step()
    return clock() - began


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over laps of the ratio within a lap."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
