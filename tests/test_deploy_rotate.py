"""A silo changes its keys: the new ones alone are let in, the ledger goes on, what the old key has signed still holds.

Oracles: `fedsilo-verify` on runs of before and after with the newest roster as pins, the entrance's own headers, and
every signer who has no say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from coordinators import Consortium, copied, found, passphrases, server_, silo
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from enrolled import POLICY, Wire, consortium_of, study_of
from flwr.app import Message
from sites import SILO_WORD, opened
from test_deploy_gateway import Silo as Knocking

import client.cli
import server.cli
from client import handover
from client.enrolment import enrolment, require_enrolled
from client.keys import ledger_key, transport_key
from client.node import Node
from client.running import only_one
from client.silo import Silo
from server.entrance import Entrance, Refused
from server.home import Home
from server.up import Coordinator
from strategies.command import guarded
from strategies.enrolment import fingerprint, read_handover, write_handover
from strategies.errors import ProtocolError, RunError, SettingError, VerificationError
from strategies.manifest import CODE_VERSION, Manifest, Member
from strategies.proof.chain import ChainError
from strategies.proof.entries import public_hex
from strategies.roster import Handover, Roster, new_roster, read_roster
from strategies.roster import Member as Enrolled
from strategies.verify import app as verify

KEY, OLD, NEW, NEWER, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 6))
TIME = "2026-01-31T12:00:00.000Z"


def point(number: int) -> str:
    return "04" + f"{number:0192x}"


NORTH = Enrolled(
    silo="north",
    ledger_key=public_hex(OLD),
    dpo_key="b" * 64,
    ledger_id="c" * 64,
    transport_key=point(1),
    first_key=public_hex(OLD),
)
HANDOVER = Handover(
    silo="north",
    ledger_id=NORTH.ledger_id,
    before=public_hex(OLD),
    ledger_key=public_hex(NEW),
    transport_key=point(2),
)


@pytest.fixture
def roster() -> Roster:
    south = replace(
        NORTH,
        silo="south",
        ledger_key=public_hex(STRANGER),
        first_key=public_hex(STRANGER),
        dpo_key="d" * 64,
        ledger_id="e" * 64,
        transport_key=point(9),
    )
    return new_roster("consortium", KEY, TIME).add(NORTH, KEY, TIME).add(south, KEY, TIME)


# --- the roster ---------------------------------------------------------------------------------------------


def test_a_silo_has_new_keys_and_the_ledger_of_before(roster: Roster) -> None:
    after = roster.rotate(HANDOVER.signed(OLD, NEW), KEY, TIME)
    again = read_roster(after.text, coordinator=public_hex(KEY))
    assert again == after
    now = again.members["north"]
    assert (now.ledger_key, now.transport_key) == (public_hex(NEW), point(2))
    assert (now.ledger_id, now.first_key, now.dpo_key) == (NORTH.ledger_id, NORTH.ledger_key, NORTH.dpo_key)
    assert again.past == (NORTH,)
    assert now.pins() == NORTH.pins(), "the ledger is read from its first key on"
    assert NORTH.ledger_key in again.witnesses(ever=True) - again.witnesses()
    third = replace(HANDOVER, before=public_hex(NEW), ledger_key=public_hex(NEWER), transport_key=point(3))
    last = after.rotate(third.signed(NEW, NEWER), KEY, TIME)
    assert last.members["north"].pins() == NORTH.pins() and len(last.past) == 2


@pytest.mark.parametrize(
    ("asked", "by", "sentence"),
    [
        (HANDOVER, (STRANGER, NEW), "not signed by its ledger key of before"),
        (HANDOVER, (KEY, NEW), "not signed by its ledger key of before"),
        (HANDOVER, (NEW, NEW), "not signed by its ledger key of before"),
        (HANDOVER, (OLD, OLD), "not signed by its ledger key of now"),
        (replace(HANDOVER, before=public_hex(STRANGER)), (STRANGER, NEW), "not in the roster with the ledger and key"),
        (replace(HANDOVER, ledger_id="f" * 64), (OLD, NEW), "not in the roster with the ledger and key"),
        (replace(HANDOVER, silo="west"), (OLD, NEW), "not in the roster with the ledger and key"),
        (replace(HANDOVER, ledger_key=public_hex(STRANGER)), (OLD, STRANGER), "has been that of 'south'"),
        (replace(HANDOVER, transport_key=point(9)), (OLD, NEW), "has been that of 'south'"),
        (replace(HANDOVER, transport_key=point(1)), (OLD, NEW), "has been that of 'north'"),
        (replace(HANDOVER, ledger_key=public_hex(OLD)), (OLD, OLD), "has been that of 'north'"),
        (replace(HANDOVER, ledger_key=public_hex(KEY)), (OLD, KEY), "one key in two places"),
    ],
)
def test_nobody_changes_keys_for_a_silo(
    asked: Handover, by: tuple[Ed25519PrivateKey, Ed25519PrivateKey], sentence: str, roster: Roster
) -> None:
    with pytest.raises(ChainError, match=sentence):
        roster.rotate(asked.signed(*by), KEY, TIME)


def test_a_change_of_keys_is_made_once_and_an_old_key_never_comes_back(roster: Roster) -> None:
    signed = HANDOVER.signed(OLD, NEW)
    after = roster.rotate(signed, KEY, TIME)
    with pytest.raises(ChainError, match="not in the roster with the ledger and key"):
        after.rotate(signed, KEY, TIME)
    back = replace(HANDOVER, before=public_hex(NEW), ledger_key=public_hex(OLD), transport_key=point(3))
    with pytest.raises(ChainError, match="the ledger_key of 'north' has been that of 'north'"):
        after.rotate(back.signed(NEW, OLD), KEY, TIME)
    with pytest.raises(ChainError, match="not signed by the coordinator"):
        roster.rotate(signed, STRANGER, TIME)


def test_every_changed_byte_of_a_change_of_keys_is_seen(roster: Roster, scaled: Callable[..., int]) -> None:
    data = write_handover(HANDOVER.signed(OLD, NEW))
    assert read_handover(data) == HANDOVER.signed(OLD, NEW)
    line = roster.rotate(HANDOVER.signed(OLD, NEW), KEY, TIME).text
    for whole, read, first in ((data, read_handover, 0), (line, read_roster, len(roster.text))):
        for place in range(first, len(whole), max(1, len(whole) // scaled(len(whole)))):
            changed = bytearray(whole)
            changed[place] ^= 1
            with pytest.raises(VerificationError):
                read(bytes(changed))


# --- the commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return found(tmp_path_factory.mktemp("made"), ("north", "south"))


@pytest.fixture
def consortium(tmp_path: Path, made: Consortium) -> Consortium:
    return copied(made, tmp_path)


def ask(consortium: Consortium, name: str) -> tuple[Path, str]:
    """Have a silo ask for new keys."""
    folder, out = consortium.server.parent, consortium.server.parent / f"{name}.rotate.json"
    with passphrases(consortium.credentials):
        asked = silo("enrol", "--silo", str(folder / name), "--rotate", "--out", str(out))
    return out, str(asked["fingerprint"])


def grant(consortium: Consortium, request: Path, read: str) -> dict[str, object]:
    return server_("enrol", str(request), "--rotate", "--server", str(consortium.server), "--fingerprint", read)


def install(consortium: Consortium, name: str, answer: dict[str, object]) -> None:
    own = ("--silo", str(consortium.server.parent / name))
    with passphrases(consortium.credentials):
        silo("enrol", *own, "--install", str(answer["answer"]), "--fingerprint", str(answer["fingerprint"]))


def rotate(consortium: Consortium, name: str) -> None:
    """Change a silo's keys as its people and the coordinator's do."""
    install(consortium, name, grant(consortium, *ask(consortium, name)))


def keys_of(folder: Path) -> tuple[Ed25519PrivateKey, EllipticCurvePrivateKey]:
    return ledger_key(folder / "keys", SILO_WORD), transport_key(folder / "keys", SILO_WORD)


def test_the_gateway_lets_in_the_new_key_alone(consortium: Consortium) -> None:
    folder = consortium.silos[0]
    old, request = keys_of(folder), ask(consortium, "north")
    coordinator = Coordinator(home=Home.open(consortium.server), journal=None)  # type: ignore[arg-type]
    entrance = Entrance(roster=coordinator.silos)

    def knock(key: EllipticCurvePrivateKey) -> str:
        given = Knocking("north", key).headers()
        return entrance.admit({name.encode(): value.encode() for name, value in given.items()})[0]

    assert knock(old[1]) == "north", "what is asked for alone changes nothing"
    answer = grant(consortium, *request)
    with pytest.raises(Refused, match="roster"):
        knock(old[1])
    new = transport_key(folder / "keys" / "next", SILO_WORD)
    assert knock(new) == "north"
    with pytest.raises(Refused, match="roster"):
        knock(generate_private_key(SECP384R1()))
    install(consortium, "north", answer)
    assert public_hex(keys_of(folder)[0]) != public_hex(old[0]) and not (folder / "keys" / "next").exists()
    assert keys_of(folder)[1].private_numbers() == new.private_numbers()


def test_the_ledger_goes_on_under_the_new_key(consortium: Consortium) -> None:
    before = enrolment(consortium.silos[0]).member
    with opened(consortium.silos[0]).ledger() as ledger:
        lines, identity = ledger.export(), ledger.pins
    rotate(consortium, "north")
    after = enrolment(consortium.silos[0])
    assert after.member.ledger_id == before.ledger_id and after.member.ledger_key != before.ledger_key
    with opened(consortium.silos[0]).ledger() as ledger:
        assert ledger.pins == identity and ledger.export()[: len(lines)] == lines
        assert ledger.entries()[-1].kind == "key_rotate" and ledger.key_in_force == after.member.ledger_key
        assert ledger.head().key == after.member.ledger_key
    Node(opened(consortium.silos[0]))
    rotate(consortium, "north")  # and again
    assert enrolment(consortium.silos[0]).member.first_key == before.ledger_key
    south = enrolment(consortium.silos[1]).learn(Home.open(consortium.server).roster().text)
    assert south.roster.members["north"] == enrolment(consortium.silos[0]).member, "the others learn of it"


@pytest.mark.parametrize("step", ["ledger.pem", "transport.pem", "next"])
def test_a_change_that_broke_off_is_ended_by_installing_again(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It breaks before each of the three moves of files that follow the ledger's entry."""
    folder = consortium.silos[0]
    answer = grant(consortium, *ask(consortium, "north"))

    class Killed(BaseException):
        pass

    def breaks(does: Callable[..., object]) -> Callable[..., object]:
        def at(path: Path, *words: object) -> object:
            if path.name == step and path.parent.name in ("next", "keys"):
                raise Killed
            return does(path, *words)

        return at

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", breaks(Path.replace))
        patched.setattr(Path, "rmdir", breaks(Path.rmdir))
        with pytest.raises(Killed):
            install(consortium, "north", answer)
    with opened(folder).ledger() as ledger:
        assert ledger.entries()[-1].kind == "key_rotate"
        if step == "ledger.pem":
            with pytest.raises(SettingError, match="is not the key of this ledger"):
                ledger.head()
            with pytest.raises(SettingError, match="end it with fedsilo-silo enrol --install"):
                Node(opened(folder))
    install(consortium, "north", answer)
    with opened(folder).ledger() as ledger:
        assert [entry.kind for entry in ledger.entries()].count("key_rotate") == 1
    Node(opened(folder))
    assert ask(consortium, "north")[0].exists(), "and another one may follow"


