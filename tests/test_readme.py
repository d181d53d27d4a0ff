"""The README is true: its commands run, its study parses and trains, its table of exits and its files exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sites import credentials

from client.filesystem import VOLATILE, kind_of
from simulations.run import simulate
from simulations.silos import REGISTRIES
from strategies.study import Study

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLES = re.findall(r"```console\n(.*?)```", README, re.S)
COMMANDS = [part.strip() for text in CONSOLES for line in text.splitlines() for part in line.split("&&")]
OF_A_SILO = [line for line in COMMANDS if line.startswith("fedsilo-silo ") and "north" in line]  # in this order
STUDY = re.search(r"```toml\n(.*?)```", README, re.S)[1]  # type: ignore[index]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the README's study and records for it."""
    write_records(tmp_path)
    (tmp_path / "my-study.toml").write_text(STUDY)
    return tmp_path


def write_records(folder: Path) -> None:
    """Write the records that the README's study speaks of."""
    random = np.random.default_rng(0)
    columns = {
        "patient_id": np.arange(200) // 2,
        "age": random.integers(18, 90, 200),
        "crp": random.lognormal(2, 1, 200),
        "sex": random.choice(["F", "M"], 200),
        "outcome": random.choice(["home", "ward"], 200),
    }
    pl.DataFrame(columns).write_csv(folder / "records.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the README's study, in one round, and its silos."""
    folder = tmp_path_factory.mktemp("finished")
    write_records(folder)
    short = Study.parse(STUDY.replace("rounds = 20", "rounds = 1"), REGISTRIES)
    outcome = simulate(short, folder, out=folder / "runs", with_baselines=False)
    outcome.folder.rename(folder / "runs" / "my-run")
    shutil.copy(outcome.silos[0].parent / "pins.json", folder / "runs" / "silos" / "my-pins.json")
    outcome.silos[0].parent.rename(folder / "runs" / "silos" / "my-silos")
    return folder


def test_the_readmes_study_is_valid() -> None:
    assert Study.parse(STUDY, REGISTRIES).unit == "patient_id"


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in OF_A_SILO])
def test_the_readmes_commands_run(folder: Path, finished: Path, command: str) -> None:
    words = shlex.split(command)
    if words[0] in ("pip", "pytest"):  # what runs this test has run them
        assert "test" in README and words[0] in (ROOT / ".ci" / "run").read_text()
        return
    if "/my-" in command:
        shutil.copytree(finished / "runs", folder / "runs")
    done = typed(folder, words)
    assert done.returncode == 0, done.stderr


def typed(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Type a command as a process of its own, with the passphrases as systemd hands them to a service."""
    executable = Path(sys.executable).parent / words[0]
    environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(folder / "credentials")}
    return subprocess.run(
        [str(executable), *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_the_way_of_a_silo_is_walked_in_the_readmes_order(folder: Path, finished: Path) -> None:
    assert [shlex.split(line)[1] for line in OF_A_SILO[:3]] == ["init", "register", "check"]
    shutil.copytree(finished / "runs", folder / "runs")
    credentials(folder / "credentials")
    for line in OF_A_SILO:
        words = shlex.split(line)
        if words[1] == "init" and kind_of(folder) in VOLATILE:
            words.append("--allow-volatile")  # where these tests run in a container
        done = typed(folder, words)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README))))
def test_the_readmes_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
