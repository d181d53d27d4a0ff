"""What `fedsilo-simulate list` shows: read from the files, so nothing heavy is imported unless weights are counted."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

from client.models.base import MODELS, Shape
from simulations.datasets.base import DATASETS
from simulations.ready import STUDIES
from strategies.spec import STRATEGIES, Registry

KINDS = ("models", "strategies", "data", "studies")


SHAPES = {  # of two classes; what the parameters of a model are counted for
    "tabular": Shape(inputs=(32,), outputs=1, task="classification"),
    "images": Shape(inputs=(1, 28, 28), outputs=1, task="classification", kind="images"),
    "signals": Shape(inputs=(500, 12), outputs=1, task="classification", kind="signals"),
    "sequences": Shape(inputs=(48, 32), outputs=1, task="classification", kind="sequences"),
    "text": Shape(inputs=(128,), outputs=1, task="classification", kind="text", vocabulary=257),
}
_DEMO, _DEVELOPMENT = "extra demo", "FEDSILO_DATA"


def rows(kind: str, *, counted: bool = False) -> list[dict[str, Any]]:
    """Return one row a member of `kind`, at least one.

    Args:
        kind: one of `KINDS`.
        counted: also count the parameters of each model for the shapes of `SHAPES`, which needs torch.
    """
    if kind == "studies":
        return [_study(path) for path in sorted(STUDIES.glob("*.toml"))]
    registry = {"models": MODELS, "strategies": STRATEGIES, "data": DATASETS}[kind]
    found = [_member(registry, name) for name in registry.names()]
    if counted and kind == "models":
        found = [row | {"parameters": _parameters(row["name"])} for row in found]
    return found


def _member(registry: Registry, name: str) -> dict[str, Any]:
    member = registry.member(name)
    arguments = [f"{key}={parameter.default!r}" for key, parameter in inspect.signature(member).parameters.items()]
    module = importlib.import_module(member.__module__)
    summary = (ast.get_docstring(ast.parse(inspect.getsource(module))) or "").split("\n\n")[0].replace("\n", " ")
    kinds = {"kinds": " ".join(member.kinds)} if hasattr(member, "kinds") else {}
    return {"name": f"{name}({', '.join(arguments)})", **kinds, "what": summary}


def _parameters(name: str) -> dict[str, int]:
    """Return the number of parameters of a model with default arguments for each kind of data that it takes."""
    from client.models.base import build, layout_of

    model = MODELS.member(name.split("(")[0])()
    return {kind: layout_of(build(model, SHAPES[kind], 0)).size for kind in model.kinds}


def _study(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    values = tomllib.loads(text)
    header = " ".join(line.removeprefix("#").strip() for line in text.split("\n[")[0].splitlines())
    sector, _, what = text.splitlines()[0].removeprefix("#").strip().partition(": ")
    count = re.search(r"Rows: ([0-9,]+)", header)
    needs = [_DEMO] * ("the optional extra `demo`" in header) + [_DEVELOPMENT] * ("FEDSILO_DATA" in header)
    return {
        "name": values["study"]["name"],
        "kind": values["data"]["kind"],
        "sector": sector,
        "rows": int(count[1].replace(",", "")) if count else None,
        "model": values["model"]["name"],
        "strategy": values.get("strategy", {}).get("name", "fedavg()"),
        "epsilon": values["privacy"].get("epsilon"),
        "silos": values.get("simulation", {}).get("silos", 4),
        "needs": ", ".join(needs) or None,
        "what": what,
    }
