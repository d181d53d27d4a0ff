"""The strongest reader of a run's wire: the server with c silos, and what it can unmask. Judges every attack test.

It takes every upload and reply that was ever sent, and all rows that the colluding silos ever had, and works out which
seeds it knows: an own seed by tau of its shares, the seed of a pair from either side's word, from tau shares of one
dealer, or because it is a colluding silo's. Honest silos that are held together by an unknown pair's seed can be
unmasked together or not at all; such a group is *opened* when all its own seeds are known.

I6 holds when at most one group is opened per sum, and that is the honest part of the set that was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from secagg import World

from strategies.secagg.boxes import Label, unseal
from strategies.secagg.claims import pair_seed
from strategies.secagg.errors import SecaggError
from strategies.secagg.masks import add_mask
from strategies.secagg.messages import Ask, OpenBody, Opening, Request, Shares, Upload
from strategies.secagg.ring import Words
from strategies.secagg.rows import PEERS, Peers
from strategies.secagg.shares import commitment, from_bytes, mask_key, recover


@dataclass(kw_only=True)
class Knowledge:
    """All that is known of one sum."""

    cohort: tuple[str, ...]
    ctx: bytes
    threshold: int
    colluding: frozenset[str]
    uploads: dict[str, tuple[Upload, bytes]]
    own: dict[str, dict[int, int]] = field(default_factory=dict)  # shares of own seeds, by owner and point
    dealt: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)  # of pairs' seeds, by dealer and other
    told: dict[frozenset[str], set[int]] = field(default_factory=dict)  # pairs' seeds by somebody's word

    def seed(self, silo: str) -> int | None:
        return self._recovered(self.own.get(silo, {}), self.uploads[silo][0].own)

    def pair(self, one: str, other: str) -> int | None:
        for dealer, peer in ((one, other), (other, one)):
            place = [silo for silo in self.cohort if silo != dealer].index(peer)
            committed = self.uploads[dealer][0].pairs[place] if dealer in self.uploads else None
            for word in self.told.get(frozenset((one, other)), ()):
                if commitment(word) == committed:
                    return word
            found = self._recovered(self.dealt.get((dealer, peer), {}), committed) if committed else None
            if found is not None:
                return found
        return None

    def _recovered(self, shares: dict[int, int], committed: bytes) -> int | None:
        found = recover(shares, self.threshold, lambda seed: commitment(seed) == committed)
        return None if found is None else found.secret

    def opened(self) -> Iterator[frozenset[str]]:
        """The groups of honest silos whose sum is known."""
        honest = [silo for silo in self.uploads if silo not in self.colluding]
        left = set(honest)
        while left:
            group, reached = set[str](), {left.pop()}
            while reached:
                one = reached.pop()
                group.add(one)
                near = {other for other in honest if other not in group and self.pair(one, other) is None}
                reached |= near
            left -= group
            outside = [peer for peer in self.cohort if peer not in group]
            edges = all(self.pair(silo, peer) is not None for silo in group for peer in outside)
            if edges and all(self.seed(silo) is not None for silo in group):
                yield frozenset(group)

    def sum_of(self, group: Collection[str], world: World, kind: str) -> Words:
        """The unmasked sum of an opened group."""
        ring = world.setup.kinds[kind]
        total = ring.zeros()
        for silo in group:
            total += ring.read(self.uploads[silo][1][: ring.size_bytes])
            seed = self.seed(silo)
            assert seed is not None
            add_mask(total, mask_key(seed), -1)
            for peer in self.cohort:
                if peer == silo or peer in group:
                    continue
                seed = self.pair(silo, peer)
                assert seed is not None, "a seed of the group's edge"
                add_mask(total, mask_key(seed), -1 if peer > silo else 1)
        return total


def knowledge(world: World, t: int, kind: str, colluding: Collection[str] = ()) -> list[Knowledge]:
    """What is known of sum t, for every context that a silo has uploaded under."""
    ring = world.setup.kinds[kind]
    found: dict[bytes, Knowledge] = {}
    cohorts = _cohorts(world)
    for silo, direction, data in world.wire:
        upload = _upload(data, ring.size_bytes) if direction == "up" else None
        if upload is None or cohorts.get(upload.ctx, (0, ()))[0] != t:
            continue
        cohort = cohorts[upload.ctx][1]
        one = found.setdefault(
            upload.ctx,
            Knowledge(
                cohort=cohort,
                ctx=upload.ctx,
                threshold=world.setup.threshold(len(cohort)),
                colluding=frozenset(colluding),
                uploads={},
            ),
        )
        one.uploads[silo] = (upload, data)
    for one in found.values():
        _collude(world, t, one)
        asked: dict[str, bytes] = {}
        for silo, direction, data in world.wire:
            if direction == "up":
                _learn(world, one, silo, (asked[silo], data))
            else:
                asked[silo] = data
    return list(found.values())


def opened(world: World, t: int, kind: str = "train", colluding: Collection[str] = ()) -> list[frozenset[str]]:
    """Every group of sum t that is unmasked, each checked against the true sum."""
    ring = world.setup.kinds[kind]
    groups = []
    for known in knowledge(world, t, kind, colluding):
        for group in known.opened():
            total = known.sum_of(group, world, kind)
            true = ring.zeros()
            for silo in group:
                true += ring.encode(world.silos[silo].updates[t])
            assert np.array_equal(total, true), "the attacker's arithmetic"
            groups.append(group)
    return groups


def assert_secret(
    world: World, t: int, allowed: Collection[str] | None, colluding: Collection[str] = (), *, exactly: bool = True
) -> None:
    """I6: the sum over `allowed` is opened and no other (None: nothing at all); not `exactly`: that one or none."""
    honest = frozenset(allowed or ()) - frozenset(colluding)
    found = opened(world, t, colluding=colluding)
    wanted = [[honest]] if honest else [[]]
    assert found in (wanted if exactly else [*wanted, []]), f"opened {found}, allowed {sorted(honest)}"


def correlation(held: Words, true: Words) -> float:
    """Correlation of two vectors of words, read as signed numbers."""
    signed = np.dtype(f"<i{held.itemsize}")
    a, b = (np.asarray(words.view(signed), np.float64) for words in (held, true))
    return float(abs(np.corrcoef(a, b)[0, 1]))


def assert_masked(world: World, t: int, held: bytes, kind: str = "train") -> None:
    """I5: no vector that can be read off `held`, at any offset that a vector can have, is a silo's update."""
    ring = world.setup.kinds[kind]
    for silo in world.silos.values():
        if t not in silo.updates:
            continue
        true = ring.encode(silo.updates[t])[: ring.size]
        assert true.tobytes() not in held
        for start in _places(held, ring.size_bytes):
            words = ring.read(held[start : start + ring.size_bytes])[: ring.size]
            assert np.count_nonzero(words == true) <= 1, "a word is equal by chance once in 2^32"
            assert correlation(words, true) < 0.05


