"""The README's "Bring your own data", one worked example a kind: from files that a user could have, over the study in the
README as it stands, to a trained model and its use at a site.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from PIL import Image

from client.cli import app as silo_app
from simulations.run import Outcome, simulate
from simulations.silos import REGISTRIES
from strategies.command import guarded
from strategies.study import Study

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Bring your own data") : README.index("## A run is one folder")]
STUDIES = {
    heading.lower(): re.search(r"```toml\n(.*?)```", body, re.S)[1]  # type: ignore[index]
    for heading, body in re.findall(r"\n### (\w+)\n(.*?)(?=\n### |\Z)", SECTION, re.S)
    if "```toml" in body
}
RANDOM = np.random.default_rng(0)


def images(folder: Path) -> str:
    for name, level in (("normal", 90), ("pneumonia", 150)):
        (folder / "x-rays" / name).mkdir(parents=True)
        for number in range(60):
            grey = np.clip(RANDOM.normal(level, 30, (70, 60)), 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / "x-rays" / name / f"{number:04d}.png")
    return "x-rays"


def signals(folder: Path) -> str:
    y = RANDOM.integers(0, 2, 720)
    x = RANDOM.normal(0, 0.3, (720, 128)) + y[:, None] * np.sin(np.arange(128) / 5)
    names = np.array(["normal", "abnormal"])[y]
    np.savez(folder / "beats.npz", X=x.astype(np.float32), y=names, patient=np.arange(720) // 4)
    return "beats.npz"


def sequences(folder: Path) -> str:
    rows = []
    for stay in range(150):
        died = int(RANDOM.integers(0, 2))
        for hour in range(int(RANDOM.integers(3, 40))):
            for name, value in (
                ("heart_rate", RANDOM.normal(75 + 40 * died, 8)),
                ("temperature", RANDOM.normal(37, 1)),
            ):
                rows.append((stay // 2, stay, hour, name, value, died))
    pl.DataFrame(rows, schema=["patient", "stay", "hour", "name", "value", "died"], orient="row").write_csv(
        folder / "measurements.csv"
    )
    return "measurements.csv"


def text(folder: Path) -> str:
    rows = []
    for _ in range(240):
        oedema, effusion = (int(value) for value in RANDOM.integers(0, 2, 2))
        note = f"Chest film: {'oedema seen' if oedema else 'lungs clear'}, {'large effusion' if effusion else 'sinus free'}."
        rows.append((note, oedema, effusion))
    pl.DataFrame(rows, schema=["note", "oedema", "effusion"], orient="row").write_csv(folder / "notes.csv")
    return "notes.csv"


MAKERS: dict[str, Callable[[Path], str]] = {"images": images, "signals": signals, "sequences": sequences, "text": text}


def test_there_is_an_example_for_every_kind() -> None:
    assert set(STUDIES) == set(MAKERS) and "### Tables" in SECTION


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, full_tier: bool) -> Callable[[str], tuple[Path, str, Outcome]]:
    """Run a kind's example once and return its folder, its data and what came of it."""
    done: dict[str, tuple[Path, str, Outcome]] = {}

    def run(kind: str) -> tuple[Path, str, Outcome]:
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            data = MAKERS[kind](folder)
            study = STUDIES[kind] if full_tier else STUDIES[kind].replace("rounds = 20", "rounds = 6")
            outcome = simulate(Study.parse(study, REGISTRIES), folder, out=folder / "runs", with_baselines=False)
            done[kind] = (folder, data, outcome)
        return done[kind]

    return run


Runs = Callable[[str], tuple[Path, str, Outcome]]
every_kind = pytest.mark.parametrize("kind", MAKERS)


@every_kind
def test_the_example_trains_privately_on_files_as_described(kind: str, runs: Runs) -> None:
    _, _, outcome = runs(kind)
    facts = outcome.facts
    assert facts["run"]["status"] == "complete" and facts["privacy"]["mechanism"] == "dp-sgd"
    assert all(0 < silo["epsilon"] <= 8 for silo in facts["silos"])
    assert facts["metrics"]["auroc"] > 0.6  # the examples' classes differ plainly
    assert not [note for note in facts["simulation"]["read_off_the_data"] if "expected_batch_size" not in note]


