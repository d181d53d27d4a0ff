"""Gated recurrent unit (Cho et al. 2014): as `lstm`, with three gates for four and no separate cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from client.models.base import Kind, Model, Shape
from strategies.spec import require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Gru(Model):
    """(rows, steps, channels), or (rows, tokens), to (rows, outputs); padded steps have no influence.

    Arguments as in `lstm`.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("signals", "sequences", "text")
    hidden: int = 64
    layers: int = 1
    bidirectional: bool = False
    embedding: int = 32
    pool: Literal["last", "mean"] = "mean"

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "embedding"):
            require(getattr(self, name) >= 1, f"gru.{name}", getattr(self, name), "at least 1")

    def build(self, shape: Shape) -> nn.Module:
        from client.models._recurrence import RecurrentNetwork

        return RecurrentNetwork("gru", self, shape)
