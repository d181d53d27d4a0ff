"""A worker process of the pool engine: `python -m simulations.engines.worker FD`.

It runs the installed ClientApp on one message after another, on one torch thread, over a socket whose descriptor it is
given. A frame is one `send_bytes`: JSON or the packed bytes of a message, so nothing is pickled. It ends when the
socket is closed, also in the middle of training, so it never outlives the run.

    to it      {"app", "silos", "config"} once; then for each message its metadata, the front of its bytes and, where
               it is not the one of the message before, the rest of them
    from it    an empty frame when it is ready; then for each message {"id", "error"} and the reply's bytes

The rest of a message is its arrays: what all silos of a round are sent alike comes once a worker.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from flwr.app import Context, Message
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from simulations.engines.nodes import FIRST_NODE, SERVER_NODE, identify, silo_context
from strategies import wire

Task = tuple[dict[str, Any], bytes, bytes]


def main() -> None:
    """Serve until the socket is closed."""
    connection = Connection(int(sys.argv[1]))
    settings = json.loads(connection.recv_bytes())
    identify()
    module, _, name = settings["app"].partition(":")
    app: ClientApp = getattr(importlib.import_module(module), name)
    importlib.import_module("torch._dynamo")  # the first optimiser imports it, which takes a second
    contexts: dict[int, Context] = {}
    tasks = _tasks(connection)
    connection.send_bytes(b"")
    while True:
        facts, front, rest = tasks.get()
        number = facts["node"] - FIRST_NODE
        if number not in contexts:
            contexts[number] = silo_context(number, settings["silos"], settings["config"])
        error, payload = _answer(app, _message(facts, front + rest), contexts[number])
        try:
            connection.send_bytes(json.dumps({"id": facts["id"], "error": error}).encode())
            connection.send_bytes(payload)
        except OSError:  # nobody reads any more: the run is over
            os._exit(0)


def _tasks(connection: Connection) -> SimpleQueue[Task]:
    """Return a queue of what arrives; it is read at once, so whoever writes never waits for training."""
    queue: SimpleQueue[Task] = SimpleQueue()

    def read() -> None:
        rest = b""
        try:
            while True:
                facts, front = json.loads(connection.recv_bytes()), connection.recv_bytes()
                if facts["rest"]:
                    rest = connection.recv_bytes()
                queue.put((facts, front, rest))
        except BaseException:  # noqa: BLE001 - the socket has gone, however that is told
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return queue


def _message(facts: dict[str, Any], payload: bytes) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id=facts["id"],
        src_node_id=SERVER_NODE,
        dst_node_id=facts["node"],
        reply_to_message_id="",
        group_id=facts["group"],
        created_at=facts["created"],
        ttl=facts["ttl"],
        message_type=facts["type"],
    )
    return make_message(metadata, wire.payload_to_record(payload))


def _answer(app: ClientApp, message: Message, context: Context) -> tuple[int, bytes]:
    """Return an error code, 0 for none, and the reply's bytes."""
    try:
        reply = app(message, context)
    except Exception:  # noqa: BLE001 - Flower's own engine tells a failure of the app by this code
        return ErrorCode.CLIENT_APP_RAISED_EXCEPTION, b""
    if reply.has_error():
        return reply.error.code, b""
    return 0, wire.record_to_payload(reply.content) or b""


if __name__ == "__main__":
    main()
