"""Counters of the coordinator, and their Prometheus text (exposition format 0.0.4).

Labels are calls, statuses and names of the roster; nothing of a record, a metric or a key is counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable


class Meters:
    """What the gateway has seen since it began."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by call and status
        self.received: Counter[str] = Counter()  # bytes by silo
        self.sent: Counter[str] = Counter()
        self.seconds = 0.0
        self.last_seen: dict[str, float] = {}  # by silo, seconds since 1970
        self.gauges: dict[str, float] = {}  # name with labels

    def observe(self, call: str, status: int, silo: str, *, received: int, sent: int, seconds: float) -> None:
        """Count a request."""
        self.requests[call, status] += 1
        self.seconds += seconds
        if silo != "-":
            self.received[silo] += received
            self.sent[silo] += sent
            if status == 200:
                self.last_seen[silo] = time.time()

    def refused(self) -> int:
        """Return the number of requests that were refused."""
        return sum(count for (_, status), count in self.requests.items() if status >= 400)

    def text(self) -> str:
        """Return the metrics as Prometheus reads them."""
        rows = [f'{{call="{call}",status="{status}"}} {n}' for (call, status), n in sorted(self.requests.items())]
        parts = [
            _metric("fedsilo_requests_total", "counter", "requests at the gateway", rows),
            _metric("fedsilo_request_seconds_total", "counter", "time in requests", [f" {self.seconds:.6f}"]),
            _metric("fedsilo_received_bytes_total", "counter", "bytes from a silo", _by_silo(self.received)),
            _metric("fedsilo_sent_bytes_total", "counter", "bytes to a silo", _by_silo(self.sent)),
            _metric("fedsilo_last_seen_seconds", "gauge", "last request of a silo", _by_silo(self.last_seen)),
        ]
        for name, value in sorted(self.gauges.items()):
            parts.append(_metric(name, "gauge", name.removeprefix("fedsilo_").replace("_", " "), [f" {value:g}"]))
        return "".join(parts)


def _by_silo(values: Counter[str] | dict[str, float]) -> list[str]:
    return [f'{{silo="{silo}"}} {value:.15g}' for silo, value in sorted(values.items())]


def _metric(name: str, kind: str, sentence: str, rows: Iterable[str]) -> str:
    lines = "".join(f"{name}{row}\n" for row in rows)
    return f"# HELP {name} {sentence}\n# TYPE {name} {kind}\n{lines}"
