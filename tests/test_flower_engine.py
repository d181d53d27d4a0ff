"""The bundle that Flower builds, run by Flower's own engine: the same two app objects, real processes, real messages.

Oracle: the inline engine. The silo folders, the messages and the ledger entries must be of the same kind and number,
and without privacy the model is the same, bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.numpy
import tomlkit

from client.silo import Silo
from simulations.ready import read_study
from simulations.run import simulate
from simulations.silos import complete, make_silos
from simulations.sources import read_dataset

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SILOS = 3


def test_a_study_under_flowers_own_engine_ends_on_the_inline_engines_model(tmp_path: Path, full_tier: bool) -> None:
    """With masks there is every message; without them, in the full tier, one more way through the same apps."""
    for masked in (True, False) if full_tier else (True,):
        (tmp_path / str(masked)).mkdir()
        _same_model(masked, tmp_path / str(masked))


def _same_model(masked: bool, tmp_path: Path) -> None:
    values = {
        "secagg.enabled": masked,
        "study.rounds": 2,
        "training.steps": 3,
        "simulation.silos": SILOS,
        "simulation.partition": "iid",
        "privacy.mechanism": "none",
    }
    written, base = read_study("breast-cancer", {})
    text = tomlkit.parse(written.text)
    del text["privacy"]["epsilon"]
    for key, value in values.items():
        section, name = key.split(".")
        text.setdefault(section, tomlkit.table())[name] = value
    (tmp_path / "study.toml").write_text(tomlkit.dumps(text), encoding="utf-8")
    study, base = read_study(str(tmp_path / "study.toml"), {})
    inline = simulate(study, base, out=tmp_path / "inline", with_baselines=False)

    frame = read_dataset(study, base)
    complete_study, _ = complete(study, frame)
    silos = make_silos(complete_study, frame, tmp_path / "silos")
    out = tmp_path / "flower"
    _flwr_run(tmp_path, {"study": complete_study.text, "out": str(out), "test": ""}, silos[0].parent)

    (folder,) = (path for path in out.iterdir() if path.name != "coordinator")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["cohort"], line["dropped"]) for line in lines] == [(1, SILOS, 0), (2, SILOS, 0)]
    assert json.loads((folder / "report.json").read_text())["run"]["status"] == "complete"
    ours = safetensors.numpy.load((inline.folder / "model.safetensors").read_bytes())
    theirs = safetensors.numpy.load((folder / "model.safetensors").read_bytes())
    assert {name: array.tobytes() for name, array in ours.items()} == {
        name: array.tobytes() for name, array in theirs.items()
    }
    for flower_silo, inline_silo in zip(silos, inline.silos, strict=True):
        assert _kinds(flower_silo) == _kinds(inline_silo)
        assert _kinds(flower_silo)[:6] == ["reserve", "release", "commit"] * 2
        assert _egress_fields(flower_silo) == _egress_fields(inline_silo)


def _kinds(folder: Path) -> list[str]:
    with Silo.open(folder).ledger() as ledger:
        entries = sorted(filter(lambda entry: entry.run, ledger.entries()), key=lambda entry: (entry.round, entry.seq))
    return [entry.kind for entry in entries]


def _egress_fields(folder: Path) -> list[str]:
    lines = (folder / "egress.jsonl").read_text().splitlines()
    return [f"{json.loads(line)['field']}:{json.loads(line)['privacy']}" for line in lines]


def _flwr_run(work: Path, run_config: dict[str, str], silos: Path) -> None:
    """Build the bundle from a clean copy of the project and run it to its end."""
    app = work / "fedsilo-app"
    app.mkdir()
    for name in ("strategies", "client", "server"):
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app / name)
    (work / "config.toml").write_text(tomlkit.dumps(run_config), encoding="utf-8")
    with _superlink(work, silos) as environment:
        command = [
            BIN / "flwr",
            "run",
            app,
            "lab",
            "--run-config",
            work / "config.toml",
            "--federation-config",
            f"num-supernodes={SILOS} client-resources-num-cpus=1 init-args-num-cpus=2",
            "--stream",
        ]
        done = subprocess.run(
            [str(part) for part in command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    log = (work / "superlink.log").read_text(errors="replace")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + log[-3000:]
    assert Path(run_config["out"]).is_dir(), done.stdout[-5000:] + log[-5000:]


@contextmanager
def _superlink(work: Path, silos: Path) -> Iterator[dict[str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = work / "flwr-home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FEDSILO_SILOS": str(silos),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        BIN / "flower-superlink",
        "--insecure",
        "--simulation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-runtime-dependency-installation",
    ]
    with (work / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            cwd=work,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for(port, process)
            yield environment
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the SuperLink ended by itself"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the SuperLink did not open its port in 60 s")
