"""Finance: 1,000 applications for credit at a German bank, 20 facts of each, and whether the risk was bad (30 %).

UCI 144, Statlog (Hofmann 1994, doi:10.24432/C5NC77), from the folder of development data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, development_file

if TYPE_CHECKING:
    import polars as pl

COLUMNS = [
    "status",
    "duration",
    "history",
    "purpose",
    "amount",
    "savings",
    "employment",
    "rate",
    "personal",
    "debtors",
    "residence",
    "property",
    "age",
    "plans",
    "housing",
    "credits",
    "job",
    "dependants",
    "telephone",
    "foreign",
    "risk",
]


@dataclass(frozen=True, kw_only=True)
class GermanCredit(Dataset):
    """The documented 20 columns with their codes (A11, A12, ...) and numbers, and `risk`: good or bad."""

    def load(self) -> pl.DataFrame:
        import polars as pl

        path = development_file("german_credit", "german.data")
        frame = pl.read_csv(path, separator=" ", has_header=False, new_columns=COLUMNS)
        return frame.with_columns(pl.col("risk").replace_strict({1: "good", 2: "bad"}))
