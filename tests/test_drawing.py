"""Laws of how noise is drawn: in blocks, in pairs of one radius and one angle.

Oracles: scipy's Kolmogorov-Smirnov and chi-square tests. Every statistical test states its false-alarm rate and rejects a
planted fault.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from client.training import local
from strategies.privacy import secret
from strategies.privacy.secret import SecretRandom, gaussian_mechanism

PAIRS = 2**15
FALSE_ALARM = 1e-9  # of each statistical test


BLOCK, DEVIATION = secret._AT_ONCE, 2.0**24  # in steps of the grid


def rounded_normal(count: int, deviation: float) -> np.ndarray:
    """What the mechanism adds, in steps of the grid."""
    values = np.zeros(count)
    gaussian_mechanism(values, step=1.0, deviation=deviation, random=SecretRandom(), into=values)
    return values


@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_any_count_is_gaussian_up_to_the_borders_of_blocks(count: int) -> None:
    values = rounded_normal(count, DEVIATION)
    np.testing.assert_array_equal(values, np.rint(values))
    assert len(set(values.tolist())) > 0.99 * count

    def accepts(claimed: float) -> bool:
        return bool(stats.kstest(values / claimed, "norm").pvalue > FALSE_ALARM)

    assert accepts(DEVIATION)
    assert not accepts(DEVIATION * 2 / 3) and not accepts(DEVIATION * 3 / 2)


def test_values_at_the_borders_are_gaussian_too(scaled: Callable[..., int]) -> None:
    """The first and the last of each block and half, which an off-by-one would leave empty or repeat."""
    found = []
    for _ in range(scaled(400)):
        values = rounded_normal(BLOCK + 3, DEVIATION)
        found.append(values[[0, BLOCK // 2 - 1, BLOCK // 2, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2]])
    ends = np.array(found)
    assert (ends != 0).all()
    for column in ends.T:
        assert stats.kstest(column / DEVIATION, "norm").pvalue > FALSE_ALARM


def halves(deviation: float, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    values = SecretRandom().normal(2 * pairs, deviation)
    return values[:pairs], values[pairs:]


def test_the_two_halves_of_a_pair_are_independent(scaled: Callable[..., int]) -> None:
    sine, cosine = halves(3.0, min(scaled(300_000), PAIRS))
    for one, other in ((sine, cosine), (sine**2, cosine**2), (np.abs(sine), cosine), (sine * cosine, cosine**2)):
        assert stats.pearsonr(one, other).pvalue > FALSE_ALARM
    assert stats.pearsonr(sine**2, (cosine + 0.3 * sine) ** 2).pvalue < FALSE_ALARM  # the test sees a dependence


def even(angles: np.ndarray, bins: int) -> bool:
    counts = np.histogram(angles, bins=bins, range=(-np.pi, np.pi))[0]
    return bool(stats.chisquare(counts).pvalue > FALSE_ALARM)


@pytest.mark.parametrize("bins", [7, 64, 360, 1024])
def test_angles_are_even_without_rays(bins: int) -> None:
    """Coarse angles would leave rays, seen where the noise is a thousand clip norms wide."""
    sine, cosine = halves(1000.0, PAIRS)
    angles = np.arctan2(sine, cosine)
    assert even(angles, bins)
    assert len(set(angles.tolist())) > 0.999 * len(angles)
    coarse = (np.floor(angles / (2 * np.pi) * 200) + 0.5) / 200 * 2 * np.pi
    assert bins <= 64 or not even(coarse, bins)  # the test sees 200 rays


def test_radii_are_of_the_right_law_and_tell_nothing_of_angles() -> None:
    sine, cosine = halves(2.0, PAIRS)
    squares = (sine**2 + cosine**2) / 4
    assert stats.kstest(squares, "chi2", args=(2,)).pvalue > FALSE_ALARM
    assert stats.kstest(squares * 9 / 4, "chi2", args=(2,)).pvalue < FALSE_ALARM
    assert stats.spearmanr(squares, np.arctan2(sine, cosine)).pvalue > FALSE_ALARM


def test_two_trainings_from_the_same_global_seeds_differ() -> None:
    from client.data.records import Part
    from client.models.base import Shape
    from strategies.base import Aux
    from strategies.fedavg import FedAvg
    from strategies.optimizers import Sgd

    shape = Shape(inputs=(4,), outputs=1, task="classification")
    plan = local.Plan(
        private=True,
        sampling_rate=1.0,
        steps=2,
        expected_batch_size=10,
        max_records_per_unit=1,
        clip_norm=0.5,
        noise_multiplier=1.0,
        optimizer=Sgd(lr=0.5),
        seed=3,
    )
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        part = Part(x=torch.ones(10, 4), y=torch.ones(10, dtype=torch.int64), unit_of_row=np.arange(10))
        ends.append(local.train(nn.Sequential(nn.Linear(4, 1)), part, shape, plan, FedAvg(), Aux()))
    assert (ends[0] != ends[1]).all()
