"""Placeholder."""

from __future__ import annotations
from collections.abc import Mapping
from pathlib import Path
from client.data.records import Loaded
from strategies.study import Study


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path) -> Loaded:
    raise NotImplementedError
