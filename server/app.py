"""The Flower ServerApp of the coordinator: a study's text in, a run folder out."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from client.models.base import MODELS, Shape, build, layout_of, load_weights, predict, weights_of
from client.models.weights import read_weights
from server import joining, rounds
from server.deployed import deployed
from server.folder import RunFolder
from server.identity import FOLDER, coordinator_key
from server.lines import Measured
from server.masking import Masking
from server.resume import ASKED, Taken, asked, record, take_up
from server.rounds import Evaluate, Progress
from server.silos import Roster
from server.witness import Witness
from strategies import metrics
from strategies.counts import group_values
from strategies.errors import SettingError
from strategies.layout import Layout, Vector
from strategies.report.facts import report_facts
from strategies.spec import Registries
from strategies.study import Study

log = logging.getLogger("fedsilo.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of the run config from its first round to its report."""
    settings = context.run_config
    text = str(settings.get("study", ""))
    if not text:
        raise SettingError("the run config's study is empty; give the text of a study file")
    with deployed(grid, context.run_id) as outer:
        folder = run_study(
            outer,
            Study.parse(text, Registries(models=MODELS)),
            out=Path(str(settings.get("out") or "runs")),
            test=str(settings.get("test") or ""),
            page=bool(settings.get("page", True)),
            resume=str(settings.get("resume") or ""),
        )
    context.state["run"] = ConfigRecord({"folder": str(folder)})


def run_study(grid: Grid, study: Study, *, out: Path, test: str, page: bool = True, resume: str = "") -> Path:
    """Run a study over the silos of a grid and return the run folder.

    Args:
        grid: Flower's way to the silos.
        study: complete, as the silos will see it.
        out: folder that holds the run folders.
        test: records that the coordinator itself owns: a safetensors file with `x`, `y` and, where the study names
            groups, `group/<column>`, or a folder of such files called `part-*`; empty for none.
        page: whether a complete run's report.html is drawn here; False leaves it to a caller who adds facts.
        resume: the folder of a run to take up; empty for a new one.

    Raises:
        Refusal, RunError, SettingError: the run did not start or broke off; finished rounds are on disk.
    """
    study.total_events()  # an epsilon that cannot be kept is told here, and not by silos that refuse
    shape = Shape.of_study(study)
    initial, layout = _initial_weights(study, shape)
    began_with = _sha256(initial)
    evaluate = _evaluator(study, shape, Path(test)) if test else None
    key = coordinator_key(out / FOLDER)
    if resume:
        taken = take_up(grid, study, layout, Path(resume), key)
    else:
        taken = _begin(grid, study, layout, out, Progress(state=study.strategy.start(initial)))
    del initial  # of a large model, one copy less for the rest of the run
    roster, folder, progress, begun = taken.roster, taken.folder, taken.progress, taken.begun
    log.info("run folder %s", folder.path, extra={"folder": folder.path})
    status = "interrupted"
    statements: dict[str, Any] = {}
    try:
        while len(progress.lines) < study.file.study.rounds:
            chosen, progress = rounds.choose(study, roster, progress, begun)
            folder.keep(ASKED, asked(len(progress.lines) + 1, {*chosen, *begun}, roster.manifest, key))
            progress, begun = rounds.run_round(grid, study, roster, chosen, progress, evaluate), ()
            folder.record_receipts(roster.witness.take())
            kept = record(progress, roster, taken.started, key)
            folder.record_round(progress.lines, progress.state, roster.manifest, layout, kept)
            folder.record_outcome(progress.outcome)
            line = progress.lines[-1]
            log.info("round %d of %d", line["round"], study.file.study.rounds, extra={"line": line})
        progress = rounds.charge_closing(study, roster, progress)
        statements, progress = rounds.close(grid, study, roster, progress, folder, own=evaluate is not None)
        folder.record_lines(progress.lines)
        status = "complete"
    finally:
        folder.record_receipts(roster.witness.take())
        for silo, proof in roster.witness.proofs.items():
            folder.record_equivocation(silo, proof)
        facts = _facts(study, roster, progress, statements, status, taken.started)
        facts["run"] |= {"model_in": began_with, "model_out": _sha256(progress.state.weights)}
        folder.record_report(facts, page=page or status != "complete")
    return folder.path


