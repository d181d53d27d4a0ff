"""Laws of the coordinator: replies count once and only when they answer, a silo that fails or lies is dropped and no
more, a round with too few survivors leaves the model alone, what is on disk is whole.

Oracles: means worked by hand, errors counted inside the Grid. The only stand-in is the Grid itself (Flower's way to the
nodes); behind it are silos written here, or the real ones of the inline engine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import stats

from client.app import app as client_app
from client.models.base import Shape, build, load_weights, predict, weights_of
from client.round import read_records
from client.silo import Silo
from server import app as server_app_module
from server import checkpoint, cohort, joining, lines, rounds
from server.app import app as server_app
from server.folder import RunFolder
from server.rounds import Progress
from server.silos import Roster
from server.witness import Witness
from simulations.engines.inline import InlineGrid
from simulations.engines.inline import run as run_inline
from simulations.silos import REGISTRIES, make_silos
from simulations.sources import read_dataset
from strategies import metrics, wire
from strategies.base import State
from strategies.errors import ProtocolError, Refusal, RefusalCode, RunError, SettingError
from strategies.layout import Layout
from strategies.manifest import Manifest, Member
from strategies.privacy.accountant import epsilon
from strategies.proof.check import check
from strategies.proof.entries import public_hex
from strategies.proof.heads import Head, sign_head
from strategies.proof.trust import Trust
from strategies.study import Study, override

TEXT = """[study]
name = "served"
task = "classification"
rounds = 6
[data]
kind = "tabular"
target = "diagnosis"
classes = ["benign", "malignant"]
features = { "mean radius" = { type = "numeric", min = 8, max = 20 } }
[model]
name = "logistic()"
[training]
steps = 2
expected_batch_size = 10
[privacy]
noise_multiplier = 2.0
[cohort]
min_silos = 2
round_timeout_s = 5
[simulation]
dataset = "breast_cancer()"
silos = 4
partition = "iid"
"""
STUDY = Study.parse(TEXT, REGISTRIES)
LAYOUT = Layout.of({"w": (3,)})
Answer = Callable[[Message], list[Message]]


class FakeGrid(Grid):
    """Nodes are functions of a message; what they give back is handed out `late` pulls later."""

    def __init__(self, nodes: dict[int, Answer], *, late: int = 0) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.nodes, self.late, self.sent, self.pulls = nodes, late, [], 0
        self._waiting: list[tuple[int, Message]] = []

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            self._waiting += [
                (self.pulls + self.late, reply) for reply in self.nodes[message.metadata.dst_node_id](message)
            ]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        ready = [reply for due, reply in self._waiting if due < self.pulls]
        self._waiting = [(due, reply) for due, reply in self._waiting if due >= self.pulls]
        return ready

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))
    for name in ("a", "b", "c", "first", "second", "forged")
}


def head_of(name: str, seq: int = 1, hash: str = "1" * 64) -> str:
    """A signed head of the ledger of a silo that is written here."""
    head = Head(ledger_id=name.encode().hex().rjust(64, "0"), seq=seq, hash=hash, spent={})
    return sign_head(head, KEYS[name]).to_bytes().decode()


def says(*replies: wire.Reply | wire.Instruction) -> Answer:
    return lambda message: [Message(wire.to_record(reply), reply_to=message) for reply in replies]


def updated(silo: str, round: int, update: np.ndarray, **more: Any) -> wire.Update:
    return wire.Update(silo=silo, round=round, head=head_of(silo), countersigned="{}", update=update, **more)


def fails(message: Message) -> list[Message]:
    return [Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="secret"), reply_to=message)]


def silent(message: Message) -> list[Message]:
    return []


def garbled(message: Message) -> list[Message]:
    return [Message(RecordDict(), reply_to=message)]


def misdirected(reply: wire.Reply) -> Answer:
    """Answers a message that was never sent."""

    def answer(message: Message) -> list[Message]:
        (forged,) = says(reply)(message)
        forged.metadata.__dict__["_reply_to_message_id"] = "m999"
        return [forged]

    return answer


def in_the_name_of(other: str, reply: wire.Reply) -> Answer:
    """Answers a message that went to another node."""

    def answer(message: Message) -> list[Message]:
        (forged,) = says(reply)(message)
        forged.metadata.__dict__["_reply_to_message_id"] = other
        return [forged]

    return answer


INVITE = wire.Invite(run="0" * 32, study="s", code="c", layout="l")


def accept(name: str, weight: float = 1.0) -> wire.Accept:
    return wire.Accept(silo=name, weight=weight, head=head_of(name) if name in KEYS else "")


# --- asking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 3])
def test_ask_collects_one_reply_a_node(late: int) -> None:
    grid = FakeGrid({1: says(accept("a")), 2: says(accept("b")), 3: fails, 4: garbled, 5: says(INVITE)}, late=late)
    answers = cohort.ask(grid, dict.fromkeys(grid.nodes, INVITE), group="g", timeout_s=5)
    assert answers.replies == {1: accept("a"), 2: accept("b")} and answers.silent == (3, 4, 5)
    assert [message.metadata.group_id for message in grid.sent] == ["g"] * 5
    assert {message.metadata.message_type for message in grid.sent} == {"query.invite"}


def test_duplicates_and_replies_to_nothing_count_once_or_not() -> None:
    grid = FakeGrid({1: says(accept("first"), accept("second")), 2: misdirected(accept("forged"))})
    answers = cohort.ask(grid, dict.fromkeys(grid.nodes, INVITE), group="g", timeout_s=0.05)
    assert answers.replies == {1: accept("first")} and answers.silent == (2,)


def test_a_deadline_ends_the_waiting() -> None:
    grid = FakeGrid({1: says(accept("a")), 2: silent})
    began = time.monotonic()
    answers = cohort.ask(grid, dict.fromkeys(grid.nodes, INVITE), group="g", timeout_s=0.3)
    assert 0.3 <= time.monotonic() - began < 3 and answers.silent == (2,) and set(answers.replies) == {1}
    assert all(message.metadata.ttl == pytest.approx(0.3, abs=0.01) for message in grid.sent)


def test_nobody_is_asked_nothing() -> None:
    assert cohort.ask(FakeGrid({}), {}, group="g", timeout_s=5) == cohort.Answers(replies={}, silent=())


def test_waiting_for_nodes() -> None:
    grid = FakeGrid({7: silent, 3: silent})
    assert cohort.wait_for_nodes(grid, 2, 5) == [3, 7]
    assert cohort.wait_for_nodes(grid, 3, 0.05) == [3, 7]
    counts = iter([1, 1, 2, 3])
    grid.get_node_ids = lambda: range(next(counts))  # type: ignore[method-assign]
    assert cohort.wait_for_nodes(grid, 3, 5) == [0, 1, 2]


# --- selecting ----------------------------------------------------------------------------------------------

NAMES = [f"silo-{number}" for number in range(10)]


@pytest.mark.parametrize(
    ("fraction", "least", "size"), [(1.0, 3, 10), (0.3, 3, 3), (0.31, 3, 4), (0.1, 3, 3), (0.1, 30, 10)]
)
def test_size_of_a_cohort(fraction: float, least: int, size: int) -> None:
    chosen = cohort.select(NAMES, fraction=fraction, least=least, seed=1, round=1)
    assert len(chosen) == len(set(chosen)) == size and chosen == sorted(chosen) and set(chosen) <= set(NAMES)


def test_selection_is_a_function_of_seed_and_round() -> None:
    def chosen(silos: list[str], seed: int, round: int) -> list[str]:
        return cohort.select(silos, fraction=0.4, least=1, seed=seed, round=round)

    assert chosen(NAMES, 1, 1) == chosen(NAMES[::-1], 1, 1)
    assert len({tuple(chosen(NAMES, seed, round)) for seed in range(5) for round in range(5)}) > 15


def test_selection_covers_all_silos_alike() -> None:
    counts = dict.fromkeys(NAMES, 0)
    for round in range(2000):
        for name in cohort.select(NAMES, fraction=0.3, least=1, seed=7, round=round):
            counts[name] += 1
    # 600 each; the binomial deviation is 20.5, and the draw is seeded: 5 deviations
    assert all(abs(count - 600) < 103 for count in counts.values())


# --- inviting -----------------------------------------------------------------------------------------------


def invite(nodes: dict[int, Answer], study: Study = STUDY) -> Roster:
    return joining.invite(FakeGrid(nodes), study, "0" * 32, LAYOUT)


def test_a_roster_has_who_accepted() -> None:
    roster = invite({5: says(accept("b", 2.0)), 6: fails, 7: says(accept("a")), 8: says(wire.Refused(code="data"))})
    assert roster.manifest.roster == (member("a", 1.0), member("b", 2.0))
    assert roster.nodes == {"a": 7, "b": 5} and roster.refusals == {6: "silent", 8: "data"}
    assert roster.manifest.study == STUDY.digest and roster.manifest.layout == LAYOUT.digest()


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (accept("a"), RunError),
        (accept("b", 0.0), ProtocolError),
        (accept("b", -1.0), ProtocolError),
        (accept("../../b"), ProtocolError),
        (accept(""), ProtocolError),
    ],
    ids=["same name", "weight 0", "negative weight", "name is a path", "no name"],
)
def test_an_acceptance_that_cannot_be(second: wire.Accept, error: type[Exception]) -> None:
    """Found: a silo's name becomes the name of a file in the run folder, and any name was taken."""
    with pytest.raises(error):
        invite({1: says(accept("a")), 2: says(second), 3: says(accept("c"))})


