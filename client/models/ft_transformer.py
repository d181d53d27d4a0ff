"""A transformer over the features of a table (Gorishniy et al. 2021, "Revisiting deep learning models for tabular
data", section 3.3): each feature is a token, so that attention is what joins features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from client.models._sizes import check_sizes
from client.models.base import Kind, Model, Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class FtTransformer(Model):
    """(rows, columns) to (rows, outputs): a token a feature, of all its columns.

    Args:
        width: numbers a token, a multiple of `heads`.
        depth: blocks, one after the other.
        heads: attention heads of a block.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("tabular",)
    width: int = 32
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        check_sizes("ft_transformer", self)

    def build(self, shape: Shape) -> nn.Module:
        from client.models._encoder import Encoder, FeatureTokens

        widths = shape.widths or (1,) * shape.inputs[0]
        return Encoder(FeatureTokens(widths, self.width), self, shape.outputs)
