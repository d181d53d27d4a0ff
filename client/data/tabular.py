"""Tables: CSV or Parquet, one row a record, columns named as in the study's schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from client.data.records import Array, Integers, Loaded, Spool
from client.data.schema import Tally, encode
from client.data.tables import batches, joined_keys, row_numbers, unit_keys
from client.data.targets import groups, target_columns, targets
from strategies.study import Study


def columns_of(study: Study, *, labelled: bool = True) -> list[str]:
    """Return every column that a table needs, each once."""
    data = study.file.data
    unit = [data.unit] if data.unit else []
    return list(dict.fromkeys([*data.features, *(target_columns(study, "target") if labelled else ()), *unit]))


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path, *, labelled: bool = True) -> Loaded:
    """Return the records of a table for a study.

    Args:
        path: the file.
        study: its data section says what is read.
        rename: this silo's own column names to the study's.
        scratch: folder for what is too large for memory.
        labelled: whether the target is read; without it `Loaded.y` is zero.

    Raises:
        DataError: the file or a value does not fit the study's schema; the sentence names column and row.
    """
    frames = batches(path, columns_of(study, labelled=labelled), rename)
    return encoded(frames, study, scratch, labelled=labelled)


def encoded(frames: Iterable[pl.DataFrame], study: Study, scratch: Path, *, labelled: bool = True) -> Loaded:
    """Return the records of batches whose columns are named as in the study."""
    data = study.file.data
    spool = Spool(scratch)
    tally = Tally()
    y: list[Array] = []
    keys: list[pl.Series | Integers] = []
    codes: list[dict[str, Array]] = []
    seen = 0
    for frame in frames:
        rows = row_numbers(frame, seen)
        parts = {name: encode(name, frame[name], feature, rows) for name, feature in data.features.items()}
        spool.append(np.concatenate([entry.columns for entry in parts.values()], axis=1))
        for name, entry in parts.items():
            tally.add(name, entry)
        y.append(targets(frame, target_columns(study, "target") if labelled else [], study, rows))
        keys.append(unit_keys(frame, data.unit, seen))
        codes.append(dict(groups(frame, study)))
        seen += frame.height
    return Loaded(
        x=spool.finish(),
        y=np.concatenate(y),
        keys=joined_keys(keys),
        groups={name: np.concatenate([batch[name] for batch in codes]) for name in study.file.evaluation.groups},
        notes=tally.notes("rows"),
    )
