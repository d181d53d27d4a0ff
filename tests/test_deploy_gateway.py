"""What the gateway lets through to Flower, and what it does not: each way around it that is known is a test.

Behind the gateway stands a Flower of a few lines that counts what reaches it; the real one is behind it in
test_deploy_run.py. Oracle of the signatures: cryptography's own signing.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2

from server import fleet
from server.entrance import Entrance
from server.gateway import Gateway
from server.grants import Grants
from server.journal import Journal
from server.meters import Meters

NODES = {"north": 11, "south": 22}
ASKED = {"north": "a" * 64, "south": "b" * 64}  # the message that Flower has for each
OBJECTS = {"north": ["a" * 64, "c" * 64], "south": ["b" * 64, "d" * 64]}
RUN = 7


@dataclass
class Silo:
    name: str
    key: EllipticCurvePrivateKey = field(default_factory=lambda: generate_private_key(SECP384R1()))

    @property
    def pem(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def point(self) -> str:
        return self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint).hex()

    def headers(self, at: datetime | None = None) -> dict[str, str]:
        stamp = (at or datetime.now(UTC)).isoformat()
        signature = self.key.sign(stamp.encode(), ECDSA(SHA256()))
        return {
            "flwr-public-key": base64.b64encode(self.pem).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(signature).decode(),
        }


def tree(ids: list[str]) -> message_pb2.ObjectTree:
    return message_pb2.ObjectTree(object_id=ids[0], children=[message_pb2.ObjectTree(object_id=i) for i in ids[1:]])


class Flower:
    """Counts what reaches it and answers as the SuperLink does."""

    def __init__(self, silos: Mapping[str, Silo]) -> None:
        self.node_of = {silo.pem: NODES[name] for name, silo in silos.items()}
        self.name_of = {NODES[name]: name for name in silos}
        self.calls: list[str] = []
        self.fails = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name, body = scope["path"].removeprefix("/v1/fleet/"), b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.calls.append(name)
        answer = b""
        if name == "activate-node":
            request = fleet_pb2.ActivateNodeRequest.FromString(body)
            answer = fleet_pb2.ActivateNodeResponse(node_id=self.node_of[request.public_key]).SerializeToString()
        elif name == "pull-messages":
            silo = self.name_of[fleet_pb2.PullMessagesRequest.FromString(body).node.node_id]
            facts = message_pb2.Metadata(message_id=ASKED[silo], run_id=RUN, dst_node_id=NODES[silo])
            answer = fleet_pb2.PullMessagesResponse(
                messages_list=[message_pb2.Message(metadata=facts)], message_object_trees=[tree(OBJECTS[silo])]
            ).SerializeToString()
        status = 500 if self.fails else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer})


class World:
    """A gateway with two silos, without sockets."""

    def __init__(self, folder: Path) -> None:
        self.silos = {name: Silo(name) for name in NODES}
        self.roster = {silo.point: name for name, silo in self.silos.items()}
        self.flower = Flower(self.silos)
        self.folder = folder
        self.open()

    def open(self) -> None:
        """Start the gateway, as after a restart."""
        self.gateway = Gateway(
            entrance=Entrance(roster=lambda: self.roster),
            grants=Grants(self.folder / "grants.jsonl"),
            upstream=httpx.AsyncClient(transport=httpx.ASGITransport(self.flower), base_url="http://flower"),
            audit=Journal(self.folder / "audit.jsonl"),
            meters=Meters(),
        )

    def send(self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST") -> int:
        return self.answer(path, body, headers, method).status_code

    def answer(
        self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.gateway, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                return await client.request(method, path, content=body, headers=headers)

        return asyncio.run(once())

    def call(self, silo: str, name: str, request: Any, **changed: str) -> int:
        headers = self.silos[silo].headers() | changed
        return self.send(f"/v1/fleet/{name}", request.SerializeToString(), headers)

    def ready(self, *silos: str) -> None:
        """Activate silos and let each fetch its message."""
        for silo in silos or NODES:
            assert self.call(silo, "activate-node", activation(self.silos[silo])) == 200
            assert self.call(silo, "pull-messages", pulling(silo)) == 200


def activation(silo: Silo) -> fleet_pb2.ActivateNodeRequest:
    return fleet_pb2.ActivateNodeRequest(public_key=silo.pem, heartbeat_interval=10)


def node(silo: str) -> node_pb2.Node:
    return node_pb2.Node(node_id=NODES[silo])


def pulling(silo: str) -> fleet_pb2.PullMessagesRequest:
    return fleet_pb2.PullMessagesRequest(node=node(silo))


def reply(silo: str, *, source: str | None = None, answers: str | None = None, ids: str = "e", run: int = RUN) -> Any:
    facts = message_pb2.Metadata(
        message_id=ids * 64,
        src_node_id=NODES[source or silo],
        reply_to_message_id=answers or ASKED[silo],
        run_id=run,
    )
    return fleet_pb2.PushMessagesRequest(
        node=node(silo),
        messages_list=[message_pb2.Message(metadata=facts)],
        message_object_trees=[tree([ids * 64, "f" * 64])],
    )


def fetching(silo: str, object: str) -> message_pb2.PullObjectRequest:
    return message_pb2.PullObjectRequest(node=node(silo), run_id=RUN, object_id=object)


def sending(silo: str, object: str) -> message_pb2.PushObjectRequest:
    return message_pb2.PushObjectRequest(node=node(silo), run_id=RUN, object_id=object, object_content=b"x")


def confirming(silo: str, message: str) -> message_pb2.ConfirmMessageReceivedRequest:
    return message_pb2.ConfirmMessageReceivedRequest(node=node(silo), run_id=RUN, message_object_id=message)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- doors that are not there -------------------------------------------------------------------------------

CLOSED = [
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/v1/runtime/pull-messages",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?x=1",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/pull%2dmessages",
    "//v1/fleet/pull-messages",
    "/V1/fleet/pull-messages",
    "/docs",
    "/openapi.json",
    "/health",
    "/",
]


@pytest.mark.parametrize("path", CLOSED)
def test_only_ten_paths_exist_even_for_a_silo_of_the_roster(world: World, path: str) -> None:
    assert world.send(path, pulling("north").SerializeToString(), world.silos["north"].headers()) == 404
    assert world.flower.calls == []


def test_only_post_is_answered(world: World) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
        assert world.send("/v1/fleet/pull-messages", b"", world.silos["north"].headers(), method) == 405
    assert world.flower.calls == []


# --- who knocks ---------------------------------------------------------------------------------------------


def test_110_keys_beside_the_roster_are_turned_away(world: World, scaled: Callable[..., int]) -> None:
    for number in range(scaled(110, 12)):
        rogue = Silo("rogue", generate_private_key(SECP384R1() if number % 10 else SECP256R1()))
        assert world.send("/v1/fleet/activate-node", activation(rogue).SerializeToString(), rogue.headers()) == 403
    assert world.flower.calls == []


def test_headers_that_do_not_hold_are_turned_away(world: World) -> None:
    north, south = world.silos["north"], world.silos["south"]
    good = north.headers()
    wrong = {
        "nothing": {},
        "another's key": good | {"flwr-public-key": south.headers()["flwr-public-key"]},
        "another's signature": good | {"flwr-signature": south.headers()["flwr-signature"]},
        "no base64": good | {"flwr-signature": "***"},
        "too long": good | {"flwr-public-key": "A" * 4096},
        "no key": good | {"flwr-public-key": base64.b64encode(b"x" * 100).decode()},
        "no time": good | {"flwr-timestamp": "yesterday"},
        "no zone": good | {"flwr-timestamp": "2026-01-31T12:00:00"},
        "another time": good | {"flwr-timestamp": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()},
    }
    for what, headers in wrong.items():
        assert world.send("/v1/fleet/pull-messages", pulling("north").SerializeToString(), headers) == 401, what
    assert world.flower.calls == []


@pytest.mark.parametrize("age", [-600, -240, -60, -6, 306, 320, 600, 86400])
def test_a_time_outside_the_window_is_turned_away(world: World, age: int) -> None:
    world.gateway.entrance._began -= 10**6  # the gateway has run for long
    headers = world.silos["north"].headers(datetime.now(UTC) - timedelta(seconds=age))
    assert world.send("/v1/fleet/pull-messages", pulling("north").SerializeToString(), headers) == 401


@pytest.mark.parametrize("age", [-4, 0, 60, 240, 300])
def test_a_time_inside_the_window_is_accepted_once(world: World, age: int) -> None:
    world.gateway.entrance._began -= 10**6
    world.ready("north")
    headers = world.silos["north"].headers(datetime.now(UTC) - timedelta(seconds=age))
    assert world.send("/v1/fleet/pull-messages", pulling("north").SerializeToString(), headers) == 200
    before = len(world.flower.calls)
    for path, body in (
        ("/v1/fleet/pull-messages", pulling("north")),  # the same again
        ("/v1/fleet/deactivate-node", fleet_pb2.DeactivateNodeRequest(node_id=NODES["north"])),  # for another call
    ):
        assert world.send(path, body.SerializeToString(), headers) == 409
    again = world.silos["north"].key.sign(headers["flwr-timestamp"].encode(), ECDSA(SHA256()))
    other = headers | {"flwr-signature": base64.b64encode(again).decode()}  # ECDSA signs differently each time
    assert world.send("/v1/fleet/pull-messages", pulling("north").SerializeToString(), other) == 409
    assert len(world.flower.calls) == before


def test_what_was_signed_before_the_gateway_began_is_turned_away(world: World) -> None:
    headers = world.silos["north"].headers(datetime.now(UTC) - timedelta(seconds=30))
    assert world.send("/v1/fleet/pull-messages", pulling("north").SerializeToString(), headers) == 401


def test_a_silo_that_is_removed_is_out_at_once(world: World) -> None:
    world.ready()
    del world.roster[world.silos["north"].point]
    assert world.call("north", "pull-messages", pulling("north")) == 403
    assert world.call("south", "pull-messages", pulling("south")) == 200


# --- bodies -------------------------------------------------------------------------------------------------


def test_a_large_body_is_refused_before_a_byte_of_it_is_read(world: World) -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

    def post(name: str, headers: dict[str, str], *more: tuple[bytes, bytes]) -> int:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/v1/fleet/{name}",
            "raw_path": f"/v1/fleet/{name}".encode(),
            "query_string": b"",
            "headers": [*((k.encode(), v.encode()) for k, v in headers.items()), *more],
            "client": ("192.0.2.1", 1),
        }
        asyncio.run(world.gateway(scope, receive, send))
        status: int = sent[0]["status"]
        return status

    north = world.silos["north"]
    large, chunked = (b"content-length", str(300 * 2**20).encode()), (b"transfer-encoding", b"chunked")
    assert post("push-object", {}, large) == 401
    assert post("push-object", Silo("rogue").headers(), large) == 403
    assert post("push-object", north.headers(), large) == 413
    assert post("pull-messages", north.headers(), (b"content-length", str(2**20 + 1).encode())) == 413
    assert post("push-object", north.headers(), chunked) == 411
    assert post("push-object", north.headers(), (b"content-length", b"5"), chunked) == 411
    assert post("push-object", north.headers(), (b"content-length", b"-1")) == 411
    assert post("push-object", north.headers(), (b"content-length", b"5"), (b"content-length", b"6")) == 400
    assert read == 0
    assert post("push-object", north.headers(), (b"content-length", b"5")) == 400, "more came than was declared"
    assert world.flower.calls == []


def test_bodies_that_are_no_such_request_are_refused(world: World) -> None:
    world.ready("north")
    before = len(world.flower.calls)
    headers = world.silos["north"].headers
    for body in (b"", b"\xff" * 40, reply("north").SerializeToString()[:-7]):
        assert world.send("/v1/fleet/push-messages", body, headers()) == 400
    two = reply("north")
    two.messages_list.add().CopyFrom(two.messages_list[0])
    assert world.call("north", "push-messages", two) == 400
    beside = reply("north")
    beside.message_object_trees[0].object_id = "9" * 64
    assert world.call("north", "push-messages", beside) == 400, "its objects are not its own"
    deep = reply("north")
    place = deep.message_object_trees[0]
    for _ in range(60):
        place = place.children.add(object_id="9" * 64)
    assert world.call("north", "push-messages", deep) == 400
    assert len(world.flower.calls) == before


def test_a_silo_that_asks_too_often_is_slowed_down_alone(world: World) -> None:
    world.ready()
    codes = [world.call("north", "pull-messages", pulling("north")) for _ in range(5)]
    assert codes == [200] * 5
    world.gateway._lines["north"].tokens = 0.5
    world.gateway._lines["north"].at += 10**6  # no time goes by
    assert world.call("north", "pull-messages", pulling("north")) == 429
    assert world.call("south", "pull-messages", pulling("south")) == 200


# --- whose it is --------------------------------------------------------------------------------------------


def test_nobody_speaks_for_another_node(world: World) -> None:
    world.ready()
    before = len(world.flower.calls)
    assert world.call("south", "activate-node", activation(world.silos["north"])) == 403
    for name, request in (
        ("pull-messages", pulling("north")),
        ("deactivate-node", fleet_pb2.DeactivateNodeRequest(node_id=NODES["north"])),
        ("send-node-heartbeat", heartbeat_pb2.SendNodeHeartbeatRequest(node=node("north"), heartbeat_interval=10)),
        ("get-run", run_pb2.GetRunRequest(node=node("north"), run_id=RUN)),
        ("get-fab", fab_pb2.GetFabRequest(node=node("north"), run_id=RUN)),
        ("pull-object", fetching("north", OBJECTS["north"][1])),
        ("push-messages", reply("north")),
        ("pull-messages", fleet_pb2.PullMessagesRequest()),
    ):
        assert world.call("south", name, request) == 403, name
    assert len(world.flower.calls) == before


def test_nobody_answers_in_anothers_name(world: World) -> None:
    world.ready()
    before = len(world.flower.calls)
    assert world.call("south", "push-messages", reply("south", source="north", answers=ASKED["north"])) == 403
    assert world.call("south", "push-messages", reply("south", answers=ASKED["north"])) == 403
    assert world.call("south", "push-messages", reply("south", run=RUN + 1)) == 403
    assert len(world.flower.calls) == before
    assert world.call("south", "push-messages", reply("south")) == 200


def test_objects_go_to_their_silo_alone(world: World) -> None:
    world.ready()
    before = len(world.flower.calls)
    for object in OBJECTS["north"]:
        assert world.call("south", "pull-object", fetching("south", object)) == 403
    assert world.call("south", "confirm-message-received", confirming("south", ASKED["north"])) == 403
    assert world.call("south", "push-object", sending("south", "f" * 64)) == 403, "it has announced no reply"
    assert world.call("south", "get-run", run_pb2.GetRunRequest(node=node("south"), run_id=RUN + 1)) == 403
    assert len(world.flower.calls) == before
    for object in OBJECTS["south"]:
        assert world.call("south", "pull-object", fetching("south", object)) == 200
    assert world.call("south", "confirm-message-received", confirming("south", ASKED["south"])) == 200
    assert world.call("south", "pull-object", fetching("south", OBJECTS["south"][0])) == 403, "it has it"
    assert world.call("south", "push-messages", reply("south")) == 200
    assert world.call("south", "push-object", sending("south", "f" * 64)) == 200


def test_a_message_is_answered_once_and_a_retry_is_the_same_answer(world: World) -> None:
    world.ready()
    assert world.call("north", "push-messages", reply("north")) == 200
    assert world.call("north", "push-messages", reply("north")) == 200
    assert world.call("north", "push-messages", reply("north", ids="9")) == 403
    assert world.flower.calls.count("push-messages") == 2


def test_what_was_given_is_known_after_a_restart(world: World) -> None:
    world.ready()
    assert world.call("north", "push-messages", reply("north")) == 200
    world.open()
    assert world.call("north", "pull-object", fetching("north", OBJECTS["north"][1])) == 200
    assert world.call("north", "push-object", sending("north", "f" * 64)) == 200
    assert world.call("north", "push-messages", reply("north", ids="9")) == 403
    assert world.call("south", "pull-object", fetching("south", OBJECTS["north"][1])) == 403
    with (world.folder / "grants.jsonl").open("ab") as file:
        file.write(b'{"time": 1')  # the last line of a process that was killed
    world.open()
    assert world.call("south", "pull-object", fetching("south", OBJECTS["south"][1])) == 200


# --- what is written down -----------------------------------------------------------------------------------


def test_the_audit_log_names_who_and_why_and_nothing_else(world: World) -> None:
    import json

    world.ready("north")
    world.call("north", "push-messages", reply("north", source="south"))
    world.send("/v1/control/start-run", b"canary" * 10, {"flwr-timestamp": "canary"})
    lines = [json.loads(line) for line in (world.folder / "audit.jsonl").read_text().splitlines()]
    assert [(line["silo"], line["call"], line["status"], line["reason"]) for line in lines] == [
        ("north", "activate-node", 200, ""),
        ("north", "pull-messages", 200, ""),
        ("north", "push-messages", 403, "owner"),
        ("-", "-", 404, "path"),
    ]
    assert "canary" not in (world.folder / "audit.jsonl").read_text()


def test_a_flood_of_refusals_does_not_fill_the_log(world: World, scaled: Callable[..., int]) -> None:
    now = 0.0
    world.gateway.audit = Journal(world.folder / "audit.jsonl", lambda: now)
    for _ in range(scaled(2000, 200)):
        world.send("/docs")
    assert len((world.folder / "audit.jsonl").read_text().splitlines()) == 50, "of one second"
    now = 1.0
    world.send("/docs")
    assert '"suppressed"' in (world.folder / "audit.jsonl").read_text().splitlines()[-1]


def test_fuzzed_requests_reach_nobody_and_break_nothing(world: World, scaled: Callable[..., int]) -> None:
    world.ready()
    before, random_ = len(world.flower.calls), random.Random(7)
    names = [*fleet.PATHS.values(), "register-node", "", "..", "%00"]
    good = reply("north").SerializeToString()
    for _ in range(scaled(2000, 200)):
        headers = world.silos["north"].headers()
        kind = random_.randrange(4)
        if kind == 0:
            headers.pop(random_.choice(list(headers)))
        elif kind == 1:
            name = random_.choice(list(headers))
            text = list(headers[name])
            text[random_.randrange(len(text))] = random_.choice("AZaz09+/=-:")
            changed = "".join(text)
            if changed[:-4] == headers[name][:-4]:
                continue  # the last group may have bits that base64 does not use
            headers[name] = changed
        elif kind == 2:
            headers = Silo("rogue", ROGUE).headers()
        body = bytearray(good)
        body[random_.randrange(len(body))] ^= 1 << random_.randrange(8)
        path = f"/v1/fleet/{random_.choice(names)}" if kind != 3 else "/v1/control/start-run"
        method = random_.choice(["POST", "POST", "POST", "GET", "TRACE"])
        status = world.send(path, bytes(body), headers, method)
        assert 400 <= status < 500, (path, headers, status)
    assert len(world.flower.calls) == before


ROGUE = generate_private_key(SECP384R1())
