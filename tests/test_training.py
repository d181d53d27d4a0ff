"""Laws of local training: every step is taken and noised, without protection it is plain SGD, nothing acts before the
noise.

Oracle: `torch.optim` on the gradient of the same samples. The number of noise draws is counted at the random source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.data.records import Part
from client.models.base import MODELS, Shape, build, weights_of
from client.training import local
from client.training.local import Plan, train
from client.training.losses import row_loss
from strategies.base import Aux, SumStrategy
from strategies.errors import RunError
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx
from strategies.optimizers import Adam, AdamW, Sgd
from strategies.privacy.secret import GRID, SecretRandom

SHAPE = Shape(inputs=(4,), outputs=1, task="classification")
PLAIN = Plan(
    private=False,
    sampling_rate=0.5,
    steps=6,
    expected_batch_size=10,
    max_records_per_unit=1,
    clip_norm=0.5,
    noise_multiplier=0.0,
    optimizer=Sgd(lr=0.5),
    seed=3,
)
PRIVATE = replace(PLAIN, private=True, noise_multiplier=1.0)
MLP = "mlp(hidden=[5])"


def part_of(rows: int, records_per_unit: int = 1) -> Part:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4)).astype(np.float32)
    return Part(
        x=torch.from_numpy(x),
        y=torch.from_numpy((x[:, 0] + x[:, 1] > 0).astype(np.int64)),
        unit_of_row=np.arange(rows) // records_per_unit,
    )


def trained(plan: Plan, part: Part | None = None, strategy: SumStrategy | None = None, spec: str = MLP) -> np.ndarray:
    module = build(MODELS.resolve(spec), SHAPE, 0)
    return train(module, part or part_of(20), SHAPE, plan, strategy or FedAvg(), Aux())


@dataclass(frozen=True, kw_only=True)
class Watching(SumStrategy):
    """Keeps every gradient that reaches the strategy."""

    seen: list[torch.Tensor]

    def correct(self, grad: Any, weight: Any, anchor: Any, aux: Aux) -> Any:
        self.seen.append(grad.clone())
        return grad


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of all noise draws."""
    sizes: list[int] = []
    normal = SecretRandom.normal
    monkeypatch.setattr(SecretRandom, "normal", lambda self, *more: sizes.append(more[0]) or normal(self, *more))
    yield sizes


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_empty_samples_still_take_every_step_with_noise(rows: int, draws: list[int]) -> None:
    plan, seen = replace(PRIVATE, sampling_rate=1e-12, steps=9), []
    before = weights_of(build(MODELS.resolve(MLP), SHAPE, 0))
    after = trained(plan, part_of(rows), Watching(seen=seen))
    assert draws == [len(before)] * plan.steps  # steps = noise draws = charges, whatever was sampled
    assert len(seen) == plan.steps and all(grad.count_nonzero() > 0 for grad in seen)
    assert np.count_nonzero(after - before) == len(before)


def test_plain_training_draws_no_noise_and_skips_no_step(draws: list[int]) -> None:
    seen: list[torch.Tensor] = []
    trained(replace(PLAIN, sampling_rate=1e-12), strategy=Watching(seen=seen))
    assert draws == [] and len(seen) == PLAIN.steps


def by_torch(plan: Plan, part: Part, optimizer: type[torch.optim.Optimizer], **settings: float) -> np.ndarray:
    """The oracle: torch's optimiser over the module's own parameters, sum of row losses over the expected batch."""
    module = build(MODELS.resolve(MLP), SHAPE, 0)
    steps = optimizer(module.parameters(), **settings)
    source = local._SeededRandom(plan.seed)
    for _ in range(plan.steps):
        rows = torch.from_numpy(source.poisson_sample(part.units, plan.sampling_rate))
        steps.zero_grad()
        (row_loss(SHAPE)(module(part.x[rows]), part.y[rows]).sum() / plan.expected_batch_size).backward()
        steps.step()
    return weights_of(module)


