"""Sequences: what was measured of one record, step after step; an `.npz`, or a long table (`client.data.steps`).

A record becomes (steps, channels): the columns of each feature at each step, and last a channel that is 1 at steps
that are there and 0 at the padding after them. Of a record with more steps than the study's shape, the last ones are
kept. A record of which nothing is there has one step at which nothing was measured, so no model sees an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data import steps
from client.data.arrays import ArrayFile, open_arrays
from client.data.listed import beside_arrays, check_real
from client.data.records import Array, Encoded, Loaded, Positions, is_small
from client.data.schema import Tally, encode
from client.data.steps import longer_note, padded
from client.models.base import Inputs, Shape
from strategies.errors import DataError
from strategies.sections import Feature
from strategies.study import Study

if TYPE_CHECKING:
    import torch

MOST_STEPS = 256  # that are read off a data set
_VALUES_AT_ONCE = 2**19
_SAMPLED_RECORDS = 4096
_PERCENTILES = (1.0, 99.0)


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path, *, labelled: bool = True) -> Loaded:
    """Return the records of a file of sequences for a study.

    Args:
        path: .npz with X (n, T, C) or (n, T), NaN where nothing was measured; or a long table, .csv or .parquet.
        study: its data section says what is read.
        rename: this silo's own names of columns or arrays to the study's.
        scratch: folder for what is too large for memory.
        labelled: whether the target is read; without it `Loaded.y` is zero.

    Raises:
        DataError: the file or a value does not fit the study; the sentence names array or column, and the row.
    """
    if path.suffix.lower() != ".npz":
        return steps.load(path, study, rename, scratch, labelled=labelled)
    arrays = open_arrays(path, scratch)
    beside = beside_arrays(arrays, study, rename, path.name, labelled=labelled)
    sequences = _Sequences.of(arrays, study, rename, path.name)
    x, notes = sequences.inputs(arrays)
    return beside.with_inputs(x, notes)


def read_off(path: Path, study: Study, scratch: Path) -> dict[str, Any]:
    """Return what a simulation may read off the records where the study leaves it open; none of it is private.

    Args:
        path: as in `load`.
        study: its data section says what is open.
        scratch: folder for what has to be unpacked.

    Raises:
        DataError: the file cannot be read.
    """
    data = study.file.data
    found: dict[str, Any] = {}
    if path.suffix.lower() != ".npz":
        if data.shape is None:
            found["data.shape"] = [min(MOST_STEPS, steps.longest(path, study))]
        return found
    arrays = open_arrays(path, scratch)
    _check_x(arrays, path.name)
    if data.shape is None:
        found["data.shape"] = [min(MOST_STEPS, int(_lengths(arrays, {}, path.name).max()))]
    if not data.features:
        found["data.features"] = _bounds(arrays, path.name)
    return found


@dataclass(frozen=True, kw_only=True)
class _Sequences:
    """How rows of `X` become sequences.

    Args:
        features: of the channels, in order.
        lengths: (n,) number of steps of each record, 0 for none.
        most: steps that a record may have.
    """

    features: Mapping[str, Feature]
    lengths: NDArray[np.int64]
    most: int

    @classmethod
    def of(cls, arrays: ArrayFile, study: Study, rename: Mapping[str, str], name: str) -> _Sequences:
        most = Shape.of_study(study).inputs[0]
        _check_x(arrays, name)
        features, channels = study.file.data.features, _channels(arrays)
        if len(features) != channels:
            raise DataError(
                f"X of {name} has {channels} channels and the study names {len(features)} features; "
                "data.features must name each channel, in order"
            )
        return cls(features=features, lengths=_lengths(arrays, rename, name), most=most)

    def inputs(self, arrays: ArrayFile) -> tuple[torch.Tensor | Inputs, tuple[str, ...]]:
        """Return the encoded records and notes on them; every value is looked at once, so that errors come now."""
        import torch

        width = sum(feature.width for feature in self.features.values())
        shape = (self.most, width + 1)
        lazy = Encoded(arrays.x, lambda raw, rows: self._encode(raw, rows, Tally()), shape)
        small, tally, kept = is_small(lazy), Tally(), []
        for rows in _blocks(arrays):
            encoded = self._encode(arrays.x[rows], rows, tally)
            if small:
                kept.append(encoded)
        notes = (*tally.notes("steps"), *longer_note(int((self.lengths > self.most).sum()), self.most))
        return (torch.from_numpy(np.concatenate(kept)) if small else lazy), notes

    def _encode(self, raw: Array, rows: Positions, tally: Tally) -> NDArray[np.float32]:
        values = raw.reshape(*raw.shape[:2], -1).astype(np.float64)  # (records, T, channels)
        lengths = self.lengths[rows]
        values[lengths == 0] = np.nan
        stops = np.maximum(lengths, 1)[:, None]
        place = np.arange(values.shape[1])
        there = (place < stops) & (place >= stops - self.most)
        kept = there.sum(axis=1)
        flat, numbers = values[there], np.repeat(rows + 1, kept)
        columns = []
        for channel, (name, feature) in enumerate(self.features.items()):
            encoded = encode(name, pl.Series(name, flat[:, channel]), feature, numbers)
            tally.add(name, encoded)
            columns.append(encoded.columns)
        return padded(np.concatenate(columns, axis=1), kept, self.most)


def _check_x(arrays: ArrayFile, name: str) -> None:
    check_real(name, arrays.x.dtype)
    if len(arrays.x.shape) not in (2, 3) or 0 in arrays.x.shape:
        raise DataError(
            f"X of {name} has shape {arrays.x.shape}; sequences are (n, T, C) or (n, T): records, steps, channels"
        )


def _channels(arrays: ArrayFile) -> int:
    return int(arrays.x.shape[2]) if len(arrays.x.shape) == 3 else 1


def _lengths(arrays: ArrayFile, rename: Mapping[str, str], name: str) -> NDArray[np.int64]:
    """Return the number of steps of each record: the array `lengths`, or all that `X` has."""
    count, most = arrays.x.shape[:2]
    own = {rename.get(key, key): array for key, array in arrays.columns.items()}.get("lengths")
    if own is None:
        return np.full(count, most, dtype=np.int64)
    if own.dtype.kind not in "iu" or own.ndim != 1:
        raise DataError(
            f"array lengths of {name} has type {own.dtype} and shape {own.shape}; it must hold (n,) integers"
        )
    lengths = own.astype(np.int64)
    wrong = np.flatnonzero((lengths < 0) | (lengths > most))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"array lengths of {name}, record {at + 1}: {lengths[at]} steps, and X has room for {most}; correct it"
        )
    return lengths


def _blocks(arrays: ArrayFile) -> Iterator[Positions]:
    count = max(1, _VALUES_AT_ONCE // int(np.prod(arrays.x.shape[1:])))
    for start in range(0, len(arrays.x), count):
        yield np.arange(start, min(start + count, len(arrays.x)))


def _bounds(arrays: ArrayFile, name: str) -> dict[str, Any]:
    """Return a numeric feature a channel, bounded by percentiles of a sample of the records."""
    rows = np.unique(np.linspace(0, len(arrays.x) - 1, _SAMPLED_RECORDS).astype(np.int64))
    lengths, features = _lengths(arrays, {}, name), {}
    for channel in range(_channels(arrays)):
        seen = []
        for some in np.array_split(rows, max(1, len(rows) // 256)):
            values = arrays.x[some].reshape(len(some), arrays.x.shape[1], -1)[:, :, channel].astype(np.float64)
            seen.append(values[np.isfinite(values) & (np.arange(values.shape[1]) < lengths[some, None])])
        features[f"c{channel + 1}"] = _feature(np.concatenate(seen))
    return features


def _feature(values: NDArray[np.float64]) -> dict[str, Any]:
    low, high = (float(f"{bound:.6g}") for bound in np.percentile(values, _PERCENTILES)) if len(values) else (0.0, 1.0)
    if not low < high:  # a constant channel: room on both sides
        low, high = low - 0.5 * max(1.0, abs(low)), low + 0.5 * max(1.0, abs(low))
    return {"type": "numeric", "min": low, "max": high, "source": "read off the records: not private"}
