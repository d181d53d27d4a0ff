"""The coordinator as a witness: it keeps the newest head of each silo's ledger, countersigns it, and hands it back.

    <folder>/heads/<ledger id>.jsonl  (receipts, in the order of arrival; they last over runs)

A head that arrives at a position that was seen before with another hash proves that the silo's ledger is kept twice;
the proof is kept, and the silo takes no further part.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.checkpoint import write_whole
from strategies.errors import ProtocolError, VerificationError
from strategies.manifest import Manifest, Member
from strategies.proof.canonical import load
from strategies.proof.entries import is_hex, public_hex
from strategies.proof.heads import Equivocation, Receipt, SignedHead, countersign, equivocation
from strategies.proof.lists import HeadList, read_list, receipts_text, sign_list
from strategies.proof.outcomes import Outcome, sign_outcome


class Witness:
    """What a coordinator has seen of the silos' ledgers.

    Args:
        key: the coordinator's; a new one when omitted.
        folder: where receipts are kept over runs; None keeps them for this object's life.
    """

    def __init__(self, key: Ed25519PrivateKey | None = None, folder: Path | None = None) -> None:
        self._key = key or Ed25519PrivateKey.generate()
        self._folder = folder
        self.public = public_hex(self._key)
        self.proofs: dict[str, Equivocation] = {}  # by silo
        self._seen: dict[str, dict[int, Receipt]] = {}  # by ledger and position
        self._last: dict[str, Receipt] = {}  # by ledger: of the highest position
        self._peers: dict[str, list[Receipt]] = {}  # by silo: of the newest head that a peer has signed; unchecked
        self._checked: dict[str, Receipt] = {}  # by silo: the last of these whose signatures hold
        self._listed: dict[str, int] = {}  # by silo: position in the last list that it was sent
        self._new: list[Receipt] = []

    # --- heads that arrive ----------------------------------------------------------------------------------

    def welcome(self, silo: str, text: str) -> SignedHead:
        """Keep the head with which a silo joins.

        Raises:
            ProtocolError: it is no signed head, or contradicts one that was seen before.
        """
        head = _read(silo, text)
        self._learn(head.head.ledger_id)
        if not self._keep(silo, head):
            raise ProtocolError(f"silo '{silo}' keeps its ledger twice: the proof is kept")
        return head

    def hear(self, member: Member, text: str, countersigned: str, heads: str) -> bool:
        """Keep the head of a reply and the signatures that it brings; return False for a proof of two ledgers.

        Args:
            member: who replies.
            text: its signed head.
            countersigned: its signatures on the heads of the others, by silo.
            heads: the list that it was sent.

        Raises:
            ProtocolError: the head is no head of this member's ledger.
        """
        head = _read(member.silo, text)
        if (head.head.ledger_id, head.key) != (member.ledger_id, member.ledger_key):
            raise ProtocolError(f"the head of silo '{member.silo}' is of another ledger or key than it joined with")
        try:
            signatures = load(countersigned.encode())
        except (VerificationError, UnicodeEncodeError):
            signatures = None
        if not (isinstance(signatures, dict) and all(is_hex(value, 128) for value in signatures.values())):
            raise ProtocolError(f"silo '{member.silo}' sends no signatures on the heads of the others")
        sent = read_list(heads)
        for other, signature in signatures.items():
            if other in sent.heads and other != member.silo:
                self._offer(other, Receipt(head=sent.heads[other], witness=member.ledger_key, signature=signature))
        return self._keep(member.silo, head)

    def _keep(self, silo: str, head: SignedHead) -> bool:
        place = head.head
        seen = self._seen.setdefault(place.ledger_id, {})
        before = seen.get(place.seq)
        if before is not None:
            proof = equivocation(before.head, head)
            if proof is None:
                return True
            self.proofs[silo] = proof
            if self._folder is not None:
                write_whole(self._folder / f"equivocation-{place.ledger_id}.json", proof.to_bytes())
            return False
        receipt = countersign(head, self._key)
        seen[place.seq] = receipt
        self._new.append(receipt)
        if place.ledger_id not in self._last or self._last[place.ledger_id].head.head.seq < place.seq:
            self._last[place.ledger_id] = receipt
        if self._folder is not None:
            path = self._path(place.ledger_id)
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(receipt.to_bytes() + b"\n")
        return True

    def recall(self, ledger_id: str) -> None:
        """Read what was kept of the ledger of a silo that joined before."""
        self._learn(ledger_id)

    def _learn(self, ledger_id: str) -> None:
        """Read what was kept of a ledger in earlier runs; a last line that was not finished counts for nothing."""
        if self._folder is None or ledger_id in self._seen or not self._path(ledger_id).exists():
            return
        seen = self._seen.setdefault(ledger_id, {})
        for line in self._path(ledger_id).read_bytes().split(b"\n")[:-1]:
            receipt = Receipt.from_value(load(line), checked=False)  # the coordinator's own file
            seen[receipt.head.head.seq] = receipt
        if seen:
            self._last[ledger_id] = seen[max(seen)]

    def _path(self, ledger_id: str) -> Path:
        return (self._folder or Path()) / "heads" / f"{ledger_id}.jsonl"

    def _offer(self, silo: str, receipt: Receipt) -> None:
        """Keep a peer's signature, if no newer one is there; it is checked before it is used."""
        kept = self._peers.setdefault(silo, [])
        newest = kept[0].head.head.seq if kept else 0
        if receipt.head.head.seq > newest:
            kept[:] = [receipt]
        elif receipt.head.head.seq == newest:
            kept.append(receipt)

    # --- what is handed back --------------------------------------------------------------------------------

    def list_of(self, manifest: Manifest, round: int) -> str:
        """Return the signed list of the last heads of a run's silos."""
        heads = {m.silo: self._last[m.ledger_id].head for m in manifest.roster if m.ledger_id in self._last}
        return sign_list(manifest.run, round, heads, self._key)

    def receipts_of(self, member: Member, heads: str) -> str:
        """Return the receipts that a silo is sent with a list: the coordinator's, and one of a peer if there is one."""
        listed: HeadList = read_list(heads)
        own = self._last.get(member.ledger_id)
        if own is None:
            return receipts_text(())
        self._listed[member.silo] = listed.heads[member.silo].head.seq
        peer = self._peer(member.silo)
        if peer is not None:
            self._new.append(peer)
        return receipts_text((own, peer) if peer is not None else (own,))

    def lacking(self, silos: Collection[str]) -> list[str]:
        """Return the silos for whose last listed head no peer's signature is at hand."""
        found = []
        for silo in silos:
            peer = self._peer(silo)
            if peer is None or peer.head.head.seq < self._listed.get(silo, 0):
                found.append(silo)
        return found

    def _peer(self, silo: str) -> Receipt | None:
        kept = self._peers.get(silo, [])
        while kept:
            if self._checked.get(silo) == kept[0]:
                return kept[0]
            try:
                self._checked[silo] = Receipt.from_value(kept[0].value())
            except VerificationError:
                kept.pop(0)
        return None

    def outcome(self, outcome: Outcome) -> str:
        """Return the signed record of what came of a round."""
        return sign_outcome(outcome, self._key)

    def take(self) -> list[Receipt]:
        """Return the receipts that have come to be since the last call."""
        new, self._new = self._new, []
        return new


def _read(silo: str, text: str) -> SignedHead:
    try:
        return SignedHead.from_bytes(text.encode())
    except (VerificationError, UnicodeEncodeError) as error:
        raise ProtocolError(f"silo '{silo}' sends no head of its ledger: {error}") from None
