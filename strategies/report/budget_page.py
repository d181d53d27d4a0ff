"""The page of a silo's privacy budget report: the facts of `budget_facts`, for a data-protection officer to read.

Guarantees: epsilon stands beside delta and unit; the page holds no number that the facts do not hold; the same facts
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strategies.report.budget_charts import root_charts
from strategies.report.declared import AT_ORDER, BY_PLAN
from strategies.report.numbers import (
    NOTHING,
    count,
    delta_text,
    minute,
    one_in,
    percent,
    percent_left,
    plain,
    privacy,
)
from strategies.report.template import fill

Facts = Mapping[str, Any]

_TIERS = {"strong": "ε up to 1", "reasonable": "ε above 1, up to 10", "weak": "ε above 10"}
_READING = (
    "ε (epsilon) bounds how much one unit can change what an observer sees; smaller is more private. It has a meaning "
    "only together with δ and the unit. δ (delta) is the small part of cases that ε does not speak for.",
    "The guess: from a 50:50 belief, ε allows a belief of at most e^ε / (1 + e^ε).",
    "PLD (privacy loss distributions) is the tight count of what is recorded. The gate counts by Rényi differential "
    "privacy at one fixed order, and says no before the budget is passed; of its ε a large part is the same after the "
    "first release and after the last, so the bar shows the Rényi divergence, which adds up.",
    "Reserved: set aside and not known to be sent (a round that runs, or one that broke off). It counts as "
    "spent for ever.",
    "Tiers: Ponomareva et al. 2023, How to DP-fy ML (arXiv 2303.00654): ε up to 1 is strong, up to 10 reasonable, "
    "above 10 weak.",
)


def budget_page(facts: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        facts: as `budget_facts` returns them.
    """
    ledger, roots = facts["ledger"], facts["roots"]
    alarm = _alarm(facts)
    return fill(
        "budget",
        {
            "silo": facts["silo"],
            "as_of": minute(facts["as_of"]) if facts["as_of"] else None,
            "code": facts["code"],
            "ledger": ledger,
            "runs": sum(len([run for run in root["runs"] if run["run"]]) for root in roots),
            "notes": _notes(facts),
            "alarm": alarm,
            "claims": [] if alarm else [_claim(claim, roots) for claim in facts["claims"]],
            "not_covered": facts["not_covered"],
            "void": facts["void"],
            "roots": [_root(root, number) for number, root in enumerate(roots, start=1)],
            "evidence": _evidence(ledger),
            "state": _state(ledger),
            "events": _told(ledger),
            "trust": [
                *(_row(who, what) for who, what in facts["trust"]),
                _row("Noise", facts["mechanism"]["noise"]),
                _row("Floating point", facts["mechanism"]["floating_point"]),
            ],
            "tuning": facts["tuning"],
            "unprotected": facts["unprotected"],
            "audit": facts["audit"],
            "reading": _READING,
            "support": facts["support"],
        },
    )


# --- the first page ---------------------------------------------------------------------------------------------


def _alarm(facts: Facts) -> dict[str, Any] | None:
    ledger = facts["ledger"]
    if not ledger["verified"]:
        where = "" if ledger["bad_seq"] is None else f" at position {ledger['bad_seq']}"
        return {
            "title": "Warning: the ledger does not verify",
            "sentences": (
                f"It does not hold{where}: {ledger['problem']}.",
                f"Nothing is claimed. The numbers below are those of the {count(ledger['entries'], 'line')} before it, "
                "and more may have been released."
                if ledger["entries"]
                else "Nothing is claimed: no entry holds.",
            ),
        }
    unbounded = [claim["root"] for claim in facts["claims"] if claim["epsilon"] is None]
    if unbounded or facts["unregistered"]:
        names = ", ".join(f"'{name}'" for name in (*unbounded, *facts["unregistered"]))
        return {
            "title": "Warning: no privacy claim can be made",
            "sentences": (
                f"Of {names} something was released whose privacy loss is not bounded, or that is not registered. "
                "No ε holds for it, at any δ.",
            ),
        }
    return None


def _notes(facts: Facts) -> list[str]:
    ledger, found = facts["ledger"], []
    if ledger["frozen"]:
        found.append(f"The ledger is frozen: {ledger['frozen']}. Nothing is released until the officer restores it.")
    if ledger["gaps"]:
        lost = ", ".join(f"{first} to {last}" for first, last in ledger["gaps"])
        found.append(f"Entries {lost} were lost; the officer's restore has adopted what they had spent.")
    if ledger["durability"] == "process":
        found.append(
            "This ledger has durability 'process', as simulated silos have: a loss of power may cost it its last "
            "entries, and its keys have no passphrase."
        )
    found += [
        f"Of the budget of '{root['name']}', {percent(root['spent']['share'])} is spent."
        for root in facts["roots"]
        if (root["spent"]["share"] or 0) >= 0.8
    ]
    return found


