"""Laws of what each layer owes to a unit: for random shapes of every layer type, with one row a unit and with several,
the clipped sum is that of two oracles.

Oracles: the hooks of Opacus (Yousefpour et al. 2021), which share no code with ours, and `torch.autograd` in float64,
one row after the other. Both forms of a matrix are tried on every shape, whichever would be chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from per_row import by_autograd, by_opacus, clipped
from torch import nn

from client.models._encoder import FeatureProducts
from client.models.base import MODELS, Shape, build
from client.training import gradients, layers
from client.training.layers import Explicit, Outer, Part, Product, Units

CLOSE = 1e-5  # of a sum's norm
small = st.integers(1, 5)
Case = tuple[nn.Module, tuple[int, ...]]  # a layer, and the shape of one row of its input


def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Depends on every output in another way, and on the target."""
    return (torch.tanh(out.flatten(1)) + 0.3 * out.flatten(1) * y[:, None]).square().sum(1)


@st.composite
def linear(draw: st.DrawFn) -> Case:
    inputs, middle = draw(st.integers(1, 9)), draw(st.lists(small, max_size=2))
    return nn.Linear(inputs, draw(st.integers(1, 9)), bias=draw(st.booleans())), (*middle, inputs)


@st.composite
def convolution(draw: st.DrawFn) -> Case:
    sides, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    each = st.lists(st.integers(1, 3), min_size=sides, max_size=sides)
    kernel, stride, dilation = draw(each), draw(each), draw(each)
    padding: Any = draw(st.sampled_from(["same", "valid", 0, 1, [draw(st.integers(0, 2)) for _ in range(sides)]]))
    if padding == "same":
        stride = [1] * sides
    size = [d * (k - 1) + 1 + draw(st.integers(0, 3)) for d, k in zip(dilation, kernel, strict=True)]
    channels = groups * draw(st.integers(1, 3))
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][sides - 1](
        channels,
        groups * draw(st.integers(1, 3)),
        tuple(kernel),
        stride=tuple(stride),
        dilation=tuple(dilation),
        padding=tuple(padding) if isinstance(padding, list) else padding,
        groups=groups,
        bias=draw(st.booleans()),
    )
    return layer, (channels, *size)


@st.composite
def embedding(draw: st.DrawFn) -> Case:
    entries = draw(st.integers(1, 6))  # few, so that ids repeat
    padding = draw(st.none() | st.integers(0, entries - 1))
    layer = nn.Embedding(entries, draw(small), padding_idx=padding)
    return layer, tuple(draw(st.lists(small, max_size=2)))  # () is one id a row


@st.composite
def layer_norm(draw: st.DrawFn) -> Case:
    normal, middle = draw(st.lists(st.integers(4, 6), min_size=1, max_size=2)), draw(st.lists(small, max_size=2))
    return nn.LayerNorm(normal, bias=draw(st.booleans())), (*middle, *normal)


@st.composite
def rms_norm(draw: st.DrawFn) -> Case:
    normal, middle = draw(st.lists(st.integers(2, 5), min_size=1, max_size=2)), draw(st.lists(small, max_size=2))
    return nn.RMSNorm(normal, eps=draw(st.sampled_from([None, 1e-3]))), (*middle, *normal)


@st.composite
def group_norm(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 3))
    # Fewer values a group may be so near to each other that float32 cannot norm them to five digits.
    channels, places = groups * draw(st.integers(4, 6)), draw(st.lists(small, max_size=2))
    return nn.GroupNorm(groups, channels), (channels, *places)


@st.composite
def features(draw: st.DrawFn) -> Case:
    widths = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    return FeatureProducts(widths, draw(small)), (sum(widths),)


