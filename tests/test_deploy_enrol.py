"""A coordinator is made, silos ask, are let in and pin what they were answered; anything that was changed is refused.

Oracles: OpenSSL through Python's ssl module for the certificates, and every changed byte of both files.
"""

from __future__ import annotations

import json
import ssl
import stat
from pathlib import Path

import pytest
from coordinators import Consortium, copied, found, passphrases, server_, silo
from cryptography import x509
from sites import TEXT

import client.cli
import client.enrolment
import server.cli
from client.enrolment import enrolment, require_enrolled, require_known
from client.models.base import MODELS
from client.silo import Silo
from server.authority import certify
from server.home import Home
from strategies.bundle import bundle, digest
from strategies.command import guarded
from strategies.enrolment import fingerprint, read_answer, read_request
from strategies.errors import FedsiloError, ProtocolError, VerificationError
from strategies.manifest import CODE_VERSION, Manifest, Member
from strategies.spec import Registries
from strategies.study import Study, override


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return found(tmp_path_factory.mktemp("made"), ("north", "south"))


@pytest.fixture
def consortium(tmp_path: Path, made: Consortium) -> Consortium:
    return copied(made, tmp_path)


def test_a_coordinator_and_two_silos_know_each_other(consortium: Consortium) -> None:
    home = Home.open(consortium.server)
    roster = home.roster()
    assert sorted(roster.members) == ["north", "south"] and roster.seq == 3
    north, south = (enrolment(folder) for folder in consortium.silos)
    assert north.answer.coordinator == south.answer.coordinator == roster.key
    assert north.roster.seq == 2 and south.roster.seq == 3, "each knows the roster of its own day"
    assert north.learn(roster.text).roster.hash == south.roster.hash == roster.hash
    assert enrolment(consortium.silos[0]).roster.hash == roster.hash, "and keeps the longer one"
    assert f'server = "127.0.0.1:{consortium.port}"' in (consortium.silos[0] / "silo.toml").read_text()
    assert north.answer.bundle == digest()


