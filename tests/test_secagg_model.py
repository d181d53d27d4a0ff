"""N20: every schedule of requests in a model of the protocol, up to n = 7; and the same model with lower thresholds.

The model. Of n silos c collude with the server. An honest silo backs all of the cohort (FULL), or one set of survivors
(VIEW), or nothing, as the server likes; it opens its set when Q silos of the set have backed it. What then is known:
own seeds of which tau shares are out, where accomplices' shares always are; pairs' seeds that somebody has told or of
which one dealer's tau shares are out. A group of honest silos that unknown pairs hold together is opened when all its
own seeds are known. The claim: whatever the server does, at most one group is opened, and it is the honest part of one
set of at least u_min silos.

Silos of one kind are alike, so a schedule is counted by how many silos of each kind do what. Two different certified
sets are tried, which is all: where no two can be certified, no three can. More knowledge never closes a group, so a silo
that does something else than back, or that does not answer, need not be tried beside those that do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from strategies.secagg.setup import threshold

FULL = 0  # what a silo backs: the whole cohort, or set 1 or 2


@dataclass(frozen=True, kw_only=True)
class Model:
    """n silos, c of them accomplices, and how far the thresholds are lowered."""

    silos: int
    colluding: int
    lower: int = 0

    @property
    def tau(self) -> int:
        return threshold(self.silos, self.colluding) - self.lower

    @property
    def least(self) -> int:
        """u_min, where n_min and D bind no more than they must."""
        return max(self.tau, min(3, self.silos), self.colluding + 2 - self.lower)

    def schedules(self) -> Iterator[tuple[tuple[frozenset[int], ...], tuple[int, ...]]]:
        """Two sets of survivors, and what each honest silo backs; honest silos come first and are sorted by kind."""
        honest = self.silos - self.colluding
        for one in self.sets():
            for two in self.sets():
                if one == two or not self.first_of_its_kind(one, two):
                    continue
                choices = []
                for silo in range(honest):
                    choices.append([FULL, *(number for number, u in ((1, one), (2, two)) if silo in u)])
                for backed in itertools.product(*choices):
                    kinds = [(silo in one, silo in two, backed[silo]) for silo in range(honest)]
                    if kinds == sorted(kinds, key=lambda kind: (not kind[0], not kind[1], kind[2])):
                        yield (one, two), backed

    def sets(self) -> Iterator[frozenset[int]]:
        for size in range(self.least, self.silos):
            yield from map(frozenset, itertools.combinations(range(self.silos), size))

    def first_of_its_kind(self, one: frozenset[int], two: frozenset[int]) -> bool:
        """Whether these sets stand for all that are the same up to names."""
        honest = self.silos - self.colluding
        for silos in (range(honest), range(honest, self.silos)):
            places = [(silo not in one, silo not in two) for silo in silos]
            if places != sorted(places):
                return False
        return True

    def opened(self, sets: tuple[frozenset[int], ...], backed: tuple[int, ...]) -> list[frozenset[int]]:
        """The groups of honest silos whose sum is known."""
        honest = range(self.silos - self.colluding)
        accomplices = frozenset(range(len(honest), self.silos))
        opening: dict[int, frozenset[int]] = {}  # who opens which set
        for number, survivors in enumerate(sets, 1):
            signers = [silo for silo in honest if backed[silo] == number]
            if len(signers) + len(accomplices & survivors) >= self.tau:
                opening |= dict.fromkeys(signers, survivors)
        full = {silo for silo in honest if backed[silo] == FULL}

        def own(silo: int) -> bool:
            holders = accomplices | full | {one for one, survivors in opening.items() if silo in survivors}
            return len(holders) >= self.tau

        def pair(one: int, other: int) -> bool:
            """Known by a word of either, or by shares of either dealer."""
            parted = {silo: s for silo, s in opening.items() if (one in s) != (other in s)}
            told = (one in parted and one in parted[one]) or (other in parted and other in parted[other])
            dealt = [sum(dealer in survivors for survivors in parted.values()) for dealer in (one, other)]
            return bool(told) or len(accomplices) + max(dealt) >= self.tau

        groups, left = [], set(honest)
        while left:
            group, reached = set[int](), {left.pop()}
            while reached:
                silo = reached.pop()
                group.add(silo)
                reached |= {other for other in left if not pair(silo, other)}
                left -= reached
            groups.append(frozenset(group))
        return [group for group in groups if all(own(silo) for silo in group)]

    def attack(self) -> tuple[object, ...] | None:
        """A schedule that breaks the claim, if there is one."""
        honest = frozenset(range(self.silos - self.colluding))
        everybody = frozenset(range(self.silos))
        for sets, backed in self.schedules():
            found = self.opened(sets, backed)
            allowed = {u & honest for u in (*sets, everybody)}
            if len(found) > 1 or not set(found) <= allowed or any(len(g) < self.least - self.colluding for g in found):
                return sets, backed, found
        return None


SIZES = [(n, c) for n in range(2, 8) for c in range(n - 1) if threshold(n, c) <= n]


@pytest.mark.parametrize(("silos", "colluding"), SIZES)
def test_no_schedule_opens_two_sets(silos: int, colluding: int) -> None:
    """N20, with the thresholds of the code."""
    assert Model(silos=silos, colluding=colluding).attack() is None


@pytest.mark.parametrize(("silos", "colluding"), [(n, c) for n, c in SIZES if n >= 4 and n - c >= 3])
def test_lower_thresholds_are_attacked(silos: int, colluding: int) -> None:
    """N20: with tau and Q both one lower the same search finds a schedule that opens two sets."""
    assert Model(silos=silos, colluding=colluding, lower=1).attack() is not None


def test_the_model_opens_what_honest_servers_open() -> None:
    """The claim is not empty: everybody FULL opens all, a certified set opens its honest part, and too few nothing."""
    model = Model(silos=5, colluding=1)
    sets = (frozenset({0, 1, 2, 4}), frozenset({0, 1, 2, 3}))
    assert model.opened(sets, (FULL, FULL, FULL, FULL)) == [frozenset(range(4))]
    assert model.opened(sets, (1, 1, 1, FULL)) == [frozenset({0, 1, 2})]
    assert model.opened(sets, (1, 1, FULL, FULL)) == []
    assert sum(1 for _ in model.schedules()) > 20
