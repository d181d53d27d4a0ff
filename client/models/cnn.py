"""A small residual network for images, with GroupNorm in the place of BatchNorm, which would mix records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from client.models.base import Kind, Model, Shape
from strategies.spec import require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Cnn(Model):
    """(rows, channels, height, width) through residual blocks and the means of up to 4 x 4 regions to (rows, outputs).

    Args:
        width: channels of the first block, at least 4; each further block has twice as many at half the resolution.
        depth: number of blocks; one more for each doubling of the images' sides is a fair start.
        activation: `tanh` is bounded, which keeps gradients short under clipping; `relu` and `gelu` are the usual ones.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("images",)
    width: int = 16
    depth: int = 2
    activation: Literal["relu", "tanh", "gelu"] = "tanh"

    def __post_init__(self) -> None:
        require(self.width >= 4, "cnn.width", self.width, "at least 4")
        require(1 <= self.depth <= 8, "cnn.depth", self.depth, "between 1 and 8")

    def build(self, shape: Shape) -> nn.Module:
        from client.models._convolution import OverSpace

        return OverSpace(shape, width=self.width, depth=self.depth, activation=self.activation)
