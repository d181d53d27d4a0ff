"""Who holds what: partitions of the units of a data set over silos, one dataclass each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.schema import to_texts
from strategies.errors import SettingError
from strategies.spec import Registry, require

LEAST_ROWS = 20  # a dirichlet partition is drawn again until each silo has as many
OWNER = np.int32  # silos and places of units: there is one a row, and rows may be many
_DRAWS = 10_000
_ROWS_AT_ONCE = 2**20


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a partition may look at, one entry a unit (its first row's).

    Args:
        label: (units,) class index, or 0 in regression.
        frame: the units' first rows.
    """

    label: NDArray[np.integer[Any]]
    frame: pl.DataFrame


class Partition(Protocol):
    """Assigns units to silos."""

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int32]:
        """Return the silo of each unit, 0 to silos - 1."""


@dataclass(frozen=True, kw_only=True)
class Iid:
    """Units at random, in parts of equal size."""

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int32]:
        owner = np.arange(len(table.label), dtype=OWNER)
        owner %= silos
        random.shuffle(owner)
        return owner


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Each class is spread over the silos in proportions from a Dirichlet distribution (Hsu et al. 2019).

    Args:
        alpha: concentration; small is very unequal.
        least: drawn again until each silo has as many units, or half of an equal share where that is less.
    """

    alpha: float = 0.5
    least: int = LEAST_ROWS

    def __post_init__(self) -> None:
        require(0 < self.alpha < math.inf, "dirichlet.alpha", self.alpha, "a positive number")
        require(self.least >= 1, "dirichlet.least", self.least, "at least 1")

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int32]:
        least = min(self.least, len(table.label) // (2 * silos))
        for _ in range(_DRAWS):
            owner = np.zeros(len(table.label), dtype=OWNER)
            for label in np.unique(table.label):
                units = np.flatnonzero(table.label == label).astype(OWNER)
                random.shuffle(units)
                shares = random.dirichlet(np.full(silos, self.alpha))
                cuts = np.rint(np.cumsum(shares)[:-1] * len(units)).astype(int)
                for silo, mine in enumerate(np.split(units, cuts)):
                    owner[mine] = silo
            if np.bincount(owner, minlength=silos).min() >= least:
                return owner
        raise SettingError(
            f"simulation.partition = 'dirichlet(alpha={self.alpha})' gave no split with {least} "
            f"units in each of {silos} silos; raise alpha or lower simulation.silos"
        )


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Units at random, silo sizes from a Dirichlet distribution.

    Args:
        alpha: concentration; small is very unequal.
        least: units that each silo has at least.
    """

    alpha: float = 1.0
    least: int = 1

    def __post_init__(self) -> None:
        require(0 < self.alpha < math.inf, "quantity.alpha", self.alpha, "a positive number")
        require(self.least >= 1, "quantity.least", self.least, "at least 1")

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int32]:
        free = len(table.label) - self.least * silos
        if free < 0:
            raise SettingError(
                f"simulation.silos = {silos} is not allowed: the data set has {len(table.label)} units "
                f"and each silo needs {self.least}; lower it"
            )
        sizes = self.least + random.multinomial(free, random.dirichlet(np.full(silos, self.alpha)))
        owner = np.repeat(np.arange(silos, dtype=OWNER), sizes)
        random.shuffle(owner)
        return owner


@dataclass(frozen=True, kw_only=True)
class Natural:
    """A column says who holds what.

    Args:
        column: its name; each value is one silo.
    """

    column: str

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int32]:
        if self.column not in table.frame.columns:
            raise SettingError(
                f"simulation.partition = 'natural(column=\"{self.column}\")': the data set has no such "
                f"column; it has {', '.join(table.frame.columns[:12])}"
            )
        column = table.frame[self.column]
        names = sorted(set(to_texts(column.unique()).fill_null("missing").to_list()))
        if len(names) != silos:
            raise SettingError(
                f"simulation.silos = {silos} is not allowed: column '{self.column}' has {len(names)} "
                f"values; write silos = {len(names)}"
            )
        numbers = list(range(len(names)))
        slices = (column.slice(start, _ROWS_AT_ONCE) for start in range(0, len(column), _ROWS_AT_ONCE))
        texts = (to_texts(some).fill_null("missing") for some in slices)
        return np.concatenate([t.replace_strict(names, numbers, return_dtype=pl.Int32).to_numpy() for t in texts])


PARTITIONS = Registry(kind="partition", classes=(Iid, Dirichlet, Quantity, Natural))
