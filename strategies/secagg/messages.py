"""Every message of secure aggregation: its bytes, and the statement in it that is signed.

Messages are `enc` of their parts, so each has one form. A statement begins with its domain; no signature can be taken
for one of another purpose, of another sum or by another side.

    server -> silo   invitation, Request (an upload), Ask (full, view, open), Record, end
    silo -> server   Entry (a key), Upload, Shares (full), View, Opening
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self

from strategies.secagg.encoding import KEY_BYTES, Bytes, enc, names, number, sha256, take
from strategies.secagg.errors import Code, SecaggError

Sign = Callable[[bytes], bytes]
Phase = Literal["full", "view", "open"]
Box = tuple[bytes, ...]  # the nonce of the sender's upload, then its boxes: b, or b and e


@contextmanager
def well_formed() -> Iterator[None]:
    """Turn what parsing finds into the error of the protocol."""
    try:
        yield
    except ValueError:
        raise SecaggError(Code.MALFORMED) from None


def manifest_statement(digest: bytes) -> bytes:
    """Return what the server signs with the set-up of a run."""
    return enc("fsa1/manifest", digest)


def end_statement(digest: bytes) -> bytes:
    """Return what the server signs to end a run."""
    return enc("fsa1/end", digest)


def view_statement(ctx: bytes, survivors: tuple[str, ...]) -> bytes:
    """Return what a silo signs to back a set of survivors."""
    return enc("fsa1/view", ctx, survivors)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A silo's key of one run."""

    silo: str
    key: bytes
    signature: bytes

    def statement(self, digest: bytes) -> bytes:
        """Return what is signed, for the run with this H(M)."""
        return enc("fsa1/key", digest, self.silo, self.key)

    def to_bytes(self) -> bytes:
        """Return the message."""
        return enc(self.silo, self.key, self.signature)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a message."""
        with well_formed():
            silo, key, signature = take(data, 3)
            return cls(silo=silo.decode(), key=key, signature=signature)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for an upload, A(t).

    Args:
        directory: hash of the directory of keys.
        t: number of the sum.
        kind: of the sum.
        cohort: U0.
        model: hash of the model.
        config: hash of the settings.
        entries: the directory itself, where the silo may not have it yet.
        signature: of the server.
    """

    directory: bytes
    t: int
    kind: str
    cohort: tuple[str, ...]
    model: bytes
    config: bytes
    entries: bytes = b""
    signature: bytes = b""

    def statement(self, digest: bytes) -> bytes:
        """Return what is signed, in the run with this H(M)."""
        return enc("fsa1/a", digest, *self._parts())

    def context(self, digest: bytes) -> bytes:
        """Return ctx, to which every seed, box and signature of the sum is bound."""
        return sha256(enc("fsa1/round", digest, *self._parts()))

    def to_bytes(self) -> bytes:
        """Return the message."""
        return enc(*self._parts(), self.entries, self.signature)

    def _parts(self) -> tuple[bytes | int | str | tuple[str, ...], ...]:
        return self.directory, self.t, self.kind, self.cohort, self.model, self.config

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a message."""
        with well_formed():
            directory, t, kind, cohort, model, config, entries, signature = take(data, 8)
            if not len(directory) == len(model) == len(config) == KEY_BYTES:
                raise ValueError("a hash has 32 bytes")
            return cls(
                directory=directory,
                t=number(t),
                kind=kind.decode(),
                cohort=names(cohort),
                model=model,
                config=config,
                entries=entries,
                signature=signature,
            )


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A masked vector: its words, then all else, so that one pass over the words gives their hash and the message's.

    Args:
        silo: the sender.
        ctx: of the sum.
        words: hash of the vector's bytes.
        nonce: 32 random bytes.
        boxes: b and e for each other silo of the cohort, in order.
        own: commitment to the silo's own seed.
        pairs: commitments to the seeds of its pairs, in order.
        signature: of the silo.
    """

    silo: str
    ctx: bytes
    words: bytes
    nonce: bytes
    boxes: tuple[tuple[bytes, bytes], ...]
    own: bytes
    pairs: tuple[bytes, ...]
    signature: bytes = b""

    def statement(self) -> bytes:
        """Return what is signed."""
        boxes, commitments = sha256(enc(*self.boxes)), sha256(enc(self.own, *self.pairs))
        return enc("fsa1/up", self.ctx, self.silo, self.words, self.nonce, boxes, commitments)

    def to_bytes(self) -> bytes:
        """Return all of the message but the vector."""
        return enc(self.silo, self.ctx, self.words, self.nonce, self.boxes, self.own, self.pairs, self.signature)

    @classmethod
    def read(cls, data: Bytes) -> Self:
        """Read what `to_bytes` wrote."""
        with well_formed():
            silo, ctx, words, nonce, boxes, own, pairs, signature = take(data, 8)
            opened = [take(pair, 2) for pair in take(boxes)]
            return cls(
                silo=silo.decode(),
                ctx=ctx,
                words=words,
                nonce=nonce,
                boxes=tuple((b, e) for b, e in opened),
                own=own,
                pairs=take(pairs),
                signature=signature,
            )


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request to unmask, to one silo.

    Args:
        t: number of the sum.
        ctx: of the sum.
        phase: full, view or open.
        silo: the receiver.
        body: `enc` of the boxes (full), of the survivors (view), or an `OpenBody`.
        signature: of the server.
    """

    t: int
    ctx: bytes
    phase: Phase
    silo: str
    body: bytes
    signature: bytes = b""

    def statement(self) -> bytes:
        """Return what is signed."""
        return enc("fsa1/ask", self.t, self.ctx, self.phase, self.silo, sha256(self.body))

    def to_bytes(self) -> bytes:
        """Return the message."""
        return enc(self.t, self.ctx, self.phase, self.silo, self.body, self.signature)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a message."""
        with well_formed():
            t, ctx, phase, silo, body, signature = take(data, 6)
            known: dict[bytes, Phase] = {b"full": "full", b"view": "view", b"open": "open"}
            if phase not in known:
                raise ValueError("another phase")
            return cls(t=number(t), ctx=ctx, phase=known[phase], silo=silo.decode(), body=body, signature=signature)


