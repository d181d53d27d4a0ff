"""What `fedsilo-simulate list` shows: read from the files, so nothing heavy is imported."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from pathlib import Path
from typing import Any

from client.models.base import MODELS
from simulations.datasets.base import DATASETS
from simulations.ready import STUDIES
from strategies.spec import Registry
from strategies.study import STRATEGIES

KINDS = ("models", "strategies", "data", "studies")


def rows(kind: str) -> list[dict[str, Any]]:
    """Return one row a member of `kind`, at least one."""
    if kind == "studies":
        return [_study(path) for path in sorted(STUDIES.glob("*.toml"))]
    registry = {"models": MODELS, "strategies": STRATEGIES, "data": DATASETS}[kind]
    return [_member(registry, name) for name in registry.names()]


def _member(registry: Registry, name: str) -> dict[str, Any]:
    member = registry.member(name)
    arguments = [f"{key}={parameter.default!r}" for key, parameter in inspect.signature(member).parameters.items()]
    module = importlib.import_module(member.__module__)
    summary = (ast.get_docstring(ast.parse(inspect.getsource(module))) or "").splitlines()[0]
    return {"name": f"{name}({', '.join(arguments)})", "what": summary}


def _study(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    values = tomllib.loads(text)
    summary = text.splitlines()[0].removeprefix("#").strip()
    privacy = values["privacy"]
    return {
        "name": values["study"]["name"],
        "kind": values["data"]["kind"],
        "model": values["model"]["name"],
        "strategy": values.get("strategy", {}).get("name", "fedavg()"),
        "epsilon": privacy.get("epsilon"),
        "silos": values.get("simulation", {}).get("silos", 4),
        "what": summary,
    }
