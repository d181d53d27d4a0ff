"""Vectors as fixed-point integers modulo 2^32 or 2^64, in which masks cancel and sums are exact.

A value x of a segment with scale S becomes z = clamp(rint(S x), -B, B), in float64; S is a power of two, so S x is
exact and rounded once. Four zero words end each vector: their sum is zero, unless a mask is left in the total.

Guarantees: N silos' sum cannot wrap, as N B < 2^(bits - 1) is checked in integers; a value that is not finite is
refused and never cast; a total whose check words are not zero, or that so many silos cannot sum to, is not decoded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from strategies.errors import ProtocolError, SettingError
from strategies.proof.canonical import dump

Words = NDArray[np.unsignedinteger[Any]]
Floats = NDArray[np.float64]
Protection = Literal["local", "distributed", "none"]
OnClamp = Callable[[str, int], None]
Part = tuple[str, int, float]  # of a vector: name, length, largest absolute value

CHECK_WORDS = 4
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger[Any]]] = {32: np.dtype("<u4"), 64: np.dtype("<u8")}
_SIGNED: dict[int, np.dtype[np.signedinteger[Any]]] = {32: np.dtype("<i4"), 64: np.dtype("<i8")}
_EXPONENTS = range(-126, 64)  # of scales that float32 holds
_BLOCK = 2**16  # values: their copy stays in the second cache


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Values that share a meaning and a scale.

    Args:
        name: what they are.
        length: how many.
        scale: steps of the grid in 1; a power of two.
    """

    name: str
    length: int
    scale: float

    def __post_init__(self) -> None:
        if self.length < 1:
            raise SettingError(f"segment '{self.name}' has {self.length} values; it must have at least 1")
        if not self.scale > 0 or math.frexp(self.scale)[0] != 0.5 or self.exponent not in _EXPONENTS:
            raise SettingError(
                f"segment '{self.name}' has scale {self.scale}; it must be a power of two from 2^-126 to 2^63"
            )

    @property
    def exponent(self) -> int:
        """The scale's binary logarithm."""
        return math.frexp(self.scale)[1] - 1


