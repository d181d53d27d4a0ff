"""Sessions in processes of their own that exchange bytes only, one of them killed on the way (TESTING.md)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from secagg import CONFIG, MODEL, World, made

from strategies.secagg.encoding import enc
from strategies.secagg.errors import Code, notice
from strategies.secagg.messages import Ask

HERE = Path(__file__).parent
UPDATES = {f"silo-{i:03}": [float(i + 1) / 8] * 8 for i in range(4)}


class Process:
    """A silo behind two pipes; `kill` is SIGKILL, after which it begins anew from its rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start()

    def start(self) -> None:
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "secagg_process.py"), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def ask(self, verb: str, request: bytes) -> bytes:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{verb} ={request.hex()}\n")
        self.process.stdin.flush()
        return bytes.fromhex(self.process.stdout.readline().strip().removeprefix("="))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture
def world() -> World:
    return made(4)


@pytest.fixture
def silos(world: World, tmp_path: Path) -> Iterator[dict[str, Process]]:
    found = {}
    for name, silo in world.silos.items():
        (tmp_path / name).mkdir()
        told = {
            "name": name,
            "key": silo.key.private_bytes_raw().hex(),
            "members": {other: key.hex() for other, key in silo.members.items()},
            "setup": world.setup.to_bytes().decode(),
            "update": UPDATES[name],
        }
        (tmp_path / name / "silo.json").write_text(json.dumps(told), encoding="utf-8")
        found[name] = Process(tmp_path / name)
    yield found
    for process in found.values():
        process.end()


def test_four_processes_sum_and_one_is_killed(world: World, silos: dict[str, Process]) -> None:
    """A whole sum; then one in which a silo uploads and is lost, and another is killed after it signed its view (N15)."""
    server = world.server
    assert server.admit({name: silo.ask("join", server.invitation()) for name, silo in silos.items()}) == {}
    one = server.begin("train", server.seated, model=MODEL, config=CONFIG)
    assert one.collect({name: silo.ask("upload", one.request(name)) for name, silo in silos.items()}) == "full"
    assert one.receive({name: silos[name].ask("unmask", request) for name, request in one.requests().items()}) == "done"
    assert np.array_equal(one.total().vectors[0], np.sum(list(UPDATES.values()), axis=0))
    assert {silo.ask("close", one.record()) for silo in silos.values()} == {b""}

    two = server.begin("train", server.seated, model=MODEL, config=CONFIG)
    three = [name for name in silos if name != "silo-003"]
    uploads = {name: silos[name].ask("upload", two.request(name)) for name in silos}
    silos["silo-001"].kill()
    silos["silo-001"].start()
    assert silos["silo-001"].ask("upload", two.request("silo-001")) == uploads["silo-001"]
    assert two.collect({name: uploads[name] for name in three}) == "view"
    views = two.requests()
    replies = {name: silos[name].ask("unmask", request) for name, request in views.items()}
    silos["silo-000"].kill()
    silos["silo-000"].start()
    ask = Ask.read(views["silo-000"])
    whole = world.signed(Ask(t=ask.t, ctx=ask.ctx, phase="full", silo="silo-000", body=enc()))
    assert silos["silo-000"].ask("unmask", whole) == notice(Code.STATE)
    assert silos["silo-000"].ask("unmask", views["silo-000"]) == replies["silo-000"]
    assert two.receive(replies) == "open"
    assert two.receive({name: silos[name].ask("unmask", r) for name, r in two.requests().items()}) == "done"
    assert two.total().survivors == tuple(three)
    assert np.array_equal(two.total().vectors[0], np.sum([UPDATES[name] for name in three], axis=0))
    assert {silo.ask("close", server.farewell()) for silo in silos.values()} == {b""}
    assert silos["silo-002"].ask("join", server.invitation()) == notice(Code.RUN_USED)
