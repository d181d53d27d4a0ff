"""The ready studies: each says what it is worth, and is.

The header of a study states the metric that its run reaches, with a tolerance. The full tier runs every one of them;
the smaller tier runs a few, cut short, and asks only that they beat chance by far. The claim that privacy costs little
is a table of models, each on real records: the pooled row is the same model trained plainly on all records together.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simulations.listing import KINDS, rows
from simulations.ready import STUDIES, read_study
from simulations.run import simulate

NAMES = tuple(sorted(path.stem for path in STUDIES.glob("*.toml")))
HEADER = re.compile(r"Expected: (.+?) \(tolerance ([0-9.]+)\)")
METRIC = re.compile(r"(accuracy|AUROC|RMSE) ([0-9.]+)")


def header(name: str) -> str:
    lines = (STUDIES / f"{name}.toml").read_text(encoding="utf-8").split("\n[")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


def expected(name: str) -> tuple[dict[str, float], float]:
    """Return the metrics that the header states, and their tolerance."""
    found = HEADER.search(header(name))
    assert found, f"{name} states no expected metric"
    values = {metric.lower(): float(value) for metric, value in METRIC.findall(found[1])}
    assert values, found[0]
    return values, float(found[2])


def needs_development_data(name: str, request: pytest.FixtureRequest) -> None:
    if "FEDSILO_DATA" in header(name):
        request.getfixturevalue("data_folder")


def run(name: str, folder: Path, overrides: dict[str, Any], *, with_baselines: bool = False) -> dict[str, Any]:
    study, base = read_study(name, overrides)
    return simulate(study, base, out=folder, fresh=True, with_baselines=with_baselines).facts


@pytest.mark.parametrize("name", NAMES)
def test_it_parses_and_its_header_tells_what_to_expect(name: str) -> None:
    study, _ = read_study(name, {})
    values, tolerance = expected(name)
    assert study.file.study.name == name.replace("_", "-")
    assert set(values) <= set(study.metrics) and 0 < tolerance <= 15
    assert re.search(r"Rows: [0-9,]+", header(name)), "the header says how many records there are"
    assert (study.file.privacy.epsilon or 0) <= 8
    assert study.private or "WITHOUT" in header(name), "a study without privacy says so in its first lines"


@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_what_its_header_says(
    name: str, tmp_path: Path, full_tier: bool, request: pytest.FixtureRequest
) -> None:
    values, tolerance = expected(name)
    if not full_tier:
        assert all(value > 0 for value in values.values())
        return
    needs_development_data(name, request)
    facts = run(name, tmp_path, {})
    for metric, value in values.items():
        assert abs(facts["metrics"][metric] - value) <= tolerance, (metric, facts["metrics"])
    for silo in facts["silos"]:
        assert facts["privacy"]["mechanism"] == "none" or silo["epsilon"] <= 8


@dataclass(frozen=True, kw_only=True)
class Short:
    """A study cut short.

    Args:
        overrides: what makes it short.
        metric: that is looked at.
        chance: what guessing gives.
        least: what the short run reaches.
    """

    overrides: dict[str, Any]
    metric: str
    chance: float
    least: float


SHORT = {
    "card_fraud": Short(overrides={"study.rounds": 4}, metric="auroc", chance=0.5, least=0.7),
    "digits": Short(overrides={"study.rounds": 6}, metric="accuracy", chance=0.1, least=0.4),
    "rand_hie_history": Short(overrides={"study.rounds": 5}, metric="auroc", chance=0.5, least=0.7),
    "sms_spam": Short(overrides={"study.rounds": 3, "data.shape": [24]}, metric="auroc", chance=0.5, least=0.7),
}


@pytest.mark.parametrize("name", sorted(SHORT))
def test_cut_short_it_still_beats_chance(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    needs_development_data(name, request)
    short = SHORT[name]
    facts = run(name, tmp_path, short.overrides)
    assert facts["metrics"][short.metric] >= short.least > short.chance, facts["metrics"]


# --- what privacy costs -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The federated model at epsilon 8 a silo is at most `loss` below the same model pooled and not private.

    Args:
        study: a ready study on real records.
        metric: that is compared.
        loss: 0.05, or 0.02 where each silo has 2,000 records or more.
        overrides: of the study.
    """

    study: str
    metric: str = "auroc"
    loss: float = 0.05
    overrides: tuple[tuple[str, Any], ...] = ()


CLAIMS = {
    "logistic": Claim(study="heart_disease"),
    "cnn": Claim(study="pneumonia_mnist"),
    "lstm": Claim(study="rand_hie_history", overrides=(("model.name", "lstm(hidden=16)"),)),
    "gru": Claim(study="rand_hie_history"),
    "transformer": Claim(study="physionet2012"),
    "ft_transformer": Claim(study="credit_default_taiwan", loss=0.02),
    "text_transformer": Claim(study="sms_spam"),
}


@pytest.mark.parametrize("model", sorted(CLAIMS))
def test_privacy_costs_at_most_five_points(
    model: str, tmp_path: Path, full_tier: bool, request: pytest.FixtureRequest
) -> None:
    claim = CLAIMS[model]
    needs_development_data(claim.study, request)
    study, _ = read_study(claim.study, dict(claim.overrides))
    assert study.file.model.name.startswith(f"{model}(") and study.file.privacy.epsilon == 8
    if not full_tier:
        return
    facts = run(claim.study, tmp_path, dict(claim.overrides), with_baselines=True)
    private, plain = facts["metrics"][claim.metric], facts["baselines"]["pooled"][claim.metric]
    assert private >= plain - claim.loss, (private, plain)


# --- the list -----------------------------------------------------------------------------------------------


def test_the_list_of_studies_says_what_a_reader_needs() -> None:
    listed = {row["name"]: row for row in rows("studies")}
    assert set(listed) == {name.replace("_", "-") for name in NAMES}
    for row in listed.values():
        assert row["sector"].startswith(("Healthcare", "Finance", "Synthetic (")) and row["rows"] > 0 and row["what"]
    assert {row["kind"] for row in listed.values()} == {"tabular", "images", "signals", "sequences", "text"}
    assert listed["azpro"]["needs"] == "extra demo" and listed["mitbih"]["needs"] == "FEDSILO_DATA"
    assert listed["breast-cancer"]["needs"] is None and listed["breast-cancer"]["rows"] == 569


def test_models_are_listed_with_counted_parameters() -> None:
    """Counted by hand: logistic on 32 columns has 32 weights and one bias; the MLP 32-64-32-1."""
    counted = {row["name"].split("(")[0]: row["parameters"] for row in rows("models", counted=True)}
    assert counted["logistic"]["tabular"] == 33
    assert counted["mlp"]["tabular"] == 32 * 64 + 64 + 64 * 32 + 32 + 32 + 1
    assert all(count > 0 for by_kind in counted.values() for count in by_kind.values())
    assert "parameters" not in rows("models")[0]


def test_only_counting_parameters_loads_torch() -> None:
    code = "import sys; from simulations.listing import KINDS, rows; [rows(k) for k in KINDS]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_command_lists_parameters_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations.cli", "list", "models", "--json"]
    code = "from simulations.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *command[3:]], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(row["parameters"] for row in json.loads(done.stdout))
    assert set(KINDS) >= {"models", "studies"}
