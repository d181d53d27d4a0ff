"""Every process of a deployment is killed before, during and after each phase: within twice the round's timeout the run
goes on, or ends and is taken up, or, where its first round had not begun, ends with a sentence; nothing is charged twice
and no spend is lost.

SIGKILL of real processes: a silo's node, the process that trains, the server's app, the SuperLink, and the coordinator
with its gateway. One silo's training process is stopped (SIGSTOP) and let through message by message, so that a case
strikes in the phase that it names. Oracles: the ledgers (one reservation and one release a round, no release without a
reservation), the report (no spend below the ledgers'), and fedsilo-verify with the roster as pins.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
ROUNDS, TIMEOUT_S = 3, 60
WHO = ("superlink", "node", "app", "worker", "gateway")
POLICY = {
    "min_cohort = 3": "min_cohort = 2",
    'approval = "required"': 'approval = "automatic"',
    "epsilon = 8.0": "epsilon = 200.0",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """When to strike: while a silo works on a message of a kind and group, or when it has answered it.

    Args:
        name: of the case.
        kind: of the message; empty for the time before any.
        group: likewise.
        answered: after its answer instead.
        masked: in a run with secure aggregation.
    """

    name: str
    kind: str = ""
    group: str = ""
    answered: bool = False
    masked: bool = False


POINTS = (
    Point(name="before the invitation"),
    Point(name="during the invitation", kind="query.invite", group="invite"),
    Point(name="before training", kind="query.invite", group="invite", answered=True),
    Point(name="during training", kind="train", group="2"),
    Point(name="after training", kind="train", group="2", answered=True),
    Point(name="during the end", kind="evaluate", group="close"),
    Point(name="during the exchange of keys", kind="query.setup", group="setup", masked=True),
    Point(name="during unmasking", kind="query.unmask", group="2", masked=True),
)


def test_the_matrix_has_its_cases() -> None:
    assert len(WHO) * len(POINTS) == 40  # 24 at least; they are run with `pytest -m full`


@pytest.mark.parametrize("who", WHO)
def test_a_run_survives_a_death_in_every_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full_tier: bool, who: str
) -> None:
    if not full_tier:
        return  # minutes of real processes; test_deploy_resume.py has the laws of runs that break off
    with running(tmp_path) as world:
        for number, point in enumerate(POINTS):
            until(lambda: all_online(world), within_s=2 * TIMEOUT_S, why=f"{who} {point.name}: not all silos came back")
            folder = tmp_path / f"case-{number}"
            folder.mkdir()
            values = {"study__rounds": ROUNDS, "training__steps": 3, "study__name": f"{who}-{number}"}
            values |= {"cohort__min_silos": 3 if point.masked else 2, "cohort__round_timeout_s": TIMEOUT_S}
            values |= {"secagg__enabled": True, "evaluation__release": "none"} if point.masked else {}
            Case(world, who, point, breast_cancer(folder, NAMES, **values)).walk(capsys)


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


# --- one case -----------------------------------------------------------------------------------------------


class Case:
    """One run in which one process is killed once.

    Args:
        world: the processes.
        who: is killed.
        point: when.
        study: that is run.
    """

    def __init__(self, world: Processes, who: str, point: Point, study: Path) -> None:
        self.world, self.who, self.point = world, who, point
        self.name = f"{who} {point.name}"
        self.home = Home.open(world.consortium.server)
        self.victim = world.consortium.server.parent / NAMES[0]
        self.stopped: set[int] = set()
        self.freeze()
        self.run = int(json.loads(world.type("run", str(study), "--detach", "--json").stdout)["id"])

    def walk(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Kill, wait for what comes of it, and hold it against the oracle."""
        try:
            self.reach_the_point()
            before = self.facts()["rounds_done"]
            self.kill()
        finally:
            self.thaw()

        def settled() -> bool:
            return self.ended() or self.facts()["rounds_done"] > before or not self.live()

        until(settled, within_s=2 * TIMEOUT_S, why=f"{self.name}: nothing happens")
        until(lambda: self.ended() or not self.live(), within_s=8 * TIMEOUT_S, why=f"{self.name}: it does not end")
        port = str(self.home.settings.superlink_port)
        until(
            lambda: self.ended() or not pids("flwr-serverapp", port),
            within_s=2 * TIMEOUT_S,
            why=f"{self.name}: it hangs",
        )
        folder = self.facts()["folder"]
        resumable = folder is not None and (Path(folder) / "checkpoint" / "state.safetensors").exists()
        status = self.facts()["status"]
        if status != "complete" and resumable:
            until(lambda: all_online(self.world), within_s=2 * TIMEOUT_S, why=f"{self.name}: not all silos came back")
            status = self.resumed(folder)
            assert status == "complete" or self.point.masked, self.name
        assert status == "complete" or resumable or self.ended_cleanly(), (self.name, status)
        if status == "complete":
            check_folder(self.world, Path(folder), self.name, capsys)
        check_ledgers(self.world, self.name)

    def resumed(self, folder: str) -> str:
        done = self.world.type("resume", folder, "--json", timeout_s=8 * TIMEOUT_S)
        assert done.returncode in (0, 1, 3) and "Traceback" not in done.stderr, (self.name, done.stderr)
        return "complete" if done.returncode == 0 else "failed"

    def ended_cleanly(self) -> bool:
        """Whether a run that never got to its first round says why, or died with what is dead."""
        return bool(self.facts()["sentence"]) if self.ended() else self.who in ("app", "gateway")

    def facts(self) -> dict[str, Any]:
        return run_facts(journal_of(self.home, self.run), {})

    def ended(self) -> bool:
        return self.facts()["status"] != "interrupted"

    def live(self) -> bool:
        try:
            return any(each.live for each in Control(self.home).runs() if each.run == self.run)
        except RunError:
            return True  # nobody can say

    # --- the stopped process ---

    def reach_the_point(self) -> None:
        """Let the silo answer message after message until the one of the point is there, or answered."""
        deadline = time.monotonic() + 2 * TIMEOUT_S
        while self.point.kind:
            assert time.monotonic() < deadline, f"{self.name}: the message did not come, {state_of(self.victim)}"
            now = self.works_on()
            if now is None:
                time.sleep(0.005)
                continue
            self.freeze()
            at_point = now == (self.point.kind, self.point.group)
            if at_point and not self.point.answered:
                return
            self.thaw()
            while self.works_on() == now:
                assert time.monotonic() < deadline, f"{self.name}: {now} is not answered"
                time.sleep(0.005)
            if at_point:
                return
            self.freeze()

    def works_on(self) -> tuple[str, str] | None:
        """Kind and group of the message of this run that the silo works on."""
        state = state_of(self.victim)
        facts = state.get("facts", {})
        return (facts["kind"], facts["group"]) if state["state"] == "working" and facts["run"] == self.run else None

    def freeze(self) -> None:
        for pid in self.worker():
            os.kill(pid, signal.SIGSTOP)
            self.stopped.add(pid)

    def thaw(self) -> None:
        """Let go on what was stopped; a process whose node has died ends by itself then."""
        while self.stopped:
            with suppress(ProcessLookupError):
                os.kill(self.stopped.pop(), signal.SIGCONT)

    def worker(self) -> list[int]:
        own = self.world.running[NAMES[0]].pid
        return [pid for pid in pids("client.worker") if parent(pid) == own]

    # --- the kill ---

    def kill(self) -> None:
        port = str(self.home.settings.superlink_port)
        if self.who == "node":
            self.world.kill(NAMES[0])
            self.world.start(NAMES[0])
        elif self.who == "gateway":
            self.world.kill("server")
            until(
                lambda: not pids("server.superlink", port), why=f"{self.name}: the SuperLink outlives its coordinator"
            )
            self.world.start("server")
        else:
            find: dict[str, Callable[[], list[int]]] = {
                "worker": self.worker,
                "superlink": lambda: pids("server.superlink", port),
                "app": lambda: pids("flwr-serverapp", f"127.0.0.1:{port}"),
            }
            until(lambda: find[self.who](), why=f"{self.name}: there is no such process")
            for pid in find[self.who]():
                os.kill(pid, signal.SIGKILL)


