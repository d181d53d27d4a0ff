"""The coordinator's status page, its metrics and its health, on the loopback alone.

One page without a script: the browser loads it again every five seconds, and nothing comes from elsewhere. Health
follows the gRPC health-checking protocol (grpc.health.v1): `SERVING` while the SuperLink answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from jinja2 import Environment, select_autoescape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from server.home import Home
from server.meters import Meters
from server.overview import overview
from strategies.errors import FedsiloError, SettingError

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_WIDTH, _HEIGHT = 320, 90
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ facts.coordinator }}</title>
<style>
 body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1c2430;background:#fff}
 h1{font-size:1.35rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .5rem}p{margin:.3rem 0;color:#56606e}
 table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .8rem .35rem 0}
 th{font-weight:600;color:#56606e;border-bottom:1px solid #cfd5dd}td{border-bottom:1px solid #edf0f3}
 td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
 .state::before{content:"";display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.45em;background:#9aa3af}
 .online::before,.running::before,.completed::before,.complete::before{background:#1a7f5a}
 .offline::before,.stopped::before,.interrupted::before{background:#c77700}.failed::before{background:#b3261e}
 .bar{background:#edf0f3;height:.7rem;width:12rem;display:inline-block;vertical-align:middle}
 .bar span{background:#2b5fad;height:100%;display:block}.problem{color:#b3261e}
 figure{margin:.6rem 0}figcaption{color:#56606e;font-size:.85rem}
 @media (prefers-color-scheme: dark){body{background:#12161c;color:#e4e8ee}td{border-color:#232a34}
  .bar{background:#232a34}th,p,figcaption{color:#9aa5b4}th{border-color:#3a4452}}
</style></head><body>
<h1>{{ facts.coordinator }}</h1>
<p>{{ facts.address }} &middot; roster {{ facts.roster.hash[:12] }} &middot; {{ now }} UTC</p>
{% if facts.problem %}<p class="problem" role="alert">{{ facts.problem }}</p>{% endif %}
<h2>Silos</h2>
<table id="silos"><tr><th>silo</th><th>state</th><th>last seen</th><th class="number">received</th>
<th class="number">sent</th></tr>
{% for silo in silos %}<tr><td>{{ silo.silo }}</td><td><span class="state {{ silo.state }}">{{ silo.state }}</span></td>
<td>{{ silo.seen }}</td><td class="number">{{ silo.received }}</td><td class="number">{{ silo.sent }}</td></tr>
{% else %}<tr><td colspan="5">none enrolled yet</td></tr>{% endfor %}</table>
<h2>Runs</h2>
{% for run in runs %}<section><table><tr><th>study</th><th>state</th><th class="number">rounds</th>
<th class="number">dropped</th><th>worst epsilon</th></tr>
<tr><td>{{ run.study }}</td><td><span class="state {{ run.status }}">{{ run.status }}</span></td>
<td class="number">{{ run.rounds_done }} of {{ run.rounds }}</td><td class="number">{{ run.dropped }}</td>
<td>{% if run.planned is not none %}<span class="bar" role="img" aria-label="{{ run.share }} percent of the plan"><span
style="width:{{ run.share }}%"></span></span> {{ "%.4f"|format(run.epsilon or 0) }} of {{ "%.4f"|format(run.planned) }}
{% else %}NO differential privacy{% endif %}</td></tr></table>
{% if run.sentence %}<p class="problem">{{ run.sentence }}</p>{% endif %}
{% if run.points %}<figure><svg viewBox="0 0 {{ width }} {{ height }}" width="{{ width }}" height="{{ height }}"
role="img" aria-label="{{ run.metric }} by round"><polyline fill="none" stroke="#2b5fad" stroke-width="1.5"
points="{{ run.points }}"/></svg><figcaption>{{ run.metric }} by round, last {{ "%.4f"|format(run.last) }}</figcaption>
</figure>{% endif %}</section>
{% else %}<p>none yet: fedsilo-server run STUDY</p>{% endfor %}
<h2>Gateway</h2>
<p id="refused">{{ refused }} requests refused since this coordinator started{% if why %}: {{ why }}{% endif %}</p>
</body></html>
"""
_page = Environment(autoescape=select_autoescape(default=True)).from_string(_TEMPLATE)


