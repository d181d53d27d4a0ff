"""Memory does not grow with a table's columns, and with its rows by a few bytes each: nothing keeps an object a row.

What numpy allocates is counted by tracemalloc, what Arrow does by Arrow itself, a whole run by the operating system.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn import metrics as sk

from client.data import records, tables, tabular
from client.data.records import Loaded, Part, Selected, split
from client.models.base import Shape, build, predict
from client.training.noise import SecretRandom
from simulations.baselines import fit
from simulations.partitions import Dirichlet, Iid, Natural, Quantity, Table
from simulations.silos import REGISTRIES, pooled
from strategies import metrics
from strategies.study import Study

STUDY = """
[study]
name = "narrow"
task = "classification"
rounds = 1
[data]
kind = "tabular"
target = "label"
UNIT
classes = ["no", "yes"]
[data.features]
FEATURES
[model]
name = "logistic()"
[training]
sampling_rate = 0.001
steps = 2
[privacy]
epsilon = 8.0
[simulation]
dataset = "t.csv"
silos = 3
partition = "iid"
"""
COLUMNS = ("a", "b", "c", "d")


def study(unit: str = "") -> Study:
    features = "\n".join(f'{name} = {{ type = "numeric", min = -10, max = 10 }}' for name in COLUMNS)
    return Study.parse(STUDY.replace("UNIT", unit).replace("FEATURES", features), REGISTRIES)


def frame(rows: int, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    values = {name: np.round(random.normal(size=rows), 6) for name in COLUMNS}
    label = np.where(values["a"] + values["b"] > 0, "yes", "no")
    return pl.DataFrame({**values, "label": label, "person": np.arange(rows) // 4})


def counted(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """Return what the work gives, how many bytes more are held after it, and the most while it ran."""
    work()  # what is imported, and kept, at the first time
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = work()
        most = tracemalloc.get_traced_memory()[1]
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return found, held - before, most - before


def test_places_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_BLOCK", 7)
    for length in (0, 1, 7, 8, 50):
        mask = np.random.default_rng(length).random(length) < 0.4
        np.testing.assert_array_equal(records.places(mask), np.flatnonzero(mask))
        assert records.places(mask).dtype == np.int32


@pytest.mark.parametrize("share", [0.0, 0.003, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000, 4096])
def test_marked_rows_are_those_of_numpy(length: int, share: float) -> None:
    random = np.random.default_rng(length)
    mask = random.random(length) < share
    marked, rows = records.Marked(mask), np.flatnonzero(mask)
    assert len(marked) == len(rows)
    np.testing.assert_array_equal(marked[np.arange(len(rows))], rows)
    wanted = random.integers(0, max(1, len(rows)), 50 if len(rows) else 0)
    np.testing.assert_array_equal(marked[wanted], rows[wanted])
    with pytest.raises(IndexError):
        marked[np.array([len(rows)])]


# --- bytes a row --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "most"), [("", 1.5), ('unit = "person"', 5.5)])
def test_a_row_on_disk_holds_a_label_and_its_unit(
    unit: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label of one byte, three bits for its place, four bytes for a unit if a column names it; inputs stay on disk."""
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 2**16)
    rows, agreed = 200_000, study(unit)
    frame(rows).write_parquet(tmp_path / "t.parquet")
    found, held, _ = counted(
        lambda: split(tabular.load(tmp_path / "t.parquet", agreed, {}, tmp_path / "scratch"), seed=1, test_share=0.2)
    )
    assert isinstance(found.train.x, Selected) and len(found.train.y) + len(found.held_out.y) == rows
    assert most - 0.5 < held / rows <= most


