"""The local optimisers that a study may name; the silo turns them into torch's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from strategies.spec import Registry, require


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent.

    Args:
        lr: learning rate, positive.
        momentum: in [0, 1).
        weight_decay: L2 penalty, at least 0.
    """

    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "sgd.lr", self.lr, "a positive number")
        require(0 <= self.momentum < 1, "sgd.momentum", self.momentum, "in [0, 1)")
        require(0 <= self.weight_decay < math.inf, "sgd.weight_decay", self.weight_decay, "a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015); its moments start anew each round and never leave the silo.

    Args:
        lr: learning rate, positive.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        weight_decay: L2 penalty, at least 0.
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "adam.lr", self.lr, "a positive number")
        require(0 <= self.beta1 < 1, "adam.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "adam.beta2", self.beta2, "in [0, 1)")
        require(0 <= self.weight_decay < math.inf, "adam.weight_decay", self.weight_decay, "a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Args:
        lr: learning rate, positive.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        weight_decay: decoupled decay, at least 0.
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "adamw.lr", self.lr, "a positive number")
        require(0 <= self.beta1 < 1, "adamw.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "adamw.beta2", self.beta2, "in [0, 1)")
        require(0 <= self.weight_decay < math.inf, "adamw.weight_decay", self.weight_decay, "a number of at least 0")


Optimizer = Sgd | Adam | AdamW
OPTIMIZERS = Registry(kind="optimizer", classes=(Sgd, Adam, AdamW))
