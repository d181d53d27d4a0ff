"""`fedsilo-silo report`: the privacy budget report of a silo, for its data-protection officer.

Four files: `budget.html` (opens offline), `budget.json` (the same facts), `registry.yaml`, and with ``--pdf``
`budget.pdf`, printed by a Chromium that is there. The ledger is read and never written; it is verified line by line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from client.commands.access import SiloFolder, folder_of
from client.keys import read_pin
from client.ledger_book import Place
from client.ledger_file import LedgerFile
from client.silo import Silo
from strategies.command import Json
from strategies.errors import FedsiloError, ProtocolError, SettingError, VerificationError
from strategies.manifest import Manifest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PRINT_S = 120


def report_command(
    silo: SiloFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the files go; the silo's own folder report/ otherwise.")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print the page to budget.pdf, with Chromium.")] = False,
    as_json: Json = False,
) -> None:
    """Write the silo's privacy budget report: all runs on each data root, from its ledger."""
    folder = folder_of(silo)
    browser = _browser() if pdf else ""
    facts = facts_of(folder)
    place = out or folder / "report"
    try:
        written = write_report(facts, place)
    except OSError as error:
        raise SettingError(f"--out {place} cannot be written: {error.strerror}; choose another folder") from None
    if pdf:
        written.append(_print(browser, place))
    if as_json:
        print(json.dumps(facts))
    else:
        for path in written:
            print(path)
    if not facts["ledger"]["verified"]:
        raise VerificationError(
            f"the ledger of {folder} does not verify: {facts['ledger']['problem']}; the report says so and claims "
            "nothing"
        )


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the facts of the budget report of a silo folder; its ledger need not verify.

    Raises:
        SettingError: it is no silo folder, or its pin is missing.
        LedgerError: there is no ledger that can be read.
    """
    from strategies.report.budget import budget_facts

    place = Silo.open(folder).place()
    facts = budget_facts(_lines(place), read_pin(place.keys), _manifests(folder))
    if place.marker.exists():
        facts["ledger"]["frozen"] = facts["ledger"]["frozen"] or f"the mark {place.marker.name} lies beside it"
    return facts


def _manifests(folder: Path) -> list[Manifest]:
    """Return what the silo has kept of the agreements of its runs; one that cannot be read is left out."""
    found = []
    for path in sorted((folder / "state").glob("*/manifest.json")):
        with suppress(OSError, UnicodeDecodeError, ProtocolError):
            found.append(Manifest.from_json(path.read_text(encoding="utf-8")))
    return found


def _lines(place: Place) -> list[bytes]:
    file = LedgerFile(place.path, durable=place.durable)
    try:
        with file.reading():
            return [line for _, line in file.lines()]
    finally:
        file.close()


def write_report(facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write the page, the facts and the registry's entry into a folder; return their paths.

    Raises:
        OSError: the folder cannot be made or written.
    """
    from strategies.report.budget_page import budget_page
    from strategies.report.registry import registry_of_budget

    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "budget.html": budget_page(facts),
        "budget.json": json.dumps(facts, indent=2, ensure_ascii=False) + "\n",
        "registry.yaml": registry_of_budget(facts),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


# --- printing ---------------------------------------------------------------------------------------------------


def _browser() -> str:
    for name in _BROWSERS:
        if found := shutil.which(name):
            return found
    raise SettingError(
        "--pdf needs Chromium or Chrome on the PATH, and there is none; install one, or print budget.html from any "
        "browser"
    )


def _print(browser: str, folder: Path) -> Path:
    """Print budget.html; the browser gets a profile of its own that is thrown away, and no network."""
    target = (folder / "budget.pdf").absolute()
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedsilo-print-") as profile:
        command = [browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command += [
            "--disable-component-update",
            "--disable-sync",
            "--no-pdf-header-footer",
            f"--user-data-dir={profile}",
        ]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []  # as root, Chromium has no sandbox to offer
        command += [f"--print-to-pdf={target}", (folder / "budget.html").absolute().as_uri()]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PRINT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FedsiloError(f"{browser} could not print ({type(error).__name__}); budget.html is written") from None
    if done.returncode != 0 or not target.exists():
        raise FedsiloError(f"{browser} ended with {done.returncode} and printed nothing; budget.html is written")
    return target
