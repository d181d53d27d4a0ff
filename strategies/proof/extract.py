"""What the reader of a run gets of a silo's ledger: the lines that concern the run, and links over all others.

A link, ``{"hidden":{"from":2,"hash":"..","to":57}}``, stands for a stretch of lines and has the hash of the last one.
Shown are the beginning of the ledger, its keys and policies (as hashes), freezes and restores, the registration of the
run's data root, and every entry of the run.

Guarantees: each line that is shown has its own signature, for its own position, and names the line or link before it,
so none can be changed, moved or put in. On the silo's word alone, given by its statement, which signs the SHA-256 of
the whole extract, stand two things: that the lines behind a link follow each other, and what they had spent. A false
word is proved by the ledger itself (`fedsilo-silo export`): the check compares every hash of the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from strategies.errors import VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.chain import Chain, ChainError, Pins
from strategies.proof.entries import OF_A_ROUND, Entry, Signed, is_hex, read

_START = b'{"hidden":'
_ALWAYS = frozenset({"genesis", "policy", "freeze", "restore", "key_rotate"})


@dataclass(frozen=True, kw_only=True)
class Link:
    """A stretch of lines that are not shown.

    Args:
        first: position of the first of them.
        last: position of the last of them.
        hash: SHA-256 of the last line.
    """

    first: int
    last: int
    hash: str

    def to_bytes(self) -> bytes:
        """Return its canonical line."""
        return dump({"hidden": {"from": self.first, "hash": self.hash, "to": self.last}})


def extract(lines: Iterable[bytes], *, run: str, data_root: str) -> list[bytes]:
    """Return what a reader of one run needs of a ledger.

    Args:
        lines: of the whole ledger, which holds.
        run: identity of the run.
        data_root: which the run reads.
    """
    found: list[bytes | Link] = []
    for line in lines:
        entry = read(line).entry
        if _concerns(entry, run, data_root):
            found.append(line)
            continue
        before = found.pop() if found and isinstance(found[-1], Link) else None
        first = before.first if isinstance(before, Link) else entry.seq
        found.append(Link(first=first, last=entry.seq, hash=hashlib.sha256(line).hexdigest()))
    return [one.to_bytes() if isinstance(one, Link) else one for one in found]


def _concerns(entry: Entry, run: str, data_root: str) -> bool:
    if entry.kind in OF_A_ROUND:
        return entry.run == run
    return entry.kind in _ALWAYS or (entry.kind == "data_root" and entry.data_root == data_root)


def items(lines: Iterable[bytes]) -> Iterator[Signed | Link]:
    """Read the lines of a ledger or of an extract.

    Raises:
        VerificationError: one is neither an entry nor a link.
    """
    for line in lines:
        yield _link(line) if line.startswith(_START) else read(line)


def entries(lines: Iterable[bytes]) -> list[Entry]:
    """Return the entries that are shown."""
    return [item.entry for item in items(lines) if isinstance(item, Signed)]


def read_extract(lines: Iterable[bytes], pins: Pins) -> Chain:
    """Check all lines of a ledger, or of an extract, and return the chain.

    Raises:
        ChainError: with the first position that does not hold.
    """
    chain, rest = Chain(pins), items(lines)
    while True:
        try:
            item = next(rest, None)
        except VerificationError as error:
            raise ChainError(chain.seq + 1, str(error)) from None
        if item is None:
            break
        if isinstance(item, Link):
            chain.skip(item.first, item.last, item.hash)
        else:
            chain.extend(item)
    if chain.seq == 0:
        raise ChainError(1, "the ledger is empty")
    return chain


def _link(line: bytes) -> Link:
    value = load(line)
    fields = value.get("hidden") if len(value) == 1 else None
    if not isinstance(fields, dict) or fields.keys() != {"from", "to", "hash"}:
        raise VerificationError("the line is no link over lines that are not shown")
    first, last, digest = fields["from"], fields["to"], fields["hash"]
    if not (type(first) is int and type(last) is int and is_hex(digest)):
        raise VerificationError("a link over lines that are not shown has a value that it cannot have")
    return Link(first=first, last=last, hash=digest)
