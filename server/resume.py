"""Taking up a run that broke off: the signed record of its last finished round, and what was asked since.

    checkpoint/state.safetensors   model, memory, manifest, and the record (lines, who was asked, what arrived)
    checkpoint/asked.json          the round that was begun after it, written before any silo was asked

Both are signed by the coordinator's key, so a folder that was edited is not gone on from. Without secure aggregation
the begun round is asked again: a silo that has released it sends the same bytes, and is charged once. With it, the
round's number is used up at the silos: it stands in the lines as lost, and stays charged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from server import checkpoint, cohort, lines
from server.envelopes import SignedGrid
from server.folder import RunFolder
from server.masking import Masking
from server.rounds import Progress
from server.silos import Roster
from server.witness import Witness
from strategies.errors import RunError
from strategies.layout import Layout
from strategies.manifest import Manifest
from strategies.proof.entries import public_hex, signed_by
from strategies.proof.outcomes import model_hash
from strategies.study import Study

ASKED = "checkpoint/asked.json"
_DOMAIN = b"fedsilo/round/1\0"
_SAVED = tuple(entry.name for entry in fields(Progress) if entry.name != "state")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A run as it is gone on with.

    Args:
        roster: its silos.
        folder: its folder.
        progress: where it stands.
        begun: silos that were asked for the next round before, and are charged for it already.
        started: when the run began.
    """

    roster: Roster
    folder: RunFolder
    progress: Progress
    begun: tuple[str, ...]
    started: datetime


def record(progress: Progress, roster: Roster, started: datetime, key: Ed25519PrivateKey) -> str:
    """Return the signed record of a round, for the checkpoint."""
    value = {name: getattr(progress, name) for name in _SAVED}
    value |= {"run": roster.manifest.run, "manifest": roster.manifest.digest(), "nodes": dict(roster.nodes)}
    value |= {"started": started.isoformat()}
    return _signed({**value, "model": model_hash(progress.state.weights)}, key)


def asked(number: int, silos: Collection[str], manifest: Manifest, key: Ed25519PrivateKey) -> bytes:
    """Return the signed note of a round that is about to be asked for."""
    return _signed({"run": manifest.run, "round": number, "silos": sorted(silos)}, key).encode()


def take_up(grid: Grid, study: Study, layout: Layout, path: Path, key: Ed25519PrivateKey) -> Taken:
    """Read a run folder and find its silos again.

    Args:
        grid: the deployment's.
        study: as submitted again.
        layout: of its model.
        path: the run folder.
        key: the coordinator's.

    Raises:
        RunError: the run cannot be taken up; the sentence says why.
    """
    if not isinstance(grid, SignedGrid):
        raise RunError("only a run of enrolled silos can be taken up; simulate a study again instead")
    state, manifest, saved = _read(path, key)
    if manifest.study != study.digest or manifest.layout != layout.digest():
        raise RunError(f"the study is not the one of {path}; resume with the study.toml of that folder")
    if _complete(path):
        raise RunError(f"the run of {path} is complete; nothing is left to take up")
    changed = [m.silo for m in manifest.roster if grid.changed(m.silo, m.ledger_id, m.ledger_key)]
    if changed:
        raise RunError(
            f"silo '{changed[0]}' has other keys now than the run of {path} was begun with; run the study anew"
        )
    progress = Progress(state=state, **{name: saved[name] for name in _SAVED if name not in ("lines", "closed")})
    progress = replace(progress, lines=tuple(saved["lines"]), closed=tuple(saved["closed"]))
    folder, begun = RunFolder(path=path, key=key), _begun(path, manifest, len(progress.lines) + 1, key)
    witness = Witness(key, path.parent / "coordinator")
    for member in manifest.roster:
        witness.recall(member.ledger_id)
    roster = Roster(manifest=manifest, nodes=_nodes(grid, study, saved["nodes"]), refusals={}, witness=witness)
    if study.masked:
        kept = (path / "secagg" / "run.bin").read_bytes()
        masking = Masking.restored(study, manifest, layout.size, key, folder.keep, kept)
        folder.keep("secagg/sum.bin", None)
        roster = replace(roster, masking=masking)
        progress, begun = _lost(study, progress, begun, roster), ()
    if progress.outcome:
        folder.record_outcome(progress.outcome, last=True)
    started = datetime.fromisoformat(saved["started"])
    return Taken(roster=roster, folder=folder, progress=progress, begun=begun, started=started)


