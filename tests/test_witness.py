"""Laws of the witnesses, through real rounds over the inline grid: a ledger that was rolled back or copied freezes before a
record is read, whatever the coordinator offers; a silo that goes on with two ledgers proves it against itself.

Oracles: copies of ledger files as they stood between rounds; the order of entries and of reads; `fedsilo-verify check`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from ledgers import forget
from test_round import STUDY, manifest, request
from test_server import STUDY as SERVED
from test_server import TEXT, lines_of
from witnesses import COORDINATOR, PEER, witnessed

from client import closing
from client import round as local_round
from client.app import app as client_app
from client.silo import Silo
from server.app import app as server_app
from server.witness import Witness
from simulations.engines import inline
from simulations.engines.inline import InlineGrid
from simulations.silos import REGISTRIES, make_silos
from simulations.sources import read_dataset
from strategies import wire
from strategies.errors import LedgerError, ProtocolError
from strategies.manifest import Manifest
from strategies.proof.check import check
from strategies.proof.heads import SignedHead, countersign, sign_head
from strategies.proof.lists import read_list, read_receipts, receipts_text, sign_list
from strategies.proof.trust import Trust
from strategies.study import Study, override

STRANGER = Ed25519PrivateKey.from_private_bytes(b"z" * 32)
FRAME = read_dataset(SERVED, Path())


def served(folders: list[Path], out: Path, study: Study = SERVED) -> Path:
    """A whole run over silo folders; return the run folder."""
    state = inline.run(
        server_app,
        client_app,
        silos=folders,
        dropout=study.file.simulation.dropout,
        seed=1,
        run_config={"study": study.text, "out": str(out), "test": ""},
    )
    return Path(str(state.config_records["run"]["folder"]))


def before_round(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something between two rounds."""
    push, done = InlineGrid.push_messages, []

    def spied(self: InlineGrid, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages[0].metadata.group_id == str(number) and not done:
            done.append(act())
        return push(self, messages)

    monkeypatch.setattr(InlineGrid, "push_messages", spied)


def copy_of(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "ledger.db", to / "ledger.db")


def put_back(kept: Path, folder: Path) -> None:
    shutil.copy(kept / "ledger.db", folder / "ledger.db")
    forget()  # as after a restart


def frozen(folder: Path) -> str | None:
    forget()
    with Silo.open(folder).ledger() as ledger:
        return ledger.frozen


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The silos whose records are read for training."""
    seen: list[str] = []
    train = local_round.read_records

    def spied(silo: Silo, study: Study) -> Any:
        seen.append(silo.name)
        return train(silo, study)

    monkeypatch.setattr(local_round, "read_records", spied)
    return seen


# --- rolled back in the middle of a run, and between runs ----------------------------------------------------

WITHIN = [
    (early, late) for late in range(2, 7) for early in range(1, late)
]  # state before round `early`, used in `late`


def test_a_ledger_that_is_rolled_back_within_a_run_freezes_before_a_record_is_read(
    tmp_path: Path, scaled: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = WITHIN[:: max(1, len(WITHIN) // scaled(15, 3))]
    for number, (early, late) in enumerate(cases):
        folders = make_silos(SERVED, FRAME, tmp_path / f"{number}")
        kept, seen = tmp_path / f"{number}" / "kept", reads(monkeypatch)
        with monkeypatch.context() as patch:
            before_round(early, lambda folder=folders[1], kept=kept: copy_of(folder, kept), patch)
            before_round(
                late,
                lambda folder=folders[1], kept=kept, seen=seen: (put_back(kept, folder), seen.clear()),  # type: ignore[misc]
                patch,
            )
            folder = served(folders, tmp_path / f"{number}" / "runs")
        report = json.loads((folder / "report.json").read_text())
        row = next(silo for silo in report["silos"] if silo["name"] == "silo-2")
        assert row["refusal"] == "ledger", (early, late)
        assert "silo-2" not in seen and frozen(folders[1]), (early, late)
        assert [line["dropped"] for line in lines_of(folder)][late - 1] == 1 and len(lines_of(folder)) == 6
        others = [silo for silo in report["silos"] if silo["name"] != "silo-2"]
        assert all(silo["refusal"] is None and silo["statement"] for silo in others)


def test_a_ledger_that_is_rolled_back_between_runs_freezes_in_the_next_first_round(
    tmp_path: Path, scaled: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(scaled(8, 2)):
        folders = make_silos(SERVED, FRAME, tmp_path / f"{number}")
        kept = tmp_path / f"{number}" / "kept"
        with monkeypatch.context() as patch:
            before_round(1 + number % 6, lambda folder=folders[0], kept=kept: copy_of(folder, kept), patch)
            served(folders, tmp_path / f"{number}" / "runs")
        put_back(kept, folders[0])
        again = Study.parse(override(TEXT, {"study.rounds": 1}), REGISTRIES)
        folder = served(folders, tmp_path / f"{number}" / "runs", again)
        report = json.loads((folder / "report.json").read_text())
        assert {silo["name"]: silo["refusal"] for silo in report["silos"]}["silo-1"] == "ledger"
        assert frozen(folders[0])


@pytest.mark.parametrize("copied", ["before the run", "in the run"])
def test_a_clone_that_checks_nothing_proves_itself_and_takes_no_further_part(
    copied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both copies are extended: the one that answers run 1, and its copy of before, which skips its own checks."""
    folders = make_silos(SERVED, FRAME, tmp_path)
    kept, out = tmp_path / "kept", tmp_path / "runs"
    copy_of(folders[2], kept)
    with monkeypatch.context() as patch:
        if copied == "in the run":
            before_round(2, lambda: copy_of(folders[2], kept), patch)
        served(folders, out)
    put_back(kept, folders[2])
    require = local_round.require_newest

    def cheating(evidence: Any, agreed: Manifest, silo: Silo, *rest: Any) -> None:
        if silo.name != "silo-3":
            require(evidence, agreed, silo, *rest)

    def unwitnessed(self: Any, **fields: Any) -> int:
        return reserve(self, **(fields | ({"receipts": ()} if self.pins.ledger_id == cheat else {})))

    reserve = local_round.Ledger.reserve
    with Silo.open(folders[2]).ledger() as ledger:
        cheat = ledger.pins.ledger_id
    monkeypatch.setattr(local_round, "require_newest", cheating)
    monkeypatch.setattr(local_round.Ledger, "reserve", unwitnessed)
    folder = served(folders, out)
    report = json.loads((folder / "report.json").read_text())
    refusals = {silo["name"]: silo["refusal"] for silo in report["silos"]}
    if copied == "before the run":  # its first head already stands where another one was seen
        assert "silo-3" not in refusals and report["never_joined"] == ["ledger"]
    else:  # until a head of the copy stands where one of the first run stood
        assert refusals == {"silo-1": None, "silo-2": None, "silo-3": "ledger", "silo-4": None}
    proof = (folder / "equivocation-silo-3.json").read_bytes()
    found = check({"proof": proof}, Trust())
    assert [row["ledger_id"] for row in found.equivocations] == [cheat]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [row["ledger_id"] for row in check({"run": files}, Trust()).equivocations] == [cheat]


def test_dropouts_leave_no_silo_without_a_peers_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all replies are lost; where those of all peers were, the coordinator asks for signatures by themselves."""
    study = Study.parse(override(TEXT, {"simulation.dropout": 0.6, "study.rounds": 12}), REGISTRIES)
    asked: list[str] = []
    push = InlineGrid.push_messages

    def spied(self: InlineGrid, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        asked.extend(message.metadata.message_type for message in messages)
        return push(self, messages)

    monkeypatch.setattr(InlineGrid, "push_messages", spied)
    folder = served(make_silos(study, FRAME, tmp_path), tmp_path / "runs", study)
    report = json.loads((folder / "report.json").read_text())
    assert [silo["refusal"] for silo in report["silos"]] == [None] * 4 and "query.attest" in asked
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert check({"run": files}, Trust()).problems == []


def test_a_silo_whose_peers_have_all_been_away_waits_and_is_not_out_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In round 1 only silo-1 is heard and nobody attests, so no peer has signed its head; asked in round 2, it would
    refuse, and a silo that has refused is not asked again."""
    study = Study.parse(override(TEXT, {"study.rounds": 3}), REGISTRIES)
    answer, asked = InlineGrid._answer, dict[str, list[int]]()

    def lossy(self: InlineGrid, message: Message) -> Message:
        facts = message.metadata
        if facts.message_type == "train":
            asked.setdefault(facts.group_id, []).append(facts.dst_node_id - 1)
        reply = answer(self, message)
        lost = facts.message_type == "query.attest" or (facts.group_id == "1" and facts.dst_node_id > 2)
        return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason="lost"), reply_to=message) if lost else reply

    monkeypatch.setattr(InlineGrid, "_answer", lossy)
    folder = served(make_silos(study, FRAME, tmp_path), tmp_path / "runs", study)
    assert asked == {"1": [1, 2, 3, 4], "2": [2, 3, 4], "3": [1, 2, 3, 4]}
    report = json.loads((folder / "report.json").read_text())
    assert [silo["refusal"] for silo in report["silos"]] == [None] * 4
    assert [line["dropped"] for line in report["rounds"]] == [3, 1, 0]


