"""Messages whose parts are still on their way: a silo waits as long as an answer is wanted, a server for seconds, and a
reply that was cut off is completed.

Behind the connection stands a coordinator that hands out Flower's own objects, and is slow.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import (
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid
from test_deploy_tls import AUTHORITY

from client.fleet import Connection, TurnedAway, Unreachable, from_bytes, to_bytes
from server import superlink

WEIGHTS = np.arange(3_000_000, dtype=np.float32)  # 12 MB, so more than one chunk


class Slow:
    """Hands out an object from its `late`-th request on."""

    def __init__(self, message: Message, late: int) -> None:
        self.objects = {name: each.deflate() for name, each in get_all_nested_objects(message).items()}
        self.late, self.asked = late, Counter[str]()

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802 - Flower's name
        self.asked[request.object_id] += 1
        there = self.asked[request.object_id] >= self.late
        content = self.objects[request.object_id] if there else b""
        return PullObjectResponse(object_found=True, object_available=there, object_content=content)

    def close(self) -> None: ...


def connected() -> Connection:
    connection = Connection("localhost:1", AUTHORITY.pem().decode(), ec.generate_private_key(ec.SECP384R1()))
    connection._client.close()
    return connection


def pulled(late: int, ttl: float, stopping: Callable[[], bool] = lambda: False) -> tuple[Slow, Callable[[], Message]]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    content = RecordDict({"fedsilo": ArrayRecord({"weights": Array(WEIGHTS)})})
    message = Message(content, dst_node_id=5, message_type="train", ttl=ttl)
    message.metadata.__dict__["_message_id"] = message.object_id
    coordinator, tree = Slow(message, late), get_object_tree(message)
    connection = connected()
    connection._client = coordinator  # type: ignore[assignment]
    alone = message_from_proto(message_to_proto(remove_content_from_message(message)))
    return coordinator, lambda: connection.content(alone, tree, stopping)


def test_a_message_is_put_together_once_all_of_it_is_there() -> None:
    coordinator, fetch = pulled(late=3, ttl=60)
    found: Any = fetch().content["fedsilo"]
    assert found["weights"].numpy().tobytes() == WEIGHTS.tobytes()
    assert len(coordinator.asked) > 4 and set(coordinator.asked.values()) == {3}


def test_nobody_waits_for_what_is_no_longer_wanted() -> None:
    coordinator, fetch = pulled(late=10**9, ttl=0.5)
    with pytest.raises(TurnedAway, match="not to be had"):
        fetch()
    assert 1 < max(coordinator.asked.values()) < 20


def test_a_node_that_stops_does_not_wait() -> None:
    began = time.monotonic()
    _, fetch = pulled(late=10**9, ttl=3600, stopping=lambda: time.monotonic() > began + 0.2)
    with pytest.raises(Unreachable, match="stops"):
        fetch()


def test_an_object_that_is_not_there_at_all_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, fetch = pulled(late=1, ttl=60)
    monkeypatch.setattr(coordinator, "PullObject", lambda request: PullObjectResponse(object_found=False))
    with pytest.raises(TurnedAway, match="ObjectPullError"):
        fetch()


# --- a reply that is cut off --------------------------------------------------------------------------------


class Cut(Slow):
    """Takes a reply once; the first time it breaks off after some of its objects."""

    def __init__(self, after: int) -> None:
        self.after, self.sessions, self.stored = after, 0, dict[str, str]()

    def PushMessages(self, request: Any) -> PushMessagesResponse:  # noqa: N802
        self.sessions += 1
        (tree,) = request.message_object_trees
        wanted = [each.object_id for each in iterate_object_tree(tree)] if self.sessions == 1 else []
        return PushMessagesResponse(session_id=f"session {self.sessions}", objects_to_push=wanted)

    def PushObject(self, request: Any) -> PushObjectResponse:  # noqa: N802
        if len(self.stored) == self.after:
            self.after = -1
            raise httpx.ConnectError("cut off")
        self.stored[request.object_id] = request.session_id
        return PushObjectResponse(stored=True)


def test_a_reply_that_was_cut_off_is_completed() -> None:
    _, fetch = pulled(late=1, ttl=60)
    asked = fetch()
    coordinator, connection = Cut(after=3), connected()
    connection._client = coordinator  # type: ignore[assignment]
    reply = Message(asked.content, reply_to=asked)
    with pytest.raises(Unreachable):
        connection.push(reply)
    assert len(coordinator.stored) < len(get_all_nested_objects(reply))
    connection.push(from_bytes(to_bytes(reply)))  # as the outbox keeps it
    assert coordinator.sessions == 2 and set(coordinator.stored.values()) == {"session 1"}
    assert set(coordinator.stored) == set(get_all_nested_objects(reply))


def test_a_reply_whose_parts_do_not_come_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract with flwr 1.41: its Grid gives up on such a reply, and says so in a way that SignedGrid knows."""
    monkeypatch.setattr(superlink, "_PARTS_S", 0.3)
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)
    superlink.bound_pulls()
    coordinator, _ = pulled(late=10**9, ttl=60)
    (root, *_) = coordinator.objects
    facts = Metadata(message_id=root, run_id=7, src_node_id=5, dst_node_id=1, reply_to_message_id="a" * 64)
    listed = PullAppMessagesResponse(
        messages_list=[MessageProto(metadata=facts)], message_object_trees=[ObjectTree(object_id=root)]
    )
    coordinator.PullMessages = lambda request: listed  # type: ignore[attr-defined]
    grid = object.__new__(http_grid.HttpGrid)
    vars(grid).update(_run=type("Run", (), {"run_id": 7})(), _client=coordinator, node=Node(node_id=1))
    (found,) = grid.pull_messages(["a" * 64])
    assert found.has_error() and found.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert found.metadata.reply_to_message_id == "a" * 64
    assert 1 < coordinator.asked[root] < 20
