"""Healthcare: 920 patients of four hospitals (three countries), 13 findings, and whether the heart is diseased.

UCI 45 (Janosi, Steinbrunn, Pfisterer & Detrano 1988, doi:10.24432/C52P4X), from the folder of development data; the
four hospitals are natural silos. Many values were never recorded: all cholesterol in Switzerland, most of `ca`, `thal`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, development_file

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class HeartDisease(Dataset):
    """The documented columns, empty where a value is missing, `site`, and `disease`: yes above half a narrowing."""

    def load(self) -> pl.DataFrame:
        import polars as pl

        path = development_file("heart_disease", "heart_disease_4sites.csv")
        frame = pl.read_csv(path, infer_schema=False, null_values=["?", ""])
        numbers = frame.select(pl.exclude("site").cast(pl.Float64))
        # no living patient has a cholesterol or a blood pressure of 0: the code of these files for "not measured"
        real = [pl.when(pl.col(name) > 0).then(pl.col(name)).alias(name) for name in ("chol", "trestbps")]
        disease = pl.when(pl.col("num") > 0).then(pl.lit("yes")).otherwise(pl.lit("no")).alias("disease")
        return numbers.with_columns(*real, disease, frame["site"]).drop("num")
