"""The set-up of a run: its one text, its bounds, and the thresholds (N6, N7, N8 as to size, N39)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from secagg import made

from strategies.proof.canonical import dump, load
from strategies.secagg.errors import Code, SecaggError
from strategies.secagg.ring import Ring, Segment
from strategies.secagg.setup import MOST_SILOS, Floors, Setup, threshold

GOOD = made(5, colluding=1).setup


def refused(setup: Setup, floors: Floors | None = None) -> Code:
    with pytest.raises(SecaggError) as caught:
        setup.check(floors or Floors())
    return caught.value.code


# --- its text -----------------------------------------------------------------------------------------------


def test_a_set_up_is_read_again() -> None:
    again = Setup.from_bytes(GOOD.to_bytes())
    assert again == GOOD and again.digest() == GOOD.digest() and len(GOOD.digest()) == 32


def test_every_field_changes_the_digest() -> None:
    other = replace(GOOD.kinds["train"], bound=GOOD.kinds["train"].bound - 1)
    changes: list[dict[str, Any]] = [
        {"run": "1" * 32},
        {"roster": "b" * 64},
        {"silos": 6},
        {"coordinator": "c" * 64},
        {"least": 4},
        {"max_colluding": 2},
        {"most_dropped": 1},
        {"sums": 51},
        {"code": "0.1.1"},
        {"plan": "gaussian"},
        {"kinds": {"train": GOOD.kinds["train"]}},
        {"kinds": {**GOOD.kinds, "train": other}},
    ]
    assert {key for change in changes for key in change} == set(GOOD.__dataclass_fields__)
    digests = [replace(GOOD, **change).digest() for change in changes]
    assert len({*digests, GOOD.digest()}) == len(changes) + 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", "x" * 32),
        ("run", "0" * 31),
        ("roster", ""),
        ("coordinator", "0" * 63),
        ("code", ""),
        ("silos", "5"),
        ("silos", True),
        ("plan", 1),
        ("kinds", {}),
        ("kinds", []),
        ("kinds", {"other": GOOD.kinds["train"].to_value()}),
        ("kinds", {"train": {}}),
        ("protocol", "fsa2"),
    ],
)
def test_a_value_of_another_form_is_refused(key: str, value: object) -> None:
    text = dump({**load(GOOD.to_bytes()), key: value})
    with pytest.raises(SecaggError) as caught:
        Setup.from_bytes(text)
    assert caught.value.code is Code.MALFORMED


def test_a_text_of_another_form_is_refused() -> None:
    value = load(GOOD.to_bytes())
    more, less = dump({**value, "more": 1}), dump({key: value[key] for key in value if key != "plan"})
    for text in (b"", b"[]", b"{}", more, less, GOOD.to_bytes() + b" ", GOOD.to_bytes().replace(b":", b": ")):
        with pytest.raises(SecaggError) as caught:
            Setup.from_bytes(text)
        assert caught.value.code is Code.MALFORMED


# --- its bounds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "floors", "code"),
    [
        ({}, Floors(least=4), Code.FLOOR),  # fewer silos than the policy's
        ({"least": 2}, Floors(), Code.FLOOR),
        ({"least": 2}, Floors(least=2), Code.FLOOR),  # a policy cannot go below 3
        ({"least": 3, "max_colluding": 2}, Floors(), Code.FLOOR),  # c + 2 = 4
        ({"least": 6}, Floors(), Code.FLOOR),  # more than there are
        ({}, Floors(max_colluding=2), Code.FLOOR),  # fewer colluding than the policy's
        ({"max_colluding": -1}, Floors(), Code.FLOOR),
        ({"max_colluding": -1}, Floors(max_colluding=-3), Code.FLOOR),
        ({"most_dropped": -1}, Floors(), Code.FLOOR),
        ({"most_dropped": 6}, Floors(), Code.FLOOR),
        ({"sums": 0}, Floors(), Code.FLOOR),
        ({"sums": 51}, Floors(most_sums=50), Code.FLOOR),
        ({"silos": MOST_SILOS + 1}, Floors(), Code.SIZE),
    ],
)
def test_a_set_up_below_the_floors_is_refused(changes: dict[str, int], floors: Floors, code: Code) -> None:
    """N6."""
    assert refused(replace(GOOD, **changes), floors) is code


def test_a_set_up_at_the_floors_is_taken() -> None:
    replace(GOOD, least=5, max_colluding=3, most_dropped=0, sums=50).check(
        Floors(least=5, max_colluding=3, most_sums=50)
    )
    replace(GOOD, most_dropped=5).check(Floors())


@pytest.mark.parametrize("bits", [32, 64])
def test_a_sum_that_reaches_half_the_ring_is_refused(bits: int) -> None:
    """N7: N B = 2^(m-1) exactly."""
    segment = Segment(name="update", length=2, scale=1.0)
    bound = 2 ** (bits - 1) // 8
    ring = Ring(name="train", segments=(segment,), bound=bound, bits=bits, protection="local")
    held = made(8).setup
    assert refused(replace(held, kinds={"train": ring})) is Code.ROOM
    lower = bound - (1 if bits == 32 else 2**8)  # float64 has no value nearer to 2^60
    replace(held, kinds={"train": replace(ring, bound=lower)}).check(Floors())


@pytest.mark.parametrize("protection", ["local", "distributed", "none"])
@pytest.mark.parametrize("floors", [Floors(), Floors(least=2), Floors(pair_with_local_dp=True)])
def test_two_silos_are_refused_by_default(protection: Any, floors: Floors) -> None:
    """N39, F25: a policy must say both, and every kind must have noise of each silo's own."""
    pair = made(2).setup
    one = replace(pair, kinds={"train": replace(pair.kinds["train"], protection=protection)})
    assert refused(one, floors) is Code.FLOOR
    allowed = replace(floors, least=2, pair_with_local_dp=True)
    if protection == "local":
        one.check(allowed)
    else:
        assert refused(one, allowed) is Code.FLOOR


