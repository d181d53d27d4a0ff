"""Healthcare: 4,000 stays in four kinds of intensive care, 48 hours of 37 measurements, and death in hospital.

PhysioNet/Computing in Cardiology challenge 2012, set A (Silva, Moody, Scott, Celi & Mark 2012), from the folder of
development data; 14 % died, the kinds of unit (CCU, CSRU, MICU, SICU) are natural silos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.datasets.base import Arrays, Dataset, arrays_of, development_file

_UNITS = {1: "CCU", 2: "CSRU", 3: "MICU", 4: "SICU"}


@dataclass(frozen=True, kw_only=True)
class Physionet2012(Dataset):
    """`X` (4000, 48, 39): one step an hour, the 37 measurements in the order of the study and age and sex (constant).

    Args:
        carry: whether the last measured value stands until the next one; otherwise an hour without is not measured.
    """

    carry: bool = True

    def load(self) -> Arrays:
        import polars as pl

        grid = arrays_of(development_file("physionet2012", "hourly48.npz"))
        stays = pl.read_csv(development_file("physionet2012", "stays.csv"), columns=["RecordID", "Age", "Gender"])
        numbers = pl.DataFrame({"RecordID": grid["RecordID"]}).join(stays, on="RecordID", how="left", validate="1:1")
        person = numbers.select(pl.col("Age", "Gender").cast(pl.Float32)).to_numpy()
        person[~np.isin(person[:, 1], (0, 1)), 1] = np.nan
        measured = grid["X"].astype(np.float32)
        measured = _carried(measured) if self.carry else measured
        constant = np.repeat(person[:, None, :], measured.shape[1], axis=1)
        return {
            "X": np.concatenate([measured, constant], axis=2),
            "y": grid["died"].astype(np.int64),
            "silo": np.array([_UNITS[int(code)] for code in grid["icu"]]),
        }


def _carried(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (stays, hours, channels) with each missing value replaced by the last one before it, if there is any."""
    out = values.copy()
    for hour in range(1, out.shape[1]):
        out[:, hour] = np.where(np.isnan(out[:, hour]), out[:, hour - 1], out[:, hour])
    return out
