"""One local round, read top to bottom: prepare -> train -> finish.

`prepare` answers every question that may refuse the round (is this the agreed run, would the budget fit), and makes
the reservation durable before a record is read. `train` takes jobs, one from the client app, many from an engine that
owns the loop. `finish` makes the reply durable, then the release, and only then hands the reply out.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from client.approval import admit
from client.data import kinds
from client.data.records import Records
from client.ledger import Ledger
from client.models.base import MODELS, Shape, build, layout_of, load_weights
from client.silo import Silo
from client.training.device import device_of, prepared
from client.training.evaluation import evaluate
from client.training.local import Plan
from client.training.local import train as train_locally
from client.training.second_opinion import require_agreement
from client.witness import NO_RECEIPTS, Evidence, countersign, read_evidence, require_newest
from strategies import wire
from strategies.base import Aux, Contribution
from strategies.counts import CountLayout
from strategies.errors import AccountingError, ProtocolError, Refusal, RefusalCode, RunError
from strategies.layout import Layout, Vector
from strategies.manifest import CODE_VERSION, Manifest
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import merge
from strategies.privacy.silo_level import released
from strategies.spec import Registries
from strategies.statement import BudgetStatement, Statement
from strategies.study import Study

REGISTRIES = Registries(models=MODELS)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A round that has been admitted and reserved.

    Args:
        silo: whose round it is.
        study: the agreed study.
        manifest: the agreed run.
        round: from 1.
        weights: as received.
        aux: the strategy's vectors.
        records: the silo's records.
        head: where the ledger stands with the reservation, signed.
        countersigned: the silo's signatures on the heads of the others.
    """

    silo: Silo
    study: Study
    manifest: Manifest
    round: int
    weights: Vector
    aux: Aux
    records: Records
    head: str
    countersigned: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What training made of a job.

    Args:
        contribution: the strategy's update.
        counts: noisy metric counts of the model that the silo received; empty when the study releases none.
    """

    contribution: Contribution
    counts: Vector = field(default_factory=lambda: np.zeros(0, np.float32))


# --- joining ------------------------------------------------------------------------------------------------


def join(invite: wire.Invite, study: Study, silo: Silo) -> wire.Accept:
    """Answer an invitation: yes, if policy, data and budget allow the whole study.

    Raises:
        Refusal, DataError, SettingError: this silo does not take part.
    """
    if invite.study != study.digest:
        raise Refusal(RefusalCode.STUDY, "the invitation cites another study than the one that came with the run")
    if invite.code != CODE_VERSION:
        raise Refusal(RefusalCode.STUDY, f"the server runs Fedsilo {invite.code}, this silo {CODE_VERSION}")
    admit(silo, study)
    if invite.layout != model_layout(study).digest():
        raise Refusal(RefusalCode.PROTOCOL, "the server's model has another layout than the study's model has here")
    root = silo.root()[0]
    with silo.ledger() as ledger:
        ledger.require_usable()
        ledger.policy(silo.policy.sha256)
        balance, head = ledger.balance(root), ledger.head()
    whole = balance.admission(study)
    if not whole.fits:
        raise Refusal(RefusalCode.BUDGET, whole.sentence(f"at silo {silo.name}"))
    records = read_records(silo, study)
    for note in (*records.notes, *_warnings(records, study)):
        silo.log(logging.WARNING, note)
    weight = silo.settings.weight if study.file.strategy.weights == "declared" else 1.0
    return wire.Accept(silo=silo.name, weight=weight, head=head.to_bytes().decode())


def _warnings(records: Records, study: Study) -> list[str]:
    """Sentences for the silo's own log: to refuse would reveal size or labels."""
    found = []
    expected = study.file.training.expected_batch_size or 0
    if records.train.units < expected:
        found.append(
            f"this silo has {records.train.units} training units, fewer than the study's expected batch of "
            f"{expected:g}: its updates are mostly noise"
        )
    y = records.train.y
    if study.file.study.task == "classification" and bool((y == y[:1]).all()):
        found.append("this silo's training records are all of one class: its updates pull towards that class")
    return found


