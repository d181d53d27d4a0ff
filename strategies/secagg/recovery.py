"""Opening a total: the seeds that silos have answered with, each held against its commitment (SECAGG-FLOW 2, 20).

A wrong share does no harm while enough right ones are there: every recovered seed must match what its owner has
committed to, and wrong shares are searched for (`shares.recover`). A seed of a pair is taken from the survivor's own
word where it holds, else from shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from strategies.secagg.errors import Code
from strategies.secagg.masks import add_masks
from strategies.secagg.messages import Opening, Shares, Upload
from strategies.secagg.ring import Words
from strategies.secagg.shares import commitment, from_bytes, mask_key, recover


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All that is known of a sum's seeds.

    Args:
        cohort: U0.
        survivors: U1.
        threshold: tau.
        colluding: c.
        uploads: of the survivors, without their vectors.
        replies: of survivors, to the request for all or to that for the survivors.
    """

    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    threshold: int
    colluding: int
    uploads: Mapping[str, Upload]
    replies: Mapping[str, Shares | Opening] = field(repr=False)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Silos of the cohort that did not survive, in order."""
        return tuple(silo for silo in self.cohort if silo not in self.survivors)

    def point(self, silo: str) -> int:
        """Where the shares of a silo lie."""
        return self.cohort.index(silo) + 1


@dataclass(kw_only=True)
class Seeds:
    """What was recovered.

    Args:
        masks: AES key and sign of every mask that is left in the total, as it is to be added.
        blamed: silos whose shares or boxes did not hold, by code.
    """

    masks: list[tuple[bytes, int]] = field(default_factory=list, repr=False)
    blamed: dict[str, Code] = field(default_factory=dict)

    def unmask(self, total: Words) -> None:
        """Take all masks out of a total, in place."""
        add_masks(total, self.masks)


def recovered(answers: Answers) -> Seeds | None:
    """Return the seeds of all masks that are left in the survivors' total, or None when one cannot be had yet."""
    seeds = Seeds(blamed=_absent(answers))
    wrong: set[int] = set()
    for place, silo in enumerate(answers.survivors):
        shares = {answers.point(holder): reply.shares[place] for holder, reply in answers.replies.items()}
        seed = _seed(answers, shares, answers.uploads[silo].own, wrong)
        if seed is None:
            return None
        seeds.masks.append((mask_key(seed), -1))
    for silo in answers.survivors:
        for index, gone in enumerate(answers.dropped):
            seed = _pair_seed(answers, silo, index, wrong)
            if seed is None:
                return None
            seeds.masks.append((mask_key(seed), -1 if answers.point(gone) > answers.point(silo) else 1))
    seeds.blamed |= {answers.cohort[point - 1]: Code.SHARE for point in wrong}
    return seeds


def _absent(answers: Answers) -> dict[str, Code]:
    """Return whose boxes more silos have found absent than may collude to say so."""
    counted = Counter(
        silo
        for reply in answers.replies.values()
        for silo, share in zip(answers.survivors, reply.shares, strict=True)
        if not share
    )
    return {silo: Code.BOX for silo, count in counted.items() if count > answers.colluding}


def _seed(answers: Answers, shares: Mapping[int, bytes], committed: bytes, wrong: set[int]) -> int | None:
    """Return the committed seed, and add the points of wrong shares to `wrong`."""
    sound = {point: value for point, share in shares.items() if (value := from_bytes(share)) is not None}
    found = recover(sound, answers.threshold, lambda seed: commitment(seed) == committed, wrong)
    if found is None:
        return None
    wrong |= found.wrong
    return found.secret


def _pair_seed(answers: Answers, silo: str, index: int, wrong: set[int]) -> int | None:
    """Return the seed of a survivor's pair with the dropped silo at `index`."""
    gone = answers.dropped[index]
    committed = pair_commitment(answers.cohort, answers.uploads[silo], gone)
    own = answers.replies.get(silo)
    if isinstance(own, Opening):
        seed = from_bytes(own.seeds[index])
        if seed is not None and commitment(seed) == committed:
            return seed
        wrong.add(answers.point(silo))
    shares: dict[int, bytes] = {}
    for holder, reply in answers.replies.items():
        if holder != silo and isinstance(reply, Opening):
            pairs = reply.pairs[_without(answers.survivors, holder).index(silo)]
            if pairs:
                shares[answers.point(holder)] = pairs[index]
    return _seed(answers, shares, committed, wrong)


def pair_commitment(cohort: Sequence[str], upload: Upload, peer: str) -> bytes:
    """Return what an upload commits to for the pair with `peer`."""
    return upload.pairs[_without(cohort, upload.silo).index(peer)]


def mismatched(cohort: Sequence[str], uploads: Mapping[str, Upload]) -> set[str]:
    """Return whom to leave out so that all pairs have committed to the same seeds (14).

    Of silos that contradict each other the one with most contradictions goes, at a tie all that have as many.
    """
    left, gone = dict(uploads), set[str]()
    while True:
        counted = Counter(
            silo
            for silo in left
            for peer in left
            if silo != peer and pair_commitment(cohort, left[silo], peer) != pair_commitment(cohort, left[peer], silo)
        )
        if not counted:
            return gone
        most = max(counted.values())
        for silo in [silo for silo, count in counted.items() if count == most]:
            gone.add(silo)
            del left[silo]


def _without(silos: Sequence[str], one: str) -> list[str]:
    return [silo for silo in silos if silo != one]
