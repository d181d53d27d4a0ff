"""ClientApps that do as a message's group says, for tests of engines: answer, answer with an error, die, or hang."""

from __future__ import annotations

import os
import signal
import time

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from strategies import wire

app = ClientApp()


@app.query("invite")
def invite(message: Message, context: Context) -> Message:
    """Answer with what was received."""
    group = message.metadata.group_id
    if group == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if group == "hang":
        time.sleep(600)
    if group == "raise":
        raise RuntimeError("private")
    request = wire.from_record(message.content, (wire.Invite,))
    place = f"{context.node_config['partition-id']} of {context.node_config['num-partitions']}"
    reply = wire.Accept(silo=f"{place}, {context.run_config['word']}", weight=1.0, head=request.run)
    return Message(wire.to_record(reply), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with twice the weights."""
    request = wire.from_record(message.content, (wire.Train,))
    reply = wire.Update(
        silo=str(os.getpid()), round=request.round, head="", countersigned="", update=2 * request.weights
    )
    return Message(wire.to_record(reply), reply_to=message)
