"""Laws of the data path: columns are a function of the public schema and of the row alone, a unit is never cut in two,
wrong data is one sentence.

Oracles: encodings worked by hand, polars' own writers for CSV and Parquet, facts of the data sets from DATA.md.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import simulations.datasets
from client.data import kinds, tables, tabular
from client.data.records import Records, held_out_rows
from client.data.schema import Encoded
from client.data.schema import encode as encode_at
from simulations.datasets.base import DATASETS
from simulations.partitions import PARTITIONS, Table
from simulations.silos import REGISTRIES, complete, make_silos, pooled
from simulations.sources import read_dataset
from strategies.errors import DataError, FedsiloError, SettingError
from strategies.sections import CategoricalFeature, NumericFeature
from strategies.study import Study, override

R3 = math.sqrt(3)
NAN = float("nan")
STUDY = """[study]
name = "s"
task = "classification"
seed = 7
[data]
kind = "tabular"
target = "label"
classes = ["no", "yes"]
test_share = 0.25
[data.features]
age = { type = "numeric", min = 0, max = 100 }
sex = { type = "categorical", values = ["F", "M"] }
[model]
name = "logistic()"
[privacy]
noise_multiplier = 1.0
"""
FRAME = pl.DataFrame(
    {
        "age": [0.0, 25.0, 100.0, None],
        "sex": ["F", "M", None, "X"],
        "label": ["no", "yes", "no", "yes"],
        "person": ["a", "b", "b", "a"],
    }
)


def study(text: str = STUDY, **changes: object) -> Study:
    return Study.parse(override(text, {key.replace("__", "."): value for key, value in changes.items()}), REGISTRIES)


def load(
    folder: Path,
    frame: pl.DataFrame | bytes,
    agreed: Study | None = None,
    *,
    name: str = "t.csv",
    rename: dict[str, str] | None = None,
) -> Records:
    path = folder / name
    if isinstance(frame, bytes):
        path.write_bytes(frame)
    elif path.suffix == ".csv":
        frame.write_csv(path)
    else:
        frame.write_parquet(path)
    return kinds.load(path, agreed or study(), rename or {}, folder / "scratch")


# --- the schema, by hand ------------------------------------------------------------------------------------


def encode(name: str, series: pl.Series, feature: NumericFeature | CategoricalFeature) -> Encoded:
    return encode_at(name, series, feature, np.arange(1, len(series) + 1))


def numeric(**settings: object) -> NumericFeature:
    return NumericFeature.model_validate({"type": "numeric", "min": 0, "max": 10, **settings})


def categorical(*values: object, **settings: object) -> CategoricalFeature:
    return CategoricalFeature.model_validate({"type": "categorical", "values": values, **settings})


@pytest.mark.parametrize(
    ("feature", "values", "expected", "missing", "outside"),
    [
        (numeric(), [0.0, 2.5, 5.0, 10.0], [[-R3, 0], [-R3 / 2, 0], [0, 0], [R3, 0]], 0, 0),
        (numeric(), [-1.0, 11.0, None, NAN, math.inf], [[-R3, 0], [R3, 0], [0, 1], [0, 1], [0, 1]], 3, 2),
        (numeric(outside="missing"), [-1.0, 10.5, 5.0], [[0, 1], [0, 1], [0, 0]], 0, 2),
        (numeric(missing="refuse"), [5.0, 10.0], [[0], [R3]], 0, 0),
        (
            numeric(min=1, max=100, transform="log"),
            [1.0, 10.0, 100.0, 0.0, None],
            [[-R3, 0], [0, 0], [R3, 0], [-R3, 0], [0, 1]],
            1,
            1,
        ),
        (numeric(min=1, max=100, transform="log", outside="missing"), [-5.0, 10.0], [[0, 1], [0, 0]], 0, 1),
        (numeric(), ["5", " 10 ", "", "NA", "?", "null"], [[0, 0], [R3, 0], [0, 1], [0, 1], [0, 1], [0, 1]], 4, 0),
        (numeric(max=1), [True, False, None], [[R3, 0], [-R3, 0], [0, 1]], 1, 0),
        (
            categorical("F", "M"),
            ["F", "M", "X", None, " F ", "", "nan"],
            [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 1]],
            3,
            1,
        ),
        (categorical("F", missing="refuse"), ["F", "X"], [[1], [0]], 0, 1),
        (categorical(1, 2), [1.0, 2.0, 2.5, NAN, None], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]], 2, 1),
        (categorical(1, 2), [1, 2, 3], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0, 1),
        (categorical(1.0, 0.5), [1, 0], [[1, 0, 0], [0, 0, 1]], 0, 1),
        (categorical(1.0, 0.5), [1.0, 0.5], [[1, 0, 0], [0, 1, 0]], 0, 0),
        (categorical("1", "2"), [1, 2], [[1, 0, 0], [0, 1, 0]], 0, 0),
        (categorical(True, False), [True, False, None], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 1, 0),
        (categorical(True, False), ["true", "false", "maybe"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0, 1),
        (categorical(True, False), ["True", "FALSE", " true "], [[1, 0, 0], [0, 1, 0], [1, 0, 0]], 0, 0),
        (categorical("True", "no"), ["true", "True", "No"], [[1, 0, 0], [1, 0, 0], [0, 0, 1]], 0, 1),
        (categorical(1, 0.5), ["1.0", "1.00", "0.50", "01"], [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], 0, 1),
        (categorical("1.0", "None"), ["1", "None", "NA", "1.0"], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], 1, 0),
        (categorical("250.1", "250.10"), ["250.10", "250.1", "250.100"], [[0, 1, 0], [1, 0, 0], [1, 0, 0]], 0, 0),
        (categorical("007", 7), ["7", "007", "07"], [[0, 1, 0], [1, 0, 0], [0, 0, 1]], 0, 1),
    ],
)
def test_encoding_by_hand(
    feature: NumericFeature | CategoricalFeature,
    values: list[object],
    expected: list[list[float]],
    missing: int,
    outside: int,
) -> None:
    encoded = encode("c", pl.Series("c", values), feature)
    np.testing.assert_allclose(encoded.columns, expected, atol=1e-6)
    assert encoded.columns.dtype == np.float32 and encoded.columns.shape[1] == feature.width
    assert (encoded.missing, encoded.outside) == (missing, outside)


@pytest.mark.parametrize(
    ("feature", "values", "what"),
    [
        (numeric(outside="refuse"), [1.0, 11.0], "outside"),
        (numeric(missing="refuse"), [1.0, None], "missing"),
        (categorical("F", outside="refuse"), ["F", "X"], "outside"),
        (categorical("F", missing="refuse"), [None, "F"], "missing"),
    ],
)
def test_what_the_study_refuses(feature: NumericFeature | CategoricalFeature, values: list[object], what: str) -> None:
    with pytest.raises(DataError, match=f"column 'c' has 1 rows that are {what}"):
        encode("c", pl.Series("c", values), feature)


anything = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 0.1, 10.0, -1.0]))


@given(st.lists(anything, min_size=1, max_size=8), st.data())
def test_a_row_is_encoded_alone(values: list[float | None], data: st.DataObject) -> None:
    feature = data.draw(
        st.sampled_from(
            [numeric(), numeric(min=0.1, transform="log"), numeric(outside="missing"), categorical(0, 0.1, 10)]
        )
    )
    whole = encode("c", pl.Series("c", values, dtype=pl.Float64), feature).columns
    for row, value in enumerate(values):
        alone = encode("c", pl.Series("c", [value], dtype=pl.Float64), feature).columns
        np.testing.assert_array_equal(whole[row], alone[0])


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=8))
def test_a_text_is_encoded_alone(values: list[str]) -> None:
    feature = categorical("F", "1", "true")
    whole = encode("c", pl.Series("c", values), feature).columns
    for row, value in enumerate(values):
        np.testing.assert_array_equal(whole[row], encode("c", pl.Series("c", [value]), feature).columns[0])


# --- files --------------------------------------------------------------------------------------------------


def test_a_table_by_hand(tmp_path: Path) -> None:
    records = load(tmp_path, FRAME, study(data__test_share=0.0))
    expected = [[-R3, 0, 1, 0, 0], [-R3 / 2, 0, 0, 1, 0], [R3, 0, 0, 0, 1], [0, 1, 0, 0, 1]]
    np.testing.assert_allclose(records.train.x, expected, atol=1e-6)
    assert records.train.y.tolist() == [0, 1, 0, 1] and records.train.units == 4 and records.held_out.units == 0
    assert records.notes == (
        "column 'age': 1 rows missing, 0 outside the public schema",
        "column 'sex': 1 rows missing, 1 outside the public schema",
    )


def test_regression_targets_are_values(tmp_path: Path) -> None:
    text = STUDY.replace("classification", "regression").replace('classes = ["no", "yes"]\n', "")
    frame = FRAME.with_columns(label=pl.Series([1.5, -2.0, 0.0, 1e6]))
    records = load(tmp_path, frame, study(text, data__test_share=0.0))
    assert records.train.y.dtype.is_floating_point and records.train.y.tolist() == [1.5, -2.0, 0.0, 1e6]


ROWS = st.fixed_dictionaries(
    {
        "age": st.one_of(st.none(), st.floats(-10, 200), st.just(math.nan)),
        "sex": st.sampled_from(["F", "M", "X", None, "NA"]),
        "label": st.sampled_from(["no", "yes"]),
        "person": st.sampled_from("abcdefghij"),
    }
)


@given(rows=st.lists(ROWS, min_size=1, max_size=12))
def test_csv_and_parquet_are_equal(rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> None:
    frame = pl.DataFrame(rows, schema={"age": pl.Float64, "sex": pl.String, "label": pl.String, "person": pl.String})
    folder, agreed = tmp_path_factory.mktemp("data"), study(data__unit="person")
    one, other = (load(folder, frame, agreed, name=name) for name in ("t.csv", "t.parquet"))
    assert one.notes == other.notes
    for left, right in ((one.train, other.train), (one.held_out, other.held_out)):
        np.testing.assert_array_equal(left.x, right.x)
        np.testing.assert_array_equal(left.y, right.y)
        np.testing.assert_array_equal(left.unit_of_row, right.unit_of_row)


CSV = "age,sex,label\n1,F,no\n2,M,yes\n"
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "missing column": (
        "t.csv",
        CSV.replace("age", "agee").encode(),
        "column 'age' is missing (1 of 3 columns are); did you mean 'agee'?",
    ),
    "text in a number": ("t.csv", CSV.replace("2,", "two,").encode(), "column 'age', row 2: 'two' is no number"),
    "comma for a point": ("t.csv", b'age,sex,label\n1,F,no\n"2,5",M,yes\n', "column 'age', row 2: '2,5' is no number"),
    "no label": (
        "t.csv",
        CSV.replace("yes", "").encode(),
        "target column 'label', row 2: the value is missing or NaN (1 rows in all)",
    ),
    "NaN label": (
        "t.csv",
        CSV.replace("yes", "NaN").encode(),
        "target column 'label', row 2: the value is missing or NaN",
    ),
    "unknown class": (
        "t.csv",
        CSV.replace("yes", "maybe").encode(),
        "row 2: 'maybe' is none of the study's classes no, yes",
    ),
    "empty file": ("t.csv", b"", "t.csv cannot be read"),
    "header only": ("t.csv", b"age,sex,label\n", "t.csv has no rows"),
    "no CSV": ("t.csv", b"age,sex\n1,2,3\n\xff\xfe,\n", "t.csv cannot be read"),
    "no Parquet": ("t.parquet", CSV.encode(), "t.parquet cannot be read"),
    "wrong suffix": ("t.xlsx", CSV.encode(), "t.xlsx is neither .csv nor .parquet"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_wrong_data_is_one_sentence(what: str, tmp_path: Path) -> None:
    name, content, sentence = BROKEN[what]
    with pytest.raises(DataError) as error:
        load(tmp_path, content, name=name)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(DataError, match="there is no file"):
            tabular.load(path, study(), {}, tmp_path)


@pytest.mark.parametrize(
    ("column", "agreed", "sentence"),
    [
        (pl.Series("age", [["a"], ["b"]]), {}, "column 'age' has type List"),
        (pl.Series("person", ["a", None]), {"data__unit": "person"}, "column 'person' has 1 rows without a unit"),
        (pl.Series("label", [0.5, NAN]), {"study__task": "regression"}, "target column 'label', row 2"),
        (pl.Series("label", ["1", "x"]), {"study__task": "regression"}, "column 'label', row 2: 'x' is no number"),
    ],
)
def test_wrong_columns_of_a_parquet_file(
    column: pl.Series, agreed: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    text = STUDY.replace('classes = ["no", "yes"]\n', "") if "study__task" in agreed else STUDY
    with pytest.raises(DataError) as error:
        load(tmp_path, FRAME[:2].with_columns(column), study(text, **agreed), name="t.parquet")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_silo_may_call_its_columns_otherwise(tmp_path: Path) -> None:
    frame = FRAME.rename({"age": "Alter", "label": "Befund"})
    rename = {"Alter": "age", "Befund": "label", "not there": "x"}
    renamed, plain = load(tmp_path, frame, rename=rename), load(tmp_path, FRAME)
    np.testing.assert_array_equal(renamed.train.x, plain.train.x)
    with pytest.raises(DataError, match="rename each column to a name of its own"):
        load(tmp_path, FRAME, rename={"sex": "age"})


# --- held-out units -----------------------------------------------------------------------------------------


def sides(keys: list[str], seed: int = 7, share: float = 0.3) -> dict[str, set[bool]]:
    found: dict[str, set[bool]] = {}
    for key, side in zip(keys, held_out_rows(keys, seed, share).tolist(), strict=True):
        found.setdefault(key, set()).add(side)
    return found


@given(st.lists(st.text(), max_size=40), st.integers(0, 2**32 - 1), st.floats(0, 0.99))
def test_no_unit_is_cut_and_none_depends_on_another(keys: list[str], seed: int, share: float) -> None:
    together = sides(keys, seed, share)
    assert all(len(side) == 1 for side in together.values())
    for key in together:
        assert sides([key], seed, share)[key] == together[key]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_share_is_kept(share: float) -> None:
    held_out = held_out_rows([str(n) for n in range(20_000)], 7, share).mean()
    assert abs(held_out - share) <= 6 * math.sqrt(share * (1 - share) / 20_000)  # 6 deviations; and it is deterministic


def test_another_seed_is_another_split() -> None:
    keys = [str(n) for n in range(200)]
    assert (held_out_rows(keys, 1, 0.5) != held_out_rows(keys, 2, 0.5)).any()
    np.testing.assert_array_equal(held_out_rows(keys, 1, 0.5), held_out_rows(keys, 1, 0.5))


@given(rows=st.lists(ROWS, min_size=1, max_size=30))
def test_units_are_whole_and_numbered_without_gaps(
    rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    frame = pl.DataFrame(rows, schema={"age": pl.Float64, "sex": pl.String, "label": pl.String, "person": pl.String})
    frame.write_parquet(path := tmp_path_factory.mktemp("data") / "t.parquet")
    records = kinds.load(path, study(data__unit="person"), {}, path.parent)
    persons = frame["person"].to_list()
    for part in (records.train, records.held_out):
        assert sorted(set(part.unit_of_row.tolist())) == list(range(part.units))
    assert records.train.units + records.held_out.units == len(set(persons))
    assert len(records.train.y) + len(records.held_out.y) == len(rows)


# --- partitions ---------------------------------------------------------------------------------------------

SPECS = ["iid()", "dirichlet(alpha=1.0, least=1)", "quantity(alpha=1.0, least=2)", 'natural(column="site")']


@given(
    spec=st.sampled_from(SPECS),
    sites=st.lists(st.integers(0, 3), min_size=16, max_size=60),
    silos=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_unit_has_one_silo_and_the_seed_says_which(spec: str, sites: list[int], silos: int, seed: int) -> None:
    if "natural" in spec:
        silos = len(set(sites))
    table = Table(label=np.array(sites) % 2, frame=pl.DataFrame({"site": sites}))
    partition = PARTITIONS.resolve(spec)
    try:
        owner = partition.assign(table, silos, np.random.default_rng(seed))
    except SettingError:  # a Dirichlet split that was never drawn
        assume(False)
    assert owner.shape == (len(sites),) and set(owner.tolist()) <= set(range(silos))
    sizes = np.bincount(owner, minlength=silos)
    np.testing.assert_array_equal(owner, partition.assign(table, silos, np.random.default_rng(seed)))
    if spec == "iid()":
        assert sizes.max() - sizes.min() <= 1
    elif "natural" in spec:
        assert all(len(set(np.array(sites)[owner == silo])) == 1 for silo in range(silos))
    else:
        assert sizes.min() >= (2 if "quantity" in spec else 1)


def labels(count: int) -> Table:
    return Table(label=np.arange(count) % 2, frame=pl.DataFrame({"site": np.arange(count) % 3}))


def test_dirichlet_skews_labels_and_keeps_the_least() -> None:
    random = np.random.default_rng(0)
    shares = {}
    for alpha in (0.3, 1000.0):
        owner = PARTITIONS.resolve(f"dirichlet(alpha={alpha})").assign(labels(400), 4, random)
        assert np.bincount(owner).min() >= 20
        shares[alpha] = [float(labels(400).label[owner == silo].mean()) for silo in range(4)]
    assert max(shares[0.3]) - min(shares[0.3]) > 0.2 > max(shares[1000.0]) - min(shares[1000.0])


@pytest.mark.parametrize(
    ("spec", "count", "silos", "sentence"),
    [
        (
            "dirichlet(alpha=0.01)",
            200,
            5,
            "gave no split with 20 units in each of 5 silos; raise alpha or lower simulation.silos",
        ),
        ("quantity(least=30)", 100, 4, "the data set has 100 units and each silo needs 30; lower it"),
        ('natural(column="ward")', 9, 3, "the data set has no such column; it has site"),
        ('natural(column="site")', 9, 4, "column 'site' has 3 values; write silos = 3"),
    ],
)
def test_a_partition_that_cannot_be_made(spec: str, count: int, silos: int, sentence: str) -> None:
    with pytest.raises(SettingError) as error:
        PARTITIONS.resolve(spec).assign(labels(count), silos, np.random.default_rng(0))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "spec",
    ["dirichlet(alpha=0)", "dirichlet(least=0)", "quantity(alpha=-1)", "quantity(least=0)", "natural()", "shards(n=2)"],
)
def test_settings_of_a_partition(spec: str) -> None:
    with pytest.raises(SettingError):
        PARTITIONS.resolve(spec)


@pytest.mark.parametrize("spec", ["iid", "quantity()", 'natural(column="ward")', "dirichlet(least=2)"])
def test_silo_folders_hold_every_row_once_and_no_unit_twice(spec: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    persons = random.integers(0, 60, 300)
    frame = pl.DataFrame(
        {
            "age": random.uniform(0, 100, 300),
            "sex": random.choice(["F", "M"], 300),
            "label": random.choice(["no", "yes"], 300),
            "person": persons,
            "ward": persons % 3,
        }
    )
    frame.write_csv(tmp_path / "all.csv")
    agreed = study(data__unit="person", simulation__dataset="all.csv", simulation__silos=3, simulation__partition=spec)
    whole = read_dataset(agreed, tmp_path)
    silos = make_silos(agreed, whole, tmp_path / "silos")
    parts = [pl.read_parquet(silo / "data" / "records.parquet") for silo in silos]
    assert sorted(row for part in parts for row in part["__row__"].to_list()) == list(range(300))
    units = [set(part["person"].to_list()) for part in parts]
    assert sum(map(len, units)) == len(set(persons.tolist())) and all(units)
    assert make_silos(agreed, whole, tmp_path / "silos") == silos  # the same folders, with their ledgers
    assert make_silos(agreed, whole, tmp_path / "silos", fresh="x") != silos


def test_a_record_is_held_out_or_not_whatever_the_partition(tmp_path: Path) -> None:
    FRAME.write_csv(tmp_path / "all.csv")
    held_out = {}
    for silos in (1, 2):
        agreed = study(
            simulation__dataset="all.csv", simulation__silos=silos, simulation__partition="iid", data__test_share=0.5
        )
        folders = make_silos(agreed, read_dataset(agreed, tmp_path), tmp_path / "silos")
        parts = [kinds.load(folder / "data" / "records.parquet", agreed, {}, tmp_path).held_out for folder in folders]
        held_out[silos] = sorted(map(tuple, pooled(parts).x[:].tolist()))
    assert held_out[1] == held_out[2] and 0 < len(held_out[1]) < 4


# --- data sets ----------------------------------------------------------------------------------------------


def test_what_is_missing_is_read_off_the_data_and_said(tmp_path: Path) -> None:
    FRAME.write_csv(tmp_path / "all.csv")
    text = STUDY.replace('classes = ["no", "yes"]\n', "")
    agreed = study(
        text, simulation__dataset="all.csv", simulation__silos=2, training__sampling_rate=0.5, data__unit="person"
    )
    whole, notes = complete(agreed, read_dataset(agreed, tmp_path))
    assert whole.file.data.classes == ("no", "yes")
    assert whole.file.training.expected_batch_size == pytest.approx(0.5 * 2 * 0.75 / 2, rel=0.01)
    assert len(notes) == 2 and complete(whole, read_dataset(whole, tmp_path)) == (whole, [])


# rows and number of silos as DATA.md has them; about the share of positives (azpro's as the table has it)
FACTS: dict[str, tuple[int, str, int, str, str, float]] = {
    "breast_cancer": (569, "diagnosis", 2, "diagnosis", "malignant", 212 / 569),
    "azpro": (3589, "hospital", 17, "long_stay", "yes", 0.44),
    "rand_hie": (20190, "site", 6, "high_spend", "yes", 0.25),
    "lending_club": (9857, "region", 9, "Class", "bad", 0.053),
}


@pytest.mark.parametrize("name", DATASETS.names())
def test_built_in_data_sets(name: str) -> None:
    try:
        found, again = DATASETS.resolve(name).load(), DATASETS.resolve(name).load()
    except SettingError as error:
        if str(error).startswith("FEDSILO_DATA is not set"):
            pytest.skip("FEDSILO_DATA: names no folder of development data")
        raise
    if isinstance(found, dict):
        assert isinstance(again, dict) and found.keys() == again.keys() and len(found["X"])
        assert all(np.array_equal(found[key], again[key], equal_nan=found[key].dtype.kind == "f") for key in found)
        return
    frame = pl.concat(tables.batches(found, None, {})) if isinstance(found, Path) else found
    assert frame.height and (found == again if isinstance(found, Path) else frame.equals(again))
    if name in FACTS:
        rows, silo, silos, target, positive, share = FACTS[name]
        assert frame.height == rows and frame[silo].n_unique() == silos
        assert (frame[target] == positive).mean() == pytest.approx(share, rel=0.15)


def test_a_person_has_no_year_before_the_first() -> None:
    frame = DATASETS.resolve("rand_hie").load()
    first = frame.filter(pl.col("year") == pl.col("year").min().over("person"))
    assert first["meddol_before"].null_count() == first.height == frame["person"].n_unique()
    assert frame["meddol_before"].null_count() == first.height


DATASET_FILE = '''"""Two rows."""
from dataclasses import dataclass
from simulations.datasets.base import Dataset

@dataclass(frozen=True, kw_only=True)
class Two(Dataset):
    """Two rows."""
    high: float = 1.0

    def load(self):
        import polars as pl
        return pl.DataFrame({"age": [0.0, self.high], "sex": ["F", "M"], "label": ["no", "yes"]})
'''


def test_adding_a_file_is_registering_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedsiloError, match="there is no data set 'two_of_a_test'"):
        study(simulation__dataset="two_of_a_test(high=5)")
    (tmp_path / "two_of_a_test.py").write_text(DATASET_FILE)
    monkeypatch.setattr(simulations.datasets, "__path__", [*simulations.datasets.__path__, str(tmp_path)])
    frame = read_dataset(study(simulation__dataset="two_of_a_test(high=5)"), tmp_path).frame
    assert frame["age"].to_list() == [0.0, 5.0]
    sys.modules.pop("simulations.datasets.two_of_a_test")
