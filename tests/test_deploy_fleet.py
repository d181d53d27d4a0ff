"""A message whose parts are still on their way: the silo waits as long as an answer is wanted, and no longer.

Behind the connection stands a coordinator that hands out Flower's own objects, and is slow.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from test_deploy_tls import AUTHORITY

from client.fleet import Connection, TurnedAway, Unreachable

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


def pulled(late: int, ttl: float, stopping: Callable[[], bool] = lambda: False) -> tuple[Slow, Callable[[], Message]]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    content = RecordDict({"fedsilo": ArrayRecord({"weights": Array(WEIGHTS)})})
    message = Message(content, dst_node_id=5, message_type="train", ttl=ttl)
    message.metadata.__dict__["_message_id"] = message.object_id
    coordinator, tree = Slow(message, late), get_object_tree(message)
    connection = Connection("localhost:1", AUTHORITY.pem().decode(), ec.generate_private_key(ec.SECP384R1()))
    connection._client.close()
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
