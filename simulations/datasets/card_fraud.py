"""Synthetic (finance): 72,893 card payments of 6,000 customers at five banks, 1.4 % of them fraud.

A model made up for this project, after what card issuers publish about fraud; no real payment is behind it.

Each customer has a usual amount, usual hours, a taste for shopping online and travels now and then. An eighth of the
customers are robbed of their card's number at a random moment; of the payments after it some are the thief's: mostly
without the card, often abroad or at night, at shops whose goods are easily sold, quickly one after the other, and as
large as passes. Honest customers do all of that too, only less often, so no single column tells fraud apart. Banks
differ in how wealthy and how mobile their customers are, and in how often cards are stolen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulations.datasets.base import Dataset
from strategies.spec import require

if TYPE_CHECKING:
    import polars as pl

BANKS = 5
SHOPS = ("grocery", "fuel", "restaurant", "clothes", "travel", "electronics", "gifts", "cash")
_HONEST = np.array([0.34, 0.15, 0.18, 0.11, 0.05, 0.06, 0.04, 0.07])
_THIEF = np.array([0.10, 0.08, 0.05, 0.13, 0.12, 0.27, 0.17, 0.08])
_STOLEN = 0.12  # of cards, at some moment of the time seen; more at some banks
_THEFTS = 1.65  # payments of a thief before the card is blocked, in the mean
_HOURS = 24.0 * 30  # seen


@dataclass(frozen=True, kw_only=True)
class CardFraud(Dataset):
    """One row a payment: customer, bank, amount, ratio, hour, pause_h, shop, abroad, online, and `fraud`.

    `ratio` is the amount over the customer's usual one, `pause_h` the hours since the payment before.

    Args:
        customers: number of them; each makes about 12 payments.
        seed: of the records; the same seed gives the same records.
    """

    customers: int = 6000
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.customers >= 100, "card_fraud.customers", self.customers, "at least 100")

    def load(self) -> pl.DataFrame:
        import polars as pl

        random = np.random.default_rng([self.seed, 101])
        bank = random.integers(BANKS, size=self.customers)
        usual = np.exp(random.normal(3.4 + 0.15 * bank, 0.5))
        online = random.beta(2.0, 4.0, self.customers)
        mobile = random.beta(1.0, 12.0 - 1.5 * bank)
        honest = 4 + random.poisson(8.0, self.customers)
        stolen = random.random(self.customers) < _STOLEN * (0.6 + 0.2 * bank)
        thefts = np.where(stolen, random.poisson(_THEFTS, self.customers), 0)
        tables = []
        for count, fraud in ((honest, False), (thefts, True)):
            owner = np.repeat(np.arange(self.customers), count)
            facts = _payments(random, fraud, usual[owner], online[owner], mobile[owner], owner)
            tables.append({"customer": owner, "bank": bank[owner], **facts})
        joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        frame = pl.DataFrame(joined).sort("customer", "at_h")
        pause = (pl.col("at_h") - pl.col("at_h").shift(1).over("customer")).fill_null(_HOURS).alias("pause_h")
        frame = frame.with_columns(pause.round(2), pl.format("bank{}", pl.col("bank") + 1).alias("bank"))
        return frame.drop("at_h")


def _payments(
    random: np.random.Generator,
    fraud: bool,
    usual: NDArray[np.float64],
    online: NDArray[np.float64],
    mobile: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """Return the facts of one payment for each entry of the arrays, honest or not."""
    rows = len(owner)
    shop = random.choice(len(SHOPS), rows, p=_THIEF if fraud else _HONEST)
    ratio = np.exp(random.normal(0.55 if fraud else 0.0, 0.95 if fraud else 0.75, rows) + 0.35 * (shop >= 4))
    hour = np.where(
        random.random(rows) < (0.6 if fraud else 0.12), random.integers(24, size=rows), _waking(random, rows)
    )
    day = random.integers(30, size=rows)
    if fraud:  # a thief's payments fall within a day or so of each other
        day = (random.integers(28, size=owner.max(initial=0) + 1)[owner] + random.integers(2, size=rows)) % 30
    abroad = random.random(rows) < np.clip(0.01 + mobile + (0.3 if fraud else 0.0), 0, 1)
    without = random.random(rows) < np.clip(online + (0.35 if fraud else 0.0), 0, 1)
    return {
        "amount": np.round(usual * ratio, 2),
        "ratio": np.round(ratio, 3),
        "hour": hour,
        "shop": np.array(SHOPS)[shop],
        "abroad": abroad.astype(np.int64),
        "online": without.astype(np.int64),
        "fraud": np.full(rows, "yes" if fraud else "no"),
        "at_h": day * 24.0 + hour + random.random(rows),
    }


def _waking(random: np.random.Generator, rows: int) -> NDArray[np.int64]:
    return np.clip(np.round(random.normal(15.0, 3.8, rows)), 0, 23).astype(np.int64)
