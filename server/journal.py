"""Structured logs: JSON lines of an event and allow-listed fields, each of an allow-listed form.

Guarantees: what is no number, truth value or short text, and any field that is not listed, does not reach the file, so
no exception's text, record or secret can by accident.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

FIELDS = frozenset(
    {
        *("peer", "silo", "call", "status", "reason", "received", "sent", "suppressed"),  # the gateway's
        *("process", "pid", "code", "node", "online", "port"),  # the supervisor's
        *("run", "study", "folder", "round", "rounds", "cohort", "dropped", "aggregated", "seconds"),  # a run's
        *("accuracy", "auroc", "auprc", "brier", "loss", "epsilon", "sentence", "exit"),
    }
)
_LONGEST = 500
_PER_SECOND = 50.0  # lines with a reason; a flood of refusals must not fill the disk


class Journal:
    """A file of JSON lines.

    Args:
        path: of the file; its folder is made.
        clock: seconds that only grow.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens, self._at, self._suppressed = _PER_SECOND, clock(), 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, event: str, **fields: object) -> None:
        """Append a line; above 50 refusals a second the rest is only counted."""
        with self._lock:
            if fields.get("reason") and not self._room():
                self._suppressed += 1
                return
            if self._suppressed:
                fields["suppressed"], self._suppressed = self._suppressed, 0
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = {"time": now, "event": event, **{k: v for k, v in fields.items() if k in FIELDS and _plain(v)}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _room(self) -> bool:
        now = self._clock()
        self._tokens = min(_PER_SECOND, self._tokens + _PER_SECOND * (now - self._at))
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST and value.isprintable()
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
