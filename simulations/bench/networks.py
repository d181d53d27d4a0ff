"""The networks that training is measured on: each as ordinary torch.nn, as ours, and as Opacus needs it.

Shapes: a feed-forward network 100-256-256-2; convolutions of 32 and 64 channels on 28 x 28 images; LSTM and GRU over
100 steps of 12 channels with 64 hidden units; a transformer of 2 blocks of width 64 over 64 of 2,000 words; a
transformer over the 20 numeric features of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from opacus.layers import DPGRU, DPLSTM
from torch import nn
from torch.nn import functional as F

from client.models.base import MODELS, Kind, Shape, build

_STEPS, _CHANNELS, _HIDDEN = 100, 12, 64
_TOKENS, _WORDS = 64, 2000
_FEATURES = 20


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network in its three forms.

    Args:
        shape: of a record.
        plain: ordinary torch.nn.
        ours: as a study would name it, or the same module where it has ordinary layers alone.
        opacus: as Opacus can differentiate it row by row.
    """

    shape: Shape
    plain: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    opacus: Callable[[], nn.Module]

    def batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and classes, the same each time."""
        random = torch.Generator().manual_seed(0)
        y = torch.randint(0, self.shape.outputs, (rows,), generator=random)
        if self.shape.kind == "text":
            return torch.randint(1, _WORDS, (rows, *self.shape.inputs), generator=random), y
        return torch.randn(rows, *self.shape.inputs, generator=random), y


def networks() -> dict[str, Network]:
    """Return the networks by name."""
    return {
        "mlp": _same(_shape((100,), 2, "tabular"), _mlp),
        "cnn": _same(_shape((1, 28, 28), 10, "images"), _Cnn),
        "lstm": _recurrent("lstm", nn.LSTM, DPLSTM),
        "gru": _recurrent("gru", nn.GRU, DPGRU),
        "transformer": _named("text_transformer(width=64, depth=2, heads=4)", _shape((_TOKENS,), 2, "text")),
        "ft_transformer": _named("ft_transformer(width=32, depth=2, heads=4)", _shape((_FEATURES,), 2, "tabular")),
    }


def _shape(inputs: tuple[int, ...], outputs: int, kind: Kind) -> Shape:
    vocabulary = _WORDS if kind == "text" else 0
    return Shape(inputs=inputs, outputs=outputs, task="classification", kind=kind, vocabulary=vocabulary)


def _same(shape: Shape, make: Callable[[], nn.Module]) -> Network:
    return Network(shape=shape, plain=make, ours=make, opacus=make)


def _named(spec: str, shape: Shape) -> Network:
    return _same(shape, lambda: build(MODELS.resolve(spec), shape, 0))


def _recurrent(name: str, plain: Callable[..., nn.Module], opacus: Callable[..., nn.Module]) -> Network:
    shape = _shape((_STEPS, _CHANNELS), 2, "signals")
    return Network(
        shape=shape,
        plain=lambda: _Recurrent(plain(_CHANNELS, _HIDDEN, batch_first=True)),
        ours=lambda: build(MODELS.resolve(f"{name}(hidden={_HIDDEN})"), shape, 0),
        opacus=lambda: _Recurrent(opacus(_CHANNELS, _HIDDEN, batch_first=True)),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))


class _Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, 32), nn.GroupNorm(8, 64)])
        self.wide, self.head = nn.Linear(64 * 7 * 7, 128), nn.Linear(128, 10)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip((self.first, self.second), self.norms, strict=True):
            x_BCHW = F.max_pool2d(F.relu(norm(convolution(x_BCHW))), 2)
        out: torch.Tensor = self.head(F.relu(self.wide(x_BCHW.flatten(1))))
        return out


class _Recurrent(nn.Module):
    """The mean of the states of all steps, and a linear layer: what our models compute by default."""

    def __init__(self, states: nn.Module) -> None:
        super().__init__()
        self.states, self.head = states, nn.Linear(_HIDDEN, 2)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.states(x_BTC)[0].mean(dim=1))
        return out
