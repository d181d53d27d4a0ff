"""A coordinator that lies about a round is found out by the silo it lies to, before a record is read.

An honest one never is. The liar has the coordinator's key, so every envelope and, where not said otherwise, every record
is well signed. Oracles: the silo's ledger (nothing is reserved for the round of a lie), its log, and the runs of the same silos without a lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinators import Consortium
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from enrolled import OPEN, Wire, consortium_of, study_of
from flwr.app import Message
from sites import opened

from client import node as node_module
from client.models.base import MODELS
from server.folder import RunFolder
from server.home import Home
from strategies import wire
from strategies.command import guarded
from strategies.envelope import Instruction, open_envelope, seal
from strategies.errors import VerificationError
from strategies.proof.entries import public_hex
from strategies.proof.outcomes import Outcome, fork, model_hash, read_outcome, sign_outcome
from strategies.sealed import attach, envelope_of, payload_hash
from strategies.spec import Registries
from strategies.study import Study, override
from strategies.verify import app as verify

ROUNDS = 3
VALUES = {
    "study__rounds": ROUNDS,
    "training__steps": 1,
    "privacy__mechanism": "none",
    "privacy__epsilon": None,
    "cohort__min_silos": 2,
    "cohort__round_timeout_s": 60,
}
STRANGER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
Asked = wire.Train | wire.Close


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return consortium_of(tmp_path_factory.mktemp("world"), OPEN, **VALUES)


@dataclass(frozen=True)
class Truth:
    """What a liar starts from: the request, the record in it, and the coordinator's key."""

    asked: Asked
    said: Outcome
    key: Ed25519PrivateKey

    def saying(self, **values: Any) -> Asked:
        """The request with another record, signed."""
        return replace(self.asked, outcome=sign_outcome(replace(self.said, **values), self.key))

    def without(self, *, also_arrived: bool) -> Asked:
        """The request with a record in which north is not."""
        others = {silo: digest for silo, digest in self.said.arrived.items() if silo != "north"}
        return self.saying(used=tuple(others), arrived=others if also_arrived else self.said.arrived)


def swapped(arrived: dict[str, str]) -> dict[str, str]:
    return {**arrived, "north": arrived["south"], "south": arrived["north"]}


def last_bit(weights: Any) -> Any:
    changed = np.array(weights)
    changed.view(np.uint32)[-1] ^= 1
    return changed


LIES: dict[str, tuple[Callable[[Truth], Asked], str]] = {
    "another model": (
        lambda t: replace(t.asked, weights=t.asked.weights + np.float32(0.001)),
        "the model that came is not the one",
    ),
    "one bit of the model": (
        lambda t: replace(t.asked, weights=last_bit(t.asked.weights)),
        "the model that came is not the one",
    ),
    "left out though acknowledged": (lambda t: t.without(also_arrived=True), "leaves out an answer that was acknowl"),
    "left out of the sum": (lambda t: t.without(also_arrived=False), "leaves an answer that arrived out of the model"),
    "another answer": (
        lambda t: t.saying(arrived={**t.said.arrived, "north": "a" * 64}),
        "names an answer that this silo has not given",
    ),
    "another silo's answer": (
        lambda t: t.saying(arrived=swapped(dict(t.said.arrived))),
        "names an answer that this silo has not given",
    ),
    "a sum of no answers": (lambda t: t.saying(used=(), before="b" * 64), "changes the model by no answer"),
    "a sum of one answer": (lambda t: t.saying(used=("north",)), "fewer answers than cohort.min_silos"),
    "a sum with a stranger's answer": (
        lambda t: t.saying(arrived={**t.said.arrived, "mallory": "c" * 64}, used=(*t.said.used[:1], "mallory")),
        "names a silo that is not in this run",
    ),
    "another beginning": (
        lambda t: t.saying(before="d" * 64),
        "began with another model than the one that this silo was given|it begins with another model",
    ),
    "a sum of what did not arrive": (
        lambda t: t.saying(arrived={"north": t.said.arrived["north"]}),
        "uses an answer that it does not name",
    ),
    "another history": (
        lambda t: t.saying(prev="e" * 64),
        "names another record of the round before|has a value that it cannot",
    ),
    "no record": (lambda t: replace(t.asked, outcome=""), "does not hold"),
    "a forged record": (
        lambda t: replace(t.asked, outcome=sign_outcome(t.said, STRANGER)),
        "not signed by the coordinator of this run",
    ),
    "a changed record": (
        lambda t: replace(t.asked, outcome=t.asked.outcome.replace(t.said.arrived["south"], "f" * 64)),
        "not signed by the key that it names",
    ),
    "a record of another run": (lambda t: t.saying(run="0" * 32), "is not of round"),
    "a record of another agreement": (lambda t: t.saying(manifest="0" * 64), "is not of round"),
    "a record of a later round": (lambda t: t.saying(round=t.said.round + 1, prev="a" * 64), "is not of round"),
}
PLACES = ("2", "3", "close")
CASES = [(lie, place) for place in PLACES for lie in LIES]


