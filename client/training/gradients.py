"""The sum of clipped gradients, one clip a unit: the only place where records turn into numbers that may leave.

The mean over a unit's records is clipped once (Abadi et al. 2016, algorithm 1, with the unit in the place of the
example). `client.training.passes` finds what each unit owes to each parameter, in a form (`client.training.layers`)
of which norms and the clipped sum follow.

Guarantees: a unit moves the sum by at most `clip_norm` in L2, but for `noise.ROUNDING`, whatever its records are and
however many; a record whose gradient is not finite contributes zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.models.base import layout_of
from client.training.device import rows_at_once
from client.training.layers import Units
from client.training.losses import RowLoss
from client.training.passes import Located, Plan, Rows, parts, plan_of, row_gradient
from client.training.replay import Replay

Batch = tuple[torch.Tensor, torch.Tensor]

# Up to so many units are summed in float32, more in float64: `noise.ROUNDING` is what rounding can add to the distance
# of two sums that differ in one unit (measured with all units pulling the same way, where it is largest: four tenths).
_FLOAT32_UNITS = 4096
_TINY = np.finfo(np.float64).tiny
_SHRINK = 1.0 - 2.0**-20  # rounding of a norm can never lift a unit above the clip norm
# The last bit of a row of a matrix product depends on the product's number of rows (up to whole tiles); and, where a
# row is no multiple of 16 bytes, on the row's place, through the alignment of its address (with period 4). Weights
# that make outputs cancel blow that bit up until one unit's presence moves the clipped gradients of others. So
# batches are filled up to whole tiles (`Plan.tile`), and where rows are not aligned each draws its place modulo 4 by
# itself: what a row contributes then has no way to depend on the other rows. A GPU chooses its kernels by shape, so
# there every pass has the same number of rows.
_LANES = 4
_LEAST_AT_ONCE = 16
_VALUES_AT_ONCE = 2**25  # of the gradients of rows, where a model needs them: 128 MiB


def clipped_sum(
    model: nn.Module,
    loss: RowLoss,
    batch: Batch,
    unit_of_row: NDArray[np.int64],
    clip_norm: float,
    rows_of_a_pass: int | None = None,
    rows_of_a_unit: int | None = None,
) -> torch.Tensor:
    """Return the sum over units of each unit's mean gradient, clipped to `clip_norm`.

    How a unit's norm is found depends on how many rows a unit may have, so that number has to be public: were it that
    of the batch's largest unit, one unit's presence would move what others add.

    Args:
        model: (rows, ...) to (rows, outputs), no operation across rows.
        loss: outputs and targets to one loss a row, (rows,).
        batch: inputs (rows, ...) and targets (rows, ...), on the model's device; may have no row.
        unit_of_row: (rows,) unit of each row; any integers.
        clip_norm: L2 bound on each unit's contribution.
        rows_of_a_pass: at most so many rows go through the model together, and on a GPU always so many; None: as many
            as memory allows.
        rows_of_a_unit: at least as many as any unit has; public. None: as many as the largest in this batch, for what
            is not released.

    Returns:
        (d,) float32, or float64 where the sum has several parts, in the order of the model's layout, on its device.
    """
    if not model.training:
        raise RuntimeError("gradients of a row are known in training mode alone; call model.train() before")
    x, y = batch
    if len(x) == 0:
        return torch.zeros(layout_of(model).size, device=x.device)
    plan = plan_of(model, x)
    order, place_of_unit, counts = _sorted_by_unit(unit_of_row)
    widest = int(counts.max()) if rows_of_a_unit is None else rows_of_a_unit
    if counts.max() > widest:
        raise ValueError(f"a unit has {counts.max()} rows, more than the {widest} that were said")
    exact = len(counts) > _FLOAT32_UNITS or plan.parameters[0][0].dtype == torch.float64
    sum_type = torch.float64 if exact else torch.float32
    most = rows_at_once(model, x)
    if rows_of_a_pass is not None:
        most = min(most, rows_of_a_pass)
    if plan.obstacles:
        most = min(most, max(_LEAST_AT_ONCE, _VALUES_AT_ONCE // plan.layout.size))
    totals = [
        _clipped(
            model,
            plan,
            loss,
            (x[rows], y[rows]) if order is None else (x[order[rows]], y[order[rows]]),
            (place_of_unit[rows] - units.start, counts[units], widest),
            clip_norm,
            sum_type,
            most if x.is_cuda else plan.tile,
        )
        for rows, units in _portions(counts, max(1, most // widest))
    ]
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum(dim=0, dtype=torch.float64)


def _sorted_by_unit(
    unit_of_row: NDArray[np.int64],
) -> tuple[torch.Tensor | None, NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of rows by unit (None: as they are), then for each row its unit's position, and rows a unit."""
    if len(unit_of_row) < 2 or (unit_of_row[1:] > unit_of_row[:-1]).all():
        return None, np.arange(len(unit_of_row)), np.ones(len(unit_of_row), np.int64)
    _, unit_N, counts = np.unique(unit_of_row, return_inverse=True, return_counts=True)
    order = np.argsort(unit_N, kind="stable")
    return torch.from_numpy(order), unit_N[order], counts


