"""One local round, read top to bottom: prepare -> train -> finish.

`prepare` answers every question that may refuse the round (is this the agreed run, would the budget fit), and makes
the reservation durable before a record is read. `train` takes jobs, one from the client app, many from an engine that
owns the loop. `finish` makes the reply durable, then the release, and only then hands the reply out.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from client import masking
from client.approval import admit
from client.data import kinds
from client.data.records import Records
from client.enrolment import require_enrolled, require_known
from client.ledger import Ledger
from client.models.base import MODELS, Shape, build, layout_of, load_weights
from client.outcome import Told, keep_given, require_true
from client.silo import Silo
from client.training.device import device_of, prepared
from client.training.evaluation import evaluate
from client.training.local import Plan
from client.training.local import train as train_locally
from client.witness import countersign, read_evidence, require_newest
from strategies import wire
from strategies.base import Aux, Contribution
from strategies.counts import CountLayout
from strategies.errors import ProtocolError, Refusal, RefusalCode, RunError
from strategies.layout import Layout, Vector
from strategies.manifest import CODE_VERSION, Manifest
from strategies.privacy.silo_level import released
from strategies.secagg.claims import Claim
from strategies.secagg.plan import UPDATE
from strategies.secagg.rows import Change
from strategies.spec import Registries
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
        claim: of the sum that the update goes into; None without secure aggregation.
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
    claim: Claim | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What training made of a job.

    Args:
        contribution: the strategy's update.
        counts: noisy metric counts of the model that the silo received; empty when the round releases none.
    """

    contribution: Contribution
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


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


def prepare(request: wire.Train, study: Study, silo: Silo) -> Job | wire.Update | wire.MaskedUpdate:
    """Admit a round and reserve its worst case; return the stored reply when the round was trained before.

    Raises:
        Refusal, ProtocolError, DataError: the round is not trained; policy and approval hold without an invitation too.
    """
    manifest = agreed(request.manifest, study, silo)
    if not 1 <= request.round <= study.file.study.rounds:
        raise ProtocolError(f"round {request.round} is not in the study's 1 to {study.file.study.rounds}")
    if not 0 <= request.used < request.round:
        raise ProtocolError(f"a round before {request.round} is gone on from, and round {request.used} is none")
    layout = model_layout(study)
    weights = layout.check(request.weights, "the model")
    broadcast = {name: layout.check(vector, name) for name, vector in request.broadcast.items()}
    evidence = read_evidence(request.heads, request.receipts, manifest, request.round)
    state = silo.state(manifest.run)
    root = silo.root()[0]
    told = Told(text=request.outcome, round=request.round - 1, weights=weights, received=request.received)
    with silo.ledger() as ledger:
        require_newest(evidence, manifest, silo, ledger, request.received, study)
        require_true(told, manifest, silo, ledger, study)
        if request.received:
            ledger.commit(run=manifest.run, round=request.received)
        claim = None
        if study.masked:
            session = masking.session_of(silo, study, manifest, layout.size, ledger)
            claim = masking.claim(session, UPDATE, request, manifest, ledger)
        stored = stored_reply(silo, ledger, manifest.run, request.round)
        if claim is not None and claim.resend:
            return masking.same_again(claim, stored, wire.MaskedUpdate)
        if stored is not None and claim is None:
            return wire.unpack(stored, (wire.Update,))
        ledger.policy(silo.policy.sha256)
        ledger.reserve(
            data_root=root,
            run=manifest.run,
            round=request.round,
            events=study.update_events() if study.masked else study.round_events(),
            manifest=manifest.digest(),
            receipts=evidence.receipts,
            changes=claim.changes if claim else (),
        )
        head = ledger.head().to_bytes().decode()
        countersigned = countersign(evidence.list, evidence.text, manifest, silo, ledger)
    keep_given(silo, manifest.run, request.round, weights)
    home = {name: torch.from_numpy(array) for name, array in state.home(request.used).items()}
    if request.used and study.strategy.keeps_home and not home:
        silo.log(logging.ERROR, f"what the strategy kept of round {request.used} is lost here; it begins anew")
    aux = Aux(
        broadcast={name: torch.from_numpy(np.array(v)) for name, v in broadcast.items()},
        home=home,
        lr_sum=study.file.training.steps * study.optimizer.lr,
    )
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
        claim=claim,
    )


def train(jobs: Sequence[Job]) -> list[Result]:
    """Train every job from the weights that it received, after evaluating these on the silo's held-out records."""
    return [_train_one(job) for job in jobs]


