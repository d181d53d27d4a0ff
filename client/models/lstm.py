"""Long short-term memory (Hochreiter and Schmidhuber 1997): gated states over the steps of signals, visits or text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from client.models.base import Kind, Model, Shape
from strategies.spec import require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Lstm(Model):
    """(rows, steps, channels), or (rows, tokens), to (rows, outputs); padded steps have no influence.

    Args:
        hidden: width of the state, per direction.
        layers: stacked layers.
        bidirectional: whether a second state reads each record from its end.
        embedding: width of a token's vector; text only.
        pool: what the output is computed from: the `last` state of each direction, or the `mean` over all steps,
            which keeps gradients from vanishing along long records.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("signals", "sequences", "text")
    hidden: int = 64
    layers: int = 1
    bidirectional: bool = False
    embedding: int = 32
    pool: Literal["last", "mean"] = "mean"

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "embedding"):
            require(getattr(self, name) >= 1, f"lstm.{name}", getattr(self, name), "at least 1")

    def build(self, shape: Shape) -> nn.Module:
        from client.models._recurrence import RecurrentNetwork

        return RecurrentNetwork("lstm", self, shape)
