"""What a model is here: a frozen set of arguments that can build a torch module, and nothing that mixes records.

A new model is a new file in this folder with one subclass of `Model`; torch is imported inside `build`, so that a
study can be checked without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from strategies.errors import RunError, SettingError
from strategies.layout import Layout, Vector
from strategies.spec import Registry
from strategies.study import Study

if TYPE_CHECKING:
    import torch
    from torch import nn

Task = Literal["classification", "regression", "multilabel"]
MODELS = Registry(kind="model", package="client.models", bases=("Model",))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What goes in and what comes out.

    Args:
        inputs: shape of one record, without the batch: (features,) for tables.
        outputs: number of outputs: 1 for two classes (a logit) and for regression, else the number of classes.
        task: of the study; fixes loss and scores.
    """

    inputs: tuple[int, ...]
    outputs: int
    task: Task

    @classmethod
    def of(cls, *, inputs: tuple[int, ...], classes: int, task: Task) -> Shape:
        """Return the shape for a task with this number of classes (ignored in regression)."""
        return cls(inputs=inputs, outputs=1 if task == "regression" or classes == 2 else classes, task=task)

    @classmethod
    def of_study(cls, study: Study) -> Shape:
        """Return the shape that a study's public schema fixes.

        Raises:
            SettingError: the study leaves it open.
        """
        data, task = study.file.data, study.file.study.task
        if data.kind != "tabular":
            raise SettingError(f"data.kind = '{data.kind}' is not part of this version; use 'tabular'")
        if task == "classification" and data.classes is None:
            raise SettingError(
                'data.classes is missing: write the classes of the target, for example classes = ["no", "yes"]'
            )
        return cls.of(inputs=(data.input_width,), classes=len(data.classes or ()), task=task)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Arguments of an architecture."""

    def build(self, shape: Shape) -> nn.Module:
        """Return a new module: (rows, *shape.inputs) to (rows, shape.outputs), each row by itself."""
        raise NotImplementedError


def build(model: Model, shape: Shape, seed: int) -> nn.Module:
    """Return `model` with initial weights that are a function of the seed; torch's own generator is left as it was.

    Raises:
        SettingError: the module mixes records of a batch (BatchNorm), so no record's influence could be bounded.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = model.build(shape)
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise SettingError(
                f"model part '{name}' is {type(part).__name__}, which mixes the records of a batch; "
                "use GroupNorm or LayerNorm"
            )
    return module


def layout_of(module: nn.Module) -> Layout:
    """Return the layout of the module's trainable parameters."""
    return Layout.of({name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad})


def weights_of(module: nn.Module) -> Vector:
    """Return the trainable parameters as one flat float32 vector."""
    named = {name: p.detach().cpu().numpy() for name, p in module.named_parameters() if p.requires_grad}
    return layout_of(module).join(named)


def flat_parameters(module: nn.Module) -> torch.Tensor:
    """Return one flat tensor of which every trainable parameter is henceforth a view.

    An optimiser that steps on the flat tensor moves the module, at the cost of one operation instead of one a
    parameter.
    """
    import torch

    layout = layout_of(module)
    parameters = dict(module.named_parameters())
    first = next(iter(parameters.values()))
    flat = torch.empty(layout.size, dtype=torch.float32, device=first.device)
    for slot in layout.slots:
        view = flat[slot.offset : slot.offset + slot.size].view(slot.shape)
        view.copy_(parameters[slot.name].detach())
        parameters[slot.name].data = view
    return flat


def load_weights(module: nn.Module, weights: Vector) -> None:
    """Copy a flat vector into the module's parameters."""
    import torch

    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, values in layout_of(module).split(weights).items():
            parameters[name].copy_(torch.from_numpy(np.array(values)))


def predict(module: nn.Module, x: torch.Tensor, shape: Shape, *, rows_at_once: int = 4096) -> Any:
    """Return (rows, classes) probabilities, or (rows, 1) values for regression, as float64 numpy.

    Raises:
        RunError: the module gives a value that is not finite.
    """
    import torch

    parts = []
    was_training = module.training
    module.eval()
    with torch.no_grad():
        for start in range(0, max(len(x), 1), rows_at_once):
            out = module(x[start : start + rows_at_once]).double()
            if shape.task == "classification":
                if shape.outputs == 1:
                    out = torch.sigmoid(out)
                    out = torch.cat([1 - out, out], dim=1)
                else:
                    out = torch.softmax(out, dim=1)
            parts.append(out.cpu().numpy())
    module.train(was_training)
    scores = np.concatenate(parts)
    if not np.isfinite(scores).all():
        raise RunError("the model's output is not a finite number; lower the learning rate of training.optimizer")
    return scores


def features(shape: Shape) -> int:
    """Return the number of values of one record."""
    return math.prod(shape.inputs)