def resealed(message: Message, asked: Asked, key: Ed25519PrivateKey) -> Message:
    """The message with another content, as the coordinator would have signed it."""
    sealed, roster = envelope_of(message.content)
    order = open_envelope(sealed, Instruction, public_hex(key))
    content = wire.to_record(asked)
    attach(content, seal(replace(order, payload=payload_hash(content)), key), roster)
    message.content = content
    return message


def lying(consortium: Consortium, lie: Callable[[Truth], Asked], place: str) -> Callable[[str, Message], Message]:
    """Lie to north, once."""
    key = Home.open(consortium.server).key()

    def change(silo: str, message: Message) -> Message:
        if (silo, message.metadata.group_id) != ("north", place):
            return message
        asked = wire.from_record(message.content, (wire.Train, wire.Close))
        return resealed(message, lie(Truth(asked, read_outcome(asked.outcome).outcome, key)), key)

    return change


def test_a_lie_is_refused_in_the_silo_before_it_trains(consortium: Consortium, scaled: Callable[..., int]) -> None:
    log = consortium.server.parent / "north" / "logs" / "silo.log"
    count = scaled(40, 12)
    cases = CASES if count == 40 else [(lie, PLACES[number % 3]) for number, lie in enumerate(LIES)]
    assert len(cases) >= count
    for name, place in cases:
        lie, sentence = LIES[name]
        seen = len(log.read_text()) if log.exists() else 0
        line = Wire(consortium, study_of(consortium), change=lying(consortium, lie, place))
        folder = line.train()
        told = log.read_text()[seen:]
        refusal = [row for row in told.splitlines() if "refused (protocol)" in row]
        assert len(refusal) == 1, f"{name} at {place}: {told}"
        assert any(part in refusal[0] for part in sentence.split("|")), f"{name} at {place}: {refusal[0]}"
        run = json.loads((folder / "report.json").read_text())["run"]["id"]
        with opened(consortium.server.parent / "north").ledger() as ledger:
            reserved = [entry.round for entry in ledger.entries() if entry.run == run and entry.kind == "reserve"]
        assert reserved == [n for n in range(1, ROUNDS + 1) if str(n) != place], f"{name} at {place}"


