"""Laws of one round at one silo: nothing is trained without a reservation, nothing is handed out before its release is
durable, a retry is the same bytes and costs nothing, and no text of an error leaves.

Oracles: the files of the silo folder as they stand at the moment of each call, hashlib over packed replies, the budget's
gate asked round by round. Records are scikit-learn's breast cancer, cut into three silos as a simulation cuts them.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from witnesses import witnessed

import simulations
import strategies
from client import app as edge
from client import closing
from client import round as local_round
from client.ledger import Ledger
from client.models.base import build, load_weights, predict, weights_of
from client.round import Shape, finish, join, model_layout, train
from client.silo import RunState, Silo
from server.app import app as server_app
from simulations.engines import inline
from simulations.silos import REGISTRIES, complete, make_silos
from simulations.sources import read_dataset
from strategies import wire
from strategies.errors import DataError, FedsiloError, ProtocolError, Refusal, RefusalCode, RunError
from strategies.manifest import CODE_VERSION, Manifest, Member
from strategies.privacy.accountant import epsilon, epsilon_at_order
from strategies.privacy.budget import Budget
from strategies.privacy.secret import SecretRandom
from strategies.proof.check import check
from strategies.proof.trust import Trust
from strategies.statement import read_statement
from strategies.study import Study, override

TEXT = """[study]
name = "round"
task = "classification"
rounds = 3
[data]
kind = "tabular"
target = "diagnosis"
classes = ["benign", "malignant"]
[data.features]
"mean radius" = { type = "numeric", min = 8, max = 20 }
"mean texture" = { type = "numeric", min = 10, max = 30 }
[model]
name = "logistic()"
[training]
sampling_rate = 0.2
steps = 3
optimizer = "sgd(lr=1.0)"
expected_batch_size = 30
[privacy]
noise_multiplier = 2.0
[cohort]
min_silos = 3
[simulation]
dataset = "breast_cancer()"
silos = 3
partition = "iid"
"""
STUDY = Study.parse(TEXT, REGISTRIES)
FRAME = read_dataset(STUDY, Path())
RUN = "0123456789abcdef" * 2
CANARY = "patient 4711 Müller"


@pytest.fixture
def silos(tmp_path: Path) -> list[Silo]:
    return [Silo.open(folder) for folder in make_silos(STUDY, FRAME, tmp_path)]


@pytest.fixture
def silo(silos: list[Silo]) -> Silo:
    return silos[0]


def invite(study: Study = STUDY, /, **changes: Any) -> wire.Invite:
    layout = model_layout(study).digest()
    return replace(wire.Invite(run=RUN, study=study.digest, code=CODE_VERSION, layout=layout), **changes)


def manifest(study: Study = STUDY, /, **changes: Any) -> str:
    """What was agreed on; whose ledgers, keys and coordinator is filled in by `witnessed`."""
    members = tuple(Member(silo=f"silo-{number}", weight=1.0) for number in (1, 2, 3))
    agreed = Manifest(
        run=RUN, study=study.digest, code=CODE_VERSION, layout=model_layout(study).digest(), roster=members
    )
    return replace(agreed, **changes).to_json()


def prepare(message: wire.Train, study: Study, silo: Silo) -> local_round.Job | wire.Update:
    return local_round.prepare(witnessed(message, silo), study, silo)


def close(message: wire.Close, study: Study, silo: Silo) -> wire.Farewell:
    return closing.close(witnessed(message, silo), study, silo)


def request(round: int = 1, study: Study = STUDY, **changes: Any) -> wire.Train:
    weights = weights_of(build(study.model, Shape.of_study(study), 7))
    whole = wire.Train(
        manifest=manifest(study), round=round, received=round - 1, heads="", receipts="", weights=weights, broadcast={}
    )
    return replace(whole, **changes)


def trained(silo: Silo, message: wire.Train | None = None, study: Study = STUDY) -> wire.Update:
    """One whole round, as the client app walks it."""
    job = prepare(message or request(study=study), study, silo)
    assert isinstance(job, local_round.Job)
    return finish(job, train([job])[0])


def ending(**changes: Any) -> wire.Close:
    return replace(
        wire.Close(manifest=manifest(), received=2, heads="", receipts="", weights=request().weights), **changes
    )


def kinds(silo: Silo) -> list[tuple[str, int]]:
    with silo.ledger() as ledger:
        return [(entry.kind, entry.round) for entry in ledger.entries() if entry.run]  # without genesis and data root


def log_of(silo: Silo) -> str:
    path = silo.folder / "logs" / "silo.log"
    return path.read_text() if path.exists() else ""


# --- the order of things ------------------------------------------------------------------------------------


def test_a_run_from_invitation_to_farewell(silo: Silo) -> None:
    assert join(invite(), STUDY, silo).silo == "silo-1"
    assert kinds(silo) == []
    first, second = trained(silo), trained(silo, request(2))
    assert kinds(silo) == [
        (kind, r) for r, kind in ((1, "reserve"), (1, "release"), (1, "commit"), (2, "reserve"), (2, "release"))
    ]
    assert first.update.shape == (5,) and not np.array_equal(first.update, second.update)
    goodbye = close(ending(), STUDY, silo)
    statement = read_statement(goodbye.statement).statement
    assert kinds(silo)[-1] == ("commit", 2)
    assert statement.epsilon == epsilon(STUDY.round_events() * 2, 1e-5) and statement.silo == "silo-1"
    assert statement.budget.spent == silo.budget().spent(STUDY.round_events() * 2)
    with silo.ledger() as ledger:
        assert [line.decode() for line in ledger.export()] == goodbye.ledger.splitlines()
        assert (statement.hash, statement.policy) == (ledger.head().head.hash, silo.policy.sha256)


def test_the_reservation_stands_before_a_record_is_read(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def unreadable(*_: object) -> None:
        seen.append(kinds(silo))
        raise DataError(CANARY)

    monkeypatch.setattr(local_round, "read_records", unreadable)
    with pytest.raises(DataError):
        prepare(request(), STUDY, silo)
    assert seen == [[("reserve", 1)]] and kinds(silo) == [("reserve", 1)]  # and stays, though nothing was trained


def test_ledger_before_wire(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a durable release nothing is handed out, and what was reserved stays spent."""

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(CANARY)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "release", full_disk)
        with pytest.raises(OSError, match=CANARY):
            trained(silo)
    assert kinds(silo) == [("reserve", 1)]
    with pytest.raises(Refusal) as refused:  # the stored reply without a release is not sent later either
        prepare(request(), STUDY, silo)
    assert refused.value.code is RefusalCode.PROTOCOL and kinds(silo) == [("reserve", 1)]
    trained(silo, request(2))
    with silo.ledger() as ledger:
        assert ledger.spent("records") == STUDY.round_events() * 2


