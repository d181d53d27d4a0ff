"""Laws of noise and sampling: right distribution, right scale, unpredictable, on the grid.

Oracles: scipy's Kolmogorov-Smirnov and exact binomial tests; a source of ones for the exact scale. Every statistical
test states its false-alarm rate and rejects a planted wrong value, so that "accepted" means something.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client.training import noise as noise_file
from client.training.noise import ROUNDING, add_noise
from strategies.privacy import secret as secret_file
from strategies.privacy.secret import GRID, SecretRandom, gaussian_mechanism, sample

FALSE_ALARM = 1e-9  # of each statistical test: one in a billion runs fails by chance
CLIP = 0.3
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: none here")


class Ones(SecretRandom):
    """A source whose normal values are all 1: what `add_noise` makes of it is the scale itself."""

    def normal(self, count: int, deviation: float = 1.0) -> np.ndarray:
        return np.full(count, deviation)


def noise(count: int, multiplier: float, source: SecretRandom | None = None) -> np.ndarray:
    total = torch.zeros(count, dtype=torch.float64)
    return add_noise(total, clip_norm=CLIP, noise_multiplier=multiplier, random=source or SecretRandom()).numpy()


def accepts_normal(values: np.ndarray, deviation: float) -> bool:
    return stats.kstest(values / deviation, "norm").pvalue > FALSE_ALARM


@pytest.mark.parametrize("multiplier", [0.5, 1.3, 20.0])
def test_noise_is_gaussian_with_the_stated_deviation(multiplier: float, scaled: Callable[..., int]) -> None:
    values = noise(scaled(100_000), multiplier)
    assert accepts_normal(values, multiplier * CLIP)
    assert not accepts_normal(values, multiplier * CLIP * 2 / 3)
    assert not accepts_normal(values, multiplier * CLIP * 3 / 2)


@pytest.mark.parametrize("size", [1, 7, 4096, 1_000_000])
def test_the_deviation_pays_for_the_grid(size: int) -> None:
    """Rounding a sum to a grid of step g moves it by at most sqrt(d) g / 2 in L2, two sums apart by sqrt(d) g."""
    step, multiplier = GRID * CLIP, 4096.0
    deviation = multiplier * (CLIP * (1 + ROUNDING) + math.sqrt(size) * step)
    values = noise(size, multiplier, Ones())
    np.testing.assert_allclose(values, deviation, rtol=0, atol=step / 2)
    if size > 1:  # the excess is visible on the grid: without it the value would be another
        assert abs(values[0] - multiplier * CLIP * (1 + ROUNDING)) > step


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_output_is_on_the_grid_and_near_the_sum(values: list[float], clip_norm: float, multiplier: float) -> None:
    total = np.array(values)
    released = add_noise(torch.tensor(total), clip_norm=clip_norm, noise_multiplier=multiplier, random=SecretRandom())
    steps = released.numpy() / (GRID * clip_norm)
    np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-15, atol=0)
    away = steps * GRID * clip_norm - total
    assert np.abs(away).max() <= 40 * multiplier * clip_norm + GRID * clip_norm  # 40 deviations: never by chance


def test_successive_draws_are_independent(scaled: Callable[..., int]) -> None:
    source, count = SecretRandom(), scaled(100_000)
    first, second = noise(count, 1.0, source), noise(count, 1.0, source)
    pairs = {
        "same place": (first, second),
        "neighbours": (first[1:], first[:-1]),
        "halves of one draw": (first[: count // 2], first[count // 2 : 2 * (count // 2)]),
    }
    for name, (one, other) in pairs.items():
        assert stats.pearsonr(one, other).pvalue > FALSE_ALARM, name
        assert stats.pearsonr(one**2, other**2).pvalue > FALSE_ALARM, name
    assert stats.pearsonr(first, second + 0.5 * first).pvalue < FALSE_ALARM  # the test sees a dependence


def test_no_global_seed_has_an_influence() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        source = SecretRandom()
        drawn.append((noise(64, 1.0, source), source.poisson_sample(4096, 0.5), source.permutation_keys(64)))
    for one, other in zip(*drawn, strict=True):
        assert not np.array_equal(one, other)


def test_the_key_is_the_operating_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only source of the stream is os.urandom, 256 bits an instance; with it stubbed the stream repeats."""
    asked = []
    monkeypatch.setattr("os.urandom", lambda size: asked.append(size) or bytes(size))
    np.testing.assert_array_equal(SecretRandom().uint64(8), SecretRandom().uint64(8))
    assert asked == [32, 32]


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5, 0.97])
def test_poisson_rate(rate: float, scaled: Callable[..., int]) -> None:
    source, units, times = SecretRandom(), 1000, scaled(2000)
    samples = [source.poisson_sample(units, rate) for _ in range(times)]
    taken = sum(map(len, samples))

    def accepts(claimed: float) -> bool:
        return stats.binomtest(taken, units * times, claimed).pvalue > FALSE_ALARM

    assert accepts(rate)
    assert not accepts(rate / 2) and not accepts(min(2 * rate, (1 + rate) / 2))
    sizes = np.array([len(sample) for sample in samples])  # a sum over independent units: binomial variance
    ratio = sizes.var(ddof=1) * (times - 1) / (units * rate * (1 - rate))
    assert stats.chi2.cdf(ratio, times - 1) > FALSE_ALARM and stats.chi2.sf(ratio, times - 1) > FALSE_ALARM
    each = np.bincount(np.concatenate(samples), minlength=units)  # and every unit has the same chance
    assert stats.binom.sf(each.max() - 1, times, rate) * units > FALSE_ALARM
    assert stats.binom.cdf(each.min(), times, rate) * units > FALSE_ALARM


