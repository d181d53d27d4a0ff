"""What is wrong with a study, all of it at once: each problem with its line, in the form setting, value, what is
allowed, remedy.

Types and ranges are the sections' own (`strategies.sections`); here are names that stand for something, and what must
hold between values.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError

from strategies.base import PerSiloStrategy
from strategies.errors import Problem, SettingError, StudyError, nearest
from strategies.optimizers import OPTIMIZERS
from strategies.privacy.mechanisms import problems as mechanism_problems
from strategies.secagg.setup import MOST_SILOS, MOST_SUMS
from strategies.sections import METRICS, CategoricalFeature, File, NumericFeature, shown
from strategies.spec import STRATEGIES, Registries, Registry, parse_spec
from strategies.tokens import VOCABULARIES


def checked(text: str, registries: Registries, *, source: str) -> tuple[File, dict[str, Any]]:
    """Return the values of a study's text, and what its specs stand for (model, strategy, optimizer, ...).

    Raises:
        StudyError: with every problem of the text.
    """
    document = document_of(text, source).unwrap()
    lines = _Lines(text)
    problems, resolved = _spec_problems(document, registries, lines)
    file, faults = _validate(document)
    problems += [_problem(fault, document, lines) for fault in faults]
    if file is not None:
        faulty = {str(fault["loc"][0]) for fault in faults}
        problems += _cross_checks(file, resolved, lines, faulty)
    if problems or file is None:
        raise StudyError(problems, source=source)
    return file, resolved


def document_of(text: str, source: str) -> tomlkit.TOMLDocument:
    """Return the parsed text.

    Raises:
        StudyError: it is no TOML.
    """
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, RecursionError) as error:
        sentence = f"this is no valid TOML ({str(error).split(' at line')[0]}); mend the syntax here"
        raise StudyError([Problem(sentence=sentence, line=_line_of(error, text))], source=source) from None


def _line_of(error: Exception, text: str) -> int | None:
    """Return the line of a syntax error; the standard library's parser knows it where tomlkit does not."""
    line: int | None = getattr(error, "line", None)
    if line is None:
        try:
            tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as second:
            found = re.search(r"at line (\d+)", str(second))
            return int(found[1]) if found else None
    return line


def _validate(document: dict[str, Any]) -> tuple[File | None, list[dict[str, Any]]]:
    """Return the file and its faults; with faults, the file is what is left without them, if that is a file at all."""
    try:
        return File.model_validate(document), []
    except ValidationError as error:
        faults: list[dict[str, Any]] = [dict(entry) for entry in error.errors()]
    rest = copy.deepcopy(document)
    for fault in faults:
        _remove(rest, [part for part in fault["loc"] if part not in ("numeric", "categorical")])
    try:
        return File.model_validate(rest), faults
    except ValidationError:
        return None, faults


def _remove(table: Any, path: list[Any]) -> None:
    """Delete what `path` names, or the last part of it that is there."""
    for part, following in zip(path, [*path[1:], None], strict=True):
        if not isinstance(table, dict) or part not in table:
            return
        inner = table[part]
        if following is None or not isinstance(inner, dict) or following not in inner:
            del table[part]
            return
        table = inner


