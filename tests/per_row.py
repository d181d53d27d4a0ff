"""Gradients of single rows, by our engine, by Opacus and by plain differentiation of one row after the other: what the
tests of clipping, models and layers compare."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.linear import compute_linear_grad_sample
from torch import nn

from client.models._recurrence import StateProduct
from client.models.base import layout_of
from client.training import gradients, passes

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def by_engine(model: nn.Module, loss: RowLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return (rows, d): what each row would add to the sum alone, by the parts that the clipped sum is made from."""
    plan, each = passes.plan_of(model, x), np.ones(len(x), dtype=np.int64)
    rows = gradients._filled(x, y, (np.arange(len(x)), each, 1), plan, plan.tile)
    found = passes.parts(model, plan, loss, rows)
    kind = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    total = torch.zeros(len(x), plan.layout.size, dtype=kind)
    for row, only in enumerate(torch.eye(len(x), dtype=kind)):
        for located in found:
            slots = located.slots.items()
            located.part.only(only > 0).write(
                only, {n: total[row, s.offset : s.offset + s.size].view(s.shape) for n, s in slots}
            )
    return total


def by_opacus(model: nn.Module, loss: RowLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return (rows, d) by the hooks of Opacus (Yousefpour et al. 2021), which share no code with ours."""
    GradSampleModule.GRAD_SAMPLERS[StateProduct] = compute_linear_grad_sample
    hooked = GradSampleModule(model, loss_reduction="sum")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss(hooked(x), y).sum().backward()
    parameters = dict(model.named_parameters())
    rows = []
    for slot in layout_of(model).slots:
        sample = getattr(parameters[slot.name], "grad_sample", None)
        rows.append(torch.zeros(len(x), slot.size) if sample is None else sample.detach().reshape(len(x), slot.size))
    hooked.remove_hooks()
    hooked.zero_grad(set_to_none=True)
    for parameter in model.parameters():
        parameter.grad_sample = None
    return torch.cat(rows, dim=1)


def by_autograd(model: nn.Module, loss: RowLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return (rows, d) float64 by `torch.autograd` in float64, one row after the other."""
    kind = next(model.parameters()).dtype
    model.double()  # and back again below: no value is lost
    parameters = dict(model.named_parameters())
    ordered = [parameters[slot.name] for slot in layout_of(model).slots]
    rows = []
    for x_1, y_1 in zip(x.split(1), y.split(1), strict=True):
        value = loss(model(x_1.double() if x_1.is_floating_point() else x_1), y_1)[0]
        found = torch.autograd.grad(value, ordered, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(ordered, found, strict=True)]
            )
        )
    model.to(kind)
    return torch.stack(rows).detach()


def clipped(rows: torch.Tensor, units: np.ndarray, clip_norm: float) -> np.ndarray:
    """Return the sum of each unit's mean row, clipped, in float64."""
    total = np.zeros(rows.shape[1])
    for unit in np.unique(units):
        mean = rows[units == unit].double().mean(dim=0).numpy()
        total += mean * min(1.0, clip_norm / max(np.linalg.norm(mean), 1e-300))
    return total
