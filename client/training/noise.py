"""The noise of a step of DP-SGD, from `strategies.privacy.secret` on a CPU.

On a GPU the noise is drawn there, by Philox-4x32-10 (Salmon et al. 2011) with a new 64-bit key from the operating
system for each step, of a large model for each part of it: what one key's output tells, if anything, ends with it.

Guarantees: `add_noise` rounds the sum to a grid of 2^-20 clip norms, which hides the low bits of floating-point values
(Mironov 2012, "On significance of the least significant bits for differential privacy"); the L2 distance that rounding
can add, sqrt(d) grid steps here and `ROUNDING` in the sum, is paid for by that much more noise.
"""

from __future__ import annotations

import math
import os

import torch

from strategies.privacy.secret import GRID, SecretRandom, gaussian_mechanism

_AT_ONCE = 2**22  # values on a GPU: noise is drawn in float64, and of a large model it would take more than all else
ROUNDING = 2.0**-10  # of the clip norm; see `client.training.gradients`


def add_noise(
    clipped_sum: torch.Tensor, *, clip_norm: float, noise_multiplier: float, random: SecretRandom
) -> torch.Tensor:
    """Turn a sum of vectors that are each clipped to `clip_norm` into the Gaussian mechanism's output, in its place.

    Args:
        clipped_sum: (d,) the sum, exact but for rounding.
        clip_norm: L2 sensitivity of the sum before rounding.
        noise_multiplier: standard deviation over sensitivity, as accounted.
        random: where the noise of a CPU comes from; a GPU draws its own.

    Returns:
        (d,) the same tensor, which holds the sum without noise no more.
    """
    step = GRID * clip_norm
    deviation = noise_multiplier * (1.0 + ROUNDING + math.sqrt(len(clipped_sum)) * GRID) / GRID  # in steps of the grid
    if clipped_sum.device.type == "cpu":
        values = clipped_sum.numpy()
        gaussian_mechanism(values, step=step, deviation=deviation, random=random, into=values)
    else:
        _add_on_device(clipped_sum, step, deviation)
    return clipped_sum


def _add_on_device(total: torch.Tensor, step: float, deviation: float) -> None:
    """As `gaussian_mechanism`, where the sum lies."""
    for some in total.split(_AT_ONCE):
        drawn = _drawn_on(some.device, len(some)).mul_(deviation).round_()
        drawn.add_((some.double() / step).round_())
        some.copy_(drawn.mul_(step))


def _drawn_on(device: torch.device, count: int) -> torch.Tensor:
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(os.urandom(8), "big", signed=True))
    return torch.randn(count, generator=generator, device=device, dtype=torch.float64)
