"""The app that stock Flower runs in `fedsilo-simulate bench deployment`; a copy of this file is the whole app.

Its network is `mlp(hidden=[width, width])` in plain torch, its local work as many steps on the same records as ours
take, without privacy; FedAvg.start does the rounds.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn import functional as F

client_app = ClientApp()
server_app = ServerApp()


def network(inputs: int, width: int) -> nn.Sequential:
    """Return the network, with one logit for two classes."""
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the global model; the records are read for each message, as its process is a new one."""
    settings = context.run_config
    table = torch.from_numpy(np.load(str(context.node_config["records"]), allow_pickle=False))
    x, y = table[:, :-1], table[:, -1]
    model = network(x.shape[1], int(settings["width"]))
    received = message.content["arrays"]
    assert isinstance(received, ArrayRecord)
    model.load_state_dict(received.to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=float(settings["lr"]))
    for _ in range(int(settings["steps"])):
        rows = torch.randperm(len(x))[: int(settings["batch"])]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows]).backward()
        optimizer.step()
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    content["metrics"] = MetricRecord({"num-examples": len(x)})
    return Message(content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when a round's model was there, and of how many replies it was made."""

    out = Path()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = list(replies)
        result = super().aggregate_train(server_round, found)
        line = {"time": time.time(), "replies": sum(not reply.has_error() for reply in found)}
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train without the phase of evaluation, in which every client would be asked a second time each round."""
    settings = context.run_config
    model = network(int(settings["inputs"]), int(settings["width"]))
    nodes = int(settings["silos"])
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, min_evaluate_nodes=0)
    strategy.out = Path(str(settings["out"]))
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=int(settings["rounds"]))
    strategy.out.with_suffix(".done").touch()
