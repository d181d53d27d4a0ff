"""The four commands as people type them: real processes, exit codes, one sentence for an error, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import client.cli
import server.cli
import simulations.cli
import strategies.verify
from strategies.command import guarded

BIN = Path(sys.executable).parent
STUDY = """
[study]
name = "tiny"
task = "classification"
rounds = 2
[data]
kind = "tabular"
target = "label"
[data.features]
x = { type = "numeric", min = 0, max = 10 }
sex = { type = "categorical", values = ["F", "M"] }
[model]
name = "logistic()"
[training]
sampling_rate = 0.5
steps = 2
[privacy]
noise_multiplier = 2.0
[simulation]
dataset = "records.csv"
silos = 3
"""


def process(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [str(BIN / command), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )


APPS = {
    "fedsilo-simulate": simulations.cli.app,
    "fedsilo-server": server.cli.app,
    "fedsilo-silo": client.cli.app,
    "fedsilo-verify": strategies.verify.app,
}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command's own entry in this process: the same code without the start of an interpreter."""

    def call(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = guarded(APPS[command], arguments=list(arguments))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


def one_sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with a study and its records."""
    (tmp_path / "study.toml").write_text(STUDY)
    rows = [f"{i % 11},{'FM'[i % 2]},{'yes' if i % 11 > 5 else 'no'}" for i in range(60)]
    (tmp_path / "records.csv").write_text("\n".join(["x,sex,label", *rows]) + "\n")
    return tmp_path


def test_run_prints_one_json_object_and_leaves_a_run_folder(study: Path) -> None:
    done = process("fedsilo-simulate", "run", "study.toml", "--json", "--out", "kept", cwd=study)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= {"run", "metrics", "baselines", "epsilon", "rounds", "seconds"}
    assert set(result["metrics"]) == {"accuracy", "auroc", "auprc", "brier"}
    assert set(result["baselines"]) == {"pooled", "best_local"}
    assert set(result["epsilon"]) == {"silo-1", "silo-2", "silo-3"}
    assert result["epsilon"]["silo-1"]["unit"] == "record" and result["epsilon"]["silo-1"]["delta"] == 1e-5
    folder = study / result["run"]
    names = {path.name for path in folder.iterdir()}
    assert names >= {"study.toml", "metrics.jsonl", "model.safetensors", "checkpoint", "report.html", "report.json"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert lines[-1]["metrics"] == result["metrics"]
    assert lines[-1]["epsilon"]["silo-1"] == result["epsilon"]["silo-1"]["epsilon"]
    assert "classes" in (folder / "study.toml").read_text(), "what was read off the data is written back"


def test_lists_are_readable_both_ways(tmp_path: Path, run: Run) -> None:
    models = json.loads(run("fedsilo-simulate", "list", "models", "--json", cwd=tmp_path).stdout)
    assert {"logistic()", "mlp(hidden=(64, 32), activation='tanh')"} <= {row["name"] for row in models}
    shown = run("fedsilo-simulate", "list", cwd=tmp_path)
    assert shown.returncode == 0
    for word in ("logistic()", "fedprox(mu=0.01)", "breast_cancer()", "breast-cancer"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (("study.toml", "steps = 2", "steps = 'two'"), "training.steps = 'two'"),
        (("study.toml", "steps = 2", "stepps = 2"), "did you mean 'steps'?"),
        (("study.toml", "[training]", "[training"), "line "),
        (("study.toml", "noise_multiplier = 2.0", "noise_multiplier = 2.0\nepsilon = 3"), "exactly one"),
        (("study.toml", "records.csv", "gone.csv"), "there is no file"),
        (("study.toml", "x = {", "y = {"), "column 'y' is missing"),
        (("study.toml", "silos = 3", "silos = 3\nengine = 'batched'"), "not part of this version"),
        (("records.csv", "1,M,no", "1,M,NaN"), "row 2"),
        (("records.csv", "1,M,no", "one,M,no"), "row 2"),
        (("records.csv", "x,sex,label", "x,sex"), "cannot be read"),
    ],
)
def test_bad_input_gets_one_clear_sentence(study: Path, run: Run, break_it: tuple[str, str, str], says: str) -> None:
    name, old, new = break_it
    text = (study / name).read_text()
    assert old in text
    (study / name).write_text(text.replace(old, new, 1))
    code = 1 if "not part" in says else 2
    assert says in one_sentence(run("fedsilo-simulate", "run", "study.toml", cwd=study), code)


def test_an_empty_file_and_a_file_of_garbage_are_named(study: Path, run: Run) -> None:
    for content in (b"", b"x,sex,label\n", b"\x89PNG\x00\x01"):
        (study / "records.csv").write_bytes(content)
        one_sentence(run("fedsilo-simulate", "run", "study.toml", cwd=study), 2)
    (study / "study.toml").write_text(STUDY.replace("records.csv", "records.parquet"))
    (study / "records.parquet").write_bytes(b"no parquet")
    assert "cannot be read" in one_sentence(run("fedsilo-simulate", "run", "study.toml", cwd=study), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--set", "privacy"),
        ("run", "no-such-study"),
        ("list", "modells"),
        ("run", "--seed", "x"),
        ("dance",),
        ("run", "--set", "privacy.epsilon=nan"),
        ("run", "--set", "privacy.epsilon=-1"),
    ],
)
def test_wrong_usage_exits_2(tmp_path: Path, run: Run, arguments: tuple[str, ...]) -> None:
    one_sentence(run("fedsilo-simulate", *arguments, cwd=tmp_path), 2)


TWO = [
    word
    for text in ("simulation.silos=2", "simulation.partition=iid", "cohort.min_silos=2")
    for word in ("--set", text)
]


def test_an_audit_prints_one_json_object_and_leaves_its_page(study: Path, run: Run) -> None:
    done = run("fedsilo-simulate", "audit", "study.toml", *TWO, "--canaries", "300", "--json", cwd=study)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (study / facts["audit"] / "audit.html").exists() and facts["contradicted"] is False
    assert facts["claim"]["epsilon"] > facts["canaries"]["epsilon_lower_bound"] >= 0
    assert len(facts["conformance"]) == 16 and all(check["holds"] for check in facts["conformance"])


def test_an_audit_that_contradicts_the_claim_exits_4(study: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from client.training import local

    add = local.add_noise
    halved = {"noise_multiplier": 1.0}
    monkeypatch.setattr(local, "add_noise", lambda total, **named: add(total, **{**named, **halved}))
    for arguments in (("audit", "study.toml", *TWO), ("run", "study.toml", "--audit", *TWO)):
        done = run("fedsilo-simulate", *arguments, cwd=study)
        assert done.returncode == 4 and "contradicts the claim" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "study.toml", "--canaries", "99"),
        ("audit", "study.toml", "--set", "privacy.mechanism=none", "--set", "privacy.noise_multiplier=2"),
        ("audit", "study.toml", "--set", "privacy.mechanism=local-gaussian"),
        ("run", "study.toml", "--audit", "--set", "privacy.mechanism=local-gaussian"),
        ("audit", "absent"),
    ],
)
def test_an_audit_that_cannot_be_made_says_so_in_a_sentence(study: Path, run: Run, arguments: tuple[str, ...]) -> None:
    one_sentence(run("fedsilo-simulate", *arguments, cwd=study), 2)


def test_the_calculator(tmp_path: Path, run: Run) -> None:
    arguments = [
        "epsilon",
        "--release",
        "noise_multiplier=1,sampling_rate=0.01,steps=1000",
        "--release",
        "noise_multiplier=2,sampling_rate=0.05,steps=500",
        "--delta",
        "1e-5",
    ]
    facts = json.loads(run("fedsilo-verify", *arguments, "--json", cwd=tmp_path).stdout)
    assert facts["epsilon"]["pld"] == pytest.approx(3.1693, rel=2e-3)  # row 33 of tests/vectors/accounting.json
    assert facts["epsilon"]["rdp"] == pytest.approx(3.4669, rel=1e-3)
    assert facts["epsilon_without_amplification"]["pld"] > 100
    assert "3.1693" in run("fedsilo-verify", *arguments, cwd=tmp_path).stdout
    for wrong in (
        ["--release", "noise=1"],
        ["--release", "noise_multiplier=0"],
        ["--release", "noise_multiplier=nan"],
        ["--release", "noise_multiplier=1,steps=0"],
        ["--release", "noise_multiplier=1,sampling_rate=2"],
    ):
        one_sentence(run("fedsilo-verify", "epsilon", *wrong, "--delta", "1e-5", cwd=tmp_path), 2)
    one_sentence(run("fedsilo-verify", "epsilon", "--release", "noise_multiplier=1", "--delta", "1", cwd=tmp_path), 2)