def _claim(claim: Facts, roots: list[Facts]) -> dict[str, Any]:
    root = next(root for root in roots if root["name"] == claim["root"])
    limit, free = root["limit"]["epsilon"], root["spent"]["free"]
    return {
        "root": claim["root"],
        "unit": claim["unit"],
        "epsilon": privacy(claim["epsilon"]),
        "delta": delta_text(claim["delta"]),
        "one_in": one_in(claim["delta"]),
        "odds": percent(claim["odds"]),
        "budget": "none" if limit is None else f"ε = {privacy(limit)}",
        "free": "test data: no limit is set" if free is None else f"{percent_left(free)} free, as the gate counts",
        "tier": claim["tier"],
        "range": f"{_TIERS[claim['tier']]}"
        + (f"; the budget is {claim['tier_of_the_budget']}" if claim["tier_of_the_budget"] else ""),
        "sentences": claim["sentences"],
    }


# --- a data root ------------------------------------------------------------------------------------------------


def _row(name: str, value: object, note: str = "") -> dict[str, str]:
    return {"name": name, "value": str(value), "note": note}


def _root(root: Facts, number: int) -> dict[str, Any]:
    return {
        "name": root["name"],
        "id": f"root-{number}",
        "charts": root_charts(root, f"root-{number}"),
        "numbers": _numbers(root),
        "runs": _runs(root, f"root-{number}"),
        "mechanisms": _mechanisms(root),
        "registration": _registration(root),
    }


def _gate_note(root: Facts) -> str:
    """Why an epsilon near the budget need not mean that the budget is nearly spent."""
    budget, spent = root["budget"], root["spent"]
    if budget["order"] is None:
        return "by the plan"
    if not spent["share"]:
        return f"at order {budget['order']:g}"
    return (
        f"at order {budget['order']:g}; {privacy(spent['fixed'])} of it is paid by the first release and by no later "
        f"one, and of the {privacy(spent['beyond'])} that the budget has beyond that, {percent(spent['share'])} "
        "is spent"
    )


def _numbers(root: Facts) -> list[dict[str, str]]:
    numbers, spent, delta = root["numbers"], root["spent"], root["budget"]["delta"]
    at = f"at δ = {delta_text(delta)}, per {root['unit']}, add or remove one"
    rows = [
        _row("ε by PLD", privacy(numbers["epsilon_pld"]), at),
        _row("ε by RDP", privacy(numbers["epsilon_rdp"]), "at the best order: the second opinion"),
        _row("ε as the gate counts", privacy(spent["epsilon_gate"]), _gate_note(root)),
        _row("ε without amplification", privacy(numbers["epsilon_without_amplification"]), "as if nobody were sampled"),
        _row("ε for replacing one", privacy(numbers["epsilon_replace_one"]), "one unit exchanged for another, by PLD"),
        _row("ε by PRV", NOTHING, "not computed here; the tests compare PLD with Opacus' PRV accountant"),
    ]
    if numbers["true_positive_rate"] is not None:
        rows.append(
            _row(
                "Attack at 1 % false alarms",
                f"finds at most {percent(numbers['true_positive_rate'])}",
                f"best guess from 50:50 right with at most {percent(numbers['guess'])}, by the whole curve",
            )
        )
    if numbers["gaussian_mu"] is not None:
        rows.append(
            _row(
                "μ of Gaussian DP",
                plain(numbers["gaussian_mu"]),
                f"its curve lies above the true one by at most {plain(numbers['gaussian_error'])} in δ, for ε "
                f"from 0 to "
                "the claimed one",
            )
        )
    if root["forecast"]:
        more = root["forecast"]["rounds"]
        rows.append(_row("Rounds left", f"{more:,}", f"like the last one, of run {_run(root['forecast']['run'])}"))
    return rows


def _runs(root: Facts, identity: str) -> dict[str, Any]:
    at = f"at δ = {delta_text(root['budget']['delta'])}, per {root['unit']}"
    return {
        "id": f"table-{identity}-runs",
        "label": f"Runs on {root['name']}",
        "caption": f"Every run on these records, in the order of its first reservation. Every ε is {at}, by PLD. A "
        "study goes by the first digits of its SHA-256, the name of the file in approved/.",
        "columns": [
            ("Run", ""),
            ("Study", "SHA-256"),
            ("Began", ""),
            ("Entries", ""),
            ("Reserved", "rounds"),
            ("Sent", "rounds"),
            ("Open", "rounds"),
            ("Given up", "rounds"),
            ("ε of the run", "by itself"),
            ("ε to date", "with all before"),
        ],
        "rows": [
            [
                _run(run["run"]),
                (run["study"] or NOTHING)[:8],
                minute(run["began"]),
                f"{run['seq'][0]} to {run['seq'][1]}",
                run["rounds"],
                run["sent"],
                run["open"],
                run["aborted"],
                privacy(run["epsilon"]),
                privacy(run["epsilon_to_date"]),
            ]
            for run in root["runs"]
        ],
    }


def _run(run: str) -> str:
    return run[:8] if run else "restored"


