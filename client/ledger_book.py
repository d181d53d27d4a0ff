"""The ledger's file together with what this process has verified of it: nothing is read or written past the chain.

On opening, every entry is read and every link checked, with the signature of the last, which covers all before it. A
process that has done so reads only what came after, once the line that it knows last is still there.

A ledger that could not be written, or whose known lines are gone, is frozen: `ledger.frozen` beside it says why and
where the ledger stood, and nothing is written. The next opening checks every signature. Where all that was acknowledged
is still there, the file is written anew (a failed sync may leave pages that only look written) and the mark goes;
otherwise it stays until the officer restores the ledger.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.filesystem import HEAD_ROOM_BYTES, require_durable
from client.keys import ledger_key, read_pin, sync_folder
from client.ledger_file import COUNTED, Durability, LedgerFile
from strategies.errors import LedgerError, ProtocolError, SettingError, VerificationError
from strategies.privacy.budget import Budget
from strategies.proof.canonical import dump, load
from strategies.proof.chain import Chain, ChainError, Pins
from strategies.proof.entries import Entry, Signed, public_hex, read, read_spent, sign
from strategies.proof.heads import Head
from strategies.secagg.rows import Change

_MOST_KNOWN = 1024  # chains that a process remembers


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a ledger and its keys lie, and how it is kept.

    Args:
        path: the SQLite file.
        keys: the silo's keys folder.
        durability: `power-loss`, or `process` for a simulated silo, whose keys have no passphrase.
        passphrase: of the ledger's key; needed when something is written.
        allow_volatile: keep the ledger on a file system that may lose it.
        limits: the policy's budgets by data root, which may only be stricter; None has no policy.
    """

    path: Path
    keys: Path
    durability: Durability = "power-loss"
    passphrase: bytes | None = field(default=None, repr=False)
    allow_volatile: bool = False
    limits: Mapping[str, Budget] | None = None

    @property
    def durable(self) -> bool:
        """Whether entries survive a loss of power."""
        return self.durability == "power-loss"

    @property
    def marker(self) -> Path:
        """The file that says that the ledger is frozen."""
        return self.path.with_suffix(".frozen")

    def key(self) -> Ed25519PrivateKey:
        """Return the ledger's private key."""
        return ledger_key(self.keys, self.passphrase, simulated=not self.durable)

    def require_durable(self) -> None:
        """Raise a `SettingError` where the file system may lose the ledger and nobody has allowed it."""
        if self.durable and not self.allow_volatile:
            require_durable(self.path.parent)


@dataclass(frozen=True, kw_only=True)
class Frost:
    """Why a ledger is frozen, and where it stood; None when the mark cannot be read."""

    reason: str
    head: Head | None


@dataclass(kw_only=True)
class _Known:
    """What this process has verified of one ledger; no chain before that, and after an entry was not acknowledged."""

    chain: Chain | None = None
    frost: Frost | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)


_known: dict[tuple[Path, str], _Known] = {}


