"""The server's state on disk: one safetensors file, replaced as a whole, so that a crash leaves the last round."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors.numpy

from strategies.base import State
from strategies.errors import ProtocolError, RunError
from strategies.layout import Layout, Vector
from strategies.manifest import Manifest

_FILE = "state.safetensors"


def save(folder: Path, state: State, manifest: Manifest, record: str = "") -> None:
    """Write the state after a round, and what else a run needs that is taken up (server/resume.py)."""
    arrays = {"weights": state.weights, **{f"memory/{name}": vector for name, vector in state.memory.items()}}
    facts = {"round": str(state.round), "manifest": manifest.to_json(), "record": record}
    write_whole(folder / _FILE, safetensors.numpy.save(arrays, metadata=facts))


def load(folder: Path) -> tuple[State, Manifest]:
    """Read the state of the last finished round.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    return load_with_record(folder)[:2]


def load_with_record(folder: Path) -> tuple[State, Manifest, str]:
    """Read the state of the last finished round and the record that was saved with it.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    try:
        payload = (folder / _FILE).read_bytes()
        length = int.from_bytes(payload[:8], "little")
        facts = json.loads(payload[8 : 8 + length])["__metadata__"]
        arrays = safetensors.numpy.load(payload)
        memory = {name.removeprefix("memory/"): array for name, array in arrays.items() if name.startswith("memory/")}
        state = State(weights=arrays["weights"], round=int(facts["round"]), memory=memory)
        return state, Manifest.from_json(facts["manifest"]), str(facts.get("record", ""))
    except (OSError, ValueError, KeyError, TypeError, ProtocolError, safetensors.SafetensorError) as error:
        raise RunError(f"{folder} holds no readable checkpoint ({type(error).__name__})") from None


def save_model(path: Path, layout: Layout, weights: Vector) -> None:
    """Write the global model with its parameters by name."""
    write_whole(path, safetensors.numpy.save({k: v.copy() for k, v in layout.split(weights).items()}))


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
