"""The process that trains: it runs the installed ClientApp on one message after another, and can be killed.

`python -m client.worker IN OUT` reads frames from one descriptor and writes to the other. It ends when the first is
closed, so it never outlives the node that started it. Its own output goes to the silo's log. It has no network where
the system allows that (`client.sandbox`).

    to it      {"folder", "passphrase"} once, then {"node", "config"} with a message for each task
    from it    an empty frame when it is ready, then the reply's bytes
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from queue import SimpleQueue
from typing import Any, BinaryIO

from client.sandbox import leave_network

SAYS, ALONE = "training has ", "no network"  # in the log, of each process that trains
_LENGTH = 8


def write_frame(file: BinaryIO, header: dict[str, Any], body: bytes = b"") -> None:
    """Write a header and a body."""
    head = json.dumps(header).encode()
    file.write(len(head).to_bytes(_LENGTH, "big") + len(body).to_bytes(_LENGTH, "big") + head)
    file.write(body)
    file.flush()


def read_frame(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Read a header and a body.

    Raises:
        EOFError: the other side has closed.
    """
    lengths = _exactly(file, 2 * _LENGTH)
    head, body = (int.from_bytes(lengths[at : at + _LENGTH], "big") for at in (0, _LENGTH))
    return json.loads(_exactly(file, head)), _exactly(file, body)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError
    return data


def main() -> None:
    """Serve until the node closes the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory holds records and keys
    why_not = leave_network()
    print(SAYS + (f"the network of its node: {why_not}" if why_not else ALONE), flush=True)
    source, target = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    settings, _ = read_frame(source)
    os.environ["FEDSILO_SILO"] = settings["folder"]
    from client.app import app
    from client.silo import PASSPHRASE

    word = settings["passphrase"]
    frames = _frames(source)
    write_frame(target, {})
    while True:
        PASSPHRASE.set(bytes.fromhex(word) if word is not None else None)
        write_frame(target, {}, _answer(app, *frames.get()))


def _frames(source: BinaryIO) -> SimpleQueue[tuple[dict[str, Any], bytes]]:
    """Return a queue of what arrives; the process ends with the pipe, also in the middle of training."""
    queue: SimpleQueue[tuple[dict[str, Any], bytes]] = SimpleQueue()

    def read() -> None:
        try:
            while True:
                queue.put(read_frame(source))
        except BaseException:  # noqa: BLE001 - the pipe has gone, however that is told
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return queue


def _answer(app: Any, header: dict[str, Any], body: bytes) -> bytes:
    from flwr.app import Context, RecordDict

    from client.fleet import from_bytes, to_bytes

    message = from_bytes(body)
    del body  # a large model is not held twice while it is trained
    context = Context(
        run_id=message.metadata.run_id,
        node_id=header["node"],
        node_config={},
        state=RecordDict(),
        run_config=header["config"],
    )
    return to_bytes(app(message, context))


if __name__ == "__main__":
    main()
