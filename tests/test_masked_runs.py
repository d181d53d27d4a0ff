"""Laws of secure aggregation in whole runs, through both app objects: the sum is the survivors', exactly; the server
sees nothing else of an update; a request that comes twice is answered with the same bytes and charged once.

Oracles: what each silo put into each sum, seen inside it; the same study without masks; one oracle over all that the
server was sent and has kept, which finds the updates where nothing hides them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from ledgers import forget
from masked import TEXT, Seen, folders_of, kinds_of, run, study_of, watched
from numpy.lib.stride_tricks import sliding_window_view

from client import round as local_round
from client.models.base import Shape, build, layout_of, weights_of
from client.silo import Silo
from server import rounds
from simulations.silos import REGISTRIES
from strategies import wire
from strategies.errors import Refusal, RefusalCode, RunError, StudyError
from strategies.manifest import Manifest
from strategies.proof.check import check
from strategies.proof.trust import Trust
from strategies.secagg.claims import Claim
from strategies.secagg.plan import setup_of
from strategies.secagg.rows import PEERS, Peers, SumRow, sum_key
from strategies.secagg.rows import State as SumState
from strategies.secagg.server import ServerSession
from strategies.secagg.silo import SiloSession
from strategies.study import Study, override

ALL = ("silo-1", "silo-2", "silo-3", "silo-4", "silo-5")


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def model_of(folder: Path, study: Study) -> np.ndarray:
    layout = layout_of(build(study.model, Shape.of_study(study), study.file.study.seed))
    return layout.join(safetensors.numpy.load((folder / "model.safetensors").read_bytes()))


def expected_model(seen: Seen, study: Study, survivors: dict[int, tuple[str, ...]]) -> np.ndarray:
    """Federated averaging by hand, over what the survivors of each sum of updates put into it, on the sum's grid."""
    manifest = Manifest.from_json((seen.folder / "manifest.json").read_text())
    weights = weights_of(build(study.model, Shape.of_study(study), study.file.study.seed))
    (segment,) = setup_of(study, manifest, len(weights)).kinds["update"].segments
    state = study.strategy.start(weights)
    for t, silos in survivors.items():
        total = sum(np.rint(seen.vectors[t, silo] * segment.scale) for silo in silos) / segment.scale
        state = study.strategy.aggregate(state, total.astype(np.float32), float(len(silos)))  # type: ignore[attr-defined]
    return state.weights.astype(np.float32)


# --- the sum ------------------------------------------------------------------------------------------------


def test_a_masked_run_is_the_plain_run_to_the_last_steps_of_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {}
    for masked in (True, False):
        study = study_of(privacy__mechanism="none", privacy__noise_multiplier=None, secagg__enabled=masked)
        whole, folders = folders_of(study, tmp_path / str(masked))
        with watched(monkeypatch) as seen:
            folder = run(whole, folders, tmp_path / f"runs-{masked}")
        models[masked] = model_of(folder, whole)
        sent = [json.loads(line) for line in (folders[0] / "egress.jsonl").read_text().splitlines()]
        marks = {line["privacy"] for line in sent if line["field"] in ("Update.update", "MaskedUpdate.upload")}
        assert marks == {"exact"}, "without noise, and the silo's own log says so"
        assert bool(seen.replies(wire.MaskedUpdate)) == masked != bool(seen.replies(wire.Update))
    assert np.abs(models[True] - models[False]).max() < 2 * 5 * 2.0**-24
    assert not np.array_equal(models[True], np.zeros_like(models[True]))


@pytest.mark.parametrize("name", ["fedavg()", "fedprox(mu=0.1)", "fedadam(lr=0.01)"])
def test_every_strategy_that_needs_a_sum_gets_the_exact_one_and_the_run_verifies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folders = folders_of(study_of(strategy__name=name), tmp_path / "silos")
    with watched(monkeypatch) as seen:
        seen.folder = run(study, folders, tmp_path / "runs")
    np.testing.assert_array_equal(model_of(seen.folder, study), expected_model(seen, study, {1: ALL, 3: ALL}))
    for line in lines_of(seen.folder):
        assert line["counts"]["silos"] == 5 and line["metrics"]["accuracy"] is not None  # type: ignore[index]
    files = {p.relative_to(seen.folder).as_posix(): p.read_bytes() for p in seen.folder.rglob("*") if p.is_file()}
    assert check({"run": files}, Trust()).problems == []
    assert "secagg/run.bin" in files and "secagg/sum.bin" not in files
    steps = [(kind, number) for number in (1, 4, 2, 5) for kind in ("reserve", "release")]
    for folder in folders:
        assert [step for step in kinds_of(folder) if step[0] != "commit"] == steps