def test_order_of_durable_writes(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def spied(cls: type, name: str) -> None:
        original = getattr(cls, name)

        def spy(*args: Any, **kwargs: Any) -> Any:
            steps.append(
                f"{name} begins, reply {'stored' if silo.state(RUN).reply(1) else 'absent'}, "
                f"release {'there' if ('release', 1) in kinds(silo) else 'absent'}"
            )
            return original(*args, **kwargs)

        monkeypatch.setattr(cls, name, spy)

    spied(RunState, "keep_reply")
    spied(Ledger, "release")
    spied(Ledger, "reserve")
    trained(silo)
    assert steps == [
        "reserve begins, reply absent, release absent",
        "keep_reply begins, reply absent, release absent",
        "release begins, reply stored, release absent",
    ]
    assert silo.state(RUN).reply(1) and ("release", 1) in kinds(silo)


def test_the_release_is_the_hash_of_the_bytes_that_leave(silo: Silo) -> None:
    payload = wire.pack(trained(silo))
    with silo.ledger() as ledger:
        entry = ledger.entry(run=RUN, round=1, kind="release")
    assert entry and entry.body == {"sha256": hashlib.sha256(payload).hexdigest()}
    assert silo.state(RUN).reply(1) == payload


def test_a_retry_is_the_same_bytes_and_is_charged_once(silo: Silo) -> None:
    payload, ledger = wire.pack(trained(silo)), kinds(silo)
    for message in (request(), request(weights=request().weights + 1)):  # also when the server sends other weights
        again = prepare(message, STUDY, silo)
        assert isinstance(again, wire.Update) and wire.pack(again) == payload
    assert kinds(silo) == ledger == [("reserve", 1), ("release", 1)]
    silo.state(RUN).keep_reply(1, payload + b" ")  # a stored reply that is not what was released never leaves
    with pytest.raises(Refusal):
        prepare(request(), STUDY, silo)


def test_the_update_is_weighted_by_the_manifest(tmp_path: Path) -> None:
    plain = Study.parse(TEXT.replace("noise_multiplier = 2.0", 'mechanism = "none"'), REGISTRIES)
    folder = make_silos(plain, FRAME, tmp_path)[0]  # registered as public data
    silo = Silo.open(folder)
    assert math.isinf(silo.budget().epsilon)
    once = trained(silo, request(study=plain), plain)
    settings = (folder / "silo.toml").read_text()
    (folder / "silo.toml").write_text(f"weight = 2.5\n{settings}")
    heavy = Silo.open(folder)
    declared = plain.with_values({"strategy.weights": "declared"}, REGISTRIES)

    def asked(weight: float, run: str, study: Study) -> wire.Train:
        roster = (Member(silo="silo-1", weight=weight), *[Member(silo=f"silo-{n}", weight=1.0) for n in (2, 3)])
        return request(study=study, manifest=manifest(study, run=run, roster=roster))

    weighted = trained(heavy, asked(2.5, "f" * 32, declared), declared)
    np.testing.assert_allclose(weighted.update, 2.5 * once.update, rtol=1e-6)
    with pytest.raises(ProtocolError, match="another weight than it declares"):
        prepare(asked(1.0, "e" * 32, declared), declared, heavy)
    with pytest.raises(ProtocolError, match="weighs all silos alike"):
        prepare(asked(2.5, "d" * 32, plain), plain, heavy)


# --- what is refused ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], wire.Train], str]] = {
    "another study": (lambda: request(manifest=manifest(study="0" * 64)), "cites another study"),
    "not in the roster": (
        lambda: request(manifest=manifest(roster=(Member(silo="silo-2", weight=1.0),))),
        "not in the run's roster",
    ),
    "no manifest": (lambda: request(manifest="{}"), "cannot be read"),
    "not canonical": (lambda: request(manifest=manifest() + " "), "canonical form"),
    "run that is a path": (lambda: request(manifest=manifest(run="../../../elsewhere")), "32 hex digits"),
    "round 0": (lambda: request(0), "round 0 is not in the study's 1 to 3"),
    "round 4": (lambda: request(4), "round 4 is not in the study's 1 to 3"),
    "gone on from itself": (lambda: request(2, used=2), "round 2 is none"),
    "gone on from before the first": (lambda: request(1, used=-1), "round -1 is none"),
    "gone on from a round of many digits": (lambda: request(1, used=10**300), "0 is none"),
    "short weights": (lambda: request(weights=np.zeros(4, np.float32)), r"the model has shape \(4,\)"),
    "NaN weights": (lambda: request(weights=np.full(5, np.nan, np.float32)), "the model holds a value that is not"),
    "infinite broadcast": (
        lambda: request(broadcast={"c": np.full(5, np.inf, np.float32)}),
        "c holds a value that is not",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_round_that_was_not_agreed_is_refused_before_the_ledger(what: str, silo: Silo) -> None:
    message, sentence = WRONG[what]
    with pytest.raises(ProtocolError, match=sentence):
        prepare(message(), STUDY, silo)
    assert kinds(silo) == []


@pytest.mark.parametrize(
    "changes",
    [{"layout": "0" * 64}, {"roster": (Member(silo="silo-1", weight=1.0),)}, {"code": "9"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_keeps_the_manifest_that_it_began_with(changes: dict[str, Any], silo: Silo) -> None:
    trained(silo)
    with pytest.raises(ProtocolError, match="not the one that this run began with"):
        prepare(request(2, manifest=manifest(**changes)), STUDY, silo)
    with pytest.raises(ProtocolError, match="not the one that this run began with"):
        close(ending(manifest=manifest(**changes)), STUDY, silo)
    assert ("reserve", 2) not in kinds(silo)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"study": "0" * 64}, RefusalCode.STUDY),
        ({"code": "9"}, RefusalCode.STUDY),
        ({"layout": "0" * 64}, RefusalCode.PROTOCOL),
    ],
)
def test_an_invitation_to_something_else_is_refused(changes: dict[str, str], code: RefusalCode, silo: Silo) -> None:
    with pytest.raises(Refusal) as refused:
        join(invite(**changes), STUDY, silo)
    assert refused.value.code is code


def test_a_study_beyond_the_budget_is_refused_with_what_would_fit(silo: Silo) -> None:
    trained(silo)
    long = Study.parse(override(TEXT, {"study.rounds": 500}), REGISTRIES)
    fitting = next(
        n for n in range(500) if not silo.budget().fits(STUDY.round_events(), STUDY.round_events() * (n + 1))
    )
    with pytest.raises(Refusal, match=f"{fitting} of its 500 rounds would fit") as refused:
        join(invite(long), long, silo)
    assert refused.value.code is RefusalCode.BUDGET and 0 < fitting < 500
    exact = Study.parse(override(TEXT, {"study.rounds": fitting}), REGISTRIES)
    join(invite(exact), exact, silo)


@pytest.mark.parametrize("limit", [{"approval": "required"}, {"max_sampling_rate": 1e-6}, {"allow_models": ("gru",)}])
def test_policy_holds_for_a_server_that_skips_the_invitation(limit: dict[str, Any], silo: Silo) -> None:
    require = silo.policy.require.model_copy(update=limit)
    strict = replace(silo, policy=silo.policy.model_copy(update={"require": require}))
    with pytest.raises(Refusal):
        prepare(request(), STUDY, strict)
    with pytest.raises(Refusal):
        close(ending(), STUDY, strict)
    assert kinds(silo) == []


def test_the_gate_holds_in_every_round(silo: Silo) -> None:
    """A server that asks for one round after the other in run after run is stopped by the ledger."""
    granted = 0
    with pytest.raises(Refusal) as refused:
        while granted < 500:
            prepare(request(manifest=manifest(run=f"{granted:032x}")), STUDY, silo)
            granted += 1
    assert refused.value.code is RefusalCode.BUDGET
    assert granted == silo.budget().rounds_that_fit((), STUDY.round_events(), 500)


def test_four_runs_of_the_default_study_fit_and_a_fifth_is_refused(tmp_path: Path) -> None:
    text = (Path(simulations.__path__[0]) / "studies" / "breast_cancer.toml").read_text()
    study = Study.parse(text, REGISTRIES)
    source = read_dataset(study, Path())
    study, _ = complete(study, source)
    silo, rounds = Silo.open(make_silos(study, source, tmp_path)[0]), study.file.study.rounds
    for number in range(4):
        join(invite(study), study, silo)
        with silo.ledger() as ledger:
            events = [study.round_events()] * rounds + [study.closing_events()] * bool(study.closing_events())
            for round, planned in enumerate(events, 1):
                ledger.reserve(data_root="records", run=f"{number:032x}", round=round, events=planned)
    with pytest.raises(Refusal, match=f"of its {rounds} rounds would fit") as refused:
        join(invite(study), study, silo)
    assert (refused.value.code, refused.value.exit_code) == (RefusalCode.BUDGET, 3)
    with silo.ledger() as ledger:
        assert ledger.balance("records").rounds_that_fit(study.round_events(), rounds) < rounds


# --- noisy counts -------------------------------------------------------------------------------------------

NOISY_TEXT = (
    TEXT
    + """[evaluation]
release = "noisy"
noise_multiplier = 20.0
metrics = ["accuracy", "brier"]
"""
)
NOISY = Study.parse(NOISY_TEXT, REGISTRIES)


def allowing(silo: Silo, metrics: str) -> Silo:
    require = silo.policy.require.model_copy(update={"allow_metrics": metrics})
    return replace(silo, policy=silo.policy.model_copy(update={"require": require}))


@pytest.fixture
def counting(silo: Silo) -> Silo:
    """A silo whose policy allows noisy counts."""
    return allowing(silo, "noisy")


def closing_counts(**changes: Any) -> wire.Close:
    return ending(**{"manifest": manifest(NOISY), "received": 1} | changes)


def farewell(silo: Silo, **changes: Any) -> wire.Farewell:
    return close(closing_counts(**changes), NOISY, silo)


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is nothing, so that the counts behind it can be compared."""
    monkeypatch.setattr(SecretRandom, "normal", lambda self, count, deviation: np.zeros(count))


def own_counts(silo: Silo, weights: np.ndarray) -> np.ndarray:
    """Worked by hand: true and false positives, false and true negatives, and the squared errors."""
    held_out = local_round.read_records(silo, NOISY).held_out
    module = build(NOISY.model, Shape.of_study(NOISY), 7)
    load_weights(module, weights)
    score, truth = predict(module, held_out.x, Shape.of_study(NOISY))[:, 1], held_out.y.numpy()
    chosen = score > 0.5
    cells = [(chosen & (truth == 1)).sum(), (chosen & (truth == 0)).sum()]
    cells += [(~chosen & (truth == 1)).sum(), (~chosen & (truth == 0)).sum()]
    return np.array([*cells, ((score - truth) ** 2).sum()])


def test_noisy_counts_need_the_silos_leave(silo: Silo, counting: Silo) -> None:
    for allowed in ("none", "masked"):
        strict = allowing(silo, allowed)
        for ask_for in (lambda s: join(invite(NOISY), NOISY, s), lambda s: prepare(request(study=NOISY), NOISY, s)):
            with pytest.raises(Refusal, match=f"evaluation\\.release {allowed}; the study has noisy") as refused:
                ask_for(strict)
            assert refused.value.code is RefusalCode.POLICY and kinds(silo) == []
    assert join(invite(NOISY), NOISY, counting).silo == "silo-1"
    join(invite(), STUDY, counting)  # a study that releases none is stricter


def test_counts_speak_of_the_model_that_came_before_it_is_trained(
    counting: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    weights = np.array([0.5, -1.0, 1.0, 0.3, 0.2], np.float32)
    reply = trained(counting, request(study=NOISY, weights=weights), NOISY)
    assert 0 < reply.counts[4] < 30 and reply.counts[:4].sum() > 20
    np.testing.assert_allclose(reply.counts, own_counts(counting, weights), atol=1e-3)
    np.testing.assert_allclose(farewell(counting, weights=-weights).counts, own_counts(counting, -weights), atol=1e-3)
    assert not np.allclose(own_counts(counting, weights), own_counts(counting, -weights), atol=1)


def test_counts_that_leave_have_noise_of_the_stated_size(counting: Silo) -> None:
    """Sensitivity sqrt(2) (one cell, one squared error) times 20; fresh noise in each round and run."""
    exact, seen = own_counts(counting, request(study=NOISY).weights), []
    budget = counting.policy.budget["records"].model_copy(update={"epsilon": 1e6})
    rich = replace(counting, policy=counting.policy.model_copy(update={"budget": {"records": budget}}))
    for number in range(40):
        message = request(study=NOISY, manifest=manifest(NOISY, run=f"{number:032x}"))
        seen.append(trained(rich, message, NOISY).counts - exact)
    deviation = np.std(seen) / (20 * math.sqrt(2))  # of 200 values: known to 1 in 20; four of these
    assert 0.8 < deviation < 1.2
    assert len({tuple(counts) for counts in seen}) == 40


def test_counts_are_charged_and_the_end_is_a_round_of_its_own(counting: Silo) -> None:
    trained(counting, request(study=NOISY), NOISY)
    goodbye = farewell(counting)
    assert goodbye.counts.shape == (5,) and goodbye.counts.any()
    assert kinds(counting) == [("reserve", 1), ("release", 1), ("commit", 1), ("reserve", 4), ("release", 4)]
    with counting.ledger() as ledger:
        spent = ledger.spent("records")
        entry = ledger.entry(run=RUN, round=4, kind="release")
    assert spent == NOISY.round_events() + NOISY.closing_events() and len(spent) == 3
    assert entry and entry.body == {"sha256": hashlib.sha256(wire.pack(goodbye)).hexdigest()}
    assert (
        read_statement(goodbye.statement).statement.epsilon
        == epsilon(spent, 1e-5)
        > epsilon(STUDY.round_events(), 1e-5)
    )


def test_a_second_close_is_the_same_bytes_and_none_for_another_model(counting: Silo) -> None:
    first, ledger = wire.pack(farewell(counting)), kinds(counting)
    assert wire.pack(farewell(counting)) == first
    with pytest.raises(ProtocolError, match="not the one that the record of round 3 names"):
        farewell(counting, weights=request().weights + 1)
    assert kinds(counting) == ledger and ledger.count(("release", 4)) == 1
    counting.state(RUN).keep_reply(4, first + b" ")  # bytes that were not released never leave, nor do new counts
    assert farewell(counting).counts.size == 0 and kinds(counting) == ledger


def test_a_retry_of_a_round_has_the_same_counts(counting: Silo) -> None:
    payload = wire.pack(trained(counting, request(study=NOISY), NOISY))
    again = prepare(request(study=NOISY, weights=request().weights + 1), NOISY, counting)
    assert isinstance(again, wire.Update) and wire.pack(again) == payload and again.counts.any()
    assert kinds(counting) == [("reserve", 1), ("release", 1)]


def test_closing_counts_are_reserved_before_a_record_is_read_and_durable_before_they_leave(
    counting: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = closing.read_records
    steps: list[object] = []
    monkeypatch.setattr(closing, "read_records", lambda *a: steps.append(kinds(counting)) or read(*a))

    def full_disk(*_: object, **__: object) -> None:
        steps.append(counting.state(RUN).reply(4) is not None)
        raise OSError(CANARY)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "release", full_disk)
        with pytest.raises(OSError, match=CANARY):
            farewell(counting)
    assert steps == [[("reserve", 4)], True] and kinds(counting) == [("reserve", 4)]
    lost = farewell(counting)  # the reservation stays spent, and nothing is released for it any more
    assert lost.counts.size == 0 and kinds(counting) == [("reserve", 4)]
    assert read_statement(lost.statement).statement.epsilon == epsilon(NOISY.closing_events(), 1e-5)


def test_closing_counts_that_do_not_fit_any_more_do_not_leave(counting: Silo) -> None:
    budget = counting.policy.budget["records"].model_copy(update={"epsilon": 0.01})
    poor = replace(counting, policy=counting.policy.model_copy(update={"budget": {"records": budget}}))
    goodbye = farewell(poor)
    assert goodbye.counts.size == 0 and kinds(poor) == [] and read_statement(goodbye.statement).statement.epsilon == 0
    assert "no counts of the final model leave" in log_of(poor)


def test_a_study_is_admitted_with_its_counts(counting: Silo) -> None:
    """A budget that holds the rounds but not the counts of the end is too small."""
    whole, rounds = (
        next(e / 100 for e in range(1, 3000) if Budget(epsilon=e / 100, delta=1e-5).fits((), events))
        for events in (NOISY.total_events(), NOISY.round_events() * 3)
    )
    assert whole > rounds
    for value, fits in ((whole, True), (rounds, False)):
        budget = counting.policy.budget["records"].model_copy(update={"epsilon": value})
        silo = replace(counting, policy=counting.policy.model_copy(update={"budget": {"records": budget}}))
        if fits:
            join(invite(NOISY), NOISY, silo)
        else:
            with pytest.raises(Refusal, match="2 of its 3 rounds would fit"):
                join(invite(NOISY), NOISY, silo)


def test_an_empty_part_and_outputs_that_are_no_numbers_count_as_nothing(
    counting: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    huge = np.array([0, 3e38, 0, -3e38, 0], np.float32)  # inf - inf for every record of a small radius and texture
    some = trained(counting, request(study=NOISY, weights=huge), NOISY).counts
    every = own_counts(counting, request(study=NOISY).weights)[:4].sum()
    assert np.isfinite(some).all() and 0 < some[:4].sum() < every
    frame = pl.read_parquet(counting.data_path())
    for row in range(frame.height):
        frame[row : row + 1].write_parquet(counting.data_path())
        if not local_round.read_records(counting, NOISY).held_out.units:
            break
    none = trained(counting, request(2, study=NOISY), NOISY)
    assert none.counts.shape == (5,) and not none.counts.any() and np.isfinite(none.update).all()


def test_an_engine_that_forgets_the_counts_releases_nothing(counting: Silo) -> None:
    job = prepare(request(study=NOISY), NOISY, counting)
    assert isinstance(job, local_round.Job)
    forgotten = replace(train([job])[0], counts=np.zeros(0, np.float32))
    with pytest.raises(ProtocolError, match=r"metric counts have shape \(0,\), the study asks for \(5,\)"):
        finish(job, forgotten)
    assert kinds(counting) == [("reserve", 1)]


# --- silos that differ --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "sentences"),
    [
        (lambda frame: frame.filter(pl.col("diagnosis") == "benign"), ["all of one class"]),
        (lambda frame: frame[:3], ["fewer than the study's expected batch of 30"]),
        (lambda frame: frame.filter(pl.col("diagnosis") == "malignant")[:1], ["all of one class", "fewer than"]),
    ],
    ids=["one class", "three rows", "one row"],
)
def test_a_small_or_one_sided_silo_trains_and_only_its_log_says_so(
    keep: Callable[[pl.DataFrame], pl.DataFrame], sentences: list[str], silo: Silo
) -> None:
    keep(pl.read_parquet(silo.data_path())).write_parquet(silo.data_path())
    assert join(invite(), STUDY, silo).silo == "silo-1"
    assert all("WARNING this silo" in log_of(silo) and sentence in log_of(silo) for sentence in sentences)
    reply = trained(silo)
    assert np.isfinite(reply.update).all() and np.count_nonzero(reply.update) == 5
    assert kinds(silo) == [("reserve", 1), ("release", 1)]
    close(ending(received=1), STUDY, silo)


def test_an_ordinary_silo_logs_no_warning(silo: Silo) -> None:
    join(invite(), STUDY, silo)
    assert "WARNING this silo" not in log_of(silo)


def test_a_model_that_overflows_on_a_held_out_record_is_no_refusal(silo: Silo) -> None:
    """Found: the evaluation of the received model raised an error, so weights chosen by a server made the refusal of a
    round (or of the end) tell whether some record was held out at the silo."""
    huge = np.array([0, 3e38, 0, -3e38, 0], np.float32)  # inf - inf for every record of a small radius and texture
    module = build(STUDY.model, Shape.of_study(STUDY), 7)
    load_weights(module, huge)
    with pytest.raises(RunError):
        predict(module, local_round.read_records(silo, STUDY).held_out.x, Shape.of_study(STUDY))
    assert isinstance(trained(silo, request(weights=huge)), wire.Update)
    assert isinstance(close(ending(weights=huge, received=1), STUDY, silo), wire.Farewell)


STRATEGY_FILE = '''"""Counts its rounds at the silo."""
from dataclasses import dataclass
from strategies.base import Contribution, SumStrategy

@dataclass(frozen=True, kw_only=True)
class Counting(SumStrategy):
    """Counts."""

    def update(self, before, after, aux):
        count = aux.home.get("count", 0 * before) + 1
        return Contribution(update=(after - before) * 0 + count, home={"count": count})

    def aggregate(self, state, total, weight):
        return state.next(state.weights + total / weight)
'''


def test_what_a_strategy_keeps_at_home_is_there_next_round(
    silos: list[Silo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting_of_a_test.py").write_text(STRATEGY_FILE)
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    study = Study.parse(override(TEXT, {"strategy.name": "counting_of_a_test()"}), REGISTRIES)
    for round, used, count in ((1, 0, 1), (2, 1, 2), (3, 1, 2)):  # nothing came of round 2
        reply = trained(silos[0], request(round, study, used=used), study)
        np.testing.assert_array_equal(reply.update, np.full(5, count, np.float32))
    assert "is lost here" not in (silos[0].folder / "logs" / "silo.log").read_text()
    kept = silos[0].state(RUN).home(3)
    assert {name: set(array.tolist()) for name, array in kept.items()} == {"count": {2.0}}
    np.testing.assert_array_equal(trained(silos[1], request(1, study), study).update, 1)  # each silo has its own
    another = request(1, study, manifest=manifest(study, run="f" * 32))
    np.testing.assert_array_equal(trained(silos[0], another, study).update, 1)  # and each run
    sys.modules.pop("strategies.counting_of_a_test")


def test_a_control_variate_moves_a_rounds_update_by_itself(tmp_path: Path) -> None:
    """What SCAFFOLD broadcasts is a displacement: all steps together move a silo by it, to first order."""
    values = {"strategy.name": "scaffold()", "privacy.mechanism": "none", "privacy.noise_multiplier": None}
    values["training.optimizer"] = "sgd(lr=0.05)"
    study = Study.parse(override(TEXT, values), REGISTRIES)
    h = np.float32([1, -2, 3, -4, 5]) * np.float32(1e-3)
    silo = Silo.open(make_silos(study, FRAME, tmp_path)[0])
    moved = trained(silo, request(1, study, broadcast={"h": h}), study).update
    other_run = request(1, study, broadcast={"h": 0 * h}, manifest=manifest(study, run="f" * 32))
    still = trained(silo, other_run, study).update  # the same samples: they follow from seed, silo and round
    np.testing.assert_allclose(moved - still, h, rtol=0.2, atol=1e-5)
    np.testing.assert_allclose(silo.state(RUN).home(1)["h"], moved - h, atol=1e-6)
    (silo.state(RUN).folder / "home-000001.safetensors").unlink()
    trained(silo, request(2, study, used=1), study)
    assert "what the strategy kept of round 1 is lost here" in (silo.folder / "logs" / "silo.log").read_text()


# --- the edge: through the ClientApp object -----------------------------------------------------------------

KINDS: dict[str, tuple[ModuleType, str, Callable[[], wire.Instruction]]] = {
    "query.invite": (local_round, "join", invite),
    "train": (local_round, "train", request),
    "evaluate": (closing, "close", ending),
}


def ask(silo: Silo, kind: str, message: wire.Instruction, monkeypatch: pytest.MonkeyPatch, text: str = TEXT) -> Message:
    """Send a message, with what the witnesses know where the silo's folder still says it."""
    if isinstance(message, wire.Train | wire.Close):
        with suppress(FedsiloError, OSError):
            message = witnessed(message, silo)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    monkeypatch.setenv("FEDSILO_SILO", str(silo.folder))
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={"study": text})
    return edge.app(Message(wire.to_record(message), dst_node_id=2, message_type=kind, ttl=60.0), context)