@pytest.mark.parametrize("contradicts", [False, True])
def test_two_silos_that_show_one_ledger_are_refused_and_the_others_go_on(contradicts: bool) -> None:
    """With different lines at one position the proof is kept; at different positions nothing proves which one is true."""
    second = head_of("b", 1, "2" * 64) if contradicts else head_of("b", 2)
    copied = wire.Accept(silo="d", weight=1.0, head=second)
    roster = invite({1: says(accept("a")), 2: says(accept("b")), 3: says(copied), 4: says(accept("c"))})
    assert roster.nodes == {"a": 1, "c": 4} and roster.refusals == {2: "ledger", 3: "ledger"}
    assert [member.silo for member in roster.manifest.roster] == ["a", "c"]
    assert list(roster.witness.proofs) == (["d"] if contradicts else [])
    if contradicts:
        proof = roster.witness.proofs["d"].to_bytes()
        assert [row["seq"] for row in check({"proof": proof}, Trust()).equivocations] == [1]


def test_another_silos_ledger_is_refused_by_the_roster_and_costs_its_owner_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads are public among the silos of a run: one of them could show another's to have it refused."""
    ledgers = {node: f"{name.encode().hex():0>64}" for node, name in ((1, "a"), (2, "b"), (3, "d"))}
    monkeypatch.setattr(FakeGrid, "ledger_of", lambda _, node: ledgers[node], raising=False)
    stolen = wire.Accept(silo="d", weight=1.0, head=head_of("b"))
    roster = invite({1: says(accept("a")), 2: says(accept("b")), 3: says(stolen)})
    assert roster.nodes == {"a": 1, "b": 2} and roster.refusals == {3: "protocol"}


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_no_message(weight: float) -> None:
    roster = invite({1: says(accept("a")), 2: says(accept("b", weight)), 3: says(accept("c"))})
    assert roster.nodes == {"a": 1, "c": 3} and roster.refusals == {2: "silent"}


