"""Masks: the words of SECAGG-FLOW's known answer, an oracle in AES-ECB, and a test of what a masked vector looks like.

`flaws` is that test. It must pass every true mask and reject each broken one below: a statistical test that cannot fail
says nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from strategies.secagg import masks as module
from strategies.secagg.masks import add_mask, add_masks
from strategies.secagg.ring import Words, fitted

BLOCK = module._BLOCK // 4  # words
LENGTH = 2 * BLOCK + 3
RING = fitted("train", [("x", LENGTH - 4, 1.0)], silos=10, protection="local")
LEAST = 1e-4  # p-value of each statistic


def key_of(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def mask_of(key: bytes, length: int, dtype: str = "<u4") -> Words:
    words = np.zeros(length, dtype)
    add_mask(words, key, 1)
    return words


def derived(key: bytes, *items: bytes) -> bytes:
    info = b"".join(len(item).to_bytes(4, "little") + item for item in items)
    return HKDFExpand(SHA256(), 32, info).derive(key)


# --- the right words ------------------------------------------------------------------------------------------


def test_the_known_answer() -> None:
    seed = derived(b"\x02" * 32, b"fsa1/mask", b"\x01" * 32)
    assert seed.hex() == "4b68b81b64b26a06beeea3ef59e7574b5a82dd99a79957fbe797a79c107d46f6"
    key = derived(seed, b"fsa1/prg")
    assert key.hex() == "2a62f769a57f31ee86a37c4ba7e590602476380c97ac7ed127215aa95d654061"
    assert [f"{int(word):08x}" for word in mask_of(key, 4)] == ["00c4de4d", "98123ca8", "538d0f28", "3789713a"]
    assert [f"{int(word):016x}" for word in mask_of(key, 2, "<u8")] == ["98123ca800c4de4d", "3789713a538d0f28"]


def test_the_first_block_is_the_encryption_of_zero() -> None:
    # The GCM specification (McGrew and Viega 2005), test case 13: the hash key of an AES-256 key of zeros
    assert mask_of(bytes(32), 4).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("length", [1, 2, 3, 5, BLOCK - 1, BLOCK, BLOCK + 1, LENGTH])
def test_each_block_has_its_own_counter(length: int, dtype: str) -> None:
    key, size_bytes = key_of(length), length * np.dtype(dtype).itemsize
    counters = np.zeros((-(-size_bytes // 16), 2), ">u8")
    counters[:, 1] = np.arange(len(counters))
    plain = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters.tobytes())
    assert mask_of(key, length, dtype).tobytes() == plain[:size_bytes]


@given(
    signs=st.lists(st.sampled_from([1, -1]), min_size=1, max_size=5),
    length=st.integers(1, 40),
    dtype=st.sampled_from(["<u4", "<u8"]),
)
def test_masks_are_added_and_subtracted_in_the_ring(signs: list[int], length: int, dtype: str) -> None:
    before = np.arange(length).astype(dtype) * np.array(2**31 - 1, dtype)
    chosen = [(key_of(number), sign) for number, sign in enumerate(signs)]
    words = before.copy()
    add_masks(words, chosen)
    modulus = 2 ** (8 * words.itemsize)
    drawn = [mask_of(key, length, dtype) for key, _ in chosen]
    for place in range(length):
        exact = int(before[place]) + sum(sign * int(mask[place]) for (_, sign), mask in zip(chosen, drawn, strict=True))
        assert int(words[place]) == exact % modulus
    for key, sign in chosen:
        add_mask(words, key, -sign)
    assert words.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("words", "key", "sign"),
    [
        (np.zeros(4, "<u4"), bytes(16), 1),  # would be AES-128
        (np.zeros(4, "<u4"), bytes(32), 0),
        (np.zeros(4, ">u4"), bytes(32), 1),
        (np.zeros(4, "<i4"), bytes(32), 1),
        (np.zeros(8, "<u4")[::2], bytes(32), 1),
    ],
)
def test_what_is_no_mask_of_these_words_is_refused(words: Words, key: bytes, sign: int) -> None:
    with pytest.raises((AssertionError, KeyError)):
        add_mask(words, key, sign)
    assert not words.any()


def test_the_keystream_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Words] = []
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *args: kept.append(empty(*args)) or kept[-1])
    words = np.zeros(LENGTH, "<u4")
    add_masks(words, [(key_of(1), 1), (key_of(2), -1)])
    monkeypatch.undo()
    assert words.any() and [len(buffer) for buffer in kept] == [BLOCK] and not kept[0].any()


# --- what a masked vector looks like --------------------------------------------------------------------------


def flaws(words: Words) -> list[str]:
    """Return what tells these words from uniform ones: names of the statistics whose p-value is below LEAST."""
    return [name for name, p in statistics_of(words.view("<u4")) if p < LEAST]


def statistics_of(words: Words) -> Iterator[tuple[str, float]]:
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little").sum(0)
    for place, ones in enumerate(bits):
        yield f"bit {place}", uniform(np.array([ones, len(words) - ones]))
    for place in range(4):
        yield f"byte {place}", uniform(np.bincount(words.view(np.uint8)[place::4], minlength=256))
    yield (
        "pairs",
        uniform(np.bincount((words[0::2][: len(words) // 2] >> 28) * 16 + (words[1::2] >> 28), minlength=256)),
    )
    for lag in (1, 2, 4, 8, 1024, BLOCK):
        for name, other in (("difference", words[lag:] - words[:-lag]), ("sum", words[lag:] + words[:-lag])):
            yield f"{name} at {lag}", uniform(np.bincount(other >> 24, minlength=256))
    blocks = words[: len(words) // 4 * 4].view("V16")
    yield "distinct blocks", float(len(np.unique(blocks)) == len(blocks))


def uniform(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(chi2.sf(((counts - expected) ** 2).sum() / expected, len(counts) - 1))


def plain_of(number: int) -> Words:
    """A vector as it looks before masking: most values small, many equal."""
    values = np.random.default_rng(number).normal(0, 0.01, LENGTH - 4).astype(np.float32)
    values[:: 1 + number % 3] = 0
    return RING.encode([values])


def masked(number: int) -> Words:
    words = plain_of(number)
    add_masks(words, [(key_of("self", number), 1), *((key_of(number, j), 1 if j % 2 else -1) for j in range(3))])
    return words


def test_a_masked_vector_looks_uniform(scaled: Callable[..., int]) -> None:
    found = {number: flaws(masked(number)) for number in range(scaled(50, 10))}
    assert not any(found.values()), found
    assert all(flaws(plain_of(number)) for number in range(3))


def stuck(place: int, value: int) -> Callable[[Words, bytes], Words]:
    bit = np.uint32(1 << place)
    return lambda words, key: words | bit if value else words & ~bit


def repeated(words: Words, key: bytes) -> Words:
    return plain_of(1) + np.resize(mask_of(key, BLOCK), LENGTH)  # a counter that starts anew in each block


def short(words: Words, key: bytes) -> Words:
    return plain_of(1) + (mask_of(key, LENGTH) >> np.uint32(4))  # 28 bits of each word


def constant(words: Words, key: bytes) -> Words:
    return plain_of(1) + mask_of(key, 1)


def sixteen_bytes(words: Words, key: bytes) -> Words:
    return plain_of(1) + np.resize(mask_of(key, 4), LENGTH)  # a counter that stands still


def last_block_forgotten(words: Words, key: bytes) -> Words:
    return np.concatenate([words[:-BLOCK], plain_of(1)[-BLOCK:]])


def biased(words: Words, key: bytes) -> Words:
    other = mask_of(key_of("other"), LENGTH)
    return np.where(mask_of(key, LENGTH) % 64 == 0, other & np.uint32(0x7FFFFFFF), words)  # 0.8 % of a bit


@pytest.mark.parametrize(
    "broken",
    [
        *(stuck(place, value) for place in (0, 13, 31) for value in (0, 1)),
        repeated,
        short,
        constant,
        sixteen_bytes,
        last_block_forgotten,
        biased,
    ],
)
def test_a_broken_mask_is_rejected(broken: Callable[[Words, bytes], Words]) -> None:
    words = plain_of(1)
    add_mask(words, key_of("broken"), 1)
    assert not flaws(words)
    assert flaws(broken(words, key_of("broken")))


def test_a_masked_vector_does_not_follow_its_values() -> None:
    # invariant I5 for one vector: no correlation above 0.05, here of any word with its value
    def correlation(words: Words) -> float:
        return abs(float(np.corrcoef(words.view("<i4").astype(float), plain.view("<i4").astype(float))[0, 1]))

    plain = plain_of(4)
    assert correlation(masked(4)) < 0.05 < correlation(plain)


def draws(keys: Iterator[bytes]) -> int:
    """Return how many of the keys' masks begin as another one does."""
    heads = [mask_of(key, 4).tobytes() for key in keys]
    return len(heads) - len(set(heads))


