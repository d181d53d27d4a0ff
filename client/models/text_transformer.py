"""A transformer encoder over the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from client.models._sizes import check_sizes
from client.models.base import Kind, Model, Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class TextTransformer(Model):
    """(rows, tokens) ids to (rows, outputs): a learnt vector an id, learnt places.

    Args:
        width: numbers a token, a multiple of `heads`.
        depth: blocks, one after the other.
        heads: attention heads of a block.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("text",)
    width: int = 32
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        check_sizes("text_transformer", self)

    def build(self, shape: Shape) -> nn.Module:
        from client.models._encoder import Encoder, WordTokens

        return Encoder(WordTokens(shape.inputs, shape.vocabulary, self.width), self, shape.outputs)
