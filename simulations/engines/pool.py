"""The ClientApp in worker processes: a Flower Grid over as many of them as there are cores.

Each worker owns a fixed share of the silos, so each silo's records are read once and no two processes write to one
ledger at a time. It calls the same unchanged ClientApp, one message after another, on one torch thread.

A worker is a fresh interpreter (`simulations/engines/worker.py`), not a fork: torch's threads and their locks do not
survive a fork, and no memory of this process, its keys and open ledgers least of all, is inherited (its environment
is). Neither is the caller's main module imported anew, as `multiprocessing` would do.

A worker that dies is started again: the silo that it had in hand counts as Flower's "node unavailable", those that
waited are asked again. One that has not answered when the study's round_timeout_s is over is killed, and what is
overdue counts as unavailable. When the block ends, however it ends, no worker is left.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.serverapp import ServerApp

from simulations.engines.nodes import (
    FIRST_NODE,
    Faults,
    NodesGrid,
    RunConfig,
    identify,
    server_context,
    unavailable,
)
from strategies import wire
from strategies.errors import RunError

APP = "client.app:app"
_LAST_WORDS_S = 5.0
_LONGEST_FRAME_S = 300  # of one read or write; a process that was stopped neither reads nor writes
_LENGTH = 8  # of the number that a safetensors blob begins with
Gone = (EOFError, OSError)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A message on its way: what its reply is made from, its bytes in two parts, and whether the reply is lost."""

    message: Message
    facts: dict[str, object]
    front: bytes
    rest: bytes
    deadline: float
    lost: bool


