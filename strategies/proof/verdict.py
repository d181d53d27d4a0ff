"""What a reader may believe of a ledger, from its lines and what he knows beforehand.

Every link, signature, key, position and rule is checked, and the first position that is bad is named. The answer rests
on bytes and pins alone: it is the same offline and on another machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from strategies.errors import VerificationError
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event
from strategies.proof.chain import Chain, ChainError, Pins
from strategies.proof.entries import read
from strategies.proof.heads import Equivocation, Head, Receipt, SignedHead, equivocation


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a reader may believe of a ledger.

    Args:
        problem: None when everything holds, else what does not.
        bad_seq: the first position that does not hold.
        entries: number of lines that hold.
        head: where the chain stands after these.
        roots: registrations by name.
        events: run and events of each reservation, by data root; equal to what is spent.
        open_reserves: runs and rounds that are reserved, and neither released nor given up.
        unacknowledged: runs and rounds that are released and not committed.
        frozen: why the ledger is frozen, or None.
        gaps: first and last position of what was lost and adopted.
        equivocations: proofs among the receipts that two ledgers are kept under one name.
    """

    problem: str | None
    bad_seq: int | None
    entries: int
    head: Head
    roots: Mapping[str, DataRoot]
    events: Mapping[str, tuple[tuple[str, tuple[Event, ...]], ...]]
    open_reserves: tuple[tuple[str, int], ...]
    unacknowledged: tuple[tuple[str, int], ...]
    frozen: str | None
    gaps: tuple[tuple[int, int], ...]
    equivocations: tuple[Equivocation, ...]

    @property
    def ok(self) -> bool:
        """Whether every entry and every receipt holds."""
        return self.problem is None


def verify_chain(lines: Iterable[bytes], pins: Pins, *, receipts: Sequence[Receipt] = ()) -> Verdict:
    """Check a whole ledger, and that it contains every head that others have kept of it.

    Args:
        lines: canonical signed entries in order, without line ends.
        pins: what is known of the ledger.
        receipts: checked receipts of witnesses.
    """
    chain, problem, bad = Chain(pins), None, None
    try:
        _extend(chain, lines)
        problem, bad = _missing(chain, receipts)
    except ChainError as error:
        problem, bad = error.reason, error.seq
    return Verdict(
        problem=problem,
        bad_seq=bad,
        entries=chain.entries,
        head=chain.head(),
        roots={name: account.root for name, account in chain.accounts.items() if account.root},
        events={name: tuple(account.reserved) for name, account in chain.accounts.items()},
        open_reserves=chain.open_rounds(),
        unacknowledged=chain.open_rounds(of="release"),
        frozen=chain.frozen,
        gaps=tuple(chain.gaps),
        equivocations=_contradictions(chain, receipts),
    )


def _extend(chain: Chain, lines: Iterable[bytes]) -> None:
    for line in lines:
        try:
            signed = read(line)
        except VerificationError as error:
            raise ChainError(chain.seq + 1, str(error)) from None
        chain.extend(signed)
    if chain.seq == 0:
        raise ChainError(1, "the ledger is empty")


def _contradictions(chain: Chain, receipts: Sequence[Receipt]) -> tuple[Equivocation, ...]:
    first: dict[int, SignedHead] = {}
    heads = [receipt.head for receipt in receipts if receipt.head.key in chain.keys]
    own = [head for head in heads if head.head.ledger_id == chain.pins.ledger_id]
    pairs = [(first.setdefault(head.head.seq, head), head) for head in own]
    return tuple(proof for pair in pairs if (proof := equivocation(*pair)))


def _missing(chain: Chain, receipts: Sequence[Receipt]) -> tuple[str | None, int | None]:
    for receipt in sorted(receipts, key=lambda receipt: receipt.head.head.seq):
        head = receipt.head.head
        try:
            chain.check_receipt(receipt)
        except VerificationError as error:
            return str(error), head.seq
        if chain.is_stray(head):
            what = "ends before" if head.seq > chain.seq else "has another line at"
            return f"a witness has kept a head at position {head.seq}; the ledger {what} that position", head.seq
    return None, None


def lines_of(export: bytes) -> list[bytes]:
    """Return the lines of an exported ledger (JSON lines, each ended by one line feed).

    Raises:
        VerificationError: the last line is not ended.
    """
    if export and not export.endswith(b"\n"):
        raise VerificationError("the export's last line is not complete")
    return export.split(b"\n")[:-1]