# --- what a coordinator may offer ---------------------------------------------------------------------------


@pytest.fixture
def silo(tmp_path: Path) -> Silo:
    """A silo that has trained round 1, with the server's acknowledgement to come."""
    frame = read_dataset(STUDY, Path())
    silo = Silo.open(make_silos(STUDY, frame, tmp_path)[0])
    job = local_round.prepare(witnessed(request(), silo), STUDY, silo)
    assert isinstance(job, local_round.Job)
    local_round.finish(job, local_round.train([job])[0])
    return silo


def own_head(silo: Silo) -> SignedHead:
    with silo.ledger() as ledger:
        return ledger.head()


def offer(silo: Silo, **how: Any) -> wire.Train:
    """Round 2, honest but for `how`: head, list key, round, run, receipts."""
    message = witnessed(request(2), silo)
    agreed = Manifest.from_json(message.manifest)
    head = how.get("head", own_head(silo))
    text = sign_list(
        how.get("run", agreed.run), how.get("round", 2), how.get("heads", {silo.name: head}), how.get("by", COORDINATOR)
    )
    receipts = how.get("receipts", (countersign(head, COORDINATOR), countersign(head, PEER)))
    return replace(message, heads=text, receipts=receipts_text(receipts))


def first_head(silo: Silo) -> SignedHead:
    """The head of before round 1, as the request of round 1 listed it."""
    with silo.ledger() as ledger:
        entry = ledger.entry(run=Manifest.from_json(manifest()).run, round=1, kind="reserve")
    assert entry is not None
    return read_receipts(
        receipts_text(())
        if not entry.body["receipts"]
        else json.dumps(entry.body["receipts"], sort_keys=True, separators=(",", ":"))
    )[0].head