@pytest.mark.parametrize(("unit", "bytes_a_row"), [(False, 5), (True, 25)])
def test_a_split_needs_few_bytes_a_row(unit: bool, bytes_a_row: int) -> None:
    rows = 100_000
    person = pl.Series(np.arange(rows) // 3).cast(pl.String)
    loaded = Loaded(
        x=_Inputs(rows), y=np.zeros(rows, np.int8), keys=person if unit else np.arange(rows, dtype=np.int32)
    )
    found, held, most = counted(lambda: split(loaded, seed=1, test_share=0.2))
    assert held / rows <= 6 and most / rows <= bytes_a_row
    assert found.train.units + found.held_out.units == (rows + 2) // 3 if unit else rows


class _Inputs:
    """Inputs that are never read."""

    def __init__(self, rows: int) -> None:
        self.shape: tuple[int, ...] = (rows, 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        raise AssertionError("nothing is read")


@pytest.mark.parametrize("name", ["iid", "dirichlet", "quantity", "natural"])
def test_a_partition_needs_twenty_bytes_a_unit_at_most(name: str) -> None:
    units = 300_000
    random = np.random.default_rng(0)
    label = random.integers(0, 2, units).astype(np.int8)
    site = pl.Series("site", random.choice(["x", "y", "z"], units)).cast(pl.Categorical)
    partition = {"iid": Iid(), "dirichlet": Dirichlet(), "quantity": Quantity(), "natural": Natural(column="site")}[
        name
    ]
    table = Table(label=label, frame=site.to_frame())
    owner, held, most = counted(lambda: partition.assign(table, 3, random))
    assert held / units <= 5 and most / units <= 20
    assert owner.dtype == np.int32 and set(owner.tolist()) == {0, 1, 2}


def test_a_natural_partition_is_the_column_whatever_its_type() -> None:
    texts = ["b", None, "a", "b", "missing", "a"]
    for column in (pl.Series("s", texts), pl.Series("s", texts).cast(pl.Categorical)):
        table = Table(label=np.zeros(6, np.int8), frame=column.to_frame())
        assert Natural(column="s").assign(table, 3, np.random.default_rng(0)).tolist() == [1, 2, 0, 1, 2, 0]


def test_scores_of_many_are_held_once() -> None:
    import torch

    agreed, rows = study(), 500_000
    shape = Shape.of_study(agreed)
    module, x = build(agreed.model, shape, 1), torch.zeros(rows, 8)
    scores, _, most = counted(lambda: predict(module, x, shape))
    assert scores.nbytes == 16 * rows and most <= scores.nbytes + 3 * rows


def test_a_sample_of_many_needs_no_list_of_all() -> None:
    _, _, most = counted(lambda: SecretRandom().poisson_sample(3_000_000, 0.001))
    assert most < 3_000_000


def test_a_comparison_needs_forty_bytes_a_row_at_most() -> None:
    """Pooled records and the baseline that is trained on them, with one step."""
    import torch

    rows, agreed = 200_000, study()
    parts = []
    for seed in range(2):
        x = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows // 2, 8)).astype(np.float32))
        y = torch.from_numpy((x[:, 0] > 0).numpy().astype(np.int8))
        parts.append(Part(x=x, y=y, unit_of_row=np.arange(rows // 2, dtype=np.int32)))
    both, held, _ = counted(lambda: pooled(parts))
    assert held / rows <= 5 and both.unit_of_row.dtype == np.int32 and both.units == rows
    test = Part(x=both.x[:10], y=both.y[:10], unit_of_row=both.unit_of_row[:10])
    values, _, most = counted(lambda: fit(agreed, both, test, seconds=0.0))
    assert values["auroc"] is not None and most / rows <= 40


# --- files --------------------------------------------------------------------------------------------------


def test_many_row_groups_are_not_kept(tmp_path: Path) -> None:
    """Found: Arrow reads ahead unless told not to, and holds what it has read: a gigabyte in the end."""
    texts = pl.DataFrame({name: [f"{name}{row:012d}" for row in range(1000)] for name in "abcdefgh"}).to_arrow()
    path = tmp_path / "t.parquet"
    with pa.parquet.ParquetWriter(path, texts.schema) as writer:
        for _ in range(300):
            writer.write_table(texts)
    before, most, seen = pa.total_allocated_bytes(), 0, 0
    for batch in tables.batches(path, None, {}):
        most, seen = max(most, pa.total_allocated_bytes() - before), seen + batch.height
    assert seen == 300_000 and most < 20 * 2**20, "the file has 40 MB"


def test_one_large_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    rows = 2_000_000
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(
        pa.table({"a": np.random.default_rng(0).normal(size=rows)}), path, row_group_size=rows, use_dictionary=False
    )
    before, most, seen = pa.total_allocated_bytes(), 0, 0
    for batch in tables.batches(path, None, {}):
        most, seen = max(most, pa.total_allocated_bytes() - before), seen + batch.height
    assert seen == rows and most < 8 * 2**20, "the group has 16 MB"


# --- metrics of many ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_rankings_of_many_are_scikit_learns(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    truth = random.random(2000) < 0.2
    scores = np.round(random.normal(truth * 0.7), 1 if seed % 2 else 6)  # with and without ties
    monkeypatch.setattr(metrics, "BLOCK", 70)
    assert metrics.auroc(truth, scores) == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)
    assert metrics.auprc(truth, scores) == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize("task", ["two classes", "four classes", "labels", "a value"])
def test_metrics_do_not_depend_on_how_many_are_looked_at_together(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    classes = {"two classes": 2, "four classes": 4, "labels": 3, "a value": 1}[task]
    scores, labels = random.dirichlet(np.ones(classes + 1), 900)[:, :classes], random.integers(0, max(classes, 2), 900)
    scores = scores if task in ("labels", "a value") else scores / scores.sum(1, keepdims=True)
    labels = random.integers(0, 2, (900, 3)).astype(np.float32) if task == "labels" else labels
    names = ("rmse", "mae", "r2") if task == "a value" else ("accuracy", "auroc", "auprc", "brier", "f1", "ece")
    whole = metrics.evaluate(scores, labels, names)
    monkeypatch.setattr(metrics, "BLOCK", 64)
    assert metrics.evaluate(scores, labels, names) == pytest.approx(whole, abs=1e-12)


def test_metrics_of_many_need_as_much_as_the_scores() -> None:
    random = np.random.default_rng(0)
    second = random.random(400_000)
    scores, labels = np.stack([1 - second, second], axis=1), (random.random(400_000) < second).astype(np.int8)
    names = ("accuracy", "auroc", "auprc", "brier", "balanced_accuracy", "f1", "ece")
    _, _, most = counted(lambda: metrics.evaluate(scores, labels, names))
    assert most <= 1.25 * scores.nbytes


# --- a whole run --------------------------------------------------------------------------------------------

RUN = """
import sys
from pathlib import Path
import polars, sklearn.metrics, torch
def peak():  # of this program alone: ru_maxrss begins with what the parent had
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
before = peak()
from simulations import baselines, run, sources
from simulations.silos import REGISTRIES
from strategies.study import Study
sources._IN_MEMORY_BYTES = 0  # the way of large files
baselines._SECONDS = 5.0
folder = Path(sys.argv[1])
outcome = run.simulate(Study.parse((folder / "study.toml").read_text(), REGISTRIES), folder, out=folder / "runs")
print(outcome.facts["simulation"]["test_records"], outcome.facts["metrics"]["auroc"], peak() - before)
"""


def _write_csv(path: Path, block: pl.DataFrame, times: int) -> None:
    text = block.write_csv(include_header=False).encode()
    with path.open("wb") as file:
        file.write((",".join(block.columns) + "\n").encode())
        for _ in range(times):
            file.write(text)


def _write_parquet(path: Path, block: pl.DataFrame, times: int) -> None:
    table = block.to_arrow()
    with pa.parquet.ParquetWriter(path, table.schema, use_dictionary=["label"]) as writer:
        for _ in range(times):
            writer.write_table(table)


WRITERS = {"csv": _write_csv, "parquet": _write_parquet}


@pytest.mark.parametrize(("suffix", "row_bytes"), [("csv", 45), ("parquet", 32)])
def test_a_narrow_table_trains_in_little_memory(suffix: str, row_bytes: int, full_tier: bool, tmp_path: Path) -> None:
    """2 GB of rows with four columns, the hardest case: 48 or 67 million rows; a small file in the smaller tier."""
    size, limit = (2 * 2**30, 1536) if full_tier else (8 * 2**20, 480)
    (tmp_path / "study.toml").write_text(study().text.replace("t.csv", f"t.{suffix}"))
    blocks = size // (100_000 * row_bytes) + 1
    WRITERS[suffix](tmp_path / f"t.{suffix}", frame(100_000).drop("person"), blocks)
    done = subprocess.run([sys.executable, "-c", RUN, tmp_path], capture_output=True, text=True, check=True)
    tested, auroc, grown = (float(text) for text in done.stdout.split())
    assert tested > 0.19 * 100_000 * blocks and auroc > 0.7
    assert 50 < grown < limit