def pids(*words: str) -> list[int]:
    """Process ids of this machine whose command line has all words; SuperExecs, which name what they start, apart."""
    seen = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in text for word in words) and "flower-superexec" not in text:
                seen.append(int(path.parent.name))
    return seen


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


# --- the shared oracle --------------------------------------------------------------------------------------


def check_ledgers(world: Processes, case: str) -> None:
    """I2, I3 and I10 of every run so far: within the budget, one reservation and one release a round, not frozen."""
    for name in NAMES:
        with opened(world.consortium.server.parent / name).ledger() as ledger:
            entries = [entry for entry in ledger.entries() if entry.run]
            balance = ledger.balance("ward")
            assert balance.used <= balance.epsilon and ledger.frozen is None, (case, name)
        reserved = [(entry.run, entry.round) for entry in entries if entry.kind == "reserve"]
        released = [(entry.run, entry.round) for entry in entries if entry.kind == "release"]
        assert len(reserved) == len(set(reserved)) and len(released) == len(set(released)), (case, name)
        assert set(released) <= set(reserved), (case, name)


def check_folder(world: Processes, folder: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """I1 of a run that is complete: no silo's spend is stated below its ledger; a stranger verifies the folder."""
    report = json.loads((folder / "report.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert report["run"]["status"] == "complete", case
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1)), case
    assert any(line["aggregated"] for line in lines), case
    stated = {row["name"]: row["rounds"] for row in report["silos"]}
    assert len(stated) >= 2, case
    for name in NAMES:
        with opened(world.consortium.server.parent / name).ledger() as ledger:
            mine = [entry for entry in ledger.entries() if entry.run == report["run"]["id"] and entry.kind == "reserve"]
        assert stated.get(name, 0) >= len(mine), (case, name)
    capsys.readouterr()
    pins = str(world.consortium.server / "roster.jsonl")
    assert guarded(verify, arguments=["check", str(folder), "--pin", pins]) == 0, (case, capsys.readouterr())
