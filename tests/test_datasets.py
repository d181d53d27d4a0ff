"""The built-in data sets: they load without a network and are what their documentation says.

Numbers of real data sets are those of their publications; numbers of generators are facts of their documented model.
"""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from simulations.datasets.base import DATASETS, Arrays, arrays_of
from simulations.ready import STUDIES, read_study
from simulations.sources import read_dataset
from strategies.errors import SettingError

DEVELOPMENT = (
    "credit_default_taiwan",
    "german_credit",
    "heart_disease",
    "medical_mnist",
    "mitbih",
    "physionet2012",
    "pneumonia_mnist",
    "sms_spam",
)
GENERATORS = ("card_fraud", "clinical_notes", "dna_enhancers", "ecg", "network_intrusion", "spoken_commands")
SIZES = {
    "card_fraud": "customers",
    "dna_enhancers": "stretches",
    "network_intrusion": "hosts",
    "spoken_commands": "speakers",
}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What a data set must be.

    Args:
        rows: records (rows of a table).
        shape: of one record of arrays.
        label: column or array of the target.
        positive: its value that is counted.
        share: of rows with that value, to three digits.
        columns: some that a table has.
    """

    rows: int
    label: str
    positive: Any
    share: float
    shape: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()


FACTS = {
    "azpro": Fact(rows=3589, label="long_stay", positive="yes", share=0.448, columns=("hospital", "procedure")),
    "breast_cancer": Fact(rows=569, label="diagnosis", positive="malignant", share=0.373, columns=("worst area",)),
    "lending_club": Fact(rows=9857, label="Class", positive="bad", share=0.052, columns=("region", "int_rate")),
    "rand_hie": Fact(rows=20190, label="high_spend", positive="yes", share=0.224, columns=("person", "site")),
    "rand_hie_history": Fact(rows=14278, label="costly", positive="yes", share=0.246, columns=("person", "year")),
    "diabetes": Fact(rows=442, label="progression", positive=200.0, share=0.014, columns=("bmi", "s5")),
    "digits": Fact(rows=1797, label="y", positive=0, share=0.099, shape=(8, 8)),
    "heart_disease": Fact(rows=920, label="disease", positive="yes", share=0.553, columns=("site", "chol")),
    "physionet2012": Fact(rows=4000, label="y", positive=1, share=0.139, shape=(48, 39)),
    "mitbih": Fact(rows=11668, label="y", positive="V", share=0.228, shape=(128,)),
    "credit_default_taiwan": Fact(rows=30000, label="default", positive="yes", share=0.221, columns=("USED_1",)),
    "german_credit": Fact(rows=1000, label="risk", positive="bad", share=0.300, columns=("duration",)),
    "pneumonia_mnist": Fact(rows=5030, label="y", positive="normal", share=0.150, shape=(28, 28)),
    "medical_mnist": Fact(rows=8993, label="y", positive="BreastMRI", share=0.166, shape=(28, 28)),
    "sms_spam": Fact(rows=5574, label="label", positive="spam", share=0.134, columns=("text",)),
    "card_fraud": Fact(rows=72893, label="fraud", positive="yes", share=0.014, columns=("customer", "bank")),
    "clinical_notes": Fact(rows=6000, label="pneumonia", positive="yes", share=0.346, columns=("patient", "text")),
    "ecg": Fact(rows=12000, label="y", positive="abnormal", share=0.299, shape=(128,)),
    "dna_enhancers": Fact(rows=9000, label="y", positive="enhancer", share=0.397, shape=(80, 4)),
    "network_intrusion": Fact(rows=60000, label="attack", positive="yes", share=0.022, columns=("host", "site")),
    "spoken_commands": Fact(rows=9000, label="y", positive="stop", share=0.168, shape=(40, 12)),
}


def load(name: str, **arguments: Any) -> pl.DataFrame | Arrays | Path:
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    found: pl.DataFrame | Arrays | Path = DATASETS.resolve(f"{name}({given})").load()
    return found


def table(name: str, **arguments: Any) -> pl.DataFrame:
    frame = load(name, **arguments)
    assert isinstance(frame, pl.DataFrame)
    return frame


def arrays(name: str, **arguments: Any) -> Arrays:
    found = load(name, **arguments)
    assert isinstance(found, dict)
    return found


def test_every_data_set_has_its_facts_here() -> None:
    assert set(DATASETS.names()) == set(FACTS)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a data set reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_it_loads_and_is_what_it_says(name: str, offline: None, request: pytest.FixtureRequest) -> None:
    if name in DEVELOPMENT:
        request.getfixturevalue("data_folder")
    fact, found = FACTS[name], load(name)
    if isinstance(found, pl.DataFrame):
        assert found.height == fact.rows and set(fact.columns) <= set(found.columns)
        values = found[fact.label].to_numpy()
    else:
        assert isinstance(found, dict)
        assert found["X"].shape == (fact.rows, *fact.shape)
        assert all(len(array) == fact.rows and array.dtype != object for array in found.values())
        values = found[fact.label]
    assert round(float((values == fact.positive).mean()), 3) == fact.share


@pytest.mark.parametrize("name", sorted(FACTS))
def test_its_first_line_tells_sector_and_number(name: str) -> None:
    text = (Path(STUDIES).parent / "datasets" / f"{name}.py").read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert re.match(r'"""(Healthcare|Finance|Synthetic \((healthcare|finance|security)\))[a-z ]*: .*\d', first), first
    assert ("Synthetic" in first) == (name in GENERATORS)
    assert len(text.splitlines()) <= 120


