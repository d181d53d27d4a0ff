"""Replies of silos as they arrive, part by part: no silo that is slow, or was cut off, holds up the others.

Flower's SuperLink hands out a reply once, when it is announced, and forgets it; the last part of a large one comes
minutes later. So what was handed out is remembered here, and each look takes the parts that have come since, until
nobody asks for the reply any more, or Flower ends the sending (after three minutes in which no part came).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from strategies.errors import ProtocolError


@dataclass(frozen=True, kw_only=True)
class _Announced:
    """A reply without its content, the parts that it has, and those that are here."""

    alone: Message
    names: tuple[str, ...]
    parts: dict[str, bytes] = field(default_factory=dict)


class Replies:
    """The replies to a run's messages.

    Args:
        grid: Flower's, of a server's app.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._grid, self._client = grid, grid._runtime_client
        self._announced: dict[str, _Announced] = {}

    def pull(self, asked: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are whole by now; an error in place of one that cannot be had."""
        asked = set(asked)
        for identity in self._announced.keys() - asked:  # nobody waits for it any more
            del self._announced[identity]
        if fresh := asked - self._announced.keys():
            found = self._client.PullMessages(PullAppMessagesRequest(message_ids=fresh))
            for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                names = tuple(dict.fromkeys(each.object_id for each in iterate_object_tree(tree)))
                self._announced[proto.metadata.reply_to_message_id] = _Announced(
                    alone=message_from_proto(proto), names=names
                )
        whole = []
        for identity in sorted(asked & self._announced.keys()):
            reply = self._announced[identity]
            try:
                if not self._fetch(reply):
                    continue
                whole.append(self._put_together(reply, identity))
            except (ObjectPullError, ProtocolError):
                reason = Error(ErrorCode.MESSAGE_UNAVAILABLE, "it is not to be had")
                whole.append(make_message(metadata=reply.alone.metadata, error=reason))
            del self._announced[identity]
        return whole

    def _fetch(self, reply: _Announced) -> bool:
        """Take parts up to the first that has not come; return whether none is missing."""
        fetch = make_pull_object_fn_protobuf(self._client.PullObject, self._grid.node, self._grid.run.run_id)

        on_its_way = threading.Event()  # a silo sends part after part, so what follows is not there either

        def take(name: str) -> bytes:
            if not on_its_way.is_set():
                try:
                    reply.parts[name] = fetch(name)
                except ObjectUnavailableError:
                    on_its_way.set()
            return b""

        missing = [name for name in reply.names if name not in reply.parts]
        pull_objects(missing, take)
        return len(reply.parts) == len(reply.names)

    def _put_together(self, reply: _Announced, asked: str) -> Message:
        """Return the reply to a message.

        Raises:
            ProtocolError: its parts are not those of one.
        """
        identity = reply.alone.metadata.message_id
        try:
            whole = inflate_object_from_contents(identity, reply.parts)
        except Exception:  # noqa: BLE001 - whatever a silo has sent, the run goes on
            raise ProtocolError("the parts of a reply do not fit together") from None
        if not isinstance(whole, Message) or whole.metadata.reply_to_message_id != asked:
            raise ProtocolError("the parts are not those of a reply to this message")
        whole.metadata.__dict__["_message_id"] = identity
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=identity
            )
        )
        return whole
