"""Laws of a report's facts: every privacy number is the accountant's for what was released at worst, none is missing.

Oracle: the accountant (tested against vectors in test_accounting.py), and Fraction arithmetic for the odds.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
import yaml
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from strategies import wire
from strategies.manifest import Manifest, Member
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Gaussian
from strategies.report import page as page_file
from strategies.report.facts import FORMAT, report_facts
from strategies.report.guarantee import odds
from strategies.report.page import render
from strategies.report.registry import registry_of_run
from strategies.report.usefulness import interval
from strategies.spec import Registries, Registry
from strategies.study import Study


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A model without arguments."""


TEXT = """
[study]
name = "heart"
task = "classification"
rounds = 4
[data]
kind = "tabular"
target = "ill"
[data.features]
age = { type = "numeric", min = 0, max = 120 }
[model]
name = "linear()"
[training]
steps = 3
[privacy]
noise_multiplier = 2.0
"""
STATEMENT = {"silo": "a", "epsilon": 1}
MASKED = ("[privacy]", "[secagg]\nenabled = true\n[privacy]")


def study(*changes: tuple[str, str]) -> Study:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return Study.parse(text, Registries(models=Registry(kind="model", classes=(Linear,))))


def facts(
    of: Study,
    *,
    status: str = "complete",
    lines: int = 4,
    rounds: dict[str, int] | None = None,
    refusals: tuple[str, ...] = (),
    closed: bool = True,
) -> dict[str, Any]:
    asked = {"b": 2, "a": 4} if rounds is None else rounds
    manifest = Manifest(
        run="r",
        study=of.digest,
        code="1",
        layout="l",
        roster=tuple(Member(silo=silo, weight=1.0) for silo in sorted(asked)),
    )
    silos = {
        silo: {
            "rounds": count,
            "closed": closed,
            "refusal": "budget" if silo == "b" else None,
            "statement": STATEMENT if silo == "a" else None,
        }
        for silo, count in asked.items()
    }
    return report_facts(
        study=of,
        manifest=manifest,
        status=status,
        started=datetime(2026, 1, 1, tzinfo=UTC),
        finished=datetime(2026, 1, 1, 0, 1, tzinfo=UTC),
        silos=silos,
        refusals=refusals,
        parameters=3,
        lines=[{"round": n, "metrics": {"accuracy": n / 10}, "loss": 1 / n} for n in range(1, lines + 1)],
    )


def release(rounds: int) -> list[Gaussian]:
    return [Gaussian(noise_multiplier=2.0, sampling_rate=0.05, steps=3 * rounds)]


def test_each_silos_epsilon_is_the_accountants_for_the_rounds_it_was_asked_for() -> None:
    found = facts(study())
    assert [silo["name"] for silo in found["silos"]] == ["a", "b"]
    for silo, rounds in zip(found["silos"], (4, 2), strict=True):
        expected = epsilon(release(rounds), 1e-5)
        assert silo["epsilon"] == expected
        assert silo["epsilon_rdp"] == epsilon(release(rounds), 1e-5, accountant="rdp") > expected
        assert silo["epsilon_without_amplification"] == epsilon(release(rounds), 1e-5, amplification=False) > expected
        assert silo["odds"] == odds(expected)
        assert silo["events"] == [
            {"kind": "gaussian", "noise_multiplier": 2.0, "sampling_rate": 0.05, "steps": 3 * rounds}
        ]
        assert (silo["delta"], silo["unit"], silo["rounds"]) == (1e-5, "record", rounds)
    assert found["privacy"]["epsilon_if_completed"] == epsilon(release(4), 1e-5)


def test_the_studys_accountant_gives_the_number() -> None:
    found = facts(study(("[privacy]", '[privacy]\naccountant = "rdp"')))
    assert (
        found["silos"][0]["epsilon"] == found["silos"][0]["epsilon_rdp"] == epsilon(release(4), 1e-5, accountant="rdp")
    )


