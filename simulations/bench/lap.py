"""One lap of `fedsilo-simulate bench simulation`: one way to simulate, once, in a process of its own.

`python -m simulations.bench.lap JSON` prints when each round had ended and how long the silo folders took to make,
which is no part of a lap.

The yardstick `loop` is plain FedAvg as fast as we could write it: one process, one module, whose parameters and
gradients are views of two flat vectors, so that a silo begins with one copy and a step is one subtraction; batches are
slices of tensors that lie ready; no Poisson sample, no message, no file. Recurrent networks are torch's own, whose
kernels are fused. Tried, and no faster for the feed-forward network: torch.optim.SGD on the parameters (1.6 times the
time), a copy of the module for each silo (1.8), gradients from `torch.autograd.grad` (the same), `torch._foreach_add_`
on lists (1.05). It runs rounds on one and on two threads in turn; the better of the two counts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from client.models.base import Shape, build, flat_parameters, layout_of
from strategies.study import Study

RECORDS = 40  # of a silo, of which a fifth is held out
STEPS, RATE, LR = 2, 0.5, 0.1  # two halves are one epoch
TRAINED = RECORDS - RECORDS // 5


@dataclass(frozen=True, kw_only=True)
class Task:
    """One network and its records.

    Args:
        kind: of the data.
        shape: of a record, as a study says it.
        model: as a study names it.
        plain: makes the yardstick's network of the inputs' shape; None takes the study's, whose layers are torch's own.
    """

    kind: str
    shape: tuple[int, ...]
    model: str
    plain: Callable[[Shape], nn.Module] | None = None

    def records(self, count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return inputs as a data file has them, and classes; the same each time."""
        random = np.random.default_rng(0)
        y = random.integers(0, 2, count)
        if self.kind == "images":
            return random.integers(0, 256, (count, *self.shape), dtype=np.uint8), y
        x = random.normal(size=(count, *self.shape)) + 0.3 * y[:, None, None]
        return x.clip(-4, 4).astype(np.float32), y


TASKS = {
    "mlp": Task(kind="signals", shape=(30, 1), model="mlp(hidden=[64])"),
    "cnn": Task(kind="images", shape=(32, 32, 3), model="cnn(width=8, depth=2)"),
    "gru": Task(kind="signals", shape=(50, 12), model="gru(hidden=32)", plain=lambda shape: _Recurrent(nn.GRU, shape)),
    "lstm": Task(
        kind="signals", shape=(50, 12), model="lstm(hidden=32)", plain=lambda shape: _Recurrent(nn.LSTM, shape)
    ),
    "transformer": Task(kind="signals", shape=(64, 8), model="transformer(width=64, depth=2, heads=4)"),
}


class _Recurrent(nn.Module):
    """The mean of the states of all steps, and a linear layer: what our models compute."""

    def __init__(self, cell: Callable[..., nn.Module], shape: Shape) -> None:
        super().__init__()
        self.states, self.head = cell(shape.inputs[1], 32, batch_first=True), nn.Linear(32, shape.outputs)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.states(x_BTC)[0].mean(dim=1))
        return out


STUDY = """[study]
name = "bench"
task = "classification"
rounds = {rounds}
[data]
kind = "{kind}"
shape = {shape}
classes = ["0", "1"]
{range}
[model]
name = "{model}"
[training]
sampling_rate = {rate}
steps = {steps}
optimizer = "sgd(lr={lr})"
[privacy]
{privacy}
[cohort]
fraction = {fraction}
[evaluation]
metrics = ["accuracy"]
[simulation]
dataset = "records.npz"
silos = {silos}
partition = "iid"
"""


def study_of(name: str, *, silos: int, cohort: int, rounds: int, private: bool) -> Study:
    """Return the study of a network."""
    from simulations.silos import REGISTRIES

    task = TASKS[name]
    return Study.parse(
        STUDY.format(
            rounds=rounds,
            kind=task.kind,
            shape=list(task.shape),
            range="" if task.kind == "images" else "range = [-4.0, 4.0]",
            model=task.model,
            rate=RATE,
            steps=STEPS,
            lr=LR,
            privacy="noise_multiplier = 1.0" if private else 'mechanism = "none"',
            fraction=(cohort - 0.5) / silos,
            silos=silos,
        ),
        REGISTRIES,
    )


