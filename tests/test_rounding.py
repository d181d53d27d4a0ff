"""Rounding of sums in float32: that of neighbouring batches differs by less than what the noise pays for.

Oracle: the same sum in float64, worked out from the layer's formula.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.training import gradients
from client.training.device import _MOST_ROWS
from client.training.layers import Explicit, Outer, Product, Scattered
from client.training.noise import ROUNDING

WIDE = st.sampled_from([1, 3, 8, 64, 500])


@given(st.integers(0, 2**31), st.sampled_from(["same", "near", "spread", "periodic"]), WIDE)
def test_rounding_of_a_sum_moves_neighbours_by_less_than_what_noise_pays_for(seed: int, kind: str, values: int) -> None:
    """As many units as one sum in float32 has, all pulling the same way, where it is largest; one unit is taken away.

    A sum is further than this from the exact one (up to 1e-2 clip norms where all units are equal), but sums of
    neighbouring batches are so together: that distance is the sensitivity.
    """
    random = np.random.default_rng(seed)
    rows = np.repeat(random.uniform(0.5, 1.5, (1, values)), _MOST_ROWS, axis=0)
    if kind == "near":
        rows *= 1 + 1e-3 * random.normal(size=rows.shape)
    if kind == "spread":
        rows *= random.uniform(0.1, 1.9, rows.shape)
    if kind == "periodic":
        rows = np.tile(rows[:8] * (1 + 2.0**-12 * random.random((8, 1))), (_MOST_ROWS // 8, 1))
    found = torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))

    def sums(keep: torch.Tensor) -> list[torch.Tensor]:
        own, one, count = found[keep], torch.ones(len(keep)), len(keep)
        parts = [
            Explicit(name="weight", values_UP=own),
            Outer(a_UI=own, g_UO=one[:, None], names=("weight",)),
            Product(name="weight", a_USI=own[:, None], g_USO=one[:, None, None]),
            Scattered(
                name="weight",
                owner_K=torch.arange(count),
                entry_K=torch.zeros(count, dtype=torch.int64),
                values_KO=own,
                count=count,
            ),
        ]
        totals = [torch.zeros(1, values) for _ in parts]
        for part, total in zip(parts, totals, strict=True):
            part.write(one, {"weight": total})
        return [total.double() for total in totals]

    whole, every = sums(torch.arange(_MOST_ROWS)), torch.arange(_MOST_ROWS)
    for gone in (0, int(random.integers(_MOST_ROWS)), _MOST_ROWS - 1):
        for total, without in zip(whole, sums(every[every != gone]), strict=True):
            assert (total - without - found[gone].double()).norm() < ROUNDING / 4


@pytest.mark.parametrize("inputs", [5, 8], ids=["unaligned", "aligned"])
def test_rounding_of_4096_units_stays_below_what_noise_pays_for(
    inputs: int, scaled: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path: a unit that is taken away moves all rows behind it, and the borders between portions."""
    torch.manual_seed(0)
    model, many = nn.Sequential(nn.Linear(inputs, 1)), gradients._FLOAT32_UNITS
    x, y = torch.rand(many, inputs) + 1, torch.full((many,), 1e3)
    monkeypatch.setattr(gradients, "_random_lanes", lambda count: (np.arange(count) % 4).astype(np.uint8))

    def total(rows: np.ndarray) -> torch.Tensor:
        picked = torch.from_numpy(rows)
        return gradients.clipped_sum(model, lambda out, y: -y * out[:, 0], (x[picked], y[picked]), rows, 1.0)

    every = np.arange(many)
    exact = by_exact_rows(x, y)
    whole = total(every)
    assert (whole - exact.sum(0)).norm() < 2 * ROUNDING
    for gone in range(0, many, many // scaled(32)):
        away = whole - total(every[every != gone]) - exact[gone]
        assert away.norm() < ROUNDING / 2


def by_exact_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = -y.double()[:, None] * torch.cat([torch.ones(len(x), 1), x], dim=1).double()
    return rows / rows.norm(dim=1, keepdim=True) * gradients._SHRINK


def test_a_sum_in_float64_is_exact() -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    count = gradients._FLOAT32_UNITS + 1
    x, y = torch.rand(count, 3) + 1, torch.ones(count)
    total = gradients.clipped_sum(model, lambda out, y: -1e3 * y * out[:, 0], (x, y), np.arange(count), 1.0)
    assert (total - by_exact_rows(x, 1e3 * y).sum(0)).norm() < 1e-7 * count
