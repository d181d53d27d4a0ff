"""Laws of `fedsilo-verify check`: what an honest run leaves passes; a changed byte, a file too many or too few, and a
folder signed anew by somebody else fail; nothing is concluded from what is not known.

Oracles: hashlib, dp-accounting through `strategies.privacy.accountant` on events that are written here, files changed
byte by byte. The folder is that of a real run over simulated silos.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_server import STUDY, run

from client.silo import Silo
from client.training.second_opinion import require_agreement
from server.folder import RunFolder
from strategies.command import guarded
from strategies.errors import AccountingError, ProtocolError
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Exact, Gaussian
from strategies.proof.canonical import dump
from strategies.proof.check import Given, check, kind_of
from strategies.proof.entries import Entry, public_hex, read
from strategies.proof.findings import Findings
from strategies.proof.heads import Receipt, countersign, equivocation, sign_head
from strategies.proof.seal import NAME
from strategies.proof.trust import Trust, read_trust
from strategies.statement import read_statement
from strategies.verify import app

STRANGER = Ed25519PrivateKey.from_private_bytes(b"x" * 32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Silo]]:
    """A real run folder, and the silos of the run."""
    patch = pytest.MonkeyPatch()
    for name in ("FEDSILO_SILO", "FEDSILO_SILOS"):
        patch.delenv(name, raising=False)
    return run(tmp_path_factory.mktemp("verify"), replace(STUDY))


@pytest.fixture
def files(finished: tuple[Path, list[Silo]]) -> dict[str, bytes]:
    """The folder's files by path."""
    folder = finished[0]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trust(finished: tuple[Path, list[Silo]]) -> Trust:
    """The coordinator and all silos pinned."""
    folder, silos = finished
    found = read_trust((folder.parent / "coordinator" / "pins.json").read_bytes())
    for silo in silos:
        found = found.and_of(read_trust((silo.folder / "keys" / "pin.json").read_bytes()))
    return found


def sentences(found: Findings) -> list[str]:
    return [problem.sentence for problem in found.problems]


def one(name: str, content: Given, trust: Trust = Trust()) -> Findings:  # noqa: B008 - a frozen value
    return check({name: content}, trust)


def test_an_honest_run_passes_pinned_and_not(files: dict[str, bytes], trust: Trust) -> None:
    found = one("run", files, trust)
    assert sentences(found) == [] and not any("not pinned" in note for note in found.notes)
    events = STUDY.total_events()
    assert [(row["silo"], row["epsilon"]) for row in found.roots] == [
        (f"silo-{n}", epsilon(events, 1e-5)) for n in (1, 2, 3, 4)
    ]
    assert found.open_reserves == [] and found.equivocations == []
    open_ = one("run", files)
    assert sentences(open_) == []
    assert "keys are not pinned: whoever made this file could have signed it anew" in open_.notes


def test_any_changed_byte_of_any_file_fails(files: dict[str, bytes], full_tier: bool) -> None:
    """At the full tier all bytes of the study and a statement and a hundred of each other file; else four; unpinned."""
    chance = random.Random(5)
    for name, data in files.items():
        count = 100 if full_tier else 4
        if full_tier and name in ("study.toml", "statements/silo-1.json"):
            count = len(data)
        places = chance.sample(range(len(data)), min(len(data), count))
        for place in places:
            changed = data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
            # the seal is read first and sees it; what stands behind it is asked in the next test
            assert one("run", {**files, name: changed}).problems, (name, place)


def test_any_changed_byte_of_what_a_silo_signed_fails_alone(
    files: dict[str, bytes], scaled: Callable[..., int], full_tier: bool
) -> None:
    chance = random.Random(6)
    for name in ("statements/silo-1.json", "statements/silo-1.ledger.jsonl", "receipts.jsonl"):
        data = files[name]
        count = len(data) if full_tier and name.endswith(".json") else scaled(400)
        for place in chance.sample(range(len(data)), min(count, len(data))):
            changed = data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
            assert one(name, changed).problems, (name, place)


