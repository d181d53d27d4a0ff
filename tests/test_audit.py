"""The empirical audit: bounds against another project's numbers, and planted faults that must be found.

Oracles: the lower bounds that jax_privacy 2.0.0 (auditing.py, `_epsilon_one_run` and `_epsilon_one_run_fdp`) gave for
the same guesses; the Gaussian mechanism, whose loss is known; the real training with one fault planted in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_report import facts as run_facts

from client.silo import Silo
from client.training import local, passes
from client.training.canaries import Canaries, Training, WithCanaries, observe
from simulations.audit import audit, audit_silo
from simulations.ready import read_study
from simulations.run import simulate
from simulations.silos import REGISTRIES, complete, make_silos
from simulations.sources import read_dataset
from strategies.errors import AccountingError, DataError, RunError, SettingError
from strategies.privacy import audit as bounds
from strategies.privacy.audit import Guesses, contradicts, gaussian_lower_bound, lower_bound, p_value
from strategies.privacy.conformance import Claim, Observations, conformance
from strategies.privacy.events import Gaussian
from strategies.privacy.profile import Profile, gaussian_delta, profile
from strategies.privacy.secret import SecretRandom
from strategies.report.audit_page import beside, render
from strategies.report.page import render as render_run
from strategies.study import Study

# --- the bounds -----------------------------------------------------------------------------------------------

PUBLISHED = [  # canaries, guesses, right, delta; any mechanism, Gaussian curve
    (100, 100, 100, 1e-6, 3.4927, 9.0709),
    (100, 100, 100, 1e-5, 3.4902, 8.2162),
    (1000, 200, 200, 1e-6, 4.1909, 8.0298),
    (1000, 200, 150, 1e-6, 0.8213, 1.4769),
    (1000, 200, 180, 1e-5, 1.7963, 2.9012),
    (1000, 200, 120, 1e-6, 0.1590, 0.2569),
    (5000, 1000, 700, 1e-6, 0.7319, 1.2291),
    (5000, 1000, 930, 1e-5, 2.3756, 3.5830),
    (100, 20, 19, 1e-6, 1.2883, 2.5133),
]


@pytest.mark.parametrize(("canaries", "made", "correct", "delta", "any_", "gaussian"), PUBLISHED)
def test_lower_bounds_are_those_of_another_project(
    canaries: int, made: int, correct: int, delta: float, any_: float, gaussian: float
) -> None:
    guesses = Guesses(canaries=canaries, made=made, correct=correct)
    for found, known in ((lower_bound(guesses, delta), any_), (gaussian_lower_bound(guesses, delta), gaussian)):
        assert known - 2e-4 <= found <= known + 1e-4, "rounded down, by a digit at most"


def test_blind_guesses_show_nothing() -> None:
    blind = Guesses(canaries=1000, made=200, correct=100)
    assert lower_bound(blind, 1e-6) == gaussian_lower_bound(blind, 1e-6) == 0.0
    assert p_value(blind, 0.0, 0.0) > 0.5


@given(st.integers(1, 300), st.integers(0, 300), st.floats(0, 8), st.floats(0, 1e-3))
def test_a_p_value_is_a_probability_that_grows_with_the_claim(
    made: int, correct: int, epsilon: float, delta: float
) -> None:
    guesses = Guesses(canaries=300, made=made, correct=min(made, correct))
    p = p_value(guesses, epsilon, delta)
    assert 0 <= p <= 1
    assert p_value(guesses, epsilon + 0.1, delta) >= p - 1e-12


@pytest.mark.parametrize(("made", "correct", "canaries"), [(3, 4, 5), (6, 5, 5), (1, -1, 5), (0, 0, 0)])
def test_impossible_guesses_are_refused(made: int, correct: int, canaries: int) -> None:
    with pytest.raises(AccountingError, match="cannot be"):
        Guesses(canaries=canaries, made=made, correct=correct)


def gaussian_curve(mu: float) -> Profile:
    """The curve of mu-Gaussian DP, from Balle and Wang's formula and not from the accountant."""
    epsilons = np.linspace(0, 6, 121) * mu * (mu + 1)
    return Profile(pairs=tuple((float(e), max(0.0, gaussian_delta(float(e), mu)) + 1e-15) for e in epsilons))