def _lost(study: Study, progress: Progress, begun: tuple[str, ...], roster: Roster) -> Progress:
    """Return the progress with a line for a masked round that broke off: charged, and nothing came of it."""
    if not begun:
        return progress
    charged = {**progress.asked, **{silo: progress.asked.get(silo, 0) + 1 for silo in begun}}
    line = {
        "round": len(progress.lines) + 1,
        **lines.own(None, study),
        "cohort": len(begun),
        "dropped": len(begun),
        "aggregated": False,
        "epsilon": lines.spent(study, charged),
        "seconds": {"train": 0.0, "total": 0.0},
    }
    progress = progress.after(progress.state, roster, {}, ())
    return replace(progress, lines=(*progress.lines, line), asked=charged)


def _nodes(grid: SignedGrid, study: Study, nodes: dict[str, int]) -> dict[str, int]:
    """Return Flower's node of each silo of the run, once enough of them are connected; the others may come later.

    Raises:
        RunError: too few are there.
    """
    limits = study.file.cohort
    grid.know(nodes)
    there = set(nodes.values()) & set(cohort.wait_for_nodes(grid, limits.min_silos, limits.round_timeout_s))
    if len(there) < limits.min_silos:
        raise RunError(f"{len(there)} silos of the run are connected and cohort.min_silos asks for {limits.min_silos}")
    return nodes


# --- files --------------------------------------------------------------------------------------------------


def _read(path: Path, key: Ed25519PrivateKey) -> tuple[Any, Manifest, Mapping[str, Any]]:
    state, manifest, text = checkpoint.load_with_record(path / "checkpoint")
    saved = _opened(text, key)
    if saved is not None and not saved.keys() >= set(_SAVED):
        raise RunError(f"the run of {path} was begun with another version of Fedsilo; run the study anew")
    if saved is None or saved["manifest"] != manifest.digest() or saved["model"] != model_hash(state.weights):
        raise RunError(
            f"the checkpoint in {path} is not as the coordinator's key has signed it; it is not gone on from"
        )
    return state, manifest, saved


def _complete(path: Path) -> bool:
    try:
        return bool(json.loads((path / "report.json").read_text(encoding="utf-8"))["run"]["status"] == "complete")
    except (OSError, ValueError, KeyError):
        return False


def _begun(path: Path, manifest: Manifest, number: int, key: Ed25519PrivateKey) -> tuple[str, ...]:
    try:
        note = _opened((path / ASKED).read_text(encoding="utf-8"), key)
    except OSError:
        return ()
    if note is None or note["run"] != manifest.run:
        raise RunError(f"{path / ASKED} is not as the coordinator's key has signed it; it is not gone on from")
    return tuple(note["silos"]) if note["round"] == number else ()


def _signed(value: Mapping[str, Any], key: Ed25519PrivateKey) -> str:
    text = json.dumps(value, sort_keys=True)
    return json.dumps({"text": text, "signature": key.sign(_DOMAIN + text.encode()).hex()})


def _opened(text: str, key: Ed25519PrivateKey) -> Mapping[str, Any] | None:
    try:
        whole = json.loads(text)
        if not signed_by(whole["signature"], public_hex(key), _DOMAIN + whole["text"].encode()):
            return None
        found: Mapping[str, Any] = json.loads(whole["text"])
        return found
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
