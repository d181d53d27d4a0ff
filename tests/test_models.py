"""Conformance of every model that the registry finds: shapes, no mixing of rows, initial weights from the seed alone,
learning, and one flat vector of sorted parameters. A new file in `client/models` is tested by being there.

Oracles: torch's own state dict, a problem whose answer is known, sorting by Python.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import client.models
from client.data.records import Part
from client.models.base import (
    MODELS,
    Shape,
    build,
    flat_parameters,
    layout_of,
    load_weights,
    predict,
    weights_of,
)
from client.training.local import Plan, train
from strategies.base import Aux
from strategies.errors import RunError, SettingError, StudyError
from strategies.fedavg import FedAvg
from strategies.optimizers import Adam
from strategies.study import Registries, Study

SMALL = {"mlp": "mlp(hidden=[7, 3])"}
SPECS = [SMALL.get(name, name) for name in MODELS.names()]
SHAPES = [
    Shape.of(inputs=(5,), classes=2, task="classification"),
    Shape.of(inputs=(5,), classes=4, task="classification"),
    Shape.of(inputs=(5,), classes=0, task="regression"),
]
every_model = pytest.mark.parametrize("spec", SPECS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["two classes", "four classes", "regression"])


def built(spec: str, shape: Shape = SHAPES[0], seed: int = 0) -> nn.Module:
    return build(MODELS.resolve(spec), shape, seed)


def with_random_weights(spec: str, shape: Shape) -> nn.Module:
    module = built(spec, shape)
    load_weights(module, np.random.default_rng(0).normal(0, 0.5, layout_of(module).size).astype(np.float32))
    return module


def rows(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, 5)).astype(np.float32))


def test_the_models_of_this_version_are_found() -> None:
    assert {"logistic", "mlp"} <= set(MODELS.names())


@pytest.mark.parametrize(
    ("classes", "task", "outputs"),
    [(2, "classification", 1), (3, "classification", 3), (2, "regression", 1), (5, "regression", 1)],
)
def test_two_classes_are_one_logit(classes: int, task: str, outputs: int) -> None:
    assert Shape.of(inputs=(5,), classes=classes, task=task).outputs == outputs  # type: ignore[arg-type]


@every_model
@every_shape
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_output_shape(spec: str, shape: Shape, kind: torch.dtype) -> None:
    module = with_random_weights(spec, shape).to(kind)
    for count in (0, 1, 6):
        out = module(rows(count).to(kind))
        assert out.shape == (count, shape.outputs) and out.dtype == kind and out.isfinite().all()


@every_model
@every_shape
def test_a_row_does_not_see_the_others(spec: str, shape: Shape) -> None:
    module, x = with_random_weights(spec, shape), rows(6)
    for training in (True, False):
        module.train(training)
        before = module(x)[2]
        others = torch.full_like(x, 1e20)
        others[2] = x[2]
        torch.testing.assert_close(module(others)[2], before, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module(x[2:3])[0], before, rtol=1e-5, atol=1e-6)


@every_model
def test_initial_weights_are_a_function_of_the_seed(spec: str) -> None:
    first = weights_of(built(spec, seed=3))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(weights_of(built(spec, seed=3)), first)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own generator is left as it was
    if first.any():  # a model that starts at zero has nothing that a seed could change
        assert not np.array_equal(weights_of(built(spec, seed=4)), first)


@every_model
@every_shape
def test_a_tiny_problem_is_learnt(spec: str, shape: Shape) -> None:
    x = rows(120)
    score = x[:, 0] + 0.5 * x[:, 1]
    bounds = torch.linspace(-1, 1, max(shape.outputs, 2) + 1)[1:-1]
    y = score if shape.task == "regression" else torch.bucketize(score, bounds)
    part = Part(x=x, y=y, unit_of_row=np.arange(120))
    module = built(spec, shape)
    plan = Plan(
        private=False,
        sampling_rate=0.5,
        steps=200,
        expected_batch_size=60,
        max_records_per_unit=1,
        clip_norm=1,
        noise_multiplier=0,
        optimizer=Adam(lr=0.05),
        seed=1,
    )
    train(module, part, shape, plan, FedAvg(), Aux())
    out = predict(module, x, shape)
    if shape.task == "regression":
        assert np.corrcoef(out[:, 0], y.numpy())[0, 1] > 0.95
    else:
        assert (out.argmax(1) == y.numpy()).mean() > 0.85


@every_model
def test_the_layout_is_sorted_and_complete(spec: str) -> None:
    module = built(spec)
    slots = layout_of(module).slots
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert [slot.name for slot in slots] == sorted(expected)
    assert {slot.name: slot.shape for slot in slots} == expected
    assert [slot.offset for slot in slots] == [sum(s.size for s in slots[:i]) for i in range(len(slots))]
    assert layout_of(module).size == sum(value.numel() for value in module.state_dict().values())


@every_model
def test_weights_round_trip(spec: str) -> None:
    module = built(spec)
    weights = np.random.default_rng(5).normal(size=layout_of(module).size).astype(np.float32)
    kept = weights.copy()
    load_weights(module, weights)
    np.testing.assert_array_equal(weights_of(module), kept)
    joined = [value.numpy().reshape(-1) for _, value in sorted(module.state_dict().items())]
    np.testing.assert_array_equal(np.concatenate(joined), kept)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    np.testing.assert_array_equal(weights, kept)  # the module holds a copy


@every_model
def test_parameters_become_views_of_one_flat_tensor(spec: str) -> None:
    module = with_random_weights(spec, SHAPES[0])
    before, out = weights_of(module), module(rows(3)).detach()
    flat = flat_parameters(module)
    np.testing.assert_array_equal(flat.numpy(), before)
    torch.testing.assert_close(module(rows(3)).detach(), out, rtol=0, atol=0)
    flat.zero_()
    assert all(not parameter.any() for parameter in module.parameters())
    with torch.no_grad():
        next(module.parameters()).fill_(2)
    assert flat.sum() == 2 * next(module.parameters()).numel()


@every_model
@every_shape
def test_predictions_are_probabilities_or_values(spec: str, shape: Shape) -> None:
    module, x = with_random_weights(spec, shape), rows(9)
    scores = predict(module, x, shape)
    np.testing.assert_array_equal(predict(module, x, shape, rows_at_once=9), scores)
    np.testing.assert_allclose(predict(module, x, shape, rows_at_once=2), scores, rtol=1e-5)
    assert module.training and scores.dtype == np.float64
    if shape.task == "regression":
        assert scores.shape == (9, 1)
    else:
        assert scores.shape == (9, max(shape.outputs, 2))
        np.testing.assert_allclose(scores.sum(1), 1)
        if shape.outputs == 1:
            np.testing.assert_allclose(scores[:, 1], torch.sigmoid(module(x)[:, 0].double()).detach().numpy())
    load_weights(module, np.full(layout_of(module).size, 3e38, np.float32))
    with pytest.raises(RunError, match="not a finite number"):
        predict(module, x * torch.inf, shape)


MODEL_FILE = '''"""A bilinear toy."""
from dataclasses import dataclass
from client.models.base import Model, Shape

@dataclass(frozen=True, kw_only=True)
class Toy(Model):
    """One layer."""
    bias: bool = True

    def build(self, shape: Shape):
        from torch import nn
        return nn.Linear(shape.inputs[0], shape.outputs, bias=self.bias)
'''
STUDY = """[study]
name = "s"
task = "regression"
[data]
kind = "tabular"
target = "y"
features = { x = { type = "numeric", min = 0, max = 1 } }
[model]
name = "toy_of_a_test(bias=false)"
[privacy]
noise_multiplier = 1.0
"""


def test_adding_a_file_is_registering_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="there is no model 'toy_of_a_test'"):
        Study.parse(STUDY, Registries(models=MODELS))
    (tmp_path / "toy_of_a_test.py").write_text(MODEL_FILE)
    (tmp_path / "_private.py").write_text(MODEL_FILE)
    (tmp_path / "helpers.py").write_text("X = 1\n")
    monkeypatch.setattr(client.models, "__path__", [*client.models.__path__, str(tmp_path)])
    assert {"toy_of_a_test"} == set(MODELS.names()) - {Path(spec.split("(")[0]).stem for spec in SPECS}
    study = Study.parse(STUDY, Registries(models=MODELS))
    assert layout_of(build(study.model, Shape.of_study(study), 0)).size == 2  # a value and its missing indicator
    with pytest.raises(StudyError, match="no argument 'depth'"):
        Study.parse(STUDY.replace("bias=false", "depth=2"), Registries(models=MODELS))
    sys.modules.pop("client.models.toy_of_a_test")


def test_hidden_widths_are_positive() -> None:
    with pytest.raises(SettingError, match=r"mlp.hidden"):
        MODELS.resolve("mlp(hidden=[4, 0])")