def _mechanisms(root: Facts) -> dict[str, Any]:
    rows = [
        [
            "noisy sum over a sample" if event["sampling_rate"] < 1 else "noisy sum over all units",
            plain(event["noise_multiplier"]),
            plain(event["sampling_rate"]),
            event["steps"],
        ]
        if event["kind"] == "gaussian"
        else [f"exact sum over at least {event['silos']} silos: {event['what']}", NOTHING, NOTHING, event["times"]]
        if event["kind"] == "summed"
        else [f"{event['what']}, unprotected", NOTHING, NOTHING, NOTHING]
        for event in root["mechanisms"]
    ]
    return {
        "id": "",
        "label": f"Mechanisms on {root['name']}",
        "caption": "What was released, added up. Noise multiplier: standard deviation of the noise over what "
        "one unit can "
        "change (the clip norm, which the study names and no ε depends on). Each unit is sampled by itself (Poisson).",
        "columns": [("Release", ""), ("Noise multiplier", ""), ("Sampling rate", ""), ("Times", "")],
        "rows": rows,
    }


def _registration(root: Facts) -> list[dict[str, str]]:
    budget = root["budget"]
    gate = (
        _row("Gate", f"rdp, order {plain(budget['order'])}", AT_ORDER)
        if budget["gate"] == "rdp"
        else _row("Gate", "preregistered", BY_PLAN)
    )
    return [
        _row("Unit of privacy", root["unit"], f"neighbouring: {root['neighbouring'].replace('-', ' ')}"),
        _row(
            "Budget",
            "no limit" if budget["epsilon"] is None else f"ε = {privacy(budget['epsilon'])}",
            f"at δ = {delta_text(budget['delta'])}, per {root['unit']}, for the data root's whole life",
        ),
        gate,
        _row(
            "δ beside the number of units",
            f"{delta_text(budget['delta'])}, at most {delta_text(root['delta_largest'])} is allowed",
            f"one tenth of one over the public lower bound of {count(root['units_at_least'], 'unit')}",
        ),
        _row(
            "Registered",
            f"entry {root['registered']['seq']}, {minute(root['registered']['time'])}",
            "signed by the officer",
        ),
        _row(
            "Sketch of the units",
            root["fingerprint"] or "none",
            "SHA-256 of the keyed sketch by which the same units are refused under another name"
            if root["fingerprint"]
            else "a simulated silo: the same units under another name would not be noticed",
        ),
    ]


# --- the ledger -------------------------------------------------------------------------------------------------


def _evidence(ledger: Facts) -> list[dict[str, str]]:
    first = ledger["first"]
    return [
        _row("Ledger", ledger["id"]),
        _row("Head", ledger["head"], f"SHA-256 of entry {ledger['last']}"),
        _row("Head before", ledger["prior_head"] or NOTHING),
        _row("Key of the ledger", ledger["ledger_key"], "Ed25519, pinned outside the ledger"),
        _row("Key of the officer", ledger["dpo_key"], "Ed25519, pinned outside the ledger"),
        _row("Policy in force", ledger["policy"] or "none recorded", "SHA-256 of policy.toml"),
        _row("Entries", NOTHING if first is None else f"{first} to {ledger['last']}", count(ledger["entries"], "line")),
    ]


def _state(ledger: Facts) -> list[dict[str, str]]:
    opened = ", ".join(f"round {one['round']} of {_run(one['run'])}" for one in ledger["open"][:10])
    more = len(ledger["open"]) - 10
    return [
        _row(
            "Verified",
            "yes" if ledger["verified"] else "no",
            "every link, signature, key, position and rule was checked when this page was made"
            if ledger["verified"]
            else str(ledger["problem"]),
        ),
        _row("Open reservations", len(ledger["open"]), opened + (f" and {more} more" if more > 0 else "")),
        _row("Sent, not acknowledged", ledger["unacknowledged"], "rounds; they are spent like any other"),
        _row("Given up", ledger["aborted"], "rounds; they stay spent"),
        _row("Requests refused", NOTHING, ledger["refusals"]),
        _row(
            "Witnessed",
            count(ledger["receipts"], "receipt"),
            f"of {count(ledger['witnesses'], 'witness key')}, up to entry {ledger['witnessed']}"
            if ledger["receipts"]
            else "nobody else has kept a head of this ledger: a copy that was put back would not be noticed",
        ),
        _row("Keys handed over", ledger["rotations"], "times"),
        _row("Freezes and restores", f"{len(ledger['freezes'])} and {len(ledger['restores'])}"),
        _row("Durability", ledger["durability"] or NOTHING, "what the ledger says it survives"),
    ]


def _told(ledger: Facts) -> dict[str, Any]:
    rows = [(one["seq"], kind, one) for kind in ("freeze", "restore") for one in ledger[f"{kind}s"]]
    return {
        "id": "",
        "label": "Freezes and restores",
        "caption": "Every freeze and restore, with the reason that was written down.",
        "columns": [("Entry", ""), ("What", ""), ("When", ""), ("Reason", "")],
        "rows": [
            [seq, kind, minute(one["time"]), one["reason"]] for seq, kind, one in sorted(rows, key=lambda row: row[0])
        ],
    }
