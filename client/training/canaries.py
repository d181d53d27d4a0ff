"""Canaries: units of the auditor's own that go through the private training of a model, and what is seen of them.

The model gets a table beside it that no record touches, one weight a canary. A canary's loss pulls at its own weight
alone, far harder than the clip norm, so that its clipped gradient is one clip norm along its own axis. Canaries are
sampled, clipped and noised by the code that does so with records (`client.training.local.train`): nothing is hooked,
and what is seen is the noisy gradient that the optimiser sees.

A model with a table beside it is no chain of layers any more, so its layers may be gone through in another way
(`client.training.passes`); that both ways give one sum is checked on some of the records.

The weights of the task are trained as ever; the table is thrown away, and nothing here is sent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.records import Part, Selected
from client.models.base import Inputs, Shape, build, layout_of
from client.training.gradients import clipped_sum
from client.training.local import Plan, train
from client.training.losses import row_loss
from strategies.base import Array, Aux, Strategy
from strategies.errors import AccountingError
from strategies.privacy.conformance import Observations
from strategies.study import Study

Mask = NDArray[np.bool_]
_PULL = 1000.0  # clip norms of a canary's gradient before it is clipped
_QUIET = 0.02  # noise with which samples are plain to see; the sampler does not know of it
_ALWAYS_STEPS = 5  # at a sampling rate of 1
_SAMPLES, _MOST_SAMPLES, _COMMON = 200, 2000, 50  # looked at; as many more as two samples need common units
_COMPARED = 64  # units whose sum is made both ways
_ROWS_AT_ONCE = 512
_SEED = 7  # of generators that must not matter


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """The audit's own units.

    Args:
        included: (canaries,) which of them are in the data, by coins that only the auditor saw.
        controls: coordinates that no unit ever touches.
        rows: of each canary; more than a step may use of a unit, so that a clip by row would show.
    """

    included: Mask
    controls: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What canaries saw.

    Args:
        observations: of coordinates by whether a canary is behind them.
        noise: standard deviation where there never was a canary; it says nothing of who was in.
        canaries_TC: steps by canaries, noisy sums over the clip norm, oriented so that a canary adds one.
    """

    observations: Observations
    noise: float
    canaries_TC: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a silo trains a study.

    Args:
        study: with mechanism dp-sgd.
        part: the silo's training records.
        plans: the public settings of each round, from the first.
        device: where the silo trains.
        advance: is told of steps that were taken.
    """

    study: Study
    part: Part
    plans: tuple[Plan, ...]
    device: torch.device
    advance: Callable[[int], None]

    @property
    def shape(self) -> Shape:
        return Shape.of_study(self.study)

    def model(self) -> nn.Module:
        """Return the study's model with its initial weights."""
        return build(self.study.model, self.shape, self.study.file.study.seed)


def observe(training: Training, canaries: Canaries) -> Seen:
    """Train the study's rounds with canaries among a silo's records, and return what was seen of them.

    Federated averaging of this silo alone: what a strategy does comes after the noise and tells no more.

    Raises:
        AccountingError: no canary can pull at the loss.
        RunError: training left the range of numbers.
    """
    audit = _Audit.of(training, canaries)
    records = audit.part(canaries.included, records=True)
    first, model, seen = training.plans[0], audit.model(), []
    for plan in training.plans:
        seen.append(audit.run(model, records, plan))
        training.advance(plan.steps)
    steps_TW = np.concatenate(seen)
    everyone, own = audit.part(np.ones_like(canaries.included), records=False), slice(1, 1 + len(canaries.included))
    quiet = replace(first, noise_multiplier=_QUIET, steps=_steps_of_samples(first.sampling_rate, everyone.units))
    always = replace(quiet, sampling_rate=1.0, steps=_ALWAYS_STEPS)
    again = []
    for _ in range(2):
        with _seeded():
            again.append(audit.run(audit.model(), records, replace(first, steps=1))[0])
    touched = np.concatenate([[False], canaries.included, np.zeros(canaries.controls, dtype=np.bool_)])
    controls = np.concatenate([steps_TW[:, :1], steps_TW[:, own.stop :]], axis=1)
    observations = Observations(
        untouched_TK=steps_TW[:, ~touched],
        touched_TM=steps_TW[:, touched],
        sampled_SM=audit.run(audit.model(), everyone, quiet)[:, own],
        always_AM=audit.run(audit.model(), everyone, always)[:, own],
        again_2K=np.stack(again)[:, ~touched],
        difference=audit.difference(),
    )
    noise = float(np.sqrt(np.mean(np.square(controls, dtype=np.float64))))
    return Seen(observations=observations, noise=noise, canaries_TC=steps_TW[:, own])