@every_kind
def test_the_example_without_its_schema_reads_it_off_and_says_so(kind: str, runs: Runs) -> None:
    folder, _, _ = runs(kind)
    open_keys = {"images": ("classes", "shape", "range"), "signals": ("classes", "shape", "range")}
    dropped = open_keys.get(kind, ("shape",))
    lines = [line for line in STUDIES[kind].splitlines() if line.split(" =")[0] not in dropped]
    study = Study.parse("\n".join(lines).replace("rounds = 20", "rounds = 1"), REGISTRIES)
    facts = simulate(study, folder, out=folder / "runs", with_baselines=False, fresh=True).facts
    notes = " ".join(facts["simulation"]["read_off_the_data"])
    assert all(f"data.{key}" in notes for key in dropped)


@every_kind
@pytest.mark.parametrize("labelled", [True, False])
def test_its_model_is_used_at_a_site(
    kind: str, labelled: bool, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data, outcome = runs(kind)
    records = folder / data if labelled else without_target(kind, folder / data, tmp_path)
    out = tmp_path / "predictions.csv"
    arguments = ["predict", f"{outcome.folder}/study.toml", f"{outcome.folder}/model.safetensors", str(records)]
    assert guarded(silo_app, arguments=[*arguments, "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    table = pl.read_csv(out)
    assert table.height == facts["records"] == {"images": 120, "signals": 720, "sequences": 150, "text": 240}[kind]
    probabilities = table.select(pl.col("^probability .*$")).to_numpy()
    assert probabilities.shape[1] == 2 and (probabilities >= 0).all() and (probabilities <= 1).all()
    if kind != "text":
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-9)
    assert (facts["metrics"] is not None) == labelled
    if labelled:
        assert facts["metrics"]["auroc"] > 0.6


def without_target(kind: str, data: Path, folder: Path) -> Path:
    """Return a copy of the records as a site has them that does not know the answer yet."""
    if kind == "images":
        (folder / "new").mkdir()
        for number, file in enumerate(sorted(data.rglob("*.png"))):
            shutil.copy(file, folder / "new" / f"{number}.png")
        return folder / "new"
    if kind == "signals":
        arrays = dict(np.load(data))
        del arrays["y"]
        np.savez(folder / "new.npz", **arrays)
        return folder / "new.npz"
    pl.read_csv(data).drop("died", "oedema", "effusion", strict=False).write_csv(folder / "new.csv")
    return folder / "new.csv"


def test_a_model_of_another_study_is_refused(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data, outcome = runs("text")
    model = tmp_path / "model.safetensors"
    arrays = safetensors.numpy.load_file(outcome.folder / "model.safetensors")
    name = min(arrays)
    for wrong, sentence in (
        ({**arrays, name: arrays[name][:1]}, f"parameter '{name}'"),
        ({key: value for key, value in arrays.items() if key != name}, "none there"),
        ({**arrays, name: arrays[name] * np.float32(np.nan)}, "not a finite number"),
    ):
        safetensors.numpy.save_file(wrong, model)
        code = guarded(silo_app, arguments=["predict", f"{outcome.folder}/study.toml", str(model), str(folder / data)])
        error = capsys.readouterr().err
        assert code == 2 and sentence in error and "Traceback" not in error


def test_a_study_starts_from_the_model_that_it_names(runs: Runs) -> None:
    folder, _, outcome = runs("text")
    text_of = STUDIES["text"].replace("rounds = 20", "rounds = 1").replace("epsilon = 8.0", 'mechanism = "none"')
    started = (
        text_of.replace("[model]\n", f'[model]\ninitial = "{outcome.folder / "model.safetensors"}"\n')
        .replace("steps = 5", "steps = 1")
        .replace("lr=0.01", "lr=0.00000001")
    )
    result = simulate(Study.parse(started, REGISTRIES), folder, out=folder / "runs", with_baselines=False, fresh=True)
    before = safetensors.numpy.load_file(outcome.folder / "model.safetensors")
    after = safetensors.numpy.load_file(result.folder / "model.safetensors")
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, atol=1e-6)
    assert "initial_sha256" in (result.folder / "study.toml").read_text()
