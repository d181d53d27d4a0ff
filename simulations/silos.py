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
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomlkit
from numpy.typing import NDArray

from client.data import images, sequences, signals, text
from client.data.records import Joined, Part
from client.data.schema import codes_of, to_texts
from client.data.tables import check_columns, unit_keys
from client.data.targets import smallest, target_columns
from client.keys import Passphrases, make_keys, officer_key
from client.ledger import Ledger, Place
from client.models.base import MODELS
from simulations.datasets.base import DATASETS
from simulations.partitions import PARTITIONS, Partition, Table
from simulations.sources import Source, unit_column
from strategies.errors import DataError, Refusal, RefusalCode, SettingError
from strategies.privacy.budget import Budget
from strategies.privacy.dataroot import DataRoot
from strategies.spec import Registries
from strategies.study import Study

BUDGET_EPSILON = 8.0
ROOT = "records"  # name of the one data root of a simulated silo
_LARGEST_BUDGET = 1000
_ROWS_AT_ONCE = 2**20


REGISTRIES = Registries(models=MODELS, datasets=DATASETS, partitions=PARTITIONS)


# --- what is read off a data set ----------------------------------------------------------------------------


def complete(study: Study, source: Source, base: Path = Path()) -> tuple[Study, list[str]]:
    """Return the study as silos will see it, and sentences on what was read off the records (not private).

    Args:
        study: as written.
        source: the whole data set.
        base: folder that the study's paths are relative to.

    Raises:
        DataError: the target cannot be a class, or the files do not fit the kind of data.
    """
    data, frame = study.file.data, source.frame
    values: dict[str, Any] = {}
    if data.unit is None and "unit" in frame.columns and data.kind != "tabular":
        values["data.unit"] = "unit"  # a unit that is there must not be overlooked
    if study.file.study.task != "regression" and data.classes is None:
        values["data.classes"] = _classes(study, frame)
    off = READ_OFF.get(data.kind)
    if off is not None:
        values |= off(source.path, study, source.scratch.path)
    notes = [f"{key} = {_short(value)} was read off the records" for key, value in values.items()]
    if study.file.model.initial is not None:
        values |= _initial(base / study.file.model.initial)
    study = study.with_values(values, REGISTRIES) if values else study
    training = study.file.training
    if training.expected_batch_size is None:
        units = _number_of_units(study, frame)
        expected = training.sampling_rate * units * (1 - data.test_share) / study.file.simulation.silos
        study = study.with_values({"training.expected_batch_size": float(f"{expected:.3g}")}, REGISTRIES)
        notes.append(f"training.expected_batch_size = {expected:.3g} was computed from the number of units")
    return study, notes


def _initial(path: Path) -> dict[str, Any]:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise SettingError(f"model.initial = '{path}' cannot be read; give the path of a .safetensors file") from None
    return {"model.initial": str(path.absolute()), "model.initial_sha256": digest}


READ_OFF: dict[str, Callable[[Path, Study, Path], dict[str, Any]]] = {
    "images": images.read_off,
    "signals": signals.read_off,
    "sequences": sequences.read_off,
    "text": text.read_off,
}


