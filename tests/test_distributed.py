"""Laws of distributed noise: shares are discrete Gaussians, exactly; the worst sum that opens holds what is accounted.

Oracles: the density written out in rational arithmetic, scipy's chi-square and Kolmogorov-Smirnov tests, exact
convolutions of small discrete Gaussians, proposition 14 of Kairouz et al. 2021 and dp-accounting's Rényi divergences.
Every statistical test states its false-alarm rate and rejects 2/3 and 3/2 of the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from strategies.errors import ProtocolError, SettingError
from strategies.privacy import discrete
from strategies.privacy.accountant import epsilon
from strategies.privacy.discrete import discrete_gaussian
from strategies.privacy.distributed import Shares, add_share, reach
from strategies.privacy.events import Gaussian
from strategies.privacy.secret import SecretRandom
from strategies.privacy.silo_level import clipped
from strategies.secagg.setup import threshold

FALSE_ALARM = 1e-9


def density(variance: float, reach: int) -> np.ndarray:
    """P[Y = y] for y from -reach to reach; the rest is below 1e-16 for a reach of 9 deviations."""
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    return weights / weights.sum()


def accepts(values: np.ndarray, variance: float) -> bool:
    """Chi-square over the values that are expected ten times at least, the tails as one cell each."""
    most = math.ceil(9 * math.sqrt(variance)) + 1
    expected = density(variance, most) * len(values)
    middle = np.flatnonzero(expected >= 10)
    low, high = middle[0], middle[-1]
    counts = np.bincount(np.clip(values + most, low, high), minlength=high + 1)[low:].astype(float)
    wanted = np.concatenate([[expected[: low + 1].sum()], expected[low + 1 : high], [expected[high:].sum()]])
    return bool(stats.chisquare(counts, wanted * len(values) / wanted.sum()).pvalue > FALSE_ALARM)


# --- the sampler --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1, 2, 3, 9, 50, 1000])
def test_narrow_noise_has_the_very_density(variance: int, scaled: Callable[..., int]) -> None:
    values = discrete_gaussian(scaled(1_000_000), variance, SecretRandom())
    assert accepts(values, variance)
    assert not accepts(values, variance * 4 / 9) and not accepts(values, variance * 9 / 4)


@pytest.mark.parametrize("variance", [2**20, 3**30, 2**62 + 1, 2**100])
def test_wide_noise_is_gaussian_with_the_stated_deviation(variance: int, scaled: Callable[..., int]) -> None:
    values = discrete_gaussian(scaled(200_000), variance, SecretRandom()) / math.sqrt(variance)
    assert stats.kstest(values, "norm").pvalue > FALSE_ALARM
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(values / wrong, "norm").pvalue < FALSE_ALARM
    spread = float(np.sum(values**2))  # chi-square: the variance to a few parts in a thousand
    assert stats.chi2.cdf(spread, len(values)) > FALSE_ALARM and stats.chi2.sf(spread, len(values)) > FALSE_ALARM


class Words(SecretRandom):
    """A repeatable source."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def uint64(self, count: int) -> np.ndarray:
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize("variance", [1, 7, 10**6, 2**90 + 1])
def test_float64_decides_as_rational_arithmetic_does(variance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words through both ways: with every comparison made in rational bounds nothing changes."""
    quick = discrete_gaussian(400, variance, Words(3))
    monkeypatch.setattr(discrete, "_UNSURE", 10.0)
    np.testing.assert_array_equal(discrete_gaussian(400, variance, Words(3)), quick)


@given(st.integers(0, 2**64 - 1), st.fractions(0, 60, max_denominator=10**6))
def test_a_comparison_with_an_exponential_is_exact(word: int, exponent: Fraction) -> None:
    """Oracle: exp between two partial sums of 200 terms, in rational numbers."""
    below, term = Fraction(0), Fraction(1)
    for k in range(1, 201):
        below, term = below + term, term * exponent / k
    above = below + 2 * term  # the rest is a geometric series of ratio below 1/2
    found = discrete._Uniform(word, Words(1)).below_exp(exponent)
    if Fraction(word + 1, 2**64) <= 1 / above:
        assert found
    elif Fraction(word, 2**64) >= 1 / below:
        assert not found


def test_numbers_below_a_limit_are_even() -> None:
    """3 x 2^61 goes into 2^64 two and two thirds times: without a second draw the lower two thirds would have 3/4."""
    values = discrete._uniform_below(3 * 2**61, 20_000, SecretRandom())
    assert 0 <= values.min() <= values.max() < 3 * 2**61
    lower = int(np.sum(values < 2 * 2**61))
    assert stats.binomtest(lower, 20_000, 2 / 3).pvalue > FALSE_ALARM > stats.binomtest(lower, 20_000, 3 / 4).pvalue


def test_a_tie_draws_more_bits() -> None:
    """The first 64 bits of exp(-1) themselves: what follows decides, with the right share."""
    word = int(discrete._exp_bounds(Fraction(1), 64)[0] * 2**64)
    decided = [discrete._Uniform(word, Words(seed)).below_exp(Fraction(1)) for seed in range(2000)]
    share = float(discrete._exp_bounds(Fraction(1), 200)[0] * 2**64 - word)
    assert 0.01 < share < 0.99 and stats.binomtest(sum(decided), 2000, share).pvalue > FALSE_ALARM


@pytest.mark.parametrize("count", [0, 1, 2, 5, 100_003])
def test_any_count(count: int) -> None:
    values = discrete_gaussian(count, 2**80, SecretRandom())
    assert values.shape == (count,) and values.dtype == np.int64 and len(set(values.tolist())) == count


@pytest.mark.parametrize("variance", [0, -1, 2**100 + 1, 1.5, True, math.inf])
def test_no_variance(variance: Any) -> None:
    with pytest.raises(SettingError, match=r"variance = .* must be a whole number"):
        discrete_gaussian(1, variance, SecretRandom())


def test_bits_are_the_operating_systems() -> None:
    np.random.seed(7)
    first = discrete_gaussian(50, 2**40, SecretRandom())
    np.random.seed(7)
    assert not np.array_equal(first, discrete_gaussian(50, 2**40, SecretRandom()))


# --- the plan -----------------------------------------------------------------------------------------------

PLAN = Shares(noise_multiplier=4.0, clip_norm=1.0, scale=2.0**20, length=1000, silos=10, drops=2, colluding=1)


def test_the_worst_sum_holds_what_is_accounted() -> None:
    """n = 10, d = 2, c = 1: a share has 0.378 of the deviation, and all ten together 1.195 of it (SECAGG 4.4)."""
    needed = 4.0 * (2.0**20 + math.sqrt(1000) / 2)
    assert PLAN.holders == 7 and 7 * PLAN.variance >= needed**2
    assert math.sqrt(PLAN.variance) / needed == pytest.approx(0.378, rel=1e-3)
    assert math.sqrt(10 * PLAN.variance) / needed == pytest.approx(1.195, rel=1e-3)


@given(
    st.floats(0.1, 1000),
    st.floats(1e-3, 1e3),
    st.integers(0, 24),
    st.integers(1, 10**8),
    st.integers(1, 128),
    st.data(),
)
def test_a_share_is_never_too_small(
    sigma: float, clip_norm: float, bits: int, length: int, silos: int, data: st.DataObject
) -> None:
    drops = data.draw(st.integers(0, silos - 1))
    colluding = data.draw(st.integers(0, silos - 1 - drops))
    try:
        plan = Shares(
            noise_multiplier=sigma,
            clip_norm=clip_norm,
            scale=2.0**bits,
            length=length,
            silos=silos,
            drops=drops,
            colluding=colluding,
        )
    except SettingError as error:
        assert "too coarse" in str(error)
        return
    needed = (Fraction(sigma) * Fraction(clip_norm) * 2**bits) ** 2 + Fraction(sigma) ** 2 * length / 4
    assert plan.variance * (silos - drops - colluding) > needed
    assert (
        plan.variance * (silos - drops - colluding) < 1.001 * (sigma * (clip_norm * 2**bits + length**0.5)) ** 2 + silos
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drops": 9}, "leave nobody to hold the noise"),
        ({"drops": 5, "colluding": 5}, "leave nobody to hold the noise"),
        ({"colluding": -1}, "leave nobody to hold the noise"),
        ({"scale": 0.1, "clip_norm": 0.1, "noise_multiplier": 0.1, "length": 1}, "too coarse"),
        ({"scale": 2.0**50}, "too wide"),
    ],
)
def test_plans_that_are_none(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        replace(PLAN, **changes)


# --- the accounting -----------------------------------------------------------------------------------------


def convolved(variance: float, shares: int, reach: int) -> np.ndarray:
    total = np.ones(1)
    for _ in range(shares):
        total = np.convolve(total, density(variance, reach))
    return total


@pytest.mark.parametrize("variance", [0.25, 0.4, 1.0])
@pytest.mark.parametrize("shares", [2, 5])
def test_sums_deviate_from_a_discrete_gaussian_by_no_more_than_is_accounted(variance: float, shares: int) -> None:
    """Theorem 1, by exact convolution of narrow ones, where the deviation can be seen at all."""
    reach = 40
    total = convolved(variance, shares, reach)
    other = density(shares * variance, shares * reach)
    near = slice(shares * reach - 12, shares * reach + 13)  # further out float64 is too coarse
    away = np.abs(np.log(total[near] / other[near])).max()
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares))
    assert 1e-13 < away <= tau + 1e-13


def renyi(order: float, one: np.ndarray, step: int) -> float:
    """The divergence of a distribution from itself moved by whole steps."""
    moved, still = one[:-step], one[step:]
    there = (moved > 0) & (still > 0)  # beyond, float64 has no number that small
    logs = order * np.log(moved[there]) + (1 - order) * np.log(still[there])
    return float(np.log(np.sum(np.exp(logs))) / (order - 1))


@pytest.mark.parametrize("order", [1.5, 2.0, 5.0, 16.0])
def test_divergences_of_a_sum_are_below_those_of_the_gaussian_that_is_charged(order: float) -> None:
    """sigma = 1, S C = 9.5 (rounded vectors of norm 10), four silos, one colludes: exact sums of three shares moved by 20.

    The charge is Gaussian(sigma / 2): one unit moves the vector by twice its norm.
    """
    plan = Shares(noise_multiplier=1.0, clip_norm=9.5, scale=1.0, length=1, silos=4, drops=0, colluding=1)
    total = convolved(plan.variance, 3, 220)
    oracle = RdpAccountant(orders=[order])
    oracle.compose(GaussianDpEvent(0.5))
    assert 0.95 * oracle._rdp[0] < renyi(order, total, 20) <= oracle._rdp[0]
    narrow = convolved(plan.variance * 0.9, 3, 220)  # a tenth less variance is seen
    assert renyi(order, narrow, 20) > oracle._rdp[0]


def test_proposition_14_is_below_the_charge() -> None:
    for plan in (PLAN, replace(PLAN, scale=2.0**4, length=10), replace(PLAN, silos=128, drops=40, colluding=30)):
        distance = 2 * float(plan.sensitivity) / math.sqrt(plan.holders * plan.variance)
        for order in (1.0 + 1e-9, 2.0, 8.0, 100.0):
            assert order / 2 * distance**2 + plan.tau * plan.length <= order / 2 / (plan.noise_multiplier / 2) ** 2


def test_known_figures() -> None:
    """dp-accounting's Rényi numbers for 20 rounds: sigma = 4 for a silo's updates at 1e-6 (row 3: 5.93, by PLD 5.55)."""
    assert epsilon((Gaussian(noise_multiplier=4.0, steps=20),), 1e-6, accountant="rdp") == pytest.approx(
        5.9268, rel=1e-3
    )
    assert epsilon((Gaussian(noise_multiplier=4.0, steps=20),), 1e-6) == pytest.approx(5.5509, rel=2e-3)


def test_a_rounded_gaussian_and_the_discrete_one_differ_as_stated() -> None:
    """ln P[rint(N) = y] - ln P[Y = y] is (y^2 / V - 1) / 24 V up to higher orders in 1 / V."""
    variance, y = 400.0, np.arange(-60, 61)
    deviation = math.sqrt(variance)
    rounded = stats.norm.cdf((y + 0.5) / deviation) - stats.norm.cdf((y - 0.5) / deviation)
    away = np.log(rounded / density(variance, 400)[340:461])
    np.testing.assert_allclose(away, (y**2 / variance - 1) / (24 * variance), atol=3e-7)
    assert np.abs(away).max() > 1e-4


# --- words --------------------------------------------------------------------------------------------------


def with_share(words: np.ndarray, plan: Shares) -> np.ndarray:
    noised = words.copy()
    add_share(noised, plan)
    return noised


def encoded(vector: np.ndarray, plan: Shares, bits: int) -> np.ndarray:
    return np.rint(vector.astype(np.float64) * plan.scale).astype(np.int64).astype(f"u{bits // 8}")


@pytest.mark.parametrize("bits", [32, 64])
def test_noised_words_are_the_words_and_a_share(bits: int) -> None:
    """Over 200 000 parameters, at 1e-9: the deviation is that of one share, on either ring, also where a word wraps."""
    plan = replace(PLAN, length=200_000, noise_multiplier=400.0, scale=2.0**22)
    vector = clipped(np.linspace(-1, 1, plan.length).astype(np.float32), 1.0)
    words = encoded(vector, plan, bits)
    before = words.copy()
    noised = with_share(words, plan)
    np.testing.assert_array_equal(words, before)
    assert noised.dtype == words.dtype and noised.shape == words.shape
    share = (noised - words).view(f"i{bits // 8}") / math.sqrt(plan.variance)
    assert stats.kstest(share, "norm").pvalue > FALSE_ALARM
    assert stats.kstest(share * 3 / 2, "norm").pvalue < FALSE_ALARM > stats.kstest(share * 2 / 3, "norm").pvalue
    assert not np.array_equal(noised, with_share(words, plan))


def test_the_sum_that_opens_has_the_accounted_noise(scaled: Callable[..., int]) -> None:
    """Ten silos, two missing, one knows its own share: what is left is sigma (S C + sqrt(d) / 2) wide and no less.

    The wrapped sum of eight noised vectors less the colluder's share and the true sum, by chi-square at 1e-9.
    """
    plan = replace(PLAN, length=scaled(40_000))
    random = np.random.default_rng(1)
    vectors = [clipped(random.normal(size=plan.length).astype(np.float32), 1.0) for _ in range(8)]
    words = [encoded(vector, plan, 32) for vector in vectors]
    noised = [with_share(one, plan) for one in words]
    total = np.add.reduce([*noised, words[0] - noised[0]], dtype=np.uint32)  # the colluder takes its own share out
    left = (total - np.add.reduce(words, dtype=np.uint32)).view(np.int32).astype(float)
    needed = 4.0 * (2.0**20 + math.sqrt(plan.length) / 2)

    def holds(deviation: float) -> bool:
        return bool(stats.chi2.cdf(np.sum((left / deviation) ** 2), plan.length) > FALSE_ALARM)

    assert holds(needed) and not holds(needed * 3 / 2)
    assert stats.kstest(left / needed, "norm").pvalue > FALSE_ALARM > stats.kstest(left / needed * 1.5, "norm").pvalue


def test_what_is_longer_than_the_clip_norm_gets_no_noise() -> None:
    plan = replace(PLAN, length=3)
    fits = np.array([2**20, 0, 0], np.uint32)
    assert with_share(fits, plan).shape == (3,)
    for wrong in (np.array([2**20 + 2, 0, 0]), np.array([-(2**20) - 2, 1, 0]), np.array([2**30, 2**30, 2**30])):
        with pytest.raises(ProtocolError, match="longer than its clip norm"):
            with_share(wrong.astype(np.uint32), plan)
    with pytest.raises(ProtocolError, match=r"shape \(2,\)"):
        with_share(fits[:2], plan)


@pytest.mark.parametrize(("silos", "least", "colluding"), [(3, 3, 1), (10, 4, 2), (100, 3, 0), (128, 100, 33)])
def test_no_sum_wraps(silos: int, least: int, colluding: int) -> None:
    """Of any cohort and any survivors, 15 deviations of the noise fit beside the updates (1e-50 a parameter)."""
    most = reach(4.0, 1.0, least=least, colluding=colluding)
    for cohort in range(least, silos + 1):
        survivors = max(least, threshold(cohort, colluding))
        if survivors > cohort:
            continue
        plan = replace(PLAN, silos=cohort, drops=cohort - survivors, colluding=colluding)
        for summed in (survivors, cohort):
            noise = math.sqrt(summed * plan.variance) / plan.scale
            assert summed * most > summed * 1.0 + 15 * noise