def attacked(mu: float, random: np.random.Generator, count: int = 1000) -> Guesses:
    """The best attack on `count` independent units that one Gaussian release of distance `mu` shows."""
    included = random.random(count) < 0.5
    return bounds.guess(random.normal(size=count) + mu * included, included, count // 10)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_a_true_claim_is_hardly_ever_contradicted(mu: float, scaled: Callable[..., int]) -> None:
    """Of N audits of a true claim at 95 %, more than 5 % fail with probability below 1e-4 at the limit allowed here."""
    random, runs = np.random.default_rng(1), scaled(1000)
    delta = 1e-6
    epsilon = next(e for e in np.linspace(0, 40, 4001) if gaussian_delta(e, mu) <= delta)
    curve, wrong = gaussian_curve(mu), 0
    for _ in range(runs):
        guesses = attacked(mu, random)
        wrong += gaussian_lower_bound(guesses, delta) > epsilon or contradicts(guesses, curve, 0.05)
        assert lower_bound(guesses, delta) <= epsilon
    assert wrong <= runs * 0.05 + 4 * np.sqrt(runs * 0.05 * 0.95)


def test_a_claim_of_twice_the_noise_is_contradicted() -> None:
    guesses = attacked(3.0, np.random.default_rng(2))
    assert contradicts(guesses, gaussian_curve(1.0), 0.05)
    assert not contradicts(guesses, gaussian_curve(3.0), 0.05)


@given(st.floats(0, 1))
def test_least_false_positives_are_the_inverse_of_most_power(power: float) -> None:
    curve = profile([Gaussian(noise_multiplier=1.0, sampling_rate=0.1, steps=20)], 1e-5)
    assert curve is not None
    rate = curve.false_positives(power)
    assert 0 <= rate <= power
    assert curve.power(min(1.0, rate + 1e-9)) >= power - 1e-6
    if rate > 1e-6:
        assert curve.power(rate * (1 - 1e-6)) <= power + 1e-4 + 1e-6, "rounded up by 1e-4 at most"


def test_scores_are_log_likelihood_ratios() -> None:
    """Worked by hand: x = 2, sigma = 1, q = 1/2: ln(1/2 + 1/2 e^(3/2))."""
    found = bounds.scores(np.array([[2.0]]), sampling_rate=0.5, noise_multiplier=1.0)
    assert found[0] == pytest.approx(np.log(0.5 + 0.5 * np.exp(1.5)))
    whole = bounds.scores(np.array([[2.0], [0.5]]), sampling_rate=1.0, noise_multiplier=2.0)
    assert whole[0] == pytest.approx(3 / 8 + 0.0)


def test_guesses_and_rates_of_a_perfect_score() -> None:
    included = np.array([True, False] * 50)
    assert bounds.guess(included.astype(float), included, 10) == Guesses(canaries=100, made=20, correct=20)
    points = bounds.rates(included.astype(float), included)
    assert points[0] == (0.0, 0.0) and points[-1] == (1.0, 1.0) and (0.0, 1.0) in points


# --- the statistics of a mechanism ----------------------------------------------------------------------------

CLAIM = Claim(noise_multiplier=1.5, sampling_rate=0.2, steps=60)


def simulated(random: np.random.Generator, claim: Claim = CLAIM, coordinates: int = 200) -> Observations:
    """What a mechanism as claimed shows."""
    steps, sigma, rate = claim.steps, claim.noise_multiplier, claim.sampling_rate

    def sampled(count: int, rate: float, noise: float) -> np.ndarray:
        return (random.random((count, coordinates)) < rate) + random.normal(0, noise, (count, coordinates))

    return Observations(
        untouched_TK=random.normal(0, sigma, (steps, coordinates)),
        touched_TM=sampled(steps, rate, sigma),
        sampled_SM=sampled(200, rate, 0.02),
        always_AM=sampled(5, 1.0, 0.02),
        again_2K=random.normal(0, sigma, (2, coordinates)),
        difference=1e-6,
    )


def failed(observed: Observations, claim: Claim = CLAIM) -> set[str]:
    return {check.name for check in conformance(observed, claim) if not check.holds}


def test_a_mechanism_as_claimed_passes(scaled: Callable[..., int]) -> None:
    """16 checks a run at 1e-5 each: of 1,000 runs more than 2 fail with probability 6e-4 (Poisson of mean 0.16)."""
    random, runs = np.random.default_rng(3), scaled(1000)
    assert sum(bool(failed(simulated(random))) for _ in range(runs)) <= 2


ARRAY_FAULTS: dict[str, tuple[str, Callable[[Observations], Observations]]] = {
    "five per cent less noise": ("noise", lambda o: replace(o, untouched_TK=o.untouched_TK * 0.95)),
    "a step without noise": (
        "quietest step",
        lambda o: replace(o, untouched_TK=np.concatenate([0 * o.untouched_TK[:1], o.untouched_TK[1:]])),
    ),
    "a step that is missing": ("steps", lambda o: replace(o, untouched_TK=o.untouched_TK[1:])),
    "a clip that is a hundredth too wide": ("sensitivity", lambda o: replace(o, always_AM=o.always_AM * 1.01)),
    "canaries that are lost": ("sensitivity", lambda o: replace(o, always_AM=o.always_AM - 0.5)),
    "another way through the layers": ("same sum", lambda o: replace(o, difference=0.01)),
    "half as many samples again": ("rate under noise", lambda o: replace(o, touched_TM=o.touched_TM + 0.15)),
    "a tenth more in each sample": (
        "sampling rate",
        lambda o: replace(o, sampled_SM=np.maximum(o.sampled_SM, np.random.default_rng(8).random((200, 200)) < 0.025)),
    ),
    "everybody or nobody": (
        "samples a step",
        lambda o: replace(o, sampled_SM=np.repeat(o.sampled_SM[:, :1], 200, axis=1)),
    ),
    "the same units in every sample": (
        "samples a unit",
        lambda o: replace(o, sampled_SM=np.repeat(o.sampled_SM[:1], 200, axis=0)),
    ),
    "every sample used twice": (
        "samples again",
        lambda o: replace(o, sampled_SM=np.repeat(o.sampled_SM[:100], 2, axis=0)),
    ),
    "samples that come again after fifty": (
        "samples again",
        lambda o: replace(o, sampled_SM=np.tile(o.sampled_SM[:50], (4, 1))),
    ),
    "noise of two steps before": (
        "two steps",
        lambda o: replace(o, untouched_TK=np.concatenate([o.untouched_TK[2:3], o.untouched_TK[1:]])),
    ),
    "two coordinates of one noise": (
        "two coordinates",
        lambda o: replace(o, untouched_TK=np.concatenate([o.untouched_TK[:, 9:10], o.untouched_TK[:, 1:]], axis=1)),
    ),
    "noise of the step before": (
        "next step",
        lambda o: replace(o, untouched_TK=0.98 * o.untouched_TK + 0.2 * np.roll(o.untouched_TK, 1, axis=0)),
    ),
    "noise of the coordinate before": (
        "next coordinate",
        lambda o: replace(o, untouched_TK=0.98 * o.untouched_TK + 0.2 * np.roll(o.untouched_TK, 1, axis=1)),
    ),
    "the same noise twice": ("fresh noise", lambda o: replace(o, again_2K=np.stack([o.again_2K[0]] * 2))),
    "no noise at all twice": ("fresh noise", lambda o: replace(o, again_2K=0 * o.again_2K)),
    "uniform noise": (
        "shape",
        lambda o: replace(
            o, untouched_TK=np.random.default_rng(5).uniform(-1, 1, o.untouched_TK.shape) * 1.5 * np.sqrt(3)
        ),
    ),
}


@pytest.mark.parametrize("fault", ARRAY_FAULTS)
def test_each_check_finds_its_fault(fault: str) -> None:
    check, plant = ARRAY_FAULTS[fault]
    assert check in failed(plant(simulated(np.random.default_rng(4))))


def test_too_few_or_broken_observations_say_nothing() -> None:
    fine = simulated(np.random.default_rng(6))
    with pytest.raises(AccountingError, match="take more canaries"):
        conformance(replace(fine, untouched_TK=fine.untouched_TK[:4]), CLAIM)
    broken = fine.touched_TM.copy()
    broken[3, 3] = np.nan
    with pytest.raises(AccountingError, match="finite"):
        conformance(replace(fine, touched_TM=broken), CLAIM)


# --- the real training, with faults planted -------------------------------------------------------------------

STUDY = """
[study]
name = "small"
task = "classification"
rounds = 4
[data]
kind = "tabular"
target = "label"
UNIT
[data.features]
FEATURES
[model]
name = "mlp(hidden=[8])"
[training]
sampling_rate = 0.2
steps = 10
[privacy]
noise_multiplier = 1.0
[simulation]
dataset = "records.csv"
silos = 2
partition = "iid"
"""


NAMES = [f"x{number}" for number in range(8)]
FEATURES = "\n".join(f'{name} = {{ type = "numeric", min = -3, max = 3 }}' for name in NAMES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Study, Silo]]:
    """One silo of a small study, with records or with people of two records each as the unit."""
    folder = tmp_path_factory.mktemp("audit")
    random = np.random.default_rng(0)
    for name, count in (("records.csv", 240), ("many.csv", 1200)):
        rows = {name: random.normal(size=count) for name in NAMES}
        people = {"label": random.integers(0, 2, count), "person": np.arange(count) // 2}
        pl.DataFrame({**rows, **people}).write_csv(folder / name)
    made: dict[str, tuple[Study, Silo]] = {}

    def get(unit: str = "") -> tuple[Study, Silo]:
        if unit not in made:
            text = STUDY.replace("UNIT", "" if unit == MANY else unit).replace("FEATURES", FEATURES)
            text = text.replace("records.csv", "many.csv") if unit == MANY else text
            study = Study.parse(text, REGISTRIES)
            source = read_dataset(study, folder)
            study, _ = complete(study, source, folder)
            made[unit] = study, Silo.open(make_silos(study, source, folder / f"silos-{len(made)}")[0])
        return made[unit]

    return get


MANY = "600 records in a silo"
PEOPLE = 'unit = "person"\nmax_records_per_unit = 2'
Site = Callable[..., tuple[Study, Silo]]


def audited(site: Site, unit: str = "", canaries: int = 300, **changes: Any) -> dict[str, Any]:
    study, silo = site(unit)
    values = {key.replace("__", "."): value for key, value in changes.items()}
    study = study.with_values(values, REGISTRIES) if values else study
    return audit_silo(study, silo, canaries=canaries, advance=lambda steps, total: None)


@pytest.mark.parametrize("unit", ["", PEOPLE])
def test_the_real_training_passes(site: Site, unit: str) -> None:
    facts = audited(site, unit)
    assert not facts["contradicted"], facts["conformance"]
    own = facts["canaries"]
    assert 0.3 < own["epsilon_lower_bound"] < facts["claim"]["epsilon"], "an attack that finds nothing audits nothing"
    assert own["epsilon_lower_bound"] <= own["epsilon_lower_bound_gaussian"] <= own["most_that_can_be_shown"]
    json.dumps(facts)


Patch = Callable[[pytest.MonkeyPatch], None]


def noise(change: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]) -> Patch:
    """Replace the noise of a step: the change gets the sum and the arguments of `add_noise`."""
    return lambda patch: patch.setattr(local, "add_noise", lambda total, **named: change(total, named))


