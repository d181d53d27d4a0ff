"""The study: one TOML text, the same in simulation and in deployment, read once into a frozen value.

The SHA-256 of the text's bytes is the study's identity: silos approve it, ledgers and reports cite it. All problems
of a file are reported at once, each with its line, in the form: setting, value, what is allowed, remedy.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import tomlkit
from tomlkit.exceptions import TOMLKitError

from strategies.base import Strategy
from strategies.checks import checked, document_of
from strategies.errors import Problem, SettingError, StudyError
from strategies.optimizers import Optimizer
from strategies.privacy.accountant import calibrate
from strategies.privacy.events import Event, Exact, Gaussian, Summed
from strategies.sections import METRICS, USUAL_METRICS, File
from strategies.spec import Registries


@dataclass(frozen=True, kw_only=True)
class Study:
    """A valid study.

    Args:
        text: the file, byte for byte; its SHA-256 is the study's identity.
        file: its values.
        model: the argument dataclass of the model that it names.
        strategy: the strategy that it names.
        optimizer: the local optimiser that it names.
    """

    text: str
    file: File
    model: Any
    strategy: Strategy
    optimizer: Optimizer

    @classmethod
    def parse(cls, text: str, registries: Registries, *, source: str = "study.toml") -> Study:
        """Read and check a study.

        Raises:
            StudyError: with every problem of the text.
        """
        file, resolved = checked(text, registries, source=source)
        return cls(
            text=text,
            file=file,
            model=resolved["model"],
            strategy=resolved["strategy"],
            optimizer=resolved["optimizer"],
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text's bytes, 64 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def unit(self) -> str:
        """The unit of privacy as a report names it: the unit's column, or `record`."""
        return self.file.data.unit or "record"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the study asks for, or all that its task has."""
        return self.file.evaluation.metrics or METRICS[self.file.study.task][:USUAL_METRICS]

    @property
    def private(self) -> bool:
        """Whether the study trains with differential privacy."""
        return self.file.privacy.mechanism != "none"

    @property
    def exact_sums(self) -> bool:
        """Whether silos add no noise of their own, so that under masks a sum of their updates is exact."""
        return self.file.privacy.mechanism in ("none", "central-gaussian")

    @property
    def silo_level(self) -> bool:
        """Whether a silo's whole update is clipped and noised, and not each unit in each step."""
        return self.private and self.file.privacy.mechanism != "dp-sgd"

    @cached_property
    def noise_multiplier(self) -> float:
        """Noise divided by clip norm: as written, or calibrated so that the whole study keeps its epsilon."""
        privacy = self.file.privacy
        if not self.private:
            return 0.0
        if privacy.noise_multiplier is not None:
            return privacy.noise_multiplier
        return self._reach * self.calibrated(privacy.epsilon or math.nan)

    @property
    def unit_noise_multiplier(self) -> float:
        """Noise divided by what one unit can move of what is noised: what the accountant takes."""
        return self.noise_multiplier / self._reach

    @property
    def _reach(self) -> float:
        """How many clip norms one unit can move what is noised; a silo's update may go from one end of the ball to the
        other (strategies/privacy/silo_level.py)."""
        return 2.0 if self.silo_level else 1.0

    def calibrated(self, target: float) -> float:
        """Return the least noise, over what one unit can move, with which a whole run keeps `target` as its epsilon."""
        privacy, each = self.file.privacy, self.update_event(1.0)
        return calibrate(
            target,
            privacy.delta,
            sampling_rate=each.sampling_rate,
            steps=each.steps * self.file.study.rounds,
            accountant=privacy.accountant,
            beside=self.all_count_events(),
        )

    def update_event(self, noise: float) -> Gaussian:
        """Return what the private update of one round costs, with `noise` over what one unit can move."""
        training = self.file.training
        if self.silo_level:  # the update leaves once, and nothing hides which units were in it
            return Gaussian(noise_multiplier=noise)
        return Gaussian(noise_multiplier=noise, sampling_rate=training.sampling_rate, steps=training.steps)

    @property
    def masked(self) -> bool:
        """Whether the server sees sums over silos alone."""
        return self.file.secagg.enabled

    @property
    def release(self) -> Literal["masked", "noisy", "none"]:
        """What of the silos' metric counts leaves them: as written; else exact sums where there are masks."""
        if self.file.evaluation.release is not None:
            return self.file.evaluation.release
        whole = self.file.data.test_share > 0 and self.file.cohort.fraction == 1
        return "masked" if self.masked and whole else "none"

    def update_events(self) -> tuple[Event, ...]:
        """Return what the update of one round is, as a release."""
        if not self.private:
            return (Exact(what="model update"),)
        return (self.update_event(self.unit_noise_multiplier),)

    def count_events(self) -> tuple[Event, ...]:
        """Return what the metric counts of one model are, as a release; nothing where none leave."""
        if self.release == "masked":
            return (Summed(what="metric counts of the held-out units", silos=self.file.cohort.min_silos),)
        noise_multiplier = self.file.evaluation.noise_multiplier
        return () if noise_multiplier is None else (Gaussian(noise_multiplier=noise_multiplier),)

    def round_events(self) -> tuple[Event, ...]:
        """Return what one round releases, at worst: the update, and the counts of one model.

        These are of the model that came with the request to train; with masks, of the one after the round.
        """
        return (*self.update_events(), *self.count_events())

    def closing_events(self) -> tuple[Event, ...]:
        """Return what the end of a run releases: the counts of the final model, where no round has counted it."""
        return () if self.masked else self.count_events()

    def all_count_events(self) -> tuple[Event, ...]:
        """Return all counts that a whole run releases."""
        return self.count_events() * self.file.study.rounds + self.closing_events()

    def total_events(self) -> tuple[Event, ...]:
        """Return what a whole run releases, at worst."""
        return self.round_events() * self.file.study.rounds + self.closing_events()

    @property
    def last_release(self) -> int:
        """The number of the release at the run's end, which counts as a round after the last."""
        return self.file.study.rounds + 1

    def number_of_counts(self, round: int) -> int:
        """Return the number of the release of masked counts after a round, beyond that of the run's end."""
        return self.last_release + round

    def releases_before(self, number: int) -> Iterator[int]:
        """Return the numbers of all releases of a run that may come before one, the newest first."""
        rounds = self.file.study.rounds
        last = number - 1
        if number > rounds + 1:
            last = number - rounds - 2
            yield last + 1
        for round in range(last, 0, -1):
            yield self.number_of_counts(round)
            yield round

    def with_values(self, values: dict[str, Any], registries: Registries) -> Study:
        """Return the study with `section.key` values written into its text (for example what a simulation read off
        the data)."""
        return Study.parse(override(self.text, values), registries)


