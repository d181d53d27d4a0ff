"""Synthetic (healthcare): 12,000 heart beats of 6,000 patients in four hospitals, 30 % of them abnormal.

Beats are sums of bell curves for the P, Q, R, S and T waves, with the places, widths and heights of McSharry, Clifford,
Tarassenko & Smith 2003 ("A dynamical model for generating synthetic electrocardiogram signals", table 1) as the mean;
no real patient is behind them.

Each patient has an own morphology (heights, widths, position of the T wave, electrical axis), each hospital an own
amplifier gain and noise. An abnormal beat starts in the ventricle: the QRS is wider, the T wave turns against it and P
is weak; how much, varies, and some patients have wide QRS or flat P waves all their life, so no one sign decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.datasets.base import Arrays, Dataset
from strategies.spec import require

SAMPLES, HOSPITALS = 128, 4
_SECONDS = np.linspace(-0.35, 0.53, SAMPLES)  # around the R peak
_PLACE = np.array([-0.20, -0.042, 0.0, 0.042, 0.28])  # s, of P, Q, R, S, T
_WIDTH = np.array([0.035, 0.014, 0.014, 0.014, 0.060])  # s
_HEIGHT = np.array([0.12, -0.10, 1.0, -0.20, 0.25])  # mV


@dataclass(frozen=True, kw_only=True)
class Ecg(Dataset):
    """`X` (n, 128) in mV, `y` normal or abnormal, `unit` the patient, `silo` the hospital.

    Args:
        patients: number of them.
        beats: of each patient.
        seed: of the records; the same seed gives the same records.
    """

    patients: int = 6000
    beats: int = 2
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.patients >= 20, "ecg.patients", self.patients, "at least 20")
        require(self.beats >= 1, "ecg.beats", self.beats, "at least 1")

    def load(self) -> Arrays:
        random = np.random.default_rng([self.seed, 102])
        unit = np.repeat(np.arange(self.patients), self.beats)
        hospital = random.integers(HOSPITALS, size=self.patients)
        ill = random.beta(0.6, 1.4, self.patients)  # share of the patient's beats that are abnormal
        abnormal = random.random(len(unit)) < ill[unit]
        place, width, height = (own[unit] for own in _morphology(random, self.patients))
        strength = np.where(abnormal, random.beta(2.0, 2.0, len(unit)), 0.0)[:, None]
        place, width, height = _ventricular(place, width, height, strength)
        beat = _waves(place, width, height)
        gain, noise = np.array([1.0, 0.8, 1.15, 0.9])[hospital], np.array([0.03, 0.05, 0.04, 0.07])[hospital]
        beat = beat * gain[unit, None] + _disturbance(random, len(unit), noise[unit])
        return {
            "X": beat.astype(np.float32),
            "y": np.where(abnormal, "abnormal", "normal"),
            "unit": unit,
            "silo": np.array([f"hospital{number + 1}" for number in hospital])[unit],
        }


Waves = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _morphology(random: np.random.Generator, patients: int) -> Waves:
    """Return places, widths and heights of the five waves of each patient, each (patients, 5)."""
    place = _PLACE + random.normal(0, [0.015, 0.004, 0.0, 0.004, 0.025], (patients, 5))
    width = _WIDTH * np.exp(random.normal(0, [0.2, 0.2, 0.2, 0.2, 0.25], (patients, 5)))
    height = _HEIGHT * np.exp(random.normal(0, [0.5, 0.5, 0.3, 0.5, 0.5], (patients, 5)))
    slow = random.random(patients) < 0.12  # a bundle branch that conducts slowly all the time
    width[slow, 1:4] *= 1.7
    place[slow, 3] += 0.03
    height[random.random(patients) < 0.15, 4] *= -0.6  # T against QRS, for another reason
    height[random.random(patients) < 0.12, 0] *= 0.1  # P too flat to be seen
    return place, width, height


def _ventricular(
    place: NDArray[np.float64], width: NDArray[np.float64], height: NDArray[np.float64], strength: NDArray[np.float64]
) -> Waves:
    """Return waves changed by a start in the ventricle; strength (rows, 1) in 0 (none) to 1."""
    wider = 1 + 1.6 * strength * np.array([0, 1, 1, 1, 0.2])
    taller = 1 + strength * np.array([-0.9, 0.3, 0.15, 0.8, -1.5])
    return place + strength * np.array([0, -0.02, 0, 0.035, 0.02]), width * wider, height * taller


def _waves(place: NDArray[np.float64], width: NDArray[np.float64], height: NDArray[np.float64]) -> NDArray[np.float64]:
    beat = np.zeros((len(place), SAMPLES))
    for wave in range(place.shape[1]):
        away = (_SECONDS - place[:, wave, None]) / width[:, wave, None]
        beat += height[:, wave, None] * np.exp(-0.5 * away**2)
    return beat


def _disturbance(random: np.random.Generator, rows: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return breathing (a slow swing) and muscle and amplifier noise, (rows, samples)."""
    phase, swing = random.uniform(0, 2 * np.pi, (rows, 1)), random.normal(0, 0.08, (rows, 1))
    return swing * np.sin(2 * np.pi * 0.3 * _SECONDS + phase) + noise[:, None] * random.normal(size=(rows, SAMPLES))
