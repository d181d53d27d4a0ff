"""What a private step costs beside an ordinary one of the same network: `fedsilo-simulate bench training`.

A step is all that training does from batch to new weights: gradient, clipping, noise, optimiser. Every way takes its
turn lap by lap on the same batch; a ratio is the median over laps. Memory is that of `simulations.bench.memory`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from client.data.records import Part
from client.models.base import flat_parameters
from client.training import local
from client.training.device import autocast, keep_freed_memory
from client.training.passes import plan_of
from simulations.bench import memory
from simulations.bench.machine import in_turn, machine, ratio
from simulations.bench.networks import Network, networks
from strategies.optimizers import Sgd

Step = Callable[[], object]
_LR, _CLIP, _SIGMA = 0.1, 1.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train one network.

    Args:
        network: its name.
        batch: rows of a step.
        engine: the way.
        device: cpu or cuda.
        ms: milliseconds of a step, the median over laps.
        ratio_to_plain: of the time of a step.
        peak_bytes: of tensors on a CPU, of the allocator on a GPU; None where it was not measured.
        peak_to_plain: the same over that of `plain`.
        process_bytes: that a process has more while it trains; None on a GPU.
        process_to_plain: the same over that of `plain`.
        fell_back: layers of ours without a closed form.
        error: why there are no figures.
    """

    network: str
    batch: int
    engine: str
    device: str
    ms: float | None = None
    ratio_to_plain: float | None = None
    peak_bytes: int | None = None
    peak_to_plain: float | None = None
    process_bytes: int | None = None
    process_to_plain: float | None = None
    fell_back: tuple[str, ...] = ()
    error: str | None = None


def bench(
    *, names: Sequence[str], batches: Sequence[int], devices: Sequence[str], laps: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return `machine` and `rows`.

    Args:
        names: networks.
        batches: rows of a step.
        devices: as a silo names them.
        laps: how often each way takes its turn.
        tell: is told what comes.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    facts = machine()
    rows: list[Row] = []
    for device in devices:
        for name in names:
            for batch in batches:
                tell(f"{name}, batch {batch}, {device}")
                rows += _measured(name, batch, torch.device(device), laps)
    return {"machine": facts, "rows": [asdict(row) for row in rows]}


def _measured(name: str, batch: int, device: torch.device, laps: int) -> list[Row]:
    network = networks()[name]
    ways: dict[str, Step] = {}
    rows: dict[str, Row] = {}
    for engine, make in _engines(device).items():
        row = Row(network=name, batch=batch, engine=engine, device=device.type)
        try:
            step = make(network, batch, device)
            step()
        except Exception as error:  # noqa: BLE001 - another engine may not know a network; the row says so
            rows[engine] = Row(**asdict(row) | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
            continue
        ways[engine], rows[engine] = step, row
    seconds = in_turn(ways, laps=laps, steps={engine: _steps(step) for engine, step in ways.items()})
    peaks = {engine: _peaks(engine, network, batch, device) for engine in ways}
    plan = plan_of(network.ours(), network.batch(1)[0])
    fell_back = (*plan.by_differentiation, *plan.obstacles)
    for engine, laps_s in seconds.items():
        (peak, process), (plain, plain_process) = peaks[engine], peaks["plain"]
        rows[engine] = Row(
            **asdict(rows[engine])
            | {
                "ms": round(1000 * float(np.median(laps_s)), 3),
                "ratio_to_plain": round(ratio(laps_s, seconds["plain"]), 3),
                "peak_bytes": peak,
                "peak_to_plain": _over(peak, plain),
                "process_bytes": process,
                "process_to_plain": _over(process, plain_process),
                "fell_back": fell_back if engine == "fedsilo" else (),
            }
        )
    return list(rows.values())


def _peaks(engine: str, network: Network, batch: int, device: torch.device) -> tuple[int | None, int | None]:
    make = _engines(device)[engine]
    if device.type == "cuda":
        return memory.on_gpu(make(network, batch, device), device), None
    process = memory.of_process(lambda rows: make(network, rows, device), batch)
    try:
        return memory.of_tensors(make(network, batch, device)), process
    except (RuntimeError, NotImplementedError):  # another engine may not bear to be watched
        return None, process


def _over(value: int | None, plain: int | None) -> float | None:
    return round(value / plain, 2) if value and plain else None


def _steps(way: Step) -> int:
    """Return how many steps make about a tenth of a second."""
    (lap,) = in_turn({"": way}, laps=1, steps=2)[""]
    return int(min(40, max(2, 0.1 / lap)))


# --- engines ------------------------------------------------------------------------------------------------


def _plain(network: Network, batch: int, device: torch.device, *, lower: bool = False) -> Step:
    """As torch comes; or on a GPU in bfloat16 where autocast chooses it, as ours is."""
    model, (x, y) = network.plain().to(device), _batch(network, batch, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)

    def step() -> None:
        torch.backends.cudnn.allow_tf32 = True
        optimizer.zero_grad()
        with autocast(device) if lower else nullcontext():
            out = model(x)
        F.cross_entropy(out.float(), y).backward()
        optimizer.step()
        _wait(device)

    return step


def _fedsilo(network: Network, batch: int, device: torch.device) -> Step:
    model, (x, y) = network.ours().to(device), _batch(network, batch, device)
    plan = local.Plan(
        private=True,
        sampling_rate=1.0,
        steps=10**9,
        expected_batch_size=batch,
        max_records_per_unit=1,
        clip_norm=_CLIP,
        noise_multiplier=_SIGMA,
        optimizer=Sgd(lr=_LR),
        seed=0,
    )
    part = Part(
        x=x,
        y=y,
    )
    gradients = local.gradients_of_steps(model.train(), part, network.shape, plan, device)
    weight = flat_parameters(model)
    weight.grad = torch.zeros_like(weight)
    optimizer, grad = local.optimizer_on(weight, plan.optimizer), weight.grad

    def step() -> None:
        torch.backends.cudnn.allow_tf32 = False  # as `device.prepared` sets it
        grad.copy_(next(gradients))
        optimizer.step()
        _wait(device)

    return step


def _vmap(network: Network, batch: int, device: torch.device) -> Step:
    model, (x, y) = network.opacus().to(device).train(), _batch(network, batch, device)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)

    def of_row(some: dict[str, torch.Tensor], x_1: torch.Tensor, y_1: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, some, (x_1[None],)), y_1[None])

    each = torch.func.vmap(torch.func.grad(of_row), in_dims=(None, 0, 0))

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch vectorises no attention
            rows = each(parameters, x, y)
        norm_B = torch.stack([g.flatten(1).norm(dim=1) for g in rows.values()]).norm(dim=0)
        factor_B = (_CLIP / norm_B).clamp_max(1.0)
        for name, parameter in model.named_parameters():
            total = torch.tensordot(factor_B, rows[name], dims=1)
            parameter.grad = (total + _SIGMA * _CLIP * torch.randn_like(total)) / batch
        optimizer.step()
        _wait(device)

    return step