# --- development data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEVELOPMENT)
def test_missing_development_data_is_one_clear_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDSILO_DATA", raising=False)
    with pytest.raises(SettingError, match=r"^FEDSILO_DATA is not set: .* set it, or choose a study"):
        load(name)
    monkeypatch.setenv("FEDSILO_DATA", str(tmp_path))
    with pytest.raises(SettingError, match=r"has no file .*; correct the folder"):
        load(name)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", X=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        arrays_of(tmp_path / "objects.npz")


def test_heart_disease_codes_what_was_not_measured_as_missing(data_folder: Path) -> None:
    frame = table("heart_disease")
    assert dict(frame["site"].value_counts().iter_rows()) == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    assert frame.filter(pl.col("site") == "switzerland")["chol"].null_count() == 123
    assert frame["chol"].min() > 0 and frame["trestbps"].min() > 0  # type: ignore[operator]


def test_physionet_carries_forward_and_never_backward(data_folder: Path) -> None:
    """Two values worked by the rule: an hour takes the last measurement before it and none from after it."""
    plain, carried = (arrays("physionet2012", carry=carry)["X"] for carry in (False, True))
    measured = np.isfinite(plain)
    np.testing.assert_array_equal(carried[measured], plain[measured])
    first = np.where(measured.any(1), measured.argmax(1), plain.shape[1])
    hours = np.arange(plain.shape[1])[None, :, None]
    np.testing.assert_array_equal(np.isfinite(carried), hours >= first[:, None, :])
    assert np.bincount(np.unique(arrays("physionet2012")["silo"], return_inverse=True)[1]).tolist() == [
        577,
        874,
        1481,
        1068,
    ]


def test_the_history_of_a_person_ends_before_the_year_to_foresee() -> None:
    years, history = table("rand_hie"), table("rand_hie_history")
    last = years.group_by("person").agg(pl.col("year").max().alias("last"), pl.col("high_spend").sort_by("year").last())
    joined = history.join(last, on="person", validate="m:1")
    assert (joined["year"] < joined["last"]).all()
    assert (joined["costly"] == joined["high_spend"]).all()
    assert history["person"].n_unique() == 5643
    assert history.group_by("person").agg(pl.col("costly").n_unique())["costly"].max() == 1


# --- generators ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_is_a_function_of_its_seed(name: str) -> None:
    size = SIZES.get(name, "patients")
    one, again, other = (_content(load(name, **{size: 200, "seed": seed})) for seed in (3, 3, 4))
    assert one == again and one != other


def _content(found: Any) -> Any:
    if isinstance(found, pl.DataFrame):
        return found.write_csv()
    return {key: value.tobytes() for key, value in found.items()}


def test_card_fraud_is_rare_and_no_column_gives_it_away() -> None:
    frame = table("card_fraud")
    fraud = (frame["fraud"] == "yes").to_numpy()
    shops = {f"shop {shop}": (frame["shop"] == shop).to_numpy() for shop in frame["shop"].unique()}
    numbers = {name: frame[name].to_numpy() for name in ("amount", "ratio", "hour", "pause_h", "abroad", "online")}
    columns = {**numbers, **shops, "night": frame["hour"].to_numpy() < 6}
    alone = {name: _auroc_alone(column, fraud) for name, column in columns.items()}
    assert max(alone.values()) < 0.8, alone
    logs = {name: np.log1p(columns[name].astype(float)) for name in ("amount", "ratio", "pause_h")}
    assert 0.88 <= _auroc_together({**columns, **logs}, fraud, frame["customer"].to_numpy()) <= 0.95
    robbed = frame.filter(pl.col("fraud") == "yes")["customer"].n_unique()
    assert 300 <= robbed <= 1200, "fraud comes in a few customers, several payments each"
    assert frame.group_by("bank").agg((pl.col("fraud") == "yes").mean())["fraud"].n_unique() == 5