def test_what_may_not_be_is_refused_in_a_sentence(consortium: Consortium, capsys: pytest.CaptureFixture[str]) -> None:
    home, folder = str(consortium.server), consortium.silos[0]
    request, read = ask(consortium, "north")
    again, _ = ask(consortium, "north")
    assert again.read_bytes() == request.read_bytes(), "keys are made once"
    for words, sentence in (
        (["enrol", str(request), "--server", home, "--fingerprint", read], "is no request of an enrolment"),
        (["enrol", str(folder.parent / "north.request.json"), "--rotate", "--server", home], "no request to change"),
        (["enrol", str(request), "--rotate", "--server", home, "--fingerprint", "0" * 40], "changed on its way"),
        (["enrol", "--rotate", "--server", home], "give the REQUEST"),
        (["enrol", "--rotate", "--remove", "north", "--server", home], "give the REQUEST"),
    ):
        assert guarded(server.cli.app, arguments=words) != 0
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert Home.open(consortium.server).roster().members["north"] == enrolment(folder).member, "nothing was changed"
    answer = grant(consortium, request, read)
    assert grant(consortium, request, read)["fingerprint"] == answer["fingerprint"], "an answer may be asked for again"
    words = ["enrol", "--silo", str(folder), "--install", str(answer["answer"])]
    with only_one(folder), passphrases(consortium.credentials):
        assert guarded(client.cli.app, arguments=[*words, "--fingerprint", str(answer["fingerprint"])]) == 2
    assert "runs already; use fedsilo-silo stop" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(VerificationError, match="'north' has other keys in the roster by now"):
        enrolment(folder).learn(Home.open(consortium.server).roster().text)
    assert fingerprint(request.read_bytes()) == read


