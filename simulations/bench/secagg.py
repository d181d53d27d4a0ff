"""What a sum under secure aggregation costs: `fedsilo-simulate bench secagg`.

Whole sums are run (`sums.py`): every silo encodes, masks and signs its own vector, the server checks, adds and opens,
and the total must equal the sum of what was encoded. Only disk and network are left out. Time is the processor's, of
one thread: waiting does not count, though other work on the machine still costs it cache and memory.

Beside it, in turns and with as many masks of as long a vector: the bare floor (each mask drawn by AES-256-CTR in blocks
of 1 MiB and added), and what Flower's SecAgg+ draws and adds, with its vector cut as into layers, and freed memory
kept, which is where it is fastest.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from client.training.device import keep_freed_memory
from simulations.bench.machine import in_turn, machine, ratio
from simulations.bench.sums import Advance, Cohort
from strategies.secagg.masks import add_masks
from strategies.secagg.ring import Words

Tell = Callable[[str], None]

SHARES = (0.0, 0.01, 0.1)  # of the cohort, dropped after they were asked
_MOST_MASKS = 10  # of a comparison; the silo itself draws as many as there are silos
_LAYER = 1_000_000  # values of an array that Flower draws at once
_BARE_BLOCK = 2**20
_MOST_UPLOADS, _MOST_DRAWN = 200, 3e10  # uploads, and values of all masks, of the sums of a row; one sum at least


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Lengths of vectors, and sizes of cohorts."""

    parameters: tuple[int, ...]
    silos: tuple[int, ...]

    def cells(self) -> Iterator[tuple[int, int, int]]:
        """Yield length, silos and dropped silos of each row."""
        for size in self.parameters:
            for silos in self.silos:
                for dropped in dropouts(silos):
                    yield size, silos, dropped


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one sum costs, once the run is set up; seconds of the processor.

    Args:
        parameters: length of the vector.
        silos: of the cohort.
        dropped: silos that did not send their vector.
        sums: that were measured; figures of a silo are medians over all its sums and all silos.
        silo_cpu_s: of one silo: check of the request, encoding, masking, signing, shares, and its answers.
        silo_answers_cpu_s: the part of it after the upload: signed view and shares.
        silo_setup_cpu_s: once a run: join, check of all keys, first sum of one value.
        server_cpu_s: of all uploads and answers.
        server_open_cpu_s: the part of it from the last answers on: seeds from shares, masks, decoding.
        upload_bytes: of one silo.
        answer_bytes: of one silo, after its upload.
        received_bytes: of the server, from all silos.
        sent_bytes: of the server, to all silos, without the model.
        mask_ns_per_parameter: to draw and add a mask.
        flower_mask_ns_per_parameter: likewise, by Flower's functions.
        bare_mask_ns_per_parameter: likewise, AES-256-CTR and addition alone.
        mask_speed_vs_flower: the median over laps of their ratio.
        ratio_to_bare: the median, over uploads beside which the floor was taken, of a silo's seconds over those of as
            many bare masks.
        note: what is special.
    """

    parameters: int
    silos: int
    dropped: int
    sums: int
    silo_cpu_s: float
    silo_answers_cpu_s: float
    silo_setup_cpu_s: float
    server_cpu_s: float
    server_open_cpu_s: float
    upload_bytes: int
    answer_bytes: int
    received_bytes: int
    sent_bytes: int
    mask_ns_per_parameter: float
    flower_mask_ns_per_parameter: float
    bare_mask_ns_per_parameter: float
    mask_speed_vs_flower: float
    ratio_to_bare: float
    note: str = ""


def dropouts(silos: int) -> tuple[int, ...]:
    """Return 0, 1 and 10 % of a cohort, rounded up, each number once; a pair has nobody to lose."""
    return (0,) if silos < 4 else tuple(dict.fromkeys(math.ceil(share * silos) for share in SHARES))


def work(grid: Grid, laps: int) -> float:
    """Return the values of all masks of all silos, by which progress is told."""
    return float(
        sum(_sums(size, silos, laps) * size * silos * (silos - dropped) for size, silos, dropped in grid.cells())
    )


def _sums(size: int, silos: int, laps: int) -> int:
    return max(1, min(laps, _MOST_UPLOADS // silos, int(_MOST_DRAWN / (size * silos**2))))


def bench(grid: Grid, *, laps: int, tell: Tell, advance: Advance) -> dict[str, Any]:
    """Return `machine` and `rows`.

    Args:
        grid: what to measure.
        laps: turns of the comparison of masks, and sums of a row where they take little.
        tell: is told what comes.
        advance: is told how much of `work` is done.
    """
    keep_freed_memory()
    rows = []
    for size, silos, dropped in grid.cells():
        tell(f"{size:,} parameters, {silos} silos, {dropped} dropped")
        rows.append(asdict(_measured(size, silos, dropped, laps, advance)))
    return {"machine": machine(), "rows": rows}


def _measured(size: int, silos: int, dropped: int, laps: int, advance: Advance) -> Row:
    masks = _masks_in_turn(size, min(silos, _MOST_MASKS), laps)
    cohort = Cohort(size, silos, _bare(np.zeros(size, "<u4"), silos))
    sums = [cohort.run("train", dropped, advance) for _ in range(_sums(size, silos, laps))]
    parts = [part for one in sums for part in one.silos]
    beside = [(part.upload_s + part.answers_s, part.floor_s) for part in parts if part.floor_s is not None]
    ns = {way: statistics.median(found) for way, found in masks.items()}
    return Row(
        parameters=size,
        silos=silos,
        dropped=dropped,
        sums=len(sums),
        silo_cpu_s=statistics.median(part.upload_s + part.answers_s for part in parts),
        silo_answers_cpu_s=statistics.median(part.answers_s for part in parts),
        silo_setup_cpu_s=cohort.setup_s,
        server_cpu_s=statistics.median(one.server_s for one in sums),
        server_open_cpu_s=statistics.median(one.open_s for one in sums),
        upload_bytes=max(part.upload_bytes for part in parts),
        answer_bytes=max(part.answer_bytes for part in parts),
        received_bytes=sums[0].received_bytes,
        sent_bytes=sums[0].sent_bytes,
        mask_ns_per_parameter=ns["fedsilo"],
        flower_mask_ns_per_parameter=ns["flower"],
        bare_mask_ns_per_parameter=ns["bare"],
        mask_speed_vs_flower=ratio(masks["flower"], masks["fedsilo"]),
        ratio_to_bare=statistics.median(silo_s / floor_s for silo_s, floor_s in beside),
        note="a pair is refused in every study; measured for comparison" if silos == 2 else "",
    )


# --- masks --------------------------------------------------------------------------------------------------


def _masks_in_turn(size: int, masks: int, laps: int) -> dict[str, list[float]]:
    """Return by way, for each lap, the nanoseconds that a mask costs a value: drawn, and added to one vector."""
    words, shapes = np.zeros(size, "<u4"), _shapes(size)
    layers = [np.zeros(shape, np.int64) for shape in shapes]

    def flower() -> None:
        vector = layers
        for _ in range(masks):
            vector = parameters_addition(vector, pseudo_rand_gen(os.urandom(32), 2**32, shapes))

    ways = {
        "fedsilo": lambda: add_masks(words, [(os.urandom(32), 1) for _ in range(masks)]),
        "bare": _bare(words, masks),
        "flower": flower,
    }
    seconds = in_turn(ways, laps=laps, steps=max(1, min(10, 2_000_000 // (size * masks))), clock=time.process_time)
    return {way: [1e9 * lap_s / (masks * size) for lap_s in found] for way, found in seconds.items()}


def _shapes(size: int) -> list[tuple[int, ...]]:
    return [(min(_LAYER, size - start),) for start in range(0, size, _LAYER)]


def _bare(words: Words, masks: int) -> Callable[[], None]:
    """Return the least that must be done: draw each mask by AES-256-CTR, block by block, and add it."""
    step = _BARE_BLOCK // words.itemsize
    zeros, drawn = memoryview(bytes(_BARE_BLOCK)), np.empty(step, words.dtype)
    keystream = drawn.view(np.uint8).data

    def run() -> None:
        for _ in range(masks):
            stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
            for start in range(0, len(words), step):
                part = words[start : start + step]
                stream.update_into(zeros[: part.nbytes], keystream[: part.nbytes])
                np.add(part, drawn[: len(part)], out=part)

    return run


# --- what is shown ------------------------------------------------------------------------------------------

COLUMNS = (
    "parameters", "silos", "dropped", "silo, s", "of it answers", "server, s", "of it opening", "upload, MB",
    "server in / out, MB", "mask, ns", "Flower", "bare", "faster than Flower", "silo of bare", "note",
)  # fmt: skip


def table_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a table."""
    for row in result["rows"]:
        yield (
            f"{row['parameters']:,}",
            str(row["silos"]),
            str(row["dropped"]),
            f"{row['silo_cpu_s']:.3f}",
            f"{row['silo_answers_cpu_s']:.3f}",
            f"{row['server_cpu_s']:.3f}",
            f"{row['server_open_cpu_s']:.3f}",
            f"{row['upload_bytes'] / 1e6:.2f}",
            f"{row['received_bytes'] / 1e6:.1f} / {row['sent_bytes'] / 1e6:.2f}",
            f"{row['mask_ns_per_parameter']:.2f}",
            f"{row['flower_mask_ns_per_parameter']:.2f}",
            f"{row['bare_mask_ns_per_parameter']:.2f}",
            f"{row['mask_speed_vs_flower']:.1f}",
            f"{row['ratio_to_bare']:.2f}",
            row["note"],
        )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a silo's seconds where nobody drops out, between those of its masks alone: bare, and by Flower."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in result["rows"] if not row["dropped"]]
    values = [row["parameters"] * row["silos"] * 1e-9 for row in rows]
    bars = {
        "bare AES-256-CTR, masks alone": [
            row["bare_mask_ns_per_parameter"] * v for row, v in zip(rows, values, strict=True)
        ],
        "a silo, all of a sum": [row["silo_cpu_s"] for row in rows],
        "Flower SecAgg+, masks alone": [
            row["flower_mask_ns_per_parameter"] * v for row, v in zip(rows, values, strict=True)
        ],
    }
    figure, axes = plt.subplots(figsize=(max(7.0, 0.75 * len(rows)), 4.2), layout="constrained")
    for k, ((label, heights), color) in enumerate(zip(bars.items(), ("#8c8c8c", "#0f5c8c", "#e0c48c"), strict=True)):
        axes.bar(np.arange(len(rows)) + (k - 1) * 0.27, heights, 0.25, label=label, color=color)
    axes.set_yscale("log")
    axes.set_xticks(range(len(rows)), [f"{row['silos']}\n{row['parameters']:.0e}" for row in rows], fontsize=8)
    axes.set_ylabel("seconds of the processor, a silo and sum")
    axes.set_xlabel("silos of the cohort, and parameters")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path)
    plt.close(figure)


def write(result: dict[str, Any], folder: Path) -> None:
    """Write `secagg.json` and `secagg.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(result, folder / "secagg.svg")
    (folder / "secagg.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
