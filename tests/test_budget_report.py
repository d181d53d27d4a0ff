"""The silo's privacy budget report: facts from the ledger's lines alone, against dp-accounting and numbers by hand.

Oracles: dp-accounting called directly, the normal distribution of scipy for a plain Gaussian release (its curve, its
best test and its mu are known exactly), and formulas worked out in the tests.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from books import GENESIS, PINS, ROOT, Book
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from ledgers import made, opened, release, reserve
from pages import numbers_of, numbers_on, written
from scipy.stats import norm

import client.cli
from strategies.command import guarded
from strategies.manifest import Manifest, Member
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event, Exact, Gaussian
from strategies.privacy.profile import gaussian_fit, profile
from strategies.proof.entries import root_value, spent_value
from strategies.report.budget import budget_facts
from strategies.report.budget_page import budget_page
from strategies.report.guarantee import gate_share
from strategies.report.numbers import percent
from strategies.report.registry import registry_of_budget

SAMPLED: tuple[Event, ...] = (Gaussian(noise_multiplier=1.5, sampling_rate=0.05, steps=10),)
COUNTS: tuple[Event, ...] = (Gaussian(noise_multiplier=25.0),)
PLAIN: tuple[Event, ...] = (Gaussian(noise_multiplier=4.0),)
FIRST, SECOND = "a1" * 16, "b2" * 16


def finished(book: Book, run: str, rounds: int, events: tuple[Event, ...], root: str = "records") -> None:
    """Rounds that were reserved, released and committed."""
    for number in range(1, rounds + 1):
        place = {"run": run, "round": number, "data_root": root}
        book.reserve(events=events, **place)
        book.add("release", {"sha256": "ab" * 32}, **place)
        book.add("commit", **place)


def two_runs() -> Book:
    """Three whole rounds of one run; two of another, one of them open, one given up."""
    book = Book().begin()
    finished(book, FIRST, 3, SAMPLED)
    finished(book, SECOND, 1, (*SAMPLED, *COUNTS))
    book.reserve(2, (*SAMPLED, *COUNTS), run=SECOND)
    book.reserve(3, COUNTS, run=SECOND)
    book.add("abort", {"reason": "no cohort"}, run=SECOND, round=3)
    return book


def with_root(root: DataRoot) -> Book:
    """A ledger with another registration."""
    book = Book()
    book.add("genesis", GENESIS)
    book.add("data_root", root_value(root), data_root=root.name)
    return book


def unbounded() -> Book:
    book = Book().begin()
    finished(book, FIRST, 1, (Exact(what="model update"),))
    return book


BOOKS = {
    "two runs": two_runs,
    "nothing": lambda: Book().begin(),
    "unbounded": unbounded,
    "no limit": lambda: with_root(replace(ROOT, epsilon=math.inf)),
}
books = pytest.mark.parametrize("name", BOOKS)


@functools.cache
def facts_of(name: str) -> dict[str, Any]:
    return budget_facts(BOOKS[name]().lines, PINS)


@functools.cache
def page_of(name: str) -> str:
    return budget_page(facts_of(name))


# --- numbers ------------------------------------------------------------------------------------------------------


def composed(accountant: Any) -> Any:
    """All releases of `two_runs`, by dp-accounting's own event algebra: 50 sampled steps, 3 counts."""
    sampled = PoissonSampledDpEvent(0.05, GaussianDpEvent(1.5))
    accountant.compose(SelfComposedDpEvent(sampled, 50))
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(25.0), 3))
    return accountant


def test_every_epsilon_is_dp_accountings_and_not_below_it() -> None:
    root = facts_of("two runs")["roots"][0]
    numbers = root["numbers"]
    replace_one = composed(PLDAccountant(NeighboringRelation.REPLACE_ONE)).get_epsilon(1e-5)
    bare = PLDAccountant()
    bare.compose(SelfComposedDpEvent(GaussianDpEvent(1.5), 50))
    bare.compose(SelfComposedDpEvent(GaussianDpEvent(25.0), 3))
    expected = {
        "epsilon_pld": composed(PLDAccountant()).get_epsilon(1e-5),
        "epsilon_rdp": composed(RdpAccountant()).get_epsilon(1e-5),
        "epsilon_replace_one": replace_one,
        "epsilon_without_amplification": bare.get_epsilon(1e-5),
    }
    for key, value in expected.items():
        assert numbers[key] == pytest.approx(value, rel=2e-3), key
        assert numbers[key] >= value - 5e-4 * value, key
    at_3 = composed(RdpAccountant(orders=[3.0])).get_epsilon(1e-5)
    assert at_3 <= root["spent"]["epsilon_gate"] <= at_3 + 2e-4
    assert root["budget"] == {"epsilon": 8.0, "delta": 1e-5, "gate": "rdp", "order": 3.0, "slots": []}


