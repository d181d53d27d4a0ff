"""Laws of images: a record is a function of its own file and of the study's range, memory does not grow with a folder,
every file that cannot be used is one sentence that names it.

Oracles: values worked by hand, Pillow and pydicom as writers, numpy's rotations, the weights of a triangle filter.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.data import images, kinds, records
from client.data.records import Loaded
from client.models.base import MODELS
from strategies.errors import DataError
from strategies.spec import Registries
from strategies.study import Study, override

R3 = math.sqrt(3)
STUDY = """[study]
name = "s"
task = "classification"
[data]
kind = "images"
shape = [2, 2, 1]
classes = ["no", "yes"]
[model]
name = "logistic()"
[privacy]
noise_multiplier = 1.0
"""
stored_or_packed = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])


def study(text: str = STUDY, **changes: object) -> Study:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return Study.parse(override(text, values), Registries(models=MODELS))


def without(*keys: str) -> str:
    return "\n".join(line for line in STUDY.splitlines() if line.split(" =")[0] not in keys)


def load(path: Path, agreed: Study, rename: dict[str, str] | None = None, **more: bool) -> Loaded:
    return images.load(path, agreed, rename or {}, path.parent / "scratch", **more)


def refusal(match: str) -> pytest.RaisesExc[DataError]:
    return pytest.raises(DataError, match=match)


def seen(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "all.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def grey(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint8))


def scale(values: object, low: float = 0, high: float = 255) -> np.ndarray:
    u = np.clip((np.asarray(values, dtype=float) - low) / (high - low), 0, 1)
    return R3 * (2 * u - 1)


def folder(tmp_path: Path, count: int = 6, size: tuple[int, int] = (2, 2), noise: bool = True) -> Path:
    draw = np.random.default_rng(0)
    for number in range(count):
        values = draw.integers(0, 256, size) if noise else np.full(size, number)
        place = tmp_path / "all" / ("yes" if number % 3 == 0 else "no")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(place / f"{number}.png")
    return tmp_path / "all"


# --- .npz ---------------------------------------------------------------------------------------------------


@stored_or_packed
def test_eight_bits_by_hand(tmp_path: Path, save: object) -> None:
    x = np.array([[[0, 255], [51, 204]], [[255, 0], [0, 0]]], dtype=np.uint8)
    save(tmp_path / "a.npz", X=x, y=np.array([1, 0]))  # type: ignore[operator]
    loaded = load(tmp_path / "a.npz", study(data__classes=[0, 1]))
    expected = R3 * np.array([[[[-1, 1], [-0.6, 0.6]]], [[[1, -1], [-1, -1]]]])
    assert isinstance(loaded.x, torch.Tensor) and loaded.x.dtype == torch.float32
    np.testing.assert_allclose(loaded.x.numpy(), expected, atol=1e-6)
    assert loaded.y.tolist() == [1, 0] and list(loaded.keys) == [0, 1] and loaded.notes == ()


def test_channels_come_first(tmp_path: Path) -> None:
    x = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    loaded = load(npz(tmp_path, X=x, y=["no", "yes"]), study(data__shape=[2, 2, 3]))
    assert loaded.x.shape == (2, 3, 2, 2)
    for row, height, width, channel in np.ndindex(x.shape):
        assert loaded.x[row, channel, height, width] == pytest.approx(scale(x[row, height, width, channel]), abs=1e-6)


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", ">i4"])
def test_other_types_need_a_range_and_are_clipped_to_it(tmp_path: Path, dtype: str) -> None:
    x = np.array([[[-1000, 0], [500, 3000]]], dtype=dtype)
    path = npz(tmp_path, X=x, y=["no"])
    found = load(path, study(data__range=[-500, 1500])).x[:]
    np.testing.assert_allclose(found.numpy()[0, 0], [[-R3, -R3 / 2], [0, R3]], atol=1e-6)
    with refusal(r"data.range is missing: all.npz .*range = \[0, 65535\]"):
        load(path, study())


def test_what_is_no_number_is_the_middle(tmp_path: Path) -> None:
    path = npz(tmp_path, X=np.array([[[np.nan, 1.0], [np.inf, -np.inf]]]), y=["no"])
    assert load(path, study(data__range=[0, 1])).x[0].flatten().tolist() == pytest.approx([0, R3, 0, 0])


def test_units_and_groups_of_arrays(tmp_path: Path) -> None:
    x = np.zeros((3, 2, 2), np.uint8)
    path = npz(tmp_path, X=x, y=["no", "yes", "no"], unit=["a", "b", "a"], sex=["F", "M", "X"])
    with refusal('all.npz says which unit .*unit = "unit"'):
        load(path, study())
    text = STUDY + '[data.features]\nsex = { type = "categorical", values = ["F", "M"] }\n'
    loaded = load(path, study(text, data__unit="unit", evaluation__groups=["sex"]))
    assert list(loaded.keys) == ["a", "b", "a"] and loaded.groups["sex"].tolist() == [0, 1, -1]
    with refusal("all.npz: column 'patient' is missing"):
        load(path, study(data__unit="patient"))


def test_a_part_of_a_simulation_keeps_its_row_numbers(tmp_path: Path) -> None:
    path = npz(tmp_path, X=np.zeros((2, 2, 2), np.uint8), y=["no", "maybe"], __row__=[7, 40])
    with refusal("all.npz: column 'y', row 41: 'maybe'"):
        load(path, study())
    path = npz(tmp_path, X=np.zeros((2, 2, 2), np.uint8), y=["no", "yes"], __row__=[7, 40])
    assert list(load(path, study()).keys) == [7, 40]


def test_the_tasks(tmp_path: Path) -> None:
    x = np.zeros((2, 2, 2), np.uint8)
    path = npz(tmp_path, X=x, y=[[0, 1, 1], [1, 0, 0]])
    loaded = load(path, study(study__task="multilabel", data__classes=["a", "b", "c"]))
    assert loaded.y.tolist() == [[0, 1, 1], [1, 0, 0]] and loaded.y.dtype == np.float32
    with refusal("array y of all.npz has 3 columns, and the study's task needs 2"):
        load(path, study(study__task="multilabel"))
    with refusal("has 3 columns, and the study's task needs 1"):
        load(path, study())
    age = study(without("classes"), study__task="regression", data__target="age")
    assert load(npz(tmp_path, X=x, age=[1.5, 70]), age).y.tolist() == [1.5, 70]
    assert load(npz(tmp_path, X=x, years=[1.5, 70]), age, {"years": "age"}).y.tolist() == [1.5, 70]
    one_column = load(npz(tmp_path, X=x, y=np.array([[1], [0]], np.uint8)), study(data__classes=[0, 1]))
    assert one_column.y.tolist() == [1, 0]


def test_without_labels(tmp_path: Path) -> None:
    loaded = load(npz(tmp_path, X=np.zeros((3, 2, 2), np.uint8)), study(), labelled=False)
    assert loaded.y.tolist() == [0, 0, 0] and loaded.x.shape == (3, 1, 2, 2) and list(loaded.keys) == [0, 1, 2]
    index = tmp_path / "index.csv"
    grey([[1, 2], [3, 4]]).save(tmp_path / "a.png")
    pl.DataFrame({"path": ["a.png"], "label": ["what"]}).write_csv(index)
    assert load(index, study(), labelled=False).y.tolist() == [0]


def test_wrong_arrays(tmp_path: Path) -> None:
    def refused(
        match: str, agreed: Study | None = None, rename: dict[str, str] | None = None, **arrays: object
    ) -> None:
        with refusal(match):
            load(npz(tmp_path, **arrays), agreed or study(), rename)

    x = np.zeros((1, 2, 2), np.uint8)
    refused(r"have shape \[2, 3, 1\] and the study says \[2, 2, 1\]; resize", X=np.zeros((1, 2, 3), np.uint8), y=["no"])
    refused(r"shape \[2, 2, 3\] and the study says \[2, 2, 1\]", X=np.zeros((1, 2, 2, 3), np.uint8), y=["no"])
    refused("has 2 dimensions; images are", X=np.zeros((1, 2), np.uint8), y=["no"])
    refused("X of all.npz has type complex128", X=np.zeros((1, 2, 2), complex), y=["no"])
    refused("all.npz has no array y to predict, only X, label", X=x, label=["no"])
    refused("all.npz has no array X, only y", y=["no"])
    refused("gives two arrays one name", rename={"a": "y"}, X=x, y=["no"], a=["no"])
    refused("without objects", X=x, y=np.array(["no"], dtype=object))
    with refusal("there is no file .*none.npz"):
        load(tmp_path / "none.npz", study())


@stored_or_packed
def test_a_damaged_npz(tmp_path: Path, save: object) -> None:
    draw = np.random.default_rng(0).integers(0, 256, (400, 20, 20)).astype(np.uint8)
    path = tmp_path / "a.npz"
    save(path, X=draw, y=["no"] * 400)  # type: ignore[operator]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with refusal("a.npz cannot be read"):
        load(path, study())
    path.write_bytes(content.replace(b"(400, 20, 20)", b"(900, 20, 20)") if save is np.savez else _spoilt(content))
    with refusal("a.npz cannot be read"):
        load(path, study())


def _spoilt(content: bytes) -> bytes:
    return content[:100] + bytes(255 - byte for byte in content[100:160]) + content[160:]


# --- folders and index tables -------------------------------------------------------------------------------


def test_a_folder_of_classes(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "no" / ".DS_Store").write_text("")
    (place / "yes" / "Thumbs.db").write_text("")
    (place / "README.txt").write_text("")
    frame = images.index(place, study())
    assert frame["path"].to_list() == [str(place / "no" / f"{n}.png") for n in (1, 2, 4, 5)] + [
        str(place / "yes" / f"{n}.png") for n in (0, 3)
    ]
    assert frame["label"].to_list() == ["no"] * 4 + ["yes"] * 2
    loaded = load(place, study())
    assert loaded.y.tolist() == [0, 0, 0, 0, 1, 1] and list(loaded.keys) == [0, 1, 2, 3, 4, 5]
    for row, name in enumerate(frame["path"]):
        np.testing.assert_allclose(loaded.x[row][0].numpy(), scale(seen(name)), atol=1e-6)
    assert images.index(place, study(data__target="finding")).columns == ["path", "finding"]
    assert load(place, study(data__target="finding")).y.tolist() == loaded.y.tolist()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_index_table(tmp_path: Path, suffix: str) -> None:
    place = folder(tmp_path)
    names = ["yes/0.png", "no/1.png", str(place / "yes" / "3.png")]
    frame = pl.DataFrame(
        {"file": names, "label": ["yes", "no", "yes"], "unit": ["7", "7", "8"], "sex": ["F", "M", "F"]}
    )
    (frame.write_csv if suffix == ".csv" else frame.write_parquet)(place / f"index{suffix}")
    agreed = study(data__unit="unit")
    loaded = load(place / f"index{suffix}", agreed, {"file": "path"})
    assert loaded.y.tolist() == [1, 0, 1] and list(loaded.keys) == ["7", "7", "8"]
    whole = load(place, study())
    assert torch.equal(loaded.x[:], whole.x[torch.tensor([4, 0, 5])])
    with refusal(f"index{suffix} has no column path"):
        images.index(place / f"index{suffix}", agreed)
    with refusal(f'index{suffix} says which unit .*unit = "unit"'):
        load(place / f"index{suffix}", study(), {"file": "path"})
    renamed = frame.rename({"file": "path"})
    (renamed.write_csv if suffix == ".csv" else renamed.write_parquet)(place / f"index{suffix}")
    found = images.index(place / f"index{suffix}", agreed)
    assert found.columns == ["path", "label", "unit", "sex"] and found["path"][1] == str(place / "no" / "1.png")


def test_tasks_of_index_tables(tmp_path: Path) -> None:
    grey([[1, 2], [3, 4]]).save(tmp_path / "a.png")
    index = tmp_path / "index.csv"
    index.write_text("path,oedema,effusion,age\na.png,1,0,61.5\n")
    loaded = load(index, study(study__task="multilabel", data__classes=["effusion", "oedema"]))
    assert loaded.y.tolist() == [[0, 1]]
    assert load(index, study(without("classes"), study__task="regression", data__target="age")).y.tolist() == [61.5]
    with refusal("index.csv: column 'label' is missing"):
        load(index, study())


def test_a_unit_is_on_one_side(tmp_path: Path) -> None:
    place = folder(tmp_path, count=40)
    frame = images.index(place, study()).with_columns(pl.Series("unit", [str(n % 10) for n in range(40)]))
    frame.write_parquet(place / "index.parquet")
    whole = kinds.load(place / "index.parquet", study(data__unit="unit", data__test_share=0.4), {}, tmp_path)
    assert len(whole.train.x) + len(whole.held_out.x) == 40
    assert whole.train.units + whole.held_out.units == 10 and 0 < whole.held_out.units < 10


@pytest.mark.parametrize("name", ["ä ö.png", "a\nb.png", "'; drop--.PNG", "%s{}.png", "図.png"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "all" / "yes").mkdir(parents=True)
    path = tmp_path / "all" / "yes" / name
    grey([[0, 0], [0, 255]]).save(path)
    assert load(tmp_path / "all", study()).x[0, 0, 1, 1] == pytest.approx(R3)
    images.index(tmp_path / "all", study()).write_csv(tmp_path / "index.csv")
    assert load(tmp_path / "index.csv", study()).x[0, 0, 1, 1] == pytest.approx(R3)
    path.write_text("no image")
    with pytest.raises(DataError) as caught:
        load(tmp_path / "all", study())
    assert str(caught.value).isprintable() and "cannot be read" in str(caught.value)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "all" / "yes").mkdir(parents=True)
    grey([[0, 0], [0, 0]]).save(tmp_path / "all" / "yes" / os.fsdecode(b"\xff.png"), "PNG")
    with refusal(r"a file of all has a name that is no UTF-8 \('.*udcff.png'\); rename it"):
        load(tmp_path / "all", study())


# --- what Pillow reads --------------------------------------------------------------------------------------


def one(tmp_path: Path, image: Image.Image | bytes, name: str = "a.png", **more: object) -> Path:
    path = tmp_path / "one" / "yes" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save(path, **more)  # type: ignore[arg-type]
    return tmp_path / "one"


def test_kinds_of_grey(tmp_path: Path) -> None:
    bits = grey([[0, 255], [255, 0]])
    plain = load(one(tmp_path, bits), study()).x[:]
    assert torch.equal(load(one(tmp_path, bits.convert("1")), study()).x[:], plain)
    deep = Image.fromarray(np.array([[0, 65535], [13107, 52428]], dtype=np.uint16))
    place = one(tmp_path, deep)
    with refusal(r"data.range is missing: yes/a.png does not have values of 8 bits"):
        load(place, study())
    found = load(place, study(data__range=[0, 65535])).x[0, 0].numpy()
    np.testing.assert_allclose(found, R3 * np.array([[-1, 1], [-0.6, 0.6]]), atol=1e-6)


def test_colour_and_palette(tmp_path: Path) -> None:
    values = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    colour = Image.fromarray(values)
    plain = load(one(tmp_path, colour), study(data__shape=[2, 2, 3])).x[:]
    np.testing.assert_allclose(plain.numpy()[0], scale(values.transpose(2, 0, 1)), atol=1e-6)
    palette = colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert palette.mode == "P"
    assert torch.equal(load(one(tmp_path, palette), study(data__shape=[2, 2, 3])).x[:], plain)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_what_pillow_reads(tmp_path: Path, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    place = one(tmp_path, Image.fromarray(values).convert(mode), "a.JPG", format="JPEG", quality=80)
    channels = 1 if mode == "L" else 3
    found = load(place, study(data__shape=[9, 7, channels])).x[0].numpy()
    values = seen(place / "yes" / "a.JPG").reshape(9, 7, channels)
    np.testing.assert_allclose(found, scale(values.transpose(2, 0, 1)), atol=1e-6)


def test_wrong_channels(tmp_path: Path) -> None:
    def refused(image: Image.Image, match: str, **more: object) -> None:
        with refusal(match):
            load(one(tmp_path, image, **more), study())  # type: ignore[arg-type]

    four = grey([[1, 2], [3, 4]])
    refused(four.convert("RGB"), "yes/a.png has 3 channels and the study says 1; convert it")
    refused(four.convert("P"), "yes/a.png has 3 channels and the study says 1")
    refused(four.convert("RGBA"), "yes/a.png has the colour mode RGBA; images are grey or RGB")
    refused(four.convert("LA"), "colour mode LA")
    with refusal("yes/a.png has 1 channels and the study says 3"):
        load(one(tmp_path, four), study(data__shape=[2, 2, 3]))
    refused(four.convert("CMYK"), "yes/0.jpg has the colour mode CMYK", name="0.jpg")


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation(tmp_path: Path, orientation: int, turns: int) -> None:
    values = np.array([[0, 50, 100], [150, 200, 250]], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.rot90(values, turns)  # EXIF 2.32, tag 274: 6 is turned a quarter clockwise to be seen upright
    place = one(tmp_path, Image.fromarray(values), exif=exif)
    found = load(place, study(data__shape=[*upright.shape, 1])).x[0, 0].numpy()
    np.testing.assert_allclose(found, scale(upright), atol=1e-6)
    assert images.read_off(place, study(without("shape")), tmp_path)["data.shape"] == [*upright.shape, 1]


def test_resizing_by_hand(tmp_path: Path) -> None:
    line = np.random.default_rng(1).integers(0, 256, 16).astype(float)
    # halved, a triangle filter of width 2 gives the source pixels around an output pixel the weights 1 3 3 1 / 8
    inside = [(line[2 * i - 1] + 3 * line[2 * i] + 3 * line[2 * i + 1] + line[2 * i + 2]) / 8 for i in range(1, 7)]
    eight = Image.fromarray(np.tile(line.astype(np.uint8), (16, 1)))
    found = load(one(tmp_path, eight), study(data__shape=[8, 8, 1])).x[0, 0, :, 1:7].numpy()
    np.testing.assert_allclose(found, np.tile(scale(inside), (8, 1)), atol=R3 / 255 + 1e-6)  # rounded to 8 bits
    deep = Image.fromarray(np.tile((line * 256).astype(np.uint16), (16, 1)))
    found = load(one(tmp_path, deep), study(data__shape=[8, 8, 1], data__range=[0, 65280])).x[0, 0, :, 1:7].numpy()
    np.testing.assert_allclose(found, np.tile(scale(inside), (8, 1)), atol=1e-5)
    colour = Image.merge("RGB", [grey([[v]]).resize((5, 3)) for v in (0, 51, 255)])
    found = load(one(tmp_path, colour), study(data__shape=[4, 9, 3])).x[0].numpy()
    np.testing.assert_allclose(found, np.broadcast_to(scale([0, 51, 255])[:, None, None], (3, 4, 9)), atol=1e-6)


def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, place: Path) -> None:
        with refusal(match):
            load(place, study())

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))
    whole = (one(tmp_path, noise) / "yes" / "a.png").read_bytes()
    refused("yes/a.png cannot be read", one(tmp_path, whole[:2000]))
    refused("yes/a.png cannot be read", one(tmp_path, b""))
    refused("yes/a.png cannot be read", one(tmp_path, whole[:700] + bytes(20) + whole[720:]))
    refused(r"yes/a.tif is no image that can be read; allowed are .png, .jpg", one(tmp_path, b"II*\0", "a.tif"))
    (tmp_path / "one" / "yes" / "a.tif").unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    refused("yes/a.png has more than 4000 pixels", one(tmp_path, whole))  # up to twice as many Pillow only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused("yes/a.png has more than 1000 pixels", one(tmp_path, whole))


def test_folders_and_tables_that_cannot_be_used(tmp_path: Path) -> None:
    def refused(match: str, place: Path, agreed: Study | None = None) -> None:
        with refusal(match):
            load(place, agreed or study())

    (tmp_path / "empty" / "yes").mkdir(parents=True)
    refused("empty holds no images; it needs one sub-folder a class", tmp_path / "empty")
    place = folder(tmp_path)
    refused("all/yes.0.png|yes/0.png has the label 'yes', which is none of", place, study(data__classes=["no", "YES"]))
    refused("all: column 'patient' is missing", place, study(data__unit="patient"))
    refused("all: column 'a' is missing", place, study(study__task="multilabel", data__classes=["a", "b"]))
    grey([[1]]).save(place / "x.png")
    refused("all/x.png lies in no sub-folder", place)
    (place / "x.png").unlink()
    (place / "yes" / "deep").mkdir()
    refused("yes/deep is a folder in a class's folder", place)
    index = tmp_path / "index.csv"
    for text, match in (
        ("path,label\nall/yes/0.png,yes\nall/gone.png,no\n", "there is no file all/gone.png"),
        ("path,label\nall/yes/0.png,yes\nall/no/1.png,maybe\n", "no/1.png has the label 'maybe', which is none of"),
        ("path,label\nall/yes/0.png,yes\nall/no/1.png,\n", "no/1.png has the label '', which is none of the"),
        ("path,label\n,yes\n", "index.csv, row 1: no path"),
        ("label\nyes\n", "index.csv has no column path"),
    ):
        index.write_text(text)
        refused(match, index)
    pl.DataFrame({"path": [1], "label": ["yes"]}).write_parquet(tmp_path / "i.parquet")
    refused("column 'path' of i.parquet has type Int64", tmp_path / "i.parquet")
    refused("is neither .csv nor .parquet", one(tmp_path, grey([[1]])) / "yes" / "a.png")
    refused("there is no file", tmp_path / "gone")


# --- DICOM --------------------------------------------------------------------------------------------------


def dicom(path: Path, values: np.ndarray, **changes: object) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    frames = changes.get("NumberOfFrames", 1)
    shape = values.shape[1:] if frames != 1 else values.shape
    data.Rows, data.Columns = shape[:2]
    data.SamplesPerPixel = 3 if len(shape) == 3 else 1
    data.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = values.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    syntax = changes.pop("syntax", None)
    for name, value in changes.items():
        setattr(data, name, value)
    if syntax == RLELossless:
        data.compress(RLELossless)
    elif syntax is not None:
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = pydicom.encaps.encapsulate([values.tobytes()])
        data["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path.parent.parent


HOUNSFIELD = np.array([[0, 1024], [1524, 4000]], dtype=np.int16)  # rescaled: -1024, 0, 500, 2976
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.parametrize("syntax", [None, RLELossless], ids=["plain", "RLE"])
def test_a_window_in_rescaled_units(tmp_path: Path, syntax: object) -> None:
    place = dicom(tmp_path / "ct" / "yes" / "a.dcm", HOUNSFIELD, syntax=syntax, **CT)
    found = load(place, study(data__range=[-1000, 1000])).x[0, 0].numpy()
    np.testing.assert_allclose(found, R3 * np.array([[-1, 0], [0.5, 1]]), atol=1e-6)
    with refusal("data.range is missing: yes/a.dcm .* window of a DICOM"):
        load(place, study())


def test_slope(tmp_path: Path) -> None:
    place = dicom(tmp_path / "ct" / "yes" / "a.dcm", np.array([[0, 2], [4, 6]], np.uint16), RescaleSlope=0.5)
    found = load(place, study(data__range=[0, 3])).x[0, 0].numpy()
    np.testing.assert_allclose(found, R3 * np.array([[-1, -1 / 3], [1 / 3, 1]]), atol=1e-6)


@pytest.mark.parametrize(("bounds", "changes"), [([-1000, 1000], CT), ([-50, 450], CT)])
def test_inverted_grey(tmp_path: Path, bounds: list[float], changes: dict[str, object]) -> None:
    plain = load(dicom(tmp_path / "1" / "yes" / "a.dcm", HOUNSFIELD, **changes), study(data__range=bounds)).x[:]
    inverted = dicom(tmp_path / "2" / "yes" / "a.dcm", HOUNSFIELD, PhotometricInterpretation="MONOCHROME1", **changes)
    np.testing.assert_allclose(load(inverted, study(data__range=bounds)).x.numpy(), -plain.numpy(), atol=1e-6)


def test_eight_bits_of_dicom_need_no_range(tmp_path: Path) -> None:
    values = np.array([[0, 255], [51, 204]], dtype=np.uint8)
    plain = load(dicom(tmp_path / "1" / "yes" / "a.dcm", values), study()).x[0, 0].numpy()
    np.testing.assert_allclose(plain, scale(values), atol=1e-6)
    inverted = dicom(tmp_path / "2" / "yes" / "a.dcm", values, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(load(inverted, study()).x[0, 0].numpy(), -plain, atol=1e-6)
    twelve = dicom(tmp_path / "3" / "yes" / "a.dcm", values, BitsStored=7, HighBit=6)
    with refusal("data.range is missing"):
        load(twelve, study())


def test_colours_of_dicom(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 2, 3)).astype(np.uint8)
    agreed = study(data__shape=[2, 2, 3])
    plain = load(dicom(tmp_path / "1" / "yes" / "a.dcm", values), agreed).x[0].numpy()
    np.testing.assert_allclose(plain, scale(values.transpose(2, 0, 1)), atol=1e-6)
    other = np.asarray(Image.fromarray(values).convert("YCbCr"))
    place = dicom(tmp_path / "2" / "yes" / "a.dcm", other, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(load(place, agreed).x[0].numpy(), plain, atol=2 * R3 * 3 / 255)  # two roundings
    with refusal("a.dcm has 3 channels and the study says 1"):
        load(place, study())


def test_dicom_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, values: np.ndarray = HOUNSFIELD, **changes: object) -> None:
        path = tmp_path / "d" / "yes" / "a.dcm"
        with refusal(match):
            load(dicom(path, values, **changes), study(data__range=[0, 1]))

    refused("a.dcm has 2 frames; a record is one image", np.zeros((2, 2, 2), np.uint8), NumberOfFrames=2)
    refused("a.dcm has the colours PALETTE COLOR", PhotometricInterpretation="PALETTE COLOR")
    refused("a.dcm is compressed as 'JPEG-LS Lossless.*cannot be decoded here", syntax=JPEGLSLossless)
    refused("a.dcm is compressed as 'MPEG2 Main.*cannot be decoded here", syntax=MPEG2MPML)
    refused("a.dcm cannot be read", PixelData=b"\0\0")
    place = one(tmp_path, b"no DICOM at all" * 20, "a.dcm")
    with refusal("yes/a.dcm is no DICOM file"):
        load(place, study())
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
        refused("a.dcm has more than 3 pixels")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(r"a.dcm is a DICOM file, which needs pydicom; pip install 'fedsilo\[medical\]'")


def test_a_dicom_that_was_cut_short_is_found_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 0)
    values = np.zeros((64, 64), np.int16)
    place = dicom(tmp_path / "d" / "yes" / "a.dcm", values)
    file = place / "yes" / "a.dcm"
    agreed = study(data__range=[0, 1], data__shape=[99, 99, 1])
    assert not isinstance(load(place, agreed).x, torch.Tensor)
    file.write_bytes(file.read_bytes()[:-4000])
    with refusal("yes/a.dcm cannot be read"):
        load(place, agreed)


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["files", "colours", "deep"])
@pytest.mark.parametrize("noise", [True, False], ids=["kept in a file", "decoded when asked for"])
def test_the_three_ways_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: bool, kind: str) -> None:
    place = folder(tmp_path, count=9, size=(40, 40), noise=noise)
    agreed = study(data__shape=[36, 36, 3 if kind == "colours" else 1], data__range=[0, 300])
    for path in place.rglob("*.png"):
        values = seen(path)
        if kind == "colours":
            Image.fromarray(values).convert("RGB").rotate(30).save(path)
        elif kind == "deep":
            Image.fromarray(values.astype(np.uint16) * 3).save(path)
    small = load(place, agreed).x
    size = 9 * 36 * 36 * (3 if kind == "colours" else 1)
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", size)  # of the pixels, not of the numbers that they become
    middle = load(place, agreed).x
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 100)
    large = load(place, agreed).x
    assert isinstance(small, torch.Tensor) and not isinstance(middle, torch.Tensor)
    assert not isinstance(large, torch.Tensor) and large.shape == small.shape
    rows = torch.tensor([8, 0, 3, 3])
    for other in (middle, large):
        for _ in range(2):
            assert torch.equal(other[rows], small[rows]) and torch.equal(other[2:5], small[2:5])
        assert torch.equal(other[:], small) and other[[]].shape == (0, *small.shape[1:])


def test_only_what_is_larger_than_its_files_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 100)
    kept, lazy = folder(tmp_path / "1", size=(40, 40)), folder(tmp_path / "2", size=(40, 40), noise=False)
    x = {place: load(place, study(data__shape=[40, 40, 1])).x for place in (kept, lazy)}
    for place in (kept, lazy):
        for path in place.rglob("*.png"):
            path.unlink()
    assert x[kept][:].shape == (6, 1, 40, 40)
    with refusal("there is no file yes/0.png"):
        x[lazy][torch.tensor([4])]


def test_a_file_that_changes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 100)
    place = folder(tmp_path, size=(40, 40), noise=False)
    x = load(place, study(data__shape=[40, 40, 1])).x
    path = place / "yes" / "0.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)
    with refusal("yes/0.png changed while it was in use"):
        x[4:5]
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(path)
    with refusal("yes/0.png changed while it was in use"):
        x[4:5]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damage_is_found_at_load_even_if_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 100)
    smooth = Image.linear_gradient("L").resize((300, 300))
    place = one(tmp_path, smooth, f"a.{suffix}")
    file = place / "yes" / f"a.{suffix}"
    agreed = study(data__shape=[300, 300, 1])
    assert load(place, agreed).x.shape == (1, 1, 300, 300)
    whole = file.read_bytes()
    file.write_bytes(whole + bytes(5000))  # some programs leave something behind the end
    assert load(place, agreed).x[:].shape == (1, 1, 300, 300)
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with refusal(f"yes/a.{suffix} cannot be read"):
        load(place, agreed)


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from client.data import images
from client.models.base import MODELS
from strategies.spec import Registries
from strategies.study import Study
study = Study.parse(Path(sys.argv[1]).read_text(), Registries(models=MODELS))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loaded = images.load(Path(sys.argv[2]), study, {}, Path(sys.argv[3]))
draw, total = np.random.default_rng(0), 0.0
for _ in range(20):
    total += float(loaded.x[torch.from_numpy(draw.integers(0, len(loaded.y), 64))].sum())
assert np.isfinite(total) and not isinstance(loaded.x, torch.Tensor)
print(loaded.x.shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_two_gigabytes_in_little_memory(tmp_path: Path) -> None:
    place = folder(tmp_path, count=200, size=(112, 112), noise=False)
    frame = images.index(place, study())
    pl.concat([frame] * 200).write_parquet(tmp_path / "index.parquet")
    (tmp_path / "study.toml").write_text(study(data__shape=[112, 112, 1]).text)
    arguments = [tmp_path / "study.toml", tmp_path / "index.parquet", tmp_path / "scratch"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    shape, growth_kib = done.stdout.rsplit(maxsplit=1)
    assert shape == "(40000, 1, 112, 112)"  # 2.0 GB of float32
    assert int(growth_kib) < 300 * 1024


# --- what a simulation reads off ----------------------------------------------------------------------------


def test_read_off_arrays(tmp_path: Path) -> None:
    def found(x: np.ndarray, text: str = without("shape"), **changes: object) -> dict[str, object]:
        return images.read_off(npz(tmp_path, X=x, y=np.zeros(len(x))), study(text, **changes), tmp_path)

    eight = np.full((3, 4, 5), 9, dtype=np.uint8)
    assert found(eight) == {"data.shape": [4, 5, 1], "data.range": [0.0, 255.0]}
    assert found(np.stack([eight] * 3, axis=3))["data.shape"] == [4, 5, 3]
    assert found(eight.astype(np.uint16)) == {"data.shape": [4, 5, 1], "data.range": [0.0, 65535.0]}
    values = eight.astype(float)
    values[1, 1, 1], values[2, 2, 2], values[0, 0, 0], values[0, 0, 1] = -4.5, 70, np.nan, np.inf
    assert found(values)["data.range"] == [-4.5, 70.0]
    assert found(np.full((1, 2, 2), 3.0))["data.range"] == [3.0, 4.0]
    assert found(eight, STUDY) == {"data.range": [0.0, 255.0]}
    assert found(eight, data__range=[0, 1]) == {"data.shape": [4, 5, 1]}
    assert found(eight, STUDY, data__range=[0, 1]) == {}
    with refusal("all.npz has no value that is a finite number"):
        found(np.full((1, 2, 2), np.nan))


def test_read_off_files(tmp_path: Path) -> None:
    open_study = study(without("shape"))
    place = folder(tmp_path, size=(3, 5))
    assert images.read_off(place, open_study, tmp_path) == {"data.shape": [3, 5, 1], "data.range": [0.0, 255.0]}
    assert images.read_off(place, study(data__range=[0, 9]), tmp_path) == {}
    images.index(place, open_study).write_csv(tmp_path / "index.csv")
    assert images.read_off(tmp_path / "index.csv", open_study, tmp_path)["data.shape"] == [3, 5, 1]
    Image.fromarray(np.ones((2, 2), np.uint16)).save(place / "yes" / "x.png")
    assert images.read_off(place, open_study, tmp_path)["data.range"] == [0.0, 65535.0]
    ct = dicom(tmp_path / "ct" / "yes" / "a.dcm", HOUNSFIELD, **CT)
    dicom(tmp_path / "ct" / "yes" / "b.dcm", HOUNSFIELD[:1], PhotometricInterpretation="MONOCHROME1", **CT)
    assert images.read_off(ct, open_study, tmp_path) == {"data.shape": [2, 2, 1], "data.range": [-1024.0, 2976.0]}


# --- real data ----------------------------------------------------------------------------------------------


def test_real_radiographs_as_arrays_and_as_files(tmp_path: Path, data_folder: Path) -> None:
    with np.load(data_folder / "pneumoniamnist" / "pneumoniamnist.npz") as arrays:
        x, y = arrays["val_images"], arrays["val_labels"]
    agreed = study(data__shape=[28, 28, 1], data__classes=[0, 1])
    whole = kinds.load(npz(tmp_path, X=x, y=y), agreed, {}, tmp_path)
    assert whole.train.x.shape[1:] == (1, 28, 28) and len(whole.train.y) + len(whole.held_out.y) == 524
    assert float(torch.cat([whole.train.y, whole.held_out.y]).float().mean()) == pytest.approx(0.742, abs=5e-4)
    for number in range(60):
        place = tmp_path / "files" / str(y[number, 0])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[number]).save(place / f"{number:03}.png")
    loaded = load(tmp_path / "files", agreed)
    order = np.argsort(y[:60, 0], kind="stable")
    np.testing.assert_allclose(loaded.x.numpy()[:, 0], scale(x[order]), atol=1e-6)
    assert loaded.y.tolist() == y[order, 0].tolist()


def test_inputs_have_the_usual_strides(tmp_path: Path) -> None:
    """Found: an axis of length one may have any stride, and torch takes stride 1 for another memory order."""
    file = npz(tmp_path, X=np.zeros((5, 6, 7), np.uint8), y=np.arange(5) % 2)
    assert load(file, study(data__shape=[6, 7, 1], data__classes=[0, 1])).x.stride() == (42, 42, 7, 1)
