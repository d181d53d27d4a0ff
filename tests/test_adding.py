"""A new model and a new data set are one file each: put into a folder that the packages look into, a study that names
them trains privately and is reported, and nothing else is edited.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import client.models
import simulations.datasets
from simulations.listing import rows
from simulations.run import simulate
from simulations.silos import REGISTRIES
from strategies.study import Study

MODEL = '''"""A gate: one linear layer times the sigmoid of another."""
from dataclasses import dataclass
from client.models.base import Model, Shape, features

@dataclass(frozen=True, kw_only=True)
class Gate(Model):
    """(rows, *inputs) to (rows, outputs)."""
    width: int = 4

    def build(self, shape: Shape):
        import torch
        from torch import nn

        class Gated(nn.Module):
            def __init__(self, size: int, width: int, outputs: int) -> None:
                super().__init__()
                self.value, self.gate = nn.Linear(size, width), nn.Linear(size, width)
                self.out = nn.Linear(width, outputs)

            def forward(self, x):
                flat = x.flatten(1)
                return self.out(self.value(flat) * torch.sigmoid(self.gate(flat)))

        return Gated(features(shape), self.width, shape.outputs)
'''
DATASET = '''"""Synthetic: bright and dark images."""
from dataclasses import dataclass
import numpy as np
from simulations.datasets.base import Dataset

@dataclass(frozen=True, kw_only=True)
class Lamps(Dataset):
    """Images (n, 6, 6) of two classes."""
    count: int = 240

    def load(self):
        random = np.random.default_rng(0)
        y = random.integers(0, 2, self.count)
        x = np.clip(random.normal(90 + 80 * y[:, None, None], 25, (self.count, 6, 6)), 0, 255)
        return {"X": x.astype(np.uint8), "y": np.array(["dark", "bright"])[y]}
'''
STUDY = """
[study]
name = "lamps"
task = "classification"
rounds = 4
[data]
kind = "images"
[model]
name = "gate(width=3)"
[training]
sampling_rate = 0.3
steps = 5
[privacy]
epsilon = 8.0
[simulation]
dataset = "lamps(count=240)"
silos = 3
partition = "iid"
"""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for package, name, text in ((client.models, "gate", MODEL), (simulations.datasets, "lamps", DATASET)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    sys.modules.pop("client.models.gate", None)
    sys.modules.pop("simulations.datasets.lamps", None)


@pytest.mark.usefixtures("added")
def test_a_study_of_two_new_files_runs(tmp_path: Path) -> None:
    facts = simulate(Study.parse(STUDY, REGISTRIES), tmp_path, out=tmp_path / "runs").facts
    assert facts["run"]["status"] == "complete" and facts["study"]["model"] == "gate(width=3)"
    assert facts["metrics"]["auroc"] > 0.9 and facts["baselines"]["pooled"]["auroc"] > 0.95
    assert all(0 < silo["epsilon"] <= 8 for silo in facts["silos"])
    assert any(row["name"].startswith("gate(") for row in rows("models"))
    assert any(row["name"].startswith("lamps(") for row in rows("data"))