def test_counts_under_masks_are_those_of_all_records_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folders = folders_of(study_of(study__rounds=1), tmp_path / "silos")
    with watched(monkeypatch) as seen:
        folder = run(study, folders, tmp_path / "runs")
    total = sum(seen.vectors[2, silo] for silo in ALL)
    (line,) = lines_of(folder)
    from client.round import read_records
    from strategies.counted import metrics_of
    from strategies.counts import CountLayout

    assert line["metrics"] == {k: v for k, v in metrics_of(CountLayout.of(study), total).items() if k != "loss"}
    units = sum(read_records(Silo.open(place), study).held_out.units for place in folders)
    assert total[: 3 * 10].reshape(10, 3)[:, 0].sum() / units == line["metrics"]["accuracy"]  # type: ignore[index]


# --- silos that are lost ------------------------------------------------------------------------------------

FOUR = ("silo-1", "silo-2", "silo-4", "silo-5")


@pytest.mark.parametrize("what", ["request", "reply"])
def test_a_silo_that_is_lost_before_or_after_it_trains_is_left_out_and_comes_back(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folders = folders_of(study_of(evaluation__release="none"), tmp_path / "silos")

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return what if silo == "silo-3" and isinstance(request, wire.Train) and request.round == 1 else ""

    with watched(monkeypatch, lose) as seen:
        seen.folder = run(study, folders, tmp_path / "runs")
    first, second = lines_of(seen.folder)
    assert (first["dropped"], first["aggregated"], second["dropped"], second["aggregated"]) == (1, True, 0, True)
    np.testing.assert_array_equal(model_of(seen.folder, study), expected_model(seen, study, {1: FOUR, 2: ALL}))
    assert len([m for _, m, _ in seen.messages if isinstance(m, wire.Unmask)]) == 4 + 4 + 5  # view, open; full


@pytest.mark.parametrize("lost", [1, 2])
def test_silos_that_are_lost_while_shares_are_asked_for(
    lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five silos of which one may collude: four shares open a sum, three do not; then the model stays as it is."""
    study, folders = folders_of(study_of(evaluation__release="none"), tmp_path / "silos")

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return "reply" if silo in ALL[:lost] and isinstance(request, wire.Unmask) and rounds == 1 else ""

    with watched(monkeypatch, lose) as seen:
        seen.folder = run(study, folders, tmp_path / "runs")
    opened = {1: ALL, 2: ALL} if lost == 1 else {2: ALL}
    assert [line["aggregated"] for line in lines_of(seen.folder)] == [lost == 1, True]
    np.testing.assert_array_equal(model_of(seen.folder, study), expected_model(seen, study, opened))
    assert not (seen.folder / "secagg" / "sum.bin").exists()
    for folder in folders:  # what was masked and not opened stays charged
        assert [n for kind, n in kinds_of(folder) if kind == "release"] == [1, 2]


def test_exact_counts_are_of_all_silos_or_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folders = folders_of(study_of(), tmp_path / "silos")

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return "reply" if silo == "silo-3" and isinstance(request, wire.Count) and rounds == 1 else ""

    with watched(monkeypatch, lose) as seen:
        seen.folder = run(study, folders, tmp_path / "runs")
    first, second = lines_of(seen.folder)
    assert "counts" not in first and not first["metrics"] and second["counts"]["silos"] == 5  # type: ignore[index]
    np.testing.assert_array_equal(model_of(seen.folder, study), expected_model(seen, study, {1: ALL, 3: ALL}))


# --- what the server sees -----------------------------------------------------------------------------------


def shows(blob: bytes, update: np.ndarray) -> bool:
    """Whether bytes hold, at any place, words or floats that correlate with an update above 0.05."""
    centred = update - update.mean()
    centred /= np.linalg.norm(centred)
    for place in range(4):
        usable = blob[place : place + (len(blob) - place) // 4 * 4]
        for kind in ("<f4", "<i4"):
            with np.errstate(invalid="ignore"):
                values = np.nan_to_num(np.frombuffer(usable, kind).astype(np.float64), posinf=0, neginf=0)
            if len(values) < len(update):
                continue
            windows = sliding_window_view(values, len(update))
            spread = windows.std(axis=1) * np.sqrt(len(update))
            if bool((np.abs(windows @ centred) > 0.05 * np.maximum(spread, 1e-300)).any()):
                return True
    return False


def held_by_the_server(seen: Seen) -> list[bytes]:
    """What came and what the run folder keeps, but the model, which is the sum."""
    blobs = [wire.pack(reply) for _, _, reply in seen.messages if reply is not None]
    files = [path for path in seen.folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return blobs + [path.read_bytes() for path in files]


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "in clear"])
def test_nothing_that_the_server_is_sent_or_keeps_looks_like_a_silos_update(
    masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5; without masks the same oracle finds every update."""
    study = study_of(secagg__enabled=masked, study__rounds=1, evaluation__release="none", simulation__silos=3)
    study, folders = folders_of(study, tmp_path / "silos")
    with watched(monkeypatch) as seen:
        seen.folder = run(study, folders, tmp_path / "runs")
    updates = list(seen.vectors.values()) or [reply.update for reply in seen.replies(wire.Update)]
    assert len(updates) == 3 and all(np.abs(update).max() > 0 for update in updates)
    held = held_by_the_server(seen)
    shown = [any(shows(blob, np.asarray(update, np.float64)) for blob in held) for update in updates]
    assert shown == [not masked] * 3


def test_no_field_of_a_masked_run_carries_a_value_of_one_silo_in_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folders = folders_of(study_of(study__rounds=1), tmp_path / "silos")
    with watched(monkeypatch) as seen:
        run(study, folders, tmp_path / "runs")
    rows = {(row.field, row.seen, row.privacy) for _, _, reply in seen.messages if reply for row in wire.facts(reply)}
    guarded = {row for row in rows if row[2] != "public"}
    assert guarded == {("MaskedUpdate.upload", "masked", "released"), ("MaskedCounts.upload", "masked", "exact")}
    assert not seen.replies(wire.Update)


# --- one update, one mask, one charge -----------------------------------------------------------------------


def asked(kind: type[wire.Instruction], seen: Seen, silo: str) -> list[wire.Instruction]:
    return [request for name, request, _ in seen.messages if name == silo and isinstance(request, kind)]


@pytest.fixture
def halted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, list[Path], Seen]:
    """A run of three silos that was cut off after the uploads of round 1: shares never arrive."""
    study = study_of(study__rounds=1, evaluation__release="none", simulation__silos=3)
    study, folders = folders_of(study, tmp_path / "silos")

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return "request" if isinstance(request, wire.Unmask | wire.Close) else ""

    with watched(monkeypatch, lose) as seen:
        seen.folder = run(study, folders, tmp_path / "runs")
    return study, folders, seen


def answer(folder: Path, study: Study, request: wire.Instruction) -> wire.Reply:
    """What the silo's client app makes of a request, as after a restart."""
    from flwr.app import Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from client.app import app

    forget()
    os.environ["FEDSILO_SILO"] = str(folder)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 2, 1
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={"study": study.text})
    kind = wire.MESSAGE_TYPE[type(request)]
    try:
        message = app(Message(wire.to_record(request), dst_node_id=2, message_type=kind, ttl=60.0), context)
    finally:
        del os.environ["FEDSILO_SILO"]
    return wire.from_record(message.content, wire.REPLIES)


