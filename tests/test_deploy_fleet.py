"""Messages whose parts are still on their way: a silo waits as long as an answer is wanted, a server for seconds, and a
reply that was cut off is completed.

Behind the connection stands a coordinator that hands out Flower's own objects, and is slow.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
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
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid
from test_deploy_tls import AUTHORITY

from client.fleet import HEARTBEAT_S, Connection, TurnedAway, Unreachable, from_bytes, to_bytes
from server.replies import Replies

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


# --- how long a node may be silent --------------------------------------------------------------------------


class Handing:
    """Hands out one message, and notes how long the node said that it might be silent."""

    def __init__(self, objects: int, away: bool = False) -> None:
        self.objects, self.away, self.said = objects, away, list[float]()

    def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802 - Flower's name
        message = message_to_proto(remove_content_from_message(small()))
        tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(n)) for n in range(1, self.objects)])
        return PullMessagesResponse(messages_list=[message], message_object_trees=[tree])

    def SendNodeHeartbeat(self, request: SendNodeHeartbeatRequest) -> None:  # noqa: N802 - Flower's name
        if self.away:
            raise httpx.ConnectError("away")
        self.said.append(request.heartbeat_interval)

    def close(self) -> None: ...


def small() -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    return Message(RecordDict(), dst_node_id=5, message_type="train", ttl=60)


@pytest.mark.parametrize(("objects", "said"), [(15, []), (200, [pytest.approx(62.4, abs=0.1)])])
def test_a_node_says_at_once_that_a_large_message_will_keep_it_silent(objects: int, said: list[float]) -> None:
    connection, coordinator = connected(), Handing(objects)
    connection._client = coordinator  # type: ignore[assignment]
    assert connection.pull() is not None and coordinator.said == said
    coordinator.objects = 15
    connection.pull()
    connection.heartbeat()
    assert coordinator.said == [*said, HEARTBEAT_S]


def test_what_was_pulled_is_kept_when_that_cannot_be_said() -> None:
    connection = connected()
    connection._client = Handing(200, away=True)  # type: ignore[assignment]
    assert connection.pull() is not None


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


# --- replies that arrive part by part -----------------------------------------------------------------------


class Announcing(Slow):
    """Announces replies at once, each a single time, and their parts as `Slow` hands them out."""

    def __init__(self, replies: Mapping[str, Message], late: int) -> None:
        self.asked, self.late, self.confirmed = Counter[str](), late, list[str]()
        self.replies = {asked: (message, get_object_tree(message)) for asked, message in replies.items()}
        self.objects = {
            name: each.deflate()
            for message in replies.values()
            for name, each in get_all_nested_objects(message).items()
        }

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        found = [self.replies.pop(asked) for asked in request.message_ids if asked in self.replies]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(message)) for message, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)


def replies_of(weights: Mapping[str, np.ndarray], late: int = 1) -> tuple[Announcing, Replies]:
    _, fetch = pulled(late=1, ttl=60)
    asked, found = fetch(), {}
    for identity, values in weights.items():
        asked.metadata.__dict__["_message_id"] = identity
        found[identity] = Message(RecordDict({"fedsilo": ArrayRecord({"weights": Array(values)})}), reply_to=asked)
        found[identity].metadata.__dict__["_message_id"] = found[identity].object_id
    coordinator = Announcing(found, late)
    grid = object.__new__(http_grid.HttpGrid)
    vars(grid).update(_run=Run.create_empty(7), _client=coordinator, node=Node(node_id=1))
    return coordinator, Replies(grid)


def test_a_reply_is_had_when_its_last_part_has_come() -> None:
    """Contract with flwr 1.41: a reply is handed out once, and its parts can be asked for until they are confirmed."""
    coordinator, replies = replies_of({"a" * 64: WEIGHTS}, late=3)
    looks = [replies.pull(["a" * 64, "b" * 64]) for _ in range(3 * len(coordinator.objects))]
    assert looks[:2] == [[], []]
    (whole,) = [reply for look in looks for reply in look]
    found: Any = whole.content["fedsilo"]
    assert found["weights"].numpy().tobytes() == WEIGHTS.tobytes()
    assert whole.metadata.reply_to_message_id == "a" * 64 and coordinator.confirmed == [whole.metadata.message_id]


def test_a_reply_whose_parts_do_not_come_holds_nobody_up() -> None:
    coordinator, replies = replies_of({"a" * 64: WEIGHTS, "b" * 64: WEIGHTS[:10]})
    theirs = {each.object_id for each in iterate_object_tree(coordinator.replies["a" * 64][1])}
    missing = sorted(theirs)[0]
    held_back = coordinator.objects.pop(missing)
    give = coordinator.PullObject
    coordinator.PullObject = lambda request: (  # type: ignore[method-assign]
        give(request)
        if request.object_id in coordinator.objects
        else PullObjectResponse(object_found=True, object_available=False)
    )
    (other,) = replies.pull(["a" * 64, "b" * 64])
    assert other.metadata.reply_to_message_id == "b" * 64
    assert replies.pull(["a" * 64]) == []
    coordinator.objects[missing] = held_back  # the silo has come back and sent the rest
    (late,) = replies.pull(["a" * 64])
    assert late.metadata.reply_to_message_id == "a" * 64
    assert all(coordinator.asked[name] == 1 for name in coordinator.objects), "a part was fetched twice"


def test_a_look_asks_for_nothing_behind_a_part_that_is_on_its_way() -> None:
    coordinator, replies = replies_of({"a" * 64: np.arange(40_000_000, dtype=np.float32)}, late=10**9)
    assert len(coordinator.objects) > 30
    assert replies.pull(["a" * 64]) == [] and sum(coordinator.asked.values()) <= 4  # Flower asks twice at a time


def test_what_nobody_asks_for_any_more_is_let_go() -> None:
    _, replies = replies_of({"a" * 64: WEIGHTS}, late=2)
    replies.pull(["a" * 64])
    assert list(replies._announced) == ["a" * 64]
    assert replies.pull(["c" * 64]) == [] and not replies._announced


@pytest.mark.parametrize("lie", ["a part is not in the tree", "to another message", "no message"])
def test_a_reply_that_does_not_fit_together_is_an_error_and_the_others_count(lie: str) -> None:
    coordinator, replies = replies_of({"a" * 64: WEIGHTS[:10], "b" * 64: WEIGHTS[:20]})
    message, tree = coordinator.replies["a" * 64]
    if lie == "a part is not in the tree":
        del tree.children[:]
    elif lie == "to another message":
        coordinator.replies["a" * 64] = coordinator.replies["b" * 64]
    else:
        part = next(each for each in iterate_object_tree(tree) if each.object_id != message.object_id)
        message.metadata.__dict__["_message_id"] = part.object_id
    if lie == "to another message":
        other = message_to_proto(remove_content_from_message(coordinator.replies["b" * 64][0]))
        other.metadata.reply_to_message_id = "a" * 64
        tree = coordinator.replies["b" * 64][1]
        coordinator.PullMessages = lambda request: PullAppMessagesResponse(  # type: ignore[method-assign]
            messages_list=[other], message_object_trees=[tree]
        )
    found = {reply.metadata.reply_to_message_id: reply for reply in replies.pull(["a" * 64, "b" * 64])}
    assert found["a" * 64].has_error()
    assert lie == "to another message" or not found["b" * 64].has_error()


def test_a_reply_that_cannot_be_had_is_an_error_at_once() -> None:
    coordinator, replies = replies_of({"a" * 64: WEIGHTS})
    coordinator.PullObject = lambda request: PullObjectResponse(object_found=False)  # type: ignore[method-assign]
    (found,) = replies.pull(["a" * 64])
    assert found.has_error() and found.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert found.metadata.reply_to_message_id == "a" * 64
