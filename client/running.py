"""One running node a silo: a lock that says which process holds it, and what the node says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from strategies.errors import SettingError

FOLDER = "state/node"


@contextmanager
def only_one(silo: Path) -> Iterator[None]:
    """Hold the silo for one running node, and say which process it is.

    Raises:
        SettingError: another one runs.
    """
    folder = silo / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except OSError:
            raise SettingError(f"a node of {silo} runs already; use fedsilo-silo stop") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def running(silo: Path) -> int | None:
    """Return the process id of the node that runs for a silo's folder, or None."""
    try:
        descriptor = os.open(silo / FOLDER / "pid", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
        return None
    except OSError:
        text = os.pread(descriptor, 32, 0)
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)


def state_of(silo: Path) -> dict[str, Any]:
    """Return what a silo's node says of itself."""
    pid = running(silo)
    try:
        found: dict[str, Any] = json.loads((silo / FOLDER / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {"state": "never started"}
    return {**found, "pid": pid} if pid is not None else {"state": "not running", "pid": None}
