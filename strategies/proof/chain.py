"""The chain of a ledger: what may follow what, and what it all adds up to.

The silo asks the same `Chain` before it writes an entry that an auditor asks when he reads one (`verdict.py`).

Rules. A release needs its reserve, a commit its release; each stands once for a round of a run. After a freeze nothing
follows but a restore, which the officer's key signs and which adopts at least what any head off this chain had spent.
A freeze or restore after a rollback takes the position after the highest head that is known, so that an honest silo
never signs two lines at one position; the gap stands in the verdict.

Guarantees: an open reservation is spent; nothing is ever taken off again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.errors import VerificationError
from strategies.privacy.dataroot import covers
from strategies.privacy.events import Event
from strategies.proof.account import Account
from strategies.proof.entries import ZERO, Entry, Signed, read_events, read_root, read_spent, signed_by, signers
from strategies.proof.heads import Head, Receipt, SignedHead


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What a reader knows of a ledger beforehand, from its roster or its keys folder.

    Args:
        ledger_id: 64 hex digits.
        ledger_key: the first key of the ledger; later ones are in the chain.
        dpo_key: the first key of the data-protection officer.
        witnesses: public keys whose receipts count, of all times (an old entry holds old receipts); None takes any.
    """

    ledger_id: str
    ledger_key: str
    dpo_key: str
    witnesses: frozenset[str] | None = None


class ChainError(VerificationError):
    """The chain does not hold at a position."""

    def __init__(self, seq: int, reason: str) -> None:
        self.seq = seq
        self.reason = reason
        super().__init__(f"entry {seq}: {reason}")