def loop(name: str, *, silos: int, cohort: int, rounds: int) -> dict[str, list[float]]:
    """Run the yardstick; return by number of threads when it began and when each round had ended."""
    from server.cohort import select

    study = study_of(name, silos=silos, cohort=cohort, rounds=rounds, private=False)
    task, shape = TASKS[name], Shape.of_study(study)
    x, y = _tensors(task, silos)
    model = build(study.model, shape, 0) if task.plain is None else task.plain(shape)
    flat = flat_vectors(model)
    here = flat[0].clone()
    names = [str(number) for number in range(silos)]
    ended: dict[str, list[float]] = {"1": [time.time()], "2": [time.time()]}
    for number in range(1, rounds + 1):
        for threads, times in ended.items():
            torch.set_num_threads(int(threads))
            chosen = select(names, fraction=(cohort - 0.5) / silos, least=1, seed=0, round=number)
            began = time.time()
            fedavg(model, flat, here, [(x[silo], y[silo]) for silo in map(int, chosen)])
            times.append(times[-1] + time.time() - began)
    return ended


def flat_vectors(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights and the gradients of a module, each one vector of which its own are views."""
    weight = flat_parameters(model)
    gradient = torch.zeros_like(weight)
    parameters = dict(model.named_parameters())
    for slot in layout_of(model).slots:
        parameters[slot.name].grad = gradient[slot.offset : slot.offset + slot.size].view(slot.shape)
    return weight, gradient


def fedavg(
    model: nn.Module,
    flat: tuple[torch.Tensor, torch.Tensor],
    here: torch.Tensor,
    cohort: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Run one round, from the global weights `here` to those that stand there then."""
    weight, _ = flat
    total = torch.zeros_like(weight)
    for records in cohort:
        _local(model, flat, here, records)
        total += weight
    torch.div(total, len(cohort), out=here)


def _tensors(task: Task, silos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (silos, records, *inputs) and (silos, records) of what each trains on."""
    raw, classes = task.records(silos * TRAINED)
    x = torch.from_numpy(raw).float()
    if task.kind == "images":
        x = x.div_(127.5).sub_(1).permute(0, 3, 1, 2).contiguous()
    return x.view(silos, TRAINED, *x.shape[1:]), torch.from_numpy(classes).float().view(silos, TRAINED)


def _local(
    model: nn.Module,
    flat: tuple[torch.Tensor, torch.Tensor],
    here: torch.Tensor,
    records: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Train from the weights `here`."""
    (weight, gradient), (x, y), size = flat, records, TRAINED // STEPS
    with torch.no_grad():
        weight.copy_(here)
    for start in range(0, STEPS * size, size):
        gradient.zero_()
        out = model(x[start : start + size])[:, 0]
        F.binary_cross_entropy_with_logits(out, y[start : start + size]).backward()
        with torch.no_grad():
            weight.sub_(gradient, alpha=LR)


class _Clock(logging.Handler):
    """Notes when the server says that a round has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = getattr(record, "line", None)
        if line is not None:
            self.times.append(time.time())
            self.dropped += line["dropped"]


def engine(
    way: str, name: str, folder: Path, *, silos: int, cohort: int, rounds: int, private: bool
) -> tuple[float, list[float]]:
    """Run an engine on a study; return the seconds that the silo folders took, and when each round had ended."""
    from simulations.run import ENGINES
    from simulations.silos import complete, make_silos
    from simulations.sources import read_dataset

    began = time.time()
    x, y = TASKS[name].records(silos * RECORDS)
    np.savez(folder / "records.npz", X=x, y=y)
    study = study_of(name, silos=silos, cohort=cohort, rounds=rounds, private=private)
    source = read_dataset(study, folder)
    study, _ = complete(study, source, folder)
    folders = make_silos(study, source, folder / "silos")
    made_s = time.time() - began
    clock, logger = _Clock(), logging.getLogger("fedsilo")
    logger.addHandler(clock)
    logger.setLevel(logging.INFO)
    config = {"study": study.text, "out": str(folder / "runs"), "test": "", "page": False}
    ENGINES[way](silos=folders, run_config=config, dropout=0.0, seed=0)
    if clock.dropped:
        raise RuntimeError(f"{clock.dropped} silos were missing in the rounds of a lap")
    return made_s, clock.times


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Run the lap that the first argument describes, for as long as whoever asks for it is there."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    given = json.loads(sys.argv[1])
    way, name, private = given.pop("way"), given.pop("network"), given.pop("private")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if way == "loop":
        found: dict[str, Any] = {"made_s": 0.0, "ended": loop(name, **given)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            made_s, ended = engine(way, name, Path(folder), private=private, **given)
            found = {"made_s": made_s, "ended": {"1": ended}}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
