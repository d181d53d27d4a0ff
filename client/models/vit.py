"""A vision transformer (Dosovitskiy et al. 2021, "An image is worth 16x16 words", section 3.1) with small patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from client.models._sizes import check_sizes
from client.models.base import Kind, Model, Shape
from strategies.spec import require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Vit(Model):
    """(rows, channels, height, width) to (rows, outputs): a token a square patch, learnt places.

    Args:
        width: numbers a token, a multiple of `heads`.
        depth: blocks, one after the other.
        heads: attention heads of a block.
        patch: side of a patch in pixels; time and memory grow with the square of the number of patches.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("images",)
    width: int = 32
    depth: int = 2
    heads: int = 4
    patch: int = 4

    def __post_init__(self) -> None:
        check_sizes("vit", self)
        require(self.patch >= 1, "vit.patch", self.patch, "at least 1")

    def build(self, shape: Shape) -> nn.Module:
        from client.models._encoder import Encoder, PatchTokens

        return Encoder(PatchTokens(shape.inputs, self.patch, self.width), self, shape.outputs)
