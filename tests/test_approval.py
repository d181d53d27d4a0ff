"""Laws of approval and admission: no approval but the officer's own, of these very bytes, under this very policy; and an
admitted study without a competing run is never stopped before its end.

Oracles: cryptography's own Ed25519 over the approval file, the ledger's gate asked round by round, brute search over
targets and rounds, the list of policy bypasses of the threat model written here by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from sites import (
    OFFICER_WORD,
    RUN,
    STUDY,
    TEXT,
    changed,
    credentials,
    invite,
    nothing,
    opened,
    prepare,
    records,
    request,
    rewrite,
    run_to_its_end,
    with_budget,
)

import client.cli
from client import round as local_round
from client.approval import Approval, admit, approve, path_of, read_approval
from client.keys import officer_key
from client.round import join
from client.silo import Silo
from strategies.command import guarded
from strategies.errors import Refusal, RefusalCode, StudyError, VerificationError
from strategies.privacy.accountant import epsilon
from strategies.privacy.admission import admission, open_part, share
from strategies.privacy.budget import Budget
from strategies.privacy.dataroot import DataRoot, repeat
from strategies.privacy.events import Exact, Gaussian
from strategies.proof.entries import ZERO
from strategies.statement import read_statement
from strategies.study import Study, override

ROOT = DataRoot(name="records", unit="patient_id", epsilon=2.0, delta=1e-5)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A silo folder with a registered data root and the policy that `init` writes."""
    records(tmp_path / "records.csv")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials(tmp_path / "credentials")))
    monkeypatch.chdir(tmp_path)
    source = ["--data", "ward=records.csv", "--unit", "patient_id", "--allow-volatile"]
    assert guarded(client.cli.app, arguments=["init", "north", *source]) == 0
    assert guarded(client.cli.app, arguments=["register", "ward", "--silo", "north"]) == 0
    return tmp_path / "north"


@pytest.fixture
def silo(site: Path) -> Silo:
    return opened(site)


def officer(silo: Silo) -> Ed25519PrivateKey:
    return officer_key(silo.folder / "keys", OFFICER_WORD)


def entries(silo: Silo) -> list[str]:
    with silo.ledger() as ledger:
        return [entry.kind for entry in ledger.entries() if entry.run]


# --- approval -----------------------------------------------------------------------------------------------


def test_an_approved_study_runs_and_any_other_does_not(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (lambda s: join(invite(s), s, silo), lambda s: prepare(request(s, 1), s, silo)):
        with pytest.raises(Refusal, match="has not been approved at this silo; use fedsilo-silo approve") as refused:
            ask(STUDY)
        assert refused.value.code is RefusalCode.APPROVAL
    approve(silo, STUDY, officer(silo))
    farewell = run_to_its_end(silo, STUDY)
    assert read_statement(farewell.statement).statement.epsilon == epsilon(STUDY.total_events(), 1e-5) <= 2.0
    monkeypatch.setattr(local_round, "read_records", nothing)
    other = Study.parse(TEXT + "# a comment\n", local_round.REGISTRIES)
    with pytest.raises(Refusal, match="has not been approved"):
        prepare(request(other, 1, "f" * 32), other, silo)


def test_an_approval_is_checked_by_others_code(silo: Silo) -> None:
    value = json.loads(approve(silo, STUDY, officer(silo)).read_text())
    with silo.ledger() as ledger:
        pins = ledger.pins
    assert value["key"] == pins.dpo_key and value["approval"]["ledger_id"] == pins.ledger_id
    assert value["approval"]["study"] == STUDY.digest and value["approval"]["data_root"] == "ward"
    canonical = json.dumps(value["approval"], sort_keys=True, separators=(",", ":")).encode()
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(pins.dpo_key))
    key.verify(bytes.fromhex(value["signature"]), b"fedsilo/approval/1\0" + canonical)


def test_a_changed_policy_asks_for_a_new_approval(silo: Silo, site: Path) -> None:
    approve(silo, STUDY, officer(silo))
    admit(silo, STUDY)
    rewrite(site / "policy.toml", "min_cohort = 3", "min_cohort = 2")
    later = opened(site)
    with pytest.raises(Refusal, match=r"under another policy\.toml .* a changed policy asks for a new approval") as no:
        admit(later, STUDY)
    assert no.value.code is RefusalCode.APPROVAL
    approve(later, STUDY, officer(later))
    admit(later, STUDY)


