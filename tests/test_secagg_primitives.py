"""The cryptography of secure aggregation against published vectors, through the functions that the protocol calls.

Where a vector cannot pass a wrapper (its nonce or its associated data is not ours), the primitive is held against the
vector and the wrapper against another library (PyCryptodome).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from Crypto.Cipher import ChaCha20_Poly1305
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF as OTHER_HKDF
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from strategies.secagg import boxes, keys
from strategies.secagg.claims import pair_seed
from strategies.secagg.encoding import enc, expand, hkdf_expand, names, number, ordered, sha256, take
from strategies.secagg.errors import Code, SecaggError, notice, noticed
from strategies.secagg.masks import add_mask
from strategies.secagg.shares import commitment, mask_key

RFC = json.loads((Path(__file__).parent / "vectors" / "rfc.json").read_text(encoding="utf-8"))


def hexed(name: str) -> list[dict[str, bytes]]:
    return [{key: bytes.fromhex(value) for key, value in case.items()} for case in RFC[name]]


# --- published vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", hexed("x25519"))
def test_x25519_of_rfc_7748(case: dict[str, bytes]) -> None:
    """Sections 5.2 and 6.1."""
    assert keys.agreed(case["secret"], case["public"]) == case["shared"]


def test_x25519_public_keys_of_rfc_7748() -> None:
    """Section 6.1."""
    for case in hexed("x25519_public"):
        assert keys.public_of(case["secret"]) == case["public"]


def test_x25519_iterated_a_thousand_times() -> None:
    """Section 5.2: k, u = X25519(k, u), k."""
    k = u = bytes([9]) + bytes(31)
    for _ in range(1000):
        shared = keys.agreed(k, u)
        assert shared is not None
        k, u = shared, k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


@pytest.mark.parametrize("case", hexed("ed25519"))
def test_ed25519_of_rfc_8032(case: dict[str, bytes]) -> None:
    """Section 7.1; and no bit of signature, message or key may change."""
    key = Ed25519PrivateKey.from_private_bytes(case["secret"])
    public = key.public_key().public_bytes_raw()
    assert (public, key.sign(case["message"])) == (case["public"], case["signature"])
    assert keys.verified(public, case["signature"], case["message"])
    assert not keys.verified(public, case["signature"], case["message"] + b"\0")
    for place in range(0, 64, 7):
        wrong = bytearray(case["signature"])
        wrong[place] ^= 1
        assert not keys.verified(public, bytes(wrong), case["message"])
    assert not keys.verified(public[:31], case["signature"], case["message"])


@pytest.mark.parametrize("case", hexed("hkdf"))
def test_hkdf_of_rfc_5869(case: dict[str, bytes]) -> None:
    """Appendix A.1 to A.3; all of ours are 32 bytes, the first of each output."""
    assert hkdf_expand(case["prk"], case["info"]) == case["okm"][:32]
    assert keys.hkdf(case["ikm"], case["salt"], case["info"]) == case["okm"][:32]


@pytest.mark.parametrize("case", hexed("chacha20poly1305"))
def test_chacha20_poly1305_of_rfc_8439(case: dict[str, bytes]) -> None:
    """Section 2.8.2 and appendix A.5."""
    cipher = ChaCha20Poly1305(case["key"])
    assert cipher.encrypt(case["nonce"], case["plain"], case["aad"]) == case["sealed"]
    assert cipher.decrypt(case["nonce"], case["sealed"], case["aad"]) == case["plain"]


def test_the_known_answers_of_the_protocol() -> None:
    """SECAGG-FLOW 2, KAT: a pair's seed, its mask key, its commitment, and the first words of its mask."""
    ctx = bytes([1] * 32)
    seed = pair_seed(bytes([2] * 32), ctx)
    assert seed.to_bytes(32, "big") == expand(bytes([2] * 32), "fsa1/mask", ctx)
    assert f"{seed:064x}".startswith("4b68b81b") and f"{seed:064x}".endswith("46f6")
    assert mask_key(seed).hex().startswith("2a62f769") and mask_key(seed).hex().endswith("4061")
    assert commitment(seed).hex().startswith("8d4ada37") and commitment(seed).hex().endswith("2d35")
    words = np.zeros(4, "<u4")
    add_mask(words, mask_key(seed), 1)
    assert [f"{word:08x}" for word in words] == ["00c4de4d", "98123ca8", "538d0f28", "3789713a"]


# --- our use of them ----------------------------------------------------------------------------------------


def label(**changes: object) -> boxes.Label:
    return boxes.Label(**{"type": "b", "ctx": b"c" * 32, "nonce": b"r" * 32, "sender": "a", "receiver": "b"} | changes)  # type: ignore[arg-type]


