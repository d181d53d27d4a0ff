"""Masks: a 32-byte key becomes as many uniform words as a vector has, by AES-256 in counter mode (NIST SP 800-38A).

The counter starts at zero, as a key masks one vector only; the stream is read as little-endian words, so that every
machine draws the same mask. It is added block by block, in place: no mask is ever held whole.

Guarantees: the last block's keystream is erased before the call returns.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from strategies.secagg.ring import Words

KEY_BYTES = 32
_BLOCK = 2**19  # bytes: keystream and words stay in the second cache, and calls from Python cost little
_ZEROS = bytes(_BLOCK)


def add_mask(words: Words, key: bytes, sign: int) -> None:
    """Add the mask of `key` to `words` in place, or subtract it.

    Args:
        words: contiguous, little-endian, of 32 or 64 bits.
        key: 32 bytes, used for this vector alone.
        sign: 1 or -1.
    """
    assert len(key) == KEY_BYTES and sign in (1, -1) and words.flags.c_contiguous, "a mask's arguments"
    assert words.dtype in (np.dtype("<u4"), np.dtype("<u8")), "a mask has little-endian words"
    combine = np.add if sign == 1 else np.subtract
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    step = _BLOCK // words.itemsize
    mask = np.empty(min(step, len(words)), words.dtype)
    source, sink = memoryview(_ZEROS), mask.view(np.uint8).data
    for start in range(0, len(words), step):
        part = words[start : start + step]
        stream.update_into(source[: part.nbytes], sink[: part.nbytes])
        combine(part, mask[: len(part)], out=part)
    mask.fill(0)
