"""Laws of silo-level privacy: an update never leaves its ball, the noise is what was accounted, one unit is charged for
the whole width of the ball, and who is trusted is said.

Oracles: the exact curve of the Gaussian mechanism (Balle & Wang 2018, theorem 8) written out here, the known figures of
Kairouz et al. 2021's setting computed with dp-accounting's own event classes, plain training of the same job, scipy's
Kolmogorov-Smirnov test. Every statistical test states its false-alarm rate and rejects 2/3 and 3/2 of the deviation.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy import optimize, stats
from test_facts import facts
from test_facts import study as reported
from test_round import FRAME, REGISTRIES, TEXT, prepare, request
from typer.testing import CliRunner

from client import round as local_round
from client.models.base import Shape, build, weights_of
from client.policy import BudgetTable, Policy, Requirements
from client.round import finish, model_layout, train
from client.silo import Silo
from simulations.run import simulate
from simulations.silos import make_silos
from strategies.errors import Refusal, RefusalCode, RunError
from strategies.privacy.accountant import calibrate, epsilon
from strategies.privacy.admission import admission
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Gaussian
from strategies.privacy.mechanisms import allowed_by
from strategies.privacy.secret import GRID, SecretRandom
from strategies.privacy.silo_level import clipped, noise_on_mean, noised, silo_epsilon, silos_a_round, warning
from strategies.report.page import render
from strategies.report.registry import registry_of_run
from strategies.study import Study, override
from strategies.verify import app as verify

FALSE_ALARM = 1e-9
MECHANISMS = ("local-gaussian", "central-gaussian")


def study(**values: Any) -> Study:
    """The study of test_round.py with `section__key` values."""
    return Study.parse(override(TEXT, {k.replace("__", "."): v for k, v in values.items()}), REGISTRIES)


# --- the ball -----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.floats(1e-3, 1e3))
def test_whatever_comes_the_result_is_in_the_ball(values: list[float], clip_norm: float) -> None:
    vector = clipped(np.array(values, np.float32), clip_norm)
    exact = math.fsum(float(value) ** 2 for value in vector)  # of float32 values, squares are exact in float64
    assert vector.dtype == np.float32 and vector.shape == (len(values),)
    assert math.sqrt(exact) <= clip_norm
    if not np.isfinite(values).all():
        assert not vector.any()


def test_a_short_update_stays_as_it_is_and_a_long_one_keeps_its_direction() -> None:
    short = np.array([0.3, -0.4], np.float32)
    np.testing.assert_array_equal(clipped(short, 1.0), short)
    np.testing.assert_allclose(clipped(np.array([30.0, -40.0], np.float32), 1.0), [0.6, -0.8], rtol=2e-6)
    np.testing.assert_allclose(clipped(np.array([3e38, 3e38], np.float32), 2.0), [math.sqrt(2)] * 2, rtol=2e-6)
    np.testing.assert_array_equal(clipped(np.zeros(3, np.float32), 1.0), np.zeros(3))
    assert clipped(np.zeros(0, np.float32), 1.0).shape == (0,)


def test_the_norm_holds_for_long_vectors_in_which_rounding_adds_up() -> None:
    vector = clipped(np.full(1_000_003, 0.1, np.float32), 0.7)
    assert 0.7 * (1 - 2e-6) <= math.sqrt(math.fsum(vector.astype(np.float64) ** 2)) <= 0.7


# --- the noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip_norm", "multiplier"), [(1.0, 0.5), (0.3, 4.0), (20.0, 30.0)])
def test_noise_has_the_stated_deviation(clip_norm: float, multiplier: float) -> None:
    total = np.linspace(-clip_norm, clip_norm, 20_000)
    released = noised(total, clip_norm=clip_norm, noise_multiplier=multiplier, random=SecretRandom())
    away = (released - total) / (multiplier * clip_norm)
    assert stats.kstest(away, "norm").pvalue > FALSE_ALARM
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(away / wrong, "norm").pvalue < FALSE_ALARM


class Ones(SecretRandom):
    """A source whose normal values are all 1: what `noised` makes of it is the scale itself."""

    def normal(self, count: int, deviation: float = 1.0) -> np.ndarray:
        return np.full(count, deviation)


@pytest.mark.parametrize("size", [1, 4096, 1_000_000])
def test_the_deviation_pays_for_the_grid(size: int) -> None:
    """Two sums on a grid of step g are apart by sqrt(d) g more than they were, those from a ring as fine by as much."""
    clip_norm, multiplier = 0.25, 4096.0
    step = GRID * clip_norm
    released = noised(np.zeros(size), clip_norm=clip_norm, noise_multiplier=multiplier, random=Ones())
    np.testing.assert_allclose(released, multiplier * (clip_norm + 2 * math.sqrt(size) * step), rtol=1e-7)
    on_grid = noised(np.full(size, 0.1), clip_norm=clip_norm, noise_multiplier=1.0, random=SecretRandom()) / step
    np.testing.assert_array_equal(on_grid, np.rint(on_grid))


# --- the accounting -----------------------------------------------------------------------------------------


def exact_epsilon(sensitivity: float, deviation: float, delta: float) -> float:
    """Balle & Wang 2018, theorem 8: the smallest epsilon of one Gaussian release."""
    ratio = sensitivity / deviation

    def excess(eps: float) -> float:
        below, above = stats.norm.cdf(ratio / 2 - eps / ratio), stats.norm.logcdf(-ratio / 2 - eps / ratio)
        return float(below - math.exp(eps + above) - delta)

    return float(optimize.brentq(excess, 0.0, 200.0)) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("sigma", "rounds"), [(4.0, 1), (10.0, 3), (8.0, 20)])
def test_one_unit_is_charged_for_the_width_of_the_ball(mechanism: str, sigma: float, rounds: int) -> None:
    """Rounds of one Gaussian compose to one with its deviation over the root of their number (Dong et al. 2022)."""
    found = study(privacy__mechanism=mechanism, privacy__noise_multiplier=sigma, study__rounds=rounds)
    assert found.round_events() == (Gaussian(noise_multiplier=sigma / 2),)
    width = exact_epsilon(2.0, sigma / math.sqrt(rounds), 1e-5)
    assert epsilon(found.total_events(), 1e-5) == pytest.approx(width, rel=2e-3)
    assert epsilon(found.total_events(), 1e-5) >= width
    assert silo_epsilon(found) == pytest.approx(exact_epsilon(1.0, sigma / math.sqrt(rounds), 1e-5), rel=2e-3)


def test_neither_steps_nor_samples_nor_cohorts_change_the_charge() -> None:
    plain = study(privacy__mechanism="local-gaussian").round_events()
    for change in ({"training__steps": 50}, {"training__sampling_rate": 0.001}, {"cohort__fraction": 0.1}):
        assert study(privacy__mechanism="local-gaussian", **change).round_events() == plain


def test_known_figures() -> None:
    """Of 20 rounds: sigma = 16.684 keeps epsilon 1 at 1e-5 for a silo's updates, sigma = 4 costs 5.55 at 1e-6."""
    assert calibrate(1.0, 1e-5, sampling_rate=1.0, steps=20) == pytest.approx(16.6840, rel=2e-3)
    values = {"privacy__mechanism": "central-gaussian", "study__rounds": 20}
    assert silo_epsilon(study(**values, privacy__noise_multiplier=16.684)) == pytest.approx(1.0, rel=2e-3)
    assert silo_epsilon(study(**values, privacy__noise_multiplier=4.0, privacy__delta=1e-6)) == pytest.approx(
        5.5509, rel=2e-3
    )
    oracle = PLDAccountant()
    oracle.compose(SelfComposedDpEvent(GaussianDpEvent(noise_multiplier=2.0), 20))
    found = study(**values, privacy__noise_multiplier=4.0, privacy__delta=1e-6)
    assert epsilon(found.total_events(), 1e-6) == pytest.approx(oracle.get_epsilon(1e-6), rel=2e-3)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_target_is_that_of_one_unit_and_is_kept(accountant: str) -> None:
    values = {"privacy__noise_multiplier": None, "privacy__epsilon": 1.0, "privacy__accountant": accountant}
    found = study(privacy__mechanism="local-gaussian", study__rounds=20, **values)
    assert epsilon(found.total_events(), 1e-5, accountant=accountant) <= 1.0  # type: ignore[arg-type]
    less = (Gaussian(noise_multiplier=found.noise_multiplier / 2 - 1e-4, steps=20),)
    assert epsilon(less, 1e-5, accountant=accountant) > 1.0  # type: ignore[arg-type]
    if accountant == "pld":
        assert found.noise_multiplier == pytest.approx(2 * 16.684, rel=2e-3)


