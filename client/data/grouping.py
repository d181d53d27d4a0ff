"""Rows of a long table to records: which row belongs to which record, when it was, and what it says of the record.

What a row says about its record (target, unit, groups) must be the same in all rows of the record.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.records import Array, Integers, Positions
from client.data.schema import to_numbers, to_texts
from client.data.tables import row_numbers
from client.data.targets import targets
from strategies.errors import DataError
from strategies.sections import DataSection
from strategies.study import Study

_DATES = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")
_ZONED = ("%Y-%m-%d %H:%M%#z", "%Y-%m-%d %H:%M:%S%.f%#z")


def order_columns(data: DataSection) -> tuple[str, str]:
    """Return the columns that say which rows are one record, and in what order.

    Raises:
        DataError: the study names none.
    """
    record = data.record or data.unit
    if record is None:
        raise DataError(
            'data.record is missing: it names the column that says which rows are one sequence; write record = "..." '
            "(or unit, if a unit has one sequence)"
        )
    if data.time is None:
        raise DataError(
            'data.time is missing: it names the column that orders the rows of a sequence; write time = "..."'
        )
    return record, data.time


class Numbers:
    """Texts numbered in order of appearance, over all batches."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, name: str, series: pl.Series, rows: Positions) -> NDArray[np.int32]:
        """Return the number of each row's text; a missing one is a `DataError`."""
        texts = to_texts(series)
        absent = texts.is_null().arg_true()
        if len(absent):
            raise DataError(
                f"column '{name}', row {rows[int(absent[0])]}: the value is missing ({len(absent)} rows in all); each "
                "row belongs to a record and a unit"
            )
        unique = texts.unique(maintain_order=True)
        numbers = [self._numbers.setdefault(text, len(self._numbers)) for text in unique.to_list()]
        return texts.replace_strict(unique, numbers, return_dtype=pl.Int32).to_numpy()

    def texts(self) -> pl.Series:
        """Return the texts by number."""
        return pl.Series(list(self._numbers), dtype=pl.String)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """(rows,) number of the row in the file, its record, its time."""

    row: Positions
    record: NDArray[np.int32]
    time: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The records, and what every row of the file says.

    Args:
        count: of the records.
        y: as in `Loaded`, of the records.
        keys: unit of each record.
        rows: every row.
    """

    count: int
    y: Array
    keys: pl.Series
    rows: Batch

    def one_code_each(self, name: str, codes: Integers, at: Positions) -> Integers:
        """Return the code of each record: that of its rows, without those that have none (-1).

        Args:
            name: of the column.
            codes: of some rows.
            at: places of these rows.
        """
        known = codes >= 0
        codes, at = codes[known], at[known]
        found = np.full(self.count, -1, dtype=codes.dtype)
        record = self.rows.record[at]
        found[record[::-1]] = codes[::-1]  # the first row of a record is written last
        _same(name, codes, found[record], self.rows.row[at])
        return found


class Beside:
    """Reads record, time, target and unit of every row."""

    def __init__(self, study: Study, record: str, labels: list[str]) -> None:
        self._study, self._record, self._labels = study, record, labels
        self._time = str(study.file.data.time)
        self._clock = Clock(self._time)
        self._records, self._units = Numbers(), Numbers()
        self._rows: list[Batch] = []
        self._y: list[Array] = []
        self._unit: list[NDArray[np.int32]] = []
        self._seen = 0

    def add(self, frame: pl.DataFrame) -> Batch:
        """Read one batch."""
        data = self._study.file.data
        rows = row_numbers(frame, self._seen)
        self._seen += frame.height
        record = self._records.of(self._record, frame[self._record], rows)
        batch = Batch(row=rows, record=record, time=self._clock.read(frame[self._time], rows))
        self._rows.append(batch)
        self._y.append(targets(frame, self._labels, self._study, rows))
        if data.unit is not None:
            self._unit.append(self._units.of(data.unit, frame[data.unit], rows))
        return batch

    def finish(self) -> Table:
        """Return the records, or raise a `DataError` if the rows of one disagree."""
        rows = Batch(
            row=np.concatenate([batch.row for batch in self._rows]),
            record=np.concatenate([batch.record for batch in self._rows]),
            time=np.concatenate([batch.time for batch in self._rows]),
        )
        first = np.unique(rows.record, return_index=True)[1]
        y = np.concatenate(self._y)
        _same(" or ".join(self._labels), y, y[first][rows.record], rows.row)
        keys = self._records.texts()
        if self._unit:
            unit = np.concatenate(self._unit)
            _same(str(self._study.file.data.unit), unit, unit[first][rows.record], rows.row)
            keys = self._units.texts()[unit[first]]
        return Table(count=len(first), y=y[first], keys=keys, rows=rows)


def _same(name: str, values: Array, expected: Array, rows: Positions) -> None:
    differs = values != expected
    differs = differs if differs.ndim == 1 else differs.any(axis=1)
    if differs.any():
        raise DataError(
            f"column '{name}', row {rows[int(differs.argmax())]}: the value is not that of the record's first row; all "
            "rows of a record must agree"
        )


class Clock:
    """Reads a column of times: numbers, or ISO dates (without a zone: UTC), the same in all batches.

    Args:
        name: of the column.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._dates: bool | None = None

    def read(self, series: pl.Series, rows: Positions) -> NDArray[np.float64]:
        """Return (rows,) numbers in the order of the times.

        Raises:
            DataError: a time is missing or none.
        """
        if series.dtype.is_temporal():
            times = series.to_physical().cast(pl.Float64)
        elif series.dtype == pl.String:
            times = self._of_texts(to_texts(series), rows)
        else:
            times = pl.Series(to_numbers(self._name, series, rows)).fill_nan(None)
        absent = times.is_null().arg_true()
        if len(absent):
            raise DataError(
                f"column '{self._name}', row {rows[int(absent[0])]}: the time is missing ({len(absent)} rows in all); "
                "each row needs one"
            )
        return times.to_numpy()

    def _of_texts(self, texts: pl.Series, rows: Positions) -> pl.Series:
        numbers = texts.cast(pl.Float64, strict=False)
        numbers = numbers.set(~numbers.is_finite(), None)
        dates = _seconds(texts)
        if self._dates is None:
            self._dates = dates.null_count() < numbers.null_count()
        times = dates if self._dates else numbers
        wrong = (times.is_null() & texts.is_not_null()).arg_true()
        if len(wrong):
            at = int(wrong[0])
            raise DataError(
                f"column '{self._name}', row {rows[at]}: '{texts[at]}' is no time here; a column of times holds only "
                "numbers, or only dates as 2024-12-31 or 2024-12-31T23:59:59"
            )
        return times


def _seconds(texts: pl.Series) -> pl.Series:
    """Return the time of ISO dates in a fixed unit, null for other texts."""
    iso = texts.str.replace("T", " ").str.replace("[Zz]$", "+00:00")
    found = [iso.str.to_datetime(form, time_unit="us", strict=False) for form in (*_DATES, *_ZONED)]
    return pl.select(pl.coalesce([entry.to_physical().cast(pl.Float64) for entry in found])).to_series()
