"""A silo is a folder: settings, policy, ledger, what a strategy keeps at home, and a log of all that left.

    silo.toml  policy.toml  keys/  ledger.db  state/<run>/  egress.jsonl  logs/silo.log

Which folder is this process's own is said by the environment (FEDSILO_SILO, or FEDSILO_SILOS and the partition id),
never by what a server sends.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.ledger import Durability, Ledger, Place
from client.policy import Policy
from strategies.errors import ProtocolError, SettingError
from strategies.layout import Vector
from strategies.privacy.budget import Budget
from strategies.wire import Reply, facts

PASSPHRASE: ContextVar[bytes | None] = ContextVar("passphrase", default=None)  # of the silo that this process runs


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataRoot(_Table):
    """Where one data set lies and how its columns are called here."""

    path: str
    rename: dict[str, str] = Field(default_factory=dict)
    unit: Annotated[str, Field(min_length=1, max_length=200)] = "record"  # or the column of the patient or account
    units_at_least: Annotated[int, Field(ge=1)] = 1  # a public lower bound, never a count


class LedgerTable(_Table):
    durability: Durability = "power-loss"
    allow_volatile: bool = False  # on tmpfs, a container's layer or a network file system


class NodeTable(_Table):
    """Ports on the loopback for probes; 0 for none."""

    health_port: Annotated[int, Field(ge=0, le=65535)] = 0  # gRPC health checking
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0  # Prometheus text, /metrics


class Settings(_Table):
    """`silo.toml`."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    server: str = ""
    device: str = "auto"
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of a GPU's memory, for this silo's node
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # public; used when a study says 'declared'
    data: dict[str, DataRoot]
    ledger: LedgerTable = LedgerTable()
    node: NodeTable = NodeTable()


_REMEDIES = {"memory_fraction": "; write the share of the GPU that this node may take, 0.3 for three nodes on one GPU"}