def _opacus(mode: str) -> Callable[[Network, int, torch.device], Step]:
    def make(network: Network, batch: int, device: torch.device) -> Step:
        x, y = _batch(network, batch, device)
        model, criterion = network.opacus().to(device), nn.CrossEntropyLoss()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = PrivacyEngine().make_private(
                module=model,
                optimizer=torch.optim.SGD(model.parameters(), lr=_LR),
                criterion=criterion,
                data_loader=DataLoader(TensorDataset(x, y), batch_size=batch),
                noise_multiplier=_SIGMA,
                max_grad_norm=_CLIP,
                poisson_sampling=False,
                grad_sample_mode=mode,
            )
        model, optimizer, *rest = made
        loss = rest[0] if mode == "ghost" else criterion

        def step() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
            _wait(device)

        return step

    return make


_ENGINES: dict[str, Callable[[Network, int, torch.device], Step]] = {
    "plain": _plain,
    "fedsilo": _fedsilo,
    "opacus-hooks": _opacus("hooks"),
    "opacus-ghost": _opacus("ghost"),
    "opacus-ew": _opacus("ew"),
    "vmap": _vmap,
}
_GPU_ENGINES = {"plain-bf16": partial(_plain, lower=True)}


def _engines(device: torch.device) -> dict[str, Callable[[Network, int, torch.device], Step]]:
    return _ENGINES | _GPU_ENGINES if device.type == "cuda" else _ENGINES


def _batch(network: Network, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = network.batch(rows)
    return x.to(device), y.to(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- what is shown ------------------------------------------------------------------------------------------


def table_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a table: network, batch, engine, milliseconds, ratio, memory, note."""
    for row in result["rows"]:
        on = "" if row["device"] == "cpu" else f" ({row['device']})"
        yield (
            row["network"] + on,
            str(row["batch"]),
            row["engine"],
            "" if row["ms"] is None else f"{row['ms']:.2f}",
            "" if row["ratio_to_plain"] is None else f"{row['ratio_to_plain']:.2f}",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
            "" if row["peak_to_plain"] is None else f"{row['peak_to_plain']:.2f}",
            "" if row["process_to_plain"] is None else f"{row['process_to_plain']:.2f}",
            row["error"] or ", ".join(row["fell_back"]),
        )


COLUMNS = ("network", "batch", "engine", "ms", "of plain", "peak MiB", "of plain", "process", "note")


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the ratios, one group of bars a network and batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in result["rows"] if row["engine"] != "plain"]
    groups = list(dict.fromkeys((row["network"], row["batch"], row["device"]) for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    found = {(row["network"], row["batch"], row["device"], row["engine"]): row["ratio_to_plain"] for row in rows}
    figure, axes = plt.subplots(figsize=(max(7.0, 1.3 * len(groups)), 4.2), layout="constrained")
    wide = 0.82 / len(engines)
    colors = ["#0f5c8c", "#5aa2cf", "#8c8c8c", "#b5b5b5", "#d2d2d2", "#e0c48c"]
    for k, engine in enumerate(engines):
        heights = [found.get((*group, engine)) or 0.0 for group in groups]
        places = np.arange(len(groups)) + (k - (len(engines) - 1) / 2) * wide
        bars = axes.bar(places, heights, wide * 0.92, label=engine, color=colors[k % len(colors)])
        if engine == "fedsilo":
            axes.bar_label(bars, labels=[f"{h:.1f}" if h else "" for h in heights], fontsize=7, padding=1)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks(range(len(groups)), [f"{n}\n{b}{'' if d == 'cpu' else ' ' + d}" for n, b, d in groups], fontsize=8)
    axes.set_ylabel("time of a step, over an ordinary one")
    axes.set_xlabel("network and rows of a step")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    figure.savefig(path)
    plt.close(figure)


def write(result: dict[str, Any], folder: Path) -> None:
    """Write `training.json` and `training.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, folder / "training.svg")