def test_an_honest_run_is_never_refused_also_when_answers_are_lost(
    consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an honest coordinator never heard is told from a lie: the silo says so in its log and goes on."""
    log = consortium.server.parent / "north" / "logs" / "silo.log"
    dropped: list[str] = []

    def lost(silo: str, reply: Message) -> bool:
        if silo == "north" and reply.metadata.group_id == "2":
            dropped.append(silo)
            return True
        return False

    def torn(silo: str, message: Message) -> Message:
        """A loss of power has left what need not survive one unreadable."""
        if silo == "south" and message.metadata.group_id == "3":
            run = json.loads(wire.from_record(message.content, (wire.Train,)).manifest)["run"]
            state = consortium.server.parent / "south" / "state" / run
            for name in ("outcome.json", "given.json"):
                assert (state / name).exists()
                (state / name).write_bytes(b"\0" * 16)
        return message

    study = replace_timeout(consortium)
    seen = len(log.read_text()) if log.exists() else 0
    folder = Wire(consortium, study, lost=lost, change=torn).train()
    assert dropped == ["north"]
    told = log.read_text()[seen:]
    assert "refused" not in told and told.count("this silo's answer was late, or left out") == 1
    records = [read_outcome(line).outcome for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    assert [sorted(record.used) for record in records] == [
        ["east", "north", "south"],
        ["east", "south"],
        ["east", "north", "south"],
    ]
    run = json.loads((folder / "report.json").read_text())["run"]["id"]
    kept = [consortium.server.parent / name / "state" / run / "outcome.json" for name in ("east", "north", "south")]
    assert len({path.read_text() for path in kept}) == 1, "one story to all"
    words = ["check", str(folder), *map(str, kept), "--pin", str(consortium.server / "roster.jsonl")]
    assert guarded(verify, arguments=words) == 0, capsys.readouterr().out


def replace_timeout(consortium: Consortium) -> Study:
    """The study with a round that ends soon, as a lost answer is waited for."""
    text = override(study_of(consortium).text, {"cohort.round_timeout_s": 20})
    return Study.parse(text, Registries(models=MODELS))


def test_two_records_of_one_round_are_a_proof_that_anybody_can_check(
    consortium: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The silo is told one story, and then another: it keeps both, and a run folder with one of them is caught too."""
    key, north = Home.open(consortium.server).key(), consortium.server.parent / "north"
    line: Wire

    def change(silo: str, message: Message) -> Message:
        if (silo, message.metadata.group_id) == ("north", "3"):
            asked = wire.from_record(message.content, (wire.Train,))
            said = read_outcome(asked.outcome).outcome
            other = replace(said, arrived={**said.arrived, "south": "a" * 64})
            line.nodes[node_of(line, silo)]._work(line, task_of(line, deepcopy(message)))  # type: ignore[arg-type]
            return resealed(message, replace(asked, outcome=sign_outcome(other, key)), key)
        return message

    line = Wire(consortium, study_of(consortium), change=change)
    folder = line.train()
    run = json.loads((folder / "report.json").read_text())["run"]["id"]
    proof = north / "state" / run / "fork.jsonl"
    told = (north / "logs" / "silo.log").read_text()
    assert "ERROR the coordinator has signed two records of round 2: the proof is" in told
    assert told.count("has signed two records of one round of this run") == 1, "nor does it take its leave"
    assert not (folder / "statements" / "north.json").exists()
    two = [read_outcome(text) for text in proof.read_text().splitlines()]
    assert fork(two) is not None and {one.key for one in two} == {public_hex(key)}
    (tmp_path / "fork.jsonl").write_bytes(proof.read_bytes())
    assert guarded(verify, arguments=["check", str(tmp_path / "fork.jsonl")]) == 4
    assert "has signed two records of round 2" in " ".join(capsys.readouterr().out.split())
    first, second = proof.read_text().splitlines()
    (tmp_path / "one.json").write_text(first)
    assert guarded(verify, arguments=["check", str(folder), str(tmp_path / "one.json")]) == 0
    (tmp_path / "one.json").write_text(second)
    assert guarded(verify, arguments=["check", str(folder), str(tmp_path / "one.json")]) == 4


def node_of(line: Wire, silo: str) -> int:
    return next(number for number, name in line.names.items() if name == silo)


def task_of(line: Wire, message: Message) -> Any:
    config = {"study": line.study.text}
    return node_module.Task(message=message, config=config, sealed=node_module._sealed(message))


def test_a_run_folder_whose_records_do_not_fit_the_ledgers_does_not_verify(
    consortium: Consortium, tmp_path: Path
) -> None:
    """Whoever holds the coordinator's key can seal a folder anew; the silos' ledgers speak against it."""
    key = Home.open(consortium.server).key()
    folder = Wire(consortium, study_of(consortium)).train()
    lines = (folder / "outcomes.jsonl").read_text().splitlines()
    said = [read_outcome(line).outcome for line in lines]
    report = json.loads((folder / "report.json").read_text())

    def forged(*outcomes: Outcome) -> str:
        texts: list[str] = []
        for outcome in outcomes:
            prev = hashlib.sha256(texts[-1].encode()).hexdigest() if texts else "0" * 64
            texts.append(sign_outcome(replace(outcome, prev=prev), key))
        return "".join(f"{text}\n" for text in texts)

    changed = replace(said[1], arrived={**said[1].arrived, "east": "a" * 64})
    for text, code in (
        (forged(*said), 0),
        (forged(said[0], changed, said[2]), 4),
        (forged(said[0], said[1]), 4),
        (forged(said[0], said[1], replace(said[2], after="b" * 64)), 4),
        (forged(said[0], said[1], replace(said[2], before="b" * 64)), 4),
        ("", 4),
    ):
        (folder / "outcomes.jsonl").write_text(text)
        RunFolder(path=folder, key=key)._seal(report["run"]["id"], key)
        assert guarded(verify, arguments=["check", str(folder)]) == code, text


def test_a_record_is_read_as_it_was_written_and_every_byte_counts(scaled: Callable[..., int]) -> None:
    said = Outcome(
        run="0" * 32,
        manifest="1" * 64,
        round=2,
        prev="2" * 64,
        before=model_hash(np.zeros(3, np.float32)),
        after=hashlib.sha256(np.float32([1, 2, 3]).tobytes()).hexdigest(),
        arrived={"a": "3" * 64, "b": "4" * 64},
        used=("a", "b"),
    )
    text = sign_outcome(said, STRANGER)
    assert read_outcome(text).outcome == said and read_outcome(text).key == public_hex(STRANGER)
    assert model_hash(np.float32([1, 2, 3])) == said.after
    for place in range(0, len(text), max(1, len(text) // scaled(len(text)))):
        changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        with pytest.raises(VerificationError):
            read_outcome(changed)
    for values in ({"round": 0}, {"round": 1}, {"prev": "0" * 64}, {"used": ("b", "a")}, {"used": ("c",)}, {"run": ""}):
        with pytest.raises(VerificationError):
            read_outcome(sign_outcome(replace(said, **values), STRANGER))
