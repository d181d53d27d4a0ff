"""Flower's SuperLink as a process on the loopback, and the calls that command it (flwr 1.41).

`python -m server.superlink` is `flower-superlink` with two changes. Every call but those of the Runtime API, which has
its own secret, must carry the loopback secret of this coordinator: registration, control and Fleet calls come from its
own gateway and commands, whoever else has a shell on the machine. And SQLite waits a minute for a
lock, for the sake of models of a gigabyte.
"""

from __future__ import annotations

import hmac
import os
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from server.authority import read_secret
from strategies.errors import RunError

if TYPE_CHECKING:
    from server.home import Home

LOOPBACK_HEADER = "fedsilo-loopback"
_GUARD_FILE = "FEDSILO_LOOPBACK_FILE"
_BUSY_MS = "60000"
_TIMEOUT_S = 20.0
_LIVE = ("pending", "starting", "running")


# --- the process --------------------------------------------------------------------------------------------


def superlink_command(home: Home) -> list[str]:
    """Return the command line of the SuperLink."""
    folder = home.folder
    return [
        *(sys.executable, "-m", "server.superlink"),
        *("--host", "127.0.0.1", "--port", str(home.settings.superlink_port)),
        *("--ssl-ca-certfile", str(folder / "ca.crt"), "--ssl-certfile", str(folder / "server.crt")),
        *("--ssl-keyfile", str(home.keys / "server.key")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(home.keys / "superexec.secret")),
        *("--enable-supernode-auth", "--database", str(home.superlink / "state.db")),
        "--disable-runtime-dependency-installation",
    ]


def superexec_command(home: Home) -> list[str]:
    """Return the command line of the process that starts the server's app."""
    return [
        str(Path(sys.executable).parent / "flower-superexec"),
        *("--runtime-api-address", f"127.0.0.1:{home.settings.superlink_port}"),
        *("--root-certificates", str(home.folder / "ca.crt")),
        *("--superexec-auth-secret-file", str(home.keys / "superexec.secret")),
        *("--parent-pid", str(os.getpid())),
    ]


def environment(home: Home) -> dict[str, str]:
    """Return the environment of both: Flower's home in the coordinator's folder, nothing sent or fetched."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home.superlink / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "FEDSILO_COORDINATOR": str(home.folder),  # server/deployed.py
        "NO_PROXY": "127.0.0.1",
        _GUARD_FILE: str(home.keys / "loopback.secret"),
    }


@dataclass(frozen=True)
class _Guard:
    """ASGI middleware: lets through what carries the secret."""

    app: Callable[..., Awaitable[None]]
    secret: bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/v1/runtime/"):
            given = dict(scope["headers"]).get(LOOPBACK_HEADER.encode(), b"")
            if not hmac.compare_digest(given, self.secret):
                await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
                return
        await self.app(scope, receive, send)


def _end_with_the_parent() -> None:
    """End when standard input ends: the one who started this has gone, however."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), 15)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Run the SuperLink until it is told to stop."""
    import flwr.supercore.constant as constant
    from starlette.middleware import Middleware

    pragmas = dict(constant.SQLITE_PRAGMAS) | {"busy_timeout": _BUSY_MS}
    constant.SQLITE_PRAGMAS = tuple(pragmas.items())  # type: ignore[assignment]
    from flwr.superlink import extensions
    from flwr.superlink.cli import flower_superlink

    secret = read_secret(Path(os.environ[_GUARD_FILE]))
    extensions.get_middleware = lambda: (Middleware(_Guard, secret),)
    _end_with_the_parent()
    flower_superlink()


# --- commanding it ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of Flower's list.

    Args:
        node: its id.
        key: its P-384 public key, an uncompressed point in hex; empty where it is no such key.
        online: whether it answers.
        seen: when it was last heard, seconds since 1970; 0 where it never was.
    """

    node: int
    key: str
    online: bool
    seen: float


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run of Flower's list: its id, and `pending`, `starting`, `running`, `completed`, `failed` or `stopped`."""

    run: int
    status: str
    details: str

    @property
    def live(self) -> bool:
        return self.status in _LIVE


