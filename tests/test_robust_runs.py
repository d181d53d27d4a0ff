"""Whole simulated runs, through both apps, with a silo that sends a million times what it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

import client.round as local_round
from simulations.run import Outcome, simulate
from simulations.silos import REGISTRIES
from strategies.study import Study

TEXT = """[study]
name = "small"
task = "classification"
rounds = 5
[data]
kind = "tabular"
target = "label"
[data.features]
a = { type = "numeric", min = -3, max = 3 }
b = { type = "numeric", min = -3, max = 3 }
[model]
name = "logistic()"
[strategy]
name = "NAME"
[training]
sampling_rate = 0.5
steps = 4
optimizer = "sgd(lr=1.0)"
[privacy]
PRIVACY
[cohort]
min_silos = LEAST
[simulation]
dataset = "records.csv"
silos = 5
partition = "iid"
"""
PLAIN = 'mechanism = "none"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    a, b = np.random.default_rng(0).normal(size=(2, 300))
    pl.DataFrame({"a": a, "b": b, "label": np.where(a + b > 0, "yes", "no")}).write_csv(tmp_path / "records.csv")
    return tmp_path


def run(folder: Path, name: str, *, privacy: str = PLAIN, least: int = 4, more: str = "") -> Outcome:
    text = TEXT.replace("NAME", name).replace("PRIVACY", privacy).replace("LEAST", str(least))
    study = Study.parse(text + more, REGISTRIES)
    return simulate(study, folder, out=folder / "runs", fresh=True, with_baselines=False)


def model(outcome: Outcome) -> np.ndarray:
    arrays = safetensors.numpy.load((outcome.folder / "model.safetensors").read_bytes())
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def auroc(outcome: Outcome) -> float:
    return float(outcome.facts["rounds"][-1]["metrics"]["auroc"])


def corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, silo-2 sends a million times the reverse of what it has learnt."""
    train = local_round.train

    def hostile(jobs: Sequence[local_round.Job]) -> list[local_round.Result]:
        results = train(jobs)
        for place, job in enumerate(jobs):
            if job.silo.name == "silo-2":
                said = replace(results[place].contribution, update=results[place].contribution.update * -1e6)
                results[place] = replace(results[place], contribution=said)
        return results

    monkeypatch.setattr(local_round, "train", hostile)


def test_a_hostile_silo_does_not_move_a_robust_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = run(folder, "trimmed_mean()")
    assert auroc(honest) > 0.95
    corrupt(monkeypatch)
    moved = run(folder, "trimmed_mean()")
    assert all(line["aggregated"] and line["dropped"] == 0 for line in moved.facts["rounds"])
    assert auroc(moved) > auroc(honest) - 0.03
    assert np.linalg.norm(model(moved)) < 2 * np.linalg.norm(model(honest))
    assert np.linalg.norm(model(run(folder, "fedavg()"))) > 1e4 * np.linalg.norm(model(honest)), "the attack bites"


def test_a_robust_rule_and_private_training_go_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch)
    outcome = run(folder, "trimmed_mean()", privacy="noise_multiplier = 1.0")
    assert auroc(outcome) > 0.8
    assert all(silo["epsilon"] > 0 for silo in outcome.facts["silos"])
    stated = " ".join(outcome.facts["not_covered"])
    assert "see each silo's update by itself" in stated
    assert "no more than 1 of 5 are hostile (1 of 4 when others drop out)" in stated
    assert "no more than 1 of 5 are hostile" in (outcome.folder / "report.html").read_text()


def test_a_round_with_fewer_updates_than_the_rule_needs_comes_to_nothing(folder: Path) -> None:
    outcome = run(folder, "krum()", least=5, more="dropout = 0.15\n")
    for line in outcome.facts["rounds"]:
        assert line["aggregated"] == (line["cohort"] - line["dropped"] >= 5)
    assert {line["aggregated"] for line in outcome.facts["rounds"]} == {True, False}