OLD_OR_FORGED: dict[str, tuple[Callable[[Silo], wire.Train], str]] = {
    "nothing": (lambda silo: replace(offer(silo), heads="", receipts=""), "cannot be read"),
    "no receipt": (lambda silo: offer(silo, receipts=()), "no receipt of the head"),
    "no peer": (lambda silo: offer(silo, receipts=(countersign(own_head(silo), COORDINATOR),)), "no peer's receipt"),
    "only a peer": (lambda silo: offer(silo, receipts=(countersign(own_head(silo), PEER),)), "no receipt of the head"),
    "an old list": (lambda silo: offer(silo, head=first_head(silo)), "an older head"),
    "an old peer": (
        lambda silo: offer(
            silo,
            receipts=(
                countersign(own_head(silo), COORDINATOR),
                countersign(replace_position(silo), PEER),
            ),
        ),
        "no peer's receipt|not of this ledger",
    ),
    "a stranger's receipt": (
        lambda silo: offer(silo, receipts=(countersign(own_head(silo), STRANGER),)),
        "somebody who is not in this run",
    ),
    "a stranger's list": (lambda silo: offer(silo, by=STRANGER), "not signed by the coordinator"),
    "another round": (lambda silo: offer(silo, round=1), "another run or round"),
    "another run": (lambda silo: offer(silo, run="f" * 32), "another run or round"),
    "a list without us": (lambda silo: offer(silo, heads={}), "does not name this silo's ledger"),
    "a reply that never was": (lambda silo: replace(offer(silo), received=3), "knows better"),
    "a forged head": (
        lambda silo: offer(silo, head=sign_head(replace(own_head(silo).head, hash="0" * 64), STRANGER)),
        "not of this ledger",
    ),
}


def replace_position(silo: Silo) -> SignedHead:
    """A head of before the first list: the genesis."""
    with silo.ledger() as ledger:
        chain = ledger._book.view()
        head = replace(chain.head(), seq=1, hash=chain._hashes[1], spent={})
        return sign_head(head, ledger._book.key(chain))


