"""Who holds what: partitions of the units of a data set over silos, one dataclass each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.schema import to_texts
from strategies.errors import SettingError
from strategies.spec import Registry, require

LEAST_ROWS = 20  # a dirichlet partition is drawn again until each silo has as many
_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a partition may look at, one entry a unit (its first row's).

    Args:
        label: (units,) class index, or 0 in regression.
        frame: the units' first rows.
    """

    label: NDArray[np.int64]
    frame: pl.DataFrame


class Partition(Protocol):
    """Assigns units to silos."""

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the silo of each unit, 0 to silos - 1."""


@dataclass(frozen=True, kw_only=True)
class Iid:
    """Units at random, in parts of equal size."""

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int64]:
        return random.permutation(np.arange(len(table.label)) % silos)


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

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int64]:
        least = min(self.least, len(table.label) // (2 * silos))
        for _ in range(_DRAWS):
            owner = np.zeros(len(table.label), dtype=np.int64)
            for label in np.unique(table.label):
                units = random.permutation(np.flatnonzero(table.label == label))
                shares = random.dirichlet(np.full(silos, self.alpha))
                cuts = np.rint(np.cumsum(shares)[:-1] * len(units)).astype(int)
                owner[units] = np.searchsorted(cuts, np.arange(len(units)), side="right")
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

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int64]:
        free = len(table.label) - self.least * silos
        if free < 0:
            raise SettingError(
                f"simulation.silos = {silos} is not allowed: the data set has {len(table.label)} units "
                f"and each silo needs {self.least}; lower it"
            )
        sizes = self.least + random.multinomial(free, random.dirichlet(np.full(silos, self.alpha)))
        return random.permutation(np.repeat(np.arange(silos), sizes))


@dataclass(frozen=True, kw_only=True)
class Natural:
    """A column says who holds what.

    Args:
        column: its name; each value is one silo.
    """

    column: str

    def assign(self, table: Table, silos: int, random: np.random.Generator) -> NDArray[np.int64]:
        if self.column not in table.frame.columns:
            raise SettingError(
                f"simulation.partition = 'natural(column=\"{self.column}\")': the data set has no such "
                f"column; it has {', '.join(table.frame.columns[:12])}"
            )
        values = to_texts(table.frame[self.column]).fill_null("missing").to_list()
        names = sorted(set(values))
        if len(names) != silos:
            raise SettingError(
                f"simulation.silos = {silos} is not allowed: column '{self.column}' has {len(names)} "
                f"values; write silos = {len(names)}"
            )
        index = {name: number for number, name in enumerate(names)}
        return np.array([index[value] for value in values], dtype=np.int64)


PARTITIONS = Registry(kind="partition", classes=(Iid, Dirichlet, Quantity, Natural))
