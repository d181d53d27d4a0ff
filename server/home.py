"""A coordinator is a folder: settings, keys, certificates, roster, Flower's state, logs and the runs.

    server.toml  keys/ (0700)  ca.crt  server.crt  roster.jsonl  answers/  superlink/  logs/  runs/

Everything that it serves to others is in `runs/<run>/` and the roster; `keys/` and `runs/coordinator/` hold what nobody
else may read.
"""

from __future__ import annotations

import os
import re
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Annotated

import tomlkit
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from server.authority import certify, make_authority, read_secret, write_secret
from server.checkpoint import write_whole
from server.identity import FOLDER, coordinator_key
from strategies.errors import SettingError, VerificationError
from strategies.proof.entries import public_hex
from strategies.roster import Roster, new_roster, read_roster

Port = Annotated[int, Field(ge=1, le=65535)]
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?")
_SECRETS = ("superexec", "loopback")


class Settings(BaseModel):
    """`server.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    hosts: Annotated[list[str], Field(min_length=1)]  # names and addresses of the server's certificate
    listen: str = "0.0.0.0"  # noqa: S104 - the gateway is the one public listener
    port: Port = 9092  # of the gateway
    superlink_port: Port = 9093  # on the loopback, as are the next two
    status_port: Port = 9094  # page and metrics
    health_port: Port = 9095  # gRPC health

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: list[str]) -> list[str]:
        if not all(_HOST.fullmatch(host) for host in hosts):
            raise ValueError("a host is a name such as fed.example.org or an address")
        return hosts

    @property
    def address(self) -> str:
        """What silos connect to: the first host, with the gateway's port."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Home:
    """An opened coordinator's folder."""

    folder: Path
    settings: Settings

    @classmethod
    def create(cls, folder: Path, settings: Settings) -> Home:
        """Make what is not there yet: keys, certificates, an empty roster.

        Raises:
            SettingError: there is a coordinator already, or the folder cannot be written.
        """
        path = folder / "server.toml"
        if path.exists():
            raise SettingError(f"{folder} holds a coordinator already; edit {path}, or use a new folder")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            home = cls(folder=folder.absolute(), settings=settings)
            make_authority(home.folder, settings.name)
            certify(home.folder, settings.hosts)
            for name in _SECRETS:
                write_secret(home.keys / f"{name}.secret", secrets.token_hex(32).encode())
            key = home.key()
            if not home.roster_path.exists():
                write_whole(home.roster_path, new_roster(settings.name, key, now()).text)
            write_whole(path, tomlkit.dumps(settings.model_dump()).encode())
        except OSError as error:
            raise SettingError(f"{folder} cannot be written: {error.strerror}") from None
        return home

    @classmethod
    def open(cls, folder: Path | None) -> Home:
        """Read a coordinator's folder.

        Args:
            folder: FEDSILO_SERVER names it when omitted.

        Raises:
            SettingError: no folder is named, or its settings are missing or not valid.
        """
        named = folder or (Path(os.environ["FEDSILO_SERVER"]) if os.environ.get("FEDSILO_SERVER") else None)
        if named is None:
            raise SettingError("no coordinator's folder is named; give --server DIR or set FEDSILO_SERVER")
        path = named / "server.toml"
        try:
            settings = Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise SettingError(f"{named} is no coordinator's folder; make one with fedsilo-server init") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingError(f"{path} cannot be read: {error}") from None
        except ValidationError as error:
            raise SettingError(f"{path}: {first_problem(error)}") from None
        return cls(folder=named.absolute(), settings=settings)

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def superlink(self) -> Path:
        """Flower's own folder: database, home and logs."""
        return self.folder / "superlink"

    @property
    def roster_path(self) -> Path:
        return self.folder / "roster.jsonl"

    def key(self) -> Ed25519PrivateKey:
        """Return the coordinator's key, which also signs the run folders."""
        return coordinator_key(self.runs / FOLDER)

    def secret(self, name: str) -> bytes:
        """Return a secret that the coordinator's own processes share."""
        return read_secret(self.keys / f"{name}.secret")

    def roster(self) -> Roster:
        """Return the checked roster.

        Raises:
            SettingError, VerificationError: it is missing, or not what the coordinator's key has signed.
        """
        try:
            text = self.roster_path.read_bytes()
        except OSError as error:
            raise SettingError(f"{self.roster_path} cannot be read ({error.strerror}); put it back") from None
        return read_roster(text, coordinator=public_hex(self.key()))

    @contextmanager
    def changing_roster(self) -> Iterator[Roster]:
        """Hold the roster for this process alone; `keep_roster` within."""
        descriptor = os.open(self.keys / "roster.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(descriptor, LOCK_EX)
            yield self.roster()
        finally:
            os.close(descriptor)

    def keep_roster(self, roster: Roster) -> None:
        """Replace the roster by a longer one.

        Raises:
            VerificationError: it does not continue the one that is there.
        """
        if not roster.text.startswith(self.roster_path.read_bytes()):
            raise VerificationError("a roster only grows; the new one does not continue the one that is there")
        write_whole(self.roster_path, roster.text)


def now() -> str:
    """Return the time as rosters write it: UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a settings file as one sentence."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} = {first['input']!r} is not allowed: {first['msg'].lower()}"