# --- a round ------------------------------------------------------------------------------------------------


def prepare(request: wire.Train, study: Study, silo: Silo) -> Job | wire.Update:
    """Admit a round and reserve its worst case; return the stored reply when the round was trained before.

    Raises:
        Refusal, ProtocolError, DataError: the round is not trained; policy and approval hold without an invitation too.
    """
    manifest = _agreed(request.manifest, study, silo)
    if not 1 <= request.round <= study.file.study.rounds:
        raise ProtocolError(f"round {request.round} is not in the study's 1 to {study.file.study.rounds}")
    layout = model_layout(study)
    weights = layout.check(request.weights, "the model")
    broadcast = {name: layout.check(vector, name) for name, vector in request.broadcast.items()}
    evidence = read_evidence(request.heads, request.receipts, manifest, request.round)
    state = silo.state(manifest.run)
    root = silo.root()[0]
    with silo.ledger() as ledger:
        require_newest(evidence, manifest, silo, ledger, request.received)
        if request.received:
            ledger.commit(run=manifest.run, round=request.received)
        stored = _stored(silo, ledger, manifest.run, request.round)
        if stored is not None:
            return wire.unpack(stored, (wire.Update,))
        ledger.policy(silo.policy.sha256)
        ledger.reserve(
            data_root=root,
            run=manifest.run,
            round=request.round,
            events=study.round_events(),
            manifest=manifest.digest(),
            receipts=evidence.receipts,
        )
        head = ledger.head().to_bytes().decode()
        countersigned = countersign(evidence.list, evidence.text, manifest, silo, ledger)
    home = {name: torch.from_numpy(array) for name, array in state.home().items()}
    aux = Aux(broadcast={name: torch.from_numpy(np.array(v)) for name, v in broadcast.items()}, home=home)
    return Job(
        silo=silo,
        study=study,
        manifest=manifest,
        round=request.round,
        weights=weights,
        aux=aux,
        records=read_records(silo, study),
        head=head,
        countersigned=countersigned,
    )


def train(jobs: Sequence[Job]) -> list[Result]:
    """Train every job from the weights that it received, after evaluating these on the silo's held-out records."""
    return [_train_one(job) for job in jobs]


def _train_one(job: Job) -> Result:
    study, shape = job.study, Shape.of_study(job.study)
    device, plan = device_of(job.silo.settings.device), plan_of(study, job.silo.name, job.round)
    module = build(study.model, shape, study.file.study.seed).to(device)
    load_weights(module, job.weights)
    job.silo.log(logging.INFO, f"run {job.manifest.run[:8]} round {job.round}: trains {prepared(device)}")
    seen = evaluate(module, job.records.held_out, shape, study)
    sentence = f"run {job.manifest.run[:8]} round {job.round}: model received has {_shown(seen.metrics)}"
    job.silo.log(logging.INFO, sentence)
    try:
        after = train_locally(module, job.records.train, shape, plan, study.strategy, job.aux)
    except RunError as error:
        if not study.silo_level:  # there the training itself is private, and so is that it failed
            raise
        job.silo.log(logging.WARNING, f"run {job.manifest.run[:8]} round {job.round}: counts as no update: {error}")
        after = job.weights
    before = torch.from_numpy(np.array(job.weights))
    contribution = study.strategy.update(before, torch.from_numpy(np.array(after)), job.aux)
    if study.silo_level:
        contribution = replace(contribution, update=released(np.asarray(contribution.update), study))
    return Result(contribution=contribution, counts=seen.counts)


def finish(job: Job, result: Result) -> wire.Update:
    """Make the round's reply durable and its release recorded; return the reply.

    Raises:
        ProtocolError: the update is not a finite vector of the model's layout.
    """
    weight = job.manifest.weight_of(job.silo.name)
    vector = np.asarray(result.contribution.update, dtype=np.float32) * np.float32(weight)
    reply = wire.Update(
        silo=job.silo.name,
        round=job.round,
        head=job.head,
        countersigned=job.countersigned,
        update=model_layout(job.study).check(vector, "the update"),
        counts=_of_length(result.counts, job.study),
    )
    if result.contribution.home is not None:
        home = {name: np.asarray(array) for name, array in result.contribution.home.items()}
        job.silo.state(job.manifest.run).keep_home(home)
    _release(job.silo, job.manifest.run, job.round, reply)
    return reply