def test_the_parts_of_the_budget_by_hand() -> None:
    """Of a plain Gaussian the divergence at order 3 is 3 / (2 sigma^2) a release: 3 / 32 for sigma 4. The budget allows
    8 + ln(3e-5) / 2 - ln(2 / 3) of it."""
    book = Book().begin()
    finished(book, FIRST, 4, PLAIN)
    book.reserve(5, PLAIN, run=FIRST)
    spent = budget_facts(book.lines, PINS)["roots"][0]["spent"]
    allowed = 8 + math.log(3e-5) / 2 - math.log(2 / 3)
    assert spent["committed"] == pytest.approx(4 * 3 / 32 / allowed, abs=1e-4)
    assert spent["reserved"] == pytest.approx(3 / 32 / allowed, abs=1e-4)
    assert spent["committed"] + spent["reserved"] + spent["free"] == pytest.approx(1)
    assert gate_share(8.0, 8.0, 1e-5, 3.0) == 1.0 and gate_share(0.0, 8.0, 1e-5, 3.0) == 0.0
    assert spent["beyond"] == pytest.approx(allowed, abs=1e-4) and spent["fixed"] == pytest.approx(
        8 - allowed, abs=1e-4
    )
    share = spent["committed"] + spent["reserved"]
    assert spent["fixed"] + share * spent["beyond"] == pytest.approx(spent["epsilon_gate"], abs=2e-4)
    text = written(budget_page(budget_facts(book.lines, PINS)))
    assert f"of the {spent['beyond']:g} that the budget has beyond that, {percent(share)} is spent" in text


def test_a_run_names_its_study_where_the_ledger_cites_the_agreement() -> None:
    members = (Member(silo="east", weight=1.0), Member(silo="north", weight=1.0))
    agreed = Manifest(run=FIRST, study="5a" * 32, code="1", layout="0" * 64, roster=members)
    another = replace(agreed, study="6b" * 32)
    book = Book().begin()
    book.reserve(1, PLAIN, run=FIRST, manifest=agreed.digest())
    book.reserve(1, PLAIN, run=SECOND)
    for kept, study in (((agreed, another), "5a" * 32), ((another,), None), ((), None)):
        facts = budget_facts(book.lines, PINS, kept)
        assert [run["study"] for run in facts["roots"][0]["runs"]] == [study, None]
        assert ("5a5a5a5a" in written(budget_page(facts))) == (study is not None)


def test_a_preregistered_plan_is_counted_by_pld() -> None:
    plan = (Gaussian(noise_multiplier=4.0, steps=10),)
    book = with_root(replace(ROOT, gate="preregistered", order=0.0, slots=plan))
    finished(book, FIRST, 5, PLAIN)
    root = budget_facts(book.lines, PINS)["roots"][0]
    half = PLDAccountant()
    half.compose(SelfComposedDpEvent(GaussianDpEvent(4.0), 5))
    assert root["spent"]["share"] == pytest.approx(half.get_epsilon(1e-5) / 8, rel=2e-3)
    assert root["forecast"]["rounds"] == 5
    assert "preregistered" in written(budget_page(budget_facts(book.lines, PINS)))


