"""Signals: an `.npz` of equally long records, or an index table with one file a row.

A record has public steps and channels: it is resampled to the study's rate where a file says its own, cropped at the
end or filled up with zeros. Values are scaled by one public range, or by one numeric feature a channel, found by name
where files name their channels. A value that was not measured is 0, the middle of its bounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.arrays import ArrayFile, open_arrays
from client.data.listed import (
    PATH_COLUMN,
    beside,
    beside_arrays,
    blocks_of,
    bounded,
    bounds_of_type,
    bounds_seen,
    check_real,
    read_index,
    scaled,
    shown,
)
from client.data.recordings import Values, read, resampled
from client.data.records import Array, Encoded, Loaded, Positions, Spool, in_memory_if_small
from client.data.schema import Tally, encode_numbers, refuse, to_numbers
from client.data.tables import row_numbers
from client.data.targets import target_columns
from client.models.base import Inputs, Shape
from strategies.errors import DataError
from strategies.sections import NumericFeature
from strategies.study import Study

if TYPE_CHECKING:
    import torch

_LABEL = "label"
_RATE = "rate_hz"  # of an index table, or of an .npz: steps a second of each record


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path, *, labelled: bool = True) -> Loaded:
    """Return the records that lie at `path` for a study.

    Args:
        path: an `.npz`, or an index table (.csv or .parquet).
        study: its data section says what is read.
        rename: this silo's own column and channel names to the study's.
        scratch: folder for what is too large for memory.
        labelled: whether the target is read; without it `Loaded.y` is zero.

    Raises:
        DataError: a file or a value does not fit the study; the sentence names the file.
    """
    channels = _Channels.of(study)
    if path.suffix.lower() == ".npz":
        arrays = open_arrays(path, scratch)
        others = beside_arrays(arrays, study, rename, path.name, labelled=labelled)
        return others.with_inputs(*_from_arrays(arrays, channels, path.name))
    frame = _index(path, rename)
    others = beside(frame, target_columns(study, _LABEL) if labelled else [], study, path.name)
    return others.with_inputs(*_from_files(frame, channels, rename, scratch))


def index(path: Path, study: Study) -> pl.DataFrame:
    """Return one row a record: `path`, absolute, and the other columns of an index table.

    Raises:
        DataError: the table cannot be read.
    """
    return _index(path, {})


def read_off(path: Path, study: Study, scratch: Path) -> dict[str, Any]:
    """Return what the study leaves open and the files show: keys and values of it, not private.

    Raises:
        DataError: the files cannot be read.
    """
    data, named = study.file.data, numeric_features(study)
    no_bounds = data.range is None and not named
    found: dict[str, Any] = {}
    if path.suffix.lower() == ".npz" and (data.shape is None or no_bounds):
        arrays = open_arrays(path, scratch)
        if data.shape is None:
            found["data.shape"] = list(_signal_shape(arrays, path.name))
        if no_bounds:
            x = arrays.x
            found["data.range"] = list(bounds_of_type(x.dtype) or bounds_seen(blocks_of(x), path.name))
    elif data.shape is None or no_bounds:
        frame = index(path, study)
        if data.shape is None:
            _, _, values = next(_recordings(frame, {}, tuple(named), len(named) or None, data.rate_hz))
            found["data.shape"] = list(values.shape)
        if no_bounds:
            blocks = (read(Path(name), {}).values for name in frame[PATH_COLUMN].unique(maintain_order=True))
            found["data.range"] = bounds_seen(blocks, path.name)
    return found


def numeric_features(study: Study) -> dict[str, NumericFeature]:
    """Return the features that are channels."""
    features = study.file.data.features
    return {name: feature for name, feature in features.items() if isinstance(feature, NumericFeature)}


def _index(path: Path, rename: Mapping[str, str]) -> pl.DataFrame:
    if path.is_dir():
        raise DataError(f"{path} is a folder; signals are an .npz, or an index table (.csv or .parquet) of files")
    return read_index(path, rename)


@dataclass(frozen=True, kw_only=True)
class _Channels:
    """What a study says about its channels.

    Args:
        steps: that every record gets.
        features: bounds of each channel.
        names: of each channel where the study has features, else empty.
        rate_hz: steps a second; None where records are taken as they are.
    """

    steps: int
    features: tuple[NumericFeature, ...]
    names: tuple[str, ...]
    rate_hz: float | None

    @classmethod
    def of(cls, study: Study) -> _Channels:
        """Return them, or raise a `DataError` if the study leaves the bounds open or contradicts itself."""
        steps, count = Shape.of_study(study).inputs
        data, named = study.file.data, numeric_features(study)
        if not named and data.range is None:
            raise DataError(
                "data.range is missing: signals need public bounds; write range = [low, high], or one numeric feature "
                "a channel in [data.features]"
            )
        if named and len(named) != count:
            raise DataError(
                f"data.features has {len(named)} numeric features and data.shape {count} channels; write one feature "
                "a channel"
            )
        features = tuple(named.values()) or (bounded(*(data.range or ())),) * count
        return cls(steps=steps, features=features, names=tuple(named), rate_hz=data.rate_hz)

    def encode(self, raw: NDArray[Any], lengths: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return (rows, steps, channels) of raw (rows, any steps, channels); beyond a row's length it is 0."""
        raw = raw[:, : self.steps]
        out = np.zeros((len(raw), self.steps, len(self.features)), dtype=np.float32)
        for number, feature in enumerate(self.features):
            out[:, : raw.shape[1], number] = scaled(raw[:, :, number], feature)
        if lengths is not None:
            out[np.arange(self.steps) >= lengths[:, None]] = 0.0
        return out

    def tally(self, raw: NDArray[Any], into: Tally, name: str) -> None:
        """Count what is unusual in (values, channels) of a file; raise a `DataError` where the study refuses it."""
        for number, feature in enumerate(self.features):
            label = self.names[number] if self.names else f"channel {number + 1}"
            values = raw[:, number].astype(np.float64)
            values[~np.isfinite(values)] = np.nan
            encoded = encode_numbers(values, feature)
            try:
                refuse(label, encoded, feature)
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
            into.add(label, encoded)


