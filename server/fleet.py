"""What a node may say to Flower's Fleet API, read out of its protobuf (flwr 1.41; private names stay in this file).

`PATHS` are all that the gateway lets through: nodes are registered and unregistered by the coordinator alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import DecodeError

MEDIA_TYPE: Final = "application/protobuf"
KEY_HEADER: Final = b"flwr-public-key"
SIGNATURE_HEADER: Final = b"flwr-signature"
TIMESTAMP_HEADER: Final = b"flwr-timestamp"
VERSION_HEADERS: Final = (b"flwr-package-name", b"flwr-package-version", b"flwr-component-name")
_REQUESTS: Final = {
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "pull-messages": PullMessagesRequest,
    "push-messages": PushMessagesRequest,
    "get-run": GetRunRequest,
    "get-fab": GetFabRequest,
    "push-object": PushObjectRequest,
    "pull-object": PullObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
}
PATHS: Final = {f"/v1/fleet/{name}".encode(): name for name in _REQUESTS}
_DEEPEST: Final = 32  # levels of an object tree


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A reply that a node pushes.

    Args:
        message: its id.
        answers: id of the message that it answers.
        source: the node that it says it comes from.
        run: its run.
        objects: ids of all objects that belong to it.
    """

    message: str
    answers: str
    source: int
    run: int
    objects: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a request is about; what a call does not have is 0 or empty.

    Args:
        node: the node that it speaks for.
        key: public key of an activation, PEM.
        run: the run.
        object: id of the object or message.
        content_bytes: length of the object's content.
        reply: what is pushed.
    """

    node: int = 0
    key: bytes = b""
    run: int = 0
    object: str = ""
    content_bytes: int = 0
    reply: Reply | None = None


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A message that a node was given.

    Args:
        message: its id.
        run: its run.
        objects: ids of all objects that belong to it.
    """

    message: str
    run: int
    objects: frozenset[str]


def read_call(name: str, body: bytes) -> Call:
    """Read a request.

    Args:
        name: the call, a value of `PATHS`.
        body: its bytes.

    Raises:
        ValueError: they are no such request, or one that no node of ours sends.
    """
    request = _REQUESTS[name]()
    try:
        request.ParseFromString(body)
    except (DecodeError, RecursionError):
        raise ValueError("malformed") from None
    if isinstance(request, ActivateNodeRequest):
        return Call(key=request.public_key)
    if isinstance(request, DeactivateNodeRequest):
        return Call(node=request.node_id)
    node = request.node.node_id
    if isinstance(request, PushMessagesRequest):
        return Call(node=node, reply=_reply(request))
    if isinstance(request, GetRunRequest | GetFabRequest):
        return Call(node=node, run=request.run_id)
    if isinstance(request, PushObjectRequest):
        content = len(request.object_content)
        return Call(node=node, run=request.run_id, object=request.object_id, content_bytes=content)
    if isinstance(request, PullObjectRequest):
        return Call(node=node, run=request.run_id, object=request.object_id)
    if isinstance(request, ConfirmMessageReceivedRequest):
        return Call(node=node, run=request.run_id, object=request.message_object_id)
    return Call(node=node)


def _reply(request: PushMessagesRequest) -> Reply:
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise ValueError("not one message")
    (message,), (tree,) = request.messages_list, request.message_object_trees
    facts = message.metadata
    if message.content.ByteSize() or tree.object_id != facts.message_id or not facts.message_id:
        raise ValueError("a message beside its objects")
    return Reply(
        message=facts.message_id,
        answers=facts.reply_to_message_id,
        source=facts.src_node_id,
        run=facts.run_id,
        objects=frozenset(_ids(tree)),
    )


def read_activated(body: bytes) -> int:
    """Return the node id that Flower gave to a node."""
    return int(ActivateNodeResponse.FromString(body).node_id)


def read_pulled(body: bytes) -> list[Pulled]:
    """Return the messages that Flower hands to a node."""
    response = PullMessagesResponse.FromString(body)
    return [
        Pulled(message=message.metadata.message_id, run=message.metadata.run_id, objects=frozenset(_ids(tree)))
        for message, tree in zip(response.messages_list, response.message_object_trees, strict=True)
    ]


def _ids(tree: ObjectTree, depth: int = 0) -> list[str]:
    if depth > _DEEPEST:
        raise ValueError("a tree too deep")
    return [tree.object_id, *(found for child in tree.children for found in _ids(child, depth + 1))]
