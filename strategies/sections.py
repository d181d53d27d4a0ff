"""The tables of a study file and their values: types, ranges and defaults, each table by itself.

What must hold between tables stands in `strategies.conflicts`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _category(value: object) -> object:
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{shown(value)} is no category; a category is a text, a number, true or false")


Category = Annotated[str | int | bool | float, PlainValidator(_category)]


class Section(BaseModel):
    """A table of the file: frozen, without unknown keys, every type as written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StudySection(Section):
    name: Name
    task: Literal["classification", "regression", "multilabel"]
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 20
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7


class NumericFeature(Section):
    """A number with public bounds; `source` says where the bounds come from (never from the records)."""

    type: Literal["numeric"]
    min: Annotated[float, Field(allow_inf_nan=False)]
    max: Annotated[float, Field(allow_inf_nan=False)]
    transform: Literal["none", "log"] = "none"
    outside: Literal["clip", "missing", "refuse"] = "clip"
    missing: Literal["indicator", "refuse"] = "indicator"
    source: str = ""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not self.min < self.max:
            raise ValueError(f"min = {self.min:g} must be less than max = {self.max:g}; write the public bounds")
        if self.transform == "log" and self.min <= 0:
            raise ValueError(f"min = {self.min:g} must be above 0 with transform = 'log'; raise min or drop transform")
        return self

    @property
    def width(self) -> int:
        """Number of columns that the feature becomes."""
        return 1 + (self.missing == "indicator")


class CategoricalFeature(Section):
    """One of a public list of values; a value outside it counts as missing unless `outside` says otherwise."""

    type: Literal["categorical"]
    values: Annotated[tuple[Category, ...], Field(min_length=1, strict=False)]
    outside: Literal["missing", "refuse"] = "missing"
    missing: Literal["indicator", "refuse"] = "indicator"
    source: str = ""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({str(value) for value in self.values}) < len(self.values):
            raise ValueError("values must be distinct; remove the repeated one")
        return self

    @property
    def width(self) -> int:
        """Number of columns that the feature becomes."""
        return len(self.values) + (self.missing == "indicator")


Feature = Annotated[NumericFeature | CategoricalFeature, Field(discriminator="type")]


Column = Annotated[str, Field(min_length=1)]
Bounds = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=2, max_length=2, strict=False)
]


class DataSection(Section):
    """What is read and what it may look like; nothing in it is fitted to records.

    `shape` is one record's: [height, width, channels] of images, [steps, channels] of signals, [steps] of sequences
    (their channels follow from the features), [tokens] of texts. `range` bounds the values of images and signals
    (for DICOM: the window), `target_range` the value to predict in a regression.
    """

    kind: Literal["tabular", "images", "signals", "sequences", "text"]
    target: Column | None = None
    unit: Column | None = None
    classes: Annotated[tuple[Category, ...], Field(min_length=2, strict=False)] | None = None
    max_records_per_unit: Count = 1
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    test: str | None = None
    features: dict[str, Feature] = Field(default_factory=dict)
    shape: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3, strict=False)] | None = None
    range: Bounds | None = None
    target_range: Bounds | None = None
    rate_hz: Positive | None = None  # signals: resampled to it
    record: Column | None = None  # sequences: rows with one value here are one sequence; the unit if omitted
    time: Column | None = None  # sequences: orders the rows of a sequence
    event: Column | None = None  # sequences in long form: names what a row measured, one of the features
    value: Column | None = None  # sequences in long form: the measured value
    text: Column = "text"  # text: the column that holds it
    vocabulary: str = "bytes()"  # text: a public rule from texts to tokens

    @property
    def input_width(self) -> int:
        """Number of columns of all features: the width of a table's model."""
        return sum(feature.width for feature in self.features.values())


class ModelSection(Section):
    name: str
    initial: str | None = None  # a model's file to start from; a relative path is relative to the study's file
    initial_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None  # of that file: part of the identity


class StrategySection(Section):
    name: str = "fedavg()"
    weights: Literal["uniform", "declared"] = "uniform"


class TrainingSection(Section):
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    steps: Count = 20
    optimizer: str = "sgd(lr=0.2)"
    expected_batch_size: Positive | None = None
    class_weights: Annotated[tuple[Positive, ...], Field(strict=False)] = ()


Mechanism = Literal["dp-sgd", "local-gaussian", "distributed-gaussian", "central-gaussian", "none"]


class PrivacySection(Section):
    """How the privacy is made; `dp-sgd` clips each unit in each step, the `-gaussian` ones a silo's whole update."""

    mechanism: Mechanism = "dp-sgd"
    clip_norm: Positive = 1.0
    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    accountant: Literal["pld", "rdp"] = "pld"


class SecaggSection(Section):
    enabled: bool = False
    max_colluding: Annotated[int, Field(ge=0)] = 1


class CohortSection(Section):
    min_silos: Count = 3
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    round_timeout_s: Positive = 600.0


class EvaluationSection(Section):
    metrics: Annotated[tuple[str, ...], Field(strict=False)] = ()
    release: Literal["masked", "noisy", "none"] | None = None
    noise_multiplier: Positive | None = None  # of the counts, over their sensitivity; with release = "noisy" alone
    groups: Annotated[tuple[str, ...], Field(strict=False)] = ()


class SimulationSection(Section):
    dataset: str = "breast_cancer()"
    silos: Count = 4
    partition: str = "dirichlet(alpha=0.5)"
    engine: Literal["inline", "pool", "batched", "ray"] = "inline"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class File(Section):
    """The whole file."""

    study: StudySection
    data: DataSection
    model: ModelSection
    strategy: StrategySection = StrategySection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection
    secagg: SecaggSection = SecaggSection()
    cohort: CohortSection = CohortSection()
    evaluation: EvaluationSection = EvaluationSection()
    simulation: SimulationSection = SimulationSection()


METRICS = {  # of each task, the first ones are what a study gets that names none
    "classification": ("accuracy", "auroc", "auprc", "brier", "balanced_accuracy", "f1", "ece"),
    "multilabel": ("accuracy", "auroc", "auprc", "brier", "f1", "ece"),
    "regression": ("rmse", "mae", "r2"),
}
USUAL_METRICS = 4


def shown(value: object) -> str:
    """Return a value as an error's sentence shows it."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
