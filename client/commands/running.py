"""`up` and `stop`: the silo's node as a process."""

from __future__ import annotations

import json
import os
import signal
import time

from client.commands.access import SiloFolder, SiloWord, Words, console, folder_of, open_silo
from strategies.command import Json
from strategies.errors import RunError

_STOP_S = 30.0


def up(silo: SiloFolder = None, silo_word: SiloWord = None) -> None:
    """Run the silo's node until it is stopped: it connects outwards, nothing needs to reach this machine.

    Stop it with Ctrl-C, fedsilo-silo stop, or as a systemd service.
    """
    import resource

    from client.node import Node
    from client.running import only_one

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = open_silo(silo, Words(silo=silo_word))
    with only_one(found.folder):
        node = Node(found)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, node.stop)
        with node.meters.served(found.settings.node):
            console().print(f"silo {found.name} is up; fedsilo-silo status says what it does", soft_wrap=True)
            node.run()


def stop(silo: SiloFolder = None, as_json: Json = False) -> None:
    """Stop the silo's node; a round that is being trained is broken off, its reservation stays spent."""
    from client.running import running

    folder = folder_of(silo)
    pid = running(folder)
    if pid is None:
        raise RunError(f"no node runs for {folder}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while running(folder) is not None:
        if time.monotonic() > deadline:
            raise RunError(f"process {pid} has not ended in {_STOP_S:g} s; see {folder / 'logs' / 'silo.log'}")
        time.sleep(0.05)
    if as_json:
        print(json.dumps({"stopped": pid}))
    else:
        console().print("the node is stopped")
