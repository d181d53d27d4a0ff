"""How useful the model is, for the page of a report: final metrics, where they come from, those of public groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from strategies.report.numbers import metric, plain

Facts = Mapping[str, Any]

_METRICS = {
    "accuracy": ("Accuracy", "higher is better"),
    "auroc": ("AUROC", "higher is better"),
    "auprc": ("AUPRC", "higher is better"),
    "brier": ("Brier score", "lower is better"),
    "balanced_accuracy": ("Balanced accuracy", "higher is better"),
    "f1": ("F1", "higher is better"),
    "ece": ("Calibration error (ECE)", "lower is better"),
    "rmse": ("RMSE", "lower is better"),
    "mae": ("MAE", "lower is better"),
    "r2": ("R²", "higher is better"),
    "loss": ("Loss", "lower is better"),
}


def label_of(name: str) -> str:
    """Return the words for a metric."""
    return _METRICS.get(name, (name, ""))[0]


def baselines(facts: Facts) -> list[tuple[str, str, Mapping[str, float | None]]]:
    """Return label, note and metrics of what the run is compared with."""
    found = facts.get("baselines") or {}
    pairs = [
        ("pooled", "all records in one place, not private", found.get("pooled")),
        ("best lone silo", f"{found.get('best_silo', '')}, not private".lstrip(", "), found.get("best_local")),
    ]
    return [(label, note, values) for label, note, values in pairs if values]


def utility(facts: Facts) -> dict[str, Any]:
    """Return the table of final metrics and the words around it."""
    last = {**(facts["metrics"] or {}), "loss": facts["loss"]}
    others = baselines(facts)
    if facts.get("silo_metrics"):
        others = [("by the silos", "from noisy counts", facts["silo_metrics"]), *others]
    rows = []
    for name in last:
        cells = [last[name], *(values.get(name) for _, _, values in others)]
        if any(cell is not None for cell in cells):
            better = _METRICS.get(name, ("", ""))[1]
            rows.append({"name": label_of(name), "note": better, "cells": [metric(cell) for cell in cells]})
    compared = "" if baselines(facts) else " There is no baseline to compare with in this report."
    return {
        "rows": rows,
        "text": f"{_source(facts)} {_interval(facts)}",
        "caption": f"The model after the last finished round.{compared}",
        "columns": [("This run", ""), *((label, note) for label, note, _ in others)],
    }


def _interval(facts: Facts) -> str:
    """The interval of the accuracy, where the number of test records may be said."""
    found = facts.get("accuracy_interval")
    if not found:
        return "No interval is given: the number of records behind these values is not public."
    return f"95 % interval of the accuracy, for that many records: {metric(found[0])} to {metric(found[1])}."


def _source(facts: Facts) -> str:
    """Say who measured, on what, and how exact it is."""
    counts = (facts["rounds"][-1] if facts["rounds"] else {}).get("counts")
    records = (facts.get("simulation") or {}).get("test_records")
    if counts and not facts.get("silo_metrics"):
        return _of_counts(counts)
    if records:
        own = (
            f"Measured on {records:,} record{'' if records == 1 else 's'} held out by the simulated silos, taken "
            "together. These values are exact: they have no noise and are in no silo's ledger, as only a simulation "
            "can do."
        )
    else:
        own = "Measured by the coordinator on test records of its own."
    return f"{own} By the silos: {_of_counts(counts)}" if counts else own


def _of_counts(counts: Facts) -> str:
    resolution = ", ".join(f"{label_of(name)} by {metric(value)}" for name, value in counts["resolution"].items())
    binned = f"Scores were counted in bins, which alone can move {resolution} at most. " if resolution else ""
    silos = f"{counts['silos']} silo{'' if counts['silos'] == 1 else 's'}"
    return (
        f"Measured by {silos} on records that they hold out. Each sent counts with Gaussian noise, which its ledger "
        "has charged, and the metrics are those of the sum; the noise of each summed count has the standard deviation "
        f"{plain(counts['deviation'])}. {binned}A metric that the noise drowns is left out."
    )


def interval(share: float, records: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of so many records (Wilson 1927), rounded outwards to 4 decimals."""
    z = 1.959964
    middle, wide = (
        share + z * z / (2 * records),
        z * math.sqrt(share * (1 - share) / records + (z / (2 * records)) ** 2),
    )
    low, high = ((middle + sign * wide) / (1 + z * z / records) for sign in (-1, 1))
    return max(0.0, math.floor(low * 1e4) / 1e4), min(1.0, math.ceil(high * 1e4) / 1e4)


def group_tables(facts: Facts) -> list[dict[str, Any]]:
    """Return a table for each group column: a row a value, a column a metric."""
    tables = []
    for column, values in (facts.get("groups") or {}).items():
        names = list(dict.fromkeys(name for found in values.values() for name in found))
        tables.append(
            {
                "caption": f"The same model, by the public values of '{column}'.",
                "name": column,
                "columns": [label_of(name) for name in names],
                "rows": [
                    {"name": value, "cells": [metric(found.get(name)) for name in names]}
                    for value, found in values.items()
                ],
            }
        )
    return tables
