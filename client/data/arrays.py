"""`.npz` files, read row by row: `X`, `y`, and optionally `unit`, `silo` and `lengths`; never pickled.

A member that is stored is read where it lies; a compressed one is unpacked once into a file without a name.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from client.data.records import Array, DiskRows
from strategies.errors import DataError

_LOCAL_HEADER_BYTES = 30
ROW_ARRAY = "__row__"  # where a record stood in the data set that a simulation was cut from
_OWN = ("y", "unit", "silo", "lengths", ROW_ARRAY)  # arrays of these names must have one entry a record


@dataclass(frozen=True, kw_only=True)
class ArrayFile:
    """An opened `.npz`.

    Args:
        x: (n, ...) rows of `X`, on disk.
        columns: every other array with one entry a record, (n,) or (n, k), in memory; arrays of another size (names of
            channels, say) are none of the records' and left out.
    """

    x: DiskRows
    columns: Mapping[str, Array]

    def frame(self) -> pl.DataFrame:
        """Return the columns of one value a record as a table, and `y` of several labels as `y_1`, `y_2`, ..."""
        series = {}
        for name, array in self.columns.items():
            if array.ndim == 1 or array.shape[1] == 1:
                series[name] = pl.Series(name, array.reshape(-1))
            else:
                series |= {f"{name}_{k + 1}": pl.Series(array[:, k]) for k in range(array.shape[1])}
        return pl.DataFrame(series)


def open_arrays(path: Path, scratch: Path) -> ArrayFile:
    """Open an `.npz`.

    Args:
        path: the file.
        scratch: folder for what has to be unpacked.

    Raises:
        DataError: it is missing, damaged, pickled, or its arrays do not fit together.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; correct the path")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if "X" not in names:
                raise DataError(f"{path.name} has no array X, only {', '.join(sorted(names)) or 'nothing'}; add it")
            x = _rows(path, archive, names["X"], scratch)
            beside = [name for name in names if name in _OWN or _has_rows(archive, names[name], len(x))]
            with np.load(path, allow_pickle=False) as arrays:
                columns = {name: arrays[name] for name in beside if name != "X"}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
        raise DataError(
            f"{path.name} cannot be read ({error}); check that it is a sound .npz without objects"
        ) from None
    for name, array in columns.items():
        if array.ndim not in (1, 2) or len(array) != len(x):
            raise DataError(
                f"array {name} of {path.name} has shape {array.shape}; it must have one entry for each of the "
                f"{len(x)} records of X"
            )
    if len(x) == 0:
        raise DataError(f"{path.name} has no records; a silo needs some")
    return ArrayFile(x=x, columns=columns)


def _rows(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, scratch: Path) -> DiskRows:
    file = path.open("rb") if info.compress_type == zipfile.ZIP_STORED else _scratch_file(scratch)
    try:
        if info.compress_type == zipfile.ZIP_STORED:
            file.seek(info.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            file.seek(info.header_offset + _LOCAL_HEADER_BYTES + int(lengths.sum()))
        else:
            with archive.open(info) as packed:
                shutil.copyfileobj(packed, file, 2**20)
            file.seek(0)
        shape, fortran, dtype = _header(file)
        if dtype.hasobject or fortran or not shape:
            raise ValueError("X holds objects, is in Fortran order or has no dimension")
        rows = DiskRows(file, offset=file.tell(), count=shape[0], shape=shape[1:], dtype=dtype)
        if rows.size_bytes > info.file_size:  # else the bytes of other members would be read
            raise ValueError("X is shorter than its header says")
    except BaseException:
        file.close()
        raise
    return rows


def _scratch_file(scratch: Path) -> IO[bytes]:
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    return tempfile.TemporaryFile(dir=scratch)


def _has_rows(archive: zipfile.ZipFile, info: zipfile.ZipInfo, count: int) -> bool:
    with archive.open(info) as file:
        shape = _header(file)[0]
    return len(shape) in (1, 2) and shape[0] == count


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype
