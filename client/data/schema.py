"""The public schema of a study to columns of numbers: no statistic of the records has any influence.

A numeric feature with public bounds [min, max] becomes sqrt(3) (2 (t(v) - t(min)) / (t(max) - t(min)) - 1), with t the
identity or the logarithm: a value spread evenly over its bounds then has mean 0 and variance 1. A missing value is 0,
beside a column that says so. A categorical feature becomes one column a value. What fell outside the schema is counted
for the silo's own log and goes nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from strategies.errors import DataError
from strategies.study import CategoricalFeature, Feature, NumericFeature

_MISSING_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "None", "?")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One feature's columns and what was unusual about it.

    Args:
        columns: (rows, width) float32.
        missing: rows without a value.
        outside: rows whose value was outside the public bounds or list.
    """

    columns: NDArray[np.float32]
    missing: int
    outside: int


def encode(name: str, series: pl.Series, feature: Feature, rows: NDArray[np.int64]) -> Encoded:
    """Return the columns of one feature.

    Args:
        name: of the feature.
        series: (rows,) values as they stand in the file.
        feature: the study's schema of it.
        rows: number of each row, for an error's sentence.

    Raises:
        DataError: a value is missing or outside where the study says `refuse`, or is no number.
    """
    match feature:
        case NumericFeature():
            encoded = _numeric(name, series, feature, rows)
        case CategoricalFeature():
            encoded = _categorical(series, feature)
    for what, count, rule in (
        ("missing", encoded.missing, feature.missing),
        ("outside", encoded.outside, feature.outside),
    ):
        if count and rule == "refuse":
            raise DataError(f"column '{name}' has {count} rows that are {what}, and the study says {what} = 'refuse'")
    return encoded


def _numeric(name: str, series: pl.Series, feature: NumericFeature, rows: NDArray[np.int64]) -> Encoded:
    return encode_numbers(to_numbers(name, series, rows), feature)


def encode_numbers(values: NDArray[np.float64], feature: NumericFeature) -> Encoded:
    """Return the columns of (rows,) numbers, NaN where one is missing."""
    missing = np.isnan(values)
    low, high = feature.min, feature.max
    with np.errstate(invalid="ignore"):
        outside = ~missing & ((values < low) | (values > high))
    if feature.outside == "missing":
        absent = missing | outside
    else:
        absent = missing
        values = np.clip(values, low, high)
    if feature.transform == "log":
        low, high = math.log(low), math.log(high)
        values = np.log(np.where(absent, feature.min, values))
    scaled = np.where(absent, 0.0, math.sqrt(3) * (2 * (values - low) / (high - low) - 1))
    return _with_indicator(scaled[:, None], absent, int(missing.sum()), int(outside.sum()), feature)


def _categorical(series: pl.Series, feature: CategoricalFeature) -> Encoded:
    texts = to_texts(series)
    allowed = [_text(value) for value in feature.values]
    columns = np.stack([(texts == value).fill_null(False).to_numpy() for value in allowed], axis=1)
    missing = texts.is_null().to_numpy()
    outside = ~columns.any(axis=1) & ~missing
    return _with_indicator(columns, missing | outside, int(missing.sum()), int(outside.sum()), feature)


def _with_indicator(
    columns: NDArray[np.generic], absent: NDArray[np.bool_], missing: int, outside: int, feature: Feature
) -> Encoded:
    parts = [columns, absent[:, None]] if feature.missing == "indicator" else [columns]
    return Encoded(columns=np.concatenate(parts, axis=1).astype(np.float32), missing=missing, outside=outside)


def to_numbers(name: str, series: pl.Series, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64 values with NaN for missing ones.

    Raises:
        DataError: a text is no number; the sentence names the row.
    """
    if series.dtype == pl.String:
        stripped = series.str.strip_chars()
        texts = stripped.set(stripped.is_in(list(_MISSING_TEXTS)), None)
        numbers = texts.cast(pl.Float64, strict=False)
        wrong = (numbers.is_null() & texts.is_not_null()).arg_true()
        if len(wrong):
            at = int(wrong[0])
            raise DataError(f"column '{name}', row {rows[at]}: '{texts[at]}' is no number")
    else:
        try:
            numbers = series.cast(pl.Float64)
        except pl.exceptions.PolarsError:
            raise DataError(f"column '{name}' has type {series.dtype}; the study says it is numeric") from None
    values = numbers.fill_null(math.nan).to_numpy().astype(np.float64)
    return np.where(np.isinf(values), math.nan, values)


def to_texts(series: pl.Series) -> pl.Series:
    """Return the values as texts: whole numbers without a fraction, null for missing ones."""
    if series.dtype.is_float():
        whole = series.is_finite() & (series == series.round())
        texts = pl.select(
            pl.when(whole).then(series.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(series.cast(pl.String))
        ).to_series()
        return texts.set(series.is_nan().fill_null(False), None)
    texts = series.cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1")
    return texts.set(texts.is_in(list(_MISSING_TEXTS)), None)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def class_texts(classes: tuple[object, ...]) -> list[str]:
    """Return the classes of a study as the texts that a column is compared with."""
    return [_text(value) for value in classes]
