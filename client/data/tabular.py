"""Tables: CSV or Parquet, one row a record, columns named as in the study's schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from client.data.records import Array, Loaded, Spool
from client.data.schema import encode
from client.data.tables import batches, row_numbers, unit_keys
from client.data.targets import groups, target_columns, targets
from strategies.study import Study


def columns_of(study: Study) -> list[str]:
    """Return every column that a table needs, each once."""
    data = study.file.data
    unit = [data.unit] if data.unit else []
    return list(dict.fromkeys([*data.features, *target_columns(study, "target"), *unit]))


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path) -> Loaded:
    """Return the records of a table for a study.

    Args:
        path: the file.
        study: its data section says what is read.
        rename: this silo's own column names to the study's.
        scratch: folder for what is too large for memory.

    Raises:
        DataError: the file or a value does not fit the study's schema; the sentence names column and row.
    """
    return encoded(batches(path, columns_of(study), rename), study, scratch)


def encoded(frames: Iterable[pl.DataFrame], study: Study, scratch: Path) -> Loaded:
    """Return the records of batches whose columns are named as in the study."""
    data = study.file.data
    spool = Spool(scratch)
    missing: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    y: list[Array] = []
    keys: list[list[str] | Array] = []
    codes: list[dict[str, Array]] = []
    seen = 0
    for frame in frames:
        rows = row_numbers(frame, seen)
        parts = {name: encode(name, frame[name], feature, rows) for name, feature in data.features.items()}
        spool.append(np.concatenate([entry.columns for entry in parts.values()], axis=1))
        missing.update({name: entry.missing for name, entry in parts.items()})
        outside.update({name: entry.outside for name, entry in parts.items()})
        y.append(targets(frame, target_columns(study, "target"), study, rows))
        keys.append(unit_keys(frame, data.unit, seen))
        codes.append(dict(groups(frame, study)))
        seen += frame.height
    return Loaded(
        x=spool.finish(),
        y=np.concatenate(y),
        keys=joined_keys(keys),
        groups={name: np.concatenate([batch[name] for batch in codes]) for name in study.file.evaluation.groups},
        notes=tuple(
            f"column '{name}': {missing[name]} rows missing, {outside[name]} outside the public schema"
            for name in data.features
            if missing[name] or outside[name]
        ),
    )


def joined_keys(batches: list[list[str] | Array]) -> list[str] | Array:
    """Return the unit keys of all batches."""
    if isinstance(batches[0], np.ndarray):
        return np.concatenate(batches)
    return [key for batch in batches for key in batch]
