"""Healthcare: 442 patients with diabetes, ten measurements, and the progression of the disease a year later.

Efron, Hastie, Johnstone & Tibshirani 2004 ("Least angle regression", section 1), as scikit-learn ships it, unscaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Diabetes(Dataset):
    """Columns age, sex (1 or 2), bmi, bp, s1 to s6 (serum), and `progression`, a number."""

    def load(self) -> pl.DataFrame:
        import polars as pl
        from sklearn.datasets import load_diabetes

        bunch = load_diabetes(scaled=False)
        columns = {str(name): bunch.data[:, i] for i, name in enumerate(bunch.feature_names)}
        return pl.DataFrame({**columns, "progression": bunch.target})
