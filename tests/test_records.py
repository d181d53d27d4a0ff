"""Laws of records on disk: whatever lies on disk, in parts or behind a rule is indexed like the array that it stands for,
and neither batches nor blocks have an influence; memory does not grow with the file.

Oracles: numpy's indexing, the table in one block, the operating system's own count of memory.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import records, schema, tables, tabular
from client.data.arrays import open_arrays
from client.data.records import (
    DiskRows,
    Encoded,
    Joined,
    Loaded,
    Selected,
    Spool,
    held_out_rows,
    in_memory_if_small,
    split,
)
from client.models.base import MODELS
from strategies.errors import DataError
from strategies.spec import Registries
from strategies.study import Study, override

ROWS = 12
ARRAY = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
STUDY = """[study]
name = "s"
task = "classification"
[data]
kind = "tabular"
target = "label"
classes = ["no", "yes"]
[data.features]
age = { type = "numeric", min = 0, max = 100 }
code = { type = "categorical", values = ["007", "7"] }
[model]
name = "logistic()"
[privacy]
noise_multiplier = 1.0
"""


def study(text: str = STUDY, **changes: Any) -> Study:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return Study.parse(override(text, values), Registries(models=MODELS))


# --- indexing -----------------------------------------------------------------------------------------------


def on_disk(folder: Path, array: np.ndarray[Any, Any] = ARRAY) -> DiskRows:
    path = folder / "rows"
    path.write_bytes(b"header" + array.tobytes() + b"more")
    return DiskRows(path.open("rb"), offset=6, count=len(array), shape=array.shape[1:], dtype=array.dtype)


def as_encoded(folder: Path) -> Encoded:
    return Encoded(on_disk(folder), lambda raw, _: raw, (2, 3))


def as_joined(folder: Path) -> Joined:
    return Joined([torch.from_numpy(ARRAY[:5]), torch.from_numpy(ARRAY[5:5]), as_encoded_part(folder, slice(5, None))])


def as_encoded_part(folder: Path, rows: slice) -> Encoded:
    return Encoded(on_disk(folder, ARRAY[rows]), lambda raw, _: raw, (2, 3))


def as_selected(folder: Path) -> Selected:
    order = np.random.default_rng(0).permutation(ROWS)
    return Selected(Selected(as_encoded(folder), order), np.argsort(order))


def as_spooled(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "IN_MEMORY_BYTES", 30)
        spool = Spool(folder / "scratch")
        for start in range(0, ROWS, 5):
            spool.append(ARRAY[start : start + 5])
        return spool.finish()


STAND_INS: dict[str, Callable[[Path], Any]] = {
    "disk": on_disk,
    "encoded": as_encoded,
    "joined": as_joined,
    "selected": as_selected,
    "spooled": as_spooled,
}
indices = st.one_of(
    st.lists(st.integers(0, ROWS - 1), max_size=20),
    st.builds(slice, *[st.one_of(st.none(), st.integers(-15, 15))] * 2, st.sampled_from([None, 1, 2, -1])),
)


@pytest.mark.parametrize("name", STAND_INS)
def test_rows_are_indexed_like_an_array(name: str, tmp_path: Path) -> None:
    stand_in = STAND_INS[name](tmp_path)
    assert len(stand_in) == ROWS and tuple(stand_in.shape) == ARRAY.shape

    @given(indices)
    def law(rows: list[int] | slice) -> None:
        expected = ARRAY[rows if isinstance(rows, slice) else np.array(rows, dtype=int)]
        wanted = rows if isinstance(rows, slice) else torch.tensor(rows, dtype=torch.int64)
        found = stand_in[wanted]
        assert isinstance(found, torch.Tensor) or name == "disk"
        np.testing.assert_array_equal(found, expected)
        assert tuple(found.shape) == expected.shape and np.asarray(found).dtype == np.float32

    law()


def test_an_encoder_sees_the_positions() -> None:
    doubled = Encoded(ARRAY, lambda raw, rows: rows.astype(np.float32)[:, None], (1,))
    assert doubled[torch.tensor([7, 2])].tolist() == [[7], [2]] and doubled.shape == (ROWS, 1)


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    rows = on_disk(tmp_path)
    (tmp_path / "rows").write_bytes(b"header")
    with pytest.raises(OSError, match="became shorter"):
        rows[slice(None)]


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6), limit=st.integers(0, 200))
def test_a_spool_gives_what_it_got(sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("spool")
    batches = [np.arange(3 * size, dtype=np.int32).reshape(size, 3) + 100 * place for place, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "IN_MEMORY_BYTES", limit)
        spool = Spool(folder / "scratch")
        for batch in batches:
            spool.append(batch)
        found, plain = spool.finish(np.int64), spool.finish()
    assert isinstance(found, torch.Tensor) == (sum(batch.nbytes for batch in batches) <= limit)
    assert found[:].dtype == torch.int64 and plain[:].dtype == torch.int32
    np.testing.assert_array_equal(found[:], np.concatenate(batches))
    np.testing.assert_array_equal(plain[:], np.concatenate(batches))
    assert not (folder / "scratch").exists() or not list((folder / "scratch").iterdir())  # the file has no name


def test_what_is_small_is_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Encoded(ARRAY, lambda raw, _: raw, (2, 3))
    assert isinstance(in_memory_if_small(rows), torch.Tensor)
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", ARRAY.nbytes - 1)
    assert in_memory_if_small(rows) is rows


# --- units --------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=2), min_size=1, max_size=30), st.integers(0, 99), st.floats(0, 0.9))
def test_a_list_a_series_and_a_split_agree(keys: list[str], seed: int, share: float) -> None:
    rows = held_out_rows(keys, seed, share)
    np.testing.assert_array_equal(rows, held_out_rows(pl.Series(keys, dtype=pl.String), seed, share))
    loaded = Loaded(x=torch.arange(len(keys))[:, None], y=np.zeros(len(keys)), keys=keys)
    parts = split(loaded, seed=seed, test_share=share)
    for part, side in ((parts.train, False), (parts.held_out, True)):
        mine = [key for key, held in zip(keys, rows, strict=True) if held == side]
        numbers: dict[str, int] = {}
        assert part.unit_of_row.tolist() == [numbers.setdefault(key, len(numbers)) for key in mine]
        assert part.x[:, 0].tolist() == np.flatnonzero(rows == side).tolist()


# printf "fedsilo/split/7/a" | sha256sum gives 6c7bb891..., b 53c6043b..., patient 1 a88f0b33..., 0 1e0058d3...
@pytest.mark.parametrize(("key", "number"), [("a", 0x6C7BB891), ("b", 0x53C6043B), ("patient 1", 0xA88F0B33)])
def test_the_side_of_a_unit_may_never_change(key: str, number: int) -> None:
    share = number / 2**32
    assert held_out_rows([key], 7, share + 1e-8).tolist() == [True]
    assert held_out_rows([key], 7, share - 1e-8).tolist() == [False]
    assert held_out_rows(np.array([0, 0]), 7, 0x1E0058D4 / 2**32).tolist() == [True, True]
    assert held_out_rows(np.array([0]), 7, 0x1E0058D3 / 2**32).tolist() == [False]


# --- tables -------------------------------------------------------------------------------------------------


def load(path: Path, content: str | bytes, agreed: Study | None = None) -> Loaded:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tabular.load(path, agreed or study(), {}, path.parent / "scratch")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_batches_and_disk_have_no_influence(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "age": random.integers(-5, 120, 400),
            "code": random.choice(["007", "7", "x", ""], 400),
            "label": random.choice(["no", "yes"], 400),
            "person": [f"p\n{number}" for number in random.integers(0, 90, 400)],
        }
    )
    path, agreed = tmp_path / f"t{suffix}", study(data__unit="person", evaluation__groups=["code"])
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    whole = tabular.load(path, agreed, {}, tmp_path / "scratch")
    for name, size in (("_BATCH_ROWS", 7), ("_BLOCK_BYTES", 64)):
        monkeypatch.setattr(tables, name, size)
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 500)
    assert len(list(tables.batches(path, None, {}))) > 10
    cut = tabular.load(path, agreed, {}, tmp_path / "scratch")
    assert isinstance(whole.x, torch.Tensor) and not isinstance(cut.x, torch.Tensor)
    np.testing.assert_array_equal(whole.x, cut.x[:])
    np.testing.assert_array_equal(whole.y, cut.y)
    assert list(whole.keys) == list(cut.keys) == frame["person"].to_list() and whole.notes == cut.notes
    np.testing.assert_array_equal(whole.groups["code"], cut.groups["code"])
    assert tables.read_table(path).height == 400


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("age", "old", "column 'age', row 33: 'old' is no number"),
        ("label", "maybe", "column 'label', row 33: 'maybe' is none of the study's classes no, yes"),
        ("label", "", "target column 'label', row 33: the value is missing"),
    ],
)
def test_a_row_is_that_of_the_file(
    suffix: str, column: str, value: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pl.DataFrame({"age": ["5"] * 40, "code": ["7"] * 40, "label": ["no"] * 40})
    frame = frame.with_columns(pl.Series(column, [*frame[column][:32], value, *frame[column][33:]]))
    path = tmp_path / f"t{suffix}"
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    for size in (2**20, 40):
        monkeypatch.setattr(tables, "_BLOCK_BYTES", size)
        monkeypatch.setattr(tables, "_BATCH_ROWS", size // 5)
        with pytest.raises(DataError, match=sentence):
            tabular.load(path, study(), {}, tmp_path)
    marked = frame.with_row_index("__row__").with_columns(pl.col("__row__").cast(pl.Int64))[20:]  # cut by a simulation
    marked.write_csv(path) if suffix == ".csv" else marked.write_parquet(path)
    with pytest.raises(DataError, match=sentence):
        tabular.load(path, study(), {}, tmp_path)


def test_codes_keep_their_zeros_and_a_mark_of_order_is_no_name(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        loaded = load(
            tmp_path / "t.csv", mark + b"age,code,label\r\n50,007,no\r\n50,7,yes\r\n50,07,no\r\n50,7.0,no\r\n"
        )
        assert loaded.x[:][:, 2:].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_quotes_blanks_and_lines_within_values(tmp_path: Path) -> None:
    agreed = study(data__classes=["no", 'a "b",\nc'])
    loaded = load(
        tmp_path / "t.csv", '"age", code,label\n 1e1 ,7,no\n"50","7","a ""b"",\nc"\n'.replace(", code", ",code"), agreed
    )
    assert loaded.y.tolist() == [0, 1] and loaded.x[1].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"age,age,code,label\n1,1,7,no\n", "t.csv has two columns of the name 'age'; rename one"),
        (b"age,code,label\n1,7\n", "t.csv cannot be read"),
        (b"age,code,label\n1,7,m\xfcde\n", "t.csv cannot be read"),
        (b"age;code;label\n1;7;no\n", "column 'age' is missing (3 of 3 columns are)"),
    ],
)
def test_a_table_that_is_none(content: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path / "t.csv", content)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_truth_values_as_classes(tmp_path: Path) -> None:
    agreed = study(data__classes=[False, True])
    for yes, no in (("True", "False"), ("true", "false"), ("TRUE", "false")):
        loaded = load(tmp_path / "t.csv", f"age,code,label\n1,7,{yes}\n1,7,{no}\n", agreed)
        assert loaded.y.tolist() == [1, 0] and loaded.y.dtype == np.int8
    pl.DataFrame({"age": [1], "code": ["7"], "label": [True]}).write_parquet(tmp_path / "t.parquet")
    assert tabular.load(tmp_path / "t.parquet", agreed, {}, tmp_path).y.tolist() == [1]


def test_several_labels_groups_and_a_number_to_predict(tmp_path: Path) -> None:
    several = study(STUDY.replace('target = "label"\n', ""), study__task="multilabel", data__classes=["oedema", "x"])
    text = "age,code,oedema,x\n50,007,1,0\n50,7,0.0,1\n,9,1,1\n"
    loaded = load(tmp_path / "t.csv", text, several)
    assert loaded.y.tolist() == [[1, 0], [0, 1], [1, 1]] and loaded.y.dtype == np.float32
    for wrong, sentence in (
        ("2", "label column 'x', row 3: the value is 2; a label is 0 or 1"),
        ("", "row 3: the value is"),
    ):
        with pytest.raises(DataError, match=sentence):
            load(tmp_path / "t.csv", text.replace("9,1,1", f"9,1,{wrong}"), several)
    value = study(STUDY.replace('classes = ["no", "yes"]\n', ""), study__task="regression", data__target="x")
    assert load(tmp_path / "t.csv", text, value).y.tolist() == [0, 1, 1]
    grouped = load(tmp_path / "t.csv", text, study(value.text, evaluation__groups=["code"]))
    assert grouped.groups["code"].tolist() == [0, 1, -1] and list(grouped.keys) == [0, 1, 2]
    assert tabular.load(tmp_path / "t.csv", study(), {}, tmp_path, labelled=False).y.tolist() == [0, 0, 0]


# --- arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_an_npz(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "t.npz", X=ARRAY, y=np.arange(ROWS), both=np.zeros((ROWS, 2)), names=np.array(["a", "b"]))
    found = open_arrays(tmp_path / "t.npz", tmp_path / "scratch")
    np.testing.assert_array_equal(found.x[slice(None)], ARRAY)
    np.testing.assert_array_equal(found.x[np.array([11, 0, 1])], ARRAY[[11, 0, 1]])
    assert set(found.columns) == {"y", "both"} and found.frame().columns == ["y", "both_1", "both_2"]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"Z": ARRAY}, "t.npz has no array X, only Z; add it"),
        ({"X": ARRAY, "y": np.zeros(3)}, "array y of t.npz has shape (3,); it must have one entry for each of the 12"),
        ({"X": np.array([{}], dtype=object)}, "t.npz cannot be read"),
        ({"X": ARRAY, "y": np.array([None] * ROWS)}, "t.npz cannot be read"),
        ({"X": np.asfortranarray(ARRAY)}, "t.npz cannot be read (X holds objects, is in Fortran order"),
        ({"X": ARRAY[:0]}, "t.npz has no records"),
    ],
)
def test_wrong_arrays(arrays: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError) as error:
        open_arrays(tmp_path / "t.npz", tmp_path)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "t.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"t\.npz cannot be read"):
        open_arrays(tmp_path / "t.npz", tmp_path)
    with pytest.raises(DataError, match="there is no file"):
        open_arrays(tmp_path / "u.npz", tmp_path)


# --- memory -------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
import polars, pyarrow.csv, pyarrow.parquet, torch
from client.data import tabular
from client.models.base import MODELS
from strategies.spec import Registries
from strategies.study import Study
def peak():  # of this program alone: ru_maxrss begins with what the parent had
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
agreed, path = Study.parse(sys.argv[1], Registries(models=MODELS)), Path(sys.argv[2])
before = peak()
loaded = tabular.load(path, agreed, {}, path.parent / "scratch")
print(len(loaded.y), peak() - before)
loaded.x[torch.arange(0, len(loaded.y), 100_000)]
"""
COLUMNS = [f"x{number}" for number in range(4)]


