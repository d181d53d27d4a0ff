"""Synthetic (healthcare): 6,000 short notes on 6,000 patients of four clinics; does the patient have pneumonia now?

Notes are drawn from sentence patterns made up for this project; no real patient is behind them.

A note states a few findings. The word pneumonia stands in as many notes without it as with it: denied, ruled out, long
past, or another person's. Other diseases are affirmed and denied in the same words, so neither the word alone nor a
negation alone decides; what does is which word the negation belongs to. Treatments and signs lean one way, as they do
in life (fever and antibiotics come with other infections too). A note is labelled by what was meant, not what it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulations.datasets.base import Dataset
from strategies.spec import require

if TYPE_CHECKING:
    import polars as pl

CLINICS = 4
_OTHERS = ("heart failure", "asthma", "anaemia", "diabetes", "gout", "a stroke", "a urinary infection", "angina")
_HAS = (
    "x ray shows {}",
    "diagnosed with {} today",
    "findings are consistent with {}",
    "admitted for {}",
    "{} confirmed",
    "treated for {} since yesterday",
)
_HAS_NOT = (
    "no sign of {}",
    "denies {}",
    "{} was ruled out",
    "negative for {}",
    "had {} ten years ago",
    "mother had {}",
    "family history of {}",
    "not {} on review",
)
_SIGNS = {  # probability with pneumonia now, and without
    "febrile at 39": (0.55, 0.2),
    "crackles at the right base": (0.45, 0.12),
    "started amoxicillin": (0.5, 0.15),
    "productive cough": (0.5, 0.2),
    "lungs clear": (0.1, 0.45),
    "afebrile": (0.2, 0.45),
    "sleeps well": (0.2, 0.3),
    "walks without help": (0.25, 0.35),
}
_ASIDE = ("reviewed with family", "bloods sent", "will see again next week", "medication unchanged", "eats and drinks")


@dataclass(frozen=True, kw_only=True)
class ClinicalNotes(Dataset):
    """Columns `patient`, `clinic`, `text` and `pneumonia` (yes or no).

    Args:
        patients: number of them, one note each.
        share: of patients with pneumonia.
        seed: of the records; the same seed gives the same records.
    """

    patients: int = 6000
    share: float = 0.35
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.patients >= 20, "clinical_notes.patients", self.patients, "at least 20")
        require(0 < self.share < 1, "clinical_notes.share", self.share, "between 0 and 1")

    def load(self) -> pl.DataFrame:
        import polars as pl

        random = np.random.default_rng([self.seed, 103])
        ill = random.random(self.patients) < self.share
        clinic = random.integers(CLINICS, size=self.patients)
        return pl.DataFrame(
            {
                "patient": np.arange(self.patients),
                "clinic": [f"clinic{number + 1}" for number in clinic],
                "text": [_note(random, bool(has), int(place)) for has, place in zip(ill, clinic, strict=True)],
                "pneumonia": np.where(ill, "yes", "no"),
            }
        )


def _note(random: np.random.Generator, ill: bool, clinic: int) -> str:
    """Return one note; clinics differ in how much they write."""
    said = []
    if random.random() < 0.8:
        said.append(_pick(random, _HAS if ill else _HAS_NOT).format("pneumonia"))
    for other in random.permutation(_OTHERS)[: random.integers(1, 3 + clinic // 2)]:
        said.append(_pick(random, _HAS if random.random() < 0.5 else _HAS_NOT).format(other))
    said += [
        sign for sign, (with_it, without) in _SIGNS.items() if random.random() < 0.5 * (with_it if ill else without)
    ]
    if random.random() < 0.2 * clinic:
        said.append(_pick(random, _ASIDE))
    return ". ".join(random.permutation(said)) + "."


def _pick(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[random.integers(len(choices))]