def test_a_run_that_was_interrupted_before_its_first_round_has_no_metrics() -> None:
    found = facts(study(), status="interrupted", lines=0, rounds={"a": 0})
    assert (found["run"]["status"], found["run"]["rounds_done"], found["run"]["rounds_planned"]) == (
        "interrupted",
        0,
        4,
    )
    assert (found["metrics"], found["loss"], found["rounds"], found["baselines"]) == ({}, None, [], None)
    assert (found["silos"][0]["epsilon"], found["silos"][0]["events"], found["silos"][0]["odds"]) == (0.0, [], 0.5)
    assert found["privacy"]["epsilon_if_completed"] > 0


def test_a_run_names_what_it_cites() -> None:
    of = study()
    found = facts(of, refusals=("policy", "data"))
    assert found["format"] == FORMAT
    assert found["run"]["study_digest"] == of.digest
    assert (found["run"]["started"], found["run"]["finished"]) == (
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:01:00+00:00",
    )
    assert (found["metrics"], found["loss"], found["run"]["rounds_done"]) == ({"accuracy": 0.4}, 0.25, 4)
    assert found["never_joined"] == ["policy", "data"]
    assert [silo["refusal"] for silo in found["silos"]] == [None, "budget"]
    assert [silo["statement"] for silo in found["silos"]] == [STATEMENT, None]
    assert json.loads(json.dumps(found, allow_nan=False)) == found, "the facts are not plain JSON"


def test_a_run_without_a_mechanism_claims_nothing() -> None:
    unprotected = study(("noise_multiplier = 2.0", 'mechanism = "none"'))
    found = facts(unprotected)
    silo = found["silos"][0]
    assert [silo[key] for key in ("epsilon", "epsilon_rdp", "epsilon_without_amplification")] == [None] * 3
    assert (silo["odds"], silo["events"]) == (1.0, [{"kind": "exact", "what": "model update"}])
    assert found["privacy"]["epsilon_if_completed"] is None
    assert found["unprotected"][0].startswith("the model updates themselves")
    assert found["not_covered"][0].startswith("Nothing is covered")
    assert {row["field"]: row["privacy"] for row in found["releases"]}["Update.update"] == "exact"
    json.dumps(found, allow_nan=False)
    assert facts(unprotected, lines=0, rounds={"a": 0})["silos"][0]["epsilon"] is None, "nor before its first round"


def test_every_field_of_every_reply_is_listed_with_its_marks() -> None:
    rows = {row["field"]: row for row in facts(study())["releases"]}
    masked = {row["field"]: row for row in facts(study(MASKED))["releases"]}
    every = {f"{reply.__name__}.{field.name}" for reply in wire.REPLIES for field in fields(reply)}
    assert rows.keys() | masked.keys() == every
    assert rows.keys() ^ masked.keys() == {
        name for name in every if name.startswith(("Update.", "Masked", "Keyed.", "Share."))
    }
    assert (rows["Update.update"]["seen"], rows["Update.update"]["privacy"]) == ("clear", "released")
    update, counts = masked["MaskedUpdate.upload"], masked["MaskedCounts.upload"]
    assert (update["seen"], update["privacy"], counts["seen"], counts["privacy"]) == (
        *("masked", "released"),
        *("masked", "exact"),
    )
    assert not [row for row in masked.values() if row["seen"] == "clear" and row["privacy"] == "released"]