def write_large(path: Path, size_bytes: int) -> int:
    """Write as many bytes of rows, and return their number; the same rows over and over."""
    random, block = np.random.default_rng(0), 100_000
    values = {name: random.integers(-(10**7), 10**7, block) / 10**6 for name in COLUMNS}
    person = pl.select("p" + (pl.int_range(block) // 2).cast(pl.String)).to_series()
    frame = pl.DataFrame({**values, "label": random.choice(["no", "yes"], block), "person": person, "note": "-" * 60})
    rows = frame.write_csv(include_header=False).encode()
    with path.open("wb") as file:
        file.write((",".join(frame.columns) + "\n").encode())
        for _ in range(size_bytes // len(rows) + 1):
            file.write(rows)
    return block * (size_bytes // len(rows) + 1)


def test_memory_does_not_grow_with_the_file(full_tier: bool, tmp_path: Path) -> None:
    size, limit = (2 * 2**30, 1500) if full_tier else (300 * 2**20, 250)
    rows = write_large(tmp_path / "t.csv", size)
    features = {name: {"type": "numeric", "min": -10, "max": 10} for name in COLUMNS}
    agreed = study(data__features=features, data__unit="person")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, agreed.text, tmp_path / "t.csv"], capture_output=True, text=True, check=True
    )
    loaded, grown = done.stdout.split()
    assert int(loaded) == rows and float(grown) < limit
    assert float(grown) > 20  # it was measured at all


def test_codes_of_many_repeated_values_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for series in (
        pl.Series(random.choice(["1", "1.0", "2", "NA", "x", None, "True"], 400).tolist(), dtype=pl.String),
        pl.Series(random.choice([1.0, 2.0, float("nan"), 3.5], 400)),
    ):
        at_once = schema.codes_of(series, ["1", 2, "x", True])
        monkeypatch.setattr(schema, "_MANY", 10)
        np.testing.assert_array_equal(schema.codes_of(series, ["1", 2, "x", True]), at_once)
        monkeypatch.undo()
