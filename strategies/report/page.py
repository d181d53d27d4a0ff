"""report.html: the facts of a run, for a data-protection officer to read and print.

What has to be said follows NIST SP 800-226 (epsilon, delta and unit on top, then mechanism, then trust and limits) and
Ponomareva et al. 2023 (section 5: releases covered, unit, neighbouring relation, accountant, tiers). The page says
"supports" and never "complies", and claims nothing for a run without differential privacy.

Guarantees: epsilon stands beside delta and unit everywhere; what a silo states is shown as its statement and is never
trusted to have a certain form; the same facts give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from strategies.errors import RefusalCode
from strategies.report.declared import AT_ORDER, BY_PLAN, CONTRADICTED
from strategies.report.guarantee import tier
from strategies.report.numbers import NOTHING, count, delta_text, minute, one_in, percent, plain, privacy
from strategies.report.run_charts import round_rows, run_charts
from strategies.report.run_rows import identity_rows, mechanism_rows, row, simulation_rows, trained_rows
from strategies.report.silo_rows import SiloEntry, ledger_rows, never_joined, silo_head, silo_notes, silo_row, worst_of
from strategies.report.template import fill
from strategies.report.usefulness import group_tables, utility

Facts = Mapping[str, Any]

_AS_STATED = ("releases", "unprotected", "not_covered", "trust", "void", "tuning", "audit", "support")
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
    "silo that runs this code; what was tried against it stands under Audit.",
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
    silos = [SiloEntry.of(entry) for entry in facts["silos"]]
    private = privacy_facts["mechanism"] != "none"
    worst = worst_of(silos) if private else None
    unbounded = any(silo.rounds and silo.epsilon is None for silo in silos)
    refuted = facts["audit"]["status"] == CONTRADICTED
    caption, columns = silo_head(privacy_facts, private)
    codes = sorted({*facts["never_joined"], *(silo.refusal for silo in silos if silo.refusal)})
    return fill(
        "run",
        {
            **{key: facts[key] for key in _AS_STATED},
            "run": run,
            "finished": minute(run["finished"]),
            "unit": privacy_facts["unit"],
            "simulation": simulation_rows(facts.get("simulation")),
            "notes": _notes(facts, silos),
            "claim": _claim(facts, worst, silos) if worst and not (unbounded or refuted) else None,
            "alarm": _alarm(private) if unbounded or not private else _refuted(facts) if refuted else None,
            "silos": [silo_row(silo, private) for silo in silos],
            "silo_caption": caption,
            "silo_columns": columns,
            "silo_notes": silo_notes(silos, private),
            "never_joined": never_joined(facts["never_joined"]),
            "codes": [{"name": code, "value": _CODES[RefusalCode(code)]} for code in codes if code in set(RefusalCode)],
            "charts": run_charts(facts, silos, private),
            "rounds": round_rows(facts, private),
            "mechanism": mechanism_rows(facts, private),
            "mechanism_caption": "How the privacy is made."
            if private
            else "There is no privacy mechanism in this run.",
            "private": private,
            "utility": utility(facts),
            "groups": group_tables(facts),
            "noised": private or facts.get("evaluation") is not None,
            "ledgers": ledger_rows(silos),
            "numbers": _number_rows(facts, private),
            "composition": _composition(facts, silos, private),
            "secure_aggregation": _secure(facts),
            "identity": identity_rows(run),
            "trained": trained_rows(facts["study"]),
            "reading": _READING,
        },
    )


# --- the top of the page --------------------------------------------------------------------------------------


def _claim(facts: Facts, worst: SiloEntry, silos: Sequence[SiloEntry]) -> dict[str, Any]:
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
    who, private = facts["privacy"]["observer"]
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
            f"Someone who {who.format(silo=worst.name)} {sent} and already knows {known} there can raise a "
            f"50:50 guess about one {unit} (was it used, or not?) to at most {guess}, except with a probability of "
            f"about δ = {delta} ({one_in(worst.delta)}).",
            f"In the terms of differential privacy: {private} is (ε, δ)-differentially private with ε at "
            f"most {privacy(value)} at δ = {delta}, for one {what} added to the silo's records or removed from them. "
            f"{others}",
            "The claim speaks of this run alone. What a silo has spent on the same records over all its runs stands in "
            "its budget, below.",
        ),
    }


_TIERS = {"strong": "ε up to 1", "reasonable": "ε above 1, up to 10", "weak": "ε above 10"}


def _tier(value: float) -> tuple[str, str]:
    return tier(value), f"{_TIERS[tier(value)]}; Ponomareva et al. 2023"


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


def _refuted(facts: Facts) -> dict[str, Any]:
    return {
        "title": "Warning: an audit contradicts the privacy claim",
        "sentences": (
            f"{facts['audit']['reason']}.",
            "The numbers below are what was accounted. Do not rest on them until it is known what the audit saw.",
        ),
    }


def _notes(facts: Facts, silos: Iterable[SiloEntry]) -> list[str]:
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
                f"{count(notes, 'setting')} came from the records themselves and {'is' if notes == 1 else 'are'} not "
                "private (see Simulation)."
                if notes
                else "No setting came from the records."
            )
        )
    if (facts["privacy"]["silo_level"] or {}).get("warning"):
        found.append(f"Few silos: {facts['privacy']['silo_level']['warning']}.")
    more = [silo for silo in silos if silo.disagrees and silo.statement]
    for silo in more[:5]:
        own = silo.statement.epsilon if silo.statement else None
        found.append(
            f"{silo.name} states more for this run than the coordinator counted: ε = {privacy(own)} instead "
            f"of {privacy(silo.epsilon)}, at δ = {delta_text(silo.delta)} per {facts['privacy']['unit']}. "
            "Take the larger one, and ask the silo."
        )
    if more[5:]:
        found.append(f"{count(len(more) - 5, 'more silo')} likewise; see the table of silos.")
    return found


# --- the numbers of the worst silo, and how they compose ------------------------------------------------------


def _number_rows(facts: Facts, private: bool) -> list[dict[str, str]]:
    """The same releases in every number that a report must give."""
    numbers = facts["numbers"]
    if not private or numbers is None or numbers["profile"] is None:
        return []
    unit, at = facts["privacy"]["unit"], f"at δ = {delta_text(numbers['delta'])}, per {facts['privacy']['unit']}"
    return [
        row("ε by PLD, as RDP, without amplification", _three(numbers), f"{at}, add or remove one"),
        row("ε for replacing one", privacy(numbers["epsilon_replace_one"]), f"{at}: one {unit} exchanged for another"),
        row("ε by PRV", NOTHING, "not computed here; the tests compare PLD with Opacus' PRV accountant"),
        row(
            "Attack at 1 % false alarms",
            f"finds at most {percent(numbers['true_positive_rate'])}",
            f"best guess from 50:50 right with at most {percent(numbers['guess'])}, by the whole curve",
        ),
        row(
            "μ of Gaussian DP",
            NOTHING if numbers["gaussian_mu"] is None else plain(numbers["gaussian_mu"]),
            ""
            if numbers["gaussian_mu"] is None
            else f"its curve lies above the true one by at most {plain(numbers['gaussian_error'])} in δ, for ε "
            f"from 0 to "
            "the claimed one",
        ),
        row("δ beside the number of units", delta_text(numbers["delta"]), _smallest(facts)),
    ]


def _three(numbers: Facts) -> str:
    return ", ".join(privacy(numbers[key]) for key in ("epsilon_pld", "epsilon_rdp", "epsilon_without_amplification"))


def _smallest(facts: Facts) -> str:
    return (
        "a silo's own report compares it with its public lower bound n of units (δ at most 1 / 10 n); "
        "statements do not "
        "carry n"
    )


def _composition(facts: Facts, silos: Sequence[SiloEntry], private: bool) -> list[dict[str, str]]:
    if not private:
        return []
    gates = sorted({(silo.statement.gate, silo.statement.order) for silo in silos if silo.statement})
    how = "; ".join(
        f"{AT_ORDER} (order {plain(order)})" if gate == "rdp" else BY_PLAN if gate == "preregistered" else gate
        for gate, order in gates
    )
    return [
        row("Within this run", "all releases in one accountant", "the settings were fixed before the first round"),
        row("Over all runs on the records", how or NOTHING, "as the silos state" if how else "no silo has stated it"),
        row(
            "Between silos",
            "the worst silo's ε",
            "for people whose records lie in one silo; where somebody's lie in several, their losses add up",
        ),
        row("After the release", "free", "the server's averaging and any use of the model cost nothing more"),
    ]


def _secure(facts: Facts) -> list[dict[str, str]]:
    evidence = facts["secure_aggregation"]
    masks = []
    if evidence["enabled"]:
        masks = [
            row("May collude", evidence["max_colluding"], f"of {evidence['silos']} silos, with the coordinator"),
            row(
                "Threshold",
                evidence["threshold"],
                "shares that open a mask, and signatures that say who is in a sum of all of them",
            ),
            row("Rules", evidence["rules"][:16], "SHA-256 of what each silo has derived itself and joined"),
        ]
    return [
        row("Secure aggregation", "on" if evidence["enabled"] else "off", evidence["evidence"]),
        *masks,
        row("Smallest cohort", evidence["min_silos"], "a round with fewer updates leaves the model as it was"),
    ]
