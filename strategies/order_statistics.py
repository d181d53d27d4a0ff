"""Order statistics over silos, coordinate by coordinate, for a few vectors of millions of values.

A sorting network (Batcher 1968; Knuth, "The art of computer programming", volume 3, section 5.2.2, algorithm M) is cut
down to the comparators that the wanted ranks need, and each comparator is one `np.minimum` and one `np.maximum` over a
chunk of coordinates that stays in the cache. Ranks that are only added up need no order among themselves.

Guarantees: a value that is not a number makes its coordinate not a number, and so does no wrong in silence; an infinite
one is the largest or the smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from strategies.errors import RunError
from strategies.layout import Vector

Rows = Sequence[Vector]  # one vector a silo, all of one length
Comparator = tuple[int, int, bool, bool]  # two places, and whether the lesser and the greater are wanted
_CACHED = 2**19  # values of all rows of a chunk
_LEAST, _MOST = 512, 2**14  # coordinates of a chunk
_MIXED = 2**11  # coordinates of a product of matrices; wider ones are slower


def rows_of(updates: Mapping[str, Vector], least: int) -> list[Vector]:
    """Return the updates sorted by silo, so that the answer does not depend on who came first.

    Raises:
        RunError: there are fewer than `least`, which the rule needs to hold what it promises.
    """
    if len(updates) < least:
        raise RunError(f"{len(updates)} updates arrived and the strategy's rule needs {least}; raise cohort.min_silos")
    return [updates[silo] for silo in sorted(updates)]


def middle_mean(rows: Rows, cut: int, mixing: NDArray[np.float64] | None = None) -> Vector:
    """Return the mean of each coordinate's values without its `cut` lowest and `cut` highest.

    Args:
        rows: more than twice `cut`.
        cut: at each end.
        mixing: (n, n) where given: its rows are the weights of the means that take the place of the rows.
    """
    kept = len(rows) - 2 * cut
    comparators = network(len(rows), cut, len(rows) - cut)

    def reduced(chunk: list[Vector], into: Vector) -> None:
        places = ordered(chunk, comparators)
        np.copyto(into, places[cut])
        for place in places[cut + 1 : cut + kept]:
            into += place
        into *= np.float32(1 / kept)

    return by_chunks(rows, reduced, mixing)


def nearest_the_median(rows: Rows, count: int) -> Vector:
    """Return the mean of each coordinate's `count` values that are nearest to their median.

    In order of size these are neighbours, so they have one value of each rank modulo `count`: its nearest.
    """
    comparators = network(len(rows), 0, len(rows), in_order=True)

    def reduced(chunk: list[Vector], into: Vector) -> None:
        places = ordered(chunk, comparators)
        median = (places[(len(rows) - 1) // 2] + places[len(rows) // 2]) * np.float32(0.5)
        for rank, place in enumerate(places[count:]):
            _take_nearer(places[rank % count], place, median)
        np.copyto(into, places[0])
        for place in places[1:count]:
            into += place
        into *= np.float32(1 / count)

    with np.errstate(over="ignore"):  # what is as far away as that is not taken
        return by_chunks(rows, reduced)


def _take_nearer(values: Vector, others: Vector, median: Vector) -> None:
    """Put others in the place of values where they are nearer to the median, by their bits: a masked copy is slow."""
    nearer = np.abs(others - median) < np.abs(values - median)
    differing = values.view(np.int32) ^ others.view(np.int32)
    differing &= -nearer.astype(np.int32)
    bits = values.view(np.int32)
    bits ^= differing


def by_chunks(
    rows: Rows, reduced: Callable[[list[Vector], Vector], None], mixing: NDArray[np.float64] | None = None
) -> Vector:
    """Return the vector whose every chunk `reduced` has filled in.

    Args:
        rows: one vector a silo.
        reduced: takes copies of the rows' chunk, which it may overwrite, and where the result goes. One row more is
            there at the end, for what has to be put somewhere.
        mixing: (n, n) where given: its rows are the weights of the means that take the place of the rows.
    """
    size, result = len(rows[0]), np.empty_like(rows[0])
    step = min(max(_LEAST, min(_MOST, _CACHED // len(rows))), size)
    copies = np.empty((len(rows) + 1, step), rows[0].dtype)
    mixed, shares = (None, None) if mixing is None else (np.empty_like(copies), mixing.astype(copies.dtype))
    for start in range(0, size, step):
        into = result[start : start + step]
        chunk = copies[:, : len(into)]
        for copy, row in zip(chunk, rows, strict=False):
            np.copyto(copy, row[start : start + step])
        if mixed is not None and shares is not None:
            for at in range(0, len(into), _MIXED):
                np.matmul(shares, chunk[:-1, at : at + _MIXED], out=mixed[:-1, at : min(at + _MIXED, len(into))])
            chunk = mixed[:, : len(into)]
        reduced(list(chunk), into)
    return result


def ordered(chunk: list[Vector], comparators: Sequence[Comparator]) -> list[Vector]:
    """Return the rows of a chunk by rank as far as the network puts them in order; they are overwritten.

    Args:
        chunk: the rows, and one more that is overwritten.
        comparators: a network of that many rows.
    """
    *places, spare = chunk
    for low, high, lesser, greater in comparators:
        one, other = places[low], places[high]
        if not greater:
            np.minimum(one, other, out=one)
        elif not lesser:
            np.maximum(one, other, out=other)
        else:
            np.minimum(one, other, out=spare)
            np.maximum(one, other, out=other)
            places[low], spare = spare, one
    return places


@lru_cache(maxsize=256)
def network(count: int, first: int, end: int, *, in_order: bool = False) -> tuple[Comparator, ...]:
    """Return the comparators that bring the ranks from `first` to before `end` to their places.

    Args:
        count: rows.
        first: the lowest wanted rank, from 0.
        end: one more than the highest wanted rank.
        in_order: each at its own place; else they may be mixed up among themselves.
    """
    # Backwards: what becomes of each place. Two places of one fate need no order between them.
    fates: list[object] = [None] * count
    fates[first:end] = range(first, end) if in_order else ["kept"] * (end - first)
    found: list[Comparator] = []
    for low, high in reversed(list(_merge_exchange(count))):
        if fates[low] == fates[high]:
            continue
        found.append((low, high, fates[low] is not None, fates[high] is not None))
        fates[low] = fates[high] = (len(found),)  # the lesser and the greater of two do not depend on their order
    return tuple(reversed(found))


def _merge_exchange(count: int) -> Iterator[tuple[int, int]]:
    """Yield the comparators that sort `count` rows."""
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            yield from ((i, i + d) for i in range(count - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
