"""SCAFFOLD: it is the published algorithm, also when silos are chosen, drop out or are masked, and it ends where it should.

Oracles: algorithm 1 of Karimireddy et al. 2020 with option II, written out here in float64 with control variates as
gradients; the optimum of a sum of quadratics, in closed form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.silo import Silo
from server import checkpoint
from server.aggregation import from_sum, summed
from simulations.run import Outcome, simulate
from simulations.silos import REGISTRIES
from strategies.base import Aux, SumStrategy
from strategies.errors import StudyError
from strategies.fedavg import FedAvg
from strategies.manifest import Manifest, Member
from strategies.scaffold import Scaffold
from strategies.study import Study

SIZE, STEPS, LR = 4, 10, 0.05
Gradient = Callable[[np.ndarray], np.ndarray]


def quadratics(seed: int, silos: int) -> tuple[list[Gradient], np.ndarray]:
    """Unlike silos: each has its own curvature and its own best point; and the best point of their mean."""
    random = np.random.default_rng(seed)
    curves = [np.diag(random.uniform(0.2, 4.0, SIZE)) for _ in range(silos)]
    bests = random.normal(size=(silos, SIZE)) * 3
    optimum = np.linalg.solve(sum(curves), sum(a @ b for a, b in zip(curves, bests, strict=True)))
    return [lambda x, a=a, b=b: a @ (x - b) for a, b in zip(curves, bests, strict=True)], optimum


def published(gradients: list[Gradient], rounds: list[list[int]]) -> np.ndarray:
    """Algorithm 1, option II, global step 1: the model after rounds in which these silos took part."""
    x, c = np.zeros(SIZE), np.zeros(SIZE)
    own = [np.zeros(SIZE) for _ in gradients]
    for chosen in rounds:
        moves, changes = [], []
        for i in chosen:
            y = x.copy()
            for _ in range(STEPS):
                y = y - LR * (gradients[i](y) - own[i] + c)
            new = own[i] - c + (x - y) / (STEPS * LR)
            moves.append(y - x)
            changes.append(new - own[i])
            own[i] = new
        x = x + np.mean(moves, axis=0)
        c = c + len(chosen) / len(gradients) * np.mean(changes, axis=0)
    return x


STUDY = """[study]
name = "scaffold"
task = "classification"
[data]
kind = "tabular"
target = "label"
features = { a = { type = "numeric", min = 0, max = 1 } }
[model]
name = "logistic()"
[strategy]
name = "NAME"
[training]
optimizer = "sgd(lr=0.05)"
[privacy]
PRIVACY
"""


def study_of(name: str = "scaffold()", privacy: str = 'mechanism = "none"') -> Study:
    return Study.parse(STUDY.replace("NAME", name).replace("PRIVACY", privacy), REGISTRIES)


def ours(
    strategy: SumStrategy, gradients: list[Gradient], rounds: list[list[int]], lost: list[list[int]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Both halves with the server's own aggregation; the silos of `lost` train too, and their replies never arrive."""
    members = tuple(Member(silo=str(i), weight=1.0) for i in range(len(gradients)))
    manifest = Manifest(run="0" * 32, study="", code="", layout="", roster=members)
    state = strategy.start(np.zeros(SIZE, np.float32))
    home: list[Any] = [{} for _ in gradients]
    for number, chosen in enumerate(rounds):
        updates = {}
        for i in {*chosen, *(lost[number] if lost else ())}:
            aux = Aux(broadcast=strategy.down(state), home=home[i], lr_sum=STEPS * LR)
            y = state.weights.copy()
            for _ in range(STEPS):
                y = y - LR * strategy.correct(gradients[i](y), y, state.weights, aux)
            sent = strategy.update(state.weights, y.astype(np.float32), aux)
            if i in chosen:
                updates[str(i)], home[i] = sent.update, sent.home
        state = from_sum(strategy, manifest, state, summed(list(updates.values())), updates)
    mean = np.mean([kept.get("h", np.zeros(SIZE)) for kept in home], axis=0) if home[0] is not None else np.zeros(SIZE)
    return state.weights, state.memory.get("h", mean) - mean