OPTIMIZERS = {
    "sgd": (Sgd(lr=0.5), torch.optim.SGD, {"lr": 0.5}),
    "momentum": (
        Sgd(lr=0.2, momentum=0.9, weight_decay=0.1),
        torch.optim.SGD,
        {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "adam": (
        Adam(lr=0.05, beta1=0.8, beta2=0.95, weight_decay=0.1),
        torch.optim.Adam,
        {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1},
    ),
    "adamw": (AdamW(lr=0.05), torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.01}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plain_training_is_torchs(name: str) -> None:
    ours, theirs, settings = OPTIMIZERS[name]
    plan, part = replace(PLAIN, optimizer=ours, steps=12), part_of(20)
    np.testing.assert_allclose(trained(plan, part), by_torch(plan, part, theirs, **settings), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_private_training_in_the_limit_of_no_noise_and_no_clipping_is_torchs(name: str) -> None:
    """At rate 1 both take every unit; a clip norm of 1000 clips nothing, noise of 1e-9 clip norms is below the grid."""
    ours, theirs, settings = OPTIMIZERS[name]
    plan = replace(
        PRIVATE, optimizer=ours, sampling_rate=1.0, clip_norm=1000.0, noise_multiplier=1e-9, expected_batch_size=20
    )
    expected = by_torch(plan, part_of(20), theirs, **settings)
    # the grid of 1000 * 2^-20 on a sum over 20 units bounds how close the two can be
    np.testing.assert_allclose(trained(plan), expected, atol=5e-2 if "adam" in name else 2e-3)
    assert np.abs(trained(replace(plan, clip_norm=0.01)) - expected).max() > 1e-2  # and clipping is seen


def test_unprotected_runs_repeat_bit_by_bit() -> None:
    np.testing.assert_array_equal(trained(PLAIN), trained(PLAIN))
    assert not np.array_equal(trained(PLAIN), trained(replace(PLAIN, seed=4)))


def test_private_runs_never_repeat() -> None:
    """Noise differs, and so do the samples: with noise below the grid the runs still differ."""
    assert not np.array_equal(trained(PRIVATE), trained(PRIVATE))
    quiet = replace(PRIVATE, noise_multiplier=1e-9, steps=10)
    assert not np.allclose(trained(quiet), trained(quiet), atol=1e-4)


def test_the_strategy_sees_the_gradient_after_clip_and_noise() -> None:
    """What reaches `correct` is on the mechanism's grid; a clipped sum before its noise is not."""
    seen: list[torch.Tensor] = []
    trained(replace(PRIVATE, expected_batch_size=16), strategy=Watching(seen=seen))
    step = GRID * PRIVATE.clip_norm / 16  # a power of two, so float32 holds the grid exactly
    for grad in seen:
        assert torch.equal(grad / step, torch.round(grad / step))


def test_the_proximal_pull_is_neither_clipped_nor_noised() -> None:
    """After w <- w - lr (g + mu (w - anchor)) from the same noisy gradients, worked by hand in float64."""
    seen: list[torch.Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Prox(FedProx):
        def correct(self, grad: Any, weight: Any, anchor: Any, aux: Aux) -> Any:
            seen.append(grad.clone())
            return super().correct(grad, weight, anchor, aux)

    anchor = weights_of(build(MODELS.resolve(MLP), SHAPE, 0)).astype(np.float64)
    after = trained(replace(PRIVATE, clip_norm=10.0), strategy=Prox(mu=1.5))
    weight = anchor.copy()
    for grad in seen:
        weight -= 0.5 * (grad.numpy() + 1.5 * (weight - anchor))
    np.testing.assert_allclose(after, weight, rtol=1e-4, atol=1e-5)
    pull = 1.5 * np.linalg.norm(weight - anchor)
    assert pull > 10.0 / PRIVATE.expected_batch_size  # longer than any clipped gradient: it cannot have been clipped


@pytest.mark.parametrize("plan", [PLAIN, PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_unit_gives_at_most_its_records_chosen_afresh(plan: Plan, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "clipped_sum" if plan.private else "mean_gradient"
    original, batches = getattr(local, name), []

    def spy(model: nn.Module, loss: Any, batch: Any, unit_of_row: np.ndarray, *rest: float) -> np.ndarray:
        batches.append((batch[0][:, 0].tolist(), unit_of_row.tolist()))
        assert not plan.private or rest[-1] == most  # what norms are found by is the public number
        return original(model, loss, batch, unit_of_row, *rest)

    monkeypatch.setattr(local, name, spy)
    part = part_of(15, records_per_unit=5)
    owner = dict(zip(part.x[:, 0].tolist(), part.unit_of_row.tolist(), strict=True))
    trained(replace(plan, sampling_rate=1.0, max_records_per_unit=most, steps=12), part)
    for rows, units in batches:
        assert len(set(rows)) == len(rows) == 3 * min(most, 5) and [owner[row] for row in rows] == units
    choices = {tuple(sorted(rows)) for rows, _ in batches}
    assert len(choices) > 1 if most < 5 else len(choices) == 1  # 12 equal draws of 1 in 5 thrice: 1 in 5^33


@pytest.mark.parametrize("plan", [PLAIN, PRIVATE], ids=["plain", "private"])
def test_divergence_is_an_error_that_names_the_remedy(plan: Plan) -> None:
    with pytest.raises(RunError, match="lower the learning rate"):
        trained(replace(plan, optimizer=Sgd(lr=1e30, weight_decay=10.0)))


def test_the_divisor_is_the_public_batch_size_whatever_was_sampled() -> None:
    """Half the divisor, twice the gradient, from the same single step (momentum-free SGD is linear in it)."""
    start = weights_of(build(MODELS.resolve(MLP), SHAPE, 0))
    whole = trained(replace(PLAIN, steps=1, expected_batch_size=10)) - start
    half = trained(replace(PLAIN, steps=1, expected_batch_size=5)) - start
    np.testing.assert_allclose(half, 2 * whole, rtol=1e-3, atol=1e-6)
