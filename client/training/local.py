"""Local training of one round: sample, gradient, the strategy's correction, step.

With `dp-sgd` the gradient is private before anything else sees it: sample -> clip -> noise -> account has no hook
inside. Every planned step is taken, also on an empty sample, so their number depends on no record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.records import Part
from client.models.base import Shape, flat_parameters
from client.training.gradients import clipped_sum, mean_gradient
from client.training.losses import row_loss
from client.training.noise import add_noise
from strategies.base import Aux, Strategy
from strategies.errors import RunError
from strategies.layout import Vector
from strategies.optimizers import Adam, AdamW, Optimizer, Sgd
from strategies.privacy.secret import SecretRandom, sample


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The public settings of local training.

    Args:
        private: DP-SGD, or plain (also where the whole update is made private after it).
        sampling_rate: probability of each unit in a step's sample.
        steps: steps of the round.
        expected_batch_size: units a step is divided by; public, so it tells nothing of the silo's size.
        max_records_per_unit: records of a sampled unit that a step uses, chosen afresh.
        clip_norm: L2 bound a unit.
        noise_multiplier: noise over clip norm.
        optimizer: the local optimiser.
        seed: of the sampling order when training is not private.
    """

    private: bool
    sampling_rate: float
    steps: int
    expected_batch_size: float
    max_records_per_unit: int
    clip_norm: float
    noise_multiplier: float
    optimizer: Optimizer
    seed: int


class _Source(Protocol):
    def poisson_sample(self, count: int, rate: float) -> NDArray[np.intp]: ...

    def permutation_keys(self, count: int) -> NDArray[np.uint64]: ...


class _SeededRandom:
    """The sampling of unprotected training: repeatable by design, so never used with dp-sgd."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.intp]:
        return sample(count, lambda some: self._generator.random(some) < rate)

    def permutation_keys(self, count: int) -> NDArray[np.uint64]:
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


def train(model: nn.Module, part: Part, shape: Shape, plan: Plan, strategy: Strategy, aux: Aux) -> Vector:
    """Train `model` in place from its present weights and return the weights after the round.

    Args:
        model: holds the weights that the server sent.
        part: the silo's training records.
        shape: of the model.
        plan: public settings.
        strategy: its `correct` is applied after the noise.
        aux: the strategy's vectors, as torch tensors.

    Raises:
        RunError: the weights are no longer finite.
    """
    weight = flat_parameters(model)
    anchor = weight.clone()
    aux = replace(
        aux,
        broadcast={name: vector.to(weight.device) for name, vector in aux.broadcast.items()},
        home={name: vector.to(weight.device) for name, vector in aux.home.items()},
    )
    weight.grad = torch.zeros_like(weight)
    optimizer = optimizer_on(weight, plan.optimizer)
    model.train()
    for gradient in gradients_of_steps(model, part, shape, plan, weight.device):
        weight.grad.copy_(strategy.correct(gradient.to(weight.dtype), weight, anchor, aux))
        optimizer.step()
    if not torch.isfinite(weight).all():
        raise RunError("local training left the range of numbers; lower the learning rate of training.optimizer")
    return np.array(weight.cpu().numpy(), dtype=np.float32)


def gradients_of_steps(
    model: nn.Module, part: Part, shape: Shape, plan: Plan, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield what each step has for a gradient, (d,), at the model's present weights: with dp-sgd it is private.

    Arguments as in `train`; `device` is where the model lies.
    """
    loss = row_loss(shape, device)
    secret = SecretRandom()
    source: _Source = secret if plan.private else _SeededRandom(plan.seed)
    rows = _Rows(part)
    most = _rows_of_a_pass(plan)
    for _ in range(plan.steps):
        units = source.poisson_sample(part.units, plan.sampling_rate)
        chosen, unit_of_row = rows.of(units, plan.max_records_per_unit, source)
        batch = (part.x[chosen].to(device), part.y[chosen].to(device))
        if plan.private:
            total = clipped_sum(model, loss, batch, unit_of_row, plan.clip_norm, most, plan.max_records_per_unit)
            total = add_noise(total, clip_norm=plan.clip_norm, noise_multiplier=plan.noise_multiplier, random=secret)
        else:
            total = mean_gradient(model, loss, batch, unit_of_row)
        yield total.div_(plan.expected_batch_size)


def _rows_of_a_pass(plan: Plan) -> int:
    """Return what nearly every step's sample has room in, whatever the records are: three deviations above its mean."""
    rows = plan.max_records_per_unit * (plan.expected_batch_size + 3 * math.sqrt(plan.expected_batch_size))
    return 32 * math.ceil(rows / 32)


class _Rows:
    """Which rows belong to which unit."""

    def __init__(self, part: Part) -> None:
        self._order = self._starts = None
        owner = part.unit_of_row
        if owner is None:
            return
        if (owner[1:] < owner[:-1]).any():
            self._order = np.argsort(owner, kind="stable").astype(owner.dtype)
            owner = owner[self._order]
        if part.units < len(owner):
            self._starts = np.searchsorted(owner, np.arange(part.units + 1))

    def of(self, units: NDArray[np.intp], most: int, source: _Source) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Return the rows of these units, at most `most` each (a fresh random choice), and the unit of each row."""
        if self._starts is None:
            return torch.from_numpy(self._placed(units)), units.astype(np.int64)
        chosen, owners = [], []
        for unit in units:
            rows = self._placed(np.arange(self._starts[unit], self._starts[unit + 1]))
            if len(rows) > most:
                rows = rows[np.argsort(source.permutation_keys(len(rows)))[:most]]
            chosen.append(rows)
            owners.append(np.full(len(rows), unit, dtype=np.int64))
        if not chosen:
            return torch.zeros(0, dtype=torch.int64), np.zeros(0, dtype=np.int64)
        return torch.from_numpy(np.concatenate(chosen)), np.concatenate(owners)

    def _placed(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        return positions if self._order is None else self._order[positions].astype(np.intp)


def optimizer_on(weight: torch.Tensor, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Return torch's optimiser of one tensor, so there is nothing that it could group (`foreach`)."""
    named: dict[str, Any] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay, "foreach": False}
    match optimizer:
        case Sgd():
            return torch.optim.SGD([weight], momentum=optimizer.momentum, **named)
        case Adam():
            return torch.optim.Adam([weight], betas=(optimizer.beta1, optimizer.beta2), **named)
        case AdamW():
            return torch.optim.AdamW([weight], betas=(optimizer.beta1, optimizer.beta2), **named)
