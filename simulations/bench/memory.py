"""Memory of a training step at its peak: what its tensors take, and what its process does.

Tensors say what a way to train needs. A process takes more: its allocator leaves holes between them, and how many
varies from run to run by a fifth (glibc 2.36 does not give a freed aligned block to one of the same size).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], object]
_STEPS = 3
_FEW_ROWS = 2  # of a first step, which loads what is loaded at first use


def of_tensors(step: Step) -> int:
    """Return the most bytes of tensors on a CPU that were alive at once, of those that a step made."""
    step()
    alive = _Alive()
    with alive:
        step()
    return alive.most


def of_process(make: Callable[[int], Step], rows: int) -> int | None:
    """Return the bytes that steps add to the resident memory of a process of their own; None where nobody tells.

    Args:
        make: returns the step of so many rows.
        rows: of the step.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(send, make, rows))
    child.start()
    send.close()
    try:
        return int(receive.recv())
    except EOFError:
        return None
    finally:
        child.join()


def on_gpu(step: Step, device: torch.device) -> int:
    """Return the most bytes that torch's allocator gave to steps on a GPU."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(_STEPS):
        step()
    return int(torch.cuda.max_memory_allocated(device) - before)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations return until they are let go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs), counted=False)  # what an operation takes was there before, or is known
        found = function(*args, **(kwargs or {}))
        self._see(found, counted=True)
        return found

    def _see(self, values: Any, *, counted: bool) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                storage = value.untyped_storage()
                self._know(storage, storage.nbytes() if counted else 0)

    def _know(self, storage: torch.UntypedStorage, size: int) -> None:
        name = storage._cdata
        if name in self._known:
            return
        self._known.add(name)
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._let_go, name, size)

    def _let_go(self, name: int, size: int) -> None:
        self._known.discard(name)
        self._now -= size


def _measure(send: Any, make: Callable[[int], Step], rows: int) -> None:
    make(_FEW_ROWS)()
    step = make(rows)
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)  # else the step would use what was freed before, and the peak would not show it
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from what is there now
    before = _status("VmRSS")
    for _ in range(_STEPS):
        step()
    send.send(_status("VmHWM") - before)
    send.close()
    os._exit(0)  # what the parent registered to run at its end is not for this process


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
