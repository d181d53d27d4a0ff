"""A coordinator and its silos as the two commands make them, for the tests of deployment."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from sites import credentials

import client.cli
import server.cli
from simulations.ready import read_study as read_ready
from simulations.silos import REGISTRIES, complete
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


def free_ports(count: int) -> int:
    """A port that is free, as are those that follow it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        if first + count > 65535:
            continue
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


@contextmanager
def passphrases(folder: Path) -> Iterator[None]:
    """The passphrases as systemd hands them to a service."""
    with patch.dict(os.environ, {"CREDENTIALS_DIRECTORY": str(folder)}):
        yield


def silo(capsys: object, *words: str) -> dict[str, object]:
    """Type a command of a silo and return the object that it prints."""
    return _typed(capsys, client.cli.app, words)


def server_(capsys: object, *words: str) -> dict[str, object]:
    """Type a command of the coordinator and return the object that it prints."""
    return _typed(capsys, server.cli.app, words)


def _typed(capsys: object, app: object, words: Sequence[str]) -> dict[str, object]:
    capsys.readouterr()  # type: ignore[attr-defined]
    code = guarded(app, arguments=[*words, "--json"])  # type: ignore[arg-type]
    out, err = capsys.readouterr()  # type: ignore[attr-defined]
    assert code == 0, out + err
    found: dict[str, object] = json.loads(out)
    return found


def found(folder: Path, capsys: object, names: Sequence[str] = ("east", "north", "south"), **data: Path) -> Consortium:
    """Make and enrol all of them.

    Args:
        folder: where they go.
        capsys: pytest's.
        names: of the silos.
        data: records of each silo; none are read before a run.
    """
    words, port = credentials(folder / "credentials"), free_ports(4)
    home = folder / "coordinator"
    server_(capsys, "init", str(home), "--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", str(port))
    with passphrases(words):
        for name in names:
            place = data.get(name, folder / f"{name}.csv")
            own = ("--silo", str(folder / name))
            silo(capsys, "init", str(folder / name), "--data", f"ward={place}", "--allow-volatile")
            asked = silo(capsys, "enrol", *own, "--out", str(folder / f"{name}.request.json"))
            words_read = ("--server", str(home), "--fingerprint", str(asked["fingerprint"]))
            answer = server_(capsys, "enrol", str(asked["request"]), *words_read)
            silo(capsys, "enrol", *own, "--install", str(answer["answer"]), "--fingerprint", str(answer["fingerprint"]))
    return Consortium(server=home, silos=tuple(folder / name for name in names), credentials=words, port=port)


def breast_cancer(folder: Path, names: Sequence[str] = ("east", "north", "south"), **values: object) -> Path:
    """Write the breast-cancer records in parts, one CSV a silo, and the complete study; return the study's path.

    Args:
        folder: where they go.
        names: of the silos.
        values: `section__key` values of the study.
    """
    written, base = read_ready("breast-cancer", {})
    changes = {"training.sampling_rate": 0.1} | {key.replace("__", "."): value for key, value in values.items()}
    study = Study.parse(override(written.text, {"simulation.silos": len(names), **changes}), REGISTRIES)
    source = read_dataset(study, base)
    study, _ = complete(study, source, base)
    for number, name in enumerate(names):
        source.frame.gather_every(len(names), number).write_csv(folder / f"{name}.csv")
    path = folder / "study.toml"
    path.write_text(study.text)
    return path