def test_what_is_not_protected_depends_on_the_study() -> None:
    plain, declared = (
        facts(study(("[model]", f'[strategy]\nweights = "{weights}"\n[model]')))["unprotected"]
        for weights in ("uniform", "declared")
    )
    assert set(declared) - set(plain) == {"the weight that each silo declares"}
    by_record = facts(study())["not_covered"]
    by_person = facts(study(('target = "ill"', 'target = "ill"\nunit = "person"')))
    assert "one record" in by_record[0]
    assert "'person'" in by_person["not_covered"][0]
    assert by_person["privacy"]["unit"] == by_person["silos"][0]["unit"] == "person"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], "the mean of a round goes where it pulls"),
        (
            [("noise_m", 'mechanism = "local-gaussian"\nclip_norm = 3.0\nnoise_m')],
            "one that does not clip is not bounded",
        ),
        (
            [
                ("noise_m", 'mechanism = "local-gaussian"\nclip_norm = 3.0\nnoise_m'),
                ("[model]", "[cohort]\nmin_silos = 2\n[model]"),
            ],
            "(3 f where others drop out and 2 are left)",
        ),
        ([("noise_m", 'mechanism = "central-gaussian"\nclip_norm = 3.0\nnoise_m')], "the server clips each again"),
        ([("[model]", '[strategy]\nname = "median()"\n[model]')], "no more than 1 of 3 are hostile"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_what_hostile_silos_can_do_is_said(changes: list[tuple[str, str]], said: str) -> None:
    """2 f C / n, worked by hand: C = 3 and 3 silos, of which one goes from one end of the ball to the other."""
    found = facts(study(*changes), rounds=dict.fromkeys("abc", 4))
    (sentence,) = [text for text in found["not_covered"] if "does not follow the code" in text]
    assert said in sentence
    assert ("= 2 f in L2" in sentence) == ("clip_norm" in str(changes))


# --- noisy counts -------------------------------------------------------------------------------------------

COUNTS = Gaussian(noise_multiplier=25.0)
NOISY = ("[privacy]", '[evaluation]\nrelease = "noisy"\nnoise_multiplier = 25.0\n[privacy]')
CLASSES = ('target = "ill"', 'target = "ill"\nclasses = ["no", "yes"]')


@pytest.mark.parametrize("closed", [True, False])
def test_counts_of_every_round_and_of_the_end_are_in_every_epsilon(closed: bool) -> None:
    found = facts(study(NOISY, CLASSES), closed=closed)
    for silo, rounds in zip(found["silos"], (4, 2), strict=True):
        events = [*release(rounds), *[COUNTS] * (rounds + closed)]
        assert silo["epsilon"] == epsilon(events, 1e-5) > epsilon(release(rounds), 1e-5)
        assert silo["epsilon_rdp"] == epsilon(events, 1e-5, accountant="rdp")
        assert {"kind": "gaussian", "noise_multiplier": 25.0, "sampling_rate": 1.0, "steps": rounds + closed} in silo[
            "events"
        ]
    assert found["privacy"]["epsilon_if_completed"] == epsilon([*release(4), *[COUNTS] * 5], 1e-5)
    assert found["evaluation"]["epsilon"] == epsilon([COUNTS] * 5, 1e-5)
    assert (found["evaluation"]["noise_multiplier"], found["evaluation"]["release"]) == (25.0, "noisy")
    assert found["evaluation"]["sensitivity"] == pytest.approx(3**0.5, abs=1e-6)  # cells, score bins, squared errors
    assert facts(study(CLASSES), closed=closed)["evaluation"] is None


def test_what_the_counts_are_depends_on_the_study() -> None:
    def of(*changes: tuple[str, str]) -> tuple[dict[str, Any], list[str]]:
        found = facts(study(CLASSES, *changes))
        return {row["field"]: (row["privacy"], row["what"]) for row in found["releases"]}, found["unprotected"]

    unprotected = ("noise_multiplier = 2.0", 'mechanism = "none"')
    for changes, protection in (((), "public"), ((NOISY,), "released"), ((NOISY, unprotected), "released")):
        rows, exact = of(*changes)
        assert {rows[f"{message}.counts"][0] for message in ("Update", "Farewell")} == {protection}
        assert ("nothing" in rows["Update.counts"][1]) == (protection == "public")
        assert not any("counts" in line for line in exact)
        assert rows["Update.update"][0] == ("exact" if unprotected in changes else "released")


def test_counts_bound_nothing_where_training_has_no_mechanism() -> None:
    found = facts(study(NOISY, CLASSES, ("noise_multiplier = 2.0", 'mechanism = "none"')))
    assert found["silos"][0]["epsilon"] is None and found["privacy"]["epsilon_if_completed"] is None
    kinds = [(event["kind"], event.get("steps")) for event in found["silos"][0]["events"]]
    assert kinds == [("gaussian", 5), ("exact", None)]
    assert found["evaluation"]["epsilon"] == epsilon([COUNTS] * 5, 1e-5)


def page(*, own: bool, groups: bool = True) -> str:
    """The words of the page of a run whose last line has noisy counts."""
    found = facts(study(NOISY, CLASSES))
    counts = {"silos": 4, "deviation": 86.6025, "resolution": {"auroc": 0.0123}}
    by_group = {"sex": {"F": {"accuracy": 0.8123}, "<M>": {"accuracy": None}}} if groups else None
    for line in found["rounds"]:
        line |= {"cohort": 4, "dropped": 0, "aggregated": True, "epsilon": {"a": 1.0}}
    found["rounds"][-1]["counts"] = counts
    found |= {"groups": by_group, "silo_metrics": {"accuracy": 0.7654} if own else None}
    return " ".join(re.sub(r"<[^>]*>", " ", render(found)).split())


def test_the_page_says_that_metrics_come_from_noisy_counts() -> None:
    text = page(own=False)
    assert "Measured by 4 silos on records that they hold out." in text
    assert "standard deviation 86.6025" in text and "which alone can move AUROC by 0.0123 at most" in text
    assert "Measured by the coordinator" not in text
    assert "noise multiplier 25" in text and "every ε on this page that speaks of the run has them in it" in text
    assert "sex Accuracy F 0.8123 &lt;M&gt; –" in text
    assert "sex Accuracy" not in page(own=False, groups=False)


def test_the_page_keeps_the_coordinators_own_metrics_apart_from_the_silos() -> None:
    text = page(own=True)
    assert "Measured by the coordinator on test records of its own. By the silos: Measured by 4 silos" in text
    assert "by the silos from noisy counts" in text and "0.7654" in text and "0.4000" in text


# --- what a report must state beside epsilon ------------------------------------------------------------------


def test_the_worst_silos_numbers_are_dp_accountings() -> None:
    """Silo a was asked for 4 rounds of 3 steps: 12 sampled releases, in both relations and without sampling."""
    numbers = facts(study())["numbers"]
    for key, relation, rate in (
        ("epsilon_pld", NeighboringRelation.ADD_OR_REMOVE_ONE, 0.05),
        ("epsilon_replace_one", NeighboringRelation.REPLACE_ONE, 0.05),
        ("epsilon_without_amplification", NeighboringRelation.ADD_OR_REMOVE_ONE, 1.0),
    ):
        accountant = PLDAccountant(relation)
        accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(2.0)), 12))
        expected = accountant.get_epsilon(1e-5)
        assert expected - 1e-3 <= numbers[key] <= expected * 1.002 + 2e-4, key
    assert [1e-5 in pair for pair in numbers["profile"]].count(True) == 1
    assert [numbers["epsilon_pld"], 1e-5] in numbers["profile"]
    assert numbers["odds"] == odds(numbers["epsilon_pld"])


