"""Laws of the flat layout: sorted names, no gaps, one digest a meaning. Oracle: numpy's concatenate and hashlib."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.errors import ProtocolError
from strategies.layout import Layout

shapes = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5
)


@given(shapes, st.randoms())
def test_join_and_split_are_inverse_in_the_order_of_names(shapes: dict[str, tuple[int, ...]], random) -> None:
    layout = Layout.of(shapes)
    names = random.sample(list(shapes), len(shapes))
    assert Layout.of({name: shapes[name] for name in names}) == layout, "the order of the mapping matters"
    assert layout.size == sum(math.prod(shape) for shape in shapes.values())
    values = np.random.default_rng(1)
    parts = {name: values.normal(size=shapes[name]).astype(np.float32) for name in names}
    flat = layout.join(parts)
    assert flat.dtype == np.float32
    assert np.array_equal(
        flat, np.concatenate([np.zeros(0, np.float32), *(parts[name].ravel() for name in sorted(parts))])
    )
    back = layout.split(flat)
    assert list(back) == sorted(parts)
    assert all(back[name].shape == shapes[name] and np.array_equal(back[name], parts[name]) for name in parts)


def test_split_gives_views() -> None:
    flat = np.zeros(3, np.float32)
    Layout.of({"a": (2,), "b": ()}).split(flat)["a"][1] = 5
    assert flat.tolist() == [0, 5, 0]


def test_the_digest_is_the_hash_of_the_written_facts() -> None:
    text = '[["bias",[2],0,"<f4"],["weight",[2,3],2,"<f4"]]'
    assert Layout.of({"weight": (2, 3), "bias": (2,)}).digest() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("other", [{"a": (3, 2)}, {"b": (2, 3)}, {"a": (6,)}, {"a": (2, 3), "b": (0,)}, {}])
def test_another_meaning_has_another_digest(other: dict[str, tuple[int, ...]]) -> None:
    assert Layout.of(other).digest() != Layout.of({"a": (2, 3)}).digest()


@pytest.mark.parametrize("values", [[1.0, 2.0], [1, 2], np.float64([1.5, -0.0])])
def test_check_gives_float32(values) -> None:
    got = Layout.of({"a": (2,)}).check(np.asarray(values), "the update")
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.tolist() == list(values)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(1),
        np.zeros(3),
        np.zeros((2, 1)),
        np.zeros(()),
        np.zeros((1, 2)),
        np.array([0, np.nan]),
        np.array([np.inf, 0]),
        np.array([0, -np.inf]),
        np.array([1e300, 0.0]),
    ],
    ids=str,
)
def test_check_refuses_other_shapes_and_values_beyond_float32(vector) -> None:
    with pytest.raises(ProtocolError, match="the update"):
        Layout.of({"a": (2,)}).check(vector, "the update")