def _portions(counts: NDArray[np.int64], units: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and units, so many units at a time: memory does not grow with the batch."""
    ends = np.concatenate([[0], np.cumsum(counts)])
    for first in range(0, len(counts), units):
        last = min(first + units, len(counts))
        yield slice(int(ends[first]), int(ends[last])), slice(first, last)


def _clipped(
    model: nn.Module,
    plan: Plan,
    loss: RowLoss,
    batch: Batch,
    grouping: tuple[NDArray[np.int64], NDArray[np.int64], int],
    clip_norm: float,
    sum_type: torch.dtype,
    tile: int,
) -> torch.Tensor:
    (x, y), (place_N, _, _) = batch, grouping
    rows = _filled(x, y, grouping, plan, tile)
    if rows.x.is_cuda and rows.units.unit_N is None and not plan.obstacles:
        total, sound = _replayed(model, plan, loss, rows, clip_norm, sum_type)
        if sound:
            return total
    found, factor_U, sound_U = _clipped_parts(model, plan, loss, rows, clip_norm)
    if bool(sound_U.all()):
        return _weighted(found, plan, factor_U.to(sum_type))
    kept = [Located(part=located.part.only(sound_U), slots=located.slots) for located in found]
    total = _weighted(kept, plan, torch.where(sound_U, factor_U, 0.0).to(sum_type)).double()
    return total + _one_by_one(model, plan, loss, batch, place_N, ~sound_U.cpu().numpy(), clip_norm)


def _clipped_parts(
    model: nn.Module, plan: Plan, loss: RowLoss, rows: Rows, clip_norm: float
) -> tuple[list[Located], torch.Tensor, torch.Tensor]:
    """Return the gradients by unit, each unit's factor (float64), and whether its norm is a number."""
    found = parts(model, plan, loss, rows)
    squared = [located.part.squared_norm() for located in found] or [rows.x.new_zeros(rows.units.count)]
    norm_U = torch.stack(squared).sum(dim=0, dtype=torch.float64).sqrt_()
    return found, _factor(norm_U, clip_norm), norm_U.isfinite()


def _replayed(
    model: nn.Module, plan: Plan, loss: RowLoss, rows: Rows, clip_norm: float, sum_type: torch.dtype
) -> tuple[torch.Tensor, bool]:
    """Return the clipped sum of units of one row, and whether all norms were numbers; else the sum is to be ignored."""

    def work(x: torch.Tensor, y: torch.Tensor, weight_N: torch.Tensor) -> tuple[torch.Tensor, ...]:
        same = Rows(x=x, place=None, y=y, count=len(x), weight_N=weight_N, units=Units(count=len(x)))
        found, factor_U, sound_U = _clipped_parts(model, plan, loss, same, clip_norm)
        return _weighted(found, plan, factor_U.to(sum_type)), sound_U.all()

    weight_N = rows.x.new_ones(len(rows.x)) if rows.weight_N is None else rows.weight_N
    inputs = (rows.x, rows.y, weight_N)
    places = tuple(parameter.data_ptr() for parameter, _ in plan.parameters)
    key = (loss, clip_norm, sum_type, places, *((values.shape, values.dtype) for values in inputs))
    total, sound = plan.replays.setdefault(key, Replay(work))(*inputs)
    return total, bool(sound)  # a GPU is asked when all is on its way


def _weighted(found: Sequence[Located], plan: Plan, factor_U: torch.Tensor) -> torch.Tensor:
    """Return the sum over units of factor times gradient, (d,) in the type of the factors."""
    total = torch.zeros(plan.layout.size, dtype=factor_U.dtype, device=factor_U.device)
    places = {slot.offset: part for slot, part in zip(plan.layout.slots, total.split(plan.sizes), strict=True)}
    for located in found:
        into = {name: places[slot.offset].view(slot.shape) for name, slot in located.slots.items()}
        located.part.write(factor_U, into)
    return total


def _factor(norm_U: torch.Tensor, clip_norm: float) -> torch.Tensor:
    return (_SHRINK * clip_norm / norm_U.clamp_min(_TINY)).clamp_max_(1.0)


def _one_by_one(
    model: nn.Module,
    plan: Plan,
    loss: RowLoss,
    batch: Batch,
    place_N: NDArray[np.int64],
    wanted_U: NDArray[np.bool_],
    clip_norm: float,
) -> torch.Tensor:
    """Return the clipped sum over units whose norms are beyond float32: a record by itself, norms in float64."""
    x, y = batch
    total = torch.zeros(plan.layout.size, dtype=torch.float64, device=x.device)
    for unit in np.flatnonzero(wanted_U):
        mine = np.flatnonzero(place_N == unit)
        mean = torch.zeros_like(total)
        for row in mine:
            by_name = row_gradient(model, loss, x[row : row + 1], y[row : row + 1])
            gradient = torch.cat([by_name[slot.name].reshape(-1) for slot in plan.layout.slots]).double()
            if torch.isfinite(gradient).all():
                mean += gradient / len(mine)
        total += mean * _factor(torch.linalg.vector_norm(mean), clip_norm)
    return total


def mean_gradient(model: nn.Module, loss: RowLoss, batch: Batch, unit_of_row: NDArray[np.int64]) -> torch.Tensor:
    """Return the sum over units of each unit's mean gradient: no clipping, no protection. Arguments as above."""
    x, y = batch
    layout = layout_of(model)
    if len(x) == 0:
        return torch.zeros(layout.size, dtype=torch.float64, device=x.device)
    _, place, counts = np.unique(unit_of_row, return_inverse=True, return_counts=True)
    weight_N = torch.from_numpy(1.0 / counts[place]).to(x.device)
    model.zero_grad(set_to_none=True)
    (loss(model(x), y) * weight_N).sum().backward()
    parameters = dict(model.named_parameters())
    grads = [_or_zero(parameters[slot.name].grad, parameters[slot.name]).reshape(-1) for slot in layout.slots]
    return torch.cat(grads).double()


def _or_zero(gradient: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


# --- rows of a batch ----------------------------------------------------------------------------------------


def _filled(
    x: torch.Tensor, y: torch.Tensor, grouping: tuple[NDArray[np.int64], NDArray[np.int64], int], plan: Plan, tile: int
) -> Rows:
    """Fill the batch up to whole tiles, and say which rows belong together.

    On a GPU the rows that are no records stay to the end, with a unit of no weight: the shapes are the same throughout.

    Args:
        x: (rows, ...) inputs.
        y: (rows, ...) targets.
        grouping: each row's unit, each unit's number of rows, and the most that a unit may have.
        plan: of the model.
        tile: rows of one.
    """
    place_N, counts_U, widest = grouping
    count = len(x)
    if plan.aligned and widest == 1 and count % tile == 0:
        return Rows(x=x, place=None, y=y, count=count, weight_N=None, units=Units(count=count))
    place = None if plan.aligned or x.is_cuda else torch.from_numpy(_places(_random_lanes(count)))
    last = count if place is None else int(place.max()) + 1
    whole = -(-last // tile) * tile
    kept = whole if x.is_cuda else count
    x, y = _spread(x, place, whole), _spread(y, place, whole)
    weight_N = np.zeros(kept, np.float32)
    weight_N[:count] = 1.0 / counts_U[place_N]
    if widest == 1:
        units = Units(count=kept)
    else:
        unit_N = np.full(kept, len(counts_U))
        unit_N[:count] = place_N
        rows_UR = np.full((len(counts_U) + (kept > count), widest), -1)
        rows_UR[: len(counts_U)][np.arange(widest) < counts_U[:, None]] = np.arange(count)
        units = Units(
            count=len(rows_UR),
            unit_N=torch.from_numpy(unit_N).to(x.device),
            rows_UR=torch.from_numpy(rows_UR).to(x.device),
        )
    plain = kept == count and widest == 1
    return Rows(
        x=x,
        place=place,
        y=y,
        count=kept,
        weight_N=None if plain else torch.from_numpy(weight_N).to(x.device),
        units=units,
    )


def _spread(values: torch.Tensor, place: torch.Tensor | None, whole: int) -> torch.Tensor:
    """Return the rows at their places, or in front, and zeros elsewhere."""
    if place is not None:
        return values.new_zeros(whole, *values.shape[1:]).index_copy_(0, place, values)
    if whole == len(values):
        return values
    return torch.cat([values, values.new_zeros(whole - len(values), *values.shape[1:])])


def _random_lanes(count: int) -> NDArray[np.uint8]:
    return np.frombuffer(os.urandom(count), np.uint8) % np.uint8(_LANES)


def _places(lane: NDArray[np.uint8]) -> NDArray[np.int64]:
    place = lane.astype(np.int64)
    for number in range(_LANES):
        mine = lane == number
        place[mine] += _LANES * np.arange(np.count_nonzero(mine))
    return place
