"""The units of a data root, before any study: an identifier of each, by which the same people are known again.

Where a column (or an array) names the patient or account, the identifier is its value; where each record is its own
unit, it is the record's content. The same records in another format or another rounding of numbers are other content:
only identifiers are sure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from client.data.arrays import ROW_ARRAY, open_arrays
from client.data.listed import PATH_COLUMN
from client.data.schema import to_texts
from client.data.tables import ROW_COLUMN, batches, check_columns, unit_keys
from strategies.errors import DataError

RECORD = "record"  # the unit of data in which nothing names a patient or account
_ROWS_AT_ONCE = 1024


def units_of(path: Path, unit: str, rename: Mapping[str, str], scratch: Path) -> Iterator[bytes]:
    """Yield an identifier of each record's unit; those of one unit are equal.

    Args:
        path: a table, an `.npz`, or a folder of files.
        unit: `record`, or the column or array that names the unit, as a study calls it.
        rename: the file's own column names to the study's.
        scratch: folder for what has to be unpacked.

    Raises:
        DataError: it cannot be read, or a record has no unit.
    """
    if path.is_dir():
        return _of_folder(path, unit)
    if path.suffix.lower() == ".npz":
        return _of_arrays(path, unit, scratch)
    return _of_table(path, unit, rename)


def _of_table(path: Path, unit: str, rename: Mapping[str, str]) -> Iterator[bytes]:
    seen = 0
    for frame in batches(path, None if unit == RECORD else [unit], rename):
        if unit == RECORD:
            yield from _contents(frame, path.parent)
        else:
            yield from _texts(unit_keys(frame, unit, seen))
        seen += frame.height


def _contents(frame: pl.DataFrame, folder: Path) -> Iterator[bytes]:
    """Yield each row's values by column name; of a file that the row lists, its bytes."""
    columns = [to_texts(frame[name]) for name in sorted(frame.columns) if name not in (ROW_COLUMN, PATH_COLUMN)]
    files = frame[PATH_COLUMN].to_list() if PATH_COLUMN in frame.columns else [None] * frame.height
    for file, *values in zip(files, *columns, strict=True):
        own = "\x1f".join("\0" if value is None else value for value in values).encode()
        yield own if file is None else own + _hash(folder / str(file))


def _texts(keys: object) -> Iterator[bytes]:
    assert isinstance(keys, pl.Series)
    yield from (text.encode() for text in keys)


def _of_arrays(path: Path, unit: str, scratch: Path) -> Iterator[bytes]:
    arrays = open_arrays(path, scratch)
    if unit != RECORD:
        check_columns(list(arrays.columns), [unit])
        yield from _texts(unit_keys(pl.DataFrame({unit: arrays.columns[unit].reshape(-1)}), unit))
        return
    beside = [array for name, array in sorted(arrays.columns.items()) if name not in ("silo", ROW_ARRAY)]
    for start in range(0, len(arrays.x), _ROWS_AT_ONCE):
        places = np.arange(start, min(start + _ROWS_AT_ONCE, len(arrays.x)))
        for place, row in zip(places, arrays.x[places], strict=True):
            yield row.tobytes() + b"".join(array[place].tobytes() for array in beside)


def _of_folder(path: Path, unit: str) -> Iterator[bytes]:
    if unit != RECORD:
        raise DataError(f"{path} is a folder, in which nothing names '{unit}'; give the table that lists its files")
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    if not files:
        raise DataError(f"{path} holds no file; a silo needs records")
    yield from (_hash(file) for file in files)


def _hash(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); correct the path") from None