def test_the_tier_is_that_of_the_worst_silo() -> None:
    assert facts(study())["tier"] == "strong" and facts(study())["silos"][0]["epsilon"] <= 1
    assert facts(study(("noise_multiplier = 2.0", "noise_multiplier = 0.8")))["tier"] == "reasonable"
    assert facts(study(("noise_multiplier = 2.0", 'mechanism = "none"')))["tier"] is None
    assert facts(study(), rounds={"a": 0}, lines=0)["tier"] is None


def test_kinds_of_release_build_up_the_worst_silos_epsilon() -> None:
    assert [part["name"] for part in facts(study())["steps"]] == ["model updates"]
    parts = facts(study(NOISY, CLASSES))["steps"]
    assert [part["name"] for part in parts] == ["model updates", "metric counts"]
    assert parts[0]["to"] == parts[1]["from"] == epsilon(release(4), 1e-5)
    assert parts[1]["to"] == facts(study(NOISY, CLASSES))["numbers"]["epsilon_pld"]


def test_nothing_released_or_nothing_bounded_has_no_numbers() -> None:
    assert facts(study(), rounds={"a": 0}, lines=0)["numbers"] is None
    bare = facts(study(("noise_multiplier = 2.0", 'mechanism = "none"')))
    assert (bare["numbers"], bare["steps"], bare["void"]) == (None, [], [])
    assert yaml.safe_load(registry_of_run(bare))["privacy_loss"]["privacy_parameters"] == []


