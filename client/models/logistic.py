"""Logistic regression (linear regression when the task is regression): one linear layer that starts at zero.

Zero is the best start for a convex model under noise: every bit of the weights then comes from the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.models.base import Model, Shape, features

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Logistic(Model):
    """(rows, *inputs) flattened to (rows, outputs)."""

    def build(self, shape: Shape) -> nn.Module:
        from torch import nn

        linear = nn.Linear(features(shape), shape.outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Flatten(), linear)