@pytest.mark.parametrize(
    ("codes", "kind", "exit_code"),
    [
        (["budget", "policy"], RefusalCode.BUDGET, 3),
        (["policy", "data"], RefusalCode.POLICY, 3),
        (["approval"], RefusalCode.APPROVAL, 3),
        (["data", "internal"], None, 1),
        (["nonsense"], None, 1),
    ],
)
def test_too_few_silos(codes: list[str], kind: RefusalCode | None, exit_code: int) -> None:
    nodes: dict[int, Answer] = {
        1: says(accept("a")),
        **{n: says(wire.Refused(code=code)) for n, code in enumerate(codes, 2)},
    }
    with pytest.raises((Refusal, RunError), match=r"1 silos joined and cohort.min_silos asks for 2") as error:
        invite(nodes, Study.parse(override(TEXT, {"cohort.round_timeout_s": 0.1}), REGISTRIES))
    assert getattr(error.value, "code", None) is kind and error.value.exit_code == exit_code  # type: ignore[attr-defined]
    assert all(f"1 refused: {code}" in str(error.value) for code in codes)


# --- a round ------------------------------------------------------------------------------------------------

START = np.array([1.0, -1.0, 0.0], np.float32)
SILOS = {"a": 1, "b": 2, "c": 3}


def member(name: str, weight: float) -> Member:
    key, ledger = public_hex(KEYS[name]), name.encode().hex().rjust(64, "0")
    return Member(silo=name, weight=weight, ledger_id=ledger, ledger_key=key)


def roster_of(weights: dict[str, float]) -> Roster:
    members = tuple(member(name, weight) for name, weight in weights.items())
    manifest = Manifest(run="0" * 32, study=STUDY.digest, code="c", layout=LAYOUT.digest(), roster=members)
    witness = Witness()
    witness.lacking = lambda silos: []  # type: ignore[method-assign] - these nodes keep no ledgers
    return Roster(manifest=manifest, nodes={name: SILOS[name] for name in weights}, refusals={}, witness=witness)


def update(silo: str, *values: float, round: int = 1) -> Answer:
    return says(updated(silo, round, np.array(values, np.float32)))


def one_round(third: Answer, *, weights: tuple[float, ...] = (1.0, 1.0, 1.0), second: Answer | None = None) -> Progress:
    roster = roster_of(dict(zip(SILOS, weights, strict=True)))
    nodes = {1: update("a", 1, 2, 3), 2: second or update("b", 3, 2, 1), 3: third}
    study = Study.parse(override(TEXT, {"cohort.round_timeout_s": 0.1}), REGISTRIES)
    chosen, progress = rounds.choose(study, roster, Progress(state=State(weights=START)))
    assert chosen == ["a", "b", "c"]
    return rounds.run_round(FakeGrid(nodes), study, roster, chosen, progress, None)


