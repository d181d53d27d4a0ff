"""Synthetic (healthcare): 9,000 stretches of DNA from three laboratories; is one an enhancer that the liver uses?

Sequences are drawn from a model made up for this project; no real genome is behind them.

Background bases follow a first-order chain in which C seldom precedes G, as in vertebrates. An enhancer holds sites of
two liver factors, HNF4A (two half sites AGGTCA, one base apart) and CEBPA (TTGCGCAA), anywhere in the stretch, on
either strand, each base as written or, now and then, another. A stretch that is none holds the same sites with their
bases shuffled, and sometimes one true site. So counts of bases say nothing, no place in the stretch does, and one site
alone says little; what tells is which short words are there. Laboratories differ in G and C content and in read errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.datasets.base import Arrays, Dataset
from strategies.spec import require

LENGTH, LABORATORIES = 80, 3
_SITES = ("AGGTCAAAGGTCA", "TTGCGCAA")
_GC = np.array([0.40, 0.44, 0.48])  # share of G and C in the background, by laboratory
_ERRORS = np.array([0.005, 0.01, 0.02])  # share of bases that are read wrongly, by laboratory
_RARER_CG = 0.25  # what is left of the pairs CG
_ALTERED = 0.06  # share of a site's bases that are another
_ONE_SITE = 0.25  # share of stretches without an enhancer that hold one true site
Bases = NDArray[np.int64]  # 0 to 3 for A, C, G, T


@dataclass(frozen=True, kw_only=True)
class DnaEnhancers(Dataset):
    """`X` (n, 80, 4) of 0 and 1, one channel a base; `y` enhancer or other; `silo` the laboratory.

    Args:
        stretches: number of them, each from another person.
        seed: of the records; the same seed gives the same records.
    """

    stretches: int = 9000
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.stretches >= 20, "dna_enhancers.stretches", self.stretches, "at least 20")

    def load(self) -> Arrays:
        random = np.random.default_rng([self.seed, 104])
        laboratory = random.integers(LABORATORIES, size=self.stretches)
        enhancer = random.random(self.stretches) < 0.4
        bases = _background(random, _GC[laboratory])
        for row in range(self.stretches):
            _write_sites(random, bases[row], enhancer=bool(enhancer[row]))
        wrong = random.random(bases.shape) < _ERRORS[laboratory, None]
        bases = np.where(wrong, random.integers(4, size=bases.shape), bases)
        return {
            "X": np.eye(4, dtype=np.uint8)[bases],
            "y": np.where(enhancer, "enhancer", "other"),
            "silo": np.array([f"laboratory{number + 1}" for number in laboratory]),
        }


def _background(random: np.random.Generator, gc: NDArray[np.float64]) -> Bases:
    """Return (rows, LENGTH) bases; a G after a C is taken back most of the time."""
    shares = np.stack([1 - gc, gc, gc, 1 - gc], axis=1) / 2
    ends = shares.cumsum(1)[:, None, :]
    bases: Bases = (random.random((len(gc), LENGTH, 1)) > ends[..., :3]).sum(2)
    pair = (bases[:, :-1] == 1) & (bases[:, 1:] == 2) & (random.random((len(gc), LENGTH - 1)) > _RARER_CG)
    bases[:, 1:][pair] = 3  # as evolution does: the C of a CG decays, and T stands on the other strand
    return bases


def _write_sites(random: np.random.Generator, bases: Bases, *, enhancer: bool) -> None:
    """Put both sites, or their shuffled bases, at places of the row that do not overlap."""
    true = [enhancer, enhancer]
    if not enhancer and random.random() < _ONE_SITE:
        true[random.integers(2)] = True
    half = LENGTH // 2
    for site, is_true, at in zip(_SITES, true, random.permutation(2), strict=True):
        written = np.array(["ACGT".index(base) for base in site])
        altered = random.random(len(written)) < _ALTERED
        written = np.where(altered, random.integers(4, size=len(written)), written)
        if not is_true:
            written = random.permutation(written)
        if random.random() < 0.5:
            written = 3 - written[::-1]  # the other strand
        start = at * half + random.integers(half - len(written) + 1)
        bases[start : start + len(written)] = written