# --- runs ---------------------------------------------------------------------------------------------------


def test_runs_of_before_and_after_verify_and_one_that_spans_it_ends_cleanly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"study__rounds": 3, "training__steps": 2, "study__name": "rotated", "privacy__epsilon": 1.0}
    values["cohort__round_timeout_s"] = 30
    consortium = consortium_of(tmp_path, POLICY, **values)
    study, north = study_of(consortium), consortium.silos[1]
    before = Wire(consortium, study).train()

    class Killed(BaseException):
        pass

    def breaks(_: str, message: Message) -> Message:
        if message.metadata.group_id == "2":
            raise Killed
        return message

    spanning = Wire(consortium, study, change=breaks)
    with pytest.raises(Killed):
        spanning.train()
    (broken,) = [path for path in before.parent.iterdir() if path not in (before, before.parent / "coordinator")]
    rotate(consortium, "north")
    with pytest.raises(RunError, match="'north' has other keys now than the run"):
        Wire(consortium, study).train(resume=str(broken))
    manifest = Manifest.from_json((broken / "manifest.json").read_text())
    with pytest.raises(ProtocolError, match="'north' of the run is not in the roster with this ledger and key"):
        require_enrolled(manifest, north)
    after = Wire(consortium, study).train()
    assert before != after and json.loads((after / "report.json").read_text())["run"]["status"] == "complete"
    statements = [json.loads((run / "statements" / "north.json").read_text()) for run in (before, after)]
    assert statements[0]["key"] != statements[1]["key"]
    assert statements[0]["statement"]["ledger_id"] == statements[1]["statement"]["ledger_id"]
    pins = ["--pin", str(consortium.server / "roster.jsonl")]
    with passphrases(consortium.credentials):
        silo("export", "--silo", str(north), "--out", str(tmp_path / "north.jsonl"))
    words = ["check", str(before), str(after), str(tmp_path / "north.jsonl"), *pins]
    code = guarded(verify, arguments=words)
    assert code == 0, capsys.readouterr().out
    lines = (tmp_path / "north.jsonl").read_bytes().splitlines(keepends=True)
    (place,) = [number for number, line in enumerate(lines) if b'"key_rotate"' in line]
    (tmp_path / "north.jsonl").write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    assert guarded(verify, arguments=words) == 4, "without its line the new key is nobody's"