@dataclass(frozen=True, kw_only=True)
class Ring:
    """How one kind of vector is written as words: all that silos and server must agree on to add them.

    Args:
        name: the kind of sum.
        segments: parts of the vector, in order.
        bound: B, the largest absolute value of a silo's word.
        bits: of a word, 32 or 64.
        protection: where noise is added: `local` at the silo before encoding, `distributed` as shares, `none`.
    """

    name: str
    segments: tuple[Segment, ...]
    bound: int
    bits: int
    protection: Protection

    def __post_init__(self) -> None:
        if self.bits not in _UNSIGNED:
            raise SettingError(f"ring '{self.name}' has {self.bits} bits; allowed are 32 and 64")
        if not 1 <= self.bound < 2 ** (self.bits - 1) or int(float(self.bound)) != self.bound:
            raise SettingError(
                f"ring '{self.name}' has bound {self.bound}; it must be at least 1, below 2^{self.bits - 1} and one of "
                "float64's values"
            )
        names = [segment.name for segment in self.segments]
        if not names or len(set(names)) != len(names):
            raise SettingError(f"ring '{self.name}' must have segments, each with its own name; it has {names}")
        if self.protection not in ("local", "distributed", "none"):
            raise SettingError(
                f"ring '{self.name}' has protection '{self.protection}'; allowed are local, distributed and none"
            )

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(segment.length for segment in self.segments)

    @property
    def length(self) -> int:
        """Number of words: one a value, and the check words."""
        return self.size + CHECK_WORDS

    @property
    def size_bytes(self) -> int:
        """Bytes of an encoded vector."""
        return self.length * self.bits // 8

    def require_room(self, silos: int) -> None:
        """Check that the sum of `silos` vectors cannot wrap.

        Raises:
            ProtocolError: silos times bound reaches 2^(bits - 1).
        """
        if silos < 1 or silos * self.bound >= 2 ** (self.bits - 1):
            raise ProtocolError(
                f"ring '{self.name}': {silos} silos of bound {self.bound} do not fit below 2^{self.bits - 1}; "
                "the bound must be lower"
            )

    def zeros(self) -> Words:
        """Return the words of an empty sum."""
        return np.zeros(self.length, _UNSIGNED[self.bits])

    def encode(
        self,
        vectors: Sequence[NDArray[Any]],
        *,
        out: Words | None = None,
        on_clamp: OnClamp | None = None,
    ) -> Words:
        """Return the words of one vector a segment, and the check words.

        Args:
            vectors: in the order of the segments, each (length,).
            out: where to write them; new words when omitted.
            on_clamp: told a segment's name and how many of its values were beyond the bound; for the silo's own log.

        Raises:
            ProtocolError: a vector has another shape, or holds a value that is not finite.
        """
        if len(vectors) != len(self.segments):
            raise ProtocolError(f"ring '{self.name}' has {len(self.segments)} segments, not {len(vectors)}")
        words = self.zeros() if out is None else out
        words[self.size :] = 0
        place = 0
        for segment, vector in zip(self.segments, vectors, strict=True):
            if vector.shape != (segment.length,):
                raise ProtocolError(f"segment '{segment.name}' has shape {vector.shape}, not ({segment.length},)")
            clamped = _quantise(vector, segment, self.bound, words[place : place + segment.length])
            place += segment.length
            if clamped and on_clamp is not None:
                on_clamp(segment.name, clamped)
        return words

    def read(self, data: bytes | memoryview) -> Words:
        """Return the words that `data` holds, without a copy; they cannot be written to.

        Raises:
            ProtocolError: it has another length.
        """
        if len(data) != self.size_bytes:
            raise ProtocolError(f"a vector of ring '{self.name}' has {len(data)} bytes, not {self.size_bytes}")
        return np.frombuffer(data, _UNSIGNED[self.bits])

    def decode(self, total: Words, silos: int) -> tuple[Floats, ...]:
        """Return the sum of `silos` vectors, one array a segment.

        The sum is exact on the grid; float64 rounds it once where it needs more than 53 bits.

        Raises:
            ProtocolError: the total is not the sum of so many vectors of this ring.
        """
        self.require_room(silos)
        if total.shape != (self.length,) or total.dtype != _UNSIGNED[self.bits]:
            raise ProtocolError(f"the total of ring '{self.name}' has another length or type than its vectors")
        if total[self.size :].any():
            raise ProtocolError(f"the total of ring '{self.name}' still holds a mask: its check words are not zero")
        values = total[: self.size].view(_SIGNED[self.bits])
        if int(values.max()) > silos * self.bound or int(values.min()) < -silos * self.bound:
            raise ProtocolError(f"the total of ring '{self.name}' is beyond what {silos} silos can sum to")
        found: list[Floats] = []
        place = 0
        for segment in self.segments:
            found.append(values[place : place + segment.length] * (1.0 / segment.scale))
            place += segment.length
        return tuple(found)

    def digest(self) -> str:
        """Return the SHA-256 of all that stands here, as 64 hex digits."""
        return hashlib.sha256(dump(self.to_value())).hexdigest()

    def to_value(self) -> dict[str, Any]:
        """Return a value of canonical JSON."""
        segments = [{"name": s.name, "length": s.length, "exponent": s.exponent} for s in self.segments]
        return {
            "name": self.name,
            "segments": segments,
            "bound": self.bound,
            "bits": self.bits,
            "protection": self.protection,
        }

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """Read what `to_value` gave.

        Raises:
            ProtocolError: it is no ring.
        """
        top = _fields(value, {"name": str, "segments": list, "bound": int, "bits": int, "protection": str})
        parts = [_fields(part, {"name": str, "length": int, "exponent": int}) for part in top["segments"]]
        if not all(part["exponent"] in _EXPONENTS for part in parts):
            raise ProtocolError("a ring has a scale that no value can have")
        try:
            segments = tuple(
                Segment(name=part["name"], length=part["length"], scale=math.ldexp(1.0, part["exponent"]))
                for part in parts
            )
            return cls(**{**top, "segments": segments})
        except SettingError as error:
            raise ProtocolError(str(error)) from None