def test_a_box_is_what_another_library_makes() -> None:
    """Key, zero nonce and associated data as the protocol says."""
    pair, shares = b"k" * 32, [b"1" * 32, b"2" * 32]
    parts = (b"fsa1/box", b"b", b"c" * 32, b"r" * 32, b"a", b"b")
    info = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    key = hmac.new(pair, info + b"\1", hashlib.sha256).digest()  # HKDF-Expand, for 32 bytes
    cipher = ChaCha20_Poly1305.new(key=key, nonce=bytes(12))
    cipher.update(info)
    sealed, tag = cipher.encrypt_and_digest(b"".join(shares))
    assert boxes.seal(pair, label(), shares) == sealed + tag
    assert boxes.unseal(pair, label(), sealed + tag) == shares
    assert len(sealed + tag) == boxes.size(2)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "e"},
        {"ctx": b"d" * 32},
        {"nonce": b"s" * 32},
        {"sender": "c"},
        {"receiver": "c"},
        {"sender": "b", "receiver": "a"},
    ],
)
def test_a_box_opens_under_its_own_label_only(changes: dict[str, object]) -> None:
    """N25: another type, sum, upload, sender, receiver or direction."""
    box = boxes.seal(b"k" * 32, label(), [b"1" * 32])
    assert boxes.unseal(b"k" * 32, label(**changes), box) is None
    assert boxes.unseal(b"l" * 32, label(), box) is None
    assert boxes.unseal(b"k" * 32, label(), box[:-1]) is None
    assert boxes.unseal(b"k" * 32, label(), b"") is None


def test_a_pair_derives_one_key_from_both_ends() -> None:
    """Salted with the directory, bound to both names in one order, as another library derives it."""
    a, b = keys.new_secret(), keys.new_secret()
    one = keys.pair_key(a, "north", keys.public_of(b), "south", b"d" * 32)
    assert one == keys.pair_key(b, "south", keys.public_of(a), "north", b"d" * 32)
    shared = keys.agreed(a, keys.public_of(b))
    assert shared is not None
    assert one == OTHER_HKDF(shared, 32, b"d" * 32, SHA256, context=enc("fsa1/pair", "north", "south"))
    assert one != keys.pair_key(a, "north", keys.public_of(b), "south", b"e" * 32)
    assert one != keys.pair_key(a, "north", keys.public_of(b), "east", b"d" * 32)


def test_names_are_ordered_bytewise() -> None:
    """As UTF-8, not by the code units of any language."""
    assert ordered(["b", "é", "z", "a", "b"]) == ("a", "b", "z", "é")


@pytest.mark.parametrize("point", RFC["low_order"])
def test_points_of_low_order_are_refused(point: str) -> None:
    """N2, N41: the points of order 1, 2, 4 and 8, and their twins beyond the prime."""
    assert keys.agreed(keys.new_secret(), bytes.fromhex(point)) is None
    with pytest.raises(SecaggError) as caught:
        keys.pair_key(keys.new_secret(), "north", bytes.fromhex(point), "south", b"d" * 32)
    assert (caught.value.code, caught.value.silos) == (Code.LOW_ORDER, ("south",))


def test_keys_step_one_way_and_in_any_stride() -> None:
    key = b"k" * 32
    assert keys.stepped(keys.stepped(key, 0, 2), 2, 5) == keys.stepped(key, 0, 5)
    assert keys.stepped(key, 0, 1) == expand(key, "fsa1/step", 1) != key
    assert keys.stepped(key, 3, 3) == key


# --- encoding -----------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_what_was_encoded_is_read_again(items: list[bytes]) -> None:
    assert list(take(enc(*items))) == items
    assert list(take(memoryview(enc(*items)))) == items


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_two_lists_never_have_the_same_bytes(first: list[bytes], second: list[bytes]) -> None:
    assert (enc(*first) == enc(*second)) == (first == second)


@given(st.binary(max_size=60))
def test_bytes_are_read_in_one_way_or_not_at_all(data: bytes) -> None:
    try:
        items = take(data)
    except ValueError:
        return
    assert enc(*items) == data


def test_the_form_of_items() -> None:
    assert enc("ab", 1, b"\xff", ["a", b"b"]).hex() == (
        "02000000" + "6162" + "08000000" + "0100000000000000" + "01000000" + "ff" + "0a000000" + "01000000" + "61"
        "01000000" + "62"
    )
    with pytest.raises(OverflowError):
        enc(2**64)
    with pytest.raises(OverflowError):
        enc(-1)
    assert sha256(b"a", b"bc") == sha256(b"abc")


@pytest.mark.parametrize("data", [b"\1", b"\1\0\0\0", b"\2\0\0\0a", b"\xff\xff\xff\xff"])
def test_bytes_that_end_early_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="beyond"):
        take(data)


def test_numbers_and_names_have_one_form() -> None:
    assert number(enc(7)[4:]) == 7
    for wrong in (b"", b"\7", bytes(9)):
        with pytest.raises(ValueError, match="8 bytes"):
            number(wrong)
    assert names(enc("a", "b")) == ("a", "b")
    for item in (enc("b", "a"), enc("a", "a")):
        with pytest.raises(ValueError, match="sorted"):
            names(item)
    with pytest.raises(ValueError, match="another number"):
        take(enc("a"), 2)


def test_a_notice_says_a_code_and_nothing_else() -> None:
    """N43, as to its form."""
    for code in Code:
        assert noticed(notice(code)) is code
        assert take(notice(code)) == (b"fsa1/refused", code.value.encode())
    for other in (b"", b"fsa1/refused", enc("fsa1/refused", "no code"), enc("fsa1/full", "state"), bytes(4000)):
        assert noticed(other) is None


def test_every_code_has_a_sentence() -> None:
    sentences = [str(SecaggError(code)) for code in Code]
    assert len(set(sentences)) == len(sentences)
    assert all(sentence.startswith("secure aggregation: ") for sentence in sentences)
    assert "(north, south)" in str(SecaggError(Code.ALARM, ["north", "south"]))
