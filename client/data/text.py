"""Texts: CSV or Parquet, one row a record, the text in one column; tokens by the study's public vocabulary.

A text that is longer than the study's shape keeps its beginning; a shorter one is followed by padding (id 0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.records import Array, Integers, Loaded, Spool
from client.data.tables import batches, joined_keys, row_numbers, unit_keys
from client.data.targets import groups, target_columns, targets
from client.models.base import Shape
from strategies.study import Study
from strategies.tokens import VOCABULARIES, Bytes

_TARGET = "label"
_LEAST_TOKENS, _MOST_WORDS, _MOST_BYTES = 8, 256, 512
_USUAL_SHARE = 95  # percent of the texts that fit into a shape that is read off them


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path, *, labelled: bool = True) -> Loaded:
    """Return the records of a file of texts for a study.

    Args:
        path: the file.
        study: its data section says what is read.
        rename: this silo's own column names to the study's.
        scratch: folder for what is too large for memory.
        labelled: whether the target is read; without it `Loaded.y` is zero.

    Raises:
        DataError: the file or a value does not fit the study; the sentence names column and row.
    """
    data = study.file.data
    (most,) = Shape.of_study(study).inputs
    labels = target_columns(study, _TARGET) if labelled else []
    wanted = dict.fromkeys([data.text, *labels, *([data.unit] if data.unit else []), *study.file.evaluation.groups])
    spool, empty, seen = Spool(scratch), 0, 0
    y: list[Array] = []
    keys: list[pl.Series | Integers] = []
    codes: list[Mapping[str, Array]] = []
    for frame in batches(path, list(wanted), rename):
        rows = row_numbers(frame, seen)
        texts = _texts(frame[data.text])
        empty += int((texts == "").sum())
        spool.append(_padded(texts, data.vocabulary, most))
        y.append(targets(frame, labels, study, rows))
        keys.append(unit_keys(frame, data.unit, seen))
        codes.append(groups(frame, study))
        seen += frame.height
    return Loaded(
        x=spool.finish(np.int64),
        y=np.concatenate(y),
        keys=joined_keys(keys),
        groups={name: np.concatenate([batch[name] for batch in codes]) for name in study.file.evaluation.groups},
        notes=(f"column '{data.text}': {empty} rows without a text; they count as empty texts",) if empty else (),
    )


def read_off(path: Path, study: Study, scratch: Path) -> dict[str, Any]:
    """Return what a simulation may read off the texts where the study leaves it open; none of it is private.

    Args:
        path: the file.
        study: its data section says what is open.
        scratch: not needed here.

    Raises:
        DataError: the file cannot be read or has no column of texts.
    """
    data = study.file.data
    found: dict[str, Any] = {}
    column = data.text
    if "text" not in data.model_fields_set:
        column = _likely_column(next(batches(path, None, {})), study) or column
        if column != data.text:
            found["data.text"] = column
    if data.shape is None:
        vocabulary = VOCABULARIES.resolve(data.vocabulary)
        most = _MOST_BYTES if isinstance(vocabulary, Bytes) else _MOST_WORDS
        frames = batches(path, [column], {})
        lengths = [len(vocabulary.encode(text, most)) for frame in frames for text in _texts(frame[column])]
        found["data.shape"] = [max(_LEAST_TOKENS, math.ceil(np.percentile(lengths, _USUAL_SHARE)))]
    return found


def _likely_column(frame: pl.DataFrame, study: Study) -> str | None:
    """Return the column that is named text, else the one with the longest texts beside target, unit and groups."""
    data = study.file.data
    if data.text in frame.columns:
        return data.text
    others = {*target_columns(study, _TARGET), _TARGET, data.unit, *data.features}
    columns = [name for name, dtype in frame.schema.items() if dtype == pl.String and name not in others]
    mean = {name: frame[name].str.len_chars().fill_null(0).mean() for name in columns}
    return max(columns, key=lambda name: float(mean[name] or 0.0), default=None)  # type: ignore[arg-type]


def _texts(series: pl.Series) -> pl.Series:
    """Return the texts, none of them null; "NA" is a text here, not a missing value."""
    return series.cast(pl.String).fill_null("")


def _padded(texts: pl.Series, vocabulary: str, most: int) -> NDArray[np.int32]:
    rule = VOCABULARIES.resolve(vocabulary)
    tokens = np.zeros((len(texts), most), dtype=np.int32)
    for row, text in enumerate(texts):
        ids = rule.encode(text, most)
        tokens[row, : len(ids)] = ids
    return tokens
