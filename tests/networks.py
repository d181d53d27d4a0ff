"""A small network of every architecture, with weights and rows for it: what several tests of the engine share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from client.models.base import MODELS, Shape, build, layout_of, load_weights

ARCHITECTURES = {
    "logistic": Shape(inputs=(7,), outputs=3, task="classification"),
    "mlp(hidden=[9, 8])": Shape(inputs=(7,), outputs=1, task="regression"),
    "ft_transformer(width=8, depth=2, heads=2)": Shape(
        inputs=(7,), outputs=3, task="classification", widths=(1, 3, 1, 2)
    ),
    "cnn(width=4, depth=2)": Shape(inputs=(2, 9, 8), outputs=3, task="classification", kind="images"),
    "vit(width=8, depth=2, heads=2, patch=4)": Shape(inputs=(1, 9, 8), outputs=3, task="classification", kind="images"),
    "cnn1d(width=4, depth=2)": Shape(inputs=(20, 3), outputs=3, task="classification", kind="signals"),
    "lstm(hidden=6, layers=2)": Shape(inputs=(9, 4), outputs=3, task="classification", kind="sequences"),
    "gru(hidden=6, bidirectional=true)": Shape(inputs=(9, 4), outputs=3, task="classification", kind="sequences"),
    "transformer(width=8, depth=2, heads=2)": Shape(inputs=(9, 4), outputs=3, task="classification", kind="sequences"),
    "text_transformer(width=8, depth=2, heads=2)": Shape(
        inputs=(9,), outputs=2, task="multilabel", kind="text", vocabulary=20
    ),
}
every_architecture = pytest.mark.parametrize("spec", ARCHITECTURES)


def model_of(spec: str, scale: float = 0.3) -> nn.Module:
    module = build(MODELS.resolve(spec), ARCHITECTURES[spec], 0)
    random = np.random.default_rng(1)
    load_weights(module, random.normal(0, scale, layout_of(module).size).astype(np.float32))
    return module


def rows_of(shape: Shape, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(0, 1, (count, *shape.inputs)).astype(np.float32))
    if shape.kind == "text":
        x = torch.from_numpy(random.integers(0, shape.vocabulary, (count, *shape.inputs)))
    if shape.masked:
        x[..., -1] = torch.arange(shape.inputs[0]) < torch.from_numpy(random.integers(0, 10, (count, 1)))
    return x, targets_of(shape, count, random)


def targets_of(shape: Shape, count: int, random: np.random.Generator) -> torch.Tensor:
    if shape.task == "regression":
        return torch.from_numpy(random.normal(0, 2, count).astype(np.float32))
    if shape.task == "multilabel":
        return torch.from_numpy(random.integers(0, 2, (count, shape.outputs)))
    return torch.from_numpy(random.integers(0, shape.outputs, count))