@pytest.mark.parametrize("sigma", [0.7, 1.0, 4.0])
def test_the_curve_of_a_plain_gaussian_is_the_known_one(sigma: float) -> None:
    """mu = 1 / sigma: delta(0) = 2 Phi(mu / 2) - 1; the best test has power Phi(mu + Phi^-1(rate)) (Dong et al. 2022)."""
    mu, curve = 1 / sigma, profile([Gaussian(noise_multiplier=sigma)], 1e-5)
    assert curve is not None
    assert curve.pairs[0][1] == pytest.approx(2 * norm.cdf(mu / 2) - 1, abs=1e-3)
    assert curve.guess == pytest.approx(norm.cdf(mu / 2), abs=1e-3)
    for rate in (0.0, 0.01, 0.3, 0.9):
        best = norm.cdf(mu + norm.ppf(rate)) if rate else 0.0
        assert best <= curve.power(rate) <= best + 0.01
    fit = gaussian_fit(curve, 1e-5)
    assert fit is not None and mu <= fit.mu <= mu * 1.01 + 1e-3 and fit.error < 2e-3


def test_sampling_makes_the_gaussian_fit_worse_and_it_says_so() -> None:
    curve = profile([Gaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=100)], 1e-5)
    fit = gaussian_fit(curve, 1e-5) if curve else None
    assert fit is not None and fit.error > 0.01


def test_a_curve_of_what_is_not_bounded_is_none() -> None:
    assert profile([Exact(what="x")], 1e-5) is None and profile([], 1e-5) is None


def test_runs_add_up_to_the_total_in_the_order_of_their_first_reservation() -> None:
    root = facts_of("two runs")["roots"][0]
    assert [(run["run"], run["rounds"], run["sent"], run["open"], run["aborted"]) for run in root["runs"]] == [
        (FIRST, 3, 3, 0, 0),
        (SECOND, 3, 1, 1, 1),
    ]
    assert root["runs"][-1]["epsilon_to_date"] == root["steps"][-1]["to"] == root["numbers"]["epsilon_pld"]
    assert root["growth"][-1]["epsilon_pld"] == root["numbers"]["epsilon_pld"]
    assert [step["from"] for step in root["steps"][1:]] == [step["to"] for step in root["steps"][:-1]]
    alone = PLDAccountant()
    alone.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.5)), 30))
    assert root["runs"][0]["epsilon"] == pytest.approx(alone.get_epsilon(1e-5), rel=2e-3)


def test_the_claim_is_the_odds_of_the_total() -> None:
    facts = facts_of("two runs")
    claim, value = facts["claims"][0], facts["roots"][0]["numbers"]["epsilon_pld"]
    belief = math.exp(value) / (1 + math.exp(value))
    assert belief <= claim["odds"] <= belief + 1e-4
    text = written(page_of("two runs"))
    assert (
        f"can raise 50:50 odds about one 'patient_id' (was it used, or not?) to at most {percent(claim['odds'])}"
        in text
    )
    assert "the ledger lets no more through than ε = 8 at δ = 1e-05, per patient_id" in text
    assert "takes the recorded runs as planned beforehand" in text
    assert "comply" not in text and "complies" not in text


# --- what the ledger says -----------------------------------------------------------------------------------------


def test_evidence_and_open_reservations_are_named() -> None:
    book, facts = two_runs(), facts_of("two runs")
    ledger = facts["ledger"]
    assert (ledger["first"], ledger["last"], ledger["entries"]) == (1, book.chain.seq, len(book.lines))
    assert ledger["head"] == book.chain.hash and ledger["verified"] and ledger["aborted"] == 1
    assert ledger["open"] == [{"run": SECOND, "round": 2}]
    text = written(page_of("two runs"))
    assert book.chain.hash in text and "round 2 of b2b2b2b2" in text and "nobody else has kept a head" in text


def test_a_restore_is_counted_and_told() -> None:
    book = Book().begin()
    finished(book, FIRST, 1, SAMPLED)
    book.add("freeze", {"reason": "disk was replaced", "heads": []})
    book.add("restore", {"reason": "from the backup", "heads": [], "adopt": spent_value({"records": COUNTS})})
    facts = budget_facts(book.lines, PINS)
    root = facts["roots"][0]
    assert [run["run"] for run in root["runs"]] == [FIRST, ""]
    assert root["numbers"]["epsilon_pld"] > root["runs"][0]["epsilon"]
    text = written(budget_page(facts))
    assert "disk was replaced" in text and "from the backup" in text and "restored" in text


