"""The column, or columns, to predict, as the numbers that a loss takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.records import Array, Integers
from client.data.schema import MISSING, OUTSIDE, class_texts, codes_of, to_numbers, to_texts
from strategies.errors import DataError
from strategies.sections import CategoricalFeature
from strategies.study import Study


def target_columns(study: Study, default: str) -> list[str]:
    """Return the columns that hold the target; in multilabel one a class.

    Args:
        study: its data section names them.
        default: used where it names none.
    """
    data = study.file.data
    if study.file.study.task == "multilabel" and data.target is None:
        return class_texts(classes_of(study))
    return [data.target or default]


def classes_of(study: Study) -> tuple[object, ...]:
    """Return the study's classes.

    Raises:
        DataError: a deployed study names none.
    """
    if study.file.data.classes is None:
        raise DataError("data.classes is missing: a deployed study names its classes; add classes = [...] to [data]")
    return study.file.data.classes


def targets(frame: pl.DataFrame, columns: list[str], study: Study, rows: NDArray[np.int64]) -> Array:
    """Return the targets of a batch of rows, as in `Part.y`.

    Args:
        frame: holds the columns.
        columns: one, or one a label in multilabel; none where the target is not read, and all targets are zero then.
        study: names task and classes.
        rows: number of each row, for the error's sentence.

    Raises:
        DataError: a value is missing, no number, no class of the study, or no 0 or 1.
    """
    if not columns:
        return np.zeros(frame.height, dtype=np.int8)
    match study.file.study.task:
        case "regression":
            values = to_numbers(columns[0], frame[columns[0]], rows)
            _no_gaps(columns[0], np.isnan(values), rows)
            return values.astype(np.float32)
        case "multilabel":
            return np.stack([_label(name, frame[name], rows) for name in columns], axis=1)
        case _:
            classes = classes_of(study)
            return _classes(columns[0], frame[columns[0]], classes, rows).astype(smallest(len(classes)))


def smallest(count: int) -> np.dtype[np.signedinteger[Any]]:
    """Return the smallest type that holds the numbers from -1 to `count`: signed, for torch takes others for masks."""
    return np.min_scalar_type(-count - 1)


def groups(frame: pl.DataFrame, study: Study) -> dict[str, Integers]:
    """Return the position of each row's value among the group column's values, -1 for none of them."""
    found = {}
    for name in study.file.evaluation.groups:
        feature = study.file.data.features[name]
        assert isinstance(feature, CategoricalFeature)
        codes = np.maximum(codes_of(frame[name], feature.values), -1)
        found[name] = codes.astype(smallest(len(feature.values)))
    return found


def _label(name: str, series: pl.Series, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    values = to_numbers(name, series, rows)
    wrong = ~np.isin(values, (0.0, 1.0))
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"label column '{name}', row {rows[at]}: the value is {series[at]}; a label is 0 or 1")
    return values.astype(np.float32)


def _classes(name: str, series: pl.Series, classes: Sequence[object], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    codes = codes_of(series, classes)
    _no_gaps(name, codes == MISSING, rows)
    unknown = np.flatnonzero(codes == OUTSIDE)
    if len(unknown):
        at = int(unknown[0])
        raise DataError(
            f"column '{name}', row {rows[at]}: '{to_texts(series[at : at + 1])[0]}' is none of the study's classes "
            + ", ".join(class_texts(tuple(classes)))
        )
    return codes


def _no_gaps(name: str, absent: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
    if absent.any():
        raise DataError(
            f"target column '{name}', row {rows[int(absent.argmax())]}: the value is missing or NaN "
            f"({int(absent.sum())} rows in all); remove these rows or complete them"
        )
