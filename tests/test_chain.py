"""Laws of networks that are a chain of linear layers: their written-out backward pass is that of the layers' hooks.

Oracles: the general pass with hooks and autograd, to the last bit (that one is held against Opacus and a loop over
records in test_gradients); torch's own outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from client.models.base import MODELS, Shape, build
from client.training import passes
from client.training.chain import chain_of, through
from client.training.gradients import clipped_sum

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU)


class Hidden(nn.Module):
    """The same network in a module of its own, which nothing is known of."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out, y, reduction="none")


def network(widths: list[int], activation: Callable[[], nn.Module], bias: bool, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow, bias=bias), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3, bias=bias)).train()


@given(
    widths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    rows=st.integers(1, 70),
    records=st.integers(1, 4),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_the_sum_is_that_of_hooks_to_the_last_bit(
    widths: list[int],
    activation: Callable[[], nn.Module],
    bias: bool,
    rows: int,
    records: int,
    scale: float,
    seed: int,
) -> None:
    model = network(widths, activation, bias, seed)
    x, y = scale * torch.randn(rows, widths[0]), torch.randint(0, 3, (rows,))
    unit_of_row = np.arange(rows) // records
    assert passes.plan_of(model, x).chain
    hidden = Hidden(model).train()
    assert not passes.plan_of(hidden, x).chain and not passes.plan_of(hidden, x).obstacles
    if widths[0] % 4 or any(width % 4 for width in widths):  # rows draw their places, of which last bits depend
        torch.testing.assert_close(
            clipped_sum(model, loss, (x, y), unit_of_row, 0.7),
            clipped_sum(hidden, loss, (x, y), unit_of_row, 0.7),
            rtol=1e-5,
            atol=1e-6,
        )
        return
    assert torch.equal(
        clipped_sum(model, loss, (x, y), unit_of_row, 0.7), clipped_sum(hidden, loss, (x, y), unit_of_row, 0.7)
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_layer_is_given_its_input_and_the_gradient_by_its_output(activation: Callable[[], nn.Module]) -> None:
    model = network([4, 5, 6], activation, True, 3)
    x, y = torch.randn(7, 2, 2), torch.randint(0, 3, (7,))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    a = x.requires_grad_()
    for layer in model:
        out = layer(a)
        out.retain_grad()
        if isinstance(layer, nn.Linear):
            seen.append((a.detach(), out))
        a = out
    loss(a, y).sum().backward()

    def by_output(out: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(out, a.detach())
        return F.softmax(out, 1) - F.one_hot(y, 3)

    found = list(through(chain_of(model), x, by_output))
    assert [layer for layer, _, _ in found] == [model[5], model[3], model[1]]
    for (_, inputs, g), (wanted, out) in zip(found, reversed(seen), strict=True):
        torch.testing.assert_close(inputs, wanted)
        torch.testing.assert_close(g, out.grad)


def test_the_product_s_feed_forward_network_is_a_chain() -> None:
    shape = Shape(inputs=(8,), outputs=2, task="classification", kind="tabular")
    for activation in ("relu", "tanh", "gelu"):
        assert len(chain_of(build(MODELS.resolve(f"mlp(hidden=[8, 4], activation={activation})"), shape, 0))) == 6


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[1].register_forward_hook(lambda layer, inputs, out: 2 * out)
    return model


def watched() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[1].register_full_backward_hook(lambda layer, g_in, g_out: (2 * g_in[0],))
    return model


def replaced() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[1].forward = torch.sin
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    return model


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 3))


class Own(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a hook": hooked,
    "a hook of the backward pass": watched,
    "a forward pass put in place of its own": replaced,
    "a frozen weight": frozen,
    "its own forward pass": lambda: Own(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
    "a layer with its own forward pass": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Doubled(4, 3)),
    "an activation in place": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
    "an approximate activation": lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh"), nn.Linear(4, 3)),
    "a norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
    "an activation in front": lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 3)),
    "one layer": lambda: nn.Linear(4, 3),
    "a layer twice": twice,
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_network_is_differentiated_as_before(name: str) -> None:
    torch.manual_seed(0)
    model = OTHERS[name]().train()
    x, y, clip_norm = torch.randn(16, 4), torch.randint(0, 3, (16,)), 0.5
    plan, before = passes.plan_of(model, x), dict(model.named_parameters())
    assert not plan.chain or plan.obstacles
    got = clipped_sum(model, loss, (x, y), np.arange(16), clip_norm)
    assert all(before[name] is p for name, p in model.named_parameters()) and len(before) == len(
        list(model.parameters())
    )
    wanted = torch.zeros_like(got)
    for row in range(16):
        trained = {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}
        found = torch.autograd.grad(loss(model(x[row : row + 1]), y[row : row + 1])[0], list(trained.values()))
        gradient = torch.cat([g.flatten() for g in found])
        wanted += gradient * (clip_norm / gradient.norm()).clamp(max=1)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_network_that_is_changed_after_its_first_step_is_not_taken_for_what_it_was() -> None:
    torch.manual_seed(1)
    x, y, units = torch.randn(16, 4), torch.randint(0, 3, (16,)), np.arange(16)

    def hook(model: nn.Sequential) -> None:
        model[1].register_forward_hook(lambda layer, inputs, out: 2 * out)

    def other_activation(model: nn.Sequential) -> None:
        model[1] = nn.Tanh()

    def bounded(model: nn.Sequential) -> None:
        model[1] = nn.Hardtanh()

    for change in (hook, other_activation, bounded):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).train()
        before = clipped_sum(model, loss, (x, y), units, 0.5)
        change(model)
        after = clipped_sum(model, loss, (x, y), units, 0.5)
        wanted = clipped_sum(Hidden(model).train(), loss, (x, y), units, 0.5)
        assert (before - after).norm() > 0.01
        torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("constant", [lambda out, y: torch.ones(len(out)), lambda out, y: out.detach()[:, 0]])
