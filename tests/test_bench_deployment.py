"""The benchmark of a deployed round gives all ways the same work, and counts what it says it counts.

No figure is asserted: time is for `fedsilo-simulate bench deployment`, whose figures stand in RESULTS.md. Real processes
run in the full tier alone.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.models.base import MODELS, Shape, build, weights_of
from simulations.bench import deployment, stock
from simulations.bench.processes import Processes, family, free_ports, peak_bytes
from simulations.cli import app
from strategies.command import guarded
from strategies.errors import RunError
from strategies.spec import Registries
from strategies.study import Study


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> deployment.Work:
    return deployment.prepare(deployment.Size(megabytes=0.05, rounds=2, steps=7), tmp_path_factory.mktemp("work"))


def test_both_sides_have_the_same_network_records_and_steps(work: deployment.Work) -> None:
    studies = {way: Study.parse(path.read_text(), Registries(models=MODELS)) for way, path in work.studies.items()}
    assert set(studies) == {"fedsilo", "fedsilo-secagg"}
    for way, study in studies.items():
        assert (study.file.study.rounds, study.file.training.steps) == (3, 7), "one round warms up"
        assert study.private and study.masked == (way == "fedsilo-secagg")
        assert study.file.cohort.min_silos == 3
        ours = build(study.model, Shape.of_study(study), 0)
        theirs = stock.network(int(work.settings["inputs"]), int(work.settings["width"]))
        sizes = [[tuple(p.shape) for p in module.parameters()] for module in (ours, theirs)]
        assert sizes[0] == sizes[1] and len(weights_of(ours)) == work.parameters
        assert work.settings["batch"] == round(study.file.training.expected_batch_size or 0)
    assert work.settings["steps"] == 7
    tables = [np.load(path, allow_pickle=False) for path in work.arrays]
    assert len(tables) == len(work.records) == 3 and 300 < sum(map(len, tables)) < 569, "without those held out"
    assert all(set(np.unique(table[:, -1])) == {0.0, 1.0} for table in tables)


@pytest.mark.parametrize("megabytes", [0.05, 1.0, 1000.0])
def test_a_model_has_the_size_that_was_asked_for(megabytes: float) -> None:
    def size(width: int) -> int:
        return 4 * (21 * width + (width + 1) * width + width + 1)

    width = deployment.width_of(megabytes, 20, 1)
    assert size(width - 1) < megabytes * 1e6 <= size(width)


def test_the_stock_client_trains_for_its_steps(work: deployment.Work, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = torch.optim.SGD.step

    def counted(self: torch.optim.SGD, *given: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    sent = stock.network(int(work.settings["inputs"]), int(work.settings["width"])).state_dict()
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"records": str(work.arrays[0])},
        state=RecordDict(),
        run_config=dict(work.settings),
    )
    asked = Message(RecordDict({"arrays": ArrayRecord(sent)}), dst_node_id=1, message_type="train")
    reply = stock.train(asked, context)
    arrays, facts = reply.content["arrays"], reply.content["metrics"]
    assert isinstance(arrays, ArrayRecord) and isinstance(facts, MetricRecord)
    assert steps == 7 and facts["num-examples"] == len(np.load(work.arrays[0], allow_pickle=False))
    got = arrays.to_torch_state_dict()
    assert all(got[name].shape == sent[name].shape and not torch.equal(got[name], sent[name]) for name in sent)


class Still:
    """A deployment of one process that only sleeps."""

    def __init__(self, folder: Path) -> None:
        self.processes = Processes(folder=folder, environment={})

    def up(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_ratios_are_of_medians_within_a_lap(work: deployment.Work, tmp_path: Path) -> None:
    laps = {"fedsilo": [[1.0, 2.0, 9.0], [3.0, 3.0, 3.0]], "flower": [[10.0, 10.0, 99.0], [6.0, 5.0, 7.0]]}
    made = {
        name: deployment.Way(deployment=Still(tmp_path), roles={}, run=iter(found).__next__)
        for name, found in laps.items()
    }
    for way in made.values():
        way.lap()
        way.lap()
    ours, theirs = deployment._rows(made, work, deployment.Size())
    assert (ours.seconds_per_round, theirs.seconds_per_round) == (3.0, 8.5)
    assert ours.ratio_to_flower == pytest.approx((2 / 10 + 3 / 6) / 2) and theirs.ratio_to_flower == 1.0
    (alone,) = deployment._rows({"fedsilo": made["fedsilo"]}, work, deployment.Size())
    assert alone.ratio_to_flower is None


def test_processes_are_watched_with_their_children_and_ended(tmp_path: Path) -> None:
    processes = Processes(folder=tmp_path, environment={})
    child = f"{sys.executable} -c 'import time; kept = b\"x\" * 2**26; print(1, flush=True); time.sleep(600)'"
    try:
        with processes.watched({"child": "kept", "shell": "sleep"}) as peaks:
            processes.start("shell", ["bash", "-c", f"{child} & sleep 600"])
            processes.wait(lambda: peaks.get("child", 0) > 2**26, within_s=60, why="the child is not seen")
        pids = family(iter([processes.running["shell"].pid]))
        assert len(pids) == 3 and all(peak_bytes(pid) > 0 for pid in pids)
        with pytest.raises(RunError, match="not within 0 s"):
            processes.wait(lambda: False, within_s=0, why="not")
    finally:
        group = processes.running["shell"].pid
        processes.stop()
        subprocess.run(["bash", "-c", f"kill -9 -- -{group} 2>/dev/null || true"], check=True)
    processes.start("short", [sys.executable, "-c", "print('last words'); raise SystemExit(3)"])
    with pytest.raises(RunError, match="short has ended with 3: last words"):
        processes.wait(lambda: False, within_s=60, why="not")
    with pytest.raises(RunError, match="ended with 5"):
        processes.call([sys.executable, "-c", "raise SystemExit(5)"])


def test_free_ports_can_be_listened_on() -> None:
    first = free_ports(3)
    with ExitStack() as stack:
        for port in range(first, first + 3):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))


@pytest.mark.parametrize(
    "wrong",
    [["--way", "fedsio"], ["--silos", "2", "--way", "fedsilo-secagg"], ["--megabytes", "0"], ["--rounds", "0"]],
)
def test_what_cannot_be_measured_is_a_usage_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app, arguments=["bench", "deployment", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_lap_of_real_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], full_tier: bool
) -> None:
    if not full_tier:
        return  # real processes of both sides take a minute; their parts are tested above
    monkeypatch.chdir(tmp_path)
    given = ["bench", "deployment", "--laps", "1", "--rounds", "1", "--megabytes", "0.1"]
    ways = ["--way", "fedsilo", "--way", "fedsilo-secagg", "--way", "flower"]
    assert guarded(app, arguments=[*given, *ways, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in found["rows"]] == ["fedsilo", "fedsilo-secagg", "flower"]
    for row in found["rows"]:
        assert len(row["seconds"]) == len(row["seconds"][0]) == 1 and row["seconds_per_round"] > 0
        assert row["ratio_to_flower"] > 0 and row["parameters"] >= 25_000 and row["silos"] == 3
        assert {"superlink", "serverapp", "node", "worker"} <= row["peak_bytes"].keys()
    assert json.loads((tmp_path / "runs/bench/deployment.json").read_text()) == found
