"""Laws of the bound for every architecture: no rows and no weights let a unit add more than the clip norm, and what a
row adds does not depend on the other rows, to the last bit.

Oracle of what is added: `torch.autograd` in float64, one row after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import ARCHITECTURES, every_architecture, model_of, rows_of
from per_row import by_autograd, clipped
from torch import nn

from client.models.base import MODELS, Shape, build, layout_of, load_weights
from client.training import gradients, passes
from client.training.device import prepared
from client.training.layers import Explicit, Outer, Product, Scattered
from client.training.losses import row_loss

CLOSE, LOOSE = 1e-5, 1 + 1e-5


def assert_near(ours: np.ndarray, expected: np.ndarray) -> None:
    assert np.linalg.norm(ours - expected) <= CLOSE * np.linalg.norm(expected)


ODD = st.sampled_from(
    [0.0, 1.0, -1.0, 1e-30, -1e-45, 1e15, 1e19, -1e19, 1e30, -1e30, 3e38, -3e38, float("nan"), float("inf")]
)


@every_architecture
@given(data=st.data())
def test_no_unit_adds_more_than_the_clip_norm(spec: str, data: st.DataObject) -> None:
    shape, count = ARCHITECTURES[spec], data.draw(st.integers(1, 6))
    seed, scale = data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([0.0, 0.3, 30.0, 1e10, 1e25]))
    random = np.random.default_rng(seed)
    model = model_of(spec, scale)
    x, y = rows_of(shape, count)
    if shape.kind != "text":
        for row in range(count):
            value = data.draw(ODD)
            chosen = torch.from_numpy(random.random(shape.inputs) < data.draw(st.sampled_from([0.02, 0.5, 1.0])))
            x[row] = torch.where(chosen, value, x[row])
    if shape.task == "regression":
        y[:] = data.draw(ODD)
    units = random.integers(0, 3, count)
    lanes = data.draw(st.integers(0, 3))
    clip_norm = data.draw(st.sampled_from([1e-3, 0.7, 1e3]))

    def total(rows: np.ndarray) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gradients, "_random_lanes", lambda _: ((rows + lanes) % 4).astype(np.uint8))
            batch = x[rows], y[rows]
            found = gradients.clipped_sum(model, row_loss(shape), batch, units[rows], clip_norm, rows_of_a_unit=count)
        assert torch.isfinite(found).all()
        return found

    whole = total(np.arange(count))
    for unit in set(units.tolist()):
        assert total(np.flatnonzero(units == unit)).norm() <= clip_norm * LOOSE
        assert (whole - total(np.flatnonzero(units != unit))).norm() <= clip_norm * LOOSE


def test_a_unit_of_several_rows_does_not_change_how_the_norms_of_others_are_found() -> None:
    """Found: with it the norms came from products of places, without it from lengths, and where inputs are 1e19 and
    gradients nearly nothing the two are far apart."""
    spec, units = "vit(width=8, depth=2, heads=2, patch=4)", np.array([1, 1, 2, 0])
    shape, model = ARCHITECTURES[spec], model_of(spec, 0.0)
    x, y = rows_of(shape, 4)
    x[:] = 0.0
    x[3].view(-1)[::50] = 1e19

    def moved(rows_of_a_unit: int | None) -> float:
        whole, without = (
            gradients.clipped_sum(
                model, row_loss(shape), (x[rows], y[rows]), units[rows], 1e-3, rows_of_a_unit=rows_of_a_unit
            )
            for rows in (np.arange(4), np.array([2, 3]))
        )
        return float((whole - without).norm())

    assert moved(2) <= 1e-3 * LOOSE and moved(4) <= 1e-3 * LOOSE
    assert moved(None) > 1.2e-3  # the test sees the fault
    with pytest.raises(ValueError, match="a unit has 2 rows, more than the 1 that were said"):
        moved(1)


@every_architecture
def test_units_beyond_the_range_of_squares_are_clipped_not_dropped(spec: str) -> None:
    """Gradients of 1e25 are finite and their squares are not; beside them is a unit of usual size, which stays."""
    shape, (x, y) = ARCHITECTURES[spec], rows_of(ARCHITECTURES[spec], 6)
    plain, weight = row_loss(shape), torch.tensor([1e25, 1.0, 1e25, 1.0, 1e-3, 1e-30])
    numbered = torch.arange(6) if y.ndim == 1 else torch.arange(6)[:, None].expand_as(y)
    model = model_of(spec)

    def loss(out: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        which = index if index.ndim == 1 else index[:, 0]
        return plain(out, y[which]) * weight[which].to(out.dtype)

    for units in (np.arange(6), np.array([0, 0, 1, 2, 2, 2])):
        rows = by_autograd(model, loss, x, numbered)
        ours = gradients.clipped_sum(model, loss, (x, numbered), units, 0.7).numpy()
        assert_near(ours, clipped(rows, units, 0.7))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@every_architecture
def test_a_unit_with_one_bad_record_keeps_the_others_over_the_same_count(spec: str, bad: float) -> None:
    shape = ARCHITECTURES[spec]
    model, (x, y) = model_of(spec), rows_of(shape, 7)
    plain = row_loss(shape)
    numbered = torch.arange(7) if y.ndim == 1 else torch.arange(7)[:, None].expand_as(y)

    def loss(out: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        which = index if index.ndim == 1 else index[:, 0]
        return plain(out, y[which]) * torch.where(which == 2, bad, 1.0).to(out.dtype)

    units = np.array([5, 5, 5, 5, 1, 1, 0])
    rows = by_autograd(model, plain, x, y)
    rows[2] = 0  # and still one of four
    ours = gradients.clipped_sum(model, loss, (x, numbered), units, 0.1).numpy()
    assert_near(ours, clipped(rows, units, 0.1))


# --- independence of the other rows -------------------------------------------------------------------------


def bits(
    model: nn.Module, shape: Shape, batch: tuple[torch.Tensor, torch.Tensor], row: int, lane: int, tile: int = 0
) -> dict[str, torch.Tensor]:
    """Return what one row of a batch owes, and its norms, exactly as the engine has them.

    Rows of unaligned models draw their lanes for themselves; the row's own is held.
    """
    x, y = batch
    plan = passes.plan_of(model, x)
    lanes = np.random.default_rng(len(x)).integers(0, 4, len(x)).astype(np.uint8)
    lanes[row] = lane
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "_random_lanes", lambda _: lanes)
        rows = gradients._filled(x, y, (np.arange(len(x)), np.ones(len(x), np.int64), 1), plan, tile or plan.tile)
    found = {}
    for part, slots in ((one.part, one.slots) for one in passes.parts(model, plan, row_loss(shape), rows)):
        if isinstance(part, Explicit):
            own = [part.values_UP[row]]
        elif isinstance(part, Outer):
            own = [part.a_UI[row], part.g_UO[row]]
        elif isinstance(part, Product):
            own = [part.a_USI[row], part.g_USO[row]]
        else:
            assert isinstance(part, Scattered)
            own = [part.values_KO[(part.owner_K == row) & part.values_KO.any(1)]]
        name = "/".join([str(len(found)), type(part).__name__, *(slot.name for slot in slots.values())])
        found[name] = torch.cat([*(values.flatten() for values in own), part.squared_norm()[row, None]])
    return found


TABLES = [(inputs, outputs) for inputs in (4, 12, 60, 100, 7) for outputs in (1, 3)]
OF_TABLES = [f"mlp(hidden={hidden})" for hidden in ([8, 12], [64, 32], [100, 36], [256, 256], [9, 5])]
SEQUENCES = {
    f"transformer(width=16, depth=1, heads=2) {t}": Shape(
        inputs=(t, 5), outputs=3, task="classification", kind="sequences"
    )
    for t in (4, 8, 30, 64)  # with the start token an odd number
} | {
    f"{cell}(hidden={hidden}{more})": Shape(inputs=(10, 4), outputs=1, task="classification", kind="sequences")
    for cell in ("lstm", "gru")
    for hidden, more in ((4, ""), (20, ""), (64, ""), (6, ""), (32, ", layers=2, bidirectional=true"))
}
IMAGES = {
    f"cnn(width={width}, depth=2) {side}": Shape(
        inputs=(1, side, side), outputs=3, task="classification", kind="images"
    )
    for width, side in ((8, 8), (8, 9), (16, 28), (5, 9), (7, 5))
}
INDEPENDENT = (
    {
        f"{spec} {inputs} {outputs}": Shape(inputs=(inputs,), outputs=outputs, task="classification")
        for spec in ("logistic", *OF_TABLES)
        for inputs, outputs in TABLES
    }
    | SEQUENCES
    | IMAGES
    | ARCHITECTURES
)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_what_a_row_owes_does_not_depend_on_the_others_to_the_last_bit(
    name: str, scaled: Callable[..., int], full_tier: bool
) -> None:
    """Weights that make outputs cancel blow a last bit up until one unit moves another's gradient by clip norms.

    Found: where the number of records was no multiple of 32, the last ones' loss was computed by other code, and its
    last bit differed; sigmoid and softplus of few values do so too. And a convolution's product, where channels times
    places are odd, depended on the alignment of the row.
    """
    shape, spec = INDEPENDENT[name], name[: name.index(")") + 1] if ")" in name else name.split()[0]
    for seed in range(scaled(20)):
        model = build(MODELS.resolve(spec), shape, 0)
        random = np.random.default_rng(seed)
        load_weights(model, random.normal(0, 0.5, layout_of(model).size).astype(np.float32))
        many, targets = rows_of(shape, 300)
        many = many[random.permutation(300)]
        lane = int(random.integers(4))
        alone = bits(model, shape, (many[:1], targets[:1]), 0, lane)
        for count in [2, 15, 16, 17, 33, 48, 65, 200, 300] if full_tier else random.integers(2, 300, 3):
            row = int(random.integers(count))
            order = np.r_[1 : row + 1, 0, row + 1 : count]
            found = bits(model, shape, (many[order], targets[order]), row, lane)
            assert set(found) == set(alone)
            assert all(torch.equal(found[part], alone[part]) for part in alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: none here")
@pytest.mark.gpu
@pytest.mark.parametrize("name", INDEPENDENT)
def test_nor_does_it_on_a_gpu(name: str) -> None:
    """There every pass has one number of rows, so all kernels are the same."""
    where = torch.device("cuda")
    prepared(where)
    shape, spec = INDEPENDENT[name], name[: name.index(")") + 1] if ")" in name else name.split()[0]
    model = build(MODELS.resolve(spec), shape, 0)
    random = np.random.default_rng(0)
    load_weights(model, random.normal(0, 0.5, layout_of(model).size).astype(np.float32))
    model.to(where)
    many, targets = (values.to(where) for values in rows_of(shape, 300))
    alone = bits(model, shape, (many[:1], targets[:1]), 0, 0, 320)
    for count in (2, 33, 300):
        row = int(random.integers(count))
        order = np.r_[1 : row + 1, 0, row + 1 : count]
        found = bits(model, shape, (many[order], targets[order]), row, 0, 320)
        assert set(found) == set(alone)
        for part in alone:
            assert torch.equal(found[part][:-1], alone[part][:-1]), part
            torch.testing.assert_close(found[part][-1], alone[part][-1], rtol=1e-6, atol=0)  # a float32 norm


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.SiLU, nn.ELU, nn.Softplus, nn.Tanh, nn.GELU, nn.ReLU])
@pytest.mark.parametrize("width", [1, 3, 5, 8])
def test_elementwise_functions_of_odd_widths(activation: type[nn.Module], width: int) -> None:
    torch.manual_seed(0)
    shape = Shape(inputs=(8,), outputs=1, task="classification")
    model = nn.Sequential(nn.Linear(8, width), activation(), nn.Linear(width, 1))
    x, y = 3 * torch.randn(300, 8), torch.randint(0, 2, (300,))
    for row in range(40):
        alone = bits(model, shape, (x[row : row + 1], y[row : row + 1]), 0, 1)
        for count in (row + 1, 41, 47, 48):
            found = bits(model, shape, (x[:count], y[:count]), row, 1)
            assert all(torch.equal(found[part], alone[part]) for part in alone)
