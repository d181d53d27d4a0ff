"""`fedsilo-server`: what a coordinator types."""

from __future__ import annotations

import os
from collections.abc import Callable

import typer

from server.commands import running, setup, studies
from strategies.command import guarded

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Coordinate a federated study.",
    epilog="Example: fedsilo-server describe study.toml",
)
_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "init": (setup.init, "init coordinator --host fed.example.org"),
    "up": (running.up, "up --server coordinator"),
    "stop": (running.stop, "stop --server coordinator"),
    "describe": (studies.describe, "describe study.toml"),
    "run": (studies.run, "run study.toml --server coordinator"),
    "resume": (studies.resume, "resume breast-cancer-20260131-120000 --server coordinator"),
    "status": (studies.status, "status --server coordinator"),
    "report": (studies.report, "report breast-cancer-20260131-120000 --server coordinator"),
    "enrol": (setup.enrol, "enrol north.request.json --server coordinator"),
}


for _command, (_function, _example) in _COMMANDS.items():
    app.command(_command, epilog=f"Example: fedsilo-server {_example}")(_function)


def main() -> None:
    """Entry point of `fedsilo-server`."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    raise SystemExit(guarded(app))