def test_a_request_whose_reply_was_lost_gets_the_same_bytes_and_is_charged_once(
    halted: tuple[Study, list[Path], Seen],
) -> None:
    """N11, with the ledger."""
    study, folders, seen = halted
    (train,) = asked(wire.Train, seen, "silo-1")
    first = next(reply for reply in seen.replies(wire.MaskedUpdate) if reply.silo == "silo-1")
    before = kinds_of(folders[0])
    for _ in range(2):
        assert wire.pack(answer(folders[0], study, train)) == wire.pack(first)
    assert kinds_of(folders[0]) == before == [("reserve", 1), ("release", 1)]
    (folders[0] / "state" / Manifest.from_json(train.manifest).run / "reply-000001.bin").unlink()
    assert answer(folders[0], study, train) == wire.Refused(code="protocol"), "never masked again"
    assert kinds_of(folders[0]) == before


def in_child(act: Callable[[], object]) -> int:
    """Run something in a process of its own; return its exit status, negative for a signal."""
    child = multiprocessing.get_context("fork").Process(target=act)
    child.start()
    child.join(120)
    return child.exitcode or 0


def test_a_process_that_dies_between_claim_and_mask_burns_the_sum_and_stays_charged(
    halted: tuple[Study, list[Path], Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N12, with a process that is killed."""
    study = study_of(study__rounds=1, evaluation__release="none", simulation__silos=3)
    study, folders = folders_of(study, tmp_path / "other")

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return "request" if isinstance(request, wire.Train | wire.Close) else ""

    with watched(monkeypatch, lose) as seen:
        run(study, folders, tmp_path / "runs-2")
    (train,) = asked(wire.Train, seen, "silo-1")

    def dies() -> None:
        SiloSession.mask = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
        answer(folders[0], study, train)

    assert in_child(dies) == -signal.SIGKILL
    assert kinds_of(folders[0]) == [("reserve", 1)]
    assert answer(folders[0], study, train) == wire.Refused(code="protocol")
    assert kinds_of(folders[0]) == [("reserve", 1)]


def test_copies_of_one_request_in_many_processes_are_masked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: Callable[..., int]
) -> None:
    """N13."""
    study = study_of(study__rounds=1, evaluation__release="none", simulation__silos=3)
    study, folders = folders_of(study, tmp_path / "silos")

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return "request" if isinstance(request, wire.Train | wire.Close) else ""

    with watched(monkeypatch, lose) as seen:
        run(study, folders, tmp_path / "runs")
    (train,) = asked(wire.Train, seen, "silo-1")
    replies = together([(folders[0], study, train)] * scaled(20, 4), tmp_path / "replies")
    uploads = {bytes(reply.upload) for reply in replies if isinstance(reply, wire.MaskedUpdate)}
    assert len(uploads) == 1 and all(isinstance(r, wire.MaskedUpdate | wire.Refused) for r in replies)
    assert [kind for kind, _ in kinds_of(folders[0])].count("reserve") == 1


def together(cases: list[tuple[Path, Study, wire.Instruction]], where: Path) -> list[wire.Reply]:
    """Ask at once, each in a process of its own; return the replies."""
    where.mkdir()
    context = multiprocessing.get_context("fork")
    start = context.Event()

    def one(number: int) -> None:
        start.wait(60)
        (where / f"{number}").write_bytes(wire.pack(answer(*cases[number])))

    children = [context.Process(target=one, args=(number,)) for number in range(len(cases))]
    for child in children:
        child.start()
    start.set()
    for child in children:
        child.join(180)
    return [wire.unpack((where / f"{number}").read_bytes(), wire.REPLIES) for number in range(len(cases))]


def test_one_silo_backs_one_set_of_survivors_whatever_comes_at_once(
    halted: tuple[Study, list[Path], Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: Callable[..., int]
) -> None:
    """N14 and N15: all of the cohort and a part of it are asked for at once, and again after a restart."""
    from server.identity import FOLDER, coordinator_key
    from server.masking import Masking
    from strategies.secagg.sums import Sum

    study = study_of(study__rounds=1, evaluation__release="none", simulation__silos=4, secagg__max_colluding=0)
    requests: dict[str, wire.Unmask] = {}
    study, folders = folders_of(study, tmp_path / "four")
    collect = Sum.collect

    def both(self: Sum, uploads: dict[str, bytes]) -> object:
        """A coordinator that plays with two states of one sum."""
        part = Sum.restore(self._run, self.snapshot())
        collect(part, {silo: upload for silo, upload in uploads.items() if silo != "silo-4"})
        collect(self, uploads)
        manifest = json.loads(next((tmp_path / "runs-4").glob("*/manifest.json")).read_text())
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        for name, one in (("view", part), ("full", self)):
            requests[name] = wire.Unmask(manifest=text, request=wire.blob(one.requests()["silo-1"]))
        return self.phase

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return "request" if isinstance(request, wire.Unmask | wire.Close) else ""

    with monkeypatch.context() as patch, watched(monkeypatch, lose):
        patch.setattr(Sum, "collect", both)
        run(study, folders, tmp_path / "runs-4")
    assert coordinator_key(tmp_path / "runs-4" / FOLDER) and Masking  # the requests are signed by the real key
    pairs = [(folders[0], study, requests[name]) for name in ("view", "full")] * scaled(20, 2)
    replies = together(pairs, tmp_path / "replies")
    answered = {
        name
        for (_, _, request), reply in zip(pairs, replies, strict=True)
        for name in ("view", "full")
        if request is requests[name] and isinstance(reply, wire.Share)
    }
    assert len(answered) == 1
    for name, request in requests.items():
        assert isinstance(answer(folders[0], study, request), wire.Share if name in answered else wire.Refused)


def test_keys_of_a_sum_that_is_over_are_not_in_the_file_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N40: the pages of the silo's store, after the next sum was claimed and after the run."""
    keys: dict[int, list[bytes]] = {}
    there: dict[int, list[bool]] = {}
    study, folders = folders_of(
        study_of(study__rounds=3, evaluation__release="none", simulation__silos=3), tmp_path / "s"
    )
    mask = SiloSession.mask

    def spied(self: SiloSession, claim: Claim, vectors: object, **rest: object) -> object:
        if self._name == "silo-1":
            keys[claim.t] = [bytes(key) for key in claim.keys.values()]
            pages = (folders[0] / "ledger.db").read_bytes()
            there[claim.t] = [any(key in pages for key in some) for some in keys.values()]
        return mask(self, claim, vectors, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SiloSession, "mask", spied)
    run(study, folders, tmp_path / "runs")
    assert there == {1: [True], 2: [False, True], 3: [False, False, True]}
    pages = (folders[0] / "ledger.db").read_bytes()
    assert not any(key in pages for some in keys.values() for key in some)


# --- a coordinator that plays with what goes into a sum -----------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["uniform", "declared"])
def test_a_coordinator_chooses_no_weights(own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silo that outweighs the others would be the sum: each checks that all weigh alike, as the study says."""
    study, folders = folders_of(study_of(study__rounds=1, evaluation__release="none"), tmp_path / "silos")
    to_json, trained = Manifest.to_json, []

    def tilted(self: Manifest) -> str:
        return to_json(replace(self, roster=tuple(replace(m, weight=m.weight if own else 1e-9) for m in self.roster)))

    monkeypatch.setattr(Manifest, "to_json", lambda self: to_json(self) if own else tilted(self))
    monkeypatch.setattr(
        SiloSession, "mask", lambda self, *a, mask=SiloSession.mask, **k: trained.append(self) or mask(self, *a, **k)
    )
    if own:
        run(study, folders, tmp_path / "runs")
    else:
        with pytest.raises(RunError, match="cannot be set up"):
            run(study, folders, tmp_path / "runs")
    assert len(trained) == (5 if own else 0)
    with pytest.raises(StudyError, match=r"strategy.weights = 'declared' .* write weights = 'uniform'"):
        study_of(strategy__weights="declared")


def test_a_sum_of_another_kind_than_the_request_is_refused_before_anything_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact counts must not go into a sum that has noise of its own, where cohorts may change."""
    study, folders = folders_of(study_of(study__rounds=1), tmp_path / "silos")
    begin = ServerSession.begin

    def other(self: ServerSession, kind: str, cohort: list[str], **rest: bytes) -> object:
        return begin(self, {"update": "counts", "counts": "update"}[kind], cohort, **rest)

    monkeypatch.setattr(ServerSession, "begin", other)
    with watched(monkeypatch) as seen:
        folder = run(study, folders, tmp_path / "runs")
    assert not lines_of(folder)[0]["aggregated"] and not seen.vectors
    assert {reply.code for reply in seen.replies(wire.Refused)} == {"protocol"}
    assert all(kinds_of(place) == [] for place in folders)


def test_counts_are_given_only_in_a_run_that_the_silo_trains_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost no epsilon; a run of counts alone would be free to repeat over other silos."""
    study, folders = folders_of(study_of(study__rounds=1), tmp_path / "silos")
    monkeypatch.setattr(
        rounds,
        "_trained_masked",
        lambda way, requests, number, progress: rounds._Trained(
            state=progress.state, survivors=(), arrived={}, refused={}
        ),
    )
    with watched(monkeypatch) as seen:
        run(study, folders, tmp_path / "runs")
    assert len(seen.replies(wire.Refused)) == 5 and not seen.vectors
    assert all(kinds_of(place) == [] for place in folders)


def test_a_silo_that_is_silent_at_the_beginning_is_left_out_of_the_sums_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folders = folders_of(study_of(study__rounds=1), tmp_path / "silos")

    def lose(silo: str, rounds: int, request: wire.Instruction) -> str:
        return "request" if isinstance(request, wire.Setup) and silo == "silo-2" else ""

    with watched(monkeypatch, lose) as seen:
        folder = run(study, folders, tmp_path / "runs")
    (line,) = lines_of(folder)
    assert (line["cohort"], line["aggregated"], line["counts"]["silos"]) == (4, True, 4)  # type: ignore[index]
    report = json.loads((folder / "report.json").read_text())
    assert {silo["name"]: silo["refusal"] for silo in report["silos"]}["silo-2"] == "silent"
    assert not [m for silo, m, _ in seen.messages if silo == "silo-2" and isinstance(m, wire.Train)]


@pytest.mark.parametrize(("code", "lasting"), [("internal", False), ("budget", True)])
def test_sums_without_noise_wait_for_a_silo_that_refuses_once_and_end_with_one_that_is_out(
    code: str, lasting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(privacy__mechanism="none", privacy__noise_multiplier=None, evaluation__release="none")
    study, folders = folders_of(study, tmp_path / "silos")
    prepare = local_round.prepare

    def refuses(request: wire.Train, *rest: object) -> object:
        if request.round == 1 and rest[1].name == "silo-2":  # type: ignore[attr-defined]
            raise Refusal(RefusalCode(code), "once")
        return prepare(request, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(local_round, "prepare", refuses)
    if lasting:
        with pytest.raises(
            RunError, match=r"silo silo-2 refuses \(budget\), and sums without noise are over all silos"
        ):
            run(study, folders, tmp_path / "runs")
    else:
        assert [line["aggregated"] for line in lines_of(run(study, folders, tmp_path / "runs"))] == [False, True]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"cohort.min_silos": 2}, r"cohort.min_silos = 2 is not allowed .* write min_silos = 3"),
        ({"secagg.max_colluding": 3}, r"cohort.min_silos = 3 .*max_colluding = 3.* write min_silos = 5"),
        ({"simulation.silos": 129}, r"simulation.silos = 129 .* at most 128 silos in this version"),
        (
            {"privacy.mechanism": "none", "privacy.noise_multiplier": None, "cohort.fraction": 0.5},
            r"cohort.fraction = 0.5 .* can be subtracted from each other; write fraction = 1.0",
        ),
    ],
)
def test_a_study_that_masks_cannot_serve_is_refused_with_a_remedy(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        Study.parse(override(TEXT, values), REGISTRIES)


def test_a_silo_without_masks_in_its_study_answers_no_message_of_them(tmp_path: Path) -> None:
    study, folders = folders_of(study_of(secagg__enabled=False), tmp_path)
    manifest = Manifest(run="0" * 32, study=study.digest, code="x", layout="x", roster=()).to_json()
    for request in (
        wire.Setup(manifest=manifest, rules=wire.blob(b"x")),
        wire.Unmask(manifest=manifest, request=wire.blob(b"x")),
    ):
        assert isinstance(answer(folders[0], study, request), wire.Refused)


def test_a_silo_whose_policy_takes_more_to_collude_refuses(tmp_path: Path) -> None:
    study, folders = folders_of(study_of(), tmp_path / "silos")
    policy = folders[2] / "policy.toml"
    policy.write_text(policy.read_text().replace("[require]", "[require]\nmin_colluding = 2"))
    folder = run(study, folders, tmp_path / "runs")
    report = json.loads((folder / "report.json").read_text())
    assert report["never_joined"] == ["policy"] and lines_of(folder)[-1]["cohort"] == 4


def test_rows_of_a_run_say_how_far_each_sum_is(halted: tuple[Study, list[Path], Seen]) -> None:
    _, folders, seen = halted
    run_id = Manifest.from_json((seen.folder / "manifest.json").read_text()).run
    with Silo.open(folders[0]).ledger() as ledger:
        row, peers = ledger.row(run_id, sum_key(1)), ledger.row(run_id, PEERS)
    assert row is not None and SumRow.read(row).state is SumState.MASKED
    assert peers is not None and set(Peers.read(peers).keys) == {"silo-2", "silo-3"} and Peers.read(peers).last == 1
    assert all(a != b for a, b in pairwise(sorted(Peers.read(peers).keys.values())))
