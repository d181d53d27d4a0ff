"""Secrets in shares: any `threshold` of them give the secret, fewer say nothing of it (Shamir, "How to share a secret",
CACM 22, 1979), over the integers modulo the prime 2^256 - 189, each in 32 bytes whatever its value.

The seeds and the commitments to them are derived here too, as a share is only as good as the commitment that a
recovered seed is held against.

Guarantees: `recover` gives the committed secret or none. It searches all sets of shares while they are few, and
decodes a Reed-Solomon code (Gao, "A new algorithm for decoding Reed-Solomon codes", 2003) where they are many, so it
finds a secret that up to (shares - threshold) / 2 wrong shares hide, and in small cohorts up to shares - threshold.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import mul

from strategies.secagg.encoding import KEY_BYTES, expand

P = 2**256 - 189
_MOST_SETS = 4000  # sets of shares that are tried before the code is decoded instead


def to_bytes(element: int) -> bytes:
    """Return an element of the field in 32 bytes, the highest first."""
    return element.to_bytes(KEY_BYTES, "big")


def from_bytes(data: bytes) -> int | None:
    """Return the element that 32 bytes stand for, or None."""
    element = int.from_bytes(data, "big")
    return element if len(data) == KEY_BYTES and element < P else None


def random_element() -> int:
    """Return a uniform element of the field."""
    return secrets.randbelow(P)


def mask_key(seed: int) -> bytes:
    """Return the AES key that a seed stands for."""
    return expand(to_bytes(seed), "fsa1/prg")


def commitment(seed: int) -> bytes:
    """Return what binds to a seed and does not give it away."""
    return expand(to_bytes(seed), "fsa1/com")


def split(secret: int, threshold: int, count: int) -> list[int]:
    """Return the shares of points 1 to `count`, on a new polynomial of degree `threshold` - 1.

    The polynomial is drawn by its values at 1 to `threshold` - 1, which are uniform as its coefficients would be: each
    choice of the ones is one of the others.

    Args:
        secret: an element of the field, the value at 0.
        threshold: shares that give it back.
        count: shares, at least `threshold`.
    """
    values = [secret, *(random_element() for _ in range(threshold - 1))]
    rest = (sum(map(mul, _onward(threshold, point), values)) % P for point in range(threshold, count + 1))
    return [*values[1:], *rest]


@lru_cache(maxsize=4096)
def _onward(threshold: int, point: int) -> tuple[int, ...]:
    """Lagrange's weights at `point` of values at 0 to `threshold` - 1: whole numbers, as the points are in a row."""
    last = threshold - 1
    return tuple(
        (-1) ** (last - place) * math.comb(point, place) * math.comb(point - place - 1, last - place)
        for place in range(threshold)
    )


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """A secret that holds, and the points whose shares are not of its polynomial, as far as they were looked at."""

    secret: int = field(repr=False)
    wrong: frozenset[int] = frozenset()


def recover(
    shares: Mapping[int, int], threshold: int, holds: Callable[[int], bool], distrust: Collection[int] = ()
) -> Recovered | None:
    """Return the secret that `holds`, or None when these shares do not give it.

    Args:
        shares: by point.
        threshold: as in `split`.
        holds: says whether a secret is the committed one.
        distrust: points to use last.
    """
    points = sorted(shares, key=lambda point: (point in distrust, point))
    if len(points) < threshold:
        return None
    first = tuple(points[:threshold])
    if holds(secret := _at(0, first, shares)):
        return Recovered(secret=secret)
    if math.comb(len(points), threshold) > _MOST_SETS:
        polynomial = _decoded(points, shares, threshold)
        if polynomial is None or not holds(_value(polynomial, 0)):
            return None
        wrong = frozenset(point for point in points if _value(polynomial, point) != shares[point])
        return Recovered(secret=_value(polynomial, 0), wrong=wrong)
    for chosen in itertools.combinations(points, threshold):
        if holds(secret := _at(0, chosen, shares)):
            wrong = frozenset(point for point in points if _at(point, chosen, shares) != shares[point])
            return Recovered(secret=secret, wrong=wrong)
    return None


# --- interpolation ------------------------------------------------------------------------------------------


def _at(place: int, points: tuple[int, ...], shares: Mapping[int, int]) -> int:
    """Return the value at `place` of the polynomial through the shares of `points`."""
    value: int = sum(map(mul, _weights(place, points), map(shares.__getitem__, points)))
    return value % P


@lru_cache(maxsize=4096)
def _weights(place: int, points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights; points are public."""
    found = []
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above = above * (place - other) % P
                below = below * (point - other) % P
        found.append(above * pow(below, -1, P) % P)
    return tuple(found)


# --- decoding; polynomials are lists of coefficients, the lowest first, none of them with a leading zero -------------


def _decoded(points: Sequence[int], shares: Mapping[int, int], threshold: int) -> list[int] | None:
    """Return the polynomial of degree below `threshold` that most shares lie on (Gao's algorithm), or None."""
    every = [1]
    for point in points:
        every = _times(every, [-point % P, 1])
    through = _through(points, shares, every)
    stop = (len(points) + threshold) / 2
    a, b, u, v = every, through, list[int](), [1]
    while len(b) - 1 >= stop:
        quotient, rest = _divided(a, b)
        a, b, u, v = b, rest, v, _minus(u, _times(quotient, v))
    found, rest = _divided(b, v)
    return found if not rest and len(found) <= threshold else None


def _through(points: Sequence[int], shares: Mapping[int, int], every: list[int]) -> list[int]:
    found = [0] * len(points)
    for point in points:
        basis, _ = _divided(every, [-point % P, 1])
        factor = shares[point] * pow(_value(basis, point), -1, P) % P
        found = [(value + factor * term) % P for value, term in zip(found, basis, strict=True)]
    return _trimmed(found)


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % P
    return value


def _times(a: Sequence[int], b: Sequence[int]) -> list[int]:
    if not a or not b:
        return []
    found = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            found[i + j] = (found[i + j] + x * y) % P
    return _trimmed(found)


def _minus(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return _trimmed([(x - y) % P for x, y in itertools.zip_longest(a, b, fillvalue=0)])


def _divided(a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
    rest, lead = list(a), pow(b[-1], -1, P)
    quotient = [0] * max(len(a) - len(b) + 1, 0)
    for shift in range(len(quotient) - 1, -1, -1):
        factor = rest[shift + len(b) - 1] * lead % P
        quotient[shift] = factor
        for i, y in enumerate(b):
            rest[shift + i] = (rest[shift + i] - factor * y) % P
    return _trimmed(quotient), _trimmed(rest)


def _trimmed(polynomial: list[int]) -> list[int]:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial
