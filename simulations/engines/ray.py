"""Flower's own simulation runtime: the same two app objects, with Ray's actors as nodes.

Every node's message goes through Flower's in-memory link state and is carried to an actor by Ray, which takes an actor
a core and keeps no silo on one of them. It is here as a second opinion on the other engines, and for clusters.

Of Flower (1.41) it needs some private names: the public function for this has no way to hand over a run config. What
the run config is, Flower reads where it reads it for every app: from a `pyproject.toml`, written for the run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tomlkit
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import start_vce
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState, RunRecord
from flwr.serverapp import ServerApp
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from simulations.engines.nodes import Faults, RunConfig, identify, server_context, silos_in, unavailable
from simulations.engines.pool import cores
from strategies.errors import RunError, SettingError

_RUN = 1
_TASK = 1


class Stopped(Exception):
    """The runtime has ended, so no reply will come any more."""


class RayGrid(InMemoryGrid):
    """Flower's in-memory Grid with the faults of a study.

    Args:
        factory: of the link state that the runtime reads.
        faults: which exchanges are lost.
        stopped: set when the runtime ends.
    """

    def __init__(self, factory: LinkStateFactory, faults: Faults, stopped: threading.Event) -> None:
        super().__init__(factory)
        self._faults, self._stopped = faults, stopped
        self._lost: dict[str, Message] = {}  # whose reply is lost on its way back
        self._replies: dict[str, Message] = {}
        self._never_sent = 0

    def get_node_ids(self) -> Iterable[int]:
        self._require_runtime()
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._require_runtime()
        ids = []
        for message in messages:
            fate = self._faults.fate(message)
            if fate == "request":
                self._never_sent += 1
                message.metadata.__dict__["_message_id"] = f"lost-{self._never_sent}"
                self._replies[message.metadata.message_id] = unavailable(message)
            else:
                (identity,) = super().push_messages([message])
                if fate == "reply":
                    self._lost[identity] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._require_runtime()
        ids = list(message_ids)
        found = [self._replies.pop(identity) for identity in ids if identity in self._replies]
        asked = [identity for identity in ids if not identity.startswith("lost-")]
        for reply in super().pull_messages(asked) if asked else ():
            message = self._lost.pop(reply.metadata.reply_to_message_id, None)
            found.append(reply if message is None else unavailable(message))
        return found

    def _require_runtime(self) -> None:
        if self._stopped.is_set():
            raise Stopped


def run(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    silos: list[Path],
    run_config: RunConfig,
    dropout: float,
    seed: int,
) -> RecordDict:
    """Run the server app over silo folders to its end and return what it left in its Context.

    Args:
        server_app: the coordinator.
        client_app: the silo's program.
        silos: folders ``silo-1`` ... of one parent.
        run_config: what Flower calls the run config; both apps receive it.
        dropout: see `Faults`.
        seed: see `Faults`.

    Raises:
        SettingError: Ray is not installed.
        RunError: the runtime ended before the run did.
    """
    require_ray()
    identify()
    context, stopped = server_context(run_config), threading.Event()
    factory, own = _link_state()
    grid = RayGrid(factory, Faults(dropout=dropout, seed=seed), stopped)
    grid.set_run(own)
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            server_app(grid, context)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failed.append(error)
        finally:
            stopped.set()

    server = threading.Thread(target=serve)
    with silos_in(str(silos[0].parent.absolute())), tempfile.TemporaryDirectory() as folder:
        _write_app(Path(folder), run_config)
        server.start()
        try:
            with _interruptible(stopped):
                _serve_silos(client_app, len(silos), Path(folder), factory, own, stopped)
        except RuntimeError as error:
            if not failed:
                failed.append(
                    RunError(f"Flower's simulation runtime ended before the run did ({error.__cause__ or error})")
                )
        finally:
            stopped.set()
            server.join()
    if failed and not isinstance(failed[0], Stopped):
        raise failed[0]
    return context.state


@contextmanager
def _interruptible(stopped: threading.Event) -> Iterator[None]:
    """Let Ctrl-C end the runtime as the end of a run does: torn out of its threads' hands, it would wait for them.

    Raises:
        KeyboardInterrupt: at the end of the block, where it came within it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = threading.Event()

    def interrupt(*_: object) -> None:
        came.set()
        stopped.set()
        signal.signal(signal.SIGINT, before)  # a second one does not wait

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came.is_set():
        raise KeyboardInterrupt


def require_ray() -> None:
    """Return when Ray is there.

    Raises:
        SettingError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingError(
            "simulation.engine = 'ray' needs Ray, which is not installed; run pip install 'fedsilo[ray]', or use "
            "--engine pool"
        )
    import ray

    if ray.is_initialized():
        raise SettingError(
            "simulation.engine = 'ray' starts a runtime of its own, and Ray runs in this process already; call "
            "ray.shutdown() before, or use --engine pool"
        )


def _link_state() -> tuple[LinkStateFactory, Run]:
    """Return an empty link state that knows one run, as the runtime wants it."""
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    own = Run.create_empty(_RUN)
    own.primary_task_id, own.federation_id = _TASK, NOOP_FEDERATION_ID
    state = factory.state()
    assert isinstance(state, InMemoryLinkState)
    state.run_ids[_RUN] = RunRecord(run=own)
    state.task_store[_TASK] = Task(task_id=_TASK, run_id=_RUN)
    return factory, own


def _write_app(folder: Path, run_config: RunConfig) -> None:
    """Write the file from which Flower reads what a silo's run config is."""
    app = {
        "publisher": "fedsilo",
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": dict(run_config),
    }
    project = {"name": "fedsilo", "version": "1.0.0", "dependencies": []}
    text = tomlkit.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def _serve_silos(
    client_app: ClientApp, silos: int, folder: Path, factory: LinkStateFactory, own: Run, stopped: threading.Event
) -> None:
    """Run Flower's runtime until `stopped` is set."""
    backend = {
        "init_args": {"num_cpus": cores(), "logging_level": logging.ERROR, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "actor": {"tensorflow": 0},
    }
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that it will
    flower, level = logging.getLogger("flwr"), logging.getLogger("flwr").level
    flower.setLevel(logging.CRITICAL)  # what goes wrong is raised
    try:
        start_vce(
            backend_name="ray",
            backend_config_json_stream=json.dumps(backend),
            app_dir=str(folder),
            is_app=True,
            f_stop=stopped,
            run=own,
            metrics=VceMetrics(),
            client_app=client_app,
            num_supernodes=silos,
            state_factory=factory,
        )
    finally:
        flower.setLevel(level)
        with suppress(ImportError):
            import ray

            ray.shutdown()