def bytes_of(message: Message) -> bytes:
    """Everything of a reply that could travel."""
    assert not message.has_error()
    (array,) = [array for record in message.content.array_records.values() for array in record.values()]
    rest = repr((message.metadata.__dict__, message.content.config_records, message.content.metric_records))
    return array.data + rest.encode()


def reply_of(message: Message) -> wire.Reply:
    return wire.from_record(message.content, wire.REPLIES)


def egress(silo: Silo) -> list[dict[str, Any]]:
    path = silo.folder / "egress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_app_walks_the_same_path(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reply_of(ask(silo, "query.invite", invite(), monkeypatch)).silo == "silo-1"
    first, again = (ask(silo, "train", request(), monkeypatch) for _ in range(2))
    payloads = [message.content.array_records["fedsilo"]["payload"].data for message in (first, again)]
    assert payloads[0] == payloads[1] == silo.state(RUN).reply(1)
    assert kinds(silo) == [("reserve", 1), ("release", 1)]
    assert isinstance(reply_of(ask(silo, "evaluate", ending(), monkeypatch)), wire.Farewell)
    assert {line["run"] for line in egress(silo)} == {RUN}  # the ledger's name of the run, not Flower's


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(CANARY), "internal"),
        (KeyError(CANARY), "internal"),
        (FedsiloError(CANARY), "internal"),
        (DataError(CANARY), "data"),
        (ProtocolError(CANARY), "protocol"),
        (Refusal(RefusalCode.BUDGET, CANARY), "budget"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_no_text_of_an_error_leaves(
    kind: str, error: Exception, code: str, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, function, message = KINDS[kind]

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, function, fails)
    answer = ask(silo, kind, message(), monkeypatch)
    assert reply_of(answer) == wire.Refused(code=code)
    # Not its digits alone: a time or an identifier may hold those by chance.
    assert not any(word.encode() in bytes_of(answer) for word in (CANARY, "patient", "Müller", "M\\u00fcller"))
    assert CANARY in log_of(silo)
    assert [(line["field"], line["run"]) for line in egress(silo)] == [("Refused.code", RUN)]


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def as_file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("name", "spoil", "code"),
    [
        ("egress.jsonl", as_folder, "internal"),
        ("logs", as_file, "internal"),
        ("ledger.db", as_folder, "ledger"),
        ("state", as_file, "internal"),
    ],
)
def test_a_broken_folder_gives_a_code_and_no_text(
    name: str,
    spoil: Callable[[Path], None],
    code: str,
    silo: Silo,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found: when the egress log or the silo's log could not be written, the exception with its path went to Flower,
    which sends it on; and the update had been computed but left without its egress line."""
    message = witnessed(request(), silo)
    spoil(silo.folder / name)
    answer = ask(silo, "train", message, monkeypatch)
    assert reply_of(answer) == wire.Refused(code=code)
    assert str(silo.folder).encode() not in bytes_of(answer)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (RecordDict(), "protocol"),
        (wire.to_record(wire.Refused(code="x")), "protocol"),
        (wire.payload_to_record(b"\0" * 9), "protocol"),
        (wire.to_record(invite()), "protocol"),
    ],
    ids=["empty", "a reply", "no message", "another instruction"],
)
def test_what_is_no_train_message_is_refused(
    content: RecordDict, code: str, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        wire, "to_record", lambda message, real=wire.to_record: content if message is None else real(message)
    )
    answer = ask(silo, "train", None, monkeypatch)  # type: ignore[arg-type]
    assert reply_of(answer) == wire.Refused(code=code) and kinds(silo) == []


@pytest.mark.parametrize(
    "text", ["", "no toml", TEXT.replace("logistic", "oracle")], ids=["empty", "no TOML", "unknown model"]
)
def test_a_study_that_is_not_valid_here_is_refused(text: str, silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reply_of(ask(silo, "train", request(), monkeypatch, text)) == wire.Refused(code="study")


def test_a_process_without_a_silo_answers_too(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    (silo.folder / "silo.toml").unlink()
    answer = ask(silo, "train", request(), monkeypatch)
    assert reply_of(answer) == wire.Refused(code="internal") and str(silo.folder).encode() not in bytes_of(answer)


def test_over_a_whole_run_what_left_is_what_the_ledger_released(silos: list[Silo], tmp_path: Path) -> None:
    folders = [silo.folder for silo in silos]
    state = inline.run(
        server_app,
        edge.app,
        silos=folders,
        dropout=0.0,
        seed=1,
        run_config={"study": TEXT, "out": str(tmp_path / "runs"), "test": ""},
    )
    folder = Path(str(state.config_records["run"]["folder"]))
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rounds) == 3 and all(line["aggregated"] for line in rounds)
    for silo in silos:
        with silo.ledger() as ledger:
            releases = [(entry.run, entry.round) for entry in ledger.entries() if entry.kind == "release"]
            commits = [entry.round for entry in ledger.entries() if entry.kind == "commit"]
        left = [(line["run"], line["round"]) for line in egress(silo) if line["privacy"] == "released"]
        assert left == releases and [round for _, round in left] == commits == [1, 2, 3]
        assert {line["round"] for line in egress(silo) if line["field"].startswith("Farewell.")} == {4}
        assert rounds[-1]["epsilon"][silo.name] == epsilon(STUDY.round_events() * 3, 1e-5)
        assert [line["field"] for line in egress(silo)] == [
            "Accept.silo",
            "Accept.weight",
            "Accept.head",
            *[f"Update.{name}" for name in ("silo", "round", "head", "countersigned", "update", "counts")] * 3,
            "Farewell.silo",
            "Farewell.head",
            "Farewell.countersigned",
            "Farewell.statement",
            "Farewell.ledger",
            "Farewell.counts",
        ]


@pytest.mark.parametrize(("limit", "order"), [(8.0, 3.0), (4.0, 5.0)])
def test_a_statement_counts_as_the_smaller_budget_does(limit: float, order: float, silo: Silo) -> None:
    """Registered is epsilon 8, whose filter has order 3; that of a policy's epsilon 4 has order 5."""
    table = silo.policy.budget["records"].model_copy(update={"epsilon": limit})
    strict = replace(silo, policy=silo.policy.model_copy(update={"budget": {"records": table}}))
    trained(strict)
    goodbye = close(ending(received=1), STUDY, strict)
    budget = read_statement(goodbye.statement).statement.budget
    events = STUDY.round_events()
    assert (budget.epsilon, budget.gate, budget.order) == (limit, "rdp", order)
    assert (
        budget.spent
        == epsilon_at_order(events, budget.delta, order)
        != epsilon_at_order(events, budget.delta, 8 - order)
    )
    found = check({"statement.json": goodbye.statement.encode(), "ledger.jsonl": goodbye.ledger.encode()}, Trust())
    assert [problem.sentence for problem in found.problems] == []
