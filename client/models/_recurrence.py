"""Recurrent networks in which every weight sits in a plain Linear that is applied once, to all steps together.

The idea: z_t = W_ih x_t + W_hh h_{t-1} needs the states, so a first pass of the recurrence finds them without
autograd. With the states known, and cut off from the graph, both products are ordinary linear layers over
(rows, steps, .), which any engine for per-record gradients handles exactly. What is left is the loss's gradient by
the pre-activations z of the true recurrence; `client.models._cells` finds it by back-propagation through time (Werbos
1990).

Padding comes after the steps that are there, and each direction reads a record from its first or from its last such
step on. So nothing that is used comes after padding, no gradient reaches a padded step, and the recurrence needs no
mask: states and gradients are those of packed sequences.

Guarantees: outputs and gradients equal those of torch.nn.LSTM and torch.nn.GRU; weights mean the same there.

Legend: B rows, T steps, I inputs of a layer, H hidden width, G gates * H, D directions * H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import nn

from client.models._cells import RECURRENCES, Back, Cell, Saved
from client.models.base import Shape

Pool = Literal["last", "mean"]


class Arguments(Protocol):
    """What all recurrent models are told; see `client.models.lstm`."""

    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def bidirectional(self) -> bool: ...
    @property
    def embedding(self) -> int: ...
    @property
    def pool(self) -> Pool: ...


class RecurrentNetwork(nn.Module):
    """(rows, steps, channels), or (rows, tokens), to (rows, outputs).

    A record without any step gives the output of a zero state.
    """

    def __init__(self, cell: Cell, arguments: Arguments, shape: Shape) -> None:
        super().__init__()
        self._text, self._masked, self._pool = shape.kind == "text", shape.masked, arguments.pool
        self.embedding = nn.Embedding(shape.vocabulary, arguments.embedding) if self._text else None
        inputs = arguments.embedding if self._text else shape.inputs[-1]
        self.stack = Stack(
            cell, inputs, arguments.hidden, layers=arguments.layers, bidirectional=arguments.bidirectional
        )
        self.head = nn.Linear(arguments.hidden * (1 + arguments.bidirectional), shape.outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        there_BT = x != 0 if self._text else x[..., -1] > 0 if self._masked else None
        if self.embedding is not None:
            x_BTI = self.embedding(x)
        else:
            x_BTI = x if there_BT is None else torch.where(there_BT[..., None], x, 0)
        steps = x.shape[1]
        order = torch.arange(1, steps + 1, device=x.device)
        length_B = order.new_full((len(x),), steps) if there_BT is None else (there_BT * order).amax(dim=1)
        h_BTD = self.stack(x_BTI, length_B)
        read = self._last if self._pool == "last" else _mean
        out: torch.Tensor = self.head(read(h_BTD, length_B))
        return out

    def _last(self, h_BTD: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(h_BTD), device=h_BTD.device)
        ends = [h_BTD[rows, (length_B - 1).clamp_min(0)], h_BTD[:, 0]]  # the reverse direction ends at the first step
        wide = self.stack.hidden
        h_BD = torch.cat([end[:, k * wide : (k + 1) * wide] for k, end in enumerate(ends)], dim=1)
        return torch.where(length_B[:, None] > 0, h_BD, 0)


def _mean(h_BTD: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    there_BT = torch.arange(h_BTD.shape[1], device=h_BTD.device) < length_B[:, None]
    weight_BT = there_BT.to(h_BTD.dtype) / length_B.clamp_min(1)[:, None]
    h_BD: torch.Tensor = (weight_BT[:, None] @ h_BTD)[:, 0]
    return h_BD


class Stack(nn.Module):
    """Layers of one or two directions: (rows, steps, inputs) and the rows' lengths to states (rows, steps, D).

    States at padded steps are finite and mean nothing.
    """

    def __init__(self, cell: Cell, inputs: int, hidden: int, *, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        between = hidden * (1 + bidirectional)
        self.hidden = hidden
        self.layers = nn.ModuleList(
            _Layer(cell, wide, hidden, bidirectional) for wide in [inputs] + [between] * (layers - 1)
        )

    def forward(self, x_BTI: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        order_T, length_B1 = torch.arange(x_BTI.shape[1], device=x_BTI.device), length_B[:, None]
        backwards_BT = torch.where(order_T < length_B1, length_B1 - 1 - order_T, order_T)
        for layer in self.layers:
            x_BTI = layer(x_BTI, backwards_BT[..., None])
        return x_BTI


class _Layer(nn.Module):
    def __init__(self, cell: Cell, inputs: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.onward = _Direction(cell, inputs, hidden)
        self.reverse = _Direction(cell, inputs, hidden) if bidirectional else None

    def forward(self, x_BTI: torch.Tensor, backwards_BT1: torch.Tensor) -> torch.Tensor:
        h_BTH: torch.Tensor = self.onward(x_BTI)
        if self.reverse is None:
            return h_BTH
        flipped_BTH = self.reverse(x_BTI.gather(1, backwards_BT1.expand_as(x_BTI)))
        return torch.cat([h_BTH, flipped_BTH.gather(1, backwards_BT1.expand_as(flipped_BTH))], dim=2)


class _Direction(nn.Module):
    def __init__(self, cell: Cell, inputs: int, hidden: int) -> None:
        super().__init__()
        self._cell = RECURRENCES[cell]
        self.input = nn.Linear(inputs, self._cell.gates * hidden)
        self.state = StateProduct(hidden, self._cell.gates * hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        u_BTG = self.input(x_BTI)
        # A state in bfloat16 would lose what single steps add to it.
        exact = torch.promote_types(u_BTG.dtype, torch.float32)
        known_BTG = u_BTG.detach().to(exact).requires_grad_(torch.is_grad_enabled())
        run, back = self._cell.fused if u_BTG.is_cuda else self._cell.loop
        with torch.no_grad():
            h_BTH, saved = run(known_BTG, self.state.weight.detach().to(exact), self.state.bias.detach().to(exact))
            h_BTH = h_BTH.to(u_BTG.dtype)
        if not torch.is_grad_enabled():
            return h_BTH[:, 1:]
        v_BTG = self.state(h_BTH[:, :-1])
        through: torch.Tensor = _Through.apply(u_BTG, v_BTG, h_BTH[:, 1:], back, saved)  # type: ignore[no-untyped-call]
        return through


class StateProduct(nn.Linear):
    """W_hh h_{t-1} + b_hh of all steps. The recurrence knows the values already; what counts here is that inputs and
    gradients pass through a layer with one input and one output. So the output has the right shape, no meaning and no
    cost, and only gradients by it mean something.
    """

    def forward(self, h_BTH: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Unvalued.apply(h_BTH, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


class _Unvalued(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_BTH: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(h_BTH)
        return bias_G.new_zeros(()).expand(*h_BTH.shape[:-1], len(bias_G))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTG: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (h_BTH,) = ctx.saved_tensors
        by_weight = by_bias = None
        grad_KG = grad_BTG.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            by_weight = grad_KG.t() @ h_BTH.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            by_bias = grad_KG.sum(dim=0)
        return None, by_weight, by_bias


class _Through(torch.autograd.Function):
    """Known states h as a function of the pre-activations u = W_ih x + b_ih and v = W_hh h_{t-1} + b_hh."""

    @staticmethod
    def forward(
        ctx: Any, u_BTG: torch.Tensor, v_BTG: torch.Tensor, h_BTH: torch.Tensor, back: Back, saved: Saved
    ) -> torch.Tensor:
        ctx.back = back
        ctx.save_for_backward(*saved)
        return h_BTH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        exact = torch.promote_types(grad_BTH.dtype, torch.float32)
        by_u, by_v = ctx.back(*ctx.saved_tensors, grad_BTH.to(exact))
        return by_u.to(grad_BTH.dtype), by_v.to(grad_BTH.dtype), None, None, None


def to_torch(stack: Stack) -> dict[str, torch.Tensor]:
    """Return the state dict of the torch.nn.LSTM or torch.nn.GRU that computes the same."""
    return {name: parameter.detach().clone() for name, parameter in _named(stack)}


def from_torch(stack: Stack, state: Mapping[str, torch.Tensor]) -> None:
    """Copy the state dict of a torch.nn.LSTM or torch.nn.GRU of the same arguments into `stack`."""
    with torch.no_grad():
        for name, parameter in _named(stack):
            parameter.copy_(state[name])


def _named(stack: Stack) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in stack.named_parameters():
        _, layer, direction, part, kind = name.split(".")
        short, suffix = {"input": "ih", "state": "hh"}[part], {"onward": "", "reverse": "_reverse"}[direction]
        yield f"{kind}_{short}_l{layer}{suffix}", parameter
