"""Processes of a benchmark: started with a log each, ended by their own ids, and the memory of all that they start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from strategies.errors import RunError

_STOP_S = 30.0
_LOOK_S = 0.25


@dataclass(kw_only=True)
class Processes:
    """Processes that run until `stop`, in a folder for their logs.

    Args:
        folder: of the logs.
        environment: beside this process's own.
    """

    folder: Path
    environment: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process."""
        with self._log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def call(self, command: Sequence[str]) -> str:
        """Return what a command prints, once it has ended.

        Raises:
            RunError: it fails.
        """
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunError(
                f"{' '.join(command[:6])} ended with {done.returncode}: {(done.stderr + done.stdout)[-500:]}"
            )
        return done.stdout

    def wait(self, what: Callable[[], object], *, within_s: float, why: str) -> None:
        """Wait until something is true.

        Raises:
            RunError: a process has ended before, or it takes too long.
        """
        deadline = time.monotonic() + within_s
        while not what():
            for name, process in self.running.items():
                if process.poll() is not None:
                    raise RunError(f"{name} has ended with {process.returncode}: {self._log(name).read_text()[-500:]}")
            if time.monotonic() > deadline:
                raise RunError(f"{why} within {within_s:g} s; the last log says: {self._last()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to the groups of those that are left after half a minute."""
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process in self.running.values():
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.running.clear()

    @contextmanager
    def watched(self, roles: Mapping[str, str]) -> Iterator[dict[str, int]]:
        """Yield the peak memory in bytes by role, which grows while the block runs.

        Args:
            roles: by role, a word of the command lines of its processes; the first that fits counts.
        """
        peaks: dict[str, int] = {}
        done = threading.Event()

        def look() -> None:
            while not done.wait(_LOOK_S):
                for pid in family(process.pid for process in self.running.values()):
                    with suppress(OSError, StopIteration, ValueError):
                        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        role = next(role for role, word in roles.items() if word in line)
                        peaks[role] = max(peaks.get(role, 0), peak_bytes(pid))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield peaks
        finally:
            done.set()
            thread.join()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _last(self) -> str:
        logs = [self._log(name) for name in self.running if self._log(name).stat().st_size]
        return max(logs, key=lambda path: path.stat().st_mtime).read_text()[-500:] if logs else "nothing"


def family(pids: Iterator[int]) -> set[int]:
    """Return processes with all that descend from them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(int(path.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(path.parent.name))
    found, left = set(), list(pids)
    while left:
        pid = left.pop()
        found.add(pid)
        left += children.get(pid, [])
    return found


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has held so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def free_ports(count: int) -> int:
    """Return a port of the loopback that is free, as are those that follow it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        if first + count > 65535:
            continue
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
