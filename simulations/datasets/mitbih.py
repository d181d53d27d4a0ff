"""Healthcare: 11,668 heart beats (one lead, 128 samples at 180 Hz) of 22 patients, in four classes of beats.

MIT-BIH Arrhythmia Database (Moody & Mark 2001), training half of the inter-patient split of de Chazal et al. 2004,
from the folder of development data. Twenty-two patients are few: no model can keep a patient private and learn from
seven of them, whatever the number of beats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulations.datasets.base import Arrays, Dataset, arrays_of, development_file

_UNITS_PER_MV = 200  # of the database's converter


@dataclass(frozen=True, kw_only=True)
class Mitbih(Dataset):
    """`X` (11668, 128) in mV, the R peak in the middle; `y` N, S, V or F (AAMI classes); `unit` the patient."""

    def load(self) -> Arrays:
        found = arrays_of(development_file("mitbih_beats", "mitbih_beats.npz"))
        return {
            "X": found["X"].astype(np.float32) / _UNITS_PER_MV,
            "y": found["classes"][found["y"]],
            "unit": found["record"].astype(np.int64),
        }
