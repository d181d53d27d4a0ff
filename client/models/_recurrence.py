"""Recurrent networks in which every weight sits in a plain Linear that is applied once, to all steps together.

The idea: z_t = W_ih x_t + W_hh h_{t-1} needs the states, so a first pass of the recurrence finds them without
autograd. With the states known (and cut off from the graph) both products are ordinary linear layers over
(rows, steps, .), so any engine for per-record gradients handles them exactly. What is left is the gradient with
respect to z of the true recurrence; `_Through` computes it by back-propagation through time (Werbos 1990).

Padding comes after the steps that are there, and every direction reads a record from its first or from its last such
step on. So nothing that is read comes after padding, no gradient reaches a padded step, and the recurrence itself
needs no mask; the states equal those of packed sequences.

Guarantees: gradients equal those of torch.nn.LSTM and torch.nn.GRU, and so do the meaning and order of all weights.

Legend of shape suffixes: B rows, T steps, I inputs of a layer, H hidden width, K gates, G = K * H, D directions * H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from client.models.base import Shape

Saved = tuple[torch.Tensor, ...]
Pool = Literal["last", "mean"]
CellName = Literal["lstm", "gru"]


class _Cell(Protocol):
    """The recurrence of one layer in one direction: first pass, and gradient by its pre-activations."""

    gates: int

    def run(self, u_BTG: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """Return states h (T + 1, B, H), of which the first is zero, and what `back` needs, for u = W_ih x + b_ih."""

    def back(self, grad_TBH: torch.Tensor, weight_GH: torch.Tensor, saved: Saved) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss's gradients (T, B, G) by u and by v = W_hh h_{t-1} + b_hh, from those by h."""


class _Lstm:
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates i, f, g, o as in torch."""

    gates = 4

    def run(self, u_BTG: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        count, steps, _ = u_BTG.shape
        gate_TBG = torch.add(u_BTG.transpose(0, 1), bias_G, out=u_BTG.new_empty(steps, count, len(bias_G)))
        wide = weight_GH.shape[1]
        h_TBH, c_TBH = (u_BTG.new_empty(steps + 1, count, wide) for _ in range(2))
        tanh_TBH = u_BTG.new_empty(steps, count, wide)
        h_TBH[0], c_TBH[0] = 0, 0
        h, c, tanh_c = h_TBH.unbind(), c_TBH.unbind(), tanh_TBH.unbind()
        i, f, g, o = (gate.unbind() for gate in gate_TBG.chunk(4, dim=2))
        i_f = gate_TBG[:, :, : 2 * wide].unbind()
        weight_HG = weight_GH.t()
        for t, z in enumerate(gate_TBG.unbind()):
            z.addmm_(h[t], weight_HG)
            i_f[t].sigmoid_()
            g[t].tanh_()
            o[t].sigmoid_()
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            torch.mul(o[t], torch.tanh(c[t + 1], out=tanh_c[t]), out=h[t + 1])
        return h_TBH, (gate_TBG, c_TBH, tanh_TBH)

    def back(self, grad_TBH: torch.Tensor, weight_GH: torch.Tensor, saved: Saved) -> tuple[torch.Tensor, torch.Tensor]:
        gate_TBG, c_TBH, tanh_TBH = saved
        steps, count, wide = tanh_TBH.shape
        i, f, g, o = gate_TBG.chunk(4, dim=2)
        by_c_TB4H = tanh_TBH.new_empty(steps, count, 4, wide)  # of the state before, i, f, g; each by c_t
        by_c_TB4H[:, :, 0] = f
        _sigmoid_back(g, i, out=by_c_TB4H[:, :, 1])
        _sigmoid_back(c_TBH[:-1], f, out=by_c_TB4H[:, :, 2])
        _tanh_back(i, g, out=by_c_TB4H[:, :, 3])
        o_by_h = _sigmoid_back(tanh_TBH, o, out=torch.empty_like(tanh_TBH)).unbind()
        c_by_h = _tanh_back(o, tanh_TBH, out=torch.empty_like(tanh_TBH)).unbind()
        d_TB5H = tanh_TBH.new_empty(steps, count, 5, wide)  # by the state before, i, f, g, o
        d_c = d_TB5H[:, :, 0].unbind()
        d_c4 = d_TB5H[:, :, :4].unbind()
        d_o = d_TB5H[:, :, 4].unbind()
        d_z = d_TB5H[:, :, 1:].flatten(2).unbind()
        by_c, grad = by_c_TB4H.unbind(), grad_TBH.unbind()
        dh_BH, dc_BH = tanh_TBH.new_empty(count, wide), tanh_TBH.new_zeros(count, wide)
        dc_B1H = dc_BH[:, None]
        for t in range(steps - 1, -1, -1):
            if t == steps - 1:
                dh_BH.copy_(grad[t])
            else:
                torch.addmm(grad[t], d_z[t + 1], weight_GH, out=dh_BH)
                dc_BH.copy_(d_c[t + 1])
            dc_BH.addcmul_(dh_BH, c_by_h[t])
            torch.mul(by_c[t], dc_B1H, out=d_c4[t])
            torch.mul(dh_BH, o_by_h[t], out=d_o[t])
        d_TBG = d_TB5H[:, :, 1:].flatten(2)
        return d_TBG, d_TBG


def _sigmoid_back(grad: torch.Tensor, value: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    torch.ops.aten.sigmoid_backward.grad_input(grad, value, grad_input=out)
    return out


def _tanh_back(grad: torch.Tensor, value: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    torch.ops.aten.tanh_backward.grad_input(grad, value, grad_input=out)
    return out
