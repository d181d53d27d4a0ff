"""A feed-forward network: linear layers with one activation between them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from client.models.base import Model, Shape, features
from strategies.spec import require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Mlp(Model):
    """(rows, *inputs) flattened, through the hidden layers, to (rows, outputs).

    Args:
        hidden: widths of the hidden layers, each at least 1.
        activation: `tanh` is bounded, which keeps gradients short under clipping (Papernot et al. 2021, "Tempered
            sigmoid activations for deep learning with differential privacy"); `relu` and `gelu` are the usual ones.
    """

    hidden: tuple[int, ...] = (64, 32)
    activation: Literal["relu", "tanh", "gelu"] = "tanh"

    def __post_init__(self) -> None:
        require(all(width >= 1 for width in self.hidden), "mlp.hidden", list(self.hidden), "a list of widths >= 1")

    def build(self, shape: Shape) -> nn.Module:
        from torch import nn

        activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[self.activation]
        layers: list[nn.Module] = [nn.Flatten()]
        for wide, narrow in pairwise((features(shape), *self.hidden)):
            layers += [nn.Linear(wide, narrow), activation()]
        last = self.hidden[-1] if self.hidden else features(shape)
        return nn.Sequential(*layers, nn.Linear(last, shape.outputs))
