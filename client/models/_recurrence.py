"""Recurrent networks in which every weight sits in a plain Linear that is applied once, to all steps together.

The idea: z_t = W_ih x_t + W_hh h_{t-1} needs the states, so a first pass of the recurrence finds them without
autograd. With the states known, and cut off from the graph, both products are ordinary linear layers over
(rows, steps, .), which any engine for per-record gradients handles exactly. What is left is the loss's gradient by
the pre-activations z of the true recurrence; `_Through` finds it by back-propagation through time (Werbos 1990).

Padding comes after the steps that are there, and each direction reads a record from its first or from its last such
step on. So nothing that is used comes after padding, no gradient reaches a padded step, and the recurrence needs no
mask: states and gradients are those of packed sequences.

Guarantees: outputs and gradients equal those of torch.nn.LSTM and torch.nn.GRU; weights mean the same there.

Legend: B rows, T steps, I inputs of a layer, H hidden width, G gates * H, D directions * H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from client.models.base import Shape

Cell = Literal["lstm", "gru"]
Pool = Literal["last", "mean"]
Saved = tuple[torch.Tensor, ...]


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
        self._cell = _CELLS[cell]
        self.input = nn.Linear(inputs, self._cell.gates * hidden)
        self.state = StateProduct(hidden, self._cell.gates * hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        u_BTG = self.input(x_BTI)
        with torch.no_grad():
            # A state in bfloat16 would lose what single steps add to it.
            exact = torch.promote_types(u_BTG.dtype, torch.float32)
            weight_GH = self.state.weight.detach().to(exact)
            h_BTH, saved = self._cell.run(u_BTG.detach().to(exact), weight_GH, self.state.bias.detach().to(exact))
            h_BTH = h_BTH.to(u_BTG.dtype)
        if not torch.is_grad_enabled():
            return h_BTH[:, 1:]
        v_BTG = self.state(h_BTH[:, :-1])
        through: torch.Tensor = _Through.apply(u_BTG, v_BTG, h_BTH[:, 1:], weight_GH, self._cell, *saved)  # type: ignore[no-untyped-call]
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
        ctx: Any,
        u_BTG: torch.Tensor,
        v_BTG: torch.Tensor,
        h_BTH: torch.Tensor,
        weight_GH: torch.Tensor,
        cell: _Cell,
        *saved: torch.Tensor,
    ) -> torch.Tensor:
        ctx.cell = cell
        ctx.save_for_backward(weight_GH, *saved)
        return h_BTH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight_GH, *saved = ctx.saved_tensors
        by_u, by_v = ctx.cell.back(grad_BTH.to(weight_GH.dtype), weight_GH, tuple(saved))
        return by_u.to(grad_BTH.dtype), by_v.to(grad_BTH.dtype), None, None, None, *(None for _ in saved)


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A recurrence in one direction.

    Args:
        gates: blocks of its pre-activations.
        run: u = W_ih x + b_ih (B, T, G), W_hh and b_hh to the states (T + 1, B, H), of which the first is zero, and
            what `back` needs.
        back: the loss's gradients by the states (T, B, H), W_hh and what `run` saved to those by u and by
            v = W_hh h_{t-1} + b_hh, (T, B, G) each.
    """

    gates: int
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Saved]]
    back: Callable[[torch.Tensor, torch.Tensor, Saved], tuple[torch.Tensor, torch.Tensor]]