def chosen_silos(seed: int, silos: int, count: int, rounds: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [sorted(random.choice(silos, count, replace=False).tolist()) for _ in range(rounds)]


@given(seed=st.integers(0, 2**32 - 1), silos=st.integers(2, 6), data=st.data())
def test_it_is_the_published_algorithm(seed: int, silos: int, data: st.DataObject) -> None:
    gradients, _ = quadratics(seed, silos)
    rounds = chosen_silos(seed, silos, data.draw(st.integers(1, silos)), 8)
    lost = chosen_silos(seed + 1, silos, 1, 8)
    model, gap = ours(Scaffold(), gradients, rounds, lost)
    assert np.allclose(model, published(gradients, rounds), rtol=1e-4, atol=1e-4)
    assert np.allclose(gap, 0, atol=1e-4), "the server's control variate is not the mean of the silos' own"


def test_the_oracle_rejects_a_share_of_one_and_a_lost_reply_that_counts() -> None:
    gradients, _ = quadratics(3, 5)
    rounds = chosen_silos(3, 5, 2, 8)
    right = published(gradients, rounds)
    assert np.allclose(ours(Scaffold(), gradients, rounds)[0], right, atol=1e-4)
    also = [sorted({*silos, 0}) for silos in rounds]
    assert not np.allclose(published(gradients, also), right, atol=1e-2)

    class Whole(Scaffold):
        def aggregate(self, state: Any, total: Any, weight: float) -> Any:
            return super().aggregate(type(state)(weights=state.weights, memory=state.memory), total, weight)

    assert not np.allclose(ours(Whole(), gradients, rounds)[0], right, atol=1e-2)


@pytest.mark.parametrize("count", [2, 5])
def test_it_reaches_the_optimum_of_unlike_silos_where_averaging_does_not(count: int) -> None:
    gradients, optimum = quadratics(1, 5)
    rounds = chosen_silos(1, 5, count, 600 if count < 5 else 150)
    far = np.linalg.norm(optimum)
    assert np.linalg.norm(ours(Scaffold(), gradients, rounds)[0] - optimum) < 1e-3 * far
    everyone = [list(range(5))] * 150
    assert np.linalg.norm(ours(FedAvg(), gradients, everyone)[0] - optimum) > 0.05 * far


# --- in a study ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam()", "adamw()", "sgd(lr=0.1, momentum=0.9)"])
def test_another_optimiser_is_refused(optimizer: str) -> None:
    text = STUDY.replace("NAME", "scaffold()").replace("PRIVACY", 'mechanism = "none"')
    with pytest.raises(StudyError, match="reckons with steps of plain SGD; write optimizer = 'sgd") as caught:
        Study.parse(text.replace("sgd(lr=0.05)", optimizer), REGISTRIES)
    assert len(caught.value.problems) == 1
    Study.parse(
        text.replace("NAME", "fedavg()").replace("scaffold()", "fedavg()").replace("sgd(lr=0.05)", optimizer),
        REGISTRIES,
    )
    Study.parse(text.replace("sgd(lr=0.05)", "sgd(lr=0.1, weight_decay=0.01)"), REGISTRIES)


@pytest.mark.parametrize("mechanism", ["local-gaussian", "central-gaussian"])
def test_updates_that_are_noised_after_they_are_made_are_refused(mechanism: str) -> None:
    privacy = f'mechanism = "{mechanism}"\nnoise_multiplier = 1.0'
    with pytest.raises(StudyError, match="what its silos keep at home must be what they sent"):
        study_of(privacy=privacy)
    assert study_of("fedavg()", privacy).silo_level
    assert study_of(privacy="noise_multiplier = 1.0").private


RUN = """[study]
name = "small"
task = "classification"
rounds = 6
[data]
kind = "tabular"
target = "label"
[data.features]
a = { type = "numeric", min = -3, max = 3 }
b = { type = "numeric", min = -3, max = 3 }
[model]
name = "logistic()"
[strategy]
name = "scaffold()"
[training]
sampling_rate = 0.3
steps = 3
[privacy]
noise_multiplier = 2.0
[cohort]
min_silos = 3
[simulation]
dataset = "records.csv"
silos = 5
partition = "iid"
"""


def run(folder: Path, text: str) -> Outcome:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 90))
    pl.DataFrame({"a": a, "b": b, "label": np.where(a + b > 0, "yes", "no")}).write_csv(folder / "records.csv")
    return simulate(Study.parse(text, REGISTRIES), folder, out=folder / "runs", fresh=True, with_baselines=False)


@pytest.mark.parametrize(
    ("masked", "lr"), [(False, 0.2), (True, 0.2), (True, 40.0)], ids=["open", "masked", "masked and cut"]
)
def test_after_a_run_with_lost_replies_the_servers_variate_is_the_mean_of_the_silos(
    tmp_path: Path, masked: bool, lr: float
) -> None:
    """Through both apps, with DP-SGD: half of the lost replies were trained at the silo. Found: with steps so long that
    updates are cut to what a masked sum holds, silos kept what they had not sent, and the two drifted apart."""
    text = RUN.replace("steps = 3", f'steps = 3\noptimizer = "sgd(lr={lr})"') + "dropout = 0.25\n"
    outcome = run(tmp_path, text + ("[secagg]\nenabled = true\n" if masked else ""))
    lines = outcome.facts["rounds"]
    assert sum(line["dropped"] for line in lines) > 0 and any(line["aggregated"] for line in lines)
    state, _, record = checkpoint.load_with_record(outcome.folder / "checkpoint")
    used = json.loads(json.loads(record)["text"])["used"]
    homes = []
    for path in outcome.silos:
        silo = Silo.open(path)
        kept = silo.state(outcome.facts["run"]["id"]).home(used.get(silo.name, 0))
        assert kept.keys() == ({"h"} if silo.name in used else set())
        homes.append(kept.get("h", np.zeros_like(state.weights)))
    assert np.abs(state.memory["h"]).max() > 1e-3
    assert np.allclose(state.memory["h"], np.mean(homes, axis=0), atol=1e-4 * max(1.0, lr))
    if lr > 1:
        logs = "".join((path / "logs" / "silo.log").read_text() for path in outcome.silos)
        assert "cut to what a masked sum can hold" in logs