@pytest.mark.parametrize(
    ("weights", "expected"), [((1.0, 1.0, 1.0), [3.0, 1.0, 2.0]), ((1.0, 2.0, 3.0), [2.0, 0.0, 1.0])]
)
def test_the_model_moves_by_the_weighted_mean(weights: tuple[float, ...], expected: list[float]) -> None:
    """Updates come weighted from the silos: (1,2,3) + (3,2,1) + (2,2,2) = (6,6,6), over the sum of the weights."""
    progress = one_round(update("c", 2, 2, 2), weights=weights)
    np.testing.assert_allclose(progress.state.weights, expected)
    line = progress.lines[0]
    assert (line["round"], line["cohort"], line["dropped"], line["aggregated"]) == (1, 3, 0, True)
    assert line["epsilon"] == dict.fromkeys("abc", epsilon(STUDY.round_events(), 1e-5))
    assert progress.received == {"a": 1, "b": 1, "c": 1} and progress.state.weights.dtype == np.float32


BAD: dict[str, Answer] = {
    "NaN": update("c", 1, float("nan"), 1),
    "infinite": update("c", 1, float("inf"), 1),
    "short": update("c", 1, 1),
    "long": update("c", 1, 1, 1, 1),
    "empty": update("c"),
    "another's name": update("a", 9, 9, 9),
    "another round": update("c", 9, 9, 9, round=2),
    "error": fails,
    "silent": silent,
    "garbled": garbled,
    "another kind": says(accept("c")),
    "answers another's message": in_the_name_of("m0", updated("c", 1, np.full(3, 9, np.float32))),
    "refused": says(wire.Refused(code="data")),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_reply_is_dropped_and_no_more(what: str) -> None:
    progress = one_round(BAD[what])
    np.testing.assert_allclose(progress.state.weights, START + 2)  # the mean of the other two
    assert progress.lines[0]["dropped"] == 1 and progress.lines[0]["aggregated"]
    assert progress.received == {"a": 1, "b": 1} and progress.asked == {"a": 1, "b": 1, "c": 1}
    assert progress.excluded == ({"c": "data"} if what == "refused" else {})


def test_too_few_survivors_leave_the_model_and_are_charged() -> None:
    progress = one_round(silent, second=fails)
    assert progress.state == State(weights=START) and progress.state.round == 0
    line = progress.lines[0]
    assert (line["dropped"], line["aggregated"]) == (2, False) and all(value > 0 for value in line["epsilon"].values())


@pytest.mark.parametrize("mechanism", ["central-gaussian", "local-gaussian"])
def test_a_trusted_server_noises_the_sum_of_clipped_updates(mechanism: str, scaled: Callable[..., int]) -> None:
    """sigma = 2, C = 1.5, three silos: noise of sd 2 x 1.5 / 3 on the mean; 9000 in each parameter is clipped to C.

    False alarms: 1e-9 a test. With local noise the server adds none: silos that are written here send none either.
    """
    size = scaled(20_000)
    values = {"privacy.mechanism": mechanism, "privacy.clip_norm": 1.5, "cohort.round_timeout_s": 5.0}
    study = Study.parse(override(TEXT, values), REGISTRIES)
    sent = [np.full(size, value, np.float32) for value in (0.001, -0.002, 9000.0)]
    nodes = {node: says(updated(silo, 1, vector)) for node, silo, vector in zip((1, 2, 3), SILOS, sent, strict=True)}
    start = np.zeros(size, np.float32)
    chosen, progress = rounds.choose(study, roster_of(dict.fromkeys(SILOS, 1.0)), Progress(state=State(weights=start)))
    after = rounds.run_round(FakeGrid(nodes), study, roster_of(dict.fromkeys(SILOS, 1.0)), chosen, progress, None)
    moved = after.state.weights.astype(np.float64)
    if mechanism == "local-gaussian":
        np.testing.assert_allclose(moved, sum(v.astype(np.float64) for v in sent) / 3, rtol=1e-6)
        return
    mean = (-0.001 + 1.5 / math.sqrt(size)) / 3
    noise = (moved - mean) / (2 * 1.5 / 3)

    def accepts(deviation: float) -> bool:
        return bool(stats.kstest(noise / deviation, "norm").pvalue > 1e-9)

    assert accepts(1.0) and not accepts(2 / 3) and not accepts(3 / 2)
    assert abs(moved.mean() - mean) < 6.2 / math.sqrt(size)  # unclipped, the third would move it by 3000


def test_a_silo_that_refused_is_asked_no_more() -> None:
    progress = one_round(BAD["refused"])
    roster = roster_of(dict.fromkeys(SILOS, 1.0))
    chosen, _ = rounds.choose(STUDY, roster, progress)
    assert chosen == ["a", "b"]
    with pytest.raises(RunError, match=r"1 silos are left and cohort.min_silos asks for 2; the others refused: data"):
        rounds.choose(STUDY, roster, replace(progress, excluded={"c": "data", "b": "data"}))


def test_a_model_that_leaves_the_range_of_numbers_ends_the_run() -> None:
    largest = [3e38, 3e38, 3e38]
    with np.errstate(over="ignore"), pytest.raises(RunError, match="not finite"):
        one_round(update("c", *largest), second=update("b", *largest))


# --- whole runs over real silos -----------------------------------------------------------------------------


def run(tmp_path: Path, study: Study = STUDY) -> tuple[Path, list[Silo]]:
    folders = make_silos(study, read_dataset(study, Path()), tmp_path / "silos")
    state = run_inline(
        server_app,
        client_app,
        silos=folders,
        dropout=study.file.simulation.dropout,
        seed=1,
        run_config={"study": study.text, "out": str(tmp_path / "runs"), "test": ""},
    )
    return Path(str(state.config_records["run"]["folder"])), [Silo.open(folder) for folder in folders]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_dropouts_are_survived_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: dict[str, int] = {}
    answer = InlineGrid._answer

    def spy(self: InlineGrid, message: Message) -> Message:
        reply = answer(self, message)
        lost[message.metadata.group_id] = lost.get(message.metadata.group_id, 0) + reply.has_error()
        return reply

    monkeypatch.setattr(InlineGrid, "_answer", spy)
    study = Study.parse(override(TEXT, {"simulation.dropout": 0.4, "study.rounds": 12}), REGISTRIES)
    folder, silos = run(tmp_path, study)
    lines = lines_of(folder)
    assert [line["dropped"] for line in lines] == [lost[str(number)] for number in range(1, 13)]
    assert sum(line["dropped"] for line in lines) > 5 and any(line["dropped"] == 0 for line in lines)
    assert [line["aggregated"] for line in lines] == [line["cohort"] - line["dropped"] >= 2 for line in lines]
    state, _ = checkpoint.load(folder / "checkpoint")
    assert np.isfinite(state.weights).all() and state.round == sum(line["aggregated"] for line in lines)
    arrived = sum(line["cohort"] - line["dropped"] for line in lines)
    released = 0
    for silo in silos:
        with silo.ledger() as ledger:
            released += sum(entry.kind == "release" for entry in ledger.entries())
            spent = ledger.spent("records")
        assert epsilon(spent, 1e-5) <= lines[-1]["epsilon"][silo.name]  # the server's figure is an upper bound
    assert arrived < released < sum(line["cohort"] for line in lines)  # lost replies were released, lost requests not


def test_a_study_beyond_every_budget_is_refused_with_exit_code_3(tmp_path: Path) -> None:
    for folder in make_silos(STUDY, read_dataset(STUDY, Path()), tmp_path / "silos"):
        policy = folder / "policy.toml"
        policy.write_text(policy.read_text().replace("epsilon = 8.0", "epsilon = 0.01"))
        assert Silo.open(folder).budget().epsilon == 0.01
    with pytest.raises(Refusal, match=r"0 silos joined and .* \(4 refused: budget\)") as refused:
        run(tmp_path)
    assert (refused.value.code, refused.value.exit_code) == (RefusalCode.BUDGET, 3)
    assert not list((tmp_path / "runs").glob("served-*"))


def test_an_interrupted_run_leaves_its_finished_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push = InlineGrid.push_messages

    def interrupted(self: InlineGrid, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages[0].metadata.group_id == "3":
            raise KeyboardInterrupt
        return push(self, messages)

    monkeypatch.setattr(InlineGrid, "push_messages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    (folder,) = (tmp_path / "runs").glob("served-*")
    assert [line["round"] for line in lines_of(folder)] == [1, 2]
    assert checkpoint.load(folder / "checkpoint")[0].round == 2
    report = RunFolder(path=folder).report()
    assert report["run"]["status"] == "interrupted" and {silo["rounds"] for silo in report["silos"]} == {3}
    # the round that was begun is in the report's epsilon and has no line; the folder verifies all the same
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert check({"run": files}, Trust()).problems == []
    assert lines_of(folder)[-1]["epsilon"]["silo-1"] < report["silos"][0]["epsilon"]


# --- metrics of the silos' counts ---------------------------------------------------------------------------

COUNTED = {"evaluation.release": "noisy", "evaluation.noise_multiplier": 0.01, "evaluation.metrics": ["accuracy"]}
COUNTING = Study.parse(override(TEXT, {**COUNTED, "cohort.round_timeout_s": 0.1}), REGISTRIES)
LINE = {"round": 1, "metrics": {}, "loss": None, "epsilon": {}}


def counted_update(silo: str, *counts: float, round: int = 2) -> Answer:
    vectors = {"update": np.ones(3, np.float32), "counts": np.array(counts, np.float32)}
    return says(updated(silo, round, **vectors))


def second_round(third: Answer, *, own: dict[str, float] | None = None) -> Progress:
    """The counts of round 2: 30 + 50 of 100 right at silo a, 10 + 20 of 50 at silo b."""
    nodes = {1: counted_update("a", 30, 10, 10, 50), 2: counted_update("b", 10, 10, 10, 20), 3: third}
    roster = roster_of(dict.fromkeys(SILOS, 1.0))
    before = {**LINE, "metrics": own or {}}
    chosen, progress = rounds.choose(COUNTING, roster, Progress(state=State(weights=START), lines=(before,)))
    measured = rounds.Measured(metrics={**(own or {}), "loss": 0.5}, groups={})
    return rounds.run_round(
        FakeGrid(nodes), COUNTING, roster, chosen, progress, (lambda weights: measured) if own else None
    )


def test_the_counts_of_a_round_complete_the_line_of_the_round_before() -> None:
    first, second = second_round(counted_update("c", 0, 0, 0, 50)).lines
    assert first["metrics"] == {"accuracy": pytest.approx((80 + 30 + 50) / 200)} and first["round"] == 1
    # three silos, each with noise of 0.01 times the sensitivity of one cell
    assert first["counts"] == {"silos": 3, "deviation": pytest.approx(0.01 * 3**0.5), "resolution": {}}
    assert (second["round"], second["metrics"], second["loss"]) == (2, {}, None) and "counts" not in second


@pytest.mark.parametrize(
    "third",
    [
        counted_update("c"),
        counted_update("c", 9, 9, 9),
        counted_update("c", 9, 9, 9, 9, 9),
        counted_update("c", 9, float("nan"), 9, 9),
        counted_update("c", float("inf"), 9, 9, 9),
        counted_update("c", 9, 9, 9, 9, round=1),
        counted_update("a", 9, 9, 9, 9),
        silent,
        garbled,
        says(wire.Refused(code="data")),
    ],
    ids=["none", "short", "long", "NaN", "infinite", "another round", "another's name", "silent", "garbled", "refused"],
)
def test_counts_that_cannot_be_are_left_out(third: Answer) -> None:
    progress = second_round(third)
    assert progress.lines[0]["metrics"] == {"accuracy": pytest.approx((80 + 30) / 150)}
    assert progress.lines[0]["counts"]["silos"] == 2 and progress.lines[1]["aggregated"]


def test_no_counts_at_all_leave_the_line_as_it_was() -> None:
    roster, progress = roster_of({"a": 1.0, "b": 1.0}), Progress(state=State(weights=START), lines=(LINE,))
    chosen, progress = rounds.choose(COUNTING, roster, progress)
    after = rounds.run_round(FakeGrid({1: silent, 2: silent}), COUNTING, roster, chosen, progress, None)
    assert after.lines[0] == LINE and not after.lines[1]["aggregated"]


def test_counts_of_a_study_without_them_are_not_read() -> None:
    nodes = {1: counted_update("a", 1, 1, 1, 1), 2: counted_update("b", 1, 1, 1, 1)}
    roster, progress = roster_of({"a": 1.0, "b": 1.0}), Progress(state=State(weights=START), lines=(LINE,))
    chosen, progress = rounds.choose(STUDY, roster, progress)
    assert rounds.run_round(FakeGrid(nodes), STUDY, roster, chosen, progress, None).lines[0] == LINE


def test_the_coordinators_own_metrics_stay_where_they_were() -> None:
    first, second = second_round(silent, own={"accuracy": 0.25}).lines
    assert first["metrics"] == {"accuracy": 0.25} and first["loss"] is None
    assert first["silo_metrics"] == {"accuracy": pytest.approx(110 / 150)}
    assert (second["metrics"], second["loss"]) == ({"accuracy": 0.25}, 0.5) and "silo_metrics" not in second


def test_the_end_is_charged_before_it_is_asked_for_and_completes_the_last_line(tmp_path: Path) -> None:
    roster, folder = roster_of({"a": 1.0, "b": 1.0}), RunFolder.create(tmp_path, COUNTING)
    before = Progress(state=State(weights=START), lines=(LINE,), asked={"a": 1, "b": 2})
    charged = rounds.charge_closing(COUNTING, roster, before)
    assert charged.closed == ("a", "b") and rounds.charge_closing(STUDY, roster, before).closed == ()
    vector = np.array([30, 10, 10, 50], np.float32)
    grid = FakeGrid(
        {
            1: says(
                wire.Farewell(silo="a", head=head_of("a"), countersigned="{}", statement="no", ledger="", counts=vector)
            ),
            2: silent,
        }
    )
    statements, after = rounds.close(grid, COUNTING, roster, charged, folder, own=False)
    assert statements == {} and after.lines[0]["metrics"] == {"accuracy": pytest.approx(0.8)}
    events = {name: COUNTING.round_events() * count + COUNTING.closing_events() for name, count in before.asked.items()}
    assert after.lines[0]["epsilon"] == {name: epsilon(spent, 1e-5) for name, spent in events.items()}
    assert lines.spent(COUNTING, before.asked)["a"] < after.lines[0]["epsilon"]["a"]


def table_with_groups(tmp_path: Path) -> Study:
    random = np.random.default_rng(0)
    frame = read_dataset(STUDY, Path()).frame.select("mean radius", "diagnosis")
    sex = pl.Series("sex", random.choice(["F", "M"], frame.height))
    frame.with_columns(sex).write_csv(tmp_path / "table.csv")
    features = {
        "mean radius": {"type": "numeric", "min": 8, "max": 20},
        "sex": {"type": "categorical", "values": ["F", "M"]},
    }
    values = {
        **COUNTED,
        "evaluation.metrics": ["accuracy", "brier", "auroc"],
        "evaluation.groups": ["sex"],
        "data.features": features,
        "simulation.dataset": str(tmp_path / "table.csv"),
        "privacy.mechanism": "none",
        "training.steps": 20,
        "training.optimizer": "sgd(lr=2.0)",
        "study.rounds": 2,
        "cohort.round_timeout_s": 60,
    }
    return Study.parse(override(TEXT.replace("noise_multiplier = 2.0\n", ""), values), REGISTRIES)


def pooled_metrics(study: Study, silos: list[Silo], weights: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """The oracle: all silos' held-out records in one place."""
    parts = [read_records(silo, study).held_out for silo in silos]
    module = build(study.model, Shape.of_study(study), 7)
    load_weights(module, weights)
    scores = np.concatenate([predict(module, part.x, Shape.of_study(study)) for part in parts])
    labels = np.concatenate([part.y.numpy() for part in parts])
    codes = np.concatenate([part.groups["sex"] for part in parts])
    names = study.metrics
    found = metrics.evaluate(scores, labels, names)
    return (
        {name: found[name] for name in names},
        metrics.evaluate_groups(scores, labels, names, {"sex": (["F", "M"], codes)}),
    )


def assert_near(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        # 25 bins of a score and few records a group: ties within a bin move an area by up to 0.03; the noise of the
        # smaller group's counts moves the others by 0.0012 (standard deviation over 24 runs)
        assert got[name] == pytest.approx(value, abs=0.05 if name == "auroc" else 8e-3), name


def test_a_whole_run_is_evaluated_by_its_silos_alone(tmp_path: Path) -> None:
    """Noise of a hundredth, so that the pooled metrics can be read off: no record of a silo was seen for them."""
    study = table_with_groups(tmp_path)
    folder, silos = run(tmp_path, study)
    lines, report = lines_of(folder), RunFolder(path=folder).report()
    assert [line["counts"]["silos"] for line in lines] == [4, 4]
    final = pooled_metrics(study, silos, checkpoint.load(folder / "checkpoint")[0].weights)
    assert_near(lines[1]["metrics"], final[0])
    for value in "FM":
        assert_near(lines[1]["groups"]["sex"][value], final[1]["sex"][value])
    assert (report["metrics"], report["groups"], report["rounds"]) == (lines[1]["metrics"], lines[1]["groups"], lines)
    assert lines[0]["metrics"] != lines[1]["metrics"] and lines[0]["groups"].keys() == {"sex"}
    initial = pooled_metrics(study, silos, weights_of(build(study.model, Shape.of_study(study), 7)))[0]
    assert abs(initial["brier"] - lines[0]["metrics"]["brier"]) > 0.01  # line 1 is not the model before round 1
    for silo in silos:
        with silo.ledger() as ledger:
            assert ledger.spent("records") == study.total_events()
    assert all(silo["epsilon"] is None for silo in report["silos"])  # the updates have no protection
    page = (folder / "report.html").read_text()
    assert "Measured by 4 silos on records that they hold out" in page and "by the public values of" in page


# --- the coordinator's own test records ---------------------------------------------------------------------


def test_own_records_may_lie_in_one_file_or_in_many(tmp_path: Path) -> None:
    study = table_with_groups(tmp_path)
    shape, random = Shape.of_study(study), np.random.default_rng(1)
    weights = random.normal(size=len(weights_of(build(study.model, shape, 7)))).astype(np.float32)
    arrays = {
        "x": torch.from_numpy(random.normal(size=(30, *shape.inputs)).astype(np.float32)),
        "y": torch.from_numpy(random.integers(0, 2, 30)),
        "group/sex": torch.from_numpy(random.integers(-1, 2, 30)),
    }
    folder = tmp_path / "parts"
    folder.mkdir()
    save_file(arrays, tmp_path / "whole.safetensors")
    for number, start in enumerate((0, 11, 22)):
        rows = {name: array[start : start + 11].contiguous() for name, array in arrays.items()}
        save_file(rows, folder / f"part-{number:05d}.safetensors")
    whole, parts = (
        server_app_module._evaluator(study, shape, tmp_path / name)(weights) for name in ("whole.safetensors", "parts")
    )
    for name in (*study.metrics, "loss"):  # sums of float32 differ by the size of a batch
        assert whole.metrics[name] == pytest.approx(parts.metrics[name], rel=1e-6)
    assert whole.groups["sex"]["M"] == pytest.approx(parts.groups["sex"]["M"], rel=1e-6)
    assert None not in {*whole.metrics.values(), *whole.groups["sex"]["F"].values()}
    one = metrics.evaluate(predict(loaded(study, weights), arrays["x"], shape), arrays["y"].numpy(), study.metrics)
    assert whole.metrics == one
    (folder / "part-00002.safetensors").unlink()
    assert server_app_module._evaluator(study, shape, folder)(weights) != whole


def loaded(study: Study, weights: np.ndarray) -> Any:
    module = build(study.model, Shape.of_study(study), 7)
    load_weights(module, weights)
    return module


@pytest.mark.parametrize("missing", ["x", "y", "group/sex", "everything", "the folder's files"])
def test_test_records_that_cannot_be_read_are_a_sentence(missing: str, tmp_path: Path) -> None:
    study, path = table_with_groups(tmp_path), tmp_path / "test.safetensors"
    arrays = {
        "x": torch.zeros(3, 4),
        "y": torch.zeros(3, dtype=torch.int64),
        "group/sex": torch.zeros(3, dtype=torch.int64),
    }
    if missing in arrays:
        save_file({name: array for name, array in arrays.items() if name != missing}, path)
    elif missing == "the folder's files":
        path.mkdir()
        save_file(arrays, path / "records.safetensors")
    with pytest.raises(
        SettingError, match=r"it must be a safetensors file with x, y, group/sex, or a folder of such files"
    ):
        server_app_module._evaluator(study, Shape.of_study(study), path)


# --- on disk ------------------------------------------------------------------------------------------------

MANIFEST = roster_of({"a": 1.0, "b": 2.0}).manifest
STATE = State(weights=START, round=4, memory={"m": np.arange(3, dtype=np.float32), "v/w": np.zeros(3, np.float32)})


def test_a_checkpoint_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", STATE, MANIFEST)
    state, manifest = checkpoint.load(tmp_path / "c")
    assert manifest == MANIFEST and state.round == 4 and state.memory.keys() == STATE.memory.keys()
    for name in STATE.memory:
        np.testing.assert_array_equal(state.memory[name], STATE.memory[name])
    np.testing.assert_array_equal(state.weights, START)


@given(cut=st.integers(0, 700), at=st.integers(0, 700), byte=st.integers(0, 255))
def test_a_corrupt_checkpoint_is_a_sentence_or_still_a_state(
    cut: int, at: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("c")
    checkpoint.save(folder, STATE, MANIFEST)
    whole = (folder / "state.safetensors").read_bytes()
    for spoilt in (whole[: cut % len(whole)], whole[: at % len(whole)] + bytes([byte]) + whole[at % len(whole) + 1 :]):
        (folder / "state.safetensors").write_bytes(spoilt)
        try:
            assert isinstance(checkpoint.load(folder)[0], State) and len(spoilt) == len(whole)
        except RunError as error:
            assert "holds no readable checkpoint" in str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}", b"\xff" * 20, None],
    ids=["empty", "a list", "no metadata", "huge header", "no file"],
)
def test_what_is_no_checkpoint(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="holds no readable checkpoint"):
        checkpoint.load(tmp_path)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, STATE, MANIFEST)

    def broken(_: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", broken)
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(tmp_path, replace(STATE, round=5), MANIFEST)
    assert checkpoint.load(tmp_path)[0].round == 4
    checkpoint.save(tmp_path, replace(STATE, round=6), MANIFEST)
    assert checkpoint.load(tmp_path)[0].round == 6 and [path.name for path in tmp_path.iterdir()] == [
        "state.safetensors"
    ]


def test_run_folders(tmp_path: Path) -> None:
    first, second = (RunFolder.create(tmp_path / "runs", STUDY) for _ in range(2))
    assert first.path != second.path and (first.path / "study.toml").read_bytes() == STUDY.text.encode()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be made: .*; choose another with --out"):
        RunFolder.create(tmp_path / "file", STUDY)