def _of_length(counts: Vector, study: Study) -> Vector:
    length = CountLayout.of(study).size if study.closing_events() else 0
    if counts.shape != (length,):
        raise ProtocolError(f"the metric counts have shape {counts.shape}, the study asks for ({length},)")
    return counts


def _stored(silo: Silo, ledger: Ledger, run: str, round: int) -> bytes | None:
    """Return the reply of a round that was released before; only those very bytes may leave again."""
    stored, released = silo.state(run).reply(round), ledger.entry(run=run, round=round, kind="release")
    known = stored and released and released.body["sha256"] == hashlib.sha256(stored).hexdigest()
    return stored if known else None


def _release(silo: Silo, run: str, round: int, reply: wire.Reply) -> None:
    """Make a reply durable, then the record that it leaves."""
    payload = wire.pack(reply)
    silo.state(run).keep_reply(round, payload)
    with silo.ledger() as ledger:
        ledger.release(data_root=silo.root()[0], run=run, round=round, sha256=hashlib.sha256(payload).hexdigest())


def attest(request: wire.Attest, study: Study, silo: Silo) -> wire.Attested:
    """Countersign the heads of the other silos, for a coordinator that lacks a peer's receipt.

    Raises:
        ProtocolError, LedgerError: the request is not this run's, or this silo's ledger signs nothing.
    """
    manifest = _agreed(request.manifest, study, silo)
    evidence = read_evidence(request.heads, NO_RECEIPTS, manifest, None)
    with silo.ledger() as ledger:
        head = ledger.head().to_bytes().decode()
        countersigned = countersign(evidence.list, evidence.text, manifest, silo, ledger)
    return wire.Attested(silo=silo.name, head=head, countersigned=countersigned)


# --- the end ------------------------------------------------------------------------------------------------


def close(request: wire.Close, study: Study, silo: Silo) -> wire.Farewell:
    """Acknowledge the end of a run: evaluate the final model, state what was spent.

    The counts of the final model are one more release, with the number of the round after the last. The first request
    gets them and the same bytes answer every later one, whatever model it brings. Where they do not fit into the budget
    any more, or were reserved and lost, the silo takes its leave without them.

    Raises:
        ProtocolError, DataError: the request is not this run's, or the records cannot be read.
    """
    manifest = _agreed(request.manifest, study, silo)
    weights = model_layout(study).check(request.weights, "the model")
    last = study.file.study.rounds + 1
    evidence = read_evidence(request.heads, request.receipts, manifest, last)
    with silo.ledger() as ledger:
        require_newest(evidence, manifest, silo, ledger, request.received)
        if request.received:
            ledger.commit(run=manifest.run, round=request.received)
        stored = _stored(silo, ledger, manifest.run, last)
        if stored is not None:
            return wire.unpack(stored, (wire.Farewell,))
        counted = _may_count(study, silo, ledger, manifest, evidence)
    shape = Shape.of_study(study)
    module = build(study.model, shape, study.file.study.seed).to(device_of(silo.settings.device))
    load_weights(module, weights)
    seen = evaluate(module, read_records(silo, study).held_out, shape, study)
    silo.log(logging.INFO, f"run {manifest.run[:8]}: final model has {_shown(seen.metrics)}")
    reply = _farewell(study, silo, manifest, evidence)
    if not counted:
        return reply
    reply = replace(reply, counts=_of_length(seen.counts, study))
    _release(silo, manifest.run, last, reply)
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
        account = _statement(study, silo, manifest, ledger)
        lines, head = ledger.export(), ledger.head().to_bytes().decode()
        countersigned = countersign(evidence.list, evidence.text, manifest, silo, ledger)
        try:
            require_agreement(account.events, account.delta)
            require_agreement(account.to_date, account.budget.delta)
            text = ledger.signed(account)
        except AccountingError as error:
            silo.log(logging.ERROR, f"the statement of run {manifest.run[:8]} is not signed: {error}")
            text = ""
    known = next((n for n, line in enumerate(lines, 1) if hashlib.sha256(line).hexdigest() == account.hash), 0)
    return wire.Farewell(
        silo=silo.name,
        head=head,
        countersigned=countersigned,
        statement=text,
        ledger=b"".join(line + b"\n" for line in lines[:known]).decode(),
    )


