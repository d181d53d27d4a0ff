"""What is wrong with a study, all of it at once: each problem with its line, in the form setting, value, what is
allowed, remedy.

Types and ranges are the sections' own (`strategies.sections`), what must hold between values stands in
`strategies.conflicts`; here are names that stand for something, and where in the text a problem is.
"""

from __future__ import annotations

import copy
import re
import tomllib
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError

from strategies.conflicts import conflicts
from strategies.errors import Problem, SettingError, StudyError, nearest
from strategies.optimizers import OPTIMIZERS
from strategies.sections import CategoricalFeature, File, NumericFeature, shown
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
        # a section with a fault of its own is left out, as that may be the cause
        problems += [
            Problem(sentence=sentence, line=lines.of(*path))
            for sentence, *path in conflicts(file, *(resolved.get(name) for name in ("strategy", "model", "optimizer")))
            if path[0] not in faulty
        ]
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