def _run_lstm(u_BTG: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> tuple[torch.Tensor, Saved]:
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    count, steps, wide = len(u_BTG), u_BTG.shape[1], weight_GH.shape[1]
    h_BTH, c_TBH = u_BTG.new_empty(count, steps + 1, wide), u_BTG.new_empty(steps + 1, count, wide)
    h_BTH[:, 0], c_TBH[0] = 0, 0
    gate_TBG, tanh_TBH = u_BTG.new_empty(steps, count, 4 * wide), u_BTG.new_empty(steps, count, wide)
    i, f, g, o = (gate.unbind() for gate in gate_TBG.chunk(4, dim=2))
    u, h, c, tanh_c, gate = u_BTG.unbind(1), h_BTH.unbind(1), c_TBH.unbind(), tanh_TBH.unbind(), gate_TBG.unbind()
    scale_G = torch.ones_like(bias_G)
    scale_G[2 * wide : 3 * wide] = -2
    bias_G, weight_HG = bias_G * scale_G, weight_GH.t()
    z, one = u_BTG.new_empty(count, 4 * wide), u_BTG.new_ones(())
    for t in range(steps):
        torch.addmm(u[t], h[t], weight_HG, out=z)
        torch.sigmoid(torch.addcmul(bias_G, z, scale_G, out=z), out=gate[t])
        torch.sub(one, g[t], alpha=2, out=g[t])  # tanh x = 1 - 2 sigmoid(-2 x), in a quarter of the time of torch.tanh
        torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
        torch.mul(c[t + 1], -2, out=tanh_c[t]).sigmoid_()
        torch.sub(one, tanh_c[t], alpha=2, out=tanh_c[t])
        torch.mul(o[t], tanh_c[t], out=h[t + 1])
    return h_BTH, (gate_TBG, c_TBH, tanh_TBH)


def _back_lstm(grad_BTH: torch.Tensor, weight_GH: torch.Tensor, saved: Saved) -> tuple[torch.Tensor, torch.Tensor]:
    gate_TBG, c_TBH, tanh_TBH = saved
    steps, count, wide = tanh_TBH.shape
    i, f, g, o = gate_TBG.chunk(4, dim=2)
    ifg_by_c_TB3H = tanh_TBH.new_empty(steps, count, 3, wide)
    _sigmoid_back(g, i, ifg_by_c_TB3H[:, :, 0])
    _sigmoid_back(c_TBH[:-1], f, ifg_by_c_TB3H[:, :, 1])
    _tanh_back(i, g, ifg_by_c_TB3H[:, :, 2])
    o_by_h = _sigmoid_back(tanh_TBH, o, torch.empty_like(tanh_TBH)).unbind()
    c_by_h = _tanh_back(o, tanh_TBH, torch.empty_like(tanh_TBH)).unbind()
    by_z_BTG = gate_TBG.new_empty(count, steps, 4 * wide)
    by_z, by_o = by_z_BTG.unbind(1), by_z_BTG[..., 3 * wide :].unbind(1)
    by_ifg = by_z_BTG[..., : 3 * wide].unflatten(2, (3, wide)).unbind(1)
    ifg_by_c, f_, grad = ifg_by_c_TB3H.unbind(), f.unbind(), grad_BTH.unbind(1)
    by_h, by_c = grad[-1].clone(), tanh_TBH.new_zeros(count, wide)
    by_c_gates = by_c[:, None]
    for t in range(steps - 1, -1, -1):
        by_c.addcmul_(by_h, c_by_h[t])
        torch.mul(ifg_by_c[t], by_c_gates, out=by_ifg[t])
        torch.mul(o_by_h[t], by_h, out=by_o[t])
        by_c.mul_(f_[t])
        if t > 0:
            torch.addmm(grad[t - 1], by_z[t], weight_GH, out=by_h)
    return by_z_BTG, by_z_BTG


def _run_gru(u_BTG: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> tuple[torch.Tensor, Saved]:
    """Cho et al. 2014, with the reset gate applied after the product as in torch."""
    count, steps, wide = len(u_BTG), u_BTG.shape[1], weight_GH.shape[1]
    h_BTH, v_TBH = u_BTG.new_empty(count, steps + 1, wide), u_BTG.new_empty(steps, count, wide)
    h_BTH[:, 0] = 0
    gate_TBG = u_BTG.new_empty(steps, count, 3 * wide)
    r, z, n = (gate.unbind() for gate in gate_TBG.chunk(3, dim=2))
    rz, u_rz, u_n = (
        x.unbind(d)
        for x, d in ((gate_TBG[..., : 2 * wide], 0), (u_BTG[..., : 2 * wide], 1), (u_BTG[..., 2 * wide :], 1))
    )
    h, v, one = h_BTH.unbind(1), v_TBH.unbind(), u_BTG.new_ones(())
    rz_weight, n_weight = weight_GH[: 2 * wide].t(), weight_GH[2 * wide :].t()
    rz_bias, n_bias = bias_G[: 2 * wide], bias_G[2 * wide :]
    work = u_BTG.new_empty(count, 2 * wide)
    for t in range(steps):
        torch.addmm(u_rz[t], h[t], rz_weight, out=work)
        torch.sigmoid(work.add_(rz_bias), out=rz[t])
        torch.addmm(n_bias, h[t], n_weight, out=v[t])
        torch.addcmul(u_n[t], r[t], v[t], out=n[t]).mul_(-2).sigmoid_()
        torch.sub(one, n[t], alpha=2, out=n[t])  # tanh, as above
        torch.lerp(n[t], h[t], z[t], out=h[t + 1])
    return h_BTH, (gate_TBG, v_TBH, h_BTH)


def _back_gru(grad_BTH: torch.Tensor, weight_GH: torch.Tensor, saved: Saved) -> tuple[torch.Tensor, torch.Tensor]:
    gate_TBG, v_TBH, h_BTH = saved
    steps, count, wide = v_TBH.shape
    r, z, n = gate_TBG.chunk(3, dim=2)
    n_by_h_TBH = _tanh_back(1 - z, n, torch.empty_like(v_TBH))
    v_by_h_TB3H = v_TBH.new_empty(steps, count, 3, wide)  # the gates as the product with W_hh sees them
    _sigmoid_back(v_TBH * n_by_h_TBH, r, v_by_h_TB3H[:, :, 0])
    _sigmoid_back(h_BTH[:, :-1].transpose(0, 1) - n, z, v_by_h_TB3H[:, :, 1])
    torch.mul(n_by_h_TBH, r, out=v_by_h_TB3H[:, :, 2])
    by_v_BTG = gate_TBG.new_empty(count, steps, 3 * wide)
    by_h_BTH = grad_BTH.clone(memory_format=torch.contiguous_format)
    by_v, by_h, h_by_h, v_by_h = by_v_BTG.unbind(1), by_h_BTH.unbind(1), z.unbind(), v_by_h_TB3H.unbind()
    by_gates, by_h_gates = by_v_BTG.unflatten(2, (3, wide)).unbind(1), by_h_BTH[:, :, None].unbind(1)
    for t in range(steps - 1, -1, -1):
        torch.mul(v_by_h[t], by_h_gates[t], out=by_gates[t])
        if t > 0:
            by_h[t - 1].addcmul_(by_h[t], h_by_h[t]).addmm_(by_v[t], weight_GH)
    by_u_BTG = by_v_BTG.clone()
    torch.mul(by_h_BTH, n_by_h_TBH.transpose(0, 1), out=by_u_BTG[..., 2 * wide :])
    return by_u_BTG, by_v_BTG


_CELLS: dict[Cell, _Cell] = {
    "lstm": _Cell(gates=4, run=_run_lstm, back=_back_lstm),
    "gru": _Cell(gates=3, run=_run_gru, back=_back_gru),
}


def _sigmoid_back(grad: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    torch.ops.aten.sigmoid_backward.grad_input(grad, value, grad_input=out)
    return out


def _tanh_back(grad: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    torch.ops.aten.tanh_backward.grad_input(grad, value, grad_input=out)
    return out


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
