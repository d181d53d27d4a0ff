"""Which silo a command is for, and the passphrases of its keys.

A passphrase comes from a file descriptor, a systemd credential (systemd.exec(5): a file in the folder that
CREDENTIALS_DIRECTORY names) or a prompt; never from the command line or a variable of the environment, which others can
read. The silo's opens the keys of ledger and transport, the officer's that of the data-protection officer.
"""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from strategies.errors import SettingError

if TYPE_CHECKING:
    from client.silo import Silo
    from strategies.study import Study

Role = Literal["silo", "officer"]
SiloFolder = Annotated[
    Path | None, typer.Option("--silo", metavar="DIR", help="The silo's folder; FEDSILO_SILO if omitted.")
]
SiloWord = Annotated[
    int | None,
    typer.Option(
        "--passphrase-fd",
        min=0,
        metavar="N",
        help="Read a line with the silo's passphrase from this file descriptor; else the systemd credential "
        "silo-passphrase, else a prompt.",
    ),
]
OfficerWord = Annotated[
    int | None,
    typer.Option(
        "--officer-passphrase-fd",
        min=0,
        metavar="N",
        help="Read a line with the officer's passphrase from this file descriptor (the same number: the next line); "
        "else the systemd credential officer-passphrase, else a prompt.",
    ),
]
_LONGEST_BYTES = 1024
_WIDTH = 160  # where nobody looks, nothing needs to be folded


@dataclass(frozen=True, kw_only=True)
class Words:
    """Where the passphrases come from: file descriptors, or None."""

    silo: int | None = None
    officer: int | None = None

    def ask(self, role: Role, *, new: bool = False) -> bytes:
        """Return a passphrase.

        Args:
            role: whose.
            new: it is set here, so a prompt asks twice.

        Raises:
            SettingError: there is none, it is empty, or its source cannot be read.
        """
        word = self.given(role)
        if word is None:
            if not sys.stdin.isatty():
                raise SettingError(
                    f"the {role}'s passphrase is missing and this is no terminal to ask at; give {_option(role)} N, or "
                    f"the systemd credential {role}-passphrase"
                )
            word = _prompt(role, new)
        if not word:
            raise SettingError(f"the {role}'s passphrase is empty, which is not allowed; choose one")
        return word

    def given(self, role: Role) -> bytes | None:
        """Return a passphrase that is there without a prompt, or None.

        Raises:
            SettingError: its source cannot be read.
        """
        descriptor = self.silo if role == "silo" else self.officer
        if descriptor is not None:
            return _line(descriptor, role)
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        path = Path(folder) / f"{role}-passphrase" if folder else None
        if path is None or not path.exists():
            return None
        try:
            return path.read_bytes()[:_LONGEST_BYTES].removesuffix(b"\n")
        except OSError as error:
            raise SettingError(f"the credential {path} cannot be read: {error.strerror}") from None


def _option(role: Role) -> str:
    return "--passphrase-fd" if role == "silo" else "--officer-passphrase-fd"


def _line(descriptor: int, role: Role) -> bytes:
    """Read up to the end of a line and no further: the next passphrase may follow in the same descriptor."""
    found = bytearray()
    try:
        while len(found) < _LONGEST_BYTES and (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
            found += byte
    except OSError as error:
        raise SettingError(
            f"{_option(role)} {descriptor} cannot be read ({error.strerror}); open it for this command, for example "
            f"with {descriptor}<file"
        ) from None
    return bytes(found)


def _prompt(role: Role, new: bool) -> bytes:
    word = getpass.getpass(f"the {role}'s passphrase: ")
    if new and getpass.getpass(f"the {role}'s passphrase again: ") != word:
        raise SettingError(f"the two entries of the {role}'s passphrase differ; start again")
    return word.encode()


def folder_of(silo: Path | None) -> Path:
    """Return the silo's folder.

    Raises:
        SettingError: none is named.
    """
    found = silo or (Path(os.environ["FEDSILO_SILO"]) if os.environ.get("FEDSILO_SILO") else None)
    if found is None:
        raise SettingError("no silo folder is named; give --silo DIR or set FEDSILO_SILO")
    return found


def open_silo(folder: Path | None, words: Words | None = None) -> Silo:
    """Open a silo folder; its passphrase is asked for when `words` say where, and it is no simulated silo.

    Raises:
        SettingError: no folder is named, a file is not valid, or the passphrase is missing.
    """
    from dataclasses import replace

    from client.silo import Silo

    silo = Silo.open(folder_of(folder))
    if words is None or simulated(silo):
        return silo
    return replace(silo, passphrase=words.ask("silo"))


def simulated(silo: Silo) -> bool:
    """Return whether the silo's keys have no passphrase."""
    return silo.settings.ledger.durability == "process"


def read_study(path: Path) -> Study:
    """Return a complete study.

    Raises:
        StudyError, SettingError: it cannot be read or is not valid.
    """
    from client.models.base import MODELS
    from strategies.spec import Registries
    from strategies.study import Study

    try:
        text = path.read_bytes().decode()  # byte for byte: its hash is its identity
    except (OSError, UnicodeDecodeError):
        raise SettingError(f"the study {path} cannot be read; give the path of a study file") from None
    return Study.parse(text, Registries(models=MODELS), source=path.name)


def console(*, quiet: bool = False) -> Console:
    """Return where a person reads."""
    shown = Console(highlight=False, quiet=quiet)
    return shown if shown.is_terminal else Console(highlight=False, quiet=quiet, width=_WIDTH)
