"""One simulated run: study file -> silo folders -> the two apps -> run folder, baselines, report."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from client.data.records import Part
from client.keys import read_pin
from client.round import read_records
from client.silo import Silo
from server.folder import RunFolder
from server.identity import FOLDER, coordinator_key
from simulations.silos import complete, make_silos, pooled, why_refused
from simulations.sources import read_dataset
from strategies.errors import FedsiloError, NotBuiltError, Refusal
from strategies.proof.canonical import dump
from strategies.proof.entries import public_hex
from strategies.report.audit_page import beside
from strategies.report.usefulness import interval
from strategies.study import Study

log = logging.getLogger("fedsilo.simulate")
_TEST_FILE_VALUES = 2**22  # of the inputs in one file of test records


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left.

    Args:
        folder: the run folder.
        facts: report.json.
        silos: the silo folders.
        seconds: from reading the study to the report.
    """

    folder: Path
    facts: dict[str, Any]
    silos: list[Path]
    seconds: float


def simulate(
    study: Study, base: Path, *, out: Path, fresh: bool = False, with_baselines: bool = True, audited: bool = False
) -> Outcome:
    """Run a study in this process.

    Args:
        study: as written; what is missing is read off the data.
        base: folder that the study's paths are relative to.
        out: folder that holds run folders and silo folders.
        fresh: make new silo folders, with untouched budgets.
        with_baselines: also train what the result is compared with.
        audited: also attack the study's training at the first silo (`simulations.audit`).

    Raises:
        FedsiloError: as the server or a silo says; finished rounds are on disk.
    """
    began = time.monotonic()
    engine = study.file.simulation.engine
    if engine not in ENGINES:
        raise NotBuiltError(
            f"simulation.engine = '{engine}' is not part of this version; use --engine {' or '.join(ENGINES)}"
        )
    source = read_dataset(study, base)
    study, notes = complete(study, source, base)
    silos = make_silos(study, source, out.absolute() / "silos", fresh=secrets.token_hex(8) if fresh else "")
    del source  # its index of a large data set takes memory
    if audited:
        from simulations.audit import CANARIES, require_enough

        require_enough(study, Silo.open(silos[0]), CANARIES)  # before anything is spent
    parts, test = _records(study, silos)
    test_file = _write_test(silos[0].parent, study, test)
    try:
        folder = _run_apps(study, silos, out, test_file)
    except Refusal as refusal:
        raise Refusal(refusal.code, why_refused(study, silos, refusal)) from None
    facts = folder.report()
    facts["simulation"] = {
        "dataset": study.file.simulation.dataset,
        "partition": study.file.simulation.partition,
        "silos": len(silos),
        "engine": engine,
        "dropout": study.file.simulation.dropout,
        "durability": "process",
        "read_off_the_data": notes,
        "test_records": len(test.y),
    }
    accuracy = facts["metrics"].get("accuracy")
    facts["accuracy_interval"] = list(interval(accuracy, len(test.y))) if accuracy is not None and len(test.y) else None
    facts["unprotected"].append(
        "the metrics and baselines of this page: exact, over the pooled records, as only a simulation can compute them"
    )
    if with_baselines and len(test.y):
        from simulations.baselines import baselines

        log.info("baselines")
        facts["baselines"] = asdict(baselines(study, parts, test))
    if audited:
        facts["audit"] = _audit(study, silos[0], folder.path)
        facts["unprotected"].append(
            f"the audit: it trains on the records of {silos[0].name} without an entry in its ledger, as only a "
            "simulation may"
        )
    folder.record_report(facts)
    _write_pins(silos, out)
    return Outcome(folder=folder.path, facts=facts, silos=silos, seconds=time.monotonic() - began)


def _audit(study: Study, silo: Path, folder: Path) -> dict[str, Any]:
    """Audit the study's training at a silo; return what the report says of it: a run has its report in any case."""
    from simulations.audit import CANARIES, audit_silo, keep

    log.info("audit")
    try:
        found = audit_silo(study, Silo.open(silo), canaries=CANARIES, advance=lambda steps, total: None)
    except FedsiloError as error:
        return {"status": "failed", "reason": f"the audit came to no end: {error}"}
    keep(found, folder)
    return beside(found)


def _write_pins(silos: list[Path], out: Path) -> None:
    """Write whose keys count beside the silos, as a roster says it in a deployment."""
    pins = [read_pin(silo / "keys") for silo in silos]
    names = ("ledger_id", "ledger_key", "dpo_key")
    value = {
        "coordinator": public_hex(coordinator_key(out / FOLDER)),
        "silos": [{name: getattr(pin, name) for name in names} for pin in pins],
    }
    (silos[0].parent / "pins.json").write_bytes(dump(value))


def _records(study: Study, silos: list[Path]) -> tuple[list[Part], Part]:
    """Return each silo's training part, and the held-out parts of all silos together."""
    records = [read_records(Silo.open(folder), study) for folder in silos]
    return [entry.train for entry in records], pooled([entry.held_out for entry in records])


def _write_test(folder: Path, study: Study, test: Part) -> str:
    """Write what the server may evaluate on, in files of bounded size; return their folder, empty for none."""
    if not len(test.y):
        return ""
    place = folder / f"test-{study.digest[:12]}"
    place.mkdir(exist_ok=True)
    at_once = max(1, _TEST_FILE_VALUES // max(1, math.prod(test.x.shape[1:])))
    for number, start in enumerate(range(0, len(test.y), at_once), start=1):
        rows = slice(start, start + at_once)
        arrays = {"x": test.x[rows].contiguous(), "y": test.y[rows].contiguous()}
        arrays |= {f"group/{name}": torch.from_numpy(codes[rows]) for name, codes in test.groups.items()}
        safetensors.torch.save_file(arrays, place / f"part-{number:05d}.safetensors")
    return str(place)


def _run_apps(study: Study, silos: list[Path], out: Path, test: str) -> RunFolder:
    run_config: dict[str, str | bool] = {"study": study.text, "out": str(out), "test": test}
    run_config["page"] = False  # `simulate` draws it once, with what it knows itself
    simulation = study.file.simulation
    state = ENGINES[simulation.engine](
        silos=silos,
        run_config=run_config,
        dropout=simulation.dropout,
        seed=study.file.study.seed,
    )
    return RunFolder(path=Path(str(state.config_records["run"]["folder"])), key=coordinator_key(out / FOLDER))


# --- engines: each is loaded when it is asked for -----------------------------------------------------------


def _inline(**given: Any) -> Any:
    from client.app import app as client_app
    from server.app import app as server_app
    from simulations.engines import inline

    return inline.run(server_app, client_app, **given)


def _pool(**given: Any) -> Any:
    from server.app import app as server_app
    from simulations.engines import pool

    return pool.run(server_app, pool.APP, **given)


def _ray(**given: Any) -> Any:
    from client.app import app as client_app
    from server.app import app as server_app
    from simulations.engines import ray

    return ray.run(server_app, client_app, **given)


ENGINES: Mapping[str, Callable[..., Any]] = {"inline": _inline, "pool": _pool, "ray": _ray}
