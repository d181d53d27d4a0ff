"""The status page as a browser shows it, the metrics as Prometheus reads them, and logs that hold listed fields alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from coordinators import Consortium, found

from server.home import Home
from server.journal import FIELDS, Journal
from server.listener import Server, listener
from server.meters import Meters
from server.page import application, render

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    consortium: Consortium = found(tmp_path, ("north", "south"))
    made = Home.open(consortium.server)
    folder = made.runs / "cardiology-20260131-120000"
    folder.mkdir(parents=True)
    lines = [{"round": n, "metrics": {"auroc": 0.8 + n / 50}, "loss": 0.4} for n in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(made.logs / "run-7.jsonl")
    journal.write("started", study="cardiology <script>alert(1)</script>", rounds=10, epsilon=3.0)
    journal.write("folder", folder=str(folder))
    for n in range(1, 6):
        journal.write("round", round=n, cohort=2, dropped=n == 3, aggregated=True, epsilon=0.3 * n, seconds=1.0)
    return made


@pytest.fixture
def meters() -> Meters:
    seen = Meters()
    for _ in range(3):
        seen.observe("pull-messages", 200, "north", received=2048, sent=4096, seconds=0.01)
    seen.observe("-", 404, "-", received=0, sent=4, seconds=0.001)
    return seen


@pytest.fixture
def served(home: Home, meters: Meters) -> Iterator[str]:
    server: Server = listener(application(home, meters), "127.0.0.1", home.settings.status_port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{home.settings.status_port}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium: not on PATH")
def test_a_browser_shows_runs_silos_epsilon_curve_and_refusals(served: str) -> None:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"{served}/"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    page = done.stdout
    assert re.search(r"<td>north</td>.*?2 KiB|<td>north</td>.*?6 KiB", page, re.S)
    assert "cardiology &lt;script&gt;" in page and "alert(1)</script>" not in page
    assert "5 of 10" in page and "1.5000 of 3.0000" in page and 'style="width:50%"' in page
    assert page.count("<polyline") == 1 and "auroc by round, last 0.9000" in page
    assert "1 requests refused" in page and "1 with status 404" in page
    assert 'http-equiv="refresh"' in page and "<script" not in page and "http://" not in page.replace(served, "")


def test_nothing_comes_from_elsewhere_and_no_other_site_reads_it(served: str) -> None:
    answer = httpx.get(served)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"
    assert httpx.get(served, headers={"host": "evil.example"}).status_code == 400
    assert httpx.get(f"{served}/status.json").json()["runs"][0]["rounds_done"] == 5
    assert httpx.get(f"{served}/docs").status_code == 404 and httpx.post(served).status_code == 405


def test_metrics_are_prometheus_text(served: str) -> None:
    text = httpx.get(f"{served}/metrics").text
    line = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+')
    assert all(line.fullmatch(each) for each in text.splitlines() if not each.startswith("#")), text
    assert 'fedsilo_requests_total{call="pull-messages",status="200"} 3' in text
    assert 'fedsilo_received_bytes_total{silo="north"} 6144' in text


def test_a_page_of_nothing_is_a_page(home: Home) -> None:
    facts = {
        "coordinator": "c",
        "address": "",
        "problem": "it is gone",
        "roster": {"hash": ""},
        "silos": [],
        "runs": [],
    }
    page = render(facts, Meters())
    assert "none enrolled yet" in page and "it is gone" in page and "none yet" in page


def test_a_log_holds_listed_plain_fields_alone(tmp_path: Path) -> None:
    journal, canary = Journal(tmp_path / "log.jsonl"), "canary"
    values = [canary * 200, b"canary", [canary], {"x": canary}, ValueError(canary), float("nan"), "canary\n"]
    for name in (*sorted(FIELDS - {"reason"}), "exception", "text", "payload", "path", "key"):
        for value in values:
            journal.write("event", **{name: value})
        if name not in FIELDS:
            journal.write("event", **{name: canary})
    journal.write("event", silo="north", status=200, aggregated=True, seconds=0.5)
    text = (tmp_path / "log.jsonl").read_text()
    assert "canary" not in text and "NaN" not in text
    last = json.loads(text.splitlines()[-1])
    assert {key: last[key] for key in last if key != "time"} == {
        "event": "event",
        "silo": "north",
        "status": 200,
        "aggregated": True,
        "seconds": 0.5,
    }
