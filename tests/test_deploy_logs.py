"""Flower's processes at the coordinator: what they write stays small, and one that ended is started again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from coordinators import until

from server import up
from server.up import Child

LINE = b"x" * 99 + b"\n"
WRITER = "import os, sys\nfor data in iter(lambda: os.read(0, 65536), b''): os.write(1, data)\n"


def test_a_log_that_is_too_long_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_LOG_BYTES", 1000)
    log = tmp_path / "superlink.log"
    child = Child(name="superlink", command=[sys.executable, "-c", WRITER], log=log, environment=dict(os.environ))
    child.trim()  # there is none yet
    child.start()
    assert child.process is not None and child.process.stdin is not None
    try:
        for part in range(1, 6):
            for data in (LINE * 9, b"part %d\n" % part):
                child.process.stdin.write(data)
            child.process.stdin.flush()
            until(lambda part=part: log.read_bytes().endswith(b"part %d\n" % part))  # type: ignore[misc]
            child.trim()
            assert log.stat().st_size <= 1000
        kept = (tmp_path / "superlink.log.1").read_bytes()
        assert len(kept) == 1000 and kept.endswith(b"part 4\n") and b"\0" not in kept
        assert log.read_bytes() == LINE * 9 + b"part 5\n", "the process goes on at the start of the emptied file"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["superlink.log", "superlink.log.1"]
    finally:
        child.stop()
        child.process.stdin.close()


def test_a_process_that_ran_well_is_started_again_at_once(tmp_path: Path) -> None:
    child = Child(name="superlink", command=[], log=tmp_path / "superlink.log", environment={})
    assert [child.next_start(now) - now for now in (1.0,) * 8] == [0, 1, 2, 4, 8, 16, 30, 30]
    child.started_at = 100.0
    assert child.next_start(129.0) == 159.0 and child.next_start(131.0) == 131.0
