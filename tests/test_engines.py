"""Laws of the engines: each ends on the inline engine's model, leaves as many entries and lines at every silo, and
outlives its silos' faults.

Oracle: the inline engine, bit for bit without privacy. Deaths are SIGKILL of real worker processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.server.superlink.fleet.vce.vce_api import _register_nodes

from client.silo import Silo
from simulations.engines import pool, ray
from simulations.engines.nodes import FIRST_NODE, Faults, identify
from simulations.run import Outcome, simulate
from simulations.silos import REGISTRIES
from strategies import wire
from strategies.errors import NotBuiltError, RunError, SettingError
from strategies.study import Study

ROOT = Path(__file__).resolve().parent.parent
SILOS = 5
STUDY = """
[study]
name = "engines"
task = "classification"
rounds = ROUNDS
[data]
kind = "tabular"
target = "label"
[data.features]
a = { type = "numeric", min = -3, max = 3 }
b = { type = "numeric", min = -3, max = 3 }
[model]
name = "mlp(hidden=[4])"
[training]
sampling_rate = 0.3
steps = 2
[privacy]
PRIVACY
[secagg]
enabled = SECAGG
[simulation]
dataset = "records.csv"
silos = 5
engine = "ENGINE"
MORE
"""
MODEL = "model.safetensors"
Left = tuple[list[tuple[str, int]], Counter[tuple[str, str, int]]]
PLAIN, PRIVATE = 'mechanism = "none"', "noise_multiplier = 4.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 150 records."""
    where = tmp_path_factory.mktemp("engines")
    a, b = np.random.default_rng(0).normal(size=(2, 150))
    pl.DataFrame({"a": a, "b": b, "label": np.where(a + b > 0, "yes", "no")}).write_csv(where / "records.csv")
    return where


def study_of(engine: str, *, privacy: str = PLAIN, secagg: bool = False, more: str = "", rounds: int = 2) -> str:
    values = {"PRIVACY": privacy, "SECAGG": str(secagg).lower(), "ENGINE": engine, "MORE": more, "ROUNDS": str(rounds)}
    text = STUDY
    for word, value in values.items():
        text = text.replace(word, value)
    return text


def run(folder: Path, engine: str, **given: Any) -> Outcome:
    study = Study.parse(study_of(engine, **given), REGISTRIES)
    return simulate(study, folder, out=folder / "runs", fresh=True, with_baselines=False)


def model(outcome: Outcome) -> bytes:
    return (outcome.folder / MODEL).read_bytes()


def left(outcome: Outcome) -> list[Left]:
    return left_in(outcome.silos)


def left_in(silos: list[Path]) -> list[Left]:
    """What each silo has: the kinds and rounds of its ledger's entries in order, and the fields that left, by round."""
    found = []
    for folder in silos:
        with Silo.open(folder).ledger() as ledger:
            kinds = [(entry.kind, entry.round) for entry in ledger.entries()]
        lines = [json.loads(line) for line in (folder / "egress.jsonl").read_text().splitlines()]
        found.append((kinds, Counter((line["field"], line["privacy"], line["round"]) for line in lines)))
    return found


def test_one_seed_gives_the_same_faults_and_the_inline_engines_model(folder: Path) -> None:
    more = "dropout = 0.4\n[cohort]\nmin_silos = 1"
    inline, pooled = (run(folder, engine, more=more, rounds=3) for engine in ("inline", "pool"))
    dropped = [[line["dropped"] for line in outcome.facts["rounds"]] for outcome in (inline, pooled)]
    assert dropped[0] == dropped[1] and sum(dropped[0]) > 0
    assert model(inline) == model(pooled) and left(inline) == left(pooled)
    assert pooled.facts["simulation"]["engine"] == "pool"


def test_under_masks_and_with_privacy_every_silo_has_as_many_entries_lines_and_messages(
    folder: Path, full_tier: bool
) -> None:
    """In the full tier without masks, and under masks without privacy, too."""
    for privacy, secagg in ((PRIVATE, True), (PRIVATE, False), (PLAIN, True))[: 3 if full_tier else 1]:
        inline, pooled = (run(folder, engine, privacy=privacy, secagg=secagg) for engine in ("inline", "pool"))
        assert left(inline) == left(pooled)
        spent = [[silo["epsilon"] for silo in outcome.facts["silos"]] for outcome in (inline, pooled)]
        assert spent[0] == spent[1]
        assert (model(inline) == model(pooled)) == (privacy == PLAIN), "noise and samples are drawn anew"


