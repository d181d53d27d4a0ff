"""Laws of signals: a record is a function of its own file and of the public bounds, at the study's rate and length;
what was not measured is 0; every file that cannot be used is one sentence that names it.

Oracles: values worked by hand, sine waves (whose samples at any rate are known), wfdb and numpy as writers.
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from client.data import kinds, records, signals
from client.data.records import Loaded
from client.models.base import MODELS
from strategies.errors import DataError
from strategies.spec import Registries
from strategies.study import Study, override

with warnings.catch_warnings():  # wfdb calls pandas in a way that pandas will drop
    warnings.simplefilter("ignore")
    import wfdb

R3 = math.sqrt(3)
NAN = math.nan
STUDY = """[study]
name = "s"
task = "classification"
[data]
kind = "signals"
shape = [4, 2]
range = [-1, 1]
classes = ["no", "yes"]
[model]
name = "logistic()"
[privacy]
noise_multiplier = 1.0
"""
BY_NAME = (
    STUDY.replace("range = [-1, 1]\n", "")
    + """[data.features]
II = { type = "numeric", min = -2, max = 2 }
V1 = { type = "numeric", min = 1, max = 100, transform = "log", outside = "missing" }
"""
)
stored_or_packed = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
TWO = np.array([[0.0, 0.5], [1.0, -1.0], [NAN, 3.0], [-0.5, NAN]])  # steps of two channels
TWO_SCALED = R3 * np.array([[0, 0.5], [1, -1], [0, 1], [-0.5, 0]])


def study(text: str = STUDY, **changes: object) -> Study:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return Study.parse(override(text, values), Registries(models=MODELS))


def without(*keys: str) -> str:
    return "\n".join(line for line in STUDY.splitlines() if line.split(" =")[0] not in keys)


def load(path: Path, agreed: Study, rename: dict[str, str] | None = None, **more: bool) -> Loaded:
    return signals.load(path, agreed, rename or {}, path.parent / "scratch", **more)


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "all.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def refusal(match: str) -> pytest.RaisesExc[DataError]:
    return pytest.raises(DataError, match=match)


def close(found: object, expected: object, within: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=within)


# --- .npz ---------------------------------------------------------------------------------------------------


@stored_or_packed
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4"])
def test_one_range_by_hand(tmp_path: Path, save: object, dtype: str) -> None:
    save(tmp_path / "a.npz", X=TWO[None].astype(dtype), y=["yes"])  # type: ignore[operator]
    loaded = load(tmp_path / "a.npz", study())
    assert isinstance(loaded.x, torch.Tensor) and loaded.x.dtype == torch.float32
    close(loaded.x, TWO_SCALED[None])
    assert loaded.y.tolist() == [1] and list(loaded.keys) == [0]
    assert loaded.notes == (
        "column 'channel 1': 1 values missing, 0 outside the public schema",
        "column 'channel 2': 1 values missing, 1 outside the public schema",
    )


def test_whole_numbers_of_one_channel(tmp_path: Path) -> None:
    path = npz(tmp_path, X=np.array([[0, 1024, -2048, 4000]], np.int16), y=["no"])
    close(load(path, study(data__shape=[4, 1], data__range=[-2048, 2048])).x, [[[0], [R3 / 2], [-R3], [R3]]])


def test_one_feature_a_channel_in_order(tmp_path: Path) -> None:
    x = np.array([[[0, 10], [1, 1], [-2, 100], [3, 200]]], dtype=float)
    loaded = load(npz(tmp_path, X=x, y=["no"]), study(BY_NAME))
    close(loaded.x, R3 * np.array([[[0, 0], [0.5, -1], [-1, 1], [1, 0]]]))  # log 10 is the middle; 200 is missing
    assert loaded.notes == (
        "column 'II': 0 values missing, 1 outside the public schema",
        "column 'V1': 0 values missing, 1 outside the public schema",
    )
    refuse = study(BY_NAME.replace('outside = "missing"', 'outside = "refuse"'))
    with refusal("all.npz: column 'V1' has 1 rows that are outside, and the study says outside = 'refuse'"):
        load(npz(tmp_path, X=x, y=["no"]), refuse)
    refuse = study(BY_NAME.replace("max = 2", 'max = 2, missing = "refuse"'))
    x[0, 0, 0] = NAN
    with refusal("all.npz: column 'II' has 1 rows that are missing"):
        load(npz(tmp_path, X=x, y=["no"]), refuse)


def test_steps_beyond_a_length_are_not_there(tmp_path: Path) -> None:
    x = np.ones((3, 4, 2))
    x[1, 2:] = 77  # neither read nor counted
    loaded = load(npz(tmp_path, X=x, y=["no"] * 3, lengths=[4, 2, 0]), study())
    close(loaded.x[:, :, 0], R3 * np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]))
    assert loaded.notes == ()
    for lengths in ([4, 5, 1], [4, -1, 1], [1.0, 2.0, 3.0], [[1, 2], [1, 2], [1, 2]]):
        with refusal("array lengths of all.npz must hold one whole number from 0 to 4 a record"):
            load(npz(tmp_path, X=x, y=["no"] * 3, lengths=lengths), study())


def test_cropped_or_filled_up_at_the_end(tmp_path: Path) -> None:
    x = np.tile([[0.1], [0.2], [0.3], [0.4]], (2, 1, 2))
    path = npz(tmp_path, X=x, y=["no", "yes"], lengths=[4, 2])
    longer = load(path, study(data__shape=[6, 2]))
    close(longer.x[0, :, 0], R3 * np.array([0.1, 0.2, 0.3, 0.4, 0, 0]))
    close(longer.x[1, :, 1], R3 * np.array([0.1, 0.2, 0, 0, 0, 0]))
    assert longer.notes == ("2 records have fewer than 6 steps and were filled up with zeros",)
    shorter = load(path, study(data__shape=[3, 2]))
    close(shorter.x[:, :, 0], R3 * np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0]]))
    assert shorter.notes == ("2 records have more than 3 steps and were cropped",)


def test_units_tasks_and_no_labels(tmp_path: Path) -> None:
    x = np.zeros((2, 4, 2))
    with refusal('all.npz says which unit .*unit = "unit"'):
        load(npz(tmp_path, X=x, y=["no", "no"], unit=["a", "b"]), study())
    loaded = load(npz(tmp_path, X=x, y=["no", "no"], unit=["a", "b"], __row__=[5, 6]), study(data__unit="unit"))
    assert list(loaded.keys) == ["a", "b"]
    assert list(load(npz(tmp_path, X=x, y=["no", "no"], __row__=[5, 6]), study()).keys) == [5, 6]
    path = npz(tmp_path, X=x, y=[[0, 1], [1, 1]])
    assert load(path, study(study__task="multilabel")).y.tolist() == [[0, 1], [1, 1]]
    regression = study(without("classes"), study__task="regression")
    assert load(npz(tmp_path, X=x, y=[0.5, 2]), regression).y.tolist() == [0.5, 2]
    assert load(npz(tmp_path, X=x), study(), labelled=False).y.tolist() == [0, 0]


def test_arrays_that_cannot_be_used(tmp_path: Path) -> None:
    def refused(match: str, agreed: Study | None = None, **arrays: object) -> None:
        with refusal(match):
            load(npz(tmp_path, **arrays), agreed or study())

    x = np.zeros((1, 4, 2))
    refused("X of all.npz has 3 channels and the study says 2", X=np.zeros((1, 4, 3)), y=["no"])
    refused(r"X of all.npz has 4 dimensions; signals are \(n, steps\)", X=np.zeros((1, 4, 2, 1)), y=["no"])
    refused("X of all.npz has type <U1; it must hold real numbers", X=np.full((1, 4, 2), "a"), y=["no"])
    refused("all.npz has no array y to predict", X=x)
    refused("all.npz: column 'y', row 1: 'maybe' is none of", X=x, y=["maybe"])
    refused("data.range is missing: signals need public bounds", study(without("range")), X=x, y=["no"])
    refused("has 2 numeric features and data.shape 3 channels", study(BY_NAME, data__shape=[4, 3]), X=x, y=["no"])
    at_250 = study(data__rate_hz=250)
    refused("array rate_hz of all.npz differs from the study's rate_hz = 250", at_250, X=x, y=["no"], rate_hz=[360])
    assert load(npz(tmp_path, X=x, y=["no"], rate_hz=[250.0]), at_250).x.shape == (1, 4, 2)


def test_large_arrays_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(0, 0.5, (50, 6, 2)).astype(np.float32)
    x[draw.random(x.shape) < 0.1] = NAN
    path = npz(tmp_path, X=x, y=["no"] * 50, lengths=draw.integers(0, 7, 50))
    whole = load(path, study())
    small = whole.x
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("client.data.listed._VALUES_AT_ONCE", 25)
    loaded = load(path, study())
    large = loaded.x
    assert isinstance(small, torch.Tensor) and not isinstance(large, torch.Tensor)
    assert large.shape == small.shape == (50, 4, 2) and torch.equal(large[:], small)
    rows = torch.tensor([49, 3, 3, 0])
    assert torch.equal(large[rows], small[rows]) and torch.equal(large[rows], large[rows])
    assert large[torch.zeros(0, dtype=torch.int64)].shape == (0, 4, 2)  # a sampled batch may be empty
    assert loaded.notes == whole.notes != ()


# --- files --------------------------------------------------------------------------------------------------


def listed(folder: Path, names: list[str], **columns: list[object]) -> Path:
    path = folder / "index.csv"
    pl.DataFrame({"path": names, "label": ["yes"] * len(names), **columns}).write_csv(path)
    return path


def written(folder: Path, suffix: str, values: np.ndarray, names: tuple[str, ...] = ("a", "b"), rate: int = 4) -> Path:
    """Write a file and an index table of it alone."""
    path = folder / f"one{suffix}"
    if suffix == ".csv":
        pl.DataFrame(values, schema=list(names)).fill_nan(None).write_csv(path)
    elif suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        np.savez_compressed(path, X=values)
    else:
        more = {"units": ["mV"] * len(names), "sig_name": list(names), "fmt": ["16"] * len(names)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wfdb.wrsamp("one", fs=rate, p_signal=values, write_dir=str(folder), **more)
    return listed(folder, [path.name])


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".hea"])
def test_each_kind_of_file_by_hand(tmp_path: Path, suffix: str) -> None:
    loaded = load(written(tmp_path, suffix, TWO), study())
    close(loaded.x, TWO_SCALED[None], 1e-4)  # WFDB rounds to 16 bits
    assert loaded.y.tolist() == [1] and list(loaded.keys) == [0] and isinstance(loaded.x, torch.Tensor)
    assert loaded.notes[0] == "column 'channel 1': 1 values missing, 0 outside the public schema"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_one_channel_without_an_axis(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, np.array([1, -1, 0, 1]))
    close(load(path, study(data__shape=[4, 1])).x, R3 * np.array([[[1], [-1], [0], [1]]]))


@pytest.mark.parametrize("suffix", [".csv", ".hea"])
def test_channels_are_found_by_name(tmp_path: Path, suffix: str) -> None:
    values = np.array([[10, 0, 5], [1, 1, 5], [100, -2, 5], [10, 1, 5]], dtype=float)
    expected = R3 * np.array([[[0, 0], [0.5, -1], [-1, 1], [0.5, 0]]])
    path = written(tmp_path, suffix, values, ("V1", "II", "more"))
    close(load(path, study(BY_NAME)).x, expected, 1e-3)
    path = written(tmp_path, suffix, values, ("v_1", "II", "more"))
    close(load(path, study(BY_NAME), {"v_1": "V1"}).x, expected, 1e-3)
    with refusal("/one.* has several channels with the name 'II'; rename all but one"):
        load(path, study(BY_NAME), {"v_1": "V1", "more": "II"})
    with refusal("/one.*: column 'V1' is missing"):
        load(path, study(BY_NAME))
    with refusal("/one.* has 3 channels and the study says 2"):
        load(path, study())


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_records_of_other_lengths(tmp_path: Path, steps: int) -> None:
    values = np.linspace(0.1, 0.9, steps * 2).reshape(steps, 2)
    loaded = load(written(tmp_path, ".npy", values), study())
    expected = np.zeros((4, 2))
    expected[: min(steps, 4)] = R3 * values[:4]
    close(loaded.x[0], expected)
    said = {3: "1 records have fewer than 4 steps and were filled up with zeros", 4: None}
    assert loaded.notes == tuple(filter(None, [said.get(steps, "1 records have more than 4 steps and were cropped")]))


@pytest.mark.parametrize(("source", "target"), [(360, 180), (250, 360), (100, 500), (257, 128), (500, 500)])
@pytest.mark.parametrize("suffix", [".npy", ".hea"])
def test_a_sine_at_another_rate(tmp_path: Path, source: int, target: int, suffix: str) -> None:
    def wave(rate: int) -> np.ndarray:
        t = np.arange(2 * rate) / rate
        return np.stack([0.8 * np.sin(2 * np.pi * 5 * t), 0.5 + 0.4 * np.cos(2 * np.pi * 3 * t)], axis=1)

    path = written(tmp_path, suffix, wave(source), rate=source)
    if suffix == ".npy":
        path = listed(tmp_path, ["one.npy"], rate_hz=[source])
    found = load(path, study(data__shape=[2 * target, 2], data__rate_hz=target)).x[0].numpy() / R3
    middle = slice(target // 5, -target // 5)  # a filter knows nothing beyond the ends
    close(found[middle], wave(target)[middle], 0.01)
    close(found, wave(target), 0.2)  # padded with zeros, the second channel would be 0.45 off at its start


def test_a_gap_stays_a_gap_at_another_rate(tmp_path: Path) -> None:
    values = np.full((200, 2), 0.5)
    values[100:140, 0] = NAN
    values[:, 1] = NAN
    written(tmp_path, ".npy", values)
    path = listed(tmp_path, ["one.npy"], rate_hz=[100])
    loaded = load(path, study(data__shape=[100, 2], data__rate_hz=50))
    close(loaded.x[0, :, 0], R3 * np.where((np.arange(100) >= 50) & (np.arange(100) < 70), 0, 0.5), 0.01)
    assert not loaded.x[0, :, 1].any()
    assert loaded.notes[0] == "column 'channel 1': 40 values missing, 0 outside the public schema"


def test_rates_that_are_wrong(tmp_path: Path) -> None:
    at_100 = study(data__rate_hz=100)

    def refused(match: str, path: Path) -> None:
        with refusal(match):
            load(path, at_100)

    refused("the rate of .*/one.npy is not known; add a column rate_hz", written(tmp_path, ".npy", TWO))
    refused("/one.npy has rate_hz = 0, which must be above 0", listed(tmp_path, ["one.npy"], rate_hz=[0]))
    refused("/one.npy has rate_hz = nan", listed(tmp_path, ["one.npy"], rate_hz=[""]))
    refused("column 'rate_hz', row 1: 'fast' is no number", listed(tmp_path, ["one.npy"], rate_hz=["fast"]))
    refused("has rate_hz = 0.05 and the study 100; correct", listed(tmp_path, ["one.npy"], rate_hz=[0.05]))
    written(tmp_path, ".hea", TWO, rate=50)
    path = listed(tmp_path, ["one.hea"], rate_hz=[25])
    refused("/one.hea has rate_hz = 50 and its row in the index table 25", path)
    close(load(path, study()).x, TWO_SCALED[None], 1e-4)  # without a rate in the study records are taken as they are


def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, content: bytes | None, match: str) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with refusal(match):
            load(listed(tmp_path, [name]), study())

    refused("gone.csv", None, "there is no file .*/gone.csv; correct the path")
    refused("a.edf", b"0", "/a.edf is no signal that can be read; allowed are .csv, .npy, .npz, .hea")
    refused("a.csv", b"a,b\n1,2\n3,x\n", "/a.csv: column 'b', row 2: 'x' is no number")
    refused("a.csv", b"a,b\n1,2\n3\n", "/a.csv: a.csv cannot be read")
    refused("a.csv", b"a,b\n", "/a.csv: a.csv has no rows")
    refused("a.csv", b"0.1,0.2\n0.3,0.4\n", "/a.csv has no header; write the names of the channels")
    refused("a.csv", b"a,b,c\n1,2,3\n", "/a.csv has 3 channels and the study says 2")
    refused("a.npy", b"", "/a.npy cannot be read")
    refused("a.npy", b"no array", "/a.npy cannot be read")
    refused("a.npz", b"PK\x03\x04", "/a.npz cannot be read")
    refused("a.hea", b"a 2 100\n", "/a.hea cannot be read")
    refused("a.hea", b"a 1 100 4\nnone.dat 16 200 16 0 0 0 0 I\n", "/a.hea cannot be read")
    for values, match in (
        (np.array([[1, "a"]], dtype=object), "/one.npy cannot be read"),
        (np.array([["1", "2"]]), "X of .*/one.npy has type <U1; it must hold real numbers"),
        (np.zeros((2, 2, 2)), "/one.npy has 3 dimensions; a signal is"),
        (np.zeros((0, 2)), "/one.npy holds no values"),
    ):
        np.save(tmp_path / "one.npy", values, allow_pickle=True)
        refused("one.npy", None, match)
    np.savez(tmp_path / "b.npz", values=TWO)
    refused("b.npz", None, "/b.npz cannot be read .*X")
    whole = written(tmp_path, ".npy", TWO).parent / "one.npy"
    refused("one.npy", whole.read_bytes()[:-9], "/one.npy cannot be read")
    refused("one.npy", whole.read_bytes(), "cannot be read")
    written(tmp_path, ".hea", TWO)
    monkeypatch.setitem(sys.modules, "wfdb", None)
    refused("one.hea", None, r"/one.hea is a WFDB record, which needs wfdb; pip install 'fedsilo\[medical\]'")


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with refusal("folder is a folder; signals are an .npz, or an index table"):
        load(tmp_path / "folder", study())
    with refusal("there is no file .*gone.csv"):
        load(tmp_path / "gone.csv", study())
    path = written(tmp_path, ".npy", TWO)
    with refusal("/one.npy has the label 'yes', which is none of the study's classes 0, 1"):
        load(path, study(data__classes=[0, 1]))
    with refusal("index.csv: column 'patient' is missing"):
        load(path, study(data__unit="patient"))
    path.write_text("label\nyes\n")
    with refusal("index.csv has no column path"):
        load(path, study())
    refuse = study(BY_NAME.replace('outside = "missing"', 'outside = "refuse"'))
    with refusal("/one.csv: column 'V1' has 2 rows that are outside"):
        load(written(tmp_path, ".csv", TWO, ("II", "V1")), refuse)


def test_index_units_and_groups(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", TWO + number)
    names = ["2.npy", str(tmp_path / "0.npy"), "1.npy"]
    path = listed(tmp_path, names, unit=["p", "q", "p"], sex=["F", "M", ""])
    frame = signals.index(path, study())
    assert frame.columns == ["path", "label", "unit", "sex"]
    assert frame["path"].to_list() == [str(tmp_path / f"{number}.npy") for number in (2, 0, 1)]
    text = STUDY + '[data.features]\nsex = { type = "categorical", values = ["F", "M"] }\n'
    loaded = load(path, study(text, data__unit="unit", evaluation__groups=["sex"]))
    assert list(loaded.keys) == ["p", "q", "p"] and loaded.groups["sex"].tolist() == [0, 1, -1]
    close(loaded.x[1], TWO_SCALED)
    with refusal('index.csv says which unit .*unit = "unit"'):
        load(path, study(text))
    frame.write_parquet(tmp_path / "part.parquet")
    assert torch.equal(load(tmp_path / "part.parquet", study(text, data__unit="unit")).x[:], loaded.x[:])


def test_many_files_go_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for number in range(12):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).normal(0, 0.5, (3 + number % 4, 2)))
        names.append(f"{number}.npy")
    path = listed(tmp_path, names)
    small = load(path, study())
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 100)
    large = load(path, study())
    assert isinstance(small.x, torch.Tensor) and not isinstance(large.x, torch.Tensor)
    assert torch.equal(large.x[:], small.x) and large.notes == small.notes
    rows = torch.tensor([11, 0, 0, 5])
    assert torch.equal(large.x[rows], small.x[rows]) and torch.equal(large.x[rows], large.x[rows])


# --- what a simulation reads off ----------------------------------------------------------------------------


def test_read_off_arrays(tmp_path: Path) -> None:
    open_text = without("shape", "range")

    def found(x: np.ndarray, text: str = open_text) -> dict[str, object]:
        return signals.read_off(npz(tmp_path, X=x, y=["no"] * len(x)), study(text), tmp_path)

    assert found(TWO[None]) == {"data.shape": [4, 2], "data.range": [-1.0, 3.0]}
    assert found(np.zeros((2, 9), np.uint8)) == {"data.shape": [9, 1], "data.range": [0.0, 255.0]}
    assert found(np.array([[5, -7]], np.int16)) == {"data.shape": [2, 1], "data.range": [-7.0, 5.0]}
    assert found(TWO[None], without("range")) == {"data.range": [-1.0, 3.0]}
    assert found(TWO[None], without("shape")) == {"data.shape": [4, 2]}
    assert found(TWO[None], BY_NAME) == found(TWO[None], STUDY) == {}
    with refusal("data.range is missing"):
        load(npz(tmp_path, X=TWO[None], y=["no"]), study(without("range")))


def test_read_off_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TWO)
    np.save(tmp_path / "b.npy", TWO[:2] * 9)
    path = listed(tmp_path, ["a.npy", "b.npy"], rate_hz=[50, 50])
    text = without("shape", "range")
    assert signals.read_off(path, study(text), tmp_path) == {"data.shape": [4, 2], "data.range": [-9.0, 9.0]}
    assert signals.read_off(path, study(text, data__rate_hz=100), tmp_path)["data.shape"] == [8, 2]
    assert signals.read_off(path, study(), tmp_path) == {}
    path = written(tmp_path, ".csv", np.ones((5, 3)), ("V1", "other", "II"))
    by_name = study(BY_NAME.replace("shape = [4, 2]\n", ""))
    assert signals.read_off(path, by_name, tmp_path) == {"data.shape": [5, 2]}


# --- real data ----------------------------------------------------------------------------------------------


def test_real_beats_of_real_patients(tmp_path: Path, data_folder: Path) -> None:
    path = data_folder / "mitbih_beats" / "mitbih_beats.npz"
    agreed = study(
        data__shape=[128, 1], data__range=[-2048, 2048], data__classes=[0, 1, 2, 3], data__unit="record",
        data__test_share=0.3,
    )  # fmt: skip
    whole = kinds.load(path, agreed, {}, tmp_path)
    with np.load(path) as arrays:
        x, y, patients = arrays["X"], arrays["y"], arrays["record"]
    assert len(whole.train.y) + len(whole.held_out.y) == len(x) == 11668
    assert whole.train.units + whole.held_out.units == len(set(patients.tolist())) == 22
    held_out = np.isin(patients, [p for p in set(patients.tolist()) if _held_out(p)])
    close(whole.held_out.x[:, :, 0], R3 * x[held_out] / 2048)
    assert whole.held_out.y.tolist() == y[held_out].tolist()


def _held_out(patient: int) -> bool:
    return bool(records.held_out_rows([str(patient)], 7, 0.3)[0])
