"""Laws of the clipped sum: the only place where records turn into numbers that may leave.

Oracle: one unit after the other through `torch.autograd.grad` in float64, mean over its records, one clip (Abadi et
al. 2016, algorithm 1). Sensitivity: with any rows and any weights, a unit's presence moves the sum by at most
`clip_norm`, and the sum is finite.
"""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.models import base
from client.models.base import MODELS, Model, Shape, build, layout_of, load_weights
from client.training.gradients import clipped_sum, mean_gradient
from client.training.losses import row_loss
from strategies.errors import SettingError

SMALL = {"mlp": "mlp(hidden=[7, 3])"}
SPECS = [SMALL.get(name, name) for name in MODELS.names()]
INPUTS = (6,)
TASKS = {"two classes": Shape(inputs=INPUTS, outputs=1, task="classification"),
         "three classes": Shape(inputs=INPUTS, outputs=3, task="classification"),
         "regression": Shape(inputs=INPUTS, outputs=1, task="regression")}
LOOSE = 1 + 1e-5  # what rounding may add to a sensitivity


def model_of(spec: str, shape: Shape, scale: float = 0.5) -> nn.Module:
    module = build(MODELS.resolve(spec), shape, 0)
    size = layout_of(module).size
    load_weights(module, np.random.default_rng(1).normal(0, scale, size).astype(np.float32))
    return module


def rows_of(shape: Shape, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(0, 1.5, (count, *shape.inputs)).astype(np.float32))
    if shape.task == "regression":
        return x, torch.from_numpy(random.normal(0, 2, count).astype(np.float32))
    return x, torch.from_numpy(random.integers(0, max(shape.outputs, 2), count))


def one_by_one(module: nn.Module, shape: Shape, batch, units, clip_norm: float) -> np.ndarray:
    """The oracle; gives the module back in float32."""
    loss, parameters = row_loss(shape), dict(module.double().named_parameters())
    ordered = [parameters[slot.name] for slot in layout_of(module).slots]
    total = np.zeros(layout_of(module).size)
    for unit in set(units.tolist()):
        gradients = []
        for row in np.flatnonzero(units == unit):
            x, y = batch[0][row : row + 1].double(), batch[1][row : row + 1]
            parts = torch.autograd.grad(loss(module(x), y)[0], ordered)
            gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
        mean = np.mean([g if np.isfinite(g).all() else 0 * total for g in gradients], axis=0)
        total += mean * min(1.0, clip_norm / max(np.linalg.norm(mean), 1e-300))
    module.float()
    return total


def without(sum_of, rows, lanes=None):
    """Return `sum_of(rows)` with each row in its own lane whichever other rows are there: the sensitivity is that of
    the sum given the lanes, which are drawn independently of all records."""
    lanes = np.arange(len(rows)) % 4 if lanes is None else lanes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "_random_lanes", lambda count: lanes[rows].astype(np.uint8))
        return sum_of(rows)


