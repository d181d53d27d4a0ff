"""What federation and privacy are measured against: the same model without both, on the same test data.

`pooled` trains on all silos' records together, `best_local` is the silo whose own model does best. Both are trained
without privacy to the end of their usefulness: Adam, and the weights that did best on a tenth of the training records
set aside for it. They run outside the silos' ledgers, which is what only a simulation can do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from client.data.records import Part, places
from client.models.base import Shape, build, layout_of, load_weights, predict, weights_of
from client.training.losses import RowLoss, row_loss
from simulations.silos import pooled
from strategies import metrics
from strategies.study import Study

Metrics = dict[str, float | None]
_LARGER_IS_WORSE = ("brier", "rmse", "mae", "loss")
_EPOCHS, _PATIENCE, _BATCH = 200, 15, 64
_STEPS_AT_MOST = 6000
_LARGEST_BATCH, _CHECKED = 2**13, 2**15  # of data that stay on disk, whose rows are read one by one
_LARGE, _CHECKED_AT_ONCE = 5000, 512
_SECONDS = 40.0  # of processor time for each of the two rows; a large model stops there, at its best so far


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Metrics of both on the test data; `best_local` with the name of its silo."""

    pooled: Metrics
    best_local: Metrics
    best_silo: str


def baselines(study: Study, parts: Sequence[Part], test: Part) -> Baselines:
    """Train and evaluate both.

    Args:
        study: names model, task and metrics.
        parts: training records of each silo, in order.
        test: pooled held-out records.
    """
    whole = fit(study, pooled(parts), test, seconds=_SECONDS)
    share = _SECONDS / max(1, len(parts))
    local = {f"silo-{n}": fit(study, part, test, seconds=share) for n, part in enumerate(parts, start=1)}
    best = max(local, key=lambda silo: goodness(local[silo], study.metrics[0]))
    return Baselines(pooled=whole, best_local=local[best], best_silo=best)


def fit(study: Study, part: Part, test: Part, *, seconds: float = math.inf) -> Metrics:
    """Return the test metrics of the study's model trained plainly on `part`, for at most so much processor time."""
    shape = Shape.of_study(study)
    module = build(study.model, shape, study.file.study.seed)
    random = np.random.default_rng([study.file.study.seed, 2])
    units = np.arange(part.units, dtype=np.int32)
    random.shuffle(units)
    aside = np.zeros(part.units, dtype=bool)
    aside[units[: part.units // 10]] = True
    if part.unit_of_row is not None:
        aside = aside[part.unit_of_row]
    train, check = places(~aside), places(aside)
    del units, aside  # there may be many rows, and what is held of each adds up
    if len(check) > _CHECKED:
        check = random.choice(check, _CHECKED, replace=False)
    if len(train):
        _train(module, shape, part, train, check, random, time.process_time() + seconds)
    del train, check
    values = metrics.evaluate(predict(module, test.x, shape), test.y.numpy(), study.metrics) if len(test.y) else {}
    values.pop("loss", None)
    return values


def plain_optimizer(study: Study) -> str:
    """Return what a study's model is trained with here, as `training.optimizer` says it.

    Steps that suit gradients of clipped units are often too long for others.
    """
    return f"adam(lr={_learning_rate(build(study.model, Shape.of_study(study), study.file.study.seed))})"


def _learning_rate(module: nn.Module) -> float:
    return 0.002 if layout_of(module).size > _LARGE else 0.01


def _train(
    module: nn.Module,
    shape: Shape,
    part: Part,
    train: np.ndarray,
    check: np.ndarray,
    random: np.random.Generator,
    deadline: float,
) -> None:
    loss = row_loss(shape)
    optimizer = torch.optim.Adam(module.parameters(), lr=_learning_rate(module))
    best, best_weights, waited = np.inf, weights_of(module), 0
    batch = min(max(_BATCH, len(train) // 64), _LARGEST_BATCH)
    epochs = max(1, min(_EPOCHS, _STEPS_AT_MOST * batch // len(train)))
    seen = check if len(check) else train
    for _ in range(epochs):
        order = random.permutation(train)
        for start in range(0, len(order), batch):
            rows = torch.from_numpy(order[start : start + batch])
            optimizer.zero_grad()
            loss(module(part.x[rows]), part.y[rows]).mean().backward()
            optimizer.step()
            if time.process_time() > deadline:
                break
        value = _mean_loss(module, loss, part, seen)
        if value < best - 1e-5:
            best, best_weights, waited = value, weights_of(module), 0
        else:
            waited += 1
        if waited >= _PATIENCE or time.process_time() > deadline:
            break
    load_weights(module, best_weights)


def _mean_loss(module: nn.Module, loss: RowLoss, part: Part, rows: np.ndarray) -> float:
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), _CHECKED_AT_ONCE):
            some = torch.from_numpy(rows[start : start + _CHECKED_AT_ONCE])
            total += float(loss(module(part.x[some]), part.y[some]).double().sum())
    return total / len(rows)


def goodness(values: Mapping[str, float | None], name: str) -> float:
    """Return a metric so that more is better, also where it is undefined."""
    value = values.get(name)
    if value is None:
        return -np.inf
    return -value if name in _LARGER_IS_WORSE else value
