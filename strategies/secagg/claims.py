"""A claim on a sum, and what becomes of it: the masked vector with its boxes (SECAGG-FLOW 2, A 10 to 13).

y = z + G(b) + sum over later silos of G(s) - sum over earlier silos of G(s), modulo 2^m: b is this silo's own seed, s
the one that it shares with a peer in this sum alone, G the mask of a seed. Every seed is dealt in shares to the cohort.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.errors import ProtocolError
from strategies.secagg.boxes import Label, seal
from strategies.secagg.encoding import KEY_BYTES, expand
from strategies.secagg.masks import add_masks
from strategies.secagg.messages import Sign, Upload
from strategies.secagg.ring import OnClamp, Ring, Words
from strategies.secagg.rows import Change
from strategies.secagg.shares import P, commitment, mask_key, random_element, split, to_bytes

Noise = Callable[[Words], None]  # adds to words in place


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A request for a sum that has passed all checks.

    Args:
        t: number of the sum.
        kind: of the sum.
        ctx: hash of all that the sum is bound to.
        cohort: U0, sorted.
        changes: to be made durable with the ledger's reservation, before any record is read. Empty when `resend`.
        upload: SHA-256 of the stored upload, where there is one already.
        keys: shared with each peer in this sum; erased by masking.
    """

    t: int
    kind: str
    ctx: bytes
    cohort: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    upload: bytes = b""
    keys: dict[str, bytearray] = field(default_factory=dict, repr=False)

    @property
    def resend(self) -> bool:
        """Whether the upload was made before: its stored bytes are sent again, and nothing is trained or charged."""
        return self.upload != b""

    def erase(self) -> None:
        """Overwrite the keys."""
        for key in self.keys.values():
            key[:] = bytes(len(key))
        self.keys.clear()


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Who masks, and how.

    Args:
        silo: its name.
        sign: its Ed25519 signature.
        ring: of the kind.
        threshold: tau of the cohort.
        on_clamp: told a segment's name and how many of its values were beyond the bound; for the silo's own log.
        noise: adds this silo's share of the noise to the words, in place; where the ring says `distributed`, and there
            alone.
    """

    silo: str
    sign: Sign
    ring: Ring
    threshold: int
    on_clamp: OnClamp | None = None
    noise: Noise | None = None


@dataclass(frozen=True, kw_only=True)
class Masked:
    """An upload.

    Args:
        upload: its bytes, the vector first.
        digest: their SHA-256.
        words: SHA-256 of the vector.
        share: this silo's share of its own seed.
    """

    upload: memoryview = field(repr=False)
    digest: bytes
    words: bytes
    share: bytes = field(repr=False)


def pair_seed(key: bytes | bytearray, ctx: bytes) -> int:
    """Return the seed that a pair shares in a sum, from its key of that sum."""
    return int.from_bytes(expand(bytes(key), "fsa1/mask", ctx), "big") % P


def masked(claim: Claim, masking: Masking, vectors: Sequence[NDArray[Any]]) -> Masked:
    """Encode, mask and sign the vectors of a claim.

    Raises:
        ProtocolError: a vector does not fit its segment, is not finite, or lacks the noise that its sum rests on.
    """
    ring, silo = masking.ring, masking.silo
    if (masking.noise is not None) != (ring.protection == "distributed"):
        raise ProtocolError(f"sums of ring '{ring.name}' have protection '{ring.protection}', and noise goes with it")
    own = random_element()
    pairs = {peer: pair_seed(key, claim.ctx) for peer, key in claim.keys.items()}
    own_shares = split(own, masking.threshold, len(claim.cohort))
    draft = _draft(claim, masking, pairs, own, own_shares)
    buffer = np.zeros(ring.size_bytes + len(draft.to_bytes()), np.uint8).data
    data = buffer[: ring.size_bytes]
    words = ring.encode(vectors, out=ring.read(data), on_clamp=masking.on_clamp)
    if masking.noise is not None:
        masking.noise(words)
    later = {peer: 1 if peer.encode() > silo.encode() else -1 for peer in pairs}
    add_masks(words, [(mask_key(own), 1), *((mask_key(seed), later[peer]) for peer, seed in pairs.items())])
    hashed = hashlib.sha256(data)
    unsigned = replace(draft, words=hashed.digest())
    rest = replace(unsigned, signature=masking.sign(unsigned.statement())).to_bytes()
    hashed.update(rest)
    buffer[ring.size_bytes :] = rest
    return Masked(
        upload=buffer.toreadonly(),
        digest=hashed.digest(),
        words=unsigned.words,
        share=to_bytes(own_shares[claim.cohort.index(silo)]),
    )


def _draft(claim: Claim, masking: Masking, pairs: Mapping[str, int], own: int, own_shares: Sequence[int]) -> Upload:
    """Return the upload without its vector's hash and its signature, in their place as many zeros."""
    shares = {peer: split(seed, masking.threshold, len(claim.cohort)) for peer, seed in pairs.items()}
    nonce = secrets.token_bytes(KEY_BYTES)
    return Upload(
        silo=masking.silo,
        ctx=claim.ctx,
        words=bytes(KEY_BYTES),
        nonce=nonce,
        boxes=_boxes(claim, masking.silo, nonce, own_shares, shares),
        own=commitment(own),
        pairs=tuple(commitment(seed) for seed in pairs.values()),
        signature=bytes(64),
    )


def _boxes(
    claim: Claim, silo: str, nonce: bytes, own: Sequence[int], pairs: Mapping[str, Sequence[int]]
) -> tuple[tuple[bytes, bytes], ...]:
    """Return for each peer the box of its share of the own seed, and of its shares of the seeds of all pairs."""
    found = []
    for place, peer in enumerate(claim.cohort):
        if peer != silo:
            key = bytes(claim.keys[peer])
            label = Label(type="b", ctx=claim.ctx, nonce=nonce, sender=silo, receiver=peer)
            b = seal(key, label, [to_bytes(own[place])])
            e = seal(key, replace(label, type="e"), [to_bytes(shares[place]) for shares in pairs.values()])
            found.append((b, e))
    return tuple(found)