def close(actual: np.ndarray, expected: np.ndarray, relative: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * np.abs(expected).max(initial=1e-30))


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6], ids=["all clipped", "some clipped", "none clipped"])
@pytest.mark.parametrize("units", [np.arange(20) * 3 - 7, np.arange(20) % 5, np.repeat([4, 2], [19, 1])],
                         ids=["one row a unit", "four rows a unit", "19 rows and 1"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_loop_over_units(spec, task, units, clip_norm):
    shape = TASKS[task]
    module, batch = model_of(spec, shape), rows_of(shape, 20)
    ours = clipped_sum(module, row_loss(shape), batch, units, clip_norm)
    close(ours, one_by_one(module, shape, batch, units, clip_norm))
    assert ours.dtype == np.float64


@pytest.mark.parametrize("spec", SPECS)
def test_without_clipping_it_is_the_mean_gradient(spec):
    shape = TASKS["three classes"]
    module, batch, units = model_of(spec, shape), rows_of(shape, 12), np.arange(12) % 5
    close(clipped_sum(module, row_loss(shape), batch, units, 1e9),
          mean_gradient(module, row_loss(shape), batch, units))


@pytest.mark.parametrize("spec", SPECS)
def test_a_unit_with_50_records_moves_the_sum_by_clip_norm_and_no_more(spec):
    shape, clip_norm = TASKS["regression"], 0.3
    module, (x, y) = model_of(spec, shape), rows_of(shape, 55)
    y[5:] += 1000  # all 50 pull the same way, far beyond the clip norm
    units = np.concatenate([np.arange(5), np.full(50, 99)])
    with_unit = clipped_sum(module, row_loss(shape), (x, y), units, clip_norm)
    without = clipped_sum(module, row_loss(shape), (x[:5], y[:5]), units[:5], clip_norm)
    assert 0.99 * clip_norm < np.linalg.norm(with_unit - without) <= clip_norm * LOOSE


ODD = st.sampled_from([0.0, 1.0, -1.0, 1e-30, -1e-45, 1e30, -1e30, 3.4e38, -3.4e38, float("nan"), float("inf"), 0.5])


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data())
def test_sensitivity_with_adversarial_rows(spec, data):
    shape = TASKS[data.draw(st.sampled_from(sorted(TASKS)))]
    count = data.draw(st.integers(1, 12))
    rows = st.one_of(st.lists(ODD, min_size=6, max_size=6), ODD.map(lambda value: [value] * 6))
    x = torch.tensor(data.draw(st.lists(rows, min_size=count, max_size=count)), dtype=torch.float32)
    if shape.task == "regression":
        y = torch.tensor(data.draw(st.lists(ODD, min_size=count, max_size=count)), dtype=torch.float32)
    else:
        top = max(shape.outputs, 2) - 1
        y = torch.tensor(data.draw(st.lists(st.integers(0, top), min_size=count, max_size=count)))
    units = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    module, loss, clip_norm = model_of(spec, shape), row_loss(shape), 0.7
    total = clipped_sum(module, loss, (x, y), units, clip_norm)
    assert np.isfinite(total).all()
    for unit in set(units.tolist()):
        rest = units != unit
        without = clipped_sum(module, loss, (x[rest], y[rest]), units[rest], clip_norm)
        assert np.isfinite(without).all()
        assert np.linalg.norm(total - without) <= clip_norm * LOOSE


def test_the_mean_of_largest_finite_rows_stays_finite(scaled):
    """Found: the float32 mean of 10 rows at the largest finite value is infinite, and infinity times 0 is NaN."""
    shape = TASKS["regression"]
    module = build(MODELS.resolve("logistic()"), shape, 0)
    for count in range(1, scaled(300, least=60)):
        x = torch.full((count, *INPUTS), torch.finfo(torch.float32).max)
        total = clipped_sum(module, row_loss(shape), (x, torch.ones(count)), np.zeros(count, np.int64), 1.0)
        assert np.linalg.norm(total) <= LOOSE


@pytest.mark.parametrize("width", [31, 60])
def test_sensitivity_with_weights_that_blow_up_rounding(width, scaled):
    """Found: a server that sends weights orthogonal to the rows, times 1e9, made one unit's absence move the sum by
    2.2 clip norms, because the last rows of a matrix product are rounded in another way."""
    shape = Shape(inputs=(width,), outputs=1, task="classification")
    module, loss = build(MODELS.resolve("logistic()"), shape, 0), row_loss(shape)
    random = np.random.default_rng(0)
    for _ in range(scaled(100)):
        count = int(random.integers(2, min(40, width)))
        x = random.uniform(-1.7, 1.7, (count, width)).astype(np.float32)
        orthogonal = np.linalg.svd(x.astype(np.float64))[2][-1] * 1e9
        load_weights(module, np.concatenate([[0.0], orthogonal]).astype(np.float32))
        batch, units = (torch.from_numpy(x), torch.zeros(count, dtype=torch.int64)), np.arange(count)
        total = clipped_sum(module, loss, batch, units, 1.0)
        for unit in range(count):
            rest = units != unit
            without = clipped_sum(module, loss, (batch[0][rest], batch[1][rest]), units[rest], 1.0)
            assert np.linalg.norm(total - without) <= LOOSE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("units", [np.arange(9), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])], ids=["own unit", "shared unit"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_row_that_is_not_finite_contributes_zero(spec, units, bad):
    shape = TASKS["two classes"]
    module, (x, y) = model_of(spec, shape), rows_of(shape, 9)
    x[4, 2] = bad
    ours = clipped_sum(module, row_loss(shape), (x, y), units, 0.4)
    close(ours, one_by_one(module, shape, (x, y), units, 0.4))
    assert np.isfinite(ours).all() and np.linalg.norm(ours) > 0


@pytest.mark.parametrize("sum_of", [lambda *a: clipped_sum(*a, 1.0), mean_gradient], ids=["clipped", "plain"])
@pytest.mark.parametrize("spec", SPECS)
def test_an_empty_batch_gives_zeros(spec, sum_of):
    shape = TASKS["two classes"]
    module, (x, y) = model_of(spec, shape), rows_of(shape, 3)
    total = sum_of(module, row_loss(shape), (x[:0], y[:0]), np.zeros(0, np.int64))
    np.testing.assert_array_equal(total, np.zeros(layout_of(module).size))


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("spec", SPECS)
def test_a_unit_does_not_depend_on_the_other_rows(spec, count):
    shape = TASKS["three classes"]
    module, (x, y), loss = model_of(spec, shape), rows_of(shape, 40), row_loss(shape)
    alone = clipped_sum(module, loss, (x[:1], y[:1]), np.array([5]), 0.5)
    others = np.arange(100, 99 + count)
    whole = clipped_sum(module, loss, (x[:count], y[:count]), np.concatenate([[5], others]), 0.5)
    rest = clipped_sum(module, loss, (x[1:count], y[1:count]), others, 0.5)
    np.testing.assert_allclose(whole - rest, alone, atol=1e-6)


def test_repeated_calls_neither_accumulate_nor_keep_the_model_alive():
    shape = TASKS["two classes"]
    module, batch, units = model_of(SPECS[-1], shape), rows_of(shape, 9), np.arange(9)
    first, second, third = (clipped_sum(module, row_loss(shape), batch, units, 0.5) for _ in range(3))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    mean_gradient(module, row_loss(shape), batch, units)
    np.testing.assert_array_equal(first, clipped_sum(module, row_loss(shape), batch, units, 0.5))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None  # every round builds a model: found that each was kept for ever


@pytest.mark.parametrize("mixing", [nn.BatchNorm1d(6), nn.SyncBatchNorm(6), nn.LazyBatchNorm1d()], ids=lambda m: type(m).__name__)
def test_batch_norm_is_refused(mixing):
    class Mixing(Model):
        def build(self, shape: Shape) -> nn.Module:
            return nn.Sequential(mixing, nn.Linear(6, 1))

    with pytest.raises(SettingError, match=f"'0' is {type(mixing).__name__}, which mixes the records"):
        base.build(Mixing(), TASKS["two classes"], 0)
