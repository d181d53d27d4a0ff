"""Laws of sequences: a record is a function of its own rows and the public schema, padding comes after the steps, the
order of rows in a file has no influence; wrong data is one sentence.

Oracles: arrays worked by hand, the pivot of pandas, `test_data.py`'s encoding for single columns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import records, sequences, steps, tables
from client.data.kinds import LOADERS
from client.data.records import Loaded
from client.models.base import MODELS, Shape
from simulations.datasets.base import DATASETS
from strategies.errors import DataError, SettingError
from strategies.spec import Registries
from strategies.study import Study, override

R3 = math.sqrt(3)
NAN = float("nan")
BARE = """[study]
name = "s"
task = "classification"
[data]
kind = "sequences"
classes = [0, 1]
[model]
name = "gru()"
[privacy]
noise_multiplier = 1.0
"""
ARRAYS = override(
    BARE,
    {
        "data.shape": [3],
        "data.features": {
            "hr": {"type": "numeric", "min": 0, "max": 10},
            "bp": {"type": "numeric", "min": 0, "max": 100, "missing": "refuse"},
        },
    },
)
ROWS = override(
    BARE,
    {
        "data.shape": [3],
        "data.record": "stay",
        "data.time": "hour",
        "data.target": "died",
        "data.features": {
            "hr": {"type": "numeric", "min": 0, "max": 10},
            "pace": {"type": "categorical", "values": ["slow", "fast"]},
        },
    },
)
EVENTS = override(ROWS, {"data.event": "what", "data.value": "value"})
# stay b comes before a, its hours are not in order; a has more steps than the shape
FRAME = pl.DataFrame(
    {
        "stay": ["b", "a", "b", "a", "a", "a"],
        "hour": [2.0, 1.0, 1.0, 2.0, 10.0, 9.0],
        "hr": [10.0, 0.0, None, 5.0, 2.5, 10.0],
        "pace": ["fast", "slow", "fast", "trot", None, "slow"],
        "died": [1, 0, 1, 0, 0, 0],
        "person": ["p", "q", "p", "q", "q", "q"],
    }
)
STEPS = {  # hr, hr missing, slow, fast, pace missing, there
    "b": [[0, 1, 0, 1, 0, 1], [R3, 0, 0, 1, 0, 1], [0] * 6],
    "a": [[0, 0, 0, 0, 1, 1], [R3, 0, 1, 0, 0, 1], [-R3 / 2, 0, 0, 0, 1, 1]],
}
BY_HAND = np.array([STEPS["b"], STEPS["a"]])


def study(text: str, changes: dict[str, Any] | None = None) -> Study:
    return Study.parse(override(text, changes or {}), Registries(models=MODELS))


def load_arrays(folder: Path, agreed: Study, rename: dict[str, str] | None = None, **arrays: Any) -> Loaded:
    np.savez_compressed(folder / "t.npz", **arrays)
    return sequences.load(folder / "t.npz", agreed, rename or {}, folder / "scratch")


def load_table(
    folder: Path, frame: pl.DataFrame, agreed: Study, *, name: str = "t.parquet", rename: dict[str, str] | None = None
) -> Loaded:
    if name.endswith(".csv"):
        frame.write_csv(folder / name)
    else:
        frame.write_parquet(folder / name)
    return sequences.load(folder / name, agreed, rename or {}, folder / "scratch")


def whole(loaded: Loaded) -> np.ndarray[Any, Any]:
    x = loaded.x[:]
    assert x.dtype == torch.float32 and tuple(x.shape) == tuple(loaded.x.shape) and len(loaded.x) == len(loaded.y)
    return x.numpy()


def keys_of(loaded: Loaded) -> list[Any]:
    return list(loaded.keys)


# --- arrays -------------------------------------------------------------------------------------------------

X = np.array([[[0.0, 50.0], [10.0, 0.0]], [[NAN, 100.0], [5.0, 25.0]]])


def test_arrays_by_hand(tmp_path: Path) -> None:
    loaded = load_arrays(tmp_path, study(ARRAYS), X=X, y=np.array([1, 0]), lengths=np.array([2, 1]))
    expected = [  # hr, hr missing, bp, there
        [[-R3, 0, 0, 1], [R3, 0, -R3, 1], [0, 0, 0, 0]],
        [[0, 1, R3, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    np.testing.assert_allclose(whole(loaded), expected, atol=1e-6)
    assert loaded.y.tolist() == [1, 0] and keys_of(loaded) == [0, 1]
    assert loaded.notes == ("column 'hr': 1 steps missing, 0 outside the public schema",)
    assert loaded.x.shape[1:] == Shape.of_study(study(ARRAYS)).inputs


def test_without_lengths_all_steps_are_there(tmp_path: Path) -> None:
    x = np.full((2, 3), NAN)
    x[0, 0] = 2.5
    one = {"data.features": {"hr": {"type": "numeric", "min": 0, "max": 10}}}
    loaded = load_arrays(tmp_path, study(ARRAYS, one), X=x, y=np.array([1, 0]))
    np.testing.assert_allclose(whole(loaded)[0], [[-R3 / 2, 0, 1], [0, 1, 1], [0, 1, 1]], atol=1e-6)
    assert (whole(loaded)[1] == [0, 1, 1]).all()


def test_the_last_steps_of_an_array_are_kept(tmp_path: Path) -> None:
    x = np.arange(10.0).reshape(2, 5)
    one = {"data.features": {"hr": {"type": "numeric", "min": 0, "max": 9, "missing": "refuse"}}}
    loaded = load_arrays(tmp_path, study(ARRAYS, one), X=x, y=np.array([1, 0]), lengths=np.array([4, 2]))
    there = (whole(loaded)[:, :, 0] / R3 + 1) / 2 * 9
    np.testing.assert_allclose(there[0], [1, 2, 3], atol=1e-5)
    np.testing.assert_allclose(there[1][:2], [5, 6], atol=1e-5)
    assert whole(loaded)[:, :, 1].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert loaded.notes == ("1 records have more than 3 steps; the last 3 are kept",)


def test_a_record_without_steps_has_one_unmeasured_step(tmp_path: Path) -> None:
    one = {"data.features": {"hr": {"type": "numeric", "min": 0, "max": 9}}}
    loaded = load_arrays(tmp_path, study(ARRAYS, one), X=np.ones((1, 2)), y=np.array([1]), lengths=np.array([0]))
    assert whole(loaded)[0].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int16, np.uint8, bool])
def test_the_type_of_an_array_has_no_influence(kind: Any, tmp_path: Path) -> None:
    x = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]])
    plain, typed = (load_arrays(tmp_path, study(ARRAYS), X=x.astype(t), y=np.array([1, 0])) for t in (float, kind))
    np.testing.assert_array_equal(whole(plain), whole(typed))


def test_labels_units_and_names_of_arrays(tmp_path: Path) -> None:
    several = override(ARRAYS, {"study.task": "multilabel", "data.classes": ["a", "b", "c"], "data.unit": "unit"})
    y = np.array([[1, 0, 1], [0, 0, 1]])
    loaded = load_arrays(tmp_path, study(several), X=np.nan_to_num(X), y=y, unit=np.array(["q", "p"]))
    assert loaded.y.tolist() == y.tolist() and loaded.y.dtype == np.float32 and keys_of(loaded) == ["q", "p"]
    value = override(ARRAYS.replace("classes = [0, 1]\n", ""), {"study.task": "regression", "data.target": "cost"})
    loaded = load_arrays(tmp_path, study(value), {"price": "cost", "n": "lengths"}, X=X, price=[1.5, 2], n=[1, 2])
    assert loaded.y.tolist() == [1.5, 2.0] and whole(loaded)[:, :, -1].sum(axis=1).tolist() == [1, 2]
    names = np.array(["hr", "bp", "and a third"])  # an array that is not of the records
    assert len(load_arrays(tmp_path, study(ARRAYS), X=X, y=[0, 1], names=names).y) == 2


def test_a_categorical_channel(tmp_path: Path) -> None:
    changes = {"data.features": {"sex": {"type": "categorical", "values": [1, 2]}}}
    loaded = load_arrays(tmp_path, study(ARRAYS, changes), X=np.array([[1.0, 2.0, NAN]]), y=np.array([0]))
    assert whole(loaded)[0].tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]


def test_large_arrays_stay_on_disk_and_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x = np.where(random.random((50, 4, 2)) < 0.3, NAN, random.uniform(-1, 11, (50, 4, 2)))
    x[:, :, 1] = 1.0
    arrays = {"X": x, "y": random.integers(0, 2, 50), "lengths": random.integers(0, 5, 50)}
    changes = {"data.features": {name: {"type": "numeric", "min": 0, "max": 10} for name in ("hr", "bp")}}
    small = load_arrays(tmp_path, study(ARRAYS, changes), **arrays)
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(sequences, "_VALUES_AT_ONCE", 24)  # three records a block
    large = load_arrays(tmp_path, study(ARRAYS, changes), **arrays)
    assert isinstance(small.x, torch.Tensor) and not isinstance(large.x, torch.Tensor)
    np.testing.assert_array_equal(whole(small), whole(large))
    assert small.notes == large.notes and len(small.notes) == 2 + 1
    some = torch.tensor([7, 3, 3, 49])
    np.testing.assert_array_equal(small.x[some], large.x[some])


BROKEN_ARRAYS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "channels": (
        {},
        {"X": np.zeros((2, 4, 3))},
        "X of t.npz has 3 channels and the study names 2 features; data.features must name each channel, in order",
    ),
    "one channel": ({}, {"X": np.zeros((2, 4))}, "X of t.npz has 1 channels and the study names 2 features"),
    "dimensions": ({}, {"X": np.zeros(2)}, "X of t.npz has shape (2,); sequences are (n, T, C) or (n, T)"),
    "no steps": ({}, {"X": np.zeros((2, 0, 2))}, "X of t.npz has shape (2, 0, 2); sequences are"),
    "texts": ({}, {"X": np.array([["a"], ["b"]])}, "X of t.npz has type <U1; it must hold real numbers"),
    "unit": ({}, {"unit": np.array([1, 2])}, 'write unit = "unit" in [data]'),
    "no unit": ({"data.unit": "unit"}, {}, "t.npz: column 'unit' is missing"),
    "no target": ({"data.target": "died"}, {}, "t.npz has no array died to predict, only X, y"),
    "target of another size": ({}, {"y": np.array([1, 0, 1])}, "array y of t.npz has shape (3,)"),
    "class": ({}, {"y": np.array([1, 7])}, "t.npz: column 'y', row 2: '7' is none of the study's classes 0, 1"),
    "lengths": ({}, {"lengths": np.array([2, 5])}, "array lengths of t.npz, record 2: 5 steps, and X has room for 2"),
    "negative": ({}, {"lengths": np.array([-1, 2])}, "array lengths of t.npz, record 1: -1 steps"),
    "fractions": ({}, {"lengths": np.array([0.5, 2])}, "array lengths of t.npz has type float64 and shape (2,)"),
    "refused": ({}, {"X": X[:, :, ::-1]}, "column 'bp' has 1 rows that are missing, and the study says"),
    "records": ({}, {"X": np.zeros((0, 2, 2)), "y": np.zeros(0)}, "t.npz has no records"),
}


@pytest.mark.parametrize("what", BROKEN_ARRAYS)
def test_wrong_arrays_are_one_sentence(what: str, tmp_path: Path) -> None:
    changes, arrays, sentence = BROKEN_ARRAYS[what]
    with pytest.raises(DataError) as error:
        load_arrays(tmp_path, study(ARRAYS, changes), **{"X": X, "y": np.array([1, 0]), **arrays})
    assert sentence in str(error.value) and "\n" not in str(error.value)


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_a_long_table_by_hand(name: str, tmp_path: Path) -> None:
    loaded = load_table(tmp_path, FRAME, study(ROWS), name=name)
    np.testing.assert_allclose(whole(loaded), BY_HAND, atol=1e-6)
    assert loaded.y.tolist() == [1, 0] and keys_of(loaded) == ["b", "a"]
    assert loaded.notes == (
        "column 'hr': 1 steps missing, 0 outside the public schema",
        "column 'pace': 1 steps missing, 1 outside the public schema",
        "1 records have more than 3 steps; the last 3 are kept",
    )
    assert loaded.x.shape[1:] == Shape.of_study(study(ROWS)).inputs


def test_the_unit_is_the_record_where_none_is_named(tmp_path: Path) -> None:
    text = override(ROWS, {"data.unit": "person"}).replace('record = "stay"\n', "")
    loaded = load_table(tmp_path, FRAME, study(text))
    np.testing.assert_allclose(whole(loaded), BY_HAND, atol=1e-6)
    assert keys_of(loaded) == ["p", "q"]
    both = load_table(tmp_path, FRAME.with_columns(person=pl.lit("p")), study(ROWS, {"data.unit": "person"}))
    assert keys_of(both) == ["p", "p"] and len(both.x) == 2


def events_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table of rows as one of events."""
    parts = [
        frame.select("stay", "hour", "died", "person", what=pl.lit(name), value=pl.col(name).cast(pl.String))
        for name in ("hr", "pace")
    ]
    return pl.concat(parts)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_a_stream_of_events_by_hand(name: str, tmp_path: Path) -> None:
    extra = FRAME.select("stay", "hour", "died", "person", what=pl.lit("colour"), value=pl.lit("blue"))
    frame = pl.concat([events_of(FRAME), extra[:2].with_columns(hour=99.0)])
    loaded = load_table(tmp_path, frame, study(EVENTS), name=name)
    np.testing.assert_allclose(whole(loaded), BY_HAND, atol=1e-6)
    assert loaded.y.tolist() == [1, 0] and keys_of(loaded) == ["b", "a"]
    assert loaded.notes[-2:] == (
        "column 'what': 2 rows name no feature of the study and are ignored",
        "1 records have more than 3 steps; the last 3 are kept",
    )


