"""The records of one silo, and their split into a training and a held-out part by unit.

Small data are tensors in memory. Large data stay on disk (`DiskRows`) and are read and encoded when a batch asks for
them, so memory does not grow with the data set; what has to be written for that goes to files without a name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray

from client.models.base import Inputs

if TYPE_CHECKING:
    import torch

Array = NDArray[np.generic]
Positions = NDArray[np.int64]
Integers = NDArray[np.integer[Any]]  # of the smallest type that holds them: there is one a row
Keys = pl.Series | Sequence[str] | Integers
IN_MEMORY_BYTES = 64 * 2**20  # records that need more than this stay on disk
_ROWS = np.dtype(np.int32)  # places of rows: a silo has fewer than 2^31
_BLOCK = 2**20
_BYTES = 8  # of a block of `Marked`


@dataclass(frozen=True, kw_only=True)
class Part:
    """Records of one part.

    Args:
        x: (rows, ...) inputs: a tensor, or something that reads rows from disk.
        y: (rows,) class indices in the smallest type that holds them; (rows, labels) float32 of 0 and 1 in multilabel;
            (rows,) float32 in regression.
        unit_of_row: (rows,) unit of each row, numbered from 0 without gaps; None where each row is a unit of its own.
        groups: by group column, (rows,) index of the row's value among the study's values, -1 for none of them.
    """

    x: torch.Tensor | Inputs
    y: torch.Tensor
    unit_of_row: Integers | None = None
    groups: Mapping[str, Integers] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """Number of units; a private quantity."""
        return len(self.y) if self.unit_of_row is None else int(self.unit_of_row.max(initial=-1)) + 1


@dataclass(frozen=True, kw_only=True)
class Records:
    """All that a silo has for a study.

    Args:
        train: what local training may see.
        held_out: what only evaluation may see.
        notes: sentences for the silo's own log (missing and outside values); they never leave.
    """

    train: Part
    held_out: Part
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Memory that the records take, about."""
        return sum(
            _memory(part.x) + _memory(part.y) + (0 if part.unit_of_row is None else part.unit_of_row.nbytes)
            for part in (self.train, self.held_out)
        )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a loader makes of a silo's files, before the split.

    Args:
        x: (rows, ...) inputs.
        y: targets, as in `Part`.
        keys: the unit of each row: texts where a column names it (a series takes the least memory), else a number that
            each row has for itself.
        groups: as in `Part`.
        notes: as in `Records`.
    """

    x: torch.Tensor | Inputs
    y: Array
    keys: Keys
    groups: Mapping[str, Integers] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def split(loaded: Loaded, *, seed: int, test_share: float) -> Records:
    """Return the records in two parts; all rows of a unit are on one side."""
    names, unit_of_row = _units(loaded.keys)
    held_out = _of_rows(_held_out(names, seed, test_share), unit_of_row)
    return Records(
        train=_part(loaded, unit_of_row, ~held_out),
        held_out=_part(loaded, unit_of_row, held_out),
        notes=loaded.notes,
    )


def places(mask: NDArray[np.bool_]) -> Integers:
    """Return where a mask is true, four bytes a place."""
    found, count = np.empty(int(np.count_nonzero(mask)), dtype=_ROWS), 0
    for start in range(0, len(mask), _BLOCK):
        block = np.flatnonzero(mask[start : start + _BLOCK])
        found[count : count + len(block)] = block + start
        count += len(block)
    return found


def held_out_rows(keys: Keys, seed: int, share: float) -> NDArray[np.bool_]:
    """Return which rows are held out: a fixed function of the unit's key, the seed and the share.

    A unit's rows are on one side, and the side of a unit does not depend on which other units are there.
    """
    names, unit_of_row = _units(keys)
    return _of_rows(_held_out(names, seed, share), unit_of_row)


def _of_rows(of_units: NDArray[np.bool_], unit_of_row: Integers | None) -> NDArray[np.bool_]:
    return of_units if unit_of_row is None else of_units[unit_of_row]


def _held_out(names: pl.Series | Integers, seed: int, share: float) -> NDArray[np.bool_]:
    threshold = int(share * 2**64)

    def side(key: object) -> bool:
        digest = hashlib.sha256(f"fedsilo/split/{seed}/{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < threshold

    return np.fromiter(map(side, names), dtype=bool, count=len(names))


def _units(keys: Keys) -> tuple[pl.Series | Integers, Integers | None]:
    """Return the distinct keys, and the place of each row's key among them; None where each row has one for itself."""
    if isinstance(keys, np.ndarray):
        return keys, None
    texts = pl.Series(keys, dtype=pl.String)
    unit_of_row = texts.rank("dense").to_numpy().astype(_ROWS) - _ROWS.type(1)  # the leanest way: no table of texts
    return texts[_first_rows(unit_of_row, int(unit_of_row.max(initial=-1)) + 1)], unit_of_row


