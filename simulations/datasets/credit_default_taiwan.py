"""Finance: 30,000 holders of a credit card in Taiwan, half a year of bills and payments, and default (22 %).

UCI 350 (Yeh & Lien 2009, doi:10.24432/C55S3H), from the folder of development data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, development_file

if TYPE_CHECKING:
    import polars as pl

_MONTHS = range(1, 7)


@dataclass(frozen=True, kw_only=True)
class CreditDefaultTaiwan(Dataset):
    """The documented columns, `USED_1` to `USED_6` (bill over limit), `school` (a pseudo-silo), and `default`."""

    def load(self) -> pl.DataFrame:
        import polars as pl

        path = development_file("credit_default_taiwan", "UCI_Credit_Card.csv")
        frame = pl.read_csv(path, infer_schema=False).cast(pl.Float64)
        school = pl.col("EDUCATION").replace_strict({1: "graduate", 2: "university", 3: "high"}, default="other")
        used = [(pl.col(f"BILL_AMT{month}") / pl.col("LIMIT_BAL")).alias(f"USED_{month}") for month in _MONTHS]
        default = pl.when(pl.col("Default") > 0).then(pl.lit("yes")).otherwise(pl.lit("no")).alias("default")
        return frame.with_columns(*used, school.alias("school"), default).drop("ID", "Default")