def fitted(
    name: str,
    parts: Sequence[Part],
    *,
    silos: int,
    protection: Protection,
    bits: int | None = None,
    resolution: float | None = None,
) -> Ring:
    """Return the finest ring in which `silos` vectors with these ranges can be summed.

    Args:
        name: the kind of sum.
        parts: name, length and largest absolute value of each segment; what is beyond is clamped.
        silos: of the roster.
        protection: where noise is added.
        bits: of a word; omitted: 32, or 64 where only they keep `resolution`.
        resolution: the grid on which all values lie, a power of two; scales are as fine. Omitted: as fine as fits.

    Raises:
        SettingError: a range or the resolution is out of reach.
    """
    if bits is None:
        coarse = [_finest(_bound(32, silos), part) for part in parts]
        keeps = resolution is None or all(math.ldexp(1.0, -exponent) <= resolution for exponent in coarse)
        bits = 32 if keeps else 64
    bound = _bound(bits, silos)
    segments = []
    for part in parts:
        scale = math.ldexp(1.0, _finest(bound, part))
        if resolution is not None:
            if scale * resolution < 1:
                raise SettingError(
                    f"segment '{part[0]}' of ring '{name}' reaches {part[2]}, which {bits} bits and {silos} silos do "
                    f"not hold in steps of {resolution}; the range must be at most {bound * resolution:g}"
                )
            scale = 1 / resolution
        segments.append(Segment(name=part[0], length=part[1], scale=scale))
    return Ring(name=name, segments=tuple(segments), bound=bound, bits=bits, protection=protection)


def add(total: Words, words: Words) -> None:
    """Add `words` to `total`, in place."""
    np.add(total, words, out=total)


def subtract(total: Words, words: Words) -> None:
    """Subtract `words` from `total`, in place."""
    np.subtract(total, words, out=total)


# --- numbers ------------------------------------------------------------------------------------------------


def _bound(bits: int, silos: int) -> int:
    """The largest bound that `silos` vectors can have and that float64 holds."""
    if bits not in _UNSIGNED:
        raise SettingError(f"a ring of {bits} bits is not allowed; allowed are 32 and 64")
    if silos < 1:
        raise SettingError(f"a ring for {silos} silos is not allowed; there must be at least 1")
    bound: int = (2 ** (bits - 1) - 1) // silos
    spare = max(0, bound.bit_length() - 53)
    return bound >> spare << spare


def _finest(bound: int, part: Part) -> int:
    """The exponent of the largest power of two S with S times the part's range at most `bound`."""
    name, _, reach = part
    if not 2.0**-64 <= reach <= 2.0**128:
        raise SettingError(f"segment '{name}' has range {reach}; it must be from 2^-64 to 2^128")
    most = bound / Fraction(reach)
    exponent = most.numerator.bit_length() - most.denominator.bit_length()  # or one too many
    if math.ldexp(1.0, exponent) > most:
        exponent -= 1
    return min(exponent, _EXPONENTS[-1])


def _quantise(vector: NDArray[Any], segment: Segment, bound: int, words: Words) -> int:
    """Write the rounded and clamped values to `words`; return how many were clamped.

    A float32 is scaled and rounded as it is: by a power of two, both are exact or give 0, as in float64. Only a block
    that reaches beyond the bound, which float32 may not hold, goes the long way.
    """
    signed = words.view(_SIGNED[8 * words.itemsize])
    block = np.empty(min(_BLOCK, segment.length), np.float32 if vector.dtype == np.float32 else np.float64)
    clamped = 0
    for start in range(0, segment.length, _BLOCK):
        part = vector[start : start + _BLOCK]
        values: NDArray[Any] = block[: len(part)]
        with np.errstate(over="ignore", invalid="ignore"):
            np.rint(np.multiply(part, segment.scale, out=values), out=values)
        if not (-bound <= float(values.min()) and float(values.max()) <= bound):  # or NaN
            values, beyond = _clamp(part, segment, bound)
            clamped += beyond
        signed[start : start + len(part)] = values
    return clamped


def _clamp(part: NDArray[Any], segment: Segment, bound: int) -> tuple[Floats, int]:
    if not np.isfinite(part).all():
        raise ProtocolError(f"segment '{segment.name}' holds a value that is not a finite number")
    with np.errstate(over="ignore"):
        values = np.rint(part.astype(np.float64) * segment.scale)
    return np.clip(values, -bound, bound), int(np.count_nonzero(np.abs(values) > bound))


def _fields(value: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return an object with exactly these keys and types."""
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise ProtocolError(f"a ring must have {', '.join(kinds)}")
    if not all(type(value[key]) is kind for key, kind in kinds.items()):
        raise ProtocolError("a ring holds a value of the wrong type")
    return cast(dict[str, Any], value)
