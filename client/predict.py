"""A trained model at a site: the study's public schema applied to the site's own records, probabilities to a file.

Nothing leaves the site and nothing is charged: the model is public to the silos, and what is written stays here. Where
the records carry the target, the calibration on them is stated with the result; where they do not, it is said that it
is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.kinds import LOADERS
from client.data.records import Loaded
from client.data.schema import class_texts
from client.models.base import Shape, build, layout_of, load_weights, predict
from client.models.weights import read_weights
from client.round import REGISTRIES
from strategies import metrics
from strategies.errors import DataError, SettingError
from strategies.study import Study

_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says of a site's records.

    Args:
        table: one row a record: its number, its unit if it has one, a column a class (or the value), the likeliest.
        metrics: on these records, where they carry the target; else None.
        calibration: rows of (predicted from, to, records, mean predicted, share observed) for the second class (two
            classes) or the likeliest class; empty without the target and in regression.
        notes: what was unusual about the records.
    """

    table: pl.DataFrame
    metrics: Mapping[str, float | None] | None
    calibration: tuple[Mapping[str, float], ...]
    notes: tuple[str, ...]


def read_study(path: Path) -> Study:
    """Return a complete study, such as the study.toml of a run folder.

    Raises:
        StudyError, SettingError: it cannot be read or is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise SettingError(f"the study {path} cannot be read; give the study.toml of the run") from None
    return Study.parse(text, REGISTRIES, source=path.name)


def predictions(study: Study, model: Path, data: Path, *, rename: Mapping[str, str], scratch: Path) -> Predictions:
    """Return what the model says of the records that lie at `data`.

    Args:
        study: complete: its schema is applied as in training.
        model: .safetensors file of a run of this study.
        data: file or folder of the study's kind; the target may be absent.
        rename: this site's own column names to the study's.
        scratch: folder for what is too large for memory.

    Raises:
        DataError, SettingError: the records or the model do not fit the study.
        RunError: the model gives a value that is not finite.
    """
    shape = Shape.of_study(study)
    module = build(study.model, shape, study.file.study.seed)
    load_weights(module, read_weights(model, layout_of(module)))
    loaded, labelled = _load(study, data, rename, scratch)
    scores = predict(module, loaded.x, shape)
    return Predictions(
        table=_table(study, loaded, scores),
        metrics=metrics.evaluate(scores, loaded.y, study.metrics) if labelled else None,
        calibration=_calibration(scores, loaded.y) if labelled and shape.task == "classification" else (),
        notes=loaded.notes,
    )


def _load(study: Study, data: Path, rename: Mapping[str, str], scratch: Path) -> tuple[Loaded, bool]:
    load = LOADERS[study.file.data.kind]
    try:
        return load(data, study, rename, scratch, labelled=True), True
    except DataError as labelled:  # without the target the records may still be sound
        try:
            return load(data, study, rename, scratch, labelled=False), False
        except DataError:
            raise labelled from None


def _table(study: Study, loaded: Loaded, scores: NDArray[np.float64]) -> pl.DataFrame:
    keys = loaded.keys
    columns: dict[str, Any] = {"record": np.arange(1, len(scores) + 1)}
    if not isinstance(keys, np.ndarray):
        columns[study.unit] = list(keys)
    if study.file.study.task == "regression":
        return pl.DataFrame({**columns, "value": scores[:, 0]})
    names = class_texts(study.file.data.classes or ())
    columns |= {f"probability {name}": scores[:, number] for number, name in enumerate(names)}
    if study.file.study.task == "classification":
        columns["prediction"] = [names[number] for number in scores.argmax(1)]
    return pl.DataFrame(columns)


def _calibration(scores: NDArray[np.float64], labels: NDArray[Any]) -> tuple[Mapping[str, float], ...]:
    chosen = np.ones(len(scores), dtype=np.int64) if scores.shape[1] == 2 else scores.argmax(1)
    said = scores[np.arange(len(scores)), chosen]
    true = labels == chosen
    place = np.minimum((said * _BINS).astype(int), _BINS - 1)
    return tuple(
        {
            "from": number / _BINS,
            "to": (number + 1) / _BINS,
            "records": int((place == number).sum()),
            "predicted": float(said[place == number].mean()),
            "observed": float(true[place == number].mean()),
        }
        for number in range(_BINS)
        if (place == number).any()
    )