def test_the_policy_of_a_round_stands_in_the_ledger(silo: Silo, site: Path) -> None:
    rewrite(site / "policy.toml", "min_cohort = 3", "min_cohort = 2")
    later = opened(site)
    approve(later, STUDY, officer(later))
    prepare(request(STUDY, 1), STUDY, later)
    with later.ledger() as ledger:
        entry = ledger.entry(run=RUN, round=1, kind="reserve")
        assert entry and entry.policy == later.policy.sha256 != silo.policy.sha256
        assert [entry.kind for entry in ledger.entries()].count("policy") == 2


def flipped(data: bytes) -> bytes:
    return data.replace(b'"ward"', b'"Ward"')


def other_key(silo: Silo) -> bytes:
    return _approval(silo).signed(Ed25519PrivateKey.generate())


def _approval(silo: Silo, **changes: str) -> Approval:
    with silo.ledger() as ledger:
        values = {"ledger_id": ledger.pins.ledger_id, "study": STUDY.digest, "data_root": "ward"}
    return Approval(
        **(values | {"policy": silo.policy.sha256, "roster": ZERO, "time": "2026-01-31T12:00:00.000Z"} | changes)
    )


FORGED: dict[str, tuple[Callable[[Silo], bytes], str]] = {
    "empty": (lambda _: b"", "does not hold: the text is no canonical JSON"),
    "no approval": (lambda _: b"{}", "does not hold: it is no signed approval"),
    "another key": (other_key, "signed by another key than that of this silo's officer"),
    "another root written in": (lambda s: flipped(_approval(s).signed(officer(s))), "its signature does not hold"),
    "another study": (lambda s: _approval(s, study="0" * 64).signed(officer(s)), "approves something else"),
    "another silo": (lambda s: _approval(s, ledger_id="0" * 64).signed(officer(s)), "approves something else"),
    "another root": (lambda s: _approval(s, data_root="other").signed(officer(s)), "approves something else"),
    "another policy": (lambda s: _approval(s, policy="0" * 64).signed(officer(s)), "under another policy"),
    "another version": (
        lambda s: Approval(**{**_approval(s).__dict__, "version": 2}).signed(officer(s)),
        "other fields or values than an approval",
    ),
    "spaces": (lambda s: _approval(s).signed(officer(s)) + b" ", "no canonical JSON|not in its canonical form"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_is_no_approval_of_this_study_here_and_now_is_none(what: str, silo: Silo) -> None:
    make, sentence = FORGED[what]
    path = path_of(silo, STUDY.digest)
    path.parent.mkdir()
    path.write_bytes(make(silo))
    with pytest.raises(Refusal, match=sentence) as refused:
        prepare(request(STUDY, 1), STUDY, silo)
    assert refused.value.code is RefusalCode.APPROVAL and entries(silo) == []


def test_every_single_bit_of_an_approval_counts(silo: Silo, full_tier: bool) -> None:
    key, data = officer(silo), _approval(silo).signed(officer(silo))
    public = key.public_key().public_bytes_raw().hex()
    assert read_approval(data, public) == _approval(silo)
    for bit in range(0, 8 * len(data), 1 if full_tier else 7):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            read_approval(bytes(broken), public)


def test_only_the_officers_key_approves(silo: Silo) -> None:
    with pytest.raises(Refusal, match="not the officer's key that the ledger names"):
        approve(silo, STUDY, Ed25519PrivateKey.generate())
    assert not path_of(silo, STUDY.digest).exists()


def test_an_approval_does_not_widen_the_policy(silo: Silo, site: Path) -> None:
    wide = changed(training__sampling_rate=0.5)
    with pytest.raises(Refusal, match=r"asks for training\.sampling_rate at most 0\.1; the study has 0\.5"):
        approve(silo, wide, officer(silo))
    path = path_of(silo, wide.digest)
    path.parent.mkdir()
    path.write_bytes(_approval(silo, study=wide.digest).signed(officer(silo)))
    with pytest.raises(Refusal, match="at most") as refused:
        prepare(request(wide, 1), wide, silo)
    assert refused.value.code is RefusalCode.POLICY


# --- bypasses (T23) -----------------------------------------------------------------------------------------

BYPASSES: dict[str, tuple[dict[str, object], RefusalCode]] = {
    "no mechanism": ({"privacy.mechanism": "none", "privacy.epsilon": None}, RefusalCode.POLICY),
    "hardly any noise": ({"privacy.noise_multiplier": 0.01, "privacy.epsilon": None}, RefusalCode.BUDGET),
    "a large epsilon": ({"privacy.epsilon": 50.0}, RefusalCode.BUDGET),
    "clip 1e9": ({"privacy.clip_norm": 1e9}, RefusalCode.POLICY),
    "q 1": ({"training.sampling_rate": 1.0}, RefusalCode.POLICY),
    "steps x 100": ({"training.steps": 300}, RefusalCode.POLICY),
    "rounds x 1000 at one noise": (
        {"study.rounds": 3000, "privacy.epsilon": None, "privacy.noise_multiplier": 1.0},
        RefusalCode.BUDGET,
    ),
    "another delta": ({"privacy.delta": 1e-3}, RefusalCode.POLICY),
    "another unit": ({"data.unit": None}, RefusalCode.POLICY),
    "a cohort of one": ({"cohort.min_silos": 1}, RefusalCode.POLICY),
    "exact metrics": (
        {"evaluation.release": "noisy", "evaluation.noise_multiplier": 0.1, "privacy.epsilon": 2000.0},
        RefusalCode.POLICY,
    ),
    "no public batch size": ({"training.expected_batch_size": None}, RefusalCode.STUDY),
}


@pytest.mark.parametrize("approval", ["automatic", "required"])
@pytest.mark.parametrize("what", BYPASSES)
def test_a_bypass_is_refused_before_a_record_is_read(
    what: str, approval: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The officer has approved the study that these edit; also a server that skips the invitation is refused."""
    rewrite(site / "policy.toml", 'approval = "required"', f'approval = "{approval}"')
    silo = opened(site)
    approve(silo, STUDY, officer(silo))
    values, code = BYPASSES[what]
    study = Study.parse(override(TEXT, values), local_round.REGISTRIES)
    monkeypatch.setattr(local_round, "read_records", nothing)
    with pytest.raises(Refusal) as refused:
        join(invite(study), study, silo)
    assert refused.value.code in ((code,) if approval == "automatic" else (code, RefusalCode.APPROVAL))
    if code is not RefusalCode.BUDGET or approval == "required":
        with pytest.raises(Refusal):
            prepare(request(study, 1), study, silo)
        assert entries(silo) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epsilon = 2.0", "noise_multiplier = 0"),
        ("epsilon = 2.0", "noise_multiplier = nan"),
        ("epsilon = 2.0", "epsilon = inf"),
        ("epsilon = 2.0", 'epsilon = 2.0\naccountant = "gdp"'),
        ("epsilon = 2.0", 'epsilon = 2.0\naccountant = "none"'),
        ("epsilon = 2.0", "epsilon = 2.0\nclip_norm = inf"),
        ("epsilon = 2.0", "epsilon = 2.0\ndelta = 0.0"),
        ("logistic()", "batchnorm()"),
        ("logistic()", "mlp(normalisation='batch')"),
        ("logistic()", "mlp(frozen=[0])"),
        ("steps = 3", "steps = 3\nskip_empty = true"),
        ("steps = 3", "steps = 0"),
        ("steps = 3", "steps = -3"),
        ("sampling_rate = 0.1", "sampling_rate = 1.5"),
    ],
)
def test_a_bypass_that_is_no_study_at_all(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(StudyError):
        Study.parse(TEXT.replace(old, new), local_round.REGISTRIES)


# --- admission ----------------------------------------------------------------------------------------------

NOISY = {"evaluation__release": "noisy", "evaluation__noise_multiplier": 30.0}
KINDS = {"updates": {}, "with counts": NOISY, "rdp accountant": {"privacy__accountant": "rdp"}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_epsilon_is_the_largest(kind: str) -> None:
    study = changed(privacy__epsilon=6.0, **KINDS[kind])
    asked = admission(study, ROOT, ())
    largest = asked.largest_epsilon
    assert not asked.fits and largest is not None and f"privacy.epsilon = {largest:g}" in asked.sentence()
    assert admission(changed(**KINDS[kind], privacy__epsilon=largest), ROOT, ()).fits
    assert not admission(changed(**KINDS[kind], privacy__epsilon=round(largest + 1e-4, 4)), ROOT, ()).fits


@pytest.mark.parametrize("kind", ["updates", "with counts"])
def test_the_number_of_rounds_is_the_largest(kind: str) -> None:
    study = changed(privacy__epsilon=3.0, study__rounds=30, **KINDS[kind])
    spent = (Gaussian(noise_multiplier=40.0, sampling_rate=0.5, steps=7),)
    budget = Budget(epsilon=2.0, delta=1e-5)
    one, end = study.round_events(), study.closing_events()
    fitting = next(n for n in range(31) if not budget.fits(spent, (*one * (n + 1), *end)))
    asked = admission(study, ROOT, spent)
    assert (
        asked.rounds == fitting > 0 and not asked.fits and f"{fitting} of its 30 rounds would fit" in asked.sentence()
    )
    noise = {"privacy__epsilon": None, "privacy__noise_multiplier": study.noise_multiplier}
    shorter = changed(study__rounds=fitting, **(KINDS[kind] | noise))
    assert admission(shorter, ROOT, spent).fits, "what the sentence asks for fits"


def test_the_end_of_a_run_has_its_place() -> None:
    """Counts that cost as much as a round: the last of them takes one round's place."""
    loud = {"evaluation__release": "noisy", "evaluation__noise_multiplier": 2.0}
    study = changed(**loud, study__rounds=30, privacy__epsilon=None, privacy__noise_multiplier=20.0)
    root, budget = DataRoot(name="r", unit="record", epsilon=8.0, delta=1e-5), Budget(epsilon=8.0, delta=1e-5)
    without = budget.rounds_that_fit((), study.round_events(), 30)
    assert admission(study, root, ()).rounds == without - 1 > 1


def test_what_cannot_fit_says_so() -> None:
    full = (Gaussian(noise_multiplier=0.3),)
    asked = admission(STUDY, ROOT, full)
    assert (asked.fits, asked.rounds, asked.largest_epsilon) == (False, 0, None)
    assert asked.sentence().endswith("nothing of it fits any more")
    plain = changed(privacy__mechanism="none", privacy__epsilon=None)
    assert not admission(plain, ROOT, ()).fits and "mechanism = 'none'" in admission(plain, ROOT, ()).sentence()
    public = DataRoot(name="records", unit="record", epsilon=math.inf, delta=1e-5)
    assert admission(plain, public, (Exact(what="x"),)).fits


@given(st.integers(1, 40), st.floats(0.6, 6), st.floats(0.3, 12), st.sampled_from(["rdp", "preregistered"]))
def test_every_beginning_of_an_admitted_study_passes_the_gate(
    rounds: int, noise: float, budget: float, gate: str
) -> None:
    study = changed(study__rounds=rounds, privacy__epsilon=None, privacy__noise_multiplier=round(noise, 4), **NOISY)
    slots = study.total_events() if gate == "preregistered" else ()
    budget = max(budget, epsilon(slots, 1e-5) if slots else 0)
    root = DataRoot(name="r", unit="record", epsilon=budget, delta=1e-5, gate=gate, slots=slots)  # type: ignore[arg-type]
    if admission(study, root, ()).fits:
        done = ()
        for number in range(rounds):
            assert root.fits(done, study.round_events())
            done = repeat(study.round_events(), number + 1)
        assert root.fits(done, study.closing_events())


@pytest.mark.parametrize("kind", ["updates", "with counts"])
def test_a_study_at_the_edge_of_the_budget_runs_to_its_end(kind: str, site: Path) -> None:
    """With the largest epsilon that is told, every round and the closing counts are granted, and hardly more."""
    rewrite(site / "policy.toml", 'allow_metrics = "none"', 'allow_metrics = "noisy"')
    rewrite(site / "policy.toml", "epsilon = 8.0", "epsilon = 2.0")
    rewrite(site / "policy.toml", 'approval = "required"', 'approval = "automatic"')
    silo = opened(site)
    with silo.ledger() as ledger:
        largest = ledger.balance("ward").admission(changed(**KINDS[kind])).largest_epsilon
    study = changed(**KINDS[kind], privacy__epsilon=largest)
    farewell = run_to_its_end(silo, study)
    assert farewell.counts.size == (0 if kind == "updates" else 5) or farewell.counts.any()
    with silo.ledger() as ledger:
        balance = ledger.balance("ward")
    assert 1.98 < balance.used <= 2.0
    with pytest.raises(Refusal, match="0 of its 3 rounds would fit") as refused:
        join(invite(study), study, silo)
    assert refused.value.code is RefusalCode.BUDGET


def test_a_plan_runs_to_its_end_and_nothing_else(site: Path, tmp_path: Path) -> None:
    """Gate `preregistered`: a study calibrated by PLD to the whole budget is admitted and runs to its end."""
    study = changed(privacy__epsilon=1.0, **NOISY)
    (tmp_path / "study.toml").write_text(study.text)
    rewrite(site / "policy.toml", 'gate = "rdp"', 'gate = "preregistered"')
    rewrite(site / "policy.toml", "[budget.ward]\nepsilon = 8.0", "[budget.plan]\nepsilon = 1.0")
    rewrite(site / "policy.toml", 'allow_metrics = "none"', 'allow_metrics = "noisy"')
    rewrite(site / "silo.toml", "[data.ward]", "[data.plan]")
    records(tmp_path / "records.csv", first=1000)
    arguments = ["register", "plan", "--silo", "north", "--plan", "study.toml"]
    assert guarded(client.cli.app, arguments=arguments) == 0
    silo = opened(site)
    approve(silo, study, officer(silo))
    assert not Budget(epsilon=1.0, delta=1e-5).fits((), study.total_events()), "the other gate would stop it"
    run_to_its_end(silo, study)
    with silo.ledger() as ledger:
        whole = ledger.balance("plan").admission(study)
    assert not whole.fits and whole.largest_epsilon is None and "those of the registered plan" in whole.sentence()
    with pytest.raises(Refusal, match="does not fit"):
        join(invite(study), study, silo)


def test_the_gate_of_the_policy_is_the_registered_one(site: Path) -> None:
    rewrite(site / "policy.toml", 'gate = "rdp"', 'gate = "preregistered"')
    with pytest.raises(Refusal, match=r"gate = 'preregistered', and the data root was registered with 'rdp'"):
        admit(opened(site), STUDY)


def test_a_stricter_policy_than_the_registration_decides(silo: Silo) -> None:
    strict = with_budget(silo, epsilon=0.5)
    with strict.ledger() as ledger:
        asked = ledger.balance("ward").admission(STUDY)
    assert not asked.fits and asked.budget == 0.5 and asked.largest_epsilon is not None
    assert asked.largest_epsilon < 0.5


@given(st.integers(1, 30), st.floats(0.5, 30), st.sampled_from([0.5, 1.0, 2.0, 8.0]), st.booleans())
def test_equal_rounds_take_equal_shares(rounds: int, noise: float, budget: float, limited: bool) -> None:
    """And the whole share is 1 exactly where the gate ends."""
    root = DataRoot(name="r", unit="record", epsilon=8.0 if limited else budget, delta=1e-5)
    limit = Budget(epsilon=budget, delta=1e-5) if limited else None
    one = (Gaussian(noise_multiplier=noise, sampling_rate=0.1, steps=5),)
    parts = [share(root, limit, repeat(one, n)) for n in (0, 1, rounds, 2 * rounds)]
    assert parts[0] == 0 and parts[2] == pytest.approx(rounds * parts[1], abs=rounds * 5e-3)
    assert parts[3] == pytest.approx(2 * parts[2], abs=1e-2, rel=1e-2)
    fits = root.fits((), repeat(one, rounds)) and (limit is None or limit.fits((), repeat(one, rounds)))
    assert fits == (parts[2] <= 1)


def test_a_simulations_refusal_says_what_the_silo_says(tmp_path: Path) -> None:
    """A server learns a code; who simulates his own silos is told the sentence."""
    from simulations.silos import REGISTRIES, make_silos, why_refused
    from simulations.sources import read_dataset

    text = override(TEXT, {"simulation.dataset": str(tmp_path / "records.csv"), "simulation.partition": "iid"})
    records(tmp_path / "records.csv")
    study = Study.parse(text, REGISTRIES)
    silos = make_silos(study, read_dataset(study, tmp_path), tmp_path / "silos")
    large = study.with_values({"privacy.epsilon": 30.0}, REGISTRIES)
    said = why_refused(large, silos, Refusal(RefusalCode.BUDGET, "no"))
    assert "of its 3 rounds would fit; ask for privacy.epsilon = 6." in said and said.endswith(
        "--fresh for new silo folders"
    )
    other = study.with_values({"privacy.delta": 1e-4}, REGISTRIES)
    assert "asks for privacy.delta at most 1e-05" in why_refused(other, silos, Refusal(RefusalCode.POLICY, "no"))
    assert why_refused(study, silos, Refusal(RefusalCode.POLICY, "no")) == "no"


def test_what_is_open_is_told_from_what_is_committed() -> None:
    one, other = Gaussian(noise_multiplier=1.0, steps=2), Gaussian(noise_multiplier=2.0)
    twice = Gaussian(noise_multiplier=1.0, steps=4)
    assert open_part((one, one, other), (one,)) == ((one, other), (one,))
    assert open_part((twice,), ()) == ((twice,), ())
