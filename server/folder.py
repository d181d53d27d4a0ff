"""A run is a folder: study.toml, metrics.jsonl, model.safetensors, checkpoint/, statements/, report.html, report.json.

Every file is whole at any time, so a run that is interrupted leaves its finished rounds readable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server import checkpoint
from strategies.base import State
from strategies.errors import RunError
from strategies.layout import Layout
from strategies.manifest import Manifest
from strategies.report.page import render
from strategies.report.registry import registry_of_run
from strategies.statement import Statement
from strategies.study import Study


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def create(cls, parent: Path, study: Study) -> RunFolder:
        """Make ``<parent>/<study>-<utc time>`` and put the study in it.

        Raises:
            RunError: the folder cannot be made.
        """
        stem = f"{study.file.study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        try:
            for path in (parent / stem, *(parent / f"{stem}-{number}" for number in range(2, 1000))):
                if not path.exists():
                    path.mkdir(parents=True)
                    break
            checkpoint.write_whole(path / "study.toml", study.text.encode())
        except OSError as error:
            raise RunError(
                f"the run folder {parent / stem} cannot be made: {error.strerror}; choose another with --out"
            ) from None
        return cls(path=path)

    def record_lines(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl as a whole: counts of a round complete the line of the round before."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        checkpoint.write_whole(self.path / "metrics.jsonl", text.encode())

    def record_round(
        self, lines: Sequence[Mapping[str, Any]], state: State, manifest: Manifest, layout: Layout
    ) -> None:
        """Write the lines so far and save the state that the last one speaks of."""
        self.record_lines(lines)
        checkpoint.save(self.path / "checkpoint", state, manifest)
        checkpoint.save_model(self.path / "model.safetensors", layout, state.weights)

    def record_statement(self, silo: str, statement: Statement) -> None:
        """Keep what a silo states of the run."""
        checkpoint.write_whole(self.path / "statements" / f"{silo}.json", statement.to_json().encode())

    def record_report(self, facts: Mapping[str, Any], *, page: bool = True) -> None:
        """Write the report as report.json, and with `page` as report.html and registry.yaml."""
        checkpoint.write_whole(self.path / "report.json", json.dumps(facts, indent=2).encode())
        if page:
            checkpoint.write_whole(self.path / "report.html", render(facts).encode())
            checkpoint.write_whole(self.path / "registry.yaml", registry_of_run(facts).encode())

    def report(self) -> dict[str, Any]:
        """Return the facts of the report."""
        facts: dict[str, Any] = json.loads((self.path / "report.json").read_text(encoding="utf-8"))
        return facts