def test_trust_audit_tuning_and_what_would_void_are_stated() -> None:
    found = facts(study())
    assert found["audit"]["status"] == "not run" and "fedsilo-simulate audit" in found["audit"]["reason"]
    assert "2^-10 clip norms" in found["privacy"]["floating_point"] and "2^-20" in found["privacy"]["floating_point"]
    assert "every run is charged" in found["tuning"] and len(found["void"]) >= 4
    assert "each silo's update by itself" in dict(found["trust"])["The server sees"]
    assert found["secure_aggregation"] == {
        "enabled": False,
        "evidence": "no masks, so there is no transcript; what protects an update is its noise",
        "min_silos": 3,
    }


def test_a_masked_run_states_the_rules_of_its_masks_and_no_loss_for_exact_sums() -> None:
    found = facts(study(MASKED))
    masks = found["secure_aggregation"]
    assert (masks["enabled"], masks["min_silos"], masks["max_colluding"], masks["silos"]) == (True, 3, 1, 2)
    assert masks["threshold"] == 2 and len(masks["rules"]) == 64
    assert [step["name"] for step in found["steps"]] == ["model updates"]
    assert {"kind": "summed", "what": "metric counts of the held-out units", "silos": 3, "times": 4} in found["silos"][
        0
    ]["events"]
    assert found["silos"][0]["epsilon"] == facts(study())["silos"][0]["epsilon"]
    assert any("no epsilon covers the held-out units" in line for line in found["unprotected"])
    assert ["1", "2", masks["rules"][:16]] == [str(line["value"]) for line in page_file._secure(found)[1:4]]


def test_the_registrys_entry_is_the_facts() -> None:
    found = facts(study())
    entry = yaml.safe_load(registry_of_run(found))
    assert {"tier", "product", "dp_flavor", "privacy_loss", "model", "accounting", "implementation"} == entry.keys()
    (spent,) = entry["privacy_loss"]["privacy_parameters"]
    assert (spent["epsilon"], spent["delta"]) == (found["numbers"]["epsilon_pld"], 1e-5)
    assert entry["product"]["study_digest"] == found["run"]["study_digest"]
    assert entry["dp_flavor"]["unprotected_quantities"] == found["unprotected"]


@pytest.mark.parametrize(
    ("right", "of", "low", "high"), [(9, 10, 0.5958, 0.9822), (0, 10, 0.0, 0.2776), (50, 100, 0.4038, 0.5962)]
)
def test_the_interval_of_an_accuracy_is_wilsons(right: int, of: int, low: float, high: float) -> None:
    """Textbook values of the 95 % score interval (Newcombe 1998 gives the method), rounded outwards here."""
    assert interval(right / of, of) == pytest.approx((low, high), abs=1e-4)


# --- odds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0.5),
        (math.log(3), 0.75),
        (math.log(9), 0.9),
        (1.0, 0.7311),
        (20.0, 1.0),
        (800.0, 1.0),
        (1e308, 1.0),
        (math.inf, 1.0),
    ],
)
def test_odds_by_hand(value: float, expected: float) -> None:
    """e^eps / (1 + e^eps); e / (1 + e) = 0.73105..., rounded up."""
    assert odds(value) == pytest.approx(expected, abs=1e-4)
    assert expected <= odds(value) <= 1.0


@given(st.floats(0, 50))
def test_odds_are_never_below_the_formula(value: float) -> None:
    power = Fraction(math.exp(value)) * (1 - Fraction(1, 10**15))  # math.exp is good to an ulp or two
    assert power / (1 + power) <= Fraction(odds(value)) <= power / (1 + power) + Fraction(2, 10**4)
