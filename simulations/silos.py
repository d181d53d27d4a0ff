"""One data set into many silo folders, and what a simulation reads off it.

A simulated silo is a folder like a real one: settings, a policy with a budget of epsilon 8 (or what the first study
needs, if that is more), a ledger (without syncs:
`durability = "process"`), its part of the records. The folders stand beside the runs under a key of data, partition,
seed and number of silos, so a budget lasts over runs, as it would in a building.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import tomlkit
from numpy.typing import NDArray

from client.data.schema import check_columns, class_texts, to_numbers, to_texts
from client.data.tabular import ROW_COLUMN, read_table, unit_keys
from client.models.base import MODELS
from simulations.datasets.base import DATASETS
from strategies.errors import DataError, SettingError
from strategies.privacy.budget import Budget
from strategies.spec import Registry, require
from strategies.study import Registries, Study

BUDGET_EPSILON = 8.0
ROOT = "records"  # name of the one data root of a simulated silo
LEAST_ROWS = 20  # a dirichlet partition is drawn again until each silo has as many
_DRAWS = 10_000
_LARGEST_BUDGET = 1000


# --- partitions ---------------------------------------------------------------------------------------------


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
REGISTRIES = Registries(models=MODELS, datasets=DATASETS, partitions=PARTITIONS)


# --- a data set, and what is read off it --------------------------------------------------------------------


def read_dataset(study: Study, base: Path) -> pl.DataFrame:
    """Return the table that `simulation.dataset` names; a path is relative to `base` (the study file's folder).

    Raises:
        DataError: it cannot be read, or a column that the study reads is missing.
    """
    name = study.file.simulation.dataset
    if "(" in name:
        frame: pl.DataFrame = DATASETS.resolve(name).load()
    else:
        frame = read_table(base / Path(name).expanduser())
    check_columns(frame, study.file.data)
    return frame.with_row_index(ROW_COLUMN).with_columns(pl.col(ROW_COLUMN).cast(pl.Int64))


def complete(study: Study, frame: pl.DataFrame) -> tuple[Study, list[str]]:
    """Return the study as silos will see it, and sentences on what was read off the records (not private).

    Raises:
        DataError: the target cannot be a class.
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    data, training = study.file.data, study.file.training
    if study.file.study.task == "classification" and data.classes is None:
        texts = to_texts(frame[str(data.target)])
        if texts.null_count():
            row = int(texts.is_null().arg_true()[0]) + 1
            raise DataError(
                f"target column '{data.target}', row {row}: the value is missing or NaN ({texts.null_count()} "
                "rows in all); remove these rows or complete them"
            )
        classes = sorted(texts.unique().to_list())
        if not 2 <= len(classes) <= 1000:
            raise DataError(
                f"target column '{data.target}' has {len(classes)} different values; a class needs 2 to 1000"
            )
        values["data.classes"] = classes
        notes.append(f"data.classes = {classes} was read off the records")
    if training.expected_batch_size is None:
        units = len(set(unit_keys(frame, data.unit)))
        expected = training.sampling_rate * units * (1 - data.test_share) / study.file.simulation.silos
        values["training.expected_batch_size"] = float(f"{expected:.3g}")
        notes.append(f"training.expected_batch_size = {expected:.3g} was computed from the number of units")
    return (study.with_values(values, REGISTRIES) if values else study), notes


# --- folders ------------------------------------------------------------------------------------------------


def make_silos(study: Study, frame: pl.DataFrame, parent: Path, *, fresh: str = "") -> list[Path]:
    """Return the silo folders of a study, made if they are not there yet.

    Args:
        study: complete.
        frame: the whole data set.
        parent: folder of all simulated silos.
        fresh: a text that makes new folders, with untouched budgets.

    Raises:
        SettingError: the partition cannot be made.
    """
    folder = parent / _key(study, frame, fresh)
    done = folder / "done"
    if not done.exists():
        if folder.exists():
            shutil.rmtree(folder)
        for number, part in enumerate(_split(study, frame), start=1):
            _make_silo(folder / f"silo-{number}", f"silo-{number}", study, part)
        done.write_text("")
    return [folder / f"silo-{number}" for number in range(1, study.file.simulation.silos + 1)]


def _key(study: Study, frame: pl.DataFrame, fresh: str) -> str:
    simulation = study.file.simulation
    facts = [
        simulation.dataset,
        simulation.partition,
        study.file.study.seed,
        simulation.silos,
        study.file.data.unit,
        study.file.data.target,
        study.private,
        fresh,
    ]
    content = hashlib.sha256(json.dumps(facts).encode())
    content.update(hashlib.sha256(frame.write_csv().encode()).digest())
    name = simulation.dataset.split("(")[0].rsplit("/", 1)[-1]
    return f"{name}-{content.hexdigest()[:12]}"


def _split(study: Study, frame: pl.DataFrame) -> list[pl.DataFrame]:
    silos = study.file.simulation.silos
    keys = np.array(unit_keys(frame, study.file.data.unit))
    _, first, unit_of_row = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) < silos:
        raise SettingError(f"simulation.silos = {silos} is not allowed: the data set has {len(first)} units; lower it")
    rows = frame[first]
    table = Table(label=_labels(rows, study), frame=rows)
    partition: Partition = PARTITIONS.resolve(study.file.simulation.partition)
    owner = partition.assign(table, silos, np.random.default_rng([study.file.study.seed, 1]))
    return [frame.filter(pl.Series(owner[unit_of_row] == number)) for number in range(silos)]


