"""What a silo asks of the witnesses before it reserves a round, and what it does for the others.

Every request to train brings the coordinator's signed list of last heads and, of this silo's own head, the
coordinator's receipt and one of a peer. A ledger that lacks the line of a receipt was rolled back or copied: it
freezes, before a record is read. A list that is older than what this ledger has acknowledged, or (after the first
round) no receipt of a peer as new as the list before, is refused: then this ledger may not be the newest.

How old the evidence can be: a receipt is over a head, and nobody knows a head's hash before its line is written. So
the receipt of a peer at the position that the last request listed was signed after that line: it is at most one round
old. A challenge drawn by the silo would not make it newer: a folder that is put back has the old challenge again, and
whoever kept the old head from it has kept the old answer as well.

Limits: a coordinator and all peers together can keep an old head from a silo; the first round of a run has the
coordinator's word alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from client.ledger import Ledger
from client.silo import Silo
from strategies.errors import ProtocolError, VerificationError
from strategies.manifest import Manifest, Member
from strategies.proof.canonical import dump
from strategies.proof.heads import Receipt, SignedHead
from strategies.proof.lists import HeadList, read_list, read_receipts
from strategies.study import Study

NO_RECEIPTS = "[]"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a request brought: the list, and the receipts of this silo's own head."""

    list: HeadList
    text: str
    receipts: tuple[Receipt, ...]


def read_evidence(heads: str, receipts: str, manifest: Manifest, round: int | None) -> Evidence:
    """Read what a request brings; whose signatures they are is checked in `require_newest`.

    Raises:
        ProtocolError: it is not signed, or of another run, round or coordinator.
    """
    try:
        found = Evidence(list=read_list(heads), text=heads, receipts=read_receipts(receipts))
    except (VerificationError, UnicodeEncodeError) as error:
        raise ProtocolError(f"the heads of the round cannot be read: {error}") from None
    if found.list.run != manifest.run or round not in (None, found.list.round):
        raise ProtocolError("the list of heads is of another run or round")
    if found.list.key != manifest.coordinator:
        raise ProtocolError("the list of heads is not signed by the coordinator of this run")
    return found


def require_newest(
    evidence: Evidence, manifest: Manifest, silo: Silo, ledger: Ledger, received: int, study: Study
) -> None:
    """Return when this ledger is the newest that the witnesses know of.

    Args:
        evidence: what the request brought.
        manifest: the agreed run.
        silo: whose ledger it is.
        ledger: open.
        received: last release that the coordinator says it has; 0 for none.
        study: orders the releases.

    Raises:
        LedgerError: a receipt shows a line that this ledger lacks: it is frozen now.
        ProtocolError: the evidence is missing, old, or signed by somebody else.
    """
    own, head = _member(manifest, silo.name), evidence.list.heads.get(silo.name)
    if own.ledger_id != ledger.pins.ledger_id or head is None:
        raise ProtocolError("the run's roster or list of heads does not name this silo's ledger")
    keys = {member.ledger_key for member in manifest.roster if member.silo != silo.name}
    if not {receipt.witness for receipt in evidence.receipts} <= keys | {manifest.coordinator}:
        raise ProtocolError("a receipt is signed by somebody who is not in this run")
    try:
        ledger.compare(evidence.receipts)
    except VerificationError as error:
        raise ProtocolError(f"a receipt is not of this ledger: {error}") from None
    if not any(r.witness == manifest.coordinator and r.head == head for r in evidence.receipts):
        raise ProtocolError("the coordinator gives no receipt of the head that it lists for this silo")
    run, round = manifest.run, evidence.list.round
    if head.head.seq < ledger.acknowledged(run=run, before=study.releases_before(round), received=received):
        raise ProtocolError("the coordinator lists an older head of this ledger than it has acknowledged")
    if round == 1 or not keys:
        return
    wanted = ledger.witnessed(run=run, before=study.releases_before(round), witness=manifest.coordinator)
    if not any(r.witness in keys and r.head.head.seq >= wanted for r in evidence.receipts):
        raise ProtocolError(f"no peer's receipt is as new as position {wanted}, which the last request listed")


def countersign(evidence: HeadList, text: str, manifest: Manifest, silo: Silo, ledger: Ledger) -> str:
    """Return this silo's signatures on the heads of the others, by silo, and keep the list.

    A head that contradicts one that this silo saw before in this run is not signed, and its log says so.

    Args:
        evidence: the list.
        text: its canonical text, which is kept.
        manifest: the agreed run.
        silo: who signs.
        ledger: open; its key signs.
    """
    state, members = silo.state(manifest.run), {member.silo: member for member in manifest.roster}
    before = state.heads()
    known = read_list(before).heads if before else {}
    shown: dict[str, SignedHead] = {}
    for name, head in evidence.heads.items():
        member = members.get(name)
        if (
            member is None
            or name == silo.name
            or (head.head.ledger_id, head.key) != (member.ledger_id, member.ledger_key)
        ):
            continue
        if name in known and _contradicts(known[name], head):
            silo.log(
                logging.ERROR, f"silo {name} shows a ledger that was rolled back or copied: it is not countersigned"
            )
            return dump(ledger.countersign(shown)).decode()  # the list that speaks against it is kept
        shown[name] = head
    signed = ledger.countersign(shown)
    state.keep_heads(text)
    return dump(signed).decode()


def _contradicts(before: SignedHead, now: SignedHead) -> bool:
    a, b = before.head, now.head
    return b.seq < a.seq or (b.seq == a.seq and b.hash != a.hash)


def _member(manifest: Manifest, silo: str) -> Member:
    return next(member for member in manifest.roster if member.silo == silo)
