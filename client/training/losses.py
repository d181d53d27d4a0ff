"""The loss of a task, one value a row, so that no row's gradient depends on another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from client.models.base import Shape, scaled

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # outputs and targets to (rows,)


def row_loss(shape: Shape, device: torch.device | None = None) -> RowLoss:
    """Return (outputs (rows, k), targets (rows,) or (rows, k)) to (rows,).

    Regression: half the squared error of the scaled target. Multilabel: the mean over labels of the binary cross
    entropy. Classification: cross entropy, times the public weight of the row's class. The loss is for tensors on
    `device`.
    """
    if shape.task == "regression":
        return lambda out, y: 0.5 * (out[:, 0] - scaled(y, shape.target_range)) ** 2
    if shape.task == "multilabel":
        return lambda out, y: F.binary_cross_entropy_with_logits(out, y.to(out.dtype), reduction="none").mean(1)
    plain = _binary_cross_entropy if shape.outputs == 1 else _cross_entropy
    if not shape.class_weights:
        return plain
    weights = torch.tensor(shape.class_weights, device=device)
    return lambda out, y: plain(out, y) * weights.to(out)[y.long()]


def _binary_cross_entropy(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(out[:, 0], y.to(out.dtype), reduction="none")


def _cross_entropy(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out, y.long(), reduction="none")
