"""Residual convolutions over time, for signals of a fixed length and for sequences with padding at their end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from client.models.base import Kind, Model, Shape
from strategies.spec import require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Cnn1d(Model):
    """(rows, time, channels) through residual blocks and the mean over steps to (rows, outputs).

    Args:
        width: channels of the first block, at least 4; each further block has twice as many at half the rate.
        depth: number of blocks; the last one's steps see 12 * 2 ** (depth - 1) + 1 steps of the record each.
        activation: as in `cnn`.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("signals", "sequences")
    width: int = 16
    depth: int = 3
    activation: Literal["relu", "tanh", "gelu"] = "relu"

    def __post_init__(self) -> None:
        require(self.width >= 4, "cnn1d.width", self.width, "at least 4")
        require(1 <= self.depth <= 8, "cnn1d.depth", self.depth, "between 1 and 8")

    def build(self, shape: Shape) -> nn.Module:
        from client.models._convolution import OverTime

        return OverTime(shape, width=self.width, depth=self.depth, activation=self.activation)
