"""What must hold between the values of a study: settings that do not go together, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from strategies.base import PerSiloStrategy
from strategies.errors import nearest
from strategies.optimizers import Sgd
from strategies.privacy.mechanisms import problems as mechanism_problems
from strategies.secagg.setup import MOST_SILOS, MOST_SUMS
from strategies.sections import METRICS, CategoricalFeature, File


def conflicts(file: File, strategy: Any, model: Any, optimizer: Any) -> Iterator[tuple[str, ...]]:
    """Yield a sentence and the place of each conflict.

    Args:
        file: sound section by section.
        strategy: that the study names; None where it is not known.
        model: that the study names; None where it is not known.
        optimizer: that the study names; None where it is not known.
    """
    yield from _privacy_problems(file)
    yield from _choice_problems(file, strategy, model)
    for problems in (_column_problems, _data_problems, _training_problems, _release_problems, _masking_problems):
        yield from problems(file)
    yield from mechanism_problems(file, strategy)
    if (
        getattr(strategy, "plain_sgd", False)
        and optimizer is not None
        and optimizer != Sgd(lr=optimizer.lr, weight_decay=optimizer.weight_decay)
    ):
        yield (
            f"training.optimizer = '{file.training.optimizer}' is not allowed with strategy.name = "
            f"'{file.strategy.name}', which reckons with steps of plain SGD; write optimizer = "
            f"'sgd(lr={optimizer.lr:g})'",
            "training",
            "optimizer",
        )


def _privacy_problems(file: File) -> Iterator[tuple[str, ...]]:
    privacy = file.privacy
    targets = [privacy.epsilon, privacy.noise_multiplier]
    if privacy.mechanism == "none":
        if targets != [None, None]:
            yield (
                "privacy.epsilon and privacy.noise_multiplier have no meaning with mechanism = 'none'; remove them, or "
                "write mechanism = 'dp-sgd'",
                "privacy",
                "mechanism",
            )
    elif sum(value is not None for value in targets) != 1:
        yield (
            "exactly one of privacy.epsilon and privacy.noise_multiplier must be given with mechanism = "
            f"'{privacy.mechanism}'; "
            + ("remove one" if None not in targets else "add epsilon, for example epsilon = 3.0"),
            "privacy",
        )


def _choice_problems(file: File, strategy: Any, model: Any) -> Iterator[tuple[str, ...]]:
    """Yield where strategy, metrics or model do not go with the rest."""
    data, evaluation = file.data, file.evaluation
    if isinstance(strategy, PerSiloStrategy):
        yield from _per_silo_problems(file, strategy)
    if evaluation.release == "masked" and not file.secagg.enabled:
        yield (
            "evaluation.release = 'masked' needs secure aggregation; write secagg.enabled = true or release = 'none'",
            "evaluation",
            "release",
        )
    known = METRICS[file.study.task]
    for metric in evaluation.metrics:
        if metric not in known:
            yield (
                f"evaluation.metrics has '{metric}', which task = '{file.study.task}' does not have; "
                + nearest(metric, known),
                "evaluation",
                "metrics",
            )
    kinds = getattr(model, "kinds", (data.kind,))
    if data.kind not in kinds:
        yield (
            f"model.name = '{file.model.name}' does not take data.kind = '{data.kind}', only {', '.join(kinds)}; "
            "choose another model",
            "model",
            "name",
        )


def _per_silo_problems(file: File, strategy: PerSiloStrategy) -> Iterator[tuple[str, ...]]:
    """Yield what a rule that looks at each update by itself does not go with."""
    name, cohort = file.strategy.name, file.cohort
    if file.secagg.enabled:
        yield (
            f"strategy.name = '{name}' needs each silo's update by itself, which secure aggregation hides; write "
            "secagg.enabled = false or choose a strategy that needs only the sum, such as fedavg()",
            "strategy",
            "name",
        )
    if cohort.min_silos < strategy.least_silos:  # so a round with fewer updates leaves the model as it is
        yield (
            f"cohort.min_silos = {cohort.min_silos} is not allowed with strategy.name = '{name}': the rule holds what "
            f"it promises with at least {strategy.least_silos} silos; write min_silos = {strategy.least_silos}",
            "cohort",
            "min_silos",
        )
    if file.strategy.weights != "uniform":
        yield (
            f"strategy.weights = '{file.strategy.weights}' is not allowed with strategy.name = '{name}': a rule that "
            "withstands some of the silos counts them alike; write weights = 'uniform'",
            "strategy",
            "weights",
        )


def _column_problems(file: File) -> Iterator[tuple[str, ...]]:
    data = file.data
    for role, column in (("target", data.target), ("unit", data.unit)):
        if column in data.features:
            yield (
                f"data.{role} = '{column}' is also a feature; remove it from data.features",
                "data",
                "features",
                str(column),
            )
    if data.max_records_per_unit != 1 and data.unit is None:
        yield (
            "data.max_records_per_unit needs data.unit; name the column of the unit or remove it",
            "data",
            "max_records_per_unit",
        )
    if data.classes is not None and file.study.task == "regression":
        yield f"data.classes has no meaning with task = '{file.study.task}'; remove it", "data", "classes"


def _data_problems(file: File) -> Iterator[tuple[str, ...]]:
    """Yield a sentence and the place of each setting that the kind of data does not go with."""
    data, task = file.data, file.study.task
    kind = data.kind
    if kind in ("tabular", "sequences") and not data.features and (kind == "tabular" or data.record or data.time):
        yield (
            f"data.features is empty: a {kind} study names every column that it reads, with its type and public "
            "bounds or values; add [data.features]",
            "data",
        )
    if kind == "tabular" and data.target is None and task != "multilabel":
        yield "data.target is missing; name the column to predict", "data"
    if task == "multilabel" and kind in ("tabular", "text") and data.classes is None:
        yield (
            "data.classes is missing: with task = 'multilabel' it names the columns of the labels, each 0 or 1; "
            'write for example classes = ["oedema", "effusion"]',
            "data",
        )
    sizes = {"tabular": 0, "images": 3, "signals": 2, "sequences": 1, "text": 1}[kind]
    if data.shape is not None and len(data.shape) != sizes:
        words = "has no meaning for tables; remove it" if not sizes else f"must have {sizes} entries for {kind}"
        yield f"data.shape = {list(data.shape)} is not allowed: it {words}", "data", "shape"
    for name, bounds in (("range", data.range), ("target_range", data.target_range)):
        if bounds is not None and not bounds[0] < bounds[1]:
            yield f"data.{name} = {list(bounds)} is not allowed: the first must be less than the second", "data", name
    if data.target_range is not None and task != "regression":
        yield f"data.target_range has no meaning with task = '{task}'; remove it", "data", "target_range"
    for name, kinds in (
        ("range", ("images", "signals")),
        ("rate_hz", ("signals",)),
        ("record", ("sequences",)),
        ("time", ("sequences",)),
        ("event", ("sequences",)),
        ("value", ("sequences",)),
        ("text", ("text",)),
        ("vocabulary", ("text",)),
    ):
        if name in data.model_fields_set and kind not in kinds:
            yield (
                f"data.{name} has no meaning with kind = '{kind}', only with {', '.join(kinds)}; remove it",
                "data",
                name,
            )
    if (data.event is None) != (data.value is None):
        yield "data.event and data.value go together; give both columns of the long form, or neither", "data"
    if file.model.initial_sha256 is not None and file.model.initial is None:
        yield "model.initial_sha256 has no meaning without model.initial; remove it or name the file", "model"
    for group in file.evaluation.groups:
        if not isinstance(data.features.get(group), CategoricalFeature):
            yield (
                f"evaluation.groups has '{group}', which is no categorical feature of the study; "
                + nearest(group, [name for name, f in data.features.items() if isinstance(f, CategoricalFeature)]),
                "evaluation",
                "groups",
            )


def _training_problems(file: File) -> Iterator[tuple[str, ...]]:
    weights, classes = file.training.class_weights, file.data.classes
    if weights and file.study.task != "classification":
        yield "training.class_weights needs task = 'classification'; remove it", "training", "class_weights"
    elif weights and (classes is None or len(weights) != len(classes)):
        yield (
            f"training.class_weights has {len(weights)} entries and data.classes {len(classes or ())}; give one weight "
            "a class, in the order of data.classes",
            "training",
            "class_weights",
        )


def _masking_problems(file: File) -> Iterator[tuple[str, ...]]:
    """Yield what secure aggregation does not go with."""
    secagg, cohort = file.secagg, file.cohort
    if not secagg.enabled:
        return
    least = max(3, secagg.max_colluding + 2)
    if cohort.min_silos < least:
        yield (
            f"cohort.min_silos = {cohort.min_silos} is not allowed with secagg.max_colluding = {secagg.max_colluding}: "
            f"a sum hides a silo among at least 3, and 2 more than may collude; write min_silos = {least}",
            "cohort",
            "min_silos",
        )
    if file.simulation.silos > MOST_SILOS:
        yield (
            f"simulation.silos = {file.simulation.silos} is not allowed with secagg.enabled = true: a sum is over at "
            f"most {MOST_SILOS} silos in this version; lower it or write enabled = false",
            "simulation",
            "silos",
        )
    if file.strategy.weights != "uniform":
        yield (
            f"strategy.weights = '{file.strategy.weights}' is not allowed with secagg.enabled = true: a silo that "
            "outweighs all others would be the sum; write weights = 'uniform'",
            "strategy",
            "weights",
        )
    if file.study.rounds > MOST_SUMS // 2:
        yield (
            f"study.rounds = {file.study.rounds} is not allowed with secagg.enabled = true: a run has at most "
            f"{MOST_SUMS} sums, two a round; lower it to {MOST_SUMS // 2}",
            "study",
            "rounds",
        )
    if file.privacy.mechanism in ("none", "central-gaussian") and cohort.fraction < 1:
        yield (
            f"cohort.fraction = {cohort.fraction} is not allowed with secagg.enabled = true and privacy.mechanism = "
            f"'{file.privacy.mechanism}': sums without noise over changing silos can be subtracted from each other; "
            "write fraction = 1.0",
            "cohort",
            "fraction",
        )


def _release_problems(file: File) -> Iterator[tuple[str, ...]]:
    evaluation, data = file.evaluation, file.data
    if evaluation.release in ("masked", "noisy") and data.test_share == 0:
        yield (
            f"evaluation.release = '{evaluation.release}' needs records to evaluate on and data.test_share = 0 holds "
            "none out; raise it or write release = 'none'",
            "evaluation",
            "release",
        )
    if evaluation.release == "masked" and file.cohort.fraction < 1:
        yield (
            f"cohort.fraction = {file.cohort.fraction} is not allowed with evaluation.release = 'masked': exact counts "
            "are summed over all silos, in a round that all train in; write fraction = 1.0 or release = 'noisy'",
            "evaluation",
            "release",
        )
    masked = evaluation.release == "masked" or (evaluation.release is None and file.secagg.enabled)
    if masked and file.study.task == "regression" and data.target_range is None:
        yield (
            "data.target_range is missing: masked metric counts of a regression need public bounds of the value to "
            "predict, or their sum does not fit; write for example target_range = [0, 100] or evaluation.release = "
            "'none'",
            "evaluation",
            "release",
        )
    if evaluation.release != "noisy":
        if evaluation.noise_multiplier is not None:
            yield (
                "evaluation.noise_multiplier has a meaning only with evaluation.release = 'noisy'; remove it or write "
                "that",
                "evaluation",
                "noise_multiplier",
            )
        return
    if evaluation.noise_multiplier is None:
        yield (
            "evaluation.noise_multiplier is missing: with release = 'noisy' the metric counts of every round are "
            "noised and charged; write for example noise_multiplier = 20.0 (more noise costs less epsilon)",
            "evaluation",
            "release",
        )
    if file.study.task == "regression" and data.target_range is None:
        yield (
            "data.target_range is missing: with evaluation.release = 'noisy' a regression needs public bounds of the "
            "value to predict, or no record's influence on the counts is bounded; write for example "
            "target_range = [0, 100]",
            "evaluation",
            "release",
        )