# --- thresholds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silos", "colluding", "tau"),
    [(2, 0, 2), (3, 0, 2), (3, 1, 3), (5, 1, 4), (10, 2, 7), (10, 3, 7), (20, 6, 14), (100, 33, 67)],
)
def test_thresholds_of_the_design(silos: int, colluding: int, tau: int) -> None:
    """SECAGG 4.2, Thresholds."""
    assert threshold(silos, colluding) == tau


def test_two_sets_that_open_have_an_honest_silo_in_common() -> None:
    """tau + Q > n + c for all sizes, and tau is never 1 (N39); with both one lower it does not hold."""
    for silos in range(2, MOST_SILOS + 1):
        for colluding in range(silos - 1):
            tau = threshold(silos, colluding)
            assert tau >= 2 and 2 * tau > silos + colluding >= 2 * (tau - 1)


@pytest.mark.parametrize(("silos", "colluding", "loss"), [(3, 0, 0), (3, 1, 0), (4, 1, 1), (5, 1, 1), (10, 3, 3)])
def test_the_loss_that_a_sum_survives(silos: int, colluding: int, loss: int) -> None:
    """F8."""
    setup = made(silos, colluding=colluding).setup
    assert silos - setup.least_survivors(silos) == loss


def test_the_noise_plan_bounds_the_loss() -> None:
    assert replace(made(10).setup, most_dropped=1).least_survivors(10) == 9
    assert replace(made(10).setup, most_dropped=10).least_survivors(10) == 6


@pytest.mark.parametrize(("cohort", "code"), [(2, Code.COHORT), (6, Code.COHORT), (0, Code.COHORT)])
def test_a_cohort_of_another_size_is_refused(cohort: int, code: Code) -> None:
    """N8: n_min - 1, and more than the roster has."""
    with pytest.raises(SecaggError) as caught:
        GOOD.check_cohort(cohort)
    assert caught.value.code is code


def test_a_cohort_that_colluding_silos_could_open_is_refused() -> None:
    """tau <= n, where a set-up that no silo would join has n_min below c + 2."""
    with pytest.raises(SecaggError) as caught:
        replace(GOOD, least=3, max_colluding=3).check_cohort(3)
    assert caught.value.code is Code.THRESHOLD
    GOOD.check_cohort(3)