# --- a pool's workers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pool.PoolGrid]:
    """Two workers that run the ClientApp of these tests for five silos."""
    identify()
    where = tmp_path_factory.mktemp("silos")
    silos = [where / f"silo-{number}" for number in range(1, SILOS + 1)]
    with pool.started("engine_app:app", silos, {"word": "yes"}, 2) as workers:
        yield pool.PoolGrid(workers, range(FIRST_NODE, FIRST_NODE + SILOS), Faults(dropout=0.0, seed=0))
        pids = [worker.pid for worker in workers]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def ask(grid: pool.PoolGrid, groups: dict[int, str], ttl: float = 60.0, later: float = 0.0) -> dict[int, Message]:
    """Invite silos by number, each with a group and `later` seconds more to answer; return replies by number."""
    request = wire.Invite(run="word", study="", code="", layout="")
    messages = [
        Message(wire.to_record(request), FIRST_NODE + number, "query.invite", ttl=ttl + place * later, group_id=group)
        for place, (number, group) in enumerate(groups.items())
    ]
    replies = list(grid.pull_messages(grid.push_messages(messages)))
    assert [reply.metadata.src_node_id - FIRST_NODE for reply in replies] == list(groups)
    return dict(zip(groups, replies, strict=True))


def accepted(reply: Message) -> wire.Accept:
    return wire.from_record(reply.content, (wire.Accept,))


def test_each_silo_has_its_context_and_each_worker_gets_the_weights_once(
    grid: pool.PoolGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = ask(grid, dict.fromkeys(range(SILOS), ""))
    assert [accepted(replies[n]).silo for n in range(SILOS)] == [f"{n} of {SILOS}, yes" for n in range(SILOS)]
    sent, write = Counter[int](), pool.Worker._write

    def counted(self: pool.Worker, *frames: bytes) -> None:
        sent[self.pid] += sum(map(len, frames))
        write(self, *frames)

    monkeypatch.setattr(pool.Worker, "_write", counted)
    weights = np.arange(100_000, dtype=np.float32)
    for number in (1, 2):
        weights = weights + 1
        request = wire.Train(
            manifest="", round=number, received=0, heads="", receipts="", weights=weights, broadcast={}
        )
        messages = [Message(wire.to_record(request), FIRST_NODE + n, "train", ttl=60) for n in range(SILOS)]
        updates = [wire.from_record(reply.content, (wire.Update,)) for reply in grid.send_and_receive(messages)]
        assert all((update.update == 2 * weights).all() for update in updates)
        assert [update.silo for update in updates[::2]] == [updates[0].silo] * 3, "a silo stays with its worker"
        assert len({update.silo for update in updates}) == 2
    assert all(weights.nbytes * 2 < count < weights.nbytes * 2 + 20_000 for count in sent.values())


def test_a_worker_that_dies_loses_the_silo_in_hand_and_no_other(grid: pool.PoolGrid) -> None:
    replies = ask(grid, {0: "", 2: "die", 4: "", 1: "raise", 3: ""})
    assert replies[2].error.code == ErrorCode.NODE_UNAVAILABLE
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION and "private" not in replies[1].error.reason
    assert all(accepted(replies[n]).head == "word" for n in (0, 3, 4))
    assert all(reply.has_content() for reply in ask(grid, dict.fromkeys(range(SILOS), "")).values())


def test_a_worker_that_died_between_two_rounds_loses_no_silo(grid: pool.PoolGrid) -> None:
    ask(grid, dict.fromkeys(range(SILOS), ""))
    killed = grid._workers[0].pid
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)  # all its threads are gone, and nobody has asked for it yet
    assert all(reply.has_content() for reply in ask(grid, dict.fromkeys(range(SILOS), "")).values())


def test_a_worker_that_hangs_is_killed_when_time_is_up(grid: pool.PoolGrid) -> None:
    ask(grid, dict.fromkeys(range(SILOS), ""))
    began = time.monotonic()
    replies = ask(grid, {0: "hang", 2: "", 1: ""}, ttl=1.0)
    assert time.monotonic() - began < 30
    assert replies[0].error.code == replies[2].error.code == ErrorCode.NODE_UNAVAILABLE and replies[1].has_content()
    again = ask(grid, dict.fromkeys(range(SILOS), ""), ttl=2.0)
    assert all(reply.has_content() for reply in again.values()), "a new worker's start is no part of a silo's time"
    assert [accepted(again[n]).silo for n in range(SILOS)] == [f"{n} of {SILOS}, yes" for n in range(SILOS)]


def test_an_answer_that_comes_too_late_is_nobody_elses(grid: pool.PoolGrid) -> None:
    """Found: time ran out for one silo after the other while a worker was started anew; it answered them all the same,
    and each answer was taken for that of the next silo, for the rest of the run."""
    ask(grid, dict.fromkeys(range(SILOS), ""))
    replies = ask(grid, {0: "hang", 2: "", 4: ""}, ttl=1.0, later=0.2)
    assert all(reply.error.code == ErrorCode.NODE_UNAVAILABLE for reply in replies.values())
    for _ in range(2):
        again = ask(grid, dict.fromkeys(range(SILOS), ""))
        assert [accepted(again[n]).silo for n in range(SILOS)] == [f"{n} of {SILOS}, yes" for n in range(SILOS)]


