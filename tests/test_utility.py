"""What the default model is worth under privacy, on real records.

Breast cancer, 3 silos iid, epsilon 2 a silo (add-or-remove-one, delta 1e-5, PLD), bounds from the study: mean test
accuracy over 5 seeds is at least 0.955. Over 20 seeds the mean was 0.968 and the standard deviation 0.015, so the mean
of 5 seeds is below the claim by chance about once in 30 draws of seeds; with these five, whose splits are fixed, only
the noise varies. The smaller tier runs two seeds and asks for 0.93.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from simulations.ready import read_study
from simulations.run import simulate

SEEDS = (1, 2, 3, 4, 5)
IID = {"simulation.silos": 3, "simulation.partition": "iid", "privacy.epsilon": 2.0}


def test_breast_cancer_at_epsilon_2(tmp_path: Path, scaled: Callable[..., int], full_tier: bool) -> None:
    accuracies = []
    for seed in SEEDS[: scaled(5, 2)]:
        study, base = read_study("breast-cancer", {**IID, "study.seed": seed})
        facts = simulate(study, base, out=tmp_path, with_baselines=False).facts
        assert all(silo["epsilon"] <= 2.0 for silo in facts["silos"])
        accuracies.append(facts["metrics"]["accuracy"])
    assert np.mean(accuracies) >= (0.955 if full_tier else 0.93), accuracies


def test_without_records_of_value_there_is_nothing_to_learn(tmp_path: Path) -> None:
    """The claim's test can fail: with shuffled labels the same study stays far below it."""
    from simulations.datasets.breast_cancer import BreastCancer

    frame = BreastCancer().load()
    shuffled = frame.with_columns(frame["diagnosis"].shuffle(seed=0))
    shuffled.write_csv(tmp_path / "shuffled.csv")
    study, _ = read_study("breast-cancer", {**IID, "simulation.dataset": "shuffled.csv"})
    facts = simulate(study, tmp_path, out=tmp_path, with_baselines=False).facts
    assert facts["metrics"]["accuracy"] < 0.8


def test_the_pooled_baseline_is_a_strong_one(tmp_path: Path) -> None:
    """Logistic regression reaches AUROC .995 on these records (5-fold, all 30 features); the baseline is within .02."""
    study, base = read_study("breast-cancer", {"study.rounds": 1})
    facts = simulate(study, base, out=tmp_path).facts
    assert facts["baselines"]["pooled"]["auroc"] >= 0.975
