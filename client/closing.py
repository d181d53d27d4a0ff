"""The end of a run at the silo: the final model is evaluated, and the silo states what was spent.

Also here: countersigning the heads of the other silos, which a coordinator asks for between rounds.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import replace

import numpy as np

from client import masking
from client.ledger import Ledger
from client.models.base import Shape, build, load_weights
from client.outcome import Told, require_true
from client.round import agreed, model_layout, read_records, release, shown, sound_counts, stored_reply
from client.silo import Silo
from client.training.device import device_of
from client.training.evaluation import evaluate
from client.training.second_opinion import require_agreement
from client.witness import NO_RECEIPTS, Evidence, countersign, read_evidence, require_newest
from strategies import wire
from strategies.errors import AccountingError, Refusal
from strategies.manifest import Manifest
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import merge
from strategies.proof.extract import extract
from strategies.statement import BudgetStatement, Statement
from strategies.study import Study


def attest(request: wire.Attest, study: Study, silo: Silo) -> wire.Attested:
    """Countersign the heads of the other silos, for a coordinator that lacks a peer's receipt.

    Raises:
        ProtocolError, LedgerError: the request is not this run's, or this silo's ledger signs nothing.
    """
    manifest = agreed(request.manifest, study, silo)
    evidence = read_evidence(request.heads, NO_RECEIPTS, manifest, None)
    with silo.ledger() as ledger:
        head = ledger.head().to_bytes().decode()
        countersigned = countersign(evidence.list, evidence.text, manifest, silo, ledger)
    return wire.Attested(silo=silo.name, head=head, countersigned=countersigned)


def close(request: wire.Close, study: Study, silo: Silo) -> wire.Farewell:
    """Acknowledge the end of a run: evaluate the final model, state what was spent.

    The counts of the final model are one more release, with the number of the round after the last. The first request
    gets them and the same bytes answer every later one, whatever model it brings. Where they do not fit into the budget
    any more, or were reserved and lost, the silo takes its leave without them.

    Raises:
        ProtocolError, DataError: the request is not this run's, or the records cannot be read.
    """
    manifest = agreed(request.manifest, study, silo)
    weights = model_layout(study).check(request.weights, "the model")
    last = study.last_release
    evidence = read_evidence(request.heads, request.receipts, manifest, last)
    told = Told(text=request.outcome, round=last - 1, weights=weights, received=request.received)
    with silo.ledger() as ledger:
        require_newest(evidence, manifest, silo, ledger, request.received, study)
        require_true(told, manifest, silo, ledger, study)
        if request.received:
            ledger.commit(run=manifest.run, round=request.received)
        if study.masked:
            session = masking.session_of(silo, study, manifest, len(weights), ledger)
            masking.settle(session, request.record, manifest, ledger)
            ledger.change(manifest.run, session.leave())
        stored = stored_reply(silo, ledger, manifest.run, last)
        if stored is not None:
            return wire.unpack(stored, (wire.Farewell,))
        counted = _may_count(study, silo, ledger, manifest, evidence)
    shape = Shape.of_study(study)
    module = build(study.model, shape, study.file.study.seed).to(
        device_of(silo.settings.device, silo.settings.memory_fraction)
    )
    load_weights(module, weights)
    seen = evaluate(module, read_records(silo, study).held_out, shape, study, counted=counted)
    silo.log(logging.INFO, f"run {manifest.run[:8]}: final model has {shown(seen.metrics)}")
    reply = _farewell(study, silo, manifest, evidence)
    if not counted:
        return reply
    reply = replace(reply, counts=sound_counts(seen.counts, study).astype(np.float32))
    release(silo, manifest.run, last, reply)
    return reply


def _may_count(study: Study, silo: Silo, ledger: Ledger, manifest: Manifest, evidence: Evidence) -> bool:
    """Reserve the closing counts, if the study has some; return whether they may leave."""
    if not study.closing_events():
        return False
    ledger.policy(silo.policy.sha256)
    try:
        ledger.reserve(
            data_root=silo.root()[0],
            run=manifest.run,
            round=evidence.list.round,
            events=study.closing_events(),
            manifest=manifest.digest(),
            receipts=evidence.receipts,
        )
    except Refusal as refusal:
        silo.log(logging.WARNING, f"no counts of the final model leave: {refusal}")
        return False
    return True


def _farewell(study: Study, silo: Silo, manifest: Manifest, evidence: Evidence) -> wire.Farewell:
    """Return what the silo states of the run and the lines of its ledger that prove it; no counts yet."""
    with silo.ledger() as ledger:
        ledger.policy(silo.policy.sha256)
        account, lines = _account(study, silo, manifest, ledger)
        head = ledger.head().to_bytes().decode()
        countersigned = countersign(evidence.list, evidence.text, manifest, silo, ledger)
        try:
            require_agreement(account.events, account.delta)
            require_agreement(account.to_date, account.budget.delta)
            text = ledger.signed(account)
        except AccountingError as error:
            silo.log(logging.ERROR, f"the statement of run {manifest.run[:8]} is not signed: {error}")
            text = ""
    return wire.Farewell(
        silo=silo.name,
        head=head,
        countersigned=countersigned,
        statement=text,
        ledger=lines.decode(),
    )


def _account(study: Study, silo: Silo, manifest: Manifest, ledger: Ledger) -> tuple[Statement, bytes]:
    """Return what the silo states, and the lines of its ledger for it; what concerns other runs is left out of them."""
    while True:
        account, lines = _statement(study, silo, manifest, ledger), ledger.export()
        if hashlib.sha256(lines[-1]).hexdigest() == account.hash:  # else another run has appended meanwhile
            break
    shown = b"".join(line + b"\n" for line in extract(lines, run=manifest.run, data_root=account.data_root))
    return replace(account, extract=hashlib.sha256(shown).hexdigest()), shown


def _statement(study: Study, silo: Silo, manifest: Manifest, ledger: Ledger) -> Statement:
    """Return the statement but for the digest of the lines."""
    root, privacy = silo.root()[0], study.file.privacy
    head, (first, last) = ledger.head().head, ledger.span(manifest.run)
    here, balance = merge(ledger.spent(root, run=manifest.run)), ledger.balance(root)
    delta, gate, order = balance.governing
    return Statement(
        silo=silo.name,
        run=manifest.run,
        study=study.digest,
        manifest=manifest.digest(),
        ledger_id=head.ledger_id,
        seq=head.seq,
        hash=head.hash,
        first=first,
        last=last,
        extract="",
        data_root=root,
        unit=balance.root.unit,
        neighbouring="add-or-remove-one",
        delta=privacy.delta,
        accountant=privacy.accountant,
        epsilon=_finite(epsilon(here, privacy.delta, accountant=privacy.accountant)),
        events=here,
        to_date=balance.events,
        budget=BudgetStatement(
            epsilon=_finite(balance.epsilon),
            delta=delta,
            gate=gate,
            order=order,
            spent=_finite(balance.used if math.isfinite(balance.epsilon) else math.inf),
        ),
        policy=ledger.policy_in_force,
        durability=silo.settings.ledger.durability,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
