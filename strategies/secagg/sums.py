"""One sum at the server: collect uploads, fix the survivors once, unmask their total (SECAGG-FLOW 2, 5 to 21).

    COLLECT -> FULL -> DONE            every silo of the cohort has sent
    COLLECT -> VIEW -> OPEN -> DONE    some have not, but enough
    ABORTED from any; nothing is published then, and the number of the sum is used up

`snapshot` gives what a restarted server goes on from. It is persisted before anything is sent that depends on it: the
requests for uploads, and those of each phase.

Guarantees: the set of survivors is fixed once, and FULL never falls back to VIEW; a total is published only when every
mask's seed has matched its commitment, the check words are zero and no value is beyond what so many silos can sum to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import ProtocolError
from strategies.secagg.boxes import size
from strategies.secagg.directory import Directory
from strategies.secagg.encoding import KEY_BYTES, Bytes, enc, names, ordered, sha256, take
from strategies.secagg.errors import Code, SecaggError, noticed
from strategies.secagg.keys import verified
from strategies.secagg.messages import (
    Ask,
    OpenBody,
    Opening,
    Record,
    Request,
    Shares,
    Upload,
    View,
    view_statement,
)
from strategies.secagg.recovery import Answers, mismatched, recovered
from strategies.secagg.ring import Floats, Ring, Words, add, subtract
from strategies.secagg.setup import Setup


class Phase(StrEnum):
    """Where a sum stands at the server."""

    COLLECT = "collect"  # requests for uploads are out
    FULL = "full"  # every silo has sent: shares are asked for
    VIEW = "view"  # some have not: signatures of the survivors are asked for
    OPEN = "open"  # the set of survivors is certified: shares are asked for
    DONE = "done"
    ABORTED = "aborted"


@dataclass(frozen=True, kw_only=True)
class Total:
    """A sum.

    Args:
        vectors: one a segment, float64.
        survivors: U1, whose vectors are in it.
        missing: silos of the cohort whose vectors are not.
        blamed: silos that sent what did not hold, with the code of it. A silo with SHARE may have been dealt a wrong
            one, and of two with COMMITMENT one may be honest: a reason to look, no proof.
    """

    vectors: tuple[Floats, ...]
    survivors: tuple[str, ...]
    missing: tuple[str, ...]
    blamed: Mapping[str, Code]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all sums of a run share at the server."""

    setup: Setup
    key: Ed25519PrivateKey = field(repr=False)
    members: Mapping[str, bytes]
    directory: Directory

    def hash(self) -> bytes:
        """Return dir_hash."""
        return self.directory.hash(self.setup.digest())


