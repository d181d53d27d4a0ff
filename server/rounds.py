"""A run's rounds: invite, then select -> ask -> aggregate -> evaluate -> record, then close.

Silos count how well the model does that they receive. So the counts of round t + 1, and those of the end, complete the
line of round t, which speaks of the model after it.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server import cohort, lines
from server.folder import RunFolder
from server.lines import Measured
from server.masking import Masking
from server.witness import Witness
from strategies import wire
from strategies.base import PerSiloStrategy, State, SumStrategy
from strategies.counts import CountLayout
from strategies.errors import ProtocolError, Refusal, RefusalCode, RunError
from strategies.layout import Layout, Vector
from strategies.manifest import CODE_VERSION, Manifest, Member
from strategies.privacy.secret import SecretRandom
from strategies.privacy.silo_level import noised, noised_sum
from strategies.secagg.plan import COUNTS, UPDATE
from strategies.secagg.setup import MOST_SILOS
from strategies.statement import read_statement
from strategies.study import Study

log = logging.getLogger("fedsilo.server")


# Codes that a silo does not take back within a run; after others it is worth asking again.
_LASTING = frozenset({RefusalCode.POLICY, RefusalCode.APPROVAL, RefusalCode.BUDGET, RefusalCode.LEDGER})


class Evaluate(Protocol):
    """The coordinator's own evaluation, on records that it owns; nothing of a silo goes into it."""

    def __call__(self, weights: Vector) -> Measured: ...


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The silos of a run.

    Args:
        manifest: what they agreed on.
        nodes: Flower's node by silo name.
        refusals: refusal code by node that did not join, `silent` for no answer.
        witness: what the coordinator has seen of their ledgers.
        masking: the coordinator's side of secure aggregation; None for a study without.
    """

    manifest: Manifest
    nodes: Mapping[str, int]
    refusals: Mapping[int, str]
    witness: Witness = field(default_factory=Witness)
    masking: Masking | None = None

    def member(self, silo: str) -> Member:
        """Return what was agreed on of a silo."""
        return next(member for member in self.manifest.roster if member.silo == silo)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run as it stands.

    Args:
        state: the global model and the strategy's memory.
        lines: metrics.jsonl so far.
        asked: rounds that each silo was asked to train: an upper bound on what it released.
        received: number of the last release that arrived from each silo: of a round, or of masked counts.
        excluded: refusal code of each silo that refused a round.
        closed: silos that were asked to close, and so to release the counts of the final model.
    """

    state: State
    lines: tuple[dict[str, Any], ...] = ()
    asked: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    closed: tuple[str, ...] = ()


