"""Laws of the run's agreement: one canonical text, one digest; what is not canonical is refused. Oracle: json, hashlib."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.errors import ProtocolError
from strategies.manifest import Manifest, Member

texts = st.text(max_size=6)
rosters = st.dictionaries(texts, st.floats(1e-300, 1e300), max_size=4).map(
    lambda weights: tuple(Member(silo=silo, weight=weights[silo]) for silo in sorted(weights))
)
manifests = st.builds(Manifest, run=texts, study=texts, code=texts, layout=texts, roster=rosters)
TEXT = (
    '{"code":"c","coordinator":"","layout":"l","roster":[{"ledger_id":"","ledger_key":"","silo":"a","weight":1.0},'
    '{"ledger_id":"","ledger_key":"","silo":"b","weight":2.5}],"run":"r","study":"s"}'
)
SAMPLE = Manifest(
    run="r", study="s", code="c", layout="l", roster=(Member(silo="a", weight=1.0), Member(silo="b", weight=2.5))
)


@given(manifests)
def test_a_manifest_survives_its_text(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_text_and_its_digest_are_these() -> None:
    assert SAMPLE.to_json() == TEXT
    assert Manifest.from_json(TEXT) == SAMPLE
    assert SAMPLE.digest() == hashlib.sha256(TEXT.encode()).hexdigest()


def test_the_roster_says_what_a_silo_weighs() -> None:
    assert SAMPLE.weight_of("b") == 2.5
    with pytest.raises(ProtocolError, match="'c' is not in the run's roster"):
        SAMPLE.weight_of("c")


def changed(**values: Any) -> str:
    return json.dumps(json.loads(TEXT) | values, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "3",
        "null",
        "[" * 100_000,
        TEXT[:-1],
        TEXT + " ",
        TEXT.replace(":", ": "),
        TEXT.replace("2.5", "2.50"),
        TEXT.replace("1.0", "1"),
        TEXT.replace('"r"', '"\\u0072"'),
        TEXT.replace("1.0", "NaN"),
        TEXT.replace("2.5", "Infinity"),
        TEXT.replace("1.0", "-1.0"),
        TEXT.replace("1.0", "0.0"),
        TEXT.replace("1.0", "1" + "0" * 400),
        changed(run=5),
        changed(study=None),
        changed(layout=["l"]),
        changed(code={}),
        changed(extra=1),
        changed(roster=3),
        changed(roster=[{"silo": "b", "weight": 1.0}, {"silo": "a", "weight": 1.0}]),
        changed(roster=[{"silo": "a", "weight": 1.0}, {"silo": "a", "weight": 1.0}]),
        changed(roster=[{"silo": "a"}]),
        changed(roster=[{"silo": 1, "weight": 1.0}]),
        changed(roster=["a"]),
        changed(roster=[{"silo": "a", "weight": 1.0, "extra": 1}]),
        changed(roster=[{"silo": "a", "weight": "x"}]),
    ],
    ids=lambda text: text[:90],
)
def test_what_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        Manifest.from_json(text)


def test_no_changed_character_gives_the_same_digest_or_another_error(scaled: Callable[..., int]) -> None:
    random = Random(1)
    for _ in range(scaled(5000)):
        at = random.randrange(len(TEXT))
        text = TEXT[:at] + chr(random.choice([random.randrange(32, 127), random.randrange(0x110000)])) + TEXT[at + 1 :]
        try:
            manifest = Manifest.from_json(text)
        except ProtocolError:
            continue
        assert (manifest.digest() == SAMPLE.digest()) == (text == TEXT)
