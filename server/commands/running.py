"""`up` and `stop`: the coordinator as a process."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Annotated

import typer

from server.commands.shared import ServerFolder, console
from strategies.command import Json
from strategies.errors import RunError

_STOP_S = 60.0


def up(server: ServerFolder = None) -> None:
    """Run the coordinator until it is stopped: Flower on the loopback, the gateway for the silos.

    Stop it with Ctrl-C, fedsilo-server stop, or as a systemd service.
    """
    import asyncio

    from server.home import Home
    from server.lock import only_one
    from server.up import coordinator

    home = Home.open(server)
    settings = home.settings

    def say() -> None:
        console().print(f"coordinator {settings.name} is up: silos reach it at {settings.address}")

    with only_one(home):
        asyncio.run(coordinator(home).run(say))


def stop(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A live run; the coordinator if omitted.")] = None,
    server: ServerFolder = None,
    as_json: Json = False,
) -> None:
    """Stop a run, or the coordinator with all that it runs."""
    from server.home import Home
    from server.lock import running
    from server.superlink import Control

    home = Home.open(server)
    if run is not None:
        live = [row.run for row in Control(home).runs() if row.live and str(row.run).startswith(run)]
        if len(live) != 1:
            raise RunError(f"{run} names {len(live)} live runs; fedsilo-server status shows them")
        Control(home).stop(live[0])
        _say({"stopped": str(live[0])}, as_json, f"run {live[0]} is stopped; its finished rounds are kept")
        return
    pid = running(home)
    if pid is None:
        raise RunError(f"no coordinator runs in {home.folder}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while running(home) is not None:
        if time.monotonic() > deadline:
            raise RunError(f"process {pid} has not ended in {_STOP_S:g} s; see {home.logs}")
        time.sleep(0.1)
    _say({"stopped": pid}, as_json, "the coordinator is stopped")


def _say(facts: dict[str, object], as_json: bool, sentence: str) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        console().print(sentence)
