"""Healthcare: 5,030 chest X-rays of children (28 x 28, grey), pneumonia or normal.

PneumoniaMNIST (Yang et al. 2023; images of Kermany et al. 2018), from the folder of development data. The file's
training part is altered there: of 1,214 normal images 388 remain. Its three parts are used together by default, and a
study holds its own test records out of them, which is easier than the official test part, taken another year.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.datasets.base import Arrays, Dataset, arrays_of, development_file


@dataclass(frozen=True, kw_only=True)
class PneumoniaMnist(Dataset):
    """`X` (n, 28, 28) uint8, `y` normal or pneumonia.

    Args:
        parts: of the file: train (3,882 images), val (524), test (624).
    """

    parts: tuple[str, ...] = ("train", "val", "test")

    def load(self) -> Arrays:
        found = arrays_of(development_file("pneumoniamnist", "pneumoniamnist.npz"))
        labels = np.concatenate([found[f"{part}_labels"][:, 0] for part in self.parts])
        return {
            "X": np.concatenate([found[f"{part}_images"] for part in self.parts]),
            "y": np.array(["normal", "pneumonia"])[labels],
        }
