"""How far silos' updates are from each other, in one pass over them, and weighted means of them.

Everything is in float64. Squared distances come from inner products, chunk by chunk, which is one matrix product; where
that cancels, for two updates that nearly agree, they are taken from the differences themselves.

Guarantees: the distance of two updates does not depend on a third, so a huge one blurs nothing between the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from strategies.errors import RunError
from strategies.layout import Vector
from strategies.order_statistics import Rows

Matrix = NDArray[np.float64]  # (n, n), a row and a column a silo
_CHUNK = 2**13  # coordinates
_CANCELS = 1e-6  # of two squared norms: below it, inner products leave too few digits of their distance


def inner_products(rows: Rows, origin: Vector | None = None) -> Matrix:
    """Return the inner products of all rows, seen from `origin` (default: zero).

    Raises:
        RunError: a row holds a value that is not a finite number.
    """
    products: Matrix = np.zeros((len(rows), len(rows)))
    for start, part in _parts(rows):
        if origin is not None:
            part -= origin[start : start + _CHUNK]
        products += part @ part.T
    if not np.isfinite(products).all():
        raise RunError("an update holds a value that is not a finite number, and no distance can be taken from it")
    return products


def squared_distances(rows: Rows) -> Matrix:
    """Return the squared L2 distances of all pairs, to six digits or better.

    Raises:
        RunError: a row holds a value that is not a finite number.
    """
    products = inner_products(rows)
    norms = np.diagonal(products)
    both = norms[:, None] + norms[None, :]
    distances: Matrix = both - products - products.T
    for one, other in zip(*np.nonzero(np.triu(distances <= _CANCELS * both, 1)), strict=True):
        distances[one, other] = distances[other, one] = _by_differences(rows[one], rows[other])
    np.fill_diagonal(distances, 0.0)
    return distances


def _by_differences(one: Vector, other: Vector) -> float:
    total = 0.0
    for start in range(0, len(one), _CHUNK):
        part = one[start : start + _CHUNK].astype(np.float64)
        part -= other[start : start + _CHUNK]
        total += float(part @ part)
    return total


def mean_of(rows: Rows, weights: NDArray[np.float64]) -> Vector:
    """Return the sum of the rows times `weights`, which add up to one; a row of weight zero is not looked at."""
    used = np.flatnonzero(weights)
    mean = np.empty_like(rows[0])
    for start, part in _parts([rows[int(place)] for place in used]):
        mean[start : start + _CHUNK] = weights[used] @ part
    return mean


def scores(distances: Matrix, byzantine: int) -> NDArray[np.float64]:
    """Return Krum's score of each silo: the squared distances to its n - byzantine - 2 nearest, added up."""
    nearest = np.sort(distances + np.diag(np.full(len(distances), -1.0)), axis=1)  # itself is the first
    count = len(distances) - byzantine - 2
    total: NDArray[np.float64] = nearest[:, 1 : 1 + count].sum(axis=1)
    return total


def _parts(rows: Rows) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield where each chunk starts, and all rows of it in float64, good until the next."""
    parts = np.empty((len(rows), min(_CHUNK, len(rows[0]))))
    for start in range(0, len(rows[0]), _CHUNK):
        part = parts[:, : len(rows[0]) - start]
        for copy, row in zip(part, rows, strict=True):
            np.copyto(copy, row[start : start + _CHUNK])
        yield start, part
