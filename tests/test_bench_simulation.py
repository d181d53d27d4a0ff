"""The benchmark of engines runs whole simulations in turns, and its yardstick is FedAvg.

No figure is asserted here: time is for `fedsilo-simulate bench simulation`, whose figures stand in RESULTS.md.
Oracle of the yardstick: torch.optim.SGD on copies of the module, and their mean.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from client.models.base import Shape, build, flat_parameters
from simulations.bench import lap, simulation
from simulations.cli import app
from strategies.command import guarded
from strategies.errors import RunError

NAMED = {"network", "engine", "seconds_per_round", "startup_s", "speed_vs_loop", "peak_bytes"}
SIZE = simulation.Size(silos=4, cohort=3, rounds=2)


def test_every_way_has_a_row() -> None:
    told: list[str] = []
    done: list[float] = []
    found = simulation.bench(("mlp",), ("inline",), SIZE, laps=1, tell=told.append, advance=done.append)
    loop, inline = found["rows"]
    assert told == ["mlp, loop, lap 1", "mlp, inline, lap 1"] and sum(done) == 2
    assert (loop["engine"], inline["engine"]) == ("loop", "inline")
    for row in found["rows"]:
        assert row.keys() >= NAMED and len(row["seconds"]) == 1 and row["parameters"] == 30 * 64 + 64 + 64 + 1
        assert all(np.isfinite(row[name]) and row[name] > 0 for name in NAMED - {"network", "engine"})
    assert loop["speed_vs_loop"] == 1 and not loop["beside"] and "ledger" in inline["beside"]
    assert inline["speed_vs_loop"] == pytest.approx(loop["seconds_per_round"] / inline["seconds_per_round"])
    assert [len(line) for line in simulation.table_rows(found)] == [len(simulation.COLUMNS)] * 2


@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_the_yardstick_is_fedavg(name: str) -> None:
    task, study = lap.TASKS[name], lap.study_of(name, silos=4, cohort=3, rounds=2, private=False)
    shape = Shape.of_study(study)
    model = build(study.model, shape, 0) if task.plain is None else task.plain(shape)
    expected, records = copy.deepcopy(model), list(zip(*lap._tensors(task, 4), strict=True))
    flat = lap.flat_vectors(model)
    here = flat[0].clone()
    for cohort in (records[:3], records[1:]):
        lap.fedavg(model, flat, here, cohort)
        trained = [trained_by_torch(copy.deepcopy(expected), x, y) for x, y in cohort]
        for parameter, *each in zip(expected.parameters(), *trained, strict=True):
            parameter.data.copy_(torch.stack(each).mean(0))
        torch.testing.assert_close(here, flat_parameters(copy.deepcopy(expected)), rtol=1e-5, atol=1e-6)


def trained_by_torch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lap.LR)
    for rows in (slice(0, 16), slice(16, 32)):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows]).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_the_yardstick_runs_as_many_rounds_on_one_thread_as_on_two() -> None:
    ended = lap.loop("mlp", silos=4, cohort=3, rounds=3)
    assert {threads: len(times) for threads, times in ended.items()} == {"1": 4, "2": 4}
    assert all(times == sorted(times) for times in ended.values())
    torch.set_num_threads(1)


def test_the_command_prints_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[dict[str, Any]] = []

    def run(command: list[str]) -> tuple[str, int]:
        asked.append(json.loads(command[-1]))
        ended = [1.0, 2.0, 3.0] if asked[-1]["way"] == "loop" else [5.0, 9.0, 13.0]
        return "words of a library\n" + json.dumps({"made_s": 0.0, "ended": {"1": ended}}), 10**6

    monkeypatch.setattr(simulation, "_run", run)
    given = ["bench", "simulation", "--network", "mlp", "--engine", "pool", "--rounds", "2", "--private"]
    assert guarded(app, arguments=[*given, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert set(found) == {"machine", "rows"} and printed.err == ""
    assert json.loads((tmp_path / "runs/bench/simulation.json").read_text()) == found
    assert [(one["way"], one["network"], one["rounds"]) for one in asked] == [
        ("loop", "mlp", 3),
        ("pool", "mlp", 3),
    ] * 2
    loop, pool = found["rows"]
    assert (loop["private"], pool["private"]) == (False, True)
    assert (loop["seconds_per_round"], pool["seconds_per_round"], pool["speed_vs_loop"]) == (1.0, 4.0, 0.25)
    assert guarded(app, arguments=given) == 0
    assert "a round of a simulation" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [["--network", "mpl"], ["--engine", "batched"], ["--cohort", "60"], ["--silos", "1"], ["--laps", "0"]]
)
def test_what_cannot_be_measured_is_a_usage_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app, arguments=["bench", "simulation", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_lap_that_fails_says_why() -> None:
    with pytest.raises(RunError, match=r"a lap ended with 1: .*no such network"):
        simulation._run(["/bin/sh", "-c", "echo no such network >&2; exit 1"])
