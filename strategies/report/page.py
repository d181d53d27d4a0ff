"""report.html: the facts of a run, for a data-protection officer to read and print.

What has to be said follows NIST SP 800-226 (epsilon, delta and unit on top, then mechanism, then trust and limits) and
Ponomareva et al. 2023 (section 5: releases covered, unit, neighbouring relation, accountant, tiers). The page says
"supports" and never "complies", and claims nothing for a run without differential privacy.

Guarantees: epsilon stands beside delta and unit everywhere; what a silo states is shown as its statement and is never
trusted to have a certain form; the same facts give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from strategies.errors import RefusalCode
from strategies.report.charts import (
    Attendance,
    Chart,
    Curve,
    Spending,
    budget_chart,
    epsilon_chart,
    metrics_chart,
    participation_chart,
    thin,
)
from strategies.report.template import NOTHING, delta_text, fill, floor, metric, one_in, percent, plain, privacy
from strategies.report.usefulness import baselines, group_tables, label_of, utility

Facts = Mapping[str, Any]

_ROWS = 200  # most lines of the table of rounds
_CODES = {
    RefusalCode.POLICY: "the silo's policy does not allow this study",
    RefusalCode.APPROVAL: "nobody at the silo has approved this study",
    RefusalCode.BUDGET: "the study does not fit into what is left of the silo's privacy budget",
    RefusalCode.LEDGER: "the silo's privacy ledger is frozen, damaged or cannot be written; nothing leaves it",
    RefusalCode.DATA: "the silo's records do not fit the study's schema, or cannot be read",
    RefusalCode.STUDY: "the study is not valid there, or is not the one that was agreed",
    RefusalCode.PROTOCOL: "the request did not follow the protocol",
    RefusalCode.INTERNAL: "anything else; the silo's own log says what",
}
_READING = (
    "ε (epsilon) bounds how much one unit can change what an observer sees; smaller is more private. It has a meaning "
    "only together with δ and the unit. δ (delta) is the small part of cases that ε does not speak for.",
    "The guess: from a 50:50 belief, ε allows a belief of at most e^ε / (1 + e^ε). With δ counted in, the chance to "
    "guess right is at most (e^ε + δ) / (1 + e^ε), whatever the observer does with what was sent, now or later.",
    "Every privacy number is an upper bound, computed from the mechanism's settings and rounded up. It holds for a "
    "silo that runs this code; this page reports no attack that was tried against it.",
    "Without amplification: ε if each step had used every unit, so without counting on it that nobody knows who was "
    "sampled.",
    "Tiers: Ponomareva et al. 2023, How to DP-fy ML (arXiv 2303.00654): ε up to 1 is strong, up to 10 reasonable, "
    "above 10 weak.",
)


def render(facts: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        facts: as `report_facts` returns them; `simulation` and `baselines` may be absent or None.
    """
    run, privacy_facts = facts["run"], facts["privacy"]
    silos = [_Silo.of(entry) for entry in facts["silos"]]
    private = privacy_facts["mechanism"] != "none"
    worst = _worst(silos) if private else None
    unbounded = any(silo.rounds and silo.epsilon is None for silo in silos)
    caption, columns = _silo_head(privacy_facts, private)
    codes = sorted({*facts["never_joined"], *(silo.refusal for silo in silos if silo.refusal)})
    return fill(
        {
            "run": run,
            "finished": _time(run["finished"]),
            "unit": privacy_facts["unit"],
            "simulation": _simulation(facts.get("simulation")),
            "notes": _notes(facts, silos),
            "claim": _claim(facts, worst, silos) if worst and not unbounded else None,
            "alarm": _alarm(private) if unbounded or not private else None,
            "silos": [_silo_row(silo, private) for silo in silos],
            "silo_caption": caption,
            "silo_columns": columns,
            "silo_notes": _silo_notes(silos, private),
            "never_joined": _never_joined(facts["never_joined"]),
            "codes": [{"name": code, "value": _CODES[RefusalCode(code)]} for code in codes if code in set(RefusalCode)],
            "charts": _charts(facts, silos, private),
            "rounds": _rounds(facts, private),
            "mechanism": _mechanism(facts, private),
            "mechanism_caption": "How the privacy is made."
            if private
            else "There is no privacy mechanism in this run.",
            "private": private,
            "releases": facts["releases"],
            "unprotected": facts["unprotected"],
            "not_covered": facts["not_covered"],
            "utility": utility(facts),
            "groups": group_tables(facts),
            "noised": private or facts.get("evaluation") is not None,
            "identity": _identity(run),
            "trained": _trained(facts["study"]),
            "reading": _READING,
        }
    )


