"""A coordinator and its silos on one machine, made and run by the project's own commands, for benchmarks.

Everything lies in one scratch folder; the policy of each silo lets the benchmark's studies through without an officer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from client.filesystem import VOLATILE, kind_of
from server.deployed import journal_of
from server.home import Home
from server.overview import overview, read_events
from simulations.bench.processes import Processes, free_ports
from strategies.errors import RunError

ROLES = {
    "serverapp": "flwr-serverapp",
    "superexec": "flower-superexec",
    "superlink": "server.superlink",
    "gateway": "server.cli",
    "worker": "client.worker",
    "node": "client.cli",
}
_POLICY = {
    "epsilon = 8.0": "epsilon = 1e9",
    "min_cohort = 3": "min_cohort = 1",
    'allow_metrics = "none"': 'allow_metrics = "masked"',
    'approval = "required"': 'approval = "automatic"',
}
_WORDS = ("silo-passphrase", "officer-passphrase")
_LONGEST_RUN_S = 7200.0


class Consortium:
    """Folders of a coordinator and its silos, enrolled.

    Args:
        folder: scratch, where all of them go.
        records: one file a silo.
    """

    def __init__(self, folder: Path, records: Sequence[Path]) -> None:
        folder.mkdir()
        for word in _WORDS:
            (folder / word).write_text(f"the {word} of a benchmark\n")
        self.processes = Processes(folder=folder, environment={"CREDENTIALS_DIRECTORY": str(folder)})
        self._folder, self._silos = folder, [f"silo-{number}" for number in range(1, len(records) + 1)]
        port = str(free_ports(4))
        self._server("init", "coordinator", "--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", port)
        self._home = Home.open(folder / "coordinator")
        for silo, file in zip(self._silos, records, strict=True):
            self._enrol(silo, file)

    def _enrol(self, silo: str, records: Path) -> None:
        volatile = ["--allow-volatile"] if kind_of(self._folder) in VOLATILE else []
        self._silo("init", silo, "--data", f"records={records}", *volatile)
        policy = self._folder / silo / "policy.toml"
        text = policy.read_text(encoding="utf-8")
        for old, new in _POLICY.items():
            text = text.replace(old, new)
        policy.write_text(text, encoding="utf-8")
        self._silo("register", "records", "--silo", silo)
        asked = json.loads(self._silo("enrol", "--silo", silo, "--json"))
        heard = ("--fingerprint", asked["fingerprint"])
        answer = json.loads(self._server("enrol", asked["request"], "--server", "coordinator", *heard, "--json"))
        heard = ("--fingerprint", answer["fingerprint"])
        self._silo("enrol", "--silo", silo, "--install", answer["answer"], *heard)

    @contextmanager
    def up(self) -> Iterator[None]:
        """Run all of them while the block runs.

        Raises:
            RunError: they do not come up.
        """
        try:
            self.processes.start("server", _command("server", "up", "--server", "coordinator"))
            for silo in self._silos:
                self.processes.start(silo, _command("client", "up", "--silo", silo))
            self.processes.wait(self._all_online, within_s=180, why="not all silos were online")
            yield
        finally:
            self.processes.stop()

    def run(self, study: Path) -> list[float]:
        """Run a study and return the seconds of each round but the first, from one model on disk to the next.

        Raises:
            RunError: it fails, or a silo was missing in a round.
        """
        started = json.loads(self._server("run", str(study), "--server", "coordinator", "--detach", "--json"))
        journal = journal_of(self._home, int(started["id"]))

        def ended() -> bool:
            return any(line["event"] in ("complete", "failed") for line in read_events(journal))

        self.processes.wait(ended, within_s=_LONGEST_RUN_S, why="the run did not end")
        events = read_events(journal)
        if events[-1]["event"] == "failed":
            raise RunError(f"the run failed: {events[-1]['sentence']}")
        rounds = [line for line in events if line["event"] == "round"]
        if not all(line["aggregated"] and not line["dropped"] for line in rounds):
            raise RunError(f"a silo was missing in a round; see {journal}")
        return [(later - earlier).total_seconds() for earlier, later in pairwise(map(_time, rounds))]

    def _all_online(self) -> bool:
        return all(row["state"] == "online" for row in overview(self._home)["silos"])

    def _server(self, *words: str) -> str:
        return self.processes.call(_command("server", *words))

    def _silo(self, *words: str) -> str:
        return self.processes.call(_command("client", *words))


def _command(package: str, *words: str) -> list[str]:
    return [sys.executable, "-c", f"from {package}.cli import main; main()", *words]


def _time(line: dict[str, str]) -> datetime:
    return datetime.fromisoformat(line["time"])