def _labels(rows: pl.DataFrame, study: Study) -> NDArray[np.int64]:
    target = rows[str(study.file.data.target)]
    if study.file.study.task == "regression":
        to_numbers(target.name, target)
        return np.zeros(rows.height, dtype=np.int64)
    index = {name: number for number, name in enumerate(class_texts(study.file.data.classes or ()))}
    return np.array([index.get(str(text), -1) for text in to_texts(target).to_list()], dtype=np.int64)


def _make_silo(folder: Path, name: str, study: Study, part: pl.DataFrame) -> None:
    (folder / "data").mkdir(parents=True)
    part.write_parquet(folder / "data" / f"{ROOT}.parquet")
    settings = {"name": name, "data": {ROOT: {"path": f"data/{ROOT}.parquet"}}, "ledger": {"durability": "process"}}
    budget = _budget(study) if study.private else math.inf
    policy = {
        "budget": {ROOT: {"epsilon": budget, "delta": study.file.privacy.delta}},
        "require": {"mechanism": study.file.privacy.mechanism, "min_cohort": 1, "approval": "automatic"},
    }
    (folder / "silo.toml").write_text(tomlkit.dumps(settings), encoding="utf-8")
    (folder / "policy.toml").write_text(tomlkit.dumps(policy), encoding="utf-8")


def _budget(study: Study) -> float:
    """Return 8, or the next whole epsilon whose gate lets this study through once, so that it can be tried at all."""
    whole, delta = study.round_events() * study.file.study.rounds, study.file.privacy.delta
    for value in range(int(BUDGET_EPSILON), _LARGEST_BUDGET):
        if Budget(epsilon=float(value), delta=delta).fits((), whole):
            return float(value)
    raise SettingError(
        f"the study's releases cost more than epsilon {_LARGEST_BUDGET}; raise privacy.noise_multiplier, "
        "or write mechanism = 'none' to train without protection and say so"
    )


def what_fits(study: Study, silos: Sequence[Path]) -> str:
    """Return a sentence on what the silos' budgets still allow of a study."""
    from client.silo import Silo  # loads Flower, which reading a study does not need

    rounds, most = study.file.study.rounds, []
    for silo in (Silo.open(folder) for folder in silos):
        with silo.ledger() as ledger:
            spent = ledger.spent(ROOT)
        budget = silo.budget()
        most.append((budget.rounds_that_fit(spent, study.round_events(), rounds), budget.spent(spent), budget.epsilon))
    fitting, used, whole = min(most)
    return (
        f"the study does not fit into the budget of the simulated silos: {used} of epsilon {whole} is spent at the "
        f"gate, {fitting} of its {rounds} rounds would fit; ask for fewer rounds, a smaller privacy.epsilon, or "
        "--fresh for new silo folders"
    )


def pooled(parts: Sequence[Any]) -> Any:
    """Return the concatenation of record parts, units kept apart."""
    import torch

    from client.data.records import Part

    offsets = np.cumsum([0, *(part.units for part in parts)])
    units = [part.unit_of_row + offset for part, offset in zip(parts, offsets, strict=False)]
    return Part(
        x=torch.cat([part.x for part in parts]),
        y=torch.cat([part.y for part in parts]),
        unit_of_row=np.concatenate(units),
    )
