"""What a check has found, and what its parts hand on to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from strategies.errors import FedsiloError
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Event
from strategies.proof.chain import Chain
from strategies.proof.heads import SignedHead, equivocation
from strategies.proof.outcomes import SignedOutcome, fork

ABSOLUTE, RELATIVE = 5e-4, 2e-3  # by how much two versions of the accountant may differ
TOLERANCE = f"{RELATIVE:.1%} or {ABSOLUTE}, whichever is more"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What does not hold: in which file, at which position of a ledger (None elsewhere)."""

    file: str
    seq: int | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A ledger whose every line holds.

    Args:
        file: where it was read.
        lines: its lines.
        digest: SHA-256 of the file.
        chain: what they add up to.
        whole: False for what stands beside a statement and ends where that was made.
    """

    file: str
    lines: Sequence[bytes]
    digest: str
    chain: Chain
    whole: bool


@dataclass(kw_only=True)
class Findings:
    """Grows while files are checked.

    Args:
        problems: what does not hold, in the order in which it was found.
        notes: what a reader must know beside PASS or FAIL.
        checked: a line a file on what was checked.
        roots: a row for each data root of each ledger.
        open_reserves: rows of rounds that are reserved and not released.
        ledgers: those that hold.
        heads: signed heads by file.
        equivocations: proofs that somebody keeps two ledgers under one name.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    roots: list[dict[str, Any]] = field(default_factory=list)
    open_reserves: list[dict[str, Any]] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)
    heads: list[tuple[str, SignedHead]] = field(default_factory=list)
    equivocations: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[tuple[str, SignedOutcome]] = field(default_factory=list)

    def fail(self, file: str, sentence: str, seq: int | None = None) -> None:
        """Record what does not hold."""
        self.problems.append(Problem(file=file, seq=seq, sentence=sentence))

    def require(self, holds: bool, file: str, sentence: str, seq: int | None = None) -> bool:
        """Record the sentence unless it holds; return whether it does."""
        if not holds:
            self.fail(file, sentence, seq)
        return holds

    def note(self, sentence: str) -> None:
        """Record a remark, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def loss(
        self, file: str, what: str, stated: float | None, events: Iterable[Event], delta: float, **how: Any
    ) -> None:
        """Compare a stated epsilon with the one that its events give."""
        try:
            value = epsilon(events, delta, **how)
        except FedsiloError as error:
            self.fail(file, f"{what} cannot be recomputed: {error}")
            return
        self.near(file, what, stated, value)

    def near(self, file: str, what: str, stated: float | None, value: float) -> None:
        """Compare a stated epsilon (None is infinite) with a recomputed one."""
        shown = "infinite" if stated is None else stated
        self.require(near(stated, value), file, f"{what} is stated as {shown}; its events give {value}")

    def cross_check(self) -> None:
        """Compare all heads and lines of one ledger, and all records of one round, with each other."""
        self._one_story()
        first: dict[tuple[str, int], tuple[str, SignedHead]] = {}
        for file, head in self.heads:
            where, other = first.setdefault((head.head.ledger_id, head.head.seq), (file, head))
            if equivocation(other, head) is not None:
                self._twice(head.head.ledger_id, head.head.seq, where, file)
        for ledger in self.ledgers:
            self._against(ledger)

    def _one_story(self) -> None:
        two = fork(record for _, record in self.outcomes)
        if two is not None:
            files = [file for file, record in self.outcomes if record in two]
            said = two[0].outcome
            sentence = f"coordinator {two[0].key[:12]} has signed two records of round {said.round} of run {said.run}"
            self.fail(files[-1], f"{sentence} (the other: {files[0]})")

    def _against(self, ledger: Ledger) -> None:
        """Compare one ledger with every head and with every other ledger of the same identity."""
        chain, identity = ledger.chain, ledger.chain.pins.ledger_id
        for file, head in self.heads:
            place = head.head
            if place.ledger_id != identity or head.key not in chain.keys or not chain.is_stray(place):
                continue
            if place.seq <= chain.seq:
                self._twice(identity, place.seq, file, ledger.file)
            elif ledger.whole:
                sentence = f"a witness has kept a head at position {place.seq} ({file}); the ledger ends before it"
                self.fail(ledger.file, sentence, place.seq)
        for other in self.ledgers:
            place = other.chain.head()
            if other is ledger or place.ledger_id != identity:
                continue
            if place.seq <= chain.seq and chain.is_stray(place):
                self._twice(identity, place.seq, other.file, ledger.file)
            elif other.chain.hidden and (seq := chain.contradicts(other.chain)) is not None:
                self._twice(identity, seq, other.file, ledger.file)

    def _twice(self, ledger_id: str, seq: int, first: str, second: str) -> None:
        row = {"ledger_id": ledger_id, "seq": seq, "files": [first, second]}
        if not any((seen["ledger_id"], seen["seq"]) == (ledger_id, seq) for seen in self.equivocations):
            self.equivocations.append(row)
            self.fail(second, f"ledger {ledger_id[:12]} has two lines at position {seq} (the other: {first})", seq)


def near(stated: float | None, value: float) -> bool:
    """Return whether a stated epsilon (None is infinite) is a recomputed one, within the tolerance."""
    if stated is None or not math.isfinite(value):
        return stated is None and value == math.inf
    return abs(stated - value) <= max(ABSOLUTE, RELATIVE * value)
