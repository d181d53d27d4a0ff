"""What a silo's ledger shows to the reader of one run, and what that proves (strategies/proof/extract.py).

Laws: nothing of another run is in what leaves; each line that is shown stands where it stood, or the check fails; what
rests on the silo's word alone is said to, and is held against what the silo had signed before.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from books import COST, LEDGER, PINS, Book
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_server import STUDY, TEXT, run
from test_verify import one, resealed, sentences

from client.keys import officer_key
from client.models.base import MODELS
from client.silo import Silo
from server.identity import coordinator_key
from strategies.privacy.accountant import epsilon, epsilon_at_order
from strategies.privacy.dataroot import DataRoot, repeat
from strategies.privacy.events import Event, Gaussian, merge
from strategies.proof.canonical import load
from strategies.proof.chain import ChainError
from strategies.proof.check import Given, check
from strategies.proof.entries import Entry, events_value, public_hex, root_value
from strategies.proof.extract import Link, entries, extract, read_extract
from strategies.proof.trust import Trust
from strategies.spec import Registries
from strategies.statement import Statement, read_statement
from strategies.study import Study, override

OTHER = "e" * 32
CLINIC = DataRoot(name="clinic", unit="insurance_number", epsilon=3.25, delta=3e-6)
LINES = "statements/silo-1.ledger.jsonl"


# --- lines --------------------------------------------------------------------------------------------------


def mixed() -> Book:
    """Two runs that take turns, another data root, a checkpoint and a new key: 14 entries."""
    book = Book().begin()  # 1, 2
    book.add("data_root", root_value(CLINIC), data_root="clinic")  # 3
    book.reserve(1, run=OTHER, data_root="clinic")  # 4
    book.reserve(1)  # 5
    book.add("release", {"sha256": "12" * 32}, run=OTHER, round=1, data_root="clinic")  # 6
    book.add("commit", run=OTHER, round=1, data_root="clinic")  # 7
    book.add("release", {"sha256": "34" * 32}, round=1)  # 8
    new = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
    keys = {"ledger": LEDGER, "new": new}
    signed = book.signed("key_rotate", {"which": "ledger", "key": public_hex(new)}, keys)  # 9
    book.chain.extend(signed)
    book.lines.append(signed.line)
    book.key = new
    book.reserve(7, run=OTHER, data_root="records")  # 10
    book.add("policy", policy="56" * 32)  # 11
    book.reserve(2)  # 12
    book.add("checkpoint", {"spent": {n: events_value(e) for n, e in book.chain.spent().items()}})  # 13
    book.reserve(8, run=OTHER, data_root="records")  # 14
    return book


def shown(book: Book) -> list[bytes]:
    return extract(book.lines, run="0" * 32, data_root="records")


def test_an_extract_shows_the_run_and_links_over_the_rest() -> None:
    book = mixed()
    lines = shown(book)
    places = [load(line)["hidden"] if b'{"hidden"' in line[:9] else load(line)["entry"]["seq"] for line in lines]
    links = [place for place in places if isinstance(place, dict)]
    assert [place for place in places if isinstance(place, int)] == [1, 2, 5, 8, 9, 11, 12]
    assert [(link["from"], link["to"]) for link in links] == [(3, 4), (6, 7), (10, 10), (13, 14)]
    assert [link["hash"] for link in links] == [hashlib.sha256(book.lines[n - 1]).hexdigest() for n in (4, 7, 10, 14)]
    text = b"".join(lines)
    for secret in (OTHER.encode(), b"12" * 32, b"clinic", b"insurance_number", b"3.25", b"checkpoint"):
        assert secret not in text, secret
        assert secret in b"".join(book.lines), f"{secret!r} is not even in the ledger"
    chain = read_extract(lines, PINS)
    assert (chain.seq, chain.hash) == (book.chain.seq, book.chain.hash)
    assert chain.hidden == [(3, 4), (6, 7), (10, 10), (13, 14)] and (chain.entries, chain.unseen) == (7, 6 + 1)
    assert chain.accounts["records"].merged() == merge(repeat(COST, 2))
    assert [entry.round for entry in entries(lines) if entry.kind == "reserve"] == [1, 2]
    assert chain.contradicts(book.chain) is None


def test_a_ledger_of_one_run_is_shown_whole() -> None:
    book = Book().begin()
    book.round(1)
    assert shown(book) == book.lines and not read_extract(shown(book), PINS).hidden


def test_no_line_or_link_of_an_extract_can_be_moved_changed_or_left_out(scaled: Callable[..., int]) -> None:
    """All but what ends the extract: where that is changed, the statement that signs the whole speaks against it."""
    lines = shown(mixed())
    cases = [[*lines[:n], *lines[n + 1 :]] for n in range(len(lines) - 1)]  # left out
    cases += [[*lines[:n], lines[n], *lines[n:]] for n in range(len(lines))]  # twice
    cases += [[*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]] for n in range(len(lines) - 1)]  # swapped
    for n, line in enumerate(lines[:-1]):
        if line.startswith(b'{"hidden"'):
            link = Link(
                **{"first" if k == "from" else "last" if k == "to" else k: v for k, v in load(line)["hidden"].items()}
            )
            wider, later = replace(link, last=link.last + 1), replace(link, first=link.first + 1)
            others = (wider, later, replace(link, hash="0" * 64), replace(link, first=link.last + 1))
            cases += [[*lines[:n], other.to_bytes(), *lines[n + 1 :]] for other in others]
    draw = random.Random(7)
    for _ in range(scaled(500)):
        n = draw.randrange(len(lines) - 1)
        spoilt = bytearray(lines[n])
        spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
        cases.append([*lines[:n], bytes(spoilt), *lines[n + 1 :]])
    for number, case in enumerate(cases):
        with pytest.raises(ChainError):
            read_extract(case, PINS)
            pytest.fail(f"case {number} passes")


@pytest.mark.parametrize(
    "line",
    [
        b'{"hidden":{"from":3,"hash":"%s","to":4}}' % (b"0" * 63),
        b'{"hidden":{"from":"3","hash":"%s","to":4}}' % (b"0" * 64),
        b'{"hidden":{"from":3,"hash":"%s","to":4,"why":1}}' % (b"0" * 64),
        b'{"hidden":[]}',
        b'{"hidden":{"from":3,"hash":"%s","to":4},"more":1}' % (b"0" * 64),
    ],
)
def test_a_link_of_another_form_is_refused(line: bytes) -> None:
    with pytest.raises(ChainError):
        read_extract([*mixed().lines[:2], line], PINS)


def test_nothing_is_hidden_before_the_genesis_or_in_a_frozen_ledger() -> None:
    link = Link(first=1, last=2, hash="0" * 64)
    with pytest.raises(ChainError, match="cannot stand here"):
        read_extract([link.to_bytes(), *mixed().lines[2:]], PINS)
    book = mixed()
    book.add("freeze", {"reason": "r", "heads": []})
    with pytest.raises(ChainError, match="cannot stand here"):
        read_extract([*shown(book), replace(link, first=16, last=16).to_bytes()], PINS)


def test_a_freeze_and_what_it_lost_are_always_shown() -> None:
    book = mixed()
    book.add("freeze", {"reason": "r", "heads": []})
    book.add("restore", {"reason": "found", "heads": [], "adopt": {}})
    assert [entry.kind for entry in entries(shown(book))][-2:] == ["freeze", "restore"]
    assert read_extract(shown(book), PINS).frozen is None


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Silo]]:
    """Two runs of the same silos, another data root in between; the folders of the first and the second."""
    patch, place = pytest.MonkeyPatch(), tmp_path_factory.mktemp("extract")
    for name in ("FEDSILO_SILO", "FEDSILO_SILOS"):
        patch.delenv(name, raising=False)
    other = Study.parse(override(TEXT, {"study.name": "of-another-sponsor"}), Registries(models=MODELS))
    before, silos = run(place, other)
    for silo in silos:
        with silo.ledger() as ledger:
            ledger.register(CLINIC, officer=officer_key(silo.folder / "keys", None, simulated=True))
    after, silos = run(place, STUDY)
    return before, after, silos


@pytest.fixture
def files(second: tuple[Path, Path, list[Silo]]) -> dict[str, bytes]:
    folder = second[1]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def own(silo: Silo, run: str) -> list[Entry]:
    with silo.ledger() as ledger:
        return [entry for entry in ledger.entries() if entry.run == run]


def test_nothing_of_another_run_leaves(second: tuple[Path, Path, list[Silo]], files: dict[str, bytes]) -> None:
    """Everything that a coordinator has of the second run at its end, silo by silo, the receipts aside."""
    before, _, silos = second
    first = json.loads((before / "report.json").read_text())["run"]
    for silo in silos:
        told = files[f"statements/{silo.name}.json"] + files[f"statements/{silo.name}.ledger.jsonl"]
        earlier = own(silo, first["id"])
        secrets = [first["id"], first["study_digest"], first["manifest_digest"], "of-another-sponsor"]
        secrets += [entry.body["sha256"] for entry in earlier if entry.kind == "release"]
        secrets += [CLINIC.name, CLINIC.unit, "3.25", "0.000003"]
        secrets += [value["signature"] for e in earlier if e.kind == "reserve" for value in e.body["receipts"]]
        assert len(secrets) > 10 and [secret for secret in secrets if secret.encode() in told] == []


def test_the_second_run_passes_and_says_what_rests_on_the_silos_word(
    second: tuple[Path, Path, list[Silo]], files: dict[str, bytes]
) -> None:
    found = one("run", files)
    assert sentences(found) == []
    twice = repeat(STUDY.total_events(), 2)
    assert [(row["silo"], row["epsilon"], row["rests_on"]) for row in found.roots] == [
        (f"silo-{n}", epsilon(twice, 1e-5), "statement") for n in (1, 2, 3, 4)
    ]
    notes = [note for note in found.notes if "entries of other runs are not shown" in note]
    assert len(notes) == 4 and all("rest on the silo's signature" in note for note in notes)
    first = {
        path.relative_to(second[0]).as_posix(): path.read_bytes() for path in second[0].rglob("*") if path.is_file()
    }
    assert {row["rests_on"] for row in one("run", first).roots} == {"ledger"}


def test_the_whole_ledger_proves_what_the_extract_left_to_the_silos_word(
    second: tuple[Path, Path, list[Silo]], files: dict[str, bytes]
) -> None:
    with second[2][0].ledger() as ledger:
        whole = ledger.export()
    given: dict[str, Given] = {
        "export.jsonl": b"".join(line + b"\n" for line in whole),
        "extract.jsonl": files[LINES],
        "statement.json": files["statements/silo-1.json"],
    }
    found = check(given, Trust())
    assert sentences(found) == []
    assert {row["rests_on"]: row["epsilon"] for row in found.roots if row["data_root"] == "records"} == {
        "ledger": epsilon(repeat(STUDY.total_events(), 2), 1e-5)
    }


@pytest.mark.parametrize("end", [14, 6])
def test_a_link_that_is_not_in_the_ledger_is_found_by_the_ledger(end: int) -> None:
    """Two ledgers under one name: the extract of one, and the other's export, which may end where a link hides its end."""
    other = Book().begin()
    other.add("data_root", root_value(replace(CLINIC, epsilon=5.0)), data_root="clinic")
    while other.chain.seq < end:
        other.add("checkpoint", {"spent": {}})
    given: dict[str, Given] = {
        "extract.jsonl": b"".join(line + b"\n" for line in shown(mixed())),
        "export.jsonl": b"".join(line + b"\n" for line in other.lines),
    }
    found = check(given, Trust())
    assert len(found.equivocations) >= 1 and any("has two lines" in text for text in sentences(found))


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("nothing", ""),
        ("the last line is hidden", "signs other lines"),
        ("a line is hidden", "does not name the line before it"),
        ("links are drawn together", "does not name the line before it"),
        ("a policy is hidden", "it cites another policy"),
        ("the extract of another silo", "does not end where the statement speaks of"),
        ("cut", "does not end where the statement speaks of"),
    ],
)
def test_a_coordinator_cannot_choose_what_is_shown(
    case: str, sentence: str, second: tuple[Path, Path, list[Silo]], files: dict[str, bytes], tmp_path: Path
) -> None:
    key = coordinator_key(second[1].parent / "coordinator")
    lines = files[LINES].split(b"\n")[:-1]
    links = [n for n, line in enumerate(lines) if line.startswith(b'{"hidden"')]
    assert links, "the extract hides nothing"
    last = load(lines[-1])["entry"]
    changed = {
        "nothing": lines,
        "the last line is hidden": [
            *lines[:-1],
            Link(first=last["seq"], last=last["seq"], hash=hashlib.sha256(lines[-1]).hexdigest()).to_bytes(),
        ],
        "a line is hidden": [
            *lines[:-3],
            Link(first=last["seq"] - 2, last=last["seq"] - 1, hash="0" * 64).to_bytes(),
            lines[-1],
        ],
        "links are drawn together": [
            *lines[:2],
            Link(first=3, last=last["seq"] - 1, hash="1" * 64).to_bytes(),
            lines[-1],
        ],
        "a policy is hidden": _widened(lines, links[0]),
        "the extract of another silo": files["statements/silo-2.ledger.jsonl"].split(b"\n")[:-1],
        "cut": lines[:-1],
    }[case]
    change = {LINES: b"".join(line + b"\n" for line in changed)}
    found = sentences(one("run", resealed(tmp_path / "run", files, change, key)))
    assert (not found) if not sentence else any(sentence in text for text in found), found