def loopback(home: Home) -> tuple[str, dict[str, str], ssl.SSLContext]:
    """Return address, headers and trust of the SuperLink's port."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_verify_locations(home.folder / "ca.crt")
    trust.minimum_version = ssl.TLSVersion.TLSv1_3
    trust.hostname_checks_common_name = False
    headers = {LOOPBACK_HEADER: home.secret("loopback").decode()}
    return f"https://127.0.0.1:{home.settings.superlink_port}", headers, trust


class Control:
    """Flower's Control API; each call opens and closes its connection.

    Args:
        home: the coordinator's folder.
    """

    def __init__(self, home: Home) -> None:
        self._address, self._headers, self._trust = loopback(home)

    def nodes(self) -> list[Node]:
        """Return the registered nodes.

        Raises:
            RunError: the SuperLink does not answer.
        """
        from flwr.proto.control_pb2 import ListNodesRequest

        found = self._call("ListNodes", ListNodesRequest())
        return [
            Node(node=n.node_id, key=point_of(n.public_key), online=n.status == "online", seen=_seen(n))
            for n in found.nodes_info
            if n.status != "unregistered"
        ]

    def register(self, key: str, name: str) -> None:
        """Let a node with this public key (an uncompressed point in hex) activate itself."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        self._call("RegisterNode", RegisterNodeRequest(public_key=pem_of(key), name=name))

    def unregister(self, node: int) -> None:
        """Take a node off the list."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        self._call("UnregisterNode", UnregisterNodeRequest(node_id=node))

    def start(self, bundle: bytes, config: Mapping[str, str | bool]) -> int:
        """Submit a bundle and return the run's id.

        Raises:
            RunError: it was not accepted.
        """
        import hashlib

        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        fab = fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
        answer = self._call("StartRun", StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config))))
        if not answer.run_id:
            raise RunError("the SuperLink did not accept the run; see superlink/superlink.log")
        return int(answer.run_id)

    def stop(self, run: int) -> None:
        """Stop a run; one that has ended meanwhile stays as it is."""
        from flwr.proto.control_pb2 import StopRunRequest

        try:
            self._call("StopRun", StopRunRequest(run_id=run))
        except RunError:
            if any(each.run == run and each.live for each in self.runs()):
                raise

    def runs(self) -> list[FlowerRun]:
        """Return all runs, the oldest first."""
        from flwr.proto.control_pb2 import ListRunsRequest

        found = self._call("ListRuns", ListRunsRequest()).run_dict.values()
        return [
            FlowerRun(run=r.run_id, status=r.status.sub_status or r.status.status, details=r.status.details)
            for r in sorted(found, key=lambda r: r.pending_at)
        ]

    def _call(self, name: str, request: Any) -> Any:
        from flwr.supercore.control.control_http_client import ControlHttpClient

        with ControlHttpClient(
            self._address, interceptors=[_Secret(self._headers)], verify=self._trust, timeout=_TIMEOUT_S
        ) as client:
            try:
                return getattr(client, name)(request)
            except httpx.HTTPStatusError as error:
                detail = error.response.text[:200]
                raise RunError(f"the SuperLink refused {name} ({error.response.status_code}): {detail}") from None
            except httpx.HTTPError as error:
                raise RunError(
                    f"the SuperLink does not answer ({type(error).__name__}); is fedsilo-server up running?"
                ) from None


def _seen(node: Any) -> float:
    """Return when a node was last heard: Flower says until when it counts as online, two heartbeats later."""
    return float(node.online_until - 2 * node.heartbeat_interval) if node.online_until else 0.0


@dataclass(frozen=True)
class _Secret:
    headers: Mapping[str, str]

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        context.request.headers.update(self.headers)
        return call_next(context)


def pem_of(point: str) -> bytes:
    """Return a P-384 public key, an uncompressed point in hex, in the form in which Flower keeps it."""
    key = EllipticCurvePublicKey.from_encoded_point(SECP384R1(), bytes.fromhex(point))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def point_of(pem: bytes) -> str:
    """Return a P-384 public key in PEM as an uncompressed point in hex; empty for another key."""
    try:
        key = load_pem_public_key(pem)
    except ValueError:
        return ""
    return (
        key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint).hex()
        if isinstance(key, EllipticCurvePublicKey)
        else ""
    )


if __name__ == "__main__":
    main()
