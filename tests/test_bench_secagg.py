"""The benchmark of secure aggregation runs whole sums, charges each side its own time, and compares like with like.

No figure is asserted here: time is for `fedsilo-simulate bench secagg`, whose figures stand in RESULTS.md.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from simulations.bench import secagg, sums
from simulations.cli import app
from strategies.command import guarded
from strategies.errors import RunError
from strategies.secagg.claims import Claim
from strategies.secagg.masks import add_masks
from strategies.secagg.rows import UploadStep
from strategies.secagg.silo import SiloSession
from strategies.secagg.sums import Phase, Sum

NAMED = {
    "parameters", "silos", "dropped", "silo_cpu_s", "server_cpu_s", "upload_bytes", "mask_ns_per_parameter",
    "flower_mask_ns_per_parameter",
}  # fmt: skip


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    grid = secagg.Grid(parameters=(100, 3000), silos=(2, 3, 10))
    done: list[float] = []
    found = secagg.bench(grid, laps=2, tell=lambda text: None, advance=done.append)
    assert sum(done) == secagg.work(grid, 2)
    return found


def test_every_cell_has_a_row(result: dict[str, Any]) -> None:
    rows = result["rows"]
    cells = [(row["parameters"], row["silos"], row["dropped"]) for row in rows]
    assert cells == [(size, *cell) for size in (100, 3000) for cell in ((2, 0), (3, 0), (10, 0), (10, 1))]
    for row in rows:
        assert row.keys() >= NAMED and row["sums"] == 2
        assert all(np.isfinite(value) and value > 0 for name, value in row.items() if name not in ("dropped", "note"))
        assert row["silo_answers_cpu_s"] < row["silo_cpu_s"] and row["server_open_cpu_s"] < row["server_cpu_s"]
        assert bool(row["note"]) == (row["silos"] == 2)
    assert result["machine"]["versions"]["flwr"] and result["machine"]["processor"]


def test_bytes_are_those_of_the_messages(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        silos, left = row["silos"], row["silos"] - row["dropped"]
        boxes = (silos - 1) * (32 * silos + 2 * 16)  # a share of the own seed and of each pair's, and two tags
        over = row["upload_bytes"] - 4 * (row["parameters"] + 4) - boxes
        assert 0 < over < 300 + 100 * silos  # commitments, lengths, signature
        assert row["received_bytes"] == pytest.approx(left * (row["upload_bytes"] + row["answer_bytes"]), rel=0.01)
        assert row["sent_bytes"] > silos * 200


@pytest.mark.parametrize(("silos", "dropped"), [(2, (0,)), (3, (0,)), (10, (0, 1)), (50, (0, 1, 5)), (100, (0, 1, 10))])
def test_dropouts_are_shares_of_the_cohort(silos: int, dropped: tuple[int, ...]) -> None:
    assert secagg.dropouts(silos) == dropped


def test_every_cohort_bears_its_dropouts() -> None:
    for silos in range(2, 129):
        setup = sums._setup(1, silos, Ed25519PrivateKey.generate())
        setup.check_cohort(silos)
        assert silos - max(secagg.dropouts(silos)) >= setup.least_survivors(silos)


def masking_otherwise(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    mask = SiloSession.mask

    def changed(self: SiloSession, claim: Claim, vectors: Sequence[np.ndarray], **given: Any) -> UploadStep:
        return mask(self, claim, [change(vector) for vector in vectors], **given)

    monkeypatch.setattr(SiloSession, "mask", changed)


def test_a_total_that_is_not_the_sum_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = sums.Cohort(50, 4, lambda: None)
    cohort.run("train", 1, lambda _: None)
    masking_otherwise(monkeypatch, lambda vector: vector * np.float32(1.001))
    with pytest.raises(RunError, match="not the sum"):
        cohort.run("train", 1, lambda _: None)


def test_a_sum_that_is_not_finished_is_no_result() -> None:
    with pytest.raises(RunError, match="aborted"):
        sums.Cohort(50, 4, lambda: None).run("train", 2, lambda _: None)


@pytest.mark.parametrize(("dropped", "exchanges"), [(0, 1), (1, 2)])
def test_each_side_is_charged_its_own_time(dropped: int, exchanges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def waited(seconds: float) -> None:
        now[0] += seconds

    cohort = sums.Cohort(50, 4, lambda: waited(10_000_000))
    receive, unmask = Sum.receive, SiloSession.unmask
    monkeypatch.setattr(sums, "_CLOCK", lambda: now[0])

    def received(self: Sum, replies: dict[str, bytes]) -> Phase:
        waited(7)
        return receive(self, replies)

    def unmasked(self: SiloSession, request: bytes) -> Any:
        waited(1000)
        return unmask(self, request)

    masking_otherwise(monkeypatch, lambda vector: (waited(100_000), vector)[1])
    monkeypatch.setattr(Sum, "receive", received)
    monkeypatch.setattr(SiloSession, "unmask", unmasked)
    costs = cohort.run("train", dropped, lambda _: None)
    assert (costs.server_s, costs.open_s) == (7 * exchanges, 7)
    assert [(part.upload_s, part.answers_s) for part in costs.silos] == [(100_000, 1000 * exchanges)] * (4 - dropped)
    assert [part.floor_s for part in costs.silos] == [*[None] * (1 - dropped), *[10_000_000] * 3]


def test_the_bare_floor_draws_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**18 + 5  # more than a block
    numbers = itertools.count()
    monkeypatch.setattr(secagg.os, "urandom", lambda count: bytes([next(numbers)] * count))
    words, ours = np.zeros(size, "<u4"), np.zeros(size, "<u4")
    secagg._bare(words, 3)()
    add_masks(ours, [(bytes([number] * 32), 1) for number in range(3)])
    assert words.any() and words.tobytes() == ours.tobytes()


def test_flower_draws_as_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = secagg.pseudo_rand_gen

    def counted(seed: bytes, most: int, shapes: list[tuple[int, ...]]) -> Any:
        layers = draw(seed, most, shapes)
        assert len(seed) == 32 and most == 2**32
        drawn.append(sum(layer.size for layer in layers))
        return layers

    monkeypatch.setattr(secagg, "pseudo_rand_gen", counted)
    secagg._masks_in_turn(2_500_000, 3, 1)
    assert drawn == [2_500_000] * 3 * 2  # a lap that warms up, and one that counts


def test_the_command_prints_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["bench", "secagg", "--parameters", "200", "--silos", "4", "--laps", "1"]
    assert guarded(app, arguments=[*given, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert set(found) == {"machine", "rows"} and len(found["rows"]) == 2 and printed.err == ""
    assert json.loads((tmp_path / "runs/bench/secagg.json").read_text()) == found
    assert "<svg" in (tmp_path / "runs/bench/secagg.svg").read_text()[:600]
    assert guarded(app, arguments=given) == 0
    shown = capsys.readouterr()
    assert "a sum under secure aggregation" in shown.out and "200 parameters, 4 silos, 1 dropped" in shown.err


@pytest.mark.parametrize("wrong", [["--silos", "1"], ["--silos", "129"], ["--parameters", "0"], ["--network", "mlp"]])
def test_what_cannot_be_measured_is_a_usage_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app, arguments=["bench", "secagg", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err