def application(home: Home, meters: Meters) -> Starlette:
    """Return the page, `/status.json` and `/metrics`.

    Args:
        home: the coordinator's folder.
        meters: the gateway's.
    """

    async def facts() -> dict[str, Any]:
        try:
            return await run_in_threadpool(overview, home)
        except (FedsiloError, OSError) as error:
            return {**_NOTHING, "coordinator": home.settings.name, "problem": str(error)}

    async def page(request: Request) -> Response:
        return HTMLResponse(render(await facts(), meters), headers=_HEADERS)

    async def status(request: Request) -> Response:
        return JSONResponse(await facts(), headers=_HEADERS)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(meters.text(), headers=_HEADERS, media_type="text/plain; version=0.0.4")

    routes = [Route("/", page), Route("/status.json", status), Route("/metrics", metrics)]
    own = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])  # no page elsewhere may read it
    return Starlette(routes=routes, middleware=[own])


_NOTHING: Mapping[str, Any] = {"address": "", "roster": {"hash": ""}, "silos": [], "runs": []}


def render(facts: Mapping[str, Any], meters: Meters) -> str:
    """Return the page."""
    silos = [
        {
            **row,
            "seen": _ago(meters.last_seen.get(row["silo"]) or row["last_seen"]),
            "received": _bytes(meters.received[row["silo"]]),
            "sent": _bytes(meters.sent[row["silo"]]),
        }
        for row in facts["silos"]
    ]
    refusals = sorted({(status, n) for status, n in _by_status(meters).items() if status >= 400})
    return _page.render(
        facts=facts,
        silos=silos,
        runs=[_run(row) for row in reversed(facts["runs"])],
        refused=meters.refused(),
        why=", ".join(f"{n} with status {status}" for status, n in refusals),
        now=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        width=_WIDTH,
        height=_HEIGHT,
    )


def _by_status(meters: Meters) -> dict[int, int]:
    found: dict[int, int] = {}
    for (_, status), count in meters.requests.items():
        found[status] = found.get(status, 0) + count
    return found


def _run(row: Mapping[str, Any]) -> dict[str, Any]:
    curve: Sequence[Sequence[float]] = row["curve"]
    share = round(100 * (row["epsilon"] or 0) / row["planned"]) if row["planned"] else 0
    return {**row, "share": min(100, share), "points": _points(curve), "last": curve[-1][1] if curve else None}


def _points(curve: Sequence[Sequence[float]]) -> str:
    """Return a curve as SVG points, its own range filling the height."""
    if len(curve) < 2:
        return ""
    low, high = min(y for _, y in curve), max(y for _, y in curve)
    first, last = curve[0][0], curve[-1][0]
    return " ".join(
        f"{(x - first) / (last - first) * (_WIDTH - 4) + 2:.1f},"
        f"{(_HEIGHT - 4) * (1 - (y - low) / ((high - low) or 1)) + 2:.1f}"
        for x, y in curve
    )


def _ago(seen: float | None) -> str:
    if not seen:
        return "never"
    seconds = max(0, round(time.time() - seen))
    return f"{seconds} s ago" if seconds < 120 else f"{seconds // 60} min ago"


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.0f} KiB"


# --- health -------------------------------------------------------------------------------------------------


class Health:
    """The coordinator's gRPC health service.

    Args:
        port: on the loopback.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._servicer = HealthServicer()
        self.tell(False)

    def tell(self, serving: bool) -> None:
        """Say whether silos can be served."""
        kinds = health_pb2.HealthCheckResponse
        self._servicer.set("", kinds.SERVING if serving else kinds.NOT_SERVING)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve.

        Raises:
            SettingError: the port is taken.
        """
        server = grpc.server(ThreadPoolExecutor(max_workers=2))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        try:
            server.add_insecure_port(f"127.0.0.1:{self._port}")
        except RuntimeError:
            raise SettingError(f"health_port = {self._port} cannot be had; choose another in server.toml") from None
        server.start()
        try:
            yield
        finally:
            server.stop(grace=1)