def test_a_restore_beyond_the_budget_leaves_the_budget_no_bound() -> None:
    book = Book().begin()
    book.add("freeze", {"reason": "lost", "heads": []})
    much = (Gaussian(noise_multiplier=0.5, steps=4),)
    book.add("restore", {"reason": "adopted", "heads": [], "adopt": spent_value({"records": much})})
    facts = budget_facts(book.lines, PINS)
    text = written(budget_page(facts))
    assert facts["roots"][0]["spent"]["share"] > 1 and facts["roots"][0]["spent"]["free"] == 0
    assert "adopted more than the budget" in text and "lets no more through" not in text
    assert f"{percent(facts['roots'][0]['spent']['share'])} is spent" in text


def test_what_was_adopted_for_a_root_that_is_not_registered_takes_the_claim_away() -> None:
    book = Book().begin()
    book.add("freeze", {"reason": "lost", "heads": []})
    book.add("restore", {"reason": "adopted", "heads": [], "adopt": spent_value({"other": COUNTS})})
    facts = budget_facts(book.lines, PINS)
    assert facts["unregistered"] == ["other"] and [root["name"] for root in facts["roots"]] == ["records"]
    assert "Of 'other' something was released" in written(budget_page(facts))


def test_a_frozen_ledger_says_so_first() -> None:
    book = two_runs()
    book.add("freeze", {"reason": "a witness has seen more", "heads": []})
    assert "The ledger is frozen: a witness has seen more." in written(budget_page(budget_facts(book.lines, PINS)))


@pytest.mark.parametrize("position", [0, 4, -1])
def test_lines_that_do_not_verify_leave_no_claim(position: int) -> None:
    lines = list(two_runs().lines)
    lines[position] = lines[position].replace(b'"time":"2026', b'"time":"2025')
    facts = budget_facts(lines, PINS)
    page = budget_page(facts)
    assert not facts["ledger"]["verified"] and facts["claims"] == []
    assert "Warning: the ledger does not verify" in page and "50:50 odds" not in page and "tier-" not in written(page)
    assert all(entry["privacy_loss"]["privacy_parameters"] == [] for entry in yaml.safe_load(registry_of_budget(facts)))


def test_no_lines_at_all_are_a_report_too() -> None:
    assert "no entry holds" in written(budget_page(budget_facts([], PINS)))


def test_what_is_not_bounded_takes_the_claim_away() -> None:
    text = written(page_of("unbounded"))
    assert "no privacy claim can be made" in text and "unbounded" in text and "50:50 odds" not in text


# --- charts and page ----------------------------------------------------------------------------------------------


def test_absent_charts_are_named_with_the_reason() -> None:
    assert page_of("two runs").count("<svg") == 6 and "Chart not shown" not in page_of("two runs")
    for name, reason in (
        ("nothing", "Nothing was reserved on these records."),
        ("unbounded", "Something was released without protection, so no ε is bounded."),
    ):
        assert written(page_of(name)).count(f". {reason}") == (6 if name == "unbounded" else 5)
    assert "The budget has no limit." in written(page_of("no limit"))
    book = Book().begin()
    finished(book, FIRST, 1, SAMPLED)
    text = written(budget_page(budget_facts(book.lines, PINS)))
    assert "Chart not shown: ε by run and kind of release (at δ = 1e-05, per patient_id). There is one run" in text


SAID = {
    "50",
    "1",
    "10",
    "0",
    "2",
    "256",
    "2023",
    "80",
    "100",
    "2303.00654",
    "35",
    "164.514",
    "45",
    "2012",
}  # by the page itself


@books
def test_every_number_of_the_page_is_one_of_the_facts(name: str) -> None:
    allowed = numbers_of(facts_of(name)) | SAID
    found = numbers_on(page_of(name))
    assert found and found - allowed == set()


def test_a_number_that_is_not_in_the_facts_would_be_seen() -> None:
    facts = json.loads(json.dumps(facts_of("two runs")))
    facts["roots"][0]["numbers"]["epsilon_rdp"] = 7.6543
    assert "7.6543" in numbers_on(budget_page(facts))
    assert "7.6543" not in numbers_of(facts_of("two runs")) | SAID


@books
def test_the_page_needs_nothing_but_itself_and_is_the_same_again(name: str) -> None:
    page = page_of(name)
    assert budget_page(facts_of(name)) == page
    assert "http://" not in page and "https://" not in page and "<script" not in page and "@import" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="([^"]*)"', page)) <= {f"#{identity}" for identity in ids}
    assert json.loads(json.dumps(facts_of(name), allow_nan=False)) == facts_of(name)


