"""The rules that withstand hostile silos: what they compute, what they promise, and what a study must have for them.

Oracles: Flower's own FedMedian, FedTrimmedAvg, Krum, MultiKrum and Bulyan on the same updates; the definition of nearest
neighbour mixing written out in plain numpy; scipy's minimiser for the geometric median; numpy's sort for every network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flowers import flower_round, in_a_task
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from simulations.silos import REGISTRIES
from strategies.base import PerSiloStrategy, State
from strategies.bulyan import Bulyan
from strategies.distances import inner_products, scores, squared_distances
from strategies.errors import RunError, SettingError, StudyError
from strategies.geometric_median import GeometricMedian, shares_of
from strategies.krum import Krum
from strategies.median import Median
from strategies.multi_krum import MultiKrum
from strategies.nnm import Nnm
from strategies.order_statistics import middle_mean, nearest_the_median, network, ordered
from strategies.spec import STRATEGIES
from strategies.study import Study
from strategies.trimmed_mean import TrimmedMean

SIZE = 37
EACH = [s for s in map(STRATEGIES.resolve, STRATEGIES.names()) if isinstance(s, PerSiloStrategy)]
each = pytest.mark.parametrize("strategy", EACH, ids=lambda strategy: type(strategy).__name__)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_task(monkeypatch)


def drawn(seed: int, silos: int, size: int = SIZE, spread: float = 1.0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return list((random.normal(size=size) + spread * random.normal(size=(silos, size))).astype(np.float32))


def named(rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"silo-{place:03}": row for place, row in enumerate(rows)}


def result(strategy: PerSiloStrategy, rows: list[np.ndarray]) -> np.ndarray:
    """The update that the rule makes of these; the model begins at zero."""
    state = State(weights=np.zeros_like(rows[0]))
    before = [row.copy() for row in rows]
    after = strategy.aggregate_each(state, named(rows), dict.fromkeys(named(rows), 1.0))
    assert after.round == 1 and after.weights.dtype == np.float32 and not state.weights.any()
    assert all(np.array_equal(old, new, equal_nan=True) for old, new in zip(before, rows, strict=True)), (
        "an update was modified"
    )
    return after.weights


# --- the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 13))
def test_a_network_brings_every_wanted_rank_to_its_place(count: int) -> None:
    """The 0-1 principle: a network that sorts all rows of zeros and ones sorts everything."""
    bits = np.array(list(itertools.product([0, 1], repeat=count)), np.float32).T.copy()
    expected = np.sort(bits, axis=0)
    for first in range(count):
        for end in {first + 1, count - first, count}:
            if end <= first:
                continue
            for in_order in (True, False):
                comparators = network(count, first, end, in_order=in_order)
                places = np.array(ordered([*bits.copy(), np.empty(2**count, np.float32)], comparators))[first:end]
                got = places if in_order else np.sort(places, axis=0)
                assert np.array_equal(got, expected[first:end])


@pytest.mark.parametrize("count", [20, 33, 64, 100])
def test_larger_networks_sort_and_are_cut_down(count: int) -> None:
    rows = np.stack(drawn(count, count, 300))
    places = ordered([*rows.copy(), np.empty(300, np.float32)], network(count, 0, count, in_order=True))
    assert np.array_equal(np.array(places), np.sort(rows, axis=0))
    assert len(network(count, count // 2, count // 2 + 1)) < len(network(count, 0, count, in_order=True))
    assert network(count, 0, count) == ()  # all of them, in any order


@pytest.mark.parametrize("size", [1, 7, 512, 40_000, 70_001])
def test_chunks_are_put_together_again(size: int) -> None:
    rows = drawn(1, 9, size)
    assert np.array_equal(middle_mean(rows, 4), np.median(rows, axis=0))
    assert np.allclose(nearest_the_median(rows, 9), np.mean(rows, axis=0), rtol=1e-5, atol=1e-6)


# --- what Flower computes -----------------------------------------------------------------------------------

PAIRS: list[tuple[PerSiloStrategy, Callable[[], Any], int]] = [
    (Median(), lambda: flower.FedMedian(), 3),
    (TrimmedMean(trim=0.2), lambda: flower.FedTrimmedAvg(beta=0.2), 5),
    (TrimmedMean(trim=0.35), lambda: flower.FedTrimmedAvg(beta=0.35), 3),
    (Krum(byzantine=1), lambda: flower.Krum(num_malicious_nodes=1), 5),
    (Krum(byzantine=3), lambda: flower.Krum(num_malicious_nodes=3), 9),
    (MultiKrum(byzantine=1, keep=3), lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3), 5),
    (MultiKrum(byzantine=2, keep=1), lambda: flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=1), 7),
    (Bulyan(byzantine=1), lambda: flower.Bulyan(num_malicious_nodes=1), 7),
    (Bulyan(byzantine=3), lambda: flower.Bulyan(num_malicious_nodes=3), 15),
]


@pytest.mark.parametrize(("ours", "theirs", "least"), PAIRS, ids=[str(pair[0]) for pair in PAIRS])
@given(seed=seeds, more=st.integers(0, 9))
def test_a_rule_that_flower_has_is_flowers(
    ours: PerSiloStrategy, theirs: Callable[[], Any], least: int, seed: int, more: int
) -> None:
    rows = drawn(seed, least + more)
    expected = flower_round(theirs(), 1, np.zeros(SIZE, np.float32), rows, [1.0] * len(rows))
    assert np.allclose(result(ours, rows), expected, rtol=1e-5, atol=1e-6)


def test_flower_tells_a_wrong_rule_from_the_right_one() -> None:
    """The tolerance above is tight: one silo more or less at any step is another result."""
    rows, zero = drawn(5, 15), np.zeros(SIZE, np.float32)
    wrong: list[tuple[PerSiloStrategy, Any]] = [
        (TrimmedMean(trim=0.21), flower.FedTrimmedAvg(beta=0.13)),
        (MultiKrum(byzantine=3, keep=4), flower.MultiKrum(num_malicious_nodes=3, num_nodes_to_select=5)),
        (Bulyan(byzantine=2), flower.Bulyan(num_malicious_nodes=3)),
    ]
    for ours, theirs in wrong:
        assert not np.allclose(result(ours, rows), flower_round(theirs, 1, zero, rows, [1.0] * 15), rtol=1e-4)


def test_a_trim_that_would_cut_nobody_cuts_one() -> None:
    rows = drawn(2, 4)
    assert np.allclose(result(TrimmedMean(trim=0.2), rows), np.sort(rows, axis=0)[1:3].mean(axis=0), rtol=1e-6)
    assert [TrimmedMean(trim=0.2).withstands(silos) for silos in (3, 4, 5, 9, 10, 15)] == [1, 1, 1, 1, 2, 3]


# --- what has another oracle --------------------------------------------------------------------------------


def mixed_and_trimmed(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """Nearest neighbour mixing and trimmed mean, word by word."""
    mixtures = []
    for row in rows:
        by_distance = sorted(range(len(rows)), key=lambda other: float(np.sum((rows[other] - row) ** 2)))
        mixtures.append(np.mean([rows[other] for other in by_distance[: len(rows) - byzantine]], axis=0))
    return np.sort(mixtures, axis=0)[byzantine : len(rows) - byzantine].mean(axis=0)


@given(seed=seeds, byzantine=st.integers(1, 3), more=st.integers(0, 6))
def test_nnm_is_its_definition(seed: int, byzantine: int, more: int) -> None:
    rows = drawn(seed, 4 * byzantine + 1 + more)
    expected = mixed_and_trimmed(np.array(rows, np.float64), byzantine)
    assert np.allclose(result(Nnm(byzantine=byzantine), rows), expected, rtol=1e-4, atol=1e-5)
    wrong = mixed_and_trimmed(np.array(rows, np.float64), byzantine + 1) if more >= 4 else expected + 1
    assert not np.allclose(expected, wrong, rtol=1e-4, atol=1e-5)


@given(seed=seeds, silos=st.integers(3, 12))
def test_the_geometric_median_is_the_least_sum_of_distances(seed: int, silos: int) -> None:
    rows = np.array(drawn(seed, silos, 5), np.float64)

    def spread(point: np.ndarray) -> float:
        return float(np.linalg.norm(rows - point, axis=1).sum())

    starts = [rows.mean(axis=0), *rows]
    best = min(minimize(spread, start, method="Nelder-Mead", options={"xatol": 1e-7}).fun for start in starts[:3])
    best = min(best, *(spread(row) for row in rows))
    got = result(GeometricMedian(), list(rows.astype(np.float32)))
    assert spread(got.astype(np.float64)) <= best * (1 + 1e-5)
    assert spread(rows.mean(axis=0)) >= best


@given(seed=seeds, silos=st.integers(3, 9))
def test_what_updates_have_in_common_does_not_blur_their_geometric_median(seed: int, silos: int) -> None:
    random = np.random.default_rng(seed)
    near = [np.float32(random.integers(-16, 17, SIZE) / 8) for _ in range(silos)]
    far = [row + np.float32(2**20) for row in near]
    assert all(np.array_equal(one - np.float32(2**20), other) for one, other in zip(far, near, strict=True)), "exact"
    assert np.allclose(shares_of(far), shares_of(near), rtol=1e-5, atol=1e-7)


def test_two_of_three_equal_updates_are_the_geometric_median() -> None:
    one, other = drawn(3, 2)
    assert np.array_equal(result(GeometricMedian(), [one, other, one]), one)


@given(seed=seeds, silos=st.integers(2, 9), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_distances_are_those_of_the_differences(seed: int, silos: int, scale: float) -> None:
    rows = [row * np.float32(scale) for row in drawn(seed, silos, 20_000 if seed % 5 == 0 else 50)]
    wide = np.array(rows, np.float64)
    expected = np.square(wide[:, None] - wide[None]).sum(axis=2)
    assert np.allclose(squared_distances(rows), expected, rtol=1e-6, atol=0)


def test_distances_of_nearly_equal_updates_keep_their_digits() -> None:
    """Found: in float32, or from inner products alone, a model's nearest neighbour is not itself."""
    random = np.random.default_rng(0)
    base = random.normal(size=100_000).astype(np.float32)
    rows = [base + np.float32(1e-4) * random.normal(size=100_000).astype(np.float32) for _ in range(4)]
    rows += [base.copy(), base.copy(), np.full(100_000, 3e38, np.float32)]
    wide = np.array(rows, np.float64)
    expected = np.square(wide[:, None] - wide[None]).sum(axis=2)
    got = squared_distances(rows)
    assert np.allclose(got, expected, rtol=1e-9, atol=0)
    assert got[4, 5] == 0 and not np.diagonal(got).any()
    assert not np.allclose(inner_products(rows), inner_products(rows, base), rtol=0.1)