# --- what a silo may have sent, and what it states ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Statement:
    """What a silo's own ledger says: of this run, and of its budget over all runs on the same records."""

    epsilon: float | None
    delta: float
    budget: float | None
    budget_delta: float
    spent: float | None
    durability: str

    @classmethod
    def of(cls, value: Any) -> _Statement | None:
        """Read a statement; None for one that has another form, for a silo may write anything there."""
        if not isinstance(value, Mapping) or not isinstance(value.get("budget"), Mapping):
            return None
        budget = value["budget"]
        delta, budget_delta = _number(value.get("delta")), _number(budget.get("delta"))
        if delta is None or budget_delta is None:
            return None
        return cls(
            epsilon=_number(value.get("epsilon")),
            delta=delta,
            budget=_number(budget.get("epsilon")),
            budget_delta=budget_delta,
            spent=_number(budget.get("spent")),
            durability=str(value.get("durability", "not stated")),
        )


@dataclass(frozen=True, kw_only=True)
class _Silo:
    name: str
    rounds: int
    epsilon: float | None
    delta: float
    facts: Facts
    refusal: str
    statement: _Statement | None
    unreadable: bool

    @classmethod
    def of(cls, entry: Facts) -> _Silo:
        statement = _Statement.of(entry["statement"])
        return cls(
            name=entry["name"],
            rounds=entry["rounds"],
            epsilon=entry["epsilon"],
            delta=entry["delta"],
            facts=entry,
            refusal=entry["refusal"] or "",
            statement=statement,
            unreadable=statement is None and entry["statement"] is not None,
        )

    @property
    def disagrees(self) -> bool:
        """Its own ledger counts more for this run than the coordinator does."""
        own = self.statement
        return bool(
            own and own.epsilon and self.epsilon is not None and own.delta == self.delta and own.epsilon > self.epsilon
        )


def _number(value: Any) -> float | None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if sound else None


def _worst(silos: Iterable[_Silo]) -> _Silo | None:
    asked = [silo for silo in silos if silo.rounds and silo.epsilon is not None]
    return max(asked, key=lambda silo: silo.epsilon or 0.0, default=None)


# --- the top of the page --------------------------------------------------------------------------------------


def _claim(facts: Facts, worst: _Silo, silos: Sequence[_Silo]) -> dict[str, Any]:
    unit, delta, value = facts["privacy"]["unit"], delta_text(worst.delta), worst.epsilon or 0.0
    what, known = (
        ("record", "every other record")
        if unit == "record"
        else (f"'{unit}' (all its records together)", f"all records of every other {unit}")
    )
    sent = "in the finished rounds of this run" if facts["run"]["status"] == "interrupted" else "in this run"
    same, guess = all(silo.epsilon == worst.epsilon for silo in silos), percent(worst.facts["odds"])
    others = (
        ""
        if len(silos) == 1
        else (
            f"All {len(silos)} silos have this same ε."
            if same
            else f"{worst.name} is the worst of {len(silos)} silos; the others stand below."
        )
    )
    tier, limits = _tier(value)
    return {
        "epsilon": privacy(value),
        "delta": delta,
        "one_in": one_in(worst.delta),
        "silo": worst.name,
        "neighbouring": f"{facts['privacy']['neighbouring'].replace('-', ' ')} {unit}",
        "tier": tier,
        "range": limits,
        "odds": guess,
        "sentences": (
            f"Someone who sees everything that {worst.name} sent {sent} and already knows {known} there can raise a "
            f"50:50 guess about one {unit} (was it used, or not?) to at most {guess}, except with a probability of "
            f"about δ = {delta} ({one_in(worst.delta)}).",
            f"In the terms of differential privacy: what each silo sent is (ε, δ)-differentially private with ε at "
            f"most {privacy(value)} at δ = {delta}, for one {what} added to the silo's records or removed from them. "
            f"{others}",
            "The claim speaks of this run alone. What a silo has spent on the same records over all its runs stands in "
            "its budget, below.",
        ),
    }


