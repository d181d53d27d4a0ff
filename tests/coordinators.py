"""A coordinator and its silos as the two commands make them, for the tests of deployment."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import typer
from sites import OFFICER_WORD, SILO_WORD, credentials, rewrite

import client.cli
import server.cli
from simulations.bench.processes import free_ports
from simulations.ready import read_study as read_ready
from simulations.silos import REGISTRIES, complete, make_silos
from simulations.sources import read_dataset
from strategies.command import guarded
from strategies.study import Study, override


@dataclass(frozen=True, kw_only=True)
class Consortium:
    """Folders of a coordinator and its silos, and of the passphrases."""

    server: Path
    silos: tuple[Path, ...]
    credentials: Path
    port: int


@contextmanager
def passphrases(folder: Path) -> Iterator[None]:
    """The passphrases as systemd hands them to a service."""
    with patch.dict(os.environ, {"CREDENTIALS_DIRECTORY": str(folder)}):
        yield


def silo(*words: str) -> dict[str, object]:
    """Type a command of a silo and return the object that it prints."""
    return _typed(client.cli.app, words)


def server_(*words: str) -> dict[str, object]:
    """Type a command of the coordinator and return the object that it prints."""
    return _typed(server.cli.app, words)


def _typed(app: typer.Typer, words: Sequence[str]) -> dict[str, object]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = guarded(app, arguments=[*words, "--json"])
    assert code == 0, out.getvalue() + err.getvalue()
    printed: dict[str, object] = json.loads(out.getvalue())
    return printed


def found(
    folder: Path,
    names: Sequence[str] = ("east", "north", "south"),
    policy: Mapping[str, str] | None = None,
    secret: tuple[bytes, bytes] = (SILO_WORD, OFFICER_WORD),
) -> Consortium:
    """Make and enrol all of them.

    Args:
        folder: where they go.
        names: of the silos.
        policy: texts of policy.toml to be replaced.
        secret: passphrases of the silo and of its officer.
    """
    words, port = credentials(folder / "credentials", *secret), free_ports(4)
    home = folder / "coordinator"
    server_("init", str(home), "--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", str(port))
    with passphrases(words):
        for name in names:
            place = next(folder.glob(f"{name}.[cp]*"), folder / f"{name}.csv")
            own = ("--silo", str(folder / name))
            silo("init", str(folder / name), "--data", f"ward={place}", "--allow-volatile")
            for old, new in (policy or {}).items():
                rewrite(folder / name / "policy.toml", old, new)
            asked = silo("enrol", *own, "--out", str(folder / f"{name}.request.json"))
            words_read = ("--server", str(home), "--fingerprint", str(asked["fingerprint"]))
            answer = server_("enrol", str(asked["request"]), *words_read)
            silo("enrol", *own, "--install", str(answer["answer"]), "--fingerprint", str(answer["fingerprint"]))
    return Consortium(server=home, silos=tuple(folder / name for name in names), credentials=words, port=port)


def copied(made: Consortium, folder: Path) -> Consortium:
    """A copy of a consortium, for a test of its own: making one takes a second."""
    shutil.copytree(made.server.parent, folder, dirs_exist_ok=True)
    silos = tuple(folder / path.name for path in made.silos)
    return replace(made, server=folder / made.server.name, silos=silos, credentials=folder / made.credentials.name)


class Processes:
    """Real processes of a consortium; each is ended by its own process id.

    Args:
        consortium: whose.
    """

    def __init__(self, consortium: Consortium) -> None:
        self.consortium = consortium
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start the coordinator (`server`) or a silo by its folder's name."""
        module, folder = ("server", self.consortium.server)
        if name != "server":
            module, folder = "client", self.consortium.server.parent / name
        option = "--server" if name == "server" else "--silo"
        with (folder.parent / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-c", f"from {module}.cli import main; main()", "up", option, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "CREDENTIALS_DIRECTORY": str(self.consortium.credentials), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to what is left after 30 s."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def type(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Type a command of the coordinator and wait for its end."""
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "from server.cli import main; main()",
                *words,
                "--server",
                str(self.consortium.server),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def until(what: Callable[[], object], *, within_s: float = 90.0, why: str = "") -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, why or "it did not come to be in time"
        time.sleep(0.4)


def breast_cancer(folder: Path, names: Sequence[str] = ("east", "north", "south"), **values: object) -> Path:
    """Write the breast-cancer records in parts, one file a silo, and the complete study; return the study's path.

    Args:
        folder: where they go; a silo called `silo-1` gets what the simulator's `silo-1` has.
        names: of the silos.
        values: `section__key` values of the study; None takes one away.
    """
    written, base = read_ready("breast-cancer", {})
    changes = {"simulation.silos": len(names), "simulation.partition": "iid", "training.sampling_rate": 0.1}
    changes |= {key.replace("__", "."): value for key, value in values.items()}
    study = Study.parse(override(written.text, changes), REGISTRIES)
    source = read_dataset(study, base)
    study, _ = complete(study, source, base)
    for made, name in zip(make_silos(study, source, folder / "simulated"), names, strict=True):
        (data,) = (made / "data").iterdir()
        shutil.copy(data, folder / f"{name}{data.suffix}")
    path = folder / "study.toml"
    path.write_text(study.text)
    return path
