"""Images: an `.npz`, a folder with one sub-folder a class, or an index table with one file a row.

A value is scaled by the study's `range` as a numeric feature is (for DICOM the range is the window, in rescaled
units); 8-bit images need none. A file of another size is resized, an array is not. What does not fit into memory is
read, or decoded, when a batch asks for it.

Guarantees: a record is a function of its own file and of the study; two reads of it give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data import records
from client.data.arrays import ArrayFile, open_arrays
from client.data.listed import (
    EIGHT_BITS,
    PATH_COLUMN,
    SIXTEEN_BITS,
    beside,
    beside_arrays,
    blocks_of,
    bounded,
    bounds_of_type,
    bounds_seen,
    check_real,
    read_index,
    scaled,
    shown,
)
from client.data.pictures import SUFFIXES, header, looks_whole, pixels, resized
from client.data.records import Encoded, Loaded, Spool, in_memory_if_small, positions
from client.data.targets import target_columns
from client.models.base import Inputs, Shape
from strategies.errors import DataError
from strategies.sections import NumericFeature
from strategies.study import Study

if TYPE_CHECKING:
    import torch

_LABEL = "label"
_NOT_OURS = ("Thumbs.db", "desktop.ini")  # what a file manager leaves in folders, beside names with a dot


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path, *, labelled: bool = True) -> Loaded:
    """Return the records that lie at `path` for a study.

    Args:
        path: an `.npz`, a folder, or an index table (.csv or .parquet).
        study: its data section says what is read.
        rename: this silo's own column names to the study's.
        scratch: folder for what is too large for memory.
        labelled: whether the target is read; without it `Loaded.y` is zero.

    Raises:
        DataError: a file or a value does not fit the study; the sentence names the file.
    """
    channels, height, width = Shape.of_study(study).inputs
    shape = (height, width, channels)
    if path.suffix.lower() == ".npz":
        arrays = open_arrays(path, scratch)
        x = _inputs(arrays, shape, study.file.data.range, path.name)
        return beside_arrays(arrays, study, rename, path.name, labelled=labelled).with_inputs(x)
    in_folder = _folder if labelled else _every_image
    frame = in_folder(path, study) if path.is_dir() else read_index(path, rename)
    others = beside(frame, target_columns(study, _LABEL) if labelled else [], study, path.name)
    raw, bounds = _raw(frame[PATH_COLUMN].to_list(), shape, study.file.data.range, scratch)
    return others.with_inputs(in_memory_if_small(_encoded(raw, shape, bounded(*bounds))))


def index(path: Path, study: Study) -> pl.DataFrame:
    """Return one row a record: `path`, absolute, and what else a folder or an index table says about it.

    Raises:
        DataError: there are no images, or the table cannot be read.
    """
    return _folder(path, study) if path.is_dir() else read_index(path, {})


def read_off(path: Path, study: Study, scratch: Path) -> dict[str, Any]:
    """Return what the study leaves open and the files show: keys and values of it, not private.

    Raises:
        DataError: the files cannot be read.
    """
    data = study.file.data
    found: dict[str, Any] = {}
    if path.suffix.lower() == ".npz" and None in (data.shape, data.range):
        x = open_arrays(path, scratch).x
        check_real(path.name, x.dtype)
        if data.shape is None:
            found["data.shape"] = list(_image_shape(x.shape[1:], path.name))
        if data.range is None:
            found["data.range"] = list(bounds_of_type(x.dtype) or bounds_seen(blocks_of(x), path.name))
    elif None in (data.shape, data.range):
        files = [Path(name) for name in index(path, study)[PATH_COLUMN].unique(maintain_order=True)]
        if data.shape is None:
            found["data.shape"] = list(pixels(files[0], None).shape)
        if data.range is None:
            found["data.range"] = _range_of(files, path.name)
    return found


def _range_of(files: Sequence[Path], name: str) -> list[float]:
    kinds = {header(file).bounds for file in files}
    if None in kinds:
        return bounds_seen((pixels(file, None) for file in files), name)
    return list(SIXTEEN_BITS if SIXTEEN_BITS in kinds else EIGHT_BITS)


# --- .npz ---------------------------------------------------------------------------------------------------


def _inputs(
    arrays: ArrayFile, shape: tuple[int, ...], bounds: tuple[float, ...] | None, name: str
) -> torch.Tensor | Inputs:
    check_real(name, arrays.x.dtype)
    found = _image_shape(arrays.x.shape[1:], name)
    if found != shape:
        raise DataError(
            f"the images of {name} have shape {list(found)} and the study says {list(shape)}; "
            "resize them, or correct data.shape"
        )
    if bounds is None and arrays.x.dtype != np.uint8:
        raise DataError(_no_range(name))
    return in_memory_if_small(_encoded(arrays.x, shape, bounded(*(bounds or EIGHT_BITS))))


def _encoded(raw: Any, shape: tuple[int, ...], feature: NumericFeature) -> Inputs:
    """Return (rows, channels, height, width) of raw (rows, height, width, channels), or (rows, height, width)."""
    height, width, channels = shape

    def encode(values: Any, _: object) -> NDArray[np.float32]:
        return scaled(np.asarray(values), feature).reshape(-1, *shape).transpose(0, 3, 1, 2)

    return Encoded(raw, encode, (channels, height, width))


def _image_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    if len(shape) not in (2, 3):
        raise DataError(
            f"X of {name} has {len(shape) + 1} dimensions; images are (n, height, width) or "
            "(n, height, width, channels)"
        )
    return shape if len(shape) == 3 else (*shape, 1)


def _no_range(name: str) -> str:
    return (
        f"data.range is missing: {name} does not have values of 8 bits, so the study must say their public bounds; "
        "write for example range = [0, 65535], or the window of a DICOM"
    )


# --- files --------------------------------------------------------------------------------------------------


def _folder(path: Path, study: Study) -> pl.DataFrame:
    """Return path and label of every image of a folder, in the order of their names."""
    label = study.file.data.target or _LABEL
    found: dict[str, list[str]] = {PATH_COLUMN: [], label: []}
    for entry in _entries(path):
        if not entry.is_dir():
            if entry.suffix.lower() in SUFFIXES:
                raise DataError(f"{shown(entry)} lies in no sub-folder; the sub-folder's name is an image's class")
            continue
        for file in _entries(entry):
            if file.is_dir():
                raise DataError(f"{shown(file)} is a folder in a class's folder; put the images right into the class's")
            found[PATH_COLUMN].append(str(file.absolute()))
            found[label].append(entry.name)
    if not found[PATH_COLUMN]:
        raise DataError(f"{path} holds no images; it needs one sub-folder a class with images in it")
    try:
        return pl.DataFrame(found)
    except UnicodeEncodeError as error:
        raise DataError(f"a file of {path.name} has a name that is no UTF-8 ({error.object!a}); rename it") from None


def _every_image(path: Path, _study: Study) -> pl.DataFrame:
    """Return the path of every image of a folder and its sub-folders, for records that have no label yet."""
    files = sorted(str(file.absolute()) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)}); give the folder that does")
    return pl.DataFrame({PATH_COLUMN: files})


def _entries(folder: Path) -> list[Path]:
    names = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [entry for entry in names if not entry.name.startswith(".") and entry.name not in _NOT_OURS]


class _Pictures:
    """(rows, height, width, channels) of files that are decoded when they are asked for.

    Args:
        paths: of each row.
        shape: of a row.
        bounds: the study's range, or that of 8 bits.
        dtype: of the values, wide enough for every file.
    """

    def __init__(
        self, paths: Sequence[str], shape: tuple[int, ...], bounds: tuple[float, ...], dtype: type[np.generic]
    ) -> None:
        self._paths, self._bounds = paths, bounds
        self.shape = (len(paths), *shape)
        self.dtype = np.dtype(dtype)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        wanted = positions(rows, len(self._paths))
        out = np.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        height, width, channels = self.shape[1:]
        for place, row in enumerate(wanted):
            path = Path(self._paths[row])
            values = pixels(path, self._bounds)
            if values.shape[2] != channels or not np.can_cast(values.dtype, self.dtype):
                raise DataError(f"{shown(path)} changed while it was in use; start again")
            out[place] = resized(values, height, width)
        return out


def _raw(
    paths: Sequence[str], shape: tuple[int, ...], bounds: tuple[float, ...] | None, scratch: Path
) -> tuple[Any, tuple[float, ...]]:
    """Return the pixels of all files and their bounds, every file checked.

    What takes no more room than memory allows, or than the files themselves take, is decoded once and kept.
    """
    files = [Path(name) for name in dict.fromkeys(paths)]
    dtype: type[np.generic] = np.uint8
    for file in files:
        found = header(file)
        if found.channels != shape[2]:
            raise DataError(
                f"{shown(file)} has {found.channels} channels and the study says {shape[2]}; convert it, or correct "
                "data.shape"
            )
        if bounds is None and found.bounds != EIGHT_BITS:
            raise DataError(_no_range(shown(file)))
        dtype = np.promote_types(dtype, found.dtype).type
    bounds = bounds or EIGHT_BITS
    pictures = _Pictures(paths, shape, bounds, dtype)
    size = int(np.prod(pictures.shape, dtype=np.int64)) * pictures.dtype.itemsize
    if size <= max(records.IN_MEMORY_BYTES, sum(file.stat().st_size for file in files)):
        spool = Spool(scratch)
        for block in blocks_of(pictures):
            spool.append(block)
        return spool.finish(), bounds
    for file in files:
        if not looks_whole(file):
            pixels(file, bounds)
    return pictures, bounds
