"""Laws of vocabularies: a text's ids are a fixed function of the text, in 1 to ids - 1; a higher limit only adds ids.

Oracles: ids worked by hand from UTF-8, and golden hashes (`printf fever | sha256sum`, the first 16 hex digits), which
must never change, because trained models depend on them.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.errors import SettingError
from strategies.tokens import VOCABULARIES, Bytes, Words

SHA256 = {
    "fever": 0x1E44A1C45388C81C,
    "no": 0x9390298F3FB0C5B1,
    "7": 0x7902699BE42C8A8E,
    "°": 0x1EE6C7EDAD9EE3B7,
    "a": 0xCA978112CA1BBDCA,
    "é": 0x4A99557E4033C353,
}


@pytest.mark.parametrize(
    ("text", "ids"),
    [("", []), ("a", [98]), ("A b", [66, 33, 99]), ("é", [196, 170]), ("\0", [1]), ("€", [227, 131, 173])],
)
def test_bytes_by_hand(text: str, ids: list[int]) -> None:
    assert Bytes().encode(text, 8) == ids
    assert Bytes().encode(text, 1) == ids[:1]


def words(size: int, *parts: str) -> list[int]:
    return [1 + SHA256[part] % size for part in parts]


@pytest.mark.parametrize("size", [2, 1000, 4096])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" \n\t", []),
        ("Fever NO fever", ["fever", "no", "fever"]),
        ("no77°", ["no", "7", "7", "°"]),
        ("no°fever\n7", ["no", "°", "fever", "7"]),
        ("aéa", ["a", "é", "a"]),
    ],
)
def test_words_by_hand(text: str, parts: list[str], size: int) -> None:
    assert Words(size=size).encode(text, 8) == words(size, *parts)
    assert Words(size=size).encode(text, 2) == words(size, *parts[:2])


def test_ids_that_must_never_change() -> None:
    assert Words().encode("Fever no 7°a", 9) == [2077, 1458, 2703, 952, 3531]
    assert Bytes().encode("Fever", 9) == [71, 102, 119, 102, 115]


@given(st.text(), st.integers(1, 40), st.sampled_from([Bytes(), Words(), Words(size=2), Words(size=2**20)]))
def test_ids_are_in_range_and_a_limit_cuts_the_end(text: str, most: int, rule: Bytes | Words) -> None:
    ids = rule.encode(text, most)
    assert len(ids) <= most and all(1 <= number < rule.ids for number in ids)
    assert ids == rule.encode(text, 1000)[:most] == rule.encode(text, most)


@given(st.text(max_size=30))
def test_every_sign_is_a_token_of_bytes_and_none_but_blanks_is_lost_to_words(text: str) -> None:
    assert bytes(number - 1 for number in Bytes().encode(text, 1000)).decode() == text
    assert (Words().encode(text, 1000) == []) == (not text.strip())


def test_names_and_sizes() -> None:
    assert VOCABULARIES.resolve("bytes()") == Bytes() and Bytes().ids == 257
    assert VOCABULARIES.resolve("words(size=10)").ids == 11
    for spec in ("words(size=1)", "words(size=2000000)", "bytes(size=3)", "letters()"):
        with pytest.raises(SettingError):
            VOCABULARIES.resolve(spec)