def test_krums_score_leaves_out_the_silo_itself_and_the_farthest() -> None:
    distances = np.array([[0, 1, 4, 9, 16], [1, 0, 1, 4, 9], [4, 1, 0, 1, 4], [9, 4, 1, 0, 1], [16, 9, 4, 1, 0.0]])
    assert scores(distances, 1).tolist() == [5, 2, 2, 2, 5]  # n - f - 2 = 2 neighbours


# --- laws ---------------------------------------------------------------------------------------------------


@each
@given(seed=seeds, data=st.data())
def test_the_order_of_silos_does_not_matter(strategy: PerSiloStrategy, seed: int, data: st.DataObject) -> None:
    rows = drawn(seed, strategy.least_silos + seed % 4)
    order = data.draw(st.permutations(range(len(rows))))
    assert np.allclose(result(strategy, rows), result(strategy, [rows[k] for k in order]), rtol=1e-5, atol=1e-6)


@each
def test_who_answers_first_does_not_matter_to_the_bit(strategy: PerSiloStrategy) -> None:
    updates = named(drawn(3, 9))
    state = State(weights=np.zeros(SIZE, np.float32))
    models = [
        strategy.aggregate_each(state, dict(items), dict.fromkeys(updates, 1.0)).weights
        for items in (updates.items(), reversed(updates.items()))
    ]
    assert np.array_equal(*models)