def test_counts_share_the_target() -> None:
    values = {"privacy__noise_multiplier": None, "privacy__epsilon": 2.0, "evaluation__noise_multiplier": 20.0}
    found = study(privacy__mechanism="central-gaussian", evaluation__release="noisy", **values)
    assert found.round_events()[1:] == (Gaussian(noise_multiplier=20.0),)
    assert 1.9 < epsilon(found.total_events(), 1e-5) <= 2.0


def test_what_would_fit_of_a_study_that_does_not() -> None:
    root = DataRoot(name="ward", unit="record", epsilon=2.0, delta=1e-5)
    whole = admission(study(privacy__mechanism="local-gaussian", privacy__noise_multiplier=5.0), root, ())
    assert not whole.fits and whole.rounds < 3
    values = {"privacy__noise_multiplier": None, "privacy__epsilon": whole.largest_epsilon}
    assert admission(study(privacy__mechanism="local-gaussian", **values), root, ()).fits
    more = {**values, "privacy__epsilon": whole.largest_epsilon * 1.02}
    assert not admission(study(privacy__mechanism="local-gaussian", **more), root, ()).fits


# --- a round at the silo ------------------------------------------------------------------------------------


def silo_of(folder: Path, of: Study) -> Silo:
    return Silo.open(make_silos(of, FRAME, folder)[0])