@pytest.mark.parametrize("what", OLD_OR_FORGED)
def test_old_missing_and_forged_evidence_is_refused_and_freezes_nothing(
    what: str, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, sentence = OLD_OR_FORGED[what]
    message = make(silo)
    seen, before = reads(monkeypatch), own_head(silo).head
    with pytest.raises(ProtocolError, match=sentence):
        local_round.prepare(message, STUDY, silo)
    assert seen == [] and own_head(silo).head == before
    assert isinstance(local_round.prepare(offer(silo), STUDY, silo), local_round.Job)  # the honest one is taken


@pytest.mark.parametrize("witness", [COORDINATOR, PEER], ids=["coordinator", "peer"])
def test_one_honest_witness_is_enough(witness: Ed25519PrivateKey, silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that the ledger lacks, signed by its own key, is shown by one of the two; the other knows nothing of it."""
    with silo.ledger() as ledger:
        chain = ledger._book.view()
        lost = sign_head(replace(chain.head(), seq=chain.seq + 5, hash="9" * 64), ledger._book.key(chain))
    honest = own_head(silo)
    receipts = (countersign(honest, COORDINATOR), countersign(honest, PEER), countersign(lost, witness))
    message, seen = offer(silo, receipts=receipts), reads(monkeypatch)
    with pytest.raises(LedgerError, match="rolled back or copied"):
        local_round.prepare(message, STUDY, silo)
    assert seen == [] and frozen(silo.folder)
    with silo.ledger() as ledger, pytest.raises(LedgerError):
        ledger.head()


def test_a_peer_does_not_sign_what_contradicts_what_it_saw(silo: Silo) -> None:
    """The peer of this test is the silo itself: it is shown two heads of silo-2 at one position."""

    def shown(seq: int, hash: str) -> dict[str, str]:
        head = sign_head(replace(own_head(silo).head, ledger_id="f" * 64, seq=seq, hash=hash, spent={}), PEER)
        agreed = witnessed(request(2), silo).manifest
        run = Manifest.from_json(agreed).run
        text = sign_list(run, 2, {silo.name: own_head(silo), "silo-2": head}, COORDINATOR)
        reply = closing.attest(wire.Attest(manifest=agreed, heads=text), STUDY, silo)
        signatures: dict[str, str] = json.loads(reply.countersigned)
        for signature in signatures.values():
            receipt = read_receipts(
                receipts_text((replace(countersign(head, PEER), witness=own_head(silo).key, signature=signature),))
            )
            assert receipt[0].head == read_list(text).heads["silo-2"]
        return signatures

    assert set(shown(7, "a" * 64)) == {"silo-2"}
    assert shown(7, "b" * 64) == {} and shown(6, "c" * 64) == {}
    assert set(shown(7, "a" * 64)) == set(shown(9, "d" * 64)) == {"silo-2"}
    assert "was rolled back or copied" in (silo.folder / "logs" / "silo.log").read_text()


# --- the coordinator's store --------------------------------------------------------------------------------


def test_a_coordinator_keeps_heads_over_runs_and_hands_back_the_highest(silo: Silo, tmp_path: Path) -> None:
    head = own_head(silo)
    text = head.to_bytes().decode()
    first = Witness(COORDINATOR, tmp_path / "c")
    (tmp_path / "c").mkdir()
    first.welcome("silo-1", text)
    with silo.ledger() as ledger:
        key = ledger._book.key(ledger._book.view())
    second = Witness(COORDINATOR, tmp_path / "c")
    older = sign_head(replace(head.head, seq=head.head.seq - 1, hash="7" * 64), key)
    second.welcome("silo-1", older.to_bytes().decode())
    agreed = Manifest.from_json(witnessed(request(), silo).manifest)
    assert read_list(second.list_of(agreed, 1)).heads == {"silo-1": head}
    fork = sign_head(replace(head.head, hash="8" * 64), key)
    with pytest.raises(ProtocolError, match="keeps its ledger twice"):
        second.welcome("silo-1", fork.to_bytes().decode())
    (path,) = (tmp_path / "c").glob("equivocation-*.json")
    assert check({"p": path.read_bytes()}, Trust()).equivocations and set(second.proofs) == {"silo-1"}
    for wrong in ("", "{}", text[:-2]):
        with pytest.raises(ProtocolError, match="sends no head"):
            second.welcome("silo-2", wrong)
