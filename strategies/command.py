"""What the four commands share: the option ``--json``, and how they end: an exit code, one sentence for an error, no
traceback without ``--debug``.

Exit codes: 0 done, 1 failed while running, 2 wrong usage or invalid study, 3 refused, 4 verification failed.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from strategies.errors import FedsiloError

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable object and nothing else.")]


def guarded(application: typer.Typer, *, arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: one sentence for each error, no traceback without ``--debug``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        result = application(args=given, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except FedsiloError as error:
        if debug:
            raise
        print(f"error: {error}" if "\n" not in str(error) else str(error), file=sys.stderr)
        return error.exit_code
    except (typer.Exit, typer.Abort) as stop:
        return getattr(stop, "exit_code", 1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    except Exception as error:
        if _is_usage(error):
            print(f"error: {error.format_message()}", file=sys.stderr)  # type: ignore[attr-defined]
            return 2
        if debug:
            raise
        print(f"error: {type(error).__name__}: {error}; run again with --debug for the traceback", file=sys.stderr)
        return 1


def _is_usage(error: Exception) -> bool:
    return hasattr(error, "format_message") and getattr(error, "exit_code", None) == 2
