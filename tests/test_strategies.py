"""Laws that every strategy obeys (found by itself), and what those compute that need only a sum.

Oracles: Flower's own FedAvg, FedAvgM, FedProx, FedAdam, FedAdagrad and FedYogi (flwr.serverapp.strategy) fed with the same models round by round, and
torch's automatic differentiation for the proximal term.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flowers import flower_round, in_a_task
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st

from strategies.base import Aux, PerSiloStrategy, State, Strategy, SumStrategy
from strategies.errors import SettingError
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedprox import FedProx
from strategies.fedyogi import FedYogi
from strategies.spec import STRATEGIES

SIZE, SILOS = 11, 4
ALL = [STRATEGIES.resolve(name) for name in STRATEGIES.names()]
SUMS = [strategy for strategy in ALL if isinstance(strategy, SumStrategy)]
seeds = st.integers(0, 2**32 - 1)
each = pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: type(strategy).__name__)
each_sum = pytest.mark.parametrize("strategy", SUMS, ids=lambda strategy: type(strategy).__name__)


@pytest.fixture(autouse=True)
def _flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_task(monkeypatch)


def vectors(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32))


def copied(state: State) -> tuple[np.ndarray, int, dict[str, np.ndarray]]:
    return state.weights.copy(), state.round, {key: value.copy() for key, value in state.memory.items()}


def same(left: Any, right: Any) -> bool:
    return (
        np.array_equal(left[0], right[0])
        and left[1] == right[1]
        and left[2].keys() == right[2].keys()
        and all(np.array_equal(left[2][key], right[2][key]) for key in left[2])
    )


def silo_half(strategy: Strategy, tensors: list[Any]) -> tuple[Any, Any]:
    grad, weight, anchor = tensors
    return strategy.correct(grad, weight, anchor, Aux()), strategy.update(anchor, weight, Aux()).update


# --- conformance --------------------------------------------------------------------------------------------


def test_the_strategies_of_this_version_are_found() -> None:
    of_sums = {"fedavg", "fedavgm", "fedprox", "fedadam", "fedadagrad", "fedyogi", "scaffold"}
    of_each = {"trimmed_mean", "median", "krum", "multi_krum", "bulyan", "nnm", "geometric_median"}
    assert set(STRATEGIES.names()) == of_sums | of_each
    assert {type(strategy) for strategy in SUMS} == {STRATEGIES.member(name) for name in of_sums}


@each
def test_a_strategy_is_a_frozen_value_of_one_of_two_kinds(strategy: Strategy) -> None:
    assert isinstance(strategy, SumStrategy) != isinstance(strategy, PerSiloStrategy)
    assert strategy == type(strategy)()
    assert hash(strategy) == hash(type(strategy)())


@each_sum
@given(seed=seeds)
def test_the_server_half_is_pure(strategy: SumStrategy, seed: int) -> None:
    weights, total, other = vectors(seed, 3)
    state = strategy.aggregate(strategy.start(weights.copy()), other, 2.0)  # a state with memory
    before, total_before = copied(state), total.copy()
    after = strategy.aggregate(state, total, 3.0)
    assert same(copied(state), before), "the old state was modified"
    assert np.array_equal(total, total_before)
    assert same(copied(strategy.aggregate(state, total, 3.0)), copied(after)), "same in, not same out"
    assert after.round == state.round + 1
    for vector in (after.weights, *after.memory.values(), *strategy.down(after).values()):
        assert vector.shape == (SIZE,)
        assert vector.dtype == np.float32


@each_sum
def test_no_update_leaves_the_model_as_it_is(strategy: SumStrategy) -> None:
    weights = vectors(3, 1)[0]
    state = strategy.aggregate(strategy.start(weights), np.zeros(SIZE, np.float32), 4.0)
    assert np.array_equal(state.weights, weights)


@each
@given(seed=seeds)
def test_the_silo_half_is_the_same_for_numpy_and_torch_and_modifies_nothing(strategy: Strategy, seed: int) -> None:
    arrays = vectors(seed, 3)
    before = [array.copy() for array in arrays]
    with_numpy = silo_half(strategy, arrays)
    with_torch = silo_half(strategy, [torch.from_numpy(array.copy()) for array in arrays])
    for left, right in zip(with_numpy, with_torch, strict=True):
        assert np.allclose(left, right.numpy(), rtol=1e-6, atol=1e-7)
    assert all(np.array_equal(old, new) for old, new in zip(before, arrays, strict=True))


@each_sum
@given(seed=seeds, order=st.permutations(range(SILOS)))
def test_the_order_of_silos_does_not_matter(strategy: SumStrategy, seed: int, order: list[int]) -> None:
    weights, *updates = vectors(seed, SILOS + 1)
    models = [
        strategy.aggregate(strategy.start(weights), sum(updates[silo] for silo in turn), float(SILOS)).weights
        for turn in (range(SILOS), order)
    ]
    assert np.allclose(*models, rtol=1e-4, atol=1e-5)


@each_sum
def test_the_scale_of_the_silos_weights_does_not_matter(strategy: SumStrategy) -> None:
    weights, total = vectors(5, 2)
    models = [strategy.aggregate(strategy.start(weights), total * scale, 2.0 * scale).weights for scale in (1, 64)]
    assert np.allclose(*models, rtol=1e-6)


# --- oracles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FedAvg(), lambda: flower.FedAvg()),
        (FedProx(mu=0.3), lambda: flower.FedProx(proximal_mu=0.3)),
        (FedAdam(), lambda: flower.FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3)),
        (
            FedAdam(lr=0.5, beta1=0.5, beta2=0.8, tau=0.1),
            lambda: flower.FedAdam(eta=0.5, beta_1=0.5, beta_2=0.8, tau=0.1),
        ),
        (FedAvgM(), lambda: flower.FedAvgM(server_learning_rate=1.0, server_momentum=0.9)),
        (FedAvgM(lr=0.3, momentum=0.5), lambda: flower.FedAvgM(server_learning_rate=0.3, server_momentum=0.5)),
        (FedAvgM(momentum=0.0), lambda: flower.FedAvg()),
        (FedAdagrad(), lambda: flower.FedAdagrad(eta=0.1, tau=1e-3)),
        (FedAdagrad(lr=0.02, tau=0.5), lambda: flower.FedAdagrad(eta=0.02, tau=0.5)),
        (FedYogi(), lambda: flower.FedYogi(eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3)),
        (
            FedYogi(lr=0.5, beta1=0.5, beta2=0.8, tau=0.1),
            lambda: flower.FedYogi(eta=0.5, beta_1=0.5, beta_2=0.8, tau=0.1),
        ),
        (FedAdam(beta1=0.0, beta2=0.0), lambda: flower.FedAdam(eta=0.01, beta_1=0.0, beta_2=0.0, tau=1e-3)),
    ],
    ids=lambda item: str(item) if isinstance(item, Strategy) else "",
)
@pytest.mark.parametrize("weights", [[1.0] * SILOS, [1.0, 2.0, 3.0, 0.5]], ids=["uniform", "declared"])
def test_eight_rounds_are_flowers(ours: SumStrategy, theirs: Any, weights: list[float]) -> None:
    theirs = theirs()
    random = np.random.default_rng(7)
    state = ours.start(random.normal(size=SIZE).astype(np.float32))
    model = state.weights.copy()
    for number in range(1, 9):
        updates = [random.normal(0.1, 1, SIZE).astype(np.float32) for _ in weights]
        total = sum(np.float32(weight) * update for weight, update in zip(weights, updates, strict=True))
        state = ours.aggregate(state, total, sum(weights))
        model = flower_round(theirs, number, model, updates, weights).astype(np.float32)
        assert np.allclose(state.weights, model, rtol=1e-5, atol=2e-5), f"round {number}"
    assert state.round == 8


def test_flower_tells_a_wrong_rule_from_the_right_one() -> None:
    """The oracle rejects FedAdam with a correction that is one round late, so the tolerance above is tight enough."""
    weights, update = vectors(1, 2)
    right = flower_round(flower.FedAdam(eta=0.01), 1, weights, [update], [1.0])
    late = flower_round(flower.FedAdam(eta=0.01), 2, weights, [update], [1.0])
    ours = FedAdam(lr=0.01).aggregate(FedAdam(lr=0.01).start(weights), update, 1.0).weights
    assert np.allclose(ours, right, rtol=1e-5, atol=2e-5)
    assert not np.allclose(ours, late, rtol=1e-5, atol=2e-5)


@given(seeds, st.floats(0, 10))
def test_fedprox_adds_the_gradient_of_its_proximal_loss(seed: int, mu: float) -> None:
    grad, weight, anchor = (torch.from_numpy(array) for array in vectors(seed, 3))
    weight.requires_grad_()
    loss = grad @ weight + mu / 2 * ((weight - anchor) ** 2).sum()
    (expected,) = torch.autograd.grad(loss, weight)
    got = FedProx(mu=mu).correct(grad, weight.detach(), anchor, Aux())
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_fedavg_by_hand() -> None:
    state = FedAvg().start(np.float32([1, 2]))
    after = FedAvg().aggregate(state, np.float32([3, -6]), 3.0)
    assert after.weights.tolist() == [2, 0]
    assert FedAvg().correct(5, 1, 2, Aux()) == 5
    assert FedAvg().down(state) == {}
    contribution = FedAvg().update(before=2, after=5, aux=Aux())
    assert (contribution.update, contribution.home) == (3, None)


# --- settings and seams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "fedprox(mu=-1)",
        "fedprox(mu=1e999)",
        "fedadam(lr=0)",
        "fedadam(lr=1e999)",
        "fedadam(beta1=1)",
        "fedadam(beta1=-0.1)",
        "fedadam(beta2=1.0)",
        "fedadam(beta2=-1)",
        "fedadam(tau=0)",
        "fedadam(tau=1e999)",
        "fedavgm(lr=0)",
        "fedavgm(momentum=1)",
        "fedavgm(momentum=-0.1)",
        "fedadagrad(lr=0)",
        "fedadagrad(tau=0)",
        "fedyogi(lr=-1)",
        "fedyogi(beta1=1)",
        "fedyogi(beta2=-1)",
        "fedyogi(tau=0)",
        "scaffold(lr=1)",
        "fedavg(mu=1)",
        "fedprox(nu=1)",
    ],
)
def test_arguments_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(SettingError, match=spec.split("(")[0]):
        STRATEGIES.resolve(spec)


def test_a_state_keeps_its_memory_unless_new_is_given() -> None:
    state = State(weights=np.zeros(1, np.float32), memory={"m": np.ones(1, np.float32)})
    assert state.next(state.weights).memory == state.memory
    assert list(state.next(state.weights, n=state.weights).memory) == ["n"]


def test_a_strategy_without_a_server_half_cannot_aggregate() -> None:
    state = State(weights=np.zeros(1, np.float32))
    with pytest.raises(NotImplementedError):
        SumStrategy().aggregate(state, state.weights, 1.0)
    with pytest.raises(NotImplementedError):
        PerSiloStrategy().aggregate_each(state, {}, {})
