"""Healthcare forms and finance cheques alike: 1,797 grey images (8 x 8) of handwritten digits, ten classes.

Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), as scikit-learn ships it; grey values 0 to 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.datasets.base import Arrays, Dataset


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """`X` (1797, 8, 8) uint8 and `y` the digit."""

    def load(self) -> Arrays:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return {"X": bunch.images.astype(np.uint8), "y": bunch.target.astype(np.int64)}