def test_nobody_else_can_read_what_the_coordinator_keeps(consortium: Consortium) -> None:
    for path in consortium.server.rglob("*"):
        if path.is_file() and (path.suffix in (".key", ".secret") or path.name == "key.pem"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert len(list((consortium.server / "keys").glob("*.secret"))) == 2
    (consortium.server / "keys" / "loopback.secret").chmod(0o640)
    with pytest.raises(FedsiloError, match="chmod 0600"):
        Home.open(consortium.server).secret("loopback")


def test_the_certificates_hold_for_a_reader_who_knows_the_authority_alone(consortium: Consortium) -> None:
    home = consortium.server
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(home / "server.crt", home / "keys" / "server.key")
    authority = x509.load_pem_x509_certificate((home / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((home / "server.crt").read_bytes())
    leaf.verify_directly_issued_by(authority)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not certify(home, ["127.0.0.1"]), "a good one is kept"
    assert certify(home, ["127.0.0.1", "fed.example.org"]), "other names ask for another one"
    leaf = x509.load_pem_x509_certificate((home / "server.crt").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]


def test_every_changed_byte_of_a_request_or_an_answer_is_seen(consortium: Consortium) -> None:
    parent = consortium.silos[0].parent
    for path, read in ((parent / "north.request.json", read_request), (parent / "north.answer.json", read_answer)):
        data = path.read_bytes()
        read(data)
        for place in range(0, len(data), 7):
            changed = bytearray(data)
            changed[place] ^= 1
            assert fingerprint(bytes(changed)) != fingerprint(data)
            with pytest.raises(VerificationError):
                read(bytes(changed))


def test_a_fingerprint_that_does_not_fit_adds_and_pins_nothing(
    consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, wrong = consortium.silos[0].parent, "0000 " * 10
    words = ["enrol", str(parent / "north.request.json"), "--server", str(consortium.server), "--fingerprint", wrong]
    before = Home.open(consortium.server).roster().hash
    assert guarded(server.cli.app, arguments=words) == 2
    assert "was changed on its way" in capsys.readouterr().err
    assert Home.open(consortium.server).roster().hash == before
    with passphrases(consortium.credentials):
        words = ["enrol", "--silo", str(consortium.silos[0]), "--install", str(parent / "south.answer.json")]
        assert guarded(client.cli.app, arguments=[*words, "--fingerprint", wrong]) == 2


def test_a_second_coordinator_cannot_take_a_silo_over(
    consortium: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    server_("init", str(other), "--host", "127.0.0.1")
    request = tmp_path / "north.request.json"
    read = fingerprint(request.read_bytes())
    out = tmp_path / "other.json"
    answer = server_("enrol", str(request), "--server", str(other), "--fingerprint", read, "--out", str(out))
    words = ["enrol", "--silo", str(consortium.silos[0]), "--install", str(out)]
    with passphrases(consortium.credentials):
        assert guarded(client.cli.app, arguments=[*words, "--fingerprint", str(answer["fingerprint"])]) == 2
    assert "pins another coordinator" in capsys.readouterr().err


def test_a_removed_silo_is_told_so_and_cannot_come_back(
    consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(consortium.server)
    server_("enrol", "--server", home, "--remove", "north", "--reason", "left")
    roster = Home.open(consortium.server).roster()
    assert sorted(roster.members) == ["south"]
    with pytest.raises(VerificationError, match="not in the coordinator's roster any more"):
        enrolment(consortium.silos[0]).learn(roster.text)
    request = consortium.silos[0].parent / "north.request.json"
    words = ["enrol", str(request), "--server", home, "--fingerprint", fingerprint(request.read_bytes())]
    assert guarded(server.cli.app, arguments=words) == 4
    assert "has been that of 'north'" in capsys.readouterr().err


def test_a_manifest_beside_the_roster_is_no_manifest(consortium: Consortium) -> None:
    known = enrolment(consortium.silos[1])

    def manifest(**changed: str) -> Manifest:
        members = [
            Member(silo=m.silo, weight=1.0, ledger_id=m.ledger_id, ledger_key=m.ledger_key)
            for m in known.roster.members.values()
        ]
        members[0] = Member(**{**members[0].__dict__, **changed})
        return Manifest(
            run="0" * 32,
            study="0" * 64,
            code=CODE_VERSION,
            layout="",
            roster=tuple(members),
            coordinator=known.roster.key,
        )

    require_enrolled(manifest(), consortium.silos[1])
    for changed in ({"silo": "rogue"}, {"ledger_id": "0" * 64}, {"ledger_key": "0" * 64}):
        with pytest.raises(ProtocolError, match="not in the roster"):
            require_enrolled(manifest(**changed), consortium.silos[1])
    other = Manifest(**{**manifest().__dict__, "coordinator": "0" * 64})
    with pytest.raises(ProtocolError, match="coordinator is not the pinned one"):
        require_enrolled(other, consortium.silos[1])


MASKED = Study.parse(override(TEXT, {"secagg.enabled": True, "data.test_share": 0}), Registries(models=MODELS))


def test_a_masked_study_is_for_the_silos_that_its_officer_saw(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silos that a coordinator adds afterwards could be its own, and a sum over them and one silo is that silo's."""
    north = Silo.open(consortium.silos[0])
    before = enrolment(north.folder).roster
    after = enrolment(north.folder).learn(Home.open(consortium.server).roster().text).roster
    members = [
        Member(silo=m.silo, weight=1.0, ledger_id=m.ledger_id, ledger_key=m.ledger_key) for m in after.members.values()
    ]
    run = Manifest(run="0" * 32, study="", code="", layout="", roster=tuple(members), coordinator=after.key)
    require_enrolled(run, north.folder)
    for hash, sentence in ((before.hash, "'south' of the run joined the roster after"), ("0" * 64, "approve it again")):
        monkeypatch.setattr(client.enrolment, "approved_roster", lambda *_, hash=hash: hash)
        with pytest.raises(ProtocolError, match=sentence):
            require_known(run, MASKED, north)
    for approved in (after.hash, None):  # None: the policy asks for no approval
        monkeypatch.setattr(client.enrolment, "approved_roster", lambda *_, hash=approved: hash)
        require_known(run, MASKED, north)
    (north.folder / "coordinator" / "answer.json").unlink()
    with pytest.raises(ProtocolError, match="enrol it with its coordinator"):
        require_known(run, MASKED, north)
    require_known(run, Study.parse(TEXT, Registries(models=MODELS)), north)


def test_the_bundle_is_the_same_bytes_everywhere_and_holds_no_code() -> None:
    import io
    import zipfile

    assert bundle() == bundle()
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]


def test_json_prints_one_object(consortium: Consortium) -> None:
    with passphrases(consortium.credentials):
        facts = silo("enrol", "--silo", str(consortium.silos[0]), "--out", str(consortium.server / "again.json"))
    assert set(facts) == {"silo", "request", "fingerprint"}
    assert json.loads((consortium.server / "again.json").read_text())["request"]["member"]["silo"] == "north"
