"""Laws of a pass over a batch: whole models of every architecture, layers without a closed form, models whose layers do
not tell all, and rows made to break the bound.

Oracles: Opacus' hooks (Yousefpour et al. 2021) and `torch.autograd` in float64, one row after the other.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import ARCHITECTURES, every_architecture, model_of, rows_of
from per_row import by_autograd, by_opacus, clipped
from torch import nn
from torch.nn import functional as F

from client.models.base import MODELS
from client.training import gradients, passes
from client.training.losses import row_loss

CLOSE, LOOSE = 1e-5, 1 + 1e-5


def assert_near(ours: np.ndarray, expected: np.ndarray) -> None:
    assert np.linalg.norm(ours - expected) <= CLOSE * np.linalg.norm(expected)


def test_every_architecture_is_here() -> None:
    assert set(MODELS.names()) == {spec.split("(")[0] for spec in ARCHITECTURES}


@pytest.mark.parametrize(
    "units", [np.arange(18), np.repeat([3, 1, 2, 0], [9, 1, 6, 2])], ids=["one row a unit", "9, 1, 6 and 2 rows"]
)
@every_architecture
def test_a_whole_model_is_that_of_opacus_and_of_the_loop(spec: str, units: np.ndarray) -> None:
    model, loss, (x, y) = model_of(spec), row_loss(ARCHITECTURES[spec]), rows_of(ARCHITECTURES[spec], 18)
    rows = by_autograd(model, loss, x, y)
    norms = [float(rows[units == unit].mean(0).norm()) for unit in np.unique(units)]
    for clip_norm in (2 * max(norms), float(np.median(norms)), min(norms) / 2):
        ours = gradients.clipped_sum(model, loss, (x, y), units, clip_norm).numpy()
        assert_near(ours, clipped(rows, units, clip_norm))
        if not spec.startswith("ft"):  # Opacus takes no layer with a buffer
            assert_near(ours, clipped(by_opacus(model, loss, x, y), units, clip_norm))
    assert not passes.plan_of(model, x).obstacles and not passes.plan_of(model, x).by_differentiation


# --- layers without a closed form ---------------------------------------------------------------------------


def squares(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * (out.flatten(1) - y[:, None]).square().sum(1)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by.exp() * self.by


class Quadratic(nn.Module):
    """A Bilinear of one input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Parameter(torch.randn(3, 6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,oij,nj->no", x, self.form, x)


class Looping(nn.Module):
    """Asks for a value, which no vectorised row can give."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row * self.by * (2.0 if row.sum().item() > 0 else 1.0) for row in x])


class OwnLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


OPEN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "PReLU": (lambda: nn.PReLU(6), (6,)),
    "Scale": (Scale, (6,)),
    "Quadratic": (Quadratic, (6,)),
    "Looping": (Looping, (6,)),
    "OwnLinear": (lambda: OwnLinear(6, 4), (6,)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2), (6, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 4, 3), (6, 3, 2)),
    "Conv1d": (lambda: nn.Conv1d(6, 4, 3, padding=1, padding_mode="reflect"), (6, 5)),
    "Conv2d": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (6, 4, 3)),
    "Linear": (lambda: old_weight_norm(nn.Linear(6, 4)), (6,)),
}


@pytest.mark.parametrize("units", [np.arange(9), np.arange(9) // 4], ids=["own unit", "shared unit"])
@pytest.mark.parametrize("kind", OPEN)
def test_a_layer_without_closed_form_is_differentiated_and_named(
    kind: str, units: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    make, shape = OPEN[kind]
    first = nn.Linear(6, 6) if len(shape) == 1 else [nn.Conv1d, nn.Conv2d][len(shape) - 2](6, 6, 1)
    model = nn.Sequential(first, nn.Tanh(), make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    x, y = torch.randn(9, *shape), torch.randn(9)
    model(x)
    with caplog.at_level(logging.WARNING, "fedsilo.training"):
        ours = gradients.clipped_sum(model, squares, (x, y), units, 0.7).numpy()
        gradients.clipped_sum(model, squares, (x, y), units, 0.7)
    (said,) = [record.message for record in caplog.records]  # once a model
    assert "differentiation" in said and f"2 ({'Linear' if kind == 'Linear' else kind})" in said
    assert_near(ours, clipped(by_autograd(model, squares, x, y), units, 0.7))


# --- models whose layers do not tell all --------------------------------------------------------------------


class Net(nn.Module):
    """Two layers and a function of them."""

    def __init__(self, way: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.way = way
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(self, x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one(x), self.other(x)


class Pair(nn.Module):
    """Its own parameter, and a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * self.by, x + self.by


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight  # type: ignore[union-attr, assignment]
    return model


def attention(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.read(m.attend(x, x, x, need_weights=False)[0].mean(1))


def once_more(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.read(torch.tanh(m.layer(torch.tanh(m.layer(x)))))


def reused(m: Any, ids: torch.Tensor) -> torch.Tensor:
    return F.linear(torch.tanh(m.layer(m.words(ids).mean(1))), m.words.weight)


def flattened(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.read(torch.tanh(m.layer(x.reshape(-1, 6))).reshape(len(x), -1, 4).mean(1))


def steps_first(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.read(torch.tanh(m.layer(x.transpose(0, 1))).mean(0))


def place_table(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.read(torch.tanh(m.layer(x) + m.places(torch.arange(x.shape[1]))).mean(1))


LINEAR = {"layer": lambda: nn.Linear(6, 4), "read": lambda: nn.Linear(4, 2)}
Maker = Callable[[], nn.Module]


def net(way: Any, **makers: Callable[[], Any]) -> Maker:
    return lambda: Net(way, **{name: make() for name, make in makers.items()})


NOT_TOLD: dict[str, tuple[Maker, tuple[int, ...], str]] = {
    "weights of two layers": (tied, (6,), "2.weight is shared by two layers"),
    "a layer called twice": (
        net(once_more, layer=lambda: nn.Linear(6, 6), read=lambda: nn.Linear(6, 2)),
        (6,),
        "Linear is not called once",
    ),
    "a layer never called as such": (
        net(lambda m, x: m.read(F.linear(x, m.layer.weight)), **LINEAR),
        (6,),
        "Linear is not called once",
    ),
    "attention of torch": (
        net(
            attention,
            attend=lambda: nn.MultiheadAttention(6, 2, batch_first=True),
            read=lambda: nn.Linear(6, 2),
        ),
        (3, 6),
        "MultiheadAttention",
    ),
    "a parametrised weight": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 2)),
        (6,),
        "0 (ParametrizedLinear) has bias beside its layers'",
    ),
    "a tuple as output": (
        net(lambda m, x: m.read(torch.cat(m.pair(x), 1)), pair=Pair, read=lambda: nn.Linear(12, 2)),
        (6,),
        "Pair is not called once",
    ),
    "a weight used outside its layer": (
        net(reused, words=lambda: nn.Embedding(9, 5), layer=lambda: nn.Linear(5, 5)),
        (4,),
        "a parameter of Embedding is used outside its layer",
    ),
    "a parameter beside the layers'": (
        net(lambda m, x: m.read(torch.tanh(m.layer(x + m.own))), own=lambda: nn.Parameter(torch.randn(6)), **LINEAR),
        (6,),
        "the model (Net) has own beside its layers'",
    ),
    "rows and steps in one dimension": (net(flattened, **LINEAR), (5, 6), "have the rows first"),
    "steps before rows": (net(steps_first, **LINEAR), (5, 6), "have the rows first"),
    "as many steps as rows": (net(steps_first, **LINEAR), (16, 6), "have the rows first"),
    "as many steps as rows of the trial": (net(steps_first, **LINEAR), (3, 6), "have the rows first"),
    "a table of places": (
        net(place_table, places=lambda: nn.Embedding(16, 4), **LINEAR),
        (16, 6),
        "Embedding is not called once",
    ),
}


def batch_for(kind: str, shape: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    words = kind == "a weight used outside its layer"
    return torch.randint(0, 9, (count, *shape)) if words else torch.randn(count, *shape), torch.randn(count)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("units", [np.arange(9), np.arange(9) // 4], ids=["own unit", "shared unit"])
@pytest.mark.parametrize("kind", NOT_TOLD)
def test_a_model_whose_layers_do_not_tell_all_goes_row_by_row(
    kind: str, units: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """Found: a weight used outside its layer lost that part of its gradient; a layer on rows and steps in one
    dimension gave the steps of the first record to other units, so that one record could add many clip norms."""
    torch.manual_seed(0)
    make, shape, reason = NOT_TOLD[kind]
    model = make()
    x, y = batch_for(kind, shape, 9)
    with caplog.at_level(logging.WARNING, "fedsilo.training"):
        ours = gradients.clipped_sum(model, squares, (x, y), units, 0.7).numpy()
        again = gradients.clipped_sum(model, squares, (x, y), units, 0.7).numpy()
    said = [record.message for record in caplog.records if "row by row" in record.message]
    assert len(said) == 1 and reason in said[0]
    for total in (ours, again):
        assert_near(total, clipped(by_autograd(model, squares, x, y), units, 0.7))


def test_one_record_adds_one_clip_norm_whatever_the_model_does_with_its_steps() -> None:
    torch.manual_seed(0)
    for kind in ("rows and steps in one dimension", "steps before rows", "as many steps as rows"):
        make, shape, _ = NOT_TOLD[kind]
        model, (x, y) = make(), batch_for(kind, shape, 16)
        y[0] = 1e6
        whole = gradients.clipped_sum(model, squares, (x, y), np.arange(16), 0.5)
        assert (whole - gradients.clipped_sum(model, squares, (x[1:], y[1:]), np.arange(15), 0.5)).norm() <= 0.5 * LOOSE


def test_what_a_layer_gives_may_be_changed_in_place() -> None:
    """Found: behind `ReLU(inplace=True)` the first layer's gradient was left out without a word."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv1d(8, 4, 3), nn.ReLU(inplace=True), nn.Flatten()
    ).append(nn.Linear(20, 2))
    x, y = torch.randn(9, 3, 9), torch.randn(9)
    ours = gradients.clipped_sum(model, squares, (x, y), np.arange(9), 0.7).numpy()
    assert_near(ours, clipped(by_autograd(model, squares, x, y), np.arange(9), 0.7))
    assert not passes.plan_of(model, x).obstacles


def test_what_a_layer_takes_may_not_be_changed_in_place() -> None:
    """As in plain training: the layer's gradient is made from the input as it was."""

    def spoilt(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = x * 1.0
        y = m.layer(x)
        x.mul_(2)
        return m.read(torch.cat([y, x], 1))

    model = Net(spoilt, layer=nn.Linear(6, 4), read=nn.Linear(10, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients.clipped_sum(model, squares, (torch.randn(9, 6), torch.randn(9)), np.arange(9), 0.7)


def test_layers_that_the_loss_does_not_depend_on_get_zero() -> None:
    def without(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.unused(x)
        with torch.no_grad():
            x = m.layer(x)
        return m.read(x)

    model = Net(without, unused=nn.Linear(6, 3), **{name: make() for name, make in LINEAR.items()})
    x, y = torch.randn(9, 6), torch.randn(9)
    ours = gradients.clipped_sum(model, squares, (x, y), np.arange(9), 0.7).numpy()
    assert_near(ours, clipped(by_autograd(model, squares, x, y), np.arange(9), 0.7))
    none = Net(lambda m, x: x, unused=nn.Linear(6, 3).requires_grad_(False), other=nn.Linear(3, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_outside", lambda *_: set())
        none.way = lambda m, x: x + 0 * m.other(x[:, :3]).detach().sum(1, keepdim=True)
        total = gradients.clipped_sum(none, squares, (x, y), np.arange(9), 0.7)
    assert total.shape == (8,) and not total.any()


def test_a_frozen_part_is_left_out_and_taken_up_again() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(9, 6), torch.randn(9)
    for trains in (False, True, False):
        model[0].requires_grad_(trains)
        ours = gradients.clipped_sum(model, squares, (x, y), np.arange(9), 0.7).numpy()
        assert len(ours) == 10 + 28 * trains
        assert_near(ours, clipped(by_autograd(model, squares, x, y), np.arange(9), 0.7))
