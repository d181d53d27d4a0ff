"""The silo's durable record of every release, and the gate in front of the next one.

Reserve (before any record is read), release (the hash of the reply's bytes, before they are sent), commit (the
server has them). A reservation counts as spent from the moment it stands, whatever happens after it: a crash may
over-count, never under-count. What was spent is always recomputed from the entries, which are signed and chained
(strategies/proof); which ledger is the silo's own stands outside the file, in `keys/pin.json`.

Guarantees: the check of the budget and the reservation are one transaction under one lock. Each method returns after
its entry is durable (durability `process` leaves the syncs out). A ledger that could not be written, that is shorter
than it was, or of which a witness has seen another line, is frozen: nothing is reserved, released or committed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import fingerprint
from client.balance import Balance, balance_of, require_budget
from client.keys import fingerprint_key, write_pin
from client.ledger_book import Book, Place, next_entry
from client.ledger_file import Durability, LedgerFile
from client.ledger_view import LedgerView
from strategies.errors import LedgerError, Refusal, RefusalCode, SettingError
from strategies.privacy.dataroot import DataRoot, lacking
from strategies.privacy.events import Event
from strategies.proof.chain import Chain, ChainError, Pins
from strategies.proof.entries import Entry, events_value, public_hex, root_value, sign, spent_value
from strategies.proof.heads import Head, Receipt, SignedHead, receipt_signature, sign_head
from strategies.secagg.rows import Change
from strategies.statement import Statement

__all__ = ["Balance", "Durability", "Entry", "Ledger", "Place"]
_MOST_DELTA = 1e-5


class Ledger(LedgerView):
    """An open ledger."""

    @classmethod
    def create(cls, place: Place, *, silo: str, officer: Ed25519PrivateKey) -> Pins:
        """Make a silo's ledger with its first entry, and write its identity to `keys/pin.json`.

        Args:
            place: where; the keys must be there.
            silo: the silo's name.
            officer: the data-protection officer's key.

        Raises:
            SettingError: there is a ledger already, the keys are not right, or the file system may lose it.
            LedgerError: it cannot be written.
        """
        place.require_durable()
        if (place.keys / "pin.json").exists():
            raise SettingError(f"{place.keys / 'pin.json'} names a ledger already; a silo has one for its whole life")
        if place.path.exists():
            raise SettingError(
                f"{place.path} is there and {place.keys / 'pin.json'} is not: an init that was not finished, or a pin "
                "that was lost; put the pin back, or remove the ledger if it was never used"
            )
        key = place.key()
        pins = Pins(ledger_id=secrets.token_hex(32), ledger_key=public_hex(key), dpo_key=public_hex(officer))
        body = {"silo": silo, "ledger_key": pins.ledger_key, "dpo_key": pins.dpo_key, "durability": place.durability}
        chain = Chain(pins)
        signed = sign(next_entry(chain, "genesis", body), {"ledger": key, "dpo": officer})
        chain.extend(signed)
        file = LedgerFile(place.path, durable=place.durable, new=True)
        try:
            with file.writing():
                file.append(1, signed.line)
        finally:
            file.close()
        write_pin(place.keys, pins, durable=place.durable)  # from here on it is this silo's ledger
        return pins

    @classmethod
    @contextmanager
    def open(cls, place: Place) -> Iterator[Ledger]:
        """Open and verify the ledger of a silo; closed when the block ends.

        A ledger that is frozen opens too, to be read and restored.

        Raises:
            SettingError: the pin is missing, or the file system may lose the ledger.
            LedgerError: the file is missing, or an entry does not hold.
        """
        with Book.open(place) as book:
            yield cls(book)

    # --- a round --------------------------------------------------------------------------------------------

    def reserve(
        self,
        *,
        data_root: str,
        run: str,
        round: int,
        events: Sequence[Event],
        manifest: str = "",
        receipts: Sequence[Receipt] = (),
        changes: Sequence[Change] = (),
    ) -> int:
        """Set aside what one round releases at worst, if it fits; return the entry's position.

        The check and the entry are one transaction, so concurrent runs cannot both take the last of a budget.

        Args:
            data_root: must be registered.
            run: identity of the run, 32 hex digits.
            round: from 1.
            events: everything that the round may release.
            manifest: digest of the run's manifest, or "".
            receipts: heads of this ledger that others have kept; they are stored with the reservation.
            changes: of secure aggregation, in the same transaction.

        Raises:
            Refusal: it does not fit (`budget`), or this round was reserved before (`protocol`).
            ProtocolError: another request has moved the sum.
            LedgerError: the ledger is frozen, or a receipt shows that it was rolled back or cloned: it is frozen now.
            VerificationError: a receipt is none of this ledger's.
        """
        self._book.require_room()
        with self._book.writing() as chain:
            lost = self._lost(chain, receipts)
            if not lost:
                require_budget(balance_of(chain, self._book.place, data_root), round, events)
                body = {"events": events_value(events), "receipts": [receipt.value() for receipt in receipts]}
                self._append_round(chain, "reserve", body, data_root=data_root, run=run, round=round, manifest=manifest)
                self._book.change(run, changes)
        self._stop_if(lost)
        return chain.seq

    def release(self, *, data_root: str, run: str, round: int, sha256: str, changes: Sequence[Change] = ()) -> int:
        """Record that bytes with this hash are about to leave for a reserved round; durable when it returns.

        Args:
            data_root: of the reservation.
            run: of the reservation.
            round: of the reservation.
            sha256: of the bytes.
            changes: of secure aggregation, in the same transaction.

        Raises:
            Refusal: it was released before (`protocol`), or never reserved (`internal`).
            LedgerError: the ledger is frozen.
        """
        with self._book.writing() as chain:
            if (run, round) not in chain.rounds:
                raise Refusal(RefusalCode.INTERNAL, f"round {round} of run {run} was never reserved")
            self._append_round(chain, "release", {"sha256": sha256}, data_root=data_root, run=run, round=round)
            self._book.change(run, changes)
        return chain.seq

    def change(self, run: str, changes: Sequence[Change]) -> None:
        """Move what secure aggregation keeps of a run; durable when it returns.

        Raises:
            ProtocolError: another request has moved it; nothing is changed.
            LedgerError: the ledger is frozen.
        """
        if changes:
            with self._book.writing():
                self._book.change(run, changes)

    def row(self, run: str, key: str) -> bytes | None:
        """Return what secure aggregation keeps of a run under a key."""
        return self._book.row(run, key)

    def sign(self, message: bytes) -> bytes:
        """Return the ledger key's signature (64 bytes) on a message of another protocol, which names its own domain.

        Raises:
            LedgerError: the ledger is frozen: it signs nothing.
        """
        self._book.require_usable()
        return self._book.key(self._book.view()).sign(message)

    def commit(self, *, run: str, round: int) -> None:
        """Record that the server has the release of a round; a second time is the same as once."""
        with self._book.writing() as chain:
            steps = chain.rounds.get((run, round), {})
            if steps and next(reversed(steps)) == "release":
                self._append_round(chain, "commit", {}, data_root=chain.root_of[run, round], run=run, round=round)

    def abort(self, *, run: str, round: int, reason: str) -> None:
        """Record that a reserved round is given up; it stays spent, and cannot be released any more.

        Raises:
            Refusal: the round is not reserved, or was released (`protocol`).
        """
        with self._book.writing() as chain:
            root = chain.root_of.get((run, round), "none")
            self._append_round(chain, "abort", {"reason": reason}, data_root=root, run=run, round=round)

    # --- data roots, policy, keys ---------------------------------------------------------------------------

    def register(self, root: DataRoot, *, officer: Ed25519PrivateKey, units: Iterable[bytes] | None = None) -> DataRoot:
        """Register a data root for its whole life; return it with the fingerprint of its units.

        Args:
            root: its unit, budget and gate.
            officer: the data-protection officer's key.
            units: identifier of each unit, or each record's content where a record is the unit; only a simulated silo
                may leave them out.

        Raises:
            Refusal: the name is taken, or some of the units are those of another data root (`policy`).
            SettingError: delta is above 1e-5, or the units are missing.
            LedgerError: the ledger is frozen.
        """
        if self._book.place.durable:
            if units is None:
                raise SettingError(f"data root '{root.name}' needs its units, by which they are known again")
            if root.delta > _MOST_DELTA:
                raise SettingError(f"delta of '{root.name}' = {root.delta} is not allowed: it must be at most 1e-5")
        macs = fingerprint.sketch(units, fingerprint_key(self._book.place.keys)) if units is not None else b""
        root = replace(root, fingerprint=hashlib.sha256(macs).hexdigest() if macs else "")
        with self._book.writing() as chain:
            if root.name in chain.accounts and chain.accounts[root.name].root is not None:
                raise Refusal(RefusalCode.POLICY, f"data root '{root.name}' is registered already, for its whole life")
            for other, known in self._book.sketches().items():
                if shared := fingerprint.common(macs, known):
                    raise Refusal(
                        RefusalCode.POLICY,
                        f"data root '{root.name}' shares units with '{other}' (at least {shared}); a unit has one "
                        f"budget: add the records to '{other}'",
                    )
            if macs:
                self._book.keep_sketch(root.name, macs)
            self._book.append(chain, "data_root", root_value(root), beside={"dpo": officer}, data_root=root.name)
        return root

    def policy(self, sha256: str) -> None:
        """Record which policy is in force from now on; nothing when it is the same."""
        if self._book.view().policy == sha256:
            return
        with self._book.writing() as chain:
            if chain.policy != sha256:
                self._book.append(chain, "policy", {}, policy=sha256)

    def rotate(self, new: Ed25519PrivateKey, *, officer: Ed25519PrivateKey | None = None) -> None:
        """Hand over to a new key of the ledger, or of the officer when the officer's old one is given.

        The new key's file must be durable before; this object signs with it from now on when it is the ledger's.
        """
        which, beside = ("dpo", {"dpo": officer, "new": new}) if officer else ("ledger", {"new": new})
        with self._book.writing() as chain:
            self._book.append(chain, "key_rotate", {"which": which, "key": public_hex(new)}, beside=beside)
        if officer is None:
            self._book.signer = new

    def checkpoint(self) -> None:
        """State the sums up to here in an entry; a reader compares them with his own."""
        with self._book.writing() as chain:
            self._book.append(chain, "checkpoint", {"spent": spent_value(chain.spent())})

    # --- witnesses, freezing, restoring ---------------------------------------------------------------------

    def head(self) -> SignedHead:
        """Return where the ledger stands, signed; it travels with every reply.

        Raises:
            LedgerError: the ledger is frozen: it signs nothing.
        """
        chain = self._book.view()
        self._book.require_usable()
        return sign_head(chain.head(), self._book.key(chain))

    def signed(self, statement: Statement) -> str:
        """Return a statement of this ledger with its signature.

        Raises:
            LedgerError: the ledger is frozen: it signs nothing.
        """
        chain = self._book.view()
        self._book.require_usable()
        return statement.signed(self._book.key(chain))

    def countersign(self, heads: Mapping[str, SignedHead]) -> dict[str, str]:
        """Return the ledger key's signature, as a witness, on each head of another silo's ledger."""
        if not heads:
            return {}
        key = self._book.key(self._book.view())
        return {name: receipt_signature(head, key) for name, head in heads.items()}

    def compare(self, receipts: Sequence[Receipt]) -> None:
        """Return when this ledger has every line that witnesses have seen of it.

        Raises:
            LedgerError: it lacks one: it is frozen now.
            VerificationError: a receipt is none of this ledger's.
        """
        self._book.require_usable()
        chain = self._book.view()
        for receipt in receipts:
            chain.check_receipt(receipt)
        if any(chain.is_stray(receipt.head.head) for receipt in receipts):
            self.witness(receipts)

    def witness(self, receipts: Sequence[Receipt]) -> int:
        """Compare the ledger with heads that others have kept, and keep the receipts; return its position.

        Raises:
            LedgerError: a receipt shows a line that this ledger lacks: it is frozen now.
            VerificationError: a receipt is none of this ledger's.
        """
        with self._book.writing() as chain:
            lost = self._lost(chain, receipts)
            if receipts and not lost:
                self._book.append(chain, "witness", {"receipts": [receipt.value() for receipt in receipts]})
        self._stop_if(lost)
        return chain.seq

    def freeze(self, reason: str) -> None:
        """Stop the ledger until the officer restores it."""
        with self._book.writing() as chain:
            self._book.append(chain, "freeze", {"reason": reason, "heads": []})

    def restore(self, *, officer: Ed25519PrivateKey, reason: str, heads: Sequence[SignedHead] = ()) -> None:
        """Go on with this ledger after a freeze or from a backup, adopting all that is known to have been spent.

        Args:
            officer: the data-protection officer's key.
            reason: a sentence for whoever reads the ledger later.
            heads: the highest heads that witnesses have kept; those that froze the ledger are adopted anyway.

        Raises:
            LedgerError: it cannot be written.
            VerificationError: a head is none of this ledger's, or the key is not the officer's.
        """
        with self._book.writing(frozen=True) as chain:
            evidence = {head.head.hash: head for head in heads if chain.is_stray(head.head)}
            frost = self._book.frost
            if frost is not None and frost.head is not None and chain.is_stray(frost.head):
                evidence.setdefault(frost.head.hash, sign_head(frost.head, self._book.key(chain)))
            lost = [*chain.strays(), *(head.head for head in evidence.values())]
            body = {
                "reason": reason,
                "heads": [head.value() for head in evidence.values()],
                "adopt": spent_value(_adopted(chain, lost)),
            }
            self._book.append(chain, "restore", body, beside={"dpo": officer})
        self._book.restored()

    # --- within ---------------------------------------------------------------------------------------------

    def _append_round(self, chain: Chain, kind: str, body: dict[str, Any], **fields: Any) -> None:
        try:
            self._book.append(chain, kind, body, **fields)
        except ChainError as error:
            raise Refusal(RefusalCode.PROTOCOL, error.reason) from None

    def _lost(self, chain: Chain, receipts: Sequence[Receipt]) -> list[SignedHead]:
        """Freeze the ledger when a receipt shows a line that it lacks; return the heads of such receipts."""
        for receipt in receipts:
            chain.check_receipt(Receipt.from_value(receipt.value()))  # whoever made the object, its signatures hold
        lost = {receipt.head.head.hash: receipt.head for receipt in receipts if chain.is_stray(receipt.head.head)}
        if lost:
            body = {"reason": _rolled_back(lost.values()), "heads": [head.value() for head in lost.values()]}
            self._book.append(chain, "freeze", body)
        return list(lost.values())

    def _stop_if(self, lost: Sequence[SignedHead]) -> None:
        if lost:
            raise LedgerError(f"{self._book.place.path} is frozen: {_rolled_back(lost)}")


def _adopted(chain: Chain, lost: Iterable[Head]) -> dict[str, tuple[Event, ...]]:
    """Return what is lacking so that at least the sums of every lost head stand."""
    spent, adopt = chain.spent(), dict[str, tuple[Event, ...]]()
    for head in lost:
        for name, events in head.spent.items():
            have = (*spent.get(name, ()), *adopt.get(name, ()))
            adopt[name] = (*adopt.get(name, ()), *lacking(have, events))
    return adopt


def _rolled_back(lost: Iterable[SignedHead]) -> str:
    seqs = ", ".join(str(head.head.seq) for head in lost)
    return f"a witness has kept another line at position {seqs}, so this ledger was rolled back or copied"
