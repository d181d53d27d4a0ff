"""README's way to a deployment is true: its commands exist with their options, and in the full tier they are walked."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

import client.cli
import server.cli
import simulations.cli
import strategies.verify
from client.filesystem import VOLATILE, kind_of
from simulations.bench.processes import free_ports

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Deploy in ten minutes") :].split("\n## ")[0]
SCRIPT = "\n".join(re.findall(r"```bash\n(.*?)```", SECTION, re.S))
APPS = {
    "fedsilo-server": server.cli.app,
    "fedsilo-silo": client.cli.app,
    "fedsilo-simulate": simulations.cli.app,
    "fedsilo-verify": strategies.verify.app,
}
_COMMAND = r"(fedsilo-(?:server|silo|simulate|verify) [^|;&)\n]*)"
COMMANDS = re.findall(_COMMAND, SCRIPT)
OPERATIONS = re.findall(rf"^ {{4}}{_COMMAND}", (ROOT / "server" / "OPERATIONS.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("line", sorted({*COMMANDS, *OPERATIONS}))
def test_every_command_of_the_pages_exists_with_its_options(line: str) -> None:
    name, subcommand, *words = shlex.split(line)
    group = typer.main.get_command(APPS[name])
    assert isinstance(group, TyperGroup)
    known = {option for each in group.commands[subcommand].params for option in each.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_page_of_operations_has_its_commands() -> None:
    assert len(OPERATIONS) >= 8 and any("--rotate" in line for line in OPERATIONS)


def test_the_section_is_walked(tmp_path: Path, full_tier: bool) -> None:
    if not full_tier:
        assert len(COMMANDS) >= 12  # what it does is walked with `pytest -m full`; its parts in test_deploy_run.py
        return
    script = SCRIPT.replace("--host 127.0.0.1", f"--host 127.0.0.1 --listen 127.0.0.1 --port {free_ports(4)}")
    if kind_of(tmp_path) in VOLATILE:
        script = script.replace("fedsilo-silo init", "fedsilo-silo init --allow-volatile")
    (tmp_path / "walk.sh").write_text(script)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "walk.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", str(tmp_path / "walk.sh")],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=900)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    text = (tmp_path / "walk.log").read_text()
    assert code == 0 and "PASS" in text, text


UNITS = ("server/units/fedsilo-server.service", "client/units/fedsilo-silo.service")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_a_command_that_exists_without_privileges(unit: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((ROOT / unit).read_text())
    service = parser["Service"]
    program, subcommand, *_ = shlex.split(service["ExecStart"])
    group = typer.main.get_command(APPS[Path(program).name])
    assert isinstance(group, TyperGroup) and subcommand in group.commands
    assert service["User"] != "root" and service["NoNewPrivileges"] == "yes" and service["LimitCORE"] == "0"
    assert service["UMask"] == "0077" and service["ProtectSystem"] == "strict"


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, unit: str) -> None:
    """Oracle: systemd's own reader, which names unknown sections and settings and values that it would ignore."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze: not installed")
    text = (ROOT / unit).read_text()
    assert verdict(tmp_path, unit, text) == ""
    assert "NoNewPrivilege" in verdict(tmp_path, unit, text.replace("NoNewPrivileges=", "NoNewPrivilege="))


def verdict(folder: Path, unit: str, text: str) -> str:
    path = folder / Path(unit).name
    path.write_text(re.sub(r"/opt/fedsilo/bin/[a-z-]+", "/bin/true", text))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
