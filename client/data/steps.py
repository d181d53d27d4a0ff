"""Long tables of sequences: CSV or Parquet, one row a step, or one row a measured value (events), in any order.

Rows are encoded batch by batch and put aside; a record is gathered from its rows when it is asked for. In memory stay
a few numbers a row: its record, its time, its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.grouping import Batch, Beside, Clock, Numbers, Table, order_columns
from client.data.records import Integers, Loaded, Positions, Spool, in_memory_if_small, positions
from client.data.schema import (
    MISSING,
    Tally,
    codes_of,
    encode,
    encode_codes,
    encode_numbers,
    refuse,
    to_numbers,
)
from client.data.tables import batches, row_numbers
from client.data.targets import groups, target_columns
from client.models.base import Inputs, Shape
from strategies.errors import DataError
from strategies.sections import CategoricalFeature, DataSection, NumericFeature
from strategies.study import Study

if TYPE_CHECKING:
    import torch

_TARGET = "label"
_VALUES_AT_ONCE = 2**20


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path, *, labelled: bool = True) -> Loaded:
    """Return the records of a long table; arguments and errors as in `client.data.sequences.load`."""
    data = study.file.data
    record, time = order_columns(data)
    most, width = Shape.of_study(study).inputs
    labels = target_columns(study, _TARGET) if labelled else []
    wanted = [record, time, *labels, *([data.unit] if data.unit else [])]
    wanted += [data.event, data.value] if data.event and data.value else list(data.features)
    beside = Beside(study, record, labels)
    form = _Events(data, scratch) if data.event else _Rows(study, scratch)
    for frame in batches(path, list(dict.fromkeys(wanted)), rename):
        form.add(frame, beside.add(frame))
    table = beside.finish()
    steps = form.finish(table, most)
    order = np.lexsort((steps.time, steps.record))
    starts = np.searchsorted(steps.record[order], np.arange(table.count + 1))
    sequences = Sequences(steps.x, order=order, starts=starts, shape=(most, width))
    return Loaded(
        x=in_memory_if_small(sequences),
        y=table.y,
        keys=table.keys,
        groups={name: table.one_code_each(name, *steps.groups[name]) for name in study.file.evaluation.groups},
        notes=(*steps.notes, *longer_note(steps.longer, most)),
    )


def longest(path: Path, study: Study) -> int:
    """Return the number of steps of the longest record; not private, so for a simulation only.

    Raises:
        DataError: the file cannot be read.
    """
    data = study.file.data
    record, time = order_columns(data)
    numbers, clock, found, seen = Numbers(), Clock(time), [], 0
    for frame in batches(path, list(dict.fromkeys([record, time, *([data.event] if data.event else [])])), {}):
        rows = row_numbers(frame, seen)
        seen += frame.height
        part = pl.DataFrame({"record": numbers.of(record, frame[record], rows), "time": clock.read(frame[time], rows)})
        found.append(part.filter(codes_of(frame[data.event], list(data.features)) >= 0) if data.event else part)
    whole = pl.concat(found)
    whole = whole.unique() if data.event else whole
    return int(whole.group_by("record").len()["len"].max() or 1)  # type: ignore[arg-type]


def longer_note(count: int, most: int) -> tuple[str, ...]:
    """Return a sentence on records that are longer than the study's shape, if there are any."""
    return (f"{count} records have more than {most} steps; the last {most} are kept",) if count else ()


def padded(steps: NDArray[np.float32], lengths: Positions, most: int) -> NDArray[np.float32]:
    """Return (records, most, columns + 1) with the steps of each record first and 1 in the last channel there.

    Args:
        steps: (all steps, columns), those of each record together.
        lengths: (records,) number of each record's steps, at most `most`.
        most: steps of a padded record.
    """
    out = np.zeros((len(lengths), most, steps.shape[1] + 1), dtype=np.float32)
    there = np.arange(most) < lengths[:, None]
    out[:, :, :-1][there] = steps
    out[:, :, -1] = there
    return out


class Sequences:
    """Records that are gathered from their steps when they are asked for.

    Args:
        steps: (all steps, columns), in any order.
        order: the places of the steps, sorted by record and time.
        starts: (records + 1,) where each record begins in `order`.
        shape: (steps, channels) of one record.
    """

    def __init__(
        self, steps: torch.Tensor | Inputs, *, order: Positions, starts: Positions, shape: tuple[int, int]
    ) -> None:
        self._steps, self._order, self._starts, self._shape = steps, order, starts, shape

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._shape)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, rows: Any) -> torch.Tensor:
        import torch

        wanted, most = positions(rows, len(self)), self._shape[0]
        stops = self._starts[wanted + 1]
        lengths = np.minimum(stops - self._starts[wanted], most)
        before = np.cumsum(lengths) - lengths
        places = np.repeat(stops - lengths - before, lengths) + np.arange(lengths.sum())
        steps = self._steps[torch.from_numpy(self._order[places])]
        return torch.from_numpy(padded(steps.numpy(), lengths, most))


