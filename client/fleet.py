"""A silo's connection to its coordinator: Flower's Fleet API over TLS 1.3 (flwr 1.41; its private names stay here).

Only the pinned authority is trusted, whatever the machine trusts otherwise, and there is no way to connect without TLS.
Calls are made once: whoever uses this decides when to try again.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.trust import trust_of

HEARTBEAT_S = 10.0  # the shortest that Flower allows; a node that is gone counts as such after two
_LONGEST_HEARTBEAT_S = 1800.0  # that Flower allows
_SILENCE_S_PER_BYTE = 1 / 20e6  # a message is read, hashed and written in calls that keep heartbeats back
_TIMEOUT_S = 60.0
T = TypeVar("T")


class Unreachable(Exception):
    """The coordinator does not answer, or answers that it cannot just now."""


class TurnedAway(Exception):
    """The coordinator answers and says no.

    Args:
        status: of HTTP.
        reason: what it says.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(f"{status} {reason}")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the coordinator says of a run.

    Args:
        bundle: SHA-256 of the bundle as it arrived.
        config: the run config.
    """

    bundle: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _CutOff:
    """What of a reply is still to be sent, and in which of Flower's sessions; `objects` shrinks as they are stored."""

    message: str = ""
    session: str = ""
    objects: set[str] = field(default_factory=set)


class Connection:
    """One node's connection.

    Args:
        address: host:port.
        authority: certificate of the pinned authority, PEM.
        key: the node's private key.
    """

    def __init__(self, address: str, authority: str, key: EllipticCurvePrivateKey) -> None:
        self._public = public_key_to_bytes(key.public_key())
        self._client = FleetHttpClient(
            f"https://{address}",
            interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
            verify=trust_of(authority),
            timeout=_TIMEOUT_S,
        )
        self._node = Node()
        self._cut_off = _CutOff()
        self._silence_s = 0.0

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    def activate(self) -> int:
        """Say that the node is there; return its id.

        Raises:
            Unreachable, TurnedAway: it did not work.
        """
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        self._node = Node(node_id=_once(self._client.ActivateNode, request).node_id)
        return int(self._node.node_id)

    def deactivate(self) -> None:
        """Say that the node goes."""
        _once(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id))

    def heartbeat(self) -> None:
        """Say that the node is still there, and for how long it may be silent."""
        interval_s = min(HEARTBEAT_S + self._silence_s, _LONGEST_HEARTBEAT_S)
        _once(
            self._client.SendNodeHeartbeat,
            SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=interval_s),
        )

    def expect(self, size: int) -> None:
        """Work from now on with messages of that many bytes: with a large model a silent node is not gone."""
        before, silence_s = self._silence_s, size * _SILENCE_S_PER_BYTE
        self._silence_s = silence_s if silence_s > HEARTBEAT_S / 2 else 0.0
        if self._silence_s > before:
            with suppress(Unreachable, TurnedAway):  # what was pulled is not to be lost; the next heartbeat says it
                self.heartbeat()

    def pull(self) -> tuple[Message, ObjectTree] | None:
        """Return the next message without its content, and the tree of its objects."""
        found = _once(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not found.messages_list:
            return None
        objects = iterate_object_tree(found.message_object_trees[0])
        self.expect(FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE * sum(1 for _ in objects))
        return message_from_proto(found.messages_list[0]), found.message_object_trees[0]

    def content(self, message: Message, tree: ObjectTree, stopping: Callable[[], bool]) -> Message:
        """Return a pulled message with its content, which may still be on its way: a large model takes long.

        Args:
            message: as it was pulled.
            tree: of its objects.
            stopping: whether to give up.

        Raises:
            Unreachable, TurnedAway: it is not to be had, or not before nobody waits for an answer any more.
        """
        facts = message.metadata

        def ask(request: PullObjectRequest) -> Any:
            if stopping():
                raise Unreachable("the node stops")
            return _once(self._client.PullObject, request)

        fetch = make_pull_object_fn_protobuf(ask, self._node, facts.run_id)
        try:
            objects = pull_objects(
                [each.object_id for each in iterate_object_tree(tree)],
                fetch,
                max_time=facts.created_at + facts.ttl - time.time(),
                max_tries_per_object=None,
                initial_backoff=0.05,
                backoff_cap=1.0,
            )
            whole = cast(Message, inflate_object_from_contents(facts.message_id, objects))
        except (ObjectPullError, ValueError) as error:
            raise TurnedAway(0, f"{type(error).__name__}: an object of the message is not to be had") from None
        whole.metadata.__dict__["_message_id"] = facts.message_id
        return whole

    def confirm(self, message: Message) -> None:
        """Say that a message has arrived whole."""
        make_confirm_message_received_fn_protobuf(
            lambda r: _once(self._client.ConfirmMessageReceived, r), self._node, message.metadata.run_id
        )(message.metadata.message_id)

    def run(self, run: int) -> RunFacts:
        """Return what the coordinator says of a run; its bundle is hashed and thrown away."""
        found = _once(self._client.GetRun, GetRunRequest(node=self._node, run_id=run)).run
        request = GetFabRequest(node=self._node, hash_str=found.fab_hash, run_id=run)
        bundle = _once(self._client.GetFab, request).fab.content
        config = {key: getattr(value, value.WhichOneof("scalar")) for key, value in found.override_config.items()}
        return RunFacts(bundle=hashlib.sha256(bundle).hexdigest(), config=config)

    def push(self, reply: Message) -> None:
        """Send a reply with its objects; of one that was cut off, those that are missing.

        Raises:
            Unreachable, TurnedAway: it did not work.
        """
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            answer = _once(self._client.PushMessages, request)
            session, wanted = answer.session_id, set(answer.objects_to_push)
            if not wanted and self._cut_off.message == reply.object_id:  # taken before; its session lacks the rest
                session, wanted = self._cut_off.session, self._cut_off.objects
            self._cut_off = _CutOff(message=reply.object_id, session=session, objects=wanted)
            send = make_push_object_fn_protobuf(
                lambda r: _once(self._client.PushObject, r), self._node, reply.metadata.run_id, session
            )

            def noted(name: str, content: bytes) -> None:
                send(name, content)
                wanted.discard(name)

            try:
                push_objects(get_all_nested_objects(reply), noted, object_ids_to_push=set(wanted))
            except ObjectPushError:
                raise TurnedAway(0, "ObjectPushError: the run has ended") from None


def to_bytes(message: Message) -> bytes:
    """Return a message with its content as bytes for the silo's own disk and processes."""
    return cast(bytes, message_to_proto(message).SerializeToString())


def from_bytes(data: bytes) -> Message:
    """Read what `to_bytes` wrote."""
    return message_from_proto(MessageProto.FromString(data))


def pause(attempt: int, longest_s: float = 10.0) -> float:
    """Return how long to wait before another attempt: doubling, with jitter, so that silos do not come together."""
    return min(longest_s, 0.5 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _once(call: Callable[[Any], Any], request: Any) -> Any:
    try:
        return call(request)
    except httpx.HTTPStatusError as error:
        status, text = error.response.status_code, error.response.text[:200]
        if status in (408, 429) or status >= 500:
            raise Unreachable(f"{status} {text}") from None
        raise TurnedAway(status, text) from None
    except httpx.HTTPError as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from None
