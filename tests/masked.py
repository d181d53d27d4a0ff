"""Masked runs for tests: the two apps over real silo folders, with every message seen and any of them lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from client.app import app as client_app
from client.silo import Silo
from server.app import app as server_app
from simulations.engines import inline
from simulations.engines.inline import InlineGrid
from simulations.silos import REGISTRIES, complete, make_silos
from simulations.sources import read_dataset
from strategies import wire
from strategies.secagg.claims import Claim
from strategies.secagg.silo import SiloSession
from strategies.study import Study, override

TEXT = """[study]
name = "masked"
task = "classification"
rounds = 2
[data]
kind = "images"
shape = [8, 8, 1]
[model]
name = "mlp(hidden=[256])"
[training]
sampling_rate = 0.05
steps = 3
[privacy]
noise_multiplier = 1.0
[secagg]
enabled = true
[cohort]
round_timeout_s = 60
[simulation]
dataset = "digits()"
silos = 5
partition = "iid"
"""
FIRST = 2  # node of silo-1 in the inline engine

Lose = Callable[[str, int, wire.Instruction], str]  # message type, round, request -> "", "request" or "reply"


def study_of(**values: object) -> Study:
    """The study with ``section__key`` values."""
    changed = {key.replace("__", "."): value for key, value in values.items()}
    return Study.parse(override(TEXT, changed), REGISTRIES)


def folders_of(study: Study, where: Path) -> tuple[Study, list[Path]]:
    """The study as silos see it, and their folders."""
    frame = read_dataset(study, Path())
    whole, _ = complete(study, frame)
    return whole, make_silos(whole, frame, where)


@dataclass(kw_only=True)
class Seen:
    """What a run has shown: each message with its reply, and what each silo put into each sum."""

    folder: Path = Path()
    messages: list[tuple[str, wire.Instruction, wire.Reply | None]] = field(default_factory=list)
    vectors: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)  # by number of the sum and silo

    def replies(self, kind: type[Any]) -> list[Any]:
        """Replies of one class, in order."""
        return [reply for _, _, reply in self.messages if isinstance(reply, kind)]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, lose: Lose | None = None) -> Iterator[Seen]:
    """See every message of the inline grid; lose the request or the reply of some."""
    seen, answer, mask = Seen(), InlineGrid._answer, SiloSession.mask

    def answered(self: InlineGrid, message: Message) -> Message:
        silo = f"silo-{message.metadata.dst_node_id - FIRST + 1}"
        request = wire.from_record(message.content, wire.INSTRUCTIONS)
        fate = (
            lose(silo, len({m.round for _, m, _ in seen.messages if isinstance(m, wire.Train)}), request)
            if lose
            else ""
        )
        reply = answer(self, message) if fate != "request" else None
        decoded = None if reply is None or reply.has_error() else wire.from_record(reply.content, wire.REPLIES)
        seen.messages.append((silo, request, decoded if not fate else None))
        if fate or reply is None:
            return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason="lost"), reply_to=message)
        return reply

    def masked(self: SiloSession, claim: Claim, vectors: Any, **rest: Any) -> Any:
        seen.vectors[claim.t, self._name] = np.array(vectors[0], np.float64)
        return mask(self, claim, vectors, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(InlineGrid, "_answer", answered)
        patch.setattr(SiloSession, "mask", masked)
        yield seen


def run(study: Study, folders: list[Path], out: Path) -> Path:
    """A whole run; return the run folder."""
    state = inline.run(
        server_app,
        client_app,
        silos=folders,
        dropout=0.0,
        seed=1,
        run_config={"study": study.text, "out": str(out), "test": "", "page": False},
    )
    return Path(str(state.config_records["run"]["folder"]))


def kinds_of(folder: Path) -> list[tuple[str, int]]:
    """The steps of all rounds in a silo's ledger."""
    with Silo.open(folder).ledger() as ledger:
        return [(entry.kind, entry.round) for entry in ledger.entries() if entry.run]
