"""The running coordinator: SuperLink and SuperExec as processes on the loopback, the gateway before them.

A process that ends by itself is started again; Flower's database is on disk, so a run lives through that. Flower's
list of nodes is made equal to the roster when that changes, so whoever is enrolled or removed is let in or out at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from server.authority import certify
from server.entrance import Entrance
from server.gateway import Gateway
from server.grants import Grants
from server.home import Home
from server.journal import Journal
from server.listener import Server, listener, server_side
from server.meters import Meters
from server.page import Health, application
from server.superlink import Control, environment, loopback, superexec_command, superlink_command
from strategies.errors import FedsiloError, RunError
from strategies.roster import Roster

_START_S = 90.0
_PAUSE_S = 0.5
_RECONCILE_S = 10.0
_SLOWEST_RESTART_S = 30.0
_UPSTREAM_S = 60.0
_LOG_BYTES = 16 * 2**20


@dataclass(kw_only=True)
class Child:
    """A process that is kept running.

    Args:
        name: for logs.
        command: its command line.
        log: where its output goes.
        environment: its environment.
    """

    name: str
    command: list[str]
    log: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    wait_s: float = 0.0
    started_at: float = 0.0
    again_at: float = 0.0

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                cwd=self.log.parent,
                stdin=subprocess.PIPE,  # closed with this process, which a child may watch
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.starts += 1
        self.started_at = time.monotonic()

    def next_start(self, now: float) -> float:
        """Return when to start it again after it has ended: at once if it ran well, else later each time."""
        if now - self.started_at > _SLOWEST_RESTART_S:
            self.wait_s = 0.0
        again_at, self.wait_s = now + self.wait_s, min(_SLOWEST_RESTART_S, max(1.0, 2 * self.wait_s))
        return again_at

    def trim(self) -> None:
        """Bound the log: once it is too long its end becomes `.1`, and it begins anew.

        It is emptied and not renamed, for the process appends to the file that it has open.
        """
        if not self.log.exists() or self.log.stat().st_size <= _LOG_BYTES:
            return
        with self.log.open("r+b") as file:
            file.seek(-_LOG_BYTES, os.SEEK_END)
            self.log.with_name(f"{self.log.name}.1").write_bytes(file.read(_LOG_BYTES))
            file.truncate(0)

    def stop(self) -> None:
        """End it, by force after ten seconds."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass(kw_only=True)