@each
@given(seed=seeds)
def test_a_shift_of_all_updates_shifts_the_result(strategy: PerSiloStrategy, seed: int) -> None:
    rows = drawn(seed, strategy.least_silos + seed % 4)
    shift = np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)
    moved = result(strategy, [row + shift for row in rows])
    assert np.allclose(moved, result(strategy, rows) + shift, rtol=1e-4, atol=1e-4)


@each
@given(seed=seeds)
def test_updates_that_agree_are_the_result(strategy: PerSiloStrategy, seed: int) -> None:
    row = drawn(seed, 1)[0]
    assert np.allclose(result(strategy, [row.copy() for _ in range(strategy.least_silos)]), row, rtol=1e-6, atol=1e-7)


@each
def test_no_update_leaves_the_model_as_it_is(strategy: PerSiloStrategy) -> None:
    assert not result(strategy, [np.zeros(SIZE, np.float32)] * strategy.least_silos).any()


hostile = st.sampled_from([3e38, -3e38, 1e6, -1e6, 1e-30, 0.0, 2.0, -2.0])


@pytest.mark.parametrize(
    "strategy", [TrimmedMean(trim=0.3), Median(), Bulyan(byzantine=1), Bulyan(byzantine=2)], ids=str
)
@given(seed=seeds, more=st.integers(0, 5), values=st.lists(hostile, min_size=10, max_size=10))
def test_hostile_values_leave_each_parameter_where_honest_ones_are(
    strategy: PerSiloStrategy, seed: int, more: int, values: list[float]
) -> None:
    rows = drawn(seed, strategy.least_silos + more)
    bad = strategy.withstands(len(rows))
    for row, value in zip(rows[:bad], values, strict=False):
        row[:] = value if seed % 2 else row * np.float32(value if abs(value) < 1e30 else 1e20)
    good = np.array(rows[bad:])
    got = result(strategy, rows)
    room = 1e-6 * (1 + np.abs(good).max(axis=0))
    if isinstance(strategy, Bulyan):  # which averages what is as near to the median as honest values are
        room += np.ptp(good, axis=0)
    assert (got >= good.min(axis=0) - room).all() and (got <= good.max(axis=0) + room).all()


