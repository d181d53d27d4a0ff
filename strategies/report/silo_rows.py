"""The silos of a run as its report shows them: what each may have sent, and what its own ledger states.

Guarantees: what a silo states is shown as its statement and is never trusted to have a certain form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.report.guarantee import gate_share
from strategies.report.numbers import NOTHING, count, delta_text, percent, privacy

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StatedBySilo:
    """What a silo's own ledger says: of this run, and of its budget over all runs on the same records."""

    epsilon: float | None
    delta: float
    budget: float | None
    budget_delta: float
    spent: float | None
    durability: str
    gate: str
    order: float

    @property
    def share(self) -> float | None:
        """Spent part of the budget, as its gate counts; None without a limit or a bound."""
        if self.spent is None or not self.budget:
            return None
        return gate_share(self.spent, self.budget, self.budget_delta, self.order)

    @classmethod
    def of(cls, value: Any) -> StatedBySilo | None:
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
            gate=str(budget.get("gate", "not stated")),
            order=_number(budget.get("order")) or 0.0,
        )


@dataclass(frozen=True, kw_only=True)
class SiloEntry:
    name: str
    rounds: int
    epsilon: float | None
    delta: float
    facts: Facts
    refusal: str
    statement: StatedBySilo | None
    unreadable: bool

    @classmethod
    def of(cls, entry: Facts) -> SiloEntry:
        statement = StatedBySilo.of(entry["statement"])
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


def worst_of(silos: Iterable[SiloEntry]) -> SiloEntry | None:
    """Return the silo with the largest bounded loss among those that were asked for a round."""
    asked = [silo for silo in silos if silo.rounds and silo.epsilon is not None]
    return max(asked, key=lambda silo: silo.epsilon or 0.0, default=None)


def silo_head(facts: Facts, private: bool) -> tuple[str, list[tuple[str, str]]]:
    """Return caption and columns of the table of silos."""
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


def silo_row(silo: SiloEntry, private: bool) -> dict[str, Any]:
    """Return one line of it."""
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


def _budget(own: StatedBySilo) -> dict[str, str]:
    if own.budget is None:
        return {"value": "no limit", "note": ""}
    if own.spent is None:
        return {"value": "unbounded", "note": f"of ε = {privacy(own.budget)}"}
    return {
        "value": f"{percent(own.share or 0.0)} spent",
        "note": f"{privacy(own.spent)} of ε = {privacy(own.budget)}, δ = {delta_text(own.budget_delta)}",
    }


def silo_notes(silos: Sequence[SiloEntry], private: bool) -> list[str]:
    """Return the sentences below it."""
    stated = [silo.statement for silo in silos if silo.statement]
    weak = sum(entry.durability == "process" for entry in stated)
    found = []
    if private and any(entry.budget for entry in stated):
        found.append(
            "A budget counts every run on the same records, by Rényi differential privacy of one fixed order, "
            "because a limit must stay valid when later studies depend on earlier ones. Of an "
            "ε counted so, a large part is the same after the first release and after the last; the share is of the "
            "rest, which adds up."
        )
    if weak:
        found.append(
            f"Ledgers with durability 'process': {weak} of {len(stated)}. Such a ledger survives a crash of "
            "the program; a loss of power may cost it its last entries."
        )
    return found


def never_joined(codes: Sequence[str]) -> str:
    """Return the sentence about nodes that refused the invitation."""
    if not codes:
        return "None: every node that answered the invitation joined."
    counts = ", ".join(f"{codes.count(code)} × {code}" for code in dict.fromkeys(codes))
    return f"{count(len(codes), 'node')} refused the invitation: {counts}."


def ledger_rows(silos: Sequence[SiloEntry]) -> dict[str, Any]:
    """Return the table of where each silo's ledger stands, as far as the statements carry it."""
    rows = []
    for silo in silos:
        stated = silo.facts["statement"]
        if isinstance(stated, Mapping) and isinstance(stated.get("hash"), str) and isinstance(stated.get("seq"), int):
            shown = [stated.get(key, NOTHING) for key in ("data_root", "first", "last", "seq", "hash", "ledger_id")]
            root, first, last, seq, head, ledger = (str(value) for value in shown)
            rows.append([silo.name, root, f"{first} to {last}", seq, head[:16], ledger[:16]])
    return {
        "id": "",
        "label": "Ledgers of the silos",
        "caption": "Where each silo's own ledger stood when it stated the run: entries of the run, head, ledger. Whole "
        "hashes stand in report.json. The run's folder has the ledger's entries of this run, each with its signature; "
        "those of other runs are not given to a coordinator, so what was spent to date rests on the silo's signature.",
        "columns": [("Silo", ""), ("Data root", ""), ("Entries", ""), ("Head at", ""), ("Head", ""), ("Ledger", "")],
        "rows": rows,
    }
