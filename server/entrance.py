"""Who knocks: the silo behind a request's headers, each header good for one request.

Headers name a key and carry its signature on the time (ECDSA, P-384, SHA-256). They are accepted within Flower's own
window, once, and not if they were made before this process began, as what was seen before is not known.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from server.fleet import KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER

_OLDEST_S, _NEWEST_S = 305.0, 5.0  # as flwr 1.41 has it
_LONGEST = 1024  # characters of a header


class Refused(Exception):
    """A request is not let in.

    Args:
        status: of HTTP.
        reason: one word for the audit log and the answer.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


@dataclass(kw_only=True)
class Entrance:
    """Checks headers against the roster.

    Args:
        roster: returns the silo's name by transport key, as it is now.
        clock: seconds since 1970.
    """

    roster: Callable[[], Mapping[str, str]]
    clock: Callable[[], float] = time.time
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _order: deque[tuple[float, tuple[str, str]]] = field(default_factory=deque)
    _began: float = 0.0

    def __post_init__(self) -> None:
        self._began = self.clock()

    def admit(self, headers: Mapping[bytes, bytes]) -> tuple[str, bytes]:
        """Return the silo that signed these headers, and its public key in PEM.

        Raises:
            Refused: 401 for headers that do not hold, 403 for a key beside the roster, 409 for a second use.
        """
        key, signature = (_decoded(headers.get(name, b"")) for name in (KEY_HEADER, SIGNATURE_HEADER))
        stamp = headers.get(TIMESTAMP_HEADER, b"")
        signed_at = _time(stamp)
        public, point = _point(key)
        silo = self.roster().get(point)
        if silo is None:
            raise Refused(403, "roster")
        age = self.clock() - signed_at
        if not -_NEWEST_S < age < _OLDEST_S or signed_at < self._began - _NEWEST_S:
            raise Refused(401, "time")
        try:
            public.verify(signature, stamp, ECDSA(SHA256()))
        except InvalidSignature:
            raise Refused(401, "signature") from None
        self._use((point, stamp.decode("ascii")), signed_at)
        return silo, key

    def _use(self, header: tuple[str, str], signed_at: float) -> None:
        """Note a signed message, whatever its signature looked like, until it is too old to be accepted."""
        oldest = self.clock() - _OLDEST_S
        while self._order and self._order[0][0] < oldest:
            self._seen.discard(self._order.popleft()[1])
        if header in self._seen:
            raise Refused(409, "replay")
        self._seen.add(header)
        self._order.append((max(signed_at, self.clock()), header))


def _decoded(header: bytes) -> bytes:
    try:
        if not 0 < len(header) <= _LONGEST:
            raise ValueError
        return base64.b64decode(header, validate=True)
    except (ValueError, binascii.Error):
        raise Refused(401, "headers") from None


def _time(stamp: bytes) -> float:
    try:
        if len(stamp) > 64:
            raise ValueError
        found = datetime.fromisoformat(stamp.decode("ascii"))
        if found.tzinfo is None:
            raise ValueError
        return found.timestamp()
    except (ValueError, OverflowError):
        raise Refused(401, "headers") from None


def _point(pem: bytes) -> tuple[EllipticCurvePublicKey, str]:
    try:
        public = load_pem_public_key(pem)
        if not isinstance(public, EllipticCurvePublicKey):
            raise ValueError
        return public, public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint).hex()
    except Exception:  # noqa: BLE001 - OpenSSL's errors on foreign bytes are of many kinds
        raise Refused(401, "headers") from None
