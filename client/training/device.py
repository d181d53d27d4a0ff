"""Where training runs, with how many threads, and how many rows go through a model at once."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from strategies.errors import SettingError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 2**30
_LEAST_ROWS, _MOST_ROWS = 16, 1024  # more at once is no faster on any device that was tried
_SHARE = 0.5  # of free memory that one pass may take
_UNKNOWN_BYTES = 2 * 2**30  # where the system does not tell


def device_of(setting: str, memory_fraction: float = 1.0) -> torch.device:
    """Return the device that a silo's setting names, its memory limited: `auto` is a GPU where there is one.

    Args:
        setting: of `silo.toml`.
        memory_fraction: share of a GPU's memory that this process may take, so that several nodes can use one GPU.

    Raises:
        SettingError: there is no such device here.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if setting == "auto" else setting)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingError(f"device = {setting!r} is not allowed: write 'auto', 'cpu', 'cuda' or 'cuda:1'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(
            f"device = {setting!r}: this machine shows {torch.cuda.device_count()} CUDA devices; write 'auto' or 'cpu'"
        )
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_per_process_memory_fraction(memory_fraction, device)
    return device


def prepared(device: torch.device) -> str:
    """Set memory, precision and threads for training, and return what to say of it in the run's log.

    One thread, unless OMP_NUM_THREADS says otherwise: work is then divided in one way whatever else is in a batch, so
    what a record adds depends on no other record to the last bit; and where a machine does other work too, two threads
    of a small network were up to four times slower than one. Norms, sums and the states of a recurrence are kept from
    TF32, whose 10 bits of mantissa no rounding margin covers.
    """
    keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return f"on {torch.cuda.get_device_name(device)}"
    if "OMP_NUM_THREADS" in os.environ:
        return f"on CPU with {torch.get_num_threads()} threads, as OMP_NUM_THREADS says"
    torch.set_num_threads(1)
    return "on CPU with 1 thread, so that no record's last bit depends on another; OMP_NUM_THREADS may ask for more"


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next step; elsewhere nothing changes.

    By default it returns blocks of some hundred kilobytes to the system, which hands them out again page by page: a
    third of the time of a small network's step was spent on that.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        set_option(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 where a GPU has it. Weights, losses, norms, sums and noise stay in
    float32 or more."""
    if device.type != "cuda" or not torch.cuda.is_bf16_supported():
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def rows_at_once(model: nn.Module, x: torch.Tensor) -> int:
    """Return how many rows like those of `x` go through the model together: as many as half the free memory allows.

    The number depends on shapes and on the machine, and on no value of a record.
    """
    known: dict[tuple[int, ...], int] = model.__dict__.setdefault("_rows_at_once", {})  # a model lives for a round
    shape = tuple(x.shape[1:])
    if shape not in known:
        fitting = int(_SHARE * free_bytes(x.device)) // _row_bytes(model, x)
        known[shape] = max(_LEAST_ROWS, min(_MOST_ROWS, fitting))
    return known[shape]


def _row_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Return what a backward pass keeps of one row, times three: the gradients by outputs come beside it, and what
    one layer needs while it is at work."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = max(kept.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x.new_zeros(1, *x.shape[1:]))
    del out
    return max(1, 3 * sum(kept.values()))


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device, within this process's share of a GPU or its control group's limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = int(torch.cuda.get_per_process_memory_fraction(device) * total)
        own = min(int(free + torch.cuda.memory_reserved(device)), share)
        return max(0, own - int(torch.cuda.memory_allocated(device)))
    return min(_available(), _below_limit())


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return _UNKNOWN_BYTES


def _below_limit() -> int:
    try:
        folder = Path("/sys/fs/cgroup")
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        return int(limit) - int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no control group, or "max"
        return 2**63
