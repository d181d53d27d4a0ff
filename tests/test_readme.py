"""The README is true: its commands run, its study parses and trains, its table of exits and its files exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from simulations.run import simulate
from simulations.silos import REGISTRIES
from strategies.study import Study

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```console\n(.*?)```", README, re.S)
STUDY = re.search(r"```toml\n(.*?)```", README, re.S)[1]  # type: ignore[index]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the README's study and records for it."""
    random = np.random.default_rng(0)
    columns = {
        "patient_id": np.arange(200) // 2,
        "age": random.integers(18, 90, 200),
        "crp": random.lognormal(2, 1, 200),
        "sex": random.choice(["F", "M"], 200),
        "outcome": random.choice(["home", "ward"], 200),
    }
    pl.DataFrame(columns).write_csv(tmp_path / "records.csv")
    (tmp_path / "my-study.toml").write_text(STUDY)
    return tmp_path


def test_the_readmes_study_is_valid() -> None:
    assert Study.parse(STUDY, REGISTRIES).unit == "patient_id"


@pytest.mark.parametrize("command", [part.strip() for text in COMMANDS for part in text.split("&&")])
def test_the_readmes_commands_run(folder: Path, command: str) -> None:
    words = shlex.split(command)
    if words[0] in ("pip", "pytest"):  # what runs this test has run them
        assert "test" in README and words[0] in (ROOT / ".ci" / "run").read_text()
        return
    if "runs/my-run" in command:
        short = Study.parse(STUDY.replace("rounds = 20", "rounds = 1"), REGISTRIES)
        done_before = simulate(short, folder, out=folder / "runs", with_baselines=False)
        done_before.folder.rename(folder / "runs" / "my-run")
        shutil.copy(done_before.silos[0].parent / "pins.json", folder / "runs" / "silos" / "my-pins.json")
    executable = Path(sys.executable).parent / words[0]
    done = subprocess.run(
        [str(executable), *words[1:]], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README))))
def test_the_readmes_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
