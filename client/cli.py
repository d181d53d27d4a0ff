"""`fedsilo-silo`: what a site engineer and a data-protection officer type."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.commands import accounts, approving, doctor, enrolling, running, setup
from client.report_command import report_command
from strategies.command import Json, guarded
from strategies.errors import SettingError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run and watch over one silo.",
    epilog="Example: fedsilo-silo budget",
)
_DEPLOYMENT = "deployment"
_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "init": (setup.init, "init north --data cardiology_2024=records.csv --unit patient_id"),
    "register": (setup.register, "register cardiology_2024 --silo north"),
    "enrol": (enrolling.enrol, "enrol --silo north"),
    "check": (doctor.check, "check --silo north --study study.toml"),
    "up": (running.up, "up --silo north"),
    "stop": (running.stop, "stop --silo north"),
    "approve": (approving.approve, "approve study.toml --silo north"),
    "budget": (accounts.budget, "budget --silo north --study study.toml"),
    "status": (accounts.status, "status --silo north"),
    "export": (accounts.export, "export --silo north --out ledger.jsonl"),
    "report": (report_command, "report --silo north --out report --pdf"),
    "restore": (accounts.restore, "restore --silo north --reason 'disk replaced' --heads receipts.jsonl"),
}


@app.command(
    "predict",
    epilog="Example: fedsilo-silo predict runs/my-run/study.toml runs/my-run/model.safetensors records.csv",
)
def predict_command(
    study: Annotated[Path, typer.Argument(help="The run's study.toml.")],
    model: Annotated[Path, typer.Argument(help="The run's model.safetensors.")],
    data: Annotated[
        Path, typer.Argument(help="Records of this site, as the study reads them; the target is optional.")
    ],
    out: Annotated[Path, typer.Option(help="Where the predictions go, .csv or .parquet.")] = Path("predictions.csv"),
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OWN=STUDY", help="A column's name here and in the study.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Use a trained model on records of this site; nothing leaves the site and nothing is charged."""
    from client.predict import predictions, read_study

    if out.suffix.lower() not in (".csv", ".parquet"):
        raise SettingError(f"--out {out} is not allowed: it must end in .csv or .parquet")
    pairs = [text.partition("=") for text in rename or []]
    if not all(own and new for own, _, new in pairs):
        raise SettingError("--rename must have the form OWN=STUDY, for example --rename alter=age")
    names = {own: new for own, _, new in pairs}
    with tempfile.TemporaryDirectory(prefix="fedsilo-") as scratch:
        found = predictions(read_study(study), model, data, rename=names, scratch=Path(scratch))
    write = found.table.write_csv if out.suffix.lower() == ".csv" else found.table.write_parquet
    try:
        write(out)
    except OSError as error:
        raise SettingError(f"--out {out} cannot be written: {error.strerror}") from None
    facts = {
        "out": str(out),
        "records": found.table.height,
        "metrics": found.metrics,
        "calibration": list(found.calibration),
        "notes": list(found.notes),
    }
    print(json.dumps(facts)) if as_json else _show_predictions(facts)


def _show_predictions(facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for note in facts["notes"]:
        console.print(f"[yellow]{note}[/]")
    console.print(f"{facts['records']} records, predictions in {facts['out']}", soft_wrap=True)
    if facts["metrics"] is None:
        console.print("the records carry no target: how well calibrated the model is here is not known", soft_wrap=True)
        return
    shown = {name: value for name, value in facts["metrics"].items() if value is not None}
    console.print("on these records: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    if facts["calibration"]:
        table = Table("predicted", "records", "mean predicted", "observed", title="calibration", title_justify="left")
        for row in facts["calibration"]:
            table.add_row(
                f"{row['from']:.1f} to {row['to']:.1f}",
                str(row["records"]),
                f"{row['predicted']:.3f}",
                f"{row['observed']:.3f}",
            )
        console.print(table)


for _command, (_function, _example) in _COMMANDS.items():
    app.command(_command, epilog=f"Example: fedsilo-silo {_example}")(_function)


def main() -> None:
    """Entry point of `fedsilo-silo`."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    raise SystemExit(guarded(app))
