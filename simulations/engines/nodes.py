"""What all engines share: the nodes of a simulation, and the faults that a study injects.

A study can ask for dropouts: the request or the reply of a silo is lost with the study's probability, and the server
sees Flower's own "node unavailable" error. The fates are drawn in the order in which silos are asked, so one seed gives
the same faults under every engine.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Fate = Literal["", "request", "reply"]  # what of an exchange is lost
RunConfig = Mapping[str, str | bool]

SERVER_NODE = 1
FIRST_NODE = SERVER_NODE + 1  # of silo-1


class Faults:
    """Which exchanges are lost.

    Args:
        dropout: probability that a training request or its reply is lost.
        seed: of the choice.
    """

    def __init__(self, *, dropout: float, seed: int) -> None:
        self._dropout = dropout
        self._random = random.Random(f"fedsilo/dropout/{seed}")  # noqa: S311 - faults are no secret

    def fate(self, message: Message) -> Fate:
        """Return what of the next exchange is lost; half of the losses are before training, half after it."""
        if message.metadata.message_type != "train" or self._random.random() >= self._dropout:
            return ""
        return "request" if self._random.random() < 0.5 else "reply"


class NodesGrid(Grid):
    """What the engines' own Grids have in common.

    Args:
        nodes: of the silos.
        faults: which exchanges are lost.
    """

    def __init__(self, nodes: Iterable[int], faults: Faults) -> None:
        self._nodes = list(nodes)
        self._faults = faults
        self._run = Run.create_empty(TaskIdentity.run_id)
        self._sent = 0

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _name(self, message: Message) -> str:
        """Give a message its identity."""
        self._sent += 1
        identity = f"message-{self._sent}"
        message.metadata.__dict__["_message_id"] = identity
        return identity


def identify() -> None:
    """Make this process the server's node, as Flower wants it before a message is made, with one torch thread.

    Sums of floating-point numbers depend on how many threads share them.
    """
    torch.set_num_threads(1)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER_NODE, 1


def server_context(run_config: RunConfig) -> Context:
    """Return the Context of the server app."""
    return Context(run_id=1, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config=dict(run_config))


def silo_context(number: int, silos: int, run_config: RunConfig) -> Context:
    """Return the Context of a silo, by its number from 0."""
    return Context(
        run_id=1,
        node_id=FIRST_NODE + number,
        node_config={"partition-id": number, "num-partitions": silos},
        state=RecordDict(),
        run_config=dict(run_config),
    )


def unavailable(message: Message) -> Message:
    """Return the reply of a node that is gone."""
    return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason="Node Unavailable"), reply_to=message)


@contextmanager
def silos_in(folder: str) -> Iterator[None]:
    """Say by the environment, while the block runs, that the folders of the silos are in this one."""
    name = "FEDSILO_SILOS"
    hidden = {key: os.environ.pop(key) for key in ("FEDSILO_SILO", name) if key in os.environ}
    os.environ[name] = folder
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update(hidden)
