"""The public schema of a study to columns of numbers: no statistic of the records has any influence.

A numeric feature with public bounds [min, max] becomes sqrt(3) (2 (t(v) - t(min)) / (t(max) - t(min)) - 1), with t the
identity or the logarithm: a value spread evenly over its bounds then has mean 0 and variance 1. A missing value is 0,
beside a column that says so. A categorical feature becomes one column a value. What fell outside the schema is counted
for the silo's own log and goes nowhere else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from strategies.errors import DataError
from strategies.sections import CategoricalFeature, Feature, NumericFeature

_MISSING_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "None", "?")
_EXACT_BELOW = 2.0**53  # whole numbers of that size have a float64 each
MISSING, OUTSIDE = -1, -2


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
            encoded = encode_numbers(to_numbers(name, series, rows), feature)
        case CategoricalFeature():
            encoded = encode_codes(codes_of(series, feature.values), feature)
    refuse(name, encoded, feature)
    return encoded


def refuse(name: str, encoded: Encoded, feature: Feature) -> None:
    """Raise a `DataError` if a value is missing or outside where the study says `refuse`."""
    for what, count, rule in (
        ("missing", encoded.missing, feature.missing),
        ("outside", encoded.outside, feature.outside),
    ):
        if count and rule == "refuse":
            raise DataError(f"column '{name}' has {count} rows that are {what}, and the study says {what} = 'refuse'")


class Tally:
    """What was unusual about each feature, over all batches."""

    def __init__(self) -> None:
        self._missing: Counter[str] = Counter()
        self._outside: Counter[str] = Counter()

    def add(self, name: str, encoded: Encoded) -> None:
        """Count one batch of a feature."""
        self._missing[name] += encoded.missing
        self._outside[name] += encoded.outside

    def notes(self, what: str) -> tuple[str, ...]:
        """Return a sentence for each feature that has something unusual.

        Args:
            what: is counted, for example rows.
        """
        return tuple(
            f"column '{name}': {missing} {what} missing, {self._outside[name]} outside the public schema"
            for name, missing in self._missing.items()
            if missing or self._outside[name]
        )


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


def encode_codes(codes: NDArray[np.int64], feature: CategoricalFeature) -> Encoded:
    """Return the columns of (rows,) positions as `codes_of` returns them."""
    columns = codes[:, None] == np.arange(len(feature.values))
    missing, outside = codes == MISSING, codes == OUTSIDE
    return _with_indicator(columns, missing | outside, int(missing.sum()), int(outside.sum()), feature)


_MANY = 10_000


def codes_of(series: pl.Series, values: Sequence[object]) -> NDArray[np.int64]:
    """Return the position of each row's value among `values`, or `MISSING`, or `OUTSIDE` for none of them.

    A value written exactly as in the study is that value, even where it reads like a missing one ("None"); else
    numbers are compared as numbers and truth values as such, however they are spelt (1, 1.0; true, True).
    """
    if len(series) > _MANY and series.n_unique() <= len(series) // 4:  # each value once, where they repeat
        unique = series.unique()
        places = pl.DataFrame({"value": unique, "place": codes_of(unique, values)})
        found = (
            series.alias("value")
            .to_frame()
            .join(places, on="value", how="left", nulls_equal=True, maintain_order="left")
        )
        return found["place"].to_numpy()
    exact = {value: place for place, value in enumerate(values) if isinstance(value, str)}
    usual = _usual(pl.Series(class_texts(tuple(values)), dtype=pl.String))
    spelt = {text: place for place, text in reversed(list(enumerate(usual.to_list())))}
    texts = _plain_texts(series)
    absent = texts.is_null() | texts.is_in(list(_MISSING_TEXTS))
    by_number = _places(_usual(texts), dict(zip(spelt.values(), spelt, strict=True)), OUTSIDE)
    codes = np.where(absent.fill_null(True).to_numpy(), MISSING, by_number)
    by_text = _places(texts, {place: text for text, place in exact.items()}, OUTSIDE)
    return np.where(by_text >= 0, by_text, codes)


def _places(texts: pl.Series, named: Mapping[int, str], default: int) -> NDArray[np.int64]:
    if not named:
        return np.full(len(texts), default, dtype=np.int64)
    return texts.replace_strict(list(named.values()), list(named), default=default, return_dtype=pl.Int64).to_numpy()


def _usual(texts: pl.Series) -> pl.Series:
    """Return texts with numbers and truth values in one spelling."""
    lower = texts.str.to_lowercase()
    texts = texts.str.replace(r"^(-?\d+)\.0+$", "$1").str.replace(r"^(-?\d+\.\d*[1-9])0+$", "$1")
    return pl.select(pl.when(lower.is_in(["true", "false"])).then(lower).otherwise(texts)).to_series()


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
        numbers = series.cast(pl.Float64, strict=False)
        if numbers.null_count():  # rare enough to look again
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
    texts = _plain_texts(series).str.replace(r"^(-?\d+)\.0+$", "$1")
    return texts.set(texts.is_in(list(_MISSING_TEXTS)), None)


def _plain_texts(series: pl.Series) -> pl.Series:
    if not series.dtype.is_float():
        return series.cast(pl.String).str.strip_chars()
    whole = (series.abs() < _EXACT_BELOW) & (series == series.round())
    numbers = series.cast(pl.Int64, strict=False).cast(pl.String)
    texts = pl.select(pl.when(whole).then(numbers).otherwise(series.cast(pl.String))).to_series()
    return texts.set(series.is_nan().fill_null(False), None)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def class_texts(classes: tuple[object, ...]) -> list[str]:
    """Return the classes of a study as the texts that a column is compared with."""
    return [_text(value) for value in classes]
