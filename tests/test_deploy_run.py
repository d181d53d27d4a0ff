"""One coordinator and three silos as real processes over TLS: a study runs, faults are survived, nothing counts twice.

Oracles: the inline engine's model, bit for bit; fedsilo-verify on the run folder, with the roster as pins; the silos'
ledgers, of which each may hold one reservation and one release a round.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import safetensors.numpy
from coordinators import Consortium, Processes, breast_cancer, found, passphrases, server_, silo, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sites import opened

from client.running import state_of as node_state
from client.trust import trust_of
from server.deployed import journal_of
from server.home import Home
from server.lock import running
from server.overview import overview, run_facts
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
    'allow_metrics = "none"': 'allow_metrics = "masked"',
    'approval = "required"': 'approval = "automatic"',
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Processes]:
    """A coordinator and three silos that run."""
    folder = tmp_path / "world"
    folder.mkdir()
    breast_cancer(folder, NAMES)
    consortium = found(folder, NAMES, POLICY)
    with passphrases(consortium.credentials):
        for name in NAMES:
            silo("register", "ward", "--silo", str(folder / name))
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


def test_a_coordinator_and_three_silos(
    world: Processes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scaled: Callable[..., int],
    full_tier: bool,
) -> None:
    """One set of processes, as starting them takes longest: each step is a claim of its own.

    Deaths of real processes are of the full tier, as in test_deploy_kills.py; test_deploy_resume.py has their laws.
    """
    the_walls_hold(world, scaled)
    the_model_is_the_inline_engines_bit_for_bit(world, tmp_path)
    health_metrics_and_page_say_so(world)
    a_masked_run_shows_the_coordinator_sums_alone(world, capsys)
    if full_tier:
        a_private_run_survives_a_silos_and_the_servers_death(world, capsys, scaled)
    a_silo_that_is_removed_takes_no_part(world)
    everything_stops_and_nothing_is_left(world)


# --- the walls ----------------------------------------------------------------------------------------------


def the_walls_hold(world: Processes, scaled: Callable[..., int]) -> None:
    """Flower's own port refuses whoever lacks the secret; the gateway refuses, in little memory, and serves meanwhile."""
    home = Home.open(world.consortium.server)
    trust = trust_of((home.folder / "ca.crt").read_text())
    gateway, flower = (f"https://127.0.0.1:{port}" for port in (home.settings.port, home.settings.superlink_port))
    with httpx.Client(verify=trust, timeout=30) as client:
        for path in ("control/start-run", "control/register-node", "control/list-nodes", "fleet/activate-node"):
            assert client.post(f"{flower}/v1/{path}", content=b"").status_code == 403
        for path in ("/docs", "/openapi.json", "/health"):
            assert client.get(flower + path).status_code == 403
            assert client.get(gateway + path).status_code == 404
        secretless = client.post(
            f"{flower}/v1/runtime/acquire-task", content=b"", headers={"content-type": "application/protobuf"}
        )
        assert secretless.status_code == 401
        for path in (
            "control/start-run",
            "runtime/acquire-task",
            "fleet/register-node",
            "fleet/%2e%2e/control/stop-run",
        ):
            assert client.post(f"{gateway}/v1/{path}", content=b"").status_code == 404
        assert client.post(f"{gateway}/v1/fleet/pull-messages", content=b"").status_code == 401
    old = trust_of((home.folder / "ca.crt").read_text())
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=old) as client, pytest.raises(httpx.ConnectError):
        client.get(gateway)
    assert _flood(home, trust) * 2**20 < 150e6
    before = requests_served(home)
    with ExitStack() as stack:
        slow = [stack.enter_context(_tls(home, trust)) for _ in range(scaled(200, 40))]
        for each in slow:
            each.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n")
        assert _flood(home, trust) * 2**20 < 150e6 + 2**17 * len(slow)  # what a connection that is open takes
        garbage = (
            b"GET / HTTP/9.9\r\n\r\n",
            b"\0" * 100,
            b"POST /v1/fleet/pull-messages HTTP/1.1\r\n" + b"a: b\r\n" * 9000,
        )
        for data in garbage:
            with _tls(home, trust) as one:
                with suppress(OSError):
                    one.sendall(data)
                answer = _read(one)
                assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 404"), answer[:60]
        until(lambda: requests_served(home) > before + 3, why="the silos are not served meanwhile")
        for each in slow:
            assert _read(each)[:12] in (b"", b"HTTP/1.1 400"), "closed at last"
    assert "5" not in {status[0] for status in statuses(home)}, statuses(home)