def test_ecg_needs_the_shape_of_a_beat() -> None:
    found = arrays("ecg")
    abnormal = found["y"] == "abnormal"
    alone = [_auroc_alone(found["X"][:, sample], abnormal) for sample in range(128)]
    assert max(alone) < 0.9
    samples = {str(sample): found["X"][:, sample] for sample in range(0, 128, 2)}
    assert 0.85 <= _auroc_together(samples, abnormal, found["unit"]) <= 0.96
    normal = found["X"][~abnormal].mean(0)
    assert abs(int(normal.argmax()) - 51) <= 2, "R stands where the time axis has its zero"
    assert np.unique(found["unit"]).size == 6000 and np.abs(found["X"]).max() < 5


def test_clinical_notes_need_the_order_of_words() -> None:
    frame = table("clinical_notes")
    texts, ill = frame["text"].to_list(), (frame["pneumonia"] == "yes").to_numpy()
    named = np.array(["pneumonia" in text for text in texts])
    assert abs(named[ill].mean() - named[~ill].mean()) < 0.05, "the word alone says nothing"
    words = CountVectorizer(binary=True).fit_transform(texts).toarray()
    assert max(_auroc_alone(word, ill) for word in words.T) < 0.7
    alone, in_order = (_auroc_of_words(texts, ill, most) for most in (1, 3))
    assert 0.8 <= alone <= 0.9 and in_order >= alone + 0.08


def test_dna_enhancers_need_the_order_of_bases() -> None:
    """A convolution of eight bases sees a site; counts of bases, places, and any one short word do not tell."""
    found = arrays("dna_enhancers")
    enhancer, x, unit = found["y"] == "enhancer", found["X"].astype(float), np.arange(len(found["y"]))
    np.testing.assert_array_equal(found["X"].sum(2), 1)
    assert _auroc_together({str(base): x[:, :, base].sum(1) for base in range(3)}, enhancer, unit) < 0.55
    assert _auroc_together({f"{k} {b}": x[:, k, b] for k in range(80) for b in range(3)}, enhancer, unit) < 0.6
    letters = np.array(list("ACGT"))[found["X"].argmax(2)]
    texts = ["".join(row) for row in letters]
    words = CountVectorizer(analyzer="char", ngram_range=(4, 4)).fit_transform(texts).toarray()
    assert max(_auroc_alone(word, enhancer) for word in words.T) < 0.85
    held = unit % 5 == 0
    model = LogisticRegression(max_iter=500, C=0.1).fit(words[~held], enhancer[~held])
    assert 0.94 <= roc_auc_score(enhancer[held], model.predict_proba(words[held])[:, 1]) <= 0.985
    pairs = [np.mean([text.count("CG") for text, silo in zip(texts, found["silo"], strict=True)]), 80 * 0.2 * 0.2]
    assert pairs[0] < 0.75 * pairs[1], "C seldom precedes G"


def test_attacks_are_rare_and_no_site_sees_all_of_them() -> None:
    frame = table("network_intrusion")
    attack = (frame["attack"] == "yes").to_numpy()
    numbers = {name: frame[name].to_numpy() for name in ("sent", "received", "seconds", "recent")}
    flags = {name: frame[name].to_numpy() for name in ("refused", "outside", "night")}
    services = {name: (frame["service"] == name).to_numpy() for name in frame["service"].unique()}
    alone = {name: _auroc_alone(column, attack) for name, column in {**numbers, **flags, **services}.items()}
    assert max(alone.values()) < 0.8, alone
    logs = {name: np.log1p(column) for name, column in numbers.items()}
    assert 0.92 <= _auroc_together({**logs, **flags, **services}, attack, frame["host"].to_numpy()) <= 0.97
    broken_into = frame.filter(pl.col("attack") == "yes")["host"].n_unique()
    assert 300 <= broken_into <= 600, "attacks come from few hosts"
    floods = frame.filter((pl.col("attack") == "yes") & (pl.col("service") == "web")).group_by("site").len()
    share = dict(floods.iter_rows())
    assert share["bank1"] > 3 * share["hospital1"], "floods are seen at some sites only"


