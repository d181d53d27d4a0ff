"""Conformance of every model that the registry finds, on each kind of data that it takes: shapes, no mixing of rows,
no influence of padding, exact gradients per row, initial weights from the seed alone, learning, and one flat vector of
sorted parameters. A new file in `client/models` is tested by being there.

Oracles: torch's own state dict, autograd on one row at a time, a problem whose answer is known, sorting by Python.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from per_row import by_engine
from torch import nn

import client.models
from client.data.records import Part
from client.models.base import (
    MODELS,
    Kind,
    Shape,
    build,
    flat_parameters,
    layout_of,
    load_weights,
    predict,
    weights_of,
)
from client.training.gradients import clipped_sum
from client.training.local import Plan, train
from client.training.losses import row_loss
from strategies.base import Aux
from strategies.errors import RunError, SettingError, StudyError
from strategies.fedavg import FedAvg
from strategies.optimizers import Adam
from strategies.spec import Registries
from strategies.study import Study

SMALL = {
    "mlp": "mlp(hidden=[7, 3])",
    "cnn": "cnn(width=8, depth=2)",
    "cnn1d": "cnn1d(width=8, depth=2)",
    "lstm": "lstm(hidden=6, embedding=5)",
    "gru": "gru(hidden=6, embedding=5)",
    **{
        name: f"{name}(width=8, depth=1, heads=2)"
        for name in ("transformer", "text_transformer", "ft_transformer", "vit")
    },
}
# Arguments that change what is computed, each tested as a model of its own.
VARIANTS = [
    "cnn(width=5, depth=3, activation='relu')",
    "cnn1d(width=4, depth=3, activation='gelu')",
    "lstm(hidden=4, layers=2, bidirectional=true, embedding=3, pool='last')",
    "gru(hidden=4, layers=2, bidirectional=true, embedding=3, pool='last')",
]
FLAT = ("logistic", "mlp")  # these read every value, so padding must be zero when it comes
DEEP = ("cnn", "cnn1d", "transformer", "text_transformer", "ft_transformer", "vit")  # these learn by smaller steps
LENGTHLESS = ("cnn1d", "lstm", "gru")  # their weights do not depend on the number of steps
TASKS = {
    "two classes": (2, "classification"),
    "four classes": (4, "classification"),
    "regression": (0, "regression"),
    "three labels": (3, "multilabel"),
}
KINDS = {
    "tabular": Shape(inputs=(5,), outputs=1, task="regression", kind="tabular", widths=(2, 3)),
    "images": Shape(inputs=(1, 8, 8), outputs=1, task="regression", kind="images"),
    "colour images": Shape(inputs=(3, 17, 20), outputs=1, task="regression", kind="images"),
    "signals": Shape(inputs=(12, 3), outputs=1, task="regression", kind="signals"),
    "sequences": Shape(inputs=(9, 4), outputs=1, task="regression", kind="sequences"),
    "text": Shape(inputs=(10,), outputs=1, task="regression", kind="text", vocabulary=20),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model on a kind of data."""

    spec: str
    shape: Shape

    @property
    def name(self) -> str:
        return self.spec.split("(")[0]

    def task(self, task: str) -> Case:
        classes, kind_of_task = TASKS[task]
        of = Shape.of(inputs=self.shape.inputs, classes=classes, task=kind_of_task)  # type: ignore[arg-type]
        return replace(self, shape=replace(self.shape, outputs=of.outputs, task=of.task))

    def built(self, seed: int = 0) -> nn.Module:
        return build(MODELS.resolve(self.spec), self.shape, seed)

    def with_random_weights(self) -> nn.Module:
        module = self.built()
        load_weights(module, np.random.default_rng(0).normal(0, 0.5, layout_of(module).size).astype(np.float32))
        return module


CASES = {
    f"{spec} {kind}": Case(spec=spec, shape=shape)
    for spec in [*(SMALL.get(name, name) for name in MODELS.names()), *VARIANTS]
    for kind, shape in KINDS.items()
    if shape.kind in MODELS.resolve(spec).kinds
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_task = pytest.mark.parametrize("task", TASKS)
every_padded_case = pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=i) for i, c in CASES.items() if c.shape.kind in ("sequences", "text") and c.name not in FLAT],
)


def rows(shape: Shape, count: int, seed: int = 1) -> torch.Tensor:
    """Return records without meaning; those of sequences and text are of all lengths, also zero."""
    random = np.random.default_rng(seed)
    if shape.kind == "text":
        ids = random.integers(1, shape.vocabulary, (count, *shape.inputs))
        return torch.from_numpy(ids * there(shape, count))
    x = random.normal(size=(count, *shape.inputs)).astype(np.float32)
    if shape.masked:
        x[..., -1] = 1
        x = x * there(shape, count)[..., None].astype(np.float32)
    return torch.from_numpy(x)