@pytest.mark.parametrize(
    "name", ["report.json", "study.toml", "metrics.jsonl", "statements/silo-2.json", "receipts.jsonl", NAME]
)
def test_a_file_that_is_missing_or_added_is_seen(name: str, files: dict[str, bytes]) -> None:
    assert one("run", {key: value for key, value in files.items() if key != name}).problems
    assert one("run", {**files, f"{name}.more": b"{}"}).problems


def resealed(
    folder: Path, files: dict[str, bytes], change: dict[str, bytes], key: Ed25519PrivateKey
) -> dict[str, bytes]:
    """The folder with other bytes, sealed anew: what a coordinator that lies can do with its own key."""
    folder.mkdir()
    for name, data in {**files, **change}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    facts = json.loads({**files, **change}["report.json"])
    RunFolder(path=folder)._seal(facts["run"]["id"], key)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_coordinator_cannot_change_what_silos_have_signed(
    files: dict[str, bytes], finished: tuple[Path, list[Silo]], tmp_path: Path, trust: Trust
) -> None:
    """The seal is made anew with the true key: what is not as the silos say is found all the same."""
    from server.identity import coordinator_key

    key = coordinator_key(finished[0].parent / "coordinator")
    report = json.loads(files["report.json"])

    def changed_report(change: Callable[[dict[str, Any]], None]) -> bytes:
        value = json.loads(json.dumps(report))
        change(value)
        return json.dumps(value).encode()

    lines = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    lower = [{**line, "epsilon": {**line["epsilon"], "silo-1": 0.01}} if line["round"] == 2 else line for line in lines]
    cases: dict[str, tuple[dict[str, bytes], str]] = {
        "nothing": ({}, ""),
        "a smaller epsilon": (
            {"report.json": changed_report(lambda v: v["silos"][0].update(epsilon=0.1))},
            "the epsilon of silo-1 is stated as 0.1",
        ),
        "fewer events": (
            {"report.json": changed_report(lambda v: v["silos"][0]["events"][0].update(steps=1))},
            "has more of this run than the coordinator says",
        ),
        "another statement shown": (
            {"report.json": changed_report(lambda v: v["silos"][1]["statement"].update(silo="silo-9"))},
            "another statement of silo-2",
        ),
        "a line of the past": (
            {
                "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lower).encode(),
                "report.json": changed_report(lambda v: v.update(rounds=lower)),
            },
            "line 2 states less of silo-1",
        ),
        "other lines": (
            {"metrics.jsonl": files["metrics.jsonl"].replace(b'"round": 1', b'"round": 7')},
            "are not those of the report",
        ),
        "another study": ({"study.toml": files["study.toml"] + b"\n"}, "not the study that the silos agreed on"),
        "another's statement": (
            {"statements/silo-1.json": files["statements/silo-2.json"]},
            "of another silo, run, study or agreement",
        ),
        "a ledger cut short": (
            {
                "statements/silo-1.ledger.jsonl": b"\n".join(files["statements/silo-1.ledger.jsonl"].split(b"\n")[:-2])
                + b"\n"
            },
            "does not end where the statement speaks of",
        ),
        "a stranger's receipt": (
            {"receipts.jsonl": files["receipts.jsonl"] + _stranger_receipt(files) + b"\n"},
            "signed by nobody of this run",
        ),
    }
    for number, (name, (change, sentence)) in enumerate(cases.items()):
        found = sentences(one("run", resealed(tmp_path / str(number), files, change, key), trust))
        assert (not found) if not sentence else any(sentence in text for text in found), (name, found)


def _stranger_receipt(files: dict[str, bytes]) -> bytes:
    receipt = Receipt.from_bytes(files["receipts.jsonl"].split(b"\n")[0])
    return countersign(receipt.head, STRANGER).to_bytes()


def test_a_folder_signed_throughout_by_somebody_else_passes_unpinned_and_fails_pinned(
    tmp_path: Path, trust: Trust
) -> None:
    """The strongest forgery: another whole run, with its own coordinator and silos, in the place of the true one."""
    folder, _ = run(tmp_path, STUDY)
    forged = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sentences(one("run", forged)) == []
    found = sentences(one("run", forged, trust))
    assert any("not the pinned coordinator's" in text for text in found)
    assert any("none of the pinned ledgers" in text for text in found)


