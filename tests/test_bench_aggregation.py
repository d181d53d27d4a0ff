"""The benchmark of aggregation compares like with like: both sides are given the same updates and return the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulations.bench import aggregation
from simulations.cli import app
from strategies.base import PerSiloStrategy
from strategies.command import guarded
from strategies.spec import STRATEGIES

NAMED = {"rule", "silos", "parameters", "seconds", "flower_seconds", "peak_bytes"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    done: list[float] = []
    grid = aggregation.Grid(rules=aggregation.RULES, parameters=(3000,), silos=(5, 11))
    found = aggregation.bench(grid, laps=2, tell=lambda text: None, advance=done.append)
    assert len(done) == len(list(grid.cells())) == len(found["rows"])
    return found


def test_every_rule_has_a_row_where_it_has_enough_silos(result: dict[str, Any]) -> None:
    rows = result["rows"]
    assert [row["rule"] for row in rows if row["silos"] == 11] == list(aggregation.RULES)
    assert [row["rule"] for row in rows if row["silos"] == 5] == [r for r in aggregation.RULES if r != "bulyan"]
    for row in rows:
        assert row.keys() >= NAMED
        assert row["seconds"] > 0 and row["copy_ratio"] > 0
        assert (row["flower_seconds"] is None) == (row["rule"] in ("nnm", "geometric_median"))
    assert result["machine"]["versions"]["flwr"] and result["machine"]["load"] >= 0


def test_every_rule_of_each_update_is_measured() -> None:
    of_each = {name for name in STRATEGIES.names() if isinstance(STRATEGIES.resolve(name), PerSiloStrategy)}
    assert set(aggregation.RULES) == of_each | {"mean"}


@pytest.mark.parametrize("silos", [5, 11, 20])
@pytest.mark.parametrize("rule", aggregation.RULES)
def test_both_sides_return_the_same_update(rule: str, silos: int) -> None:
    if silos < aggregation.least_silos(rule):
        return
    bad, updates = aggregation.withstood(rule, silos), aggregation.drawn(2000, silos)
    theirs = aggregation.flowers(rule, updates, bad)
    if theirs is not None:
        assert np.allclose(aggregation.ours(rule, updates, bad)(), theirs(), rtol=1e-4, atol=1e-5)
        if rule not in ("mean", "median") and silos > 5:
            other = aggregation.flowers(rule, updates, bad - 1)
            assert other is not None
            assert rule == "krum" or not np.allclose(theirs(), other(), rtol=1e-4, atol=1e-5)


def test_the_command_prints_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["bench", "aggregation", "--parameters", "500", "--silos", "7", "--laps", "1", "--rule", "bulyan"]
    assert guarded(app, arguments=[*given, "--rule", "mean", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert set(found) == {"machine", "rows"} and len(found["rows"]) == 2 and printed.err == ""
    assert json.loads((tmp_path / "runs/bench/aggregation.json").read_text()) == found
    assert guarded(app, arguments=given) == 0
    shown = capsys.readouterr()
    assert "one update of many" in shown.out and "bulyan, 7 silos, 500 parameters" in shown.err


@pytest.mark.parametrize("wrong", [["--silos", "1"], ["--parameters", "0"], ["--rule", "mediann"]])
def test_what_cannot_be_measured_is_a_usage_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app, arguments=["bench", "aggregation", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_too_few_silos_for_every_rule_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app, arguments=["bench", "aggregation", "--rule", "bulyan", "--silos", "6"]) == 2
    assert "--silos 6 is too few for --rule bulyan; take 7" in capsys.readouterr().err
