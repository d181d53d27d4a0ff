"""Tables: CSV or Parquet, one row a record, columns named as in the study's schema."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.records import Records, held_out_rows, part
from client.data.schema import check_columns, class_texts, encode, to_numbers, to_texts
from strategies.errors import DataError
from strategies.study import Study

ROW_COLUMN = "__row__"  # where a record stood in the data set that a simulation was cut from


def read_table(path: Path) -> pl.DataFrame:
    """Read a CSV or Parquet file.

    Raises:
        DataError: the file is missing, unreadable, empty or of another type.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; correct the path")
    try:
        if path.suffix.lower() == ".parquet":
            frame = pl.read_parquet(path)
        elif path.suffix.lower() == ".csv":
            frame = pl.read_csv(path, infer_schema_length=None)
        else:
            raise DataError(f"{path.name} is neither .csv nor .parquet; convert it to one of them")
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path.name} cannot be read ({text}); check that it is a sound {path.suffix} file") from None
    if frame.height == 0:
        raise DataError(f"{path.name} has no rows; a silo needs records")
    return frame


def load(path: Path, study: Study, rename: Mapping[str, str]) -> Records:
    """Return the records of a table for a study.

    Args:
        path: the file.
        study: its data section says what is read.
        rename: this silo's own column names to the study's.

    Raises:
        DataError: the file or a value does not fit the study's schema.
    """
    frame = read_table(path)
    try:
        frame = frame.rename({old: new for old, new in rename.items() if old in frame.columns})
    except pl.exceptions.DuplicateError:
        raise DataError(
            f"the rename table of {path.name} gives a column a name that another column has; rename each "
            "column to a name of its own"
        ) from None
    return records_of(frame, study)


def records_of(frame: pl.DataFrame, study: Study) -> Records:
    """Return the records of a table whose columns are named as in the study.

    Raises:
        DataError: a value does not fit the study's schema; the sentence names column and row.
    """
    data = study.file.data
    check_columns(frame, data)
    encoded = {name: encode(name, frame[name], feature) for name, feature in data.features.items()}
    x = np.concatenate([entry.columns for entry in encoded.values()], axis=1)
    y = _target(frame[str(data.target)], study)
    notes = [
        f"column '{name}': {entry.missing} rows missing, {entry.outside} outside the public schema"
        for name, entry in encoded.items()
        if entry.missing or entry.outside
    ]
    keys = unit_keys(frame, data.unit)
    held_out = held_out_rows(keys, study.file.study.seed, data.test_share)
    return Records(train=part(x, y, keys, ~held_out), held_out=part(x, y, keys, held_out), notes=tuple(notes))


def unit_keys(frame: pl.DataFrame, unit: str | None) -> list[str]:
    """Return each row's unit: the unit column's value, or the row's own number.

    Raises:
        DataError: a unit is missing.
    """
    column = unit or (ROW_COLUMN if ROW_COLUMN in frame.columns else None)
    if column is None:
        return [str(number) for number in range(frame.height)]
    texts = to_texts(frame[column])
    if texts.null_count():
        raise DataError(f"column '{column}' has {texts.null_count()} rows without a unit; give each row its unit")
    return [str(value) for value in texts.to_list()]


def _target(series: pl.Series, study: Study) -> NDArray[np.generic]:
    data = study.file.data
    if study.file.study.task == "regression":
        values = to_numbers(series.name, series)
        _no_gaps(series.name, np.isnan(values))
        return values.astype(np.float32)
    if data.classes is None:
        raise DataError("data.classes is missing: a deployed study names its classes; add classes = [...] to [data]")
    texts = to_texts(series)
    _no_gaps(series.name, texts.is_null().to_numpy())
    classes = class_texts(data.classes)
    unknown = (~texts.is_in(classes)).arg_true()
    if len(unknown):
        raise DataError(
            f"column '{series.name}', row {unknown[0] + 1}: '{texts[int(unknown[0])]}' is none of the "
            f"study's classes {', '.join(classes)}"
        )
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[str(text)] for text in texts.to_list()], dtype=np.int64)


def _no_gaps(name: str, absent: NDArray[np.bool_]) -> None:
    if absent.any():
        raise DataError(
            f"target column '{name}', row {int(absent.argmax()) + 1}: the value is missing or NaN "
            f"({int(absent.sum())} rows in all); remove these rows or complete them"
        )
