"""Two tiers of the same tests, and which skips are allowed.

`pytest` runs every claim at about a tenth of its stated count, `pytest -m full` at the count itself. With
FEDSILO_CI set, a skip whose reason is not in the allowed list fails the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as training runs; more threads divide work by the number of rows
_ALLOWED_SKIPS = ("gpu:", "FEDSILO_DATA:")
_full = pytest.StashKey[bool]()
_bad_skips: list[str] = []  # of the process that starts the others


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, bool] | None = getattr(config, "workerinput", None)
    full = worker["full"] if worker is not None else config.option.markexpr == "full"
    if full:
        config.option.markexpr = ""  # the tier selects counts, not tests
    config.stash[_full] = full
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile(
        "tier", max_examples=200 if full else 25, deadline=None, suppress_health_check=health, derandomize=not full
    )
    settings.load_profile("tier")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist which tier it runs."""
    node.workerinput["full"] = node.config.stash[_full]


@pytest.fixture(scope="session")
def full_tier(request: pytest.FixtureRequest) -> bool:
    """Whether the stated counts are run."""
    return request.config.stash[_full]


@pytest.fixture(scope="session")
def scaled(full_tier: bool) -> Callable[..., int]:
    """``scaled(full_count, least=1)``: the stated count, or about a tenth of it."""

    def count(full_count: int, least: int = 1) -> int:
        return full_count if full_tier else max(least, round(full_count / 10))

    return count


@pytest.fixture
def data_folder() -> Path:
    """The folder of development data, or a skip."""
    folder = os.environ.get("FEDSILO_DATA")
    if not folder:
        pytest.skip("FEDSILO_DATA: names no folder of development data")
    return Path(folder)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("FEDSILO_SILO", "FEDSILO_SILOS"):
        monkeypatch.delenv(name, raising=False)
    yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(_ALLOWED_SKIPS):
            _bad_skips.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _bad_skips and os.environ.get("FEDSILO_CI") and not hasattr(session.config, "workerinput"):
        print("\nskips that are not allowed here:", *_bad_skips, sep="\n  ")
        session.exitstatus = 1