def test_spoken_commands_need_the_order_of_sounds() -> None:
    """Pairs of words have the same sounds: their mean over time tells the pair and not the word."""
    found = arrays("spoken_commands")
    held, words, x = found["unit"] % 5 == 0, found["y"], found["X"].astype(float)
    means, whole = x.mean(1), x.reshape(len(x), -1)
    right = {}
    for name, columns in (("mean", means), ("whole", whole)):
        scaled = (columns - columns.mean(0)) / columns.std(0)
        model = LogisticRegression(max_iter=300, C=0.01).fit(scaled[~held], words[~held])
        right[name] = model.predict(scaled[held])
    assert 0.45 <= (right["mean"] == words[held]).mean() <= 0.65
    letters = np.array(["".join(sorted(word)) for word in words[held]])
    told = np.array(["".join(sorted(word)) for word in right["mean"]])
    assert (told == letters).mean() > 0.9
    assert (right["whole"] == words[held]).mean() > 0.75


def _auroc_alone(column: NDArray[Any], label: NDArray[np.bool_]) -> float:
    value = float(roc_auc_score(label, column.astype(float)))
    return max(value, 1 - value)


def _auroc_together(columns: dict[str, NDArray[Any]], label: NDArray[np.bool_], unit: NDArray[np.int64]) -> float:
    """AUROC of a logistic regression on a fifth of the units that it has not seen."""
    x = np.column_stack([column.astype(float) for column in columns.values()])
    x = (x - x.mean(0)) / x.std(0)
    held = unit % 5 == 0
    model = LogisticRegression(max_iter=500).fit(x[~held], label[~held])
    return float(roc_auc_score(label[held], model.predict_proba(x[held])[:, 1]))


def _auroc_of_words(texts: list[str], label: NDArray[np.bool_], most: int) -> float:
    held = np.arange(len(label)) % 5 == 0
    x = CountVectorizer(ngram_range=(1, most), binary=True).fit_transform(texts)
    model = LogisticRegression(max_iter=500).fit(x[~held], label[~held])
    return float(roc_auc_score(label[held], model.predict_proba(x[held])[:, 1]))


# --- bounds of the ready studies ----------------------------------------------------------------------------


def _needs(path: Path, request: pytest.FixtureRequest) -> None:
    if "FEDSILO_DATA" in path.read_text(encoding="utf-8").split("[study]")[0]:
        request.getfixturevalue("data_folder")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_bounds_cite_a_source_and_are_not_read_off_the_file(path: Path, request: pytest.FixtureRequest) -> None:
    _needs(path, request)
    study, base = read_study(str(path), {})
    values = _values_of(study.file.data.kind, read_dataset(study, base))
    section = tomllib.loads(study.text)["data"]
    for number, (name, feature) in enumerate(section.get("features", {}).items()):
        assert feature.get("source"), f"{name} cites no source"
        if feature["type"] == "numeric":
            seen = values(name, number)
            for bound, end in ((feature["min"], seen.min()), (feature["max"], seen.max())):
                # a natural zero, a percentage, a code or a scale has its end by definition
                by_definition = bound in (0, 1, 100) or feature["source"].startswith("by definition")
                assert by_definition or f"{bound:.4g}" != f"{end:.4g}", f"{name}: bound {bound} is the file's own"
    if "range" in section and study.file.data.kind == "signals":
        seen = values("X", 0)
        for bound, end in zip(section["range"], (seen.min(), seen.max()), strict=True):
            assert bound in (0, 1) or f"{bound:.4g}" != f"{end:.4g}"


def _values_of(kind: str, source: Any) -> Callable[[str, int], NDArray[np.float64]]:
    """Return a function from a feature's name and place to all its values."""

    def of_table(name: str, _: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = source.frame[name].cast(pl.Float64, strict=False).drop_nulls().to_numpy()
        return found[np.isfinite(found)]

    def of_arrays(_: str, number: int) -> NDArray[np.float64]:
        x = arrays_of(source.path)["X"]
        found = x[..., number] if kind == "sequences" else x
        return found[np.isfinite(found)].astype(np.float64)

    return of_arrays if source.path.suffix == ".npz" else of_table
