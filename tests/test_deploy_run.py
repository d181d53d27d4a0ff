"""One coordinator and three silos as real processes over TLS: a study runs, faults are survived, nothing counts twice.

Oracles: the inline engine's model, bit for bit; fedsilo-verify on the run folder, with the roster as pins; the silos'
ledgers, of which each may hold one reservation and one release a round.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from coordinators import Consortium, Processes, breast_cancer, found, passphrases, server_, silo, until
from sites import opened

from client.running import state_of as node_state
from server.home import Home
from server.overview import overview
from server.superlink import Control
from simulations.ready import read_study
from simulations.run import simulate
from strategies.command import guarded
from strategies.verify import app as verify

NAMES = ("silo-1", "silo-2", "silo-3")
POLICY = {
    "epsilon = 8.0": "epsilon = inf",  # public records: one silo for a run without protection, too
    'mechanism = "dp-sgd"': 'mechanism = "none"',
    "min_cohort = 3": "min_cohort = 2",
    'approval = "required"': 'approval = "automatic"',
}


@pytest.fixture(scope="module")
def capsys_(request: pytest.FixtureRequest) -> Iterator[Any]:
    capture = request.config.pluginmanager.getplugin("capturemanager")

    class Capsys:
        @staticmethod
        def readouterr() -> tuple[str, str]:
            return capture.read_global_capture()  # type: ignore[no-any-return]

    yield Capsys


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, capsys_: Any) -> Iterator[Processes]:
    """A coordinator and three silos that run."""
    folder = tmp_path_factory.mktemp("world")
    breast_cancer(folder, NAMES)
    consortium = found(folder, capsys_, NAMES, POLICY)
    with passphrases(consortium.credentials):
        for name in NAMES:
            silo(capsys_, "register", "ward", "--silo", str(folder / name))
    processes = Processes(consortium)
    try:
        for name in ("server", *NAMES):
            processes.start(name)
        until(lambda: online(consortium) == 3, why=logs(consortium))
        yield processes
    finally:
        processes.stop()


def online(consortium: Consortium) -> int:
    facts = overview(Home.open(consortium.server))
    return sum(row["state"] == "online" for row in facts["silos"])


def logs(consortium: Consortium) -> str:
    folder = consortium.server.parent
    return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))


def study_of(world: Processes, name: str, **values: object) -> Path:
    folder = world.consortium.server.parent / name
    folder.mkdir()
    return breast_cancer(folder, NAMES, study__name=name, training__steps=3, **values)


def entries(world: Processes, run: str) -> dict[str, list[tuple[str, int]]]:
    """Kind and round of each ledger's entries of a run."""
    seen = {}
    for name in NAMES:
        with opened(world.consortium.server.parent / name).ledger() as ledger:
            seen[name] = [(entry.kind, entry.round) for entry in ledger.entries() if entry.run == run]
    return seen


def test_the_model_is_the_inline_engines_bit_for_bit(world: Processes, tmp_path: Path) -> None:
    values = {"privacy__mechanism": "none", "privacy__epsilon": None, "study__rounds": 2}
    study = study_of(world, "plain", **values)
    done = world.type("run", str(study), "--json")
    assert done.returncode == 0, done.stderr + logs(world.consortium)
    facts = json.loads(done.stdout)
    assert set(facts) >= {"run", "metrics", "epsilon", "rounds", "seconds"} and facts["rounds"] == 2
    parsed, base = read_study(str(study), {})
    inline = simulate(parsed, base, out=tmp_path, with_baselines=False)
    ours, theirs = (
        safetensors.numpy.load((Path(folder) / "model.safetensors").read_bytes())
        for folder in (facts["run"], inline.folder)
    )
    assert {name: array.tobytes() for name, array in ours.items()} == {
        name: array.tobytes() for name, array in theirs.items()
    }


def test_a_private_run_survives_a_silos_and_the_servers_death(
    world: Processes, capsys_: Any, scaled: Callable[..., int]
) -> None:
    consortium, rounds = world.consortium, scaled(8, 4)
    study = study_of(world, "private", study__rounds=rounds, cohort__min_silos=2, cohort__round_timeout_s=60)
    home = Home.open(consortium.server)
    started = json.loads(world.type("run", str(study), "--detach", "--json").stdout)

    def run() -> dict[str, Any]:
        return next(row for row in overview(home)["runs"] if row["id"] == started["id"])

    until(lambda: run()["rounds_done"] >= 1, why=logs(consortium))
    world.kill("silo-2")  # a silo is gone, without a word
    before = run()["rounds_done"]
    until(lambda: run()["rounds_done"] > before, why=logs(consortium))
    app = server_app(world)
    os.kill(app, signal.SIGKILL)  # the server's app is gone, in the middle of a round or between two
    world.start("silo-2")
    until(lambda: online(consortium) == 3, why=logs(consortium))
    done = world.type("resume", run()["folder"], "--json")
    assert done.returncode == 0, done.stdout + done.stderr + logs(consortium)
    folder = Path(json.loads(done.stdout)["run"])
    report = json.loads((folder / "report.json").read_text())
    assert report["run"]["status"] == "complete" and folder == Path(run()["folder"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, rounds + 1))
    for name, kinds in entries(world, report["run"]["id"]).items():
        for kind in ("reserve", "release"):
            of_kind = [round for found, round in kinds if found == kind]
            assert len(of_kind) == len(set(of_kind)), f"{name}: {kinds}"
        (stated,) = (row for row in report["silos"] if row["name"] == name)
        assert stated["rounds"] >= sum(kind == "release" for kind, _ in kinds), "no spend is lost"
    capsys_.readouterr()
    arguments = ["check", str(folder), "--pin", str(consortium.server / "roster.jsonl")]
    assert guarded(verify, arguments=arguments) == 0, capsys_.readouterr()
    again = world.type("resume", str(folder))
    assert again.returncode == 1 and "is complete" in again.stderr


def server_app(world: Processes) -> int:
    """Process id of Flower's process of the live run: the one whose parents lead to this coordinator."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        port = f"127.0.0.1:{Home.open(world.consortium.server).settings.superlink_port}".encode()
        if any(word.endswith(b"flwr-serverapp") for word in words) and port in words:
            return int(path.parent.name)
    raise AssertionError("no server's app runs")


def test_a_silo_that_is_removed_takes_no_part(world: Processes, capsys_: Any) -> None:
    home = Home.open(world.consortium.server)
    server_(capsys_, "enrol", "--server", str(home.folder), "--remove", "silo-3")
    until(lambda: len(Control(home).nodes()) == 2)
    until(lambda: "turned away" in node_state(home.folder.parent / "silo-3")["state"])
    until(lambda: '"silo": "-", "call": "activate-node", "status": 403, "reason": "roster"' in audit(home))
    assert online(world.consortium) == 2


def audit(home: Home) -> str:
    return (home.logs / "audit.jsonl").read_text()