def _first_rows(codes: Integers, count: int) -> Integers:
    """Return the first place of each code from 0 to `count` - 1, or -1 for one that does not occur."""
    first = np.full(count, -1, dtype=_ROWS)
    first[codes[::-1]] = np.arange(len(codes), dtype=_ROWS)[::-1]  # of equal codes, the last one written stays
    return first


def _renumbered(codes: Integers, count: int) -> Integers:
    """Return codes from 0 to `count` - 1 in numbers without gaps, in order of appearance."""
    first = _first_rows(codes, count)
    present = np.flatnonzero(first >= 0)
    number = np.empty(count, dtype=_ROWS)
    number[present[np.argsort(first[present])]] = np.arange(len(present), dtype=_ROWS)
    return number[codes]


def _part(loaded: Loaded, unit_of_row: Integers | None, mine: NDArray[np.bool_]) -> Part:
    import torch

    units = None
    if unit_of_row is not None:
        units = _renumbered(unit_of_row[mine], int(unit_of_row.max(initial=-1)) + 1)
    in_memory = isinstance(loaded.x, torch.Tensor)
    x = loaded.x[torch.from_numpy(places(mine))] if in_memory else Selected(loaded.x, Marked(mine))
    groups = {name: codes[mine] for name, codes in loaded.groups.items()}
    return Part(x=x, y=torch.from_numpy(np.ascontiguousarray(loaded.y[mine])), unit_of_row=units, groups=groups)


def _memory(x: torch.Tensor | Inputs) -> int:
    import torch

    return x.nbytes if isinstance(x, torch.Tensor) else 0


# --- inputs that are not tensors ----------------------------------------------------------------------------