def _steps_of_samples(rate: float, units: int) -> int:
    """Return of how many steps the samples are looked at."""
    wanted = _COMMON / (units * min(rate, 1 - rate) ** 2) if rate < 1 else 0.0
    return int(min(_MOST_SAMPLES, max(_SAMPLES, wanted)))


def losses_of(training: Training, included: Mask) -> NDArray[np.float64]:
    """Train the study's rounds on these units of a silo alone; return the mean loss of every unit, (units,).

    Args:
        training: what is trained.
        included: (units,) which units are in the data.

    Raises:
        RunError: training left the range of numbers.
    """
    some = _only(training.part, included)
    model = training.model().to(training.device)
    for plan in training.plans:
        train(model, some, training.shape, plan, Strategy(), Aux())
        training.advance(plan.steps)
    return _losses(model, training)


# --- canaries beside a model ----------------------------------------------------------------------------------


class WithCanaries(nn.Module):
    """A model of row numbers: those of records give the model's outputs, later ones a canary's.

    Args:
        model: of the study.
        records: its inputs, (rows, ...), at least one.
        weights: of the table; number 0 belongs to no canary, canary j has j + 1.
        outputs: of the model.
        pull: factor of a canary's output.
    """

    def __init__(
        self, model: nn.Module, records: torch.Tensor | Inputs, *, weights: int, outputs: int, pull: float
    ) -> None:
        super().__init__()
        self.model = model
        self.table = nn.Embedding.from_pretrained(torch.zeros(weights, 1), freeze=False)  # draws no random number
        self._records, self._outputs, self._pull = records, outputs, pull

    def forward(self, row_N: torch.Tensor) -> torch.Tensor:
        """Return (rows, outputs)."""
        count = len(self._records)
        canary_N = row_N >= count
        place_N = torch.where(canary_N, 0, row_N)
        inside = isinstance(self._records, torch.Tensor)
        own = self.model(self._records[place_N if inside else place_N.cpu()].to(row_N.device))
        weight_N1 = self.table(torch.where(canary_N, row_N - count + 1, 0))
        value_N1 = self._pull * (weight_N1 - weight_N1.detach())  # always zero, so that its slope never fades
        others = value_N1.new_zeros(len(row_N), self._outputs - 1)
        return torch.where(canary_N[:, None], torch.cat([value_N1, others], dim=1).to(own.dtype), own)


