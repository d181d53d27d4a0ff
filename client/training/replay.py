"""Work on a GPU that is recorded once and replayed: the kernels of a step of a small network take less time to run than
to be launched one by one (CUDA graphs).

Guarantees: the same kernels run on the same shapes, so a replay gives what the recorded call would have given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger("fedsilo.training")

Tensors = tuple[torch.Tensor, ...]


class Replay:
    """A function from tensors to tensors, all on one GPU and of the same shapes at each call.

    The first call is an ordinary one, by which libraries get ready; the second is recorded. What cannot be recorded, as
    work whose shapes depend on values, is called ordinarily, and the log says so once.
    """

    def __init__(self, function: Callable[..., Tensors]) -> None:
        self._function: Callable[..., Tensors] | None = function
        self._ready = self._refused = False
        self._graph = torch.cuda.CUDAGraph()
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        if self._function is not None and self._ready and not self._refused:
            self._record(self._function, inputs)
        if self._function is not None:
            self._ready = True
            return self._function(*inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return tuple(out.clone() for out in self._outputs)

    def _record(self, function: Callable[..., Tensors], inputs: Tensors) -> None:
        own, stream = tuple(given.clone() for given in inputs), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self._graph):
                outputs = function(*own)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
            torch.cuda.synchronize()
            log.warning("steps are not recorded, which is slower: %s", str(error).splitlines()[0])
            self._refused = True
            return
        self._inputs, self._outputs = own, outputs
        self._function = None  # it holds the model, which may hold this
