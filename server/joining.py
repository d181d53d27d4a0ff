"""Who takes part in a run: every node is asked, and the silos that accept become the roster that all agree on."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping

from flwr.serverapp import Grid

from server import cohort
from server.silos import Roster
from server.witness import Witness
from strategies import wire
from strategies.errors import ProtocolError, Refusal, RefusalCode, RunError
from strategies.layout import Layout
from strategies.manifest import CODE_VERSION, Manifest, Member
from strategies.secagg.setup import MOST_SILOS
from strategies.study import Study

log = logging.getLogger("fedsilo.server")


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
    accepted, refusals = _accepted(grid, answers.replies, witness)
    refusals |= dict.fromkeys(answers.silent, "silent")
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


def _accepted(
    grid: Grid, replies: Mapping[int, wire.Reply], witness: Witness
) -> tuple[dict[str, tuple[int, Member]], dict[int, str]]:
    """Return node and membership of each silo that takes part, and the codes of those that do not.

    Nodes that show one ledger cannot all be its silo: none of them takes part, and the others go on.
    """
    refusals = {node: str(reply.code) for node, reply in replies.items() if isinstance(reply, wire.Refused)}
    accepted: dict[str, tuple[int, Member]] = {}
    shown: dict[str, list[int]] = {}  # nodes by ledger
    for node, reply in replies.items():
        if not isinstance(reply, wire.Accept):
            continue
        if cohort.enrolled_name(grid, node) not in (None, reply.silo):
            log.warning("a silo of the roster calls itself '%s', which is another's name", reply.silo)
            refusals[node] = RefusalCode.PROTOCOL
            continue
        _require_sound(reply, accepted.keys())
        try:
            head = witness.welcome(reply.silo, reply.head)
            ledger_id = head.head.ledger_id
            if cohort.enrolled_ledger(grid, node) not in (None, ledger_id):
                raise ProtocolError(f"silo '{reply.silo}' shows a ledger that is not the one of the roster")
            member = Member(silo=reply.silo, weight=reply.weight, ledger_id=ledger_id, ledger_key=head.key)
            accepted[reply.silo] = (node, member)
        except ProtocolError as error:
            log.warning("%s", error)
            proof = witness.proofs.get(reply.silo)
            refusals[node] = RefusalCode.PROTOCOL if proof is None else RefusalCode.LEDGER
            if proof is None:
                continue
            ledger_id = proof.first.head.ledger_id
        shown.setdefault(ledger_id, []).append(node)
    for nodes in (nodes for nodes in shown.values() if len(nodes) > 1):
        log.warning("%d nodes show one ledger: it was copied, and none of them takes part", len(nodes))
        refusals |= dict.fromkeys(nodes, RefusalCode.LEDGER)
    return {silo: place for silo, place in accepted.items() if place[0] not in refusals}, refusals


def _require_sound(reply: wire.Accept, names: Collection[str]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", reply.silo):  # it becomes a file's name
        raise ProtocolError(f"a node calls itself silo {reply.silo[:64]!r}; a name has letters, digits and ._-")
    if reply.silo in names:
        raise RunError(f"two nodes call themselves silo '{reply.silo}'; names must be distinct")
    if not (math.isfinite(reply.weight) and reply.weight > 0):
        raise ProtocolError(f"silo '{reply.silo}' declares the weight {reply.weight}; it must be positive")


def _too_few(joined: int, needed: int, refusals: Mapping[int, str]) -> None:
    codes = sorted(refusals.values())
    counts = ", ".join(f"{codes.count(code)} refused: {code}" for code in dict.fromkeys(codes)) or "no other connected"
    sentence = f"{joined} silos joined and cohort.min_silos asks for {needed} ({counts}); each silo's own log says why"
    for code in (RefusalCode.BUDGET, RefusalCode.POLICY, RefusalCode.APPROVAL):
        if code in codes:
            raise Refusal(code, sentence)
    raise RunError(sentence)
