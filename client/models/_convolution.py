"""Residual blocks over images and over time, of layers that no record shares with another.

Each block adds two convolutions to its input (He et al. 2016). The normalisation is GroupNorm (Wu and He 2018), the
one that DP-SGD's best image results rest on (De et al. 2022, "Unlocking high-accuracy differentially private image
classification through scale"), and it comes after the sum as well, which keeps gradients even from layer to layer
(Klause et al. 2022, "Differentially private training of residual networks with scale normalisation").

Where steps may be padding, they are zero before every convolution and the normalisation looks at one step alone, so
that neither the values nor the number of padded steps reaches a step that is there.

Legend: B rows, C channels, T steps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from client.models.base import Shape

Activation = Literal["relu", "tanh", "gelu"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
_SIDE = {1: 5, 2: 3}  # a signal has fewer places than an image, and its events are longer
_LARGE = 16  # images of this side or more start at half the resolution, for a quarter of the work
_GRID = 4


class OverSpace(nn.Module):
    """(rows, channels, height, width) to (rows, outputs), read from the means of a grid of regions.

    One mean over all places would forget where things are, which under noise small networks do not learn around:
    handwritten digits at sigma 2 were told apart in 51 % of cases with one region and in 94 % with 4 x 4.
    """

    def __init__(self, shape: Shape, *, width: int, depth: int, activation: Activation) -> None:
        super().__init__()
        channels, *sides = shape.inputs
        stride = 2 if min(sides) >= _LARGE else 1
        self.stages = Stages(2, channels, width=width, depth=depth, stride=stride, activation=activation)
        high, wide = (min(_GRID, math.ceil(side / (stride * 2 ** (depth - 1)))) for side in sides)
        self.pool = nn.AdaptiveAvgPool2d((high, wide))
        self.head = nn.Linear(self.stages.outputs * high * wide, shape.outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        # One channel in the memory order of many (stride 1) makes torch 2.13 write past a buffer in the backward pass
        # of small convolutions on CPU ("double free or corruption"); the usual strides do not.
        features_BCHW, _ = self.stages(x_BCHW.clone(memory_format=torch.contiguous_format))
        out: torch.Tensor = self.head(self.pool(features_BCHW).flatten(1))
        return out


class OverTime(nn.Module):
    """(rows, steps, channels) to (rows, outputs), read from the mean over the steps that are there."""

    def __init__(self, shape: Shape, *, width: int, depth: int, activation: Activation) -> None:
        super().__init__()
        self._masked, inputs = shape.masked, shape.inputs[-1]
        self.stages = Stages(1, inputs, width=width, depth=depth, activation=activation, masked=shape.masked)
        self.head = nn.Linear(self.stages.outputs, shape.outputs)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        x_BCT = x_BTC.transpose(1, 2)
        features_BCT, there_B1T = self.stages(x_BCT, x_BCT[:, -1:] > 0 if self._masked else None)
        if there_B1T is None:
            mean_BC = features_BCT.mean(dim=2)
        else:
            mean_BC = _zeroed(features_BCT, there_B1T).sum(dim=2) / there_B1T.sum(dim=2).clamp_min(1)
        out: torch.Tensor = self.head(mean_BC)
        return out


class Stages(nn.Module):
    """(rows, channels, *places) to (rows, self.outputs, *places after strides), and which of these are there.

    A first convolution, then `depth` blocks; each after the first halves the places and doubles the channels.

    Args:
        places: 1 over time, 2 over images.
        inputs: channels of the data.
        width: channels of the first block.
        depth: number of blocks.
        activation: after each normalisation.
        stride: of the first convolution.
        masked: whether steps may be padding.
    """

    def __init__(
        self,
        places: Literal[1, 2],
        inputs: int,
        *,
        width: int,
        depth: int,
        activation: Activation,
        stride: int = 1,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.outputs = width * 2 ** (depth - 1)
        self._stride = stride
        self.first = _convolution(places, inputs, width, stride)
        self.norm = _StepNorm(width) if masked else _group_norm(width)
        self.activation = _ACTIVATIONS[activation]()
        wide = [width, *(width * 2**i for i in range(depth))]
        self.blocks = nn.ModuleList(
            _Block(places, wide[i], wide[i + 1], activation=activation, masked=masked) for i in range(depth)
        )

    def forward(
        self, x: torch.Tensor, there_B1T: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = self.first(_zeroed(x, there_B1T))
        there_B1T = None if there_B1T is None else there_B1T[..., :: self._stride]
        x = self.activation(self.norm(x))
        for block in self.blocks:
            x, there_B1T = block(x, there_B1T)
        return x, there_B1T


class _Block(nn.Module):
    def __init__(
        self, places: Literal[1, 2], inputs: int, outputs: int, *, activation: Activation, masked: bool
    ) -> None:
        super().__init__()
        self._stride = 1 if inputs == outputs else 2
        norm = _StepNorm if masked else _group_norm
        self.first = _convolution(places, inputs, outputs, self._stride)
        self.first_norm = norm(outputs)
        self.second = _convolution(places, outputs, outputs, 1)
        self.second_norm = norm(outputs)
        self.around = nn.Identity() if self._stride == 1 else _CONVOLUTIONS[places](inputs, outputs, 1, self._stride)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, x: torch.Tensor, there_B1T: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = _zeroed(x, there_B1T)
        there_B1T = None if there_B1T is None else there_B1T[..., :: self._stride]
        y = self.activation(self.first_norm(self.first(x)))
        y = self.second(_zeroed(y, there_B1T))
        return self.activation(self.second_norm(y + self.around(x))), there_B1T


class _StepNorm(nn.Module):
    """LayerNorm over the channels of each step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(x_BCT.transpose(1, 2)).transpose(1, 2)
        return normed


def _group_norm(channels: int) -> nn.Module:
    # Four channels or more a group: a group of one value, where an image has shrunk to one place, would norm to zero.
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 4)), channels)


def _convolution(places: Literal[1, 2], inputs: int, outputs: int, stride: int) -> nn.Module:
    return _CONVOLUTIONS[places](inputs, outputs, _SIDE[places], stride, padding=_SIDE[places] // 2)


def _zeroed(x: torch.Tensor, there_B1T: torch.Tensor | None) -> torch.Tensor:
    return x if there_B1T is None else torch.where(there_B1T, x, 0)
