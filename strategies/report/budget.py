"""The facts of a silo's privacy budget report: every run on every data root, from the ledger's signed lines alone.

Guarantees: the same lines and pins give the same facts on any machine. Nothing is claimed for lines that do not verify,
for a release without a bound, or for a data root that is not registered. Committed, reserved and free add up to the
budget; an open reservation is spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.manifest import CODE_VERSION, Manifest
from strategies.privacy.accountant import epsilon
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event, merge, to_json
from strategies.proof.account import Account
from strategies.proof.chain import Pins
from strategies.proof.entries import OF_A_ROUND, Entry, read, read_events, read_spent
from strategies.proof.verdict import Verdict, verify_chain
from strategies.report import declared
from strategies.report.guarantee import finite, gate_fixed, gate_share, guarantee, odds, part_of_total, tier
from strategies.report.numbers import delta_text, percent, privacy, thin

FORMAT = "fedsilo-budget/1"
_STEPS = 12  # points of the curve of the spent budget
_MOST_ROUNDS = 10_000  # that a forecast looks ahead


def budget_facts(lines: Sequence[bytes], pins: Pins, manifests: Iterable[Manifest] = ()) -> dict[str, Any]:
    """Return the facts as plain values.

    Args:
        lines: the ledger's signed lines in order, without line ends, as `Ledger.export` gives them.
        pins: what is known of the ledger from outside it.
        manifests: agreements that the silo has kept; one counts where a reservation of the ledger cites its digest.

    Raises:
        AccountingError: a number cannot be computed.
    """
    studies = {manifest.digest(): manifest.study for manifest in manifests}
    verdict = verify_chain(lines, pins)
    entries = [read(line).entry for line in lines[: verdict.entries]]
    reserved = _reserved(entries)
    roots = [
        _root(verdict.roots[name], [one for one in reserved if one.root == name], entries, studies)
        for name in verdict.events
        if name in verdict.roots
    ]
    return {
        "format": FORMAT,
        "silo": next((entry.body["silo"] for entry in entries if entry.kind == "genesis"), ""),
        "as_of": entries[-1].time if entries else None,
        "code": CODE_VERSION,
        "ledger": _ledger(verdict, entries, pins),
        "roots": roots,
        "unregistered": sorted(name for name in verdict.events if name not in verdict.roots),
        "claims": [_claim(root) for root in roots] if verdict.ok else [],
        "trust": [list(pair) for pair in declared.trust("dp-sgd", masked=False)],
        "mechanism": {"noise": declared.NOISE, "floating_point": declared.FLOATING_POINT},
        "tuning": declared.TUNING,
        "audit": declared.AUDIT,
        "not_covered": _not_covered(roots),
        "void": list(declared.VOID),
        "unprotected": [
            "that the silo took part, in which runs and rounds, and when its replies were sent",
            "that it refused, and one word of a fixed list why",
            "the names of all its data roots, and what was released on each to date: they stand in the ledger's signed "
            "head, which goes to the coordinator and the other silos of a run with every reply",
            "the studies' schemas: names, bounds and categories of the columns",
        ],
        "support": declared.SUPPORT,
    }


# --- what was reserved ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Reserved:
    """One reservation, or what a restore adopted (run ""), and what became of it."""

    root: str
    run: str
    round: int
    entry: Entry
    events: tuple[Event, ...]
    state: str  # open, aborted, released, committed, adopted

    @property
    def left(self) -> bool:
        """Whether it is known, or must be taken, that the bytes have left."""
        return self.state in ("released", "committed", "adopted")


_STATE = {"reserve": "open", "abort": "aborted", "release": "released", "commit": "committed"}


def _reserved(entries: Iterable[Entry]) -> list[_Reserved]:
    last: dict[tuple[str, int], str] = {}
    found: list[tuple[Entry, str, tuple[Event, ...]]] = []
    for entry in entries:
        if entry.kind in OF_A_ROUND:
            last[entry.run, entry.round] = _STATE[entry.kind]
        if entry.kind == "reserve":
            found.append((entry, entry.data_root, read_events(entry.body["events"])))
        if entry.kind == "restore":
            found += [(entry, name, events) for name, events in read_spent(entry.body["adopt"]).items()]
    return [
        _Reserved(
            root=root,
            run=entry.run,
            round=entry.round,
            entry=entry,
            events=events,
            state=last[entry.run, entry.round] if entry.run else "adopted",
        )
        for entry, root, events in found
    ]


def _events(reserved: Iterable[_Reserved]) -> tuple[Event, ...]:
    account = Account()
    for one in reserved:
        account.add(one.run, one.events)
    return account.merged()


# --- a data root ------------------------------------------------------------------------------------------------


def _root(
    root: DataRoot, reserved: Sequence[_Reserved], entries: Sequence[Entry], studies: Mapping[str, str]
) -> dict[str, Any]:
    registered = next(entry for entry in entries if entry.kind == "data_root" and entry.data_root == root.name)
    everything = _events(reserved)
    spent = root.spent(everything)
    return {
        "name": root.name,
        "unit": root.unit,
        "neighbouring": registered.body["neighbouring"],
        "units_at_least": root.units_at_least,
        "delta_largest": 1 / (10 * root.units_at_least),
        "fingerprint": root.fingerprint,
        "registered": {"seq": registered.seq, "time": registered.time},
        "budget": {"epsilon": finite(root.epsilon), "delta": root.delta, **_gate(root)},
        "spent": _spent(root, reserved, spent),
        "limit": {"epsilon": finite(root.epsilon), "odds": odds(root.epsilon)},
        "numbers": guarantee(everything, root.delta),
        "mechanisms": [to_json(event) for event in everything],
        "runs": _runs(root, reserved, studies),
        "growth": _growth(root, reserved),
        "steps": _steps(root, reserved),
        "forecast": _forecast(root, reserved, everything),
    }


def _gate(root: DataRoot) -> dict[str, Any]:
    plan = [to_json(event) for event in root.slots]
    return {"gate": root.gate, "order": root.order or None, "slots": plan}


def _spent(root: DataRoot, reserved: Sequence[_Reserved], spent: float) -> dict[str, Any]:
    """The budget's parts; what is open or given up is reserved, and spent."""
    committed = root.spent(_events(one for one in reserved if one.left))
    bounded = math.isfinite(spent) and math.isfinite(root.epsilon)
    left, all_of_it = (gate_share(value, root.epsilon, root.delta, root.order or None) for value in (committed, spent))
    fixed = round(gate_fixed(root.delta, root.order or None), 4)
    return {
        "epsilon_gate": finite(spent),
        "fixed": fixed,
        "beyond": finite(round(root.epsilon - fixed, 4)),
        "committed": left if bounded else None,
        "reserved": max(0.0, all_of_it - left) if bounded else None,
        "free": max(0.0, 1.0 - all_of_it) if bounded else None,
        "share": all_of_it if bounded else None,
        "odds_gate": odds(spent),
    }


