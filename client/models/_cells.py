"""The recurrences of LSTM and GRU over known pre-activations, forwards and backwards, without autograd.

On a CPU a loop over steps; on a GPU torch's fused LSTM or GRU (cuDNN) with the identity in the place of W_ih, fed with
u = W_ih x + b_ih: its gradient by its input is then the gradient by u. Both ways give the same.

Legend: B rows, T steps, H hidden width, G gates * H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

Cell = Literal["lstm", "gru"]
Saved = tuple[torch.Tensor, ...]
# u (B, T, G), W_hh and b_hh to the states (B, T + 1, H), of which the first is zero, and what the way back needs.
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Saved]]
# That and the loss's gradients by the states (B, T, H) to those by u and by v = W_hh h_{t-1} + b_hh, (B, T, G) each.
Back = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """A recurrence in one direction.

    Args:
        gates: blocks of its pre-activations.
        loop: step by step.
        fused: in one call of torch.
    """

    gates: int
    loop: tuple[Run, Back]
    fused: tuple[Run, Back]


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
    return h_BTH, (weight_GH, gate_TBG, c_TBH, tanh_TBH)


def _back_lstm(
    weight_GH: torch.Tensor, gate_TBG: torch.Tensor, c_TBH: torch.Tensor, tanh_TBH: torch.Tensor, grad_BTH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
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
    return h_BTH, (weight_GH, gate_TBG, v_TBH, h_BTH)


def _back_gru(
    weight_GH: torch.Tensor, gate_TBG: torch.Tensor, v_TBH: torch.Tensor, h_BTH: torch.Tensor, grad_BTH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
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


def _run_fused_lstm(u_BTG: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> tuple[torch.Tensor, Saved]:
    zero_1BH = u_BTG.new_zeros(1, len(u_BTG), weight_GH.shape[1])
    with _exactly(u_BTG):
        out_BTH = torch.lstm(u_BTG, (zero_1BH, zero_1BH), *_fused(u_BTG, weight_GH, bias_G))[0]
    return _after_zero(out_BTH), (u_BTG, out_BTH)


def _back_fused_lstm(
    u_BTG: torch.Tensor, out_BTH: torch.Tensor, grad_BTH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    (by_z_BTG,) = torch.autograd.grad(out_BTH, u_BTG, grad_BTH, retain_graph=True)
    return by_z_BTG, by_z_BTG


def _run_fused_gru(u_BTG: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> tuple[torch.Tensor, Saved]:
    with _exactly(u_BTG):
        zero_1BH = u_BTG.new_zeros(1, len(u_BTG), weight_GH.shape[1])
        out_BTH = torch.gru(u_BTG, zero_1BH, *_fused(u_BTG, weight_GH, bias_G))[0]
    h_BTH = _after_zero(out_BTH)
    return h_BTH, (u_BTG, out_BTH, h_BTH, weight_GH, bias_G)


def _back_fused_gru(
    u_BTG: torch.Tensor,
    out_BTH: torch.Tensor,
    h_BTH: torch.Tensor,
    weight_GH: torch.Tensor,
    bias_G: torch.Tensor,
    grad_BTH: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reset gate, by which the gradients by u and v differ, is computed anew: all steps at once."""
    wide = weight_GH.shape[1]
    (by_u_BTG,) = torch.autograd.grad(out_BTH, u_BTG, grad_BTH, retain_graph=True)
    r_BTH = torch.sigmoid(u_BTG[..., :wide] + F.linear(h_BTH[:, :-1], weight_GH[:wide], bias_G[:wide]))
    by_v_BTG = by_u_BTG.clone()
    by_v_BTG[..., 2 * wide :] *= r_BTH
    return by_u_BTG, by_v_BTG


@contextmanager
def _exactly(u_BTG: torch.Tensor) -> Iterator[None]:
    """Differentiate where u is to be, in the type of u."""
    with torch.set_grad_enabled(u_BTG.requires_grad), torch.autocast(u_BTG.device.type, enabled=False):
        yield


def _fused(u_BTG: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> tuple[Any, ...]:
    """Return what torch's fused cells take beside inputs and states. The weights lie in one piece, in cuDNN's order,
    lest they are copied there at each call."""
    gates, wide = weight_GH.shape
    identity_GG, none_G = torch.eye(gates, dtype=u_BTG.dtype, device=u_BTG.device), torch.zeros_like(bias_G)
    whole = torch.cat([values.reshape(-1) for values in (identity_GG, weight_GH, none_G, bias_G)])
    input_GG, state_GH, none_G, bias_G = whole.split([gates * gates, gates * wide, gates, gates])
    weights = (input_GG.view(gates, gates), state_GH.view(gates, wide), none_G, bias_G)
    has_biases, layers, dropout, bidirectional, batch_first = True, 1, 0.0, False, True
    return weights, has_biases, layers, dropout, u_BTG.requires_grad, bidirectional, batch_first


def _after_zero(h_BTH: torch.Tensor) -> torch.Tensor:
    return F.pad(h_BTH.detach(), (0, 0, 1, 0))


RECURRENCES: dict[Cell, Recurrence] = {
    "lstm": Recurrence(gates=4, loop=(_run_lstm, _back_lstm), fused=(_run_fused_lstm, _back_fused_lstm)),
    "gru": Recurrence(gates=3, loop=(_run_gru, _back_gru), fused=(_run_fused_gru, _back_fused_gru)),
}


def _sigmoid_back(grad: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    torch.ops.aten.sigmoid_backward.grad_input(grad, value, grad_input=out)
    return out


def _tanh_back(grad: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    torch.ops.aten.tanh_backward.grad_input(grad, value, grad_input=out)
    return out