class Worker:
    """One process and what it was asked.

    Args:
        settings: its first frame.
        folder: of the silos.
    """

    def __init__(self, settings: bytes, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self.asked: deque[_Asked] = deque()  # answered in this order
        self._start()

    @property
    def pid(self) -> int:
        """Of the process, for tests."""
        return self._process.pid

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _LONGEST_FRAME_S, 0))
        with theirs:
            path = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
            own = {"FEDSILO_SILOS": str(self._folder.absolute()), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "simulations.engines.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={key: value for key, value in os.environ.items() if key != "FEDSILO_SILO"} | own,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run, which ends its workers
            )
        self.connection = connection.Connection(ours.detach())
        self.ready, self._rest = False, b""
        self._write(self._settings)

    def ask(self, asked: _Asked) -> None:
        """Send a message; a process that has died without anything in hand is replaced before.

        Raises:
            RunError: the process does not begin.
        """
        if not self.asked and self._process.poll() is not None:
            self.restart()
        self.asked.append(asked)
        self._send(asked)

    def wait(self) -> None:
        """Wait until the process is ready, which is no part of any silo's time.

        Raises:
            RunError: it does not begin.
        """
        try:
            while not self.ready:
                self.read()
        except Gone:
            self.restart()

    def _send(self, asked: _Asked) -> None:
        new = asked.rest is not self._rest
        head = json.dumps({**asked.facts, "rest": new}).encode()
        self._write(head, asked.front, *((asked.rest,) if new else ()))
        self._rest = asked.rest

    def _write(self, *frames: bytes) -> None:
        """Write frames; a process that takes none any more is killed, and so found when it is read from."""
        try:
            for frame in frames:
                self.connection.send_bytes(frame)
        except OSError:
            self._process.kill()

    def read(self) -> tuple[_Asked, Message] | None:
        """Read the next reply, or that the process is ready; None for that, and for what nobody waits for any more.

        Raises:
            EOFError, OSError: the process is gone.
        """
        facts = self.connection.recv_bytes()
        if not facts:
            self.ready = True
            return None
        told, payload = json.loads(facts), self.connection.recv_bytes()
        if not self.asked or told["id"] != self.asked[0].facts["id"]:
            return None
        asked = self.asked.popleft()
        if told["error"]:
            return asked, Message(Error(code=told["error"], reason="the silo's app failed"), reply_to=asked.message)
        return asked, Message(wire.payload_to_record(payload), reply_to=asked.message)

    def restart(self) -> None:
        """Replace the process by a new one, and ask again what waits.

        Raises:
            RunError: it has not even begun.
        """
        began = self.ready
        self.end(at_once=True)
        if not began:
            raise RunError(
                f"a worker process of simulation.engine = 'pool' ended before it was ready (exit status "
                f"{self._process.returncode}); its own words stand above; use --engine inline"
            )
        self._start()
        for asked in self.asked:
            self._send(asked)

    def end(self, *, at_once: bool) -> None:
        """End the process: it stops where its socket is closed."""
        if at_once:
            self._process.kill()
        self.connection.close()
        try:
            self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class PoolGrid(NodesGrid):
    """A Grid whose nodes are shared out to workers.

    Args:
        workers: processes.
        nodes: of the silos.
        faults: which exchanges are lost.
    """

    def __init__(self, workers: Sequence[Worker], nodes: Iterable[int], faults: Faults) -> None:
        super().__init__(nodes, faults)
        self._workers = workers
        self._replies: dict[str, Message] = {}
        self._rest = b""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(self._name(message))
            fate = self._faults.fate(message)
            if fate == "request":
                self._replies[ids[-1]] = unavailable(message)
            else:
                worker = self._workers[(message.metadata.dst_node_id - FIRST_NODE) % len(self._workers)]
                worker.wait()
                worker.ask(self._asked(message, lost=fate == "reply"))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies, after waiting for them: whoever has all has nothing to wait for."""
        ids = list(message_ids)
        while busy := [worker for worker in self._workers if worker.asked]:
            wait_s = min(worker.asked[0].deadline for worker in busy) - time.monotonic()
            ready = connection.wait([worker.connection for worker in busy], max(0.0, wait_s))
            for worker in busy:
                if worker.connection in ready:
                    self._hear(worker)
                elif worker.asked[0].deadline <= time.monotonic():
                    self._give_up(worker)
        return [self._replies.pop(identity) for identity in ids if identity in self._replies]

    def _hear(self, worker: Worker) -> None:
        try:
            heard = worker.read()
        except Gone:
            if worker.asked:
                self._lose(worker)
            worker.restart()
            return
        if heard is not None:
            asked, reply = heard
            self._keep(asked, unavailable(asked.message) if asked.lost else reply)

    def _give_up(self, worker: Worker) -> None:
        """Lose what is overdue, and the process that has it in hand; one that only just starts has nothing in hand."""
        now = time.monotonic()
        while worker.asked and worker.asked[0].deadline <= now:
            self._lose(worker)
        if worker.ready:
            worker.restart()

    def _lose(self, worker: Worker) -> None:
        asked = worker.asked.popleft()
        self._keep(asked, unavailable(asked.message))

    def _keep(self, asked: _Asked, reply: Message) -> None:
        self._replies[asked.message.metadata.message_id] = reply

    def _asked(self, message: Message, *, lost: bool) -> _Asked:
        facts = message.metadata
        payload = wire.record_to_payload(message.content) or b""
        front = _LENGTH + int.from_bytes(payload[:_LENGTH], "little")
        if len(payload) != front + len(self._rest) or not payload.endswith(self._rest):
            self._rest = payload[front:]  # else it is kept once, and sent once
        return _Asked(
            message=make_message(facts, RecordDict()),
            facts={
                "id": facts.message_id,
                "node": facts.dst_node_id,
                "type": facts.message_type,
                "group": facts.group_id,
                "created": facts.created_at,
                "ttl": facts.ttl,
            },
            front=payload[:front],
            rest=self._rest,
            deadline=time.monotonic() + facts.ttl,
            lost=lost,
        )


def run(
    server_app: ServerApp,
    client_app: str,
    *,
    silos: list[Path],
    run_config: RunConfig,
    dropout: float,
    seed: int,
    workers: int | None = None,
) -> RecordDict:
    """Run the server app over silo folders to its end and return what it left in its Context.

    Args:
        server_app: the coordinator.
        client_app: the silo's program, as ``module:name``.
        silos: folders ``silo-1`` ... of one parent.
        run_config: what Flower calls the run config; both apps receive it.
        dropout: see `Faults`.
        seed: see `Faults`.
        workers: processes; None for one a core that this process may use, and no more than there are silos.

    Raises:
        RunError: a worker does not start.
    """
    identify()
    context = server_context(run_config)
    with started(client_app, silos, run_config, workers or cores()) as processes:
        nodes = range(FIRST_NODE, FIRST_NODE + len(silos))
        server_app(PoolGrid(processes, nodes, Faults(dropout=dropout, seed=seed)), context)
    return context.state


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def started(client_app: str, silos: Sequence[Path], run_config: RunConfig, count: int) -> Iterator[list[Worker]]:
    """Run workers while the block runs: `count`, and no more than there are silos."""
    settings = json.dumps({"app": client_app, "silos": len(silos), "config": dict(run_config)}).encode()
    workers: list[Worker] = []
    try:
        for _ in range(min(count, len(silos))):
            workers.append(Worker(settings, silos[0].parent))
        yield workers
    finally:
        for worker in workers:
            worker.end(at_once=bool(worker.asked))
