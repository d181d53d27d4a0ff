"""Keys: a silo's identity (Ed25519, RFC 8032), its key of one run (X25519, RFC 7748), and what a pair derives from it.

A pair's first key is HKDF-SHA256 (RFC 5869) of the Diffie-Hellman secret, salted with the hash of the directory of keys
and bound to both names; it moves one step with every sum (`stepped`), so that who steals a later one learns nothing of
earlier sums.

Guarantees: a point of low order, which would give every silo the same secret, is refused; a signature stands for the
domain that its message begins with.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strategies.secagg.encoding import KEY_BYTES, enc, expand, ordered
from strategies.secagg.errors import Code, SecaggError


def verified(public: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether an Ed25519 signature over `message` holds."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def new_secret() -> bytes:
    """Return a new X25519 private key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(secret: bytes) -> bytes:
    """Return the public half of an X25519 private key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agreed(secret: bytes, public: bytes) -> bytes | None:
    """Return the Diffie-Hellman secret of a pair, or None for a point of low order or no point at all."""
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None


def pair_key(secret: bytes, mine: str, public: bytes, theirs: str, directory: bytes) -> bytes:
    """Return the first key that two silos share in a run.

    Args:
        secret: this silo's X25519 private key.
        mine: its name.
        public: the peer's public key.
        theirs: the peer's name.
        directory: hash of the directory of keys.

    Raises:
        SecaggError: LOW_ORDER, naming the peer.
    """
    shared = agreed(secret, public)
    if shared is None:
        raise SecaggError(Code.LOW_ORDER, [theirs])
    return hkdf(shared, directory, enc("fsa1/pair", *ordered((mine, theirs))))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF with SHA-256."""
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(secret)


def stepped(key: bytes, last: int, to: int) -> bytes:
    """Return a pair's key of sum `to` from that of sum `last`."""
    for step in range(last + 1, to + 1):
        key = expand(key, "fsa1/step", step)
    return key
