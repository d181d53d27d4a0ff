"""A run's rounds: select -> ask -> aggregate -> evaluate -> record, then close.

Silos count how well the model does that they receive. So the counts of round t + 1, and those of the end, complete the
line of round t, which speaks of the model after it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from flwr.serverapp import Grid

from server import cohort, lines
from server.aggregation import aggregate, from_sum, opened
from server.folder import RunFolder
from server.lines import Measured
from server.masking import Masking
from server.silos import Roster, Way, attest, heard
from strategies import wire
from strategies.base import State, SumStrategy
from strategies.counts import CountLayout
from strategies.errors import ProtocolError, RefusalCode, RunError
from strategies.layout import Vector
from strategies.proof.entries import ZERO
from strategies.proof.outcomes import Outcome, model_hash
from strategies.secagg.plan import COUNTS, UPDATE
from strategies.statement import read_statement
from strategies.study import Study

log = logging.getLogger("fedsilo.server")


# Codes that a silo does not take back within a run; after others it is worth asking again.
_LASTING = frozenset({RefusalCode.POLICY, RefusalCode.APPROVAL, RefusalCode.BUDGET, RefusalCode.LEDGER})


class Evaluate(Protocol):
    """The coordinator's own evaluation, on records that it owns; nothing of a silo goes into it."""

    def __call__(self, weights: Vector) -> Measured: ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run as it stands.

    Args:
        state: the global model and the strategy's memory.
        lines: metrics.jsonl so far.
        asked: rounds that each silo was asked to train: an upper bound on what it released.
        received: number of the last release that arrived from each silo: of a round, or of masked counts.
        used: number of the last round whose model holds each silo's update.
        excluded: refusal code of each silo that refused a round.
        closed: silos that were asked to close, and so to release the counts of the final model.
        outcome: the signed record of the last round; empty before the first.
    """

    state: State
    lines: tuple[dict[str, Any], ...] = ()
    asked: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    closed: tuple[str, ...] = ()
    outcome: str = ""

    def after(self, state: State, roster: Roster, arrived: Mapping[str, str], used: Collection[str]) -> Progress:
        """Return the progress with the state after one more round, and the signed record of it.

        Args:
            state: with the new model, or with the one of before where the round came to nothing.
            roster: the silos of the run.
            arrived: SHA-256 of each answer that arrived, by silo.
            used: silos whose answers are in the new model.
        """
        said = Outcome(
            run=roster.manifest.run,
            manifest=roster.manifest.digest(),
            round=len(self.lines) + 1,
            prev=hashlib.sha256(self.outcome.encode()).hexdigest() if self.outcome else ZERO,
            before=model_hash(self.state.weights),
            after=model_hash(state.weights),
            arrived=dict(arrived),
            used=tuple(sorted(used)),
        )
        return replace(self, state=state, outcome=roster.witness.outcome(said))


def mask(grid: Grid, study: Study, roster: Roster, masking: Masking, progress: Progress) -> tuple[Roster, Progress]:
    """Set up the run's secure aggregation; silos that cannot take part in it are left out of every round.

    Raises:
        RunError: too few can.
    """
    masking.set_up(Way(grid=grid, study=study, roster=roster, heads="", group="setup").ask)
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
        attest(grid, study, roster, chosen, number)
    heads = roster.witness.list_of(roster.manifest, number)
    waiting = set(roster.witness.lacking(chosen)) if number > 1 and len(roster.nodes) > 1 else set()
    if waiting:  # a silo that was asked would refuse, and be out of the run for what its peers did not do
        log.warning("round %d: not asked for want of a peer's receipt: %s", number, ", ".join(sorted(waiting)))
    requests = {
        silo: _train_request(silo, number, heads, study, roster, progress) for silo in chosen if silo not in waiting
    }
    way = Way(grid=grid, study=study, roster=roster, heads=heads, group=str(number))
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
    used = trained.survivors if trained.state else ()
    progress = progress.after(state, roster, trained.arrived, used)
    progress = replace(
        progress,
        lines=(*before, line),
        received={**progress.received, **dict.fromkeys(trained.arrived, number)},
        used={**progress.used, **dict.fromkeys(used, number)},
        excluded={**progress.excluded, **trained.refused},
    )
    return _counted(grid, study, roster, progress, chosen, own=own) if study.masked else progress


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What came of asking a cohort to train; without a next state, the model stays."""

    state: State | None
    survivors: Collection[str]
    arrived: Mapping[str, str]
    refused: Mapping[str, str]
    counts: Mapping[str, Vector] = field(default_factory=dict)


def _trained(way: Way, requests: Mapping[str, wire.Train], number: int, progress: Progress) -> _Trained:
    updates, refused = _sort(way.ask(requests), number, progress.state)
    vectors = {silo: reply.update for silo, reply in updates.items()}
    enough = len(updates) >= way.study.file.cohort.min_silos
    state = aggregate(way.study, way.roster.manifest, progress.state, vectors) if enough else None
    counts = {silo: reply.counts for silo, reply in updates.items()}
    arrived = {silo: way.arrived[silo] for silo in updates}
    return _Trained(state=state, survivors=updates, arrived=arrived, refused=refused, counts=counts)


def _trained_masked(way: Way, requests: Mapping[str, wire.Train], number: int, progress: Progress) -> _Trained:
    assert way.roster.masking is not None  # set up before the first round
    summed = way.roster.masking.run(UPDATE, requests, number, way.ask)
    state = None
    if summed.vectors is not None:
        manifest, strategy = way.roster.manifest, way.study.strategy
        assert isinstance(strategy, SumStrategy)  # another one is refused with the study
        total = opened(way.study, summed.vectors[0])
        state = from_sum(strategy, manifest, progress.state, total, summed.survivors)
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
    attest(grid, study, roster, silos, number)
    heads = roster.witness.list_of(roster.manifest, number)
    way = Way(grid=grid, study=study, roster=roster, heads=heads, group=f"count {last['round']}")
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
        outcome=progress.outcome,
        used=progress.used.get(silo, 0),
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
    last = study.last_release
    attest(grid, study, roster, roster.nodes, last)
    heads = roster.witness.list_of(roster.manifest, last)
    requests = {
        node: wire.Close(
            manifest=roster.manifest.to_json(),
            received=progress.received.get(silo, 0),
            heads=heads,
            receipts=roster.witness.receipts_of(roster.member(silo), heads),
            weights=progress.state.weights,
            record=roster.masking.record_for(silo) if roster.masking else wire.blob(b""),
            outcome=progress.outcome,
        )
        for silo, node in roster.nodes.items()
    }
    answers = cohort.ask(grid, requests, group="close", timeout_s=study.file.cohort.round_timeout_s)
    answers = heard(answers, {node: silo for silo, node in roster.nodes.items()}, roster, heads)
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
