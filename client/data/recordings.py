"""One file of a signal: .csv with a header of channel names, .npy, .npz with X, or WFDB (.hea; extra `medical`).

Guarantees: a file that is damaged or holds no real numbers is one sentence that names it; nothing is unpickled.
"""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.listed import check_real, shown
from client.data.schema import to_numbers
from client.data.tables import check_columns, read_table, row_numbers
from strategies.errors import DataError

SUFFIXES = (".csv", ".npy", ".npz", ".hea")
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)
_MOST = 1000  # between two rates; more is a mistake in one of them

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a file holds.

    Args:
        values: (steps, channels), NaN where nothing was measured.
        names: of the channels where the file has them, else empty.
        rate_hz: steps a second where the file says so.
    """

    values: Values
    names: tuple[str, ...] = ()
    rate_hz: float | None = None

    def channels(self, wanted: Sequence[str], count: int | None, name: str) -> Values:
        """Return the wanted channels.

        Args:
            wanted: their names; empty for all.
            count: number of channels that there must be; None for any.
            name: of the file, for an error's sentence.

        Raises:
            DataError: a channel is missing, or there are not as many as there should be.
        """
        if wanted and self.names:
            try:
                check_columns(self.names, wanted)
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
            twice = [channel for channel in wanted if self.names.count(channel) > 1]
            if twice:
                raise DataError(f"{name} has several channels with the name '{twice[0]}'; rename all but one")
            return self.values[:, [self.names.index(channel) for channel in wanted]]
        if count is not None and self.values.shape[1] != count:
            raise DataError(
                f"{name} has {self.values.shape[1]} channels and the study says {count}; correct the file, or "
                "data.shape"
            )
        return self.values


def read(path: Path, rename: Mapping[str, str]) -> Recording:
    """Return what a file holds, its channels named as in the study.

    Raises:
        DataError: the file is missing, damaged, of another kind, or holds something that is no real number.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{shown(path)} is no signal that can be read; allowed are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"there is no file {shown(path)}; correct the path")
    found = {".csv": _csv, ".npy": _array, ".npz": _array, ".hea": _wfdb}[suffix](path)
    if not found.values.size:
        raise DataError(f"{shown(path)} holds no values; replace it or remove its row")
    return replace(found, names=tuple(rename.get(name, name) for name in found.names))


def resampled(values: Values, source_hz: float, target_hz: float, name: str) -> Values:
    """Return (steps, channels) at another rate; a step is missing where the nearest measured one was.

    Raises:
        DataError: the rates are so far apart that one of them must be wrong.
    """
    if not 1 / _MOST <= target_hz / source_hz <= _MOST:
        raise DataError(f"{name} has rate_hz = {source_hz:g} and the study {target_hz:g}; correct the wrong one")
    ratio = Fraction(target_hz / source_hz).limit_denominator(_MOST)
    if ratio == 1:
        return values
    from scipy.signal import resample_poly

    absent = ~np.isfinite(values)
    whole = np.stack([_filled(column, gap) for column, gap in zip(values.T, absent.T, strict=True)], axis=1)
    # the line through both ends is taken off first: else the filter would see a jump to zero there
    out = np.asarray(resample_poly(whole, ratio.numerator, ratio.denominator, axis=0, padtype="line"))
    nearest = np.minimum(np.rint(np.arange(len(out)) / float(ratio)).astype(np.int64), len(values) - 1)
    return np.where(absent[nearest], math.nan, out)


def _filled(values: Values, absent: NDArray[np.bool_]) -> Values:
    """Return the values with straight lines over the gaps, which the filter would spread over the whole record."""
    there = np.flatnonzero(~absent)
    if not len(there):
        return np.zeros_like(values)
    return np.interp(np.arange(len(values)), there, values[there])


# --- kinds of files -----------------------------------------------------------------------------------------


def _csv(path: Path) -> Recording:
    try:
        frame = read_table(path)
        rows = row_numbers(frame)
        columns = [to_numbers(name, frame[name], rows) for name in frame.columns]
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from None
    if all(_is_number(name) for name in frame.columns):
        raise DataError(f"{shown(path)} has no header; write the names of the channels into its first line")
    return Recording(values=np.stack(columns, axis=1), names=tuple(frame.columns))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _array(path: Path) -> Recording:
    try:
        with path.open("rb") as file:
            found: Any = np.load(file, allow_pickle=False)
            found = found if isinstance(found, np.ndarray) else found["X"]
    except _DAMAGE as error:
        raise _unreadable(path, error) from None
    check_real(shown(path), found.dtype)
    if found.ndim not in (1, 2):
        raise DataError(f"{shown(path)} has {found.ndim} dimensions; a signal is (steps,) or (steps, channels)")
    return Recording(values=(found if found.ndim == 2 else found[:, None]).astype(np.float64))


def _wfdb(path: Path) -> Recording:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what wfdb tells its own authors
        try:
            import wfdb
        except ImportError:
            raise DataError(
                f"{shown(path)} is a WFDB record, which needs wfdb; pip install 'fedsilo[medical]'"
            ) from None
        try:
            record = wfdb.rdrecord(str(path.with_suffix("")))
            values = np.asarray(record.p_signal, dtype=np.float64)
            values = values.reshape(len(values), len(record.sig_name))
            return Recording(values=values, names=tuple(map(str, record.sig_name)), rate_hz=float(record.fs))
        except _DAMAGE as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    text = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return DataError(f"{shown(path)} cannot be read ({text}); replace it or remove its row")
