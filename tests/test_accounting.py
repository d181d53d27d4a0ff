"""Laws of privacy accounting: events to epsilon, epsilon to noise.

Oracles: published and measured vectors (vectors/accounting.json names their source), the exact curve of the Gaussian
mechanism (Balle & Wang 2018, "Improving the Gaussian mechanism for differential privacy", theorem 8) and Opacus' PRV
accountant (Gopi et al. 2021), an independent second implementation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from strategies.errors import AccountingError, SettingError
from strategies.privacy import accountant
from strategies.privacy.accountant import calibrate, epsilon, epsilon_at_order, round_up
from strategies.privacy.events import Exact, Gaussian, from_json, merge, to_json
from strategies.privacy.losses import gaussian_losses

VECTORS = json.loads((Path(__file__).parent / "vectors" / "accounting.json").read_text(encoding="utf-8"))
ROWS = {row["row"]: row for row in VECTORS["epsilon"]}
ROUNDING = 10.0**-accountant.DIGITS  # a reported number may lie this much above the computed one

sigmas = st.floats(0.5, 20.0)
rates = st.floats(1e-4, 1.0)
gaussians = st.builds(Gaussian, noise_multiplier=sigmas, sampling_rate=rates, steps=st.integers(1, 50))


def gaussian(noise_multiplier: float, sampling_rate: float = 1.0, steps: int = 1) -> Gaussian:
    return Gaussian(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)


def events_of(row: int) -> list[Gaussian]:
    return [gaussian(*segment) for segment in ROWS[row]["segments"]]


def rdp(events: list[Any]) -> float:
    return epsilon(events, 1e-5, accountant="rdp")


# --- vectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_pld_gives_the_vectors_epsilon(row: int) -> None:
    expected = ROWS[row]["pld"]
    assert epsilon(events_of(row), ROWS[row]["delta"]) == pytest.approx(expected, rel=2e-3, abs=5e-4)


@pytest.mark.parametrize("row", ROWS)
def test_rdp_gives_the_vectors_epsilon(row: int) -> None:
    expected = ROWS[row]["rdp"]
    got = epsilon(events_of(row), ROWS[row]["delta"], accountant="rdp")
    assert expected * (1 - 1e-3) <= got <= expected * (1 + 1e-3) + ROUNDING


@pytest.mark.parametrize("vector", VECTORS["replace_one"], ids=lambda vector: str(vector["row"]))
def test_replace_one_gives_the_vectors_epsilon(vector: dict[str, float]) -> None:
    got = epsilon(events_of(int(vector["row"])), ROWS[vector["row"]]["delta"], neighbouring="replace-one")
    assert got == pytest.approx(vector["pld"], rel=2e-3)


def cost(vector: dict[str, Any], sigma: float) -> float:
    return epsilon([gaussian(sigma, vector["sampling_rate"], vector["steps"])], vector["delta"])


@pytest.mark.parametrize("index", range(len(VECTORS["calibration"])))
def test_the_calibrated_noise_is_the_vectors_and_keeps_its_target(index: int, scaled: Callable[..., int]) -> None:
    vectors = VECTORS["calibration"]
    vector = vectors[index]
    if index % (len(vectors) // scaled(len(vectors), least=3)):  # the quick form: the target is crossed near the vector
        assert cost(vector, vector["sigma_pld"] * (1 + 2e-3)) <= vector["epsilon"]
        assert cost(vector, vector["sigma_pld"] * (1 - 2e-3)) > vector["epsilon"]
        return
    sigma = calibrate(vector["epsilon"], vector["delta"], sampling_rate=vector["sampling_rate"], steps=vector["steps"])
    assert sigma == pytest.approx(vector["sigma_pld"], rel=2e-3)
    assert cost(vector, sigma) <= vector["epsilon"]
    assert cost(vector, sigma - 1e-4) > vector["epsilon"], "a smaller multiplier keeps the target too"


@pytest.mark.parametrize(("target", "rate", "steps"), [(1.0, 0.02, 1000), (0.05, 0.05, 10)])
def test_noise_calibrated_by_rdp_keeps_its_target(target: float, rate: float, steps: int) -> None:
    sigma = calibrate(target, 1e-5, sampling_rate=rate, steps=steps, accountant="rdp")
    assert rdp([gaussian(sigma, rate, steps)]) <= target < rdp([gaussian(sigma - 1e-4, rate, steps)])


# --- oracles ------------------------------------------------------------------------------------------------


def balle_wang_epsilon(sigma: float, delta: float) -> float:
    """Theorem 8: delta(eps) = Phi(1/(2 sigma) - eps sigma) - e^eps Phi(-1/(2 sigma) - eps sigma), solved for eps."""

    def excess(eps: float) -> float:
        upper = norm.cdf(0.5 / sigma - eps * sigma)
        return float(upper - math.exp(eps + norm.logcdf(-0.5 / sigma - eps * sigma)) - delta)

    return float(brentq(excess, 0.0, 2000.0, xtol=1e-10)) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize(("sigma", "steps"), [(0.3, 1), (1.0, 1), (4.0, 20), (10.0, 100), (200.0, 3)])
def test_without_sampling_pld_is_the_exact_gaussian_curve(sigma: float, steps: int, delta: float) -> None:
    exact = balle_wang_epsilon(sigma / math.sqrt(steps), delta)  # Gaussians compose to one Gaussian
    got = epsilon([gaussian(sigma, steps=steps)], delta)
    assert got >= exact
    assert got == pytest.approx(exact, rel=1e-3, abs=2e-4)


PRV_CASES = (33, 22, 35, 6, 15, 20, 23, 28, 9, 16)  # of the vectors: varied sigma, rate, steps, delta and composition


@pytest.mark.filterwarnings("ignore")  # Opacus' own
def test_pld_agrees_with_opacus_prv(scaled: Callable[..., int]) -> None:
    from opacus.accountants import PRVAccountant

    for row in PRV_CASES[: scaled(len(PRV_CASES), least=3)]:
        prv, eps_error = PRVAccountant(), 0.01
        prv.history = [tuple(segment) for segment in ROWS[row]["segments"]]
        estimate = prv.get_epsilon(ROWS[row]["delta"], eps_error=eps_error) - eps_error
        assert abs(epsilon(events_of(row), ROWS[row]["delta"]) - estimate) <= max(0.02, 0.01 * estimate), f"row {row}"


def test_rdp_never_undercuts_pld() -> None:
    assert all(row["rdp"] > row["pld"] for row in ROWS.values())  # the vectors themselves
    assert rdp([gaussian(1.0, 0.1, 10)]) > epsilon([gaussian(1.0, 0.1, 10)], 1e-5)


# --- composition --------------------------------------------------------------------------------------------


@given(st.lists(gaussians, min_size=1, max_size=4), st.randoms())
def test_order_of_events_does_not_matter(events: list[Gaussian], random: Any) -> None:
    shuffled = random.sample(events, len(events))
    assert merge(shuffled) == merge(events)
    assert epsilon_at_order(shuffled, 1e-5, 8.0) == epsilon_at_order(events, 1e-5, 8.0)


@pytest.mark.parametrize("account", [rdp, lambda events: epsilon(events, 1e-5)])
def test_order_does_not_matter_to_either_accountant(account: Callable[[list[Any]], float]) -> None:
    first, second = gaussian(1.0, 0.05, 20), gaussian(3.0, 0.05, 2)
    assert account([first, second, first]) == account([second, first, first])


@given(sigmas, rates, st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_equal_events_merge_to_the_sum_of_their_steps(sigma: float, rate: float, steps: list[int]) -> None:
    merged = merge([gaussian(sigma, rate, count) for count in steps])
    assert merged == ((gaussian(sigma, rate, sum(steps)),) if sum(steps) else ())


@given(gaussians, st.sampled_from(["steps", "sampling_rate", "noise_multiplier"]), st.floats(1.01, 3.0))
def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise(event: Gaussian, what: str, factor: float) -> None:
    more = {
        "steps": gaussian(event.noise_multiplier, event.sampling_rate, event.steps + 1),
        "sampling_rate": gaussian(event.noise_multiplier, min(1.0, event.sampling_rate * factor), event.steps),
        "noise_multiplier": gaussian(event.noise_multiplier / factor, event.sampling_rate, event.steps),
    }[what]
    assert epsilon_at_order([event], 1e-5, 8.0) <= epsilon_at_order([more], 1e-5, 8.0)


@pytest.mark.parametrize("more", [gaussian(2.0, 0.05, 12), gaussian(2.0, 0.2, 10), gaussian(1.0, 0.05, 10)])
def test_both_accountants_grow_with_each_parameter(more: Gaussian) -> None:
    assert epsilon([gaussian(2.0, 0.05, 10)], 1e-5) < epsilon([more], 1e-5)
    assert rdp([gaussian(2.0, 0.05, 10)]) < rdp([more])


def test_a_second_release_costs_more_than_the_first_alone() -> None:
    first, second = gaussian(1.0, 0.05, 20), gaussian(3.0, 0.05, 2)
    both = epsilon([first, second], 1e-5)
    assert max(epsilon([first], 1e-5), epsilon([second], 1e-5)) < both < epsilon([first] * 2 + [second] * 2, 1e-5)


@pytest.mark.parametrize("which", ["pld", "rdp"])
def test_without_amplification_each_unit_counts_in_every_sample(which: Any) -> None:
    sampled, whole = [gaussian(2.0, 0.05, 10), gaussian(2.0, 0.2, 5)], [gaussian(2.0, 1.0, 15)]
    plain = epsilon(sampled, 1e-5, accountant=which, amplification=False)
    assert plain == pytest.approx(epsilon(whole, 1e-5, accountant=which), rel=1e-4)
    assert plain > epsilon(sampled, 1e-5, accountant=which)


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], 1e-5) == epsilon([gaussian(1.0, steps=0)], 1e-5) == epsilon_at_order([], 1e-5, 8.0) == 0.0


def test_an_exact_release_costs_everything() -> None:
    events = [gaussian(5.0), Exact(what="count")]
    assert epsilon(events, 1e-5) == rdp(events) == epsilon_at_order(events, 1e-5, 8.0) == math.inf


def test_a_long_run_uses_the_finest_grid() -> None:
    """The error of a grid grows with the number of steps (PRIVACY.md 1.1), so here it shows."""
    event = (gaussian(10.0, 1e-3, 100_001),)
    coarse = accountant._pld_compose(event, 1e-5, "add-or-remove-one", 1e-3)
    assert epsilon(event, 1e-5) < coarse
    assert epsilon(event, 1e-5) == round_up(accountant._pld_compose(event, 1e-5, "add-or-remove-one", 1e-5))


@pytest.mark.parametrize("sigma", [0.2, 0.1, 0.03, 0.003])
def test_little_noise_is_bounded_from_above_and_soon(sigma: float) -> None:
    """A widened grid stays an upper bound: never below the exact curve, and within 0.1 % of it."""
    exact = balle_wang_epsilon(sigma, 1e-5) if sigma >= 0.03 else 0.5 / sigma**2
    got = epsilon([gaussian(sigma)], 1e-5)
    assert exact <= got <= exact * (1.001 if sigma >= 0.03 else 1.05)


# --- rounding -----------------------------------------------------------------------------------------------


@given(st.one_of(st.floats(0, 1e308), st.floats(0, 1e-300, allow_subnormal=True), st.floats(0, 100)))
def test_rounding_up_is_never_below_and_never_far(value: float) -> None:
    rounded = round_up(value)
    assert Fraction(rounded) >= Fraction(value)
    assert Fraction(rounded) - Fraction(value) <= Fraction(1, 10**4) + Fraction(math.ulp(rounded))
    assert round_up(rounded) == rounded, "a rounded number is left as it is"


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (0.0, 0.0),
        (5e-324, 0.0001),
        (1.00001, 1.0001),
        (1.2345, 1.2345),
        (2.99999, 3.0),
        (3.0, 3.0),
        (1e13 + 0.1, 1e13 + 0.1),
        (1.7e308, 1.7e308),
        (math.inf, math.inf),
    ],
)
def test_rounding_up_by_hand(value: float, rounded: float) -> None:
    assert round_up(value) == rounded


@pytest.mark.parametrize("value", [math.nan, -1e-9, -math.inf])
def test_no_rounding_of_what_is_no_privacy_loss(value: float) -> None:
    with pytest.raises(AccountingError):
        round_up(value)


# --- fails closed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        *({"noise_multiplier": value} for value in (math.nan, math.inf, 0.0, -1.0)),
        *({"sampling_rate": value} for value in (0.0, -0.1, 1.0000001, math.nan, math.inf)),
        *({"steps": value} for value in (-1, 1.0, "1", None, True, math.nan)),
    ],
    ids=str,
)
def test_a_release_that_cannot_be_accounted_is_no_event(wrong: dict[str, Any]) -> None:
    with pytest.raises(AccountingError):
        Gaussian(**({"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 1} | wrong))
    with pytest.raises(AccountingError):
        from_json({"kind": "gaussian", "noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 1} | wrong)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf, 1, 0, "1e-5"])
def test_a_delta_that_is_none_is_refused(delta: Any) -> None:
    for account in (
        lambda: epsilon([gaussian(1.0)], delta),
        lambda: epsilon_at_order([gaussian(1.0)], delta, 8.0),
        lambda: calibrate(1.0, delta, sampling_rate=0.1, steps=1),
    ):
        with pytest.raises(AccountingError, match="delta"):
            account()


@pytest.mark.parametrize("order", [1.0, 0.5, math.nan, math.inf, -3.0])
def test_an_order_that_is_none_is_refused(order: float) -> None:
    with pytest.raises(AccountingError, match="order"):
        epsilon_at_order([gaussian(1.0)], 1e-5, order)


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "laplace", "noise_multiplier": 1.0},
        {"noise_multiplier": 1.0},
        {"kind": "gaussian"},
        {"kind": []},
        {},
        {"kind": "gaussian", "noise_multiplier": 1.0, "colour": "red"},
        {"kind": "gaussian", "noise_multiplier": "1"},
        3,
    ],
    ids=str,
)
def test_an_event_of_the_ledger_that_cannot_be_read_is_refused(event: Any) -> None:
    with pytest.raises(AccountingError):
        from_json(event)


@given(st.one_of(gaussians, st.builds(Exact, what=st.text('a"\\\n\u2603'))))
def test_events_survive_their_json(event: Any) -> None:
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


def test_something_that_is_no_event_is_refused() -> None:
    with pytest.raises(AccountingError, match="no event"):
        epsilon([gaussian(1.0), "gaussian"], 1e-5)  # type: ignore[list-item]


def test_rdp_speaks_of_add_or_remove_one_alone() -> None:
    with pytest.raises(AccountingError, match="add-or-remove-one"):
        epsilon([gaussian(1.0)], 1e-5, accountant="rdp", neighbouring="replace-one")


@pytest.mark.parametrize("planted", [-1e-3, math.nan])
def test_a_numerically_negative_divergence_is_not_epsilon_zero(planted: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """dp-accounting itself turns a negative divergence into epsilon = 0, so the planted value must be caught by us."""
    from dp_accounting.rdp import RdpAccountant

    compose = RdpAccountant.compose

    def spoilt(self: Any, *args: Any) -> Any:
        compose(self, *args)
        self._rdp[3] = planted
        return self

    monkeypatch.setattr(RdpAccountant, "compose", spoilt)
    with pytest.raises(AccountingError, match="divergences"):
        epsilon([gaussian(1.2345, 0.05, 17)], 1e-5, accountant="rdp")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_unsound_pld_is_refused(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    monkeypatch.setattr(PrivacyLossDistribution, "get_epsilon_for_delta", lambda *_: value)
    with pytest.raises(AccountingError, match="not a sound number"):
        epsilon([gaussian(1.5432 + abs(value if math.isfinite(value) else 0.1), 0.05, 3)], 1e-5)


@pytest.mark.parametrize("error", [MemoryError, ValueError, OverflowError, ZeroDivisionError])
@pytest.mark.parametrize("which", ["pld", "rdp"])
def test_a_failing_accountant_fails_closed(which: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    from dp_accounting.rdp import RdpAccountant

    def fail(*_: Any, **__: Any) -> None:
        raise error("planted")

    monkeypatch.setattr(pld_pmf, "create_pmf_pessimistic_connect_dots_fixed_gap", fail)
    monkeypatch.setattr(RdpAccountant, "compose", fail)
    with pytest.raises(AccountingError, match="planted"):
        epsilon([gaussian(1.8765, 0.07, 3)], 1e-5, accountant=which)


@pytest.mark.parametrize("event", [gaussian(1e-200), gaussian(1e-5, 0.01)], ids=str)
def test_releases_beyond_the_grid_fail_closed(event: Gaussian) -> None:
    with pytest.raises(AccountingError):
        epsilon([event], 1e-5)


def test_a_delta_below_the_grids_precision_fails_closed() -> None:
    with pytest.raises(AccountingError):
        epsilon([gaussian(1.0, 0.01, 10)], 1e-18)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_that_is_none_is_refused(target: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.epsilon"):
        calibrate(target, 1e-5, sampling_rate=0.1, steps=10)


@pytest.mark.parametrize("wrong", [{"sampling_rate": 0.0}, {"sampling_rate": 1.5}, {"steps": -1}, {"steps": 2.7}])
def test_calibration_refuses_what_is_no_release(wrong: dict[str, Any]) -> None:
    with pytest.raises(AccountingError):
        calibrate(1.0, 1e-5, **({"sampling_rate": 0.1, "steps": 10} | wrong))


def test_a_target_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(SettingError, match="cannot be kept"):
        calibrate(1e-9, 1e-12, sampling_rate=1.0, steps=10**6, accountant="rdp")


def test_what_is_released_beside_takes_its_part_of_epsilon() -> None:
    """Plain Gaussians compose by their inverse squares, so the noise that is left to find has a closed form."""
    beside = (gaussian(10.0, steps=5), gaussian(20.0))
    for kind in ("pld", "rdp"):
        alone = calibrate(2.0, 1e-5, sampling_rate=1.0, steps=8, accountant=kind)
        together = calibrate(2.0, 1e-5, sampling_rate=1.0, steps=8, accountant=kind, beside=beside)
        expected = (8 / (8 / alone**2 - 5 / 100 - 1 / 400)) ** 0.5
        assert together == pytest.approx(expected, rel=2e-3) and together > 1.05 * alone
        assert epsilon([gaussian(together, steps=8), *beside], 1e-5, accountant=kind) <= 2.0
        assert calibrate(2.0, 1e-5, sampling_rate=1.0, steps=8, accountant=kind, beside=()) == alone


def test_noisy_counts_beside_sampled_training_are_dp_accountings_composition() -> None:
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    ours = [gaussian(1.1, 0.02, 200), gaussian(25.0, steps=11)]
    theirs = dp_event.ComposedDpEvent(
        [
            dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(0.02, dp_event.GaussianDpEvent(1.1)), 200),
            dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(25.0), 11),
        ]
    )
    for kind, oracle in (("pld", PLDAccountant()), ("rdp", RdpAccountant())):
        got, expected = epsilon(ours, 1e-5, accountant=kind), oracle.compose(theirs).get_epsilon(1e-5)
        assert got == pytest.approx(expected, abs=1e-3)
        assert got > epsilon(ours[:1], 1e-5, accountant=kind) + 0.01


def test_counts_that_cost_too_much_leave_no_noise_to_find() -> None:
    with pytest.raises(SettingError, match="the metric counts alone cost epsilon"):
        calibrate(1.0, 1e-5, sampling_rate=0.1, steps=10, beside=(gaussian(2.0, steps=9),))
    with pytest.raises(SettingError, match="alone cost epsilon inf"):
        calibrate(1.0, 1e-5, sampling_rate=0.1, steps=10, beside=(Exact(what="counts"),))


def test_the_conversion_of_a_divergence_is_dp_accountings() -> None:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    from strategies.privacy.accountant import _at_order

    for order in (1.005, 1.01, 1.1, 2.5, 3.0, 28.0, 512.0):
        for delta in (1e-12, 1e-5, 1e-3, 0.5, 0.9):
            for divergence in (0.0, 1e-14, 1e-7, 0.01, 0.3, 2.0, 50.0, 1e6, math.inf):
                theirs, _ = compute_epsilon([order], [divergence], delta)
                assert _at_order(order, divergence, delta) == theirs, (order, delta, divergence)


@pytest.mark.parametrize("divergence", [math.nan, -1e-300, -1.0, math.inf])
def test_a_divergence_that_is_not_sound_bounds_nothing(divergence: float) -> None:
    """Found: max(0.0, nan) is 0.0. What calls it refuses such numbers before; this must not rest on it alone."""
    from strategies.privacy.accountant import _at_order

    assert _at_order(3.0, divergence, 1e-5) == math.inf


@given(
    st.floats(-3, 4).map(math.exp),
    st.one_of(st.just(1.0), st.floats(-12, -1e-3).map(math.exp)),
    st.sampled_from(["add-or-remove-one", "replace-one"]),
)
@example(1.0, 0.1, "add-or-remove-one")
@example(0.03, 0.5, "replace-one")
@example(0.7, 0.9999, "replace-one")
def test_a_distribution_of_losses_is_that_of_dp_accounting(
    noise_multiplier: float, rate: float, neighbouring: Any
) -> None:
    """Probability by probability; a last bit of a divergence of about 1 is divided by the step of the grid."""
    interval = max(1e-3, 0.01 / noise_multiplier**2)
    ours = gaussian_losses(noise_multiplier, rate, neighbouring, interval)
    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.REPLACE_ONE
        if neighbouring == "replace-one"
        else NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    for name in ("_pmf_remove", "_pmf_add"):
        one, other = (getattr(found, name).to_dense_pmf() for found in (ours, theirs))
        assert (one._lower_loss, len(one._probs)) == (other._lower_loss, len(other._probs))
        np.testing.assert_allclose(one._probs, other._probs, rtol=1e-9, atol=1e-14 / interval)
        np.testing.assert_allclose(one._infinity_mass, other._infinity_mass, rtol=1e-9, atol=1e-14)
    for steps in (1, 50):
        with np.errstate(over="ignore"):  # dp-accounting divides by what may be next to nothing
            a, b = (float(found.self_compose(steps).get_epsilon_for_delta(1e-5)) for found in (ours, theirs))
        assert a == pytest.approx(b, rel=1e-6, abs=1e-7)
