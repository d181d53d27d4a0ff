"""Poisoned silos (T11): nearest neighbour mixing with a trimmed mean keeps a model that averaging loses.

A softmax regression on scikit-learn's handwritten digits, trained by silos of unlike classes through the coordinator's
own aggregation. The hostile silos act together, know every honest update and, where an attack has a strength, choose the
one that moves the rule in use the farthest from the honest mean.

Attacks: sign flip; inner product manipulation (Xie et al. 2020); a little is enough (Baruch et al. 2019); min-max
(Shejwalkar & Houmansadr 2021); Gaussian noise; labels that are flipped in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from sklearn.datasets import load_digits

from server.aggregation import aggregate
from simulations.silos import REGISTRIES
from strategies.base import PerSiloStrategy, State
from strategies.manifest import Manifest, Member
from strategies.study import Study

ROUNDS, STEPS, LR, CLASSES, ALPHA = 20, 5, 0.5, 10, 10.0
Part = tuple[np.ndarray, np.ndarray]
STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 10.0, 30.0)

TEXT = """[study]
name = "poisoned"
task = "classification"
[data]
kind = "tabular"
target = "label"
features = { a = { type = "numeric", min = 0, max = 1 } }
[model]
name = "logistic()"
[strategy]
name = "NAME"
[privacy]
mechanism = "none"
[cohort]
min_silos = SILOS
"""


@lru_cache
def digits(silos: int, seed: int) -> tuple[list[Part], Part]:
    """Training parts in which classes are unlike (Dirichlet, alpha = 10), and test records."""
    x, y = load_digits(return_X_y=True)
    x = np.hstack([x / 16, np.ones((len(x), 1))])
    random = np.random.default_rng(seed)
    order = random.permutation(len(x))
    test, train = order[:500], order[500:]
    shares = random.dirichlet(np.full(silos, ALPHA), CLASSES)
    owner = np.array([random.choice(silos, p=shares[label]) for label in y[train]])
    return [(x[train[owner == k]], y[train[owner == k]]) for k in range(silos)], (x[test], y[test])


def local(weights: np.ndarray, part: Part) -> np.ndarray:
    """The update of plain local training: gradient steps of softmax regression."""
    x, y = part
    w = weights.reshape(x.shape[1], CLASSES).astype(np.float64)
    for _ in range(STEPS):
        logits = x @ w
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        w -= LR * (x.T @ p) / len(y)
    return w.ravel().astype(np.float32) - weights


def accuracy(weights: np.ndarray, part: Part) -> float:
    x, y = part
    return float((np.argmax(x @ weights.reshape(x.shape[1], CLASSES), axis=1) == y).mean())


# --- attacks ------------------------------------------------------------------------------------------------

Crafted = Callable[[np.ndarray, float], np.ndarray]  # honest updates and strength to one hostile update


def sign_flip(honest: np.ndarray, strength: float) -> np.ndarray:
    return -strength * honest[0]


def inner_product(honest: np.ndarray, strength: float) -> np.ndarray:
    return -strength * honest.mean(axis=0)


def a_little(honest: np.ndarray, strength: float) -> np.ndarray:
    return honest.mean(axis=0) - strength * honest.std(axis=0)


def min_max(honest: np.ndarray, strength: float) -> np.ndarray:
    """As far along minus the honest mean as any two honest updates are from each other."""
    mean = honest.mean(axis=0)
    apart = max(np.linalg.norm(a - b) for a in honest for b in honest)
    away, reach = -mean / (np.linalg.norm(mean) + 1e-12), 0.0
    for step in 2.0 ** -np.arange(12) * apart:
        if max(np.linalg.norm(mean + (reach + step) * away - a) for a in honest) <= apart:
            reach += step
    return mean + min(strength, 1.0) * reach * away


def gaussian(honest: np.ndarray, strength: float) -> np.ndarray:
    return strength * np.random.default_rng(0).normal(size=honest.shape[1]) * 10


ATTACKS: dict[str, Crafted | None] = {
    "sign flip": sign_flip,
    "inner product": inner_product,
    "a little is enough": a_little,
    "min-max": min_max,
    "Gaussian": gaussian,
    "label flip": None,
}


class Server:
    """The coordinator's aggregation with a study's strategy."""

    def __init__(self, name: str, silos: int) -> None:
        self.study = Study.parse(TEXT.replace("NAME", name).replace("SILOS", str(silos)), REGISTRIES)
        members = tuple(Member(silo=f"silo-{k:02}", weight=1.0) for k in range(silos))
        self.manifest = Manifest(run="0" * 32, study="", code="", layout="", roster=members)

    def __call__(self, state: State, updates: list[np.ndarray]) -> State:
        named = {m.silo: np.asarray(u, np.float32) for m, u in zip(self.manifest.roster, updates, strict=True)}
        return aggregate(self.study, self.manifest, state, named)


def crafted(server: Server, state: State, honest: np.ndarray, bad: int, craft: Crafted) -> list[np.ndarray]:
    """The hostile updates of the strength that moves this rule the farthest."""
    target, found, farthest = state.weights + honest.mean(axis=0), [], -1.0
    for strength in STRENGTHS:
        hostile = [craft(honest, strength)] * bad
        moved = float(np.linalg.norm(server(state, [*hostile, *honest]).weights - target))
        if moved > farthest:
            found, farthest = hostile, moved
    return found


def trained(name: str, silos: int, bad: int, attack: str, seed: int) -> float:
    """Accuracy after all rounds; without an attack the hostile silos are absent."""
    parts, test = digits(silos, seed)
    honest = parts[bad:]
    server = Server(name, silos if attack else len(honest))
    state = server.study.strategy.start(np.zeros(parts[0][0].shape[1] * CLASSES, np.float32))
    for _ in range(ROUNDS):
        updates = np.stack([local(state.weights, part) for part in honest])
        craft = ATTACKS[attack] if attack else None
        if not attack:
            hostile: list[np.ndarray] = []
        elif craft is None:
            hostile = [local(state.weights, (x, CLASSES - 1 - y)) for x, y in parts[:bad]]
        else:
            hostile = crafted(server, state, updates, bad, craft)
        state = server(state, [*hostile, *updates])
    return accuracy(state.weights, test)


@pytest.mark.parametrize(("silos", "bad"), [(5, 1), (10, 2)])
def test_mixing_and_trimming_keep_a_model_that_averaging_loses(
    silos: int, bad: int, scaled: Callable[..., int]
) -> None:
    for seed in range(scaled(3)):
        unharmed = trained("fedavg()", silos, bad, "", seed)
        robust = {attack: trained(f"nnm(byzantine={bad})", silos, bad, attack, seed) for attack in ATTACKS}
        averaged = {attack: trained("fedavg()", silos, bad, attack, seed) for attack in ATTACKS}
        assert unharmed > 0.85
        assert all(unharmed - accuracy <= 0.03 for accuracy in robust.values()), (unharmed, robust)
        lost = [attack for attack, accuracy in averaged.items() if unharmed - accuracy >= 0.10]
        assert len(lost) >= 4, (unharmed, averaged)


def test_the_rule_of_the_profile_is_one_of_each_update() -> None:
    strategy = Server("nnm(byzantine=2)", 10).study.strategy
    assert isinstance(strategy, PerSiloStrategy) and strategy.withstands(10) == 2
