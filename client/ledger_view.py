"""What can be asked of a silo's ledger: nothing here writes, signs, or needs a passphrase.

Guarantees: every answer rests on lines that were verified, up to the last line of the file at the time of asking.
"""

from __future__ import annotations

from collections.abc import Iterable

from client.balance import Balance, balance_of
from client.ledger_book import Book
from strategies.errors import ProtocolError
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event
from strategies.proof.chain import Pins
from strategies.proof.entries import Entry, read


class LedgerView:
    """The reading half of an open ledger."""

    def __init__(self, book: Book) -> None:
        self._book = book

    @property
    def frozen(self) -> str | None:
        """Why nothing may be written, or None."""
        return self._book.frozen

    def require_usable(self) -> None:
        """Return when the ledger may be written.

        Raises:
            LedgerError: it is frozen.
        """
        self._book.require_usable()

    def balance(self, data_root: str) -> Balance:
        """Return what is left of a data root.

        Raises:
            Refusal: it is not registered, or the policy names no budget for it (`budget`).
        """
        return balance_of(self._book.view(), self._book.place, data_root)

    def spent(self, data_root: str, *, run: str | None = None) -> tuple[Event, ...]:
        """Return every event ever reserved on a data root (of one run, if named), in order."""
        account = self._book.view().accounts.get(data_root)
        reserved = account.reserved if account else []
        return tuple(event for own, events in reserved if run in (None, own) for event in events)

    def roots(self) -> dict[str, DataRoot]:
        """Return the registered data roots by name."""
        return {name: account.root for name, account in self._book.view().accounts.items() if account.root}

    def open_reserves(self) -> tuple[tuple[str, int], ...]:
        """Return runs and rounds that are reserved, and neither released nor given up; they are spent."""
        return self._book.view().open_rounds()

    def span(self, run: str) -> tuple[int, int]:
        """Return the first and the last position of a run's entries; zeros when it has none."""
        rounds = self._book.view().rounds
        seqs = [seq for (own, _), steps in rounds.items() if own == run for seq in steps.values()]
        return (min(seqs), max(seqs)) if seqs else (0, 0)

    def acknowledged(self, *, run: str, before: Iterable[int], received: int) -> int:
        """Return the least position that a coordinator must know of: what it has acknowledged.

        Args:
            run: identity of the run.
            before: numbers of the releases that may have come before, the newest first.
            received: the last one that the coordinator says it has; 0 for none.

        Raises:
            ProtocolError: it says that it has a reply that this ledger never reserved, or less than it said before.
        """
        rounds = self._book.view().rounds
        stop = next((n for n in before if n == received or "commit" in rounds.get((run, n), {})), 0)
        if received != stop or (received and (run, received) not in rounds):
            raise ProtocolError(f"the server says that it has the reply of round {received}; this ledger knows better")
        return rounds[run, received]["reserve"] if received else 0

    def witnessed(self, *, run: str, before: Iterable[int], witness: str) -> int:
        """Return the position that a witness's receipt in the run's last reservation shows; 0 for none."""
        rounds = self._book.view().rounds
        last = next((rounds[run, n]["reserve"] for n in before if (run, n) in rounds), None)
        line = self._book.line(last) if last is not None else None
        receipts = read(line).entry.body["receipts"] if line is not None else []
        return max((value["head"]["head"]["seq"] for value in receipts if value["witness"] == witness), default=0)

    def entry(self, *, run: str, round: int, kind: str) -> Entry | None:
        """Return one entry of a round, if it is there."""
        seq = self._book.view().rounds.get((run, round), {}).get(kind)
        line = self._book.line(seq) if seq is not None else None
        return read(line).entry if line is not None else None

    def entries(self) -> list[Entry]:
        """Return the whole ledger in order."""
        return [read(line).entry for line in self._book.lines()]

    def export(self) -> list[bytes]:
        """Return the signed lines in order, without line ends: what `verify_chain` reads."""
        return self._book.lines()

    @property
    def pins(self) -> Pins:
        """What a reader of this ledger must know beforehand."""
        return self._book.pins

    @property
    def key_in_force(self) -> str:
        """The public key that signs the next entry, 64 hex digits."""
        return self._book.view().ledger_key

    @property
    def officer(self) -> str:
        """The officer's public key of now, 64 hex digits."""
        return self._book.view().dpo_key

    @property
    def policy_in_force(self) -> str:
        """SHA-256 of the policy that the last entry cites, or "" before the first one was recorded."""
        return self._book.view().policy