def _tier(value: float) -> tuple[str, str]:
    if value <= 1:
        return "strong", "ε up to 1; Ponomareva et al. 2023"
    if value <= 10:
        return "reasonable", "ε above 1, up to 10; Ponomareva et al. 2023"
    return "weak", "ε above 10; Ponomareva et al. 2023"


def _alarm(private: bool) -> dict[str, Any]:
    if private:
        return {
            "title": "Warning: no privacy claim can be made",
            "sentences": (
                "At least one silo released something whose privacy loss is not bounded. No ε holds for it, at any δ.",
            ),
        }
    return {
        "title": "Warning: this run has no differential privacy",
        "sentences": (
            "The study's mechanism is none: silos sent their model updates without clipping and without noise. Such "
            "updates can give away single records, and nothing on this page bounds how much.",
            "Do not treat the updates or the model as anonymous.",
        ),
    }


def _notes(facts: Facts, silos: Iterable[_Silo]) -> list[str]:
    run, simulation, found = facts["run"], facts.get("simulation"), []
    if run["status"] == "interrupted":
        found.append(
            f"This run was interrupted: {run['rounds_done']} of {run['rounds_planned']} rounds are in this "
            "report. Updates of a round that was under way may have left some silos already. They are not "
            "counted here; each silo's own ledger counts them."
        )
    if simulation:
        notes = len(simulation["read_off_the_data"])
        found.append(
            "This run is a simulation on one machine. "
            + (
                f"{_count(notes, 'setting')} came from the records themselves and {'is' if notes == 1 else 'are'} not "
                "private (see Simulation)."
                if notes
                else "No setting came from the records."
            )
        )
    more = [silo for silo in silos if silo.disagrees and silo.statement]
    for silo in more[:5]:
        own = silo.statement.epsilon if silo.statement else None
        found.append(
            f"{silo.name} states more for this run than the coordinator counted: ε = {privacy(own)} instead "
            f"of {privacy(silo.epsilon)}, at δ = {delta_text(silo.delta)} per {facts['privacy']['unit']}. "
            "Take the larger one, and ask the silo."
        )
    if more[5:]:
        found.append(f"{_count(len(more) - 5, 'more silo')} likewise; see the table of silos.")
    return found


# --- silos ----------------------------------------------------------------------------------------------------


def _silo_head(facts: Facts, private: bool) -> tuple[str, list[tuple[str, str]]]:
    at = f"at δ = {delta_text(facts['delta'])}, per {facts['unit']}"
    budget = ("Budget", "silo's own statement")
    if not private:
        return "The silos of this run. No ε can be stated: the updates were not protected.", [budget]
    return f"The silos of this run. Every ε is {at}, {facts['neighbouring'].replace('-', ' ')}, rounded up.", [
        (f"ε by {facts['accountant'].upper()}", at),
        ("ε by RDP", "second opinion"),
        ("ε without", "amplification"),
        ("ε stated", "silo's own ledger"),
        budget,
    ]


def _silo_row(silo: _Silo, private: bool) -> dict[str, Any]:
    own = silo.statement
    missing = {"value": NOTHING, "note": "unreadable" if silo.unreadable else "no statement"}
    stated = (
        {"value": privacy(own.epsilon), "note": "" if own.delta == silo.delta else f"δ = {delta_text(own.delta)}"}
        if own
        else missing
    )
    numbers = [
        {"value": privacy(silo.facts[key]), "note": ""}
        for key in ("epsilon", "epsilon_rdp", "epsilon_without_amplification")
    ]
    cells = [*numbers, stated] if private else []
    return {
        "name": silo.name,
        "rounds": silo.rounds,
        "refusal": silo.refusal or "none",
        "cells": [*cells, _budget(own) if own else missing],
    }


