"""What images and signals have in common: the columns beside their inputs, and values scaled by public bounds.

The inputs lie in an `.npz`, or in files of their own that an index table lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.arrays import ROW_ARRAY, ArrayFile
from client.data.records import Array, Integers, Keys, Loaded
from client.data.schema import class_texts, codes_of, encode_numbers
from client.data.tables import batches, check_columns, row_numbers, unit_keys
from client.data.targets import classes_of, groups, targets
from client.models.base import Inputs
from strategies.errors import DataError
from strategies.sections import NumericFeature
from strategies.study import Study

if TYPE_CHECKING:
    import torch

PATH_COLUMN = "path"  # of an index table: the record's file, from the table's own folder
EIGHT_BITS = (0.0, 255.0)
SIXTEEN_BITS = (0.0, 65535.0)
_TYPE_BOUNDS = {"u1": EIGHT_BITS, "u2": SIXTEEN_BITS, "b1": (0.0, 1.0)}
_VALUES_AT_ONCE = 2**18


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What stands beside the inputs; the fields are those of `Loaded`."""

    y: Array
    keys: Keys
    groups: Mapping[str, Integers]

    def with_inputs(self, x: torch.Tensor | Inputs, notes: tuple[str, ...] = ()) -> Loaded:
        """Return the records with these inputs."""
        return Loaded(x=x, y=self.y, keys=self.keys, groups=self.groups, notes=notes)


def beside(frame: pl.DataFrame, columns: list[str], study: Study, name: str) -> Beside:
    """Return targets, units and groups of all rows.

    Args:
        frame: one row a record.
        columns: hold the target; none where it is not read.
        study: says what is wanted.
        name: of the file, for an error's sentence.

    Raises:
        DataError: a column is missing, a value does not fit, or the file names units that the study overlooks.
    """
    data = study.file.data
    if data.unit is None and "unit" in frame.columns:
        raise DataError(
            f'{name} says which unit a record belongs to, and the study does not use it; write unit = "unit" in [data]'
        )
    wanted = [*columns, *([data.unit] if data.unit else []), *study.file.evaluation.groups]
    try:
        check_columns(frame.columns, wanted)
        if columns and PATH_COLUMN in frame.columns and study.file.study.task == "classification":
            _check_classes(frame, columns[0], study)
        y = targets(frame, columns, study, row_numbers(frame))
        return Beside(y=y, keys=unit_keys(frame, data.unit), groups=groups(frame, study))
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _check_classes(frame: pl.DataFrame, column: str, study: Study) -> None:
    """Raise a `DataError` that names the file whose label is no class."""
    classes = classes_of(study)
    wrong = np.flatnonzero(codes_of(frame[column], classes) < 0)
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"{shown(Path(frame[PATH_COLUMN][at]))} has the label '{frame[column][at]}', which is none of the study's "
            f"classes {', '.join(class_texts(classes))}; correct it ({len(wrong)} records in all)"
        )


def beside_arrays(
    arrays: ArrayFile, study: Study, rename: Mapping[str, str], name: str, *, labelled: bool = True
) -> Beside:
    """Return targets, units and groups of an `.npz`; its target is `y` unless the study says otherwise.

    Raises:
        DataError: as in `beside`, or `y` has another number of columns than the task.
    """
    columns = {rename.get(own, own): array for own, array in arrays.columns.items()}
    if len(columns) < len(arrays.columns):
        raise DataError(f"the rename table of {name} gives two arrays one name; rename each to a name of its own")
    wanted = _array_targets(columns, study, name) if labelled else []
    columns.setdefault(ROW_ARRAY, np.arange(len(arrays.x)))  # there may be no other
    return beside(ArrayFile(x=arrays.x, columns=columns).frame(), wanted, study, name)