@each
@given(seed=seeds, more=st.integers(0, 4), value=hostile)
def test_hostile_silos_move_a_result_no_farther_than_honest_ones_differ(
    strategy: PerSiloStrategy, seed: int, more: int, value: float
) -> None:
    rows = drawn(seed, strategy.least_silos + more, spread=0.1)
    bad = strategy.withstands(len(rows))
    for row in rows[:bad]:
        row[:] = np.float32(value)
    good = np.array(rows[bad:], np.float64)
    middle = good.mean(axis=0)
    farthest = np.linalg.norm(good - middle, axis=1).max()
    # the bound of the geometric median grows as f comes near to n / 2
    room = 2 * len(good) / (len(good) - bad) if isinstance(strategy, GeometricMedian) else 3
    assert np.linalg.norm(result(strategy, rows) - middle) <= room * farthest


def test_a_mean_is_moved_as_far_as_one_silo_likes() -> None:
    """The law above rejects a rule that withstands nobody."""
    rows = drawn(4, 5, spread=0.1)
    rows[0][:] = 1e6
    good = np.array(rows[1:], np.float64)
    farthest = np.linalg.norm(good - good.mean(axis=0), axis=1).max()
    assert np.linalg.norm(np.mean(rows, axis=0) - good.mean(axis=0)) > 1000 * farthest


# --- at the door --------------------------------------------------------------------------------------------


