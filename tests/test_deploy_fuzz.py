"""Two thousand requests that no node sends, over TLS to a real gateway: each is refused, none is forwarded, and a silo of
the roster is served all the while.

Behind the gateway stands the Flower of a few lines of test_deploy_gateway.py, which counts what reaches it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from coordinators import until
from test_deploy_gateway import ROGUE, Silo, World, activation, pulling, reply

from client.trust import trust_of
from server.authority import certify, make_authority
from server.fleet import PATHS
from server.listener import listener, server_side
from simulations.bench.processes import free_ports

AT_ONCE = 8
NAMES = [f"/v1/fleet/{name}" for name in PATHS.values()]
WRONG_PATHS = [
    *("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/fleet/register-node"),
    *("/v1/fleet/%2e%2e/control/stop-run", "/v1/fleet/../control/list-runs", "//v1/fleet/pull-messages", "/docs", "*"),
    *("/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages#x", "/v1/fleet/pull-messages%00", "/" + "a" * 9000),
]
VERBS = ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT", "PRI", "post", "POST\t", "\x00"]


@dataclass
class Gate:
    """A gateway that listens, and what came of the requests."""

    world: World
    port: int
    trust: ssl.SSLContext
    answers: Counter[str] = field(default_factory=Counter)
    answered: int = 0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    make_authority(tmp_path, "fuzzed")
    certify(tmp_path, ["127.0.0.1"])
    world, port = World(tmp_path / "gate"), free_ports(1)
    server = listener(
        world.gateway, "127.0.0.1", port, server_side(tmp_path / "server.crt", tmp_path / "keys" / "server.key")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until(lambda: server.started)
    yield Gate(world=world, port=port, trust=trust_of((tmp_path / "ca.crt").read_text()))
    server.should_exit = True
    thread.join(timeout=30)


def test_fuzzed_requests_over_tls(
    gate: Gate,
    scaled: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("ERROR", "uvicorn.error")  # it says of each that it is invalid
    count, random_ = scaled(2000, 200), random.Random(11)
    requests = [made(random_, gate.world.silos["north"], number) for number in range(count)]
    over = threading.Event()
    served: list[tuple[float, int]] = []
    thread = threading.Thread(target=honest, args=(gate, over, served), daemon=True)
    thread.start()
    try:
        asyncio.run(send_all(gate, requests))
    finally:
        over.set()
        thread.join(timeout=60)
    assert gate.answered == count and sum(gate.answers.values()) == count
    assert set(gate.answers) <= {"closed", "400", "401", "403", "404", "405", "411", "413", "431"}, gate.answers
    assert gate.answers["404"] and gate.answers["405"] and gate.answers["401"] and gate.answers["403"], gate.answers
    calls = Counter(gate.world.flower.calls)
    assert calls == {"activate-node": 1, "pull-messages": len(served)}, "nothing but what the honest silo said"
    assert len(served) > count / 100
    slowest_s, most_between = (max(column) for column in zip(*served, strict=True))
    print(f"slowest answer to the silo: {slowest_s:.3f} s of {len(served)}")
    assert most_between <= 10 * AT_ONCE, "an honest request waits for those under way, and not for all that come after"


def honest(gate: Gate, over: threading.Event, served: list[tuple[float, int]]) -> None:
    """Be a silo of the roster, once a moment; note the seconds of each answer, and the answers to others meanwhile."""
    silo = gate.world.silos["south"]
    with httpx.Client(verify=gate.trust, base_url=f"https://127.0.0.1:{gate.port}/v1/fleet", timeout=60) as client:
        body = activation(silo).SerializeToString()
        assert client.post("activate-node", content=body, headers=silo.headers()).status_code == 200
        while not over.is_set():
            began, before = time.monotonic(), gate.answered
            body = pulling("south").SerializeToString()
            if client.post("pull-messages", content=body, headers=silo.headers()).status_code != 200:
                return
            served.append((time.monotonic() - began, gate.answered - before))
            over.wait(0.02)


async def send_all(gate: Gate, requests: list[bytes]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(request: bytes) -> None:
        async with slots:
            gate.answers[await answer_to(gate, request)] += 1
            gate.answered += 1

    await asyncio.gather(*(one(request) for request in requests))


async def answer_to(gate: Gate, request: bytes) -> str:
    """Return the status that a request gets, or `closed`; this side says that no more comes, and waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port, ssl=gate.trust, server_hostname="127.0.0.1")
    line = b""
    try:
        with suppress(OSError):
            writer.write(request)
            await writer.drain()
            with suppress(TimeoutError):
                line = await asyncio.wait_for(reader.readline(), 0.5)  # a request without an end is waited for: go
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return line.split(b" ")[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"


def made(random_: random.Random, silo: Silo, number: int) -> bytes:
    """Return a request of one of ten kinds, each wrong in one way at least."""
    body = bytearray(reply("north").SerializeToString())
    body[random_.randrange(len(body))] ^= 1 << random_.randrange(8)
    path, good = random_.choice(NAMES), silo.headers()
    kind = number % 10
    if kind == 0:
        return random_.randbytes(random_.randrange(1, 400)) + b"\r\n\r\n"
    if kind == 1:
        return written(random_.choice(VERBS), path, good, bytes(body))
    if kind == 2:
        return written("POST", random_.choice(WRONG_PATHS), good, bytes(body))
    whole = "/v1/fleet/pull-messages", pulling("north").SerializeToString()  # which only the headers can forbid
    if kind == 3:
        good.pop(random_.choice(list(good)))
        return written("POST", whole[0], good, whole[1])
    if kind == 4:
        name = random_.choice(["flwr-signature", "flwr-timestamp"])
        place = random_.randrange(len(good[name]) - 4)
        other = random_.choice([c for c in "AZaz09+/" if c != good[name][place]])
        changed = good[name][:place] + other + good[name][place + 1 :]
        return written("POST", whole[0], good | {name: changed}, whole[1])
    if kind == 5:
        return written("POST", whole[0], Silo("rogue", ROGUE).headers(), whole[1])
    if kind == 6:
        lie = random_.choice(["-1", "1e3", "0x10", "99999999999999999999", str(300 * 2**20), "", " ", "7, 7"])
        return written("POST", path, good, bytes(body), length=lie)
    if kind == 7:
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), bytes(body))
        return written("POST", path, good | {"transfer-encoding": "chunked"}, chunks, length=None)
    if kind == 8:
        more = {f"x-{n}": "y" * random_.randrange(1, 2000) for n in range(random_.randrange(20, 60))}
        return written("POST", path, good | more, b"\xff" * 40)  # signed by a silo, and no request of any kind
    text = written("POST", whole[0], good, whole[1])
    return text[: random_.randrange(1, text.index(b"\r\n\r\n"))]  # breaks off within its headers


def written(verb: str, path: str, headers: dict[str, str], body: bytes, length: str | None = "right") -> bytes:
    named = {"host": "x", **headers}
    if length is not None:
        named["content-length"] = str(len(body)) if length == "right" else length
    lines = [f"{verb} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