def _runs(root: DataRoot, reserved: Sequence[_Reserved], studies: Mapping[str, str]) -> list[dict[str, Any]]:
    together, found = Account(), []
    for run in dict.fromkeys(one.run for one in reserved):
        own = [one for one in reserved if one.run == run]
        events, states = _events(own), [one.state for one in own]
        together.add(run, events)
        found.append(
            {
                "run": run,
                "rounds": len(own),
                "sent": states.count("released") + states.count("committed"),
                "open": states.count("open"),
                "aborted": states.count("aborted"),
                "seq": [own[0].entry.seq, own[-1].entry.seq],
                "began": own[0].entry.time,
                "last": own[-1].entry.time,
                "manifest": own[0].entry.manifest,
                "study": studies.get(own[0].entry.manifest),
                "mechanisms": [to_json(event) for event in events],
                "epsilon": finite(epsilon(events, root.delta)),
                "epsilon_to_date": finite(epsilon(together.merged(), root.delta)),
                "gate_to_date": finite(root.spent(together.merged())),
            }
        )
    return found


def _growth(root: DataRoot, reserved: Sequence[_Reserved]) -> list[dict[str, Any]]:
    """The total after each reservation, thinned: by PLD, and as the gate counts it."""
    kept, together, found = set(thin(len(reserved), _STEPS)) if reserved else set(), Account(), []
    for number, one in enumerate(reserved):
        together.add(one.run, one.events)
        if number in kept or number == 0:
            events = together.merged()
            found.append(
                {
                    "reservations": number + 1,
                    "seq": one.entry.seq,
                    "run": one.run,
                    "round": one.round,
                    "state": one.state,
                    "epsilon_pld": finite(epsilon(events, root.delta)),
                    "epsilon_gate": finite(root.spent(events)),
                }
            )
    return found


def _steps(root: DataRoot, reserved: Sequence[_Reserved]) -> list[dict[str, Any]]:
    """The total, built up by run and mechanism in the order of their first release."""
    together, found, before = Account(), [], 0.0
    for run in dict.fromkeys(one.run for one in reserved):
        for event in _events(one for one in reserved if one.run == run):
            together.add(run, (event,))
            after = epsilon(together.merged(), root.delta)
            found.append({"run": run, "event": to_json(event), **part_of_total(before, after)})
            before = after
    return found


