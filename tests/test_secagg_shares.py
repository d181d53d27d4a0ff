"""Shamir's shares and what recovers a secret from some wrong ones; the oracle of the field is sympy."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from strategies.secagg import shares as module
from strategies.secagg.shares import P, commitment, from_bytes, mask_key, random_element, recover, split, to_bytes

secrets_ = st.integers(0, P - 1)


def dealt(secret: int, threshold: int, count: int) -> dict[int, int]:
    return dict(enumerate(split(secret, threshold, count), 1))


def wronged(shares: dict[int, int], points: set[int]) -> dict[int, int]:
    return {point: (share + point + 1) % P if point in points else share for point, share in shares.items()}


def test_the_modulus_is_prime_and_shares_have_32_bytes() -> None:
    assert P == 2**256 - 189 and sympy.isprime(P)
    assert [len(to_bytes(value)) for value in (0, 1, P - 1)] == [32, 32, 32]
    assert from_bytes(to_bytes(P - 1)) == P - 1
    for wrong in (P.to_bytes(32, "big"), b"\xff" * 32, bytes(31), bytes(33), b""):
        assert from_bytes(wrong) is None


@given(secrets_, st.integers(1, 9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret(secret: int, least: int, more: int, chance: random.Random) -> None:
    """Checked by sympy's interpolation over the field, too."""
    shares = dealt(secret, least, least + more)
    chosen = dict(chance.sample(sorted(shares.items()), least))
    found = recover(chosen, least, lambda value: value == secret)
    assert found is not None and found.secret == secret
    x = sympy.Symbol("x")
    through = sympy.interpolate(list(chosen.items()), x)
    numerator, denominator = sympy.fraction(sympy.together(through.subs(x, 0)))
    assert int(numerator) * pow(int(denominator), -1, P) % P == secret


@given(secrets_, secrets_)
def test_fewer_shares_fit_every_secret(secret: int, other: int) -> None:
    """With one share less, a polynomial of the same degree goes through any other secret as well."""
    shares = dealt(secret, 4, 6)
    three = {point: shares[point] for point in (2, 3, 6)}
    assert recover(three, 4, lambda _: True) is None
    fourth = module._at(5, (0, 2, 3, 6), {0: other, **three})
    found = recover({5: fourth, **three}, 4, lambda value: value == other)
    assert found is not None and found.secret == other


def test_every_secret_has_new_coefficients() -> None:
    """Two dealings of one secret share no share, and a threshold of 2 does not give the secret away in any share."""
    one, two = dealt(7, 3, 5), dealt(7, 3, 5)
    assert not set(one.values()) & set(two.values())
    assert 7 not in dealt(7, 2, 100).values()
    assert len({random_element() for _ in range(100)}) == 100


@pytest.mark.parametrize("decode", [False, True], ids=["search", "decode"])
def test_wrong_shares_are_found_and_named(decode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """N30: half of the spare shares may be wrong in any cohort; all of the spare ones where sets are searched."""
    if decode:
        monkeypatch.setattr(module, "_MOST_SETS", 0)
    chance = random.Random(3)
    for _ in range(60):
        count = chance.randrange(2, 13)
        least = chance.randrange(1, count + 1)
        most = (count - least) // 2 if decode else count - least
        secret = chance.randrange(P)
        points = set(chance.sample(range(1, count + 1), chance.randrange(most + 1)))
        found = recover(wronged(dealt(secret, least, count), points), least, secret.__eq__)
        assert found is not None and found.secret == secret
        used = set(range(1, least + 1))  # those that gave the secret at once are all that was looked at
        assert found.wrong == (points if points & used else frozenset())


def test_decoding_a_large_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 shares, 67 of which are needed: 16 wrong ones are corrected, 17 are not and nothing comes out."""
    shares = dealt(99, 67, 100)
    for count in (16, 17):
        points = set(random.Random(count).sample(range(1, 68), count))
        found = recover(wronged(shares, points), 67, lambda value: value == 99)
        if count == 16:
            assert found is not None and (found.secret, found.wrong) == (99, points)
        else:
            assert found is None


@pytest.mark.parametrize("secret", [0, 1, P - 1])
def test_decoding_edges_of_the_field(secret: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SETS", 0)
    for least in (1, 2, 3):
        found = recover(wronged(dealt(secret, least, least + 2), {1}), least, lambda value: value == secret)
        assert found is not None and (found.secret, found.wrong) == (secret, {1})


def test_no_secret_comes_out_that_was_not_committed_to() -> None:
    """N30: wrong values everywhere, or a commitment to something else."""
    shares = dealt(5, 3, 5)
    assert recover(shares, 3, lambda value: value == 6) is None
    assert recover({point: share + 1 for point, share in shares.items()}, 3, lambda value: value == 5) is None
    assert recover({}, 3, lambda _: True) is None


def test_distrusted_points_are_used_last() -> None:
    tried: list[int] = []

    def holds(value: int) -> bool:
        tried.append(value)
        return value == 5

    shares = wronged(dealt(5, 3, 6), {1, 2, 3})
    assert recover(shares, 3, holds, distrust={1, 2, 3}) is not None
    assert len(tried) == 1


def test_shares_are_uniform() -> None:
    """The lowest 4 bits of one share over 4,000 dealings of one secret; false alarm 1e-6, and zeros must fail."""
    counts = Counter(split(1, 2, 3)[1] & 15 for _ in range(4000))
    assert chi_square(counts) < 58.0
    assert chi_square(Counter({0: 300, **dict.fromkeys(range(1, 16), 247)})) < 58.0
    assert chi_square(Counter({0: 400, **dict.fromkeys(range(1, 16), 240)})) > 58.0


def chi_square(counts: Counter[int]) -> float:
    """Of 16 cells; 58.0 is exceeded with probability 5e-7 (15 degrees of freedom)."""
    expected = sum(counts.values()) / 16
    return sum((counts[cell] - expected) ** 2 / expected for cell in range(16))


def test_a_commitment_and_a_mask_key_are_two_values_of_one_seed() -> None:
    """F22: neither the seed nor one another, and another for each seed."""
    seeds = [random_element() for _ in range(20)]
    values = [value for seed in seeds for value in (to_bytes(seed), commitment(seed), mask_key(seed))]
    assert len(set(values)) == 60
