"""Stock Flower on one machine, as its documentation starts it: a SuperLink with TLS, a SuperNode a silo, `flwr run`.

What is left at its default: isolation, polling, state in memory. Node authentication is not switched on and nothing is
installed at run time, which costs it nothing. Its app is `stock.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path

import tomlkit

from server.authority import certify, make_authority
from simulations.bench.processes import Processes, free_ports
from strategies.errors import RunError

ROLES = {
    "serverapp": "flwr-serverapp",
    "worker": "flwr-clientapp",
    "superexec": "flower-superexec",
    "superlink": "flower-superlink",
    "node": "flower-supernode",
}
_APP = Path(__file__).parent / "stock.py"
_LONGEST_RUN_S = 7200.0
_NAME = "bench"


class Stock:
    """Folders and certificates of a SuperLink and its SuperNodes.

    Args:
        folder: scratch, where all of them go.
        records: one `.npy` file a node: the features, and the class in the last column.
        settings: the app's run config, `silos` apart.
        poll_s: between two looks of a SuperExec for work; None leaves Flower's default of a second.
    """

    def __init__(
        self, folder: Path, records: Sequence[Path], settings: Mapping[str, int | float], poll_s: float | None = None
    ) -> None:
        folder.mkdir()
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "NO_PROXY": "127.0.0.1",
        }
        if poll_s is not None:
            environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(poll_s)
        self.processes = Processes(folder=folder, environment=environment)
        self._folder, self._records, self._runs = folder, records, count(1)
        self._port = free_ports(1 + len(records))
        make_authority(folder, "Stock")
        certify(folder, ["127.0.0.1"])
        self._write_app({**settings, "silos": len(records)})
        connection = {"address": f"127.0.0.1:{self._port}", "root-certificates": str(folder / "ca.crt")}
        (folder / "home").mkdir()
        text = tomlkit.dumps({"superlink": {"default": _NAME, _NAME: connection}})
        (folder / "home" / "config.toml").write_text(text, encoding="utf-8")

    def _write_app(self, settings: Mapping[str, int | float]) -> None:
        app = self._folder / "stockapp"
        app.mkdir()
        shutil.copy(_APP, app)
        flower = {
            "publisher": "bench",
            "components": {"serverapp": "stock:server_app", "clientapp": "stock:client_app"},
            "config": {**settings, "rounds": 1, "out": ""},
        }
        project = {"name": "stockapp", "version": "1.0.0", "dependencies": []}
        text = tomlkit.dumps({"project": project, "tool": {"flwr": {"app": flower}}})
        (app / "pyproject.toml").write_text(text, encoding="utf-8")

    @contextmanager
    def up(self) -> Iterator[None]:
        """Run all of them while the block runs.

        Raises:
            RunError: they do not come up.
        """
        folder, address = self._folder, f"127.0.0.1:{self._port}"
        certificates = ("--ssl-ca-certfile", str(folder / "ca.crt"), "--ssl-certfile", str(folder / "server.crt"))
        key = ("--ssl-keyfile", str(folder / "keys" / "server.key"))
        place = ("--host", "127.0.0.1", "--port", str(self._port), "--disable-runtime-dependency-installation")
        try:
            self.processes.start("superlink", ["flower-superlink", *certificates, *key, *place])
            self.processes.wait(self._answers, within_s=120, why="the SuperLink did not answer")
            for number, file in enumerate(self._records, start=1):
                node = ("--superlink", address, "--root-certificates", str(folder / "ca.crt"))
                own = ("--port", str(self._port + number), "--node-config", f"records='{file}'")
                self.processes.start(f"node-{number}", ["flower-supernode", *node, *own])
            yield
        finally:
            self.processes.stop()

    def _answers(self) -> bool:
        try:
            self.processes.call(["flwr", "ls", _NAME])
        except RunError:
            return False
        return True

    def run(self, rounds: int) -> list[float]:
        """Run the app and return the seconds of each round but the first, from one model to the next.

        Raises:
            RunError: it fails, or a node was missing in a round.
        """
        out = self._folder / f"run-{next(self._runs)}.jsonl"
        config = f"rounds={rounds} out='{out}'"
        self.processes.call(["flwr", "run", str(self._folder / "stockapp"), _NAME, "--run-config", config])
        ended = out.with_suffix(".done").exists
        self.processes.wait(ended, within_s=_LONGEST_RUN_S, why="Flower's run did not end")
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        if any(line["replies"] != len(self._records) for line in lines):
            raise RunError(f"a node was missing in a round; see {out}")
        return [later["time"] - earlier["time"] for earlier, later in pairwise(lines)]
