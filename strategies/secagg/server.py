"""The server's side of secure aggregation in one run: who takes part, and the numbers of the sums (SECAGG-FLOW 2, E0).

The server is trusted with nothing but going on: every instruction is signed, so that a silo can prove what it was
asked, and what a dishonest server may ask is refused by the silos (`silo.py`). Sums are in `sums.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.secagg.directory import Directory, holds
from strategies.secagg.encoding import enc, names, number, ordered, take
from strategies.secagg.errors import Code, SecaggError, noticed
from strategies.secagg.keys import agreed, new_secret
from strategies.secagg.messages import Entry, Request, end_statement, manifest_statement
from strategies.secagg.setup import Floors, Setup
from strategies.secagg.sums import Phase, Run, Sum


class ServerSession:
    """The server in one run.

    Args:
        setup: the run's.
        key: the coordinator's private key.
        members: Ed25519 public keys of the roster, 32 bytes each, by silo.

    Raises:
        SecaggError: MANIFEST, SIZE, FLOOR or ROOM; no silo would join such a run.
    """

    def __init__(self, setup: Setup, key: Ed25519PrivateKey, members: Mapping[str, bytes]) -> None:
        if key.public_key().public_bytes_raw().hex() != setup.coordinator or len(members) != setup.silos:
            raise SecaggError(Code.MANIFEST)
        setup.check(Floors(least=2, pair_with_local_dp=True))
        self._setup, self._key, self._members = setup, key, members
        self._digest = setup.digest()
        self._directory: Directory | None = None
        self._last = 0
        self._exact: tuple[str, ...] = ()  # cohort of the sums without noise
        self._sum: Sum | None = None
        self._met: frozenset[str] = frozenset()  # silos that have pinned the directory

    # --- who takes part -------------------------------------------------------------------------------------

    def invitation(self) -> bytes:
        """Return the request that every silo of the roster gets; answered by `SiloSession.join`."""
        return enc(self._setup.to_bytes(), self._key.sign(manifest_statement(self._digest)))

    def admit(self, replies: Mapping[str, bytes]) -> Mapping[str, str]:
        """Make the directory of keys, once (4); return who is left out and the code of why.

        Raises:
            SecaggError: STATE, the directory is made already; ABSENT, naming those who are left out: too few are in it.
        """
        if self._directory is not None:
            raise SecaggError(Code.STATE)
        entries: dict[str, Entry] = {}
        out: dict[str, str] = {}
        for silo, reply in replies.items():
            found = self._entry(silo, reply)
            if isinstance(found, Code):
                out[silo] = found.value
            else:
                entries[silo] = found
        used = Counter(entry.key for entry in entries.values())
        out |= {silo: Code.ENTRY.value for silo, entry in entries.items() if used[entry.key] > 1}
        directory = Directory.of(entry for silo, entry in entries.items() if silo not in out)
        if len(directory.entries) < self._setup.least:
            raise SecaggError(Code.ABSENT, ordered(tuple(out)))
        self._directory = directory
        return out

    def _entry(self, silo: str, reply: bytes) -> Entry | Code:
        code = noticed(reply)
        if code is not None:
            return code
        try:
            entry = Entry.read(reply)
        except SecaggError as error:
            return error.code
        if entry.silo != silo or not holds(entry, self._digest, self._members):
            return Code.ENTRY
        return entry if agreed(new_secret(), entry.key) is not None else Code.LOW_ORDER

    @property
    def seated(self) -> tuple[str, ...]:
        """Silos of the directory; empty before `admit`."""
        return self._directory.silos if self._directory else ()

    # --- sums -----------------------------------------------------------------------------------------------

    def begin(self, kind: str, cohort: Sequence[str], *, model: bytes, config: bytes) -> Sum:
        """Begin the next sum; the one before must have ended.

        Persist `snapshot` of session and sum before a request is sent.

        Args:
            kind: of the sum.
            cohort: silos of the directory.
            model: SHA-256 of the model as it is sent.
            config: SHA-256 of the settings as they are sent.

        Raises:
            SecaggError: STATE, KIND, COHORT, THRESHOLD, EXACT_COHORT, ORDER.
        """
        run, silos = self._run(), ordered(cohort)
        if self._sum is not None and self._sum.phase not in (Phase.DONE, Phase.ABORTED):
            raise SecaggError(Code.STATE)
        if kind not in self._setup.kinds:
            raise SecaggError(Code.KIND)
        if not set(silos) <= set(self.seated) or len(silos) != len(cohort):
            raise SecaggError(Code.COHORT)
        self._setup.check_cohort(len(silos))
        exact = self._setup.kinds[kind].protection == "none"
        if exact and self._exact not in ((), silos):
            raise SecaggError(Code.EXACT_COHORT)
        if self._last >= self._setup.sums:
            raise SecaggError(Code.ORDER)
        self._last += 1
        self._exact = silos if exact else self._exact
        asked = Request(directory=run.hash(), t=self._last, kind=kind, cohort=silos, model=model, config=config)
        signed = replace(asked, signature=self._key.sign(asked.statement(self._digest)))
        if self._sum is not None:
            self._met |= self._sum.met
        self._sum = Sum(run, signed, self._met)
        return self._sum

    def farewell(self) -> bytes:
        """Return the message that ends the run at a silo; answered by `SiloSession.close`."""
        return enc("end", self._key.sign(end_statement(self._digest)))

    # --- a restart ------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Return what a restarted server needs, besides the snapshot of a sum that has not ended."""
        entries = self._directory.to_bytes() if self._directory else b""
        met = self._met | (self._sum.met if self._sum else frozenset())
        return enc(entries, self._last, self._exact, ordered(tuple(met)))

    @classmethod
    def restore(cls, setup: Setup, key: Ed25519PrivateKey, members: Mapping[str, bytes], data: bytes) -> Self:
        """Go on from a snapshot of this server's own."""
        entries, last, exact, met = take(data, 4)
        found = cls(setup, key, members)
        found._directory = Directory.read(entries) if entries else None
        found._last, found._exact, found._met = number(last), names(exact), frozenset(names(met))
        return found

    def resume(self, data: bytes) -> Sum:
        """Go on with a sum from its snapshot."""
        self._sum = Sum.restore(self._run(), data)
        return self._sum

    def _run(self) -> Run:
        if self._directory is None:
            raise SecaggError(Code.STATE)
        return Run(setup=self._setup, key=self._key, members=self._members, directory=self._directory)
