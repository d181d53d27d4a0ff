"""Checks of what a silo signs: its ledger's lines, its statements, the heads that others have kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from strategies.errors import FedsiloError, VerificationError
from strategies.privacy.accountant import epsilon, epsilon_at_order
from strategies.privacy.budget import Budget
from strategies.privacy.dataroot import DataRoot, covers
from strategies.privacy.events import Event, merge
from strategies.proof.chain import Chain, ChainError, Pins
from strategies.proof.entries import read
from strategies.proof.extract import read_extract
from strategies.proof.findings import Findings, Ledger
from strategies.proof.trust import Trust
from strategies.proof.verdict import lines_of
from strategies.statement import BudgetStatement, SignedStatement, Statement, read_statement


def check_ledger(file: str, data: bytes, trust: Trust, found: Findings, *, whole: bool = True) -> Ledger | None:
    """Check every line of an export; return the ledger when all hold.

    Args:
        file: its name, for sentences.
        data: its bytes.
        trust: whose keys count.
        found: what is found.
        whole: False for the extract beside a statement.
    """
    try:
        lines = lines_of(data)
        chain = read_extract(lines, _pins_of(lines, trust))
    except ChainError as error:
        found.fail(file, error.reason, error.seq)
        return None
    except VerificationError as error:
        found.fail(file, str(error))
        return None
    whole = whole and not chain.hidden
    ledger = Ledger(file=file, lines=lines, digest=hashlib.sha256(data).hexdigest(), chain=chain, whole=whole)
    found.ledgers.append(ledger)
    found.checked.append(f"{file}: ledger of {chain.silo}, {chain.entries} entries, every link and signature holds")
    if chain.hidden:
        found.note(
            f"{file}: {chain.unseen} entries of other runs are not shown; that nothing else stands there, and the sum "
            "to date, rest on the silo's signature"
        )
    for run, round in chain.open_rounds():
        found.open_reserves.append({"file": file, "silo": chain.silo, "run": run, "round": round})
    for start, end in chain.gaps:
        found.note(f"{file}: positions {start} to {end} were lost and restored; what they had spent was adopted")
    if chain.frozen is not None:
        found.note(f"{file}: the ledger is frozen: {chain.frozen}")
    if chain.durability == "process":
        found.note("a ledger of durability 'process' (a simulated silo) does not survive a loss of power")
    for name in chain.accounts if not chain.hidden else ():  # else the statement says what was spent
        _root_row(ledger, name, found)
    return ledger


def _pins_of(lines: Sequence[bytes], trust: Trust) -> Pins:
    if not lines:
        raise ChainError(1, "the ledger is empty")
    try:
        entry = read(lines[0]).entry
    except VerificationError as error:
        raise ChainError(1, str(error)) from None
    if trust.pinned:
        if entry.ledger_id not in trust.ledgers:
            raise ChainError(1, "it is none of the pinned ledgers")
        return trust.ledgers[entry.ledger_id]
    if entry.kind != "genesis":
        raise ChainError(1, "the first entry of a ledger is its genesis")
    return Pins(ledger_id=entry.ledger_id, ledger_key=entry.body["ledger_key"], dpo_key=entry.body["dpo_key"])


def _root_row(ledger: Ledger, name: str, found: Findings) -> None:
    account = ledger.chain.accounts[name]
    if account.root is None:
        found.note(f"{ledger.file}: '{name}' was adopted by a restore and is not registered again")
        return
    _append_row(ledger, account.root, account.merged(), found, rests_on="ledger")


def _append_row(ledger: Ledger, root: DataRoot, events: tuple[Event, ...], found: Findings, *, rests_on: str) -> None:
    """Add what was spent to date: of all lines of a ledger, or as its statement has it where lines are not shown."""
    name = root.name
    try:
        value, spent = epsilon(events, root.delta), root.spent(events)
    except FedsiloError as error:
        found.fail(ledger.file, f"the epsilon of '{name}' cannot be computed: {error}")
        return
    row = {
        "file": ledger.file,
        "silo": ledger.chain.silo,
        "ledger_id": ledger.chain.pins.ledger_id,
        "rests_on": rests_on,
        "data_root": name,
        "unit": root.unit,
        "neighbouring": "add-or-remove-one",
        "epsilon": _shown(value),
        "delta": root.delta,
        "gate": root.gate,
        "spent": _shown(spent),
        "budget": _shown(root.epsilon),
    }
    found.roots.append(row)
    if not root.fits((), events):
        found.note(f"{ledger.file}: '{name}' has spent more than its budget (a restore has adopted what was lost)")


def _shown(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- statements ---------------------------------------------------------------------------------------------


def check_statement(file: str, data: bytes, trust: Trust, found: Findings) -> SignedStatement | None:
    """Check form, signature and numbers of a statement; return it when it can be read."""
    try:
        signed = read_statement(data.decode())
    except (FedsiloError, UnicodeDecodeError) as error:
        found.fail(file, str(error))
        return None
    stated = signed.statement
    if trust.pinned:
        found.require(stated.ledger_id in trust.ledgers, file, "it is of none of the pinned ledgers")
    found.loss(
        file, "the epsilon of the run", stated.epsilon, stated.events, stated.delta, accountant=stated.accountant
    )
    budget = stated.budget
    if budget.epsilon is not None:
        try:
            found.near(file, "what the gate counts as spent", budget.spent, _at_the_gate(stated))
        except FedsiloError as error:
            found.fail(file, f"what the gate counts as spent cannot be recomputed: {error}")
    holds = covers(stated.to_date, stated.events)
    found.require(holds, file, "the run has events that are not among those of its data root")
    found.checked.append(f"{file}: statement of {stated.silo}, signed; its epsilons were recomputed")
    return signed


def _at_the_gate(stated: Statement) -> float:
    if stated.budget.gate == "preregistered":
        return epsilon(stated.to_date, stated.budget.delta)
    return epsilon_at_order(stated.to_date, stated.budget.delta, stated.budget.order)


def compare_statement(file: str, signed: SignedStatement, ledger: Ledger, found: Findings) -> None:
    """Compare a statement with its ledger, up to the line that it names."""
    stated, chain = signed.statement, _up_to(ledger, signed.statement.hash)
    if chain is None:
        found.fail(file, f"the ledger {ledger.file} does not have the line that the statement names", stated.seq)
        return
    if not ledger.whole:
        sentence = f"it signs other lines of the ledger than {ledger.file} has"
        found.require(stated.extract == ledger.digest, file, sentence, stated.seq)
    account = chain.accounts.get(stated.data_root)
    if account is None or account.root is None:
        found.fail(file, f"the ledger does not know data root '{stated.data_root}'")
        return
    root, seen = account.root, account.merged()
    here = merge(event for run, events in account.reserved if run == stated.run for event in events)
    to_date = covers(stated.to_date, seen) if chain.hidden else stated.to_date == seen
    for holds, sentence in (
        (signed.key in chain.keys, "it is not signed by a key of its ledger"),
        (stated.seq == chain.seq, "its position is another in the ledger"),
        (stated.silo == chain.silo, "its silo has another name in the ledger"),
        (stated.durability == chain.durability, "its durability is another in the ledger"),
        (stated.policy == chain.policy, "its policy is not the one in force at that line of the ledger"),
        ((stated.first, stated.last) == _span(chain, stated.run), "the run's entries stand elsewhere in the ledger"),
        (stated.events == here, "the ledger has other events of the run"),
        (to_date, "the ledger has other events of the data root"),
        (stated.unit == root.unit, "the data root is registered with another unit"),
        (_allowed(stated.budget, root), "its budget is neither the registered one nor a smaller one of a policy"),
        (stated.neighbouring == "add-or-remove-one", "its neighbouring relation is another"),
    ):
        found.require(holds, file, sentence, stated.seq)
    if chain.hidden:
        _append_row(ledger, root, stated.to_date, found, rests_on="statement")


def _up_to(ledger: Ledger, digest: str) -> Chain | None:
    """Return the chain up to a line, or None where there is no such line."""
    if digest == ledger.chain.hash:
        return ledger.chain
    hashes = [hashlib.sha256(line).hexdigest() for line in ledger.lines]
    if digest not in hashes:
        return None
    return read_extract(ledger.lines[: hashes.index(digest) + 1], ledger.chain.pins)


def _allowed(budget: BudgetStatement, root: DataRoot) -> bool:
    """Return whether a stated budget is the registered one, or what a stricter policy makes of it."""
    epsilon = math.inf if budget.epsilon is None else budget.epsilon
    if epsilon == root.epsilon:
        return (budget.delta, budget.gate, budget.order) == (root.delta, root.gate, root.order)
    order = Budget(epsilon=epsilon, delta=budget.delta).order
    return epsilon < root.epsilon and (budget.gate, budget.order) == ("rdp", order)


def _span(chain: Chain, run: str) -> tuple[int, int]:
    seqs = [seq for (own, _), steps in chain.rounds.items() if own == run for seq in steps.values()]
    return (min(seqs), max(seqs)) if seqs else (0, 0)