def override(text: str, values: dict[str, Any], *, source: str = "study.toml") -> str:
    """Return `text` with each dotted `section.key` set to its value, or without it (None); comments and order kept.

    Raises:
        StudyError: the text is no TOML, or a key has no section.
    """
    document = document_of(text, source)
    for dotted, value in values.items():
        *path, key = dotted.split(".")
        if len(path) != 1 or not (path[0] and key):
            raise StudyError(
                [Problem(sentence=f"'{dotted}' is no section.key; write for example privacy.epsilon=1")], source="--set"
            )
        table = document.setdefault(path[0], tomlkit.table())
        if not isinstance(table, dict):
            sentence = f"'{path[0]}' is a plain value in this file; write it as a section [{path[0]}]"
            raise StudyError([Problem(sentence=sentence)], source="--set")
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
    return tomlkit.dumps(document)


def parse_override(text: str) -> tuple[str, Any]:
    """Read ``section.key=value``; the value is TOML, and a bare word is a text.

    Raises:
        SettingError: there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingError(f"--set {text} is not of the form section.key=value; write for example privacy.epsilon=1")
    try:
        return key.strip(), tomlkit.parse(f"x = {value.strip()}").unwrap()["x"]
    except (TOMLKitError, RecursionError):
        return key.strip(), value.strip()
