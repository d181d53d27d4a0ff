"""Whole sums: exact with every pattern of silos that are lost on the way, or a clean end in which nothing is opened."""

from __future__ import annotations

import itertools
import os
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from secagg import World, made
from secagg_attacker import opened

from strategies.secagg import claims
from strategies.secagg.claims import pair_seed
from strategies.secagg.errors import Code
from strategies.secagg.ring import fitted
from strategies.secagg.shares import P


@lru_cache(maxsize=64)
def joined(silos: int, colluding: int, dropped: int | None = None) -> World:
    """A world that sums for as long as there are numbers."""
    world = made(silos, colluding=colluding, dropped=dropped, sums=10_000)
    return world.joined()


def play(world: World, uploading: set[int], first: set[int], last: set[int]) -> str:
    """Run a sum in which these silos upload, answer the first and the last request; check it and return how it ended."""
    names = list(world.silos)
    world.wire.clear()
    one = world.begin()
    phase = one.collect(world.uploads(one, [names[i] for i in sorted(uploading)]))
    if phase == "aborted":
        assert (one.reason, one.requests()) == (Code.ABSENT, {})
    world.unmasked(one, [names[i] for i in first])
    world.unmasked(one, [names[i] for i in last])
    end = one.phase
    one.abort()
    assert end == expected(world, uploading, first & uploading, last & uploading)
    if end == "done":
        total = one.total()
        assert total.survivors == tuple(names[i] for i in sorted(uploading)) and not total.blamed
        world.check(total, one.t)
    elif len(names) <= 5:
        assert opened(world, one.t) == []
    return end


def expected(world: World, uploading: set[int], first: set[int], last: set[int]) -> str:
    """How a sum ends, by the thresholds alone: replies to one request add up; who has signed no view opens nothing."""
    silos = len(world.silos)
    tau = world.setup.threshold(silos)
    if len(uploading) < world.setup.least_survivors(silos):
        return "aborted"
    if len(uploading) == silos:
        return "done" if len(first | last) >= tau else "full"
    if len(first) < tau:
        return "open" if len(first | last) >= tau else "view"
    return "done" if len(first & last) >= tau else "open"


