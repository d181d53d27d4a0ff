"""`fedsilo-silo`: what a site engineer and a data-protection officer type."""

from __future__ import annotations

import typer

from strategies.command import guarded, not_built

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run and watch over one silo.",
    epilog="Example: fedsilo-silo budget",
)
_LEDGER, _DEPLOYMENT = "the ledger and its reports", "deployment"
_LATER = {
    "init": ("Make a silo folder and its keys.", _LEDGER),
    "enrol": ("Write the request that a coordinator enrols.", _DEPLOYMENT),
    "register": ("Name a data root and its budget.", _LEDGER),
    "check": ("Examine keys, data, budget, disk and connection.", _LEDGER),
    "approve": ("Show what a study would do, and approve it.", _LEDGER),
    "up": ("Start the silo's node.", _DEPLOYMENT),
    "stop": ("Stop the silo's node.", _DEPLOYMENT),
    "status": ("Show runs and all that left the silo.", _DEPLOYMENT),
    "budget": ("Show what is spent, reserved and free.", _LEDGER),
    "report": ("Write the silo's privacy budget report.", _LEDGER),
    "export": ("Export the ledger.", _LEDGER),
    "restore": ("Restore a ledger with the officer's key.", _LEDGER),
    "predict": ("Use a trained model on records of this site.", "the models and data kinds"),
}


def _later(name: str, summary: str, part: str) -> None:
    @app.command(
        name,
        help=f"{summary} (not built yet)",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def command() -> None:
        raise not_built(f"fedsilo-silo {name}", part)


for _name, (_summary, _part) in _LATER.items():
    _later(_name, _summary, _part)


def main() -> None:
    """Entry point of `fedsilo-silo`."""
    raise SystemExit(guarded(app))