def there(shape: Shape, count: int) -> np.ndarray:
    """Return (count, steps), which steps are there; the lengths of the first rows are 3, the greatest, 0, 1, ..."""
    steps = shape.inputs[0]
    lengths = np.resize([3, steps, 0, 1, 5, steps - 1, 4], count)
    return np.arange(steps) < lengths[:, None]


def targets(shape: Shape, count: int, seed: int = 2) -> torch.Tensor:
    random = np.random.default_rng(seed)
    if shape.task == "classification":
        return torch.from_numpy(random.integers(0, max(shape.outputs, 2), count))
    size = (count, shape.outputs) if shape.task == "multilabel" else (count,)
    values = random.normal(size=size).astype(np.float32)
    return torch.from_numpy((values > 0).astype(np.float32) if shape.task == "multilabel" else values)


def strange(x: torch.Tensor, shape: Shape, kept: int) -> torch.Tensor:
    """Return other records around the same record `kept`: huge values, other tokens, all steps there."""
    others = torch.full_like(x, shape.vocabulary - 1 if shape.kind == "text" else 1e20)
    if shape.masked:
        others[..., -1] = 1
    others[kept] = x[kept]
    return others


def cast(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return x.to(kind) if x.is_floating_point() else x


def test_the_models_of_this_version_are_found() -> None:
    assert {"cnn", "cnn1d", "gru", "logistic", "lstm", "mlp"} <= set(MODELS.names())
    assert {case.shape.kind for case in CASES.values()} == set(get_args(Kind))


@pytest.mark.parametrize(
    ("classes", "task", "outputs"),
    [
        (2, "classification", 1),
        (3, "classification", 3),
        (2, "regression", 1),
        (5, "regression", 1),
        (2, "multilabel", 2),
        (3, "multilabel", 3),
    ],
)
def test_two_classes_are_one_logit(classes: int, task: str, outputs: int) -> None:
    assert Shape.of(inputs=(5,), classes=classes, task=task).outputs == outputs  # type: ignore[arg-type]


@every_case
@every_task
def test_output_shape(case: Case, task: str) -> None:
    case = case.task(task)
    module = case.with_random_weights()
    for kind in (torch.float32, torch.bfloat16):
        module.to(kind)
        for count in (0, 1, 6):
            out = module(cast(rows(case.shape, count), kind))
            assert out.shape == (count, case.shape.outputs) and out.dtype == kind and out.isfinite().all()


@every_case
def test_bfloat16_is_near_float32(case: Case) -> None:
    case = case.task("four classes")
    module, x = case.with_random_weights(), rows(case.shape, 8)
    out = module(x)
    rough = module.to(torch.bfloat16)(cast(x, torch.bfloat16)).float()
    assert (out - rough).norm() < 0.1 * out.norm()


@every_case
def test_a_row_does_not_see_the_others(case: Case) -> None:
    case = case.task("four classes")
    module, x = case.with_random_weights(), rows(case.shape, 6)
    for training in (True, False):
        module.train(training)
        for kept in (2, 4):
            before = module(x)[kept]
            torch.testing.assert_close(module(strange(x, case.shape, kept))[kept], before, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(module(x[kept : kept + 1])[0], before, rtol=1e-5, atol=1e-6)


@every_case
def test_the_gradient_of_a_row_does_not_see_the_others(case: Case) -> None:
    case = case.task("four classes")
    module, x, y = case.with_random_weights(), rows(case.shape, 6), targets(case.shape, 6)
    loss = row_loss(case.shape)
    for kept in (2, 4):
        before = by_engine(module, loss, x, y)[kept]
        after = by_engine(module, loss, strange(x, case.shape, kept), y)[kept]
        assert (after - before).norm() <= 1e-5 * before.norm()


@every_case
@pytest.mark.parametrize("task", ["regression", "three labels"])
def test_gradients_per_row_are_those_of_single_rows(case: Case, task: str) -> None:
    case = case.task(task)
    module, x, y = case.with_random_weights().double(), rows(case.shape, 7), targets(case.shape, 7)
    x, y, loss = cast(x, torch.float64), cast(y, torch.float64), row_loss(case.shape)
    expected = []
    for row in range(7):
        module.zero_grad(set_to_none=True)
        loss(module(x[row : row + 1]), y[row : row + 1]).sum().backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in module.named_parameters()}
        expected.append(torch.cat([grads[slot.name].reshape(-1) for slot in layout_of(module).slots]))
    module.zero_grad(set_to_none=True)
    found = by_engine(module, loss, x, y)
    for row in range(7):
        assert 0 < expected[row].norm() < torch.inf
        assert (found[row] - expected[row]).norm() < 1e-9 * expected[row].norm()
    total = clipped_sum(module, loss, (x, y), np.arange(7), clip_norm=1e9)
    torch.testing.assert_close(total, torch.stack(expected).sum(0), rtol=1e-5, atol=1e-9)


@every_case
def test_a_row_of_zeros_has_a_finite_gradient(case: Case) -> None:
    """Batches are filled up with them."""
    case = case.task("four classes")
    for module in (case.built(), case.with_random_weights()):
        x, y = torch.zeros_like(rows(case.shape, 2)), targets(case.shape, 2)
        assert by_engine(module, row_loss(case.shape), x, y).isfinite().all()


@torch.no_grad()
def _outputs(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = module(x)  # with a graph, the hooks for gradients per row would wait for its backward pass
    return out


@every_padded_case
def test_what_stands_at_padding_has_no_influence(case: Case) -> None:
    case = case.task("four classes")
    module, x, y = case.with_random_weights(), rows(case.shape, 7), targets(case.shape, 7)
    loss = row_loss(case.shape)
    out, gradients = _outputs(module, x), by_engine(module, loss, x, y)
    if case.shape.kind == "text":
        tables = [part for part in module.modules() if isinstance(part, nn.Embedding)]
        (words,) = [part for part in tables if part.num_embeddings == case.shape.vocabulary]
        with torch.no_grad():
            words.weight[0] = 1e3
    else:
        padding = ~torch.from_numpy(there(case.shape, 7))
        noise = torch.from_numpy(np.random.default_rng(3).normal(0, 1e3, (*x.shape[:2], x.shape[2] - 1)))
        x[..., :-1] = torch.where(padding[..., None], noise.float(), x[..., :-1])
    torch.testing.assert_close(_outputs(module, x), out, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_engine(module, loss, x, y), gradients, rtol=1e-5, atol=1e-6)


@every_padded_case
@pytest.mark.parametrize("more", [1, 6])
def test_more_padding_has_no_influence(case: Case, more: int) -> None:
    case = case.task("four classes")
    module, x, y = case.with_random_weights(), rows(case.shape, 7), targets(case.shape, 7)
    steps, *rest = case.shape.inputs
    longer = replace(case, shape=replace(case.shape, inputs=(steps + more, *rest)))
    other = longer.built()
    if layout_of(other) != layout_of(module):
        assert case.name not in LENGTHLESS  # others have weights of their own for each step
        return
    load_weights(other, weights_of(module))
    padded = torch.cat([x, x.new_zeros(7, more, *rest)], dim=1)
    torch.testing.assert_close(_outputs(other, padded), _outputs(module, x), rtol=1e-5, atol=1e-6)
    loss = row_loss(case.shape)
    before, after = by_engine(module, loss, x, y), by_engine(other, loss, padded, y)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@every_padded_case
def test_every_step_that_is_there_has_influence(case: Case) -> None:
    """The twin of the two laws above, which a model that sees nothing would keep as well."""
    module, x = case.with_random_weights().double(), cast(rows(case.shape, 7), torch.float64)
    out = module(x)
    for step in range(case.shape.inputs[0]):
        changed = x.clone()
        if case.shape.kind == "text":
            changed[:, step] = torch.where(x[:, step] > 0, x[:, step] % (case.shape.vocabulary - 1) + 1, 0)
        else:
            changed[:, step, :-1] += 1.0
        moved = (module(changed) - out).abs().amax(dim=1) > 1e-12
        assert moved.tolist() == there(case.shape, 7)[:, step].tolist()


@every_case
def test_initial_weights_are_a_function_of_the_seed(case: Case) -> None:
    first = weights_of(case.built(seed=3))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(weights_of(case.built(seed=3)), first)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own generator is left as it was
    if first.any():  # a model that starts at zero has nothing that a seed could change
        assert not np.array_equal(weights_of(case.built(seed=4)), first)


def problem(shape: Shape, count: int) -> Part:
    """Records in which a score between -1 and 1 is to be seen, over noise, by every model of their kind."""
    random = np.random.default_rng(7)
    score = random.uniform(-1, 1, count)
    if shape.kind == "text":
        upper = random.random((count, *shape.inputs)) < (1 + score[:, None]) / 2
        ids = np.where(upper, 11, 2) + random.integers(0, 9, upper.shape)
        seen = np.arange(shape.inputs[0]) < random.integers(6, shape.inputs[0] + 1, count)[:, None]
        x, score = torch.from_numpy(ids * seen), 2 * (upper * seen).sum(1) / seen.sum(1) - 1
    else:
        shared = random.choice([-1.0, 1.0], (2, *shape.inputs))
        values = shared[0] + score.reshape(-1, *[1] * len(shape.inputs)) * shared[1]
        if shape.masked:
            seen = np.arange(shape.inputs[0]) < random.integers(4, shape.inputs[0] + 1, count)[:, None]
            values = (shared[0, 0] + score[:, None, None] * shared[1, 0]) * seen[..., None]
            values[..., -1] = seen
        noise = random.normal(0, 0.3, (count, *shape.inputs)) * (values != 0)
        noise[..., -1] *= not shape.masked
        if shape.kind == "images":  # so many values would take narrow layers to the ends of their activations
            values, noise = 0.2 * values, 0.2 * noise
        x = torch.from_numpy((values + noise).astype(np.float32))
    answers = torch.from_numpy(score).float()
    bounds = torch.linspace(-1, 1, max(shape.outputs, 2) + 1)[1:-1]
    if shape.task == "multilabel":
        answers = (answers[:, None] > torch.linspace(-0.5, 0.5, shape.outputs)).float()
    elif shape.task == "classification":
        answers = torch.bucketize(answers, bounds)
    return Part(x=x, y=answers, unit_of_row=np.arange(count))


@pytest.mark.parametrize(
    ("case", "task"),
    [
        pytest.param(case, task, id=f"{name} {task}")
        for name, case in CASES.items()
        for task in (TASKS if case.shape.kind == "tabular" else ["four classes"])  # tables are quick
    ],
)
def test_a_tiny_problem_is_learnt(case: Case, task: str) -> None:
    shape = case.task(task).shape
    part, module = problem(shape, 96), case.task(task).built()
    plan = Plan(
        private=False,
        sampling_rate=0.5,
        steps=100,
        expected_batch_size=48,
        max_records_per_unit=1,
        clip_norm=1,
        noise_multiplier=0,
        optimizer=Adam(lr=0.01 if case.name in DEEP else 0.05),
        seed=1,
    )
    train(module, part, shape, plan, FedAvg(), Aux())
    out, y = predict(module, part.x, shape), part.y.numpy()
    if shape.task == "regression":
        assert np.corrcoef(out[:, 0], y)[0, 1] > 0.9
    elif shape.task == "multilabel":
        assert ((out > 0.5) == y).mean() > 0.85
    else:
        assert (out.argmax(1) == y).mean() > (0.9 if task == "two classes" else 0.7)


@every_case
def test_the_layout_is_sorted_and_complete(case: Case) -> None:
    module = case.built()
    slots = layout_of(module).slots
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert [slot.name for slot in slots] == sorted(expected)
    assert {slot.name: slot.shape for slot in slots} == expected
    assert [slot.offset for slot in slots] == [sum(s.size for s in slots[:i]) for i in range(len(slots))]
    assert layout_of(module).size == sum(value.numel() for value in module.state_dict().values())


@every_case
def test_weights_round_trip(case: Case) -> None:
    module = case.built()
    weights = np.random.default_rng(5).normal(size=layout_of(module).size).astype(np.float32)
    kept = weights.copy()
    load_weights(module, weights)
    np.testing.assert_array_equal(weights_of(module), kept)
    joined = [value.numpy().reshape(-1) for _, value in sorted(module.state_dict().items())]
    np.testing.assert_array_equal(np.concatenate(joined), kept)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    np.testing.assert_array_equal(weights, kept)  # the module holds a copy


@every_case
def test_parameters_become_views_of_one_flat_tensor(case: Case) -> None:
    module = case.with_random_weights()
    before, out = weights_of(module), module(rows(case.shape, 3)).detach()
    flat = flat_parameters(module)
    np.testing.assert_array_equal(flat.numpy(), before)
    torch.testing.assert_close(module(rows(case.shape, 3)).detach(), out, rtol=1e-5, atol=1e-6)
    flat.zero_()
    assert all(not parameter.any() for parameter in module.parameters())
    with torch.no_grad():
        next(module.parameters()).fill_(2)
    assert flat.sum() == 2 * next(module.parameters()).numel()


@every_case
@every_task
def test_predictions_are_probabilities_or_values(case: Case, task: str) -> None:
    case = case.task(task)
    shape = case.shape
    module, x = case.with_random_weights(), rows(shape, 9)
    scores = predict(module, x, shape)
    np.testing.assert_array_equal(predict(module, x, shape, rows_at_once=9), scores)
    np.testing.assert_allclose(predict(module, x, shape, rows_at_once=2), scores, rtol=1e-4, atol=1e-5)
    assert module.training and scores.dtype == np.float64
    if shape.task == "regression":
        assert scores.shape == (9, 1)
    elif shape.task == "multilabel":
        assert scores.shape == (9, 3)
        np.testing.assert_allclose(scores, torch.sigmoid(module(x).double()).detach().numpy(), rtol=1e-5)
    else:
        assert scores.shape == (9, max(shape.outputs, 2))
        np.testing.assert_allclose(scores.sum(1), 1)
        if shape.outputs == 1:
            np.testing.assert_allclose(scores[:, 1], torch.sigmoid(module(x)[:, 0].double()).detach().numpy())
    load_weights(module, np.full(layout_of(module).size, np.nan, np.float32))
    with pytest.raises(RunError, match="not a finite number"):
        predict(module, x, shape)


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
    assert {"toy_of_a_test"} == set(MODELS.names()) - {case.name for case in CASES.values()}
    study = Study.parse(STUDY, Registries(models=MODELS))
    assert layout_of(build(study.model, Shape.of_study(study), 0)).size == 2  # a value and its missing indicator
    with pytest.raises(StudyError, match="no argument 'depth'"):
        Study.parse(STUDY.replace("bias=false", "depth=2"), Registries(models=MODELS))
    sys.modules.pop("client.models.toy_of_a_test")


@pytest.mark.parametrize(
    "spec",
    [
        "mlp(hidden=[4, 0])",
        "cnn(width=3)",
        "cnn(depth=0)",
        "cnn(depth=9)",
        "cnn1d(width=3)",
        "cnn1d(depth=0)",
        "lstm(hidden=0)",
        "lstm(layers=0)",
        "gru(embedding=0)",
    ],
)
def test_sizes_have_bounds(spec: str) -> None:
    name, argument = spec.split("=")[0].split("(")
    with pytest.raises(SettingError, match=rf"{name}\.{argument} = .* is not allowed"):
        MODELS.resolve(spec)


@pytest.mark.parametrize(("side", "depth"), [(8, 1), (8, 8), (28, 2), (33, 3), (224, 2)])
def test_images_of_every_size_are_taken(side: int, depth: int) -> None:
    shape = replace(KINDS["images"], inputs=(1, side, side))
    module = build(MODELS.resolve(f"cnn(width=4, depth={depth})"), shape, 0)
    for count in (1, 2):
        out = module(rows(shape, count))
        out.sum().backward()
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())  # type: ignore[union-attr]


def test_images_keep_where_things_are() -> None:
    """A mark, too far from the borders for convolutions to tell where it is, at two places."""
    case = Case(spec="cnn(width=4, depth=1)", shape=replace(KINDS["images"], inputs=(1, 32, 32)))
    x = torch.zeros(2, 1, 32, 32)
    x[0, 0, 11:14, 11:14], x[1, 0, 11:14, 19:22] = 1, 1
    here, over_there = case.with_random_weights()(x)
    assert (here - over_there).abs() > 1e-3


@pytest.mark.parametrize(
    ("spec", "kind", "inputs"),
    [("cnn", "images", (1, 28, 28)), ("cnn1d", "signals", (1000, 12)), ("lstm", "signals", (100, 12))],
)
def test_defaults_are_small(spec: str, kind: str, inputs: tuple[int, ...]) -> None:
    """Noise grows with the number of weights."""
    shape = replace(KINDS[kind], inputs=inputs)
    assert 15_000 < layout_of(build(MODELS.resolve(spec), shape, 0)).size < 60_000


CRASH = """
import numpy as np, torch
from client.models.base import MODELS, Shape, build
torch.set_num_threads(1)
module = build(MODELS.resolve("cnn(width=4)"), Shape(inputs=(1, 64, 64), outputs=1, task="regression", kind="images"), 0)
for count in range(60, 72):
    module(torch.randn(count, 64, 64, 1).permute(0, 3, 1, 2)).sum().backward()
print("whole")
"""


def test_one_channel_in_any_memory_order_is_safe() -> None:
    """Found: images of one channel whose channel has stride 1 made torch's backward pass corrupt memory."""
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "whole", done.stderr
