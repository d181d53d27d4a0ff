"""One image file: PNG and JPEG through Pillow, DICOM through pydicom (extra `medical`).

Guarantees: a file that is damaged, of another kind or unreasonably large is one sentence that names it.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.data.listed import EIGHT_BITS, SIXTEEN_BITS, shown
from strategies.errors import DataError

_PILLOW = (".png", ".jpg", ".jpeg")
_DICOM = ".dcm"
SUFFIXES = (*_PILLOW, _DICOM)
_MODES = {  # channels and bits a value
    "1": (1, 8),
    "L": (1, 8),
    "P": (3, 8),
    "RGB": (3, 8),
    "I": (1, 16),  # only PNG of 16 bits comes as this
}
_DAMAGE = (  # what the two libraries raise on files that are not sound
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_TAIL_BYTES = 1024
_LINEAR = Image.Resampling.BILINEAR  # Pillow widens the filter when it shrinks an image

Pixels = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the beginning of a file says about its pixels.

    Args:
        channels: 1 for grey, 3 for colour; palettes count as colour.
        bounds: of the values, where their type has some by itself.
        dtype: of what `pixels` returns: uint8, or float32.
    """

    channels: int
    bounds: tuple[float, float] | None
    dtype: type[np.generic]


def header(path: Path) -> Header:
    """Return what a file's beginning says.

    Raises:
        DataError: the file is missing, no image, too large, or of a kind that cannot be used.
    """
    with _readable(path):
        if path.suffix.lower() == _DICOM:
            return _dicom_header(_dicom(path, with_pixels=False), path)
        with _opened(path) as image:
            channels, bits = _kind(image, path)
    if bits == 8:
        return Header(channels=channels, bounds=EIGHT_BITS, dtype=np.uint8)
    return Header(channels=channels, bounds=SIXTEEN_BITS, dtype=np.float32)


def pixels(path: Path, bounds: tuple[float, ...] | None) -> Pixels:
    """Return (height, width, channels), upright; DICOM in rescaled units, bright where the tissue is.

    Args:
        path: the file.
        bounds: the study's range, about which an inverted DICOM is turned; None leaves it as it is.

    Raises:
        DataError: as in `header`, or the pixels cannot be decoded.
    """
    with _readable(path):
        if path.suffix.lower() == _DICOM:
            return _dicom_pixels(path, bounds)
        with _opened(path) as image:
            channels, bits = _kind(image, path)
            ImageOps.exif_transpose(image, in_place=True)
            if bits == 16:
                return _with_channels(np.asarray(image).astype(np.float32))
            return _with_channels(np.asarray(image.convert("L" if channels == 1 else "RGB")))


def resized(values: Pixels, height: int, width: int) -> Pixels:
    """Return the pixels in this size: linear between pixels, the mean of them where it becomes smaller."""
    if values.shape[:2] == (height, width):
        return values
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(values[:, :, number])).resize((width, height), _LINEAR))
        for number in range(values.shape[2])
    ]
    return np.stack(channels, axis=2)


def looks_whole(path: Path) -> bool:
    """Return whether the end of a file is where its format wants it: a cheap test for files that were cut short."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    if suffix in _PILLOW:
        return (b"IEND" if suffix == ".png" else b"\xff\xd9") in tail
    dataset = _dicom(path, with_pixels=False)
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
    return bool(not dataset.file_meta.TransferSyntaxUID.is_compressed and size >= bits / 8)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the libraries raise into one sentence; their warnings about odd files are nobody's business."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{shown(path)} is no image that can be read; allowed are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"there is no file {shown(path)}; correct the path")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large(path) from None
        except _DAMAGE as error:
            text = (str(error).splitlines() or [""])[0][:200].replace(str(path), path.name) or type(error).__name__
            raise DataError(f"{shown(path)} cannot be read ({text}); replace it or remove it") from None


def _too_large(path: Path) -> DataError:
    return DataError(f"{shown(path)} has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller")


def _opened(path: Path) -> Image.Image:
    return Image.open(path, formats=("PNG", "JPEG", "MPO"))


def _kind(image: Image.Image, path: Path) -> tuple[int, int]:
    kind = _MODES.get("I" if image.mode.startswith("I") else image.mode)
    if kind is None:
        raise DataError(
            f"{shown(path)} has the colour mode {image.mode}; images are grey or RGB: convert it (for example without "
            "its transparency)"
        )
    return kind


def _with_channels(values: Pixels) -> Pixels:
    return values if values.ndim == 3 else values[:, :, None]


# --- DICOM --------------------------------------------------------------------------------------------------


def _dicom(path: Path, *, with_pixels: bool) -> Any:
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise DataError(f"{shown(path)} is a DICOM file, which needs pydicom; pip install 'fedsilo[medical]'") from None
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=not with_pixels)
    except InvalidDicomError:
        raise DataError(f"{shown(path)} is no DICOM file; replace it or remove it") from None
    if dataset.Rows * dataset.Columns > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise _too_large(path)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DataError(
            f"{shown(path)} has {dataset.NumberOfFrames} frames; a record is one image: write each frame to a file"
        )
    return dataset


def _dicom_header(dataset: Any, path: Path) -> Header:
    from pydicom.pixels.decoders.base import get_decoder

    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not photometric.startswith("YBR"):
        raise DataError(f"{shown(path)} has the colours {photometric}; images are grey or RGB: convert it")
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise DataError(
            f"{shown(path)} is compressed as '{syntax.name}', which cannot be decoded here; decompress it (for example "
            "with gdcmconv --raw)"
        )
    plain = _rescale(dataset) == (1.0, 0.0) and "ModalityLUTSequence" not in dataset
    eight = plain and dataset.BitsAllocated == 8 and dataset.BitsStored == 8 and not dataset.PixelRepresentation
    return Header(
        channels=1 if photometric.startswith("MONOCHROME") else 3,
        bounds=EIGHT_BITS if eight else None,
        dtype=np.uint8 if eight and photometric != "MONOCHROME1" else np.float32,
    )


def _dicom_pixels(path: Path, bounds: tuple[float, ...] | None) -> Pixels:
    from pydicom.pixels.processing import apply_modality_lut

    dataset = _dicom(path, with_pixels=True)
    found = _dicom_header(dataset, path)
    values = dataset.pixel_array  # colours come as RGB
    if "ModalityLUTSequence" in dataset:
        values = apply_modality_lut(values, dataset)
    elif found.bounds is None:
        slope, intercept = _rescale(dataset)
        values = values * slope + intercept
    if bounds is not None and dataset.PhotometricInterpretation == "MONOCHROME1":
        values = sum(bounds) - values.astype(np.float64)
    return _with_channels(values.astype(found.dtype))


def _rescale(dataset: Any) -> tuple[float, float]:
    return float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
