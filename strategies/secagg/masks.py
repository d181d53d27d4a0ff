"""Masks: a 32-byte key becomes as many uniform words as a vector has, by AES-256 in counter mode (NIST SP 800-38A).

The counter starts at zero, as a key masks one vector only; the stream is read as little-endian words, so that every
machine draws the same mask. It is added block by block, in place: no mask is ever held whole.

Guarantees: the last block's keystream is erased before the call returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from strategies.secagg.ring import Words

KEY_BYTES = 32
_BLOCK = 2**19  # bytes: keystream and words stay in the second cache, and calls from Python cost little
_ZEROS = bytes(_BLOCK)
_ADD = {1: np.add, -1: np.subtract}


def add_masks(words: Words, masks: Sequence[tuple[bytes, int]]) -> None:
    """Add each key's mask to `words` in place, or subtract it.

    All masks meet a block while it is in the cache: the vector crosses the memory once, not once a mask.

    Args:
        words: contiguous, little-endian, of 32 or 64 bits.
        masks: keys of 32 bytes, each used for this vector alone, with the sign 1 or -1.
    """
    assert words.dtype in (np.dtype("<u4"), np.dtype("<u8")) and words.flags.c_contiguous, "a mask has plain words"
    streams = [(_stream(key), _ADD[sign]) for key, sign in masks]
    step = _BLOCK // words.itemsize
    mask = np.empty(min(step, len(words)), words.dtype)
    zeros, keystream = memoryview(_ZEROS), mask.view(np.uint8).data
    for start in range(0, len(words), step):
        part = words[start : start + step]
        size_bytes = part.nbytes
        for stream, combine in streams:
            stream.update_into(zeros[:size_bytes], keystream[:size_bytes])
            combine(part, mask[: len(part)], out=part)
    mask.fill(0)


def add_mask(words: Words, key: bytes, sign: int) -> None:
    """Add one mask; see `add_masks`."""
    add_masks(words, [(key, sign)])


def _stream(key: bytes) -> CipherContext:
    assert len(key) == KEY_BYTES, "a mask's key has 32 bytes"
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