def _forecast(root: DataRoot, reserved: Sequence[_Reserved], spent: tuple[Event, ...]) -> dict[str, Any] | None:
    """How many more rounds like the last one would fit; None before the first, or without a limit."""
    last = next((one for one in reversed(reserved) if one.run), None)
    if last is None or math.isinf(root.epsilon):
        return None
    rounds = root.rounds_that_fit(spent, last.events, _MOST_ROUNDS)
    return {"run": last.run, "round": [to_json(event) for event in merge(last.events)], "rounds": rounds}


# --- the ledger -------------------------------------------------------------------------------------------------


def _ledger(verdict: Verdict, entries: Sequence[Entry], pins: Pins) -> dict[str, Any]:
    genesis = next((entry for entry in entries if entry.kind == "genesis"), None)
    receipts = [value for entry in entries for value in entry.body.get("receipts", ())]
    return {
        "id": pins.ledger_id,
        "ledger_key": pins.ledger_key,
        "dpo_key": pins.dpo_key,
        "verified": verdict.ok,
        "problem": verdict.problem,
        "bad_seq": verdict.bad_seq,
        "entries": verdict.entries,
        "first": entries[0].seq if entries else None,
        "last": verdict.head.seq,
        "head": verdict.head.hash,
        "prior_head": entries[-1].prev if entries else None,
        "policy": entries[-1].policy if entries else "",
        "durability": genesis.body["durability"] if genesis else None,
        "receipts": len(receipts),
        "witnesses": len({value["witness"] for value in receipts}),
        "witnessed": max((value["head"]["head"]["seq"] for value in receipts), default=None),
        "open": [{"run": run, "round": number} for run, number in verdict.open_reserves],
        "unacknowledged": len(verdict.unacknowledged),
        "aborted": sum(entry.kind == "abort" for entry in entries),
        "frozen": verdict.frozen,
        "freezes": _told(entries, "freeze"),
        "restores": _told(entries, "restore"),
        "rotations": sum(entry.kind == "key_rotate" for entry in entries),
        "gaps": [list(gap) for gap in verdict.gaps],
        "refusals": "The ledger holds what was reserved; requests that were refused stand in the silo's own log.",
    }


def _told(entries: Iterable[Entry], kind: str) -> list[dict[str, Any]]:
    return [
        {"seq": entry.seq, "time": entry.time, "reason": entry.body["reason"]}
        for entry in entries
        if entry.kind == kind
    ]


# --- words ------------------------------------------------------------------------------------------------------


def _claim(root: Mapping[str, Any]) -> dict[str, Any]:
    """The claim in plain language; an unbounded release leaves none."""
    unit, delta, value = root["unit"], root["budget"]["delta"], root["numbers"]["epsilon_pld"]
    one = "record" if unit == "record" else f"'{unit}'"
    at = f"at δ = {delta_text(delta)}, per {unit}"
    limit, sentences = root["limit"], []
    if value is not None:
        sentences.append(
            f"An observer of everything that this silo has ever sent about '{root['name']}', who already knows "
            f"all other "
            f"records, can raise 50:50 odds about one {one} (was it used, or not?) to at most "
            f"{percent(root['numbers']['odds'])}, except with a probability of about δ = {delta_text(delta)}. That is "
            f"ε = {privacy(value)} {at}."
        )
        if len(root["runs"]) > 1:
            sentences.append(
                "That number takes the recorded runs as planned beforehand. If a later one was chosen by "
                "looking at the "
                "results of an earlier one, what holds without doubt is the next sentence."
            )
        if (root["spent"]["share"] or 0) > 1:
            sentences.append(
                "A restore has adopted more than the budget, so the budget is no bound; nothing more is let through."
            )
        elif limit["epsilon"] is not None:
            sentences.append(
                f"Whatever studies come and however they are chosen, the ledger lets no more through than "
                f"ε = {privacy(limit['epsilon'])} {at}: the odds never rise above {percent(limit['odds'])}."
            )
    return {
        "root": root["name"],
        "unit": unit,
        "delta": delta,
        "epsilon": value,
        "odds": root["numbers"]["odds"],
        "tier": None if value is None else tier(value),
        "tier_of_the_budget": None if limit["epsilon"] is None else tier(limit["epsilon"]),
        "sentences": sentences,
    }


def _not_covered(roots: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [
        "Records outside the registered data roots, and what was published from these records by other means.",
        "Facts about the whole group (what the model learns about a disease holds for people whose records were never "
        "used).",
        "A person who stands in several silos, or under several identifiers, is protected less.",
        "The silo's own disk, keys and administrators are trusted.",
        declared.CENTRAL,
    ]
    if any(root["unit"] == "record" for root in roots):
        found.insert(
            0,
            "Where the unit is one record, no claim is made for a person with several records: that protection is "
            "weaker, about in proportion to their number.",
        )
    return found