@given(st.integers(0, 500), st.floats(1e-6, 1))
def test_a_sample_is_a_sorted_subset(units: int, rate: float) -> None:
    sample = SecretRandom().poisson_sample(units, rate)
    assert sorted(set(sample.tolist())) == sample.tolist() and set(sample.tolist()) <= set(range(units))


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 50])
def test_a_sample_drawn_in_pieces_is_that_of_the_whole(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_file, "_AT_ONCE", 7)
    answers = np.random.default_rng(count).random(count) < 0.4
    rest = iter(answers)
    got = sample(count, lambda some: np.fromiter((next(rest) for _ in range(some)), bool, some))
    np.testing.assert_array_equal(got, np.flatnonzero(answers))
    assert got.dtype == np.intp and next(rest, None) is None


def test_rate_one_takes_all_and_a_threshold_is_rounded_down(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SecretRandom()
    np.testing.assert_array_equal(source.poisson_sample(9, 1.0), np.arange(9))
    edge = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr(SecretRandom, "uint64", lambda self, count: edge)
    assert source.poisson_sample(4, 0.5).tolist() == [0, 1]
    assert source.poisson_sample(4, 2.0**-65).tolist() == []  # never more than the accounted rate


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4097])
def test_any_count_of_values(count: int) -> None:
    values = SecretRandom().normal(count)
    assert values.shape == (count,) and values.dtype == np.float64 and np.isfinite(values).all()
    assert len(set(values.tolist())) == count


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_ends_of_the_keystream_give_finite_values(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecretRandom, "uint64", lambda self, count: np.full(count, word, dtype=np.uint64))
    assert np.isfinite(SecretRandom().normal(4)).all()


def test_a_float32_sum_of_many_clip_norms_is_put_on_the_grid_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: the quotient by the grid step was taken in float32, which moved large sums by up to 2^-24 of themselves."""
    monkeypatch.setattr(SecretRandom, "normal", lambda self, count, deviation: np.zeros(count))
    total, step = np.linspace(-4000, 4000, 10_001, dtype=np.float32) * np.float32(CLIP), GRID * CLIP
    found = np.empty(len(total))
    gaussian_mechanism(total, step=step, deviation=1.0, random=SecretRandom(), into=found)
    np.testing.assert_array_equal(found, np.rint(total.astype(np.float64) / step) * step)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_noise_that_is_drawn_on_a_device_has_the_same_law(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_file, "_AT_ONCE", 30_000)
    step, deviation = GRID * CLIP, 1.5 / GRID
    values = torch.zeros(100_003, dtype=torch.float64, device=device)
    noise_file._add_on_device(values, step, deviation)
    found = values.cpu().numpy()
    assert accepts_normal(found, 1.5 * CLIP) and not accepts_normal(found, CLIP) and len(set(found)) > 90_000
    np.testing.assert_array_equal(found, np.rint(found / step) * step)
    with_sum = torch.full((100_003,), 1000.0, device=device)
    noise_file._add_on_device(with_sum, step, deviation)
    assert accepts_normal(with_sum.cpu().double().numpy() - 1000, 1.5 * CLIP)


def test_the_noise_takes_the_place_of_the_sum() -> None:
    total = torch.linspace(-3, 3, 101)
    before = total.clone()
    assert add_noise(total, clip_norm=CLIP, noise_multiplier=2.0, random=SecretRandom()) is total
    assert (total != before).all()


def test_a_large_sum_gets_its_noise_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_file, "_AT_ONCE", 4000)
    total = torch.linspace(-3, 3, 10_001)
    noisy = add_noise(total.clone(), clip_norm=CLIP, noise_multiplier=2.0, random=SecretRandom())
    assert noisy.shape == total.shape and noisy.dtype == total.dtype
    parts = (noisy - total).split(4000)
    for part in parts[:2]:
        assert abs(part.std().item() / (2.0 * CLIP) - 1) < 0.08  # 7 standard errors of 4,000 values
    assert abs(torch.corrcoef(torch.stack(parts[:2]))[0, 1].item()) < 0.11  # 7 again: no part has another's noise
    assert parts[2].abs().min() > 0