@st.composite
def recurrent(draw: st.DrawFn) -> Case:
    cell, both, depth = draw(st.sampled_from(["lstm", "gru"])), draw(st.booleans()), draw(st.integers(1, 2))
    pool, hidden = draw(st.sampled_from(["last", "mean"])), draw(st.integers(1, 6))
    spec = f"{cell}(hidden={hidden}, layers={depth}, bidirectional={str(both).lower()}, pool='{pool}')"
    inputs = (draw(st.integers(1, 9)), draw(st.integers(2, 4)))
    return build(MODELS.resolve(spec), Shape(inputs=inputs, outputs=2, task="multilabel", kind="sequences"), 0), inputs


KINDS = {
    "Linear": linear(),
    "convolution": convolution(),
    "Embedding": embedding(),
    "LayerNorm": layer_norm(),
    "RMSNorm": rms_norm(),
    "GroupNorm": group_norm(),
    "FeatureProducts": features(),
    "recurrent": recurrent(),
}


def inputs_of(layer: nn.Module, shape: tuple[int, ...], count: int, random: np.random.Generator) -> torch.Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.from_numpy(random.integers(0, layer.num_embeddings, (count, *shape)))
    x = torch.from_numpy(random.normal(0, 1, (count, *shape)).astype(np.float32))
    if not isinstance(layer, tuple(layers._HANDLERS)):  # recurrent: the last channel says which steps are there
        x[..., -1] = torch.arange(shape[0]) < torch.from_numpy(random.integers(0, shape[0] + 1, (count, 1)))
    return x


def assert_sum(ours: np.ndarray, rows: torch.Tensor, units: np.ndarray, clip_norm: float) -> None:
    expected = clipped(rows, units, clip_norm)
    own = [clipped(rows[units == unit], units[units == unit], clip_norm) for unit in np.unique(units)]
    scale = max(np.linalg.norm(expected), *(np.linalg.norm(one) for one in own))  # the sum itself may cancel
    assert np.linalg.norm(ours - expected) <= CLOSE * scale + 1e-12


def clip_norms(rows: torch.Tensor, units: np.ndarray) -> dict[str, float]:
    norms = [float(rows[units == unit].double().mean(0).norm()) for unit in np.unique(units)]
    least, most = max(min(norms), 1e-3), max(*norms, 1e-3)
    return {"none": 2 * most, "some": float(np.sqrt(least * most)), "all": least / 2}


def knows(layer: nn.Module) -> bool:
    """Whether Opacus takes the layer: none with buffers, and no LayerNorm without a bias."""
    return not isinstance(layer, FeatureProducts) and not (isinstance(layer, nn.LayerNorm) and layer.bias is None)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_clipped_sum_is_that_of_opacus_and_of_the_loop(kind: str, data: st.DataObject) -> None:
    seed, count = data.draw(st.integers(0, 2**31)), data.draw(st.integers(1, 9))
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    layer, shape = data.draw(KINDS[kind])
    model = nn.Sequential(layer)
    x, y = inputs_of(layer, shape, count, random), torch.from_numpy(random.normal(0, 1, count).astype(np.float32))
    units = random.permutation(count) if data.draw(st.booleans()) else random.integers(0, 3, count)
    kept, parameters = data.draw(st.sampled_from([None, True, False])), list(model.parameters())
    frozen = data.draw(st.integers(0, len(parameters) - 1))
    for trains in (False, True):  # the second call must see that a parameter is trained again
        if len(parameters) > 1:
            parameters[frozen].requires_grad_(trains)
        rows = by_autograd(model, loss, x, y)
        theirs = by_opacus(model, loss, x, y) if knows(layer) else rows
        for clip_norm in clip_norms(rows, units).values():
            with pytest.MonkeyPatch.context() as patch:
                if kept is not None:
                    patch.setattr(layers, "_kept", lambda *_: kept)
                ours = gradients.clipped_sum(model, loss, (x, y), units, clip_norm).numpy()
            assert_sum(ours, rows, units, clip_norm)
            assert_sum(ours, theirs, units, clip_norm)


