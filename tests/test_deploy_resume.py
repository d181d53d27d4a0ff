"""A run that breaks off anywhere is taken up from its signed record: same rounds, nothing charged twice, nothing lost.

The inline engine's silos stand behind a Grid that breaks after a number of messages, as a coordinator does that is
killed. Oracles: the run that did not break (bit for bit without noise), and the silos' ledgers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from client.keys import read_pin
from client.silo import Silo
from server import resume
from server.app import run_study
from server.envelopes import SignedGrid
from server.identity import coordinator_key
from simulations.engines.inline import InlineGrid
from simulations.ready import read_study
from simulations.silos import REGISTRIES, complete, make_silos
from simulations.sources import read_dataset
from strategies.errors import RunError
from strategies.study import Study, override

SILOS, ROUNDS = 3, 3


class Killed(BaseException):
    """What a coordinator's process that is killed does not catch."""


class Named(InlineGrid, SignedGrid):
    """The inline engine's silos under their names; breaks when told to."""

    def __init__(self, silos: list[Path], study: Study, breaks_after: int | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        contexts = {
            2 + number: Context(
                run_id=1,
                node_id=2 + number,
                run_config={"study": study.text},
                state=RecordDict(),
                node_config={"partition-id": number},
            )
            for number in range(len(silos))
        }
        InlineGrid.__init__(self, client_app, contexts, dropout=0.0, seed=1)
        self.left = breaks_after
        self.names = {2 + number: folder.name for number, folder in enumerate(silos)}
        self.ledgers = {2 + number: read_pin(folder / "keys").ledger_id for number, folder in enumerate(silos)}

    def know(self, nodes: Any) -> None: ...

    def changed(self, *_: str) -> bool:
        return False

    def name_of(self, node: int) -> str:
        return self.names[node]

    def ledger_of(self, node: int) -> str:
        return self.ledgers[node]

    def get_node_ids(self) -> Iterable[int]:
        return InlineGrid.get_node_ids(self)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if self.left == 0:
            raise Killed
        if self.left is not None:
            self.left -= 1
        return InlineGrid.push_messages(self, messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self.left == 0:
            raise Killed  # the silos have answered, and nobody heard
        return InlineGrid.pull_messages(self, message_ids)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Study, list[Path]]]:
    def make(name: str, **values: object) -> tuple[Study, list[Path]]:
        written, base = read_ready(name=name, values=values)
        source = read_dataset(written, base)
        study, _ = complete(written, source, base)
        silos = make_silos(study, source, tmp_path / name / "silos")
        monkeypatch.setenv("FEDSILO_SILOS", str(silos[0].parent))
        return study, silos

    return make


def read_ready(name: str, values: dict[str, object]) -> tuple[Study, Path]:
    written, base = read_study("breast-cancer", {})
    changes = {"study.rounds": ROUNDS, "training.steps": 2, "simulation.silos": SILOS, "simulation.partition": "iid"}
    changes |= {key.replace("__", "."): value for key, value in values.items()}
    return Study.parse(override(written.text, changes), REGISTRIES), base


def run(study: Study, silos: list[Path], out: Path, *, breaks_after: int | None = None, taken: str = "") -> Path:
    return run_study(Named(silos, study, breaks_after), study, out=out, test="", page=False, resume=taken)


def broken(study: Study, silos: list[Path], out: Path, breaks_after: int) -> Path | None:
    """Run until it breaks; return the run folder, or None where it broke before there was one."""
    with pytest.raises(Killed):
        run(study, silos, out, breaks_after=breaks_after)
    folders = [path for path in out.iterdir() if path.name != "coordinator"] if out.exists() else []
    return folders[0] if folders else None


PLAIN = {"privacy__mechanism": "none", "privacy__epsilon": None}
# invitation; then each round its training and, from the second on, nothing more when all answered; then the end
EXCHANGES = 1 + ROUNDS + 1