def less(total: torch.Tensor, named: dict[str, Any], factor: float = 0.9) -> torch.Tensor:
    return ADD_NOISE(total, **{**named, "noise_multiplier": factor * named["noise_multiplier"]})


def now_and_then() -> Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]:
    steps = iter(range(10**6))
    return lambda total, named: total if next(steps) % 7 == 6 else ADD_NOISE(total, **named)


def from_a_seed(total: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    return total.add_(torch.randn(len(total)) * named["noise_multiplier"] * named["clip_norm"] * 1.01)


def always_the_same() -> Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]:
    kept: dict[int, torch.Tensor] = {}

    def add(total: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
        drawn = kept.setdefault(len(total), ADD_NOISE(torch.zeros(len(total)), **named))
        return total.add_(drawn)

    return add


def wider_clip(patch: pytest.MonkeyPatch) -> None:
    def clipped(model: Any, loss: Any, batch: Any, units: Any, clip_norm: float, *rest: Any) -> torch.Tensor:
        return CLIPPED_SUM(model, loss, batch, units, 1.5 * clip_norm, *rest)

    patch.setattr(local, "clipped_sum", clipped)


def wider_chain(patch: pytest.MonkeyPatch) -> None:
    """What a model that is a chain of layers owes is halved before it is clipped, and so clipped less."""
    along = passes._along_the_chain

    def halved(*given: Any) -> Any:
        found = along(*given)
        for located in found:
            for name, values in vars(located.part).items():
                if name in ("g_UO", "values_UP"):
                    values.mul_(0.01)
        return found

    patch.setattr(passes, "_along_the_chain", halved)


def clip_by_row(patch: pytest.MonkeyPatch) -> None:
    def clipped(model: Any, loss: Any, batch: Any, units: Any, clip_norm: float, *rest: Any) -> torch.Tensor:
        return CLIPPED_SUM(model, loss, batch, np.arange(len(units)), clip_norm, *rest)

    patch.setattr(local, "clipped_sum", clipped)


def samples_twice(patch: pytest.MonkeyPatch) -> None:
    one = SecretRandom.poisson_sample
    patch.setattr(SecretRandom, "poisson_sample", lambda self, count, rate: one(self, count, min(1.0, 2 * rate)))


def sampler(draw: Callable[[int, float, int, np.random.Generator], np.ndarray]) -> Patch:
    """Replace how samples are drawn: from the number of units, the rate, the step's number and a generator."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        steps: dict[int, int] = {}
        random = np.random.default_rng(1)

        def sampled(self: SecretRandom, count: int, rate: float) -> np.ndarray:
            steps[count] = steps.get(count, -1) + 1
            return np.sort(draw(count, rate, steps[count], random)).astype(np.intp)

        patch.setattr(SecretRandom, "poisson_sample", sampled)

    return plant


def shuffled_epochs(count: int, rate: float, step: int, random: np.random.Generator) -> np.ndarray:
    batches = round(1 / rate)
    order = np.random.default_rng([count, step // batches]).permutation(count)
    return np.array_split(order, batches)[step % batches]


def in_turn(count: int, rate: float, step: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(step % round(1 / rate), count, round(1 / rate))


def twice_each(count: int, rate: float, step: int, random: np.random.Generator) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng([count, step // 2]).random(count) < rate)


def all_or_nobody(count: int, rate: float, step: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(count if random.random() < rate else 0)


def skips_a_step(patch: pytest.MonkeyPatch) -> None:
    steps = local.gradients_of_steps

    def fewer(model: Any, part: Any, shape: Any, plan: Any, device: Any) -> Iterator[torch.Tensor]:
        return islice(steps(model, part, shape, plan, device), max(1, plan.steps - 1))

    patch.setattr(local, "gradients_of_steps", fewer)


ADD_NOISE, CLIPPED_SUM = local.add_noise, local.clipped_sum
FAULTS: dict[str, tuple[str, str, Patch]] = {
    "a tenth less noise": ("noise", "", noise(less)),
    "half the noise": ("noise", "", noise(lambda total, named: less(total, named, 0.5))),
    "no noise": ("noise", "", noise(lambda total, named: total)),
    "a step without noise": ("quietest step", "", lambda patch: noise(now_and_then())(patch)),
    "noise from a seed": ("fresh noise", "", noise(from_a_seed)),
    "the same noise in each step": ("next step", "", lambda patch: noise(always_the_same())(patch)),
    "a clip norm that is half as large again": ("sensitivity", "", wider_clip),
    "each record clipped, not each person": ("sensitivity", PEOPLE, clip_by_row),
    "everyone sampled twice as often": ("sampling rate", "", samples_twice),
    "shuffled epochs in place of samples": ("samples a unit", "", sampler(shuffled_epochs)),
    "units in turn": ("samples again", "", sampler(in_turn)),
    "each sample used twice": ("samples again", "", sampler(twice_each)),
    "all units or none": ("samples a step", "", sampler(all_or_nobody)),
    "a clip that the chain of layers forgets": ("same sum", "", wider_chain),
    "a step that is not taken": ("steps", "", skips_a_step),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(site: Site, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, unit, plant = FAULTS[fault]
    plant(monkeypatch)
    facts = audited(site, unit)
    assert facts["contradicted"]
    assert check in {entry["name"] for entry in facts["conformance"] if not entry["holds"]}, fault


def test_a_fifth_of_the_noise_is_found_by_the_attack_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(lambda total, named: less(total, named, 0.2))(monkeypatch)
    assert audited(site, canaries=1000, privacy__noise_multiplier=2.5)["canaries"]["contradicted"]


def test_a_leak_that_passes_by_the_canaries_is_found_in_the_losses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without canaries in sight the model learns its records by heart."""

    honest = [True]

    def clipped(model: Any, loss: Any, batch: Any, units: Any, clip_norm: float, *rest: Any) -> torch.Tensor:
        honest[0] = isinstance(model, WithCanaries)
        return CLIPPED_SUM(model, loss, batch, units, clip_norm if honest[0] else 1e6, *rest)

    def add(total: torch.Tensor, **named: Any) -> torch.Tensor:
        return ADD_NOISE(total, **named) if honest[0] else total

    monkeypatch.setattr(local, "clipped_sum", clipped)
    monkeypatch.setattr(local, "add_noise", add)
    facts = audited(
        site,
        MANY,
        privacy__noise_multiplier=50.0,
        model__name="mlp(hidden=[64, 64])",
        training__optimizer="adam(lr=0.01)",
        training__steps=300,
    )
    assert all(check["holds"] for check in facts["conformance"]) and not facts["canaries"]["contradicted"]
    assert facts["records"]["contradicted"] and facts["contradicted"]


# --- canaries of every task and kind of model -----------------------------------------------------------------

KINDS = {
    "regression": ("diabetes", {}),
    "images": ("digits", {"study.rounds": 1, "model.name": "cnn()"}),
    "many classes": ("digits", {"study.rounds": 1, "model.name": "vit()"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_tasks_and_models_are_audited(tmp_path: Path, kind: str) -> None:
    name, values = KINDS[kind]
    study, base = read_study(name, {**values, "simulation.silos": 3, "training.steps": 4})
    found = audit(study, base, out=tmp_path, canaries=300, advance=lambda steps, total: None)
    assert not found.contradicted, found.facts["conformance"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [found.folder.name], "no silo folder is left"


def test_a_canary_leaves_the_outputs_of_records_alone(site: Site) -> None:
    study, silo = site()
    training = canaries_of(study, silo)
    model = training.model()
    around = WithCanaries(model, training.part.x, weights=5, outputs=1, pull=100.0)
    rows = torch.tensor([0, 3, len(training.part.y) + 2, 1])
    out = around(rows)
    torch.testing.assert_close(out[[0, 1, 3]], model(training.part.x[[0, 3, 1]]))
    assert out[2].item() == 0.0
    out[2].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert around.table.weight.grad is not None and around.table.weight.grad.flatten().tolist() == [0, 0, 0, 100.0, 0]


def canaries_of(study: Study, silo: Silo) -> Training:
    from client.round import plan_of, read_records

    return Training(
        study=study,
        part=read_records(silo, study).train,
        plans=(plan_of(study, silo.name, 1),),
        device=torch.device("cpu"),
        advance=lambda steps: None,
    )


def test_what_no_generator_knows_is_left_as_it_was(site: Site) -> None:
    study, silo = site()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    observe(canaries_of(study, silo), Canaries(included=np.ones(120, np.bool_), controls=120, rows=1))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- what people see ------------------------------------------------------------------------------------------


def test_a_study_without_steps_is_refused(tmp_path: Path) -> None:
    for values in ({"privacy.mechanism": "none", "privacy.epsilon": None}, {"privacy.mechanism": "local-gaussian"}):
        study, base = read_study("breast-cancer", values)
        with pytest.raises(SettingError, match="dp-sgd"):
            audit(study, base, out=tmp_path, advance=lambda steps, total: None)


def test_a_silo_of_few_units_is_refused(tmp_path: Path) -> None:
    study, base = read_study("breast-cancer", {"simulation.silos": 40, "simulation.partition": "iid"})
    with pytest.raises(DataError, match=r"lower simulation\.silos"):
        audit(study, base, out=tmp_path, advance=lambda steps, total: None)


def test_too_few_or_too_many_canaries_are_refused_before_anything_is_trained(site: Site) -> None:
    study, silo = site()
    for canaries in (24, 2**21):
        with pytest.raises(SettingError, match="with 40 steps: it must be from 25 to 1677721"):
            audit_silo(study, silo, canaries=canaries, advance=lambda steps, total: None)


def test_an_audit_that_cannot_tell_says_so(site: Site) -> None:
    facts = audited(site, privacy__noise_multiplier=0.3)
    assert not facts["records"]["can_contradict"] and "too few to tell" in render(facts)


def test_a_run_whose_audit_fails_has_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"study.rounds": 2, "privacy.noise_multiplier": 2.0, "privacy.epsilon": None}
    study, base = read_study("breast-cancer", {**values, "simulation.silos": 40, "simulation.partition": "iid"})
    with pytest.raises(DataError, match="an audit needs 20"):
        simulate(study, base, out=tmp_path / "few", audited=True)
    assert not list((tmp_path / "few").glob("breast-cancer-*")), "told before anything is spent"
    monkeypatch.setattr("simulations.audit.observe", lambda *_: (_ for _ in ()).throw(RunError("it left the range")))
    study, base = read_study("breast-cancer", values)
    outcome = simulate(study, base, out=tmp_path, audited=True, with_baselines=False)
    assert outcome.facts["audit"]["status"] == "failed" and (outcome.silos[0].parent / "pins.json").exists()
    assert "it left the range" in (outcome.folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_contradiction_claims_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = render(audited(site))
    assert "No contradiction" in fine and "Warning" not in fine and fine.count("<svg") == 2
    noise(lambda total, named: less(total, named, 0.5))(monkeypatch)
    facts = audited(site)
    page = render(facts)
    assert "Warning: the claim is contradicted" in page and "No contradiction" not in page
    assert "the check &#39;noise&#39;" in page or "the check 'noise'" in page
    told = run_facts()
    told["audit"] = beside(facts)
    of_run = render_run(told)
    assert "an audit contradicts the privacy claim" in of_run and '<h2 id="h-claim">The claim' not in of_run
    assert render(facts) == page


def test_a_run_can_be_audited(tmp_path: Path) -> None:
    study, base = read_study(
        "breast-cancer", {"study.rounds": 2, "privacy.noise_multiplier": 2.0, "privacy.epsilon": None}
    )
    outcome = simulate(study, base, out=tmp_path, audited=True, with_baselines=False)
    assert outcome.facts["audit"]["status"] == "run" and "no contradiction" in outcome.facts["audit"]["reason"]
    page = (outcome.folder / "report.html").read_text(encoding="utf-8")
    assert "trains on the records of silo-1 without an entry in its ledger" in page
    assert "The crosses are what the audit" in page and (outcome.folder / "audit.html").exists()
    kept = json.loads((outcome.folder / "audit.json").read_text(encoding="utf-8"))
    assert kept["canaries"]["roc"] == outcome.facts["audit"]["roc"]
    checked = subprocess.run(
        [sys.executable, "-c", "from strategies.verify import main; main()", "check", str(outcome.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    (outcome.folder / "audit.json").write_text("{}")
    checked = subprocess.run(
        [sys.executable, "-c", "from strategies.verify import main; main()", "check", str(outcome.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 4, "the audit stands under the folder's seal"
