"""The ring: what comes out of it is the exact sum of what was rounded into it, or a refusal.

The oracle is Python's own rational numbers: `round` of a Fraction rounds halves to even, as rint does.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.errors import ProtocolError, SettingError
from strategies.proof.canonical import dump, load
from strategies.secagg import ring as module
from strategies.secagg.masks import add_mask
from strategies.secagg.ring import CHECK_WORDS, Ring, Segment, Words, add, fitted, subtract

TRAIN = fitted("train", [("weights", 5, 1.0), ("loss", 2, 30.0)], silos=10, protection="local")


def ring_of(bound: int, *, bits: int = 32, exponent: int = 0, length: int = 3) -> Ring:
    segment = Segment(name="x", length=length, scale=2.0**exponent)
    return Ring(name="train", segments=(segment,), bound=bound, bits=bits, protection="local")


def rounded(value: float, scale: float, bound: int) -> int:
    return max(-bound, min(bound, round(Fraction(float(value)) * Fraction(scale))))


def total_of(ring: Ring, vectors: Sequence[Sequence[NDArray[Any]]]) -> Words:
    total = ring.zeros()
    for vector in vectors:
        add(total, ring.encode(vector))
    return total


# --- encode and decode ----------------------------------------------------------------------------------------


@given(
    silos=st.integers(1, 128),
    reach=st.floats(2.0**-60, 2.0**100, width=32),
    bits=st.sampled_from([32, 64]),
    dtype=st.sampled_from([np.float32, np.float64]),
    data=st.data(),
)
def test_the_sum_is_that_of_the_rounded_values(
    silos: int, reach: float, bits: int, dtype: type[np.floating[Any]], data: st.DataObject
) -> None:
    ring = fitted("train", [("x", 4, reach), ("y", 1, 2 * reach)], silos=silos, protection="local", bits=bits)
    values = st.one_of(
        st.floats(-2 * reach, 2 * reach, width=32), st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
    present = data.draw(st.integers(1, min(silos, 5)))
    vectors = [
        [np.array(data.draw(st.lists(values, min_size=n, max_size=n)), dtype) for n in (4, 1)] for _ in range(present)
    ]
    found = ring.decode(total_of(ring, vectors), present)
    for number, segment in enumerate(ring.segments):
        for place in range(segment.length):
            exact = sum(rounded(vector[number][place], segment.scale, ring.bound) for vector in vectors)
            assert found[number][place] == float(Fraction(exact) / Fraction(segment.scale))


@given(value=st.floats(-1, 1), silos=st.integers(1, 128))
def test_within_the_range_rounding_costs_half_a_step(value: float, silos: int) -> None:
    ring = fitted("train", [("x", 1, 1.0)], silos=silos, protection="local")
    clamped: list[str] = []
    words = ring.encode([np.array([value])], on_clamp=lambda name, _: clamped.append(name))
    assert not clamped
    assert abs(float(ring.decode(words, 1)[0][0]) - value) <= 0.5 / ring.segments[0].scale


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False), exponent=st.integers(-126, 63))
def test_float32_is_rounded_as_in_float64(value: float, exponent: int) -> None:
    for bits, bound in ((32, 2**31 - 1), (32, 12_345), (64, 2**62)):
        ring = ring_of(bound, bits=bits, exponent=exponent, length=1)
        short, long = (ring.encode([np.array([value], dtype)]) for dtype in (np.float32, np.float64))
        assert short.tobytes() == long.tobytes()


def test_halves_go_to_the_even_step() -> None:
    words = ring_of(100, length=5).encode([np.array([0.5, 1.5, 2.5, -0.5, -1.5])])
    assert words.view("<i4").tolist() == [0, 2, 2, 0, -2, 0, 0, 0, 0]


def test_words_are_little_endian_and_end_with_the_check_words() -> None:
    assert ring_of(2**20, length=1).encode([np.array([258.0])]).tobytes() == bytes([2, 1, 0, 0]) + bytes(16)
    assert ring_of(2**40, bits=64, length=1).encode([np.array([-2.0])]).tobytes() == b"\xfe" + b"\xff" * 7 + bytes(32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 99_999])
def test_what_is_not_finite_is_refused(value: float, place: int, dtype: type[np.floating[Any]]) -> None:
    vector = np.zeros(100_000, dtype)
    vector[place] = value
    with pytest.raises(ProtocolError, match="not a finite number"):
        ring_of(1000, length=100_000).encode([vector])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [1e38, -1e38, 3.4e38])
def test_what_is_huge_is_clamped_and_counted(value: float, dtype: type[np.floating[Any]]) -> None:
    told: list[tuple[str, int]] = []
    vector = np.array([value, 0.25, value], dtype)
    words = TRAIN.encode([np.zeros(5), np.ones(2)], on_clamp=lambda *seen: told.append(seen))
    assert told == []
    ring = replace(TRAIN, segments=(replace(TRAIN.segments[0], length=3), TRAIN.segments[1]))
    words = ring.encode([vector, np.ones(2)], on_clamp=lambda *seen: told.append(seen))
    sign = 1 if value > 0 else -1
    assert told == [("weights", 2)]
    assert words.view("<i4")[:3].tolist() == [sign * ring.bound, 2**25, sign * ring.bound]


@pytest.mark.parametrize("bound", [1000, 1001])
def test_half_a_step_beyond_the_bound(bound: int) -> None:
    words = ring_of(bound).encode([np.array([bound + 0.5, bound + 0.49, -bound - 0.5])])
    assert words.view("<i4")[:3].tolist() == [bound, bound, -bound]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("silos", [1, 2, 4, 8, 64, 128])
@pytest.mark.parametrize("reach", [1.0, 0.1])
def test_all_silos_at_the_largest_value(silos: int, reach: float, bits: int) -> None:
    # a scale of 2^floor(31 - log2(n R)) wraps here: n R 2^k is then 2^31 itself
    ring = fitted("train", [("x", 2, reach)], silos=silos, protection="local", bits=bits)
    told: list[float] = []
    for value in (reach, float(np.float32(reach)), 2.1 * reach, 1e38):
        words = ring.encode([np.array([value, -value])], on_clamp=lambda *_, value=value: told.append(value))
        total = ring.zeros()
        for _ in range(silos):
            add(total, words)
        exact = silos * rounded(value, ring.segments[0].scale, ring.bound)
        high, low = ring.decode(total, silos)[0]
        assert high == -low == float(Fraction(exact) / Fraction(ring.segments[0].scale))
    assert told == [2.1 * reach, 1e38] or (told == [1e38] and ring.segments[0].exponent == 63)


def test_words_may_be_written_where_they_are_sent_from() -> None:
    place = bytearray(b"\xff" * TRAIN.size_bytes)
    words = TRAIN.encode([np.ones(5), np.ones(2)], out=TRAIN.read(place))
    assert bytes(place) == words.tobytes() == TRAIN.encode([np.ones(5), np.ones(2)]).tobytes()


def test_no_copy_of_the_whole_vector_is_made() -> None:
    ring, vector = ring_of(1000, length=10**6), np.ones(10**6, np.float32)
    vector[::3] = 5000
    tracemalloc.start()
    try:
        ring.encode([vector])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ring.size_bytes <= peak < ring.size_bytes + 2 * 2**20


@pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), ()])
def test_a_vector_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="segment 'x' has shape"):
        ring_of(1000).encode([np.zeros(shape)])
    for count in (0, 2):
        with pytest.raises(ProtocolError, match=f"1 segments, not {count}"):
            ring_of(1000).encode([np.zeros(3)] * count)


def test_adding_and_subtracting_is_exact_in_every_order() -> None:
    ring = fitted("train", [("x", 50, 1.0)], silos=20, protection="local")
    generator = np.random.default_rng(3)
    all_words = [ring.encode([generator.normal(size=50)]) for _ in range(20)]
    forth, back = ring.zeros(), ring.zeros()
    for words in all_words:
        add(forth, words)
    for words in reversed(all_words):
        add(back, words)
    assert forth.tobytes() == back.tobytes() and forth.any()
    for words in all_words:
        subtract(forth, words)
    assert not forth.any()


def test_words_are_read_from_bytes_of_the_right_length() -> None:
    words = TRAIN.encode([np.ones(5), np.ones(2)])
    assert TRAIN.read(words.tobytes()).tobytes() == words.tobytes()
    for data in (b"", words.tobytes()[:-1], words.tobytes() + b"\0"):
        with pytest.raises(ProtocolError, match="bytes, not 44"):
            TRAIN.read(data)


# --- what is not decoded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(CHECK_WORDS))
def test_each_check_word_must_be_zero(place: int) -> None:
    total = TRAIN.encode([np.zeros(5), np.zeros(2)])
    assert [part.tolist() for part in TRAIN.decode(total, 3)] == [[0.0] * 5, [0.0] * 2]
    total[TRAIN.size + place] = 1
    with pytest.raises(ProtocolError, match="check words"):
        TRAIN.decode(total, 3)


def test_a_mask_that_is_left_shows_though_all_values_are_in_range() -> None:
    ring = ring_of(2**30, length=4)  # alone: half of all words are in range
    shown = 0
    for number in range(64):
        total = ring.encode([np.zeros(4)])
        add_mask(total, number.to_bytes(32, "big"), 1)
        inside = (np.abs(total[: ring.size].view("<i4").astype(np.int64)) <= ring.bound).all()
        with pytest.raises(ProtocolError, match="check words"):
            ring.decode(total, 1)
        shown += bool(inside)
    assert shown > 0  # the check of the range alone would have let these pass


@pytest.mark.parametrize("bits", [32, 64])
def test_a_total_beyond_what_the_silos_can_sum_to_is_refused(bits: int) -> None:
    ring = fitted("train", [("x", 3, 1.0)], silos=10, protection="local", bits=bits)
    signed = f"<i{bits // 8}"
    for most in (7 * ring.bound, -7 * ring.bound):
        total = ring.zeros()
        total.view(signed)[1] = most
        assert ring.decode(total, 7)[0][1] == most / ring.segments[0].scale
        total.view(signed)[1] += 1 if most > 0 else -1
        with pytest.raises(ProtocolError, match="7 silos can sum to"):
            ring.decode(total, 7)
    total = ring.zeros()
    total.view(signed)[0] = -(2 ** (bits - 1))  # has no positive counterpart
    with pytest.raises(ProtocolError, match="10 silos can sum to"):
        ring.decode(total, 10)


@pytest.mark.parametrize("total", [np.zeros(10, "<u4"), np.zeros(12, "<u4"), np.zeros(11, "<u8"), np.zeros(11, "<i4")])
def test_a_total_of_another_form_is_refused(total: Words) -> None:
    with pytest.raises(ProtocolError, match="length or type"):
        TRAIN.decode(total, 3)


@pytest.mark.parametrize(("bits", "silos"), [(32, 2), (32, 4), (32, 128), (64, 2), (64, 4), (64, 128)])
def test_there_must_be_room_for_all_silos(bits: int, silos: int) -> None:
    bound = 2 ** (bits - 1) // silos
    with pytest.raises(ProtocolError, match="do not fit below"):
        ring_of(bound, bits=bits).require_room(silos)  # the product is 2^(bits - 1) itself
    with pytest.raises(ProtocolError, match="do not fit below"):
        ring_of(bound, bits=bits).decode(ring_of(bound, bits=bits).zeros(), silos)
    ring_of(bound, bits=bits).require_room(silos - 1)
    fitted("train", [("x", 1, 1.0)], silos=silos, protection="local", bits=bits).require_room(silos)
    for none in (0, -1):
        with pytest.raises(ProtocolError, match="do not fit"):
            ring_of(1, bits=bits).require_room(none)


# --- which ring -----------------------------------------------------------------------------------------------


@given(silos=st.integers(1, 128), reach=st.floats(2.0**-64, 2.0**128, allow_subnormal=False))
def test_bound_and_scale_are_the_largest_that_fit(silos: int, reach: float) -> None:
    ring = fitted("train", [("x", 1, reach)], silos=silos, protection="local")
    scale = Fraction(ring.segments[0].scale)
    assert silos * ring.bound < 2**31 <= silos * (ring.bound + 1)
    assert scale * Fraction(reach) <= ring.bound
    assert 2 * scale * Fraction(reach) > ring.bound or ring.segments[0].exponent == 63
    wide = fitted("train", [("x", 1, reach)], silos=silos, protection="local", bits=64)
    assert silos * wide.bound < 2**63 <= silos * int(math.nextafter(wide.bound, math.inf))


@given(counts=st.lists(st.integers(0, 2**48), min_size=1, max_size=8), silos=st.integers(8, 128))
def test_counts_are_exact(counts: list[int], silos: int) -> None:
    ring = fitted("counts", [("cells", 1, 2.0**20)], silos=silos, protection="none", resolution=2.0**-28)
    assert (ring.bits, ring.segments[0].scale) == (64, 2.0**28)
    total = total_of(ring, [[np.array([count * 2.0**-28])] for count in counts])
    assert Fraction(float(ring.decode(total, len(counts))[0][0])) == Fraction(sum(counts), 2**28)


def test_sums_of_more_than_53_bits_are_rounded_once() -> None:
    ring = fitted("counts", [("cells", 1, 2.0**20)], silos=4, protection="none", bits=64)
    values = [2.0**20, 2.0**-30, 2.0**-30, 2.0**-30]
    total = total_of(ring, [[np.array([value])] for value in values])
    assert float(ring.decode(total, 4)[0][0]) == float(sum(map(Fraction, values)))
    assert total.view("<i8")[0] == sum(map(Fraction, values)) * Fraction(ring.segments[0].scale)


def test_the_resolution_decides_the_width() -> None:
    def width(resolution: float | None) -> int:
        return fitted("counts", [("x", 1, 8.0)], silos=10, protection="none", resolution=resolution).bits

    assert [width(step) for step in (None, 1.0, 2.0**-24, 2.0**-25)] == [32, 32, 32, 64]
    ring = fitted("counts", [("x", 1, 8.0)], silos=10, protection="none", resolution=0.25)
    assert ring.segments[0].scale == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolution": 2.0**-60}, "the range must be at most"),
        ({"resolution": 2.0**-28, "bits": 32}, "32 bits and 10 silos do not hold"),
        ({"resolution": 0.3}, "power of two"),
        ({"bits": 16}, "16 bits is not allowed"),
        ({"silos": 0}, "0 silos is not allowed"),
        ({"parts": [("x", 1, 0.0)]}, "has range 0.0"),
        ({"parts": [("x", 1, -1.0)]}, "has range -1.0"),
        ({"parts": [("x", 1, float("nan"))]}, "has range nan"),
        ({"parts": [("x", 1, float("inf"))]}, "has range inf"),
        ({"parts": [("x", 0, 1.0)]}, "has 0 values"),
        ({"parts": [("x", 1, 1.0), ("x", 2, 1.0)]}, "its own name"),
        ({"parts": []}, "must have segments"),
        ({"protection": "some"}, "protection 'some'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, Any], words: str) -> None:
    given_: dict[str, Any] = {"parts": [("x", 1, 1000.0)], "silos": 10, "protection": "local", **change}
    with pytest.raises(SettingError, match=words):
        fitted("train", given_.pop("parts"), **given_)


# --- the agreement --------------------------------------------------------------------------------------------


def test_a_ring_is_read_back_from_canonical_json() -> None:
    for ring in (
        TRAIN,
        fitted("counts", [("a", 3, 1e30)], silos=3, protection="none", bits=64),
        ring_of(2**62, bits=64),
    ):
        assert Ring.from_value(load(dump(ring.to_value()))) == ring


def test_the_digest_holds_everything() -> None:
    first, second = TRAIN.segments
    others = [
        replace(TRAIN, name="evaluate"),
        replace(TRAIN, bound=TRAIN.bound - 1),
        replace(TRAIN, bits=64),
        replace(TRAIN, protection="none"),
        replace(TRAIN, segments=(second, first)),
        replace(TRAIN, segments=(first,)),
        replace(TRAIN, segments=(replace(first, name="weight"), second)),
        replace(TRAIN, segments=(replace(first, length=6), second)),
        replace(TRAIN, segments=(replace(first, scale=first.scale / 2), second)),
    ]
    assert len({ring.digest() for ring in (TRAIN, *others)}) == 1 + len(others)
    # golden: SHA-256 of the text itself
    assert dump(TRAIN.to_value()) == (
        b'{"bits":32,"bound":214748364,"name":"train","protection":"local","segments":['
        b'{"exponent":27,"length":5,"name":"weights"},{"exponent":22,"length":2,"name":"loss"}]}'
    )
    assert TRAIN.digest() == "5139a61a78802b54b26930ac3cb1c16793775ada5ae85bbbd7ecb36c1f77145a"


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {name: part for name, part in value.items() if name != key}


def with_(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {**value, **changes}


def segment(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {**value, "segments": [{**value["segments"][0], **changes}]}


@pytest.mark.parametrize(
    "change",
    [
        lambda value: None,
        lambda value: [value],
        without("bound"),
        with_(more=1),
        with_(bits=16),
        with_(bits=True),
        with_(bits="32"),
        with_(bound=0),
        with_(bound=-5),
        with_(bound=2**31),
        with_(bound=2.0),
        with_(bits=64, bound=2**60 + 1),
        with_(protection="full"),
        with_(name=None),
        with_(segments=[]),
        with_(segments=[5]),
        with_(segments={}),
        segment(length=0),
        segment(length=-1),
        segment(length=True),
        segment(exponent=-127),
        segment(exponent=64),
        segment(exponent=10**9),
        segment(exponent=1.0),
        segment(name=7),
        segment(scale=1),
        lambda value: {**value, "segments": value["segments"][:1] * 2},
    ],
)
def test_a_value_that_is_no_ring_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    assert Ring.from_value(TRAIN.to_value()) == TRAIN
    with pytest.raises(ProtocolError):
        Ring.from_value(change(TRAIN.to_value()))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, vector = ring_of(2**20, exponent=10, length=1000), np.random.default_rng(5).normal(0, 500, 1000)
    whole = ring.encode([vector])
    for block in (1, 7, 999, 1000):
        monkeypatch.setattr(module, "_BLOCK", block)
        told: list[tuple[str, int]] = []
        assert ring.encode([vector], on_clamp=lambda *seen, told=told: told.append(seen)).tobytes() == whole.tobytes()
        assert told == [("x", int((np.abs(np.rint(vector * 1024)) > 2**20).sum()))]