class Sum:
    """One sum.

    Args:
        run: what it belongs to.
        request: the signed request for uploads, without the directory.
        seated: silos that have the directory already.
    """

    def __init__(self, run: Run, request: Request, seated: frozenset[str]) -> None:
        self._run, self._request, self._seated = run, request, seated
        self.t, self.kind, self.cohort = request.t, request.kind, request.cohort
        self._ctx = request.context(run.setup.digest())
        self._threshold = run.setup.threshold(len(request.cohort))
        self.phase = Phase.COLLECT
        self.reason: Code | None = None  # why it was aborted
        self.refused: dict[str, Code] = {}  # codes that silos answered with
        self.blamed: dict[str, Code] = {}
        self._survivors: tuple[str, ...] = ()
        self._uploads: dict[str, Upload] = {}  # of the survivors, without their vectors
        self._total: Words | None = None  # of the survivors; masked until DONE
        self._views: dict[str, bytes] = {}
        self._certificate: tuple[tuple[str, bytes], ...] = ()
        self._replies: dict[str, Shares | Opening] = {}
        self._vectors: tuple[Floats, ...] = ()  # the decoded total
        self._record = b""

    @property
    def met(self) -> frozenset[str]:
        """Silos that are known to have the directory."""
        return self._seated | frozenset(self._survivors)

    @property
    def _ring(self) -> Ring:
        return self._run.setup.kinds[self.kind]

    # --- uploads --------------------------------------------------------------------------------------------

    def request(self, silo: str) -> bytes:
        """Return the request for an upload; answered by `SiloSession.claim` and `mask`."""
        entries = b"" if silo in self._seated else self._run.directory.to_bytes()
        return replace(self._request, entries=entries).to_bytes()

    def collect(self, uploads: Mapping[str, Bytes]) -> Phase:
        """Take the uploads at the deadline and fix the set of survivors, once; later ones are not looked at.

        Args:
            uploads: by silo; each is looked at once, and once more if its silo must be left out.
        """
        if self.phase is not Phase.COLLECT:
            return self.phase
        total = self._ring.zeros()
        for silo in self.cohort:
            if silo in uploads and self._take_upload(silo, uploads[silo], total):
                continue
            self._uploads.pop(silo, None)
        for silo in mismatched(self.cohort, self._uploads):
            subtract(total, self._words(uploads[silo]))
            del self._uploads[silo]
            self.blamed[silo] = Code.COMMITMENT
        self._survivors, self._total = ordered(tuple(self._uploads)), total
        whole = self._survivors == self.cohort
        if len(self._survivors) < self._run.setup.least_survivors(len(self.cohort)):
            return self._abort(Code.ABSENT)
        if not whole and self._ring.protection == "none":
            return self._abort(Code.EXACT_VIEW)
        self.phase = Phase.FULL if whole else Phase.VIEW
        return self.phase

    def _take_upload(self, silo: str, data: Bytes, total: Words) -> bool:
        """Check an upload and add its vector to the total; return whether it holds."""
        code = noticed(data)
        if code is not None:
            self.refused[silo] = code
            return False
        view = memoryview(data)
        try:
            upload = Upload.read(view[self._ring.size_bytes :])
        except SecaggError:
            self.blamed[silo] = Code.UPLOAD
            return False
        others = len(self.cohort) - 1
        sound = (upload.silo, upload.ctx) == (silo, self._ctx)
        sound = sound and len(upload.nonce) == len(upload.own) == KEY_BYTES
        sound = sound and [len(pair) for pair in upload.pairs] == [KEY_BYTES] * others
        sound = sound and [(len(b), len(e)) for b, e in upload.boxes] == [(size(1), size(others))] * others
        sound = sound and sha256(view[: self._ring.size_bytes]) == upload.words
        if not sound or not self._signed(silo, upload.signature, upload.statement()):
            self.blamed[silo] = Code.UPLOAD
            return False
        add(total, self._words(data))
        self._uploads[silo] = upload
        return True

    def _words(self, data: Bytes) -> Words:
        return self._ring.read(memoryview(data)[: self._ring.size_bytes])

    # --- unmasking ------------------------------------------------------------------------------------------

    def requests(self) -> Mapping[str, bytes]:
        """Return the requests of the phase by silo, the same every time; answered by `SiloSession.unmask`."""
        bodies = {Phase.FULL: self._full_body, Phase.VIEW: self._view_body, Phase.OPEN: self._open_body}
        if self.phase not in bodies:
            return {}
        return {silo: self._ask(silo, bodies[self.phase](silo)) for silo in self._survivors}

    def _ask(self, silo: str, body: bytes) -> bytes:
        phases = {Phase.FULL: "full", Phase.VIEW: "view", Phase.OPEN: "open"}
        ask = Ask(t=self.t, ctx=self._ctx, phase=phases[self.phase], silo=silo, body=body)  # type: ignore[arg-type]
        return replace(ask, signature=self._run.key.sign(ask.statement())).to_bytes()

    def _boxes_for(self, silo: str, kinds: slice) -> bytes:
        """Return the nonce and boxes that each other survivor has sealed for a silo."""
        found = []
        for peer in self._survivors:
            if peer != silo:
                place = [other for other in self.cohort if other != peer].index(silo)
                found.append((self._uploads[peer].nonce, *self._uploads[peer].boxes[place][kinds]))
        return enc(*found)

    def _full_body(self, silo: str) -> bytes:
        return self._boxes_for(silo, slice(1))

    def _view_body(self, _silo: str) -> bytes:
        return enc(*self._survivors)

    def _open_body(self, silo: str) -> bytes:
        boxes = self._boxes_for(silo, slice(2))
        return OpenBody(survivors=self._survivors, certificate=self._certificate, boxes=boxes).to_bytes()

    def receive(self, replies: Mapping[str, bytes]) -> Phase:
        """Take replies to `requests`.

        The phase stays while too few have come: the same requests may be sent again, or the sum given up (`abort`).
        """
        take_one = {Phase.FULL: self._take_shares, Phase.VIEW: self._take_view, Phase.OPEN: self._take_opening}
        if self.phase not in take_one:
            return self.phase
        for silo in self._survivors:
            if silo not in replies:
                continue
            code = noticed(replies[silo])
            if code is not None:
                self.refused[silo] = code
                continue
            try:
                held = take_one[self.phase](silo, replies[silo])
            except SecaggError:
                held = False
            if not held:
                self.blamed[silo] = Code.REPLY
        return self._certified() if self.phase is Phase.VIEW else self._opened()

    def _take_view(self, silo: str, data: bytes) -> bool:
        view = View.read(data)
        held = view.silo == silo and self._signed(silo, view.signature, view_statement(self._ctx, self._survivors))
        if held:
            self._views[silo] = view.signature
        return held

    def _take_shares(self, silo: str, data: bytes) -> bool:
        reply = Shares.read(data, self._ctx)
        held = reply.silo == silo and len(reply.shares) == len(self.cohort)
        if held and (held := self._signed(silo, reply.signature, reply.statement())):
            self._replies[silo] = reply
        return held

    def _take_opening(self, silo: str, data: bytes) -> bool:
        reply = Opening.read(data, self._ctx)
        dropped = len(self.cohort) - len(self._survivors)
        held = reply.silo == silo and len(reply.shares) == len(self._survivors) and len(reply.seeds) == dropped
        held = held and len(reply.pairs) == len(self._survivors) - 1
        held = held and all(len(pairs) in (0, dropped) for pairs in reply.pairs)
        if held and (held := self._signed(silo, reply.signature, reply.statement())):
            self._replies[silo] = reply
        return held

    def _certified(self) -> Phase:
        if len(self._views) >= self._threshold:
            signers = ordered(tuple(self._views))[: self._threshold]
            self._certificate = tuple((silo, self._views[silo]) for silo in signers)
            self.phase = Phase.OPEN
        return self.phase

    def _opened(self) -> Phase:
        """Unmask the total once every seed can be had."""
        if len(self._replies) < self._threshold:
            return self.phase
        answers = Answers(
            cohort=self.cohort,
            survivors=self._survivors,
            threshold=self._threshold,
            colluding=self._run.setup.max_colluding,
            uploads=self._uploads,
            replies=self._replies,
        )
        seeds = recovered(answers)
        if seeds is None:  # more replies may do, when there are more to come
            return self._abort(Code.SHARE) if len(self._replies) == len(self._survivors) else self.phase
        self.blamed |= seeds.blamed
        assert self._total is not None, "uploads are collected before replies"
        seeds.unmask(self._total)
        try:
            self._vectors = self._ring.decode(self._total, len(self._survivors))
        except ProtocolError:
            return self._abort(Code.TOTAL)
        self._record = self._stated(self._total)
        self._uploads, self._replies, self._views = {}, {}, {}
        self.phase = Phase.DONE
        return self.phase

    def _stated(self, total: Words) -> bytes:
        record = Record(
            t=self.t,
            ctx=self._ctx,
            survivors=self._survivors,
            words=tuple(self._uploads[silo].words for silo in self._survivors),
            total=sha256(total.data.cast("B")),
        )
        return replace(record, signature=self._run.key.sign(record.statement())).to_bytes()

    # --- the end --------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Give the sum up; what was received is dropped."""
        if self.phase is not Phase.DONE:
            self._abort(Code.ABSENT)

    def _abort(self, code: Code) -> Phase:
        self.phase, self.reason = Phase.ABORTED, self.reason or code
        self._uploads, self._replies, self._views, self._total = {}, {}, {}, None
        return self.phase

    def total(self) -> Total:
        """Return the sum.

        Raises:
            SecaggError: STATE; it is not done.
        """
        if self.phase is not Phase.DONE or self._total is None:
            raise SecaggError(Code.STATE)
        return Total(
            vectors=self._vectors or self._ring.decode(self._total, len(self._survivors)),
            survivors=self._survivors,
            missing=tuple(silo for silo in self.cohort if silo not in self._survivors),
            blamed=dict(self.blamed),
        )

    def record(self) -> bytes:
        """Return the signed record for every silo of the cohort; answered by `SiloSession.close`.

        Raises:
            SecaggError: STATE; the sum is not done.
        """
        if self.phase is not Phase.DONE:
            raise SecaggError(Code.STATE)
        return self._record

    def _signed(self, silo: str, signature: bytes, statement: bytes) -> bool:
        return verified(self._run.members[silo], signature, statement)

    # --- a restart ------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Return what a restarted server needs: of vectors only the survivors' masked total, or the sum."""
        return enc(
            self._request.to_bytes(),
            tuple(ordered(tuple(self._seated))),
            self.phase.value,
            self.reason.value if self.reason else "",
            self._survivors,
            tuple(self._uploads[silo].to_bytes() for silo in self._survivors if self._uploads),
            self._total.data.cast("B") if self._total is not None else b"",
            tuple(self._views.items()),
            self._certificate,
            tuple((silo, reply.to_bytes()) for silo, reply in self._replies.items()),
            tuple((silo, code.value) for silo, code in self.blamed.items()),
            self._record,
        )

    @classmethod
    def restore(cls, run: Run, data: bytes) -> Sum:
        """Go on from a snapshot of this server's own."""
        request, seated, phase, reason, survivors, uploads, total, views, certificate, replies, blamed, record = take(
            data, 12
        )
        found = cls(run, Request.read(request), frozenset(names(seated)))
        found.phase = Phase(phase.decode())
        found.reason = Code(reason.decode()) if reason else None
        found._survivors = names(survivors)
        found._uploads = {upload.silo: upload for upload in map(Upload.read, take(uploads))}
        found._total = found._ring.read(total).copy() if total else None
        found._views = _by_silo(views)
        found._certificate = tuple(_by_silo(certificate).items())
        read = Shares.read if found.phase is Phase.FULL else Opening.read
        found._replies = {silo: read(reply, found._ctx) for silo, reply in _by_silo(replies).items()}
        found.blamed = {silo: Code(code.decode()) for silo, code in _by_silo(blamed).items()}
        found._record = record
        return found


def _by_silo(item: bytes) -> dict[str, bytes]:
    pairs = [take(pair, 2) for pair in take(item)]
    return {silo.decode(): value for silo, value in pairs}