def _length_notes(steps: Counter[int], wanted: int) -> tuple[str, ...]:
    longer = sum(count for length, count in steps.items() if length > wanted)
    shorter = sum(count for length, count in steps.items() if length < wanted)
    notes = (
        (longer, f"{longer} records have more than {wanted} steps and were cropped"),
        (shorter, f"{shorter} records have fewer than {wanted} steps and were filled up with zeros"),
    )
    return tuple(note for count, note in notes if count)


# --- files --------------------------------------------------------------------------------------------------


def _from_files(
    frame: pl.DataFrame, channels: _Channels, rename: Mapping[str, str], scratch: Path
) -> tuple[torch.Tensor | Inputs, tuple[str, ...]]:
    spool, tally, steps = Spool(scratch), Tally(), Counter[int]()
    for name, raw, values in _recordings(frame, rename, channels.names, len(channels.features), channels.rate_hz):
        channels.tally(raw, tally, name)
        steps[len(values)] += 1
        spool.append(channels.encode(values[None]))
    return spool.finish(), (*tally.notes("values"), *_length_notes(steps, channels.steps))


def _recordings(
    frame: pl.DataFrame, rename: Mapping[str, str], names: tuple[str, ...], count: int | None, rate_hz: float | None
) -> Iterator[tuple[str, Values, Values]]:
    """Yield the file of each row, its values, and its values at the study's rate, each (steps, channels)."""
    rates = None
    if rate_hz is not None and _RATE in frame.columns:
        rates = to_numbers(_RATE, frame[_RATE], row_numbers(frame))
    for place, text in enumerate(frame[PATH_COLUMN]):
        path = Path(text)
        found = read(path, rename)
        values = found.channels(names, count, shown(path))
        if rate_hz is None:
            yield shown(path), values, values
        else:
            source = _rate(found.rate_hz, None if rates is None else float(rates[place]), shown(path))
            yield shown(path), values, resampled(values, source, rate_hz, shown(path))


def _rate(own: float | None, listed: float | None, name: str) -> float:
    """Return the rate of a file: its header's, or else the index table's."""
    if own is not None and listed is not None and own != listed:
        raise DataError(
            f"{name} has rate_hz = {own:g} and its row in the index table {listed:g}; correct the wrong one"
        )
    rate = listed if own is None else own
    if rate is None:
        raise DataError(f"the rate of {name} is not known; add a column rate_hz to the index table")
    if not rate > 0:
        raise DataError(f"{name} has rate_hz = {rate:g}, which must be above 0; correct it")
    return rate


# --- .npz ---------------------------------------------------------------------------------------------------


def _from_arrays(arrays: ArrayFile, channels: _Channels, name: str) -> tuple[torch.Tensor | Inputs, tuple[str, ...]]:
    steps, count = shape = _signal_shape(arrays, name)
    if count != len(channels.features):
        raise DataError(
            f"X of {name} has {count} channels and the study says {len(channels.features)}; correct the file, or "
            "data.shape"
        )
    rates: Any = arrays.columns.get(_RATE)
    if rates is not None and channels.rate_hz is not None and not np.all(rates == channels.rate_hz):
        raise DataError(
            f"array rate_hz of {name} differs from the study's rate_hz = {channels.rate_hz:g}; resample X, or list "
            "files in an index table, which are resampled"
        )
    lengths = _lengths(arrays, steps, name)
    tally, start = Tally(), 0
    for block in blocks_of(arrays.x):
        there = np.arange(steps) < lengths[start : start + len(block), None]
        channels.tally(block.reshape(len(block), *shape)[there], tally, name)
        start += len(block)

    def encode(raw: Any, rows: Positions) -> Array:
        return channels.encode(raw.reshape(len(raw), *shape), lengths[rows])

    x = in_memory_if_small(Encoded(arrays.x, encode, (channels.steps, count)))
    return x, (*tally.notes("values"), *_length_notes(Counter({steps: len(arrays.x)}), channels.steps))


def _signal_shape(arrays: ArrayFile, name: str) -> tuple[int, int]:
    check_real(name, arrays.x.dtype)
    shape = arrays.x.shape[1:]
    if len(shape) not in (1, 2):
        raise DataError(f"X of {name} has {len(shape) + 1} dimensions; signals are (n, steps) or (n, steps, channels)")
    return (shape[0], 1 if len(shape) == 1 else shape[1])


def _lengths(arrays: ArrayFile, steps: int, name: str) -> NDArray[np.int64]:
    """Return the number of steps of each record that are there."""
    found: Any = arrays.columns.get("lengths")
    if found is None:
        return np.full(len(arrays.x), steps)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() > steps:
        raise DataError(f"array lengths of {name} must hold one whole number from 0 to {steps} a record; correct it")
    return np.asarray(found, dtype=np.int64)