class Coordinator:
    """Everything that `up` runs."""

    home: Home
    journal: Journal
    meters: Meters = field(default_factory=Meters)
    children: list[Child] = field(default_factory=list)
    serving: list[Server] = field(default_factory=list)
    _roster: Roster | None = None
    _stamp: tuple[int, int] = (0, 0)
    _reconciled: tuple[int, int] = (0, 0)
    _reconcile_at: float = 0.0

    # --- roster ---------------------------------------------------------------------------------------------

    def roster(self) -> Roster:
        """Return the roster, read again when the file has changed."""
        facts = self.home.roster_path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        if self._roster is None or stamp != self._stamp:
            self._roster, self._stamp = self.home.roster(), stamp
        return self._roster

    def silos(self) -> dict[str, str]:
        """Return the silos' names by transport key."""
        return {member.transport_key: silo for silo, member in self.roster().members.items()}

    def reconcile(self) -> None:
        """Make Flower's list of nodes equal to the roster."""
        control, wanted = Control(self.home), self.silos()
        nodes = control.nodes()
        for node in nodes:
            if node.key not in wanted:
                control.unregister(node.node)
                self.journal.write("unregistered", node=node.node)
        known = {node.key for node in nodes}
        for key, silo in wanted.items():
            if key not in known:
                control.register(key, silo)
                self.journal.write("registered", silo=silo)
        self.meters.gauges["fedsilo_silos_enrolled"] = len(wanted)
        self.meters.gauges["fedsilo_silos_online"] = sum(node.online and node.key in wanted for node in nodes)

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, and call `ready` once silos can connect.

        Raises:
            RunError: the SuperLink does not start, or a port is taken.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        address, headers, trust = loopback(self.home)
        async with httpx.AsyncClient(
            base_url=address, headers=headers, verify=trust, timeout=_UPSTREAM_S, trust_env=False
        ) as upstream:
            gateway = self._gateway(upstream)
            settings = self.home.settings
            self.serving.append(listener(application(self.home, self.meters), "127.0.0.1", settings.status_port))
            tasks = [asyncio.create_task(server.serve()) for server in self.serving]
            health = Health(settings.health_port)
            try:
                for child in self.children:
                    child.start()
                    await self._until_up(child, stop)
                await asyncio.to_thread(self.reconcile)
                server = listener(gateway, settings.listen, settings.port, self._tls())
                self.serving.append(server)
                tasks.append(asyncio.create_task(server.serve()))
                self.journal.write("up", pid=os.getpid(), port=settings.port)
                with health.served():
                    health.tell(True)
                    ready()
                    while not stop.is_set():
                        with suppress(TimeoutError):
                            await asyncio.wait_for(stop.wait(), _PAUSE_S)
                        health.tell(await self._watch())
            finally:
                for server in self.serving:
                    server.should_exit = True
                await asyncio.gather(*tasks, return_exceptions=True)
                for child in reversed(self.children):
                    await asyncio.to_thread(child.stop)
                self.journal.write("down", pid=os.getpid())

    def _gateway(self, upstream: httpx.AsyncClient) -> Gateway:
        return Gateway(
            entrance=Entrance(roster=self.silos),
            grants=Grants(self.home.superlink / "grants.jsonl"),
            upstream=upstream,
            audit=Journal(self.home.logs / "audit.jsonl"),
            meters=self.meters,
        )

    def _tls(self) -> ssl.SSLContext:
        return server_side(self.home.folder / "server.crt", self.home.keys / "server.key")

    async def _until_up(self, child: Child, stop: asyncio.Event) -> None:
        """Wait until the SuperLink answers; nothing can be asked of the others."""
        if child.name != "superlink":
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_S
        while not stop.is_set():
            assert child.process is not None
            if child.process.poll() is not None or loop.time() > deadline:
                raise RunError(f"the SuperLink did not start; see {child.log}")
            try:
                await asyncio.to_thread(Control(self.home).nodes)
                return
            except RunError:
                await asyncio.sleep(0.2)

    async def _watch(self) -> bool:
        """Start again what has ended, bring Flower's nodes up to date; return whether the SuperLink answers."""
        self.roster()
        now = asyncio.get_running_loop().time()
        for child in self.children:
            child.trim()
            if child.process is None or child.process.poll() is None:
                continue
            if child.again_at == 0.0:
                self.journal.write("ended", process=child.name, code=child.process.returncode)
                child.again_at = child.next_start(now)
            if now >= child.again_at:
                child.again_at = 0.0
                child.start()
        if self._stamp == self._reconciled and now < self._reconcile_at:
            return all(child.process and child.process.poll() is None for child in self.children)
        try:
            await asyncio.to_thread(self.reconcile)
            self._reconciled, self._reconcile_at = self._stamp, now + _RECONCILE_S
        except (FedsiloError, OSError) as error:
            self.journal.write("unreconciled", reason=type(error).__name__)
            return False
        return True


def coordinator(home: Home) -> Coordinator:
    """Return a coordinator that is ready to run; its certificate is made anew where that is due."""
    for folder in (home.superlink, home.logs):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    certify(home.folder, home.settings.hosts)
    made = Coordinator(home=home, journal=Journal(home.logs / "server.jsonl"))
    surroundings = environment(home)
    for name, command in (("superlink", superlink_command(home)), ("superexec", superexec_command(home))):
        log = home.superlink / f"{name}.log"
        made.children.append(Child(name=name, command=command, log=log, environment=surroundings))
    return made