class Book:
    """An open ledger file and its chain.

    Args:
        place: where it lies.
        pins: which ledger it must be.

    Raises:
        LedgerError: the file is missing, or does not hold.
    """

    def __init__(self, place: Place, pins: Pins) -> None:
        self.place, self.pins, self._marker = place, pins, place.marker
        identity = place.path.resolve(), pins.ledger_id
        self._known = _known.setdefault(identity, _Known())
        while len(_known) > _MOST_KNOWN:
            del _known[next(iter(_known))]
        self._signer_of = ""
        self.signer: Ed25519PrivateKey | None = None  # read when something is signed; a handed over key at once
        self._file = LedgerFile(place.path, durable=place.durable)
        try:
            with self._known.lock:
                if self._known.frost or place.marker.exists():
                    self._thaw()
                self.view()
        except BaseException:
            self.close()
            raise

    @classmethod
    @contextmanager
    def open(cls, place: Place) -> Iterator[Book]:
        """Open and verify the ledger at a place; closed when the block ends.

        Raises:
            SettingError: the pin is missing, or the file system may lose the ledger.
            LedgerError: the file is missing, or an entry does not hold.
        """
        place.require_durable()
        book = cls(place, read_pin(place.keys))
        try:
            yield book
        finally:
            book.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # --- reading --------------------------------------------------------------------------------------------

    def view(self) -> Chain:
        """Return the chain up to the last line of the file.

        Raises:
            LedgerError: the file does not hold, or a line that was known is gone; the ledger is frozen then.
        """
        with self._known.lock, self._file.reading():
            return self._extend(quick=True)

    def line(self, seq: int) -> bytes | None:
        """Return the line at a position."""
        return self._file.line(seq)

    def lines(self) -> list[bytes]:
        """Return all lines, which hold."""
        with self._known.lock, self._file.reading():
            self._extend(quick=True)
            return [line for _, line in self._file.lines()]

    def sketches(self) -> dict[str, bytes]:
        """Return the sketches of units by data root."""
        return self._file.sketches()

    @property
    def frozen(self) -> str | None:
        """Why nothing may be written, or None."""
        if self._known.frost is not None:
            return self._known.frost.reason
        return self._known.chain.frozen if self._known.chain is not None else None

    @property
    def frost(self) -> Frost | None:
        """The mark beside the ledger, if there is one."""
        return self._known.frost

    def require_usable(self) -> None:
        """Return when the ledger may be written.

        Raises:
            LedgerError: it is frozen.
        """
        if self.frozen is not None:
            raise LedgerError(
                f"{self.place.path} is frozen: {self.frozen}; find out why, then use fedsilo-silo restore with the "
                "officer's key"
            )

    def require_room(self) -> None:
        """Return when a round's entries have room on the disk.

        Raises:
            LedgerError: there is too little.
        """
        if self.place.durable and self._file.free_bytes() < HEAD_ROOM_BYTES:
            raise LedgerError(f"less than 64 MiB are free beside {self.place.path}; make room before the next round")

    # --- writing --------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, *, frozen: bool = False) -> Iterator[Chain]:
        """Hold the ledger alone; what was appended is durable when the block has ended, or not there at all.

        Args:
            frozen: go on although the ledger is frozen.

        Raises:
            LedgerError: the ledger is frozen, or cannot be written: it is frozen then, and nothing was acknowledged.
        """
        with self._known.lock:
            before: tuple[int, str] | None = None
            try:
                with self._file.writing():
                    chain = self._extend(quick=True)
                    if not frozen:
                        self.require_usable()
                        if self._marker.exists():
                            raise LedgerError(f"another process has frozen {self.place.path}; open it again")
                    before = chain.seq, chain.hash
                    yield chain
            except BaseException as error:
                chain_now = self._known.chain
                if self._file.broken and chain_now is not None:
                    seq, digest = before or (chain_now.seq, chain_now.hash)
                    # What was on its way is counted among what was spent: it may or may not have come to stand.
                    head = Head(ledger_id=self.pins.ledger_id, seq=seq, hash=digest, spent=chain_now.spent())
                    self._freeze(str(error), head)
                if before is not None and chain_now is not None and chain_now.seq != before[0]:
                    self._known.chain = None
                raise

    def append(
        self,
        chain: Chain,
        kind: str,
        body: dict[str, Any],
        *,
        beside: Mapping[str, Ed25519PrivateKey] | None = None,
        **fields: Any,
    ) -> Signed:
        """Sign an entry, check it as a reader would, and write it, inside `writing`.

        Args:
            chain: as `writing` gave it.
            kind: of the entry.
            body: of the entry.
            beside: the keys that must sign beside the ledger's: dpo, new.
            fields: further fields of the entry.

        Raises:
            ChainError: it may not stand here.
            SettingError: the ledger's key cannot be had.
        """
        signed = sign(next_entry(chain, kind, body, **fields), {"ledger": self.key(chain), **(beside or {})})
        chain.extend(signed, all_signatures=False)  # the ledger's own was made by the right key just now
        self._file.append(signed.entry.seq, signed.line)
        return signed

    def key(self, chain: Chain) -> Ed25519PrivateKey:
        """Return the ledger's private key.

        Raises:
            SettingError: it cannot be had, or is not the key of this ledger.
        """
        if self.signer is not None and self._signer_of == chain.ledger_key:
            return self.signer
        self.signer = self.signer or self.place.key()
        self._signer_of = public_hex(self.signer)
        if self._signer_of != chain.ledger_key:
            self.signer = None
            raise SettingError(
                f"{self.place.keys / 'ledger.pem'} is not the key of this ledger; put the silo's own file back"
            )
        return self.signer

    def keep_sketch(self, data_root: str, macs: bytes) -> None:
        """Add the sketch of a data root's units, inside `writing`."""
        self._file.keep_sketch(data_root, macs)

    def row(self, run: str, key: str) -> bytes | None:
        """Return what secure aggregation keeps of a run under a key."""
        return self._file.row(run, key)

    def change(self, run: str, changes: Iterable[Change]) -> None:
        """Compare and set rows of a run, inside `writing`.

        Raises:
            ProtocolError: another request has moved one of them; nothing of the transaction comes to stand.
        """
        if not self._file.change(run, changes):
            raise ProtocolError("another request has moved this sum; nothing was changed")

    def restored(self) -> None:
        """Take the mark away after the officer's entry has come to stand."""
        self._known.frost = None
        self.place.marker.unlink(missing_ok=True)
        sync_folder(self.place.path.parent)

    # --- within ---------------------------------------------------------------------------------------------

    def _extend(self, *, quick: bool) -> Chain:
        known = self._known.chain
        chain = known or Chain(self.pins)
        try:
            with closing(self._file.lines(max(chain.seq, 1))) as rows:
                _follow(chain, rows, quick=quick and known is None)
            if self._file.last() != chain.seq % COUNTED:
                raise ChainError(chain.seq + 1, f"the file's header counts {self._file.last()} as its last")
            if known is None:
                _check_sketches(chain, self._file.sketches())
        except VerificationError as error:
            self._known.chain = None
            if known is not None:
                self._freeze(f"lines that were there are there no more ({error})", known.head())
            raise LedgerError(
                f"{self.place.path} does not hold: {error}; put back a backup, then use fedsilo-silo restore"
            ) from None
        self._known.chain = chain
        return chain

    def _freeze(self, reason: str, head: Head) -> None:
        self._known.frost = Frost(reason=reason, head=head)
        with suppress(OSError):  # a full disk: this process knows, and the next one reads every entry anyway
            self.place.marker.write_bytes(dump({"reason": reason, "head": head.value()}))

    def _thaw(self) -> None:
        """Check everything; go on where nothing that was acknowledged is missing."""
        frost = self._known.frost or _read_frost(self.place.marker)
        self._known.frost, self._known.chain = frost, None
        with self._file.reading():
            chain = self._extend(quick=False)
        if frost.head is not None and chain.is_stray(frost.head):
            return
        if self.place.durable:
            self._file.rewritten()
            self._file = LedgerFile(self.place.path, durable=True)
        self.restored()


