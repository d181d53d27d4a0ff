"""The coordinator's Grid in a deployment: nodes of the roster alone, each message signed, each answer checked.

Guarantees: an answer that reaches a round was signed by the ledger key that the roster gives to the asked silo, over
the hash of just this instruction; each instruction is answered once at most. What does not hold counts as silence.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.superlink import point_of
from strategies.envelope import Answer, Instruction, digest, open_envelope, seal
from strategies.errors import ProtocolError, SettingError
from strategies.roster import Member, Roster
from strategies.sealed import attach, envelope_of, payload_hash

log = logging.getLogger("fedsilo.server")

_LARGEST_BYTES = 2**31 - 2**20  # protobuf, as which a silo keeps a message, ends at 2 GiB


@dataclass(frozen=True, kw_only=True)
class _Asked:
    member: Member
    instruction: str


class SignedGrid(Grid):
    """A Grid around Flower's.

    Args:
        inner: Flower's.
        roster: who takes part.
        key: the coordinator's.
        pull: returns the replies to some messages; None asks `inner` for them.
    """

    def __init__(
        self,
        inner: Grid,
        roster: Roster,
        key: Ed25519PrivateKey,
        pull: Callable[[Iterable[str]], Iterable[Message]] | None = None,
    ) -> None:
        self._inner, self._roster, self._key = inner, roster, key
        self._pull = pull
        self._of_key = {member.transport_key: member for member in roster.members.values()}
        self._members: Mapping[int, Member] = {}
        self._asked: dict[str, _Asked] = {}

    def set_run(self, run: Run) -> None:
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        return self._inner.run

    def name_of(self, node: int) -> str:
        """Return the name of the silo behind a node."""
        return self._members[node].silo

    def changed(self, silo: str, ledger_id: str, ledger_key: str) -> bool:
        """Return whether a silo of the roster has another ledger or key than these; one that has left has none."""
        member = self._roster.members.get(silo)
        return member is not None and (member.ledger_id, member.ledger_key) != (ledger_id, ledger_key)

    def ledger_of(self, node: int) -> str:
        """Return the identity of the ledger of the silo behind a node."""
        return self._members[node].ledger_id

    def know(self, nodes: Mapping[str, int]) -> None:
        """Learn the nodes of a run that is taken up, of which some may be away."""
        found = {node: self._roster.members.get(silo) for silo, node in nodes.items()}
        self._members = {**self._members, **{node: member for node, member in found.items() if member is not None}}

    def get_node_ids(self) -> Iterable[int]:
        found = {node.node_id: self._of_key.get(point_of(node.public_key)) for node in self._inner.get_nodes()}
        self._members = {**self._members, **{node: member for node, member in found.items() if member is not None}}
        return [node for node, member in found.items() if member is not None]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            facts, member = message.metadata, self._members[message.metadata.dst_node_id]
            size_bytes = _size_bytes(message.content)
            if size_bytes > _LARGEST_BYTES:
                raise SettingError(
                    f"a message of {size_bytes:,} bytes is not allowed in a deployment: a model and what its strategy "
                    f"broadcasts may take {_LARGEST_BYTES:,}; choose a smaller model.name"
                )
            instruction = Instruction(
                run=str(self.run.run_id),
                silo=member.silo,
                group=facts.group_id,
                kind=facts.message_type,
                roster=self._roster.hash,
                payload=payload_hash(message.content),
                nonce=secrets.token_hex(16),
            )
            sealed = seal(instruction, self._key)
            attach(message.content, sealed, self._roster.text)
            (identity,) = self._inner.push_messages([message])
            self._asked[identity] = _Asked(member=member, instruction=digest(sealed))
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for message in (self._pull or self._inner.pull_messages)(message_ids):
            asked = self._asked.pop(message.metadata.reply_to_message_id, None)
            if asked is not None:
                found.append(_checked(message, asked))
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("rounds push and pull by themselves")


def _size_bytes(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _checked(message: Message, asked: _Asked) -> Message:
    """Return a message whose envelope holds, or an error in its place."""
    if message.has_error():
        return message
    try:
        sealed, _ = envelope_of(message.content)
        answer = open_envelope(sealed, Answer, asked.member.ledger_key)
        if (answer.silo, answer.instruction) != (asked.member.silo, asked.instruction):
            raise ProtocolError("it answers another instruction")
        if answer.payload != payload_hash(message.content):
            raise ProtocolError("it carries something else than it was signed over")
    except ProtocolError as error:
        log.warning("an answer in the name of silo %s does not count: %s", asked.member.silo, error)
        return make_message(metadata=message.metadata, error=Error(ErrorCode.UNKNOWN, "envelope"))
    return message