@dataclass(frozen=True, kw_only=True)
class Silo:
    """An opened silo folder.

    Args:
        folder: the folder.
        settings: its `silo.toml`.
        policy: its `policy.toml`.
        passphrase: of the silo's keys; a simulated silo has none.
    """

    folder: Path
    settings: Settings
    policy: Policy
    passphrase: bytes | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: Path, passphrase: bytes | None = None) -> Silo:
        """Read settings and policy of a silo folder.

        Args:
            folder: the silo's.
            passphrase: of its keys; needed before something is written to its ledger.

        Raises:
            SettingError: a file is missing or not valid.
        """
        path = folder / "silo.toml"
        try:
            settings = Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise SettingError(f"{folder} is no silo folder: it has no silo.toml; check FEDSILO_SILO") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"{path} is no valid TOML: {error}") from None
        except OSError as error:
            raise SettingError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            name, given = ".".join(map(str, first["loc"])), first["input"]
            what = name if first["type"] == "missing" else f"{name} = {given!r} is not allowed"
            raise SettingError(f"{path}: {what}: {first['msg'].lower()}{_REMEDIES.get(name, '')}") from None
        policy = Policy.read(folder / "policy.toml")
        return cls(folder=folder, settings=settings, policy=policy, passphrase=passphrase)

    @property
    def name(self) -> str:
        return self.settings.name

    def root(self) -> tuple[str, DataRoot]:
        """Return name and place of the silo's data root.

        Raises:
            SettingError: the silo has none, or more than one.
        """
        if len(self.settings.data) != 1:
            raise SettingError(
                f"{self.folder / 'silo.toml'} names {len(self.settings.data)} data roots; this version "
                "trains on exactly one; keep one [data.NAME]"
            )
        return next(iter(self.settings.data.items()))

    def data_path(self) -> Path:
        """Return the place of the records; a relative path is relative to the folder."""
        return self.folder / self.root()[1].path

    def budget(self) -> Budget:
        """Return the budget of the data root.

        Raises:
            SettingError: the policy has none for it.
        """
        name = self.root()[0]
        if name not in self.policy.budget:
            raise SettingError(f"{self.folder / 'policy.toml'} has no [budget.{name}]; give the data root a budget")
        return self.policy.budget[name].budget()

    def place(self) -> Place:
        """Return where the ledger lies and how it is kept."""
        return Place(
            path=self.folder / "ledger.db",
            keys=self.folder / "keys",
            durability=self.settings.ledger.durability,
            passphrase=self.passphrase,
            allow_volatile=self.settings.ledger.allow_volatile,
            limits={name: table.budget() for name, table in self.policy.budget.items()},
        )

    def ledger(self) -> AbstractContextManager[Ledger]:
        """Open the ledger."""
        return Ledger.open(self.place())

    def state(self, run: str) -> RunState:
        """Return what this silo keeps of a run.

        Raises:
            ProtocolError: `run`, which a server chose, could name another folder.
        """
        if not re.fullmatch(r"[0-9a-f]{32}", run):
            raise ProtocolError("the run's identity is not 32 hex digits")
        durable = self.settings.ledger.durability == "power-loss"
        return RunState(folder=self.folder / "state" / run, durable=durable)

    def record_egress(self, run: str, round: int, reply: Reply, *, exact: bool = False) -> None:
        """Append every field of a reply that is about to leave to `egress.jsonl`.

        Args:
            run: identity of the run.
            round: number of the release.
            reply: as it leaves.
            exact: whether an update in it bears no noise of this silo.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = [
            json.dumps({"time": now, "run": run, "round": round, **asdict(row)}) for row in facts(reply, exact=exact)
        ]
        with (self.folder / "egress.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def log(self, level: int, sentence: str) -> None:
        """Write one line to the silo's own log; it may hold private facts and never leaves."""
        folder = self.folder / "logs"
        folder.mkdir(exist_ok=True)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with (folder / "silo.log").open("a", encoding="utf-8") as file:
            file.write(f"{now} {logging.getLevelName(level)} {sentence}\n")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Files of one run at one silo: the manifest that was agreed, replies as sent, and the strategy's home arrays.

    Args:
        folder: of the run.
        durable: whether what is kept must survive a loss of power, as the ledger that speaks of it.
    """

    folder: Path
    durable: bool = True

    def agree(self, manifest: str) -> bool:
        """Keep the first manifest of the run; return whether `manifest` is that one."""
        path = self.folder / "manifest.json"
        if not path.exists():
            replace_file(path, manifest.encode(), durable=self.durable)
        return path.read_text(encoding="utf-8") == manifest

    def reply(self, round: int) -> bytes | None:
        """Return the packed reply of a round, if one was made; the end of a run counts as the round after the last."""
        path = self._reply_path(round)
        return path.read_bytes() if path.exists() else None

    def keep_reply(self, round: int, payload: bytes) -> None:
        """Store a packed reply before it is released, so that a retry sends the same bytes; older ones go."""
        replace_file(self._reply_path(round), payload, durable=self.durable)
        for path in self.folder.glob("reply-*.bin"):
            if path != self._reply_path(round):
                path.unlink()

    def heads(self) -> str:
        """Return the last list of heads that was countersigned, or an empty text."""
        path = self.folder / "heads.json"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def keep_heads(self, text: str) -> None:
        """Store a list of heads; it need not survive a loss of power."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "heads.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.folder / "heads.json")

    def home(self, used: int) -> dict[str, Vector]:
        """Return the strategy's arrays of round `used`; those of all others go, as their updates are in no model."""
        path = self._home_path(used)
        for other in self.folder.glob("home-*.safetensors"):
            if other != path:
                other.unlink()
        return safetensors.numpy.load(path.read_bytes()) if path.exists() else {}

    def keep_home(self, round: int, arrays: Mapping[str, Vector]) -> None:
        """Store the strategy's arrays of a round; which round is gone on from is known with the next request."""
        replace_file(
            self._home_path(round),
            safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}),
            durable=self.durable,
        )

    def _home_path(self, round: int) -> Path:
        return self.folder / f"home-{round:06d}.safetensors"

    def _reply_path(self, round: int) -> Path:
        return self.folder / f"reply-{round:06d}.bin"


def replace_file(path: Path, *parts: bytes, durable: bool = True) -> None:
    """Replace a file as a whole by these bytes, durably, readable by its owner alone; `durable` as of a ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(parts)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    part.replace(path)


def folder_of(node_config: Mapping[str, object]) -> Path:
    """Return the folder of the silo that this client is.

    Args:
        node_config: Flower's settings of the node; only its partition id is used.

    Raises:
        SettingError: the environment names no folder.
    """
    if folder := os.environ.get("FEDSILO_SILO"):
        return Path(folder)
    if folders := os.environ.get("FEDSILO_SILOS"):
        partition = node_config.get("partition-id")
        if isinstance(partition, int) and not isinstance(partition, bool) and partition >= 0:
            return Path(folders) / f"silo-{partition + 1}"
        raise SettingError(f"partition-id = {partition} is not allowed: it must be a whole number of at least 0")
    raise SettingError("no silo folder is named; set FEDSILO_SILO to this silo's folder")
