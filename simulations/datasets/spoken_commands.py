"""Synthetic (healthcare): 9,000 spoken commands of 3,000 people in four hospitals, six words said to a device.

Recordings are drawn as energies of twelve frequency bands every 20 ms, from a model made up for this project; vowels
stand where Peterson & Barney 1952 ("Control methods used in a study of the vowels", table II) measured them. No real
voice is behind them.

The words are three pairs of the same sounds in another order: no and on, left and felt, stop and spot. So which sounds
occur, and how loud each band is over the whole word, tells the pair and not the word; the order in time does. Each
person has a vocal tract of own length, which moves all resonances, a pace, and an own way of each sound; words begin at
any moment. Hospitals differ in the noise of their rooms and in how their microphones colour a voice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.datasets.base import Arrays, Dataset
from strategies.spec import require

FRAMES, BANDS, HOSPITALS = 40, 12, 4
WORDS = {"no": "n o", "on": "o n", "left": "l e f t", "felt": "f e l t", "stop": "s t o p", "spot": "s p o t"}
_EDGES = np.geomspace(150, 7000, BANDS)  # Hz, middle of each band
_RESONANCES: dict[str, tuple[tuple[float, ...], float]] = {  # Hz (of noises the middle), and how loud the sound is
    "o": ((570, 840, 2410), 1.0),
    "e": ((530, 1840, 2480), 1.0),
    "n": ((260, 1100, 2300), 0.6),
    "l": ((360, 1150, 2700), 0.7),
    "s": ((5500,), 1.0),
    "f": ((3500,), 0.5),
    "t": ((4200,), 0.8),
    "p": ((900,), 0.6),
}
_SECONDS = {"o": 0.16, "e": 0.13, "n": 0.10, "l": 0.09, "s": 0.12, "f": 0.10, "t": 0.06, "p": 0.06}
_FRAME_S = 0.02
Energies = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SpokenCommands(Dataset):
    """`X` (n, 40, 12) logarithms of energies, `y` the word, `unit` the speaker, `silo` the hospital.

    Args:
        speakers: number of them.
        words: that each says.
        seed: of the records; the same seed gives the same records.
    """

    speakers: int = 3000
    words: int = 3
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.speakers >= 20, "spoken_commands.speakers", self.speakers, "at least 20")
        require(self.words >= 1, "spoken_commands.words", self.words, "at least 1")

    def load(self) -> Arrays:
        random = np.random.default_rng([self.seed, 106])
        unit = np.repeat(np.arange(self.speakers), self.words)
        hospital = random.integers(HOSPITALS, size=self.speakers)
        colour = random.normal(0, 0.3, (HOSPITALS, BANDS))
        names = list(WORDS)
        said = random.integers(len(names), size=len(unit))
        x = np.empty((len(unit), FRAMES, BANDS))
        for speaker in range(self.speakers):
            sounds = _voice(random)
            for row in range(speaker * self.words, (speaker + 1) * self.words):
                x[row] = _utterance(random, WORDS[names[said[row]]].split(), sounds)
        room = np.array([0.06, 0.10, 0.16, 0.08])[hospital[unit], None, None]
        x = np.log(x + room * random.gamma(1.0, 1.0, x.shape)) + colour[hospital[unit], None, :]
        return {
            "X": x.astype(np.float32),
            "y": np.array(names)[said],
            "unit": unit,
            "silo": np.array([f"hospital{number + 1}" for number in hospital])[unit],
        }


def _voice(random: np.random.Generator) -> dict[str, tuple[Energies, float]]:
    """Return the energies of each sound as one person makes it, (bands,), and its length in seconds."""
    tract, pace = np.exp(random.normal(0, 0.09)), np.exp(random.normal(0, 0.15))
    found = {}
    for sound, seconds in _SECONDS.items():
        places, loud = _RESONANCES[sound]
        energies = np.full(BANDS, 0.01)
        for place, height, width in zip(places, *_peaks(sound), strict=True):
            own = np.log(place) + np.log(tract) + random.normal(0, 0.06)
            energies += loud * height * np.exp(-0.5 * ((np.log(_EDGES) - own) / width) ** 2)
        found[sound] = (energies, seconds * pace)
    return found


def _peaks(sound: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return height and width of each resonance, widths in logarithms of Hz; a noise is one wide peak."""
    voiced = len(_RESONANCES[sound][0]) > 1
    return ((1.0, 0.6, 0.3), (0.18, 0.14, 0.12)) if voiced else ((0.8,), (0.45,))


def _utterance(random: np.random.Generator, sounds: list[str], voice: dict[str, tuple[Energies, float]]) -> Energies:
    """Return (frames, bands): silence, the sounds one after the other and running into each other, silence."""
    times = (np.arange(FRAMES) + 0.5) * _FRAME_S
    lengths = [voice[sound][1] * np.exp(random.normal(0, 0.15)) for sound in sounds]
    at = random.uniform(0.02, max(0.03, FRAMES * _FRAME_S - sum(lengths) - 0.02))
    out = np.full((FRAMES, BANDS), 0.005)
    for sound, length in zip(sounds, lengths, strict=True):
        rise, fall = (1 / (1 + np.exp(-(times - edge) / 0.01)) for edge in (at, at + length))
        out += (rise * (1 - fall))[:, None] * voice[sound][0]
        at += length
    loudness = float(np.exp(random.normal(0, 0.3)))
    return out * loudness
