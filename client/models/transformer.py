"""A transformer encoder over the steps of a signal or a sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from client.models._sizes import check_sizes
from client.models.base import Kind, Model, Shape
from strategies.spec import require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Transformer(Model):
    """(rows, steps, channels) to (rows, outputs): a token for one or several steps, learnt places.

    Args:
        width: numbers a token, a multiple of `heads`.
        depth: blocks, one after the other.
        heads: attention heads of a block.
        tokens: most tokens of a record; time and memory grow with their square. A record of more steps has as many
            steps in each token as are needed.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("signals", "sequences")
    width: int = 32
    depth: int = 2
    heads: int = 4
    tokens: int = 64

    def __post_init__(self) -> None:
        check_sizes("transformer", self)
        require(self.tokens >= 1, "transformer.tokens", self.tokens, "at least 1")

    def build(self, shape: Shape) -> nn.Module:
        from client.models._encoder import Encoder, StepTokens

        patch = math.ceil(shape.inputs[0] / self.tokens)
        tokens = StepTokens(shape.inputs, patch, self.width, masked=shape.masked)
        return Encoder(tokens, self, shape.outputs)