@pytest.mark.parametrize("breaks_after", range(1, EXCHANGES))
def test_a_run_that_broke_anywhere_ends_as_the_one_that_did_not(
    world: Callable[..., tuple[Study, list[Path]]], tmp_path: Path, breaks_after: int
) -> None:
    study, silos = world("whole", **PLAIN)
    whole = run(study, silos, tmp_path / "a")
    study, silos = world("broken", **PLAIN)
    folder = broken(study, silos, tmp_path / "b", breaks_after)
    if folder is None:
        assert breaks_after == 1, "only the invitation comes before the folder"
        return
    assert run(study, silos, tmp_path / "b", taken=str(folder)) == folder
    ours, theirs = (safetensors.numpy.load((each / "model.safetensors").read_bytes()) for each in (folder, whole))
    assert {name: array.tobytes() for name, array in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["aggregated"]) for line in lines] == [(n, True) for n in range(1, ROUNDS + 1)]
    report = json.loads((folder / "report.json").read_text())
    assert report["run"]["status"] == "complete"
    assert [silo["rounds"] for silo in report["silos"]] == [ROUNDS] * SILOS, "charged once"
    for silo in silos:
        assert kinds(silo, "release") == list(range(1, ROUNDS + 1)) and kinds(silo, "reserve") == kinds(silo, "release")


def kinds(silo: Path, kind: str) -> list[int]:
    with Silo.open(silo).ledger() as ledger:
        return sorted(entry.round for entry in ledger.entries() if entry.run and entry.kind == kind)


def test_a_private_run_that_broke_is_charged_once(
    world: Callable[..., tuple[Study, list[Path]]], tmp_path: Path
) -> None:
    study, silos = world("private")
    folder = broken(study, silos, tmp_path / "b", 3)
    assert folder is not None
    run(study, silos, tmp_path / "b", taken=str(folder))
    report = json.loads((folder / "report.json").read_text())
    assert max(silo["epsilon"] for silo in report["silos"]) <= 3.0 and report["run"]["status"] == "complete"
    for silo in silos:
        assert kinds(silo, "reserve") == list(range(1, ROUNDS + 1))


def test_a_masked_round_that_broke_off_is_lost_and_stays_charged(
    world: Callable[..., tuple[Study, list[Path]]], tmp_path: Path
) -> None:
    study, silos = world("masked", secagg__enabled=True)
    folder = broken(study, silos, tmp_path / "b", 3)  # in the middle of the first sum
    assert folder is not None
    run(study, silos, tmp_path / "b", taken=str(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["aggregated"] for line in lines] == [False, True, True]
    report = json.loads((folder / "report.json").read_text())
    assert report["run"]["status"] == "complete" and [silo["rounds"] for silo in report["silos"]] == [ROUNDS] * SILOS
    assert not (folder / "secagg" / "sum.bin").exists()


def test_a_folder_that_was_edited_is_not_gone_on_from(
    world: Callable[..., tuple[Study, list[Path]]], tmp_path: Path
) -> None:
    study, silos = world("edited", **PLAIN)
    folder = broken(study, silos, tmp_path / "b", 3)
    assert folder is not None
    state, note = folder / "checkpoint" / "state.safetensors", folder / resume.ASKED
    whole, asked = state.read_bytes(), note.read_bytes()
    for path, kept in ((state, whole), (note, asked)):
        for place in (len(kept) - 1, kept.index(b"signature") + 20):
            changed = bytearray(kept)
            changed[place] ^= 1
            path.write_bytes(bytes(changed))
            with pytest.raises(RunError, match=r"signed it|readable"):
                run(study, silos, tmp_path / "b", taken=str(folder))
        path.write_bytes(kept)
    other = coordinator_key(tmp_path / "another")
    with pytest.raises(RunError, match="signed it"):
        resume._begun(folder, resume.checkpoint.load(folder / "checkpoint")[1], 2, other)
    changed_study, _ = world("edited", **PLAIN, study__seed=8)
    with pytest.raises(RunError, match="the study is not the one"):
        run(changed_study, silos, tmp_path / "b", taken=str(folder))
    world("edited", **PLAIN)
    run(study, silos, tmp_path / "b", taken=str(folder))
    with pytest.raises(RunError, match="is complete"):
        run(study, silos, tmp_path / "b", taken=str(folder))


def test_a_simulated_run_is_not_taken_up(world: Callable[..., tuple[Study, list[Path]]], tmp_path: Path) -> None:
    study, silos = world("simulated", **PLAIN)
    contexts = Named(silos, study)._contexts
    with pytest.raises(RunError, match="only a run of enrolled silos"):
        run_study(
            InlineGrid(client_app, contexts, dropout=0.0, seed=1),
            study,
            out=tmp_path / "b",
            test="",
            page=False,
            resume=str(tmp_path),
        )
    assert read_pin(silos[0] / "keys").ledger_id