def _statement(study: Study, silo: Silo, manifest: Manifest, ledger: Ledger) -> Statement:
    root, privacy = silo.root()[0], study.file.privacy
    head, (first, last) = ledger.head().head, ledger.span(manifest.run)
    here, balance = merge(ledger.spent(root, run=manifest.run)), ledger.balance(root)
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
            delta=balance.root.delta,
            gate=balance.root.gate,
            order=balance.root.order,
            spent=_finite(balance.spent if math.isfinite(balance.epsilon) else math.inf),
        ),
        policy=ledger.policy_in_force,
        durability=silo.settings.ledger.durability,
    )


# --- shared -------------------------------------------------------------------------------------------------


def _agreed(text: str, study: Study, silo: Silo) -> Manifest:
    admit(silo, study)  # with every request: a server need not have asked whether this silo takes part
    manifest = Manifest.from_json(text)
    manifest.weight_of(silo.name)
    if manifest.study != study.digest:
        raise ProtocolError("the manifest cites another study than the one that came with the run")
    if not silo.state(manifest.run).agree(text):
        raise ProtocolError("the manifest is not the one that this run began with")
    return manifest


def plan_of(study: Study, silo_name: str, round: int) -> Plan:
    """Return the public settings of local training.

    Raises:
        Refusal: the study has no expected batch size.
    """
    training, privacy = study.file.training, study.file.privacy
    if training.expected_batch_size is None:
        raise Refusal(
            RefusalCode.STUDY,
            "training.expected_batch_size is missing: a deployed study names one public number of units a step",
        )
    key = hashlib.sha256(f"fedsilo/order/{study.file.study.seed}/{silo_name}/{round}".encode()).digest()
    return Plan(
        private=study.private and not study.silo_level,
        sampling_rate=training.sampling_rate,
        steps=training.steps,
        expected_batch_size=training.expected_batch_size,
        max_records_per_unit=study.file.data.max_records_per_unit,
        clip_norm=privacy.clip_norm,
        noise_multiplier=study.noise_multiplier,
        optimizer=study.optimizer,
        seed=int.from_bytes(key[:8], "big"),
    )


@lru_cache(maxsize=8)
def _layout(digest_and_text: tuple[str, str]) -> Layout:
    study = Study.parse(digest_and_text[1], REGISTRIES)
    return layout_of(build(study.model, Shape.of_study(study), study.file.study.seed))


def model_layout(study: Study) -> Layout:
    """Return the layout of the study's model."""
    return _layout((study.digest, study.text))


def read_records(silo: Silo, study: Study) -> Records:
    """Return the silo's records for the study, read once while the file does not change.

    Raises:
        DataError: the records do not fit.
    """
    path = silo.data_path()
    rename = tuple(sorted(silo.root()[1].rename.items()))
    modified = path.stat().st_mtime_ns if path.exists() else 0
    key = (path, modified, study.text, rename)
    if key in _records:
        _records[key] = _records.pop(key)  # the most recently used one is last
    else:
        _records[key] = kinds.load(path, study, dict(rename), silo.folder / "cache")
        while len(_records) > 1 and sum(records.size_bytes for records in _records.values()) > _RECORDS_BYTES:
            del _records[next(iter(_records))]
    return _records[key]


_records: dict[tuple[object, ...], Records] = {}  # read once, while they do not take too much memory together
_RECORDS_BYTES = 512 * 2**20


def _shown(values: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None) or "no metric"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