def test_a_seal_by_another_key_is_seen_by_the_agreement(files: dict[str, bytes], tmp_path: Path) -> None:
    found = sentences(one("run", resealed(tmp_path / "f", files, {}, STRANGER)))
    assert any("another run or coordinator than the seal" in text for text in found)


# --- single files -------------------------------------------------------------------------------------------


def test_exports_statements_and_policies_go_together(
    finished: tuple[Path, list[Silo]], files: dict[str, bytes]
) -> None:
    silo = finished[1][0]
    with silo.ledger() as ledger:
        export = b"".join(line + b"\n" for line in ledger.export())
    given: dict[str, Given] = {
        "export.jsonl": export,
        "silo-1.json": files["statements/silo-1.json"],
        "study.toml": files["study.toml"],
        "policy.toml": (silo.folder / "policy.toml").read_bytes(),
    }
    assert sentences(check(given, Trust())) == []
    given["policy.toml"] = b"# another\n"
    assert sentences(check(given, Trust())) == ["no statement or ledger that was given cites it"]
    other = check({**given, "silo-1.json": files["statements/silo-2.json"]}, Trust())
    assert any("lines were not given" in note for note in other.notes)


def test_an_open_reserve_is_named(finished: tuple[Path, list[Silo]]) -> None:
    silo = finished[1][3]
    with silo.ledger() as ledger:
        before = ledger.export()
        ledger.reserve(data_root="records", run="e" * 32, round=9, events=STUDY.round_events())
        export = b"".join(line + b"\n" for line in ledger.export())
    found = one("export.jsonl", export)
    assert sentences(found) == [] and [(row["run"], row["round"]) for row in found.open_reserves] == [("e" * 32, 9)]
    # a witness of the last line shows that the shorter export is not all there is
    with silo.ledger() as ledger:
        receipt = countersign(ledger.head(), STRANGER)
    short = b"".join(line + b"\n" for line in before)
    both = check({"export.jsonl": short, "receipts.jsonl": receipt.to_bytes() + b"\n"}, Trust())
    assert any("the ledger ends before it" in text for text in sentences(both))


def test_two_heads_at_one_position_are_found_across_files(finished: tuple[Path, list[Silo]]) -> None:
    silo = finished[1][2]
    with silo.ledger() as ledger:
        head, key = ledger.head(), ledger._book.key(ledger._book.view())
    second = sign_head(replace(head.head, hash="0" * 64), key)
    proof = equivocation(head, second)
    assert proof is not None
    given: dict[str, Given] = {
        "mine.jsonl": countersign(head, STRANGER).to_bytes() + b"\n",
        "yours.jsonl": countersign(second, STRANGER).to_bytes() + b"\n",
    }
    for case in (given, {"equivocation-silo-3.json": proof.to_bytes()}):
        found = check(case, Trust())
        assert [row["seq"] for row in found.equivocations] == [head.head.seq]
        assert any("two lines at position" in text for text in sentences(found))
    same = dump({"equivocation": [head.value(), head.value()]})
    assert any("do not contradict" in text for text in sentences(one("equivocation-silo-3.json", same)))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.json", b"{}"),
        ("x.json", b""),
        ("x.bin", b"\0\1"),
        ("x.json", b"[" * 100_000),
        ("x.json", b'{"format":"fedsilo-report/2"}'),
        ("report.json", b'{"format":"fedsilo-report/1"}'),
        ("x.jsonl", b'{"entry":1,"signatures":2}\n'),
        ("x.jsonl", b'{"head":1,"signature":2,"witness":3}\n'),
        ("x.json", b'{"key":1,"signature":2,"statement":3}'),
        ("x.json", b'{"key":1,"list":3,"signature":2}'),
        ("x.json", b'{"equivocation":[1,2]}'),
        ("study.toml", b"alone"),
    ],
)
def test_what_is_not_known_or_proves_nothing_fails(name: str, data: bytes) -> None:
    assert one(name, data).problems


def test_an_unknown_kind_of_entry_is_refused(files: dict[str, bytes], finished: tuple[Path, list[Silo]]) -> None:
    lines = files["statements/silo-1.ledger.jsonl"].split(b"\n")
    found = one("l.jsonl", b"\n".join([*lines[:5], lines[5].replace(b'"kind":"', b'"kind":"x', 1), *lines[6:]]))
    assert [(problem.seq, "is not known here" in problem.sentence) for problem in found.problems] == [(6, True)]


