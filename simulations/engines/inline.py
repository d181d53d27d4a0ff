"""The two app objects in one process: a Flower Grid that calls the ClientApp itself.

Silos answer one after the other, in the order in which they were asked, on one thread, so a run is repeatable on any
number of cores. A study can inject
dropouts: the request or the reply of a silo is lost with the study's probability, and the server sees Flower's own
"node unavailable" error.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1


class InlineGrid(Grid):
    """A Grid whose nodes are calls of one ClientApp.

    Args:
        client_app: what every node runs.
        contexts: one a node, by node id.
        dropout: probability that a training request or its reply is lost.
        seed: of the dropouts.
    """

    def __init__(self, client_app: ClientApp, contexts: dict[int, Context], *, dropout: float, seed: int) -> None:
        self._client_app = client_app
        self._contexts = contexts
        self._dropout = dropout
        self._random = random.Random(f"fedsilo/dropout/{seed}")  # noqa: S311 - faults are no secret
        self._run = Run.create_empty(TaskIdentity.run_id)
        self._replies: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._sent += 1
            identity = f"inline-{self._sent}"
            message.metadata.__dict__["_message_id"] = identity
            self._replies[identity] = self._answer(message)
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(identity) for identity in list(message_ids) if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        lost = message.metadata.message_type == "train" and self._random.random() < self._dropout
        before_training = lost and self._random.random() < 0.5
        reply = (
            None
            if before_training
            else self._client_app(deepcopy(message), self._contexts[message.metadata.dst_node_id])
        )
        if lost or reply is None:
            return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason="Node Unavailable"), reply_to=message)
        return reply


def run(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    silos: list[Path],
    run_config: Mapping[str, str | bool],
    dropout: float,
    seed: int,
) -> RecordDict:
    """Run the server app over silo folders to its end and return what it left in its Context.

    Args:
        server_app: the coordinator.
        client_app: the silo's program.
        silos: folders ``silo-1`` ... of one parent.
        run_config: what Flower calls the run config; both apps receive it.
        dropout: see `InlineGrid`.
        seed: see `InlineGrid`.
    """
    torch.set_num_threads(1)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SERVER_NODE, 1
    contexts = {
        _SERVER_NODE + 1 + number: Context(
            run_id=1,
            node_id=_SERVER_NODE + 1 + number,
            run_config=dict(run_config),
            state=RecordDict(),
            node_config={"partition-id": number, "num-partitions": len(silos)},
        )
        for number in range(len(silos))
    }
    context = Context(run_id=1, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config=dict(run_config))
    with _environment("FEDSILO_SILOS", str(silos[0].parent)):
        server_app(InlineGrid(client_app, contexts, dropout=dropout, seed=seed), context)
    return context.state


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    hidden = {key: os.environ.pop(key) for key in ("FEDSILO_SILO", name) if key in os.environ}
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update(hidden)