def _array_targets(columns: Mapping[str, Array], study: Study, name: str) -> list[str]:
    target = study.file.data.target or "y"
    if target not in columns:
        raise DataError(f"{name} has no array {target} to predict, only {', '.join(['X', *columns])}; add it")
    array = columns[target]
    width = 1 if array.ndim == 1 else array.shape[1]
    expected = len(classes_of(study)) if study.file.study.task == "multilabel" else 1
    if width != expected:
        raise DataError(
            f"array {target} of {name} has {width} columns, and the study's task needs {expected}; "
            "correct the array, or task and classes of the study"
        )
    return [target] if width == 1 else [f"{target}_{k + 1}" for k in range(width)]


def read_index(path: Path, rename: Mapping[str, str]) -> pl.DataFrame:
    """Return an index table whole, the paths of its files made absolute.

    Raises:
        DataError: the table cannot be read, has no column `path`, or a row names no file.
    """
    frame = pl.concat(batches(path, None, rename))
    if PATH_COLUMN not in frame.columns:
        raise DataError(f"{path.name} has no column path; an index table names the file of each record in it")
    texts = frame[PATH_COLUMN]
    if texts.dtype != pl.String:
        raise DataError(f"column 'path' of {path.name} has type {texts.dtype}; it must hold texts")
    empty = (texts.is_null() | (texts == "")).fill_null(True).arg_true()
    if len(empty):
        raise DataError(f"{path.name}, row {row_numbers(frame)[int(empty[0])]}: no path; name the record's file")
    folder = path.absolute().parent
    return frame.with_columns(pl.Series(PATH_COLUMN, [str(folder / text) for text in texts.to_list()]))


def shown(path: Path) -> str:
    """Return a file's folder and name as a sentence may have them."""
    text = f"{path.parent.name}/{path.name}"
    return text if text.isprintable() else ascii(text)


# --- values -------------------------------------------------------------------------------------------------


def bounded(low: float, high: float) -> NumericFeature:
    """Return the schema of a number between two bounds."""
    return NumericFeature(type="numeric", min=low, max=high)


def scaled(values: NDArray[Any], feature: NumericFeature) -> NDArray[np.float32]:
    """Return numbers of any shape as the feature scales them; 0, the middle of the bounds, where one is not finite."""
    if values.dtype == np.uint8:
        every = encode_numbers(np.arange(256.0), feature).columns[:, 0]
        return np.asarray(every[values], dtype=np.float32)
    flat = values.reshape(-1)
    out = np.empty(flat.size, dtype=np.float32)
    for start in range(0, flat.size, _VALUES_AT_ONCE):  # the formula needs several times the memory of its values
        block = flat[start : start + _VALUES_AT_ONCE].astype(np.float64)
        block[~np.isfinite(block)] = np.nan
        out[start : start + len(block)] = encode_numbers(block, feature).columns[:, 0]
    return out.reshape(values.shape)


def check_real(name: str, dtype: Any) -> None:
    """Raise a `DataError` unless values of the type are real numbers."""
    if np.dtype(dtype).kind not in "biuf":
        raise DataError(f"X of {name} has type {dtype}; it must hold real numbers")


def bounds_of_type(dtype: Any) -> tuple[float, float] | None:
    """Return the bounds that a type of small numbers has by itself."""
    return _TYPE_BOUNDS.get(np.dtype(dtype).str[1:])


def bounds_seen(blocks: Iterable[NDArray[Any]], name: str) -> list[float]:
    """Return the least and the greatest finite value; not private, so for a simulation only.

    Raises:
        DataError: no value is finite.
    """
    low, high = np.inf, -np.inf
    for block in blocks:
        finite = block[np.isfinite(block)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise DataError(f"{name} has no value that is a finite number; a study needs some")
    return [low, high if high > low else low + 1.0]


def blocks_of(rows: Any) -> Iterable[NDArray[Any]]:
    """Yield all rows in blocks that need little memory."""
    count = max(1, _VALUES_AT_ONCE // max(1, int(np.prod(rows.shape[1:]))))
    for start in range(0, rows.shape[0], count):
        yield rows[start : start + count]
