"""Where each parameter sits in the one flat vector that is trained, masked, summed and averaged.

Names are sorted, so every party builds the same vector from the same model; the layout's hash stands in the run
manifest, so nobody adds vectors of different meaning.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.errors import ProtocolError

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter: its name, shape and first position in the vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All slots, in the order of the vector; every value is a little-endian float32."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Iterable[int]]) -> Layout:
        """Return the layout of parameters with these shapes."""
        slots: list[Slot] = []
        offset = 0
        for name in sorted(shapes):
            slots.append(Slot(name=name, shape=tuple(shapes[name]), offset=offset))
            offset += slots[-1].size
        return cls(slots=tuple(slots))

    @property
    def size(self) -> int:
        """Number of values in the vector."""
        return self.slots[-1].offset + self.slots[-1].size if self.slots else 0

    def digest(self) -> str:
        """Return the SHA-256 of names, shapes, offsets and type, as 64 hex digits."""
        facts = [[slot.name, list(slot.shape), slot.offset, "<f4"] for slot in self.slots]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()

    def check(self, vector: NDArray[np.generic], what: str) -> Vector:
        """Return `vector` as float32 after checking length and finiteness.

        Raises:
            ProtocolError: it has another length or holds NaN or infinity.
        """
        if vector.shape != (self.size,):
            raise ProtocolError(f"{what} has shape {vector.shape}, the model's layout asks for ({self.size},)")
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, and is refused
            flat = np.ascontiguousarray(vector, dtype=np.float32)
        if not np.isfinite(flat).all():
            raise ProtocolError(f"{what} holds a value that is not a finite number")
        return flat

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Return the parameters by name, as views of `vector`."""
        return {s.name: vector[s.offset : s.offset + s.size].reshape(s.shape) for s in self.slots}

    def join(self, parameters: Mapping[str, NDArray[np.generic]]) -> Vector:
        """Return the flat vector of parameters given by name."""
        flat = [np.asarray(parameters[slot.name], dtype=np.float32).reshape(-1) for slot in self.slots]
        return np.concatenate(flat) if flat else np.zeros(0, np.float32)
