"""Sockets of the coordinator: TLS 1.3 alone, and connections that must say something soon.

A connection whose headers are not there in time is closed, and one address may hold so many connections and no more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEADERS_S = 10.0
_HEADERS_BYTES = 16384
_IDLE_S = 75
_OF_ONE_ADDRESS = 512
_OF_ALL = 4096


class Impatient(H11Protocol):
    """HTTP/1.1 with a deadline for headers and a bound on connections."""

    of_address: ClassVar[Counter[str]] = Counter()
    _deadline: asyncio.TimerHandle | None = None
    _counted = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if self.of_address[address] >= _OF_ONE_ADDRESS or self.of_address.total() >= _OF_ALL:
            transport.abort()
            return
        self._counted = address
        self.of_address[address] += 1
        self._expect()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the headers of a request are there
            self._cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._expect(_IDLE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        if self._counted:
            self.of_address[self._counted] -= 1
            if not self.of_address[self._counted]:
                del self.of_address[self._counted]
        super().connection_lost(exc)

    def _expect(self, seconds: float = _HEADERS_S) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to whoever started it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listener(app: Any, host: str, port: int, trust: ssl.SSLContext | None = None) -> Server:
    """Return a server of an ASGI application, with TLS where a context is given."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Impatient,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_HEADERS_BYTES,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=5,
        ssl_context_factory=(lambda *_: trust) if trust is not None else None,
    )
    return Server(config)


def server_side(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a TLS context of a server: version 1.3 and nothing older."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context