def test_every_pattern_of_lost_silos_gives_the_exact_sum_or_nothing(scaled) -> None:  # type: ignore[no-untyped-def]
    """T12: 2 to 30 silos, any c, any silos lost in each phase. `met` shows that the interesting ends were reached."""
    met: set[str] = set()

    @settings(max_examples=scaled(2000), deadline=None, phases=[Phase.generate])
    @given(st.data())
    def law(data: st.DataObject) -> None:
        silos = min(data.draw(st.integers(2, 30)) for _ in range(3))
        colluding = data.draw(st.integers(0, min(silos - 2, 8)))
        world = joined(silos, colluding)
        gone = st.sets(st.integers(0, silos - 1), max_size=max(1, (silos - colluding) // 2 + 1))
        sets = [set(range(silos)) - data.draw(gone) for _ in range(3)]
        met.add(play(world, *sets))

    law()
    assert met >= {"done", "aborted"}


@pytest.mark.parametrize(("silos", "colluding"), [(3, 0), (4, 1)])
def test_all_patterns_of_small_cohorts(silos: int, colluding: int, full_tier: bool) -> None:
    """Every subset in every phase; some of them in the short run."""
    subsets = [set(s) for size in range(silos + 1) for s in itertools.combinations(range(silos), size)]
    patterns = list(itertools.product(subsets, repeat=3))
    stride = 1 if full_tier else 5 if silos == 3 else 23
    ends = [play(joined(silos, colluding), *pattern) for pattern in patterns[::stride]]
    assert {"done", "aborted", "full"} <= set(ends)


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_a_sum_loses_no_more_than_its_noise_allows(dropped: int) -> None:
    """D, the noise plan's bound, at n = 8, c = 0, where tau alone would allow three."""
    world = joined(8, 0, dropped)
    for lost in range(4):
        everybody = set(range(8))
        assert play(world, set(range(8 - lost)), everybody, everybody) == ("done" if lost <= dropped else "aborted")


LARGE = [(0, 52, 51, 51), (33, 100, 67, 0), (33, 90, 80, 67), (10, 60, 60, 56), (0, 97, 97, 97)]


def test_a_hundred_silos(scaled) -> None:  # type: ignore[no-untyped-def]
    """Five cases of n = 100: c, and how many upload, answer first and answer last."""
    for colluding, uploading, first, last in LARGE[: scaled(5)]:
        world = made(100, colluding=colluding).joined()
        assert play(world, set(range(uploading)), set(range(first)), set(range(last))) == "done"


@pytest.mark.parametrize("silos", [2, 4, 8, 16])
@pytest.mark.parametrize("bits", [32, 64])
def test_sums_at_the_edge_of_the_ring_are_exact(silos: int, bits: int) -> None:
    """N37: all silos at the largest bound, at B + 1/2, and far beyond it, with n a power of two."""
    ring = fitted("train", [("update", 3, 1.0)], silos=silos, protection="local", bits=bits)
    world = made(silos, rings={"train": ring}).joined()
    scale, bound = ring.segments[0].scale, ring.bound
    for value in (bound, -bound, bound + 0.5, -bound - 0.5, 1e38 * scale):
        one = world.begin()
        vector = np.full(3, value / scale)
        one.collect({name: silo.upload(one.request(name), (vector,)) for name, silo in world.silos.items()})
        assert world.unmasked(one) == "done"
        edge = bound if value > 0 else -bound
        assert one.total().vectors[0].tolist() == [silos * edge / scale] * 3


def test_a_seed_beyond_the_field_masks_equally_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """N38: a derivation that gives a number above p; the seed is reduced before it is key, share and commitment."""
    monkeypatch.setattr(claims, "expand", lambda *_: b"\xff" * 32)
    assert pair_seed(bytes(32), bytes(32)) == 2**256 - 1 - P
    world = made(5, colluding=1).joined()
    one = world.begin()
    assert world.finished(one, (list(world.silos)[:4], None, None)) == "done"
    world.check(one.total(), 1)


def test_train_and_evaluate_take_turns() -> None:
    """t counts sums; each kind has its own layout; kinds without noise are summed over everybody."""
    world = made(4).joined()
    for t in range(1, 7):
        one = world.begin("train" if t % 2 else "evaluate")
        assert one.t == t and world.finished(one) == "done"
        world.check(one.total(), t)
        for silo in world.silos.values():
            silo.close(one.record())


def test_float32_updates_and_large_vectors() -> None:
    world = made(3, size=300_000).joined()
    one = world.begin()
    rng = np.random.default_rng(1)
    ring = world.setup.kinds["train"]
    sent = {n: (rng.uniform(-1, 1, 300_000).astype(np.float32), np.ones(1, np.float32)) for n in world.silos}
    one.collect({name: world.silos[name].upload(one.request(name), sent[name]) for name in sent})
    assert world.unmasked(one) == "done"
    steps = [np.rint(np.float64(update) * ring.segments[0].scale) for update, _ in sent.values()]
    assert np.array_equal(one.total().vectors[0], np.sum(steps, axis=0) / ring.segments[0].scale)
    assert one.total().vectors[1].tolist() == [3.0]


def test_uploads_differ_in_all_that_is_drawn() -> None:
    """N29: two uploads of the same vector share no nonce, no commitment of an own seed, no box and no words."""
    world = made(3).joined()
    ring = world.setup.kinds["train"]
    vectors = tuple(np.zeros(segment.length) for segment in ring.segments)
    uploads = []
    for _ in range(2):
        one = world.begin()
        uploads.append(world.silos["silo-000"].upload(one.request("silo-000"), vectors))
        one.abort()
    pieces = [{data[place : place + 24] for place in range(0, ring.size_bytes, 24)} for data in uploads]
    assert not pieces[0] & pieces[1]


def test_the_processes_entropy_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """House rule 6: seeds and nonces come from the system; numpy's and Python's generators do not matter."""
    import random

    made_with = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        made_with.append(claims.random_element())
    assert made_with[0] != made_with[1]
    drawn = []
    true = os.urandom
    monkeypatch.setattr(random, "_urandom", lambda count: drawn.append(count) or true(count))
    claims.random_element()
    assert drawn, "secrets draws on os.urandom"
