"""CSV and Parquet files, read in batches of rows, so that memory does not grow with the file.

Every column of a CSV is read as text: what type it has is for the study to say, not for the file (a code such as 007
stays 007).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from client.data.records import Integers
from client.data.schema import to_texts
from strategies.errors import DataError, nearest

ROW_COLUMN = "__row__"  # where a record stood in the data set that a simulation was cut from
_MOST_INT32 = 2**31 - 1
_BATCH_ROWS = 2**16
_BLOCK_BYTES = 2**20  # the reader holds about a hundred of them
_BUFFER_BYTES = 2**16  # of each column of a Parquet file, so that a row group is never in memory as a whole


def batches(path: Path, wanted: Sequence[str] | None, rename: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file in order, each batch with the wanted columns (and `ROW_COLUMN` if the file has it).

    Args:
        path: .csv or .parquet.
        wanted: names as in the study; None for all columns.
        rename: the file's own names to the study's.

    Raises:
        DataError: the file is missing, unreadable, empty or of another type, or lacks a column.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; correct the path")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise DataError(f"{path.name} is neither .csv nor .parquet; convert it to one of them")
    try:
        names = _names(path)
        columns = _chosen(path, names, wanted, rename)
        seen = 0
        for batch in _read(path, names, list(columns)):
            seen += batch.height
            yield batch.rename(columns)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, UnicodeDecodeError, ValueError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path.name} cannot be read ({text}); check that it is a sound {path.suffix} file") from None
    if not seen:
        raise DataError(f"{path.name} has no rows; a silo needs records")


def read_table(path: Path) -> pl.DataFrame:
    """Return a whole file.

    Raises:
        DataError: as in `batches`.
    """
    return pl.concat(batches(path, None, {}))


def check_columns(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise a `DataError` unless every wanted column is there."""
    lacking = [name for name in wanted if name not in names]
    if lacking:
        hint = nearest(lacking[0], names) if names else "the file has no columns"
        raise DataError(f"column '{lacking[0]}' is missing ({len(lacking)} of {len(wanted)} columns are); {hint}")


def row_numbers(frame: pl.DataFrame, before: int = 0) -> NDArray[np.int64]:
    """Return the number, from 1, of each row in the file that a person knows."""
    if ROW_COLUMN in frame.columns:
        return frame[ROW_COLUMN].to_numpy().astype(np.int64) + 1
    return np.arange(before + 1, before + frame.height + 1)


def unit_keys(frame: pl.DataFrame, unit: str | None, before: int = 0) -> pl.Series | Integers:
    """Return each row's unit: the unit column's value as a text, or a number of the row's own.

    Raises:
        DataError: a unit is missing.
    """
    if unit is None:
        rows = row_numbers(frame, before) - 1
        return rows.astype(np.int32) if rows.max(initial=0) <= _MOST_INT32 else rows
    texts = to_texts(frame[unit])
    if texts.null_count():
        raise DataError(f"column '{unit}' has {texts.null_count()} rows without a unit; give each row its unit")
    return texts


def joined_keys(keys: Sequence[pl.Series | Integers]) -> pl.Series | Integers:
    """Return the unit keys of all batches."""
    numbers = [batch for batch in keys if isinstance(batch, np.ndarray)]
    if numbers:
        return np.concatenate(numbers)
    return pl.concat([batch for batch in keys if isinstance(batch, pl.Series)])


def _names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        return list(pa.parquet.read_schema(path).names)
    with pa.csv.open_csv(path, read_options=_read_options(), parse_options=_parse_options()) as reader:
        return list(reader.schema.names)


def _chosen(
    path: Path, names: Sequence[str], wanted: Sequence[str] | None, rename: Mapping[str, str]
) -> dict[str, str]:
    """Return the file's columns to read, each with its name in the study."""
    renamed = {name: rename.get(name, name) for name in names}
    if len(set(renamed.values())) < len(names):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path.name} has two columns of the name '{twice}'; rename one")
        raise DataError(
            f"the rename table of {path.name} gives a column a name that another column has; rename each "
            "column to a name of its own"
        )
    if wanted is None:
        return renamed
    check_columns(list(renamed.values()), wanted)
    keep = {*wanted, ROW_COLUMN}
    return {name: new for name, new in renamed.items() if new in keep}


def _read(path: Path, names: Sequence[str], columns: list[str]) -> Iterator[pl.DataFrame]:
    if path.suffix.lower() == ".parquet":
        # reading ahead, which is the default, would hold all that has been read until the end of the file
        with pa.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                yield _frame(batch)
        return
    types = {name: pa.int64() if name == ROW_COLUMN else pa.string() for name in names}
    reader = pa.csv.open_csv(
        path,
        read_options=_read_options(),
        parse_options=_parse_options(),
        convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=columns, strings_can_be_null=False),
    )
    with reader:
        for batch in reader:
            yield _frame(batch)


def _read_options() -> Any:
    return pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)  # memory does not depend on the machine


def _parse_options() -> Any:
    return pa.csv.ParseOptions(newlines_in_values=True)


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame
