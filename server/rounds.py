"""A run's rounds: invite, then select -> ask -> aggregate -> evaluate -> record, then close."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from flwr.serverapp import Grid

from server import cohort
from server.folder import RunFolder
from strategies import wire
from strategies.base import PerSiloStrategy, State, SumStrategy
from strategies.errors import ProtocolError, Refusal, RefusalCode, RunError
from strategies.layout import Layout, Vector
from strategies.manifest import CODE_VERSION, Manifest, Member
from strategies.privacy.accountant import epsilon
from strategies.statement import Statement
from strategies.study import Study

log = logging.getLogger("fedsilo.server")


class Evaluate(Protocol):
    """The coordinator's own evaluation, on records that it owns; nothing of a silo goes into it."""

    def __call__(self, weights: Vector) -> Mapping[str, float | None]: ...


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The silos of a run.

    Args:
        manifest: what they agreed on.
        nodes: Flower's node by silo name.
        refusals: refusal code by node that did not join, `silent` for no answer.
    """

    manifest: Manifest
    nodes: Mapping[str, int]
    refusals: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run as it stands.

    Args:
        state: the global model and the strategy's memory.
        lines: metrics.jsonl so far.
        asked: rounds that each silo was asked to train: an upper bound on what it released.
        received: last round whose update from each silo arrived.
        excluded: refusal code of each silo that refused a round.
    """

    state: State
    lines: tuple[dict[str, Any], ...] = ()
    asked: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)


def invite(grid: Grid, study: Study, run: str, layout: Layout) -> Roster:
    """Ask every node whether its silo takes part.

    Raises:
        Refusal: fewer silos than the study needs, at least one of them for policy or budget.
        RunError: fewer silos than the study needs, for other reasons.
    """
    limits = study.file.cohort
    nodes = cohort.wait_for_nodes(grid, limits.min_silos, limits.round_timeout_s)
    request = wire.Invite(run=run, study=study.digest, code=CODE_VERSION, layout=layout.digest())
    answers = cohort.ask(grid, dict.fromkeys(nodes, request), group="invite", timeout_s=limits.round_timeout_s)
    refusals = {node: reply.code for node, reply in answers.replies.items() if isinstance(reply, wire.Refused)}
    refusals |= dict.fromkeys(answers.silent, "silent")
    accepted: dict[str, tuple[int, float]] = {}
    for node, reply in answers.replies.items():
        if isinstance(reply, wire.Accept):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", reply.silo):  # it becomes a file's name
                raise ProtocolError(f"a node calls itself silo {reply.silo[:64]!r}; a name has letters, digits and ._-")
            if reply.silo in accepted:
                raise RunError(f"two nodes call themselves silo '{reply.silo}'; names must be distinct")
            if not (math.isfinite(reply.weight) and reply.weight > 0):
                raise ProtocolError(f"silo '{reply.silo}' declares the weight {reply.weight}; it must be positive")
            accepted[reply.silo] = (node, reply.weight)
    members = tuple(Member(silo=silo, weight=accepted[silo][1]) for silo in sorted(accepted))
    if len(members) < limits.min_silos:
        _too_few(len(members), limits.min_silos, refusals)
    manifest = Manifest(run=run, study=study.digest, code=CODE_VERSION, layout=layout.digest(), roster=members)
    return Roster(manifest=manifest, nodes={silo: node for silo, (node, _) in accepted.items()}, refusals=refusals)


def _too_few(joined: int, needed: int, refusals: Mapping[int, str]) -> None:
    codes = sorted(refusals.values())
    counts = ", ".join(f"{codes.count(code)} refused: {code}" for code in dict.fromkeys(codes)) or "no other connected"
    sentence = f"{joined} silos joined and cohort.min_silos asks for {needed} ({counts}); each silo's own log says why"
    for code in (RefusalCode.BUDGET, RefusalCode.POLICY, RefusalCode.APPROVAL):
        if code in codes:
            raise Refusal(code, sentence)
    raise RunError(sentence)


def choose(study: Study, roster: Roster, progress: Progress) -> tuple[list[str], Progress]:
    """Return the next round's cohort, and the progress in which it is charged.

    The charge comes before the request: a round that breaks off may have released what it asked for.

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
    asked = {**progress.asked, **{silo: progress.asked.get(silo, 0) + 1 for silo in chosen}}
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
    limits = study.file.cohort
    requests = {roster.nodes[silo]: _train_request(silo, number, study, roster, progress) for silo in chosen}
    answers = cohort.ask(grid, requests, group=str(number), timeout_s=limits.round_timeout_s)
    updates, refused = _sort(answers, {roster.nodes[silo]: silo for silo in chosen}, number, progress.state)
    trained_s = time.monotonic() - began
    enough = len(updates) >= limits.min_silos
    state = _aggregate(study, roster.manifest, progress.state, updates) if enough else progress.state
    seen = dict(evaluate(state.weights)) if evaluate else {}
    loss = seen.pop("loss", None)
    line = {
        "round": number,
        "metrics": seen,
        "loss": loss,
        "cohort": len(chosen),
        "dropped": len(chosen) - len(updates),
        "aggregated": enough,
        "epsilon": spent(study, progress.asked),
        "seconds": {"train": round(trained_s, 4), "total": round(time.monotonic() - began, 4)},
    }
    return replace(
        progress,
        state=state,
        lines=(*progress.lines, line),
        received={**progress.received, **dict.fromkeys(updates, number)},
        excluded={**progress.excluded, **refused},
    )


def _train_request(silo: str, number: int, study: Study, roster: Roster, progress: Progress) -> wire.Train:
    broadcast = {name: np.asarray(vector) for name, vector in study.strategy.down(progress.state).items()}
    return wire.Train(
        manifest=roster.manifest.to_json(),
        round=number,
        received=progress.received.get(silo, 0),
        weights=progress.state.weights,
        broadcast=broadcast,
    )


def _sort(
    answers: cohort.Answers, silo_of: Mapping[int, str], number: int, state: State
) -> tuple[dict[str, Vector], dict[str, str]]:
    """Return the sound updates and the refusals, by silo; anything else counts as dropped."""
    updates: dict[str, Vector] = {}
    refused: dict[str, str] = {}
    for node, reply in sorted(answers.replies.items()):
        silo = silo_of[node]
        if isinstance(reply, wire.Refused):
            refused[silo] = reply.code
            log.warning("round %d: silo %s refused (%s)", number, silo, reply.code)
        elif isinstance(reply, wire.Update) and reply.silo == silo and reply.round == number:
            if reply.update.shape == state.weights.shape and np.isfinite(reply.update).all():
                updates[silo] = reply.update
            else:
                log.warning(
                    "round %d: the update of silo %s is not a finite vector of the model's length", number, silo
                )
    return updates, refused


def _aggregate(study: Study, manifest: Manifest, state: State, updates: Mapping[str, Vector]) -> State:
    strategy = study.strategy
    weights = {silo: manifest.weight_of(silo) for silo in updates}
    if isinstance(strategy, SumStrategy):
        total = np.zeros_like(state.weights)
        for silo in sorted(updates):
            total += updates[silo]
        after = strategy.aggregate(state, total, sum(weights.values()))
    elif isinstance(strategy, PerSiloStrategy):
        plain = {silo: update / np.float32(weights[silo]) for silo, update in updates.items()}
        after = strategy.aggregate_each(state, plain, weights)
    else:
        raise RunError(f"strategy {study.file.strategy.name} is neither a SumStrategy nor a PerSiloStrategy")
    if not np.isfinite(after.weights).all():
        raise RunError("the aggregated model holds values that are not finite; lower the learning rates of the study")
    return replace(after, weights=after.weights.astype(np.float32))


def spent(study: Study, asked: Mapping[str, int]) -> dict[str, float | None]:
    """Return each silo's epsilon after the rounds that it was asked to train; None without protection."""
    privacy = study.file.privacy
    costs = {
        rounds: epsilon(study.round_events() * rounds, privacy.delta, accountant=privacy.accountant)
        for rounds in set(asked.values())
    }
    return {silo: costs[rounds] if math.isfinite(costs[rounds]) else None for silo, rounds in sorted(asked.items())}


def close(grid: Grid, study: Study, roster: Roster, progress: Progress, folder: RunFolder) -> dict[str, Any]:
    """Tell the silos that the run is over; return and keep what each states of it."""
    requests = {
        node: wire.Close(
            manifest=roster.manifest.to_json(), received=progress.received.get(silo, 0), weights=progress.state.weights
        )
        for silo, node in roster.nodes.items()
    }
    answers = cohort.ask(grid, requests, group="close", timeout_s=study.file.cohort.round_timeout_s)
    statements: dict[str, Any] = {}
    for silo, node in sorted(roster.nodes.items()):
        reply = answers.replies.get(node)
        if isinstance(reply, wire.Farewell) and reply.silo == silo:
            try:
                statement = Statement.from_json(reply.statement)
            except ProtocolError as error:
                log.warning("silo %s: %s", silo, error)
                continue
            if (statement.silo, statement.run, statement.study) == (silo, roster.manifest.run, study.digest):
                statements[silo] = asdict(statement)
                folder.record_statement(silo, statement)
    return statements