def update_of(of: Study, silo: Silo) -> np.ndarray:
    job = prepare(request(study=of), of, silo)
    assert isinstance(job, local_round.Job)
    return finish(job, train([job])[0]).update


LARGE = {"training__optimizer": "sgd(lr=20.0)"}  # an update that is longer than the clip norm


@pytest.mark.parametrize(("values", "long"), [(LARGE, True), ({"training__optimizer": "sgd(lr=0.001)"}, False)])
def test_the_silo_trains_plainly_and_clips_the_whole_update(values: dict[str, Any], long: bool, tmp_path: Path) -> None:
    plain = study(privacy__mechanism="none", privacy__noise_multiplier=None, **values)
    central = study(privacy__mechanism="central-gaussian", **values)
    own = update_of(plain, silo_of(tmp_path / "plain", plain))
    norm = float(np.linalg.norm(own))
    assert (norm > 1) == long
    sent = update_of(central, silo_of(tmp_path / "central", central))
    np.testing.assert_allclose(sent, own / max(norm, 1.0), rtol=2e-6)


def test_with_local_noise_what_leaves_is_noised_and_charged_once(tmp_path: Path) -> None:
    """100 rounds' noise of the 6 parameters: Kolmogorov-Smirnov at 1e-9, which rejects half the deviation."""
    values = {"privacy__noise_multiplier": 30.0, "study__rounds": 1}
    local, central = (study(privacy__mechanism=name, **values) for name in MECHANISMS)
    silo = silo_of(tmp_path, local)
    mean = update_of(central, silo_of(tmp_path / "central", central))
    job = prepare(request(study=local), local, silo)
    assert isinstance(job, local_round.Job)
    drawn = np.concatenate([(train([job])[0].contribution.update - mean) / 30.0 for _ in range(100)])
    assert stats.kstest(drawn, "norm").pvalue > FALSE_ALARM > stats.kstest(drawn * 2, "norm").pvalue
    finish(job, train([job])[0])
    with silo.ledger() as ledger:
        assert ledger.spent("records") == (Gaussian(noise_multiplier=15.0),)


def test_training_that_leaves_the_range_of_numbers_sends_no_update(tmp_path: Path) -> None:
    """To refuse would tell of the records; without privacy it is an error as before."""
    wild = {"training__optimizer": "sgd(lr=1e38)", "training__expected_batch_size": 1e-6}
    central = study(privacy__mechanism="central-gaussian", **wild)
    assert not update_of(central, silo_of(tmp_path / "central", central)).any()
    plain = study(privacy__mechanism="none", privacy__noise_multiplier=None, **wild)
    with pytest.raises(RunError, match="left the range of numbers"):
        update_of(plain, silo_of(tmp_path / "plain", plain))


