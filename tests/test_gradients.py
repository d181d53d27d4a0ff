"""Laws of the clipped sum: the only place where records turn into numbers that may leave.

Oracle: one unit after the other through `torch.autograd.grad` in float64, mean over its records, one clip (Abadi et
al. 2016, algorithm 1). Sensitivity: with any rows and any weights, a unit's presence moves the sum by at most
`clip_norm`, and the sum is finite.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.models.base import MODELS, Model, Shape, build, layout_of, load_weights
from client.training import gradients
from client.training.losses import row_loss
from strategies.errors import SettingError


def clipped_sum(*arguments: Any) -> np.ndarray:
    return gradients.clipped_sum(*arguments).numpy()


def mean_gradient(*arguments: Any) -> np.ndarray:
    return gradients.mean_gradient(*arguments).numpy()


SMALL = {"mlp": "mlp(hidden=[7, 3])", "ft_transformer": "ft_transformer(width=8, depth=1, heads=2)"}
SPECS = [SMALL.get(name, name) for name in MODELS.names() if "tabular" in MODELS.member(name).kinds]
WIDTH = 6
SHAPES = {
    "two classes": Shape(inputs=(WIDTH,), outputs=1, task="classification"),
    "three classes": Shape(inputs=(WIDTH,), outputs=3, task="classification"),
    "regression": Shape(inputs=(WIDTH,), outputs=1, task="regression"),
}
OTHERS = {  # every architecture that takes no tables
    "cnn(width=4, depth=2)": Shape(inputs=(1, 8, 8), outputs=3, task="classification", kind="images"),
    "vit(width=8, depth=1, heads=2)": Shape(inputs=(1, 8, 8), outputs=3, task="classification", kind="images"),
    "cnn1d(width=4, depth=2)": Shape(inputs=(20, 3), outputs=3, task="classification", kind="signals"),
    "lstm(hidden=6)": Shape(inputs=(9, 4), outputs=3, task="classification", kind="sequences"),
    "gru(hidden=6, bidirectional=true)": Shape(inputs=(9, 4), outputs=3, task="classification", kind="sequences"),
    "transformer(width=8, depth=1, heads=2)": Shape(inputs=(9, 4), outputs=3, task="classification", kind="sequences"),
    "text_transformer(width=8, depth=1, heads=2)": Shape(
        inputs=(9,), outputs=3, task="classification", kind="text", vocabulary=20
    ),
}
LOOSE = 1 + 1e-5  # what rounding may add to a sensitivity


def model_of(spec: str, shape: Shape) -> nn.Module:
    module = build(MODELS.resolve(spec), shape, 0)
    load_weights(module, np.random.default_rng(1).normal(0, 0.5, layout_of(module).size).astype(np.float32))
    return module


def rows_of(shape: Shape, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(0, 1.5, (count, *shape.inputs)).astype(np.float32))
    if shape.kind == "text":
        x = torch.from_numpy(random.integers(0, shape.vocabulary, (count, *shape.inputs)))
    if shape.masked:
        x[..., -1] = torch.arange(shape.inputs[0]) < torch.from_numpy(random.integers(0, 10, (count, 1)))
    if shape.task == "regression":
        return x, torch.from_numpy(random.normal(0, 2, count).astype(np.float32))
    return x, torch.from_numpy(random.integers(0, max(shape.outputs, 2), count))


def one_by_one(
    spec: str, shape: Shape, batch: tuple[torch.Tensor, torch.Tensor], units: np.ndarray, clip_norm: float
) -> np.ndarray:
    """The oracle."""
    module, loss = model_of(spec, shape).double(), row_loss(shape)
    parameters = dict(module.named_parameters())
    ordered = [parameters[name] for name in sorted(parameters)]
    total = np.zeros(sum(p.numel() for p in ordered))
    for unit in set(units.tolist()):
        mean = np.zeros_like(total)
        for row in np.flatnonzero(units == unit):
            x_1 = batch[0][row : row + 1]
            value = loss(module(x_1.double() if x_1.is_floating_point() else x_1), batch[1][row : row + 1])[0]
            row_gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, ordered)]).numpy()
            if np.isfinite(row_gradient).all():
                mean += row_gradient / np.count_nonzero(units == unit)
        norm = np.linalg.norm(mean)
        total += mean if norm <= clip_norm else mean * clip_norm / norm
    return total


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(initial=0))


def largest_change(
    module: nn.Module, shape: Shape, batch: tuple[torch.Tensor, torch.Tensor], units: np.ndarray, clip_norm: float
) -> float:
    """Return by how much the sum moves at most when one unit is taken away.

    The sum depends on lanes that rows draw for themselves; so the two sums are compared with the same draw.
    """

    def total(rows: np.ndarray) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gradients, "_random_lanes", lambda count: (rows % 4).astype(np.uint8))
            found = clipped_sum(module, row_loss(shape), (batch[0][rows], batch[1][rows]), units[rows], clip_norm)
        assert np.isfinite(found).all()
        return found

    whole = total(np.arange(len(units)))
    return max(float(np.linalg.norm(whole - total(np.flatnonzero(units != unit)))) for unit in set(units.tolist()))


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6], ids=["all clipped", "some clipped", "none clipped"])
@pytest.mark.parametrize(
    "units",
    [np.arange(20) * 3 - 7, np.arange(20) % 5, np.repeat([4, 2], [19, 1])],
    ids=["one row a unit", "four rows a unit", "19 rows and 1"],
)
@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_loop_over_units(spec: str, task: str, units: np.ndarray, clip_norm: float) -> None:
    shape, batch = SHAPES[task], rows_of(SHAPES[task], 20)
    ours = clipped_sum(model_of(spec, shape), row_loss(shape), batch, units, clip_norm)
    assert_close(ours, one_by_one(spec, shape, batch, units, clip_norm))


@pytest.mark.parametrize("spec", SPECS)
def test_without_clipping_it_is_the_mean_gradient(spec: str) -> None:
    shape, batch = SHAPES["three classes"], rows_of(SHAPES["three classes"], 12)
    units, loss = np.arange(12) % 5, row_loss(shape)
    assert_close(
        clipped_sum(model_of(spec, shape), loss, batch, units, 1e9),
        mean_gradient(model_of(spec, shape), loss, batch, units),
    )


@pytest.mark.parametrize("spec", SPECS)
def test_a_unit_with_50_records_moves_the_sum_by_clip_norm_and_no_more(spec: str) -> None:
    shape, clip_norm = SHAPES["regression"], 0.3
    x, y = rows_of(shape, 55)
    y[5:] += 1000  # all 50 pull the same way, far beyond the clip norm
    units = np.concatenate([np.arange(5), np.full(50, 99)])
    assert (
        0.99 * clip_norm < largest_change(model_of(spec, shape), shape, (x, y), units, clip_norm) <= clip_norm * LOOSE
    )


ODD = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-30, -1e-45, 1e30, -1e30, 3.4e38, -3.4e38, float("nan"), float("inf")])


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data())
def test_sensitivity_with_adversarial_rows(spec: str, data: st.DataObject) -> None:
    shape, count = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))], data.draw(st.integers(1, 12))

    def drawn(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=count, max_size=count))

    rows = st.one_of(st.lists(ODD, min_size=WIDTH, max_size=WIDTH), ODD.map(lambda value: [value] * WIDTH))
    x = torch.tensor(drawn(rows), dtype=torch.float32)
    if shape.task == "regression":
        y = torch.tensor(drawn(ODD), dtype=torch.float32)
    else:
        y = torch.tensor(drawn(st.integers(0, max(shape.outputs, 2) - 1)))
    units = np.array(drawn(st.integers(0, 3)))
    assert largest_change(model_of(spec, shape), shape, (x, y), units, 0.7) <= 0.7 * LOOSE


@pytest.mark.parametrize(
    ("spec", "width", "outputs"), [("logistic", 60, 1), ("logistic", 31, 3), ("mlp(hidden=[7])", 31, 1)]
)
def test_sensitivity_with_weights_that_blow_up_rounding(
    spec: str, width: int, outputs: int, scaled: Callable[..., int]
) -> None:
    """Found: a server that sends weights orthogonal to the rows, times 1e9, made one unit's absence move the sum by
    2.2 clip norms, because the last rows of a matrix product are rounded in another way."""
    shape, random = Shape(inputs=(width,), outputs=outputs, task="classification"), np.random.default_rng(0)
    for _ in range(scaled(100)):
        count = int(random.integers(2, min(40, width)))
        x = random.uniform(-1.7, 1.7, (count, width)).astype(np.float32)
        orthogonal = torch.from_numpy(np.linalg.svd(x.astype(np.float64))[2][-1] * 1e9)
        module = model_of(spec, shape)
        for name, parameter in module.named_parameters():
            if name.startswith("1."):
                parameter.data.copy_(orthogonal.expand(parameter.shape) if parameter.ndim == 2 else 0 * parameter)
        batch, units = (torch.from_numpy(x), torch.zeros(count, dtype=torch.int64)), np.arange(count)
        assert largest_change(module, shape, batch, units, 1.0) <= LOOSE


def test_every_architecture_is_bounded_here() -> None:
    assert set(MODELS.names()) == {spec.split("(")[0] for spec in (*SPECS, *OTHERS)}


@pytest.mark.parametrize("scale", [0.5, 5.0, 500.0])
@pytest.mark.parametrize("units", [np.arange(19), np.arange(19) % 5], ids=["one row a unit", "four rows a unit"])
@pytest.mark.parametrize("spec", OTHERS)
def test_the_sensitivity_of_every_architecture(
    spec: str, units: np.ndarray, scale: float, scaled: Callable[..., int]
) -> None:
    """Large weights blow rounding up: a kernel whose result for a row depended on the other rows would show."""
    shape = OTHERS[spec]
    for seed in range(scaled(20)):
        module = build(MODELS.resolve(spec), shape, 0)
        random = np.random.default_rng(seed)
        load_weights(module, random.normal(0, scale, layout_of(module).size).astype(np.float32))
        assert largest_change(module, shape, rows_of(shape, len(units)), units, 0.7) <= 0.7 * LOOSE


def test_the_mean_of_largest_finite_rows_stays_finite(scaled: Callable[..., int]) -> None:
    """Found: the float32 mean of 10 rows at the largest finite value is infinite, and infinity times 0 is NaN."""
    shape = SHAPES["regression"]
    module = build(MODELS.resolve("logistic"), shape, 0)
    for count in range(1, scaled(300, least=60)):
        x = torch.full((count, WIDTH), torch.finfo(torch.float32).max)
        total = clipped_sum(module, row_loss(shape), (x, torch.ones(count)), np.zeros(count, np.int64), 1.0)
        assert np.linalg.norm(total) <= LOOSE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("units", [np.arange(9), np.arange(9) // 3], ids=["own unit", "shared unit"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_row_that_is_not_finite_contributes_zero(spec: str, units: np.ndarray, bad: float) -> None:
    shape = SHAPES["regression"]
    x, y = rows_of(shape, 9)
    x[4, 2] = y[7] = bad
    ours = clipped_sum(model_of(spec, shape), row_loss(shape), (x, y), units, 0.4)
    assert_close(ours, one_by_one(spec, shape, (x, y), units, 0.4))
    if len(set(units)) == len(units):
        kept = np.array([row not in (4, 7) for row in range(9)])
        others = clipped_sum(model_of(spec, shape), row_loss(shape), (x[kept], y[kept]), units[kept], 0.4)
        assert_close(ours, others)
    assert 0 < np.linalg.norm(ours) < np.inf


@pytest.mark.parametrize("sum_of", [lambda *batch: clipped_sum(*batch, 1.0), mean_gradient], ids=["clipped", "plain"])
@pytest.mark.parametrize("spec", SPECS)
def test_an_empty_batch_gives_zeros(spec: str, sum_of: Callable[..., np.ndarray]) -> None:
    shape = SHAPES["two classes"]
    module, (x, y) = model_of(spec, shape), rows_of(shape, 3)
    total = sum_of(module, row_loss(shape), (x[:0], y[:0]), np.zeros(0, np.int64))
    np.testing.assert_array_equal(total, np.zeros(layout_of(module).size))


@pytest.mark.parametrize("count", [2, 15, 16, 17, 40])
@pytest.mark.parametrize("spec", SPECS)
def test_a_unit_does_not_depend_on_the_other_rows(spec: str, count: int) -> None:
    shape = SHAPES["three classes"]
    module, (x, y) = model_of(spec, shape), rows_of(shape, 41)

    def total(rows: list[int]) -> np.ndarray:
        return clipped_sum(module, row_loss(shape), (x[rows], y[rows]), np.array(rows), 0.5)

    alone, others = total([0]), list(range(1, count))
    np.testing.assert_allclose(total([0, *others]) - total(others), alone, atol=2e-5)
    np.testing.assert_allclose(total([*others, 0]) - total(others), alone, atol=2e-5)


def test_repeated_calls_do_not_accumulate() -> None:
    shape = SHAPES["two classes"]
    module, batch, loss = model_of(SPECS[-1], shape), rows_of(shape, 9), row_loss(shape)
    sums = [clipped_sum(module, loss, batch, np.arange(9), 0.5) for _ in range(4)]
    for later in sums[1:]:
        assert_close(later, sums[0])


def test_a_model_is_not_kept_alive() -> None:
    """Found: every round builds a model, and each was kept for ever beside its hooks."""
    shape = SHAPES["two classes"]
    module = model_of(SPECS[-1], shape)
    clipped_sum(module, row_loss(shape), rows_of(shape, 9), np.arange(9), 0.5)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "mixing",
    [nn.BatchNorm1d(WIDTH), nn.SyncBatchNorm(WIDTH), nn.LazyBatchNorm1d()],
    ids=lambda module: type(module).__name__,
)
def test_batch_norm_is_refused(mixing: nn.Module) -> None:
    class Mixing(Model):
        def build(self, shape: Shape) -> nn.Module:
            return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(mixing), nn.Linear(WIDTH, shape.outputs))

    with pytest.raises(SettingError, match=f"'1.0' is {type(mixing).__name__}, which mixes the records"):
        build(Mixing(), SHAPES["two classes"], 0)


@pytest.mark.parametrize("most", [1, 2, 5, 7, 100])
def test_portions_are_whole_units_and_every_row_comes_once(most: int) -> None:
    random = np.random.default_rng(most)
    units = np.repeat(random.permutation(12), random.integers(1, 5, 12))
    units = units[random.permutation(len(units))]
    order, place, counts = gradients._sorted_by_unit(units)
    portions = list(gradients._portions(counts, most))
    assert [row for rows, _ in portions for row in range(rows.start, rows.stop)] == list(range(len(units)))
    assert [unit for _, own in portions for unit in range(own.start, own.stop)] == list(range(12))
    for rows, own in portions:  # no unit is in two
        assert set(place[rows]) == set(range(own.start, own.stop))
        assert own.stop - own.start <= most
    assert (np.bincount(place) == counts).all()
    own = [set(units[order.numpy()][place == unit]) for unit in range(12)]
    assert all(len(unit) == 1 for unit in own) and len(set.union(*own)) == 12
    assert list(gradients._portions(np.zeros(0, np.int64), most)) == []


def test_a_sum_in_portions_is_the_sum_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(40, 6)
    y, units = torch.randint(0, 2, (40,)), np.arange(40) // 3
    loss = row_loss(Shape.of(inputs=(6,), classes=2, task="classification"))
    whole = clipped_sum(model, loss, (x, y), units, 0.5)
    monkeypatch.setattr(gradients, "rows_at_once", lambda model, x: 3)
    assert_close(clipped_sum(model, loss, (x, y), units, 0.5), whole)


def test_a_pass_of_somebody_else_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(9, 6)
    y, units = torch.randint(0, 2, (9,)), np.arange(9)
    loss = row_loss(Shape.of(inputs=(6,), classes=2, task="classification"))
    before = clipped_sum(model, loss, (x, y), units, 1.0)
    model(x)  # a graph that nobody goes back through
    after = clipped_sum(model, loss, (x, y), units, 1.0)
    assert after.any()
    np.testing.assert_allclose(after, before, rtol=1e-5)
    with pytest.raises(RuntimeError, match="training mode"):
        clipped_sum(model.eval(), loss, (x, y), units, 1.0)
