"""The two app objects in one process: a Flower Grid that calls the ClientApp itself.

Silos answer one after the other, in the order in which they were asked, on one thread, so a run is repeatable on any
number of cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from simulations.engines.nodes import (
    Faults,
    NodesGrid,
    RunConfig,
    identify,
    server_context,
    silo_context,
    silos_in,
    unavailable,
)


class InlineGrid(NodesGrid):
    """A Grid whose nodes are calls of one ClientApp.

    Args:
        client_app: what every node runs.
        contexts: one a node, by node id.
        dropout: probability that a training request or its reply is lost.
        seed: of the dropouts.
    """

    def __init__(self, client_app: ClientApp, contexts: dict[int, Context], *, dropout: float, seed: int) -> None:
        super().__init__(contexts, Faults(dropout=dropout, seed=seed))
        self._client_app = client_app
        self._contexts = contexts
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            identity = self._name(message)
            self._replies[identity] = self._answer(message)
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(identity) for identity in list(message_ids) if identity in self._replies]

    def _answer(self, message: Message) -> Message:
        fate = self._faults.fate(message)
        if fate == "request":
            return unavailable(message)
        reply = self._client_app(deepcopy(message), self._contexts[message.metadata.dst_node_id])
        return reply if not fate else unavailable(message)


def run(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    silos: list[Path],
    run_config: RunConfig,
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
    identify()
    found = [silo_context(number, len(silos), run_config) for number in range(len(silos))]
    context = server_context(run_config)
    with silos_in(str(silos[0].parent)):
        server_app(InlineGrid(client_app, {one.node_id: one for one in found}, dropout=dropout, seed=seed), context)
    return context.state