def test_a_loss_that_does_not_see_the_output_has_no_gradient(constant: Callable[..., torch.Tensor]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).train()
    batch = torch.randn(16, 4), torch.randint(0, 3, (16,))
    assert not clipped_sum(model, constant, batch, np.arange(16), 0.5).any()


def test_a_weight_that_is_a_buffer_elsewhere_is_found_there_too() -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.register_buffer("alias", self.a.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.a(x)) @ self.alias

    model, clip_norm = Twin().train(), 0.5
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    got, wanted = clipped_sum(model, loss, (x, y), np.arange(8), clip_norm), torch.zeros(16)
    for row in range(8):
        (g,) = torch.autograd.grad(loss(model(x[row : row + 1]), y[row : row + 1])[0], [model.a.weight])
        wanted += g.flatten() * (clip_norm / g.norm()).clamp(max=1)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_layer_that_flattens_later_dimensions_alone_does_that() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).train()
    x, y = torch.randn(16, 1, 2, 2), torch.randint(0, 3, (16,))

    def of_places(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert out.shape[1:] == (1, 3)
        return F.cross_entropy(out[:, 0], y, reduction="none")

    got = clipped_sum(model, of_places, (x, y), np.arange(16), 0.5)
    torch.testing.assert_close(got, clipped_sum(Hidden(model).train(), of_places, (x, y), np.arange(16), 0.5))


def test_inputs_with_places_are_not_taken_for_a_chain_s() -> None:
    """A Linear over the last of three dimensions, without a layer that flattens in front."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).train()
    x, y = torch.randn(16, 5, 4), torch.randint(0, 3, (16, 5))

    def over_places(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out.mT, y, reduction="none").sum(1)

    got = clipped_sum(model, over_places, (x, y), np.arange(16), 0.5)
    torch.testing.assert_close(got, clipped_sum(Hidden(model).train(), over_places, (x, y), np.arange(16), 0.5))