def _widened(lines: list[bytes], at: int) -> list[bytes]:
    """The link also covers the line before it, which no hash contradicts."""
    link, before = load(lines[at])["hidden"], load(lines[at - 1])["entry"]
    wider = Link(first=before["seq"], last=link["to"], hash=link["hash"])
    return [*lines[: at - 1], wider.to_bytes(), *lines[at + 1 :]]


def test_less_to_date_than_a_head_had_said_is_found(
    second: tuple[Path, Path, list[Silo]], files: dict[str, bytes], tmp_path: Path
) -> None:
    """A silo that forgets its first run in the statement: every signature is its own, and its own heads contradict it."""
    silo, key = second[2][0], coordinator_key(second[1].parent / "coordinator")
    stated = read_statement(files["statements/silo-1.json"].decode()).statement
    with silo.ledger() as ledger:
        own_key = ledger._book.key(ledger._book.view())
    for to_date in (stated.events, (*stated.to_date, Gaussian(noise_multiplier=9.0, sampling_rate=0.5, steps=1))):
        budget = replace(stated.budget, spent=None if stated.budget.epsilon is None else _spent(stated, to_date))
        forged = replace(stated, to_date=merge(to_date), budget=budget).signed(own_key)
        report = json.loads(files["report.json"])
        row = next(row for row in report["silos"] if row["name"] == "silo-1")
        row["statement"] = json.loads(json.dumps(read_statement(forged).statement.facts()))
        change = {"statements/silo-1.json": forged.encode(), "report.json": json.dumps(report).encode()}
        found = sentences(one("run", resealed(tmp_path / str(len(to_date)), files, change, key)))
        assert found and all("another sum to date than the ledger's head" in text for text in found), found


def _spent(stated: Statement, to_date: tuple[Event, ...]) -> float:
    return epsilon_at_order(to_date, stated.budget.delta, stated.budget.order)
