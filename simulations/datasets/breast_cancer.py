"""Healthcare: 569 fine-needle aspirates of breast masses, 30 features of cell nuclei, malignant or benign.

Wisconsin Diagnostic Breast Cancer (Street, Wolberg & Mangasarian 1993), as scikit-learn ships it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class BreastCancer(Dataset):
    """Columns as in scikit-learn, and `diagnosis`."""

    def load(self) -> pl.DataFrame:
        import polars as pl
        from sklearn.datasets import load_breast_cancer

        bunch = load_breast_cancer()
        columns = {str(name): bunch.data[:, i] for i, name in enumerate(bunch.feature_names)}
        return pl.DataFrame({**columns, "diagnosis": [str(bunch.target_names[i]) for i in bunch.target]})
