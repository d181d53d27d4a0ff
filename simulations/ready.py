"""Study files: the ready ones of `studies/` by name, others by path. Light, so that a mistake is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulations.silos import REGISTRIES
from strategies.errors import SettingError
from strategies.study import Study, override

STUDIES = Path(__file__).parent / "studies"


def read_study(name: str, overrides: Mapping[str, Any]) -> tuple[Study, Path]:
    """Return a ready study by name or a study file by path, and the folder that its paths are relative to.

    Raises:
        StudyError: the study is not valid.
        SettingError: there is no such study.
    """
    path = STUDIES / f"{name.replace('-', '_')}.toml"
    if not path.exists():
        path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        ready = ", ".join(sorted(file.stem.replace("_", "-") for file in STUDIES.glob("*.toml")))
        raise SettingError(f"there is no study '{name}'; give the path of a study file, or one of {ready}") from None
    text = override(text, dict(overrides), source=path.name) if overrides else text
    return Study.parse(text, REGISTRIES, source=path.name), path.parent
