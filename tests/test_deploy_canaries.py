"""Nothing of a silo's records, names of files, keys or passphrases is in what it sends, whatever goes wrong.

Strings that occur nowhere else are planted, a silo is driven into each of its errors, and every byte between silo and
coordinator is looked through, in several encodings, with all that the coordinator keeps. Oracle: the silo's own log, which
must show the planted string where an error carries one, so that a path that carries nothing does not pass for a safe one.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from coordinators import Consortium, Processes, found, passphrases, silo, until
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from enrolled import POLICY, Wire
from flwr.app import Message
from sites import OFFICER_WORD, TEXT, rewrite
from test_deploy_outcomes import resealed

from client import round as local_round
from client.keys import ledger_key, transport_key
from client.ledger import Ledger
from client.models.base import MODELS
from client.silo import RunState
from server.home import Home
from server.overview import overview
from strategies import wire
from strategies.errors import FedsiloError, LedgerError
from strategies.spec import Registries
from strategies.study import Study, override

NAMES = ("east", "north", "south")
STUDY = Study.parse(
    override(TEXT, {"cohort.min_silos": 2, "cohort.round_timeout_s": 60, "study.rounds": 1, "privacy.epsilon": 0.5}),
    Registries(models=MODELS),
)


@dataclass(frozen=True)
class Planted:
    """Strings that occur nowhere else, by where they are.

    Args:
        consortium: whose.
        word: the passphrase of all silos, one of them.
        loose: planted by an error itself.
        records: in values and unit ids.
        files: in names of files.
    """

    consortium: Consortium
    word: str
    loose: tuple[str, ...]
    records: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def north(self) -> Path:
        return self.consortium.server.parent / "north"

    @property
    def data(self) -> Path:
        return next(path for path in self.north.parent.glob("north.c*") if path.name.endswith(".csv"))

    def secrets(self) -> list[bytes]:
        """Return what of keys and passphrase must not be in the silo's own logs either."""
        found = [self.word.encode()]
        for folder in self.consortium.silos:
            keys = folder / "keys"
            ledger, node = ledger_key(keys, self.word.encode()), transport_key(keys, self.word.encode())
            found += [ledger.private_bytes_raw(), node.private_numbers().private_value.to_bytes(48, "big")]
            found += [node.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())]
            found += [(keys / "fingerprint.key").read_bytes()]
            found += [line for path in keys.glob("*.pem") for line in path.read_bytes().split(b"\n")[1:-2]]
        return found

    def strings(self) -> list[bytes]:
        return [text.encode() for text in (*self.loose, *self.records, *self.files)]


