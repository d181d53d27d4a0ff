"""What a node shows to probes on this machine's loopback: gRPC health and Prometheus text.

Health follows the gRPC health-checking protocol (grpc.health.v1): `SERVING` while the coordinator answers. The metrics
count states and messages; nothing of a record, a round's result or a key is among them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from client.silo import NodeTable
from strategies.errors import SettingError


class Meters:
    """What a node has done since it began."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()  # by outcome
        self.online = False
        self._health = HealthServicer()
        self.tell(False)

    def tell(self, online: bool) -> None:
        """Say whether the coordinator answers."""
        self.online = online
        kinds = health_pb2.HealthCheckResponse
        self._health.set("", kinds.SERVING if online else kinds.NOT_SERVING)

    def text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        rows = "".join(f'fedsilo_messages_total{{outcome="{k}"}} {n}\n' for k, n in sorted(self.messages.items()))
        return (
            "# HELP fedsilo_online whether the coordinator answers\n# TYPE fedsilo_online gauge\n"
            f"fedsilo_online {int(self.online)}\n"
            "# HELP fedsilo_messages_total messages by outcome\n# TYPE fedsilo_messages_total counter\n" + rows
        )

    @contextmanager
    def served(self, table: NodeTable) -> Iterator[None]:
        """Serve on the ports of `silo.toml`; a port of 0 serves nothing.

        Raises:
            SettingError: a port is taken.
        """
        with ExitStack() as stack:
            if table.health_port:
                stack.enter_context(_health(self._health, table.health_port))
            if table.metrics_port:
                stack.enter_context(_metrics(self.text, table.metrics_port))
            yield


@contextmanager
def _health(servicer: HealthServicer, port: int) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        raise SettingError(f"node.health_port = {port} cannot be had; choose another in silo.toml") from None
    server.start()
    try:
        yield
    finally:
        server.stop(grace=1)


@contextmanager
def _metrics(text: Callable[[], str], port: int) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/metrics"
            body = text().encode() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a probe comes every few seconds."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        raise SettingError(f"node.metrics_port = {port} cannot be had; choose another in silo.toml") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
