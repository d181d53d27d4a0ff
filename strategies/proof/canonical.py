"""One text for one value: the JSON that is hashed and signed.

Keys sorted by code point, no spaces, UTF-8, whole numbers below 2^63, no floats (RFC 8785 shows how many ways there are
to write one). A number that is not whole is a decimal text: exact where accounting needs the very float (`exact`),
rounded up where it states a privacy loss (`rounded_up`).

Guarantees: `load` takes only what `dump` gives. A text with a key twice, a float, other spacing or another order of
keys is refused, so two readers of signed bytes cannot see two values.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from strategies.errors import VerificationError
from strategies.privacy.accountant import DIGITS, round_up

_LARGEST = 2**63
_TOO_LARGE = "a number is beyond 2^63, which canonical JSON does not hold"
_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?")
_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
).encode


def dump(value: Any) -> bytes:
    """Return the canonical bytes of objects, lists, texts, whole numbers, true, false and null.

    Raises:
        VerificationError: the value holds something else.
    """
    try:
        _check(value)
        return _encode(value).encode()
    except (RecursionError, UnicodeEncodeError) as error:
        raise VerificationError(f"a value has no canonical text ({type(error).__name__})") from None


def load(data: bytes) -> Any:
    """Read canonical bytes.

    Raises:
        VerificationError: they are no JSON, or not in the one form that `dump` gives.
    """
    try:
        value = _decoder.decode(data.decode())
        again = _encode(value).encode()
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"the text is no canonical JSON ({type(error).__name__})") from None
    if again != data:
        raise VerificationError("the text is JSON, but not in its canonical form")
    return value


def _check(value: Any) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is int:
        if not -_LARGEST < value < _LARGEST:
            raise VerificationError(_TOO_LARGE)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if type(key) is not str:
                raise VerificationError(f"{key!r} is no key of canonical JSON; it must be a text")
            if type(inner) is not str:  # most are: a call for each would be felt in every entry
                _check(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner)
    else:
        raise VerificationError(f"{value!r} is no value of canonical JSON; write a number that is not whole as a text")


def _whole(text: str) -> int:
    if len(text) > 20 or not -_LARGEST < int(text) < _LARGEST:
        raise VerificationError(_TOO_LARGE)
    return int(text)


def _no_number(text: str) -> Any:
    raise VerificationError(f"{text} is no number of canonical JSON; a number that is not whole is a text")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise VerificationError("an object has a key twice")
    return found


_decoder = json.JSONDecoder(
    object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number, parse_int=_whole
)


# --- numbers ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)  # few settings make all the entries of a ledger
def exact(value: float) -> str:
    """Return the shortest decimal text that stands for exactly this float, without an exponent; ``inf`` for infinity.

    Raises:
        VerificationError: the value is negative or NaN.
    """
    number = float(value)
    if number == math.inf:
        return "inf"
    if not number >= 0:
        raise VerificationError(f"{value} is no number of a ledger; it must be at least 0")
    text = format(Decimal(repr(abs(number))), "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def read_exact(text: Any, *, infinite: bool = False) -> float:
    """Read what `exact` wrote.

    Args:
        text: the decimal.
        infinite: whether ``inf`` is allowed.

    Raises:
        VerificationError: it is no decimal, or not the one text of its float.
    """
    if text == "inf" and infinite:
        return math.inf
    if not isinstance(text, str) or len(text) > 1200 or not _DECIMAL.fullmatch(text) or exact(float(text)) != text:
        raise VerificationError(f"{text!r:.60} is not the decimal text of a number")
    return float(text)


def rounded_up(value: float, digits: int = DIGITS) -> str:
    """Return a privacy loss as a decimal text that is not below it."""
    return exact(round_up(value, digits))
