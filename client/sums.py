"""What a silo answers in secure aggregation beside training: its key, counts under masks, and shares that end a sum.

Counts are claimed, reserved, masked and released as an update is (client/round.py); they have numbers of their own in
the ledger, after that of the run's end. Exact ones cost no epsilon, so a silo counts only in a run that it trains in.
"""

from __future__ import annotations

import logging

from client import masking
from client.models.base import Shape, build, load_weights
from client.round import agreed, model_layout, read_records, release, shown, sound_counts, stored_reply
from client.silo import Silo
from client.training.device import device_of
from client.training.evaluation import evaluate
from client.witness import countersign, read_evidence, require_newest
from strategies import wire
from strategies.errors import ProtocolError
from strategies.secagg.plan import COUNTS
from strategies.study import Study


def keyed(request: wire.Setup, study: Study, silo: Silo) -> wire.Keyed:
    """Join the run's secure aggregation with a key of its own, signed; the same answer every time.

    Raises:
        ProtocolError: the rules are not those that follow from the agreed study.
    """
    manifest = agreed(request.manifest, study, silo)
    with silo.ledger() as ledger:
        session = masking.session_of(silo, study, manifest, model_layout(study).size, ledger)
        step = session.join(request.rules.tobytes())
        ledger.change(manifest.run, step.changes)
    return wire.Keyed(silo=silo.name, key=wire.blob(step.reply))


def count(request: wire.Count, study: Study, silo: Silo) -> wire.MaskedCounts:
    """Count how well a model does on the held-out records, for a sum over silos.

    Raises:
        Refusal, ProtocolError, DataError: nothing is counted; policy, approval and budget are asked first.
    """
    manifest, rounds = agreed(request.manifest, study, silo), study.file.study.rounds
    round = request.number - rounds - 1
    if not (study.masked and study.count_events() and 1 <= round <= rounds):
        raise ProtocolError(f"release {request.number} is none of this study's masked counts")
    weights = model_layout(study).check(request.weights, "the model")
    evidence = read_evidence(request.heads, request.receipts, manifest, request.number)
    with silo.ledger() as ledger:
        if not any(ledger.entry(run=manifest.run, round=n, kind="reserve") for n in range(round, 0, -1)):
            raise ProtocolError("counts are asked for in a run in which this silo has trained nothing yet")
        require_newest(evidence, manifest, silo, ledger, request.received, study)
        if request.received:
            ledger.commit(run=manifest.run, round=request.received)
        session = masking.session_of(silo, study, manifest, len(weights), ledger)
        claim = masking.claim(session, COUNTS, request, manifest, ledger)
        if claim.resend:
            stored = stored_reply(silo, ledger, manifest.run, request.number)
            return masking.same_again(claim, stored, wire.MaskedCounts)
        ledger.policy(silo.policy.sha256)
        ledger.reserve(
            data_root=silo.root()[0],
            run=manifest.run,
            round=request.number,
            events=study.count_events(),
            manifest=manifest.digest(),
            receipts=evidence.receipts,
            changes=claim.changes,
        )
        head = ledger.head().to_bytes().decode()
        countersigned = countersign(evidence.list, evidence.text, manifest, silo, ledger)
    shape = Shape.of_study(study)
    module = build(study.model, shape, study.file.study.seed).to(
        device_of(silo.settings.device, silo.settings.memory_fraction)
    )
    load_weights(module, weights)
    seen = evaluate(module, read_records(silo, study).held_out, shape, study, counted=True)
    silo.log(logging.INFO, f"run {manifest.run[:8]} round {round}: model has {shown(seen.metrics)}")
    with silo.ledger() as ledger:
        session = masking.session_of(silo, study, manifest, len(weights), ledger)
        step = session.mask(claim, [sound_counts(seen.counts, study)])
    reply = wire.MaskedCounts(
        silo=silo.name, number=request.number, head=head, countersigned=countersigned, upload=wire.blob(step.reply)
    )
    release(silo, manifest.run, request.number, reply, step.changes)
    return reply


def unmask(request: wire.Unmask, study: Study, silo: Silo) -> wire.Share:
    """Answer one step that ends a sum, once its row is durable.

    Raises:
        ProtocolError: it is not answered, and nothing has changed.
    """
    manifest = agreed(request.manifest, study, silo)
    with silo.ledger() as ledger:
        session = masking.session_of(silo, study, manifest, model_layout(study).size, ledger)
        step = session.unmask(request.request.tobytes())
        ledger.change(manifest.run, step.changes)
    if step.alarm is not None:
        named = f" ({', '.join(step.silos)})" if step.silos else ""
        silo.log(
            logging.ERROR, f"run {manifest.run[:8]}: a sum was given up, nothing of it was opened: {step.alarm}{named}"
        )
    return wire.Share(silo=silo.name, reply=wire.blob(step.reply))