@pytest.mark.parametrize(
    ("layer", "shape", "form"),
    [
        (nn.Linear(40, 30), (), Outer),
        (nn.Linear(40, 30), (3,), Product),
        (nn.Linear(4, 3), (50,), Explicit),
        (nn.Conv1d(8, 16, 5), (6,), Product),
        (nn.Conv1d(2, 3, 2), (40,), Explicit),
    ],
    ids=["one place", "few places", "many places", "few places of a convolution", "many places of a convolution"],
)
def test_each_form_is_chosen_where_it_costs_less(layer: Any, shape: tuple[int, ...], form: type[Part]) -> None:
    full = (8, *shape, 40 if layer.weight.shape[-1] == 40 else 4) if isinstance(layer, nn.Linear) else None
    a = torch.randn(full or (8, layer.in_channels, *shape))
    parts = layers.parts_of(layer, a, torch.randn_like(layer(a)), Units(count=8), ("weight", "bias"))
    assert form in {type(part) for part in parts}


@pytest.mark.parametrize("norm", [nn.LayerNorm(6, elementwise_affine=False), nn.GroupNorm(2, 6, affine=False)])
def test_a_norm_without_weights_is_passed_through(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 2)), torch.randn(9, 4), torch.randn(9)
    ours = gradients.clipped_sum(model, loss, (x, y), np.arange(9) // 2, 0.5).numpy()
    assert_sum(ours, by_autograd(model, loss, x, y), np.arange(9) // 2, 0.5)


# --- norms --------------------------------------------------------------------------------------------------


def added(part: Part, shape: tuple[int, ...], units: int) -> torch.Tensor:
    """Return (units,): the norm in float64 of what each unit adds."""
    norms = []
    for only in torch.eye(units):
        into = {"weight": torch.zeros(shape)}
        part.write(only, into)
        norms.append(into["weight"].double().norm())
    return torch.stack(norms)


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 200), st.integers(1, 40), st.floats(0, 7))
def test_a_norm_is_never_below_what_is_added_where_places_cancel(
    seed: int, places: int, inputs: int, outputs: int, digits: float
) -> None:
    """Gradients by the outputs sum to zero over places at which inputs agree in so many digits: the Gram sum is all
    rounding. A norm that were too small would let the unit through unclipped."""
    generator = torch.Generator().manual_seed(seed)
    a = 1 + 10**-digits * torch.randn(3, places, inputs, generator=generator)
    g = torch.randn(3, places, outputs, generator=generator)
    g -= g.mean(dim=1, keepdim=True)
    part = Product(name="weight", a_USI=a, g_USO=g)
    exact = torch.linalg.vector_norm((g.double().mT @ a.double()).flatten(1), dim=1)
    norm = part.squared_norm().double().sqrt()
    assert (norm >= (1 - 1e-6) * torch.maximum(exact, added(part, (outputs, inputs), 3))).all()
    apart = (a.norm(dim=-1) * g.norm(dim=-1)).sum(1)
    assert (norm <= 1.00001 * exact + 2**-10 * apart).all()  # and the excess is no more than what is promised


@pytest.mark.parametrize("inputs", [1, 100, 10_000])
@pytest.mark.parametrize("form", ["outer", "product"])
def test_squares_that_vanish_in_float32_do_not_hide_a_norm(form: str, inputs: int) -> None:
    """Found: inputs of 2e-23 have a squared norm of zero in float32, and gradients of 1e19 one that is finite; the
    unit was held for empty, and added 20 clip norms."""
    a, g = torch.full((1, inputs), 2e-23), torch.tensor([[1e19]])
    part: Part = Outer(a_UI=a, g_UO=g, names=("weight",))
    if form == "product":
        part = Product(name="weight", a_USI=a[:, None], g_USO=g[:, None])
    assert (part.squared_norm().double().sqrt() >= (1 - 1e-6) * added(part, (1, inputs), 1)).all()
    model = nn.Sequential(nn.Linear(inputs, 1, bias=False))
    batch = (a.expand(2, inputs), torch.zeros(2))
    total = gradients.clipped_sum(model, lambda out, y: 1e19 * out[:, 0], batch, np.arange(2), 1e-6)
    assert total.norm() <= 2e-6 * CLOSE + 2e-6