def planted(folder: Path, count: int, unit: str = "patient_id") -> Planted:
    """A coordinator and three silos with `count` strings in their records, files and keys."""
    texts = iter([f"canary{secrets.token_hex(8)}" for _ in range(count)])
    word, loose = next(texts), tuple(next(texts) for _ in range(min(6, count // 3)))
    files = tuple(next(texts) for _ in NAMES)
    records = tuple(texts)
    for number, name in enumerate(NAMES):
        own = records[number :: len(NAMES)]
        rows = [
            f"{own[i // 2] if i // 2 < len(own) else f'p{number}-{i // 2}'},{20 + i % 60},{1 + i % 7},"
            f"{('home', 'ward')[i * 7 % 11 > 5]},{own[i % len(own)]}"
            for i in range(160)
        ]
        (folder / f"{name}.c{files[number]}.csv").write_text(
            "\n".join(["patient_id,age,crp,outcome,note", *rows]) + "\n"
        )
    consortium = found(folder, NAMES, POLICY, secret=(word.encode(), OFFICER_WORD))
    with passphrases(consortium.credentials):
        for name in NAMES:
            rewrite(folder / name / "silo.toml", 'unit = "record"', f'unit = "{unit}"')
            silo("register", "ward", "--silo", str(folder / name))
    return Planted(consortium=consortium, word=word, loose=loose, records=records, files=files)


# --- fifteen and more ways to fail --------------------------------------------------------------------------


@contextmanager
def content(path: Path, data: bytes | None) -> Iterator[None]:
    """Another content of a file, or none, for a while."""
    before, mode = path.read_bytes(), path.stat().st_mode
    path.unlink()
    if data is not None:
        path.write_bytes(data)
        path.chmod(mode)
    try:
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


@contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def cell(world: Planted, column: int, value: str) -> AbstractContextManager[None]:
    """North's records with another value in one cell, or in the header of a column."""
    lines = world.data.read_text().splitlines()
    row = 0 if value.startswith("#") else 5
    cells = lines[row].split(",")
    cells[column] = value.removeprefix("#")
    lines[row] = ",".join(cells)
    return content(world.data, "\n".join(lines).encode() + b"\n")


def replaced(path: Path, old: str, new: str) -> AbstractContextManager[None]:
    text = path.read_text()
    assert old in text
    return content(path, text.replace(old, new).encode())


def raising(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


@contextmanager
def folder_in_place(world: Planted) -> Iterator[None]:
    path = world.data
    with content(path, None):
        path.mkdir()
        try:
            yield
        finally:
            path.rmdir()


Path_ = tuple[Callable[[Planted], AbstractContextManager[None]], str]  # and what north's log says of it
PATHS: dict[str, Path_] = {
    "text for a number": (lambda w: cell(w, 1, w.loose[0]), "refused (data)"),
    "a label that is none": (lambda w: cell(w, 3, w.loose[0]), "refused (data)"),
    "a column that is not there": (lambda w: cell(w, 2, f"#{w.loose[0]}"), "refused (data)"),
    "no column of units": (lambda w: cell(w, 0, f"#{w.loose[0]}"), "refused (data)"),
    "a corrupt file": (lambda w: content(w.data, b"\0\xff" + w.loose[0].encode() * 9), "refused (data)"),
    "an empty file": (lambda w: content(w.data, b""), "refused (data)"),
    "no file": (lambda w: content(w.data, None), "refused (data)"),
    "a folder for a file": (folder_in_place, "refused ("),
    "a study that policy forbids": (
        lambda w: replaced(
            w.north / "policy.toml", "max_steps_per_round = 200", f"max_steps_per_round = 1 # {w.loose[1]}"
        ),
        "refused (policy)",
    ),
    "no approval": (
        lambda w: replaced(w.north / "policy.toml", 'approval = "automatic"', f'approval = "required" # {w.loose[1]}'),
        "refused (approval)",
    ),
    "no budget": (
        lambda w: replaced(w.north / "policy.toml", "epsilon = 8.0", f"epsilon = 0.01 # {w.loose[1]}"),
        "refused (budget)",
    ),
    "settings that are none": (
        lambda w: replaced(w.north / "silo.toml", 'device = "auto"', f'device = "{w.loose[1]}"'),
        "refused (internal)",
    ),
    "a crash in training": (
        lambda w: patched(local_round, "train_locally", raising(RuntimeError(w.loose[2]))),
        "refused (internal)",
    ),
    "an error of the system in training": (
        lambda w: patched(local_round, "train_locally", raising(OSError(28, "No space left", str(w.data)))),
        "refused (internal)",
    ),
    "a value that is no number in training": (
        lambda w: patched(local_round, "train_locally", lambda module, *_: np.full(3, np.nan, np.float32)),
        "refused (",
    ),
    "a full disk after training": (
        lambda w: patched(RunState, "keep_reply", raising(OSError(28, "No space left", w.loose[3]))),
        "refused (internal)",
    ),
    "a ledger that cannot be written": (
        lambda w: patched(Ledger, "reserve", raising(LedgerError(w.loose[3]))),
        "refused (ledger)",
    ),
    "a damaged key": (
        lambda w: content(w.north / "keys" / "ledger.pem", b"-----BEGIN " + w.loose[4].encode()),
        "refused (internal)",
    ),
    "a key file that others can read": (lambda w: open_to_all(w.north / "keys" / "ledger.pem"), "refused (internal)"),
}


@contextmanager
def open_to_all(path: Path) -> Iterator[None]:
    path.chmod(0o644)
    try:
        yield
    finally:
        path.chmod(0o600)


def encodings(text: bytes) -> list[bytes]:
    """A string as it is, in hex, in base64 at each of its three offsets, and in UTF-16."""
    shifted = [base64.b64encode(b"\0" * n + text)[4 if n else 0 : -4] for n in range(3)]
    return [text, text.hex().encode(), *shifted, text.decode("latin-1").encode("utf-16-le")]


def leaks(haystack: bytes, needles: Sequence[bytes]) -> list[bytes]:
    return [needle for needle in needles if any(form in haystack for form in encodings(needle))]


def kept(folder: Path) -> bytes:
    """Every file below a folder, and their names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return b"\0".join(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() for path in files)


def own_logs(world: Planted) -> bytes:
    texts = [kept(folder / "logs") for folder in world.consortium.silos if (folder / "logs").exists()]
    return b"\0".join([*texts, *[kept(folder / "state" / "node") for folder in world.consortium.silos]])


def test_a_string_is_found_in_every_encoding_that_is_looked_for() -> None:
    text = b"canary0123456789"
    for form in (text, text.hex().encode(), base64.b64encode(b"ab" + text + b"c"), text.decode().encode("utf-16-le")):
        assert leaks(b"before" + form + b"after", [text]) == [text]
    assert leaks(b"nothing of it: canary01234567", [text]) == []


def test_no_error_of_a_silo_carries_a_planted_string_out(
    tmp_path: Path, scaled: Callable[..., int], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    count = scaled(200, 20)
    world = planted(tmp_path, count)
    assert len({world.word, *world.loose, *world.records, *world.files}) == count
    secret, log, sent = world.secrets(), world.north / "logs" / "silo.log", b""
    carried = set()
    for name, (broken, sentence) in PATHS.items():
        seen = len(log.read_bytes()) if log.exists() else 0
        line = Wire(world.consortium, STUDY, word=world.word.encode())
        with broken(world), suppress(FedsiloError):  # two silos go on; where all crash, the run ends
            line.train()
        told = log.read_bytes()[seen:]
        assert sentence.encode() in told, f"{name}: {told.decode()}"
        carried |= set(leaks(told, world.strings()))
        sent += b"".join(line.sent)
        assert leaks(b"".join(line.sent), [*world.strings(), *secret]) == [], name
    assert {text.encode() for text in world.loose[:4]} <= carried, "the errors did carry them"
    assert any(text.encode() in carried for text in world.files)
    whole = Wire(world.consortium, STUDY, word=world.word.encode())
    folder = whole.train()
    assert json.loads((folder / "report.json").read_text())["run"]["status"] == "complete", "and nothing was broken"
    assert leaks(b"".join(whole.sent), [*world.strings(), *secret]) == []
    assert leaks(kept(world.consortium.server), [*world.strings(), *secret]) == [], "the coordinator's folder"
    server_log = "\n".join(record.getMessage() for record in caplog.records if record.name == "fedsilo.server")
    assert server_log and leaks(server_log.encode(), [*world.strings(), *secret]) == []
    assert leaks(own_logs(world), secret) == [], "keys and passphrase are in no log of the silo's own"
    printed = "".join(capfd.readouterr())
    assert leaks(printed.encode(), secret) == []
    assert len(sent) > 10_000


def test_a_request_that_is_none_and_a_wrong_passphrase_carry_nothing_out(tmp_path: Path) -> None:
    world = planted(tmp_path, 20)
    key, log = Home.open(world.consortium.server).key(), world.north / "logs" / "silo.log"

    def garbage(_: str, message: Message) -> Message:
        if message.metadata.group_id == "1":
            asked = wire.from_record(message.content, (wire.Train,))
            object.__setattr__(asked, "manifest", world.loose[0])
            return resealed(message, asked, key)
        return message

    bad = Wire(world.consortium, STUDY, change=garbage, word=world.word.encode())
    bad.train()
    wrong = Wire(world.consortium, STUDY, word=world.word.encode())
    for node in wrong.nodes.values():
        node._child.word = world.loose[1].encode()  # type: ignore[attr-defined]
    with pytest.raises(FedsiloError):
        wrong.train()
    told = log.read_bytes()
    assert b"refused (protocol)" in told and b"the passphrase is wrong" in told
    replies = b"".join(data for line in (bad, wrong) for data in line.sent[1::2])
    assert leaks(replies, [*world.strings(), *world.secrets()]) == []
    assert leaks(own_logs(world), [*world.secrets(), world.loose[1].encode()]) == []


def test_real_processes_keep_them_too(tmp_path: Path, full_tier: bool) -> None:
    """Flower's database, its logs, the gateway's and the supervisor's; with real processes, so in the full tier."""
    if not full_tier:
        assert callable(planted)  # walked with `pytest -m full`; its parts are the test above
        return
    world = planted(tmp_path, 200)
    (tmp_path / "study.toml").write_text(STUDY.text)
    processes = Processes(world.consortium)
    try:
        for name in ("server", *NAMES):
            processes.start(name)
        home = Home.open(world.consortium.server)
        until(lambda: sum(row["state"] == "online" for row in overview(home)["silos"]) == 3)
        for column in (1, 3):
            with cell(world, column, world.loose[0]):
                done = processes.type("run", str(tmp_path / "study.toml"))
                assert done.returncode == 0, done.stdout + done.stderr
        with content(world.data, None):
            done = processes.type("run", str(tmp_path / "study.toml"))
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        processes.stop()
    told = (world.north / "logs" / "silo.log").read_bytes()
    assert world.loose[0].encode() in told and b"refused (data)" in told
    everything = kept(world.consortium.server) + (tmp_path / "server.log").read_bytes()
    assert b"SQLite format 3" in everything, "the database is among it"
    assert leaks(everything, [*world.strings(), *world.secrets()]) == []
    logs = own_logs(world) + b"".join((tmp_path / f"{name}.log").read_bytes() for name in NAMES)
    assert leaks(logs, world.secrets()) == []
