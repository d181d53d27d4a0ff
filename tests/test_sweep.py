"""The results table: its rows are real runs, its numbers are those runs' mean and standard deviation."""

from __future__ import annotations

import json
import pickle
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from simulations import sweep as sweeping
from simulations.sweep import Row, Table, markdown, shown, sweep, write
from strategies.errors import DataError, FedsiloError, Problem, Refusal, RefusalCode, RunError, StudyError
from strategies.sections import Mechanism
from strategies.study import Study, override

STUDY = """
[study]
name = "small"
task = "classification"
rounds = 1
[data]
kind = "tabular"
target = "label"
[data.features]
a = { type = "numeric", min = -3, max = 3 }
[model]
name = "logistic()"
[training]
sampling_rate = 0.5
steps = 2
[privacy]
noise_multiplier = 2.0   # replaced in every row
[evaluation]
metrics = ["accuracy", "brier"]
[simulation]
dataset = "records.csv"
silos = 3
partition = "iid"
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Path, list[str]]:
    folder = tmp_path_factory.mktemp("sweep")
    a = np.random.default_rng(0).normal(size=120)
    pl.DataFrame({"a": a, "label": np.where(a > 0, "yes", "no")}).write_csv(folder / "records.csv")
    (folder / "study.toml").write_text(STUDY)
    told: list[str] = []
    (table,) = sweep(
        [str(folder / "study.toml")],
        epsilons=(1.0, 8.0),
        seeds=(1, 2),
        overrides={},
        out=folder / "runs",
        tell=told.append,
    )
    return table, folder, told


def test_the_rows_go_from_pooled_to_the_smallest_epsilon(swept: tuple[Table, Path, list[str]]) -> None:
    table, _, told = swept
    assert [row.setting for row in table.rows] == [
        "pooled, no privacy",
        "best lone silo, no privacy",
        "federated, no privacy",
        "federated, epsilon 8",
        "federated, epsilon 1",
    ]
    assert [row.epsilon for row in table.rows] == [None, None, None, 8.0, 1.0]
    assert (
        len(told) == 6
        and told[-1].startswith("6 of 6: ")
        and table.seeds == (1, 2)
        and table.metrics == ("accuracy", "brier")
    )


def test_every_number_is_that_of_a_run(swept: tuple[Table, Path, list[str]]) -> None:
    table, folder, _ = swept
    reports = [json.loads(path.read_text()) for path in (folder / "runs").glob("small-*/report.json")]
    assert len(reports) == 4 + 2 * 2  # without privacy with two optimisers
    for row in table.rows[2:]:
        mine = [r["metrics"] for r in reports if r["privacy"]["target_epsilon"] == row.epsilon]
        ours = list(zip(row.values["accuracy"], row.values["brier"], strict=True))
        theirs = [(metrics["accuracy"], metrics["brier"]) for metrics in mine]
        assert set(ours) <= set(theirs) and (row.epsilon is None or sorted(ours) == sorted(theirs))
        assert row.mean["accuracy"] == pytest.approx(statistics.fmean(row.values["accuracy"]))
        assert row.sd["brier"] == pytest.approx(statistics.stdev(row.values["brier"]))
    assert all(
        r["silos"][0]["epsilon"] <= r["privacy"]["target_epsilon"] for r in reports if r["privacy"]["target_epsilon"]
    )


def test_the_files_hold_the_table(swept: tuple[Table, Path, list[str]], tmp_path: Path) -> None:
    table, _, _ = swept
    folder = write([table, table], tmp_path)
    (first, second) = json.loads((folder / "table.json").read_text())
    assert first == second and [row["setting"] for row in first["rows"]] == [row.setting for row in table.rows]
    assert (folder / "table.md").read_text().count("| federated, epsilon 1 |") == 2
    assert (folder / "utility.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_metric_that_a_seed_does_not_define_has_no_mean() -> None:
    values = {"auroc": [0.9, None], "brier": [0.2, 0.1]}
    row = Row(
        setting="x", epsilon=None, mean={"auroc": None, "brier": 0.15}, sd={"auroc": None, "brier": 0.07}, values=values
    )
    table = Table(study="s", model="m()", delta=1e-5, unit="u", metrics=("auroc", "brier"), seeds=(1, 2), rows=(row,))
    assert "| x | - | 0.150 ± 0.070 |" in markdown(table)
    assert shown(Row(setting="x", epsilon=None, mean={"a": 0.5}, sd={"a": None}, values={}), "a") == "0.500"


def test_an_override_without_a_value_removes_the_key() -> None:
    text = override(STUDY, {"privacy.noise_multiplier": None, "privacy.epsilon": 3.0, "privacy.delta": None})
    assert "noise_multiplier" not in text and "epsilon = 3.0" in text and "delta" not in text


def test_mechanisms_are_compared_at_equal_epsilon(tmp_path: Path) -> None:
    a = np.random.default_rng(0).normal(size=120)
    pl.DataFrame({"a": a, "label": np.where(a > 0, "yes", "no")}).write_csv(tmp_path / "records.csv")
    (tmp_path / "study.toml").write_text(STUDY)
    asked: list[Mechanism] = ["dp-sgd", "local-gaussian", "distributed-gaussian", "central-gaussian"]
    values = {"epsilons": (8.0,), "mechanisms": asked, "seeds": (1,), "overrides": {}, "out": tmp_path / "runs"}
    (table,) = sweep([str(tmp_path / "study.toml")], **values, tell=lambda _: None)  # type: ignore[arg-type]
    assert [row.setting for row in table.rows[3:]] == [
        "federated, dp-sgd (trusts nobody), epsilon 8",
        "federated, local-gaussian (trusts nobody), epsilon 8",
        "federated, distributed-gaussian (trusts the masks), epsilon 8",
        "federated, central-gaussian (trusts the server), epsilon 8",
    ]
    reports = {
        facts["privacy"]["mechanism"]: facts
        for path in (tmp_path / "runs").rglob("report.json")
        if (facts := json.loads(path.read_text()))
    }
    for row, mechanism in zip(table.rows[3:], asked, strict=True):
        facts = reports[mechanism]
        assert (row.mechanism, row.epsilon) == (mechanism, 8.0) and facts["privacy"]["target_epsilon"] == 8.0
        assert all(7.9 < silo["epsilon"] <= 8 for silo in facts["silos"])
        assert row.values == {name: [facts["metrics"][name]] for name in table.metrics}
    assert (write([table], tmp_path) / "utility.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_is_wrong_is_told_before_the_first_run(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "study.toml").write_text(STUDY)
    with pytest.raises(StudyError, match=r"privacy.epsilon = -1"):
        sweep(
            [str(tmp_path / "study.toml")],
            epsilons=(8.0, -1.0),
            seeds=(1,),
            overrides={},
            out=tmp_path,
            tell=told.append,
        )
    assert told == []


def test_runs_in_processes_of_their_own_fill_the_same_table(
    swept: tuple[Table, Path, list[str]], tmp_path: Path
) -> None:
    one, folder, _ = swept
    other = tmp_path / "other.toml"
    text = STUDY.replace('name = "small"', 'name = "other"').replace("records.csv", str(folder / "records.csv"))
    other.write_text(text)
    told: list[str] = []
    both = sweep(
        [str(folder / "study.toml"), str(other)],
        epsilons=(),
        seeds=(2,),
        overrides={},
        out=tmp_path / "runs",
        tell=told.append,
        workers=2,
    )
    assert len(told) == 2 and [table.study for table in both] == ["small", "other"]
    for table in both:
        assert [row.setting for row in table.rows] == [row.setting for row in one.rows[:3]]
        for row, same in zip(table.rows, one.rows[:3], strict=True):  # without noise, so equal
            assert row.values == {name: values[1:] for name, values in same.values.items()}


@pytest.mark.parametrize(
    ("own", "plain", "counts"), [(0.9, 0.8, 0.9), (0.7, 0.8, 0.8), ("diverges", 0.8, 0.8), (0.9, "diverges", 0.9)]
)
def test_without_privacy_the_better_optimiser_counts(
    own: float | str,
    plain: float | str,
    counts: float,
    swept: tuple[Table, Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def simulated(run: Any, study: Study, base: Path, *, with_baselines: bool = False) -> dict[str, Any]:
        value = own if study.file.training.optimizer.startswith("sgd") else plain
        if value == "diverges":
            raise RunError("local training left the range of numbers")
        baselines = {name: {"accuracy": 0.99, "brier": 0.1} for name in ("pooled", "best_local")}
        return {"metrics": {"accuracy": value, "brier": 0.2}, "baselines": baselines if with_baselines else None}

    monkeypatch.setattr(sweeping, "_simulated", simulated)
    _, folder, _ = swept
    (table,) = sweep(
        [str(folder / "study.toml")], epsilons=(), seeds=(1,), overrides={}, out=folder, tell=lambda _: None
    )
    assert [row.values["accuracy"] for row in table.rows] == [[0.99], [0.99], [counts]]


@pytest.mark.parametrize(
    "error",
    [
        Refusal(RefusalCode.BUDGET, "it does not fit"),
        StudyError([Problem(sentence="a = 1 is not allowed", line=3)], source="mine.toml"),
        DataError("row 3"),
        RunError("too few"),
    ],
)
def test_errors_cross_processes(error: FedsiloError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_what_fails_in_a_process_is_told_and_ends_the_sweep(swept: tuple[Table, Path, list[str]]) -> None:
    _, folder, _ = swept
    values = {"epsilons": (8.0,), "seeds": (1,), "overrides": {"data.target": "labl"}, "out": folder, "workers": 2}
    with pytest.raises(DataError, match="labl"):
        sweep([str(folder / "study.toml")], **values, tell=lambda _: None)  # type: ignore[arg-type]
