"""What a simulation is cut from: a table, an index of files, or arrays; on disk, however large.

A built-in data set is written to a file first, so that it takes the same way as what a user brings. A silo's part is
an ordinary file of the kind that a real silo has, with one more column (or array): where each record stood in the
whole.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow.parquet
from numpy.typing import NDArray

from client.data import images, signals
from client.data.arrays import ROW_ARRAY, open_arrays
from client.data.tables import ROW_COLUMN, batches, read_table
from client.data.tabular import columns_of
from client.data.targets import target_columns
from simulations.datasets.base import DATASETS
from simulations.partitions import PARTITIONS, Natural
from strategies.errors import DataError
from strategies.study import Study

_IN_MEMORY_BYTES = 128 * 2**20  # of a table's file
_ROWS_AT_ONCE_BYTES = 2**25
Owner = NDArray[np.integer[Any]]


class Source(Protocol):
    """A whole data set.

    Args:
        path: its file or folder.
        frame: one row a record (a step, in tables of sequences) with what a partition may look at.
        suffix: of the file that each silo gets.
        scratch: a folder that lives as long as the source.
    """

    @property
    def path(self) -> Path: ...

    @property
    def suffix(self) -> str: ...

    @property
    def scratch(self) -> _Scratch: ...

    @property
    def frame(self) -> pl.DataFrame: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the content, 64 hex digits."""

    def write(self, owner: Owner, files: Sequence[Path]) -> None:
        """Write each silo's rows.

        Args:
            owner: (rows,) silo of each row.
            files: one a silo; their folders are there.
        """


def read_dataset(study: Study, base: Path) -> Source:
    """Return what `simulation.dataset` names.

    Args:
        study: names the data set and its kind.
        base: folder that a path is relative to.

    Raises:
        DataError: it cannot be read.
    """
    name, kind = study.file.simulation.dataset, study.file.data.kind
    scratch = _Scratch()
    path = _materialised(name, scratch.path) if "(" in name else base / Path(name).expanduser()
    if path.suffix.lower() == ".npz":
        return ArraySource(path=path, scratch=scratch)
    if kind == "images":
        return IndexSource(path=path, index=images.index(path, study), scratch=scratch)
    if kind == "signals":
        return IndexSource(path=path, index=signals.index(path, study), scratch=scratch)
    if path.is_dir():
        raise DataError(f"{path} is a folder, and data.kind = '{kind}' needs a .csv, .parquet or .npz file")
    return TableSource(path=path, study=study, scratch=scratch)