def test_hostile_names_are_escaped() -> None:
    book = with_root(replace(ROOT, name="<script>alert(1)</script>", unit="<b>$x_1$"))
    finished(book, FIRST, 1, SAMPLED, root="<script>alert(1)</script>")
    page = budget_page(budget_facts(book.lines, PINS))
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page


def test_the_registrys_entry_is_the_facts() -> None:
    facts = facts_of("two runs")
    (entry,) = yaml.safe_load(registry_of_budget(facts))
    assert {"tier", "product", "dp_flavor", "privacy_loss", "model", "accounting", "implementation"} == entry.keys()
    spent, budget = entry["privacy_loss"]["privacy_parameters"]
    assert spent["epsilon"] == facts["roots"][0]["numbers"]["epsilon_pld"] and budget["epsilon"] == 8.0
    assert entry["product"]["head"] == facts["ledger"]["head"]
    assert len(entry["implementation"]["mechanisms"]) == 2


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def silo(tmp_path: Path) -> Path:
    """A silo folder with a ledger and one round."""
    folder = tmp_path / "north"
    place = made(folder)
    (folder / "silo.toml").write_text(
        'name = "north"\n[data.records]\npath = "records.csv"\n[ledger]\ndurability = "process"\n'
    )
    (folder / "policy.toml").write_text("[budget.records]\nepsilon = 8.0\ndelta = 1e-5\n")
    with opened(place) as ledger:
        reserve(ledger, 1)
        release(ledger, 1)
    return folder


def command(*arguments: str) -> int:
    return guarded(client.cli.app, arguments=["report", *arguments])


def test_the_command_writes_page_facts_and_entry(silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (silo / "ledger.db").read_bytes()
    out = silo.parent / "out"
    assert command("--silo", str(silo), "--out", str(out), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((out / "budget.json").read_text()) and facts["ledger"]["verified"]
    assert (out / "budget.html").read_text() == budget_page(facts)
    assert yaml.safe_load((out / "registry.yaml").read_text())[0]["product"]["data_curator"] == ["north"]
    assert (silo / "ledger.db").read_bytes() == before


def test_the_silo_may_be_named_by_the_environment(silo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSILO_SILO", str(silo))
    assert command() == 0 and (silo / "report" / "budget.html").exists()


def test_a_ledger_that_does_not_verify_ends_with_4_and_a_report(silo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pin = silo / "keys" / "pin.json"
    pin.chmod(stat.S_IRUSR | stat.S_IWUSR)
    pin.write_bytes(re.sub(rb'"ledger_key":"[0-9a-f]{2}', b'"ledger_key":"00', pin.read_bytes()))
    assert command("--silo", str(silo)) == 4
    assert "does not verify" in capsys.readouterr().err
    assert "Warning: the ledger does not verify" in (silo / "report" / "budget.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no silo folder is named"),
        (("--silo", "gone"), "is no silo folder"),
        (("--silo", "NORTH", "--out", "NORTH/silo.toml"), "cannot be written"),
        (("--silo", "NORTH", "--pdf"), "--pdf needs Chromium"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    silo: Path,
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "")
    assert command(*(argument.replace("NORTH", str(silo)) for argument in arguments)) == 2
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") == 1


def test_a_browser_that_fails_is_one_sentence(
    silo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = silo.parent / "bin" / "chromium"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/bin:/usr/bin")
    assert command("--silo", str(silo), "--pdf") == 1
    assert "ended with 3 and printed nothing" in capsys.readouterr().err
    assert (silo / "report" / "budget.html").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium: not on PATH")
def test_the_page_is_printed_where_a_browser_is_there(silo: Path) -> None:
    assert command("--silo", str(silo), "--pdf") == 0
    assert (silo / "report" / "budget.pdf").read_bytes().startswith(b"%PDF-")


def test_the_pages_load_no_torch_and_no_matplotlib_before_they_draw() -> None:
    code = (
        "import sys, strategies.report.budget, strategies.report.budget_page, strategies.report.registry; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'flwr', 'matplotlib', 'opacus'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