def _budget(own: _Statement) -> dict[str, str]:
    if own.budget is None:
        return {"value": "no limit", "note": ""}
    if own.spent is None:
        return {"value": "unbounded", "note": f"of ε = {privacy(own.budget)}"}
    return {
        "value": f"{privacy(own.spent)} of {privacy(own.budget)}",
        "note": f"{floor(max(0.0, own.budget - own.spent))} left, δ = {delta_text(own.budget_delta)}",
    }


def _silo_notes(silos: Sequence[_Silo], private: bool) -> list[str]:
    stated = [silo.statement for silo in silos if silo.statement]
    weak = sum(entry.durability == "process" for entry in stated)
    found = []
    if private and any(entry.budget for entry in stated):
        found.append(
            "A budget counts every run on the same records, by Rényi differential privacy of one fixed order, "
            "because a limit must stay valid when later studies depend on earlier ones. So what a run costs "
            "there is mostly more than its ε above."
        )
    if weak:
        found.append(
            f"Ledgers with durability 'process': {weak} of {len(stated)}. Such a ledger survives a crash of "
            "the program; a loss of power may cost it its last entries."
        )
    return found


def _never_joined(codes: Sequence[str]) -> str:
    if not codes:
        return "None: every node that answered the invitation joined."
    counts = ", ".join(f"{codes.count(code)} × {code}" for code in dict.fromkeys(codes))
    return f"{_count(len(codes), 'node')} refused the invitation: {counts}."


# --- charts and the table of rounds ---------------------------------------------------------------------------


