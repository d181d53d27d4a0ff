"""One running coordinator a folder: a lock that says which process holds it, and ports that must be free."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock

from server.home import Home
from strategies.errors import SettingError

_PID = "up.pid"


@contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Hold the folder for one running coordinator, and say which process it is.

    Raises:
        SettingError: another one runs, or a port is taken.
    """
    home.superlink.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home.superlink / _PID, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except OSError:
            raise SettingError(f"a coordinator runs in {home.folder} already; use fedsilo-server stop") from None
        settings = home.settings
        for host, port in (
            (settings.listen, settings.port),
            *(("127.0.0.1", port) for port in (settings.superlink_port, settings.status_port, settings.health_port)),
        ):
            _require_free(host, port)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def running(home: Home) -> int | None:
    """Return the process id of the coordinator that runs in a folder, or None."""
    try:
        descriptor = os.open(home.superlink / _PID, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
        return None
    except OSError:
        text = os.pread(descriptor, 32, 0)
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingError(
                f"port {port} on {host} cannot be had ({error.strerror}); choose another in server.toml"
            ) from None