def _begin(grid: Grid, study: Study, layout: Layout, out: Path, progress: Progress) -> Taken:
    """Invite the silos and make the run's folder."""
    key, started = coordinator_key(out / FOLDER), datetime.now(UTC)
    roster = joining.invite(grid, study, secrets.token_hex(16), layout, Witness(key, out / FOLDER))
    folder = RunFolder.create(out, study, key)
    folder.record_manifest(roster.manifest)
    if study.masked:
        masking = Masking(study, roster.manifest, layout.size, key, folder.keep)
        roster, progress = rounds.mask(grid, study, roster, masking, progress)
    kept = record(progress, roster, started, key)
    folder.record_round(progress.lines, progress.state, roster.manifest, layout, kept)
    return Taken(roster=roster, folder=folder, progress=progress, begun=(), started=started)


def _initial_weights(study: Study, shape: Shape) -> tuple[Vector, Layout]:
    """Return the weights that the study starts from, of its file or of its seed, and their layout."""
    module = build(study.model, shape, study.file.study.seed)
    layout = layout_of(module)
    initial, sha256 = study.file.model.initial, study.file.model.initial_sha256
    if initial is None:
        return weights_of(module), layout
    if sha256 is None:
        raise SettingError("model.initial_sha256 is missing: the initial model is part of the study; add its SHA-256")
    return read_weights(Path(initial), layout, sha256=sha256), layout


def _facts(
    study: Study, roster: Roster, progress: Progress, statements: Mapping[str, Any], status: str, started: datetime
) -> dict[str, Any]:
    silos = {
        silo: {
            "refusal": progress.excluded.get(silo),
            "rounds": progress.asked.get(silo, 0),
            "closed": silo in progress.closed,
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


def _sha256(weights: Vector) -> str:
    return hashlib.sha256(np.ascontiguousarray(weights).tobytes()).hexdigest()


def _evaluator(study: Study, shape: Shape, path: Path) -> Evaluate:
    """Return the evaluation on test records; of a folder, the inputs of one file are in memory at a time."""
    files = sorted(path.glob("part-*.safetensors")) if path.is_dir() else [path]
    groups = group_values(study)
    wanted = ("x", "y", *(f"group/{name}" for name in groups))
    if not files or not all(_holds(file, wanted) for file in files):
        raise SettingError(
            f"test = {path} is not allowed: it must be a safetensors file with {', '.join(wanted)}, or a folder of "
            "such files named part-*.safetensors"
        )
    module = build(study.model, shape, study.file.study.seed)
    labels = _joined(files, "y")
    named = {name: (values, _joined(files, f"group/{name}")) for name, values in groups.items()}

    def evaluate(weights: Vector) -> Measured:
        load_weights(module, weights)
        scores, seen = np.empty((0, 0)), 0
        for file in files:
            some = predict(module, safetensors.torch.load_file(file)["x"], shape)
            if not seen:
                scores = np.empty((len(labels), some.shape[1]))  # once, for there may be many
            scores[seen : seen + len(some)] = some
            seen += len(some)
        return Measured(
            metrics=metrics.evaluate(scores, labels, study.metrics),
            groups=metrics.evaluate_groups(scores, labels, study.metrics, named),
        )

    return evaluate


def _joined(files: Sequence[Path], name: str) -> NDArray[Any]:
    """Return one array of all files; copied, for what is left of a file keeps all of it in memory."""
    parts = []
    for file in files:
        with safetensors.safe_open(file, framework="numpy") as arrays:
            parts.append(np.array(arrays.get_tensor(name)))
    return np.concatenate(parts)


def _holds(file: Path, wanted: Collection[str]) -> bool:
    try:
        with safetensors.safe_open(file, framework="numpy") as arrays:
            return set(wanted) <= set(arrays.keys())
    except (OSError, safetensors.SafetensorError):
        return False
