"""``"fedprox(mu=0.01)"`` to the one frozen dataclass that it names.

A registry is a folder (a module with the right subclass *is* a member: adding the file is registering it) or
a fixed set of classes. Nothing is imported to list the members of a folder, so listing is instant; the
arguments are literals, read by `ast.literal_eval`, so a spec from the wire runs no code.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from strategies.errors import SettingError, nearest


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A name and its keyword arguments, all of them literals."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments)})"


def parse_spec(text: str) -> Spec:
    """Read ``name``, ``name()`` or ``name(key=literal, ...)``; ``f(a=b)`` and ``f(a="b")`` are equal.

    Raises:
        SettingError: the text has another form.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SettingError(f"'{text}' is not of the form name(key=value, ...)") from None
    if isinstance(tree, ast.Name):
        return Spec(name=tree.id)
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)) or tree.args:
        raise SettingError(f"'{text}' is not of the form name(key=value, ...)")
    arguments: list[tuple[str, Any]] = []
    for keyword in tree.keywords:
        if keyword.arg is None or keyword.arg in dict(arguments):
            raise SettingError(f"'{text}' repeats an argument or unpacks one; write each key once")
        arguments.append((keyword.arg, _literal(keyword.value, text)))
    return Spec(name=tree.func.id, arguments=tuple(arguments))


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise SettingError(f"'{text}' has an argument that is no number, text, list, true or false") from None


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The members of one kind: models, strategies, data sets, ...

    Args:
        kind: what a member is called in a sentence ("model").
        package: the package whose modules are the members.
        bases: a module is a member when it defines a class with one of these direct bases.
        classes: members that share one module; used instead of a package.
    """

    kind: str
    package: str = ""
    bases: tuple[str, ...] = ()
    classes: tuple[type, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Return the names of all members, sorted; imports the package but none of its modules."""
        return tuple(sorted({**self._files(), **{c.__name__.lower(): c for c in self.classes}}))

    def member(self, name: str) -> type:
        """Return the class behind `name`.

        Raises:
            SettingError: there is no such member; the sentence offers the nearest.
        """
        for candidate in self.classes:
            if candidate.__name__.lower() == name:
                return candidate
        class_name = self._files().get(name)
        if class_name is None:
            raise SettingError(f"there is no {self.kind} '{name}'; {nearest(name, self.names())}")
        found: type = getattr(importlib.import_module(f"{self.package}.{name}"), class_name)
        return found

    def resolve(self, text: str) -> Any:
        """Return the dataclass instance that a spec such as ``mlp(hidden=[64, 32])`` describes.

        Raises:
            SettingError: no such member, unknown or missing argument, or a value of the wrong type or range.
        """
        spec = parse_spec(text)
        member = self.member(spec.name)
        hints = get_type_hints(member)
        known = {f.name: f for f in fields(member) if f.init}
        values: dict[str, Any] = {}
        for key, value in spec.arguments:
            if key not in known:
                raise SettingError(
                    f"{spec.name} has no argument '{key}'; {nearest(key, known)}"
                    if known
                    else f"{spec.name} takes no arguments, '{key}' was given"
                )
            try:
                values[key] = _adapter(hints[key]).validate_python(value)
            except ValidationError as error:
                raise SettingError(f"{spec.name}: {key} = {value!r}: {error.errors()[0]['msg'].lower()}") from None
        for key, field in known.items():
            if key not in values and field.default is MISSING and field.default_factory is MISSING:
                raise SettingError(f"{spec.name} needs the argument '{key}'; write {spec.name}({key}=...)")
        return member(**values)

    def _files(self) -> dict[str, str]:
        if not self.package:
            return {}
        folders = importlib.import_module(self.package).__path__
        files = [file for folder in folders for file in Path(folder).glob("[a-z]*.py")]
        found = {file.stem: _member_class(file, file.stat().st_mtime_ns, self.bases) for file in files}
        return {name: class_name for name, class_name in found.items() if class_name}


@cache
def _member_class(file: Path, _modified: int, bases: tuple[str, ...]) -> str:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id in bases for b in node.bases):
            return node.name
    return ""


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


STRATEGIES = Registry(kind="strategy", package="strategies", bases=("SumStrategy", "PerSiloStrategy"))


@dataclass(frozen=True, kw_only=True)
class Registries:
    """What the names in a study may stand for; those that a reader does not own are only checked for form."""

    models: Registry
    datasets: Registry | None = None
    partitions: Registry | None = None


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a `SettingError` in the house form unless `holds`."""
    if not holds:
        raise SettingError(f"{name} = {value} is not allowed: it must be {allowed}")


def names_of(members: Iterable[object]) -> str:
    """Return ``a, b and c`` for a sentence."""
    texts = [str(member) for member in members]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