# --- the two forms ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """Encoded steps.

    Args:
        x: (steps, columns).
        record: of each step.
        time: of each step.
        longer: number of records with more steps than the study's shape has.
        groups: by group column, codes of some rows and the places of these rows.
        notes: as in `Loaded`.
    """

    x: torch.Tensor | Inputs
    record: NDArray[np.integer[Any]]
    time: NDArray[np.float64]
    longer: int
    groups: Mapping[str, tuple[Integers, Positions]]
    notes: tuple[str, ...]


class _Rows:
    """One row a step, one column a feature."""

    def __init__(self, study: Study, scratch: Path) -> None:
        self._study, self._spool, self._tally = study, Spool(scratch), Tally()
        self._groups: list[dict[str, Integers]] = []

    def add(self, frame: pl.DataFrame, batch: Batch) -> None:
        """Encode one batch."""
        parts = []
        for name, feature in self._study.file.data.features.items():
            encoded = encode(name, frame[name], feature, batch.row)
            self._tally.add(name, encoded)
            parts.append(encoded.columns)
        self._spool.append(np.concatenate(parts, axis=1))
        self._groups.append(groups(frame, self._study))

    def finish(self, table: Table, most: int) -> _Steps:
        """Return all steps."""
        rows, every = table.rows, np.arange(len(table.rows.record))
        names = self._study.file.evaluation.groups
        codes = {name: np.concatenate([batch[name] for batch in self._groups]) for name in names}
        return _Steps(
            x=self._spool.finish(),
            record=rows.record,
            time=rows.time,
            longer=int((np.bincount(rows.record) > most).sum()),
            groups={name: (codes[name], every) for name in names},
            notes=self._tally.notes("steps"),
        )


class _Events:
    """One row a measured value; the values of one record at one time are a step, and the last row of equals counts."""

    def __init__(self, data: DataSection, scratch: Path) -> None:
        self._features, self._scratch = data.features, scratch
        self._event, self._value = str(data.event), str(data.value)
        self._events: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []

    def add(self, frame: pl.DataFrame, batch: Batch) -> None:
        """Read one batch: numbers as they are, categories as codes."""
        events = codes_of(frame[self._event], list(self._features))
        values = np.full(len(events), np.nan)
        for number, feature in enumerate(self._features.values()):
            mine = np.flatnonzero(events == number)
            raw = frame[self._value][mine]
            match feature:
                case NumericFeature():
                    values[mine] = to_numbers(self._value, raw, batch.row[mine])
                case CategoricalFeature():
                    values[mine] = codes_of(raw, feature.values)
        self._events.append(events)
        self._values.append(values)

    def finish(self, table: Table, most: int) -> _Steps:
        """Return the last steps of each record, sorted by record and time."""
        events, values = np.concatenate(self._events), np.concatenate(self._values)
        known = np.flatnonzero(events >= 0)
        if not len(known):
            raise DataError(
                f"no row of column '{self._event}' names a feature of the study ({', '.join(self._features)}); correct "
                "the column, or data.features"
            )
        known = known[np.lexsort((table.rows.time[known], table.rows.record[known]))]  # stable: equals as in the file
        record, time = table.rows.record[known], table.rows.time[known]
        new = np.ones(len(known), dtype=bool)
        new[1:] = (record[1:] != record[:-1]) | (time[1:] != time[:-1])
        sizes = np.bincount(record[new], minlength=table.count)
        step_of_row = np.cumsum(new) - 1
        kept = step_of_row >= (np.cumsum(sizes) - most)[record]  # those before would be encoded for nothing
        at, record, time, new = known[kept], record[kept], time[kept], new[kept]
        without = np.flatnonzero(sizes == 0)  # nothing was measured: one empty step
        steps, tally = int(new.sum()) + len(without), Tally()
        return _Steps(
            x=self._encoded(np.cumsum(new) - 1, events[at], values[at], steps, tally),
            record=np.concatenate([record[new], without]),
            time=np.concatenate([time[new], np.zeros(len(without))]),
            longer=int((sizes > most).sum()),
            groups=self._groups(events, values),
            notes=(*tally.notes("steps"), *self._ignored(len(events) - len(known))),
        )

    def _groups(self, events: Positions, values: NDArray[np.float64]) -> dict[str, tuple[Positions, Positions]]:
        found = {}
        for number, (name, feature) in enumerate(self._features.items()):
            if isinstance(feature, CategoricalFeature):
                places = np.flatnonzero(events == number)
                found[name] = (values[places].astype(np.int64), places)
        return found

    def _ignored(self, count: int) -> tuple[str, ...]:
        return (f"column '{self._event}': {count} rows name no feature of the study and are ignored",) if count else ()

    def _encoded(
        self, step_of_row: Positions, events: Positions, values: NDArray[np.float64], steps: int, tally: Tally
    ) -> torch.Tensor | Inputs:
        """Return (steps, columns); a step has the values of its rows, and the last of several for one feature."""
        features = self._features
        absent = [
            float(MISSING) if isinstance(feature, CategoricalFeature) else np.nan for feature in features.values()
        ]
        there = ~np.isnan(values) & (values != np.array(absent)[events])
        step_of_row, events, values = step_of_row[there], events[there], values[there]
        spool, at_once = Spool(self._scratch), max(1, _VALUES_AT_ONCE // len(features))
        for start in range(0, steps, at_once):
            block = np.tile(absent, (min(at_once, steps - start), 1))
            mine = slice(*np.searchsorted(step_of_row, (start, start + at_once)))
            block[step_of_row[mine] - start, events[mine]] = values[mine]
            parts = []
            for (name, feature), column in zip(features.items(), block.T, strict=True):
                match feature:
                    case NumericFeature():
                        encoded = encode_numbers(column, feature)
                    case CategoricalFeature():
                        encoded = encode_codes(column.astype(np.int64), feature)
                refuse(name, encoded, feature)
                tally.add(name, encoded)
                parts.append(encoded.columns)
            spool.append(np.concatenate(parts, axis=1))
        return spool.finish()
