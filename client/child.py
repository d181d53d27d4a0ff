"""The node's side of the process that trains: started when it is needed, kept warm, killed when its time is up."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from client.worker import read_frame, write_frame

_POLL_S = 0.2


class Killed(Exception):
    """The process was killed: its time was up, it ended by itself, or the node stops."""


class Child:
    """A worker process.

    Args:
        folder: the silo's.
        passphrase: of its keys.
        stopping: whether the node is about to end.
    """

    def __init__(self, folder: Path, passphrase: bytes | None, stopping: Callable[[], bool]) -> None:
        self._folder, self._passphrase, self._stopping = folder, passphrase, stopping
        self._process: subprocess.Popen[bytes] | None = None
        self._to: BinaryIO | None = None
        self._from: BinaryIO | None = None
        self._ready = False

    @property
    def pid(self) -> int | None:
        """Process id of the worker, for logs and tests."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process if none runs; it loads its libraries while the node waits for work."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        read_in, write_in = os.pipe()
        read_out, write_out = os.pipe()
        (self._folder / "logs").mkdir(exist_ok=True)
        with (self._folder / "logs" / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "client.worker", str(read_in), str(write_out)],
                pass_fds=(read_in, write_out),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(read_in)
        os.close(write_out)
        self._to, self._from = os.fdopen(write_in, "wb"), os.fdopen(read_out, "rb")
        self._ready = False
        word = self._passphrase.hex() if self._passphrase is not None else None
        with suppress(BrokenPipeError):
            write_frame(self._to, {"folder": str(self._folder.absolute()), "passphrase": word})

    def call(self, header: dict[str, Any], body: bytes, timeout_s: float) -> bytes:
        """Return the reply to a message.

        Raises:
            Killed: there is none.
        """
        deadline = time.monotonic() + timeout_s
        self.start()
        assert self._to is not None
        try:
            if not self._ready:
                self._read(deadline)
                self._ready = True
            write_frame(self._to, header, body)
            del body  # the worker has it; a large model is not held here while it is trained
            return self._read(deadline)
        except (Killed, EOFError, OSError):
            self.kill()
            raise Killed from None

    def _read(self, deadline: float) -> bytes:
        """Read a frame once there is one; a frame is written at once, so its first byte is what takes time."""
        assert self._from is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            while not selector.select(_POLL_S):
                if time.monotonic() > deadline or self._stopping():
                    raise Killed
        return read_frame(self._from)[1]

    def kill(self) -> None:
        """End the process and all that it started, now."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        for file in (self._to, self._from):
            if file is not None:
                with suppress(OSError):
                    file.close()
        self._to = self._from = None