def invite(grid: Grid, study: Study, run: str, layout: Layout, witness: Witness | None = None) -> Roster:
    """Ask every node whether its silo takes part.

    Raises:
        Refusal: fewer silos than the study needs, at least one of them for policy or budget.
        RunError: fewer silos than the study needs, for other reasons.
    """
    limits, witness = study.file.cohort, witness or Witness()
    nodes = cohort.wait_for_nodes(grid, limits.min_silos, limits.round_timeout_s)
    request = wire.Invite(run=run, study=study.digest, code=CODE_VERSION, layout=layout.digest())
    answers = cohort.ask(grid, dict.fromkeys(nodes, request), group="invite", timeout_s=limits.round_timeout_s)
    refusals = {node: reply.code for node, reply in answers.replies.items() if isinstance(reply, wire.Refused)}
    refusals |= dict.fromkeys(answers.silent, "silent")
    accepted: dict[str, tuple[int, Member]] = {}
    for node, reply in answers.replies.items():
        if isinstance(reply, wire.Accept):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", reply.silo):  # it becomes a file's name
                raise ProtocolError(f"a node calls itself silo {reply.silo[:64]!r}; a name has letters, digits and ._-")
            if cohort.enrolled_name(grid, node) not in (None, reply.silo):
                log.warning("a silo of the roster calls itself '%s', which is another's name", reply.silo)
                refusals[node] = RefusalCode.PROTOCOL
                continue
            if reply.silo in accepted:
                raise RunError(f"two nodes call themselves silo '{reply.silo}'; names must be distinct")
            if not (math.isfinite(reply.weight) and reply.weight > 0):
                raise ProtocolError(f"silo '{reply.silo}' declares the weight {reply.weight}; it must be positive")
            try:
                head = witness.welcome(reply.silo, reply.head)
            except ProtocolError as error:
                log.warning("%s", error)
                refusals[node] = RefusalCode.LEDGER if reply.silo in witness.proofs else RefusalCode.PROTOCOL
                continue
            if any(head.head.ledger_id == member.ledger_id for _, member in accepted.values()):
                raise RunError(f"silo '{reply.silo}' keeps the ledger of another silo; each silo has its own")
            member = Member(silo=reply.silo, weight=reply.weight, ledger_id=head.head.ledger_id, ledger_key=head.key)
            accepted[reply.silo] = (node, member)
    members = tuple(accepted[silo][1] for silo in sorted(accepted))
    if len(members) < limits.min_silos:
        _too_few(len(members), limits.min_silos, refusals)
    if study.masked and len(members) > MOST_SILOS:
        raise RunError(
            f"{len(members)} silos joined, and a sum under secure aggregation is over at most {MOST_SILOS}; run the "
            "study over fewer, or without secagg.enabled"
        )
    manifest = Manifest(
        run=run,
        study=study.digest,
        code=CODE_VERSION,
        layout=layout.digest(),
        roster=members,
        coordinator=witness.public,
    )
    nodes_of = {silo: node for silo, (node, _) in accepted.items()}
    return Roster(manifest=manifest, nodes=nodes_of, refusals=refusals, witness=witness)


def _too_few(joined: int, needed: int, refusals: Mapping[int, str]) -> None:
    codes = sorted(refusals.values())
    counts = ", ".join(f"{codes.count(code)} refused: {code}" for code in dict.fromkeys(codes)) or "no other connected"
    sentence = f"{joined} silos joined and cohort.min_silos asks for {needed} ({counts}); each silo's own log says why"
    for code in (RefusalCode.BUDGET, RefusalCode.POLICY, RefusalCode.APPROVAL):
        if code in codes:
            raise Refusal(code, sentence)
    raise RunError(sentence)


def mask(grid: Grid, study: Study, roster: Roster, masking: Masking, progress: Progress) -> tuple[Roster, Progress]:
    """Set up the run's secure aggregation; silos that cannot take part in it are left out of every round.

    Raises:
        RunError: too few can.
    """
    masking.set_up(_Way(grid=grid, study=study, roster=roster, heads="", group="setup").ask)
    return replace(roster, masking=masking), replace(progress, excluded={**progress.excluded, **masking.refused})


def choose(study: Study, roster: Roster, progress: Progress, begun: Collection[str] = ()) -> tuple[list[str], Progress]:
    """Return the next round's cohort, and the progress in which it is charged.

    The charge comes before the request: a round that breaks off may have released what it asked for.

    Args:
        study: the agreed study.
        roster: the silos of the run.
        progress: the run so far.
        begun: silos that were asked for this round before the run broke off; they are charged once, chosen or not.

    Raises:
        RunError: too few silos are left to select from.
    """
    limits = study.file.cohort
    present = [silo for silo in roster.nodes if silo not in progress.excluded]
    if len(present) < limits.min_silos:
        raise RunError(
            f"{len(present)} silos are left and cohort.min_silos asks for {limits.min_silos}; the others "
            f"refused: {', '.join(sorted(set(progress.excluded.values())))}"
        )
    chosen = cohort.select(
        present,
        fraction=limits.fraction,
        least=limits.min_silos,
        seed=study.file.study.seed,
        round=len(progress.lines) + 1,
    )
    asked = {**progress.asked, **{silo: progress.asked.get(silo, 0) + 1 for silo in {*chosen, *begun}}}
    return chosen, replace(progress, asked=asked)


