"""What a server's app has around it in a deployment: the signed Grid, and a log that the commands follow.

Outside a coordinator's own processes, in a simulation for instance, nothing is changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid

from server.envelopes import SignedGrid
from server.home import Home
from server.journal import FIELDS, Journal
from server.replies import Replies
from strategies.errors import FedsiloError

MARK = "FEDSILO_COORDINATOR"  # set by `up` for its own processes alone


@contextmanager
def deployed(grid: Grid, run: int) -> Iterator[Grid]:
    """Yield the Grid that the rounds use.

    Args:
        grid: Flower's.
        run: Flower's number of the run.
    """
    folder = os.environ.get(MARK)
    if not folder:
        yield grid
        return
    home = Home.open(Path(folder))
    journal = Journal(journal_of(home, run))
    handler, log = _Follower(journal), logging.getLogger("fedsilo.server")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        assert isinstance(grid, HttpGrid)
        yield SignedGrid(grid, home.roster(), home.key(), Replies(grid).pull)
        journal.write("complete")
    except FedsiloError as error:
        journal.write("failed", sentence=str(error), exit=error.exit_code)
        raise
    except BaseException as error:
        journal.write("failed", sentence=f"{type(error).__name__} in the server's app", exit=1)
        raise
    finally:
        log.removeHandler(handler)


def journal_of(home: Home, run: int) -> Path:
    """Return where the log of a run is."""
    return home.logs / f"run-{run}.jsonl"


class _Follower(logging.Handler):
    """Writes run folder, finished rounds and warnings into the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        if folder := getattr(record, "folder", None):
            self._journal.write("folder", folder=str(folder))
        elif line := getattr(record, "line", None):
            self._journal.write("round", **_facts(line))
        elif record.levelno >= logging.WARNING:
            self._journal.write("warning", sentence=record.getMessage())


def _facts(line: Mapping[str, Any]) -> dict[str, Any]:
    epsilons = [value for value in line["epsilon"].values() if value is not None]
    found = {key: line[key] for key in ("round", "cohort", "dropped", "aggregated")}
    found |= {key: value for key, value in line["metrics"].items() if key in FIELDS}
    return {**found, "epsilon": max(epsilons, default=None), "seconds": line["seconds"]["total"]}