def test_what_is_sent_depends_on_no_global_seed(tmp_path: Path) -> None:
    local = study(privacy__mechanism="local-gaussian")
    job = prepare(request(study=local), local, silo_of(tmp_path, local))
    assert isinstance(job, local_round.Job)
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        drawn.append(train([job])[0].contribution.update)
    assert not np.array_equal(*drawn)


# --- what is allowed ----------------------------------------------------------------------------------------

LIMITS = {
    "dp-sgd": {"dp-sgd"},
    "local-gaussian": {"dp-sgd", "local-gaussian"},
    "distributed-gaussian": {"dp-sgd", "local-gaussian", "distributed-gaussian"},
    "central-gaussian": {"dp-sgd", "local-gaussian", "distributed-gaussian", "central-gaussian"},
    "none": {"dp-sgd", "local-gaussian", "distributed-gaussian", "none"},  # no word of trust in the server
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_policy_allows_its_mechanism_and_those_that_trust_fewer(limit: Any) -> None:
    assert set(allowed_by(limit)) == LIMITS[limit]
    table = BudgetTable(epsilon=math.inf, delta=1e-5)
    policy = Policy(budget={"records": table}, require=Requirements(mechanism=limit, approval="automatic"))
    for asked in ("dp-sgd", *MECHANISMS, "none"):
        of = study(privacy__mechanism=asked, **({"privacy__noise_multiplier": None} if asked == "none" else {}))
        if asked in LIMITS[limit]:
            policy.admit(of)
            continue
        with pytest.raises(Refusal, match=rf"asks for privacy.mechanism dp-sgd.*; the study has {asked}") as refused:
            policy.admit(of)
        assert refused.value.code is RefusalCode.POLICY


def problems(**values: Any) -> list[str]:
    with pytest.raises(ValueError) as wrong:
        study(**values)
    return [problem.sentence for problem in wrong.value.problems]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"privacy__mechanism": "central-gaussian", "strategy__weights": "declared"},
            "strategy.weights = 'declared' is not allowed with privacy.mechanism = 'central-gaussian'",
        ),
        ({"privacy__mechanism": "local-gaussian", "privacy__epsilon": 1.0}, "mechanism = 'local-gaussian'; remove one"),
        ({"privacy__mechanism": "central"}, "privacy.mechanism = 'central' is not allowed"),
        ({"privacy__mechanism": "distributed-gaussian"}, "write secagg.enabled = true or"),
        ({"privacy__mechanism": "distributed-gaussian"}, "write accountant = 'rdp'"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], sentence: str) -> None:
    assert any(sentence in said for said in problems(**values))


def test_declared_weights_go_with_local_noise() -> None:
    assert study(privacy__mechanism="local-gaussian", strategy__weights="declared").silo_level


# --- what is said -------------------------------------------------------------------------------------------


def test_the_warning_has_the_numbers() -> None:
    central = study(privacy__mechanism="central-gaussian", privacy__clip_norm=2.0, privacy__noise_multiplier=6.0)
    assert noise_on_mean(central, 30) == pytest.approx(6 * 2 / 30)
    said = warning(central, 30, 10_000)
    assert said and "standard deviation 0.4 on each" in said and "L2 norm 40 over 10000 parameters" in said
    assert "at most 2:" in said and "about 100 silos" in said
    assert warning(central, 100) is None and warning(central, 99) is not None
    local = study(privacy__mechanism="local-gaussian", privacy__noise_multiplier=6.0)
    assert noise_on_mean(local, 36) == pytest.approx(1.0)
    assert warning(local, 9_999) is not None and warning(local, 10_000) is None
    assert warning(study(), 3) is None
    assert silos_a_round(study(cohort__fraction=0.3), 20) == 6 and silos_a_round(study(), 2) == 2