def _short(value: object) -> str:
    shown = str(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def _number_of_units(study: Study, frame: pl.DataFrame) -> int:
    column = unit_column(study, frame)
    return frame.height if column is None else frame[column].n_unique()


def label_columns(study: Study, frame: pl.DataFrame) -> list[str]:
    """Return the columns of the target as they are called in the frame of a source."""
    several = [name for name in frame.columns if name.startswith("y_")]
    if study.file.study.task == "multilabel" and several:
        return several
    wanted = target_columns(study, "y" if "y" in frame.columns else "label")
    check_columns(frame.columns, wanted)
    return wanted


def _classes(study: Study, frame: pl.DataFrame) -> list[str]:
    if study.file.study.task == "multilabel":
        several = [name for name in frame.columns if name.startswith("y_")]
        return [f"label {number}" for number in range(1, len(several) + 1)]
    (column,) = label_columns(study, frame)
    slices = (some[column].unique() for some in frame.select(column).iter_slices(_ROWS_AT_ONCE))
    texts = to_texts(pl.concat(slices).unique())  # few, where the rows may be many
    if texts.null_count():
        absent = to_texts(frame[column]).is_null()
        raise DataError(
            f"target column '{column}', row {int(absent.arg_true()[0]) + 1}: the value is missing or NaN "
            f"({absent.sum()} rows in all); remove these rows or complete them"
        )
    classes = sorted(texts.unique().to_list(), key=_numbers_first)
    if not 2 <= len(classes) <= 1000:
        raise DataError(f"target column '{column}' has {len(classes)} different values; a class needs 2 to 1000")
    return classes


def _numbers_first(text: str) -> tuple[bool, float, str]:
    try:
        return (False, float(text), text)
    except ValueError:
        return (True, 0.0, text)


# --- folders ------------------------------------------------------------------------------------------------


def make_silos(study: Study, source: Source, parent: Path, *, fresh: str = "") -> list[Path]:
    """Return the silo folders of a study, made if they are not there yet.

    Args:
        study: complete.
        source: the whole data set.
        parent: folder of all simulated silos.
        fresh: a text that makes new folders, with untouched budgets.

    Raises:
        SettingError: the partition cannot be made.
    """
    folder = parent / _key(study, source, fresh)
    done = folder / "done"
    silos = [folder / f"silo-{number}" for number in range(1, study.file.simulation.silos + 1)]
    if not done.exists():
        if folder.exists():
            shutil.rmtree(folder)
        owner = _owners(study, source.frame)
        for silo in silos:
            _make_silo(silo, study, f"data/{ROOT}{source.suffix}")
        source.write(owner, [silo / "data" / f"{ROOT}{source.suffix}" for silo in silos])
        done.write_text("")
    return silos


def _key(study: Study, source: Source, fresh: str) -> str:
    simulation, data = study.file.simulation, study.file.data
    facts = [
        simulation.dataset,
        simulation.partition,
        study.file.study.seed,
        simulation.silos,
        data.unit,
        data.record,
        data.target,
        study.private,
        fresh,
        source.digest,
        "signed ledger",  # folders of before have none
    ]
    content = hashlib.sha256(json.dumps(facts).encode())
    name = re.sub(r"[^A-Za-z0-9._-]", "_", simulation.dataset.split("(")[0].rstrip("/").rsplit("/", 1)[-1])
    return f"{name}-{content.hexdigest()[:12]}"


def _owners(study: Study, frame: pl.DataFrame) -> NDArray[np.int32]:
    """Return the silo of each row; a unit is in one silo."""
    silos = study.file.simulation.silos
    unit = unit_column(study, frame)
    units = frame if unit is None else frame.unique(unit, keep="first", maintain_order=True)
    if units.height < silos:
        raise SettingError(
            f"simulation.silos = {silos} is not allowed: the data set has {units.height} units; lower it"
        )
    partition: Partition = PARTITIONS.resolve(study.file.simulation.partition)
    random = np.random.default_rng([study.file.study.seed, 1])
    owner = partition.assign(Table(label=_labels(units, study), frame=units), silos, random)
    if unit is None:
        return owner
    if to_texts(frame[unit].unique()).null_count():
        unit_keys(frame, unit)  # says how many rows have no unit
    owners = units.select(pl.col(unit).alias("unit"), pl.Series("owner", owner))
    found = frame.select(pl.col(unit).alias("unit")).join(owners, on="unit", how="left", maintain_order="left")
    return found["owner"].to_numpy()


def _labels(rows: pl.DataFrame, study: Study) -> NDArray[np.signedinteger[Any]]:
    if study.file.study.task != "classification":
        return np.zeros(rows.height, dtype=np.int8)
    (column,) = label_columns(study, rows)
    classes = study.file.data.classes or ()
    slices = rows.select(column).iter_slices(_ROWS_AT_ONCE)
    return np.concatenate([codes_of(some[column], classes).astype(smallest(len(classes))) for some in slices])


def _make_silo(folder: Path, study: Study, data: str) -> None:
    (folder / "data").mkdir(parents=True)
    settings = {"name": folder.name, "data": {ROOT: {"path": data}}, "ledger": {"durability": "process"}}
    budget = _budget(study) if study.private else math.inf
    policy = {
        "budget": {ROOT: {"epsilon": budget, "delta": study.file.privacy.delta}},
        "require": {
            "mechanism": "central-gaussian" if study.private else "none",  # a simulated server is trusted
            "min_cohort": 1,
            "approval": "automatic",
            "allow_metrics": ["masked", "noisy"],
        },
    }
    (folder / "silo.toml").write_text(tomlkit.dumps(settings), encoding="utf-8")
    (folder / "policy.toml").write_text(tomlkit.dumps(policy), encoding="utf-8")
    _register(folder, study, budget)


def _register(folder: Path, study: Study, budget: float) -> None:
    """Make keys and ledger of a simulated silo and register its data root, as `fedsilo-silo` does in a building."""
    place = Place(path=folder / "ledger.db", keys=folder / "keys", durability="process")
    make_keys(place.keys, Passphrases(), simulated=True)
    officer = officer_key(place.keys, None, simulated=True)
    Ledger.create(place, silo=folder.name, officer=officer)
    root = DataRoot(name=ROOT, unit=study.unit, epsilon=budget, delta=study.file.privacy.delta)
    with Ledger.open(place) as ledger:
        ledger.register(root, officer=officer)


def _budget(study: Study) -> float:
    """Return 8, or the next whole epsilon whose gate lets this study through once, so that it can be tried at all."""
    whole, delta = study.total_events(), study.file.privacy.delta
    for value in range(int(BUDGET_EPSILON), _LARGEST_BUDGET):
        if Budget(epsilon=float(value), delta=delta).fits((), whole):
            return float(value)
    raise SettingError(
        f"the study's releases cost more than epsilon {_LARGEST_BUDGET}; raise privacy.noise_multiplier, "
        "or write mechanism = 'none' to train without protection and say so"
    )


def why_refused(study: Study, silos: Sequence[Path], refusal: Refusal) -> str:
    """Return the simulated silos' own sentence on a refusal, of which a server learns the code alone."""
    from client.approval import admit
    from client.silo import Silo  # loads Flower, which reading a study does not need

    opened = [Silo.open(folder) for folder in silos]
    if refusal.code is not RefusalCode.BUDGET:
        for silo in opened:
            try:
                admit(silo, study)
            except Refusal as own:
                return f"{own}; or use --fresh for new silo folders"
        return str(refusal)
    asked = []
    for silo in opened:
        with silo.ledger() as ledger:
            asked.append(ledger.balance(ROOT).admission(study))
    least = min(asked, key=lambda whole: whole.rounds)
    return f"{least.sentence('of the simulated silos')}, or use --fresh for new silo folders"


def pooled(parts: Sequence[Part]) -> Part:
    """Return the concatenation of record parts, units kept apart."""
    import torch

    offsets = np.cumsum([0, *(part.units for part in parts)], dtype=np.int32)
    numbered = [(part.unit_of_row, start) for part, start in zip(parts, offsets, strict=False)]
    units = [unit_of_row + start for unit_of_row, start in numbered if unit_of_row is not None]
    tensors = [part.x for part in parts if isinstance(part.x, torch.Tensor)]
    return Part(
        x=torch.cat(tensors) if len(tensors) == len(parts) else Joined([part.x for part in parts]),
        y=torch.cat([part.y for part in parts]),
        unit_of_row=np.concatenate(units) if units else None,
        groups={name: np.concatenate([part.groups[name] for part in parts]) for name in parts[0].groups},
    )