def test_workers_that_do_not_start_end_the_run_with_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    identify()
    with (
        pytest.raises(RunError, match=r"ended before it was ready .* use --engine inline"),
        pool.started("no_such_module:app", [tmp_path / "silo-1"], {}, 1) as workers,
    ):
        ask(pool.PoolGrid(workers, [FIRST_NODE], Faults(dropout=0.0, seed=0)), {0: ""})
    assert "no_such_module" in capfd.readouterr().err


def test_ctrl_c_leaves_no_worker_and_says_how_to_go_on(folder: Path, tmp_path: Path, full_tier: bool) -> None:
    """In the full tier under Ray, too."""
    for engine in ("pool", "ray") if full_tier else ("pool",):
        (tmp_path / engine).mkdir()
        interrupted(engine, folder, tmp_path / engine)


def interrupted(engine: str, folder: Path, tmp_path: Path) -> None:
    (folder / "study.toml").write_text(study_of(engine, rounds=50_000))
    command = [sys.executable, "-m", "simulations.cli", "run", str(folder / "study.toml"), "--out", str(tmp_path / "o")]
    code = "import simulations.cli; simulations.cli.main()"
    command[1:3] = ["-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = list(tmp_path.glob("o/engines-*/metrics.jsonl"))
        if lines and lines[0].read_text().count("\n") >= 2:
            break
        time.sleep(0.05)
    workers = children(process.pid)
    assert workers if engine == "ray" else len(workers) == min(pool.cores(), SILOS)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and b"Traceback" not in error and b"resume" in error
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


# --- Flower's own runtime -----------------------------------------------------------------------------------


def test_flowers_grid_loses_what_the_faults_say(monkeypatch: pytest.MonkeyPatch) -> None:
    identify()
    factory, own = ray._link_state()
    nodes, state = list(_register_nodes(3, factory)), factory.state()
    fates = dict(zip(nodes, ("request", "reply", ""), strict=True))
    monkeypatch.setattr(Faults, "fate", lambda self, message: fates[message.metadata.dst_node_id])
    stopped = threading.Event()
    grid = ray.RayGrid(factory, Faults(dropout=0.0, seed=0), stopped)
    grid.set_run(own)
    ids = list(grid.push_messages(Message(RecordDict(), node, "train", ttl=60) for node in nodes))
    assert [len(state.get_message_ins(node, limit=None)) for node in nodes[:1]] == [0]
    for node in nodes[1:]:
        (message,) = state.get_message_ins(node, limit=None)
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_message_id"] = f"reply-{node}"
        state.store_message_res(reply)
    found = {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}
    assert [found[identity].has_error() for identity in ids] == [True, True, False]
    assert {found[identity].error.code for identity in ids[:2]} == {ErrorCode.NODE_UNAVAILABLE}
    stopped.set()
    with pytest.raises(ray.Stopped):
        grid.pull_messages(ids)


def test_ray_ends_on_the_inline_engines_model_and_faults(folder: Path, tmp_path: Path, full_tier: bool) -> None:
    """In the full tier; Flower's runtime itself runs in tests/test_flower_engine.py in both."""
    if not full_tier:
        return
    more = "dropout = 0.4\n[cohort]\nmin_silos = 1"
    inline = run(folder, "inline", more=more, rounds=3)
    (folder / "ray.toml").write_text(study_of("ray", more=more, rounds=3))
    command = [sys.executable, "-c", "import simulations.cli; simulations.cli.main()", "run", str(folder / "ray.toml")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(json.loads(done.stdout)["run"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["dropped"] for line in lines] == [line["dropped"] for line in inline.facts["rounds"]]
    ours, theirs = (safetensors.numpy.load(model_of) for model_of in (model(inline), (folder / MODEL).read_bytes()))
    assert {name: array.tobytes() for name, array in ours.items()} == {
        name: array.tobytes() for name, array in theirs.items()
    }
    silos = sorted(tmp_path.glob("silos/*/silo-*"))
    assert left_in(silos) == left(inline)


# --- what is not there --------------------------------------------------------------------------------------


def test_without_ray_one_sentence_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(SettingError, match=r"pip install 'fedsilo\[ray\]'"):
        run(folder, "ray")


def test_an_engine_that_is_not_built_says_which_are(folder: Path) -> None:
    with pytest.raises(NotBuiltError, match="inline or pool or ray"):
        run(folder, "batched")