def test_a_coordinators_own_silo_under_an_approved_name_is_a_stranger(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is not an identity: whoever leaves and comes back with another ledger was not approved."""
    from test_deploy_enrol import MASKED

    import client.enrolment

    north = Silo.open(consortium.silos[0])
    known = enrolment(north.folder).learn(Home.open(consortium.server).roster().text).roster
    members = [
        Member(silo=m.silo, weight=1.0, ledger_id=m.ledger_id, ledger_key=m.ledger_key) for m in known.members.values()
    ]
    monkeypatch.setattr(client.enrolment, "approved_roster", lambda *_: known.hash)
    honest = Manifest(run="0" * 32, study="", code=CODE_VERSION, layout="", roster=tuple(members))
    client.enrolment.require_known(honest, MASKED, north)
    swapped = replace(honest, roster=(members[0], replace(members[1], ledger_id="f" * 64)))
    with pytest.raises(ProtocolError, match="'south' of the run joined the roster after"):
        client.enrolment.require_known(swapped, MASKED, north)


def test_another_coordinator_cannot_have_a_silo_change_its_keys(
    consortium: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have both of the silo's requests, which are public: nothing is touched for its answer."""
    other, folder = tmp_path / "other", consortium.silos[0]
    server_("init", str(other), "--host", "127.0.0.1")
    first = folder.parent / "north.request.json"
    read = ("--server", str(other), "--fingerprint", fingerprint(first.read_bytes()))
    server_("enrol", str(first), *read, "--out", str(tmp_path / "first.json"))
    request, heard = ask(consortium, "north")
    out = str(tmp_path / "second.json")
    words = ["enrol", str(request), "--rotate", "--server", str(other), "--fingerprint", heard, "--out", out]
    answer = server_(*words)
    with opened(folder).ledger() as ledger:
        lines = ledger.export()
    typed = ["enrol", "--silo", str(folder), "--install", out, "--fingerprint", str(answer["fingerprint"])]
    with passphrases(consortium.credentials):
        assert guarded(client.cli.app, arguments=typed) == 2
    assert "pins another coordinator" in " ".join(capsys.readouterr().err.split())
    with opened(folder).ledger() as ledger:
        assert ledger.export() == lines
    assert (folder / "keys" / "next" / "ledger.pem").exists()
    Node(opened(folder))


def test_a_node_with_other_keys_than_the_roster_does_not_start(consortium: Consortium) -> None:
    request = ask(consortium, "north")
    Node(opened(consortium.silos[0]))  # what is asked for alone changes nothing
    grant(consortium, *request)
    handover.take_over(opened(consortium.silos[0]))  # as nobody does: without its answer
    with pytest.raises(SettingError, match="end it with fedsilo-silo enrol --install"):
        Node(opened(consortium.silos[0]))
