"""Laws of texts: a record is a function of its own text and the public vocabulary; wrong data is one sentence.

Oracles: tokens worked by hand from UTF-8, the vocabulary itself (`test_tokens.py`) for the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import records, tables, text
from client.data.kinds import LOADERS, load
from client.data.records import Loaded
from client.models.base import MODELS, Shape
from strategies.errors import DataError, SettingError
from strategies.spec import Registries
from strategies.study import Study, override
from strategies.tokens import VOCABULARIES

STUDY = """[study]
name = "s"
task = "classification"
[data]
kind = "text"
classes = ["ham", "spam"]
shape = [4]
[model]
name = "text_transformer()"
[privacy]
noise_multiplier = 1.0
"""
OPEN = STUDY.replace("shape = [4]\n", "")
FRAME = pl.DataFrame(
    {
        "text": ["ab", "", None, "NA", 'a, "b"\nc'],
        "label": ["ham", "spam", "ham", "ham", "spam"],
        "person": ["p", "q", "p", "p", "q"],
        "sex": ["F", "M", None, "F", "x"],
    }
)
BY_HAND = [[98, 99, 0, 0], [0] * 4, [0] * 4, [79, 66, 0, 0], [98, 45, 33, 35]]


def study(text: str = STUDY, **changes: Any) -> Study:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return Study.parse(override(text, values), Registries(models=MODELS))


def load_text(folder: Path, frame: pl.DataFrame, agreed: Study, *, name: str = "t.csv", **more: Any) -> Loaded:
    if name.endswith(".csv"):
        frame.write_csv(folder / name)
    else:
        frame.write_parquet(folder / name)
    return text.load(folder / name, agreed, more.pop("rename", {}), folder / "scratch", **more)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_texts_by_hand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH_ROWS", 2)
    loaded = load_text(tmp_path, FRAME, study(), name=name)
    assert isinstance(loaded.x, torch.Tensor) and loaded.x.dtype == torch.int64
    assert loaded.x.tolist() == BY_HAND and loaded.y.tolist() == [0, 1, 0, 0, 1]
    assert list(loaded.keys) == [0, 1, 2, 3, 4] and tuple(loaded.x.shape[1:]) == Shape.of_study(study()).inputs
    assert loaded.notes == ("column 'text': 2 rows without a text; they count as empty texts",)
    assert load_text(tmp_path, FRAME[3:], study()).notes == ()


def test_units_groups_and_other_columns(tmp_path: Path) -> None:
    sex = {"sex": {"type": "categorical", "values": ["F", "M"]}}
    agreed = study(data__unit="person", data__text="note", data__features=sex, evaluation__groups=["sex"])
    loaded = load_text(tmp_path, FRAME.rename({"text": "Brief"}), agreed, rename={"Brief": "note"})
    assert list(loaded.keys) == FRAME["person"].to_list() and loaded.groups["sex"].tolist() == [0, 1, -1, 0, -1]
    whole = load(tmp_path / "t.csv", agreed, {"Brief": "note"}, tmp_path)
    assert whole.train.units + whole.held_out.units == 2


def test_other_tasks(tmp_path: Path) -> None:
    several = study(study__task="multilabel", data__classes=["one", "two"])
    frame = FRAME.with_columns(one=pl.Series([1, 0, 1, 0, 1]), two=pl.lit(0))
    assert load_text(tmp_path, frame, several).y.tolist() == [[1, 0], [0, 0], [1, 0], [0, 0], [1, 0]]
    value = study(STUDY.replace('classes = ["ham", "spam"]\n', ""), study__task="regression", data__target="one")
    assert load_text(tmp_path, frame, value).y.tolist() == [1, 0, 1, 0, 1]
    unread = load_text(tmp_path, FRAME.drop("label"), study(), labelled=False)
    assert unread.y.tolist() == [0] * 5 and unread.x.tolist() == BY_HAND and LOADERS["text"] is text.load


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), min_size=1, max_size=9),
    vocabulary=st.sampled_from(["bytes()", "words(size=50)"]),
)
def test_a_text_is_encoded_alone_and_disk_has_no_influence(
    texts: list[str], vocabulary: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, agreed = tmp_path_factory.mktemp("data"), study(data__vocabulary=vocabulary, data__shape=[6])
    frame = pl.DataFrame({"text": texts, "label": ["ham"] * len(texts)})
    rule = VOCABULARIES.resolve(vocabulary)
    expected = [(rule.encode(entry, 6) + [0] * 6)[:6] for entry in texts]
    with pytest.MonkeyPatch.context() as patch:
        assert load_text(folder, frame, agreed).x.tolist() == expected
        patch.setattr(records, "IN_MEMORY_BYTES", 30)
        patch.setattr(tables, "_BATCH_ROWS", 2)
        loaded = load_text(folder, frame, agreed, name="t.parquet")
    assert loaded.x[:].tolist() == expected and loaded.x[:].dtype == torch.int64
    assert isinstance(loaded.x, torch.Tensor) == (len(texts) == 1)
    assert loaded.x[torch.tensor([len(texts) - 1, 0])].tolist() == [expected[-1], expected[0]]


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (FRAME.rename({"text": "texts"}), "column 'text' is missing (1 of 2 columns are); did you mean 'texts'?"),
        (FRAME.rename({"label": "y"}), "column 'label' is missing"),
        (
            FRAME.with_columns(label=pl.lit("eggs")),
            "column 'label', row 1: 'eggs' is none of the study's classes ham, spam",
        ),
        (
            FRAME.with_columns(label=pl.Series(["ham"] * 4 + [None])),
            "target column 'label', row 5: the value is missing",
        ),
        (FRAME[:0], "has no rows"),
    ],
)
def test_wrong_texts_are_one_sentence(
    frame: pl.DataFrame, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BATCH_ROWS", 2)
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(DataError) as error:
            load_text(tmp_path, frame, study(), name=name)
        assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_study_without_a_shape(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.shape is missing"):
        load_text(tmp_path, FRAME, study(OPEN))


# --- what is read off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "vocabulary", "expected"),
    [
        ([3, 5], "bytes()", 8),
        ([10] * 19 + [500], "bytes()", 35),  # between the 19th and the 20th of 20: 10 + .05 * 490, rounded up
        ([2000] * 3, "bytes()", 512),
        ([2000] * 3, "words()", 256),
        ([20] * 40 + [2000], "words()", 20),
    ],
)
def test_the_shape_that_is_read_off(lengths: list[int], vocabulary: str, expected: int, tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["7" * length for length in lengths]})
    frame.write_csv(tmp_path / "t.csv")
    agreed = study(OPEN, data__vocabulary=vocabulary)
    assert text.read_off(tmp_path / "t.csv", agreed, tmp_path) == {"data.shape": [expected]}
    assert text.read_off(tmp_path / "t.csv", study(), tmp_path) == {}


def test_the_column_that_is_read_off(tmp_path: Path) -> None:
    frame = FRAME.rename({"text": "note"}).with_columns(code=pl.lit("x"), label=pl.lit("a very long label"))
    frame.write_csv(tmp_path / "t.csv")
    agreed = study(data__unit="person")
    assert text.read_off(tmp_path / "t.csv", agreed, tmp_path) == {"data.text": "note"}
    for settings in ({"data__text": "code"}, {"data__text": "what is not there"}):
        assert text.read_off(tmp_path / "t.csv", study(**settings), tmp_path) == {}
    assert text.read_off(tmp_path / "t.csv", study(data__target="code"), tmp_path) == {"data.text": "note"}
    FRAME.with_columns(note=pl.lit("a longer text than all")).write_csv(tmp_path / "t.csv")
    assert text.read_off(tmp_path / "t.csv", agreed, tmp_path) == {}
    FRAME.select("label").write_csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match="column 'text' is missing"):
        text.read_off(tmp_path / "t.csv", study(OPEN), tmp_path)


# --- real data ----------------------------------------------------------------------------------------------


def test_sms(data_folder: Path, tmp_path: Path) -> None:
    lines = (data_folder / "sms_spam" / "SMSSpamCollection").read_text(encoding="utf-8").split("\n")
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    frame = pl.DataFrame({"label": [pair[0] for pair in pairs], "sms": [pair[1] for pair in pairs]})
    frame.write_csv(tmp_path / "t.csv")
    agreed = study(OPEN, data__vocabulary="words()")
    found = text.read_off(tmp_path / "t.csv", agreed, tmp_path)
    assert found["data.text"] == "sms" and 30 <= found["data.shape"][0] <= 60
    loaded = load_text(tmp_path, frame, agreed.with_values(found, Registries(models=MODELS)))
    assert len(loaded.y) == 5574 and int(loaded.y.sum()) == 747  # PROVENANCE.md
    assert np.mean([(row == 0).any() for row in loaded.x]) > 0.9
