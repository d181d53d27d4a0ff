"""The sum of clipped gradients, one clip a unit: the only place where records turn into numbers that may leave.

Per-record gradients come from Opacus' hooks (Yousefpour et al. 2021); the mean over a unit's records is clipped once
(Abadi et al. 2016, algorithm 1, with the unit in the place of the example).

Guarantees: a unit moves the sum by at most `clip_norm` in L2, whatever its records are and however many; a record
whose gradient is not finite contributes zero.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import nn

from client.models.base import layout_of

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]

_SHRINK = 1.0 - 2.0**-20  # rounding of the float32 sum can never lift a unit above the clip norm
# The last bit of a row of a matrix product depends on the product's number of rows (up to whole tiles) and on the
# row's place (through the alignment of its address, with period 4 on x86). Weights that make outputs cancel blow that
# bit up until one unit's presence moves the clipped gradients of others. So batches are filled up to whole tiles, and
# each row draws its place modulo 4 by itself: what a row contributes then has no way to depend on the other rows.
_TILE_ROWS, _LANES = 16, 4
_VALUES_AT_ONCE = 2**25  # of per-row gradients held at once: 128 MiB


def clipped_sum(
    model: nn.Module, loss: RowLoss, batch: Batch, unit_of_row: NDArray[np.int64], clip_norm: float
) -> NDArray[np.float64]:
    """Return the sum over units of each unit's mean gradient, clipped to `clip_norm`.

    Args:
        model: (rows, ...) to (rows, outputs), no operation across rows.
        loss: outputs and targets to one loss a row, (rows,).
        batch: inputs (rows, ...) and targets (rows, ...); may have no row.
        unit_of_row: (rows,) unit of each row; any integers.
        clip_norm: L2 bound on each unit's contribution.

    Returns:
        (d,) float64, in the order of the model's layout.
    """
    x, y = batch
    size = layout_of(model).size
    total = np.zeros(size)
    for rows in _portions(unit_of_row, max(_TILE_ROWS, _VALUES_AT_ONCE // size)):
        some = torch.from_numpy(rows).to(x.device)
        total += _clipped_portion(model, loss, (x[some], y[some]), unit_of_row[rows], clip_norm)
    return total


def _portions(unit_of_row: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of whole units, about `most` at a time, so that memory does not grow with the batch."""
    order = np.argsort(unit_of_row, kind="stable")
    ends = np.flatnonzero(np.diff(unit_of_row[order], append=np.iinfo(np.int64).min)) + 1
    start = 0
    while start < len(order):
        fitting = np.searchsorted(ends, start + most, side="right") - 1
        stop = int(ends[max(fitting, np.searchsorted(ends, start, side="right"))])
        yield order[start:stop]
        start = stop


def _clipped_portion(
    model: nn.Module, loss: RowLoss, batch: Batch, unit_of_row: NDArray[np.int64], clip_norm: float
) -> NDArray[np.float64]:
    x, y = batch
    per_row_NP = _per_row_gradients(model, loss, x, y)
    finite_N = torch.isfinite(per_row_NP).all(dim=1)
    per_row_NP = torch.where(finite_N[:, None], per_row_NP, 0.0)
    units, place = np.unique(unit_of_row, return_inverse=True)
    place_N = torch.from_numpy(place).to(per_row_NP.device)
    if len(units) == len(per_row_NP):
        per_unit_UP = per_row_NP  # one row a unit: the mean is the row, and the order of a sum is free
    else:
        counts_U = torch.bincount(place_N, minlength=len(units)).to(per_row_NP.dtype)
        per_unit_UP = per_row_NP.new_zeros(len(units), per_row_NP.shape[1])
        per_unit_UP.index_add_(0, place_N, per_row_NP / counts_U[place_N, None])
        finite_U = torch.isfinite(per_unit_UP).all(dim=1)  # the mean of the largest finite values may overflow
        per_unit_UP = torch.where(finite_U[:, None], per_unit_UP, 0.0)
    norm_U = torch.linalg.vector_norm(per_unit_UP, dim=1, dtype=torch.float64)
    factor_U = (_SHRINK * clip_norm / norm_U.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    total: NDArray[np.float64] = (factor_U @ per_unit_UP.double()).cpu().numpy()
    return total


def mean_gradient(model: nn.Module, loss: RowLoss, batch: Batch, unit_of_row: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum over units of each unit's mean gradient: no clipping, no protection. Arguments as above."""
    x, y = batch
    layout = layout_of(model)
    if len(x) == 0:
        return np.zeros(layout.size)
    _, place, counts = np.unique(unit_of_row, return_inverse=True, return_counts=True)
    weight_N = torch.from_numpy(1.0 / counts[place]).to(x.device)
    model.zero_grad(set_to_none=True)
    (loss(model(x), y) * weight_N).sum().backward()
    parameters = dict(model.named_parameters())
    grads = [_or_zero(parameters[slot.name].grad, parameters[slot.name]).reshape(-1) for slot in layout.slots]
    return torch.cat(grads).double().cpu().numpy()


def _per_row_gradients(model: nn.Module, loss: RowLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if not model.training:
        raise RuntimeError("gradients of a row are known in training mode alone; call model.train() before")
    hooked = model.__dict__.get("_hooked")
    if hooked is None:  # kept by the model, past torch's registry of parts, so that both go together
        hooked = model.__dict__["_hooked"] = GradSampleModule(model, loss_reduction="sum")
    hooked.zero_grad(set_to_none=True)
    place_N = torch.from_numpy(_places(_random_lanes(len(x)))).to(x.device)
    x, y = _spread(x, place_N), _spread(y, place_N)
    hooked.enable_hooks()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss(hooked(x), y).sum().backward()
    finally:
        hooked.disable_hooks()  # a pass of somebody else would leave activations that the next one waits for
    parameters = dict(model.named_parameters())
    rows = []
    for slot in layout_of(model).slots:
        parameter = parameters[slot.name]
        sample = getattr(parameter, "grad_sample", None)
        rows.append(
            parameter.new_zeros(len(place_N), slot.size)
            if sample is None
            else sample.reshape(len(x), slot.size)[place_N]
        )
        parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter.grad = None
    return torch.cat(rows, dim=1)


def _random_lanes(count: int) -> NDArray[np.uint8]:
    return np.frombuffer(os.urandom(count), np.uint8) % np.uint8(_LANES)


def _places(lane: NDArray[np.uint8]) -> NDArray[np.int64]:
    place = lane.astype(np.int64)
    for number in range(_LANES):
        mine = lane == number
        place[mine] += _LANES * np.arange(np.count_nonzero(mine))
    return place


def _spread(values: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
    tiles = int(place_N.max()) // _TILE_ROWS + 1
    return values.new_zeros(tiles * _TILE_ROWS, *values.shape[1:]).index_copy_(0, place_N, values)


def _or_zero(gradient: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