def next_entry(chain: Chain, kind: str, body: dict[str, Any], **fields: Any) -> Entry:
    """Return the entry that would follow, with the time of now and the machine's boot."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values: dict[str, Any] = {
        "ledger_id": chain.pins.ledger_id,
        "seq": chain.next_position(kind, body),
        "prev": chain.hash,
        "time": max(now, chain.time),
        "boot": _boot(),
        "policy": chain.policy,
    }
    return Entry(**(values | fields), kind=kind, body=body)


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
    except OSError:
        return ""


def _follow(chain: Chain, rows: Iterator[tuple[int, bytes]], *, quick: bool) -> None:
    """Extend a chain by the rows of a file, the first of which is the chain's last entry."""
    last: Signed | None = None
    if chain.seq:
        seq, line = next(rows, (0, b""))
        if seq != chain.seq or not isinstance(line, bytes) or hashlib.sha256(line).hexdigest() != chain.hash:
            raise ChainError(chain.seq, "it is not the line that stood there")
    for seq, line in rows:
        try:
            last = read(line if isinstance(line, bytes) else b"")
        except VerificationError as error:
            raise ChainError(chain.seq + 1, str(error)) from None
        if last.entry.seq != seq:
            raise ChainError(chain.seq + 1, f"it stands at position {seq} of the file")
        chain.extend(last, all_signatures=not quick)
    if chain.seq == 0:
        raise ChainError(1, "the ledger is empty")
    if quick and last is not None:
        chain.check_last(last)


def _check_sketches(chain: Chain, sketches: Mapping[str, bytes]) -> None:
    for name, account in chain.accounts.items():
        wanted = account.root.fingerprint if account.root else ""
        if wanted != (hashlib.sha256(sketches[name]).hexdigest() if name in sketches else ""):
            raise VerificationError(f"the sketch of the units of '{name}' is not the registered one")


def _read_frost(path: Path) -> Frost:
    try:
        value = load(path.read_bytes())
        fields = value["head"]
        head = Head(**(fields | {"spent": read_spent(fields["spent"])}))
        return Frost(reason=str(value["reason"]), head=head)
    except (OSError, VerificationError, KeyError, TypeError):
        return Frost(reason=f"{path} cannot be read", head=None)
