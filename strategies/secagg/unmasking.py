"""A silo's answers when a sum is unmasked (SECAGG-FLOW 2, B-full, B1, B2; 15 to 19).

    full   MASKED -> FULL   everybody has sent: its share of each silo's own seed
    view   MASKED -> VIEW   somebody has not: its signature under one set of survivors
    open   VIEW -> OPEN     that set is certified: shares of the survivors' own seeds, and of the seeds of the pairs
                            between a survivor and a dropped silo

Guarantees: whatever it is asked, a silo lets out shares for one set of survivors only. It never lets out its own seed,
a share of a dropped silo's own seed, or a seed of two survivors or of two dropped silos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from strategies.secagg.boxes import Label, unseal
from strategies.secagg.claims import pair_seed
from strategies.secagg.encoding import names, ordered
from strategies.secagg.errors import Code, SecaggError
from strategies.secagg.keys import verified
from strategies.secagg.messages import (
    Ask,
    Box,
    OpenBody,
    Opening,
    Shares,
    Sign,
    View,
    read_boxes,
    view_statement,
    well_formed,
)
from strategies.secagg.rows import Change, State, Step, SumRow, alarm, step
from strategies.secagg.setup import Setup
from strategies.secagg.shares import from_bytes, to_bytes


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A silo that holds shares of one sum.

    Args:
        silo: its name.
        sign: its Ed25519 signature.
        setup: of the run.
        members: Ed25519 keys of the roster by silo.
        keys: shared with each peer in this sum.
        key: of the sum's row.
        row: of the sum, which is not over.
    """

    silo: str
    sign: Sign
    setup: Setup
    members: Mapping[str, bytes]
    keys: Mapping[str, bytes] = field(repr=False)
    key: str
    row: SumRow

    def answer(self, ask: Ask, request: bytes) -> Step:
        """Answer a request whose signature, sum and receiver hold.

        Args:
            ask: the request.
            request: SHA-256 of its bytes.

        Raises:
            SecaggError: STATE, BOXES, VIEW, EXACT_VIEW, CERTIFICATE, MALFORMED; nothing changes.
        """
        return {"full": self._full, "view": self._view, "open": self._open}[ask.phase](ask.body, request)

    def _full(self, body: bytes, request: bytes) -> Step:
        row, cohort = self.row, self.row.cohort
        if row.state is not State.MASKED and (row.state, row.request) != (State.FULL, request):
            raise SecaggError(Code.STATE)
        boxes = read_boxes(body, 1)
        found = self._unsealed(cohort, boxes, ("b",), (1,))
        failed = tuple(peer for peer, shares in found.items() if shares is None)
        if len(failed) > self.setup.max_colluding:
            return self._alarm(failed)
        reply = Shares(ctx=row.ctx, silo=self.silo, shares=self._own_shares(cohort, found))
        signed = replace(reply, signature=self.sign(reply.statement()))
        return self._step(signed.to_bytes(), replace(row, state=State.FULL, survivors=cohort, request=request))

    def _view(self, body: bytes, _request: bytes) -> Step:
        row = self.row
        with well_formed():
            survivors = names(body)
        if row.state is not State.MASKED and (row.state, row.survivors) != (State.VIEW, survivors):
            raise SecaggError(Code.STATE)
        if self.setup.kinds[row.kind].protection == "none":
            raise SecaggError(Code.EXACT_VIEW)
        least = self.setup.least_survivors(len(row.cohort))
        if self.silo not in survivors or not set(survivors) < set(row.cohort) or len(survivors) < least:
            raise SecaggError(Code.VIEW)
        reply = View(silo=self.silo, signature=self.sign(view_statement(row.ctx, survivors)))
        return self._step(reply.to_bytes(), replace(row, state=State.VIEW, survivors=survivors))

    def _open(self, body: bytes, request: bytes) -> Step:
        row = self.row
        if row.state is not State.VIEW and (row.state, row.request) != (State.OPEN, request):
            raise SecaggError(Code.STATE)
        opened = OpenBody.read(body)
        if opened.survivors != row.survivors:
            raise SecaggError(Code.VIEW)
        self._check_certificate(opened.certificate)
        boxes = read_boxes(opened.boxes, 2)
        found = self._unsealed(row.survivors, boxes, ("b", "e"), (1, len(row.cohort) - 1))
        failed = tuple(peer for peer, shares in found.items() if shares is None)
        if len(failed) > self.setup.max_colluding:
            return self._alarm(failed)
        reply = self._opening(found)
        signed = replace(reply, signature=self.sign(reply.statement()))
        return self._step(signed.to_bytes(), replace(row, state=State.OPEN, request=request))

    # --- within ---------------------------------------------------------------------------------------------

    def _check_certificate(self, certificate: Sequence[tuple[str, bytes]]) -> None:
        """Check that enough survivors back the stored set, each by its own signature (18)."""
        row = self.row
        statement = view_statement(row.ctx, row.survivors)
        signers = [silo for silo, _ in certificate]
        enough = len(signers) >= self.setup.threshold(len(row.cohort)) and len(set(signers)) == len(signers)
        if not enough or not set(signers) <= set(row.survivors):
            raise SecaggError(Code.CERTIFICATE)
        if not all(verified(self.members[silo], signature, statement) for silo, signature in certificate):
            raise SecaggError(Code.CERTIFICATE)

    def _unsealed(
        self, senders: Sequence[str], boxes: Sequence[Box], types: Sequence[Literal["b", "e"]], counts: Sequence[int]
    ) -> dict[str, list[bytes] | None]:
        """Return the shares that each sender but this silo has boxed, b before e; None where a box does not hold."""
        peers = [peer for peer in senders if peer != self.silo]
        if len(boxes) != len(peers):
            raise SecaggError(Code.BOXES)
        found: dict[str, list[bytes] | None] = {}
        for peer, (nonce, *sealed) in zip(peers, boxes, strict=True):
            shares: list[bytes] = []
            for type_, box, count in zip(types, sealed, counts, strict=True):
                label = Label(type=type_, ctx=self.row.ctx, nonce=nonce, sender=peer, receiver=self.silo)
                opened = unseal(self.keys[peer], label, box) or []
                shares += opened if len(opened) == count else []
            sound = len(shares) == sum(counts) and all(from_bytes(share) is not None for share in shares)
            found[peer] = shares if sound else None
        return found

    def _own_shares(self, silos: Sequence[str], found: Mapping[str, list[bytes] | None]) -> tuple[bytes, ...]:
        """Return this silo's shares of the own seeds of `silos`; empty where a box did not hold."""
        every = {self.silo: [self.row.share], **found}
        return tuple(shares[0] if (shares := every[silo]) else b"" for silo in silos)

    def _opening(self, found: Mapping[str, list[bytes] | None]) -> Opening:
        row = self.row
        dropped = [silo for silo in row.cohort if silo not in row.survivors]
        seeds = tuple(to_bytes(pair_seed(self.keys[silo], row.ctx)) for silo in dropped)
        pairs = []
        for peer, shares in found.items():
            # What a peer has boxed: the share of its own seed, then of its pairs in the cohort's order without itself.
            others = [silo for silo in row.cohort if silo != peer]
            pairs.append(tuple(shares[1 + others.index(silo)] for silo in dropped) if shares else ())
        return Opening(
            ctx=row.ctx,
            silo=self.silo,
            shares=self._own_shares(row.survivors, found),
            seeds=seeds,
            pairs=tuple(pairs),
        )

    def _step(self, reply: bytes, after: SumRow) -> Step:
        before, new = self.row.to_bytes(), after.to_bytes()
        return step(reply, *([] if before == new else [Change(key=self.key, expected=before, new=new)]))

    def _alarm(self, failed: tuple[str, ...]) -> Step:
        after = self.row.ended(State.ABORTED)
        change = Change(key=self.key, expected=self.row.to_bytes(), new=after.to_bytes())
        return alarm(Code.ALARM, ordered(failed), change)