def test_keys_are_not_drawn_from_a_small_space(scaled: Callable[..., int]) -> None:
    count = scaled(2**18, 2**16)  # of 28 bits, 2^16 draws meet 8 times (128 times for 2^18)
    keys = [derived(key_of("pair"), b"fsa1/mask", number.to_bytes(32, "little")) for number in range(count)]
    assert draws(iter(keys)) == 0
    assert draws((int.from_bytes(key, "little") % 2**28).to_bytes(32, "little") for key in keys) > 0
    for place in range(32):
        for bit in range(8):  # each bit of a key changes about half of the mask
            other = bytearray(key_of("one"))
            other[place] ^= 1 << bit
            changed = mask_of(bytes(other), 64) ^ mask_of(key_of("one"), 64)
            assert 800 < int(np.bitwise_count(changed).sum()) < 1250  # 1,024 +- 10 deviations


def test_two_rounds_are_independent() -> None:
    first, again = (derived(key_of("pair"), b"fsa1/mask", ctx) for ctx in (key_of("ctx", 1), key_of("ctx", 2)))
    one, other = plain_of(2), plain_of(2)  # the same update in both
    add_mask(one, derived(first, b"fsa1/prg"), 1)
    add_mask(other, derived(again, b"fsa1/prg"), 1)
    assert not flaws(one) and not flaws(other)
    assert not flaws(one - other) and not flaws(one ^ other) and not flaws(one + other)
    assert len(np.intersect1d(one[: LENGTH // 4 * 4].view("V16"), other[: LENGTH // 4 * 4].view("V16"))) == 0
    reused = plain_of(3)
    add_mask(reused, derived(first, b"fsa1/prg"), 1)
    assert flaws(one - reused)  # the difference of two updates, in clear