@each
def test_too_few_updates_are_an_error_and_no_result(strategy: PerSiloStrategy) -> None:
    with pytest.raises(RunError, match="updates arrived and the strategy's rule needs"):
        result(strategy, drawn(0, strategy.least_silos - 1))


@each
def test_a_value_that_is_no_number_is_never_averaged_in_silence(strategy: PerSiloStrategy) -> None:
    rows = drawn(0, strategy.least_silos)
    rows[1][5] = np.nan
    try:
        assert np.isnan(result(strategy, rows)[5])  # which server/aggregation.py refuses
    except RunError as error:
        assert "not a finite number" in str(error)


@pytest.mark.parametrize(
    "spec",
    [
        "trimmed_mean(trim=0)", "trimmed_mean(trim=0.5)", "trimmed_mean(trim=-0.1)", "krum(byzantine=0)",
        "multi_krum(byzantine=0)", "multi_krum(keep=-1)", "bulyan(byzantine=0)", "nnm(byzantine=0)", "krum(byzantine=1.5)",
        "median(trim=0.1)",
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(SettingError, match=spec.split("(")[0]):
        STRATEGIES.resolve(spec)


TEXT = """[study]
name = "robust"
task = "classification"
[data]
kind = "tabular"
target = "label"
features = { a = { type = "numeric", min = 0, max = 1 } }
[model]
name = "logistic()"
[strategy]
name = "NAME"
MORE
[privacy]
PRIVACY
[cohort]
min_silos = LEAST
"""


def problems(
    name: str, least: int, *, privacy: str = "noise_multiplier = 1.0", more: str = "", end: str = ""
) -> list[str]:
    text = TEXT.replace("NAME", name).replace("LEAST", str(least)).replace("PRIVACY", privacy).replace("MORE", more)
    try:
        Study.parse(text + end, REGISTRIES)
    except StudyError as error:
        return [problem.sentence for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("krum()", 5), ("krum(byzantine=2)", 7), ("multi_krum()", 5), ("multi_krum(keep=6)", 7), ("bulyan()", 7),
        ("bulyan(byzantine=2)", 11), ("nnm()", 5), ("nnm(byzantine=2)", 9), ("median()", 3), ("trimmed_mean()", 3),
        ("geometric_median()", 3),
    ],
)  # fmt: skip
def test_a_study_has_as_many_silos_as_the_rule_needs(name: str, least: int) -> None:
    """Blanchard et al.: 2f + 3; El Mhamdi et al.: 4f + 3; the `robust` profile: 4f + 1."""
    assert problems(name, least) == []
    (sentence,) = problems(name, least - 1)
    assert f"cohort.min_silos = {least - 1}" in sentence and f"write min_silos = {least}" in sentence


@each
def test_a_rule_that_sees_each_update_is_refused_where_none_is_seen(strategy: PerSiloStrategy) -> None:
    name = next(name for name in STRATEGIES.names() if type(STRATEGIES.resolve(name)) is type(strategy)) + "()"
    least = strategy.least_silos
    (masked,) = problems(name, least, end="[secagg]\nenabled = true\n")
    assert "needs each silo's update by itself, which secure aggregation hides" in masked
    (central,) = problems(name, least, privacy='mechanism = "central-gaussian"\nnoise_multiplier = 1.0')
    assert "protects their sum alone" in central
    distributed = 'mechanism = "distributed-gaussian"\nnoise_multiplier = 1.0\naccountant = "rdp"'
    (open_,) = problems(name, least, privacy=distributed)
    assert "needs secure aggregation" in open_
    (hidden,) = problems(name, least, privacy=distributed, end="[secagg]\nenabled = true\n")
    assert "which secure aggregation hides" in hidden
    (weighed,) = problems(name, least, more='weights = "declared"')
    assert "counts them alike" in weighed
    for mechanism in ("dp-sgd", "local-gaussian"):
        assert problems(name, least, privacy=f'mechanism = "{mechanism}"\nnoise_multiplier = 1.0') == []
