"""Every process of a deployment is killed before, during and after a round: the run ends, and nothing is charged twice.

SIGKILL of real processes: a silo's node, the process that trains, the server's app, the SuperLink, and the coordinator
with its gateway. Oracles: the ledgers (one reservation and one release a round, no release without a reservation), the
report (no spend below the ledgers'), and fedsilo-verify with the roster as pins.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from coordinators import Processes, breast_cancer, found, passphrases, silo, until
from sites import opened

from client.running import state_of
from server.deployed import journal_of
from server.home import Home
from server.overview import overview, run_facts
from server.superlink import Control
from strategies.command import guarded
from strategies.errors import RunError
from strategies.verify import app as verify

NAMES = ("east", "north", "south")
ROUNDS = 3
CASES = [
    (who, when) for who in ("superlink", "node", "app", "worker", "gateway") for when in ("during", "before", "after")
]
POLICY = {
    "min_cohort = 3": "min_cohort = 2",
    'approval = "required"': 'approval = "automatic"',
    "epsilon = 8.0": "epsilon = 200.0",
}


@contextmanager
def running(tmp_path: Path) -> Iterator[Processes]:
    """A coordinator and its silos as processes."""
    breast_cancer(tmp_path, NAMES)
    consortium = found(tmp_path, NAMES, POLICY)
    with passphrases(consortium.credentials):
        for name in NAMES:
            silo("register", "ward", "--silo", str(tmp_path / name))
    processes = Processes(consortium)
    try:
        for name in ("server", *NAMES):
            processes.start(name)
        until(lambda: all_online(processes))
        yield processes
    finally:
        processes.stop()


def all_online(world: Processes) -> bool:
    facts = overview(Home.open(world.consortium.server))
    return [row["state"] for row in facts["silos"]] == ["online"] * len(NAMES)


def test_a_run_survives_the_death_of_every_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full_tier: bool
) -> None:
    if not full_tier:
        assert len(CASES) == 15  # a silo's node and the server's app die in test_deploy_run.py, in either tier
        return
    with running(tmp_path) as world:
        walk(world, tmp_path, capsys)


def walk(world: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (who, when) in enumerate(CASES):
        folder = tmp_path / f"case-{number}"
        folder.mkdir()
        values = {"study__rounds": ROUNDS, "training__steps": 3, "study__name": f"{who}-{when}"}
        study = breast_cancer(folder, NAMES, **values, cohort__min_silos=2, cohort__round_timeout_s=60)
        ended = killed_run(world, study, who, when)
        check(world, ended, f"{who} {when}", capsys)


def killed_run(world: Processes, study: Path, who: str, when: str) -> Path:
    """Start a run, kill one process at one time, and bring the run to its end; return its folder."""
    home = Home.open(world.consortium.server)
    started = json.loads(world.type("run", str(study), "--detach", "--json").stdout)

    def facts() -> dict[str, Any]:
        return run_facts(journal_of(home, int(started["id"])), {})

    if when == "before":
        until(lambda: facts()["folder"] is not None)
    elif when == "during":
        until(lambda: training(world) or facts()["rounds_done"] >= 1)
    else:
        until(lambda: facts()["rounds_done"] >= 1)
    kill(world, home, who)
    until(lambda: facts()["status"] != "interrupted" or not live(home, started["id"]), within_s=240)
    until(lambda: all_online(world))
    folder = Path(facts()["folder"])
    if facts()["status"] != "complete":
        done = world.type("resume", str(folder), "--json")
        assert done.returncode == 0, done.stderr
    return folder


def training(world: Processes) -> bool:
    state = state_of(world.consortium.server.parent / NAMES[0])
    return bool(state["state"] == "working" and state["facts"]["kind"] == "train")


def live(home: Home, run: str) -> bool:
    try:
        return any(each.live for each in Control(home).runs() if str(each.run) == run)
    except RunError:
        return True  # nobody can say


def kill(world: Processes, home: Home, who: str) -> None:
    port = f"127.0.0.1:{home.settings.superlink_port}"
    if who == "node":
        world.kill(NAMES[0])
        world.start(NAMES[0])
    elif who == "gateway":
        world.kill("server")
        until(lambda: not pids("server.superlink", str(home.settings.superlink_port)))
        world.start("server")
    elif who == "worker":
        own = world.running[NAMES[0]].pid
        os.kill(next(pid for pid in pids("client.worker", "") if parent(pid) == own), signal.SIGKILL)
    else:
        words = (
            ("server.superlink", str(home.settings.superlink_port)) if who == "superlink" else ("flwr-serverapp", port)
        )
        for pid in pids(*words):
            os.kill(pid, signal.SIGKILL)


def pids(word: str, other: str) -> list[int]:
    found_ = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in text and other in text and "flower-superexec" not in text:
            found_.append(int(path.parent.name))
    return found_


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def check(world: Processes, folder: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The shared oracle: I1, I2, I3 and I10 of the ledgers, and the run folder as a stranger reads it."""
    report = json.loads((folder / "report.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert report["run"]["status"] == "complete", case
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1)), case
    for name in NAMES:
        with opened(world.consortium.server.parent / name).ledger() as ledger:
            mine = [entry for entry in ledger.entries() if entry.run == report["run"]["id"]]
            balance = ledger.balance("ward")
            assert balance.used <= balance.epsilon and ledger.frozen is None, case
        reserved = [entry.round for entry in mine if entry.kind == "reserve"]
        released = [entry.round for entry in mine if entry.kind == "release"]
        assert len(reserved) == len(set(reserved)) and len(released) == len(set(released)), (case, name)
        assert set(released) <= set(reserved), (case, name)
        (stated,) = (row for row in report["silos"] if row["name"] == name)
        assert stated["rounds"] >= len(reserved), (case, name)
    capsys.readouterr()
    pins = str(world.consortium.server / "roster.jsonl")
    assert guarded(verify, arguments=["check", str(folder), "--pin", pins]) == 0, (case, capsys.readouterr())