class _Lines:
    """Where each key of a TOML text stands: a scan of headers and keys, enough for a study's shape."""

    def __init__(self, text: str) -> None:
        self._at: dict[tuple[str, ...], int] = {}
        prefix: tuple[str, ...] = ()
        for number, raw in enumerate(text.splitlines(), start=1):
            stripped = raw.strip()
            if stripped.startswith("["):
                prefix = _key_path(stripped.lstrip("[").split("]")[0])
                self._at.setdefault(prefix, number)
            elif "=" in stripped and not stripped.startswith("#"):
                key = stripped.split("=", 1)[0] if stripped[0] not in "\"'" else _quoted(stripped)
                self._at.setdefault((*prefix, *_key_path(key)), number)

    def of(self, *path: str) -> int | None:
        """Return the line of the longest known beginning of `path`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._at:
                return self._at[path[:length]]
        return None


def _quoted(text: str) -> str:
    return text[: text.find(text[0], 1) + 1]


def _key_path(text: str) -> tuple[str, ...]:
    try:
        node: Any = tomlkit.parse(f"{text.strip()} = 0").unwrap()
    except TOMLKitError:
        return (text.strip(),)
    path: list[str] = []
    while isinstance(node, dict):
        key, node = next(iter(node.items()))
        path.append(key)
    return tuple(path)


def _problem(error: dict[str, Any], document: Any, lines: _Lines) -> Problem:
    path = tuple(str(part) for part in error["loc"])
    if path[:2] == ("data", "features"):  # without pydantic's tag of the feature's type
        path = path[:3] + path[4:]
    name, given = ".".join(path), error.get("input")
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        sentence = f"unknown key '{name}'; {nearest(path[-1], _keys_at(path[:-1], document))}"
    elif kind == "missing":
        sentence = (
            f"{name} is missing; add it to [{'.'.join(path[:-1])}]"
            if len(path) > 1
            else (f"the section [{name}] is missing; add it")
        )
        if len(path) > 2 and path[-1] in ("min", "max"):
            sentence = f"{name} is missing: a numeric feature needs public bounds; write min and max"
    elif kind == "union_tag_not_found":
        sentence = f"{name} has no type; write type = 'numeric' with min and max, or 'categorical' with values"
    elif kind == "union_tag_invalid":
        sentence = f"{name} has type = {shown(context['tag'])}; allowed are numeric and categorical"
    elif kind in ("model_type", "model_attributes_type"):
        sentence = f"{name} = {shown(given)} is not allowed: it must be a table; write [{name}] or {name} = {{ ... }}"
    elif kind == "value_error":
        sentence = f"{name}: {context.get('error', error['msg'])}"
    else:
        allowed = _allowed(error["msg"])
        sentence = f"{name} = {shown(given)} is not allowed: {allowed}"
    return Problem(sentence=sentence, line=lines.of(*path))


def _allowed(message: str) -> str:
    message = message.replace("Tuple", "List").replace("tuple", "list").replace("dictionary", "table")  # TOML's words
    text = message.removeprefix("Input ")
    return f"it {text}" if message.startswith("Input") else text[0].lower() + text[1:]


def _keys_at(path: tuple[str, ...], document: Any) -> tuple[str, ...]:
    if not path:
        return tuple(File.model_fields)
    if len(path) == 1:
        return tuple(File.model_fields[path[0]].annotation.model_fields)  # type: ignore[union-attr]
    feature = document["data"]["features"].get(path[2], {}) if len(path) > 2 else {}
    kind = CategoricalFeature if feature.get("type") == "categorical" else NumericFeature
    return tuple(kind.model_fields)


def _spec_problems(document: Any, registries: Registries, lines: _Lines) -> tuple[list[Problem], dict[str, Any]]:
    """Resolve every spec that is a text, whatever else is wrong with the file."""
    wanted: list[tuple[str, str, str, Registry | None, str | None]] = [
        ("model", "model", "name", registries.models, None),
        ("strategy", "strategy", "name", STRATEGIES, "fedavg()"),
        ("optimizer", "training", "optimizer", OPTIMIZERS, "sgd(lr=0.2)"),
        ("partition", "simulation", "partition", registries.partitions, "dirichlet(alpha=0.5)"),
        ("dataset", "simulation", "dataset", registries.datasets, "breast_cancer()"),
        ("vocabulary", "data", "vocabulary", VOCABULARIES, "bytes()"),
    ]
    problems: list[Problem] = []
    resolved: dict[str, Any] = {}
    for what, section, key, registry, default in wanted:
        table = document.get(section, {})
        text = table.get(key, default) if isinstance(table, dict) else default
        is_path = what == "dataset" and isinstance(text, str) and "(" not in text
        if not isinstance(text, str) or is_path:
            continue
        try:
            resolved[what] = registry.resolve(str(text)) if registry else parse_spec(str(text))
        except SettingError as error:
            problems.append(
                Problem(sentence=f"{section}.{key} = {shown(str(text))}: {error}", line=lines.of(section, key))
            )
    return problems, resolved


def _cross_checks(file: File, resolved: Mapping[str, Any], lines: _Lines, faulty: set[str]) -> list[Problem]:
    """Return what is wrong between values; sections with a fault of their own are left out, as it may be the cause."""
    found: list[Problem] = []

    def check(holds: bool, sentence: str, *path: str) -> None:
        if not holds and path[0] not in faulty:
            found.append(Problem(sentence=sentence, line=lines.of(*path)))

    privacy, data, evaluation = file.privacy, file.data, file.evaluation
    strategy, model = resolved.get("strategy"), resolved.get("model")
    targets = [privacy.epsilon, privacy.noise_multiplier]
    if privacy.mechanism != "none":
        check(
            sum(value is not None for value in targets) == 1,
            "exactly one of privacy.epsilon and privacy.noise_multiplier must be given with mechanism = "
            f"'{privacy.mechanism}'; "
            + ("remove one" if None not in targets else "add epsilon, for example epsilon = 3.0"),
            "privacy",
        )
    else:
        check(
            targets == [None, None],
            "privacy.epsilon and privacy.noise_multiplier have no meaning with mechanism = 'none'; remove them, or "
            "write mechanism = 'dp-sgd'",
            "privacy",
            "mechanism",
        )
    check(
        not (file.secagg.enabled and isinstance(strategy, PerSiloStrategy)),
        f"strategy.name = '{file.strategy.name}' needs each silo's update by itself, which secure aggregation hides; "
        "write secagg.enabled = false or choose a strategy that needs only the sum, such as fedavg()",
        "strategy",
        "name",
    )
    check(
        evaluation.release != "masked" or file.secagg.enabled,
        "evaluation.release = 'masked' needs secure aggregation; write secagg.enabled = true or release = 'none'",
        "evaluation",
        "release",
    )
    known = METRICS[file.study.task]
    for metric in evaluation.metrics:
        check(
            metric in known,
            f"evaluation.metrics has '{metric}', which task = '{file.study.task}' does not have; "
            + nearest(metric, known),
            "evaluation",
            "metrics",
        )
    kinds = getattr(model, "kinds", (data.kind,))
    check(
        data.kind in kinds,
        f"model.name = '{file.model.name}' does not take data.kind = '{data.kind}', only {', '.join(kinds)}; "
        "choose another model",
        "model",
        "name",
    )
    for role, column in (("target", data.target), ("unit", data.unit)):
        check(
            column not in data.features,
            f"data.{role} = '{column}' is also a feature; remove it from data.features",
            "data",
            "features",
            str(column),
        )
    check(
        data.max_records_per_unit == 1 or data.unit is not None,
        "data.max_records_per_unit needs data.unit; name the column of the unit or remove it",
        "data",
        "max_records_per_unit",
    )
    check(
        data.classes is None or file.study.task != "regression",
        f"data.classes has no meaning with task = '{file.study.task}'; remove it",
        "data",
        "classes",
    )
    own = (_data_problems(file), _training_problems(file), _release_problems(file), _masking_problems(file))
    for sentence, *path in chain(*own, mechanism_problems(file, strategy)):
        check(False, sentence, *path)
    return found


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
