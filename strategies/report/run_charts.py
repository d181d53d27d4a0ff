"""Which charts a run's report has, each with the reason where it is absent, and its table of rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from strategies.report.charts import (
    Attendance,
    Curve,
    Spending,
    budget_chart,
    epsilon_chart,
    metrics_chart,
    participation_chart,
)
from strategies.report.drawing import Chart
from strategies.report.guarantee import bars_of
from strategies.report.numbers import NOTHING, delta_text, metric, privacy, thin
from strategies.report.privacy_charts import profile_chart, roc_chart, steps_chart, ways_chart
from strategies.report.silo_rows import SiloEntry
from strategies.report.usefulness import baselines, label_of

Facts = Mapping[str, Any]

_ROWS = 200  # most lines of the table of rounds


_NO_ROUND, _NOT_BOUNDED = "No round was finished.", "This run has no differential privacy, so no ε is bounded."
_UNMEASURED = "No metric was measured: there are no test records and no counts of silos, or they do not define one."


def run_charts(facts: Facts, silos: Sequence[SiloEntry], private: bool) -> dict[str, Chart]:
    """Return every chart of the page, drawn or with the reason why not."""
    return {
        **_attack_charts(facts, private),
        "epsilon": _epsilon(facts, private),
        "metrics": _metrics(facts),
        "budget": _budget(facts, silos),
        "participation": _participation(facts),
    }


def _epsilon(facts: Facts, private: bool) -> Chart:
    values, lines = facts["privacy"], facts["rounds"]
    at = f"at δ = {delta_text(values['delta'])}, per {values['unit']}"
    title = f"Privacy loss ε over the rounds{f', worst silo ({at})' if private else ''}"
    points = [(line["round"], max(found)) for line in lines if private and (found := _values(line["epsilon"]))]
    if not points:
        return Chart(key="epsilon", title=title, reason=_NO_ROUND if private else _NOT_BOUNDED)
    return epsilon_chart(title, points, facts["run"]["rounds_planned"], values["target_epsilon"])


def _metrics(facts: Facts) -> Chart:
    title, lines, curves = "Metrics over the rounds", facts["rounds"], _curves(facts)
    if not curves:
        return Chart(key="metrics", title=title, reason=_UNMEASURED if lines else _NO_ROUND)
    return metrics_chart(title, [line["round"] for line in lines], curves)


def _budget(facts: Facts, silos: Sequence[SiloEntry]) -> Chart:
    title = f"Privacy budget of each silo, as its gate counts (per {facts['privacy']['unit']}, at the δ of its budget)"
    spending = [
        Spending(silo=silo.name, spent=own.spent, budget=own.budget, share=own.share)
        for silo in silos
        if (own := silo.statement) and own.spent is not None and own.budget and own.share is not None
    ]
    if spending:
        return budget_chart(title, spending)
    stated = any(silo.statement for silo in silos)
    reason = "No silo has stated a budget with a limit." if stated else "No silo has sent a statement of its ledger."
    return Chart(key="budget", title=title, reason=reason)


def _participation(facts: Facts) -> Chart:
    title, keys = "Participation", ("round", "cohort", "dropped", "aggregated")
    rounds = [Attendance(**{key: line[key] for key in keys}) for line in facts["rounds"]]
    if not rounds:
        return Chart(key="participation", title=title, reason=_NO_ROUND)
    return participation_chart(title, rounds)


def _attack_charts(facts: Facts, private: bool) -> dict[str, Chart]:
    """What the worst silo's releases allow an attacker, and what epsilon would be if it were counted otherwise."""
    numbers, unit, delta = facts["numbers"], facts["privacy"]["unit"], facts["privacy"]["delta"]
    at = f"at δ = {delta_text(delta)}, per {unit}"
    titles = {
        "profile": f"Every pair of ε and δ, per {unit}",
        "roc": f"What any attack can find, per {unit}",
        "ways": f"ε of the same releases, counted otherwise ({at})",
        "steps": f"ε by kind of release ({at})",
        "utility": "Usefulness over ε",
    }
    none = _NO_ROUND if private else _NOT_BOUNDED
    absent = {key: Chart(key=key, title=title, reason=none) for key, title in titles.items()}
    absent["utility"] = Chart(
        key="utility",
        title=titles["utility"],
        reason="A run has one ε; fedsilo-simulate sweep trains at several and draws it, with error bars over seeds.",
    )
    if numbers is None or numbers["profile"] is None:
        return absent
    parts = [(part["name"], part["from"], part["to"]) for part in facts["steps"]]
    claimed = numbers["epsilon_pld"], delta
    return absent | {
        "profile": profile_chart("profile", titles["profile"], numbers["profile"], claimed),
        "roc": roc_chart(
            "roc",
            titles["roc"],
            numbers["roc"],
            (numbers["false_positive_rate"], numbers["true_positive_rate"]),
            facts["audit"].get("roc", ()),
        ),
        "ways": ways_chart("ways", titles["ways"], bars_of(numbers)),
        "steps": steps_chart("steps", titles["steps"], parts)
        if len(parts) > 1
        else Chart(
            key="steps", title=titles["steps"], reason="There is one kind of release in this run: the model update."
        ),
    }


def _curves(facts: Facts) -> list[Curve]:
    lines = facts["rounds"]
    curves = [(name, [_metric(line, name) for line in lines]) for name in _names(lines)]
    return [
        Curve(
            label=label_of(name),
            values=values,
            baselines=[(label, found.get(name)) for label, _, found in baselines(facts)],
        )
        for name, values in curves
        if any(value is not None for value in values)
    ]


def _names(lines: Iterable[Facts]) -> list[str]:
    return [*dict.fromkeys(name for line in lines for name in line["metrics"] or {}), "loss"]


def _metric(line: Facts, name: str) -> float | None:
    value = line["loss"] if name == "loss" else (line["metrics"] or {}).get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _values(epsilon: Mapping[str, float | None]) -> list[float]:
    return [value for value in epsilon.values() if value is not None]


def round_rows(facts: Facts, private: bool) -> dict[str, Any]:
    """Return the table of rounds."""
    lines, names = facts["rounds"], _names(facts["rounds"])
    kept = [lines[i] for i in thin(len(lines), _ROWS)]
    rows = []
    for line in kept:
        worst = max(_values(line["epsilon"]), default=None)
        rows.append(
            [
                line["round"],
                *([NOTHING if worst is None else privacy(worst)] if private else []),
                line["cohort"],
                line["dropped"],
                "yes" if line["aggregated"] else "no",
                *(metric(_metric(line, name)) for name in names),
            ]
        )
    at = f"ε is the worst silo's, at δ = {delta_text(facts['privacy']['delta'])}, per {facts['privacy']['unit']}. "
    some = f"{len(kept)} of {len(lines)} rounds; all of them stand in report.json." if len(kept) < len(lines) else ""
    return {
        "rows": rows,
        "caption": f"Each round of the run. {at if private else ''}{some}".strip(),
        "columns": [
            *(["ε"] if private else []),
            "asked",
            "dropped out",
            "model changed",
            *(label_of(name) for name in names),
        ],
    }
