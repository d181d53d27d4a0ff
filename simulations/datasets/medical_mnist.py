"""Healthcare: 8,993 medical images (28 x 28, grey) of six kinds: CT of abdomen, chest and head, MR, X-ray of two.

MedNIST (B. J. Erickson, Mayo Clinic; from TCIA, RSNA and NIH images), from the folder of development data. Telling
them apart is very easy: 98.9 % for a linear model.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulations.datasets.base import Arrays, Dataset, arrays_of, development_file


@dataclass(frozen=True, kw_only=True)
class MedicalMnist(Dataset):
    """`X` (8993, 28, 28) uint8, `y` the name of the kind."""

    def load(self) -> Arrays:
        found = arrays_of(development_file("medical_mnist", "medical_mnist_9k_28.npz"))
        return {"X": found["images"], "y": found["classes"][found["labels"]]}
