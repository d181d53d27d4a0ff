"""Finance and telecoms: 5,574 text messages, 13 % of them spam (lures, premium numbers, fake prizes).

SMS Spam Collection (Almeida, Hidalgo & Yamakami 2011, doi:10.24432/C5CC84), from the folder of development data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.datasets.base import Dataset, development_file

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class SmsSpam(Dataset):
    """Columns `label` (ham or spam) and `text`."""

    def load(self) -> pl.DataFrame:
        import polars as pl

        labels: list[str] = []
        texts: list[str] = []
        for line in development_file("sms_spam", "SMSSpamCollection").read_text(encoding="utf-8").split("\n"):
            label, tab, text = line.partition("\t")
            if tab and label in ("ham", "spam"):
                labels.append(label)
                texts.append(text)
            elif line:  # a line break inside the message before
                texts[-1] += f"\n{line}"
        return pl.DataFrame({"label": labels, "text": texts})
