"""A silo's side of secure aggregation: bytes in, bytes and changes of durable rows out (SECAGG-FLOW 2, E0 to 21).

A session holds no state of its own. Whoever keeps the rows (`rows.py`) gives it what stands there now, applies the
changes of a step in one transaction, and only then sends the reply; a session may be made anew for each message.

Guarantees, as long as changes are durable before replies leave: one vector is masked once; for one sum a silo backs all
of its cohort or one set of survivors, never two; the silo's own seed leaves only as shares to others; a seed of a pair
leaves only when exactly one of the two is among the survivors that enough silos have signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from strategies.secagg.claims import Claim, Masking, Noise, masked
from strategies.secagg.directory import Directory
from strategies.secagg.encoding import enc, names, sha256, take
from strategies.secagg.errors import Code, SecaggError
from strategies.secagg.keys import new_secret, pair_key, public_of, stepped, verified
from strategies.secagg.messages import (
    Ask,
    Entry,
    Record,
    Request,
    Sign,
    end_statement,
    manifest_statement,
    well_formed,
)
from strategies.secagg.ring import OnClamp
from strategies.secagg.rows import (
    EXACT,
    PEERS,
    RUN,
    SECRET,
    Change,
    Joined,
    Peers,
    Read,
    State,
    Step,
    SumRow,
    UploadStep,
    closed_run,
    step,
    sum_key,
)
from strategies.secagg.setup import Floors, Setup
from strategies.secagg.unmasking import Holder


class SiloSession:
    """One silo in one run.

    Args:
        name: this silo.
        sign: Ed25519 signature by this silo's key of the roster.
        members: Ed25519 public keys of the roster, 32 bytes each, by silo.
        expected: the set-up as this silo derives it from the agreed study and manifest.
        floors: what this silo insists on besides.
        read: durable rows of this run.
    """

    def __init__(
        self,
        *,
        name: str,
        sign: Sign,
        members: Mapping[str, bytes],
        expected: Setup,
        floors: Floors,
        read: Read,
    ) -> None:
        self._name, self._sign, self._members = name, sign, members
        self._setup, self._floors, self._read = expected, floors, read
        self._digest = expected.digest()
        self._coordinator = bytes.fromhex(expected.coordinator)

    # --- the run --------------------------------------------------------------------------------------------

    def join(self, request: bytes) -> Step:
        """Answer an invitation with a signed key of this run (E0 2 and 3); the same answer every time.

        Raises:
            SecaggError: MALFORMED, SIGNATURE, SIZE, FLOOR, ROOM, MANIFEST, RUN_USED.
        """
        with well_formed():
            text, signature = take(request, 2)
        self._signed(manifest_statement(sha256(text)), signature)
        Setup.from_bytes(text).check(self._floors)
        roster = len(self._members) == self._setup.silos and self._name in self._members
        if text != self._setup.to_bytes() or not roster:
            raise SecaggError(Code.MANIFEST)
        row = self._read(RUN)
        if row is not None:
            joined = Joined.read(row)
            if joined.closed or joined.digest != self._digest:
                raise SecaggError(Code.RUN_USED)
            return step(joined.reply)
        secret = new_secret()
        entry = Entry(silo=self._name, key=public_of(secret), signature=b"")
        reply = replace(entry, signature=self._sign(entry.statement(self._digest))).to_bytes()
        joined = Joined(digest=self._digest, reply=reply)
        return step(
            reply,
            Change(key=RUN, expected=None, new=joined.to_bytes()),
            Change(key=SECRET, expected=None, new=secret),
        )

    def leave(self) -> tuple[Change, ...]:
        """Return the changes that end the run here: its secrets are erased, its identity is never joined again."""
        row, peers = self._read(RUN), self._read(PEERS)
        reply = Joined.read(row).reply if row is not None else b""
        if closed_run(row):
            return ()
        last = Peers.read(peers).last if peers is not None else 0
        closed = Joined(digest=self._digest, reply=reply, closed=True, last=last)
        kept = [(RUN, row, closed.to_bytes()), (PEERS, peers, None)]
        kept += [(key, self._read(key), None) for key in (SECRET, EXACT)]
        changes = [Change(key=key, expected=old, new=new) for key, old, new in kept if old != new]
        return (*changes, *self._over(last))

    # --- an upload ------------------------------------------------------------------------------------------

    def claim(self, request: bytes, *, model: bytes, config: bytes) -> Claim:
        """Check a request for a sum (A, 6 to 9).

        Args:
            request: as it came.
            model: SHA-256 of the model that came with it.
            config: SHA-256 of the settings that came with it.

        Raises:
            SecaggError: one code a check; nothing changes.
        """
        asked = Request.read(request)
        self._signed(asked.statement(self._digest), asked.signature)
        if asked.model != model:
            raise SecaggError(Code.MODEL)
        if asked.config != config:
            raise SecaggError(Code.CONFIG)
        before, peers = self._peers(asked)
        self._check_cohort(asked, peers)
        ctx, row = asked.context(self._digest), self._read(sum_key(asked.t))
        if row is not None:
            return _again(SumRow.read(row), asked, ctx)
        if not peers.last < asked.t <= self._setup.sums:
            raise SecaggError(Code.ORDER)
        keys = {peer: stepped(pair, peers.last, asked.t) for peer, pair in peers.keys.items()}
        now = Peers(last=asked.t, directory=peers.directory, keys=keys)
        return Claim(
            t=asked.t,
            kind=asked.kind,
            ctx=ctx,
            cohort=asked.cohort,
            changes=(
                Change(key=PEERS, expected=before, new=now.to_bytes()),
                *self._over(peers.last),
                *self._begun(asked, ctx, first=before is None),
            ),
            keys={peer: bytearray(keys[peer]) for peer in asked.cohort if peer != self._name},
        )

    def mask(
        self,
        claim: Claim,
        vectors: Sequence[NDArray[Any]],
        *,
        on_clamp: OnClamp | None = None,
        noise: Noise | None = None,
    ) -> UploadStep:
        """Mask this silo's vectors (10 to 13). The claim is used up, whatever happens.

        Args:
            claim: whose changes are durable.
            vectors: one a segment of the kind's ring.
            on_clamp: told a segment's name and how many of its values were clamped; for the silo's own log.
            noise: as in `Masking`.

        Returns:
            The upload; its changes go with the ledger's release of its digest.

        Raises:
            SecaggError: CLAIM.
            ProtocolError: a vector does not fit its segment, or is not finite.
        """
        key = sum_key(claim.t)
        row = self._read(key)
        claimed = SumRow(state=State.CLAIMED, ctx=claim.ctx, kind=claim.kind, cohort=claim.cohort)
        if row != claimed.to_bytes() or not claim.keys:
            raise SecaggError(Code.CLAIM)
        masking = Masking(
            silo=self._name,
            sign=self._sign,
            ring=self._setup.kinds[claim.kind],
            threshold=self._setup.threshold(len(claim.cohort)),
            on_clamp=on_clamp,
            noise=noise,
        )
        try:
            done = masked(claim, masking, vectors)
        finally:
            claim.erase()
        after = replace(claimed, state=State.MASKED, upload=done.digest, words=done.words, share=done.share)
        change = Change(key=key, expected=row, new=after.to_bytes())
        return UploadStep(reply=done.upload, changes=(change,), digest=done.digest)

    # --- the end of a sum -----------------------------------------------------------------------------------

    def unmask(self, request: bytes) -> Step:
        """Answer a request to unmask (15 to 19): shares of all, a signed view, or shares of the survivors.

        A step with an `alarm` is made durable like any other; its reply is a code.

        Raises:
            SecaggError: one code a check; nothing changes.
        """
        ask = Ask.read(request)
        self._signed(ask.statement(), ask.signature)
        row, peers = self._read(sum_key(ask.t)), self._read(PEERS)
        if row is None or peers is None:
            raise SecaggError(Code.STATE)
        found = SumRow.read(row)
        if found.ctx != ask.ctx or ask.silo != self._name:
            raise SecaggError(Code.CONTEXT)
        if found.over:
            raise SecaggError(Code.OVER)
        holder = Holder(
            silo=self._name,
            sign=self._sign,
            setup=self._setup,
            members=self._members,
            keys=Peers.read(peers).keys,
            key=sum_key(ask.t),
            row=found,
        )
        return holder.answer(ask, sha256(request))

    def close(self, request: bytes) -> Step:
        """Check the record of a sum (21), or end the run where the server says so. The reply is empty.

        Raises:
            SecaggError: MALFORMED, SIGNATURE, CONTEXT, RECORD.
        """
        with well_formed():
            domain, *rest = take(request)
            if domain == b"end":
                (signature,) = rest
        if domain == b"end":
            self._signed(end_statement(self._digest), signature)
            return step(b"", *self.leave())
        record = Record.read(request)
        self._signed(record.statement(), record.signature)
        row = self._read(sum_key(record.t))
        if row is None or SumRow.read(row).ctx != record.ctx:
            raise SecaggError(Code.CONTEXT)
        found = SumRow.read(row)
        stated = dict(zip(record.survivors, record.words, strict=False))
        same = len(record.words) == len(record.survivors) and set(stated) <= set(found.cohort)
        same = same and found.survivors in ((), record.survivors)
        if not same or (self._name in stated and (not found.words or stated[self._name] != found.words)):
            raise SecaggError(Code.RECORD)
        return step(b"", *self._over(record.t))

    # --- within ---------------------------------------------------------------------------------------------

    def _signed(self, statement: bytes, signature: bytes) -> None:
        if not verified(self._coordinator, signature, statement):
            raise SecaggError(Code.SIGNATURE)

    def _exact(self, asked: Request) -> bool:
        return self._setup.kinds[asked.kind].protection == "none"

    def _begun(self, asked: Request, ctx: bytes, *, first: bool) -> tuple[Change, ...]:
        """Return the changes that begin a sum, beside those of the keys; with the first one the private key goes."""
        claimed = SumRow(state=State.CLAIMED, ctx=ctx, kind=asked.kind, cohort=asked.cohort)
        changes = [Change(key=sum_key(asked.t), expected=None, new=claimed.to_bytes())]
        if first:
            changes.append(Change(key=SECRET, expected=self._read(SECRET), new=None))
        if self._exact(asked) and self._read(EXACT) is None:
            changes.append(Change(key=EXACT, expected=None, new=enc(*asked.cohort)))
        return tuple(changes)

    def _over(self, t: int) -> tuple[Change, ...]:
        """Return the change that ends sum t, if it is not over."""
        row = self._read(sum_key(t))
        if row is None or SumRow.read(row).over:
            return ()
        closed = SumRow.read(row).ended(State.CLOSED)
        return (Change(key=sum_key(t), expected=row, new=closed.to_bytes()),)

    def _peers(self, asked: Request) -> tuple[bytes | None, Peers]:
        """Return the row of the pinned directory as it stands, and what it says; at the first sum what it will say."""
        row, run, secret = self._read(PEERS), self._read(RUN), self._read(SECRET)
        if run is None or Joined.read(run).closed:
            raise SecaggError(Code.NOT_JOINED)
        if row is not None:
            peers = Peers.read(row)
            if asked.directory != peers.directory:
                raise SecaggError(Code.DIRECTORY)
            return row, peers
        directory = Directory.read(asked.entries)
        if secret is None or directory.hash(self._digest) != asked.directory:
            raise SecaggError(Code.DIRECTORY)
        directory.check(self._digest, self._members)
        keys = {entry.silo: entry.key for entry in directory.entries}
        if keys.pop(self._name, b"") != Entry.read(Joined.read(run).reply).key:
            raise SecaggError(Code.OWN_KEY)
        shared = {peer: pair_key(secret, self._name, key, peer, asked.directory) for peer, key in keys.items()}
        return None, Peers(last=0, directory=asked.directory, keys=shared)

    def _check_cohort(self, asked: Request, peers: Peers) -> None:
        if asked.kind not in self._setup.kinds:
            raise SecaggError(Code.KIND)
        if self._name not in asked.cohort or not set(asked.cohort) <= {self._name, *peers.keys}:
            raise SecaggError(Code.COHORT)
        self._setup.check_cohort(len(asked.cohort))
        first = self._read(EXACT)
        if self._exact(asked) and first is not None and names(first) != asked.cohort:
            raise SecaggError(Code.EXACT_COHORT)


def _again(row: SumRow, asked: Request, ctx: bytes) -> Claim:
    """Answer a request for a sum that is known here: the stored upload, or nothing (8)."""
    if row.ctx != ctx:
        raise SecaggError(Code.OTHER_SUM)
    if row.over:
        raise SecaggError(Code.OVER)
    if row.state is State.CLAIMED:
        raise SecaggError(Code.BURNT)
    return Claim(t=asked.t, kind=asked.kind, ctx=ctx, cohort=asked.cohort, upload=row.upload)
