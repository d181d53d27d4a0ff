"""Whole simulated runs: repeatable without privacy, never repeatable with it, honest about faults and budgets.

The ledger's invariant is asserted after every run: what left each silo was reserved and released before it left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import server.folder
from client.silo import Silo
from simulations.run import Outcome, simulate
from simulations.silos import REGISTRIES
from strategies.errors import Refusal, RefusalCode, RunError
from strategies.privacy.accountant import epsilon
from strategies.report.page import render
from strategies.study import Study

STUDY = """
[study]
name = "small"
task = "classification"
rounds = 3
[data]
kind = "tabular"
target = "label"
UNIT
[data.features]
a = { type = "numeric", min = -3, max = 3 }
b = { type = "numeric", min = -3, max = 3 }
[model]
name = "mlp(hidden=[4])"
[training]
sampling_rate = 0.3
steps = 2
[privacy]
PRIVACY
[simulation]
dataset = "records.csv"
silos = 3
MORE
"""
PRIVATE, PLAIN = "noise_multiplier = 4.0", 'mechanism = "none"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 90 records of 30 people in three sites; site `x` has one class, site `tiny` three records."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 90))
    site = np.array(["tiny"] * 3 + ["x"] * 37 + ["y"] * 50)
    label = np.where((a + b > 0) & (site != "x"), "yes", "no")
    pl.DataFrame({"a": a, "b": b, "label": label, "person": np.arange(90) // 3, "site": site}).write_csv(
        tmp_path / "records.csv"
    )
    return tmp_path


def run(
    folder: Path, *, privacy: str = PRIVATE, unit: str = "", more: str = "", fresh: bool = True, baselines: bool = False
) -> Outcome:
    text = STUDY.replace("PRIVACY", privacy).replace("UNIT", unit).replace("MORE", more)
    outcome = simulate(
        Study.parse(text, REGISTRIES), folder, out=folder / "runs", fresh=fresh, with_baselines=baselines
    )
    assert_nothing_left_unrecorded(outcome)
    return outcome


def assert_nothing_left_unrecorded(outcome: Outcome) -> None:
    """I3: every update in the egress log has a reservation before it and a release entry with its run and round."""
    reported = {silo["name"]: silo for silo in outcome.facts["silos"]}
    for folder in outcome.silos:
        silo = Silo.open(folder)
        with silo.ledger() as ledger:
            entries = ledger.entries()
        order = {(entry.run, entry.round, entry.kind): entry.seq for entry in entries}
        sent = [json.loads(line) for line in (folder / "egress.jsonl").read_text().splitlines()]
        mark = "released" if outcome.facts["privacy"]["mechanism"] == "dp-sgd" else "exact"
        released = [line for line in sent if line["privacy"] == mark]
        assert len(released) == sum(entry.kind == "release" for entry in entries)
        for run_id, number, kind in order:
            if kind == "release":
                assert order[run_id, number, "reserve"] < order[run_id, number, "release"]
        run_id = outcome.facts["run"]["id"]
        with silo.ledger() as ledger:
            spent = epsilon(ledger.spent("records", run=run_id), outcome.facts["privacy"]["delta"])
        if outcome.facts["privacy"]["mechanism"] == "dp-sgd":
            assert reported[silo.name]["epsilon"] >= spent, "the server's account is an upper bound"


def model(outcome: Outcome) -> bytes:
    return (outcome.folder / "model.safetensors").read_bytes()


def test_without_privacy_a_seed_fixes_every_bit_and_with_it_none(folder: Path) -> None:
    assert model(run(folder, privacy=PLAIN)) == model(run(folder, privacy=PLAIN))
    assert model(run(folder)) != model(run(folder))


def test_the_page_of_a_run_is_drawn_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(server.folder, "render", lambda facts: drawn.append(facts) or render(facts))
    outcome = run(folder)
    assert len(drawn) == 1 and drawn[0] == outcome.facts
    assert (outcome.folder / "report.html").read_text() == render(outcome.facts)
    assert f"run: {outcome.facts['run']['id']}" in (outcome.folder / "registry.yaml").read_text()
    assert outcome.facts["run"]["model_in"] != outcome.facts["run"]["model_out"]


def test_every_output_of_an_unprotected_run_says_so(folder: Path) -> None:
    outcome = run(folder, privacy=PLAIN)
    assert all(silo["epsilon"] is None for silo in outcome.facts["silos"])
    assert "no differential privacy" in " ".join(outcome.facts["unprotected"])
    assert "without differential privacy" in (outcome.folder / "report.html").read_text()
    lines = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(value is None for line in lines for value in line["epsilon"].values())


def test_people_are_one_unit_in_partition_split_and_claim(folder: Path) -> None:
    outcome = run(folder, unit='unit = "person"\nmax_records_per_unit = 3')
    assert {silo["unit"] for silo in outcome.facts["silos"]} == {"person"}
    owners = [set(pl.read_parquet(path / "data" / "records.parquet")["person"]) for path in outcome.silos]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 30


def test_a_silo_of_one_class_and_one_of_three_records_train_and_warn_at_home_only(folder: Path) -> None:
    outcome = run(folder, more="partition = \"natural(column='site')\"")
    assert [line["dropped"] for line in outcome.facts["rounds"]] == [0, 0, 0]
    logs = {Silo.open(path).name: (path / "logs" / "silo.log").read_text() for path in outcome.silos}
    assert "fewer than" in logs["silo-1"] and "one class" in logs["silo-2"]
    shown = json.dumps(outcome.facts)
    assert "fewer than" not in shown and "one class" not in shown


def test_dropouts_are_counted_charged_and_survived(folder: Path) -> None:
    outcome = run(folder, more="dropout = 0.5\n[cohort]\nmin_silos = 1")
    lines = outcome.facts["rounds"]
    assert 0 < sum(line["dropped"] for line in lines) < sum(line["cohort"] for line in lines)
    assert all(silo["rounds"] == 3 for silo in outcome.facts["silos"])


def test_a_round_with_too_few_survivors_leaves_the_model_as_it_was(folder: Path) -> None:
    outcome = run(folder, more="dropout = 0.999\n[cohort]\nmin_silos = 3")
    assert not any(line["aggregated"] for line in outcome.facts["rounds"])
    assert len({line["loss"] for line in outcome.facts["rounds"]}) == 1


def test_a_silo_with_broken_records_is_refused_while_the_others_go_on(folder: Path) -> None:
    more = "[cohort]\nmin_silos = 2"
    first = run(folder, fresh=False, more=more)
    broken = first.silos[1] / "data" / "records.parquet"
    frame = pl.read_parquet(broken).with_columns(pl.lit(None).cast(pl.String).alias("label"))
    frame.write_parquet(broken)
    os.utime(broken, ns=(1, 1))
    from simulations import run as module

    study = Study.parse(STUDY.replace("PRIVACY", PRIVATE).replace("UNIT", "").replace("MORE", more), REGISTRIES)
    study, _ = module.complete(study, module.read_dataset(study, folder))
    run_folder = module._run_apps(study, first.silos, folder / "runs", "")
    facts = run_folder.report()
    assert [silo["name"] for silo in facts["silos"]] == ["silo-1", "silo-3"]
    assert facts["never_joined"] == ["data"]
    assert "missing or NaN" in (first.silos[1] / "logs" / "silo.log").read_text()


def test_the_budget_of_a_silo_lasts_over_runs_and_then_refuses(folder: Path) -> None:
    done = 0
    with pytest.raises(Refusal) as refusal:
        for _ in range(30):
            run(folder, privacy="epsilon = 3.0", fresh=False)
            done += 1
    assert refusal.value.code is RefusalCode.BUDGET and refusal.value.exit_code == 3
    assert 1 <= done <= 8
    silos = next((folder / "runs" / "silos").iterdir())
    assert "of its 3 rounds would fit" in (silos / "silo-1" / "logs" / "silo.log").read_text()
    assert run(folder, privacy="epsilon = 3.0", fresh=True).facts["run"]["status"] == "complete"


def test_fewer_silos_than_the_study_needs_end_the_run_before_it_starts(folder: Path) -> None:
    with pytest.raises(RunError, match="min_silos"):
        run(folder, more="[cohort]\nmin_silos = 4\nround_timeout_s = 0.1")


def test_baselines_stand_beside_the_result(folder: Path) -> None:
    facts = run(folder, baselines=True).facts
    assert facts["baselines"]["pooled"].keys() == facts["baselines"]["best_local"].keys() == facts["metrics"].keys()
    assert facts["baselines"]["best_silo"] in {"silo-1", "silo-2", "silo-3"}


def test_ctrl_c_leaves_the_finished_rounds_and_says_how_to_go_on(folder: Path) -> None:
    text = (
        STUDY.replace("PRIVACY", PLAIN).replace("UNIT", "").replace("MORE", "").replace("rounds = 3", "rounds = 50000")
    )
    (folder / "study.toml").write_text(text)
    command = [str(Path(sys.executable).parent / "fedsilo-simulate"), "run", "study.toml"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = list(folder.glob("runs/small-*/metrics.jsonl"))
        if lines and lines[0].read_text().count("\n") >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in error
    (run_folder,) = folder.glob("runs/small-*")
    assert str(run_folder.relative_to(folder)) in error and "run the study again" in error
    rounds = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    report = json.loads((run_folder / "report.json").read_text())
    assert report["run"]["status"] == "interrupted" and report["run"]["rounds_done"] == len(rounds) >= 3
    assert (run_folder / "model.safetensors").exists() and "interrupted" in (run_folder / "report.html").read_text()
