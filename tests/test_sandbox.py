"""The training process reaches nobody, keeps its user, and goes on where the kernel gives it no namespace.

Oracle: the kernel itself, asked from within by a connection to a port that does listen.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from client import sandbox
from client.child import Child
from client.commands import doctor

INSIDE = """
import json, os, socket, sys
if sys.argv[2] != "0":
    import client.sandbox, pathlib, encodings.idna, ctypes
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after an exec: its own /proc may be written
from client.sandbox import leave_network
user, why_not = os.geteuid(), leave_network()
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
    reached = True
except OSError:
    reached = False
path = os.path.join(sys.argv[3], f"made-by-{user}")
open(path, "w").close()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "why_not": why_not, "reached": reached, "same": (user == os.geteuid() == os.stat(path).st_uid),
    "capabilities": int(status["CapEff"], 16), "user": user,
}))
"""
REFUSED = """
import ctypes
class Refusing:
    def __init__(self, *args, **kwargs): pass
    def unshare(self, flags): ctypes.set_errno(1); return -1
ctypes.CDLL = Refusing
from client import sandbox
sandbox._capabilities = lambda: 0
print(sandbox.leave_network())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
@pytest.mark.parametrize("user", [0] if os.geteuid() else [0, 65534])  # only root can become another user
def test_whoever_has_left_the_network_reaches_nobody_and_stays_the_same_user(user: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, TemporaryDirectory() as folder:  # pytest's are root's alone
        Path(folder).chmod(0o777)
        words = [str(server.getsockname()[1]), str(user), folder]
        done = subprocess.run([sys.executable, "-c", INSIDE, *words], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["same"]
    assert found["reached"] is bool(found["why_not"]), "it is said whether there is a network"
    if user:
        assert found["user"] == user and found["capabilities"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_where_the_kernel_refuses_the_reason_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the kernel refuses a user namespace: Operation not permitted"


def test_who_has_privileges_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root without the right to make namespaces, as in many containers, may still read files of others."""

    class Refusing:
        def unshare(self, flags: int) -> int:
            assert not flags & 0x10000000, "no user namespace"
            return -1

    monkeypatch.setattr(sandbox.ctypes, "CDLL", lambda *args, **kwargs: Refusing())
    monkeypatch.setattr(sandbox, "_capabilities", lambda: 2)
    assert sandbox._leave() == "this user has privileges that it would lose"


def test_who_is_killed_when_he_tries_does_not_try_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_leave", lambda: os.kill(os.getpid(), 9))
    assert sandbox.leave_network() == "who tries it is killed"


def test_a_system_without_namespaces_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.ctypes, "CDLL", lambda *args, **kwargs: object())
    assert sandbox._leave() == "this system has no network namespaces"


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_the_training_process_has_left_and_its_log_says_so(tmp_path: Path) -> None:
    asked = subprocess.run([sys.executable, "-m", "client.sandbox"], capture_output=True, text=True, check=True)
    child = Child(tmp_path, None, lambda: False)
    child.start()
    try:
        log = tmp_path / "logs" / "worker.log"
        until, process = time.monotonic() + 60, child._process
        while not (told := log.read_text()):
            assert process is not None and process.poll() is None and time.monotonic() < until, "it says nothing"
            time.sleep(0.01)
        apart = Path(f"/proc/{child.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    finally:
        child.kill()
    assert apart is (not asked.stdout.strip())
    assert told.startswith("training has no network" if apart else "training has the network of its node: ")


def test_check_tells_what_the_last_training_process_had(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    assert doctor._sandbox(log).state == "note"
    assert doctor._sandbox(log).detail.startswith("one started as this command is would have ")
    log.write_text("training has no network\nsomething else\n")
    assert (doctor._sandbox(log).state, doctor._sandbox(log).detail) == ("ok", "the last one had no network")
    log.write_text("training has no network\ntraining has the network of its node: the kernel refuses\n")
    assert doctor._sandbox(log).state == "note" and doctor._sandbox(log).detail.endswith("node: the kernel refuses")