class _Scratch:
    """A folder that goes when nobody needs it any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fedsilo-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def unit_column(study: Study, frame: pl.DataFrame) -> str | None:
    """Return the column whose values must not be divided between silos: the unit, or what makes one record."""
    data = study.file.data
    return data.unit or (data.record if data.kind == "sequences" and data.record in frame.columns else None)


def _materialised(name: str, scratch: Path) -> Path:
    found = DATASETS.resolve(name).load()
    if isinstance(found, pl.DataFrame):
        path = scratch / "whole.parquet"
        found.write_parquet(path)
    elif isinstance(found, Path):
        path = found
    else:
        path = scratch / "whole.npz"
        np.savez(path, **found)
    return path


# --- tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """A CSV or Parquet file whose rows are records or steps."""

    path: Path
    study: Study
    scratch: _Scratch
    suffix: str = ".parquet"

    @cached_property
    def frame(self) -> pl.DataFrame:
        study, data = self.study, self.study.file.data
        needed = [*target_columns(study, "label"), data.unit, data.record, _natural_column(study)]
        if data.kind == "tabular":
            for _ in batches(self.path, columns_of(study), {}):  # every column is there, before anything is made
                break
        present = set(next(batches(self.path, None, {})).columns)
        if self._small:
            whole = read_table(self.path)
        else:
            few = batches(self.path, [name for name in needed if name in present], {})
            # no row numbers: whoever writes the parts of a large file counts its rows as they pass
            return pl.concat([batch.with_columns(pl.col(pl.String).cast(pl.Categorical)) for batch in few])
        return whole.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW_COLUMN))

    @property
    def _small(self) -> bool:
        return self.path.stat().st_size <= _IN_MEMORY_BYTES

    @cached_property
    def digest(self) -> str:
        return _digest_of_file(self.path) if "(" not in self.study.file.simulation.dataset else _digest_of(self.frame)

    def write(self, owner: Owner, files: Sequence[Path]) -> None:
        if self._small:
            _write_parts(self.frame, owner, files)
            return
        writers: dict[int, Any] = {}
        try:
            for rows, together in _gathered(batches(self.path, None, {})):
                marked = together.with_columns(pl.Series(ROW_COLUMN, rows))
                for number in np.unique(owner[rows]):
                    part = marked.filter(pl.Series(owner[rows] == number)).to_arrow()
                    if number not in writers:
                        writers[number] = pyarrow.parquet.ParquetWriter(files[number], part.schema)
                    writers[number].write_table(part)
        finally:
            for writer in writers.values():
                writer.close()


def _gathered(frames: Iterable[pl.DataFrame]) -> Iterator[tuple[Owner, pl.DataFrame]]:
    """Yield larger frames, with the numbers of their rows: a file of many small row groups is slow to read."""
    held: list[pl.DataFrame] = []
    seen, rows = 0, 0
    for frame in frames:
        held.append(frame)
        rows += frame.height
        if sum(entry.estimated_size() for entry in held) >= _ROWS_AT_ONCE_BYTES:
            yield np.arange(seen, seen + rows), pl.concat(held)
            held, seen, rows = [], seen + rows, 0
    if held:
        yield np.arange(seen, seen + rows), pl.concat(held)


@dataclass(frozen=True, kw_only=True)
class IndexSource:
    """A list of files, one a record: images, or recordings of signals."""

    path: Path
    index: pl.DataFrame
    scratch: _Scratch
    suffix: str = ".parquet"

    @cached_property
    def frame(self) -> pl.DataFrame:
        return self.index.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW_COLUMN))

    @cached_property
    def digest(self) -> str:
        facts = hashlib.sha256(_digest_of(self.frame).encode())
        for name in self.frame["path"].to_list():
            status = Path(name).stat() if Path(name).exists() else None
            facts.update(f"{status.st_size if status else 0} {status.st_mtime_ns if status else 0}\n".encode())
        return facts.hexdigest()

    def write(self, owner: Owner, files: Sequence[Path]) -> None:
        _write_parts(self.frame, owner, files)


def _write_parts(frame: pl.DataFrame, owner: Owner, files: Sequence[Path]) -> None:
    for number, file in enumerate(files):
        frame.filter(pl.Series(owner == number)).write_parquet(file)


def _natural_column(study: Study) -> str | None:
    partition = PARTITIONS.resolve(study.file.simulation.partition)
    return partition.column if isinstance(partition, Natural) else None


# --- arrays -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """An `.npz` file with one entry a record in each array."""

    path: Path
    scratch: _Scratch
    suffix: str = ".npz"

    @cached_property
    def _arrays(self) -> Any:
        return open_arrays(self.path, self.scratch.path)

    @cached_property
    def frame(self) -> pl.DataFrame:
        frame: pl.DataFrame = self._arrays.frame()
        return frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW_COLUMN))

    @cached_property
    def digest(self) -> str:
        facts = hashlib.sha256(_digest_of(self.frame).encode())
        for rows in self._batches(np.arange(len(self._arrays.x))):
            facts.update(self._arrays.x[rows].tobytes())
        return facts.hexdigest()

    def write(self, owner: Owner, files: Sequence[Path]) -> None:
        for number, file in enumerate(files):
            rows = np.flatnonzero(owner == number)
            columns = {name: array[rows] for name, array in self._arrays.columns.items() if name != ROW_ARRAY}
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, array in (*columns.items(), (ROW_ARRAY, rows)):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
                with archive.open("X.npy", "w", force_zip64=True) as member:
                    x = self._arrays.x
                    header = {"descr": np.lib.format.dtype_to_descr(x.dtype), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(member, {**header, "shape": (len(rows), *x.shape[1:])})
                    for some in self._batches(rows):
                        member.write(x[some].tobytes())

    def _batches(self, rows: Owner) -> Iterator[Owner]:
        x = self._arrays.x
        step = max(1, _ROWS_AT_ONCE_BYTES // max(1, int(np.prod(x.shape[1:])) * x.dtype.itemsize))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


# --- digests ------------------------------------------------------------------------------------------------


def _digest_of(frame: pl.DataFrame) -> str:
    return hashlib.sha256(frame.write_csv().encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
