"""The records of one silo as tensors, and their split into a training and a held-out part by unit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Part:
    """Records of one part.

    Args:
        x: (rows, ...) float32 inputs.
        y: (rows,) int64 class indices, or float32 values in regression.
        unit_of_row: (rows,) unit of each row, numbered from 0 without gaps.
    """

    x: torch.Tensor
    y: torch.Tensor
    unit_of_row: NDArray[np.int64]

    @property
    def units(self) -> int:
        """Number of units; a private quantity."""
        return int(self.unit_of_row.max()) + 1 if len(self.unit_of_row) else 0


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


def held_out_rows(unit_keys: list[str], seed: int, share: float) -> NDArray[np.bool_]:
    """Return which rows are held out: a fixed function of the unit's key, the seed and the share.

    A unit's rows are on one side, and the side of a unit does not depend on which other units are there.
    """
    threshold = int(share * 2**64)
    sides: dict[str, bool] = {}
    for key in set(unit_keys):
        digest = hashlib.sha256(f"fedsilo/split/{seed}/{key}".encode()).digest()
        sides[key] = int.from_bytes(digest[:8], "big") < threshold
    return np.fromiter((sides[key] for key in unit_keys), dtype=bool, count=len(unit_keys))


def part(x: NDArray[np.float32], y: NDArray[np.generic], unit_keys: list[str], rows: NDArray[np.bool_]) -> Part:
    """Return the rows of one side as tensors, with units renumbered."""
    import torch

    chosen = np.flatnonzero(rows)
    numbers: dict[str, int] = {}
    units = np.fromiter((numbers.setdefault(unit_keys[i], len(numbers)) for i in chosen), np.int64, len(chosen))
    return Part(x=torch.from_numpy(x[chosen]), y=torch.from_numpy(y[chosen]), unit_of_row=units)