class Chain:
    """A checked beginning of a ledger, extended by one entry at a time."""

    def __init__(self, pins: Pins) -> None:
        self.pins = pins
        self.seq, self.hash, self.time = 0, ZERO, ""
        self.ledger_key, self.dpo_key, self.policy = pins.ledger_key, pins.dpo_key, ""
        self.silo, self.durability = "", ""
        self.frozen: str | None = None
        self.accounts: dict[str, Account] = {}
        self.rounds: dict[tuple[str, int], dict[str, int]] = {}
        self.root_of: dict[tuple[str, int], str] = {}
        self.keys = {pins.ledger_key}
        self.gaps: list[tuple[int, int]] = []
        self.hidden: list[tuple[int, int]] = []  # first and last position of lines that an extract does not show
        self._hashes: dict[int, str] = {}
        self._trusted = False  # whether receipts in entries were checked before
        self._strays: dict[str, Head] = {}  # heads of this ledger that are not on this chain, by hash

    # --- what it says ---------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """Number of lines that are shown."""
        return len(self._hashes) - len(self.hidden)

    @property
    def unseen(self) -> int:
        """Number of lines that are not shown."""
        return sum(last - first + 1 for first, last in self.hidden)

    def spent(self) -> dict[str, tuple[Event, ...]]:
        """Return merged events by data root."""
        return {name: account.merged() for name, account in self.accounts.items()}

    def head(self) -> Head:
        """Return where the chain stands."""
        return Head(ledger_id=self.pins.ledger_id, seq=self.seq, hash=self.hash, spent=self.spent())

    def open_rounds(self, *, of: str = "reserve") -> tuple[tuple[str, int], ...]:
        """Return runs and rounds whose last step is `of`: reserve, or release (not acknowledged)."""
        return tuple(place for place, kinds in self.rounds.items() if next(reversed(kinds)) == of)

    def strays(self) -> tuple[Head, ...]:
        """Return the heads of lost lines that entries have named."""
        return tuple(self._strays.values())

    def is_stray(self, head: Head) -> bool:
        """Return whether a head of this ledger shows a line that this chain lacks and that no restore has adopted.

        Raises:
            VerificationError: the head is of another ledger.
        """
        if head.ledger_id != self.pins.ledger_id:
            raise VerificationError("the head is of another ledger")
        if head.seq not in self._hashes and any(first <= head.seq <= last for first, last in self.hidden):
            return False  # nothing is known of that position
        return self._hashes.get(head.seq) != head.hash and head.hash not in self._strays

    def contradicts(self, other: Chain) -> int | None:
        """Return the first position at which another reading of this ledger has another line, or None."""
        shared = self._hashes.keys() & other._hashes.keys()
        return min((seq for seq in shared if self._hashes[seq] != other._hashes[seq]), default=None)

    # --- one more entry -------------------------------------------------------------------------------------

    def extend(self, signed: Signed, *, all_signatures: bool = True) -> None:
        """Check the next entry and count it.

        Args:
            signed: what `entries.read` or `entries.sign` gave.
            all_signatures: False leaves out the ledger key's signature on an entry that later ones cover by `prev`;
                `check_last` must follow.

        Raises:
            ChainError: it may not follow; the chain is as before.
        """
        self._trusted = not all_signatures
        effect = self._admit(signed.entry)
        if all_signatures or signed.signatures.keys() != {"ledger"}:
            self._check_signatures(signed)
        effect()
        entry = signed.entry
        if entry.seq > self.seq + 1:
            self.gaps.append((self.seq + 1, entry.seq - 1))
        self.seq, self.hash, self.time, self.policy = entry.seq, signed.hash, entry.time, entry.policy
        self._hashes[entry.seq] = self.hash

    def skip(self, first: int, last: int, digest: str) -> None:
        """Go over lines that are not shown; the next one that is must name the hash of the last of them.

        Raises:
            ChainError: they may not stand here.
        """
        if self.seq == 0 or first != self.seq + 1 or last < first or self.frozen is not None:
            raise ChainError(self.seq + 1, "lines that are not shown cannot stand here")
        self.hidden.append((first, last))
        self.seq, self.hash = last, digest
        self._hashes[last] = digest

    def check_last(self, signed: Signed) -> None:
        """Check the signatures of the last entry, by which the hash links cover all before it.

        Raises:
            ChainError: one does not hold.
        """
        if signed.signatures.keys() == {"ledger"}:  # those of several were checked in their place
            self._check_signatures(signed)

    def _check_signatures(self, signed: Signed) -> None:
        entry = signed.entry
        new = entry.body["key"] if entry.kind == "key_rotate" else ""
        keys = {"ledger": self.ledger_key, "dpo": self.dpo_key, "new": new}
        for role in sorted(signers(entry)):
            if not signed_by(signed.signatures[role], keys[role], signed.message):
                raise ChainError(entry.seq, f"the signature of the {_ROLES[role]} does not hold")

    def _admit(self, entry: Entry) -> Callable[[], None]:
        """Return what the entry does to the chain, or raise when it may not stand here."""
        expected = self.next_position(entry.kind, entry.body)
        problem = (
            ("it is of another ledger" if entry.ledger_id != self.pins.ledger_id else "")
            or (f"its position is {entry.seq}" if entry.seq != expected else "")
            or ("it does not name the line before it" if entry.prev != self.hash else "")
            or ("its time is before that of the line above" if entry.time < self.time else "")
            or ("the first entry of a ledger is its genesis" if (self.seq == 0) != (entry.kind == "genesis") else "")
            or ("it cites another policy" if entry.kind != "policy" and entry.policy != self.policy else "")
            or ("nothing follows a freeze but a restore" if self.frozen and entry.kind != "restore" else "")
        )
        if problem:
            raise ChainError(self.seq + 1, problem)
        try:
            return _RULES[entry.kind](self, entry)
        except ChainError:
            raise
        except VerificationError as error:
            raise ChainError(entry.seq, str(error)) from None

    def next_position(self, kind: str, body: Mapping[str, Any]) -> int:
        """Return where the next entry of a kind stands: after every head that it brings as evidence.

        Raises:
            ChainError: the evidence is not signed.
        """
        if kind not in ("freeze", "restore"):
            return self.seq + 1
        try:
            heads = [SignedHead.from_value(value).head.seq for value in body["heads"]]
        except VerificationError as error:
            raise ChainError(self.seq + 1, str(error)) from None
        return max([self.seq, *heads]) + 1

    # --- rules, by kind; each returns what is done once the signatures hold ---------------------------------

    def _genesis(self, entry: Entry) -> Callable[[], None]:
        body = entry.body
        if (body["ledger_key"], body["dpo_key"]) != (self.pins.ledger_key, self.pins.dpo_key):
            raise ChainError(1, "its keys are not the pinned ones")

        def effect() -> None:
            self.silo, self.durability = body["silo"], body["durability"]

        return effect

    def _data_root(self, entry: Entry) -> Callable[[], None]:
        root = read_root(entry)
        account = self.accounts.get(root.name, Account())
        if account.root is not None:
            raise ChainError(entry.seq, f"data root '{root.name}' is registered already")

        def effect() -> None:
            account.root = root
            self.accounts[root.name] = account

        return effect

    def _reserve(self, entry: Entry) -> Callable[[], None]:
        account = self.accounts.get(entry.data_root)
        place = (entry.run, entry.round)
        if account is None or account.root is None:
            raise ChainError(entry.seq, f"data root '{entry.data_root}' is not registered")
        if place in self.rounds:
            raise ChainError(entry.seq, f"round {entry.round} of run {entry.run} already has a reserve entry")
        events = read_events(entry.body["events"])
        self._receipts(entry)

        def effect() -> None:
            account.add(entry.run, events)
            self.rounds[place] = {"reserve": entry.seq}
            self.root_of[place] = entry.data_root

        return effect

    def _step(self, entry: Entry) -> Callable[[], None]:
        place, name = (entry.run, entry.round), f"round {entry.round} of run {entry.run}"
        kinds = self.rounds.get(place, {})
        if entry.kind in kinds:
            raise ChainError(entry.seq, f"{name} already has a {entry.kind} entry")
        if not kinds or self.root_of[place] != entry.data_root:
            raise ChainError(entry.seq, f"{name} was never reserved on '{entry.data_root}'")
        last, before = next(reversed(kinds)), {"release": "reserve", "commit": "release", "abort": "reserve"}
        if last != before[entry.kind]:
            raise ChainError(entry.seq, f"a {entry.kind} of {name} cannot follow its {last}")

        def effect() -> None:
            kinds[entry.kind] = entry.seq

        return effect

    def _witness(self, entry: Entry) -> Callable[[], None]:
        self._receipts(entry)
        return _nothing

    def _receipts(self, entry: Entry) -> None:
        for value in entry.body["receipts"]:
            receipt = Receipt.from_value(value, checked=not self._trusted)
            self.check_receipt(receipt)
            if self.is_stray(receipt.head.head):
                raise ChainError(entry.seq, f"a receipt shows another line at position {receipt.head.head.seq}")

    def check_receipt(self, receipt: Receipt) -> None:
        """Raise unless a receipt is of this ledger, signed by one of its keys and by a witness that counts.

        Raises:
            VerificationError: it is not.
        """
        head = receipt.head
        if head.head.ledger_id != self.pins.ledger_id:
            raise VerificationError("a receipt is of another ledger")
        if head.key not in self.keys:
            raise VerificationError("a receipt's head is not signed by a key of this ledger")
        if self.pins.witnesses is not None and receipt.witness not in self.pins.witnesses:
            raise VerificationError("a receipt is signed by somebody who is no witness of this ledger")

    def _own_heads(self, entry: Entry) -> dict[str, Head]:
        found = {}
        for value in entry.body["heads"]:
            signed = SignedHead.from_value(value)
            if signed.key not in self.keys or self._hashes.get(signed.head.seq) == signed.head.hash:
                raise ChainError(entry.seq, f"its head at position {signed.head.seq} is no evidence of a lost line")
            found[signed.head.hash] = signed.head
        return found

    def _freeze(self, entry: Entry) -> Callable[[], None]:
        heads = self._own_heads(entry)

        def effect() -> None:
            self._strays |= heads
            self.frozen = entry.body["reason"]

        return effect

    def _restore(self, entry: Entry) -> Callable[[], None]:
        strays = self._strays | self._own_heads(entry)
        adopt = read_spent(entry.body["adopt"])
        accounts = {name: account.merged() for name, account in self.accounts.items()}
        for head in strays.values() if not self.hidden else ():  # what hidden lines had spent is not known here
            for name, events in head.spent.items():
                if not covers((*accounts.get(name, ()), *adopt.get(name, ())), events):
                    raise ChainError(
                        entry.seq, f"the restore adopts less of '{name}' than position {head.seq} had spent"
                    )

        def effect() -> None:
            self._strays, self.frozen = strays, None
            for name, events in adopt.items():
                self.accounts.setdefault(name, Account()).add("", events)

        return effect

    def _key_rotate(self, entry: Entry) -> Callable[[], None]:
        key = entry.body["key"]

        def effect() -> None:
            if entry.body["which"] == "ledger":
                self.ledger_key = key
                self.keys.add(key)
            else:
                self.dpo_key = key

        return effect

    def _checkpoint(self, entry: Entry) -> Callable[[], None]:
        stated = {name: events for name, events in self.spent().items() if events}
        if read_spent(entry.body["spent"]) != stated:
            raise ChainError(entry.seq, "the checkpoint states other sums than the entries before it give")
        return _nothing

    def _policy(self, _: Entry) -> Callable[[], None]:
        return _nothing


def _nothing() -> None:
    pass


_ROLES = {"ledger": "ledger's key", "dpo": "officer's key", "new": "new key"}
_RULES: dict[str, Callable[[Chain, Entry], Callable[[], None]]] = {
    "genesis": Chain._genesis,
    "policy": Chain._policy,
    "data_root": Chain._data_root,
    "reserve": Chain._reserve,
    "release": Chain._step,
    "commit": Chain._step,
    "abort": Chain._step,
    "witness": Chain._witness,
    "freeze": Chain._freeze,
    "restore": Chain._restore,
    "key_rotate": Chain._key_rotate,
    "checkpoint": Chain._checkpoint,
}
