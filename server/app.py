"""The Flower ServerApp of the coordinator: a study's text in, a run folder out."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from client.models.base import MODELS, Shape, build, layout_of, load_weights, predict, weights_of
from client.models.weights import read_weights
from server import rounds
from server.folder import RunFolder
from server.rounds import Evaluate, Progress, Roster
from strategies import metrics
from strategies.errors import SettingError
from strategies.layout import Layout, Vector
from strategies.report.facts import report_facts
from strategies.study import Registries, Study

log = logging.getLogger("fedsilo.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of the run config from its first round to its report."""
    settings = context.run_config
    text = str(settings.get("study", ""))
    if not text:
        raise SettingError("the run config's study is empty; give the text of a study file")
    folder = run_study(
        grid,
        Study.parse(text, Registries(models=MODELS)),
        out=Path(str(settings.get("out") or "runs")),
        test=str(settings.get("test") or ""),
    )
    context.state["run"] = ConfigRecord({"folder": str(folder)})


def run_study(grid: Grid, study: Study, *, out: Path, test: str) -> Path:
    """Run a study over the silos of a grid and return the run folder.

    Args:
        grid: Flower's way to the silos.
        study: complete, as the silos will see it.
        out: folder that holds the run folders.
        test: safetensors file with `x` and `y` that the coordinator itself owns; empty for none.

    Raises:
        Refusal, RunError, SettingError: the run did not start or broke off; finished rounds are on disk.
    """
    shape = Shape.of_study(study)
    module = build(study.model, shape, study.file.study.seed)
    layout = layout_of(module)
    initial = _initial_weights(study, weights_of(module), layout)
    evaluate = _evaluator(study, shape, Path(test)) if test else None
    roster = rounds.invite(grid, study, secrets.token_hex(16), layout)
    folder = RunFolder.create(out, study)
    log.info("run folder %s", folder.path, extra={"folder": folder.path})
    started = datetime.now(UTC)
    progress = Progress(state=study.strategy.start(initial))
    status, statements = "interrupted", {}
    try:
        while len(progress.lines) < study.file.study.rounds:
            chosen, progress = rounds.choose(study, roster, progress)
            progress = rounds.run_round(grid, study, roster, chosen, progress, evaluate)
            line = progress.lines[-1]
            folder.record_round(line, progress.state, roster.manifest, layout)
            log.info("round %d of %d", line["round"], study.file.study.rounds, extra={"line": line})
        statements = rounds.close(grid, study, roster, progress, folder)
        status = "complete"
    finally:
        folder.record_report(_facts(study, roster, progress, statements, status, started))
    return folder.path


def _initial_weights(study: Study, seeded: Vector, layout: Layout) -> Vector:
    """Return the weights that the study starts from: of the file that it names, or those of its seed."""
    initial, sha256 = study.file.model.initial, study.file.model.initial_sha256
    if initial is None:
        return seeded
    if sha256 is None:
        raise SettingError("model.initial_sha256 is missing: the initial model is part of the study; add its SHA-256")
    return read_weights(Path(initial), layout, sha256=sha256)


def _facts(
    study: Study, roster: Roster, progress: Progress, statements: Mapping[str, Any], status: str, started: datetime
) -> dict[str, Any]:
    silos = {
        silo: {
            "refusal": progress.excluded.get(silo),
            "rounds": progress.asked.get(silo, 0),
            "statement": statements.get(silo),
        }
        for silo in roster.nodes
    }
    return report_facts(
        study=study,
        manifest=roster.manifest,
        status=status,
        started=started,
        finished=datetime.now(UTC),
        lines=progress.lines,
        silos=silos,
        refusals=sorted(roster.refusals.values()),
        parameters=len(progress.state.weights),
    )


def _evaluator(study: Study, shape: Shape, path: Path) -> Evaluate:
    files = sorted(path.glob("part-*.safetensors")) if path.is_dir() else [path]
    if not files or not all(_holds_records(file) for file in files):
        raise SettingError(
            f"test = {path} is not allowed: it must be a safetensors file with x and y, or a folder of such files "
            "named part-*.safetensors"
        )
    module = build(study.model, shape, study.file.study.seed)
    names = study.metrics

    def evaluate(weights: Vector) -> Mapping[str, float | None]:
        load_weights(module, weights)
        scores, labels = [], []
        for file in files:  # one at a time, so that a large test set is never in memory as a whole
            arrays = safetensors.torch.load_file(file)
            scores.append(predict(module, arrays["x"], shape))
            labels.append(arrays["y"].numpy())
        return metrics.evaluate(np.concatenate(scores), np.concatenate(labels), names)

    return evaluate


def _holds_records(file: Path) -> bool:
    try:
        with safetensors.safe_open(file, framework="numpy") as arrays:
            return {"x", "y"} <= set(arrays.keys())
    except (OSError, safetensors.SafetensorError):
        return False
