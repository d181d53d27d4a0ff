"""Texts to token ids by a rule that everybody knows before any text is read: nothing is fitted to records.

Id 0 is padding, so a text of nothing but padding is an empty one. A study names the rule as `data.vocabulary`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from strategies.spec import Registry, require

_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")


class Vocabulary(Protocol):
    """A public rule from texts to ids in 1 to `ids` - 1."""

    @property
    def ids(self) -> int:
        """Number of token ids, padding among them."""

    def encode(self, text: str, most: int) -> list[int]:
        """Return at most `most` ids."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Each byte of the UTF-8 text is a token."""

    @property
    def ids(self) -> int:
        return 257

    def encode(self, text: str, most: int) -> list[int]:
        return [byte + 1 for byte in text.encode()[:most]]


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words in lower case, single digits and signs, each hashed to one of `size` ids (Weinberger et al. 2009,
    "Feature hashing for large scale multitask learning"); different words may share an id.

    Args:
        size: number of ids beside padding.
    """

    size: int = 4096

    def __post_init__(self) -> None:
        require(2 <= self.size <= 2**20, "words.size", self.size, "from 2 to 1048576")

    @property
    def ids(self) -> int:
        return self.size + 1

    def encode(self, text: str, most: int) -> list[int]:
        words = (found[0] for _, found in zip(range(most), _WORD.finditer(text.lower()), strict=False))
        return [1 + _hash(word) % self.size for word in words]


VOCABULARIES = Registry(kind="vocabulary", classes=(Bytes, Words))


@lru_cache(maxsize=2**16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