def _charts(facts: Facts, silos: Sequence[_Silo], private: bool) -> dict[str, Chart]:
    unit, lines, planned = facts["privacy"]["unit"], facts["rounds"], facts["run"]["rounds_planned"]
    at = f"at δ = {delta_text(facts['privacy']['delta'])}, per {unit}"
    titles = {
        "epsilon": f"Privacy loss ε over the rounds{f', worst silo ({at})' if private else ''}",
        "metrics": "Metrics over the rounds",
        "participation": "Participation",
        "budget": f"Privacy budget of each silo: ε spent (per {unit}, at the δ of its budget)",
    }
    points = [(line["round"], max(values)) for line in lines if private and (values := _values(line["epsilon"]))]
    spending = [
        Spending(silo=silo.name, spent=own.spent, budget=own.budget)
        for silo in silos
        if (own := silo.statement) and own.spent is not None and own.budget
    ]
    curves = _curves(facts)
    no_round = "No round was finished."
    unmeasured = "No metric was measured: there are no test records and no counts of silos, or they do not define one."
    if points:
        epsilon = epsilon_chart(titles["epsilon"], points, planned, facts["privacy"]["target_epsilon"])
    else:
        epsilon = Chart(
            key="epsilon",
            title=titles["epsilon"],
            reason=no_round if private else "This run has no differential privacy, so no ε is bounded.",
        )
    return {
        "epsilon": epsilon,
        "metrics": metrics_chart(titles["metrics"], [line["round"] for line in lines], curves)
        if curves
        else Chart(key="metrics", title=titles["metrics"], reason=unmeasured if lines else no_round),
        "budget": budget_chart(titles["budget"], spending)
        if spending
        else Chart(
            key="budget",
            title=titles["budget"],
            reason="No silo has stated a budget with a limit."
            if any(silo.statement for silo in silos)
            else "No silo has sent a statement of its ledger.",
        ),
        "participation": participation_chart(
            titles["participation"],
            [Attendance(**{key: line[key] for key in ("round", "cohort", "dropped", "aggregated")}) for line in lines],
        )
        if lines
        else Chart(key="participation", title=titles["participation"], reason=no_round),
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


def _rounds(facts: Facts, private: bool) -> dict[str, Any]:
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


# --- the rest -------------------------------------------------------------------------------------------------


def _row(name: str, value: object, note: str = "") -> dict[str, str]:
    return {"name": name, "value": str(value), "note": note}


def _mechanism(facts: Facts, private: bool) -> list[dict[str, str]]:
    values, run = facts["privacy"], facts["run"]
    at = f"at δ = {delta_text(values['delta'])}, per {values['unit']}"
    notes = (facts.get("simulation") or {}).get("read_off_the_data", ())
    read_off = any("expected_batch_size" in note for note in notes)
    steps = _row(
        "Steps",
        f"{values['steps_per_round']} in each round",
        f"{values['steps_per_round'] * run['rounds_planned']} in the {run['rounds_planned']} planned rounds",
    )
    size = values["expected_batch_size"]
    batch = _row(
        "Expected batch size",
        NOTHING if size is None else plain(size),
        "read off the data: not private" if read_off else "a public number of the study",
    )
    masked = (
        _row("Secure aggregation", "on")
        if values["secure_aggregation"]
        else _row(
            "Secure aggregation", "off", f"the server sees each silo's update{', protected by its noise' * private}"
        )
    )
    rows = [
        _row("Mechanism", values["mechanism"]),
        _row("Sampling rate", values["sampling_rate"], "of each step"),
        steps,
        batch,
        masked,
    ]
    if not private:
        return [*rows, *_counts(facts)]
    target, whole = values["target_epsilon"], values["epsilon_if_completed"]
    unit = (
        []
        if values["unit"] == "record"
        else [_row(f"Records of one {values['unit']}", f"{values['max_records_per_unit']} at most", "clipped as one")]
    )
    return [
        _row("Mechanism", values["mechanism"], "each unit's gradient is clipped; Gaussian noise is added to the sum"),
        _row("Noise multiplier", values["noise_multiplier"], "standard deviation of the noise / clip norm"),
        _row("Clip norm", values["clip_norm"], "L2, of each unit in each step"),
        *unit,
        *rows[1:4],
        _row("Sampling as implemented", values["sampling"]),
        _row("Source of noise", values["noise"]),
        _row(
            "Accountant",
            values["accountant"].upper(),
            "privacy loss distributions (PLD) are tight; Rényi differential privacy (RDP) is the looser second opinion",
        ),
        _row("ε if all rounds run", privacy(whole), at),
        _row(
            "ε asked for",
            NOTHING if target is None else privacy(target),
            "the study sets the noise multiplier instead" if target is None else at,
        ),
        *_counts(facts),
        masked,
    ]


def _counts(facts: Facts) -> list[dict[str, str]]:
    """The release of metric counts, if the study has one."""
    counted, values = facts.get("evaluation"), facts["privacy"]
    if not counted:
        return []
    return [
        _row(
            "Metric counts",
            f"{counted['counts']} of each model, noise multiplier {plain(counted['noise_multiplier'])}",
            f"one {values['unit']} moves them by at most {plain(counted['sensitivity'])} (L2); all releases of counts "
            f"alone: ε = {privacy(counted['epsilon'])} at δ = {delta_text(values['delta'])}, per {values['unit']}; "
            "every ε on this page that speaks of the run has them in it",
        )
    ]


def _simulation(facts: Facts | None) -> dict[str, Any] | None:
    if not facts:
        return None
    dropout = facts["dropout"]
    return {
        "notes": facts["read_off_the_data"],
        "rows": [
            _row("Data set", facts["dataset"]),
            _row("Partition", facts["partition"], f"into {_count(facts['silos'], 'silo')}"),
            _row("Engine", facts["engine"]),
            _row("Simulated dropout", plain(dropout), "chance of a silo to miss a round"),
            _row("Test records", facts["test_records"]),
            _row(
                "Ledger durability",
                facts["durability"],
                "survives a crash of the program, not a loss of power" if facts["durability"] == "process" else "",
            ),
        ],
    }


def _identity(run: Facts) -> list[dict[str, str]]:
    return [
        _row("Run", run["id"]),
        _row("Study digest", run["study_digest"], "SHA-256 of the study file"),
        _row("Manifest digest", run["manifest_digest"], "SHA-256 of what the silos agreed on"),
        _row("Code version", run["code"]),
        _row("Started", _time(run["started"])),
        _row("Finished", _time(run["finished"])),
    ]


def _trained(study: Facts) -> list[dict[str, str]]:
    target = [] if study["target"] is None else [_row("Target", study["target"])]
    return [
        _row("Task", study["task"], f"on {study['kind']} data"),
        *target,
        _row("Features", study["features"]),
        _row("Model", study["model"], _count(study["parameters"], "parameter")),
        _row("Strategy", study["strategy"], f"{study['weights']} weights"),
        _row("Optimizer", study["optimizer"]),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
