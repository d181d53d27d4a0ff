"""The directory of keys: who takes part in a run, each with a key that its roster key has signed for this run.

The server makes it once; a silo checks all of it at the first sum and holds on to its hash, so nobody is added, left
out or given another key later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from strategies.secagg.encoding import enc, ordered, sha256, take
from strategies.secagg.errors import Code, SecaggError
from strategies.secagg.keys import verified
from strategies.secagg.messages import Entry, well_formed


@dataclass(frozen=True, kw_only=True)
class Directory:
    """Keys of a run, sorted by name."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """Return the directory of these entries, each of another silo."""
        return cls(entries=tuple(sorted(entries, key=lambda entry: entry.silo.encode())))

    @property
    def silos(self) -> tuple[str, ...]:
        """Names, sorted bytewise."""
        return tuple(entry.silo for entry in self.entries)

    def hash(self, digest: bytes) -> bytes:
        """Return dir_hash, in the run with this H(M)."""
        return sha256(enc("fsa1/dir", digest, *((entry.silo, entry.key) for entry in self.entries)))

    def to_bytes(self) -> bytes:
        """Return it as it is sent."""
        return enc(*(entry.to_bytes() for entry in self.entries))

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a directory; nothing of it is checked yet.

        Raises:
            SecaggError: MALFORMED.
        """
        with well_formed():
            return cls(entries=tuple(Entry.read(item) for item in take(data)))

    def check(self, digest: bytes, members: Mapping[str, bytes]) -> None:
        """Check every entry; a directory that is too small has no cohort that is large enough.

        Args:
            digest: H(M).
            members: Ed25519 keys of the roster by silo.

        Raises:
            SecaggError: ENTRY, naming the silo; DIRECTORY when it is not in order.
        """
        if self.silos != ordered(self.silos):
            raise SecaggError(Code.DIRECTORY)
        keys = [entry.key for entry in self.entries]
        for entry in self.entries:
            if not holds(entry, digest, members) or keys.count(entry.key) > 1:
                raise SecaggError(Code.ENTRY, [entry.silo])


def holds(entry: Entry, digest: bytes, members: Mapping[str, bytes]) -> bool:
    """Return whether an entry is signed, for this run, by the roster's silo that it names."""
    return entry.silo in members and verified(members[entry.silo], entry.signature, entry.statement(digest))
