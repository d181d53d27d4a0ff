"""The training process reaches nobody, keeps its user, and goes on where the kernel gives it no namespace.

Oracle: the kernel itself, asked from within by a connection to a port that does listen.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from client import sandbox
from client.child import Child

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
from client.sandbox import leave_network
print(leave_network())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
@pytest.mark.parametrize("user", [0, 65534])
def test_whoever_has_left_the_network_reaches_nobody_and_stays_the_same_user(user: int) -> None:
    if user and os.geteuid():
        pytest.skip("only root can become another user")
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
        while not (told := log.read_text()):
            assert child.pid is not None and Path(f"/proc/{child.pid}").exists(), "it has ended"
        apart = Path(f"/proc/{child.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    finally:
        child.kill()
    assert apart is (not asked.stdout.strip())
    assert told.startswith("training has no network" if apart else "training has the network of its node: ")
