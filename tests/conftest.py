"""Two tiers of the same tests, and which skips are allowed.

`pytest` runs every claim at about a tenth of its stated count, `pytest -m full` at the count itself. With
FEDSILO_CI set, a skip whose reason is not in the allowed list fails the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as training runs; more threads divide work by the number of rows
_ALLOWED_SKIPS = ("gpu:", "FEDSILO_DATA:")
_full = pytest.StashKey[bool]()
_bad_skips = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    full = config.option.markexpr == "full"
    if full:
        config.option.markexpr = ""  # the tier selects counts, not tests
    config.stash[_full] = full
    config.stash[_bad_skips] = []
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile(
        "tier", max_examples=200 if full else 25, deadline=None, suppress_health_check=health, derandomize=not full
    )
    settings.load_profile("tier")


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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(_ALLOWED_SKIPS):
            item.config.stash[_bad_skips].append(f"{item.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    bad = session.config.stash[_bad_skips]
    if bad and os.environ.get("FEDSILO_CI"):
        print("\nskips that are not allowed here:", *bad, sep="\n  ")
        session.exitstatus = 1
