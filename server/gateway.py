"""The coordinator's only public listener: what a silo of the roster may say to Flower's Fleet API, and nothing else.

In this order, each before anything later is looked at or a body is read: the path is one of ten; the method is POST;
the headers are signed by a key of the roster, for the first time; the silo is within its rate; the body has a declared
length within its cap. Then, before a byte is forwarded: the body is such a request, speaks for the silo's own node, and
touches only objects that were given to it or announced by it.

Guarantees: nothing of a request that fails a check reaches Flower; registration, control and runtime calls have no path
at all. Every refusal and every call that moves something stands in `audit.jsonl`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from server import fleet
from server.entrance import Entrance, Refused
from server.grants import Grants
from server.journal import Journal
from server.meters import Meters

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LARGEST_BYTES = {"push-object": 8 * 2**20}  # Flower sends chunks of 5 MiB
_LARGEST_OTHER_BYTES = 2**20
_BODY_S = 120.0
_AT_ONCE = 4  # requests of one silo
_RATE, _BURST = 100.0, 400.0  # requests a second of one silo
_ROUTINE = ("pull-messages", "send-node-heartbeat")  # a line of the log each would hide the others
_EMPTY_BYTES = 16  # of an answer that brings no message
_FORWARDED = (fleet.KEY_HEADER, fleet.SIGNATURE_HEADER, fleet.TIMESTAMP_HEADER, *fleet.VERSION_HEADERS)


@dataclass(kw_only=True)
class _Line:
    """What one silo has under way."""

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    tokens: float = _BURST
    at: float = field(default_factory=time.monotonic)

    def spend(self) -> None:
        now = time.monotonic()
        self.tokens = min(_BURST, self.tokens + _RATE * (now - self.at)) - 1
        self.at = now
        if self.tokens < 0:
            self.tokens = 0.0
            raise Refused(429, "rate")


@dataclass(kw_only=True)
class Gateway:
    """An ASGI application.

    Args:
        entrance: who is let in.
        grants: what belongs to whom.
        upstream: client of the SuperLink on the loopback.
        audit: the log.
        meters: counters for the metrics.
    """

    entrance: Entrance
    grants: Grants
    upstream: httpx.AsyncClient
    audit: Journal
    meters: Meters
    _lines: dict[str, _Line] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        name, silo, began = "-", "-", time.monotonic()
        status, body, reason, sent = 500, b"", "", 0
        try:
            name = _name(scope)
            silo, key = self.entrance.admit(_headers(scope))
            line = self._lines.setdefault(silo, _Line())
            line.spend()
            length = _length(scope, name)
            async with line.slots:
                content = await _body(receive, length)
                sent = len(content)
                call = self._check(name, silo, key, content)
                status, body = await self._forward(name, silo, call, scope, content)
        except Refused as refusal:
            status, body, reason = refusal.status, refusal.reason.encode(), refusal.reason
        except ConnectionAbortedError:
            return
        finally:
            self._note(_peer(scope), silo, name, status, reason, (sent, len(body)))
            self.meters.observe(name, status, silo, received=sent, sent=len(body), seconds=time.monotonic() - began)
        await _answer(send, status, body, refused=bool(reason))

    def _check(self, name: str, silo: str, key: bytes, content: bytes) -> fleet.Call:
        """Return what is asked for, if the silo may ask for it."""
        try:
            call = fleet.read_call(name, content)
        except ValueError:
            raise Refused(400, "malformed") from None
        if name == "activate-node":
            if call.key != key:
                raise Refused(403, "key")
            return call
        if call.node == 0 or self.grants.node(silo) not in (0, call.node):
            raise Refused(403, "node")
        allowed = True
        if call.reply is not None:
            allowed = call.reply.source == call.node and self.grants.may_answer(silo, call.reply)
        elif name in ("get-run", "get-fab"):
            allowed = self.grants.takes_part(silo, call.run)
        elif name == "pull-object":
            allowed = self.grants.may_fetch(silo, call.object)
        elif name == "push-object":
            allowed = self.grants.may_send(silo, call.object)
        elif name == "confirm-message-received":
            allowed = self.grants.may_confirm(silo, call.object)
        if not allowed:
            raise Refused(403, "owner")
        return call

    async def _forward(self, name: str, silo: str, call: fleet.Call, scope: Scope, content: bytes) -> tuple[int, bytes]:
        """Hand the request on and note what Flower's answer gives to the silo."""
        given = _headers(scope)
        headers = [(header, given[header]) for header in _FORWARDED if header in given]
        headers += [(b"content-type", fleet.MEDIA_TYPE.encode()), (b"accept", fleet.MEDIA_TYPE.encode())]
        if call.reply is not None:
            self.grants.answer(silo, call.reply)
        try:
            answer = await self.upstream.post(f"/v1/fleet/{name}", content=content, headers=headers)
        except httpx.HTTPError:
            raise Refused(503, "superlink") from None
        if answer.status_code == 200:
            if name == "activate-node":
                self.grants.bind(silo, fleet.read_activated(answer.content))
            else:
                self.grants.bind(silo, call.node)  # Flower has compared it with the key
            if name == "pull-messages":
                for pulled in fleet.read_pulled(answer.content):
                    self.grants.give(silo, pulled)
            elif name == "confirm-message-received":
                self.grants.confirm(silo, call.object)
        return answer.status_code, answer.content

    def _note(self, peer: str, silo: str, name: str, status: int, reason: str, sizes: tuple[int, int]) -> None:
        received, sent = sizes
        if status == 200 and name in _ROUTINE and sent <= _EMPTY_BYTES:
            return
        self.audit.write(
            "request", peer=peer, silo=silo, call=name, status=status, reason=reason, received=received, sent=sent
        )


# --- one request --------------------------------------------------------------------------------------------


def _name(scope: Scope) -> str:
    name = fleet.PATHS.get(bytes(scope.get("raw_path") or b""))
    if name is None or scope.get("query_string"):
        raise Refused(404, "path")
    if scope["method"] != "POST":
        raise Refused(405, "method")
    return name


def _headers(scope: Scope) -> Mapping[bytes, bytes]:
    """Return the headers; one that comes twice is an attempt to be read in two ways."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in found and name in (*_FORWARDED, b"content-length", b"content-type"):
            raise Refused(400, "headers")
        found[name] = value
    return found


def _length(scope: Scope, name: str) -> int:
    headers = _headers(scope)
    text = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or not text.isdigit():
        raise Refused(411, "length")
    if len(text) > 12 or int(text) > _LARGEST_BYTES.get(name, _LARGEST_OTHER_BYTES):
        raise Refused(413, "length")
    return int(text)


async def _body(receive: Receive, length: int) -> bytes:
    """Read a body of the declared length.

    Raises:
        Refused: it does not arrive in time.
        ConnectionAbortedError: the other side has gone.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionAbortedError
                content += message.get("body", b"")
                if len(content) > length:
                    raise Refused(400, "length")
                if not message.get("more_body"):
                    return bytes(content)
    except TimeoutError:
        raise Refused(408, "slow") from None


async def _answer(send: Send, status: int, body: bytes, *, refused: bool) -> None:
    kind = b"text/plain" if refused else fleet.MEDIA_TYPE.encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if refused:
        headers.append((b"connection", b"close"))  # a body that was not read must not be taken for a request
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""