def run_round(
    grid: Grid, study: Study, roster: Roster, chosen: list[str], progress: Progress, evaluate: Evaluate | None
) -> Progress:
    """Run one round; a round with fewer than `min_silos` survivors leaves the model as it was.

    Args:
        grid: Flower's way to the silos.
        study: the agreed study.
        roster: the silos of the run.
        chosen: the cohort, already charged in `progress`.
        progress: the run so far.
        evaluate: the coordinator's own evaluation, if it owns test records.

    Raises:
        RunError: the new model is not finite.
    """
    began = time.monotonic()
    number = len(progress.lines) + 1
    if number > 1:
        _attest(grid, study, roster, chosen, number)
    heads = roster.witness.list_of(roster.manifest, number)
    waiting = set(roster.witness.lacking(chosen)) if number > 1 and len(roster.nodes) > 1 else set()
    if waiting:  # a silo that was asked would refuse, and be out of the run for what its peers did not do
        log.warning("round %d: not asked for want of a peer's receipt: %s", number, ", ".join(sorted(waiting)))
    requests = {
        silo: _train_request(silo, number, heads, study, roster, progress) for silo in chosen if silo not in waiting
    }
    way = _Way(grid=grid, study=study, roster=roster, heads=heads, group=str(number))
    trained = (
        _trained_masked(way, requests, number, progress) if study.masked else _trained(way, requests, number, progress)
    )
    trained_s = time.monotonic() - began
    state = trained.state or progress.state
    line = {
        "round": number,
        **lines.own(evaluate(state.weights) if evaluate else None, study),
        "cohort": len(chosen),
        "dropped": len(chosen) - len(trained.survivors),
        "aggregated": trained.state is not None,
        "epsilon": lines.spent(study, progress.asked),
        "seconds": {"train": round(trained_s, 4), "total": round(time.monotonic() - began, 4)},
    }
    own = evaluate is not None
    before = _completed(study, progress.lines, trained.counts, own=own) if trained.counts else progress.lines
    progress = replace(
        progress,
        state=state,
        lines=(*before, line),
        received={**progress.received, **dict.fromkeys(trained.arrived, number)},
        excluded={**progress.excluded, **trained.refused},
    )
    return _counted(grid, study, roster, progress, chosen, own=own) if study.masked else progress


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What came of asking a cohort to train; without a next state, the model stays."""

    state: State | None
    survivors: Collection[str]
    arrived: Collection[str]
    refused: Mapping[str, str]
    counts: Mapping[str, Vector] = field(default_factory=dict)


def _trained(way: _Way, requests: Mapping[str, wire.Train], number: int, progress: Progress) -> _Trained:
    updates, refused = _sort(way.ask(requests), number, progress.state)
    vectors = {silo: reply.update for silo, reply in updates.items()}
    enough = len(updates) >= way.study.file.cohort.min_silos
    state = _aggregate(way.study, way.roster.manifest, progress.state, vectors) if enough else None
    counts = {silo: reply.counts for silo, reply in updates.items()}
    return _Trained(state=state, survivors=updates, arrived=updates, refused=refused, counts=counts)


def _trained_masked(way: _Way, requests: Mapping[str, wire.Train], number: int, progress: Progress) -> _Trained:
    assert way.roster.masking is not None  # set up before the first round
    summed = way.roster.masking.run(UPDATE, requests, number, way.ask)
    state = None
    if summed.vectors is not None:
        manifest, strategy = way.roster.manifest, way.study.strategy
        assert isinstance(strategy, SumStrategy)  # another one is refused with the study
        total = _opened(way.study, summed.vectors[0])
        weight = sum(manifest.weight_of(silo) for silo in summed.survivors)
        state = _finite(strategy.aggregate(progress.state, total, weight))
    refused = dict(summed.refused)
    if way.study.exact_sums and refused:
        # Sums without noise are over the same silos in the whole run: one that is out for good ends it.
        lasting = {silo: code for silo, code in refused.items() if code in _LASTING}
        if lasting:
            raise RunError(
                f"silo {min(lasting)} refuses ({lasting[min(lasting)]}), and sums without noise are over all silos of "
                "the run or none; ask that silo, or run the study with noise"
            )
        refused = {}
    return _Trained(state=state, survivors=summed.survivors, arrived=way.arrived, refused=refused)


def _counted(
    grid: Grid, study: Study, roster: Roster, progress: Progress, chosen: Collection[str], *, own: bool
) -> Progress:
    """Ask for the masked counts of the newest model, which complete the last line.

    Exact ones are of all silos of the run or not at all: sums over two sets would tell their difference.
    """
    last = progress.lines[-1]
    if not (study.count_events() and last["aggregated"]):
        return progress
    assert roster.masking is not None  # set up before the first round
    silos = sorted(roster.masking.seated if study.release == "masked" else set(chosen) - set(progress.excluded))
    if study.release == "masked" and set(silos) & set(progress.excluded):
        log.warning("no exact counts any more: they are of all silos of the run or none, and one has refused a round")
        return progress
    number = study.number_of_counts(last["round"])
    _attest(grid, study, roster, silos, number)
    heads = roster.witness.list_of(roster.manifest, number)
    way = _Way(grid=grid, study=study, roster=roster, heads=heads, group=f"count {last['round']}")
    requests = {
        silo: wire.Count(
            manifest=roster.manifest.to_json(),
            number=number,
            received=progress.received.get(silo, 0),
            heads=heads,
            receipts=roster.witness.receipts_of(roster.member(silo), heads),
            weights=progress.state.weights,
            sum=wire.blob(b""),
        )
        for silo in silos
    }
    if len(requests) < study.file.cohort.min_silos:
        return progress
    summed = roster.masking.run(COUNTS, requests, number, way.ask)
    done = progress.lines
    if summed.vectors is not None:
        done = lines.counted(study, done, summed.vectors[0], len(summed.survivors), own=own)
    return replace(
        progress,
        lines=done,
        received={**progress.received, **dict.fromkeys(way.arrived, number)},
    )


def _completed(
    study: Study, done: tuple[dict[str, Any], ...], counts: Mapping[str, Vector], *, own: bool
) -> tuple[dict[str, Any], ...]:
    """Return the lines with the metrics of the silos' counts; what is no vector of the study's length is left out."""
    if not (done and study.closing_events()):
        return done
    size = CountLayout.of(study).size
    sound = [v for v in counts.values() if v.shape == (size,) and np.isfinite(v).all()]
    if len(sound) < len(counts):
        log.warning(
            "the metric counts of %d silos are not finite vectors of the study's length", len(counts) - len(sound)
        )
    if not sound:
        return done
    return lines.counted(study, done, np.stack(sound).sum(axis=0, dtype=np.float64), len(sound), own=own)


@dataclass(frozen=True, kw_only=True)
class _Way:
    """The way to the silos of one round: requests by silo in, replies by silo out, the heads in them kept.

    Args:
        grid: Flower's.
        study: the agreed study.
        roster: the silos of the run.
        heads: the list that they are sent.
        group: of Flower's messages.
        arrived: silos that have sent an update or counts, filled while they are asked.
    """

    grid: Grid
    study: Study
    roster: Roster
    heads: str
    group: str
    arrived: set[str] = field(default_factory=set)

    def ask(self, requests: Mapping[str, wire.Instruction]) -> dict[str, wire.Reply]:
        """Ask silos and return what came back from them in time and holds."""
        nodes = self.roster.nodes
        silo_of = {nodes[silo]: silo for silo in requests}
        timeout_s = self.study.file.cohort.round_timeout_s
        by_node = {nodes[silo]: request for silo, request in requests.items()}
        answers = cohort.ask(self.grid, by_node, group=self.group, timeout_s=timeout_s)
        heard = _heard(answers, silo_of, self.roster, self.heads)
        replies = {silo_of[node]: reply for node, reply in sorted(heard.replies.items())}
        self.arrived.update(
            s for s, r in replies.items() if isinstance(r, wire.Update | wire.MaskedUpdate | wire.MaskedCounts)
        )
        return replies


def _attest(grid: Grid, study: Study, roster: Roster, chosen: Collection[str], number: int) -> None:
    """Ask all silos to countersign the last heads, where one of `chosen` would lack a peer's receipt.

    Replies to training bring them by themselves; only where those of all peers were lost is this asked for.
    """
    if len(roster.nodes) == 1 or not roster.witness.lacking(chosen):
        return
    heads = roster.witness.list_of(roster.manifest, number)
    request = wire.Attest(manifest=roster.manifest.to_json(), heads=heads)
    silo_of = {node: silo for silo, node in roster.nodes.items()}
    timeout_s = study.file.cohort.round_timeout_s
    answers = cohort.ask(grid, dict.fromkeys(silo_of, request), group=f"attest {number}", timeout_s=timeout_s)
    attested = {node: reply for node, reply in answers.replies.items() if isinstance(reply, wire.Attested)}
    _heard(replace(answers, replies=attested), silo_of, roster, heads)


def _heard(answers: cohort.Answers, silo_of: Mapping[int, str], roster: Roster, heads: str) -> cohort.Answers:
    """Keep the heads of all replies; return the answers without those whose head does not hold.

    A reply that proves two ledgers under one name counts as a refusal of the silo's ledger.
    """
    sound: dict[int, wire.Reply] = {}
    for node, reply in sorted(answers.replies.items()):
        silo = silo_of[node]
        if isinstance(reply, wire.Refused):
            sound[node] = reply
        elif isinstance(reply, wire.Keyed | wire.Share):
            if reply.silo == silo:
                sound[node] = reply
        elif not isinstance(reply, wire.Accept) and reply.silo == silo:
            try:
                honest = roster.witness.hear(roster.member(silo), reply.head, reply.countersigned, heads)
                sound[node] = reply if honest else wire.Refused(code=RefusalCode.LEDGER)
            except ProtocolError as error:
                log.warning("%s", error)
    return replace(answers, replies=sound)


def _train_request(silo: str, number: int, heads: str, study: Study, roster: Roster, progress: Progress) -> wire.Train:
    broadcast = {name: np.asarray(vector) for name, vector in study.strategy.down(progress.state).items()}
    return wire.Train(
        manifest=roster.manifest.to_json(),
        round=number,
        received=progress.received.get(silo, 0),
        heads=heads,
        receipts=roster.witness.receipts_of(roster.member(silo), heads),
        weights=progress.state.weights,
        broadcast=broadcast,
    )


def _sort(
    replies: Mapping[str, wire.Reply], number: int, state: State
) -> tuple[dict[str, wire.Update], dict[str, str]]:
    """Return the sound updates and the refusals, by silo; anything else counts as dropped."""
    updates: dict[str, wire.Update] = {}
    refused: dict[str, str] = {}
    for silo, reply in replies.items():
        if isinstance(reply, wire.Refused):
            refused[silo] = reply.code
            log.warning("round %d: silo %s refused (%s)", number, silo, reply.code)
        elif isinstance(reply, wire.Update) and reply.round == number:
            if reply.update.shape == state.weights.shape and np.isfinite(reply.update).all():
                updates[silo] = reply
            else:
                log.warning(
                    "round %d: the update of silo %s is not a finite vector of the model's length", number, silo
                )
    return updates, refused


def _aggregate(study: Study, manifest: Manifest, state: State, updates: Mapping[str, Vector]) -> State:
    strategy = study.strategy
    weights = {silo: manifest.weight_of(silo) for silo in updates}
    if isinstance(strategy, SumStrategy):
        after = strategy.aggregate(state, _total(study, updates), sum(weights.values()))
    elif isinstance(strategy, PerSiloStrategy):
        plain = {silo: update / np.float32(weights[silo]) for silo, update in updates.items()}
        after = strategy.aggregate_each(state, plain, weights)
    else:
        raise RunError(f"strategy {study.file.strategy.name} is neither a SumStrategy nor a PerSiloStrategy")
    return _finite(after)


def _finite(after: State) -> State:
    if not np.isfinite(after.weights).all():
        raise RunError("the aggregated model holds values that are not finite; lower the learning rates of the study")
    return replace(after, weights=after.weights.astype(np.float32))


def _opened(study: Study, total: NDArray[np.float64]) -> Vector:
    """Return a sum that was under masks; where the server makes the privacy, noised before anything else.

    Each part is in its ball by what the silo's own code does: the server cannot look.
    """
    privacy = study.file.privacy
    if privacy.mechanism != "central-gaussian":
        return np.asarray(total, dtype=np.float32)
    return noised(total, clip_norm=privacy.clip_norm, noise_multiplier=study.noise_multiplier, random=SecretRandom())


def _total(study: Study, updates: Mapping[str, Vector]) -> Vector:
    """Return the sum of the updates; where the server makes the privacy, noised before anything else."""
    if study.file.privacy.mechanism == "central-gaussian":
        return noised_sum(updates.values(), study)
    ordered = [updates[silo] for silo in sorted(updates)]
    total = np.zeros_like(ordered[0])
    for update in ordered:
        total += update
    return total


def charge_closing(study: Study, roster: Roster, progress: Progress) -> Progress:
    """Return the progress in which the end of the run is charged, before it is asked for."""
    return replace(progress, closed=tuple(sorted(roster.nodes)) if study.closing_events() else ())


def close(
    grid: Grid, study: Study, roster: Roster, progress: Progress, folder: RunFolder, *, own: bool
) -> tuple[dict[str, Any], Progress]:
    """Tell the silos that the run is over; return and keep what each states of it, and the progress with its counts.

    Args:
        grid: Flower's way to the silos.
        study: the agreed study.
        roster: the silos of the run.
        progress: the run, with its closing charged.
        folder: where the statements go.
        own: whether the coordinator has metrics of its own.
    """
    last = study.file.study.rounds + 1
    _attest(grid, study, roster, roster.nodes, last)
    heads = roster.witness.list_of(roster.manifest, last)
    requests = {
        node: wire.Close(
            manifest=roster.manifest.to_json(),
            received=progress.received.get(silo, 0),
            heads=heads,
            receipts=roster.witness.receipts_of(roster.member(silo), heads),
            weights=progress.state.weights,
            record=roster.masking.record_for(silo) if roster.masking else wire.blob(b""),
        )
        for silo, node in roster.nodes.items()
    }
    answers = cohort.ask(grid, requests, group="close", timeout_s=study.file.cohort.round_timeout_s)
    answers = _heard(answers, {node: silo for silo, node in roster.nodes.items()}, roster, heads)
    statements: dict[str, Any] = {}
    counts: dict[str, Vector] = {}
    for silo, node in sorted(roster.nodes.items()):
        reply = answers.replies.get(node)
        if isinstance(reply, wire.Farewell) and reply.silo == silo:
            if reply.counts.size:
                counts[silo] = reply.counts
            try:
                signed = read_statement(reply.statement)
            except ProtocolError as error:
                log.warning("silo %s: %s", silo, error)
                continue
            stated = signed.statement
            if (stated.silo, stated.run, stated.manifest) == (silo, roster.manifest.run, roster.manifest.digest()):
                statements[silo] = stated.facts()
                folder.record_statement(silo, reply.statement, reply.ledger)
    done = _completed(study, progress.lines, counts, own=own)
    if done and progress.closed:
        done = (*done[:-1], {**done[-1], "epsilon": lines.spent(study, progress.asked, progress.closed)})
    return statements, replace(progress, lines=done)