def _train_one(job: Job) -> Result:
    study, shape = job.study, Shape.of_study(job.study)
    settings, plan = job.silo.settings, plan_of(study, job.silo.name, job.round)
    device = device_of(settings.device, settings.memory_fraction)
    module = build(study.model, shape, study.file.study.seed).to(device)
    load_weights(module, job.weights)
    job.silo.log(logging.INFO, f"run {job.manifest.run[:8]} round {job.round}: trains {prepared(device)}")
    seen = evaluate(module, job.records.held_out, shape, study, counted=not study.masked)
    sentence = f"run {job.manifest.run[:8]} round {job.round}: model received has {shown(seen.metrics)}"
    job.silo.log(logging.INFO, sentence)
    try:
        after = train_locally(module, job.records.train, shape, plan, study.strategy, job.aux)
    except RunError as error:
        if not study.silo_level:  # there the training itself is private, and so is that it failed
            raise
        job.silo.log(logging.WARNING, f"run {job.manifest.run[:8]} round {job.round}: counts as no update: {error}")
        after = job.weights
    if study.masked and not study.silo_level:  # before the strategy looks: what it keeps here is what is sent
        after, cut = masking.within_reach(job.weights, after, job.manifest.weight_of(job.silo.name))
        if cut:
            job.silo.log(logging.WARNING, f"{cut} entries of the update are cut to what a masked sum can hold")
    before, moved = (torch.from_numpy(np.require(vector, requirements="W")) for vector in (job.weights, after))
    contribution = study.strategy.update(before, moved, job.aux)
    if study.silo_level:
        contribution = replace(contribution, update=released(np.asarray(contribution.update), study))
    return Result(contribution=contribution, counts=seen.counts)


def finish(job: Job, result: Result) -> wire.Update | wire.MaskedUpdate:
    """Make the round's reply durable and its release recorded; return the reply.

    Raises:
        ProtocolError: the update is not a finite vector of the model's layout.
    """
    weight = job.manifest.weight_of(job.silo.name)
    vector = np.asarray(result.contribution.update, dtype=np.float32) * np.float32(weight)
    vector = model_layout(job.study).check(vector, "the update")
    if result.contribution.home is not None:
        home = {name: np.asarray(array) for name, array in result.contribution.home.items()}
        job.silo.state(job.manifest.run).keep_home(job.round, home)
    if job.claim is not None:
        return _masked(job, job.claim, vector)
    reply = wire.Update(
        silo=job.silo.name,
        round=job.round,
        head=job.head,
        countersigned=job.countersigned,
        update=vector,
        counts=sound_counts(result.counts, job.study).astype(np.float32),
    )
    release(job.silo, job.manifest.run, job.round, reply)
    return reply


def _masked(job: Job, claim: Claim, vector: Vector) -> wire.MaskedUpdate:
    def cut(_: str, count: int) -> None:
        job.silo.log(logging.WARNING, f"{count} entries of the update are cut to what a masked sum can hold")

    with job.silo.ledger() as ledger:
        session = masking.session_of(job.silo, job.study, job.manifest, len(vector), ledger)
        noise = masking.noise_of(job.study, job.manifest, len(vector), claim)
        step = session.mask(claim, [vector], on_clamp=cut, noise=noise)
    reply = wire.MaskedUpdate(
        silo=job.silo.name,
        round=job.round,
        head=job.head,
        countersigned=job.countersigned,
        upload=wire.blob(step.reply),
    )
    release(job.silo, job.manifest.run, job.round, reply, step.changes)
    return reply


def sound_counts(counts: NDArray[np.float64], study: Study) -> NDArray[np.float64]:
    """Return metric counts of the study's length.

    Raises:
        ProtocolError: they have another.
    """
    length = CountLayout.of(study).size if study.count_events() else 0
    if counts.shape != (length,):
        raise ProtocolError(f"the metric counts have shape {counts.shape}, the study asks for ({length},)")
    return counts


def stored_reply(silo: Silo, ledger: Ledger, run: str, round: int) -> bytes | None:
    """Return the reply of a round that was released before; only those very bytes may leave again."""
    stored, released = silo.state(run).reply(round), ledger.entry(run=run, round=round, kind="release")
    known = stored and released and released.body["sha256"] == hashlib.sha256(stored).hexdigest()
    return stored if known else None


def release(silo: Silo, run: str, round: int, reply: wire.Reply, changes: Sequence[Change] = ()) -> None:
    """Make a reply durable, then the record that it leaves."""
    payload = wire.pack(reply)
    silo.state(run).keep_reply(round, payload)
    digest = hashlib.sha256(payload).hexdigest()
    with silo.ledger() as ledger:
        ledger.release(data_root=silo.root()[0], run=run, round=round, sha256=digest, changes=changes)


# --- shared -------------------------------------------------------------------------------------------------


def agreed(text: str, study: Study, silo: Silo) -> Manifest:
    """Return the manifest of a request, which is the one that this run began with.

    Raises:
        Refusal, ProtocolError: policy or approval do not hold, or it is another one.
    """
    admit(silo, study)  # with every request: a server need not have asked whether this silo takes part
    manifest = Manifest.from_json(text)
    manifest.weight_of(silo.name)
    if manifest.study != study.digest:
        raise ProtocolError("the manifest cites another study than the one that came with the run")
    require_enrolled(manifest, silo.folder)
    require_known(manifest, study, silo)
    _require_weights(manifest, study, silo)
    if not silo.state(manifest.run).agree(text):
        raise ProtocolError("the manifest is not the one that this run began with")
    return manifest


def _require_weights(manifest: Manifest, study: Study, silo: Silo) -> None:
    """Raise unless the weights are those of the study, or this silo's is its own: a server may not choose them."""
    if study.file.strategy.weights == "uniform":
        if any(member.weight != 1.0 for member in manifest.roster):
            raise ProtocolError("the study weighs all silos alike, and the run's manifest does not")
    elif manifest.weight_of(silo.name) != silo.settings.weight:
        raise ProtocolError("the run's manifest gives this silo another weight than it declares")


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


def shown(values: dict[str, float | None]) -> str:
    """Return metrics as a log line has them."""
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None) or "no metric"