def test_the_command_exits_0_or_4(
    finished: tuple[Path, list[Silo]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished[0]
    assert guarded(app, arguments=["check", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.strip().endswith("PASS") and "not pinned" in shown and "epsilon" in shown
    assert guarded(app, arguments=["check", str(folder / "report.json"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["result"] == "PASS" and len(facts["data_roots"]) == 4 and not facts["pinned"]
    bad = tmp_path / "statement.json"
    bad.write_bytes((folder / "statements" / "silo-1.json").read_bytes().replace(b"silo-1", b"silo-7"))
    assert guarded(app, arguments=["check", str(bad)]) == 4
    assert "FAIL" in capsys.readouterr().out
    assert guarded(app, arguments=["check", str(bad), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["first_bad"]["file"] == str(bad)
    assert guarded(app, arguments=["check", str(folder), "--pin", str(folder / "study.toml")]) == 4
    assert guarded(app, arguments=["check", str(tmp_path / "gone")]) == 2


# --- statements ---------------------------------------------------------------------------------------------


def test_a_statement_is_read_as_signed_and_in_no_other_form(files: dict[str, bytes]) -> None:
    text = files["statements/silo-1.json"].decode()
    signed = read_statement(text)
    assert signed.statement.epsilon == epsilon(STUDY.total_events(), 1e-5)
    assert read_statement(signed.statement.signed(STRANGER)).key == public_hex(STRANGER)
    value = json.loads(text)["statement"]
    assert value["epsilon"] == f"{signed.statement.epsilon:.4f}".rstrip("0").rstrip(".") and value["delta"] == "0.00001"
    for changed in (text + " ", text.replace('"silo":"silo-1"', '"silo":"silo-2"'), "{}", "", "[]", text[:-1]):
        with pytest.raises(ProtocolError):
            read_statement(changed)


def test_a_second_accountant_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of Opacus' own tests and of the published table: both accountants stand within the bound."""
    from client.training import second_opinion

    events = (Gaussian(noise_multiplier=1.5, sampling_rate=0.04, steps=2250),)
    assert second_opinion.estimate(events, 1e-5) == pytest.approx(6.7688, abs=1e-3)
    require_agreement(events, 1e-5)
    require_agreement((), 1e-5)
    require_agreement((*events, Exact(what="x")), 1e-5)
    for wrong in (6.7688 * 1.02, 6.7688 * 0.98, float("nan"), float("inf")):
        second_opinion._compare.cache_clear()
        monkeypatch.setattr(second_opinion, "estimate", lambda *_, wrong=wrong: wrong)
        with pytest.raises(AccountingError, match="disagree"):
            require_agreement(events, 1e-5)
    second_opinion._compare.cache_clear()


def test_a_ledgers_lines_hold_settings_and_hashes_alone(finished: tuple[Path, list[Silo]]) -> None:
    """Four silos with different records and labels: beside hashes, keys, times and their names, equal lines."""
    seen = set()
    for silo in finished[1][:3]:
        with silo.ledger() as ledger:
            seen.add(tuple(_without_randomness(entry) for entry in ledger.entries() if entry.run != "e" * 32))
    assert len(seen) == 1


def _without_randomness(entry: Entry) -> str:
    body = {
        name: value
        for name, value in entry.body.items()
        if name not in ("ledger_key", "dpo_key", "sha256", "silo", "receipts")
    }
    return json.dumps([entry.kind, entry.seq, entry.data_root, entry.round, body], sort_keys=True)


def test_kinds_are_told_by_form(files: dict[str, bytes]) -> None:
    assert [kind_of(name, files[name]) for name in ("report.json", "statements/silo-1.json", "study.toml")] == [
        "report",
        "statement",
        "study",
    ]
    assert kind_of("x", files["statements/silo-1.ledger.jsonl"]) == "ledger"
    assert kind_of("x", files["receipts.jsonl"]) == "receipts"
    assert read(files["statements/silo-1.ledger.jsonl"].split(b"\n")[0]).entry.kind == "genesis"