def read_boxes(item: bytes, each: int) -> tuple[Box, ...]:
    """Read the boxes of an `Ask`: the sender's nonce and `each` boxes of every sender.

    Raises:
        SecaggError: BOXES; there are more or fewer.
    """
    try:
        return tuple(take(box, 1 + each) for box in take(item))
    except ValueError:
        raise SecaggError(Code.BOXES) from None


@dataclass(frozen=True, kw_only=True)
class OpenBody:
    """The body of a request to open the sum of the survivors.

    Args:
        survivors: U1.
        certificate: name and signature of those who back it.
        boxes: nonce, b and e of every other survivor, in order.
    """

    survivors: tuple[str, ...]
    certificate: tuple[tuple[str, bytes], ...]
    boxes: bytes

    def to_bytes(self) -> bytes:
        """Return the body."""
        return enc(self.survivors, self.certificate, self.boxes)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a body."""
        with well_formed():
            survivors, certificate, boxes = take(data, 3)
            signed = [take(one, 2) for one in take(certificate)]
            return cls(
                survivors=names(survivors),
                certificate=tuple((silo.decode(), signature) for silo, signature in signed),
                boxes=boxes,
            )


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The answer to "full": a share of the own seed of each silo of the cohort, in order; empty for an absent one."""

    ctx: bytes
    silo: str
    shares: tuple[bytes, ...] = field(repr=False)
    signature: bytes = b""

    def statement(self) -> bytes:
        """Return what is signed."""
        return enc("fsa1/full", self.ctx, sha256(enc(self.silo, self.shares)))

    def to_bytes(self) -> bytes:
        """Return the message."""
        return enc(self.silo, self.shares, self.signature)

    @classmethod
    def read(cls, data: bytes, ctx: bytes) -> Self:
        """Read a message of the sum `ctx`."""
        with well_formed():
            silo, shares, signature = take(data, 3)
            return cls(ctx=ctx, silo=silo.decode(), shares=take(shares), signature=signature)


@dataclass(frozen=True, kw_only=True)
class View:
    """The answer to "view": a silo backs the survivors that it was asked about."""

    silo: str
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the message."""
        return enc(self.silo, self.signature)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a message."""
        with well_formed():
            silo, signature = take(data, 2)
            return cls(silo=silo.decode(), signature=signature)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The answer to "open".

    Args:
        ctx: of the sum.
        silo: the sender.
        shares: of the own seed of each survivor, in order; empty for an absent one.
        seeds: the sender's own pair seeds with each dropped silo, in order.
        pairs: for each other survivor, shares of its pair seeds with each dropped silo; empty for an absent one.
        signature: of the silo.
    """

    ctx: bytes
    silo: str
    shares: tuple[bytes, ...] = field(repr=False)
    seeds: tuple[bytes, ...] = field(repr=False)
    pairs: tuple[tuple[bytes, ...], ...] = field(repr=False)
    signature: bytes = b""

    def statement(self) -> bytes:
        """Return what is signed."""
        reply = enc(self.silo, self.shares, self.seeds, self.pairs)
        return enc("fsa1/open-reply", self.ctx, sha256(reply))

    def to_bytes(self) -> bytes:
        """Return the message."""
        return enc(self.silo, self.shares, self.seeds, self.pairs, self.signature)

    @classmethod
    def read(cls, data: bytes, ctx: bytes) -> Self:
        """Read a message of the sum `ctx`."""
        with well_formed():
            silo, shares, seeds, pairs, signature = take(data, 5)
            return cls(
                ctx=ctx,
                silo=silo.decode(),
                shares=take(shares),
                seeds=take(seeds),
                pairs=tuple(take(pair) for pair in take(pairs)),
                signature=signature,
            )


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the server states of a finished sum: whose vectors are in it, and their and its hashes."""

    t: int
    ctx: bytes
    survivors: tuple[str, ...]
    words: tuple[bytes, ...]
    total: bytes
    signature: bytes = b""

    def statement(self) -> bytes:
        """Return what is signed."""
        return enc("fsa1/record", self.t, self.ctx, self.survivors, self.words, self.total)

    def to_bytes(self) -> bytes:
        """Return the message."""
        return enc("record", self.t, self.ctx, self.survivors, self.words, self.total, self.signature)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a message."""
        with well_formed():
            _, t, ctx, survivors, words, total, signature = take(data, 7)
            return cls(
                t=number(t),
                ctx=ctx,
                survivors=names(survivors),
                words=take(words),
                total=total,
                signature=signature,
            )