def _places(held: bytes, size: int) -> Iterator[int]:
    """Where a vector may begin: at the start, and after every length prefix of its size."""
    if len(held) >= size:
        yield 0
    mark = size.to_bytes(4, "little")
    place = held.find(mark)
    while place >= 0:
        if place + 4 + size <= len(held):
            yield place + 4
        place = held.find(mark, place + 1)


# --- reading the wire ---------------------------------------------------------------------------------------


def _cohorts(world: World) -> dict[bytes, tuple[int, tuple[str, ...]]]:
    found = {}
    for _, direction, data in world.wire:
        if direction == "down":
            try:
                request = Request.read(data)
            except SecaggError:
                continue
            found[request.context(world.setup.digest())] = (request.t, request.cohort)
    return found


def _upload(data: bytes, size: int) -> Upload | None:
    try:
        upload = Upload.read(data[size:])
    except SecaggError:
        return None
    return upload if len(upload.words) == 32 else None


def _collude(world: World, t: int, one: Knowledge) -> None:
    """Add what colluding silos can open with the keys that they ever had."""
    for traitor in one.colluding & set(one.cohort):
        rows = [Peers.read(value) for key, value in world.silos[traitor].store.seen if key == PEERS]
        keys = next((row.keys for row in rows if row.last == t), {})
        for peer, key in keys.items():
            if peer not in one.cohort:
                continue
            one.told.setdefault(frozenset((traitor, peer)), set()).add(pair_seed(key, one.ctx))
            if peer not in one.uploads:
                continue
            upload = one.uploads[peer][0]
            place = [silo for silo in one.cohort if silo != peer].index(traitor)
            label = Label(type="b", ctx=one.ctx, nonce=upload.nonce, sender=peer, receiver=traitor)
            point = one.cohort.index(traitor) + 1
            for share in unseal(key, label, upload.boxes[place][0]) or ():
                _add(one.own, peer, point, share)
            others = [silo for silo in one.cohort if silo != peer]
            sealed = unseal(key, replace(label, type="e"), upload.boxes[place][1]) or ()
            for other, share in zip(others, sealed, strict=False):
                _add(one.dealt, (peer, other), point, share)


def _learn(world: World, one: Knowledge, silo: str, exchange: tuple[bytes, bytes]) -> None:
    """Add what a reply says, whatever set it was made for."""
    asked, data = exchange
    if silo not in one.cohort:
        return
    point = one.cohort.index(silo) + 1
    public = world.silos[silo].key.public_key()
    for reader in (Shares.read, Opening.read):
        try:
            reply = reader(data, one.ctx)
            public.verify(reply.signature, reply.statement())
        except Exception:
            continue
        if isinstance(reply, Shares):
            for owner, share in zip(one.cohort, reply.shares, strict=True):
                _add(one.own, owner, point, share)
            continue
        survivors = OpenBody.read(Ask.read(asked).body).survivors
        dropped = [name for name in one.cohort if name not in survivors]
        for owner, share in zip(survivors, reply.shares, strict=True):
            _add(one.own, owner, point, share)
        for other, word in zip(dropped, reply.seeds, strict=True):
            one.told.setdefault(frozenset((silo, other)), set()).add(int.from_bytes(word, "big"))
        for dealer, pairs in zip([name for name in survivors if name != silo], reply.pairs, strict=True):
            for other, share in zip(dropped, pairs, strict=False):
                _add(one.dealt, (dealer, other), point, share)


def _add(shares: dict, key: object, point: int, share: bytes) -> None:
    value = from_bytes(share)
    if value is not None:
        shares.setdefault(key, {})[point] = value
