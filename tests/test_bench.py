"""Benchmarks run, say what they were run on, and compare what they say they compare.

No figure is asserted here: a busy machine may not fail a test. Oracle: what a step of each engine does to the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from client.training.passes import plan_of
from simulations.bench import memory, training
from simulations.bench.machine import in_turn, ratio
from simulations.bench.networks import networks
from simulations.cli import app
from strategies.command import guarded


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench")
    found = training.bench(names=["mlp"], batches=[16], devices=["cpu"], laps=2, tell=lambda text: None)
    training.write(found, out)
    return {**found, "out": out}


def test_every_engine_has_a_row_with_time_and_memory(result: dict[str, Any]) -> None:
    rows = {row["engine"]: row for row in result["rows"]}
    assert list(rows) == ["plain", "fedsilo", "opacus-hooks", "opacus-ghost", "opacus-ew", "vmap"]
    for row in rows.values():
        assert row["error"] is None and row["ms"] > 0 and row["ratio_to_plain"] > 0 and row["peak_bytes"] > 0
        assert row["process_bytes"] is None or row["process_bytes"] >= 0
        assert (row["network"], row["batch"], row["fell_back"]) == ("mlp", 16, ())
    assert rows["plain"]["ratio_to_plain"] == rows["plain"]["peak_to_plain"] == 1.0


def test_memory_is_that_of_the_tensors_alive_at_once() -> None:
    kept = torch.ones(1000)  # from before: not the step's

    def step() -> None:
        kept.add_(0.0)
        whole = kept[:] + 1.0  # 4,000 bytes
        view = whole[10:]
        pair = view.double(), view.double()  # 7,920 bytes each
        del whole, view, pair
        torch.ones(3000)  # 12,000 alone

    assert memory.of_tensors(step) == 4000 + 2 * 7920


def test_memory_of_a_process_is_what_steps_add_to_it() -> None:
    def make(rows: int) -> Callable[[], object]:
        before = torch.ones(2**22)
        return lambda: torch.ones(rows * 2**20).add_(before[0])  # 4 MiB a row

    found = memory.of_process(make, 12)
    assert found is None or 47 * 2**20 < found < 4 * 48 * 2**20  # an allocator may take another place each time


def test_the_machine_is_named(result: dict[str, Any]) -> None:
    facts = result["machine"]
    assert facts["threads"] == 1 and facts["cores"] >= 1 and facts["processor"]
    assert facts["versions"]["torch"] == torch.__version__ and facts["versions"]["opacus"].startswith("1.6")


def test_figures_and_picture_are_written(result: dict[str, Any]) -> None:
    out: Path = result["out"]
    assert json.loads((out / "training.json").read_text())["rows"] == json.loads(json.dumps(result["rows"]))
    assert "<svg" in (out / "training.svg").read_text()[:600]


@pytest.mark.parametrize("name", networks())
def test_our_form_of_a_network_needs_no_fall_back_and_is_as_large_as_the_plain_one(name: str) -> None:
    network = networks()[name]
    plan = plan_of(network.ours(), network.batch(2)[0])
    assert not plan.by_differentiation and not plan.obstacles and plan.aligned
    sizes = {
        form: sum(p.numel() for p in getattr(network, form)().parameters()) for form in ("plain", "ours", "opacus")
    }
    assert len(set(sizes.values())) == 1, sizes
    x, y = network.batch(3)
    assert network.plain()(x).shape == network.ours()(x).shape == (3, network.shape.outputs) and y.shape == (3,)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_two_forms_of_a_recurrent_network_compute_the_same(name: str) -> None:
    from client.models._recurrence import from_torch

    network = networks()[name]
    plain, ours = network.plain(), network.ours()
    from_torch(ours.stack, plain.states.state_dict())
    ours.head.load_state_dict(plain.head.state_dict())
    x, _ = network.batch(4)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["fedsilo", "opacus-hooks", "opacus-ghost", "opacus-ew", "vmap"])
def test_a_timed_step_clips_adds_noise_and_moves_the_weights(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate of one, weights move by the clipped mean gradient and noise of deviation sigma * C / batch."""
    monkeypatch.setattr(training, "_LR", 1.0)
    made: list[nn.Module] = []
    network = networks()["mlp"]

    def kept() -> nn.Module:
        made.append(network.plain())
        return made[-1]

    watched = type(network)(shape=network.shape, plain=kept, ours=kept, opacus=kept)
    step = training._ENGINES[engine](watched, 8, CPU)
    before = torch.nn.utils.parameters_to_vector(made[0].parameters()).detach().clone()
    step()
    moved = before - torch.nn.utils.parameters_to_vector(made[0].parameters()).detach()
    assert 0.9 < moved.std().item() * 8 < 1.1  # 92,162 values: the sum of clipped gradients is at most 8 / 300 of that
    x, y = network.batch(8)
    rows = []
    for n in range(8):
        twin = network.plain()
        torch.nn.utils.vector_to_parameters(before, twin.parameters())
        F.cross_entropy(twin(x[n : n + 1]), y[n : n + 1]).backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in twin.parameters()]))
    clipped = sum(row * min(1.0, 1.0 / row.norm().item()) for row in rows)
    along = (moved * 8) @ clipped / clipped.norm()
    assert abs(along.item() - clipped.norm().item()) < 6  # noise along one direction has deviation 1


def test_ratios_are_medians_within_laps() -> None:
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0
    calls: list[str] = []
    found = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, laps=2, steps=3)
    assert calls == list("aaabbb" * 3) and {name: len(laps) for name, laps in found.items()} == {"a": 2, "b": 2}


def test_the_command_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app, arguments=["bench", "training", "--network", "lstn"]) == 2
    assert "did you mean 'lstm'?" in capsys.readouterr().err
    assert guarded(app, arguments=["bench", "trainin"]) == 2
    assert "Did you mean 'training'?" in capsys.readouterr().err


def test_the_command_prints_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--network", "mlp", "--batch", "8", "--laps", "1"]
    assert guarded(app, arguments=["bench", "training", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"machine", "rows"} and np.isfinite([row["ratio_to_plain"] for row in found["rows"]]).all()
    assert (tmp_path / "runs/bench/training.svg").exists()
    assert guarded(app, arguments=["bench", "training", *given]) == 0
    shown = capsys.readouterr().out
    assert "opacus-ghost" in shown and "one thread, torch" in shown