@dataclass(frozen=True, kw_only=True)
class _Recorder(Strategy):
    """Federated averaging that keeps some coordinates of what the optimiser sees, after clipping and noise."""

    first: int
    last: int
    seen: list[torch.Tensor] = field(default_factory=list)

    def correct(self, grad: Array, weight: Array, anchor: Array, aux: Aux) -> Array:
        self.seen.append(grad[self.first : self.last].to("cpu", copy=True))
        return grad


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """A training with a table of canaries beside its model."""

    training: Training
    canaries: Canaries
    label: torch.Tensor  # (1, ...) target of a canary
    pull: float
    sign: float

    @classmethod
    def of(cls, training: Training, canaries: Canaries) -> _Audit:
        """Return it with a pull that is far above the clip norm, and the sign of a canary's gradient."""
        shape, y = training.shape, training.part.y
        label = torch.zeros(1, *y.shape[1:], dtype=y.dtype)
        if shape.task == "regression":
            label += shape.target_range[1] if shape.target_range else 1.0
        out = torch.zeros(1, shape.outputs, requires_grad=True)
        (slope_1K,) = torch.autograd.grad(row_loss(shape)(out, label).sum(), out)
        slope = float(slope_1K[0, 0])
        if not (np.isfinite(slope) and slope):
            raise AccountingError("the loss of this study gives a canary nothing to pull at, so there is no audit")
        pull = _PULL * training.plans[0].clip_norm / abs(slope)
        return cls(training=training, canaries=canaries, label=label, pull=pull, sign=float(np.sign(slope)))

    def model(self) -> WithCanaries:
        records = self.training.part.x
        return WithCanaries(
            self.training.model(),
            records.to(self.training.device) if isinstance(records, torch.Tensor) else records,
            weights=1 + len(self.canaries.included) + self.canaries.controls,
            outputs=self.training.shape.outputs,
            pull=self.pull,
        ).to(self.training.device)

    def part(self, included: Mask, *, records: bool) -> Part:
        """Return the row numbers of these canaries, after those of the records or alone."""
        own = self.training.part
        count, units = (len(own.y), own.units) if records else (0, 0)
        rows = self.canaries.rows
        number_N = len(own.y) + np.flatnonzero(included).repeat(rows)
        unit_of_row = None
        if rows > 1 or (records and own.unit_of_row is not None):
            before = np.arange(count) if own.unit_of_row is None else own.unit_of_row[:count]
            unit_of_row = np.concatenate([before, units + np.arange(included.sum()).repeat(rows)]).astype(np.int64)
        return Part(
            x=torch.from_numpy(np.concatenate([np.arange(count), number_N])),
            y=torch.cat([own.y[:count], self.label.expand(len(number_N), *self.label.shape[1:])]),
            unit_of_row=unit_of_row,
        )

    def run(self, model: WithCanaries, part: Part, plan: Plan) -> NDArray[np.float32]:
        """Return (steps, weights of the table): noisy sums over the clip norm."""
        slot = next(slot for slot in layout_of(model).slots if slot.name == "table.weight")
        recorder = _Recorder(first=slot.offset, last=slot.offset + slot.size)
        train(model, part, self.training.shape, plan, recorder, Aux())
        scale = self.sign * plan.expected_batch_size / plan.clip_norm
        return np.asarray(torch.stack(recorder.seen).numpy() * np.float32(scale))

    def difference(self) -> float:
        """Return how far the clipped sum of some records is from that of the model alone, relative in L2."""
        part, plan, device = self.training.part, self.training.plans[0], self.training.device
        owner = np.arange(len(part.y)) if part.unit_of_row is None else np.asarray(part.unit_of_row)
        rows = np.flatnonzero(owner < _COMPARED)
        chosen, loss = torch.from_numpy(rows), row_loss(self.training.shape, device)
        alone, beside = self.training.model().to(device).train(), self.model().train()
        y, units = part.y[chosen].to(device), owner[rows].astype(np.int64)
        one = clipped_sum(alone, loss, (part.x[chosen].to(device), y), units, plan.clip_norm)
        other = clipped_sum(beside, loss, (chosen.to(device), y), units, plan.clip_norm)[: len(one)]  # before "table"
        return float((one - other).norm() / one.norm().clamp_min(torch.finfo(one.dtype).tiny))


@contextmanager
def _seeded() -> Iterator[None]:
    """Give every generator that takes a seed the same one, and put back what was there."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            np.random.seed(_SEED)
            random.seed(_SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


# --- records --------------------------------------------------------------------------------------------------


def _only(part: Part, included: Mask) -> Part:
    owner = np.arange(len(part.y)) if part.unit_of_row is None else part.unit_of_row
    rows = np.flatnonzero(included[owner])
    number = np.cumsum(included) - 1
    inside = isinstance(part.x, torch.Tensor)  # what lies on disk stays there
    return Part(
        x=part.x[torch.from_numpy(rows)] if inside else Selected(part.x, rows),
        y=part.y[torch.from_numpy(rows)],
        unit_of_row=None if part.unit_of_row is None else number[owner[rows]],
    )


def _losses(model: nn.Module, training: Training) -> NDArray[np.float64]:
    part, loss = training.part, row_loss(training.shape, training.device)
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(part.y), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            out = model(part.x[rows].to(training.device))
            found.append(loss(out, part.y[rows].to(training.device)).double().cpu().numpy())
    loss_N = np.concatenate(found)
    if part.unit_of_row is None:
        return loss_N
    totals = np.bincount(part.unit_of_row, weights=loss_N, minlength=part.units)
    return np.asarray(totals / np.bincount(part.unit_of_row, minlength=part.units))