def of_report(mechanism: str) -> Study:
    return reported(("noise_multiplier = 2.0", f'mechanism = "{mechanism}"\nnoise_multiplier = 8.0'))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_report_says_who_is_trusted_and_what_one_unit_costs(mechanism: str) -> None:
    of, central = of_report(mechanism), mechanism == "central-gaussian"
    found = json.loads(json.dumps(facts(of, rounds={"a": 4, "b": 4}, lines=0)))
    level = found["privacy"]["silo_level"]
    assert level["unit_noise_multiplier"] == 4.0 and level["silos"] == 2 and level["warning"]
    assert level["epsilon"] == epsilon((Gaussian(noise_multiplier=8.0, steps=4),), 1e-5)
    assert found["silos"][0]["epsilon"] == epsilon((Gaussian(noise_multiplier=4.0, steps=4),), 1e-5)
    (row,) = [row for row in found["releases"] if row["field"] == "Update.update"]
    assert row["privacy"] == ("exact" if central else "released")
    trusted = dict(found["trust"])
    assert ("everybody but the server" in trusted["Setting"]) == central
    assert ("trusted to add the noise" in trusted["The server sees"]) == central
    assert any("without noise, which the server" in what for what in found["unprotected"]) == central
    page = render({**found, "silos": [{**silo, "statement": None} for silo in found["silos"]]})
    assert ("is not the server and sees the model" in page) == central
    assert ("sees everything that" in page) != central
    assert "Few silos" in page and "twice the clip norm" in page
    assert mechanism in registry_of_run(found) and ("trusted to add the noise" in registry_of_run(found)) == central


def test_other_reports_have_no_word_of_it() -> None:
    assert facts(reported())["privacy"]["silo_level"] is None


# --- whole runs ---------------------------------------------------------------------------------------------


MASKED = {"secagg.enabled": True, "privacy.accountant": "rdp", "study.rounds": 1, "model.name": "mlp(hidden=[400])"}


@pytest.mark.parametrize("mechanism", ["distributed-gaussian", *MECHANISMS])
def test_under_masks_the_model_has_the_noise_of_its_mechanism(mechanism: str, tmp_path: Path) -> None:
    """sigma = 50, three silos of which one may collude: shares of sigma / sqrt 2 each, three of them in the mean.

    Kolmogorov-Smirnov over 2002 parameters at 1e-9; beside it the updates, of norm 1 at most, are nothing.
    """
    of = Study.parse(
        override(TEXT, {"privacy.mechanism": mechanism, "privacy.noise_multiplier": 50.0, **MASKED}), REGISTRIES
    )
    outcome = simulate(of, Path(), out=tmp_path, with_baselines=False)
    assert [line["dropped"] for line in outcome.facts["rounds"]] == [0]
    start = weights_of(build(of.model, Shape.of_study(of), of.file.study.seed))
    last = model_layout(of).join(load_file(outcome.folder / "model.safetensors"))
    wide = {"distributed-gaussian": math.sqrt(3 / 2), "local-gaussian": math.sqrt(3), "central-gaussian": 1.0}
    noise = (last - start) / (50.0 * wide[mechanism] / 3)
    assert stats.kstest(noise, "norm").pvalue > FALSE_ALARM
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(noise / wrong, "norm").pvalue < FALSE_ALARM
    (charged,) = {json.dumps(silo["events"][0], sort_keys=True) for silo in outcome.facts["silos"]}
    assert json.loads(charged) == {"kind": "gaussian", "noise_multiplier": 25.0, "sampling_rate": 1.0, "steps": 1}
    done = CliRunner().invoke(verify, ["check", str(outcome.folder)])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_whole_run_keeps_its_epsilon_and_verifies(mechanism: str, tmp_path: Path) -> None:
    values = {"privacy__noise_multiplier": None, "privacy__epsilon": 3.0, "study__rounds": 2}
    outcome = simulate(study(privacy__mechanism=mechanism, **values), Path(), out=tmp_path, with_baselines=False)
    found = outcome.facts
    level = found["privacy"]["silo_level"]
    assert found["run"]["status"] == "complete" and [line["dropped"] for line in found["rounds"]] == [0, 0]
    for silo in found["silos"]:
        charged = [{"kind": "gaussian", "noise_multiplier": level["unit_noise_multiplier"]}]
        assert silo["events"] == [{**one, "sampling_rate": 1.0, "steps": 2} for one in charged]
        assert silo["events"] == silo["statement"]["events"] and 2.9 < silo["epsilon"] <= 3.0
    assert level["epsilon"] < 3.0 and level["noise_on_mean"] > 0.1
    done = CliRunner().invoke(verify, ["check", str(outcome.folder)])
    assert done.exit_code == 0, done.output
