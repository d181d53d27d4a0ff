"""What stands on a page of a report, and every way in which its facts may be written there."""

from __future__ import annotations

import html
import math
import re
from typing import Any

from strategies.report.numbers import floor, metric, percent, percent_left, plain, privacy

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])")
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


def written(page: str) -> str:
    """The visible words of a page, one space between them."""
    bare = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", bare)).split())


def numbers_on(page: str) -> set[str]:
    """Every number that a page writes, apart from times."""
    return {number.rstrip(",") for number in NUMBER.findall(_TIME.sub("", written(page)))}


def numbers_of(value: Any) -> set[str]:
    """Every way in which a number of the facts may be written, and each number that stands in a text of them."""
    if isinstance(value, dict):
        return set().union(*(numbers_of(inner) for inner in (*value.keys(), *value.values())), {str(len(value))})
    if isinstance(value, list):
        return set().union(*(numbers_of(inner) for inner in value), {str(len(value))})
    if isinstance(value, str):
        return set(NUMBER.findall(value))
    if isinstance(value, bool) or value is None:
        return set()
    ways = [privacy(value), floor(value), plain(value), metric(value), percent(value), percent_left(value), repr(value)]
    return {way.removesuffix(" %") for way in (*ways, f"{value:,}")} | {
        f"{math.floor(1 / value + 1e-6):,}" if value else ""
    }
