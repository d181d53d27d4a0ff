"""A line of metrics.jsonl: what a round gave, from the coordinator's own evaluation and from the silos' counts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.counted import groups_of, metrics_of, resolution_of
from strategies.counts import CountLayout
from strategies.privacy.accountant import epsilon
from strategies.study import Study

Line = dict[str, Any]
Groups = Mapping[str, Mapping[str, Mapping[str, float | None]]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Metrics of a model, and those by group column and value."""

    metrics: Mapping[str, float | None]
    groups: Groups


def own(measured: Measured | None, study: Study) -> Line:
    """Return what a line says of the coordinator's own evaluation; without one, counts may fill it later."""
    seen = dict(measured.metrics) if measured else {}
    found: Line = {"loss": seen.pop("loss", None), "metrics": seen}
    if study.file.evaluation.groups:
        found["groups"] = measured.groups if measured else {}
    return found


def counted(
    study: Study, lines: tuple[Line, ...], total: NDArray[np.float64], silos: int, *, own: bool
) -> tuple[Line, ...]:
    """Return the lines, the last one with the metrics of the silos' counts.

    Args:
        study: says what was counted.
        lines: metrics.jsonl; the model that the silos counted is the one after the last line.
        total: sum of the counts.
        silos: how many it is of.
        own: whether the coordinator has metrics of its own, beside which those of the silos stand.
    """
    layout = CountLayout.of(study)
    deviation = float(study.file.evaluation.noise_multiplier or 0) * layout.sensitivity * math.sqrt(silos)
    seen = metrics_of(layout, total, deviation=deviation)
    loss, groups = seen.pop("loss"), groups_of(layout, total, deviation=deviation)
    facts = {
        "silos": silos,
        "deviation": deviation,
        "resolution": resolution_of(layout, total, deviation=deviation),
    }
    found: Line = {"counts": facts, "silo_metrics": seen}
    if groups:
        found["silo_groups"] = groups
    if not own:
        found = {"counts": facts, "metrics": seen, "loss": loss} | ({"groups": groups} if groups else {})
    return (*lines[:-1], {**lines[-1], **found})


def spent(study: Study, asked: Mapping[str, int], closed: Collection[str] = ()) -> dict[str, float | None]:
    """Return each silo's epsilon after the rounds and the end that it was asked for; None without protection."""
    privacy = study.file.privacy

    @cache
    def cost(rounds: int, ended: bool) -> float | None:
        events = study.round_events() * rounds + study.closing_events() * ended
        value = epsilon(events, privacy.delta, accountant=privacy.accountant)
        return value if math.isfinite(value) else None

    return {silo: cost(rounds, silo in closed) for silo, rounds in sorted(asked.items())}