def positions(rows: slice | torch.Tensor | Positions, count: int) -> Positions:
    """Return the positions that an index of `Inputs` means."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count), dtype=np.int64)
    return np.asarray(rows, dtype=np.int64)


class Marked:
    """The rows that a mask marks, in order, found by a count of the marks before each block (Jacobson 1989).

    It takes a fifth of a byte for each row of the mask, where a list of the rows would take four for each that it has.

    Args:
        mask: (rows,).
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        bits = np.packbits(mask)
        self._bits = np.pad(bits, (0, -len(bits) % _BYTES)).reshape(-1, _BYTES)
        marks = np.bitwise_count(self._bits).sum(1, dtype=_ROWS)
        self._before = np.concatenate([np.zeros(1, _ROWS), np.cumsum(marks, dtype=_ROWS)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, wanted: Positions) -> Positions:
        block = np.searchsorted(self._before, wanted, side="right") - 1
        up_to = np.cumsum(np.unpackbits(self._bits[block], axis=1), axis=1, dtype=np.uint8)
        inside = np.count_nonzero(up_to <= (wanted - self._before[block])[:, None], axis=1)
        return np.asarray(block * (8 * _BYTES) + inside, dtype=np.int64)


class Selected:
    """Some rows of other inputs."""

    def __init__(self, inputs: Inputs, rows: Integers | Marked) -> None:
        self._inputs, self._rows = inputs, rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._inputs.shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        return self._inputs[self._rows[positions(rows, len(self))]]


class Joined:
    """The rows of several inputs, one after the other."""

    def __init__(self, parts: Sequence[torch.Tensor | Inputs]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Any) -> torch.Tensor:
        import torch

        wanted = positions(rows, len(self))
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        pieces, places = [], []
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            pieces.append(self._parts[number][torch.from_numpy(wanted[mine] - self._starts[number])])
            places.append(mine)
        if not pieces:
            return self._parts[0][torch.zeros(0, dtype=torch.int64)]
        joined = torch.cat(pieces)
        return joined[torch.from_numpy(np.argsort(np.concatenate(places)))]


class RawRows(Protocol):
    """Rows of raw values: an array, or rows of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, rows: Any) -> Any: ...


class Encoded:
    """Raw rows that are encoded when they are asked for.

    Args:
        raw: (rows, ...) raw values.
        encode: (raw rows, their positions) to (rows, *shape) in the type that the model takes.
        shape: of one encoded record.
    """

    def __init__(self, raw: RawRows, encode: Callable[[Any, Positions], Array], shape: tuple[int, ...]) -> None:
        self._raw, self._encode, self._shape = raw, encode, shape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._raw.shape[0], *self._shape)

    def __len__(self) -> int:
        return self._raw.shape[0]

    def __getitem__(self, rows: Any) -> torch.Tensor:
        import torch

        wanted = positions(rows, len(self))
        rows_as_read = torch.from_numpy(np.ascontiguousarray(self._encode(self._raw[wanted], wanted)))
        # the strides of an axis of length one are free: a clone has the usual ones, which kernels take for granted
        return rows_as_read.clone(memory_format=torch.contiguous_format)


def in_memory_if_small(inputs: Inputs) -> torch.Tensor | Inputs:
    """Return all rows as one tensor when they are small, else the inputs as they are."""
    return inputs[slice(None)] if is_small(inputs) else inputs


def is_small(inputs: Inputs) -> bool:
    """Return whether the rows may be held in memory, at four bytes a value."""
    return int(np.prod(inputs.shape, dtype=np.int64)) * 4 <= IN_MEMORY_BYTES


class DiskRows:
    """Rows of equal size in a file, read by position and never mapped, so that they do not stay in memory.

    Args:
        file: open for reading; closed when nobody needs the rows any more.
        offset: where the first row begins.
        count: number of rows.
        shape: of one row.
        dtype: of a value.
    """

    def __init__(self, file: IO[bytes], *, offset: int, count: int, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._file, self._offset = file, offset
        weakref.finalize(self, file.close)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = (count, *shape)
        self._row_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size_bytes(self) -> int:
        """Of all rows in the file."""
        return len(self) * self._row_bytes

    def __getitem__(self, rows: Any) -> Array:
        wanted = positions(rows, len(self))
        out = bytearray(len(wanted) * self._row_bytes)
        view = memoryview(out)
        breaks = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)  # neighbours are read at once
        for start, stop in zip(breaks, [*breaks, len(wanted)][1:], strict=True):
            place = self._offset + int(wanted[start]) * self._row_bytes
            self._read(view[start * self._row_bytes : stop * self._row_bytes], place)
        return np.frombuffer(out, dtype=self.dtype).reshape(len(wanted), *self.shape[1:])

    def _read(self, into: memoryview, place: int) -> None:
        while len(into):
            read = os.preadv(self._file.fileno(), [into], place)
            if read == 0:
                raise OSError("a file of records became shorter while it was read")
            into, place = into[read:], place + read


class Spool:
    """Rows that come in batches: kept in memory while they are few, then in a file without a name.

    Args:
        scratch: folder of that file.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._batches: list[Array] = []
        self._held = 0
        self._file: IO[bytes] | None = None
        self._count = 0
        self._like: Array | None = None

    def append(self, rows: Array) -> None:
        """Add (rows, ...) of the shape and type that all batches have."""
        rows = np.ascontiguousarray(rows)
        self._like = rows[:0].copy()  # a view would keep the batch
        self._count += len(rows)
        if self._file is None:
            self._batches.append(rows)
            self._held += rows.nbytes
            if self._held > IN_MEMORY_BYTES:
                self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = tempfile.TemporaryFile(dir=self._scratch, buffering=0)  # noqa: SIM115 - lives with the rows
                for batch in self._batches:
                    self._file.write(batch.tobytes())
                self._batches = []
        else:
            self._file.write(rows.tobytes())

    def finish(self, dtype: DTypeLike | None = None) -> torch.Tensor | Inputs:
        """Return all rows; at least one batch was appended.

        Args:
            dtype: that the rows have when they are asked for, if it is not the one they were appended with.
        """
        import torch

        assert self._like is not None
        like = self._like if dtype is None else self._like.astype(dtype)
        if self._file is None:
            return torch.from_numpy(np.concatenate(self._batches).astype(like.dtype, copy=False))
        shape = like.shape[1:]
        raw = DiskRows(self._file, offset=0, count=self._count, shape=shape, dtype=self._like.dtype)
        return Encoded(raw, lambda rows, _: rows.astype(like.dtype, copy=False), shape)
