"""The import rules of the house, read from the syntax trees, and what a fresh process really loads.

strategies <- client <- server <- simulations: each imports only what stands to its left; of `client`, the server takes
`client.models` alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("strategies", "client", "server", "simulations")
FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]
FLOWER_FILES = {
    "strategies/wire.py",
    "strategies/sealed.py",
    "client/app.py",
    "client/node.py",
    "client/fleet.py",
    "client/worker.py",
    "server/app.py",
    "server/joining.py",
    "server/rounds.py",
    "server/silos.py",
    "server/cohort.py",
    "server/superlink.py",
    "server/replies.py",
    "server/fleet.py",
    "server/envelopes.py",
    "server/resume.py",
    "server/deployed.py",
    "simulations/bench/aggregation.py",
    "simulations/bench/secagg.py",
    "simulations/bench/stock.py",
}
FORBIDDEN = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    to_the_right = ORDER[ORDER.index(own) + 1 :]
    names = imports(path)
    assert not {name for name in names if name.split(".")[0] in (*to_the_right, "tests")}
    if own == "server":
        assert not {name for name in names if name.startswith("client.") and not name.startswith("client.models")}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_flower_torch_and_opacus_stay_in_their_files(path: Path) -> None:
    name, roots = relative(path), {entry.split(".")[0] for entry in imports(path)}
    assert "flwr" not in roots or name in FLOWER_FILES or name.startswith("simulations/engines/")
    assert "opacus" not in roots or name.startswith(("client/training/", "client/models/", "simulations/bench/"))
    assert "torch" not in roots or not name.startswith(("strategies/", "server/"))
    assert not roots & set(FORBIDDEN)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=relative)
def test_init_files_hold_a_docstring_only(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_call_that_runs_foreign_bytes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "torch.load", "yaml.load"}, name
            if name in ("np.load", "numpy.load"):
                assert "allow_pickle=False" in ast.unparse(node), "arrays only, and said so"
            assert not any(keyword.arg == "shell" for keyword in node.keywords)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import client.app", ("server", "simulations")),
        ("import strategies", ("torch", "flwr")),
        ("import strategies.study, strategies.verify", ("torch", "flwr", "opacus")),
        ("import strategies.proof.verdict, strategies.roster", ("torch", "flwr", "opacus", "sqlite3")),
        ("import client.ledger, client.keys", ("torch", "flwr", "opacus")),
        ("import strategies.study, client.models.base as b; b.MODELS.resolve('mlp()')", ("torch", "opacus")),
        ("import simulations.listing as s; [s.rows(k) for k in s.KINDS]", ("torch", "flwr", "opacus", "sklearn")),
    ],
)
def test_a_fresh_process_loads_nothing_of(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(' '.join(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(absent) & set(done.stdout.split())
