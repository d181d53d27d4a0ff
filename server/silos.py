"""The silos of a run and the way to them: what is asked, what came back, and what is known of their ledgers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from server import cohort
from server.masking import Masking
from server.witness import Witness
from strategies import wire
from strategies.errors import ProtocolError, RefusalCode
from strategies.manifest import Manifest, Member
from strategies.study import Study

log = logging.getLogger("fedsilo.server")


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
class Way:
    """The way to the silos of one round: requests by silo in, replies by silo out, the heads in them kept.

    Args:
        grid: Flower's.
        study: the agreed study.
        roster: the silos of the run.
        heads: the list that they are sent.
        group: of Flower's messages.
        arrived: SHA-256 of each update or counts that a silo has sent, filled while they are asked.
    """

    grid: Grid
    study: Study
    roster: Roster
    heads: str
    group: str
    arrived: dict[str, str] = field(default_factory=dict)

    def ask(self, requests: Mapping[str, wire.Instruction]) -> dict[str, wire.Reply]:
        """Ask silos and return what came back from them in time and holds."""
        nodes = self.roster.nodes
        silo_of = {nodes[silo]: silo for silo in requests}
        timeout_s = self.study.file.cohort.round_timeout_s
        by_node = {nodes[silo]: request for silo, request in requests.items()}
        answers = cohort.ask(self.grid, by_node, group=self.group, timeout_s=timeout_s)
        sound = heard(answers, silo_of, self.roster, self.heads)
        replies = {silo_of[node]: reply for node, reply in sorted(sound.replies.items())}
        for silo, reply in replies.items():
            if isinstance(reply, wire.Update | wire.MaskedUpdate | wire.MaskedCounts):
                self.arrived[silo] = sound.digests[nodes[silo]]
        return replies


def attest(grid: Grid, study: Study, roster: Roster, chosen: Collection[str], number: int) -> None:
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
    heard(replace(answers, replies=attested), silo_of, roster, heads)


def heard(answers: cohort.Answers, silo_of: Mapping[int, str], roster: Roster, heads: str) -> cohort.Answers:
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
