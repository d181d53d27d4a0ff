"""What the commands of a coordinator share: their options, and where a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ServerFolder = Annotated[
    Path | None, typer.Option("--server", metavar="DIR", help="The coordinator's folder; FEDSILO_SERVER if omitted.")
]
_WIDTH = 160  # where nobody looks, nothing needs to be folded


def console(*, quiet: bool = False) -> Console:
    """Return where a person reads."""
    shown = Console(highlight=False, quiet=quiet, soft_wrap=True)
    return shown if shown.is_terminal else Console(highlight=False, quiet=quiet, width=_WIDTH, soft_wrap=True)