def test_the_last_of_equal_events_counts_and_a_missing_value_is_none(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "stay": ["a"] * 5 + ["b"],
            "hour": [1, 1, 1, 2, 2, 1],
            "what": ["hr", "hr", "hr", "pace", "pace", "colour"],
            "value": ["2.5", "10", None, "slow", "", "x"],
            "died": [0] * 5 + [1],
        }
    )
    loaded = load_table(tmp_path, frame, study(EVENTS))
    expected = [
        [[R3, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 1], [0] * 6],
        [[0, 1, 0, 0, 1, 1], [0] * 6, [0] * 6],  # of b nothing is known: one step at which nothing was measured
    ]
    np.testing.assert_allclose(whole(loaded), expected, atol=1e-6)
    assert loaded.y.tolist() == [0, 1]


long_rows = st.lists(
    st.fixed_dictionaries(
        {
            "stay": st.sampled_from("abcd"),
            "hour": st.integers(0, 30),
            "hr": st.one_of(st.none(), st.floats(0, 10)),
            "pace": st.sampled_from(["slow", "fast", None]),
        }
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: (row["stay"], row["hour"]),
)


def table_of(rows: list[dict[str, object]]) -> pl.DataFrame:
    schema = {"stay": pl.String, "hour": pl.Int64, "hr": pl.Float64, "pace": pl.String}
    return pl.DataFrame(rows, schema=schema).with_columns(died=(pl.col("stay") == "a").cast(pl.Int64), person="stay")


@given(rows=long_rows, seed=st.integers(0, 99))
def test_order_batches_disk_and_form_have_no_influence(
    rows: list[dict[str, object]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, frame = tmp_path_factory.mktemp("data"), table_of(rows)
    plain = load_table(folder, frame, study(ROWS))
    expected = {key: (x, y) for key, x, y in zip(keys_of(plain), whole(plain), plain.y, strict=True)}
    assert set(expected) == set(frame["stay"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "IN_MEMORY_BYTES", 64)
        patch.setattr(tables, "_BATCH_ROWS", 3)
        patch.setattr(steps, "_VALUES_AT_ONCE", 6)
        shuffled = frame.sample(fraction=1.0, shuffle=True, seed=seed)
        for agreed, other in ((ROWS, shuffled), (EVENTS, events_of(shuffled))):
            loaded = load_table(folder, other, study(agreed))
            for key, x, y in zip(keys_of(loaded), whole(loaded), loaded.y, strict=True):
                np.testing.assert_array_equal(x, expected[key][0])
                assert y == expected[key][1]


@given(rows=long_rows)
def test_events_are_the_pivot_of_pandas(
    rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    events = events_of(table_of(rows)).filter((pl.col("what") == "hr") & pl.col("value").is_not_null())
    if not events.height:
        return
    only = study(EVENTS, {"data.features": {"hr": {"type": "numeric", "min": 0, "max": 10}}, "data.shape": [40]})
    loaded = load_table(tmp_path_factory.mktemp("data"), events, only)
    oracle = pd.DataFrame(events.to_dict(as_series=False)).astype({"value": float})
    grid = oracle.pivot(index="stay", columns="hour", values="value")
    for key, x in zip(keys_of(loaded), whole(loaded), strict=True):
        values = grid.loc[key].dropna().to_numpy()
        np.testing.assert_allclose(x[: len(values), 0], R3 * (values / 5 - 1), atol=1e-5)
        assert x[:, -1].sum() == len(values)


def test_large_tables_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 10)
    loaded = load_table(tmp_path, FRAME, study(ROWS))
    assert not isinstance(loaded.x, torch.Tensor) and loaded.x.shape == (2, 3, 6) and len(loaded.x) == 2
    np.testing.assert_allclose(loaded.x[torch.tensor([1, 0, 1])], BY_HAND[[1, 0, 1]], atol=1e-6)
    assert not list((tmp_path / "scratch").iterdir())  # the file has no name


@pytest.mark.parametrize(
    "hours",
    [
        ["2024-01-02", "2024-01-01", "2024-01-01", "2024-01-02", "2024-01-10", "2024-01-09"],
        [
            "2024-01-01T12:30",
            "2023-12-31 23:59:59",
            "2024-01-01 12:29:59.5",
            "2024-01-01",
            "2024-01-02",
            "2024-01-01T23:00",
        ],
        [
            "2024-01-01T12:00:00Z",
            "2023-12-31",
            "2024-01-01T12:30:00+01:00",
            "2024-01-01",
            "2024-01-02",
            "2024-01-01T23:00",
        ],
        ["1e1", "-5", "9.5", "1", "2e3", "1000"],
    ],
)
def test_times_as_texts(hours: list[str], tmp_path: Path) -> None:
    loaded = load_table(tmp_path, FRAME.with_columns(hour=pl.Series(hours)), study(ROWS))
    np.testing.assert_allclose(whole(loaded), BY_HAND, atol=1e-6)


@pytest.mark.parametrize("kind", [pl.Datetime("us"), pl.Date, pl.Int32, pl.UInt8, pl.Float32, pl.Duration("ms")])
def test_times_as_types(kind: Any, tmp_path: Path) -> None:
    frame = FRAME.with_columns(pl.col("hour").cast(pl.Int64).cast(pl.Int32 if kind == pl.Date else pl.Int64).cast(kind))
    np.testing.assert_allclose(whole(load_table(tmp_path, frame, study(ROWS))), BY_HAND, atol=1e-6)


def test_groups_are_the_records(tmp_path: Path) -> None:
    agreed = {"evaluation.groups": ["pace"]}
    frame = FRAME.with_columns(pace=pl.Series(["fast", None, None, "trot", None, None]))
    for text, rows in ((ROWS, frame), (EVENTS, events_of(frame))):
        loaded = load_table(tmp_path, rows, study(text, agreed))
        assert loaded.groups["pace"].tolist() == [1, -1]
        twice = FRAME if text == ROWS else events_of(FRAME)
        twice = (
            twice.with_columns(pl.Series("pace", ["fast", "slow", "fast", "trot", None, "fast"]))
            if text == ROWS
            else (events_of(FRAME.with_columns(pace=pl.Series(["fast", "slow", "fast", "trot", None, "fast"]))))
        )
        with pytest.raises(DataError, match=f"column 'pace', row {6 if text == ROWS else 12}: the value is not that"):
            load_table(tmp_path, twice, study(text, agreed))


def test_labels_of_a_table(tmp_path: Path) -> None:
    several = override(ROWS, {"study.task": "multilabel", "data.classes": ["one", "two"]}).replace(
        'target = "died"\n', ""
    )
    frame = FRAME.with_columns(one="died", two=pl.lit(1))
    assert load_table(tmp_path, frame, study(several)).y.tolist() == [[1, 1], [0, 1]]
    with pytest.raises(DataError, match="column 'one or two', row 6: the value is not that of the record's first row"):
        load_table(tmp_path, frame.with_columns(two=pl.Series([1, 1, 1, 1, 1, 0])), study(several))
    plain = load_table(tmp_path, FRAME.rename({"died": "label"}), study(ROWS.replace('target = "died"\n', "")))
    assert plain.y.tolist() == [1, 0]
    unread = sequences.load(tmp_path / "t.parquet", study(ROWS), {}, tmp_path, labelled=False)
    assert unread.y.tolist() == [0, 0] and LOADERS["sequences"] is sequences.load


def changed(**columns: list[Any]) -> pl.DataFrame:
    return FRAME.with_columns(pl.Series(name, values) for name, values in columns.items())


BROKEN: dict[str, tuple[str, pl.DataFrame, dict[str, Any], str]] = {
    "target": (
        ROWS,
        changed(died=[1, 0, 0, 0, 0, 0]),
        {},
        "column 'died', row 3: the value is not that of the record's",
    ),
    "unit": (
        ROWS,
        changed(person=["p", "q", "p", "q", "q", "r"]),
        {"data.unit": "person"},
        "column 'person', row 6: the value is not that of the record's first row; all rows of a record must agree",
    ),
    "no unit": (
        ROWS,
        changed(person=["p", "q", "p", "", "q", "q"]),
        {"data.unit": "person"},
        "column 'person', row 4: the",
    ),
    "no record": (
        ROWS,
        changed(stay=["b", None, "b", "a", "a", "a"]),
        {},
        "column 'stay', row 2: the value is missing (1",
    ),
    "no time": (
        ROWS,
        changed(hour=[1.0, NAN, 1.0, None, 3.0, 4.0]),
        {},
        "column 'hour', row 2: the time is missing (2 rows",
    ),
    "text": (
        ROWS,
        changed(hour=["1", "2", "x", "4", "5", "6"]),
        {},
        "column 'hour', row 3: 'x' is no time here; a column",
    ),
    "both": (
        ROWS,
        changed(hour=["1", "2", "2024-01-01", "4", "5", "6"]),
        {},
        "column 'hour', row 3: '2024-01-01' is no time",
    ),
    "later": (
        ROWS,
        changed(hour=["1", "2", "3", "4", "2024-01-01", "2024-01-02"]),
        {},
        "column 'hour', row 5: '2024-01-01' is no time here",
    ),
    "dates": (
        ROWS,
        changed(hour=["2024-01-01"] * 5 + ["2024-02-30"]),
        {},
        "column 'hour', row 6: '2024-02-30' is no time",
    ),
    "infinite": (ROWS, changed(hour=["1", "2", "inf", "4", "5", "6"]), {}, "column 'hour', row 3: 'inf' is no time"),
    "missing column": (ROWS, FRAME.drop("pace"), {}, "column 'pace' is missing"),
    "number": (ROWS, changed(hr=["1", "2", "3", "four", "5", "6"]), {}, "column 'hr', row 4: 'four' is no number"),
    "label": (ROWS, changed(died=[1, 0, 1, None, 0, 0]), {}, "target column 'died', row 4: the value is missing"),
    "value": (
        EVENTS,
        events_of(FRAME)[::-1].with_columns(value=pl.Series(["slow"] * 6 + ["1", "1", "five", "1", "1", "1"])),
        {},
        "column 'value', row 9: 'five' is no number",
    ),
    "no event": (
        EVENTS,
        events_of(FRAME).with_columns(what=pl.lit("x")),
        {},
        "no row of column 'what' names a feature of the study (hr, pace); correct the column, or data.features",
    ),
    "refused": (
        EVENTS,
        events_of(FRAME),
        {"data.features": {"hr": {"type": "numeric", "min": 0, "max": 10, "missing": "refuse"}}},
        "column 'hr' has 1 rows that are missing",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_wrong_tables_are_one_sentence(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, frame, changes, sentence = BROKEN[what]
    for rows in (2**16, 2):  # the row is that of the file, whatever the batches are
        monkeypatch.setattr(tables, "_BATCH_ROWS", rows)
        with pytest.raises(DataError) as error:
            load_table(tmp_path, frame, study(text, changes))
        count = sentence.replace("(2 rows", "(1 rows") if rows == 2 else sentence
        assert count in str(error.value) and "\n" not in str(error.value)


def test_what_a_study_on_tables_must_name(tmp_path: Path) -> None:
    for key, sentence in (("record", "data.record is missing: it names the column"), ("time", "data.time is missing")):
        lines = [line for line in ROWS.splitlines() if not line.startswith(f"{key} =")]
        with pytest.raises(DataError, match=sentence):
            load_table(tmp_path, FRAME, study("\n".join(lines)))
    with pytest.raises(SettingError, match=r"data\.shape is missing"):
        load_table(tmp_path, FRAME, study(ROWS.replace("shape = [3]\n", "")))


def test_rename(tmp_path: Path) -> None:
    frame = FRAME.rename({"stay": "Fall", "hour": "Stunde", "hr": "Puls"})
    rename = {"Fall": "stay", "Stunde": "hour", "Puls": "hr"}
    np.testing.assert_allclose(whole(load_table(tmp_path, frame, study(ROWS), rename=rename)), BY_HAND, atol=1e-6)


# --- what is read off ---------------------------------------------------------------------------------------


def test_read_off_arrays(tmp_path: Path) -> None:
    x = np.stack([np.tile(np.arange(101.0), (3, 1)), np.full((3, 101), 7.0), np.full((3, 101), NAN)], axis=2)
    x[0, 0, 0] = math.inf
    np.savez(tmp_path / "t.npz", X=x, y=[0, 1, 0])
    found = sequences.read_off(tmp_path / "t.npz", study(BARE), tmp_path)
    bounds = {name: (feature["min"], feature["max"]) for name, feature in found["data.features"].items()}
    assert found["data.shape"] == [101] and bounds["c2"] == (3.5, 10.5) and bounds["c3"] == (0.0, 1.0)
    assert bounds["c1"] == pytest.approx((1, 99), abs=0.1)
    assert "not private" in found["data.features"]["c1"]["source"]
    assert sequences.read_off(tmp_path / "t.npz", study(ARRAYS), tmp_path) == {}
    complete = study(BARE, found)
    assert sequences.load(tmp_path / "t.npz", complete, {}, tmp_path).x.shape == (3, 101, 7)
    np.savez(tmp_path / "t.npz", X=np.zeros((2, 400)), y=[0, 1], lengths=[5, 3])
    assert sequences.read_off(tmp_path / "t.npz", study(BARE), tmp_path)["data.shape"] == [5]
    np.savez(tmp_path / "t.npz", X=np.zeros((2, 400)), y=[0, 1])
    assert sequences.read_off(tmp_path / "t.npz", study(BARE), tmp_path)["data.shape"] == [256]


def test_padding_has_no_influence_on_bounds(tmp_path: Path) -> None:
    x = np.array([[1.0, 2.0, 1e9], [3.0, 1e9, 1e9]])
    np.savez(tmp_path / "t.npz", X=x, y=[0, 1], lengths=[2, 1])
    feature = sequences.read_off(tmp_path / "t.npz", study(BARE), tmp_path)["data.features"]["c1"]
    assert 1 <= feature["min"] < feature["max"] <= 3


def test_read_off_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH_ROWS", 2)
    open_shape = (text.replace("shape = [3]\n", "") for text in (ROWS, EVENTS))
    for text, frame in zip(open_shape, (FRAME, events_of(FRAME)), strict=True):
        frame.write_parquet(tmp_path / "t.parquet")
        assert sequences.read_off(tmp_path / "t.parquet", study(text), tmp_path) == {"data.shape": [4]}
    assert sequences.read_off(tmp_path / "t.parquet", study(EVENTS), tmp_path) == {}


# --- real data ----------------------------------------------------------------------------------------------


def test_stays_of_physionet(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "physionet2012" / "hourly48.npz"
    agreed = study(BARE, {"data.target": "died"})
    agreed = agreed.with_values(sequences.read_off(path, agreed, tmp_path), Registries(models=MODELS))
    loaded = sequences.load(path, agreed, {}, tmp_path / "scratch")
    assert loaded.x.shape == (4000, 48, 75) and loaded.y.mean() == pytest.approx(0.14, abs=0.01)
    raw = np.load(path)["X"][:100]
    np.testing.assert_array_equal(loaded.x[:100, :, 1::2][:, :, :37].numpy() == 1, np.isnan(raw))
    assert float(loaded.x.abs().max()) <= R3 + 1e-5


def test_years_of_rand_hie(tmp_path: Path) -> None:
    frame = DATASETS.resolve("rand_hie").load()
    assert isinstance(frame, pl.DataFrame)
    agreed = study(
        BARE,
        {
            "data.unit": "person",
            "data.time": "year",
            "data.target": "long",
            "data.shape": [5],
            "data.features": {"mdvis": {"type": "numeric", "min": 0, "max": 50}},
        },
    )
    years = pl.len().over("person").cast(pl.Int64)
    loaded = load_table(tmp_path, frame.with_columns(long=(years > 3).cast(pl.Int64)), agreed, name="t.csv")
    people = whole(loaded)
    assert people.shape == (5912, 5, 3) and int(people[:, :, -1].sum()) == 20190  # people and years: DATA.md
    np.testing.assert_array_equal(people[:, 3, -1], loaded.y)
    one = frame.filter(pl.col("person") == frame["person"][0]).sort("year")["mdvis"].clip(0, 50).to_numpy()
    np.testing.assert_allclose(people[0, : len(one), 0], R3 * (one / 25 - 1), atol=1e-5)
