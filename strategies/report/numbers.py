"""How numbers are written in a report; a privacy number is never written smaller than it is."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import ROUND_CEILING, Decimal

NOTHING = "–"
POINTS = 150  # most points of a curve


def privacy(value: float | None) -> str:
    """Return a privacy number with up to 4 decimals, rounded up where it has more; None is "unbounded"."""
    if value is None or not math.isfinite(value):
        return "unbounded"
    return _plain(Decimal(repr(float(value))).quantize(Decimal("0.0001"), ROUND_CEILING))


def floor(left: float) -> str:
    """Return what is left of a budget with up to 4 decimals, rounded down; a step of 1e-10 is the arithmetic's."""
    return plain(math.floor(left * 10**4 + 1e-6) / 10**4)


def plain(value: float) -> str:
    """Return a setting with up to 4 decimals."""
    return _plain(Decimal(f"{value:.4f}"))


def metric(value: float | None) -> str:
    """Return a metric with 4 decimals."""
    return NOTHING if value is None else f"{value:.4f}"


def percent(share: float) -> str:
    """Return a share as a percentage with up to 2 decimals, rounded up."""
    return f"{_plain((Decimal(repr(float(share))) * 100).quantize(Decimal('0.01'), ROUND_CEILING))} %"


def percent_left(share: float) -> str:
    """Return what is left as a percentage with up to 2 decimals, rounded down."""
    return f"{plain(math.floor(share * 10**4 + 1e-6) / 100)} %"


def delta_text(delta: float) -> str:
    """Return delta as it was set, such as 1e-05."""
    return repr(float(delta))


def one_in(delta: float) -> str:
    """Return delta as a chance, the larger one where it does not come out even."""
    return f"1\u00a0in\u00a0{math.floor(1 / delta + 1e-6):,}"


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as "3 silos"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def minute(text: str) -> str:
    """Return an ISO time in UTC to the minute."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"


def thin(count: int, most: int = POINTS) -> list[int]:
    """Return the indices to show of `count` points: evenly spread, the last among them, `most` at most."""
    return sorted({math.ceil((i + 1) * count / min(count, most)) - 1 for i in range(min(count, most))})
