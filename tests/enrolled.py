"""Runs over enrolled silos in one process: the coordinator's signed Grid, every silo's node, and a wire that remembers.

Nothing between a round and a silo's app is left out but Flower's HTTP: envelopes, roster, node, app, ledger are the real
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from coordinators import Consortium, breast_cancer, found, passphrases, silo
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity
from sites import SILO_WORD

from client import node as node_module
from client.app import app
from client.fleet import RunFacts, to_bytes
from client.node import Node
from client.silo import PASSPHRASE, Silo
from client.worker import _answer
from server.app import run_study
from server.envelopes import SignedGrid
from server.home import Home
from server.superlink import pem_of
from strategies.bundle import digest as bundle_digest
from strategies.spec import Registries
from strategies.study import Study

NAMES = ("east", "north", "south")
POLICY = {"min_cohort = 3": "min_cohort = 2", 'approval = "required"': 'approval = "automatic"'}
OPEN = {
    **POLICY,
    "epsilon = 8.0": "epsilon = inf",
    'mechanism = "dp-sgd"': 'mechanism = "none"',
}
RUN = 7


def consortium_of(folder: Path, policy: dict[str, str], names: Sequence[str] = NAMES, **values: object) -> Consortium:
    """A coordinator and silos that hold the breast-cancer records, registered; the study is `study.toml` beside them."""
    folder.mkdir(exist_ok=True)
    breast_cancer(folder, names, **values)
    consortium = found(folder, names, policy)
    with passphrases(consortium.credentials):
        for name in names:
            silo("register", "ward", "--silo", str(folder / name))
    return consortium


def study_of(consortium: Consortium) -> Study:
    """The study that the consortium was made with."""
    from client.models.base import MODELS

    return Study.parse((consortium.server.parent / "study.toml").read_text(), Registries(models=MODELS))


@dataclass
class Wire:
    """Flower's Grid, and the connection of every silo, in one; every message is kept as the bytes that travel.

    Args:
        consortium: whose.
        change: may put another message in a request's place, before it reaches the silo's app, or return None to lose
            it; it stands where a lying coordinator would.
        lost: whether a reply is lost.
        word: the silos' passphrase.
    """

    consortium: Consortium
    study: Study
    change: Callable[[str, Message], Message | None] = lambda _, message: message
    lost: Callable[[str, Message], bool] = lambda *_: False
    word: bytes = SILO_WORD
    sent: list[bytes] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    run: Any = field(default_factory=lambda: type("Run", (), {"run_id": RUN})())
    nodes: dict[int, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
        self.home = Home.open(self.consortium.server)
        self.names = {11 + number: folder.name for number, folder in enumerate(self.consortium.silos)}
        for number, folder in enumerate(self.consortium.silos, start=11):
            node = Node(Silo.open(folder, self.word))
            node._runs[RUN] = RunFacts(bundle=bundle_digest(), config={})
            node._child = _Child(folder, self.word)  # type: ignore[assignment]
            self.nodes[number] = node

    def set_run(self, run: Any) -> None: ...

    def get_nodes(self) -> Iterable[NodeInfo]:
        members = self.home.roster().members
        return [NodeInfo(node_id=n, public_key=pem_of(members[name].transport_key)) for n, name in self.names.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            identity = f"{len(self.sent) + 1:064x}"
            message.metadata.__dict__ |= {"_message_id": identity, "_run_id": RUN, "_src_node_id": 1}
            ids.append(identity)
            number = message.metadata.dst_node_id
            self.sent.append(to_bytes(message))
            arrived = self.change(self.names[number], deepcopy(message))
            if arrived is not None:
                config = {"study": self.study.text}
                task = node_module.Task(message=arrived, config=config, sealed=node_module._sealed(arrived))
                self.nodes[number]._work(self, task)  # type: ignore[arg-type]
        return ids

    def expect(self, size: int) -> None: ...

    def push(self, reply: Message) -> None:
        """What a silo's node calls."""
        self.sent.append(to_bytes(reply))
        if not self.lost(self.names[reply.metadata.src_node_id], reply):
            self.replies.append(deepcopy(reply))

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        wanted = set(ids)
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in wanted]
        self.replies = [reply for reply in self.replies if reply not in found]
        return found

    def train(self, **how: Any) -> Path:
        """Run the study as the server's app does; return the run folder."""
        grid = SignedGrid(self, self.home.roster(), self.home.key())  # type: ignore[arg-type]
        return run_study(grid, self.study, out=self.home.runs, test="", page=False, **how)


class _Child:
    """Stands for the process that trains: calls the silo's app here, with what that process would be given."""

    def __init__(self, folder: Path, word: bytes) -> None:
        self.folder, self.word = folder, word

    def call(self, header: Any, body: bytes, timeout_s: float) -> bytes:
        word = PASSPHRASE.set(self.word)
        try:
            with patch.dict("os.environ", {"FEDSILO_SILO": str(self.folder)}):
                return _answer(app, header, body)
        finally:
            PASSPHRASE.reset(word)