def _tls(home: Home, trust: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", home.settings.port), timeout=60)
    return trust.wrap_socket(plain, server_hostname="127.0.0.1")


def _read(one: ssl.SSLSocket) -> bytes:
    with suppress(OSError):
        return one.recv(4096)
    return b""


def _flood(home: Home, trust: ssl.SSLContext) -> float:
    """300 MiB without a signature: refused after the headers, in little memory. Returns the peak so far in MiB."""
    pid = running(home)
    before = peak_mib(pid)
    with _tls(home, trust) as one, suppress(OSError):
        one.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 314572800\r\n\r\n")
        for _ in range(300):
            one.sendall(b"x" * 2**20)
    after = peak_mib(pid)
    assert after - before < 30, (before, after)
    return after


def peak_mib(pid: int | None) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def metrics(home: Home) -> list[str]:
    return httpx.get(f"http://127.0.0.1:{home.settings.status_port}/metrics").text.splitlines()


def requests_served(home: Home) -> int:
    served = [line for line in metrics(home) if line.startswith("fedsilo_requests_total") and 'status="200"' in line]
    return sum(int(line.split()[-1]) for line in served)


def statuses(home: Home) -> set[str]:
    lines = [line for line in metrics(home) if line.startswith("fedsilo_requests_total")]
    return {line.split('status="')[1][:3] for line in lines}


# --- runs ---------------------------------------------------------------------------------------------------


def the_model_is_the_inline_engines_bit_for_bit(world: Processes, tmp_path: Path) -> None:
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


def health_metrics_and_page_say_so(world: Processes) -> None:
    home = Home.open(world.consortium.server)
    assert healthy(home.settings.health_port)
    text = "\n".join(metrics(home))
    assert "fedsilo_silos_online 3" in text and 'fedsilo_received_bytes_total{silo="silo-2"}' in text
    page = httpx.get(f"http://127.0.0.1:{home.settings.status_port}/").text
    assert all(name in page for name in NAMES) and "plain" in page and "NO differential privacy" in page
    facts = json.loads(world.type("status", "--json").stdout)
    assert facts["up"] and {row["state"] for row in facts["silos"]} == {"online"}
    assert facts["runs"][0]["rounds_done"] == 2


def healthy(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def a_masked_run_shows_the_coordinator_sums_alone(world: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(world, "masked", study__rounds=1, secagg__enabled=True)
    done = world.type("run", str(study), "--json")
    assert done.returncode == 0, done.stderr + logs(world.consortium)
    folder = Path(json.loads(done.stdout)["run"])
    assert [json.loads(line)["aggregated"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [True]
    left = (world.consortium.server.parent / "silo-1" / "egress.jsonl").read_text()
    of_run = [
        json.loads(line) for line in left.splitlines() if json.loads(line)["run"] == report_of(folder)["run"]["id"]
    ]
    fields = {line["field"] for line in of_run}
    assert "MaskedUpdate.upload" in fields and "Update.update" not in fields
    verified(world, folder, capsys)


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def verified(world: Processes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = ["check", str(folder), "--pin", str(world.consortium.server / "roster.jsonl")]
    assert guarded(verify, arguments=arguments) == 0, capsys.readouterr()


def a_private_run_survives_a_silos_and_the_servers_death(
    world: Processes, capsys: pytest.CaptureFixture[str], scaled: Callable[..., int]
) -> None:
    consortium, rounds = world.consortium, scaled(8, 4)
    study = study_of(world, "private", study__rounds=rounds, cohort__min_silos=2, cohort__round_timeout_s=60)
    home = Home.open(consortium.server)
    started = json.loads(world.type("run", str(study), "--detach", "--json").stdout)

    def run() -> dict[str, Any]:
        return run_facts(journal_of(home, int(started["id"])), {})

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
    verified(world, folder, capsys)
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


def a_silo_that_is_removed_takes_no_part(world: Processes) -> None:
    home = Home.open(world.consortium.server)
    server_("enrol", "--server", str(home.folder), "--remove", "silo-3")
    until(lambda: len(Control(home).nodes()) == 2)
    until(lambda: "turned away" in node_state(home.folder.parent / "silo-3")["state"])
    until(lambda: '"silo": "-", "call": "activate-node", "status": 403, "reason": "roster"' in audit(home))
    assert online(world.consortium) == 2


def audit(home: Home) -> str:
    return (home.logs / "audit.jsonl").read_text()


def everything_stops_and_nothing_is_left(world: Processes) -> None:
    consortium = world.consortium
    port = str(Home.open(consortium.server).settings.superlink_port)
    done = world.type("stop", "--json")
    assert done.returncode == 0, done.stderr + logs(consortium)
    for name in NAMES:
        world.running[name].terminate()
    for name in ("server", *NAMES):
        assert world.running.pop(name).wait(timeout=60) == 0, name
    assert [line for line in commands() if port in line or str(consortium.server.parent) in line] == []
    assert world.type("status").returncode == 1


def commands() -> list[str]:
    """Command lines of the processes of this machine, this one apart."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.parent.name != str(os.getpid()):
            with suppress(OSError):
                found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
