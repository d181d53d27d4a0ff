"""Laws of the privacy filter: what fits stays within the budget, at an order that never moves.

Oracle: the Rényi divergence of the plain Gaussian, alpha / (2 sigma^2), and the conversion of PRIVACY.md 1.4 (Canonne,
Kamath & Steinke 2020, proposition 12), both written out here; and RDP over all orders, the least that any order gives.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.errors import AccountingError, SettingError
from strategies.privacy.accountant import epsilon
from strategies.privacy.budget import Budget
from strategies.privacy.events import Event, Exact, Gaussian

DELTA = 1e-5
events = st.builds(
    Gaussian, noise_multiplier=st.floats(0.6, 20.0), sampling_rate=st.floats(1e-3, 1.0), steps=st.integers(0, 40)
)
budgets = st.builds(Budget, epsilon=st.floats(0.1, 20.0), delta=st.just(DELTA))


@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 1), (10.0, 20), (2.0, 3)])
@pytest.mark.parametrize("epsilon_max", [0.5, 2.0, 8.0])
def test_the_gate_is_the_closed_form_at_its_order(epsilon_max: float, sigma: float, steps: int) -> None:
    budget = Budget(epsilon=epsilon_max, delta=DELTA)
    alpha = budget.order
    divergence = steps * alpha / (2 * sigma**2)
    by_hand = divergence - math.log(DELTA * alpha) / (alpha - 1) + math.log(1 - 1 / alpha)
    got = budget.spent([Gaussian(noise_multiplier=sigma, steps=steps)])
    assert max(by_hand, 0) <= got <= max(by_hand, 0) + 1e-4


@given(budgets, st.lists(events, max_size=3), events)
def test_what_fits_never_exceeds_the_budget(budget: Budget, spent: list[Event], planned: Event) -> None:
    fits = budget.fits(spent, [planned])
    assert fits == (budget.spent([*spent, planned]) <= budget.epsilon)
    if fits:
        assert budget.fits(spent, []), "less was refused where more was let through"
        assert budget.fits([planned], spent), "the order of releases matters"


def test_the_last_ten_thousandth_decides() -> None:
    release = [Gaussian(noise_multiplier=3.0)]
    cost = Budget(epsilon=2.0, delta=DELTA).spent(release)
    assert 1.5 < cost < 2.5, "the budgets below have the order of 2"
    assert Budget(epsilon=cost, delta=DELTA).fits([], release)
    assert not Budget(epsilon=cost - 1e-4, delta=DELTA).fits([], release)


@given(st.lists(events, min_size=1, max_size=3), events)
def test_more_releases_never_cost_less(spent: list[Event], planned: Event) -> None:
    budget = Budget(epsilon=3.0, delta=DELTA)
    assert budget.spent(spent) <= budget.spent([*spent, planned])


@given(budgets, events, st.integers(0, 60))
def test_the_number_of_rounds_that_fit_is_the_largest(budget: Budget, round_event: Gaussian, limit: int) -> None:
    before = [Gaussian(noise_multiplier=20.0)]
    rounds = budget.rounds_that_fit(before, (round_event,), limit)
    assert 0 <= rounds <= limit
    assert rounds == 0 or budget.fits(before, (round_event,) * rounds)
    assert rounds == limit or not budget.fits(before, (round_event,) * (rounds + 1))


@settings(max_examples=8)  # RDP over all orders takes a tenth of a second
@given(st.lists(events, min_size=1, max_size=2))
def test_the_gate_is_never_below_the_best_order(spent: list[Event]) -> None:
    best = epsilon(spent, DELTA, accountant="rdp")
    assert all(Budget(epsilon=e, delta=DELTA).spent(spent) >= best - 1e-9 for e in (0.5, 2.0, 8.0))


@pytest.mark.parametrize(
    ("epsilon_max", "order"),
    [
        (1e-3, 28),
        (0.5, 28),
        (1, 16),
        (2, 8),
        (4, 5),
        (8, 3),
        (10, 2.5),
        (100, 2.5),
        (math.inf, 2.5),
        (0.7, 28),
        (0.72, 16),
        (2.8, 8),
        (2.9, 5),  # the nearest on a scale of ratios: the border of 2 and 4 is 2.83
    ],
)
def test_the_order_is_a_function_of_epsilon_alone(epsilon_max: float, order: float) -> None:
    assert Budget(epsilon=epsilon_max, delta=DELTA).order == Budget(epsilon=epsilon_max, delta=1e-3).order == order


@pytest.mark.parametrize("epsilon_max", [1e-3, 1.0, 1e6])
def test_an_exact_release_fits_no_finite_budget(epsilon_max: float) -> None:
    budget = Budget(epsilon=epsilon_max, delta=DELTA)
    assert not budget.fits([], [Exact(what="count")])
    assert not budget.fits([Exact(what="count")], [])
    assert budget.rounds_that_fit([], (Exact(what="count"),), 5) == 0


def test_an_infinite_budget_lets_everything_through() -> None:
    budget = Budget(epsilon=math.inf, delta=DELTA)
    assert budget.fits([], [Exact(what="count")])
    assert budget.rounds_that_fit([], (Gaussian(noise_multiplier=0.1),), 7) == 7


def test_nothing_fits_always() -> None:
    budget = Budget(epsilon=1e-9, delta=DELTA)
    assert budget.fits([], [])
    assert budget.rounds_that_fit([], (Gaussian(noise_multiplier=1.0, steps=0),), 3) == 3
    assert budget.rounds_that_fit([], (Gaussian(noise_multiplier=1.0),), 3) == 0


def test_an_account_that_cannot_be_had_is_no_permission() -> None:
    with pytest.raises(AccountingError):
        Budget(epsilon=8.0, delta=DELTA).fits([], [Gaussian(noise_multiplier=1e-200, sampling_rate=0.5)])


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        *(({"epsilon": value}, "budget.epsilon") for value in (0.0, -1.0, math.nan)),
        *(({"delta": value}, "budget.delta") for value in (0.0, 1.0, -1.0, math.nan)),
    ],
)
def test_a_budget_that_is_none_is_refused(wrong: dict[str, float], name: str) -> None:
    with pytest.raises(SettingError, match=name):
        Budget(**({"epsilon": 1.0, "delta": DELTA} | wrong))
